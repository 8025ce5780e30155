"""`trunkline doctor redis+cluster://…`: is the cluster whole, what happens to it when a master dies.

Rules of this room: here is what concerns the cluster; each master is then examined like any server, by ``doctor``.
"""

from __future__ import annotations

from ...errors import ConfigurationError, TransportUnavailable
from ...transport import Finding
from .cluster import Layout, ask_dialect, ask_layout
from .connection import ReplyError, connect
from .diagnosis import why_unreachable
from .hosts import Host
from .topology import SLOTS

__all__ = ["examine_cluster"]


async def examine_cluster(host: Host, deadline: float) -> tuple[list[Host], list[Finding]]:
    """What is to be said about the cluster; and its masters, to be examined one by one."""
    found: list[Finding] = []
    layout: Layout | None = None
    for seed in host.seeds:
        try:
            named, findings = await _ask(seed, deadline, first=layout is None)
        except ConfigurationError as error:
            found.append(Finding("error", str(error), "see docs/cluster.md"))
        except TransportUnavailable as error:
            why = why_unreachable(seed, error)
            found.append(Finding("error" if len(host.seeds) == 1 else "warning", why.what, why.fix))
        else:
            if layout is None:
                layout, found = named, [*found, *findings]
    if layout is None:
        found.append(
            Finding("error", f"nobody tells who has what in {host.address}", "name nodes that are up")
        )
        return [], found
    return list(layout.replicas), [*_whole(layout), *found, *_replicas(layout)]


async def _ask(seed: Host, deadline: float, *, first: bool) -> tuple[Layout, list[Finding]]:
    line = await connect(seed, name="trunkline-doctor", deadline=deadline, on_lost=lambda error: None)
    try:
        layout = await ask_layout(line, seed)
        if not first:
            return layout, []
        dialect = await ask_dialect(line)
        settings = {}
        for name in ("cluster-require-full-coverage", "cluster-allow-pubsubshard-when-down"):
            (reply,) = await line.call(("CONFIG", "GET", name))
            if isinstance(reply, list) and not isinstance(reply, ReplyError) and len(reply) == 2:
                settings[name] = reply[1].decode(errors="replace")
    finally:
        line.drop()
    if dialect.sharded:
        found = [Finding("ok", "pub/sub stays within a shard (Redis 7, Valkey)")]
    else:
        what = "no sharded pub/sub: every node gets a copy of every message"
        found = [Finding("warning", what, "use Redis 7 or Valkey")]
    return layout, [*found, *_settings(settings)]


def _settings(settings: dict[str, str]) -> list[Finding]:
    found = []
    if settings.get("cluster-require-full-coverage") == "yes":
        what = "cluster-require-full-coverage yes: when one master is gone without a replica, the others refuse too"
        found.append(Finding("warning", what, "CONFIG SET cluster-require-full-coverage no, on every node"))
    if settings.get("cluster-allow-pubsubshard-when-down") == "no":
        what = (
            "cluster-allow-pubsubshard-when-down no: while the cluster is not whole, subscribing is refused"
        )
        found.append(Finding("ok", what))
    if not settings:
        found.append(Finding("ok", "CONFIG is forbidden: cluster-require-full-coverage cannot be told"))
    return found


def _whole(layout: Layout) -> list[Finding]:
    masters, replicas = len(layout.replicas), len(layout.nodes) - len(layout.replicas)
    what = f"{masters} masters, {replicas} replicas, {layout.covered} of {SLOTS} slots have a master"
    if layout.covered < SLOTS:
        return [
            Finding(
                "error", what, f"redis-cli --cluster fix {layout.nodes[0].address}" if layout.nodes else ""
            )
        ]
    if not layout.well:
        return [
            Finding(
                "error",
                f"{what}, but the cluster calls itself down",
                "look for nodes that fail: CLUSTER NODES",
            )
        ]
    return [Finding("ok", what)]


def _replicas(layout: Layout) -> list[Finding]:
    return [
        Finding(
            "warning",
            f"master {master.address} has no replica: when it is gone, so is its share of names",
            "add one: redis-cli --cluster add-node … --cluster-slave",
        )
        for master, replicas in layout.replicas.items()
        if not replicas
    ]
