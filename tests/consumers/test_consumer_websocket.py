"""Websocket consumers: connecting, frames, closing, groups; each in both colours, with and without a layer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from trunkline import opening
from trunkline.consumers import (
    AcceptConnection,
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    DenyConnection,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from trunkline.errors import ConfigurationError
from trunkline.layers import InMemoryChannelLayer
from trunkline.testing import eventually
from trunkline.testing.communicators import WebsocketCommunicator


class Echo(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=text_data, bytes_data=bytes_data)


class AsyncEcho(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data, bytes_data=bytes_data)


echoes = pytest.mark.parametrize("echo", [Echo, AsyncEcho])


def with_connect(kind: type, act: Any) -> type:
    """A consumer whose ``connect`` calls ``act(self)``, which gives the name of a method and its arguments."""
    if issubclass(kind, WebsocketConsumer):

        class Sync(kind):
            def connect(self):
                method, args = act(self)
                getattr(self, method)(**args)

        return Sync

    class Async(kind):
        async def connect(self):
            method, args = act(self)
            await getattr(self, method)(**args)

    return Async


@echoes
@pytest.mark.parametrize(
    "frame", [{"text_data": "hé"}, {"text_data": ""}, {"bytes_data": b"\0\1"}, {"bytes_data": b""}]
)
async def test_frames_arrive_and_go_out(echo, frame, perhaps_layer):
    """Text and bytes, empty ones included."""
    async with WebsocketCommunicator(echo.as_asgi(), "/ws/") as ws:
        assert await ws.connect() == (True, None)
        await ws.send_to(**frame)
        assert [await ws.receive_from()] == list(frame.values())


@echoes
async def test_accept_chooses_a_subprotocol_and_headers(echo, perhaps_layer):
    """``accept(subprotocol, headers)`` reaches the client."""
    headers = ((b"x-room", b"7"),)
    chosen = with_connect(
        echo, lambda self: ("accept", {"subprotocol": self.scope["subprotocols"][1], "headers": headers})
    )
    async with WebsocketCommunicator(chosen.as_asgi(), "/ws/", subprotocols=["a", "b"]) as ws:
        assert await ws.connect() == (True, "b")
        assert ws.response_headers == [(b"x-room", b"7")]


@echoes
@pytest.mark.parametrize(("code", "got"), [(None, 1000), (4003, 4003), (1011, 1011), (True, 1000)])
async def test_close_in_connect_refuses_the_client(echo, code, got, perhaps_layer):
    """The client hears the close code."""
    refusing = with_connect(echo, lambda self: ("close", {"code": code}))
    async with WebsocketCommunicator(refusing.as_asgi(), "/ws/") as ws:
        assert await ws.connect() == (False, got)


@echoes
@pytest.mark.parametrize(
    ("signal", "answer"), [(AcceptConnection, (True, None)), (DenyConnection, (False, 1000))]
)
async def test_connect_may_raise_its_decision(echo, signal, answer, perhaps_layer):
    """``AcceptConnection`` and ``DenyConnection`` decide about the connection."""

    def act(self):
        raise signal

    async with WebsocketCommunicator(with_connect(echo, act).as_asgi(), "/ws/") as ws:
        assert await ws.connect() == answer


@echoes
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"code": 1005}, ValueError, "1005"),
        ({"code": 1015}, ValueError, "1015"),
        ({"code": 999}, ValueError, "4000 to 4999"),
        ({"code": 5000}, ValueError, "5000"),
        ({"code": "4000"}, TypeError, "'4000'"),
        ({"code": 4000, "reason": "é" * 62}, ValueError, "123 bytes"),
        ({"code": 4000, "reason": b"x"}, TypeError, "bytes"),
    ],
)
async def test_a_close_that_no_protocol_carries_is_refused(echo, arguments, error, words, perhaps_layer):
    """Codes and reasons are checked where they are given."""
    closing = with_connect(echo, lambda self: ("close", arguments))
    ws = WebsocketCommunicator(closing.as_asgi(), "/ws/")
    with pytest.raises(error, match=words):
        await ws.connect()


@echoes
async def test_close_says_why(echo, perhaps_layer):
    """Code and reason are in the event, and nothing that was not given."""
    ws = WebsocketCommunicator(
        with_connect(echo, lambda self: ("close", {"code": 4001, "reason": "full"})).as_asgi(), "/"
    )
    await ws.send_input({"type": "websocket.connect"})
    assert await ws.receive_output() == {"type": "websocket.close", "code": 4001, "reason": "full"}
    await ws.disconnect()


@echoes
async def test_send_may_close_afterwards(echo, perhaps_layer):
    """``send(..., close=code)`` sends the frame, then closes."""
    async with WebsocketCommunicator(with_connect(echo, lambda self: ("accept", {})).as_asgi(), "/") as ws:
        await ws.connect()
    saying = with_connect(echo, lambda self: ("send", {"text_data": "bye", "close": 4002}))
    async with WebsocketCommunicator(saying.as_asgi(), "/") as ws:
        await ws.send_input({"type": "websocket.connect"})
        assert await ws.receive_output() == {"type": "websocket.send", "text": "bye"}
        assert await ws.receive_output() == {"type": "websocket.close", "code": 4002}


@echoes
async def test_send_needs_something_to_send(echo, perhaps_layer):
    """Neither text nor bytes is a ValueError."""
    ws = WebsocketCommunicator(with_connect(echo, lambda self: ("send", {})).as_asgi(), "/")
    with pytest.raises(ValueError, match="text_data or bytes_data"):
        await ws.connect()


@pytest.mark.parametrize("kind", [WebsocketConsumer, AsyncWebsocketConsumer])
@pytest.mark.parametrize(("event", "code"), [({"code": 4007}, 4007), ({}, 1005)])
async def test_disconnect_learns_the_code(kind, event, code, perhaps_layer):
    """``disconnect`` gets the client's code; without one it is 1005, as in the protocol."""
    codes = []
    if kind is WebsocketConsumer:

        class Leaving(WebsocketConsumer):
            def disconnect(self, code):
                codes.append(code)
    else:

        class Leaving(AsyncWebsocketConsumer):  # type: ignore[no-redef]
            async def disconnect(self, code):
                codes.append(code)

    ws = WebsocketCommunicator(Leaving.as_asgi(), "/")
    await ws.connect()
    await ws.send_input({"type": "websocket.disconnect", **event})
    await ws.wait()
    assert codes == [code]


