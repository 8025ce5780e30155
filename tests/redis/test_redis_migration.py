"""Beside channels_redis on one server, as while an application changes over."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from servers import Server
from trunkline.layers import RedisChannelLayer

theirs_core = pytest.importorskip("channels_redis.core", reason="needs channels_redis")
theirs_pubsub = pytest.importorskip("channels_redis.pubsub")


async def close(layer: Any) -> None:
    await (layer.close() if isinstance(layer, RedisChannelLayer) else layer.flush())


@pytest.mark.parametrize("kind", ["core", "pubsub"])
async def test_both_on_one_server_do_not_meet(server: Server, prefix: str, kind: str) -> None:
    """Same server, database, prefix and names: neither hears the other, takes its jobs or deletes what it keeps."""
    made = theirs_core if kind == "core" else theirs_pubsub
    config: dict[str, Any] = {"hosts": [server.url], "prefix": prefix}
    ours = RedisChannelLayer(**config)
    their: Any = (made.RedisChannelLayer if kind == "core" else made.RedisPubSubChannelLayer)(**config)
    channels = [await layer.new_channel() for layer in (ours, their)]
    for layer, channel in zip((ours, their), channels, strict=True):
        await layer.group_add("chat", channel)
    for number, layer in enumerate((ours, their)):
        await layer.group_send("chat", {"type": "x", "from": number})
        await layer.group_send("chat", {"type": "fence"})
    async with asyncio.timeout(20):
        for number, (layer, channel) in enumerate(zip((ours, their), channels, strict=True)):
            assert await layer.receive(channel) == {"type": "x", "from": number}
            assert await layer.receive(channel) == {"type": "fence"}
    await ours.send("jobs", {"type": "ours"})
    if kind == "core":
        await their.send("jobs", {"type": "theirs"})
        await ours.flush()
        async with asyncio.timeout(20):
            assert await their.receive("jobs") == {"type": "theirs"}
        await ours.send("jobs", {"type": "ours"})
    async with asyncio.timeout(20):
        assert await ours.receive("jobs") == {"type": "ours"}
    await close(their)
    await close(ours)


async def test_their_flush_costs_us_a_queue_only(server: Server, prefix: str) -> None:
    """flush of channels_redis deletes all keys that begin with its prefix, ours too: our groups go on by themselves."""
    ours = [RedisChannelLayer([server.url], prefix=prefix) for _ in range(2)]
    their = theirs_core.RedisChannelLayer(hosts=[server.url], prefix=prefix)
    channel = await ours[0].new_channel()
    await ours[0].group_add("chat", channel)
    await their.flush()
    await ours[1].group_send("chat", {"type": "still here"})
    await ours[1].send(channel, {"type": "and directly"})
    async with asyncio.timeout(20):
        assert [(await ours[0].receive(channel))["type"] for _ in range(2)] == ["still here", "and directly"]
    for layer in ours:
        await layer.close()


async def test_changing_over_without_a_gap(server: Server, prefix: str) -> None:
    """While every sender sends to both layers, each consumer hears each message once, whichever layer it lives on."""
    config: dict[str, Any] = {"hosts": [server.url], "prefix": prefix}
    old, new = theirs_core.RedisChannelLayer(**config), RedisChannelLayer(**config)

    async def announce(message: dict[str, Any]) -> None:
        for layer in (old, new):
            await layer.group_send("chat", message)

    before, after = await old.new_channel(), await new.new_channel()
    await old.group_add("chat", before)
    await new.group_add("chat", after)
    for number in range(20):
        await announce({"type": "x", "n": number})
    async with asyncio.timeout(20):
        for layer, channel in ((old, before), (new, after)):
            assert [(await layer.receive(channel))["n"] for _ in range(20)] == list(range(20))
    await close(old)
    await close(new)


def test_their_settings_are_ours() -> None:
    """Every keyword of channels_redis, with its default there, makes a layer here."""
    config = {
        name: parameter.default
        for layer in (theirs_core.RedisChannelLayer, theirs_pubsub.RedisPubSubLoopLayer)
        for name, parameter in inspect.signature(layer.__init__).parameters.items()
        if parameter.default is not parameter.empty and name != "channel_layer"
    }
    assert len(config) >= 9
    layer = RedisChannelLayer(**config)
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (60, 86400, 100)
