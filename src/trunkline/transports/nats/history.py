"""What topics remember: a stream with a subject for each, to which a frame is appended only behind the one its sender knows.

The server refuses an append whose sender does not know the newest entry (``Nats-Expected-Last-Subject-Sequence``), so
places are given once, whoever appends. An append that is sent again is known by its id. Every entry says how many entries,
and for how long, the topic remembers with it: readers leave out the others, and now and then an append has them purged.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import weakref
from typing import Any, NamedTuple

from ...errors import TransportUnavailable
from .link import Link
from .queues import make_stream, stamp
from .wire import unavailable

__all__ = ["History"]

#: Place, how many are kept, for how many ms, the length of the mark.
_HEAD = struct.Struct(">QIQB")
#: Seconds that the newest entry is kept beyond those of the others.
_DAY = 86_400
#: What is above the size is purged when it is so many, or a part of the size.
_SLACK, _PART = 32, 4
#: Topics whose newest entry is known without asking.
_KNOWN = 10_000
_WRONG_LAST, _NO_STREAM, _NO_MESSAGE = 10071, 10059, 10037


class _Entry(NamedTuple):
    place: int
    size: int
    ms: int
    mark: str
    frame: bytes
    #: Its number in the stream, and when it was stored, in ms.
    number: int
    stored: int


_NOTHING = _Entry(0, 0, 0, "", b"", 0, 0)


class History:
    """What one node remembers and recalls."""

    def __init__(self, link: Link, storage: str, replicas: int) -> None:
        self._link = link
        self._root = link.subjects.root
        self._stream = link.subjects.history_stream
        self._storage, self._replicas = storage, replicas
        self._exists = False
        self._appended = 0
        #: The newest entry of a topic: its place, its mark, its number.
        self._newest: dict[str, tuple[int, str, int]] = {}
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        lock = self._turns.setdefault(topic, asyncio.Lock())
        async with lock:  # of one node only one at a time can come next
            return await self._append(topic, frame, mark, size, seconds)

    async def _append(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        link, subject = self._link, self._link.subjects.history(topic)
        until = link.loop.time() + 2 * link.deadline
        self._appended += 1
        # One id for all attempts: one of them may have been stored by a server that died before it said so.
        id = b"%b.h%d" % (link.sid.hex().encode(), self._appended)
        tried: dict[int, str] = {}
        while True:
            if topic not in self._newest:
                last = await self._last(subject)
                self._newest[topic] = last.place, last.mark, last.number
            place, before, number = self._newest[topic]
            name = mark.encode()
            body = _HEAD.pack(place + 1, size, int(seconds * 1000), len(name)) + name + frame
            tried[place + 1] = before
            header = (
                b"NATS/1.0\r\nNats-Msg-Id: %b\r\nNats-TTL: %ds\r\nNats-Expected-Last-Subject-Sequence: %d\r\n\r\n"
                % (id, int(seconds) + 1 + _DAY, number)
            )
            left = max(until - link.loop.time(), 0.001)
            answer, status = await link.request(subject, body, header=header, ttl=left)
            made: dict[str, Any] = {"error": {"err_code": _NO_STREAM}} if status else json.loads(answer)
            error = made.get("error")
            if error is None and made.get("duplicate") and len(tried) > 1:
                self._newest.pop(topic, None)
                stored = await self._get({"seq": made["seq"]})
                if stored.place not in tried:
                    raise unavailable(link.access, "what was stored is there no more", on_its_way=True)
                return stored.place, tried[stored.place]
            if error is None:
                if len(self._newest) >= _KNOWN:
                    self._newest.clear()
                self._newest[topic] = place + 1, mark, made["seq"]
                self._trim(subject, place + 1, size)
                return place + 1, before
            self._newest.pop(topic, None)
            if error.get("err_code") == _NO_STREAM:
                self._exists = False
            elif error.get("err_code") != _WRONG_LAST:
                if link.loop.time() > until:
                    raise unavailable(link.access, f"JetStream: {error['description']}", on_its_way=True)
                await asyncio.sleep(0.1)  # it has no leader yet, or has not done it yet

    def _trim(self, subject: str, place: int, size: int) -> None:
        if place > size and place % max(size // _PART, _SLACK) == 0:
            ask = b'{"filter":"%b","keep":%d}' % (subject.encode(), size)
            self._link.say(f"$JS.API.STREAM.PURGE.{self._stream}".encode(), ask)

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        subject = self._link.subjects.history(topic)
        if first is None and count == 1:
            newest = await self._last(subject)
            return [(newest.place, newest.frame)] if newest.place else []
        entries = await self._read(subject)
        if not entries:
            return []
        newest = entries[-1]
        kept = [
            (entry.place, entry.frame)
            for entry in entries
            if entry is newest
            or (entry.place > newest.place - newest.size and entry.stored >= newest.stored - newest.ms)
        ]
        return kept[-count:] if first is None else [each for each in kept if each[0] >= first][:count]

    async def _read(self, subject: str) -> list[_Entry]:
        link = self._link
        until = link.loop.time() + 2 * link.deadline
        while True:
            entries: list[_Entry] = []

            def read(
                subject: bytes, payload: bytes, stored: int, number: int, to: list[_Entry] = entries
            ) -> None:
                to.append(_entry(payload, number, stored))

            await self.ensure()
            try:
                await link.reading.read(self._stream, [subject], read)
                return entries
            except (TransportUnavailable, TimeoutError) as error:
                self._exists = False
                if link.loop.time() > until:
                    raise unavailable(link.access, error) from None
            await asyncio.sleep(0.1)

    async def _last(self, subject: str) -> _Entry:
        return await self._get({"last_by_subj": subject})

    async def _get(self, which: dict[str, Any]) -> _Entry:
        await self.ensure()
        link = self._link
        until = link.loop.time() + 2 * link.deadline
        while True:
            found = await link.api(f"STREAM.MSG.GET.{self._stream}", which)
            error = found.get("error")
            if error is None:
                message = found["message"]
                data = base64.b64decode(message.get("data", ""))
                return _entry(data, message["seq"], int(stamp(message["time"]) * 1000))
            if error.get("err_code") == _NO_MESSAGE:
                return _NOTHING
            if error.get("err_code") == _NO_STREAM:
                self._exists = False
                await self.ensure()
            elif link.loop.time() > until:
                raise unavailable(link.access, f"JetStream: {error['description']}")
            await asyncio.sleep(0.05)

    async def ensure(self, *, now: bool = False) -> None:
        """Make the stream unless it is there.

        Raises:
            ConfigurationError: The server has no JetStream.
        """
        if self._exists:
            return
        config: dict[str, Any] = {
            "name": self._stream, "subjects": [f"{self._root}.h.>"], "retention": "limits", "discard": "old",
            "storage": self._storage, "num_replicas": self._replicas, "allow_msg_ttl": True,
            "duplicate_window": 60_000_000_000,
        }  # fmt: skip
        await make_stream(self._link, config, self._link.deadline, now=now)
        self._exists = True

    def forget(self) -> None:
        """Everything was flushed."""
        self._newest.clear()

    async def flush(self) -> None:
        await self._link.api(f"STREAM.PURGE.{self._stream}", {})


def _entry(data: bytes, number: int, stored: int) -> _Entry:
    place, size, ms, length = _HEAD.unpack_from(data)
    body = _HEAD.size + length
    return _Entry(place, size, ms, data[_HEAD.size : body].decode(), data[body:], number, stored)
