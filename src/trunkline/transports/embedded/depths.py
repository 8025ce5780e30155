"""Posted frames that count against a channel's capacity until its owner reports them taken.

Senders see the count in the log. The owner writes it down in batches, so that a consumer pays for a transaction once in
a while; but before senders could be refused for room that is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from .store import Store
from .writer import After, Writer, nothing

__all__ = ["Depths"]

#: Seconds until a count of taken frames is written down, if it is not urgent.
_LATER = 0.1


class Depths:
    """Counts the posted frames of this node's channels."""

    def __init__(self, loop: asyncio.AbstractEventLoop, node: str, writer: Writer) -> None:
        self._loop = loop
        self._node = node
        self._writer = writer
        self._timer: asyncio.TimerHandle | None = None
        #: Taken, and not yet written down.
        self._taken: dict[str, int] = {}
        self._writing = False
        #: Delivered here and, for all that senders know, waiting.
        self._held: dict[str, int] = {}
        self._capacities: dict[str, int] = {}

    def hold(self, channel: str, capacity: int | None) -> None:
        """A posted frame was delivered."""
        self._held[channel] = self._held.get(channel, 0) + 1
        self._capacities[channel] = capacity or 1

    def take(self, channel: str, count: int) -> None:
        """The consumer took ``count`` frames."""
        taken = self._taken[channel] = self._taken.get(channel, 0) + count
        capacity = self._capacities.get(channel, 1)
        if taken * 4 >= capacity or self._held.get(channel, 0) * 2 >= capacity:
            self._write_soon()
        elif self._timer is None:
            self._timer = self._loop.call_later(_LATER, self._write_soon)

    def forget(self) -> None:
        """Count from zero: the log was flushed or replaced."""
        self._taken.clear()
        self._held.clear()
        self._capacities.clear()
        self._writing = False
        self.stop()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def recount(self, store: Store, unread: Mapping[str, int]) -> After:
        """Write the counts down afresh: frames had expired unread."""
        store.forget_depths(self._node)
        for channel in {*unread, *self._held}:
            store.set_depth(self._node, channel, unread.get(channel, 0) + self._held.get(channel, 0))
        return nothing

    def _write_soon(self) -> None:
        self.stop()
        # One at a time: two in one transaction would count twice.
        if self._taken and not self._writing:
            self._writing = True
            self._writer.submit(self._write, self._failed)

    def _write(self, store: Store) -> After:
        taken = dict(self._taken)
        for channel, count in taken.items():
            store.set_depth(self._node, channel, store.depth(self._node, channel) - count)
        return lambda: self._written(taken)

    def _written(self, taken: dict[str, int]) -> None:
        self._writing = False
        for channel, count in taken.items():
            _subtract(self._taken, channel, count)
            _subtract(self._held, channel, count)
            if channel not in self._held:
                self._capacities.pop(channel, None)

    def _failed(self) -> None:
        self._writing = False
        if self._timer is None:
            self._timer = self._loop.call_later(_LATER, self._write_soon)


def _subtract(counts: dict[str, int], channel: str, count: int) -> None:
    left = counts.get(channel, 0) - count
    if left > 0:
        counts[channel] = left
    else:
        counts.pop(channel, None)
