"""Records: what this node keeps beside topics, under a lease for each topic that the server knows.

Rules of this room: each operation is done once, in its turn. With every keep goes whether this node takes it that something
of it is there already, so a server that has lost it notices, and tells it at each renewal until all is kept anew.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ...transport import Record, Renewal
from .names import Names
from .outbox import FOR_EVER, GONE, Kind, Op, Outbox

__all__ = ["Records"]

_SIZE = struct.Struct(">I")
_NUMBER = struct.Struct(">q")
_TWO = struct.Struct(">qq")

#: What goes with a keep: something is there already, as far as this node knows; all is kept anew.
_KEPT, _ANEW = 1, 2
#: What a renewal tells of a topic, in the byte behind it.
_LOST, _REAPED, _LAPSED = 1, 2, 4


class Records:
    """What this node keeps.

    Args:
        patience: Seconds that an operation waits for the server.
    """

    def __init__(self, outbox: Outbox, names: Names, patience: float) -> None:
        self._outbox, self._names, self._patience = outbox, names, patience
        #: The last change of each topic beside which something is kept, as far as this node knows.
        self._last: dict[str, Op] = {}
        #: Topics that were told to be lost or reaped: the next keep begins anew.
        self._owing: set[str] = set()

    def _submit(self, kind: Kind, topic: str, key: str = "", **more: Any) -> Op:
        op = Op(kind, key, wire=self._names.topic(topic), **{"expires": self._patience, **more})
        return self._outbox.submit(op)

    async def keep(self, topic: str, key: str, tag: str, value: bytes, lease: int) -> int:
        """See ``Transport.keep_record``; the lease is in milliseconds."""
        known = (_KEPT if topic in self._last else 0) | (_ANEW if topic in self._owing else 0)
        op = self._submit(Kind.KEEP, topic, key, body=_sized(tag) + value, number=known, ttl=lease)
        self._last[topic] = op
        self._owing.discard(topic)
        _, (count,) = await op.future
        found: int = _NUMBER.unpack(count)[0]
        return found

    async def drop(self, topic: str, key: str) -> int | None:
        """See ``Transport.drop_record``."""
        op = self._submit(Kind.DROP, topic, key)
        if topic in self._last:
            self._last[topic] = op
        code, counts = await op.future
        if code == GONE:
            return None
        left, here = _TWO.unpack(counts[0])
        if not here and self._last.get(topic) is op:
            del self._last[topic]
        return int(left)

    async def renew(self, topics: Sequence[str], lease: int) -> Renewal:
        """See ``Transport.renew_records``; the lease is in milliseconds."""
        wires = {self._names.topic(topic): topic for topic in topics}
        op = self._outbox.submit(
            Op(Kind.RENEW, body=b"".join(wires), ttl=lease, expires=min(self._patience, lease / 2000))
        )
        _, told = await op.future
        news = Renewal([], [], [])
        for bit, found in ((_LOST, news.forgotten), (_REAPED, news.reaped), (_LAPSED, news.lapsed)):
            found += [wires[entry[:16]] for entry in told if entry[16] & bit]
        for topic in news.forgotten:
            self._last.pop(topic, None)
        self._owing.update(news.forgotten, news.reaped)
        return news

    async def read(self, topic: str) -> list[Record]:
        """See ``Transport.records``."""
        _, entries = await self._submit(Kind.RECORDS, topic).future
        return [_record(entry) for entry in entries]

    async def count(self, topic: str) -> tuple[int, int]:
        """See ``Transport.count_records``."""
        _, (counts,) = await self._submit(Kind.COUNT, topic).future
        kept, tags = _TWO.unpack(counts)
        return kept, tags

    async def reap(self, topic: str) -> list[tuple[Record, int]]:
        """See ``Transport.reap_records``. An outage is waited out, for what an answer holds is nowhere else."""
        _, entries = await self._submit(Kind.REAP, topic, expires=FOR_EVER).future
        return [(_record(entry[8:]), _NUMBER.unpack_from(entry)[0]) for entry in entries]


def _sized(text: str) -> bytes:
    data = text.encode()
    return _SIZE.pack(len(data)) + data


def _record(data: bytes) -> Record:
    texts = []
    for _ in range(3):
        end = 4 + _SIZE.unpack_from(data)[0]
        texts.append(data[4:end].decode())
        data = data[end:]
    node, key, tag = texts
    return Record(node, key, tag, bytes(data))
