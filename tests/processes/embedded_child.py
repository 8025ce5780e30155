"""A process with one embedded transport that does as it is told: one JSON request a line in, one answer a line out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trunkline.errors import ChannelFull
from trunkline.transports.embedded import EmbeddedTransport


def filling(number: int) -> bytes:
    """What the rest of a frame is made of."""
    return b"%c" % (97 + number % 26)


class Child:
    """The parent's side."""

    def __init__(self, folder: Path, node: str, *, wait: bool = True) -> None:
        self.node = node
        command = [sys.executable, __file__, str(folder), node]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if wait:
            assert self.answer() == "open"

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, op: str, *args: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([op, *args]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.node} has ended"
        return json.loads(line)

    def ask(self, op: str, *args: Any) -> Any:
        self.tell(op, *args)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Stage:
    """The child's side: what it can be asked to do."""

    def __init__(self, transport: EmbeddedTransport) -> None:
        self.transport = transport
        #: Numbers by sender, in the order they came.
        self.heard: dict[str, list[int]] = {}
        self.gaps: list[str] = []
        #: Frames whose filling was another's, in part.
        self.torn = 0
        #: The longest time between two arrivals, in seconds.
        self.pause = 0.0
        self.last = 0.0
        self.tasks: set[asyncio.Task[Any]] = set()

    def deliver(self, frame: bytes) -> None:
        sender, number, rest = frame.split(b":", 2)
        if rest != filling(int(number)) * len(rest):
            self.torn += 1
        self.heard.setdefault(sender.decode(), []).append(int(number))
        now = time.monotonic()
        if self.last:
            self.pause = max(self.pause, now - self.last)
        self.last = now

    def gap(self, topic: str | None, reason: str) -> None:
        self.gaps.append(reason)

    async def subscribe(self, topic: str) -> None:
        await self.transport.subscribe(topic)

    async def publish(self, topic: str, sender: str, count: int, pause: float, size: int = 200) -> float:
        """Returns the longest time one call took, in seconds."""
        worst = 0.0
        for number in range(count):
            began = time.monotonic()
            await self.transport.publish(
                topic, f"{sender}:{number}:".encode().ljust(size, filling(number)), 60
            )
            worst = max(worst, time.monotonic() - began)
            if pause:
                await asyncio.sleep(pause)
        return worst

    async def saturate(self, topic: str, queue: str) -> None:
        async def write(lane: int) -> None:
            number = 0
            while True:
                await self.transport.publish(topic, f"{self.transport._node}-{lane}:{number}:".encode(), 60)
                await self.transport.push(
                    queue, f"{self.transport._node}-{lane}:{number}:".encode(), 10**9, 60
                )
                number += 1

        for lane in range(3):
            self._start(write(lane))

    async def pull(self, queue: str, readers: int) -> None:
        async def read() -> None:
            while True:
                self.deliver(await self.transport.pull(queue))

        for _ in range(readers):
            self._start(read())

    async def push(self, queue: str, sender: str, count: int) -> None:
        for number in range(count):
            while True:
                try:
                    await self.transport.push(queue, f"{sender}:{number}:".encode(), 100, 60)
                    break
                except ChannelFull:
                    await asyncio.sleep(0.001)

    async def count(self) -> int:
        return sum(map(len, self.heard.values()))

    async def report(self) -> dict[str, Any]:
        return {"heard": self.heard, "gaps": self.gaps, "pause": self.pause, "torn": self.torn}

    async def reset_pause(self) -> None:
        self.pause = self.last = 0.0

    async def flood(self, topic: str, queue: str, size: int) -> None:
        """As ``saturate``, with large frames to both."""

        async def write() -> None:
            for number in itertools.count():
                frame = f"{self.transport._node}:{number}:".encode().ljust(size, filling(number))
                await self.transport.publish(topic, frame, 60)
                with contextlib.suppress(ChannelFull):
                    await self.transport.push(queue, frame, 20, 60)

        self._start(write())

    async def lease(self, queue: str) -> None:
        """Take and settle, each under a lease of a second."""

        async def read() -> None:
            while True:
                leased = await self.transport.lease(queue, 1.0, 60)
                self.deliver(leased.frame)
                await self.transport.settle(queue, leased.token)

        self._start(read())

    async def half(self, size: int) -> int:
        """Write a large frame in a transaction that is left open; returns its length in the file."""
        store = self.transport._store
        assert store is not None
        if not store.begin():  # no assert: under -O it would not be asked
            raise RuntimeError("another process writes")
        store.append("t", self.transport._node, None, None, time.time() + 60, b"half".ljust(size, b"!"))
        return store.path.with_name("layer.db-large").stat().st_size

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)  # the loop does nothing meanwhile

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)


async def main(folder: str, node: str) -> None:
    transport = EmbeddedTransport(folder)
    stage = Stage(transport)
    await transport.open(node, stage)
    print('"open"', flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        op, *args = json.loads(line)
        print(json.dumps(await getattr(stage, op)(*args)), flush=True)
    for task in stage.tasks:
        task.cancel()
    await asyncio.gather(*stage.tasks, return_exceptions=True)
    await transport.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
