"""A server that loses what it remembered, or gives places again: noticed by who listens and by who comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from faults.redis_load import eventually
from servers import Server, servers
from trunkline import ChannelLayer, HistoryLost, layer_from_url

HISTORY = {"room": {"size": 100, "seconds": 600}}


@pytest.mark.parametrize("kind", sorted(servers()))
async def test_a_rollback_is_noticed(kind: str, tmp_path: Path) -> None:
    """The server comes back as it was a while ago, as a replica that lagged does. New events get the places of those that it
    forgot: members get them all and are told; a position of a forgotten event is refused, an older one goes on."""
    server = Server(kind, tmp_path, dbfilename="dump.rdb")
    try:
        gaps: list[str | None] = []
        sender = layer_from_url(server.url, history=HISTORY)
        receiver = layer_from_url(
            server.url, history=HISTORY, on_gap=lambda group, reason: gaps.append(group)
        )
        async with sender, receiver:
            channel = await receiver.new_channel()
            await receiver.group_add("room", channel)
            known = [await said(sender, receiver, channel, n) for n in range(3)]
            assert server.call("SAVE") == b"OK"
            forgotten = [await said(sender, receiver, channel, n) for n in range(3, 6)]

            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            new = [await said(sender, receiver, channel, n) for n in range(10, 14)]

            assert [event["position"].partition(".")[0] for event in new[:3]] == [
                event["position"].partition(".")[0] for event in forgotten
            ]
            await eventually(lambda: "room" in gaps)
            for event in forgotten:
                with pytest.raises(HistoryLost):
                    await sender.group_history("room", since=event["position"])
            assert await sender.group_history("room", since=known[1]["position"]) == [known[2], *new]
    finally:
        server.kill()


@pytest.mark.parametrize("kind", sorted(servers()))
async def test_a_server_that_forgot_everything(kind: str, tmp_path: Path) -> None:
    """Members go on, and are told; every position from before is refused."""
    server = Server(kind, tmp_path)
    try:
        gaps: list[str | None] = []
        sender = layer_from_url(server.url, history=HISTORY)
        receiver = layer_from_url(
            server.url, history=HISTORY, on_gap=lambda group, reason: gaps.append(group)
        )
        async with sender, receiver:
            channel = await receiver.new_channel()
            await receiver.group_add("room", channel)
            before = [await said(sender, receiver, channel, n) for n in range(3)]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            after = [await said(sender, receiver, channel, n) for n in range(10, 13)]
            await eventually(lambda: "room" in gaps)
            for event in before:
                with pytest.raises(HistoryLost):
                    await receiver.group_history("room", since=event["position"])
            assert await receiver.group_history("room", since=after[0]["position"]) == after[1:]
    finally:
        server.kill()


async def said(sender: ChannelLayer, receiver: ChannelLayer, channel: str, n: int) -> dict[str, Any]:
    await sender.group_send("room", {"type": "x", "n": n})
    async with asyncio.timeout(20):
        event = await receiver.receive(channel)
    assert event["n"] == n
    return event
