"""Readers of shared queues: a line for each queue that is pulled from, with one slot on the server, and the leases.

Rules of this room: a line is woken by the server, or by the poll behind it. The server remembers what a slot was given
last, so a lost answer loses nothing and doubles nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Coroutine, Iterator
from typing import Any

from ...line import Answer, Line, Lines
from .leases import Leases
from .ops import ScriptOp
from .outbox import Outbox
from .scripts import LEAVE, TAKE
from .topology import Names

__all__ = ["Readers"]

#: Milliseconds that the last hand of a slot is remembered; longer than any command can be late.
_MEMORY_MS = 600_000

#: When it is forgotten (ms on the server's clock, as text), and a frame.
_Given = tuple[bytes, bytes]


class _Line(Line[_Given, bytes]):
    """The pulls of one queue."""

    def __init__(
        self, outbox: Outbox, keys: tuple[bytes, ...], slot: bytes, member: bytes, requests: Iterator[int]
    ) -> None:
        super().__init__(outbox.loop)
        self._outbox = outbox
        self._keys = keys
        self._slot, self._member = slot, member
        self._requests = requests
        self._count = 1

    def _request(self, count: int) -> ScriptOp:
        self._count = count
        request = next(self._requests)
        args: list[bytes | str | int] = [self._slot, request, self._member, _MEMORY_MS, count, self._swift]
        answer = Answer(self, self._loop)
        take = ScriptOp(self._outbox, TAKE, self._keys, args, patient=True, future=answer)
        self._outbox.submit(take)
        return take

    def answered(self, result: list[Any]) -> None:
        due = result.pop() if len(result) % 2 else None
        if due:
            self._look_again(due / 1000)
        frames = list(zip(result[::2], result[1::2], strict=True))
        listed = not frames or (len(frames) < self._count and len(frames) <= self._swift)
        self._give(frames, listed=listed, more=due == 0)

    def _return(self, hand: list[_Given], *, listed: bool) -> None:
        hand.reverse()
        args: list[bytes | str | int] = [self._slot, next(self._requests), self._member, _MEMORY_MS]
        args += [deadline for deadline, _ in hand]
        args += [frame for _, frame in hand]
        self._outbox.submit(ScriptOp(self._outbox, LEAVE, self._keys[:4], args, patient=True))

    def _size(self, given: _Given) -> int:
        return len(given[1])

    def _open(self, given: _Given) -> bytes:
        return given[1][1:]


class Readers(Lines[str, bytes, _Line]):
    """The pulls and leases of this node on one server."""

    def __init__(self, outbox: Outbox, names: Names, channel: bytes, sid: str) -> None:
        super().__init__()
        self._outbox = outbox
        self._names = names
        self._channel = channel
        self._sid = sid
        self._requests = itertools.count(1)
        self.leases = Leases(outbox, names, channel, sid)

    def pull(self, queue: str) -> Coroutine[Any, Any, bytes]:
        """Take the oldest frame of the queue; wait for one."""
        return (self._lines.get(queue) or self._make(queue)).pull()

    def _make(self, queue: str) -> _Line:
        slot = f"{self._sid}.{next(self._requests)}".encode()
        *keys, held = self._names.queue_keys(queue)
        # A key for each slot: what is remembered of a slot goes when the slot has gone.
        keys = [*keys, held + b":" + slot, *self._names.put_off_keys(queue)]
        line = _Line(self._outbox, tuple(keys), slot, self._channel + b" " + slot, self._requests)
        return self._add(queue, slot, line)

    def wake(self, name: bytes) -> None:
        """The server says that there is something for a slot."""
        if (line := self._named.get(name)) is not None:
            line.wake()
        else:
            self.leases.wake(name)

    def wake_all(self) -> None:
        """Let every waiting pull ask again."""
        super().wake_all()
        self.leases.wake_all()

    def leave(self) -> None:
        """Put back what nobody has asked for."""
        super().leave()
        self.leases.leave()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        super().fail(error)
        self.leases.fail(error)