class Member(WebsocketConsumer):
    groups = ["everyone", "here"]

    def note(self, event):
        self.send(text_data=event["text"])

    def disconnect(self, code):
        async_to_sync(self.channel_layer.group_send)("everyone", {"type": "note", "text": "left"})


class AsyncMember(AsyncWebsocketConsumer):
    groups = ["everyone", "here"]

    async def note(self, event):
        await self.send(text_data=event["text"])

    async def disconnect(self, code):
        await self.channel_layer.group_send("everyone", {"type": "note", "text": "left"})


members = pytest.mark.parametrize("member", [Member, AsyncMember])


@members
async def test_groups_are_joined_before_connect_and_left_before_disconnect(member, layer):
    """A member hears its groups, and no longer when its own ``disconnect`` runs."""
    async with WebsocketCommunicator(member.as_asgi(), "/") as first:
        await first.connect()
        second = WebsocketCommunicator(member.as_asgi(), "/")
        await second.connect()
        for group in ("everyone", "here"):
            await layer.group_send(group, {"type": "note", "text": group})
            assert await first.receive_from() == group
            assert await second.receive_from() == group
        await second.disconnect()
        assert second.output_queue.empty()
        assert await first.receive_from() == "left"


@members
async def test_a_crashed_member_is_in_no_group_any_more(member, layer):
    """Memberships end with the consumer, whether or not ``disconnect`` ran."""
    ws = WebsocketCommunicator(member.as_asgi(), "/")
    await ws.connect()
    await layer.group_send("here", {"type": "no.such.handler"})
    with pytest.raises(ValueError, match="no_such_handler"):
        await ws.wait()
    delivered = layer.stats().delivered
    await layer.group_send("everyone", {"type": "note", "text": "anybody?"})
    assert layer.stats().delivered == delivered


@members
async def test_groups_without_a_layer_are_an_error_that_says_what_to_do(member, caplog):
    """The error names the consumer, its groups, the alias and the call to make."""
    with opening.override("default", None):
        ws = WebsocketCommunicator(member.as_asgi(), "/")
        with pytest.raises(
            ConfigurationError, match=rf"{member.__name__}\.groups.*everyone.*'default'.*configure\("
        ):
            await ws.connect()


@members
async def test_groups_given_as_a_string_are_an_error(member, layer):
    """A string would otherwise join one group per letter."""
    wrong = type("Wrong", (member,), {"groups": "everyone"})
    ws = WebsocketCommunicator(wrong.as_asgi(), "/")
    with pytest.raises(TypeError, match=r"Wrong\.groups.*\['everyone'\]"):
        await ws.connect()


async def test_each_consumer_has_a_list_of_groups_of_its_own(layer):
    """Appending to ``self.groups`` does not touch the class, and what was appended is left at the end too."""

    class Roaming(AsyncWebsocketConsumer):
        groups = ["everyone"]

        async def connect(self):
            self.groups.append("extra")
            await self.channel_layer.group_add("extra", self.channel_name)
            await self.accept()

        async def disconnect(self, code):
            await self.channel_layer.group_send("extra", {"type": "note"})

    async with WebsocketCommunicator(Roaming.as_asgi(), "/") as ws:
        await ws.connect()
    assert Roaming.groups == ["everyone"]
    assert layer.stats().delivered == 0


