"""Django Channels over RedisChannelLayer, through its own manager; ``test_redis_channels`` runs it in a process."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.conf import settings

settings.configure(DATABASES={}, CHANNEL_LAYERS={}, INSTALLED_APPS=["channels"])

import django  # noqa: E402

django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from channels.exceptions import ChannelFull, InvalidChannelLayerError  # noqa: E402
from channels.generic.websocket import AsyncJsonWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.layers import channel_layers, get_channel_layer  # noqa: E402
from channels.routing import URLRouter  # noqa: E402
from channels.testing import WebsocketCommunicator  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.urls import path  # noqa: E402

from trunkline.layers import RedisChannelLayer  # noqa: E402

URL = os.environ["REDIS_URL"]
BACKEND = "trunkline.layers.RedisChannelLayer"


class Chat(WebsocketConsumer):
    """The chat of the Channels documentation, as it stands there."""

    def connect(self) -> None:
        async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
        self.accept()

    def disconnect(self, close_code: int) -> None:
        async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)

    def receive(self, text_data: str) -> None:
        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.message", "text": text_data})

    def chat_message(self, event: dict[str, Any]) -> None:
        self.send(text_data=event["text"])

    def chat_system_message(self, event: dict[str, Any]) -> None:
        self.send(text_data=f"* {event['text']}")

    def chat_force_disconnect(self, event: dict[str, Any]) -> None:
        self.close(code=4001)


class Rooms(AsyncJsonWebsocketConsumer):
    """Joins by ``groups`` and echoes its own channel name."""

    groups = ["rooms"]

    async def receive_json(self, content: Any) -> None:
        await self.channel_layer.send(
            self.channel_name, {"type": "room.note", "of": self.channel_name, **content}
        )

    async def room_note(self, event: dict[str, Any]) -> None:
        await self.send_json(event)


application = URLRouter([path("chat/", Chat.as_asgi()), path("rooms/", Rooms.as_asgi())])

Configure = Callable[..., Any]


@pytest.fixture
async def configure() -> AsyncIterator[Configure]:
    """Sets CHANNEL_LAYERS, gives the layer, and closes it at the end."""
    used = []

    def configure(**config: Any) -> Any:
        config = {"hosts": [URL], "prefix": f"t{uuid.uuid4().hex[:10]}", **config}
        setting = override_settings(CHANNEL_LAYERS={"default": {"BACKEND": BACKEND, "CONFIG": config}})
        setting.enable()
        layer = get_channel_layer()
        used.append((setting, layer))
        return layer

    yield configure
    for setting, layer in used:
        await layer.close()
        setting.disable()


async def connect(where: str) -> WebsocketCommunicator:
    socket = WebsocketCommunicator(application, where)
    assert (await socket.connect(timeout=10))[0]
    return socket


async def test_the_chat(configure: Configure) -> None:
    """What one says reaches everyone; who has left gets nothing; the system announces; all are thrown out."""
    layer = configure()
    one, two = await connect("/chat/"), await connect("/chat/")
    await one.send_to("hello")
    assert [await socket.receive_from(10) for socket in (one, two)] == ["hello", "hello"]
    await two.disconnect()
    await layer.group_send("chat", {"type": "chat.system_message", "text": "down at 5"})
    assert await one.receive_from(10) == "* down at 5"
    await layer.group_send("chat", {"type": "chat.force_disconnect"})
    assert await one.receive_output(10) == {"type": "websocket.close", "code": 4001}
    await one.disconnect()


async def test_an_async_consumer(configure: Configure) -> None:
    """``groups`` joins and leaves; a message by the channel's name reaches that socket only."""
    layer = configure(capacity=50)
    one, two = await connect("/rooms/"), await connect("/rooms/")
    await one.send_json_to({"n": 1})
    note = await one.receive_json_from(10)
    assert (note["n"], note["type"]) == (1, "room.note")
    await layer.group_send("rooms", {"type": "room.note", "n": 2})
    assert [(await socket.receive_json_from(10))["n"] for socket in (one, two)] == [2, 2]
    for socket in (one, two):
        await socket.disconnect()


async def test_a_quiet_consumer_stays(configure: Configure) -> None:
    """A socket that hears nothing for longer than any deadline of the connection is not closed."""
    layer = configure(deadline=0.3)
    socket = await connect("/chat/")
    assert await socket.receive_nothing(1.5)
    await layer.group_send("chat", {"type": "chat.message", "text": "still here"})
    assert await socket.receive_from(10) == "still here"
    await socket.disconnect()


async def test_every_key_of_channels_redis(configure: Configure) -> None:
    """All of CONFIG at once, as a project may have it, makes one layer that works."""
    told: list[str] = []
    layer = configure(
        hosts=[{"address": URL, "max_connections": 10}],
        expiry=30,
        group_expiry=3600,
        capacity=3,
        channel_capacity={"http.request": 200, re.compile(r"^websocket.send\!.+"): 40},
        symmetric_encryption_keys=["secret"],
        serializer_format="json",
        random_prefix_length=12,
        on_disconnect=lambda: told.append("lost"),
        on_reconnect=lambda: told.append("back"),
    )
    assert isinstance(layer, RedisChannelLayer)
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (30, 3600, 3)
    assert get_channel_layer() is layer
    for number in range(3):
        await layer.send("jobs", {"n": number})
    with pytest.raises(ChannelFull):
        await layer.send("jobs", {"n": 3})
    async with asyncio.timeout(10):
        assert [(await layer.receive("jobs"))["n"] for _ in range(3)] == [0, 1, 2]
    assert told == []


@pytest.mark.parametrize(
    "config", [{"serializer_format": "nope"}, {"hosts": "redis://h"}, {"capasity": 1}, {"hosts": [{"x": 1}]}]
)
def test_wrong_settings_are_told(config: dict[str, Any]) -> None:
    """Channels swallows a KeyError and then has no layer: ours is a ValueError, so get_channel_layer() raises it."""
    entry = {"BACKEND": BACKEND, "CONFIG": config}
    told = pytest.raises(ValueError, match=next(iter(config)))
    with override_settings(CHANNEL_LAYERS={"default": entry}), told:
        get_channel_layer()


def test_a_wrong_backend_is_told() -> None:
    """As by any other layer."""
    entry = {"BACKEND": BACKEND + "s"}
    with override_settings(CHANNEL_LAYERS={"default": entry}), pytest.raises(InvalidChannelLayerError):
        get_channel_layer()


def test_test_config(configure: Configure) -> None:
    """make_test_backend uses TEST_CONFIG."""
    entry = {"BACKEND": BACKEND, "CONFIG": {}, "TEST_CONFIG": {"hosts": [URL], "capacity": 7}}
    with override_settings(CHANNEL_LAYERS={"default": entry}):
        assert channel_layers.make_test_backend("default").capacity == 7
