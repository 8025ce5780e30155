"""A tour of Trunkline: read it from top to bottom. Every test is one thing the product does, as a user would write it."""

import asyncio
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import trunkline
from trunkline import node
from trunkline.consumers import AsyncConsumer, AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from trunkline.layers import EmbeddedChannelLayer, InMemoryChannelLayer
from trunkline.routing import ChannelNameRouter
from trunkline.testing.communicators import WebsocketCommunicator
from trunkline.worker import Worker

Message = dict[str, Any]


# 1. A layer carries messages between the processes of one application.


async def test_two_processes_talk(tmp_path: Path) -> None:
    """Two layers on one directory hear each other. Here they stand in for two processes; there is no server."""
    web, script = EmbeddedChannelLayer(tmp_path / "layer"), EmbeddedChannelLayer(tmp_path / "layer")

    channel = await web.new_channel()
    await script.send(channel, {"type": "chat.message", "text": "hello"})

    assert await web.receive(channel) == {"type": "chat.message", "text": "hello"}
    await web.close()
    await script.close()


# 2. A group reaches everyone in it, wherever they are.


async def test_a_group(make_channel_layer: Any) -> None:
    """group_send costs one publish; each process gives it to its own members."""
    here, there = make_channel_layer(), make_channel_layer()
    members = [(layer, await layer.new_channel()) for layer in (here, here, there)]
    for layer, channel in members:
        await layer.group_add("room", channel)

    await there.group_send("room", {"type": "chat.message", "text": "hi all"})

    for layer, channel in members:
        assert (await layer.receive(channel))["text"] == "hi all"


# 3. A normal channel is a queue: several workers share it, each message goes to one.


async def test_a_queue(make_channel_layer: Any) -> None:
    """Messages wait until somebody takes them, in order."""
    web, worker = make_channel_layer(), make_channel_layer()
    for number in range(3):
        await web.send("thumbnails", {"type": "make", "number": number})

    assert [(await worker.receive("thumbnails"))["number"] for _ in range(3)] == [0, 1, 2]


# 4. What cannot be kept is told.


async def test_a_full_channel_is_told(channel_layer: InMemoryChannelLayer) -> None:
    """A sender learns at once that a channel is full."""
    channel = await channel_layer.new_channel()
    for _ in range(channel_layer.capacity):
        await channel_layer.send(channel, {"type": "x"})

    with pytest.raises(trunkline.ChannelFull, match="its capacity"):
        await channel_layer.send(channel, {"type": "x"})


async def test_a_slow_member_hurts_only_itself(make_channel_layer: Any) -> None:
    """group_send never fails for a full member: it misses the message, which is counted and logged."""
    layer = make_channel_layer(capacity=2)
    slow, quick = await layer.new_channel(), await layer.new_channel()
    for channel in (slow, quick):
        await layer.group_add("room", channel)

    for number in range(3):
        await layer.group_send("room", {"number": number})
        assert (await layer.receive(quick))["number"] == number

    assert layer.stats().missed == 1


async def test_what_cannot_travel_is_told(channel_layer: InMemoryChannelLayer) -> None:
    """Messages are plain data; what is not fails where it is sent, with the place of the culprit."""
    with pytest.raises(TypeError, match=r"message\['user'\]\['id'\]: object is not a type that travels"):
        await channel_layer.send("anything", {"user": {"id": object()}})


# 5. It works from anywhere: other loops, threads, scripts.


def test_without_await(channel_layer: InMemoryChannelLayer) -> None:
    """layer.sync has every method without await, for views, scripts and task queues."""
    channel = channel_layer.sync.new_channel()
    channel_layer.sync.group_add("room", channel)

    channel_layer.sync.group_send("room", {"type": "system.announcement"})

    assert channel_layer.sync.receive(channel, timeout=20) == {"type": "system.announcement"}


# 6. Consumers turn events into method calls.


class Chat(AsyncJsonWebsocketConsumer):
    groups = ["lobby"]

    async def receive_json(self, content: Message) -> None:
        await self.channel_layer.group_send("lobby", {"type": "chat.message", "text": content["text"]})

    async def chat_message(self, event: Message) -> None:
        await self.send_json({"said": event["text"]})


@pytest.mark.usefixtures("channel_layer")
async def test_a_chat() -> None:
    """What one browser says, every browser in the room gets."""
    async with (
        WebsocketCommunicator(Chat.as_asgi(), "/ws/") as alice,
        WebsocketCommunicator(Chat.as_asgi(), "/ws/") as bob,
    ):
        assert (await alice.connect())[0]
        assert (await bob.connect())[0]

        await alice.send_json_to({"text": "hello"})

        assert await alice.receive_json_from() == {"said": "hello"}
        assert await bob.receive_json_from() == {"said": "hello"}


