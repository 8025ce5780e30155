"""Prometheus: what ``stats()`` and ``health()`` tell, as a collector.

Nothing is counted twice and nothing runs between scrapes: a scrape asks the layer. The names are listed in docs/observe.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry
except ImportError as error:
    raise ImportError("metrics need the Prometheus client: pip install 'trunkline[metrics]'") from error

from .layer import ChannelLayer
from .stats import Stats

__all__ = ["TrunklineCollector", "register"]

#: Metric -> what it counts, field of ``Stats``.
_COUNTERS = {
    "trunkline_messages_sent": ("Messages sent to a channel.", "sent"),
    "trunkline_group_messages_sent": ("Messages sent to a group, once each.", "group_sent"),
    "trunkline_messages_delivered": ("Messages put into a mailbox of this process.", "delivered"),
    "trunkline_messages_received": ("Messages handed over by receive().", "received"),
    "trunkline_gaps": ("Times that messages were lost for good.", "gaps"),
}
_GAUGES = {
    "trunkline_channels": ("Channels of this process that are in use.", "channels"),
    "trunkline_groups": ("Groups with a member in this process.", "groups"),
    "trunkline_memberships": ("Memberships of channels of this process.", "memberships"),
    "trunkline_subscriptions": ("Topics that the transport has subscribed to.", "subscriptions"),
    "trunkline_outbox_operations": ("Operations that wait to be sent or answered.", "outbox"),
}
_DROPS = ("expired", "gone", "unreadable", "invalid")
_STATES = {"ok": 1.0, "degraded": 0.5, "down": 0.0}


class TrunklineCollector(Collector):
    """Collects from layers of this process.

    Args:
        layers: The layers, by the value of the label ``layer``.
    """

    def __init__(self, layers: Mapping[str, ChannelLayer]) -> None:
        self._layers = dict(layers)

    def describe(self) -> Iterable[Metric]:
        """The metrics without values: registering looks at no layer."""
        return _Families().all

    def collect(self) -> Iterable[Metric]:
        """One look at every layer; no I/O."""
        families = _Families()
        for name, layer in self._layers.items():
            families.add(name, layer.stats())
            health = layer.health()
            families.up.add_metric([name], _STATES[health.state])
            for server in health.servers:
                families.server_up.add_metric([name, server.name], float(server.up))
                if server.silent is not None:
                    families.silent.add_metric([name, server.name], server.silent)
        return families.all


class _Families:
    """One scrape's metrics."""

    def __init__(self) -> None:
        layer, channels, server = ["layer"], ["layer", "channels"], ["layer", "server"]
        self.counters = {
            field: CounterMetricFamily(name, about, labels=layer)
            for name, (about, field) in _COUNTERS.items()
        }
        self.gauges = {
            field: GaugeMetricFamily(name, about, labels=layer) for name, (about, field) in _GAUGES.items()
        }
        self.dropped = CounterMetricFamily(
            "trunkline_messages_dropped",
            "Messages that a receiver did not get; channels is the pattern, empty where none is known.",
            labels=["layer", "channels", "reason"],
        )
        self.waiting = GaugeMetricFamily(
            "trunkline_messages_waiting", "Messages waiting in mailboxes of this process.", labels=channels
        )
        self.deepest = GaugeMetricFamily(
            "trunkline_channel_depth_max", "Messages waiting on the fullest channel.", labels=channels
        )
        self.oldest = GaugeMetricFamily(
            "trunkline_oldest_message_seconds", "Age of the oldest waiting message.", labels=channels
        )
        self.up = GaugeMetricFamily(
            "trunkline_up", "Health of the layer: 1 ok, 0.5 degraded, 0 down.", labels=layer
        )
        self.server_up = GaugeMetricFamily(
            "trunkline_server_up", "Whether the link to a server is up.", labels=server
        )
        self.silent = GaugeMetricFamily(
            "trunkline_server_silence_seconds", "Time since a server's last sign of life.", labels=server
        )

    @property
    def all(self) -> list[Metric]:
        some = [self.dropped, self.waiting, self.deepest, self.oldest, self.up, self.server_up, self.silent]
        return [*self.counters.values(), *self.gauges.values(), *some]

    def add(self, layer: str, stats: Stats) -> None:
        for field, counter in self.counters.items():
            counter.add_metric([layer], getattr(stats, field))
        for field, gauge in self.gauges.items():
            gauge.add_metric([layer], getattr(stats, field))
        for reason in _DROPS:
            self.dropped.add_metric([layer, "", reason], getattr(stats, reason))
        for name, pattern in stats.patterns.items():
            self.dropped.add_metric([layer, name, "missed"], pattern.missed)
            self.dropped.add_metric([layer, name, "refused"], pattern.refused)
            self.waiting.add_metric([layer, name], pattern.waiting)
            self.deepest.add_metric([layer, name], pattern.deepest)
            self.oldest.add_metric([layer, name], pattern.oldest)


def register(
    layers: Mapping[str, ChannelLayer] | ChannelLayer, registry: CollectorRegistry = REGISTRY
) -> TrunklineCollector:
    """Have a registry collect from these layers: a dict by name, or one, which is called ``default``.

    Returns:
        The collector, for ``registry.unregister``.

    Raises:
        ValueError: The registry already has such a collector.
    """
    found = {"default": layers} if isinstance(layers, ChannelLayer) else layers
    collector = TrunklineCollector(found)
    registry.register(collector)
    return collector
