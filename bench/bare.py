"""The floor: a loop of hiredis and asyncio that has the server do what Trunkline has it do, and nothing more.

It sends the same script for each direct message and the same three commands for a group, and has two connections, each
written once per loop tick. It knows no capacity, no continuity, no reconnecting and no second server.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections import defaultdict, deque
from importlib import resources
from typing import Any

import hiredis
import ormsgpack

__all__ = ["BareLayer", "Full"]


class Full(Exception):
    """Never raised: nothing is bounded here."""


class Connection(asyncio.Protocol):
    def __init__(self, pushed: Any = None) -> None:
        self._reader = hiredis.Reader()
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._waiting: list[bytes] = []
        self._pushed = pushed

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting.append(hiredis.pack_command(command))
        answer = self._loop.create_future()
        self._answers.append(answer)
        return answer

    def _write(self) -> None:
        self._transport.write(b"".join(self._waiting))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if self._pushed is not None and answer[0] == b"message":
                self._pushed(answer[2])
            else:
                future = self._answers.popleft()
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                elif not future.done():
                    future.set_result(answer)


class BareLayer:
    def __init__(self, port: int) -> None:
        self._port = port
        self._inbox = f"bare:{uuid.uuid4().hex}"
        self._script = resources.files("trunkline.transports.redis.scripts").joinpath("post.lua").read_text()
        self._sha = hashlib.sha1(self._script.encode()).hexdigest()
        self._numbers = itertools.count(1)
        self._groups: dict[str, list[str]] = defaultdict(list)
        self._boxes: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._opening: asyncio.Task[None] | None = None

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
        await self._opening

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._commands = await loop.create_connection(Connection, "127.0.0.1", self._port)
        _, self._pushes = await loop.create_connection(
            lambda: Connection(self._arrived), "127.0.0.1", self._port
        )
        await self._commands.ask("SCRIPT", "LOAD", self._script)
        await self._commands.ask("SET", f"{self._inbox}:alive", "1")
        await self._pushes.ask("SUBSCRIBE", self._inbox)

    async def new_channel(self) -> str:
        await self._open()
        return f"{self._inbox}!{uuid.uuid4().hex}"

    async def group_add(self, group: str, channel: str) -> None:
        members = self._groups[group]
        members.append(channel)
        if len(members) == 1:
            await self._pushes.ask("SUBSCRIBE", f"bare:group:{group}")

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        await self._open()
        inbox = channel.partition("!")[0]
        keys = [f"{inbox}:alive", f"{inbox}:depth", f"{self._inbox}:last", f"{inbox}:refused"]
        frame = ormsgpack.packb([channel, "", message])
        counted = (channel, -1, 1)
        await self._commands.ask(
            "EVALSHA", self._sha, 5, inbox, *keys, frame, b"", 0, next(self._numbers), 0, 0, 60000, *counted
        )

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._open()
        topic = f"bare:group:{group}"
        frame = ormsgpack.packb(["", group, message])
        self._commands.ask("XADD", f"{topic}:log", "MAXLEN", "~", 10000, "*", "d", frame)
        self._commands.ask("PUBLISH", topic, frame)
        await self._commands.ask("HGETALL", f"{topic}:bound")

    def _arrived(self, frame: bytes) -> None:
        channel, group, message = ormsgpack.unpackb(frame)
        for name in [channel] if channel else self._groups[group]:
            self._boxes[name].append(message)
            waiter = self._waiters.get(name)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    async def receive(self, channel: str) -> dict[str, Any]:
        box = self._boxes[channel]
        while not box:
            waiter = self._waiters[channel] = asyncio.get_running_loop().create_future()
            await waiter
        return box.popleft()
