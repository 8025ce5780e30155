"""The master dies, freezes, or is replaced by hand: three sentinels, real servers, under load."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.redis_load import QUICK, TTL, Load, Node, eventually, unique
from sentinels import Watched
from servers import servers
from trunkline.errors import ChannelFull, TransportUnavailable
from trunkline.transports.redis import RedisTransport, sentinel
from trunkline.transports.redis.pace import Pace


@pytest.fixture(params=sorted(servers()))
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(request.param, tmp_path / "watched")
    yield watched
    watched.kill()


#: For what does not depend on the server.
one_kind = pytest.mark.parametrize("watched", sorted(servers())[:1], indirect=True)


async def in_thread(work: Callable[..., Any], *args: object) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


class Follower(Node):
    """A node that finds its server through the sentinels, and remembers its longest silence."""

    def __init__(self, watched: Watched, prefix: str, pace: Pace = QUICK) -> None:
        super().__init__(watched.servers[0], prefix)
        self.transport = RedisTransport(
            watched.hosts,
            prefix=prefix,
            deadline=2.0,
            on_disconnect=self._lost,
            on_reconnect=self._back,
            _pace=pace,
        )
        self._heard = time.monotonic()
        self.silence = 0.0

    def deliver(self, frame: bytes) -> None:
        now = time.monotonic()
        self.silence = max(self.silence, now - self._heard)
        self._heard = now
        super().deliver(frame)


class Steady(Load):
    """A load of some thousand deliveries a second, so that the two halves of the machine keep breathing."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__(nodes, topics=20)

    async def _one(self, call: Any, frame: bytes, receivers: list[Node]) -> None:
        await super()._one(call, frame, receivers)
        await asyncio.sleep(0.03)


class Jobs:
    """One node pushes numbered frames to a queue, the others take them: the account of that."""

    def __init__(self, nodes: list[Node]) -> None:
        self._writer, *self._readers = nodes
        self.pushed: list[bytes] = []
        self.unsure: list[bytes] = []
        self.taken: Counter[bytes] = Counter()
        self._stop = False

    async def __aenter__(self) -> Jobs:
        self._writing = asyncio.create_task(self._write())
        self._reading = [asyncio.create_task(self._read(node)) for node in self._readers]
        return self

    async def _write(self) -> None:
        number = 0
        while not self._stop:
            number += 1
            frame = b"%06d" % number
            try:
                await self._writer.transport.push("jobs", frame, 1000, TTL)
                self.pushed.append(frame)
            except (TransportUnavailable, ChannelFull):
                self.unsure.append(frame)
            await asyncio.sleep(0.01)

    async def _read(self, node: Node) -> None:
        while True:
            self.taken[await node.transport.pull("jobs")] += 1

    async def __aexit__(self, *args: object) -> None:
        self._stop = True
        await self._writing
        try:
            await eventually(lambda: not self.lost, 2.0)
        except AssertionError:
            pass
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    @property
    def lost(self) -> int:
        return sum(frame not in self.taken for frame in self.pushed)

    @property
    def doubled(self) -> int:
        return sum(count - 1 for count in self.taken.values())


class Scene:
    """Three nodes under load, before, during and after a failover."""

    def __init__(self, watched: Watched, nodes: list[Follower]) -> None:
        self.watched, self.nodes = watched, nodes
        self.load, self.jobs = Steady([*nodes]), Jobs([*nodes])
        self.master = watched.master
        self.replica = next(server for server in watched.servers if server is not self.master)

    async def busy(self) -> None:
        """Wait until every node has received some more."""
        heard = [len(node.frames) for node in self.nodes]
        pairs = list(zip(self.nodes, heard, strict=True))
        await eventually(lambda: all(len(node.frames) > before + 300 for node, before in pairs), 30)

    async def changed(self) -> None:
        """Wait until every node works with the new master."""
        await eventually(
            lambda: all(node.reconnects for node in self.nodes), 40
        )  # a vote may have to be repeated
        await self.busy()
        assert await in_thread(self.watched.port, 1) == self.replica.port
        clients = (await in_thread(self.replica.call, "CLIENT", "LIST")).decode()
        assert all(clients.count(f"trunkline-{node.name}-") == 2 for node in self.nodes), clients

    def tell(self) -> None:
        """For ``pytest -s``: figures."""
        silence = max(node.silence for node in self.nodes)
        frames, jobs = sum(len(node.frames) for node in self.nodes), self.jobs
        print(
            f"\n{self.watched.kind}: {frames} deliveries, longest silence {silence:.2f} s; "
            f"{len(jobs.pushed)} jobs, {jobs.lost} lost, {jobs.doubled} doubled"
        )


@asynccontextmanager
async def under_load(watched: Watched, pace: Pace = QUICK, *, exact: bool = True) -> AsyncIterator[Scene]:
    """``exact``: nothing may be lost, doubled, reordered or told."""
    prefix = unique()
    nodes = [Follower(watched, prefix, pace) for _ in range(3)]
    async with nodes[0], nodes[1], nodes[2]:
        scene = Scene(watched, nodes)
        async with scene.load, scene.jobs:
            await scene.busy()
            for node in nodes:
                node.silence = 0.0
            yield scene
        scene.tell()
        if exact:
            await scene.load.check()


async def test_a_dead_master_costs_nothing(watched: Watched) -> None:
    """kill -9 of the master: 0 lost, 0 doubled, 0 reordered; the queue loses or repeats one at most."""
    async with under_load(watched) as scene:
        scene.master.kill()
        await scene.changed()
    # An answer can leave before the replica has heard of it, if the master ends in between.
    assert scene.jobs.lost + scene.jobs.doubled <= 1


