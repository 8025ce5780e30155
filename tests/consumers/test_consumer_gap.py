"""A consumer that wants to know learns when messages to it were lost."""

import asyncio
from typing import Any

from trunkline import ChannelLayer
from trunkline.consumers import AsyncJsonWebsocketConsumer
from trunkline.testing import WebsocketCommunicator


class Chat(AsyncJsonWebsocketConsumer):
    groups = ["room"]

    async def layer_gap(self, event: dict[str, Any]) -> None:
        await self.send_json({"reload": event["group"]})


class Deaf(AsyncJsonWebsocketConsumer):
    groups = ["room", "talk"]

    async def chat_message(self, event: dict[str, Any]) -> None:
        await self.send_json(event)


async def test_gap_handlers(layer: ChannelLayer) -> None:
    """A consumer with a handler layer_gap is told of a gap; one without never sees the event."""
    async with (
        WebsocketCommunicator(Chat.as_asgi(), "/") as chat,
        WebsocketCommunicator(Deaf.as_asgi(), "/") as deaf,
    ):
        await chat.connect()
        await deaf.connect()
        layer._nodes[asyncio.get_running_loop()].gap("room", "a test")
        assert await chat.receive_json_from() == {"reload": "room"}
        await layer.group_send("talk", {"type": "chat.message"})
        assert await deaf.receive_json_from() == {"type": "chat.message"}
