"""Finding the master through sentinels: what settings mean, what is told when it cannot be found."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.redis_load import QUICK, TTL, Node, eventually
from sentinels import Sentinel, Watched
from servers import free_port, servers
from trunkline.errors import ConfigurationError, TransportUnavailable
from trunkline.layers import RedisChannelLayer
from trunkline.names import new_node
from trunkline.opening import layer_from_url
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis.hosts import Host, parse_hosts
from trunkline.transports.redis.topology import partition


@pytest.fixture(scope="module", params=sorted(servers()))
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One group for all tests that do it no harm; servers and sentinels have a password each."""
    directory = tmp_path_factory.mktemp(request.param)
    watched = Watched(request.param, directory, password="s/rvers", sentinel_password="s@ntinels")
    yield watched
    watched.kill()


@pytest.fixture
def rumour(watched: Watched, tmp_path: Path) -> Iterator[Sentinel]:
    """A sentinel that calls a replica the master, as one does that was cut off during a failover."""
    replica = next(server for server in watched.servers if server is not watched.master)
    lines = [
        f"sentinel monitor {watched.name} 127.0.0.1 {replica.port} 1",
        f"sentinel down-after-milliseconds {watched.name} 60000",
        f"sentinel auth-pass {watched.name} s/rvers",
    ]
    sentinel = Sentinel(watched.kind, tmp_path / "rumour", lines, requirepass="s@ntinels")
    yield sentinel
    sentinel.kill()


class Follower(Node):
    def __init__(self, hosts: Any, prefix: str | None = None, **options: Any) -> None:
        self.name = new_node()
        self.frames, self.gaps = [], []
        self.disconnects = self.reconnects = 0
        options = {"deadline": 2.0, "_pace": QUICK, **options}
        prefix = prefix or f"t{uuid.uuid4().hex[:10]}"
        self.transport = RedisTransport(hosts, prefix=prefix, on_reconnect=self._back, **options)


async def use(hosts: Any, **options: Any) -> Follower:
    """Open, and see one frame come round."""
    async with Follower(hosts, **options) as node:
        await node.transport.subscribe("room")
        await node.transport.publish("room", b"frame", TTL)
        assert node.frames == [b"frame"]
    return node


def with_sentinels(watched: Watched, *ports: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**watched.hosts[0], "sentinels": [("127.0.0.1", port) for port in ports], **changes}]


async def test_a_dict_and_a_url(watched: Watched) -> None:
    """Both forms name sentinels, master and two passwords; nothing stays behind."""
    before = asyncio.all_tasks()
    await use(watched.hosts)
    places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in watched.sentinels)
    url = f"redis+sentinel://:s%2Frvers@{places}/{watched.name}/1?sentinel_password=s%40ntinels"
    assert parse_hosts([url]) == [Host(**{**vars(parse_hosts(watched.hosts)[0]), "db": 1})]
    await use([url])
    async with layer_from_url(url) as layer:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.group_send("room", {"type": "hello"})
        assert await layer.receive(channel) == {"type": "hello"}
    assert asyncio.all_tasks() == before


async def test_a_layer_in_the_settings_of_django_channels(watched: Watched) -> None:
    layer = RedisChannelLayer(hosts=watched.hosts, prefix=f"t{uuid.uuid4().hex}")
    async with layer:
        await layer.send("jobs", {"n": 1})
        assert await layer.receive("jobs") == {"n": 1}


WRONG: list[tuple[Callable[[Watched], Any], str]] = [
    (lambda w: [{**w.hosts[0], "master_name": "other"}], r"other \(Sentinel\) cannot be found.*'other'"),
    (lambda w: [{**w.hosts[0], "sentinel_kwargs": {"password": "x"}}], "WRONGPASS.*sentinel_kwargs"),
    (lambda w: [{**w.hosts[0], "sentinel_kwargs": None}], "NOAUTH.*sentinel_kwargs"),
]


@pytest.mark.parametrize(("hosts", "told"), WRONG)
async def test_what_never_will_work_is_told_at_once(
    watched: Watched, hosts: Callable[[Watched], Any], told: str
) -> None:
    """A name nobody knows, a sentinel's password that is wrong or missing."""
    with pytest.raises(ConfigurationError, match=told) as error:
        async with asyncio.timeout(3):
            await use(hosts(watched))
    assert "s@ntinels" not in str(error.value)


