"""Relays: one frame for everyone, in order with what else a socket gets, and nobody pays for another's trouble."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from trunkline import ChannelLayer, opening
from trunkline.consumers import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    NoHandler,
    StopConsumer,
    WebsocketConsumer,
)
from trunkline.consumers.relay import Turn
from trunkline.testing import WebsocketCommunicator, eventually

Event = dict[str, Any]


def text_of(event: Event) -> str:
    return event["text"]


class Room(AsyncWebsocketConsumer):
    groups = ["room"]
    relay = {"chat.message": text_of}


class SyncRoom(WebsocketConsumer):
    groups = ["room"]
    relay = {"chat.message": text_of}


def turn_of(box: Any) -> Turn:
    return box.sink.__self__._turn if box.sink else Turn()


async def idle(layer: ChannelLayer, count: int = 1) -> None:
    """So many consumers wait for their next event."""
    board = layer._nodes[asyncio.get_running_loop()]._board

    def waiting() -> bool:
        boxes = [box for box in board.boxes.values() if "room" in box.groups]
        at_rest = [box.waiters and not box.parcels and not turn_of(box).held for box in boxes]
        return len(boxes) == count and all(at_rest)

    await eventually(waiting)


async def say(layer: ChannelLayer, text: Any, **more: Any) -> None:
    await layer.group_send("room", {"type": "chat.message", "text": text, **more})


@pytest.mark.parametrize("kind", [Room, SyncRoom])
async def test_everyone_gets_it_and_the_frame_is_made_once(kind, layer: ChannelLayer) -> None:
    """Twenty sockets, one call of the function, and what was relayed counts as received."""
    calls = []

    def make(event: Event) -> str:
        calls.append(event)
        return event["text"]

    class Counted(kind):
        relay = {"chat.message": make}

    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(WebsocketCommunicator(Counted.as_asgi(), "/")) for _ in range(20)
        ]
        for socket in sockets:
            assert (await socket.connect())[0]
        await idle(layer, 20)
        await say(layer, "hello")
        assert [await socket.receive_from() for socket in sockets] == ["hello"] * 20
        assert len(calls) == 1
        assert layer.stats().delivered == layer.stats().received == 20


@pytest.mark.parametrize(
    ("content", "frame"),
    [("hé", "hé"), (b"\0\1", b"\0\1"), ({"a": [1]}, '{"a": [1]}'), ([1, "b"], '[1, "b"]')],
)
async def test_what_a_relay_may_return(content, frame, layer: ChannelLayer) -> None:
    """Text, bytes, and what JSON can say."""

    class Any_(Room):
        relay = {"chat.message": lambda event: content}

    async with WebsocketCommunicator(Any_.as_asgi(), "/") as socket:
        await socket.connect()
        await idle(layer)
        await say(layer, "")
        assert await socket.receive_from() == frame


async def test_the_order_with_what_the_consumer_sends_itself(layer: ChannelLayer) -> None:
    """An event that comes while a handler is at work is sent after what that handler sends, and before what comes next."""
    resume = asyncio.Event()

    class Busy(Room):
        async def receive(self, text_data=None, bytes_data=None):
            await self.send(text_data="first")
            await resume.wait()
            await self.send(text_data="last")

        async def direct_message(self, event):
            await asyncio.sleep(0)
            await self.send(text_data=event["text"])

    async with WebsocketCommunicator(Busy.as_asgi(), "/") as socket:
        await socket.connect()
        await idle(layer)
        (channel,) = layer._nodes[asyncio.get_running_loop()]._board.boxes
        await socket.send_to(text_data="go")
        assert await socket.receive_from() == "first"
        await say(layer, "1")
        await layer.send(channel, {"type": "direct.message", "text": "2"})
        await say(layer, "3")
        assert await socket.receive_nothing()
        resume.set()
        assert [await socket.receive_from() for _ in range(4)] == ["last", "1", "2", "3"]
        await idle(layer)
        for number in range(50):  # from idle again: relayed and handled in turns
            await say(layer, f"r{number}")
            await layer.send(channel, {"type": "direct.message", "text": f"d{number}"})
        wanted = [f"{way}{number}" for number in range(50) for way in "rd"]
        assert [await socket.receive_from() for _ in wanted] == wanted


async def test_events_before_the_connection_is_accepted(layer: ChannelLayer) -> None:
    """What comes while ``connect`` decides follows the acceptance; a socket never accepted gets nothing, and lives."""
    entered, decide = asyncio.Event(), asyncio.Event()

    class Slow(Room):
        async def connect(self):
            entered.set()
            await decide.wait()
            await self.accept()

    class Later(Room):
        async def connect(self):
            pass

        async def receive(self, text_data=None, bytes_data=None):
            await self.accept()

    async with WebsocketCommunicator(Slow.as_asgi(), "/") as socket:
        connecting = asyncio.create_task(socket.connect())
        await entered.wait()
        await say(layer, "early")
        decide.set()
        assert (await connecting)[0]
        assert await socket.receive_from() == "early"
    async with WebsocketCommunicator(Later.as_asgi(), "/") as socket:
        await socket.send_input({"type": "websocket.connect"})
        await idle(layer)
        await say(layer, "to nobody")
        await socket.send_to(text_data="let me in")
        assert (await socket.receive_output())["type"] == "websocket.accept"
        await idle(layer)
        await say(layer, "now")
        assert await socket.receive_from() == "now"


class Server:
    """A server's side of one connection, whose ``send`` does as it is told."""

    def __init__(self, app: Any) -> None:
        self.sent: list[Any] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.error: BaseException | None = None
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.events.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(app({"type": "websocket", "path": "/"}, self.events.get, self._send))

    async def _send(self, event: Event) -> None:
        if event["type"] == "websocket.send":
            await self.writable.wait()
            if self.error is not None:
                raise self.error
            self.sent.append(event.get("text"))

    async def leave(self) -> None:
        self.events.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await self.task


