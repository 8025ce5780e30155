"""A process of its own that uses a layer as it is told: one JSON request a line in, one answer a line out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trunkline import layer_from_url
from trunkline.errors import ChannelFull


class Stage:
    """What a player can do."""

    def __init__(self, url: str) -> None:
        self.layer = layer_from_url(url)
        self.got: dict[str, list[Any]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def channel(self, *groups: str) -> str:
        channel = await self.layer.new_channel()
        for group in groups:
            await self.layer.group_add(group, channel)
        return channel

    async def present(self, group: str, *users: str) -> None:
        """A channel for each user that is present in the group, and announced."""
        for user in users:
            channel = await self.layer.new_channel()
            await self.layer.group_add(
                group, channel, presence={"pid": os.getpid()}, user=user, announce=True
            )

    async def who(self, group: str) -> list[list[Any]]:
        """The users that are present, each with the process of one of its channels."""
        return [[each.user, each.metadata["pid"]] for each in await self.layer.presence(group)]

    async def watch(self, group: str) -> str:
        """Note type, user and time of each event of the group."""
        channel = await self.channel(group)
        got = self.got.setdefault(channel, [])

        async def read() -> None:
            while True:
                event = await self.layer.receive(channel)
                got.append([event["type"], event["user"], time.time()])

        self.tasks.append(asyncio.create_task(read()))
        return channel

    async def listen(self, channel: str, readers: int = 1, poll: float = 0) -> None:
        """Receive in the background, each time for ``poll`` seconds at most; note number and delay."""
        got = self.got.setdefault(channel, [])

        async def read() -> None:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(poll or None):
                        message = await self.layer.receive(channel)
                        got.append([message["n"], time.time() - message.get("at", 0)])

        self.tasks += [asyncio.create_task(read()) for _ in range(readers)]

    async def heard(self, channel: str) -> list[Any]:
        return self.got[channel]

    async def send(
        self, channel: str, start: int, count: int, pause: float = 0, patient: bool = False
    ) -> None:
        for number in range(start, start + count):
            while True:
                try:
                    await self.layer.send(channel, {"n": number, "at": time.time()})
                    break
                except ChannelFull:
                    if not patient:
                        raise
                    await asyncio.sleep(0.002)
            if pause:
                await asyncio.sleep(pause)

    async def group_send(self, group: str, start: int, count: int, pause: float = 0) -> float:
        """Returns the longest time one call took, in seconds."""
        worst = 0.0
        for number in range(start, start + count):
            began = time.perf_counter()
            await self.layer.group_send(group, {"n": number, "at": time.time()})
            worst = max(worst, time.perf_counter() - began)
            if pause:
                await asyncio.sleep(pause)
        return worst

    async def churn(self, group: str, visitors: int) -> None:
        """Consumers that join, wait a moment and leave, half of them without saying so."""

        async def visit(number: int) -> None:
            channel = await self.channel(group)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.003 * (number % 5)):
                    await self.layer.receive(channel)
            if number % 2:
                await self.layer.group_discard(group, channel)
            else:
                await self.layer.forget(channel)

        for number in range(0, visitors, 4):
            await asyncio.gather(*[visit(number + more) for more in range(4)])

    async def gone(self, channel: str) -> int:
        """Send to a channel and return how many messages have found nobody so far."""
        with contextlib.suppress(ChannelFull):
            await self.layer.send(channel, {"n": -1})
        return self.layer.stats().gone

    async def stats(self) -> dict[str, int]:
        stats = self.layer.stats()
        return {name: getattr(stats, name) for name in stats.__slots__}


async def perform(stage: Any) -> None:
    """Do what is asked for on standard input until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps(os.getpid()), flush=True)
    while line := await reader.readline():
        name, arguments = json.loads(line)
        print(json.dumps(await getattr(stage, name)(*arguments)), flush=True)
    for task in stage.tasks:
        task.cancel()
    await asyncio.gather(*stage.tasks, return_exceptions=True)
    await stage.layer.close()


class Player:
    """The other end: a process started for a test."""

    def __init__(self, *arguments: str, program: str = "processes.player") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid: int = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the player ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, name: str, *arguments: Any) -> None:
        """Say what to do, without waiting for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()

    def do(self, name: str, *arguments: Any) -> Any:
        self.ask(name, *arguments)
        return self.answer()

    def heard(self, channel: str, count: int, timeout: float = 20) -> list[int]:
        """The numbers received, once there are that many."""
        deadline = time.monotonic() + timeout
        while True:
            heard = self.do("heard", channel)
            if len(heard) >= count or time.monotonic() > deadline:
                return [number for number, _ in heard]
            time.sleep(0.02)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


if __name__ == "__main__":
    asyncio.run(perform(Stage(sys.argv[1])))
