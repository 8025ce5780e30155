"""Readers of shared queues: all pulls of this node on one queue are one *line*, with one place on the server's list.

A lease has a line too: what it takes is put off on the server, in the same step, until it is settled or due.

Rules of this room: a line asks once; when the queue holds less, the server lists it and wakes it. A line of pulls whose
consumer comes back at once is given several frames at a time, its *hand*; what nobody has asked for a few milliseconds later
goes back to its place in the queue, so a slow consumer never sits on what others could do. A cancelled pull takes
nothing: what came for it goes to the next one, here or back to its place.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Sequence

from ...clock import Clock
from .outbox import LISTED, Kind, Op, Outbox

__all__ = ["Readers"]

#: In front of each frame that was taken: its place in the queue and its end of life (ms), or its lease and its tries.
_HEAD = struct.Struct(">qq")
#: Alone: when something is due that is put off (ms).
_DUE = struct.Struct(">q")

#: Frames and bytes given at a time, at most; bytes roughly, for nobody knows them before.
_MOST, _MOST_BYTES = 16, 128 << 10

#: Seconds within which a consumer is back that asks at once, and that a hand may lie unasked for.
_AT_ONCE, _PATIENCE = 0.001, 0.005

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
        self._hand: deque[bytes] = deque()
        self._take: Op | None = None
        #: The server has us on its list, as far as we know.
        self._listed = False
        self._woken = False
        self._most = self._given = 1
        self._given_at = self._handed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        #: When something that is put off is due.
        self._due: asyncio.TimerHandle | None = None

    async def take(self) -> tuple[int, int, bytes]:
        if self._hand:
            self._handed_at = time.monotonic()
            data = self._hand.popleft()
        else:
            future: asyncio.Future[bytes] = self._loop.create_future()
            self._waiting.append(future)
            if self._take is None:
                self._adapt()
                if not self._listed:
                    self._ask()
            try:
                data = await future
            except asyncio.CancelledError:
                self._withdraw(future)
                raise
        return (*_HEAD.unpack_from(data), data[_HEAD.size :])

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._hand or self._take or self._listed)

    # -- asking

    def _adapt(self) -> None:
        """How much to ask for: the consumer is back, and all it was given is done. The time of a lease runs: no hand."""
        now = time.monotonic()
        if now - self._handed_at > _AT_ONCE or self._lease is not None:
            self._most = 1
        elif now - self._given_at < _PATIENCE / 2:
            self._most = min(self._most * 2, _MOST)

    def _ask(self) -> None:
        self._woken = False
        self._stop(self._due)
        body = b"" if self._lease is None else _HEAD.pack(*self._lease)
        # With less than it asks for it is listed, though the consumer may be busy with what it got: one that comes back at
        # once is thus saved a request that finds nothing.
        count = max(len(self._waiting), self._most)
        take = Op(Kind.TAKE, self._queue, body=body, number=count, ttl=self.number)
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
        # A wake from before we asked is used up: who takes passes it on. One that overtook this answer is not.
        self._woken = self._woken and code == LISTED
        self._listed = code == LISTED and not self._woken
        self._given, self._given_at = len(frames), time.monotonic()
        waited = bool(self._waiting)
        for frame in frames:
            if len(frame) == _DUE.size:
                pause = _DUE.unpack(frame)[0] / 1000 - self._clock.now()
                self._due = self._loop.call_later(max(pause, 0) + 0.002, self.wake)
            else:
                self._pass_on(frame)
        if not waited:
            self._rest()
        elif not self._waiting:
            self._bound()
        elif not self._listed:
            self._ask()

    def _pass_on(self, frame: bytes) -> bool:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(frame)
                self._handed_at = time.monotonic()
                return True
        self._hand.append(frame)
        return False

    def wake(self) -> None:
        """The server says that there is something."""
        if self._take is None and self._waiting:
            self._listed = False
            self._ask()
        elif self._take is not None or self._listed:
            self._listed = False
            self._woken = True

    # -- giving back

    def _bound(self) -> None:
        """Nobody waits any more, but somebody was there: it has a moment to come back."""
        if not (self._hand or self._listed or self._woken):
            return
        size = sum(map(len, self._hand))
        if size > _MOST_BYTES:
            self._most = max(self._most * _MOST_BYTES // (2 * size), 1)
        if self._timer is None:
            self._timer = self._loop.call_later(_PATIENCE, self._look, self._given_at)

    def _look(self, given_at: float) -> None:
        self._timer = None
        if self._waiting or self._take is not None or not (self._hand or self._listed or self._woken):
            return
        rest = self._given_at + _PATIENCE - time.monotonic()
        # However late it is: who was given something in this very turn of the loop has a turn first.
        if rest > 0 or self._given_at != given_at:
            self._timer = self._loop.call_later(max(rest, 0.0), self._look, self._given_at)
        else:
            if self._hand:
                self._most = max(self._given - len(self._hand), 1)
            self._leave()

    def _withdraw(self, future: asyncio.Future[bytes]) -> None:
        """A pull was cancelled, perhaps after it was given its frame."""
        if not future.cancelled():
            if future.exception() is None and not self._pass_on(future.result()):
                self._hand.rotate(1)  # it is the oldest
        elif future in self._waiting:
            self._waiting.remove(future)
        if not self._waiting:
            self._rest()

    def _rest(self) -> None:
        """Nobody waits."""
        if self._take is not None:
            if self._take.seq:
                return  # its answer decides
            self._take.future.cancel()
            self._take = None
        self._leave()

    def _leave(self) -> None:
        """Put back what is in the hand, and leave the list; a wake that we may have had goes to another reader."""
        for frame in self._hand:
            place, until = _HEAD.unpack_from(frame)
            if self._lease is not None:
                self._outbox.submit(Op(Kind.UNLEASE, self._queue, number=place))
            else:
                body = frame[_HEAD.size :]
                self._outbox.submit(Op(Kind.GIVE_BACK, self._queue, body=body, number=place, ttl=until))
        self._hand.clear()
        if self._listed or self._woken:
            self._listed = self._woken = False
            self._outbox.submit(Op(Kind.LEAVE, self._queue, number=self.number))
        self._stop(self._due)

    def _stop(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def give_back(self) -> None:
        """Put back what nobody has asked for."""
        if self._hand:
            self._leave()

    def forget(self) -> None:
        """Everything was flushed."""
        self._hand.clear()

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits."""
        self._stop(self._due)
        self._stop(self._timer)
        self._timer = None
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

    def give_back(self) -> None:
        """Put back what nobody has asked for."""
        for line in self._lines.values():
            line.give_back()

    def forget(self) -> None:
        """Everything was flushed."""
        for line in self._lines.values():
            line.forget()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        for line in self._lines.values():
            line.fail(error)