async def test_a_slow_socket_holds_up_itself_alone(layer: ChannelLayer) -> None:
    """What it cannot take waits in its mailbox, in order; its own handlers wait; the others go on."""

    class Echo(Room):
        async def receive(self, text_data=None, bytes_data=None):
            await self.send(text_data=text_data)

    slow, quick = Server(Echo.as_asgi()), Server(Echo.as_asgi())
    await idle_both(layer)
    slow.writable.clear()
    for number in range(5):
        await say(layer, str(number))
    await eventually(lambda: quick.sent == list("01234"))
    slow.events.put_nowait({"type": "websocket.receive", "text": "own"})
    assert slow.sent == []
    slow.writable.set()
    await eventually(lambda: len(slow.sent) == 6)
    assert [text for text in slow.sent if text != "own"] == list("01234")
    assert slow.sent[0] == "0"
    await idle(layer, 2)
    await say(layer, "5")
    assert slow.sent[-1] == quick.sent[-1] == "5"  # at once, from within group_send
    await slow.leave()
    await quick.leave()


async def idle_both(layer: ChannelLayer) -> None:
    await eventually(lambda: layer._nodes)
    await idle(layer, 2)


async def test_a_socket_that_takes_nothing_misses_what_has_no_room(layer: ChannelLayer) -> None:
    """Beyond the capacity of its mailbox it misses, which is counted; its consumer can still be cancelled."""
    stuck = Server(Room.as_asgi())
    await eventually(lambda: layer._nodes)
    await idle(layer)
    stuck.writable.clear()
    for number in range(layer.capacity + 10):
        await say(layer, str(number))
    await eventually(lambda: layer.stats().missed >= 8)
    stuck.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck.task
    assert stuck.sent == []


@pytest.mark.parametrize("when", ["at once", "while waiting"])
async def test_a_client_that_left_is_no_error(when, layer: ChannelLayer) -> None:
    """Its consumer gets its disconnect, and the others their frames."""
    left = []

    class Leaving(Room):
        async def disconnect(self, code):
            left.append(code)

    gone, here = Server(Leaving.as_asgi()), Server(Leaving.as_asgi())
    await idle_both(layer)
    gone.error = ConnectionResetError("gone")
    if when == "while waiting":
        gone.writable.clear()
    await say(layer, "1")
    gone.writable.set()
    await eventually(lambda: here.sent == ["1"])
    await say(layer, "2")
    await eventually(lambda: here.sent == ["1", "2"])
    assert not gone.task.done()
    await gone.leave()
    assert left == [1001]
    await say(layer, "3")
    await eventually(lambda: here.sent == ["1", "2", "3"])
    await here.leave()


@pytest.mark.parametrize("when", ["at once", "while waiting"])
async def test_another_error_of_send_ends_that_connection(when, layer: ChannelLayer, caplog) -> None:
    """As it would in a handler: logged once, raised to the server, and nobody else is concerned."""
    broken, here = Server(Room.as_asgi()), Server(Room.as_asgi())
    await idle_both(layer)
    broken.error = RuntimeError("a defect of the server")
    if when == "while waiting":
        broken.writable.clear()
    await say(layer, "1")
    broken.writable.set()
    with pytest.raises(RuntimeError, match="a defect of the server"):
        await broken.task
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
        "Room failed while handling 'chat.message' (websocket /)"
    ]
    await idle(layer, 1)
    await say(layer, "2")
    await eventually(lambda: here.sent == ["1", "2"])
    await here.leave()


async def test_nothing_is_relayed_after_the_consumer_has_closed(layer: ChannelLayer) -> None:
    """No server would take it."""

    class Closing(Room):
        async def receive(self, text_data=None, bytes_data=None):
            await self.close(4000)

    async with WebsocketCommunicator(Closing.as_asgi(), "/") as socket:
        await socket.connect()
        await socket.send_to(text_data="close")
        assert (await socket.receive_output())["type"] == "websocket.close"
        await idle(layer)
        await say(layer, "too late")
        assert await socket.receive_nothing()


def fails(event: Event) -> str:
    raise KeyError("text")


