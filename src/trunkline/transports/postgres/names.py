"""What a prefix, a topic and a node are called in the database."""

from __future__ import annotations

import functools
import hashlib

__all__ = ["CHANNEL", "Names"]

#: What the names of notification channels begin with; the topic follows in hex.
CHANNEL = "trunkline_"


class Names:
    """The names of one prefix in one schema: two of them never meet."""

    def __init__(self, schema: str, prefix: str) -> None:
        self._stem = f"{schema}/{prefix}/"
        #: The number that marks the rows of this prefix.
        self.area = int.from_bytes(self._hash("prefix", "")[:8], "big", signed=True)
        self.news = self._hash("news", "")
        self.topic = functools.lru_cache(maxsize=16384)(functools.partial(self._hash, "topic"))
        self.inbox = functools.lru_cache(maxsize=16384)(functools.partial(self._hash, "node"))

    def _hash(self, kind: str, name: str) -> bytes:
        return hashlib.blake2b(f"{self._stem}{kind}/{name}".encode(), digest_size=16).digest()
