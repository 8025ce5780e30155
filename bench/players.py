"""A process that uses a layer as it is told: the program at the far end of the pipes of ``processes.py``.

Only ``new_channel``, ``group_add``, ``group_send``, ``send`` and ``receive`` are called, by the same code for all layers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import resource
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from asgiref.sync import async_to_sync

from .contestants import CONTESTANTS

__all__ = ["LONGEST", "STRIDE", "faults", "pooled"]

#: A message's number is its sender's times this, plus its place among that sender's messages.
STRIDE = 10**9
#: Bytes of the longest request or answer.
LONGEST = 1 << 28
#: Seconds a sender waits before it tries a full channel again.
_RETRY = 0.001


def message(number: int, size: int) -> dict[str, Any]:
    return {
        "type": "chat.message",
        "room_id": 12,
        "username": "alice",
        "n": number,
        "message": "x" * size,
    }


def faults(numbers: Iterable[int], expected: set[int]) -> list[int]:
    """How many of the expected were lost, how many came twice or from an earlier run, how many out of order."""
    newest: dict[int, int] = {}
    seen: set[int] = set()
    doubled = reordered = 0
    for number in numbers:
        if number in seen or number not in expected:
            doubled += 1
            continue
        seen.add(number)
        sender = number // STRIDE
        reordered += number < newest.get(sender, 0)
        newest[sender] = max(number, newest.get(sender, 0))
    return [len(expected) - len(seen), doubled, reordered]


def pooled(heard: list[list[int]], expected: set[int]) -> list[int]:
    """The same for several channels that share the messages: order holds on each of them, not between them."""
    lost, doubled, _ = faults(itertools.chain(*heard), expected)
    return [lost, doubled, sum(faults(numbers, set(numbers))[2] for numbers in heard)]


class Actor:
    """What a part does in its process."""

    def __init__(self, layer: Any, full: type[Exception]) -> None:
        self._layer = layer
        self._full = full
        self._heard: dict[str, array[int]] = {}
        self._at: dict[str, array[float]] = {}
        self._retries = 0
        self._tasks: list[asyncio.Task[None]] = []

    # Receiving

    async def channels(self, count: int) -> list[str]:
        return [await self._layer.new_channel() for _ in range(count)]

    async def join(self, pairs: list[tuple[str, str]], at_once: int) -> float:
        """Add channels to groups, so many at a time; returns the seconds it took."""
        todo = iter(pairs)

        async def add() -> None:
            for group, channel in todo:
                await self._layer.group_add(group, channel)

        began = time.monotonic()
        await asyncio.gather(*[add() for _ in range(at_once)])
        return time.monotonic() - began

    async def listen(self, channels: list[str]) -> None:
        """Receive on each in a task of its own, for ever."""
        for channel in channels:
            self._heard[channel] = array("q")
            self._at[channel] = array("d")
            self._tasks.append(asyncio.create_task(self._receive(channel)))
        await asyncio.sleep(0)

    async def _receive(self, channel: str) -> None:
        heard, at, receive = self._heard[channel], self._at[channel], self._layer.receive
        while True:
            got = await receive(channel)
            heard.append(got["n"])
            at.append(time.monotonic())

    async def echo(self, channel: str, to: str) -> None:
        """Send everything that comes on one channel on to another."""

        async def answer() -> None:
            while True:
                await self._layer.send(to, await self._layer.receive(channel))

        self._tasks.append(asyncio.create_task(answer()))

    async def count(self) -> int:
        for task in self._tasks:
            if task.done():
                task.result()  # a receiver that died says why
        return sum(map(len, self._heard.values()))

    async def verdict(self, firsts: list[int], count: int, shared: bool) -> dict[str, Any]:
        """How the channels, each or together, got ``count`` messages from each of the ``firsts`` on."""
        expected = {number for first in firsts for number in range(first, first + count)}
        if shared:
            found = pooled([got.tolist() for got in self._heard.values()], expected)
        else:
            each = [faults(got, expected) for got in self._heard.values()]
            found = [sum(some) for some in zip(*each, strict=True)]
        return {"faults": found, "last": max((at[-1] for at in self._at.values() if at), default=0.0)}

    async def heard(self) -> list[tuple[list[int], list[float]]]:
        """For each channel the numbers in the order of their arrival, and the times of it."""
        return [
            (got.tolist(), at.tolist())
            for got, at in zip(self._heard.values(), self._at.values(), strict=True)
        ]

    async def clear(self) -> None:
        for numbers, at in zip(self._heard.values(), self._at.values(), strict=True):
            del numbers[:], at[:]

    # Sending

    async def send(
        self, to: list[str], firsts: list[int], count: int, *, group: bool, size: int, pause: float = 0
    ) -> dict[str, Any]:
        """Send ``count`` messages from each of the ``firsts`` on, each in a task of its own, to the names in turn."""
        moments: list[float] = []
        self._retries = 0

        async def run(first: int) -> None:
            names = itertools.cycle(to)
            for number in range(first, first + count):
                if pause:
                    moments.append(time.monotonic())
                await self._send(next(names), message(number, size), group)
                # As after each of a consumer's messages, the others of this loop have a turn.
                await asyncio.sleep(pause)

        began = time.monotonic()
        await asyncio.gather(*map(run, firsts))
        return {"began": began, "ended": time.monotonic(), "full": self._retries, "moments": moments}

    async def _send(self, to: str, content: dict[str, Any], group: bool) -> None:
        send = self._layer.group_send if group else self._layer.send
        while True:
            try:
                await send(to, content)
                return
            except self._full:
                self._retries += 1
                await asyncio.sleep(_RETRY)

    def _send_by_its_own_bridge(self, to: str, content: dict[str, Any], group: bool) -> None:
        send = self._layer.sync.group_send if group else self._layer.sync.send
        while True:
            try:
                send(to, content)
                return
            except self._full:
                self._retries += 1
                time.sleep(_RETRY)

    async def shout(
        self, to: list[str], firsts: list[int], count: int, *, group: bool, size: int, own_bridge: bool
    ) -> dict[str, Any]:
        """As ``send``, from plain threads without a loop: by ``async_to_sync``, or by what the layer has for them."""
        errors: list[BaseException] = []
        self._retries = 0
        send = self._send_by_its_own_bridge if own_bridge else async_to_sync(self._send)

        def run(first: int) -> None:
            names = itertools.cycle(to)
            try:
                for number in range(first, first + count):
                    send(next(names), message(number, size), group)
            except BaseException as error:
                errors.append(error)

        def run_all() -> None:
            threads = [threading.Thread(target=run, args=(first,)) for first in firsts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        began = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(None, run_all)
        ended = time.monotonic()
        if errors:
            raise errors[0]
        return {"began": began, "ended": ended, "full": self._retries, "moments": []}

    async def ping(self, to: str, back: str, first: int, seconds: float) -> dict[str, Any]:
        """Send one, wait for its echo, and so on; returns the seconds of each round trip."""
        trips: list[float] = []
        numbers: list[int] = []
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            await self._send(to, message(first + len(trips), 100), False)
            numbers.append((await self._layer.receive(back))["n"])
            trips.append(time.monotonic() - began)
        return {"trips": trips, "faults": faults(numbers, set(range(first, first + len(trips))))}

    # Cost

    async def cost(self, tidy: bool = False) -> dict[str, float]:
        """What its process has used: CPU seconds, resident memory in KB, descriptors open."""
        if tidy:
            gc.collect()
        used = {"cpu": time.process_time(), "rss": float(resident()), "fds": -1.0}
        with contextlib.suppress(FileNotFoundError):
            used["fds"] = float(len(os.listdir("/dev/fd")))
        return used

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def resident() -> int:
    """Resident memory in KB: now where the system tells, else the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak
    return pages * resource.getpagesize() // 1024


async def perform(name: str, where: str, answers: TextIO) -> None:
    """Obey the lines of standard input until it ends."""
    layer, full = CONTESTANTS[name].make(where)
    actors: dict[int, Actor] = {}
    reader = asyncio.StreamReader(limit=LONGEST)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def obey(line: bytes) -> None:
        id, part, method, args, options = json.loads(line)
        if part not in actors:
            actors[part] = Actor(layer, full)
        try:
            answer = [id, None, await getattr(actors[part], method)(*args, **options)]
        except Exception as error:
            answer = [id, f"{type(error).__name__}: {error}", None]
        print(json.dumps(answer), file=answers, flush=True)

    while line := await reader.readline():
        task = asyncio.create_task(obey(line))
        running.add(task)
        task.add_done_callback(running.discard)
    for actor in actors.values():
        await actor.leave()
    for method in ("close_pools", "close"):
        if method in dir(layer):
            await getattr(layer, method)()
            break


def main() -> None:
    name, where, uvloop = sys.argv[1:]
    # What a layer prints goes where its complaints go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop == "1":
        import uvloop as fast

        factory = fast.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(perform(name, where, answers))


if __name__ == "__main__":
    main()
