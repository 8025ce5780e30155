"""Subjects and stream names of one prefix. Every name of ours is one token of a subject."""

from __future__ import annotations

import functools
import re

__all__ = ["Subjects", "token"]

_ODD = re.compile(r"[^A-Za-z0-9_-]")


@functools.lru_cache(maxsize=16384)
def token(name: str) -> str:
    """A name as one token: anything NATS gives a meaning to is written ``=XX``."""
    return _ODD.sub(lambda odd: "".join(f"={byte:02X}" for byte in odd[0].encode()), name)


@functools.lru_cache(maxsize=16384)
def _encoded(name: str) -> bytes:
    return token(name).encode()


class Subjects:
    """What is said where.

    ``t`` topics, ``n`` posts to a node, ``r`` answers to a node, ``d`` and ``l`` what JetStream
    delivers to a node, ``q`` queues,
    ``b`` bindings, ``c`` what concerns every node, ``s`` what a server of a cluster is asked, ``a`` what it answers a node,
    ``h`` histories.
    """

    def __init__(self, prefix: str, node: str = "") -> None:
        self.root = token(prefix)
        self._topics = f"{self.root}.t.".encode()
        self._nodes = f"{self.root}.n.".encode()
        me = token(node)
        self.answers = f"{self.root}.r.{me}".encode()
        self.deliveries = f"{self.root}.d.{me}".encode()
        self.log = f"{self.root}.l.{me}".encode()
        self.bindings = f"{self.root}.b.>".encode()
        self.control = f"{self.root}.c".encode()
        self.servers = f"{self.root}.s".encode()
        self.server_answers = f"{self.root}.a.{me}".encode()
        self.all_topics = f"{self.root}.t.>"
        self.topics_stream = f"{self.root}_topics"
        self.queues_stream = f"{self.root}_queues"
        self.history_stream = f"{self.root}_history"
        self.bindings_stream = f"{self.root}_bindings"

    def topic(self, topic: str) -> bytes:
        return self._topics + _encoded(topic)

    def history(self, topic: str) -> str:
        return f"{self.root}.h.{token(topic)}"

    def node(self, node: str) -> bytes:
        return self._nodes + _encoded(node)

    def queue(self, queue: str) -> str:
        """Below it each frame that waits has a slot of its own."""
        return f"{self.root}.q.{token(queue)}"

    def binding(self, topic: str, queue: str) -> bytes:
        return f"{self.root}.b.{token(topic)}.{token(queue)}".encode()
