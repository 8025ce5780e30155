"""Records of this node on one server: what it keeps beside topics, under a lease for each topic.

Rules of this room: every change carries the number of the one before it on the same topic, and every renewal the number of
the last. So the server notices when it has lost something, a failover's few milliseconds included, and says so. What
is read needs two trips: which nodes there are, then what each of them keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...transport import Record, Renewal
from .connection import pack
from .ops import FOR_EVER, Op, PlainOp, ScriptOp
from .outbox import Outbox
from .scripts import DROP_RECORD, KEEP_RECORD, REAP_RECORDS, RENEW_RECORDS, Script
from .topology import Names

__all__ = ["Records"]

#: Records that are reaped in one go, roughly: so long the server does nothing else.
_AT_ONCE = 500

#: The last change of each topic, as the server should know it.
_Marks = dict[str, "int | str"]


class _Change(Op):
    """A script that changes what is kept beside one topic."""

    __slots__ = ("_args", "_before", "_keys", "_marks", "_script", "_topic")

    patient = True

    def __init__(
        self,
        outbox: Outbox,
        script: Script,
        keys: tuple[bytes, ...],
        topic: str,
        marks: _Marks,
        args: tuple[bytes | str | int, ...],
        ttl: float,
    ) -> None:
        super().__init__(outbox, None, b"", ttl)
        self._script, self._keys, self._args = script, keys, args
        self._topic, self._marks = topic, marks
        self._before: int | str | None = None

    def commands(self) -> bytes:
        if self._before is None:  # it is sent for the first time, in its place among the others
            self._before = self._marks.get(self._topic, "")
            self._marks[self._topic] = self.seq
        sha = self.outbox.dialect.sha(self._script)
        floor = self.outbox.sender.floor
        return pack(b"EVALSHA", sha, 4, *self._keys, self.seq, floor, self._before, *self._args)


class _Renew(Op):
    """The sign of life beside one topic."""

    __slots__ = ("_args", "_keys", "_mark", "_marks", "_topic")

    patient = True

    def __init__(
        self,
        outbox: Outbox,
        keys: tuple[bytes, ...],
        topic: str,
        marks: _Marks,
        args: tuple[str | int, ...],
        ttl: float,
    ) -> None:
        super().__init__(outbox, None, b"", ttl)
        self._keys, self._args = keys, args
        self._topic, self._marks = topic, marks
        self._mark: int | str | None = None

    def commands(self) -> bytes:
        if self._mark is None:
            self._mark = self._marks.get(self._topic, "")
        sha = self.outbox.dialect.sha(RENEW_RECORDS)
        return pack(b"EVALSHA", sha, 3, *self._keys, self._mark, *self._args)


class Records:
    """What this node keeps on one server."""

    def __init__(self, outbox: Outbox, names: Names, node: str, sid: str) -> None:
        self._outbox = outbox
        self._names = names
        self._node = node
        self._sid = sid
        self._marks: _Marks = {}

    def _keys(self, topic: str, node: str) -> tuple[bytes, ...]:
        return self._names.record_keys(topic, node, self._sid)

    async def _do(self, op: Op) -> Any:
        self._outbox.submit(op)
        return await op.future

    def _change(self, script: Script, topic: str, ttl: float, *args: bytes | str | int) -> _Change:
        keys = self._keys(topic, self._node)
        return _Change(self._outbox, script, keys, topic, self._marks, (self._node, *args), ttl)

    async def keep(self, topic: str, key: str, tag: str, value: bytes, lease: float, ttl: float) -> int:
        """See ``Transport.keep_record``; ``ttl`` is how long the server is waited for."""
        op = self._change(KEEP_RECORD, topic, ttl, max(int(lease * 1000), 1), key, tag, value)
        count: int = await self._do(op)
        return count

    async def drop(self, topic: str, key: str, ttl: float) -> int | None:
        """See ``Transport.drop_record``."""
        op = self._change(DROP_RECORD, topic, ttl, key)
        left, last = await self._do(op)
        if last and self._marks.get(topic) == op.seq:
            del self._marks[topic]
        return None if left < 0 else left

    def renew(self, topic: str, lease: float) -> Op:
        """Ask for one more lease; ``heed`` says what the answer means."""
        keys = self._keys(topic, self._node)[:3]
        args = self._node, max(int(lease * 1000), 1)
        op = _Renew(self._outbox, keys, topic, self._marks, args, lease / 2)
        self._outbox.submit(op)
        return op

    def heed(self, topic: str, answer: int, news: Renewal) -> None:
        """Take in the answer to a renewal."""
        if answer & 1:
            self._marks.pop(topic, None)
            news.forgotten.append(topic)
        if answer & 2:
            self._marks[topic] = "reaped"
            news.reaped.append(topic)
        if answer & 4:
            news.lapsed.append(topic)

    async def read(self, topic: str, ttl: float) -> list[Record]:
        """See ``Transport.records``."""
        live = await self._nodes(topic, f"({self._now_ms()}", "+inf", ttl)
        nodes = sorted({*live, self._node})
        hashes = await self._ask([("HGETALL", self._keys(topic, node)[1]) for node in nodes], ttl)
        return [
            _record(node, key[1:], value)
            for node, fields in zip(nodes, hashes, strict=True)
            for key, value in zip(fields[::2], fields[1::2], strict=True)
            if key != b"@"
        ]

    async def count(self, topic: str, ttl: float) -> tuple[int, int]:
        """See ``Transport.count_records``."""
        nodes = await self._nodes(topic, "1", "+inf", ttl)
        tags = self._keys(topic, self._node)[2]
        lengths = [("HLEN", self._keys(topic, node)[1]) for node in nodes]
        all_, none, *counts = await self._ask([("HLEN", tags), ("HEXISTS", tags, ""), *lengths], ttl)
        return sum(max(count - 1, 0) for count in counts), all_ - none

    async def reap(self, topic: str) -> list[tuple[Record, int]]:
        """See ``Transport.reap_records``; an outage is waited out, for what an answer holds is nowhere else."""
        reaped = []
        for node in await self._nodes(topic, "1", self._now_ms(), FOR_EVER):
            if node == self._node:
                continue
            keys = self._keys(topic, node)
            floor = self._outbox.sender.floor
            args: list[bytes | str | int] = [floor, node, _AT_ONCE]
            op = ScriptOp(self._outbox, REAP_RECORDS, keys, args, numbered=True, patient=True)
            found = await self._do(op)
            for key, value, left in zip(found[::3], found[1::3], found[2::3], strict=True):
                reaped.append((_record(node, key, value), left))
        return reaped

    def leave(self) -> None:
        """End the leases: what is still kept may be reaped at once."""
        for topic in self._marks:
            deadlines = self._keys(topic, self._node)[0]
            self._outbox.submit(PlainOp(self._outbox, "ZADD", deadlines, "XX", "LT", 1, self._node, ttl=1.0))

    def _now_ms(self) -> int:
        return self._outbox.clock.now_ms()

    async def _nodes(self, topic: str, lowest: str, highest: str | int, ttl: float) -> list[str]:
        deadlines = self._keys(topic, self._node)[0]
        (found,) = await self._ask([("ZRANGEBYSCORE", deadlines, lowest, highest)], ttl)
        return [node.decode() for node in found]

    async def _ask(self, commands: Sequence[tuple[bytes | str | int, ...]], ttl: float) -> list[Any]:
        ops = [PlainOp(self._outbox, *command, ttl=ttl) for command in commands]
        for op in ops:
            self._outbox.submit(op)
        return [await op.future for op in ops]


def _record(node: str, key: bytes, value: bytes) -> Record:
    length, _, rest = value.partition(b" ")
    end = int(length)
    return Record(node, key.decode(), rest[:end].decode(), rest[end:])
