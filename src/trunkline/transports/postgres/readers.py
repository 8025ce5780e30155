"""Readers of shared queues: all pulls of this node on one queue are one *line*, with one place on the server's list.

A lease has a line too: what it takes is put off on the server, in the same step, until it is settled or due.

Rules of this room: a line asks once for as much as its pulls want; when the queue holds less, the server lists it and
wakes it. A cancelled pull takes nothing: what came for it goes to the next one, here or back to its place in the queue.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence

from .clock import Clock
from .outbox import LISTED, Kind, Op, Outbox

__all__ = ["Readers"]

#: In front of each frame that was taken: its place in the queue and its end of life (ms), or its lease and its tries.
_HEAD = struct.Struct(">qq")
#: Alone: when something is due that is put off (ms).
_DUE = struct.Struct(">q")

#: Lines kept for queues that nobody pulls from any more.
_IDLE_LINES = 1000

#: Milliseconds: how long it is put off, how long it lives when it is back.
Lease = tuple[int, int]


class _Line:
    """The pulls of one queue, or its leases of one kind."""

    def __init__(self, outbox: Outbox, clock: Clock, queue: str, number: int, lease: Lease | None) -> None:
        self._outbox = outbox
        self._clock = clock
        self._queue = queue
        #: What the server knows it by.
        self.number = number
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._take: Op | None = None
        #: The server has us on its list, as far as we know.
        self._listed = False
        self._woken = False
        self._timer: asyncio.TimerHandle | None = None

    async def take(self) -> tuple[int, int, bytes]:
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(future)
        if self._take is None and not self._listed:
            self._ask()
        try:
            data = await future
        except asyncio.CancelledError:
            self._withdraw(future)
            raise
        return (*_HEAD.unpack_from(data), data[_HEAD.size :])

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._take or self._listed)

    def _ask(self) -> None:
        self._woken = False
        self._stop_timer()
        body = b"" if self._lease is None else _HEAD.pack(*self._lease)
        take = Op(Kind.TAKE, self._queue, body=body, number=len(self._waiting), ttl=self.number)
        self._take = self._outbox.submit(take)
        self._take.future.add_done_callback(self._answered)

    def _answered(self, future: asyncio.Future[tuple[int, Sequence[bytes]]]) -> None:
        self._take = None
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self.fail(error)
            return
        code, frames = future.result()
        # A wake may overtake the answer that says we are listed.
        self._listed = code == LISTED and not self._woken
        for frame in frames:
            if len(frame) == _DUE.size:
                pause = _DUE.unpack(frame)[0] / 1000 - self._clock.now()
                self._timer = self._loop.call_later(max(pause, 0) + 0.002, self.wake)
            else:
                self._pass_on(frame)
        if not self._waiting:
            self._rest()
        elif not self._listed:
            self._ask()

    def _pass_on(self, frame: bytes) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(frame)
                return
        place, until = _HEAD.unpack_from(frame)
        if self._lease is not None:
            self._outbox.submit(Op(Kind.UNLEASE, self._queue, number=place))
        else:
            body = frame[_HEAD.size :]
            self._outbox.submit(Op(Kind.GIVE_BACK, self._queue, body=body, number=place, ttl=until))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """The server says that there is something."""
        self._listed = False
        if self._take is not None:
            self._woken = True
        elif self._waiting:
            self._ask()

    def _withdraw(self, future: asyncio.Future[bytes]) -> None:
        """A pull was cancelled, perhaps after it was given its frame."""
        if not future.cancelled():
            if future.exception() is None:
                self._pass_on(future.result())
        elif future in self._waiting:
            self._waiting.remove(future)
        if not self._waiting and self._take is None:
            self._rest()

    def _rest(self) -> None:
        """Nobody waits: leave the list; a wake that we may have had goes to another reader."""
        if self._listed or self._woken:
            self._listed = self._woken = False
            self._stop_timer()
            self._outbox.submit(Op(Kind.LEAVE, self._queue, number=self.number))

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits."""
        self._stop_timer()
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)


class Readers:
    """The pulls and leases of this node."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock
        self._lines: dict[tuple[str, Lease | None], _Line] = {}
        self._numbers: dict[int, _Line] = {}
        self._number = 0

    async def take(self, queue: str, lease: Lease | None = None) -> tuple[int, int, bytes]:
        """Take the oldest frame of the queue; wait for one. With a lease its token and tries come in front of it."""
        line = self._lines.get((queue, lease))
        if line is None:
            if len(self._lines) >= _IDLE_LINES:
                self._lines = {key: line for key, line in self._lines.items() if not line.idle}
                self._numbers = {line.number: line for line in self._lines.values()}
            self._number += 1
            line = _Line(self._outbox, self._clock, queue, self._number, lease)
            self._lines[queue, lease] = self._numbers[line.number] = line
        return await line.take()

    def wake(self, number: int) -> None:
        """The server says that there is something for a line."""
        if (line := self._numbers.get(number)) is not None:
            line.wake()

    def wake_all(self) -> None:
        """Let everything that waits ask again."""
        for line in list(self._lines.values()):
            if not line.idle:
                line.wake()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        for line in self._lines.values():
            line.fail(error)
