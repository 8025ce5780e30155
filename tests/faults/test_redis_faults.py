"""Redis and Valkey at their worst: connections and servers that die, freeze, forget and refuse, under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.redis_load import TTL, Load, Node, eventually, unique
from servers import Server, servers
from trunkline.errors import ChannelFull, TransportUnavailable
from trunkline.testing import Link
from trunkline.testing.proxy import TcpProxy
from trunkline.transports.redis.pace import Pace


@pytest.fixture(params=sorted(servers()))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Server]:
    server = Server(kind, tmp_path / "server")
    yield server
    server.kill()


async def in_thread(work: object, *args: object) -> object:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)  # type: ignore[arg-type]


async def test_killed_connections_cost_nothing(server: Server) -> None:
    """Connections of both kinds, killed again and again: 0 lost, 0 doubled, 0 reordered."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b, Node(server, prefix) as c:
        async with Load([a, b, c]) as load:
            killed, turn, until = 0, 0, time.monotonic() + 60
            while killed <= 50 and time.monotonic() < until:
                await asyncio.sleep(0.08)
                killed += await in_thread(server.kill_clients, ("commands", "pushes", "")[turn % 3])  # type: ignore
                turn += 1
        await load.check()
        assert killed > 50
        await eventually(lambda: all(node.reconnects == node.disconnects > 0 for node in (a, b, c)))
        assert server.without_ttl(prefix) == []


async def test_a_frozen_server_costs_nothing(server: Server) -> None:
    """The server stands still for 10 s, longer than the deadline, and goes on."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        async with Load([a, b]) as load:
            await asyncio.sleep(0.4)
            server.freeze()
            try:
                await asyncio.sleep(10)
            finally:
                server.thaw()
            await eventually(lambda: a.reconnects and b.reconnects)
            await asyncio.sleep(0.3)
        await load.check()


async def test_a_crash_with_data_costs_nothing(kind: str, tmp_path: Path) -> None:
    """kill -9 and a restart from the append-only file, under load."""
    server = Server(kind, tmp_path / "server", appendonly="yes")
    try:
        prefix = unique()
        async with Node(server, prefix) as a, Node(server, prefix) as b:
            async with Load([a, b]) as load:
                for _ in range(2):
                    await asyncio.sleep(0.3)
                    await in_thread(server.restart)
                    await eventually(lambda: a.reconnects and b.reconnects)
            await load.check()
    finally:
        server.kill()


async def test_a_server_that_comes_back_empty_is_told_or_made_good(server: Server) -> None:
    """All data is gone: topics and posts go on, and whatever was lost was told."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        async with Load([a, b]) as load:
            await asyncio.sleep(0.4)
            before = len(b.frames)
            await in_thread(lambda: server.restart(wipe=True))
            await eventually(lambda: len(b.frames) > before + 100)
        for node in (a, b):

            def untold(node: Node = node) -> set[str]:
                topics = {frame.split(b":")[2].decode() for frame in load.lost(node)}
                return topics - {"post" if topic is None else topic for topic in node.gaps}

            await eventually(lambda untold=untold: not untold())
        await asyncio.sleep(0.5)  # for what would come twice
        for node in (a, b):
            assert load.doubled(node) == 0
            assert load.reordered(node) == 0 or node.gaps
        assert load.gone == 0
        assert not load.failed


async def test_flushed_scripts_come_back(server: Server) -> None:
    """SCRIPT FLUSH under load: whoever runs it hurts nobody's messages."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        async with Load([a, b]) as load:
            for _ in range(5):
                await asyncio.sleep(0.1)
                server.call("SCRIPT", "FLUSH")
        await eventually(lambda: not load.lost(a) and not load.lost(b))
        assert (load.doubled(a), load.doubled(b), a.gaps, b.gaps) == (0, 0, [], [])
        assert load.gone == 0


async def test_flushall_costs_nothing(server: Server) -> None:
    """FLUSHALL under load: pushes still flow, posts find their node, and no key is left for ever."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        async with Load([a, b]) as load:
            for _ in range(5):
                await asyncio.sleep(0.15)
                server.call("FLUSHALL")
        await load.check()
        await eventually(lambda: server.without_ttl(prefix) == [])


