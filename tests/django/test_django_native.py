"""Trunkline's own consumers inside a Django project."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from channels.exceptions import StopConsumer as TheirStop
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from chatsite.models import Client, Thumbnail
from django.db import connection

from trunkline.consumers import AsyncWebsocketConsumer, SyncConsumer, WebsocketConsumer
from trunkline.django.database import database_sync_to_async
from trunkline.routing import ChannelNameRouter
from trunkline.worker import Worker


class Inbox(WebsocketConsumer):
    def connect(self) -> None:
        Client.objects.create(channel_name=self.channel_name)
        self.accept()

    def disconnect(self, code: int) -> None:
        Client.objects.filter(channel_name=self.channel_name).delete()

    def chat_message(self, event: dict[str, Any]) -> None:
        self.send(text_data=f"{event['text']} {connection.connection is None}")


class Thumbnails(SyncConsumer):
    def thumbnail_make(self, event: dict[str, Any]) -> None:
        Thumbnail.objects.create(source=event["source"], made_by=0)
        if event["source"] == "last.png":
            raise TheirStop


async def test_the_row_and_the_layer_are_the_projects(layer: Any) -> None:
    """A Trunkline consumer gets its layer from CHANNEL_LAYERS and uses the ORM; Channels' layer name reaches it."""
    socket = WebsocketCommunicator(Inbox.as_asgi(), "/")
    assert (await socket.connect())[0]
    row = await sync_to_async(Client.objects.get)()
    await get_channel_layer().send(row.channel_name, {"type": "chat.message", "text": "hello"})
    assert (await socket.receive_from()).startswith("hello")
    await socket.disconnect()
    assert await sync_to_async(Client.objects.count)() == 0


async def test_sync_handlers_leave_no_database_connection_behind(layer: Any) -> None:
    """With CONN_MAX_AGE at 0 each handler of a sync consumer starts and ends without an open connection."""
    socket = WebsocketCommunicator(Inbox.as_asgi(), "/")
    assert (await socket.connect())[0]

    def state() -> tuple[str, bool]:
        closed_after_connect = connection.connection is None
        name = Client.objects.get().channel_name
        return name, closed_after_connect and connection.connection is not None

    name, as_expected = await sync_to_async(state)()
    assert as_expected
    await layer.send(name, {"type": "chat.message", "text": "closed before:"})
    assert await socket.receive_from() == "closed before: True"
    await socket.disconnect()


async def test_an_async_consumer_uses_the_database_in_a_thread(layer: Any) -> None:
    """database_sync_to_async, as decorator and as call, leaves no connection behind either."""

    class Counter(AsyncWebsocketConsumer):
        @database_sync_to_async
        def store(self, name: str) -> bool:
            opened_before = connection.connection is not None
            Client.objects.create(channel_name=name)
            return opened_before

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            opened_before = await self.store(str(text_data))
            count = await database_sync_to_async(Client.objects.count)()
            await self.send(text_data=f"{opened_before} {count}")

    socket = WebsocketCommunicator(Counter.as_asgi(), "/")
    assert (await socket.connect())[0]
    for number in range(1, 3):
        await socket.send_to(text_data=str(number))
        assert await socket.receive_from() == f"False {number}"
    assert await sync_to_async(lambda: connection.connection)() is None
    await socket.disconnect()


async def test_a_worker_runs_sync_consumers_with_the_database(layer: Any) -> None:
    """Trunkline's worker and router do each job once, and honour a StopConsumer of Django Channels."""
    worker = Worker(ChannelNameRouter({"thumbnails": Thumbnails.as_asgi()}), layer, ["thumbnails"])
    running = asyncio.create_task(worker.run())
    for source in ("a.png", "b.png", "last.png", "after.png"):
        await layer.send("thumbnails", {"type": "thumbnail.make", "source": source})
    count = sync_to_async(Thumbnail.objects.count)
    async with asyncio.timeout(10):
        while await count() < 4:
            await asyncio.sleep(0.02)
        worker.stop()
        await running
    sources = await sync_to_async(lambda: list(Thumbnail.objects.values_list("source", flat=True)))()
    assert sources == ["a.png", "b.png", "last.png", "after.png"]
