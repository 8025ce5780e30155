"""``wait_replicas``: what counts as sent is on so many replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.redis_load import TTL, Node, eventually, unique
from faults.test_redis_failover import Jobs, in_thread
from sentinels import Watched
from servers import Server, servers
from trunkline.errors import ChannelFull, ConfigurationError, TransportUnavailable
from trunkline.layers import RedisChannelLayer
from trunkline.opening import layer_from_url
from trunkline.transports.redis import RedisTransport


@pytest.fixture(scope="module", params=sorted(servers()))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """A master and its replica."""
    directory = tmp_path_factory.mktemp(request.param)
    master = Server(request.param, directory / "master", repl_diskless_sync_delay="0")
    replica = Server(request.param, directory / "replica", replicaof=f"127.0.0.1 {master.port}")
    yield [master, replica]
    for server in (master, replica):
        server.kill()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica on a busy machine may need longer than the second that it has; half the deadline stays the bound."""
    monkeypatch.setattr("trunkline.transports.redis.replicas._PATIENCE", 10.0)


@pytest.fixture
async def in_step(pair: list[Server]) -> list[Server]:
    """The same, once the replica has all."""
    await eventually(lambda: pair[0].call("WAIT", 1, 100) == 1)
    return pair


class Careful(Node):
    def __init__(self, server: Server, prefix: str, **options: Any) -> None:
        super().__init__(server, prefix, **{"wait_replicas": 1, "deadline": 20.0, **options})


async def use(a: Node, b: Node, mark: bytes) -> None:
    """One frame of each kind."""
    await a.transport.publish("room", mark + b"1", TTL)
    assert await a.transport.post(b.name, "x!1", mark + b"2", 10, TTL)
    await a.transport.push("jobs", mark + b"3", 10, TTL)
    assert await b.transport.pull("jobs") == mark + b"3"
    await eventually(lambda: b.frames[-2:] == [mark + b"1", mark + b"2"])


async def test_it_is_there_when_the_call_returns(in_step: list[Server]) -> None:
    """What was published, posted and pushed is on the replica at once, whoever looks."""
    master, replica = in_step
    prefix = unique()
    async with Careful(master, prefix) as a, Careful(master, prefix) as b:
        await b.transport.subscribe("room")
        names = a.transport._links[0].names
        for number in range(50):
            frame = b"%d" % number
            await a.transport.publish("room", frame, TTL)
            await a.transport.push("jobs", frame, 1000, TTL)
            assert await a.transport.post(b.name, "x!1", frame, None, TTL)
            queue = names.queue_keys("jobs")[0]
            lengths = replica.calls(
                ("XLEN", names.topic("room")), ("LLEN", queue), ("XLEN", names.inbox(b.name))
            )
            assert lengths == [number + 1] * 3


async def test_many_at_once_share_one_wait(in_step: list[Server]) -> None:
    """300 frames sent in one turn of the loop wait together, and keep their order; a full queue says so."""
    master, _ = in_step
    prefix = unique()
    async with Careful(master, prefix) as a, Careful(master, prefix) as b:
        await b.transport.subscribe("room")
        before = master.command_counts().get("wait", 0)
        await asyncio.gather(*(a.transport.publish("room", b"%03d" % n, TTL) for n in range(300)))
        await eventually(lambda: len(b.frames) == 300)
        assert b.frames == [b"%03d" % n for n in range(300)]
        outcomes = await asyncio.gather(
            *(a.transport.push("jobs", b"%d" % n, 5, TTL) for n in range(8)), return_exceptions=True
        )
        assert outcomes[:5] == [None] * 5
        assert [isinstance(outcome, ChannelFull) for outcome in outcomes[5:]] == [True] * 3
        assert master.command_counts()["wait"] - before < 40
        assert not await a.transport.post("nobody", "x!1", b"", 1, TTL)


async def test_too_few_replicas_are_told(in_step: list[Server]) -> None:
    """Two are asked for, one is there: the call says so, the frame arrives all the same, and nothing is broken."""
    master, _ = in_step
    prefix = unique()
    async with Careful(master, prefix, wait_replicas=2, deadline=2.0) as a, Node(master, prefix) as b:
        await b.transport.subscribe("room")
        calls = (
            a.transport.publish("room", b"1", TTL),
            a.transport.post(b.name, "x!1", b"2", 10, TTL),
            a.transport.push("jobs", b"3", 10, TTL),
        )
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, TransportUnavailable)
            assert "1 of wait_replicas=2" in str(outcome)
            assert "may have arrived" in str(outcome)
        assert await b.transport.pull("jobs") == b"3"
        await eventually(lambda: b.frames == [b"1", b"2"])
        assert (a.disconnects, a.gaps, b.gaps) == (0, [], [])