async def test_disconnect_runs_although_leaving_a_group_failed(layer):
    """The user's clean-up does not depend on the layer's."""
    done = []

    class Broken(AsyncWebsocketConsumer):
        groups = ["everyone"]

        async def connect(self):
            self.groups.append("not a legal name")
            await self.accept()

        async def disconnect(self, code):
            done.append(code)

    ws = WebsocketCommunicator(Broken.as_asgi(), "/")
    await ws.connect()
    with pytest.raises(TypeError, match="not a legal name"):
        await ws.disconnect(4000)
    assert done == [4000]


async def test_disconnect_waits_for_the_handler_at_work(layer):
    """The client may leave while a handler runs: the handler finishes, then ``disconnect`` is called."""
    import asyncio

    log = []
    gate = asyncio.Event()

    class Slow(AsyncWebsocketConsumer):
        async def receive(self, text_data=None, bytes_data=None):
            log.append("begin")
            await gate.wait()
            log.append("end")

        async def disconnect(self, code):
            log.append("disconnect")

    ws = WebsocketCommunicator(Slow.as_asgi(), "/")
    await ws.connect()
    await ws.send_to(text_data="x")
    await eventually(lambda: log)
    await ws.send_input({"type": "websocket.disconnect", "code": 1001})
    gate.set()
    await ws.wait()
    assert log == ["begin", "end", "disconnect"]


class Reply(JsonWebsocketConsumer):
    def receive_json(self, content, **kwargs):
        self.send_json({"got": content}, close=content == "bye")


class AsyncReply(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content, **kwargs):
        await self.send_json({"got": content}, close=content == "bye")


replies = pytest.mark.parametrize("reply", [Reply, AsyncReply])


@replies
async def test_json_in_json_out(reply, perhaps_layer):
    """Values are decoded and encoded; ``close`` closes after sending."""
    async with WebsocketCommunicator(reply.as_asgi(), "/") as ws:
        await ws.connect()
        await ws.send_json_to({"a": [1, None, "é"]})
        assert await ws.receive_json_from() == {"got": {"a": [1, None, "é"]}}
        await ws.send_json_to("bye")
        assert await ws.receive_json_from() == {"got": "bye"}
        assert (await ws.receive_output())["type"] == "websocket.close"


@replies
@pytest.mark.parametrize("frame", [{"bytes_data": b"{}"}, {"text_data": ""}, {"text_data": "{"}])
async def test_a_frame_that_is_no_json_is_an_error(reply, frame, perhaps_layer):
    """Binary, empty and broken frames end the connection with a ValueError."""
    ws = WebsocketCommunicator(reply.as_asgi(), "/")
    await ws.connect()
    await ws.send_to(**frame)
    with pytest.raises(ValueError):
        await ws.wait()


async def test_the_codec_of_json_consumers_may_be_replaced(perhaps_layer):
    """``encode_json`` and ``decode_json`` are the only places that know JSON."""

    class Loud(AsyncReply):
        @classmethod
        async def decode_json(cls, text_data):
            return text_data.upper()

        @classmethod
        async def encode_json(cls, content):
            return repr(content)

    async with WebsocketCommunicator(Loud.as_asgi(), "/") as ws:
        await ws.connect()
        await ws.send_to(text_data="abc")
        assert await ws.receive_from() == "{'got': 'ABC'}"


@pytest.mark.parametrize("base", [WebsocketConsumer, AsyncWebsocketConsumer])
async def test_a_connection_is_present_once_accepted(base: Any) -> None:
    """group_presence says how a connection is present in its groups: while it is accepted, and never if it is refused."""
    layer = InMemoryChannelLayer(hub=f"present {base.__name__}")

    class Room(base):
        channel_layer = layer
        groups = ["room"]

        def group_presence(self):
            return {"presence": {"path": self.scope["path"]}, "user": "ann"}

    refuse = with_connect(Room, lambda self: ("close", {}))
    async with WebsocketCommunicator(Room.as_asgi(), "/chat/") as client:
        await client.connect()

        async def present() -> list[Any]:
            return [(each.user, each.metadata) for each in await layer.presence("room")]

        async with asyncio.timeout(10):
            while await present() != [("ann", {"path": "/chat/"})]:
                await asyncio.sleep(0.01)
        refused = WebsocketCommunicator(refuse.as_asgi(), "/chat/")
        connected, _ = await refused.connect()
        assert not connected
        await refused.disconnect()
        assert await layer.presence_count("room") == (1, 1)
        await client.disconnect()
        assert await present() == []

    class Wrong(Room):
        def group_presence(self):
            return {"name": "Ann"}

    wrong = WebsocketCommunicator(Wrong.as_asgi(), "/chat/")
    with pytest.raises(TypeError, match=r"Wrong.group_presence\(\) returns keyword arguments of group_add"):
        await wrong.connect()
        await wrong.receive_output()
    await layer.close()
