"""What was posted to this node and not consumed yet, channel by channel, and telling the server what was.

Rules of this room: the server counts what is posted, the owner what is consumed. When the server may have lost count, the
owner tells it the truth for a while.
"""

from __future__ import annotations

import asyncio
import struct
import time

from ...transport import Arrivals
from .outbox import Kind, Op, Outbox

__all__ = ["Inbox", "pack_post"]

#: Seconds that a report of consumed frames may wait for others.
_PATIENCE = 0.1

_UNBOUNDED = 0xFFFFFFFF
_CAPACITY = struct.Struct(">I")


def pack_post(channel: str, capacity: int | None, frame: bytes) -> bytes:
    """A posted frame with the channel it counts against."""
    name = channel.encode()
    bound = _CAPACITY.pack(_UNBOUNDED if capacity is None else min(capacity, _UNBOUNDED))
    return b"%c%b%b%b" % (len(name), name, bound, frame)


class Inbox:
    """The counts of this node's channels."""

    def __init__(self, outbox: Outbox, arrivals: Arrivals) -> None:
        self._outbox = outbox
        self._arrivals = arrivals
        self._waiting: dict[str, int] = {}
        self._report_at: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._doubt_until = 0.0

    def deliver(self, body: bytes) -> None:
        """Take in one posted frame."""
        end = 1 + body[0]
        (capacity,) = _CAPACITY.unpack_from(body, end)
        if capacity != _UNBOUNDED:
            channel = body[1:end].decode()
            self._waiting[channel] = self._waiting.get(channel, 0) + 1
            self._report_at[channel] = max(capacity // 4, 1)
        self._arrivals.deliver(body[end + 4 :])

    def taken(self, channel: str, count: int) -> None:
        """Count what was consumed."""
        waiting = self._waiting.get(channel, 0)
        ours = min(waiting, count)
        if not ours:
            return
        taken = self._taken[channel] = self._taken.get(channel, 0) + ours
        # A quarter of the room at once: a consumer that keeps up must not be refused for want of a report.
        if taken >= self._report_at[channel]:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self.flush)
        if waiting > ours:
            self._waiting[channel] = waiting - ours
        else:
            del self._waiting[channel], self._report_at[channel]

    def flush(self) -> None:
        """Report now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._outbox.flowing:
            taken, self._taken = self._taken, {}
            for channel, count in taken.items():
                self._outbox.submit(Op(Kind.TAKEN, channel, number=count))

    def doubt(self, seconds: float) -> None:
        """The server may have lost count, or may do so in the next seconds."""
        self._doubt_until = time.monotonic() + seconds
        self.tell_truth()

    def tell_truth(self) -> None:
        """Replace the server's counts by ours if they are in doubt."""
        if time.monotonic() < self._doubt_until and self._outbox.flowing:
            self.flush()
            for channel, count in self._waiting.items():
                self._outbox.submit(Op(Kind.TRUTH, channel, number=count))

    def forget(self) -> None:
        """Everything was flushed."""
        self._waiting.clear()
        self._report_at.clear()
        self._taken.clear()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
