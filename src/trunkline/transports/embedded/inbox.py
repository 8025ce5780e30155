"""What this node has read: each frame at most once, in each sender's order, and nothing left out.

Two numbers decide. The *watermark*: the log was read up to it. A sender's *mark*: the newest of its frames that came by
datagram, each of which named the one before. Whatever is at or below either was delivered already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .depths import Depths
from .large import Body, length
from .store import Frame, Store

__all__ = ["Inbox"]

#: Rows, and bytes, read from the log before other callbacks have their turn.
_ROWS = 256
_BYTES = 2 << 20


class Inbox:
    """Decides what to deliver."""

    def __init__(self, node: str, deliver: Callable[[bytes], None], depths: Depths) -> None:
        self._node = node
        self._deliver = deliver
        self._depths = depths
        self.watermark = 0
        #: Bytes delivered since the node was opened.
        self.delivered = 0
        self._marks: dict[str, int] = {}
        #: Topic -> id up to which frames were published before the subscription.
        self.topics: dict[str, int] = {}

    def reset(self, watermark: int) -> None:
        """Start from here: the log was replaced, or this node joined again."""
        self.watermark = watermark
        self._marks.clear()
        self.topics.clear()

    def push(
        self, store: Store, sender: str, previous: int, last: int, frames: list[list[Any]] | None
    ) -> bool:
        """Take the frames of one datagram; False when the log must be read."""
        mark = max(self.watermark, self._marks.get(sender, 0))
        if last <= mark:
            return True
        if frames is None or previous > mark:
            return False
        self._marks[sender] = last
        until = self.delivered + _BYTES
        for id, topic, channel, capacity, body in frames:
            if id <= mark:
                continue
            if self.delivered > until or not self._take(store, id, topic, channel, capacity, body):
                self._marks[sender] = id - 1
                return False
        return True

    def read(self, store: Store) -> bool:
        """Read the log; False when more is left than fits one turn."""
        last = store.last()
        rows: list[Frame] = []
        size = 0
        complete = True
        for frame in store.unread(self._node, self.watermark, last):
            if len(rows) >= _ROWS or size > _BYTES:
                complete = False
                break
            rows.append(frame)
            size += length(frame.body)
        for frame in rows:
            self.watermark = frame.id
            if frame.id > self._marks.get(frame.sender, 0):
                self._take(store, frame.id, frame.topic, frame.channel, frame.capacity, frame.body)
        if complete:
            self.watermark = max(self.watermark, last)
            self._marks.clear()  # all of them are at or below the watermark now
        return complete

    def _take(
        self, store: Store, id: int, topic: str, channel: str | None, capacity: int | None, body: Body
    ) -> bool:
        """Deliver a frame to whom it concerns; False when its body is gone."""
        if id > self.topics.get(topic, id):
            frame = body if isinstance(body, bytes) else store.load(id, body)
            if frame is None:
                return False
            self.delivered += len(frame) + 100
            if channel is not None:
                self._depths.hold(channel, capacity)
            self._deliver(frame)
        return True

    def unread_posts(self, store: Store, inbox: str) -> dict[str, int]:
        """How many posted frames of each channel wait in the log."""
        waiting: dict[str, int] = {}
        for frame in store.unread(self._node, self.watermark, store.last()):
            if (
                frame.channel is not None
                and frame.topic == inbox
                and frame.id > self._marks.get(frame.sender, 0)
            ):
                waiting[frame.channel] = waiting.get(frame.channel, 0) + 1
        return waiting