@pytest.mark.parametrize(
    ("make", "said"), [(fails, "KeyError('text')"), (lambda event: None, "not NoneType")]
)
async def test_a_relay_that_fails_is_logged_once(make: Callable, said, layer, caplog) -> None:
    """Nobody gets that event, every connection lives, and the next event arrives."""
    name = f"Failing{id(make)}"
    kind = type(name, (Room,), {"relay": {"chat.message": make, "chat.good": text_of}})
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(WebsocketCommunicator(kind.as_asgi(), "/")) for _ in range(3)
        ]
        for socket in sockets:
            await socket.connect()
        await idle(layer, 3)
        await say(layer, "1")
        await layer.group_send("room", {"type": "chat.good", "text": "good"})
        assert [await socket.receive_from() for socket in sockets] == ["good"] * 3
    (record,) = [record for record in caplog.records if record.name == "trunkline.consumers"]
    assert record.getMessage().startswith(
        f"{name}.relay['chat.message'] failed, and nobody here gets this event: "
    )
    assert said in record.getMessage()
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


async def test_ordinary_members_of_the_group_get_a_dict_of_their_own(layer: ChannelLayer) -> None:
    """What a relay was shown is not what a handler changes."""
    seen = []

    class Keeping(Room):
        relay = {"chat.message": lambda event: seen.append(event) or "relayed"}

    class Ordinary(AsyncWebsocketConsumer):
        groups = ["room"]

        async def chat_message(self, event):
            event["text"] += " changed"
            await self.send(text_data=event["text"])

    async with (
        WebsocketCommunicator(Ordinary.as_asgi(), "/") as ordinary,
        WebsocketCommunicator(Keeping.as_asgi(), "/") as relaying,
    ):
        await ordinary.connect()
        await relaying.connect()
        await idle(layer, 2)
        await say(layer, "hello")
        assert await ordinary.receive_from() == "hello changed"
        assert await relaying.receive_from() == "relayed"
        assert seen == [{"type": "chat.message", "text": "hello"}]


async def test_events_sent_to_the_channel_itself_are_relayed_too(layer: ChannelLayer) -> None:
    """The type decides, not the road."""
    async with WebsocketCommunicator(Room.as_asgi(), "/") as socket:
        await socket.connect()
        await idle(layer)
        (channel,) = layer._nodes[asyncio.get_running_loop()]._board.boxes
        await layer.send(channel, {"type": "chat.message", "text": "to you"})
        assert await socket.receive_from() == "to you"


async def test_an_event_whose_type_is_no_text(layer: ChannelLayer, caplog) -> None:
    """It is refused as without a relay, by the consumer that got it."""
    consumer = Server(Room.as_asgi())
    await eventually(lambda: layer._nodes)
    await idle(layer)
    await layer.group_send("room", {"type": ["chat.message"]})
    with pytest.raises(NoHandler, match="without a type"):
        await consumer.task


async def test_it_goes_on_after_a_flush(layer: ChannelLayer) -> None:
    """A channel keeps its sink; its memberships are gone, as for all."""
    async with WebsocketCommunicator(Room.as_asgi(), "/") as socket:
        await socket.connect()
        await idle(layer)
        board = layer._nodes[asyncio.get_running_loop()]._board
        (box,) = board.boxes.values()
        await layer.flush()
        assert board.boxes == {box.channel: box}
        await layer.group_add("room", box.channel)
        await say(layer, "again")
        assert await socket.receive_from() == "again"


async def test_another_makers_layer() -> None:
    """A layer without ``attach_sink`` brings the events the ordinary way."""
    layers = pytest.importorskip("channels.layers")
    theirs = layers.InMemoryChannelLayer()
    with opening.override("default", theirs):
        async with WebsocketCommunicator(Room.as_asgi(), "/") as socket:
            await socket.connect()
            await theirs.group_send("room", {"type": "chat.message", "text": "hello"})
            assert await socket.receive_from() == "hello"


@pytest.mark.parametrize(
    ("relay", "words"),
    [
        ({"chat.message": text_of, "said": text_of}, "Chat has a handler said and a relay for 'said'"),
        ({"websocket.receive": text_of}, "has a handler websocket_receive and a relay"),
        ({"_hidden": text_of}, "'_hidden' is no type of an event"),
        ({7: text_of}, "7 is no type of an event"),
        ({"chat.message": "text_of"}, "plain function"),
        (["chat.message"], "not list"),
    ],
)
def test_a_relay_that_cannot_be_is_refused_with_its_class(relay, words) -> None:
    """The class statement says what is wrong."""
    with pytest.raises(TypeError, match=words):

        class Chat(AsyncJsonWebsocketConsumer):
            async def said(self, event):
                raise StopConsumer

        class Wrong(Chat):
            pass

        type("Chat", (Chat,), {"relay": relay})


def test_a_coroutine_function_is_no_relay() -> None:
    async def later(event):
        return ""

    with pytest.raises(TypeError, match="plain function"):
        type("Chat", (AsyncWebsocketConsumer,), {"relay": {"chat.message": later}})