async def test_events_from_outside(channel_layer: InMemoryChannelLayer) -> None:
    """A script reaches the sockets of a group without knowing them."""
    async with WebsocketCommunicator(Chat.as_asgi(), "/ws/") as alice:
        await alice.connect()

        await channel_layer.group_send("lobby", {"type": "chat.message", "text": "from a script"})

        assert await alice.receive_json_from() == {"said": "from a script"}


def test_a_handler_of_the_wrong_colour() -> None:
    """An async consumer with a plain def handler is refused when the class is made, not when the event comes."""
    with pytest.raises(TypeError, match="chat_message"):

        class Wrong(AsyncJsonWebsocketConsumer):
            def chat_message(self, event: Message) -> None: ...

    with pytest.raises(TypeError, match="chat_message"):

        class AlsoWrong(JsonWebsocketConsumer):
            async def chat_message(self, event: Message) -> None: ...


@dataclass
class Announcement:
    text: str
    type: Literal["announcement"] = "announcement"


async def test_typed_events(channel_layer: InMemoryChannelLayer, caplog: pytest.LogCaptureFixture) -> None:
    """A handler's annotation says what it gets; what is no such thing is told, and costs nobody the connection."""

    class Board(AsyncJsonWebsocketConsumer):
        groups = ["board"]

        async def announcement(self, event: Announcement) -> None:
            await self.send_json({"announced": event.text})

    async with WebsocketCommunicator(Board.as_asgi(), "/ws/") as alice:
        await alice.connect()

        await channel_layer.group_send("board", {"type": "announcement", "text": 7})
        await channel_layer.group_send("board", Announcement("lunch"))

        assert await alice.receive_json_from() == {"announced": "lunch"}
    assert "Announcement.text: expected str, got int 7" in caplog.text


# 7. Work that takes long goes to a worker.


