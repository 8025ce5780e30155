"""The floor: a loop of hiredis and asyncio that has the server do what Trunkline has it do, and nothing more.

It sends the same script for each direct message and the same three commands for a group. To a queue it pushes what one
turn of the loop sends, and takes up to sixteen frames at a time, by the same scripts, and is woken as Trunkline is. A large
frame is read from its log. It has two connections, each written once per loop tick. It knows no capacity, no continuity, no
reconnecting and no second server, and gives nothing back.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import defaultdict, deque
from typing import Any

import hiredis
import ormsgpack

from trunkline.continuity import HEADER_SIZE
from trunkline.transports.redis.ops import HEADED
from trunkline.transports.redis.scripts import POST, PUSH, TAKE

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

    def ask(self, *command: Any, answer: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting.append(hiredis.pack_command(command))
        if answer is None:
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


class Reader:
    """One process's part in a queue: what it was given, and whether the server will wake it, or has."""

    def __init__(self, inbox: str, queue: str) -> None:
        self.slot = f"{inbox}.{queue}"
        self.member = f"{inbox} {self.slot}"
        keys = [f"bare:{queue}:{kind}" for kind in ("frames", "deadlines", "idle")]
        self.keys = *keys, f"{self.slot}:held", f"bare:{queue}:schedule", f"bare:{queue}:contents"
        self.hand: deque[bytes] = deque()
        self.listed = self.woken = False
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self.woken = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class BareLayer:
    #: How much is asked for at a time, how much is done in a moment, and how much may wait.
    MOST, SWIFT, CAPACITY = 16, 50, 100_000

    def __init__(self, port: int) -> None:
        self._port = port
        self._inbox = f"bare:{uuid.uuid4().hex}"
        self._numbers = itertools.count(1)
        self._groups: dict[str, list[str]] = defaultdict(list)
        self._boxes: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._waiters: dict[str, asyncio.Future[None]] = {}
        #: What this turn of the loop sends to each queue, and the one answer to it.
        self._batches: dict[str, tuple[list[bytes], asyncio.Future[Any]]] = {}
        self._readers: dict[str, Reader] = {}
        #: Bytes since a log was cut.
        self._logged = 0
        #: Large frames that wait in a log, and the entry behind which they do.
        self._announced: dict[str, int] = defaultdict(int)
        self._fetched: dict[str, bytes] = {}
        self._fetching: asyncio.Task[None] | None = None
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
        for script in (POST, PUSH, TAKE):
            await self._commands.ask("SCRIPT", "LOAD", script.text)
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
        if "!" not in channel:
            await self._push(channel, b"+" + ormsgpack.packb(message))
            return
        inbox = channel.partition("!")[0]
        keys = [f"{inbox}:alive", f"{inbox}:depth", f"{self._inbox}:last", f"{inbox}:refused"]
        frame = ormsgpack.packb([channel, "", message])
        is_large = len(frame) >= HEADED
        counted = (
            bytes(HEADER_SIZE) if is_large else frame,
            next(self._numbers),
            0,
            60000,
            "",
            0,
            channel,
            -1,
            1,
        )
        answer = self._commands.ask("EVALSHA", POST.sha, 5, inbox, *keys, *counted)
        if is_large:
            self._log(inbox, frame)
        await answer

    def _push(self, queue: str, frame: bytes) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._batches:
            loop.call_soon(self._send_batches)
        batch = self._batches.get(queue)
        if batch is None:
            batch = self._batches[queue] = ([], loop.create_future())
        batch[0].append(frame)
        return batch[1]

    def _send_batches(self) -> None:
        batches, self._batches = self._batches, {}
        for queue, (frames, answer) in batches.items():
            keys = [f"bare:{queue}:{kind}" for kind in ("frames", "deadlines", "idle")]
            own = f"{self._inbox}:pushed", f"{self._inbox}:refused"
            bounds = self.CAPACITY, 60_000, next(self._numbers), 0, 120_000
            self._commands.ask("EVALSHA", PUSH.sha, 5, *keys, *own, *bounds, *frames, answer=answer)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._open()
        topic = f"bare:group:{group}"
        frame = ormsgpack.packb(["", group, message])
        self._log(topic, frame)
        await self._commands.ask("HGETALL", f"{topic}:bound")

    def _log(self, topic: str, frame: bytes) -> None:
        self._commands.ask("XADD", f"{topic}:log", "*", "d", frame)
        self._commands.ask("PUBLISH", topic, frame if len(frame) < HEADED else b"H" + topic.encode())
        self._logged += len(frame)
        if self._logged >= 1 << 20:
            self._logged = 0
            self._commands.ask("XTRIM", f"{topic}:log", "MAXLEN", "~", 10_000 if len(frame) < HEADED else 100)

    async def _fetch(self, topic: str) -> None:
        """Get large frames from their log, for as long as some were announced."""
        while count := self._announced[topic]:
            start = self._fetched.get(topic, "-")
            for entry, (_, frame) in await self._commands.ask(
                "XRANGE", f"{topic}:log", start, "+", "COUNT", count
            ):
                self._fetched[topic] = b"(" + entry
                if len(frame) >= HEADED:  # small ones were pushed
                    self._announced[topic] -= 1
                    self._arrived(frame)

    def _arrived(self, frame: bytes) -> None:
        if frame.startswith(b"W"):
            self._readers[frame.decode().partition(".")[2]].wake()
            return
        if frame.startswith(b"H"):
            topic = frame[1:].decode()
            self._announced[topic] += 1
            if self._announced[topic] == 1:
                self._fetching = asyncio.create_task(self._fetch(topic))
            return
        channel, group, message = ormsgpack.unpackb(frame)
        for name in [channel] if channel else self._groups[group]:
            self._boxes[name].append(message)
            waiter = self._waiters.get(name)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    async def receive(self, channel: str) -> dict[str, Any]:
        if "!" not in channel:
            return await self._take(channel)
        box = self._boxes[channel]
        while not box:
            waiter = self._waiters[channel] = asyncio.get_running_loop().create_future()
            await waiter
        return box.popleft()

    async def _take(self, queue: str) -> dict[str, Any]:
        await self._open()
        reader = self._readers.get(queue)
        if reader is None:
            reader = self._readers[queue] = Reader(self._inbox, queue)
        while not reader.hand:
            if reader.listed and not reader.woken:
                reader.waiter = asyncio.get_running_loop().create_future()
                await reader.waiter
            reader.woken = False
            request = reader.slot, next(self._numbers), reader.member, 600_000, self.MOST, self.SWIFT
            given = await self._commands.ask("EVALSHA", TAKE.sha, 6, *reader.keys, *request)
            reader.hand.extend(given[1::2])
            reader.listed = len(given) < 2 * self.MOST
        message: dict[str, Any] = ormsgpack.unpackb(reader.hand.popleft()[1:])
        return message
