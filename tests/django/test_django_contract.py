"""What Django Channels and its users expect of a layer, on each of ours.

One difference to the layers they may know is on purpose: capacity is counted per channel, so no channel fills another.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import re
import threading
from collections.abc import Callable
from typing import Any

import channels.exceptions
import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.test import override_settings

SECONDS = 10


async def nothing_on(layer: Any, channel: str) -> bool:
    """Whether nothing waits on the channel, which a fence message of the same sender proves."""
    await layer.send(channel, {"type": "fence"})
    async with asyncio.timeout(SECONDS):
        return bool(await layer.receive(channel) == {"type": "fence"})


@pytest.fixture
def make(entry: dict[str, Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes the default layer with other settings."""

    def with_config(**config: Any) -> Any:
        override = override_settings(
            CHANNEL_LAYERS={"default": {**entry, "CONFIG": {**entry["CONFIG"], **config}}}
        )
        override.enable()
        request.addfinalizer(override.disable)
        layer = get_channel_layer()
        request.addfinalizer(layer.sync.close)
        return layer

    return with_config


def test_the_methods_channels_calls(layer: Any) -> None:
    """They are coroutine functions, take positional and keyword arguments, and the attributes exist."""
    for name in (
        "send",
        "receive",
        "new_channel",
        "group_add",
        "group_discard",
        "group_send",
        "flush",
        "close",
    ):
        assert inspect.iscoroutinefunction(getattr(layer, name)), name
    for method, expected in (
        (layer.send, ["channel", "message"]),
        (layer.group_send, ["group", "message"]),
        (layer.group_add, ["group", "channel"]),
    ):
        parameters = inspect.signature(method).parameters.values()
        assert [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY] == expected
    assert {"groups", "flush"} <= set(layer.extensions)
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (60, 86400, 100)
    assert issubclass(layer.ChannelFull, Exception)
    assert issubclass(layer.MessageTooLarge, Exception)


async def test_a_message_arrives_as_it_was_sent(layer: Any) -> None:
    """All types of the specification survive; the receiver's dict is its own and the sender's stays untouched."""
    message = {
        "type": "test.message",
        "text": "Ahoy-hoy! ☎",
        "data": b"\x00\xff",
        "list": [1, -2.5, None, True, {"deep": ["er"]}],
        "big": 2**63 - 1,
    }
    before = repr(message)
    channel = await layer.new_channel()
    await layer.send(channel, message)
    await layer.send(channel, message)
    one, two = await layer.receive(channel), await layer.receive(channel)
    assert one == two == message
    one["list"][4]["deep"].append("x")
    assert two == message
    assert repr(message) == before


async def test_messages_sent_before_anybody_listens_are_kept(layer: Any) -> None:
    """To a normal channel and to a specific one, in order."""
    for channel in ("early", await layer.new_channel()):
        for number in range(5):
            await layer.send(channel, {"type": "n", "n": number})
        assert [(await layer.receive(channel))["n"] for _ in range(5)] == list(range(5))


async def test_channel_names_are_unique_and_legal(layer: Any) -> None:
    """New names differ whatever random.seed() says, are under 100 characters and carry the prefix."""
    made = set()
    for _ in range(3):
        random.seed(1)
        made.add(await layer.new_channel())
    assert len(made) == 3
    assert all(re.fullmatch(r"specific\.[^!]+![a-zA-Z0-9_.-]+", name) and len(name) < 100 for name in made)
    assert (await layer.new_channel("mine")).startswith("mine.")


