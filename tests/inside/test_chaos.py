"""The layer that is unkind on purpose: the same way each time, on every transport, and never more than it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from trunkline import (
    ChannelFull,
    ChannelLayer,
    ConfigurationError,
    InvalidMessage,
    InvalidName,
    LayerClosed,
    TransportUnavailable,
    layer_from_url,
)
from trunkline.layers import InMemoryChannelLayer
from trunkline.opening import make_layer
from trunkline.testing import ChaosLayer, eventually
from trunkline.testing.layer_conformance import LayerConformance

Layers = Callable[..., ChannelLayer]


class TestAKindOne(LayerConformance):
    """With no chance of anything it keeps every promise of a layer."""

    def make_layer(self, prefix: str, on_gap: Any = None, **options: Any) -> ChannelLayer:
        return ChaosLayer(InMemoryChannelLayer(hub="chaos", prefix=prefix, on_gap=on_gap, **options))


@pytest.fixture
def chaos(layers: Layers) -> Any:
    """Makes one, of the transport under test; it is closed with the test."""
    made: list[ChaosLayer] = []

    def make(**options: Any) -> ChaosLayer:
        made.append(ChaosLayer(layers(capacity=1000), **options))
        return made[-1]

    yield make
    for layer in made:
        layer.sync.close()


async def drain(layer: ChannelLayer, channel: str) -> list[int]:
    """The numbers that came before a fence."""
    numbers = []
    while (message := await layer.receive(channel))["type"] != "fence":
        numbers.append(message["number"])
    return numbers


async def test_what_is_dropped_is_on_record(layers: Layers, chaos: Any) -> None:
    """What was sent is what came and what was dropped; in order, none twice."""
    receiver, sender = layers(capacity=1000), chaos(seed=7, drop=0.3)
    channel = await receiver.new_channel()
    await receiver.group_add("room", channel)
    for number in range(200):
        await sender.group_send("room", {"type": "x", "number": number})
        await sender.send(channel, {"type": "x", "number": 1000 + number})
    await receiver.send(
        channel, {"type": "fence"}
    )  # of another sender: all of ours may still be on their way
    came: list[int] = []
    lost = {message["number"] for _, message in sender.dropped}
    async with asyncio.timeout(30):
        while len(came) < 400 - len(lost):
            message = await receiver.receive(channel)
            if message["type"] != "fence":
                came.append(message["number"])
    assert sorted([*came, *lost]) == [*range(200), *range(1000, 1200)]
    for share in ([n for n in came if n < 1000], [n for n in came if n >= 1000]):
        assert share == sorted(share)
    assert 70 < len(lost) < 170
    assert {address for address, _ in sender.dropped} == {"room", channel}


async def test_one_seed_one_fate(chaos: Any) -> None:
    """Whoever else sends meanwhile, and whatever the random part of a name; another seed decides otherwise."""

    async def run(seed: int, others: bool) -> list[int]:
        layer = chaos(seed=seed, drop=0.5)
        channel = await layer.new_channel()
        for number in range(50):
            await layer.send(channel, {"type": "x", "number": number})
            if others:
                await layer.group_send("elsewhere", {"type": "x", "number": -1})
        return [message["number"] for address, message in layer.dropped if address == channel]

    first = await run(7, False)
    assert first
    assert await run(7, True) == first
    assert await run(8, False) != first
    unseeded = chaos(drop=0.5)
    assert str(unseeded.seed) in repr(unseeded)


async def test_full(chaos: Any) -> None:
    """A send is refused, nothing was sent, it is counted; a group send is never refused."""
    layer = chaos(seed=1, full=1.0)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    with pytest.raises(ChannelFull, match="on purpose"):
        await layer.send(channel, {"type": "x"})
    await layer.group_send("room", {"type": "fence"})
    assert await drain(layer, channel) == []
    assert layer.stats().refused == 1
    assert [mishap.what for mishap in layer.mishaps] == ["full"]


async def test_delay(chaos: Any) -> None:
    """Each send takes its time, as recorded; the order stays."""
    layer = chaos(seed=1, delay=(0.01, 0.03))
    channel = await layer.new_channel()
    began = asyncio.get_running_loop().time()
    for number in range(5):
        await layer.send(channel, {"type": "x", "number": number})
    took = asyncio.get_running_loop().time() - began
    await layer.send(channel, {"type": "fence"})
    assert await drain(layer, channel) == [0, 1, 2, 3, 4]
    asked = [mishap.seconds for mishap in layer.mishaps if mishap.what == "delay"]
    assert len(asked) == 6
    assert all(0.01 <= seconds <= 0.03 for seconds in asked)
    assert took >= sum(asked[:5]) * 0.9


async def test_an_outage(layers: Layers, chaos: Any) -> None:
    """Sends and memberships fail, what others send waits and comes afterwards in order, health says why."""
    other, cut = layers(), chaos()
    channel = await cut.new_channel()
    await cut.group_add("room", channel)
    assert cut.health().state == "ok"
    with cut.outage():
        for call in (
            cut.send(channel, {"type": "x"}),
            cut.group_send("room", {"type": "x"}),
            cut.group_add("room2", channel),
            cut.group_discard("room", channel),
        ):
            with pytest.raises(TransportUnavailable, match="on purpose"):
                await call
        assert cut.health().state == "down"
        assert "on purpose" in cut.health().reasons[0]
        job = asyncio.create_task(cut.receive("jobs"))
        await other.send("jobs", {"type": "job"})
        for number in range(3):
            await other.group_send("room", {"type": "x", "number": number})
        waiting = asyncio.create_task(cut.receive(channel))
        (node,) = cut._nodes.values()
        await eventually(lambda: len(node._held) == 3, 10)
        assert not waiting.done()
        assert not job.done()
    async with asyncio.timeout(20):
        assert (await waiting)["number"] == 0
        assert (await job)["type"] == "job"
        await cut.group_send("room", {"type": "fence"})
        assert await drain(cut, channel) == [1, 2]
    assert cut.health().state == "ok"


async def test_leases_and_delays(layers: Layers, chaos: Any) -> None:
    """A delayed send has a fate like any other, and a lease waits for the end of an outage."""
    layer = chaos(seed=1, drop=1.0)
    if "leases" not in layer.extensions:
        pytest.skip("this transport has no leases")
    await layer.send("jobs", {"type": "x"}, delay=0.01)
    assert len(layer.dropped) == 1
    with layer.outage():
        job = asyncio.create_task(layer.lease("jobs"))
        await layers().send("jobs", {"type": "job"})
        with pytest.raises(TransportUnavailable):
            await layer.send("jobs", {"type": "x"}, delay=0.01)
        assert not job.done()
    async with asyncio.timeout(20):
        assert (await job).message["type"] == "job"


async def test_outages_by_chance_end(chaos: Any) -> None:
    """A sender that tries again gets everything through, once."""
    layer = chaos(seed=3, cut=0.2, outage=(0.001, 0.01))
    channel = await layer.new_channel()
    refused = 0
    for number in range(60):
        while True:
            try:
                await layer.send(channel, {"type": "x", "number": number})
                break
            except TransportUnavailable:
                refused += 1
                await asyncio.sleep(0.005)
    (node,) = layer._nodes.values()
    await eventually(lambda: not layer._chaos.outages and not node._held, 10)
    assert refused > 0
    assert layer.stats().waiting == 60
    assert [(await layer.receive(channel))["number"] for _ in range(60)] == list(range(60))


async def test_closing_in_an_outage(chaos: Any) -> None:
    """Whoever waits is told."""
    layer = chaos()
    await layer.new_channel()
    with layer.outage():
        job = asyncio.create_task(layer.receive("jobs"))
        await asyncio.sleep(0)
        await layer.close()
        with pytest.raises(LayerClosed):
            await job


async def test_a_gap_that_is_told(chaos: Any) -> None:
    """Consumers that watch get their event."""
    layer = chaos()
    channel = await layer.new_channel()
    await layer.watch_gaps(channel)
    await layer.group_add("room", channel)
    layer.gap("room")
    assert await layer.receive(channel) == {
        "type": "layer.gap",
        "group": "room",
        "reason": "lost on purpose",
    }


def test_without_a_loop(chaos: Any) -> None:
    """A send has one fate, by whatever road it comes."""
    layer = chaos(seed=1, drop=1.0)
    async_to_sync(layer.group_send)("room", {"type": "x"})
    layer.sync.send("jobs", {"type": "x"})
    assert [address for address, _ in layer.dropped] == ["room", "jobs"]


async def test_mistakes_stay_mistakes(chaos: Any) -> None:
    """What could not have been sent is an error even when it would have been dropped."""
    layer = chaos(drop=1.0)
    with pytest.raises(InvalidName):
        await layer.send("two words", {"type": "x"})
    with pytest.raises(InvalidMessage):
        await layer.group_send("room", {"type": object()})
    assert layer.mishaps == []


def test_from_settings_and_urls() -> None:
    """As a BACKEND, as a URL, and with what is wrong named."""
    spec = {
        "BACKEND": "trunkline.testing.ChaosLayer",
        "CONFIG": {"layer": "memory://?capacity=5", "seed": 7, "drop": 0.1, "delay": [0, 0.05]},
    }
    made = make_layer("default", spec)
    assert isinstance(made, ChaosLayer)
    assert (made.seed, made.capacity) == (7, 5)
    inner = {"BACKEND": "trunkline.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 6}}
    assert ChaosLayer(inner).capacity == 6
    url = "chaos+memory://hub?drop=0.5&seed=9&delay=0.001,0.002&capacity=8"
    by_url = layer_from_url(url, full=0.25)
    assert isinstance(by_url, ChaosLayer)
    assert (by_url.seed, by_url.capacity, by_url._chaos._full) == (9, 8, 0.25)
    assert by_url._chaos._delay == (0.001, 0.002)
    for wrong, naming in (
        ("chaos+memory://?drop=2", "drop"),
        ("chaos+memory://?delay=2,1", "delay"),
        ("chaos+memory://?cut=often", "cut"),
        ("chaos+memory://?seed=x", "seed"),
        ("chaos+memory://?dorp=0.1", "dorp"),
        ("chaos+memroy://", "did you mean 'memory'"),
    ):
        with pytest.raises(ConfigurationError, match=naming):
            layer_from_url(wrong)
    for options in ({"drop": True}, {"delay": (1, 2, 3)}, {"outage": "x"}, {"seed": 1.5}, {"full": -1}):
        with pytest.raises(ConfigurationError):
            ChaosLayer("memory://", **options)  # type: ignore[arg-type]
