"""Resuming: a client that comes back gets what it missed, once and in order with what is new."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest

from trunkline import ChannelLayer, ConfigurationError, layer_from_url, opening
from trunkline.consumers import AsyncWebsocketConsumer, JsonWebsocketConsumer, WebsocketConsumer
from trunkline.testing import WebsocketCommunicator, eventually

HISTORY = {"room.*": {"size": 200, "seconds": 60}}


@pytest.fixture
async def layer() -> AsyncIterator[ChannelLayer]:
    async with layer_from_url("memory://resume", history=HISTORY) as layer:
        await layer.flush()
        with opening.override("default", layer):
            yield layer


class Room(AsyncWebsocketConsumer):
    resume = True
    groups = ["room.1", "news"]

    async def say(self, event: dict[str, Any]) -> None:
        await self.send(json.dumps([event["n"], event["position"]]))

    async def tell(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


class SyncRoom(JsonWebsocketConsumer):
    resume = True
    groups = ["room.1"]

    def say(self, event: dict[str, Any]) -> None:
        self.send_json([event["n"], event["position"]])


class Relayed(AsyncWebsocketConsumer):
    resume = True
    groups = ["room.1"]
    relay = {"say": lambda event: [event["n"], event["position"]]}


KINDS = [Room, SyncRoom, Relayed]


class Browser:
    """One that keeps the newest position, and comes back with it."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.positions: dict[str, str] = {}
        self.seen: list[int] = []
        self.lost: list[str] = []
        self.socket: WebsocketCommunicator | None = None

    async def connect(self) -> None:
        query = urlencode([("resume", position) for position in self.positions.values()])
        self.socket = WebsocketCommunicator(self.kind.as_asgi(), f"/?{query}")
        assert (await self.socket.connect())[0]
        hello = json.loads(await self.socket.receive_from(10))
        assert hello["type"] == "resume"
        self.lost = hello["lost"]
        for position in hello["positions"]:
            self.keep(position)

    def keep(self, position: str) -> None:
        self.positions[position.partition(":")[0]] = position

    async def read(self, until: int) -> None:
        assert self.socket is not None
        while not self.seen or self.seen[-1] != until:
            n, position = json.loads(await self.socket.receive_from(10))
            self.seen.append(n)
            self.keep(position)

    async def leave(self) -> None:
        assert self.socket is not None
        await self.socket.disconnect()


async def say(layer: ChannelLayer, *numbers: int) -> None:
    for n in numbers:
        await layer.group_send("room.1", {"type": "say", "n": n})


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_missed_comes_first(kind: type, layer: ChannelLayer) -> None:
    browser = Browser(kind)
    await browser.connect()
    await say(layer, 1, 2)
    await browser.read(2)
    await browser.leave()
    await say(layer, *range(3, 9))
    await browser.connect()
    await say(layer, 9)
    await browser.read(9)
    assert browser.seen == list(range(1, 10))
    assert browser.lost == []
    await browser.leave()


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_was_said_before_the_first_goodbye(kind: type, layer: ChannelLayer) -> None:
    """A position is given even where there was no event yet."""
    browser = Browser(kind)
    await browser.connect()
    await browser.leave()
    await say(layer, 1)
    await browser.connect()
    await browser.read(1)
    await browser.leave()
    assert browser.seen == [1]


@pytest.mark.parametrize("kind", KINDS)
async def test_too_old_is_told(kind: type, layer: ChannelLayer) -> None:
    browser = Browser(kind)
    await browser.connect()
    await browser.leave()
    await say(layer, *range(250))
    await browser.connect()
    assert browser.lost == ["room.1"]
    await say(layer, 250)
    await browser.read(250)
    assert browser.seen == [250]
    await browser.leave()
    await browser.connect()
    assert browser.lost == []
    await browser.leave()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_browser_that_comes_and_goes_under_load(kind: type, layer: ChannelLayer) -> None:
    """It reloads at any moment while others talk: everything once, in order."""
    dice = random.Random(5)
    count = 150

    async def talk() -> None:
        for n in range(count):
            await say(layer, n)
            await asyncio.sleep(dice.random() * 0.004)

    browser = Browser(kind)
    await browser.connect()
    talking = asyncio.create_task(talk())
    while not talking.done():
        assert browser.socket is not None
        for _ in range(dice.randrange(8)):
            try:
                n, position = json.loads(await browser.socket.receive_from(0.05))
            except TimeoutError:
                break
            browser.seen.append(n)
            browser.keep(position)
        await browser.leave()
        await asyncio.sleep(dice.random() * 0.02)
        await browser.connect()
    await browser.read(count - 1)
    assert browser.seen == list(range(count))
    await browser.leave()


