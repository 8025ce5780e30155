"""Where a name lives: its partition, its keys, its server.

A name belongs to one of 256 partitions, a partition to one server. Key names carry the partition's tag in braces, so
the same keys would spread evenly over a cluster of any size up to 256. The rule is fixed: all processes must agree
on it, whatever their version, so nothing here may ever give another answer.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import zlib
from collections.abc import Sequence

__all__ = ["PARTITIONS", "TAGS", "Names", "owners", "partition", "partition_of_key", "slot"]

PARTITIONS = 256
#: Of a cluster.
SLOTS = 16384

#: Tag number i hashes (CRC16) to the middle of the i-th of 256 equal parts of a cluster's 16384 slots.
_TAGS = """
    021 4zp aio 0ov 21g csv cj9 z1 1d8 5hq 556 90g 3gn baw 7rh f0y 06q a0h id7 0k6 o6o 69n cny gb0
    lc0 5l1 51v 1y7 wkn 7og b8p 3za 4z4 02u 0o2 00bb 6yb o2k zu kce 5h5 9md d3k 55r 7kc fmz ft5 j5l
    i94 f 0kr amk c3z gz gbt 6dm 5lu djl 1ys 512 bes 3cj fpu 72d emk 4kr 465 83d 6t cbt 65c k3 112
    5ys hct 1lu 32d bpu 7cj fes 8jc 4o2 42u 0z4 24 6ld k2k os 15r qus hg4 1h5 n5l bt5 bmz 3kc 4k6
    8ng e0h 46q cb0 60 kw k6o 5y7 11v 1l1 hc0 7za f8p 3og skn 4ov eio 0zp 421 cfp 2p o7 61g qu7 156
    1hq 5d8 b0y 3rh faw 7gn bn 6x6 6ay 2m0 e9q a58 iag 0nf ne6 7j7 77p f1i 9l0 5ia h7n 18o 247 rt6
    6e9 2ip 07a a1x 4fo min fhn 7nw 730 nx9 1ah hni 50f 957 6xr 203 2mt ckm aqt 03e edr 4bk 7js flj
    n85 774 hjm 1el 913 54b c2j fj 2i4 kf5 au4 8z5 0jb iec 7n3 3bz f5m 73t 5me 9h4 1xc h3j 7d 6i4
    64s g2j 8o3 4jb i4m 82t 33t b5m 7bz 3n3 l3j 5xc hbd 1me gkm 6mt 603 nc 0bk adr 43e 864 374 j85
    blj 3js 14b q0k 5el dcu 6ip 2e9 jg 647 iin 0fo 820 47a jx9 330 3nw bhn q4o 10f 9d9 5ah 6m0 wh
    2x6 60w 4nf 8k7 86p a9q b1i 37p 3j7 je6 58o 9y6 1ia qmh