async def test_an_overflowing_output_buffer_costs_nothing(kind: str, tmp_path: Path) -> None:
    """The server drops a reader that is too slow for its tiny buffer: the log makes it good."""
    server = Server(kind, tmp_path / "server", client_output_buffer_limit="pubsub 32768 32768 1")
    try:
        prefix = unique()
        async with Node(server, prefix, deadline=10.0) as a, Node(server, prefix, deadline=10.0) as b:
            await b.transport.subscribe("bulk")
            frames = [b"%04d" % number + bytes(8_000_000 if number == 0 else 1000) for number in range(60)]
            await asyncio.gather(*(a.transport.publish("bulk", frame, TTL) for frame in frames))
            await eventually(lambda: len(b.frames) >= len(frames), 20)
            assert [frame[:4] for frame in b.frames] == [frame[:4] for frame in frames]
            assert b.disconnects > 0
            assert b.gaps == []
    finally:
        server.kill()


async def test_a_full_server_is_waited_for(server: Server) -> None:
    """maxmemory is reached: senders wait, nothing is lost or doubled when there is room again."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        await b.transport.subscribe("room")
        await a.transport.publish("room", b"first", TTL)
        server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.call("CONFIG", "SET", "maxmemory", "1mb")
        calls = [asyncio.create_task(a.transport.publish("room", b"%d" % n, TTL)) for n in range(20)]
        calls += [asyncio.create_task(a.transport.post(b.name, "c!1", b"post", None, TTL))]
        with pytest.raises(TransportUnavailable, match="OOM"):
            await a.transport.push("queue", b"job", 10, 0.3)
        assert not any(call.done() for call in calls)
        server.call("CONFIG", "SET", "maxmemory", "0")
        await asyncio.gather(*calls)
        await eventually(lambda: len(b.frames) == 22)
        assert b.frames[:21] == [b"first", *(b"%d" % n for n in range(20))]
        assert b.gaps == []


async def test_readers_of_one_queue_take_each_message_once(server: Server) -> None:
    """4 readers, connections killed all the time: each message is taken exactly once."""
    prefix = unique()
    nodes = [Node(server, prefix) for _ in range(5)]
    for node in nodes:
        await node.__aenter__()
    writer, *readers = nodes
    got: list[bytes] = []

    async def read(node: Node) -> None:
        while True:
            got.append(await node.transport.pull("jobs"))

    tasks = [asyncio.create_task(read(node)) for node in readers for _ in range(2)]
    pushed = 0
    until = time.monotonic() + 2.5
    killing = None
    while time.monotonic() < until:
        if killing is None or killing.done():
            killing = asyncio.create_task(in_thread(server.kill_clients))  # type: ignore[arg-type]
        for _ in range(10):
            try:
                await writer.transport.push("jobs", b"%d" % pushed, 1000, TTL)
                pushed += 1
            except ChannelFull:
                pass
        await asyncio.sleep(0.005)
    if killing is not None:
        await killing
    await eventually(lambda: len(got) >= pushed, 15)
    await asyncio.sleep(0.2)
    assert len(got) == pushed > 100
    assert len(set(got)) == pushed
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for node in nodes:
        await node.transport.close()
    assert server.without_ttl(prefix) == []


@pytest.mark.parametrize("window", [5.0, 0.0])
async def test_what_a_server_forgot_is_replayed(server: Server, window: float) -> None:
    """The server loses the last second, which one reader had not heard. With the replay nothing is missing; without it
    the loss is told."""
    prefix = unique()
    pace = Pace(heartbeat=0.5, window=window)
    link = Link()
    proxy = TcpProxy(link, "127.0.0.1", server.port)
    async with Node(server, prefix, _pace=pace) as a, Node(server, prefix, port=proxy.port, _pace=pace) as b:
        for node in (a, b):
            await node.transport.subscribe("room")
        await a.transport.publish("room", b"before", TTL)
        await eventually(lambda: b.frames)
        server.call("SAVE")
        link.cut()
        for number in range(50):
            await a.transport.publish("room", b"%d" % number, TTL)
        await in_thread(server.restart)
        await eventually(lambda: a.reconnects)
        link.heal()
        await eventually(lambda: b.reconnects)
        await a.transport.publish("room", b"after", TTL)
        await eventually(lambda: b"after" in b.frames)
        sent = [b"before", *(b"%d" % number for number in range(50)), b"after"]
        assert a.frames == sent
        assert a.gaps == []
        if window:
            assert (b.frames, b.gaps) == (sent, [])
        else:
            assert (b.frames, b.gaps) == ([b"before", b"after"], ["room"])
    link.close()


class Silence:
    """A road to the server on which pushes can stop arriving while the connection stays open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.silent = False
        #: What did not arrive.
        self.swallowed = b""
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Silence:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        # The second connection of a node is the one for pushes; only those that are open when silence falls suffer.
        pushes = len(self._writers) % 4 == 2
        self._writers += [writer, far_writer]
        back = asyncio.create_task(self._carry(far_reader, writer, pushes))
        self._tasks.append(back)
        await self._carry(reader, far_writer, False)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pushes: bool) -> None:
        try:
            while data := await reader.read(65536):
                if pushes and self.silent:
                    self.swallowed += data
                else:
                    writer.write(data)
        except ConnectionError:
            pass
        writer.close()

    async def __aexit__(self, *args: object) -> None:
        self._listener.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("probe", [True, False])
