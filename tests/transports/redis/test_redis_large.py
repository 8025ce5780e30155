"""Large frames: they stay in the log, and what is pushed is their head."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faults.redis_load import TTL, Node, eventually, unique
from servers import Server
from trunkline.continuity import HEADER_SIZE, VOID
from trunkline.errors import ChannelFull
from trunkline.transports.redis.ops import HEADED
from trunkline.transports.redis.outbox import Outbox
from trunkline.transports.redis.scripts import POST

#: More of them than a server keeps for a subscriber that does not read.
MEGABYTE = 1 << 20
MANY = 40


def sizes(server: Server, log: bytes) -> list[int]:
    return [len(fields[1]) for _, fields in server.call("XRANGE", log, "-", "+")]


async def test_a_reader_that_stops_keeps_its_connection_and_misses_nothing(server: Server) -> None:
    """A server drops a subscriber for which 32 MB wait; heads take next to nothing."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        await b.transport.subscribe("room")
        (link,) = b.transport._links
        transports: list[Any] = [connection._transport for connection in link._connections]
        for transport in transports:
            transport.pause_reading()
        frames = [b"%d" % number + bytes(MEGABYTE) for number in range(MANY)]
        await asyncio.gather(*[a.transport.publish("room", frame, TTL) for frame in frames])
        for transport in transports:
            transport.resume_reading()
        await eventually(lambda: len(b.frames) == MANY)
        assert b.frames == frames
        assert (b.disconnects, b.gaps) == (0, [])


async def test_others_do_not_wait_for_a_large_frame_but_its_sender_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b, Node(server, prefix) as c:
        for topic in ("room", "hall"):
            await b.transport.subscribe(topic)
        (link,) = b.transport._links
        fetch, fetching, may = link.inflow._fetch, asyncio.Event(), asyncio.Event()

        async def held_up(*args: Any) -> None:
            fetching.set()
            await may.wait()
            await fetch(*args)

        monkeypatch.setattr(link.inflow, "_fetch", held_up)
        large = bytes(HEADED)
        await a.transport.publish("room", large, TTL)
        await fetching.wait()
        await a.transport.publish("hall", b"behind it", TTL)
        assert await a.transport.post(b.name, "c!1", b"too", None, TTL)
        await c.transport.publish("room", b"another", TTL)
        await eventually(lambda: b.frames == [b"another"])
        may.set()
        await eventually(lambda: len(b.frames) == 4)
        assert b.frames == [b"another", large, b"behind it", b"too"]


async def test_a_large_frame_that_goes_with_its_log_is_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        await b.transport.subscribe("room")
        (link,) = b.transport._links
        fetch = link.inflow._fetch

        async def emptied(*args: Any) -> None:
            server.call("FLUSHALL")
            await fetch(*args)

        monkeypatch.setattr(link.inflow, "_fetch", emptied)
        await a.transport.publish("room", bytes(HEADED), TTL)
        await a.transport.publish("room", b"behind it", TTL)
        await a.transport.post(b.name, f"{b.name}!1", bytes(HEADED + 1), 10, TTL)
        await eventually(lambda: len(b.frames) == 3)
        assert b.frames == [bytes(HEADED), b"behind it", bytes(HEADED + 1)]
        assert b.gaps == []


async def test_what_a_node_sends_itself_is_not_fetched(server: Server) -> None:
    prefix = unique()
    async with Node(server, prefix) as a:
        await a.transport.subscribe("room")
        before = server.command_counts().get("xrange", 0)
        commands = a.transport._links[0]._connections[0]._transport
        assert commands is not None
        commands.pause_reading()  # the heads come before the answers
        frames = [b"%d" % number + bytes(HEADED) for number in range(20)]
        sending = [asyncio.ensure_future(a.transport.publish("room", frame, TTL)) for frame in frames]
        await eventually(lambda: len(a.frames) == 20)
        commands.resume_reading()
        await asyncio.gather(*sending)
        assert a.frames == frames
        assert server.command_counts().get("xrange", 0) == before


@pytest.mark.parametrize("size", [HEADED - 200, HEADED - 1, HEADED, MEGABYTE])
async def test_a_large_post_is_counted_and_refused_like_a_small_one(server: Server, size: int) -> None:
    """And what was refused does not stay in the log."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        frames = [b"%d" % number + bytes(size) for number in range(5)]
        outcomes = await asyncio.gather(
            *[a.transport.post(b.name, "c!1", frame, 2, TTL) for frame in frames], return_exceptions=True
        )
        assert outcomes[:2] == [True, True]
        assert all(isinstance(outcome, ChannelFull) for outcome in outcomes[2:])
        await eventually(lambda: b.frames == frames[:2])
        log = a.transport._links[0].names.inbox(b.name)
        await eventually(lambda: [kept > size for kept in sizes(server, log)].count(True) == 2)
        with pytest.raises(ChannelFull):
            await a.transport.post(b.name, "c!1", frames[4], 2, TTL)
        b.transport.taken("c!1", 1)
        await b.transport.post(a.name, "c!1", b"it was told", None, TTL)
        assert await a.transport.post(b.name, "c!1", frames[4], 2, TTL)
        assert await a.transport.post(b.name, "c!2", b"small", 1, TTL)
        await eventually(lambda: len(b.frames) == 4)
        assert b.frames == [*frames[:2], frames[4], b"small"]


async def test_a_large_post_to_a_node_that_is_gone_leaves_nothing(server: Server) -> None:
    prefix = unique()
    async with Node(server, prefix) as a:
        async with Node(server, prefix) as b:
            assert await a.transport.post(b.name, "c!1", bytes(MEGABYTE), None, TTL)
        assert await a.transport.post(b.name, "c!1", bytes(MEGABYTE), None, TTL) is False
        log = a.transport._links[0].names.inbox(b.name)
        await eventually(lambda: sizes(server, log) == [])
        assert server.without_ttl(prefix) == []


async def test_what_a_cut_off_node_was_refused_it_does_not_find_later(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was told that it is gone; the node is told when it is back that it missed something. It may be back
    before the frame is taken out of its log."""
    monkeypatch.setattr(Outbox, "discard", lambda *args: None)
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        assert await a.transport.post(b.name, "c!1", b"before", None, TTL)
        await eventually(lambda: b.frames == [b"before"])
        link = b.transport._links[0]
        alive = link.inbox.keys[1]
        may = asyncio.Event()
        connect = link._connect

        async def later() -> None:
            await may.wait()
            await connect()

        link._connect = later  # type: ignore[method-assign]
        for connection in link._connections:
            connection.drop()
        await eventually(lambda: b.disconnects == 1)
        server.call("DEL", alive)
        assert await a.transport.post(b.name, "c!1", bytes(MEGABYTE), None, TTL) is False
        link.inflow.receiver.interrupted(0)
        may.set()
        await eventually(lambda: b.reconnects == 1)
        assert await a.transport.post(b.name, "c!1", b"after", None, TTL)
        await eventually(lambda: len(b.frames) > 1 and b.gaps)
        assert (b.frames, b.gaps) == ([b"before", b"after"], [None])


def test_the_script_knows_the_header() -> None:
    """It tells a large frame by the header's size, and makes the void frame of one from it."""
    assert f"local HEADER, VOID = {HEADER_SIZE}, {VOID} " in POST.text
