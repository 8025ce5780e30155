"""``trunkline top``: every process of the deployment on one screen, or as JSON.

Rules of this room: what is shown comes from ``layer.survey()``; ``rich`` is imported when a screen is drawn, not for JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import TransportUnavailable
from ..stats import Pattern, Report, Stats, slowest

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["once", "watch"]

_COLOURS = {"ok": "green", "degraded": "yellow", "down": "red"}


async def once(layer: Any, seconds: float, as_json: bool, say: Callable[[str], object]) -> int:
    """Print one look; exit code 1 when a process is down."""
    reports = await _look(layer, seconds)
    if as_json:
        content = {"at": time.time(), "nodes": [report.asdict() for report in reports]}
        say(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for table in _tables(reports, {}, 0.0):
            console.print(table)
    return int(any(report.health.state == "down" for report in reports))


async def watch(layer: Any, seconds: float, interval: float) -> int:
    """Show all processes on a screen of their own until Ctrl-C."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    before: dict[str, Stats] = {}
    looked = time.monotonic()
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            try:
                reports = await _look(layer, seconds)
            except TransportUnavailable as error:
                live.update(Text(f"cannot ask: {error}", style="red"), refresh=True)
            else:
                live.update(Group(*_tables(reports, before, began - looked)), refresh=True)
                before, looked = {report.node: report.stats for report in reports}, began
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - began)))


async def _look(layer: Any, seconds: float) -> list[Report]:
    """What all nodes report, but for the one that asks."""
    me = socket.gethostname(), os.getpid()
    reports: list[Report] = await layer.survey(seconds)
    others = [report for report in reports if (report.host, report.pid) != me]
    return sorted(others, key=lambda report: (report.host, report.program, report.pid, report.node))


def _tables(reports: Sequence[Report], before: dict[str, Stats], seconds: float) -> Iterable[RenderableType]:
    from rich.text import Text

    total = sum((report.stats for report in reports), Stats())
    drops, gaps = total.dropped, total.gaps
    yield Text(
        f"{len(reports)} nodes · {total.waiting} waiting · {drops} dropped · {gaps} gaps · "
        f"{time.strftime('%H:%M:%S')} · Ctrl-C ends"
    )
    if not reports:
        yield Text("nobody else has this layer open", style="yellow")
        return
    yield _nodes(reports, before, seconds)
    for report in reports:
        for reason in report.health.reasons:
            yield Text(f"{report.program} {report.pid}: {reason}", style=_COLOURS[report.health.state])
    if total.patterns:
        yield _patterns(total.patterns)
    if total.slowest:
        yield _slow(reports)


def _table(title: str, names: Iterable[str], rows: Iterable[Sequence[Any]], words: int = 1) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), header_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < words else "right", no_wrap=number > 0)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def _nodes(reports: Sequence[Report], before: dict[str, Stats], seconds: float) -> RenderableType:
    from rich.text import Text

    def rate(report: Report, name: str) -> str:
        then = before.get(report.node)
        if then is None or seconds <= 0:
            return "-"
        return f"{max(0, getattr(report.stats, name) - getattr(then, name)) / seconds:.0f}"

    rows = []
    for report in reports:
        stats, state = report.stats, report.health.state
        rows.append(
            [
                f"{report.program} {report.pid}@{report.host}",
                Text(state, style=_COLOURS[state]),
                stats.channels,
                stats.groups,
                *(rate(report, name) for name in ("sent", "group_sent", "delivered", "received")),
                stats.waiting,
                stats.outbox,
                stats.dropped,
                stats.gaps,
            ]
        )
    names = ("process", "state", "chan", "grp", "send/s", "gsend/s", "deliv/s", "recv/s")
    return _table("Processes", (*names, "wait", "outbox", "drop", "gaps"), rows, 2)


def _patterns(patterns: dict[str, Pattern]) -> RenderableType:
    rows = [
        [name, each.channels, each.waiting, each.deepest, f"{each.oldest:.1f}", each.missed, each.refused]
        for name, each in sorted(patterns.items())
    ]
    names = ("pattern", "channels", "waiting", "deepest", "oldest s", "missed", "refused")
    return _table("Channels by pattern", names, rows)


def _slow(reports: Sequence[Report]) -> RenderableType:
    where = {each.channel: report for report in reports for each in report.stats.slowest}
    rows = [
        [each.channel, f"{each.waiting}/{each.capacity}", f"{each.oldest:.1f}", where[each.channel].pid]
        for each in slowest([each for report in reports for each in report.stats.slowest])
    ]
    return _table("Slowest channels", ("channel", "waiting", "oldest s", "process"), rows)