async def test_a_wrong_password_of_the_servers(watched: Watched) -> None:
    """It is told with the server's address, not the sentinels'."""
    told = rf"127\.0\.0\.1:{watched.master.port} refuses us: WRONGPASS"
    with pytest.raises(ConfigurationError, match=told):
        async with asyncio.timeout(3):
            await use([{**watched.hosts[0], "password": "x"}])


async def test_a_user_of_the_sentinels(watched: Watched) -> None:
    """The permissions that docs/sentinel.md names are enough, to ask and to be told."""
    page = (Path(__file__).parents[3] / "docs" / "sentinel.md").read_text()
    sentinel, line = watched.sentinels[0], re.search(r"needs `(\+auth[^`]+)`", page)
    assert line is not None
    sentinel.call("ACL", "SETUSER", "app", "on", ">pw", "resetchannels", "-@all", *line[1].split())
    sentinel.call("ACL", "LOG", "RESET")
    login = {"username": "app", "password": "pw"}
    async with Follower(with_sentinels(watched, sentinel.port, sentinel_kwargs=login)):

        def told() -> list[str]:
            clients = sentinel.call("CLIENT", "LIST").decode().splitlines()
            return [client for client in clients if "user=app" in client and "sub=2" in client]

        await eventually(told)
        assert len(listeners(sentinel)) == 2
    assert sentinel.call("ACL", "LOG") == []


async def test_no_sentinel_answers(watched: Watched) -> None:
    """All are named, with the master they were asked for and a command to try."""
    ports = free_port(), free_port()
    with pytest.raises(TransportUnavailable) as error:
        await use(with_sentinels(watched, *ports), connect_timeout=0.5)
    for part in (*(f"127.0.0.1:{port}" for port in ports), "mymaster (Sentinel)", "get-master-addr-by-name"):
        assert part in str(error.value)


async def test_a_dead_sentinel_is_passed_over(watched: Watched) -> None:
    """The others are asked."""
    await use(with_sentinels(watched, free_port(), watched.sentinels[2].port))


async def test_the_sentinel_that_answered_is_asked_first(watched: Watched) -> None:
    """A dead one costs its time once."""
    dead = free_port()
    async with Follower(with_sentinels(watched, dead, watched.sentinels[1].port)) as node:
        sentinels = node.transport._links[0]._sentinels
        assert sentinels is not None
        assert [host.port for host in sentinels._order] == [watched.sentinels[1].port, dead]


async def test_a_rumour_is_not_believed(watched: Watched, rumour: Sentinel) -> None:
    """A sentinel that names a replica is passed over; if there is no other, that is told."""
    assert rumour.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", watched.name)[1] != b"%d" % watched.master.port
    async with Follower(with_sentinels(watched, rumour.port, watched.sentinels[0].port)) as node:
        clients = watched.master.call("CLIENT", "LIST").decode()
        assert f"trunkline-{node.name}-commands" in clients
    with pytest.raises(TransportUnavailable, match="itself says replica"):
        await use(with_sentinels(watched, rumour.port), connect_timeout=0.5)


async def test_a_rumour_does_not_move_a_node(
    watched: Watched, rumour: Sentinel, caplog: pytest.LogCaptureFixture
) -> None:
    """A node whose sentinel goes away meets one that names a replica: it stays where it is, and listens to the next."""
    caplog.set_level("INFO", "trunkline.redis")
    async with Follower(with_sentinels(watched, watched.sentinels[0].port, rumour.port)) as node:
        sentinels = node.transport._links[0]._sentinels
        assert sentinels is not None
        await eventually(lambda: len(listeners(watched.sentinels[0])) == 2)
        before = listeners(watched.sentinels[0])
        sentinels._order.reverse()
        watched.sentinels[0].kill_clients("sentinel")
        await eventually(lambda: len(listeners(watched.sentinels[0]) - before) == 2)
        assert f"sentinel 127.0.0.1:{rumour.port}" in caplog.text
        assert node.reconnects == 0
        assert f"trunkline-{node.name}-commands" in watched.master.call("CLIENT", "LIST").decode()


