"""A site of Trunkline's own consumers, for any ASGI framework: the examples of the documentation, without Django."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any

from asgiref.sync import async_to_sync

import trunkline
from trunkline.consumers import AsyncJsonWebsocketConsumer, SyncConsumer, WebsocketConsumer
from trunkline.routing import ChannelNameRouter, PathRouter


def database(query: str, *values: Any) -> list[Any]:
    """Run one statement in the site's database."""
    with closing(sqlite3.connect(os.environ["SITE_DATABASE"], timeout=20)) as connection, connection:
        return connection.execute(query, values).fetchall()


class ChatConsumer(WebsocketConsumer):
    def connect(self) -> None:
        async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
        self.accept()

    def disconnect(self, code: int) -> None:
        async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.message", "text": text_data})

    def chat_message(self, event: Any) -> None:
        self.send(text_data=event["text"])

    def chat_system_message(self, event: Any) -> None:
        self.send(text_data=f"* {event['text']}")

    def chat_force_disconnect(self, event: Any) -> None:
        self.close(code=4001)


class PidConsumer(ChatConsumer):
    """The chat, which first says where it runs."""

    def connect(self) -> None:
        super().connect()
        self.send(text_data=str(os.getpid()))


class InboxConsumer(WebsocketConsumer):
    def connect(self) -> None:
        database("insert into clients values (?)", self.channel_name)
        self.accept()

    def disconnect(self, code: int) -> None:
        database("delete from clients where channel_name = ?", self.channel_name)

    def chat_message(self, event: Any) -> None:
        self.send(text_data=event["text"])


class RoomConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self) -> None:
        where = self.scope["url_route"]["kwargs"]
        self.user, self.room = where["user"], trunkline.safe_group_name(where["room"])
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await self.channel_layer.group_send(
            self.room, {"type": "chat.message", "username": self.user, "message": content["message"]}
        )

    async def chat_message(self, event: Any) -> None:
        await self.send_json({"username": event["username"], "message": event["message"]})


class ThumbnailConsumer(SyncConsumer):
    def thumbnail_make(self, event: Any) -> None:
        text = f"thumbnail of {event['source']} made by {os.getpid()}"
        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.system_message", "text": text})


sockets = PathRouter(
    {
        "/chat": ChatConsumer.as_asgi(),
        "/pid": PidConsumer.as_asgi(),
        "/inbox": InboxConsumer.as_asgi(),
        "/rooms/{room}/{user}": RoomConsumer.as_asgi(),
    }
)
worker = ChannelNameRouter({"thumbnails": ThumbnailConsumer.as_asgi()})


async def announce(text: str) -> None:
    """What an async endpoint does."""
    await trunkline.get_channel_layer().group_send("chat", {"type": "chat.system_message", "text": text})


def announce_from_thread(text: str) -> None:
    """What a sync endpoint does, in the framework's thread pool."""
    trunkline.get_channel_layer().sync.group_send("chat", {"type": "chat.system_message", "text": text})
