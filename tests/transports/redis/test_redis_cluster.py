"""A cluster: what settings mean, who has what, what is told when it cannot be used, and every promise of the kit."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import Cluster
from faults.redis_load import QUICK, TTL, Node, eventually, unique
from servers import Server, free_port, servers
from trunkline.errors import ConfigurationError, TransportUnavailable
from trunkline.layers import RedisChannelLayer
from trunkline.names import new_node
from trunkline.opening import layer_from_url
from trunkline.testing import LayerConformance, Link, TransportConformance
from trunkline.testing.conform import NOT_PROMISED_BY_A_CLUSTER
from trunkline.testing.links import detoured
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis import cluster as rooms
from trunkline.transports.redis.dialect import PLAIN
from trunkline.transports.redis.hosts import Host
from trunkline.transports.redis.permissions import acl_line
from trunkline.transports.redis.topology import PARTITIONS, TAGS, partition, slot

KINDS = sorted(servers())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For all tests that do it no harm: three masters and a replica each, Valkey where it is."""
    cluster = Cluster(KINDS[-1], tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.kill()


class Member(Node):
    """A node on a cluster."""

    def __init__(self, hosts: Any, prefix: str, **options: Any) -> None:
        self.name = new_node()
        self.frames, self.gaps = [], []
        self.disconnects = self.reconnects = 0
        options = {"deadline": 2.0, "_pace": QUICK, **options}
        self.transport = RedisTransport(hosts, prefix=prefix, **options)


# The kit


#: Seconds for opening: on a machine that stands still the nodes of a cluster take each other for dead for a while.
PATIENCE = 30.0


class _Carrier(TransportConformance):
    cluster: Cluster

    def make_transport(self, link: Link, prefix: str) -> Any:
        transport = RedisTransport([self.cluster.url], prefix=prefix, deadline=2.0, connect_timeout=PATIENCE)
        return detoured(link, transport)


class _Layer(LayerConformance):
    cluster: Cluster

    def make_layer(self, prefix: str, **options: Any) -> RedisChannelLayer:
        return RedisChannelLayer([self.cluster.url], prefix=prefix, connect_timeout=PATIENCE, **options)


@pytest.mark.parametrize(
    ("kit", "promise"),
    [
        (kit, name)
        for kit in (_Carrier, _Layer)
        for name in kit.promises()
        if name not in NOT_PROMISED_BY_A_CLUSTER
    ],
)
def test_a_promise_on_a_cluster(cluster: Cluster, kit: Any, promise: str) -> None:
    """Each promise but that of order between several names, also over slow and cut roads."""
    made = kit()
    made.cluster = cluster
    asyncio.run(made.check(promise))


# Settings


@pytest.mark.parametrize(
    ("hosts", "options", "seeds"),
    [
        (["redis+cluster://a:7000,b"], {}, (Host("a", 7000), Host("b"))),
        (["valkey+cluster://:p%40ss@[::1]:7000/0"], {}, (Host("::1", 7000, password="p@ss"),)),
        (["rediss+cluster://u:p@a,b/?ssl_cert_reqs=none"], {},
         tuple(Host(name, username="u", password="p", ssl=True, ssl_cert_reqs="none") for name in "ab")),
        (["valkeys+cluster://a?ssl_ca_certs=/ca.pem"], {"cluster": True},
         (Host("a", ssl=True, ssl_ca_certs="/ca.pem"),)),
        (["redis://a:7000", ("b", 7001)], {"cluster": True}, (Host("a", 7000), Host("b", 7001))),
        ([{"host": "a", "password": "x"}], {"cluster": True}, (Host("a", password="x"),)),
    ],
)  # fmt: skip
def test_forms(hosts: Any, options: Any, seeds: tuple[Host, ...]) -> None:
    """URLs and entries of hosts name seeds."""
    (host,) = RedisTransport(hosts, **options)._hosts
    assert host.seeds == seeds
    assert host.password == seeds[0].password


@pytest.mark.parametrize(
    ("hosts", "options", "told"),
    [
        (["redis+cluster://a/1"], {}, "database 0 only"),
        (["redis+cluster://a?db=1"], {}, "database 0 only"),
        (["redis://a/2"], {"cluster": True}, "database 0 only"),
        (["redis+cluster://"], {}, "name some nodes"),
        (["redis+cluster://a,b:x"], {}, "port"),
        (["redis+cluster://a,a"], {}, "twice"),
        (["redis+cluster://a", "redis://b"], {}, "stands alone"),
        (["redis+cluster://a"], {"cluster": False}, "cluster=False"),
        (["redis+cluster://a"], {"read_hosts": ["redis://b"]}, "read_hosts"),
        (["redis://a"], {"cluster": "yes"}, "True or False"),
        (["unix:///x"], {"cluster": True}, "a socket's path"),
        (["redis+sentinel://a/m"], {"cluster": True}, "sentinels"),
        (["redis://:x@a", "redis://:y@b"], {"cluster": True}, "one password"),
        (["redis+cluster://a?master_name=m"], {}, "not an option"),
    ],
)
def test_mistakes(hosts: Any, options: Any, told: str) -> None:
    """What cannot be a cluster is told before anything is opened."""
    with pytest.raises(ConfigurationError, match=told) as error:
        RedisTransport(hosts, **options)
    assert ":x@" not in str(error.value)


async def test_a_server_that_is_no_cluster(tmp_path: Path) -> None:
    """cluster=True on a single server, and a node of a cluster named as a single server, are told at once."""
    server = Server(KINDS[-1], tmp_path / "server")
    try:
        with pytest.raises(
            ConfigurationError, match=rf"is not part of a cluster: write redis://127.0.0.1:{server.port}"
        ):
            async with Member([server.url], unique(), cluster=True):
                pass
    finally:
        server.kill()


async def test_a_node_named_as_a_server(cluster: Cluster) -> None:
    with pytest.raises(ConfigurationError, match=r"is part of a cluster: write redis\+cluster://127"):
        async with Member([f"redis://127.0.0.1:{cluster.nodes[0].port}"], unique()):
            pass


async def test_nobody_answers() -> None:
    """Every seed is named, with its trouble."""
    ports = free_port(), free_port()
    seeds = ",".join(f"127.0.0.1:{port}" for port in ports)
    with pytest.raises(TransportUnavailable) as error:
        async with Member([f"redis+cluster://{seeds}"], unique(), connect_timeout=0.3):
            pass
    for port in ports:
        assert f"127.0.0.1:{port}: " in str(error.value)


async def test_one_seed_is_enough(cluster: Cluster) -> None:
    """Also a replica; a dead one is passed over; by URL or with cluster=True; nothing stays behind."""
    before = asyncio.all_tasks()
    replica = cluster.nodes[-1].port
    for hosts, options in (
        ([f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{replica}"], {}),
        ([("127.0.0.1", replica)], {"cluster": True}),
    ):
        async with Member(hosts, unique(), **options) as node:
            for number in range(20):
                await node.transport.subscribe(f"room.{number}")
                await node.transport.publish(f"room.{number}", b"%d" % number, TTL)
            assert node.frames == [b"%d" % number for number in range(20)]
    async with layer_from_url(cluster.url) as layer:
        await layer.send("jobs", {"n": 1})
        assert await layer.receive("jobs") == {"n": 1}
        assert {server.up for server in layer._first.servers()} <= {True}
    assert asyncio.all_tasks() == before


async def test_a_password(tmp_path: Path) -> None:
    """It goes to every node; a wrong one is told at once."""
    cluster = Cluster(KINDS[-1], tmp_path, replicas=0, password="s/cret")
    try:
        url = cluster.url.replace("s/cret", "s%2Fcret")
        async with Member([url], unique()) as node:
            for number in range(20):
                await node.transport.publish(f"room.{number}", b"", TTL)
        with pytest.raises(ConfigurationError, match="WRONGPASS"):
            async with asyncio.timeout(20), Member([url.replace("cret", "crit")], unique()):
                pass
    finally:
        cluster.kill()


async def test_classic_pub_sub(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cluster has no sharded pub/sub the classic one does: also across a moved slot."""

    async def classic(connection: Any) -> Any:
        return PLAIN

    monkeypatch.setattr(rooms, "ask_dialect", classic)
    prefix = unique()
    number = slot(partition("room"))
    home = cluster.owner(number)
    other = next(node for node in cluster.masters() if node is not home)
    async with Member([cluster.url], prefix) as a, Member([cluster.url], prefix) as b:
        for turn, target in enumerate((other, home)):
            await b.transport.subscribe("room")
            await a.transport.publish("room", b"%d" % turn, TTL)
            assert await a.transport.post(b.name, "x!1", b"post", 10, TTL)
            await a.transport.push("jobs", b"job", 10, TTL)
            assert await b.transport.pull("jobs") == b"job"
            await eventually(lambda due=2 * (turn + 1): len(b.frames) == due)
            await asyncio.to_thread(cluster.migrate, number, target)
        assert sorted(b.frames) == [b"0", b"1", b"post", b"post"]
        await eventually(lambda: channels(cluster, b"t:room") == 1)


def channels(cluster: Cluster, end: bytes) -> int:
    """Nodes of the cluster where somebody subscribes to a channel with that end."""
    return sum(any(name.endswith(end) for name in node.call("PUBSUB", "CHANNELS")) for node in cluster.nodes)


async def test_a_slot_that_stays_between_two_masters(cluster: Cluster) -> None:
    """A migration that somebody left half done: topics of that slot go on (ASK), what needs several keys waits for its
    end, and nothing is lost or doubled."""
    number = slot(partition("half"))
    target = next(node for node in cluster.masters() if node is not cluster.owner(number))
    prefix = unique()
    async with Member([cluster.url], prefix) as a, Member([cluster.url], prefix) as b:
        await b.transport.subscribe("half")
        await a.transport.publish("half", b"0", TTL)
        source = await asyncio.to_thread(cluster.begin_to_migrate, number, target)
        await a.transport.publish("half", b"1", TTL)
        await asyncio.to_thread(cluster.move_keys, number, source, target)
        async with asyncio.timeout(10):
            await asyncio.gather(*(a.transport.publish("half", b"%d" % n, TTL) for n in range(2, 100)))
        await eventually(lambda: len(b.frames) == 100)
        await asyncio.to_thread(cluster.end_migration, number, source, target)
        await a.transport.publish("half", b"100", TTL)
        await eventually(lambda: len(b.frames) == 101)
        assert (b.frames, b.gaps) == ([b"%d" % n for n in range(101)], [])
    await asyncio.to_thread(cluster.migrate, number, source)


@pytest.mark.parametrize("order", ["tb", "bt"])
async def test_a_log_and_its_bindings_at_different_masters(cluster: Cluster, order: str) -> None:
    """Amid a migration the one has moved and the other not: bound queues miss nothing, and the migration goes on."""
    number = slot(partition("half"))
    target = next(node for node in cluster.masters() if node is not cluster.owner(number))
    prefix = unique()
    async with Member([cluster.url], prefix) as a, asyncio.timeout(60):

        async def reaches(frame: bytes) -> None:
            await a.transport.publish("half", frame, TTL)
            assert await a.transport.pull("jobs") == frame

        await a.transport.bind("half", "jobs", 10, TTL)
        await reaches(b"before")
        source = await asyncio.to_thread(cluster.begin_to_migrate, number, target)
        for kind in order:
            await reaches(b"between")
            keys = source.call("CLUSTER", "GETKEYSINSLOT", number, 100)
            ours = [key for key in keys if key.startswith(prefix.encode())]
            wanted = [key for key in ours if key.endswith(b"}%b:half" % kind.encode())]
            assert len(wanted) == 1, keys
            await asyncio.to_thread(cluster.move, wanted, source, target)
        await reaches(b"nearly there")
        await asyncio.to_thread(cluster.end_migration, number, source, target)
        await reaches(b"after")
    await asyncio.to_thread(cluster.migrate, number, source)


# Shares


@pytest.mark.parametrize("masters", [3, 4, 6])
def test_every_master_carries_its_share(cluster: Cluster, tmp_path: Path, masters: int) -> None:
    """By the servers' own arithmetic: with equal ranges of slots, no master has more than one partition more."""
    slots = [cluster.nodes[0].call("CLUSTER", "KEYSLOT", f"x/0{{{tag}}}t:room") for tag in TAGS]
    assert slots == [slot(number) for number in range(PARTITIONS)]
    if masters == 3:
        shares = Counter(cluster.owner(number).port for number in slots)
    else:
        other = Cluster(KINDS[-1], tmp_path, masters=masters, replicas=0)
        try:
            shares = Counter(other.owner(number).port for number in slots)
        finally:
            other.kill()
    assert len(shares) == masters
    assert max(shares.values()) - min(shares.values()) <= 1


# Doctor


async def look(hosts: Any, **options: Any) -> str:
    found = await RedisTransport.examine("redis://", hosts=hosts, **options)
    return "\n".join(f"{level}: {what} | {fix}" for level, what, fix in found)


async def test_the_doctor_is_content(cluster: Cluster) -> None:
    """It counts masters, replicas and slots, and examines every master."""
    found = await look([cluster.url], wait_replicas=1)
    assert "ok: 3 masters, 3 replicas, 16384 of 16384 slots have a master" in found
    assert "ok: pub/sub stays within a shard" in found
    assert "warning: cluster-require-full-coverage yes" in found
    for node in cluster.masters():
        assert re.search(rf"ok: 127.0.0.1:{node.port}: answers in [\d.]+ ms", found)
        assert f"ok: 127.0.0.1:{node.port}: user default may do all that is needed" in found
    assert "error" not in found


async def test_the_doctor_finds_fault(tmp_path: Path) -> None:
    """No replicas, slots that nobody has, seeds that do not answer, too few replicas to wait for, no cluster at all."""
    cluster = Cluster(KINDS[-1], tmp_path / "cluster", masters=3, replicas=0)
    server = Server(KINDS[-1], tmp_path / "server")
    try:
        dead = free_port()
        found = await look([f"{cluster.url},127.0.0.1:{dead}"], wait_replicas=1)
        assert found.count("has no replica: when it is gone") == 3
        assert f"warning: 127.0.0.1:{dead}: nothing listens there" in found
        assert found.count("wait_replicas is 1, and it has 0") == 3
        for node in cluster.nodes:
            node.call("CLUSTER", "DELSLOTSRANGE", 0, 99)
        assert "error: 3 masters, 0 replicas, 16284 of 16384 slots have a master | redis-cli" in await look(
            [cluster.url]
        )
        assert "error: 127.0.0.1" in (found := await look([server.url], cluster=True))
        assert "is not part of a cluster: write redis://" in found
    finally:
        cluster.kill()
        server.kill()


async def test_a_user_of_its_own(cluster: Cluster) -> None:
    """The permissions that docs/cluster.md names are enough; what is missing is named, with the line that grants it."""
    line = acl_line("asgi", in_cluster=True)
    assert f"\n{line}\n" in (Path(__file__).parents[3] / "docs/cluster.md").read_text()
    for node in cluster.nodes:
        node.call(*line.replace(">PASSWORD", ">pw").split())
        node.call(
            "ACL", "SETUSER", "poor", "on", ">pw", "~asgi/*", "&asgi/*", "+@all", "-spublish", "-asking"
        )
        node.call("ACL", "LOG", "RESET")
    port = cluster.nodes[0].port
    async with Member([f"redis+cluster://trunkline:pw@127.0.0.1:{port}"], "asgi") as node:
        await node.transport.subscribe("room")
        for name in ("room", "other", "third"):
            await node.transport.publish(name, b"frame", TTL)
            assert await node.transport.post(node.name, "x!1", b"post", 10, TTL)
            await node.transport.push(name, b"job", 10, TTL)
            assert await node.transport.pull(name) == b"job"
            await node.transport.bind("room", name, 10, TTL)
            await node.transport.unbind("room", name)
        await node.transport.unsubscribe("room")
        await node.transport.flush()
    assert [entry for server in cluster.nodes for entry in server.call("ACL", "LOG")] == []
    found = await look([f"redis+cluster://trunkline:pw@127.0.0.1:{port}"])
    assert found.count("user trunkline may do all that is needed") == 3
    found = await look([f"redis+cluster://poor:pw@127.0.0.1:{port}"])
    assert found.count("user poor lacks permissions: the commands asking spublish") == 3
