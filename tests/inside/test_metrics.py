"""What Prometheus scrapes, on every transport."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trunkline import ChannelFull, ChannelLayer, metrics

Layers = Callable[..., ChannelLayer]


def scrape(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Samples as (name, label values in the order of their names) -> value."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_scrape(layers: Layers) -> None:
    """Counters, drops by pattern and reason, depths, and whether the servers are there."""
    layer = layers(channel_capacity={"slow.*": 1})
    registry = CollectorRegistry()
    collector = metrics.register({"chat": layer}, registry)
    slow = await layer.new_channel("slow")
    await layer.group_add("room", slow)
    await layer.group_send("room", {"type": "x"})
    await layer.group_send("room", {"type": "x"})
    await layer.send(slow, {"type": "x"})
    with pytest.raises(ChannelFull):
        await layer.send(slow, {"type": "x"})

    found = scrape(registry)
    assert found["trunkline_messages_sent_total", "chat"] == 2
    assert found["trunkline_group_messages_sent_total", "chat"] == 2
    assert found["trunkline_messages_dropped_total", "slow.*", "chat", "missed"] == 1
    assert found["trunkline_messages_dropped_total", "slow.*", "chat", "refused"] == 1
    assert found["trunkline_messages_dropped_total", "", "chat", "expired"] == 0
    assert found["trunkline_messages_waiting", "slow.*", "chat"] == 2
    assert found["trunkline_channel_depth_max", "slow.*", "chat"] == 2
    assert found["trunkline_groups", "chat"] == found["trunkline_channels", "chat"] == 1
    assert found["trunkline_up", "chat"] == 1
    (server,) = layer.health().servers
    assert found["trunkline_server_up", "chat", server.name] == 1
    assert found["trunkline_server_silence_seconds", "chat", server.name] < 15
    await layer.receive(slow)
    assert scrape(registry)["trunkline_messages_received_total", "chat"] == 1
    registry.unregister(collector)
    assert scrape(registry) == {}


def test_registering(layers: Layers) -> None:
    """Looks at no layer; one layer is called default; twice is refused."""
    layer, registry = layers(), CollectorRegistry()
    metrics.register(layer, registry)
    assert layer._nodes == {}
    assert scrape(registry)["trunkline_up", "default"] == 1
    with pytest.raises(ValueError, match="trunkline"):
        metrics.register(layer, registry)
