"""What the optional powers cost a send, used and unused: ``python -m bench.powers [--rounds N] [LAYER …]``.

One process, a group of 10 members; each figure is the CPU time of one ``group_send`` and its ten ``receive``, in µs, the
median of the rounds. The first column is a layer without any power, the second one that has them all and uses none.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from trunkline import layer_from_url

from .contestants import BOUNDS, place

_COUNT = 2000
_POWERS: dict[str, Any] = {
    "history": {"kept.*": {"size": 100, "seconds": 60}},
    "overflow": {"never.*": "drop oldest"},
    "latest_only": ["latest.*"],
}
_LAYERS = {
    "memory": ("nothing", "memory://"),
    "embedded": ("folder", "embedded://{}/layer"),
    "redis": ("redis", "redis://127.0.0.1:{}/0"),
}
Send = Callable[[Any, str, dict[str, Any], int, str], Awaitable[None]]


async def _plain(layer: Any, group: str, message: dict[str, Any], n: int, other: str) -> None:
    await layer.group_send(group, message)


async def _exclude(layer: Any, group: str, message: dict[str, Any], n: int, other: str) -> None:
    await layer.group_send(group, message, exclude=other)


async def _id(layer: Any, group: str, message: dict[str, Any], n: int, other: str) -> None:
    await layer.group_send(group, message, id=f"{other} {n}")


async def _several(layer: Any, group: str, message: dict[str, Any], n: int, other: str) -> None:
    await layer.groups_send([group, "nobody"], message)


async def _play(layer: Any, group: str, send: Send) -> float:
    channels = [await layer.new_channel() for _ in range(10)]
    for channel in channels:
        await layer.group_add(group, channel)
    message = {"type": "chat.message", "text": "x" * 100}
    other = await layer.new_channel()
    started = time.process_time()
    for n in range(_COUNT):
        await send(layer, group, message, n, other)
        for channel in channels:
            await layer.receive(channel)
    used = time.process_time() - started
    for channel in channels:
        await layer.forget(channel)
    return used / _COUNT * 1e6


async def _measure(name: str, rounds: int) -> dict[str, float]:
    needs, url = _LAYERS[name]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with place(needs) as here:
            bare, full = (layer_from_url(url.format(here.where), **BOUNDS, **more) for more in ({}, _POWERS))
            rows: list[tuple[str, Any, str, Send]] = [
                ("none", bare, "plain", _plain),
                ("unused", full, "plain", _plain),
                ("exclude", full, "plain", _exclude),
                ("id", full, "plain", _id),
                ("groups_send to 2", full, "plain", _several),
                ("latest_only", full, "latest.a", _plain),
                ("history", full, "kept.a", _plain),
            ]
            for title, layer, group, send in rows:
                found.setdefault(title, []).append(await _play(layer, group, send))
            await bare.close()
            await full.close()
    return {title: statistics.median(times) for title, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layers", nargs="*", help=f"of {', '.join(_LAYERS)}; all when none is named")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.layers or _LAYERS:
        figures = asyncio.run(_measure(name, options.rounds))
        print(f"{name:10}", "  ".join(f"{title} {value:.1f}" for title, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
