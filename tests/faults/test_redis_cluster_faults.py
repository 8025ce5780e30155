"""A cluster under load: slots move, masters die and are replaced, nodes come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import Cluster
from clusters import Node as Server
from faults.redis_load import QUICK, Load, Node, eventually, unique
from faults.test_redis_failover import Jobs
from servers import servers
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis.pace import Pace
from trunkline.transports.redis.topology import partition, slot

TOPICS = 50


@pytest.fixture(params=sorted(servers()))
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(request.param, tmp_path / "cluster")
    yield cluster
    cluster.kill()


#: For what does not depend on the server.
one_kind = pytest.mark.parametrize("cluster", sorted(servers())[-1:], indirect=True)


async def in_thread(work: Callable[..., Any], *args: object) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


class Member(Node):
    """A node on a cluster, that remembers its longest silence."""

    def __init__(self, cluster: Cluster, prefix: str, pace: Pace = QUICK, **options: Any) -> None:
        super().__init__(cluster.nodes[0], prefix)
        self.transport = RedisTransport(
            [cluster.url],
            prefix=prefix,
            deadline=2.0,
            on_disconnect=self._lost,
            on_reconnect=self._back,
            _pace=pace,
            **options,
        )
        self._heard = time.monotonic()
        self.silence = 0.0

    def deliver(self, frame: bytes) -> None:
        now = time.monotonic()
        self.silence = max(self.silence, now - self._heard)
        self._heard = now
        super().deliver(frame)


class Steady(Load):
    """So many topics, and time to breathe between two rounds."""

    async def _one(self, call: Any, frame: bytes, receivers: list[Node]) -> None:
        await super()._one(call, frame, receivers)
        await asyncio.sleep(0.05)


class Scene:
    """Three nodes under load."""

    def __init__(self, cluster: Cluster, nodes: list[Member]) -> None:
        self.cluster, self.nodes = cluster, nodes
        self.load, self.jobs = Steady([*nodes], topics=TOPICS), Jobs([*nodes])

    async def busy(self) -> None:
        """Wait until every node has received some more of every topic, and of the others' posts."""
        marks = [len(node.frames) for node in self.nodes]

        def all_heard() -> bool:
            for node, mark in zip(self.nodes, marks, strict=True):
                heard = Counter(frame.split(b":")[2] for frame in node.frames[mark:])
                if len(heard) < TOPICS + 1 or min(heard.values()) < 3:
                    return False
            return True

        await eventually(all_heard, 20.0)

    @property
    def slots(self) -> list[int]:
        """The slots of the topics, the queue and the nodes."""
        names = [*self.load.topics, "jobs", *(node.name for node in self.nodes)]
        return sorted({slot(partition(name)) for name in names})

    def tell(self) -> None:
        """For ``pytest -s``: figures."""
        silence = max(node.silence for node in self.nodes)
        frames, jobs = sum(len(node.frames) for node in self.nodes), self.jobs
        print(
            f"\n{self.cluster.kind}: {frames} deliveries, longest silence {silence:.2f} s; "
            f"{len(jobs.pushed)} jobs, {jobs.lost} lost, {jobs.doubled} doubled"
        )


@contextlib.asynccontextmanager
async def under_load(cluster: Cluster, **options: Any) -> AsyncIterator[Scene]:
    """Nothing may be lost, doubled, reordered or told."""
    prefix = unique()
    nodes = [Member(cluster, prefix, **options) for _ in range(3)]
    async with nodes[0], nodes[1], nodes[2]:
        scene = Scene(cluster, nodes)
        async with scene.load, scene.jobs:
            await scene.busy()
            for node in nodes:
                node.silence = 0.0
            yield scene
            await scene.busy()
        scene.tell()
        await scene.load.check(across_topics=False)
        clients = [await in_thread(connections, server, nodes) for server in cluster.alive()]
        assert max(max(counts) for counts in clients) <= 2, clients


def connections(server: Server, nodes: list[Member]) -> list[int]:
    listed = server.call("CLIENT", "LIST").decode()
    return [listed.count(f"trunkline-{node.name}-") for node in nodes]


async def test_slots_move_there_and_back(cluster: Cluster) -> None:
    """Every slot in use moves to the next master and back, key by key: nothing is lost, doubled or reordered."""
    async with under_load(cluster) as scene:
        masters = cluster.masters()
        before = {number: cluster.owner(number) for number in scene.slots[::2]}
        for number, home in before.items():
            await in_thread(cluster.migrate, number, masters[(masters.index(home) + 1) % 3])
        await scene.busy()
        for number, home in before.items():
            await in_thread(cluster.migrate, number, home)
    assert scene.jobs.lost + scene.jobs.doubled == 0
    assert all(node.disconnects == 0 for node in scene.nodes)


async def test_a_dead_master_is_replaced(cluster: Cluster) -> None:
    """kill -9 of a master: its replica takes its place, and what it had taken and its replica lacks is sent again."""
    async with under_load(cluster) as scene:
        victim = cluster.owner(slot(partition(scene.nodes[0].name)))
        await in_thread(victim.kill)
        await in_thread(cluster.settle)
        await eventually(lambda: all(node.reconnects for node in scene.nodes))
    # An answer can leave before the replica has heard of it, if the master ends in between.
    assert scene.jobs.lost + scene.jobs.doubled <= 1


@one_kind
async def test_what_a_lagging_replica_did_not_have(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 0.7 s before a master dies nothing reaches its replica, nor one of the nodes: it is sent again."""
    async with under_load(cluster) as scene:
        reader = scene.nodes[2]
        victim = cluster.owner(slot(partition(reader.name)))
        replica = cluster.replica_of(victim)
        rooms = reader.transport._cluster
        assert rooms is not None
        home = next(host for host in rooms._masters if host.port == victim.port)
        await in_thread(
            replica.calls, ("CONFIG", "SET", "masterauth", "wrong"), ("CLIENT", "KILL", "TYPE", "master")
        )
        with monkeypatch.context() as patch:
            patch.setattr(rooms, "home", never(rooms.home, home))
            await in_thread(victim.kill_clients, f"{reader.name}-pushes")
            await eventually(lambda: reader.disconnects)
            await asyncio.sleep(0.7)
            await in_thread(victim.kill)
        await in_thread(cluster.settle)
        await eventually(lambda: all(node.reconnects for node in scene.nodes))


def never(home: Callable[[int], Any], host: Any) -> Callable[[int], Any]:
    """Any master but one."""

    async def other(place: int) -> Any:
        while (master := await home(place)).host == host:
            await asyncio.sleep(0.05)
        return master

    return other


@one_kind
async def test_a_master_comes_and_goes(cluster: Cluster) -> None:
    """A fourth master takes a share, gives it back and leaves; its connections go with it."""
    async with under_load(cluster) as scene:
        fourth = await in_thread(cluster.join)
        moving = {number: cluster.owner(number) for number in scene.slots[::4]}
        for number in moving:
            await in_thread(cluster.migrate, number, fourth)
        await scene.busy()
        assert max(connections(fourth, scene.nodes)) == 2
        for number, home in moving.items():
            await in_thread(cluster.migrate, number, home)
        await scene.busy()
        await eventually(lambda: connections(fourth, scene.nodes) == [0, 0, 0], 35.0)
        await in_thread(cluster.leave, fourth)
    assert scene.jobs.lost + scene.jobs.doubled == 0
    assert all(node.disconnects == 0 for node in scene.nodes)
