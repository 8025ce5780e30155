"""``python -m bench.presence``: what many members of one group cost: to come, to stay, to be asked for, to go.

The nodes are layers of one process, so what is measured is the layer and its server, not how many cores there are. Each
figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from trunkline import ChannelLayer, layer_from_url
from trunkline.node import Node
from trunkline.presence import Presence

from .contestants import info, postgres_server, redis

Figures = dict[str, float]
#: Calls on their way at once.
_AT_ONCE = 200


async def _each(work: list[Callable[[], Awaitable[Any]]]) -> None:
    for start in range(0, len(work), _AT_ONCE):
        await asyncio.gather(*(call() for call in work[start : start + _AT_ONCE]))


async def _timed(work: Callable[[], Awaitable[Any]], rounds: int) -> tuple[float, Any]:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = await work()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000, result


def _node(layer: ChannelLayer) -> Node:
    return layer._nodes[asyncio.get_running_loop()]


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(url: str, members: int, nodes: int, rounds: int, server: Callable[[], Figures]) -> Figures:
    """All figures of one kind of layer."""
    Presence.beat = 3600.0  # signs of life are shown, and measured, below
    Presence.lease = 7200.0
    layers = [layer_from_url(url) for _ in range(nodes)]
    channels = [await layers[number % nodes].new_channel() for number in range(members)]
    owned = [(layers[number % nodes], channel) for number, channel in enumerate(channels)]
    await _each(
        [lambda layer=layer, channel=channel: layer.group_add("room", channel) for layer, channel in owned]
    )  # type: ignore[misc]
    asker = layer_from_url(url)
    before, rss = server(), _rss()
    began = time.perf_counter()
    await _each(
        [
            lambda layer=layer, channel=channel, number=number: layer.group_add(  # type: ignore[misc]
                "room", channel, presence={"name": f"Ada {number}", "seat": number}, user=f"user-{number}"
            )
            for number, (layer, channel) in enumerate(owned)
        ]
    )
    figures = {"join all, s": time.perf_counter() - began}
    figures["process, bytes a member"] = (_rss() - rss) / members
    after = server()
    figures["server, bytes a member"] = (after["memory"] - before["memory"]) / members
    beats = _node(layers[0])._presence
    assert beats is not None
    await beats._renew()
    at, many = server(), 200  # so many that what asking the server costs does not show
    took, _ = await _timed(beats._renew, many)
    figures["heartbeat of a process, ms"] = took
    if "network" in at:
        figures["heartbeat of a process, bytes"] = (server()["network"] - at["network"]) / many
    figures["presence(), ms"], found = await _timed(lambda: asker.presence("room"), rounds)
    assert len(found) == members, f"{len(found)} of {members} are present"
    figures["presence_count(), ms"], count = await _timed(lambda: asker.presence_count("room"), rounds)
    assert count == (members, members), count
    began = time.perf_counter()
    await _each([lambda layer=layer, channel=channel: layer.forget(channel) for layer, channel in owned])  # type: ignore[misc]
    figures["leave all, s"] = time.perf_counter() - began
    assert await asker.presence_count("room") == (0, 0)
    for layer in (*layers, asker):
        await layer.close()
    return figures


async def unused(rounds: int) -> float:
    """Microseconds of a group_add and a group_discard without a presence, in a group that has a member."""
    layer = layer_from_url("memory://unused")
    stays, comes = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("room", stays)
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(5000):
            await layer.group_add("room", comes)
            await layer.group_discard("room", comes)
        took.append((time.perf_counter() - began) / 5000)
    await layer.close()
    return min(took) * 1e6


def _redis_figures(port: int) -> Figures:
    told = info(port)
    network = int(told["total_net_input_bytes"]) + int(told["total_net_output_bytes"])
    return {"memory": float(told["used_memory"]), "network": float(network)}


def _file_figures(folder: Path) -> Figures:
    """What the pages in use take."""
    found = folder / "layer" / "asgi" / "layer.db"
    with contextlib.closing(sqlite3.connect(found)) as file:
        page, pages, free = (
            file.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
    return {"memory": float(page * (pages - free))}


def _tables_figures(url: str) -> Figures:
    """What the tables of presence take, with what was deleted in them."""
    import psycopg

    sizes = " + ".join(
        f"pg_total_relation_size('trunkline.{table}')" for table in ("keepers", "records", "tagged")
    )
    with psycopg.connect(url) as connection:
        found = connection.execute(f"SELECT {sizes}").fetchone()
    return {"memory": float(found[0] if found else 0)}


def _nothing() -> Figures:
    return {"memory": 0.0}


def _measured(url: str, scale: tuple[int, int, int], server: Callable[[], Figures]) -> Figures:
    return asyncio.run(measure(url, *scale, server))


def _alone(url: str, scale: tuple[int, int, int], server: Callable[[], Figures]) -> Figures:
    """Measure in a process of its own, whose memory tells something."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, url, scale, server).result()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.presence", description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    scale = chosen.members, chosen.nodes, chosen.rounds
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results["embedded"] = _alone(f"embedded://{folder}/layer", scale, partial(_file_figures, folder))
        with redis(folder) as port:
            results["redis"] = _alone(f"redis://127.0.0.1:{port}", scale, partial(_redis_figures, port))
        with postgres_server().running(fsync="on", shared_buffers="128MB") as postgres:
            results["postgres"] = _alone(postgres.url, scale, partial(_tables_figures, postgres.url))
        results["memory"] = _alone("memory://", scale, _nothing)
    print(
        f"{chosen.members:,} members, each a user of its own, in one group; {chosen.nodes} nodes in one process"
    )
    print("\n| | " + " | ".join(results) + " |\n|---|" + "---:|" * len(results))
    for figure in results["redis"]:
        row = [results[kind].get(figure) for kind in results]
        print(f"| {figure} | " + " | ".join("" if value is None else f"{value:,.2f}" for value in row) + " |")
    print(f"\ngroup_add and group_discard without a presence: {asyncio.run(unused(chosen.rounds)):.2f} µs")


if __name__ == "__main__":
    main()