async def test_a_worker(channel_layer: InMemoryChannelLayer) -> None:
    """A worker listens on channel names and runs a consumer for what arrives; the answer comes back as an event."""

    class Thumbnails(AsyncConsumer):
        async def make(self, event: Message) -> None:
            await self.channel_layer.send(event["reply_to"], {"type": "done", "size": event["size"] // 10})

    worker = Worker(ChannelNameRouter({"thumbnails": Thumbnails.as_asgi()}), channel_layer, ["thumbnails"])
    running = asyncio.create_task(worker.run())

    mine = await channel_layer.new_channel()
    await channel_layer.send("thumbnails", {"type": "make", "size": 1000, "reply_to": mine})

    assert await asyncio.wait_for(channel_layer.receive(mine), 20) == {"type": "done", "size": 100}
    worker.stop()
    await running


async def test_a_worker_that_loses_nothing(channel_layer: InMemoryChannelLayer) -> None:
    """With ack="after" a message whose handler fails is tried again, and put aside when that does not help."""
    if "leases" not in channel_layer.extensions:
        pytest.skip("this layer's transport has no leases")

    class Mails(AsyncConsumer):
        async def mail_send(self, event: Message) -> None:
            raise ConnectionError("the mail server is away")

    worker = Worker(
        Mails.as_asgi(), channel_layer, ["mails"], ack="after", retries=2, backoff=0.01, dead_letter="failed"
    )
    running = asyncio.create_task(worker.run())

    await channel_layer.send("mails", {"type": "mail.send", "to": "ada"})

    letter = await asyncio.wait_for(channel_layer.receive("failed"), 20)
    assert letter["message"] == {"type": "mail.send", "to": "ada"}
    assert (letter["tries"], letter["error"]) == (3, "ConnectionError: the mail server is away")
    worker.stop()
    await running


async def test_a_message_for_later(channel_layer: InMemoryChannelLayer) -> None:
    """A delayed message cannot be received before it is due."""
    if "leases" not in channel_layer.extensions:
        pytest.skip("this layer's transport has no leases")
    await channel_layer.send("mails", {"to": "ada"}, delay=0.1)
    await channel_layer.send("mails", {"to": "bob"})

    assert [(await channel_layer.receive("mails"))["to"] for _ in range(2)] == ["bob", "ada"]


# 8. Every process can be seen from any other.


async def test_who_is_there(make_channel_layer: Any) -> None:
    """A survey asks all processes; each says what it counts, what waits in it, and how it does."""
    here, there = make_channel_layer(), make_channel_layer()
    channel = await there.new_channel()
    await here.send(channel, {"type": "x"})

    reports = []
    while len(reports) < 2:
        reports = await here.survey(0.1)

    (busy,) = [report for report in reports if report.stats.waiting]
    assert (busy.stats.waiting, busy.stats.slowest[0].channel) == (1, channel)
    assert {report.health.state for report in reports} == {"ok"}


async def test_who_is_in_a_group(make_channel_layer: Any) -> None:
    """A group knows who is present, in every process; a user with two windows comes once and goes once."""
    here, there = make_channel_layer(), make_channel_layer()
    if "presence" not in here.extensions:
        pytest.skip("this layer's transport keeps no records")
    phone, laptop = await here.new_channel(), await there.new_channel()

    await here.group_add("room", phone, presence={"on": "phone"}, user="ann", announce=True)
    await there.group_add("room", laptop, presence={"on": "laptop"}, user="ann", announce=True)

    assert [(each.user, each.metadata["on"]) for each in await there.presence("room")] == [
        ("ann", "phone"),
        ("ann", "laptop"),
    ]
    assert await here.presence_count("room") == (2, 1)
    assert (await here.receive(phone))["type"] == "presence.join"

    await here.group_discard("room", phone)
    watcher = await here.new_channel()
    await here.group_add("room", watcher)
    await there.group_discard("room", laptop)
    assert (await here.receive(watcher))["type"] == "presence.leave"


# 9. A group may remember, for those who come back; and a message may be for some only.


async def test_what_was_missed() -> None:
    """Every event of a group with a history has a position; what came after one can be asked for."""
    layer = InMemoryChannelLayer(history={"room.*": {"size": 100, "seconds": 3600}})
    here = await layer.group_position("room.1")

    await layer.group_send("room.1", {"type": "chat.message", "text": "while you were away"})

    (missed,) = await layer.group_history("room.1", since=here)
    assert missed["text"] == "while you were away"
    assert await layer.group_history("room.1", since=missed["position"]) == []
    await layer.close()


async def test_everyone_but_me(channel_layer: InMemoryChannelLayer) -> None:
    """exclude passes members over; groups_send reaches each channel once; an id makes a second try harmless."""
    mine, yours = await channel_layer.new_channel(), await channel_layer.new_channel()
    for group, channel in (("room", mine), ("room", yours), ("staff", yours)):
        await channel_layer.group_add(group, channel)

    await channel_layer.group_send("room", {"type": "typing"}, exclude=mine)
    for _ in range(2):
        await channel_layer.groups_send(["room", "staff"], {"type": "news"}, id="news 1")
    await channel_layer.group_send("room", {"type": "end"})

    assert [(await channel_layer.receive(yours))["type"] for _ in range(3)] == ["typing", "news", "end"]
    assert [(await channel_layer.receive(mine))["type"] for _ in range(2)] == ["news", "end"]


async def test_a_slow_member() -> None:
    """What a full channel loses is decided by its name; of a latest_only group a slow member gets the newest."""
    layer = InMemoryChannelLayer(capacity=2, overflow={"feed.*": "drop oldest"}, latest_only=["cursor"])
    slow = await layer.new_channel("feed")
    for group in ("cursor", "log"):
        await layer.group_add(group, slow)

    for n in range(5):
        await layer.group_send("cursor", {"cursor": n})
    assert await layer.receive(slow) == {"cursor": 4}

    for n in range(5):
        await layer.group_send("log", {"n": n})
    assert [await layer.receive(slow) for _ in range(2)] == [{"n": 3}, {"n": 4}]
    assert layer.stats().missed == 3
    await layer.close()


# 10. One message's life has five steps, everywhere the same.


def test_the_five_steps() -> None:
    """The numbers stand in the code, in its docstring and in ARCHITECTURE, in one order."""
    source = inspect.getsource(node)
    assert re.findall(r"^(\d)\. ", inspect.getdoc(node) or "", re.M) == list("12345")
    in_code = re.findall(r"# (\d)\. (\w+)", source)
    assert list(dict.fromkeys(number for number, _ in in_code)) == list("12345")
    architecture = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    life = architecture.partition("## One message's life")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. ", life, re.M) == list("12345")


async def test_the_five_steps_happen(make_channel_layer: Any) -> None:
    """Sent, carried, delivered, put, received: the counters of both ends tell the same story."""
    here, there = make_channel_layer(), make_channel_layer()
    channel = await there.new_channel()

    await here.send(channel, {"type": "x"})
    await there.receive(channel)

    assert (here.stats().sent, there.stats().delivered, there.stats().received) == (1, 1, 1)