async def test_a_silent_push_connection_is_found_by_the_probe(server: Server, probe: bool) -> None:
    """Pushes stop arriving, no connection breaks: the probe notices. Without the probe nothing arrives any more."""
    prefix = unique()
    pace = Pace(heartbeat=0.3, audit=1000.0, probe=probe)
    async with (
        Silence(server) as road,
        Node(server, prefix) as a,
        Node(server, prefix, port=road.port, _pace=pace) as b,
    ):
        await b.transport.subscribe("room")
        await a.transport.publish("room", b"0", TTL)
        await eventually(lambda: b.frames)
        road.silent = True
        for number in range(1, 20):
            await a.transport.publish("room", b"%d" % number, TTL)
        if probe:
            await eventually(lambda: b.disconnects)
            road.silent = False
            await eventually(lambda: len(b.frames) == 20)
            assert b.frames == [b"%d" % number for number in range(20)]
            assert b.gaps == []
        else:
            await asyncio.sleep(2.0)
            assert (b.frames, b.disconnects) == ([b"0"], 0)


@pytest.mark.parametrize("audit", [0.5, 1000.0])
async def test_the_audit_finds_what_nothing_else_notices(server: Server, audit: float) -> None:
    """Some pushes vanish and the topic falls silent: the end of its log tells. Without the audit nobody would know."""
    prefix = unique()
    pace = Pace(heartbeat=0.5, audit=audit, probe=False)
    async with (
        Silence(server) as road,
        Node(server, prefix) as a,
        Node(server, prefix, port=road.port, _pace=pace) as b,
    ):
        await b.transport.subscribe("room")
        await a.transport.publish("room", b"0", TTL)
        await eventually(lambda: b.frames)
        road.silent = True
        await a.transport.publish("room", b"1", TTL)
        await a.transport.publish("room", b"2", TTL)
        await eventually(lambda: road.swallowed.count(b"message\r\n") == 2)
        road.silent = False
        if audit < 1:
            await eventually(lambda: b.frames == [b"0", b"1", b"2"])
            assert (b.gaps, b.disconnects) == ([], 0)
        else:
            await asyncio.sleep(2.0)
            assert b.frames == [b"0"]


async def test_a_busy_server_costs_nothing(server: Server) -> None:
    """Somebody's long script makes the server refuse everything for a while, and then go on in the middle of a burst."""
    prefix = unique()
    server.call("CONFIG", "SET", "lua-time-limit", "20")
    script = """
        local function now() local t = redis.call('TIME'); return t[1] * 1000 + t[2] / 1000 end
        local stop = now() + 200
        while now() < stop do end
        return 1
    """
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        async with Load([a, b]) as load:
            for _ in range(4):
                await asyncio.sleep(0.15)
                await in_thread(server.call, "EVAL", script, "0")
        await load.check()
        assert (a.disconnects, b.disconnects) == (0, 0)
        assert b"errorstat_BUSY" in server.call("INFO", "errorstats")


async def test_a_demoted_server_is_left_and_found_again(server: Server) -> None:
    """The server becomes a replica under load, as in a failover, and a master again."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        async with Load([a, b]) as load:
            await asyncio.sleep(0.3)
            server.call("REPLICAOF", "127.0.0.1", "1")
            await eventually(lambda: a.disconnects and b.disconnects)
            await asyncio.sleep(0.3)
            server.call("REPLICAOF", "NO", "ONE")
            await eventually(lambda: a.reconnects and b.reconnects)
            await asyncio.sleep(0.2)
        await load.check()