async def test_other_groups_go_on_as_ever(layer: ChannelLayer) -> None:
    browser = Browser(Room)
    await browser.connect()
    await layer.group_send("news", {"type": "tell", "text": "hello"})
    assert browser.socket is not None
    assert await browser.socket.receive_from() == "hello"
    await browser.leave()


async def test_junk_is_no_position(layer: ChannelLayer) -> None:
    """What a client makes up resumes nothing, and hurts nobody."""
    for query in ("resume=", "resume=junk", "resume=room.1%3A99.abc", "resume=%ff", "other=1"):
        socket = WebsocketCommunicator(Room.as_asgi(), f"/?{query}")
        assert (await socket.connect())[0]
        hello = json.loads(await socket.receive_from())
        assert len(hello["positions"]) == 1
        assert hello["lost"] == (["room.1"] if "99" in query else [])
        await socket.disconnect()


async def test_a_refused_connection_resumes_nothing(layer: ChannelLayer) -> None:
    class Closed(Room):
        async def connect(self) -> None:
            await self.close()

    socket = WebsocketCommunicator(Closed.as_asgi(), "/")
    assert (await socket.connect())[0] is False


@pytest.mark.parametrize("kind", [AsyncWebsocketConsumer, WebsocketConsumer])
async def test_resume_needs_a_history(kind: type, layer: ChannelLayer) -> None:
    class Forgetful(kind):  # type: ignore[misc]
        resume = True
        groups = ["plain"]

    socket = WebsocketCommunicator(Forgetful.as_asgi(), "/")
    await socket.connect()
    with pytest.raises(ConfigurationError, match=r"Forgetful.resume needs a group with a history"):
        await socket.receive_from()


async def test_its_own_greeting(layer: ChannelLayer) -> None:
    """``resumed`` may say it otherwise, and knows where the client stands."""

    class Polite(Room):
        async def resumed(self, positions: dict[str, str], lost: Any) -> None:
            await self.send(f"welcome {sorted(positions)} {lost}")

    socket = WebsocketCommunicator(Polite.as_asgi(), "/")
    await socket.connect()
    assert await socket.receive_from() == "welcome ['room.1'] []"
    await socket.disconnect()


@pytest.mark.parametrize("kind", [AsyncWebsocketConsumer, WebsocketConsumer])
async def test_a_full_channel_closes_its_consumer(kind: type) -> None:
    """With ``overflow`` "close CODE": the browser learns the code and can come back."""
    started, go = asyncio.Event(), asyncio.Event()

    class Slow(kind):  # type: ignore[misc]
        groups = ["room.1"]

        async def _send(self, message: Any) -> None:
            if message["type"] == "websocket.send":
                started.set()
                await go.wait()
            await super()._send(message)

    if kind is AsyncWebsocketConsumer:

        async def say(self: Any, event: Any) -> None:
            await self.send("x")
    else:

        def say(self: Any, event: Any) -> None:
            self.send("x")

    Slow.say = say
    async with layer_from_url("memory://", capacity=3, overflow={"*": "close 4008"}) as layer:
        with opening.override("default", layer):
            socket = WebsocketCommunicator(Slow.as_asgi(), "/")
            await socket.connect()
            await layer.group_send("room.1", {"type": "say"})
            await asyncio.wait_for(started.wait(), 10)
            for _ in range(5):
                await layer.group_send("room.1", {"type": "say"})
            go.set()
            assert await socket.receive_from() == "x"
            assert await socket.receive_output(10) == {"type": "websocket.close", "code": 4008}
            await eventually(lambda: layer.stats().waiting == 0)
            await socket.disconnect()
