"""What the documentation of channel layers promises, with Django Channels' own consumers, over Trunkline's layers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from channels.testing import ApplicationCommunicator, WebsocketCommunicator
from chatsite import views
from chatsite.asgi import application
from chatsite.models import Client, Thumbnail
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import AsyncClient, RequestFactory
from django.test import Client as Browser

import trunkline


@asynccontextmanager
async def connected(
    path: str, headers: list[tuple[bytes, bytes]] | None = None
) -> AsyncIterator[WebsocketCommunicator]:
    socket = WebsocketCommunicator(application, path, headers)
    accepted, _ = await socket.connect()
    assert accepted
    yield socket
    await socket.disconnect()


async def test_what_one_client_says_reaches_everyone_in_the_group(layer: Any) -> None:
    """A sync WebsocketConsumer joins, broadcasts and leaves through async_to_sync."""
    async with connected("/ws/chat/") as one:
        async with connected("/ws/chat/") as two:
            await one.send_to(text_data="hello")
            assert [await one.receive_from(), await two.receive_from()] == ["hello", "hello"]
        await one.send_to(text_data="still here")
        assert await one.receive_from() == "still here"
        assert await one.receive_nothing(0.05)


async def test_a_consumer_is_reached_by_the_name_in_its_database_row(layer: Any) -> None:
    """connect() writes self.channel_name to a row, layer.send() to it reaches that socket only, disconnect() deletes it."""
    count = database_sync_to_async(Client.objects.count)
    async with connected("/ws/inbox/") as one:
        first = await database_sync_to_async(Client.objects.get)()
        async with connected("/ws/inbox/") as two:
            await get_channel_layer().send(
                first.channel_name, {"type": "chat.message", "text": "Hello there!"}
            )
            assert await one.receive_from() == "Hello there!"
            assert await two.receive_nothing(0.05)
            assert await count() == 2
        assert await count() == 1
    assert await count() == 0


@database_sync_to_async
def session_cookie(username: str) -> bytes:
    """Log a user in, as a browser would be."""
    browser = Browser()
    browser.force_login(get_user_model().objects.get_or_create(username=username)[0])
    return f"sessionid={browser.cookies['sessionid'].value}".encode()


async def test_multichat_sends_the_speakers_name_to_the_room(layer: Any) -> None:
    """chat.message of an AsyncJsonWebsocketConsumer carries scope["user"].username, and stays in its room."""
    ada, bob = [(b"cookie", await session_cookie(name)) for name in ("ada", "bob")]
    async with connected("/ws/rooms/", [ada]) as one, connected("/ws/rooms/", [bob]) as two:
        for socket, room in ((one, 7), (two, 7), (two, 8)):
            await socket.send_json_to({"command": "join", "room": room})
            assert await socket.receive_json_from() == {"joined": room}
        await one.send_json_to({"command": "send", "room": 7, "message": "hi"})
        expected = {"msg_type": 0, "room": 7, "username": "ada", "message": "hi"}
        assert [await one.receive_json_from(), await two.receive_json_from()] == [expected, expected]
        await two.send_json_to({"command": "send", "room": 8, "message": "psst"})
        assert (await two.receive_json_from())["username"] == "bob"
        assert await one.receive_nothing(0.05)


async def test_a_sync_view_announces_to_all_sockets(layer: Any) -> None:
    """A plain Django view, run in a thread by the ASGI handler, calls async_to_sync(group_send)."""
    async with connected("/ws/chat/") as one, connected("/ws/chat/") as two:
        answer = await AsyncClient().post("/announce/", data="down at 5", content_type="text/plain")
        assert answer.status_code == 200
        assert [await one.receive_from(), await two.receive_from()] == ["* down at 5", "* down at 5"]


async def test_a_view_under_wsgi_announces_too(layer: Any) -> None:
    """In a thread without any event loop, fifty announcements in a row arrive, in order."""

    def wsgi() -> None:
        for number in range(50):
            views.announce(RequestFactory().post("/announce/", data=str(number), content_type="text/plain"))

    async with connected("/ws/chat/") as one:
        thread = threading.Thread(target=wsgi)
        thread.start()
        assert [await one.receive_from() for _ in range(50)] == [f"* {n}" for n in range(50)]
        await asyncio.to_thread(thread.join)


async def test_announcement_to_several_chats_from_async_code(layer: Any) -> None:
    """The loop of the documentation: one group_send for each chat."""
    async with connected("/ws/chat/") as one:
        for chat_name in ("chat", "nobody-is-here"):
            await get_channel_layer().group_send(chat_name, {"type": "chat.system_message", "text": "hi all"})
        assert await one.receive_from() == "* hi all"


async def test_force_disconnect_from_a_management_command(layer: Any) -> None:
    """chat.force_disconnect closes every socket of the group, with the code the consumer chose."""
    async with connected("/ws/chat/") as one, connected("/ws/chat/") as two:
        await asyncio.to_thread(call_command, "force_disconnect")
        for socket in (one, two):
            assert await socket.receive_output() == {"type": "websocket.close", "code": 4001}


def test_a_script_speaks_without_any_loop(layer: Any) -> None:
    """send, receive, group_add and group_send work by async_to_sync, and by layer.sync, in turn."""
    name = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("script", name)
    layer.sync.group_send("script", {"type": "a"})
    async_to_sync(layer.send)(name, {"type": "b"})
    assert layer.sync.receive(name, timeout=20) == {"type": "a"}
    assert async_to_sync(layer.receive)(name) == {"type": "b"}
    async_to_sync(layer.group_discard)("script", name)
    layer.sync.group_send("script", {"type": "c"})
    layer.sync.send(name, {"type": "d"})
    assert layer.sync.receive(name, timeout=20) == {"type": "d"}


async def test_a_worker_consumer_writes_to_the_database_and_answers_the_group(layer: Any) -> None:
    """The application runs for a {"type": "channel"} scope, as under a worker."""
    async with connected("/ws/chat/") as one:
        job = ApplicationCommunicator(application, {"type": "channel", "channel": "thumbnails"})
        await job.send_input({"type": "thumbnail.make", "source": "cat.png"})
        assert await one.receive_from() == "* thumbnail of cat.png made"
        assert (await database_sync_to_async(Thumbnail.objects.get)()).source == "cat.png"
        await job.wait(timeout=0.01)


async def test_both_names_give_one_object(layer: Any) -> None:
    """channels.layers.get_channel_layer() and trunkline.get_channel_layer() are the same layer."""
    assert trunkline.get_channel_layer() is get_channel_layer() is layer
    assert isinstance(layer, trunkline.ChannelLayer)
