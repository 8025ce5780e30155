"""Messages that expire on their way, in an outage: nobody gets them, and that is told."""

from __future__ import annotations

import asyncio
import uuid

from trunkline.layer import ChannelLayer
from trunkline.settings import Settings
from trunkline.testing import Link
from trunkline.testing.links import LinkedMemory


async def test_what_expired_on_its_way_is_told() -> None:
    """Once for each group, however many came late; and before what came in time."""
    link, hub = Link(), uuid.uuid4().hex
    told: list[str | None] = []
    layer = ChannelLayer(
        lambda: LinkedMemory(link, hub),
        Settings.build({"expiry": 0.6}),
        lambda group, reason: told.append(group),
    )
    sender = ChannelLayer(lambda: LinkedMemory(Link(), hub), Settings.build({"expiry": 0.6}))
    async with layer, sender:
        channel = await layer.new_channel()
        await layer.watch_gaps(channel)
        for group in ("one", "two", "quiet"):
            await layer.group_add(group, channel)
        link.cut()
        for number in range(3):
            for group in ("one", "two"):
                await sender.group_send(group, {"n": number})
        await sender.send(channel, {"n": 3})
        await asyncio.sleep(0.8)  # longer than they live
        await sender.group_send("one", {"n": 4})
        link.heal()
        async with asyncio.timeout(10):
            heard = [await layer.receive(channel) for _ in range(4)]
        assert told == ["one", "two", None]
        assert [event.get("group", event.get("n")) for event in heard] == ["one", "two", None, 4]
        assert layer.stats().gaps == 3
        assert layer.stats().expired == 7
