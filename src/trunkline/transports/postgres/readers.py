"""Readers of shared queues: a line for each queue that is pulled from, with one place on the server's list.

A lease has a line too: what it takes is put off on the server, in the same step, until it is settled or due.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Coroutine, Sequence
from typing import Any

from ...clock import Clock
from ...line import Answer, Line, Lines
from .outbox import LISTED, Kind, Op, Outbox

__all__ = ["Readers"]

#: In front of each frame that was taken: its place in the queue and its end of life (ms), or its lease and its tries.
_HEAD = struct.Struct(">qq")
#: Alone: when something is due that is put off (ms).
_DUE = struct.Struct(">q")

#: Milliseconds: how long it is put off, how long it lives when it is back.
Lease = tuple[int, int]


class _Line(Line[bytes, tuple[int, int, bytes]]):
    """The pulls of one queue, or its leases of one kind."""

    def __init__(self, outbox: Outbox, clock: Clock, queue: str, number: int, lease: Lease | None) -> None:
        loop = asyncio.get_running_loop()
        if lease is None:
            super().__init__(loop)
        else:
            super().__init__(loop, most=1)  # its time runs: no hand
        self._outbox = outbox
        self._clock = clock
        self._queue = queue
        #: What the server knows it by.
        self._number = number
        self._lease = lease

    def _request(self, count: int) -> Op:
        body = b"" if self._lease is None else _HEAD.pack(*self._lease)
        answer = Answer(self, self._loop)
        take = Op(Kind.TAKE, self._queue, body=body, number=count, ttl=self._number, future=answer)
        return self._outbox.submit(take)

    def answered(self, result: tuple[int, Sequence[bytes]]) -> None:
        code, extras = result
        frames = []
        for extra in extras:
            if len(extra) == _DUE.size:
                pause = _DUE.unpack(extra)[0] / 1000 - self._clock.now()
                self._look_again(max(pause, 0) + 0.002)
            else:
                frames.append(extra)
        self._give(frames, listed=code == LISTED)

    def _return(self, hand: list[bytes], *, listed: bool) -> None:
        for frame in hand:
            place, until = _HEAD.unpack_from(frame)
            if self._lease is not None:
                self._outbox.submit(Op(Kind.UNLEASE, self._queue, number=place))
            else:
                body = frame[_HEAD.size :]
                self._outbox.submit(Op(Kind.GIVE_BACK, self._queue, body=body, number=place, ttl=until))
        if listed:
            self._outbox.submit(Op(Kind.LEAVE, self._queue, number=self._number))

    def _size(self, given: bytes) -> int:
        return len(given)

    def _open(self, given: bytes) -> tuple[int, int, bytes]:
        return (*_HEAD.unpack_from(given), given[_HEAD.size :])


class Readers(Lines[tuple[str, Lease | None], int, _Line]):
    """The pulls and leases of this node."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        super().__init__()
        self._outbox = outbox
        self._clock = clock
        self._number = 0

    def take(self, queue: str, lease: Lease | None = None) -> Coroutine[Any, Any, tuple[int, int, bytes]]:
        """Take the oldest frame of the queue; wait for one. With a lease its token and tries come in front of it."""
        line = self._lines.get((queue, lease))
        if line is None:
            self._number += 1
            line = _Line(self._outbox, self._clock, queue, self._number, lease)
            self._add((queue, lease), self._number, line)
        return line.pull()