async def test_a_pull_waits_until_it_is_safe(pair: list[Server], tmp_path: Path) -> None:
    """Without its replica a node is given nothing; when the replica is back, each frame comes once."""
    master = Server(pair[0].kind, tmp_path / "master", repl_diskless_sync_delay="0")
    replica = Server(pair[0].kind, tmp_path / "replica", replicaof=f"127.0.0.1 {master.port}")
    try:
        await eventually(lambda: master.call("WAIT", 1, 100) == 1)
        prefix = unique()
        async with Careful(master, prefix) as a, Careful(master, prefix) as b, Node(master, prefix) as c:
            await b.transport.subscribe("room")
            await use(a, b, b"before ")
            replica.kill()
            for number in range(3):
                await c.transport.push("jobs", b"%d" % number, 10, TTL)
            pulls = [asyncio.create_task(b.transport.pull("jobs")) for _ in range(3)]
            done, _ = await asyncio.wait(pulls, timeout=2.5)
            assert not done
            replica.start()
            async with asyncio.timeout(20):
                assert sorted(await asyncio.gather(*pulls)) == [b"0", b"1", b"2"]
            await use(a, b, b"after ")
            assert b.gaps == []
    finally:
        master.kill()
        replica.kill()


@pytest.mark.parametrize("kind", sorted(servers()))
async def test_no_job_is_lost_or_doubled_by_a_lagging_replica(kind: str, tmp_path: Path) -> None:
    """For 1.5 s nothing reaches the replica, then the master dies and it takes its place: every job that counts as sent
    is taken once, though the replica lacked the last ones."""
    watched = Watched(kind, tmp_path / "watched")
    try:
        nodes = [Careful(watched.master, "x") for _ in range(3)]
        prefix = unique()
        for node in nodes:
            node.transport = RedisTransport(
                watched.hosts, prefix=prefix, deadline=2.0, wait_replicas=1, on_reconnect=node._back
            )
        async with nodes[0], nodes[1], nodes[2]:
            jobs = Jobs([*nodes])
            async with jobs:
                await eventually(lambda: len(jobs.taken) > 30)
                master = watched.master
                replica = next(server for server in watched.servers if server is not master)
                await in_thread(watched.cut_off, replica)
                taken = len(jobs.taken)
                await asyncio.sleep(1.5)
                # What was on its way when the replica was cut off may still have been handed over.
                assert len(jobs.taken) < taken + 30
                master.kill()
                await eventually(lambda: all(node.reconnects for node in nodes), 20.0)
                # The new master has no replica, so nothing counts as sent until it has one.
                await in_thread(make_replica, watched, replica, tmp_path)
                done = len(jobs.pushed)
                await eventually(lambda: len(jobs.pushed) > done + 30, 20.0)
                await eventually(lambda: not jobs.lost, 20.0)
            assert (jobs.lost, jobs.doubled) == (0, 0)
            print(f"\n{kind}: {len(jobs.pushed)} jobs, {len(jobs.unsure)} unsure, 0 lost, 0 doubled")
    finally:
        watched.kill()


def make_replica(watched: Watched, master: Server, directory: Path) -> None:
    master.call("CONFIG", "SET", "masterauth", "")
    replica = Server(watched.kind, directory / "third", replicaof=f"127.0.0.1 {master.port}")
    watched.servers.append(replica)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "two", 1000])
def test_mistakes(wrong: Any) -> None:
    """The setting and the URL key are checked alike."""
    with pytest.raises(ConfigurationError, match="wait_replicas is a whole number"):
        RedisChannelLayer(["redis://h"], wait_replicas=wrong)
    with pytest.raises(ConfigurationError, match="wait_replicas is a whole number"):
        layer_from_url(f"redis://h?wait_replicas={wrong}")


def test_it_can_be_set() -> None:
    """By keyword and by URL."""
    layers = [
        RedisChannelLayer(["redis://h"], wait_replicas=2),
        layer_from_url("redis+sentinel://a,b/m?wait_replicas=2"),
        layer_from_url("redis+cluster://a,b?wait_replicas=2"),
    ]
    assert [layer._make_transport()._wait_replicas for layer in layers] == [2, 2, 2]  # type: ignore[attr-defined]