BAD_NAMES = ["", "no spaces", "ünïcode", "a" * 100, "chat\n", "a!b!c", 7, None, b"bytes"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_are_type_errors_everywhere(layer: Any, name: Any) -> None:
    """Every method refuses a bad channel or group name, at once."""
    good = await layer.new_channel()
    for call in (
        lambda: layer.send(name, {"type": "a"}),
        lambda: layer.receive(name),
        lambda: layer.group_add(name, good),
        lambda: layer.group_add("g", name),
        lambda: layer.group_discard(name, good),
        lambda: layer.group_discard("g", name),
        lambda: layer.group_send(name, {"type": "a"}),
    ):
        with pytest.raises(TypeError):
            await call()


@pytest.mark.parametrize("message", ["text", None, ["type"], {"type": object()}, {1: "int key"}])
async def test_bad_messages_are_type_errors_at_the_sender(layer: Any, message: Any) -> None:
    """What is no dict, or cannot travel, fails in send and group_send."""
    with pytest.raises(TypeError):
        await layer.send("somewhere", message)
    with pytest.raises(TypeError):
        await layer.group_send("group", message)


async def test_channel_full(make: Callable[..., Any]) -> None:
    """`except channels.exceptions.ChannelFull` catches it; another channel still has room; taking makes room."""
    layer = make(capacity=3)
    for channel in ("queue", await layer.new_channel()):
        for _ in range(3):
            await layer.send(channel, {"type": "a"})
        with pytest.raises(channels.exceptions.ChannelFull) as caught:
            await layer.send(channel, {"type": "a"})
        assert isinstance(caught.value, layer.ChannelFull)
        await layer.receive(channel)
        await layer.send(channel, {"type": "a"})


async def test_channel_full_from_sync_code(make: Callable[..., Any]) -> None:
    """The same through async_to_sync in a thread."""
    layer = make(capacity=1)

    def fill() -> None:
        async_to_sync(layer.send)("queue", {"type": "a"})
        with pytest.raises(channels.exceptions.ChannelFull):
            async_to_sync(layer.send)("queue", {"type": "a"})
        with pytest.raises(channels.exceptions.ChannelFull):
            layer.sync.send("queue", {"type": "a"})

    await asyncio.to_thread(fill)


async def test_capacity_by_channel_name(make: Callable[..., Any]) -> None:
    """channel_capacity takes globs and compiled patterns; the first that matches counts."""
    layer = make(capacity=2, channel_capacity={"http.*": 1, re.compile(r"^job\..+"): 4})
    for channel, room in (("http.request", 1), ("job.mail", 4), ("other", 2)):
        for _ in range(room):
            await layer.send(channel, {"type": "a"})
        with pytest.raises(channels.exceptions.ChannelFull):
            await layer.send(channel, {"type": "a"})


async def test_a_full_member_never_stops_a_group(make: Callable[..., Any]) -> None:
    """group_send raises nothing for a full member, which misses the newest; its siblings get everything."""
    layer = make(capacity=2)
    slow, quick = await layer.new_channel(), await layer.new_channel()
    for channel in (slow, quick):
        await layer.group_add("g", channel)
    for number in range(4):
        await layer.group_send("g", {"type": "n", "n": number})
        assert (await layer.receive(quick))["n"] == number
    assert [(await layer.receive(slow))["n"] for _ in range(2)] == [0, 1]
    assert await nothing_on(layer, slow)


async def test_message_too_large(make: Callable[..., Any]) -> None:
    """`except channels.exceptions.MessageTooLarge` catches what is above max_message_size."""
    layer = make(max_message_size=1000)
    await layer.send("queue", {"type": "a", "text": "x" * 900})
    with pytest.raises(channels.exceptions.MessageTooLarge):
        await layer.send("queue", {"type": "a", "text": "x" * 1100})
    with pytest.raises(channels.exceptions.MessageTooLarge):
        await layer.group_send("group", {"type": "a", "text": "x" * 1100})


async def test_expired_messages_are_gone_and_free_their_room(make: Callable[..., Any]) -> None:
    """After `expiry` seconds a message is not delivered any more, and no longer counts."""
    layer = make(expiry=0.8, capacity=1)
    for channel in ("queue", await layer.new_channel()):
        await layer.send(channel, {"type": "stale"})
        deadline = asyncio.get_running_loop().time() + SECONDS
        while True:
            try:
                await layer.send(channel, {"type": "fresh"})
                break
            except channels.exceptions.ChannelFull:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.02)
        assert await layer.receive(channel) == {"type": "fresh"}


