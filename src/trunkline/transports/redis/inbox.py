"""What was posted to this node and not consumed yet, channel by channel, and telling the server what was.

Rules of this room: the server counts what is posted, the owner what is consumed; each report has a number, so that
none counts twice. When the server may have lost count, the owner tells it the truth for a while.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

from ...transport import Arrivals
from .ops import ScriptOp
from .outbox import Outbox
from .scripts import TAKEN, TRUTH

__all__ = ["Inbox", "label", "pack_post"]

#: Seconds that a report of consumed frames may wait for others.
_PATIENCE = 0.1

_UNBOUNDED = 0xFFFFFFFF
_SIZE = struct.Struct(">I")
#: Size and length of the channel's name; its capacity comes behind that.
_HEAD = struct.Struct(">IB")
_CAPACITY = struct.Struct(">I")


def label(channel: str, capacity: int | None) -> bytes:
    """The channel that a posted frame counts against."""
    name = channel.encode()
    return b"%c%b%b" % (len(name), name, _CAPACITY.pack(_UNBOUNDED if capacity is None else capacity))


def pack_post(label: bytes, frame: bytes) -> bytes:
    """A posted frame behind its size and its label. Several can stand one behind the other."""
    return _SIZE.pack(len(label) + len(frame)) + label + frame


class _Channel:
    """What the node knows of one of its channels."""

    __slots__ = ("report_at", "taken", "waiting")

    def __init__(self, capacity: int) -> None:
        #: Posted and not consumed.
        self.waiting = 0
        #: Consumed and not reported, and how much of it is reported at once.
        self.taken = 0
        self.report_at = max(capacity // 4, 1)


class Inbox:
    """The inbox of this node on one server.

    Args:
        keys: Log, sign of life and depths come first.
    """

    def __init__(self, outbox: Outbox, keys: tuple[bytes, ...], arrivals: Arrivals, ttl_ms: int) -> None:
        self._outbox = outbox
        self.keys = keys
        self.ttl_ms = ttl_ms
        self._arrivals = arrivals
        #: Those of which something waits, or is to be reported; and the latter by themselves.
        self._channels: dict[bytes, _Channel] = {}
        self._unreported: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        #: A report goes out in the next turn of the loop.
        self._due = False
        self._doubt_until = 0.0

    def deliver(self, body: bytes) -> None:
        """Take in what was posted: one frame or several."""
        channels, deliver = self._channels, self._arrivals.deliver
        start, end = 0, len(body)
        while start < end:
            size, length = _HEAD.unpack_from(body, start)
            name_end = start + 5 + length
            name = body[start + 5 : name_end]
            channel = channels.get(name)
            if channel is None:
                channel = channels[name] = _Channel(_CAPACITY.unpack_from(body, name_end)[0])
            channel.waiting += 1
            start += 4 + size
            deliver(body[name_end + 4 : start])

    def taken(self, name: str, count: int) -> int:
        """Count what was consumed; returns how much of it was not ours."""
        wire = name.encode()
        channel = self._channels.get(wire)
        if channel is None:
            return count
        ours = count if count <= channel.waiting else channel.waiting
        if ours:
            channel.waiting -= ours
            if not channel.taken:
                self._unreported.append(wire)
            channel.taken += ours
            # A quarter of the room soon: a consumer that keeps up must not be refused for want of a report.
            if channel.taken >= channel.report_at:
                if not self._due:
                    self._due = True
                    self._outbox.loop.call_soon(self.flush)
            elif self._timer is None:
                self._timer = self._outbox.loop.call_later(_PATIENCE, self.flush)
        return count - ours

    def flush(self) -> None:
        """Report now."""
        self._due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unreported and self._outbox.flowing:
            self._submit(TAKEN, self._told())

    def _told(self) -> dict[bytes, int]:
        """What was consumed, which is now reported."""
        unreported, self._unreported = self._unreported, []
        taken = {}
        for name in unreported:
            channel = self._channels[name]
            taken[name], channel.taken = channel.taken, 0
            if not channel.waiting:
                del self._channels[name]
        return taken

    def _submit(self, script: object, counts: dict[bytes, int]) -> asyncio.Future[Any]:
        args: list[bytes | str | int] = [self.ttl_ms]
        for channel, count in counts.items():
            args += (channel, count)
        op = ScriptOp(self._outbox, script, self.keys[2:3], args, numbered=True)  # type: ignore[arg-type]
        self._outbox.submit(op)
        return op.future

    def doubt(self, seconds: float) -> None:
        """The server may have lost count, or may do so in the next seconds."""
        self._doubt_until = time.monotonic() + seconds
        self.tell_truth()

    def tell_truth(self) -> None:
        """Replace the server's counts by ours if they are in doubt."""
        if time.monotonic() < self._doubt_until and self._outbox.flowing:
            self._told()
            waiting = {name: channel.waiting for name, channel in self._channels.items()}
            self._submit(TRUTH, waiting).add_done_callback(self._heard)

    def _heard(self, answer: asyncio.Future[bytes | int]) -> None:
        """While we were cut off, posts found us gone."""
        if not answer.cancelled() and answer.exception() is None and int(answer.result()):
            self._arrivals.gap(
                None, f"{int(answer.result())} messages found this process cut off and were dropped"
            )

    def forget(self) -> None:
        """Everything was flushed."""
        self._channels.clear()
        self._unreported.clear()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