"""

TAGS = _TAGS.split()


@functools.lru_cache(maxsize=16384)
def partition(name: str) -> int:
    """The partition of a topic, node or queue."""
    return zlib.crc32(name.encode()) & 255


_PLACES = {tag.encode(): place for place, tag in enumerate(TAGS)}


def partition_of_key(key: bytes) -> int | None:
    """The partition of a key or pub/sub channel, by its tag; None when it is none of ours."""
    return _PLACES.get(key[key.find(b"{") + 1 : key.find(b"}")])


def slot(number: int) -> int:
    """The slot of a cluster in which a partition lives."""
    return number * SLOTS // PARTITIONS + SLOTS // PARTITIONS // 2


def owners(servers: Sequence[str]) -> list[int]:
    """The place in ``servers`` of each partition's owner (rendezvous hashing).

    The order of the servers does not matter; adding or removing one moves only the partitions it gets or had.
    """

    def weight(server: str, number: int) -> bytes:
        return hashlib.blake2b(f"{number} {server}".encode(), digest_size=8).digest()

    places = range(len(servers))
    return [
        max(places, key=lambda i: (weight(servers[i], number), servers[i])) for number in range(PARTITIONS)
    ]


class Names:
    """Key names of one prefix on one server. Pub/sub knows no databases, so the database's number is in each name.

    Every name has the form ``prefix/database{tag}kind:name``.
    """

    def __init__(self, prefix: str, database: int) -> None:
        self.root = f"{prefix}/{database}"
        # Asked for with every message, and a node meets few names at a time.
        remembered = functools.lru_cache(maxsize=16384)
        self.topic = remembered(self._topic)
        self.bindings = remembered(self._bindings)
        self.push_keys = remembered(self._push_keys)
        self.record_keys = remembered(self._record_keys)
        #: What the keys of the server itself are tagged by; None: by their names.
        self._place: int | None = None
        #: What happens to this prefix on this server: everything was flushed.
        self.news = self._key("news", "")

    def of(self, place: int) -> Names:
        """The same for one partition that lives by itself: what was the server's is the partition's."""
        names = copy.copy(self)
        names._place = place
        names.news = names._own("news", "")
        return names

    def _own(self, kind: str, name: str) -> bytes:
        if self._place is None:
            return self._key(kind, name)
        return f"{self.root}{{{TAGS[self._place]}}}{kind}:{name}".encode()

    def _key(self, kind: str, name: str, tag_of: str = "") -> bytes:
        return f"{self.root}{{{TAGS[partition(tag_of or name)]}}}{kind}:{name}".encode()

    def _topic(self, topic: str) -> bytes:
        """The log and the pub/sub channel of a topic."""
        return self._key("t", topic)

    def _bindings(self, topic: str) -> bytes:
        return self._key("b", topic)

    def node(self, node: str) -> bytes:
        """Pub/sub channel by which a node hears its own probes and is woken."""
        return self._own("n", node)

    def mark(self, node: str) -> bytes:
        """What a node leaves in a partition it uses: when it is gone, all may be."""
        return self._own("m", node)

    def inbox(self, node: str) -> bytes:
        """The log and the pub/sub channel of what is posted to a node."""
        return self._key("i", node)

    def post_keys(self, node: str, sid: str) -> tuple[bytes, ...]:
        """Inbox, sign of life, depths, and two memories of what ``sid`` posted."""
        return (
            self.inbox(node),
            self._key("a", node),
            self._key("d", node),
            self._key("pl", f"{node}:{sid}", node),
            self._key("pr", f"{node}:{sid}", node),
        )

    def queue_keys(self, queue: str) -> tuple[bytes, ...]:
        """Frames, their deadlines, idle readers, and what the readers hold."""
        return tuple(self._key(kind, queue) for kind in ("q", "qd", "qi", "qh"))

    def put_off_keys(self, queue: str) -> tuple[bytes, ...]:
        """When each frame that is put off is due, and what it is."""
        return tuple(self._key(kind, queue) for kind in ("qs", "qc"))

    def _push_keys(self, queue: str, sid: str) -> tuple[bytes, ...]:
        """Frames, their deadlines, idle readers, and two memories of what ``sid`` pushed."""
        memories = tuple(self._key(kind, f"{queue}:{sid}", queue) for kind in ("ql", "qr"))
        return (*self.queue_keys(queue)[:3], *memories)

    def history_keys(self, topic: str, sid: str) -> tuple[bytes, ...]:
        """What a topic remembers, and a memory of what ``sid`` appended."""
        return self._key("h", topic), self._key("hm", f"{topic}:{sid}", topic)

    def _record_keys(self, topic: str, node: str, sid: str) -> tuple[bytes, ...]:
        """When leases beside a topic end, what a node keeps there, counts by tag, and a memory of what ``sid`` did."""
        return (
            self._key("rl", topic),
            self._key("rk", f"{topic}:{node}", topic),
            self._key("rt", topic),
            self._key("rm", f"{topic}:{sid}", topic),
        )
