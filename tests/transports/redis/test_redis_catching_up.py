"""Reading logs after an interruption, while the senders go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faults.redis_load import TTL, Node, eventually, unique
from servers import Server

#: More than are read in one trip.
TOPICS = [f"topic.{number}" for number in range(100)]


async def test_a_log_that_is_read_late_overtakes_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two frames that are sent while logs are read, the first reaches a log that was read already, and its push is
    late; the second is found in a log that is read afterwards. It waits for the first."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        for topic in TOPICS:
            await b.transport.subscribe(topic)
            await a.transport.publish(topic, b"before", TTL)
        await eventually(lambda: len(b.frames) == 100)
        (link,) = b.transport._links
        read_some = link.inflow._read_some
        read: list[list[bytes]] = []

        async def read_and_send(commands: Any, wanted: list[tuple[bytes, int]]) -> None:
            await read_some(commands, wanted)
            read.append([topic for topic, _ in wanted])
            if len(read) == 1:
                pushes = link._connections[1]._transport
                assert pushes is not None
                pushes.pause_reading()
                asyncio.get_running_loop().call_later(0.3, pushes.resume_reading)
                names = link.names
                early = next(topic for topic in TOPICS if names.topic(topic) in read[0])
                late = next(topic for topic in TOPICS if names.topic(topic) not in read[0])
                await a.transport.publish(early, b"first", TTL)
                await a.transport.publish(late, b"second", TTL)

        monkeypatch.setattr(link.inflow, "_read_some", read_and_send)
        server.kill_clients(f"{b.name}-pushes")
        await eventually(lambda: len(b.frames) == 102)
        assert len(read) > 1
        assert (b.frames[100:], b.gaps) == ([b"first", b"second"], [])