def listeners(sentinel: Sentinel) -> set[str]:
    """Our connections to a sentinel."""
    lines = sentinel.call("CLIENT", "LIST").decode().splitlines()
    return {line.split()[0] for line in lines if "name=trunkline-sentinel" in line}


async def test_without_sentinels_it_stays(watched: Watched, tmp_path: Path) -> None:
    """All sentinels die: the node goes on with the master it has, and still hears of the next one when they are back."""
    own = Watched(watched.kind, tmp_path / "own", sentinels=1)
    try:
        async with Follower(own.hosts) as node:
            own.sentinels[0].kill()
            await node.transport.subscribe("room")
            await node.transport.publish("room", b"1", TTL)
            assert node.reconnects == 0
            own.sentinels[0].start()
            # It has to find the replica anew before it can have it promoted; until then it refuses.
            await eventually(lambda: own.sentinels[0].call("SENTINEL", "FAILOVER", own.name) == b"OK")
            await eventually(lambda: node.reconnects)
            await node.transport.publish("room", b"2", TTL)
            assert node.frames == [b"1", b"2"]
            clients = own.servers[1].call("CLIENT", "LIST").decode()
            assert f"trunkline-{node.name}-commands" in clients
    finally:
        own.kill()


async def test_shards_are_masters_by_name(watched: Watched, tmp_path: Path) -> None:
    """Names are spread over masters; where a master is, and which sentinels say so, changes nothing. A master that is
    replaced keeps its names, the other's are not touched."""
    own = Watched(watched.kind, tmp_path / "own", name="second", sentinels=1)
    try:
        hosts = [*watched.hosts, *own.hosts]
        owners = [host.identity for host in parse_hosts(hosts)]
        assert owners == ["mymaster (Sentinel)/0", "second (Sentinel)/0"]
        prefix = f"t{uuid.uuid4().hex[:10]}"
        async with Follower(hosts, prefix) as a, Follower(hosts[::-1], prefix) as b:
            topics = [f"room.{number}" for number in range(20)]
            homes = {a.transport._writes[partition(topic)].host.master_name for topic in topics}
            assert homes == {"mymaster", "second"}
            for topic in topics:
                await b.transport.subscribe(topic)
                await a.transport.publish(topic, topic.encode(), TTL)
            await eventually(lambda: len(b.frames) == 20)
            assert own.sentinels[0].call("SENTINEL", "FAILOVER", own.name) == b"OK"
            await eventually(lambda: a.reconnects and b.reconnects)
            for topic in topics:
                await a.transport.publish(topic, topic.encode(), TTL)
            await eventually(lambda: len(b.frames) == 40)
            assert (a.reconnects, b.reconnects, b.gaps) == (1, 1, [])
    finally:
        own.kill()


def test_abandoned_in_a_closed_loop(watched: Watched) -> None:
    """A loop that ended without closing the layer: sockets are let go, and nobody complains."""
    loop = asyncio.new_event_loop()
    node = Follower(watched.hosts)
    loop.run_until_complete(node.transport.open(node.name, node))
    loop.run_until_complete(node.transport.subscribe("room"))
    loop.close()
    node.transport.abandon()


async def test_the_doctor_finds_the_master(watched: Watched, rumour: Sentinel) -> None:
    """It examines the master, and each sentinel on the way."""

    async def look(hosts: Any) -> str:
        found = await RedisTransport.examine("redis://", hosts=hosts)
        return "\n".join(f"{level}: {what}" for level, what, _ in found)

    well = await look(watched.hosts)
    assert f"ok: mymaster is 127.0.0.1:{watched.master.port}, by 3 sentinels" in well
    assert "error" not in well
    dead = free_port()
    ill = await look(with_sentinels(watched, watched.sentinels[0].port, dead, rumour.port))
    assert f"warning: sentinel 127.0.0.1:{dead} is of no use" in ill
    assert f"warning: sentinel 127.0.0.1:{rumour.port} calls" in ill
    assert "error: Redis at mymaster (Sentinel) cannot be reached" in await look(
        with_sentinels(watched, dead)
    )