async def test_a_frozen_master_costs_nothing(watched: Watched) -> None:
    """SIGSTOP until another server is the master; then it goes on, and finds itself a replica."""
    async with under_load(watched) as scene:
        scene.master.freeze()
        try:
            await scene.changed()
        finally:
            scene.master.thaw()
        watched.hurry()  # it takes them some 15 s otherwise
        await eventually(lambda: watched.is_replica(scene.master))
        await scene.busy()
        assert all(node.reconnects == 1 for node in scene.nodes)
    # An answer can leave before the replica has heard of it, if the master ends in between.
    assert scene.jobs.lost + scene.jobs.doubled <= 1


@pytest.mark.parametrize("heard", ["news", "poll"])
async def test_a_failover_by_hand_costs_nothing(
    watched: Watched, heard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SENTINEL FAILOVER: the old master goes on answering for seconds. It is left long before, for the news or for the
    poll alone, and what it took meanwhile is not lost."""
    if heard == "news":
        monkeypatch.setattr(sentinel, "POLL", 1000.0)
    else:
        monkeypatch.setattr(sentinel, "NEWS", ("nothing",))
    async with under_load(watched) as scene:
        await in_thread(watched.sentinels[1].call, "SENTINEL", "FAILOVER", watched.name)
        await scene.changed()
        # It is no replica yet: nothing but the news, or the poll, can have made them leave.
        assert scene.master.call("ROLE")[0] == b"master"


@asynccontextmanager
async def away(scene: Scene, node: Follower, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The node loses its connections, and finds no way back."""

    async def no_road() -> None:
        raise TransportUnavailable("no road to any sentinel")

    with monkeypatch.context() as patch:
        patch.setattr(node.transport._links[0]._sentinels, "find", no_road)
        for kind in ("commands", "pushes"):
            await in_thread(scene.master.kill_clients, f"{node.name}-{kind}")
        await eventually(lambda: node.disconnects)
        yield


@pytest.mark.parametrize("window", [5.0, 0.0])
async def test_what_a_lagging_replica_did_not_have(
    watched: Watched, window: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 0.7 s before the master dies nothing reaches the replica that takes its place, nor one of the nodes. With the
    replay that node misses nothing; without it, it is told what."""
    pace = Pace(heartbeat=0.5, audit=2.0, window=window)
    async with under_load(watched, pace, exact=bool(window)) as scene:
        reader = scene.nodes[2]
        await in_thread(watched.cut_off, scene.replica)
        async with away(scene, reader, monkeypatch):
            await asyncio.sleep(0.7)
            scene.master.kill()
        await scene.changed()
    if not window:
        lost = {frame.split(b":")[2].decode() for frame in scene.load.lost(reader)}
        told = {"post" if topic is None else topic for topic in reader.gaps}
        assert "topic.0" in lost <= told
        assert scene.load.doubled(reader) == 0


@one_kind
async def test_the_replay_outlasts_the_silence(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that freezes is replaced only after longer than the replay window: what it took in its last 0.3 s, and
    nobody else has, is replayed nevertheless."""
    watched.patience(3500)
    pace = Pace(heartbeat=4.0, audit=20.0, window=2.5)
    async with under_load(watched, pace) as scene:
        await in_thread(watched.cut_off, scene.replica)
        async with away(scene, scene.nodes[2], monkeypatch):
            await asyncio.sleep(0.3)
            scene.master.freeze()
        await scene.changed()
    assert min(node.silence for node in scene.nodes) > pace.window


@one_kind
async def test_a_dead_sentinel_is_not_missed(watched: Watched) -> None:
    """The sentinel that all nodes listen to dies, and then the master is replaced."""
    async with under_load(watched) as scene:
        watched.sentinels[0].kill()
        await in_thread(watched.sentinels[1].call, "SENTINEL", "FAILOVER", watched.name)
        await scene.changed()


@one_kind
@pytest.mark.parametrize("knew", [True, False])
async def test_what_a_queue_loses_and_repeats(watched: Watched, knew: bool) -> None:
    """What the replica knows is what is there afterwards: jobs pushed since are lost, jobs taken since come again. Nothing
    else is lost or comes twice."""
    prefix = unique()
    async with Follower(watched, prefix) as a, Follower(watched, prefix) as b:
        master, replica = watched.servers
        (link,) = a.transport._links
        queue = link.names.queue_keys("jobs")[0]

        async def push(first: int, end: int) -> None:
            await asyncio.gather(
                *(a.transport.push("jobs", b"%02d" % number, 1000, TTL) for number in range(first, end))
            )

        async def take(count: int) -> list[int]:
            async with asyncio.timeout(30):
                return [int(await b.transport.pull("jobs")) for _ in range(count)]

        await push(0, 20)
        await eventually(lambda: replica.call("LLEN", queue) == 20)
        if not knew:
            watched.cut_off(replica)
        assert await take(5) == list(range(5))
        await push(20, 30)
        last_to_know = master if not knew else replica
        await eventually(lambda: last_to_know.call("LLEN", queue) == 25)  # what was in its hand is back, too
        master.kill()
        await eventually(lambda: a.reconnects and b.reconnects, 40)
        await push(99, 100)
        there = list(range(5, 30)) if knew else list(range(20))
        assert await take(len(there) + 1) == [*there, 99]
