"""What an event costs on its way through one of Django Channels' own consumers: ``python -m bench.dispatch [LAYER …]``.

One process, a group of 50 ``AsyncWebsocketConsumer``; each figure is the CPU time from one ``group_send`` to the frame that
a consumer sends, per consumer, in µs: the least and the median of the rounds. ``nothing`` is the floor, a list and a future
for each channel: what is above it is the layer's, the rest is Channels'. ``--without-hop`` leaves out the thread that
Channels asks before each handler to close old database connections.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from .contestants import CONTESTANTS, place

_SOCKETS, _MESSAGES = 50, 20
_LAYERS = ("nothing", "memory", "embedded", "redis", "channels-memory", "pubsub", "core")


class Nothing:
    """As little as a layer can be: one process, no copies, no bounds, no expiry, nothing that could fail."""

    def __init__(self) -> None:
        self._members: dict[str, list[str]] = {}
        self._boxes: dict[str, deque[dict[str, Any]]] = {}
        self._waiters: dict[str, asyncio.Future[None]] = {}

    async def new_channel(self) -> str:
        name = f"channel{len(self._boxes)}"
        self._boxes[name] = deque()
        return name

    async def group_add(self, group: str, channel: str) -> None:
        self._members.setdefault(group, []).append(channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        for channel in self._members[group]:
            self._boxes[channel].append(message)
            waiter = self._waiters.pop(channel, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    async def receive(self, channel: str) -> dict[str, Any]:
        box = self._boxes[channel]
        while not box:
            waiter = self._waiters[channel] = asyncio.get_running_loop().create_future()
            await waiter
        return box.popleft()


class Room:
    """The sockets of a room, as their server sees them."""

    def __init__(self, layer: Any) -> None:
        from channels.generic.websocket import AsyncWebsocketConsumer

        class Chat(AsyncWebsocketConsumer):  # type: ignore[misc]
            channel_layer_alias = "bench"

            async def connect(self) -> None:
                await self.channel_layer.group_add("room", self.channel_name)
                await self.accept()

            async def chat_message(self, event: dict[str, Any]) -> None:
                await self.send(text_data=event["message"])

        self._layer = layer
        self._open = self._sent = self._wanted = 0
        self._reached = asyncio.Event()
        self._tasks = [asyncio.create_task(self._serve(Chat.as_asgi())) for _ in range(_SOCKETS)]

    async def _serve(self, application: Any) -> None:
        coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        coming.put_nowait({"type": "websocket.connect"})
        await application({"type": "websocket", "path": "/"}, coming.get, self._send)

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.accept":
            self._open += 1
        else:
            self._sent += 1
        if max(self._open - _SOCKETS, self._sent - self._wanted) == 0:
            self._reached.set()

    async def opened(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 30)

    async def play(self) -> float:
        """Send some messages, one after the other; returns the CPU time of each at each socket, in µs."""
        began = time.process_time()
        for _ in range(_MESSAGES):
            self._wanted = self._sent + _SOCKETS
            self._reached.clear()
            await self._layer.group_send("room", {"type": "chat.message", "message": "x" * 100})
            await asyncio.wait_for(self._reached.wait(), 30)
        return (time.process_time() - began) / (_MESSAGES * _SOCKETS) * 1e6

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _measure(name: str, where: str, rounds: int, hop: bool) -> list[float]:
    import channels.consumer
    import channels.layers
    from django.conf import settings

    import django

    settings.configure(INSTALLED_APPS=[], DATABASES={})
    django.setup()
    if not hop:

        async def stay() -> None:
            pass

        channels.consumer.aclose_old_connections = stay
    layer = Nothing() if name == "nothing" else CONTESTANTS[name].make(where)[0]
    channels.layers.channel_layers.backends["bench"] = layer
    room = Room(layer)
    await room.opened()
    await room.play()
    found = [await room.play() for _ in range(rounds)]
    await room.close()
    for method in ("close_pools", "close"):
        if method in dir(layer):
            await getattr(layer, method)()
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dispatch", description=__doc__)
    parser.add_argument("layers", nargs="*", help=f"of {', '.join(_LAYERS)}; all when none is named")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--without-hop", action="store_true")
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.at is not None:
        (name,) = options.layers
        found = asyncio.run(_measure(name, options.at, options.rounds, not options.without_hop))
        print(f"{name:16} least {min(found):6.1f}  median {statistics.median(found):6.1f}", flush=True)
        return
    for name in options.layers or _LAYERS:
        needs = CONTESTANTS[name].needs if name in CONTESTANTS else "nothing"
        with place(needs) as here:  # each in a process of its own: Django is set up once
            again = [name, "--at", here.where, "--rounds", str(options.rounds)]
            if options.without_hop:
                again.append("--without-hop")
            subprocess.run(
                [sys.executable, "-m", "bench.dispatch", *again], cwd=Path(__file__).parents[1], check=True
            )


if __name__ == "__main__":
    main()