async def test_a_membership_outlives_its_channel_by_group_expiry_only(make: Callable[..., Any]) -> None:
    """A member that shows no sign of life for group_expiry seconds is dropped; group_add renews it."""
    layer = make(group_expiry=0.8)
    silent, renewed = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("g", silent)
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.1
    while loop.time() < end:
        await layer.group_add("g", renewed)
        await asyncio.sleep(0.05)
    await layer.group_add("g", renewed)
    await layer.group_send("g", {"type": "a"})
    assert await layer.receive(renewed) == {"type": "a"}
    assert await nothing_on(layer, silent)


async def test_groups(layer: Any) -> None:
    """Adding twice is once, discarding a stranger is nothing, an empty group is nothing, an old member is out."""
    one, two = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("g", one)
    await layer.group_add("g", one)
    await layer.group_add("g", two)
    await layer.group_discard("g", "stranger")
    await layer.group_send("nobody", {"type": "x"})
    await layer.group_send("g", {"type": "a"})
    await layer.group_discard("g", two)
    await layer.group_send("g", {"type": "b"})
    assert [await layer.receive(one) for _ in range(2)] == [{"type": "a"}, {"type": "b"}]
    assert await layer.receive(two) == {"type": "a"}
    assert await nothing_on(layer, one)
    assert await nothing_on(layer, two)


async def test_a_normal_channel_can_be_a_member(layer: Any) -> None:
    """A queue of workers may be in a group."""
    await layer.group_add("g", "workers")
    await layer.group_send("g", {"type": "job"})
    async with asyncio.timeout(SECONDS):
        assert await layer.receive("workers") == {"type": "job"}


async def test_a_cancelled_receive_takes_nothing(layer: Any) -> None:
    """Polling with timeouts while a sender sends loses and doubles nothing."""
    channel = await layer.new_channel()
    got: list[int] = []

    async def send() -> None:
        for number in range(50):
            await layer.send(channel, {"type": "n", "n": number})
            await asyncio.sleep(0)

    sender = asyncio.create_task(send())
    async with asyncio.timeout(SECONDS):
        while len(got) < 50:
            try:
                async with asyncio.timeout(0.0005):
                    got.append((await layer.receive(channel))["n"])
            except TimeoutError:
                pass
    await sender
    assert got == list(range(50))


async def test_flush_forgets_messages_and_groups(layer: Any) -> None:
    """After flush the layer is blank, and works."""
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.send(channel, {"type": "old"})
    await layer.send("queue", {"type": "old"})
    await layer.flush()
    await layer.group_send("g", {"type": "lost"})
    assert await nothing_on(layer, channel)
    assert await nothing_on(layer, "queue")


def test_one_layer_serves_two_loops(layer: Any) -> None:
    """Two event loops in two threads use one layer object at once: groups, queues and single channels meet."""
    ready = threading.Event()
    name: list[str] = []
    heard: list[Any] = []

    async def listen() -> None:
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        name.append(channel)
        ready.set()
        async with asyncio.timeout(SECONDS):
            heard.extend([await layer.receive(channel) for _ in range(2)])
            await layer.send("answers", {"type": "done"})

    async def speak() -> None:
        await layer.group_send("g", {"type": "to.all"})
        await layer.send(name[0], {"type": "to.one"})
        async with asyncio.timeout(SECONDS):
            heard.append(await layer.receive("answers"))

    listener = threading.Thread(target=asyncio.run, args=(listen(),))
    listener.start()
    assert ready.wait(SECONDS)
    asyncio.run(speak())
    listener.join(SECONDS)
    assert [event["type"] for event in heard] == ["to.all", "to.one", "done"]


def test_the_layer_survives_its_loops(layer: Any) -> None:
    """One layer object, several asyncio.run() in a row, as in a test suite or a script."""

    async def once(number: int) -> Any:
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", {"type": "n", "n": number})
        return (await layer.receive(channel))["n"]

    assert [asyncio.run(once(number)) for number in range(5)] == list(range(5))
