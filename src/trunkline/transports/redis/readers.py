"""Readers of shared queues: all pulls of this node on one queue are one *line*, with one slot on the server.

Rules of this room: a line asks once, and if the queue is empty waits until the server, or the poll behind it, wakes its
slot. A line whose consumer comes back at once is given several frames at a time, its *hand*; what nobody has asked for
a few milliseconds later goes back to the front of the queue, so a slow consumer never sits on what others could do.
The server remembers what a slot was given last, so a lost answer loses nothing and doubles nothing. A cancelled pull
takes nothing: what it may have been given goes to the next one, here or back on the server.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any

from .leases import Leases
from .ops import ScriptOp
from .outbox import Outbox
from .scripts import LEAVE, TAKE
from .topology import Names

__all__ = ["Readers"]

#: Milliseconds that the last hand of a slot is remembered; longer than any command can be late.
_MEMORY_MS = 600_000

#: Frames and bytes given at a time, at most; bytes roughly, for nobody knows them before.
_MOST, _MOST_BYTES = 16, 128 << 10

#: Seconds within which a consumer is back that asks at once, and that a hand may lie unasked for.
_AT_ONCE, _PATIENCE = 0.001, 0.005

#: Lines kept for queues that nobody pulls from any more.
_IDLE_LINES = 1000

#: When it is forgotten (ms on the server's clock, as text), and a frame.
_Given = tuple[bytes, bytes]


class _Asked(asyncio.Future[list[bytes]]):
    """An answer that the line takes at once, not in the next turn of the loop."""

    def __init__(self, line: _Line, count: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._line = line
        self._count = count

    def set_result(self, result: list[bytes]) -> None:
        super().set_result(result)
        if len(result) % 2:
            self._line.look_again(result.pop())
        self._line.give(list(zip(result[::2], result[1::2], strict=True)), self._count)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        if (error := self.exception()) is not None:  # which also marks it as heard
            self._line.fail(error)


class _Line:
    """The pulls of one queue."""

    def __init__(
        self, outbox: Outbox, keys: tuple[bytes, ...], slot: bytes, member: bytes, requests: Iterator[int]
    ) -> None:
        self._outbox = outbox
        self._keys = keys
        self.slot, self._member = slot, member
        self._requests = requests
        self._waiting: deque[asyncio.Future[_Given]] = deque()
        self._hand: deque[_Given] = deque()
        self._take: ScriptOp | None = None
        #: The server has us on its list of idle readers, as far as we know.
        self._listed = False
        self._woken = False
        self._most = self._given = 1
        self._given_at = self._handed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        #: When a frame that is put off is due.
        self._due: asyncio.TimerHandle | None = None

    async def pull(self) -> bytes:
        if self._hand:
            self._handed_at = time.monotonic()
            return self._hand.popleft()[1][1:]
        future: asyncio.Future[_Given] = self._outbox.loop.create_future()
        self._waiting.append(future)
        if self._take is None:
            self._adapt()
            if not self._listed:
                self._ask()
        try:
            return (await future)[1][1:]
        except asyncio.CancelledError:
            self._withdraw(future)
            raise

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._hand or self._take)

    # -- asking

    def _adapt(self) -> None:
        """How much to ask for: the consumer is back, and all it was given is done."""
        now = time.monotonic()
        if now - self._handed_at > _AT_ONCE:
            self._most = 1
        elif now - self._given_at < _PATIENCE / 2:
            self._most = min(self._most * 2, _MOST)

    def _ask(self) -> None:
        self._woken = False
        # With less than it asks for it is listed as idle, though the consumer may be busy with what it got: one that
        # comes back at once is thus saved a request that finds nothing.
        count = max(len(self._waiting), self._most)
        asked = _Asked(self, count, self._outbox.loop)
        args: list[bytes | str | int] = [self.slot, next(self._requests), self._member, _MEMORY_MS, count]
        self._take = ScriptOp(self._outbox, TAKE, self._keys, args, patient=True, future=asked)
        self._outbox.submit(self._take)

    def give(self, frames: list[_Given], count: int) -> None:
        """Take the answer: those who wait first, the rest stays in the hand for a moment."""
        self._take = None
        listed = len(frames) < count
        # A wake from before we asked is used up: who takes passes it on. One that overtook this answer is not.
        self._woken = self._woken and listed
        self._listed = listed and not self._woken
        self._given, self._given_at = len(frames), time.monotonic()
        waited = bool(self._waiting)
        for given in frames:
            self._pass_on(given)
        if not waited:
            self._rest()
        elif not self._waiting:
            self._bound()
        elif self._woken or not self._listed:
            self._ask()

    def _pass_on(self, given: _Given) -> bool:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(given)
                self._handed_at = self._given_at
                return True
        self._hand.append(given)
        return False

    def wake(self) -> None:
        """The server says that there is something."""
        if self._take is None and self._waiting:
            self._listed = False
            self._ask()
        elif self._take is not None or self._listed:
            self._listed = False
            self._woken = True

    def look_again(self, ms: Any) -> None:
        """A frame is due in so many ms."""
        if self._due is not None:
            self._due.cancel()
        self._due = self._outbox.loop.call_later(ms / 1000, self.wake)

    # -- giving back

    def _bound(self) -> None:
        if not (self._hand or self._listed or self._woken):
            return
        size = sum(len(frame) for _, frame in self._hand)
        if size > _MOST_BYTES:
            self._most = max(self._most * _MOST_BYTES // (2 * size), 1)
        if self._timer is None:
            self._timer = self._outbox.loop.call_later(_PATIENCE, self._look, self._given_at)

    def _look(self, given_at: float) -> None:
        self._timer = None
        if self._waiting or self._take is not None or not (self._hand or self._listed or self._woken):
            return
        rest = self._given_at + _PATIENCE - time.monotonic()
        # However late it is: who was given something in this very turn of the loop has a turn first.
        if rest > 0 or self._given_at != given_at:
            self._timer = self._outbox.loop.call_later(max(rest, 0.0), self._look, self._given_at)
        else:
            if self._hand:
                self._most = max(self._given - len(self._hand), 1)
            self.leave()

    def _withdraw(self, future: asyncio.Future[_Given]) -> None:
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
        self.leave()

    def leave(self) -> None:
        """Put back what is in the hand, and wait for no more; a wake that we may have had goes to another reader."""
        if not (self._hand or self._listed or self._woken):
            return
        back = list(reversed(self._hand))
        self._hand.clear()
        self._listed = self._woken = False
        args: list[bytes | str | int] = [self.slot, next(self._requests), self._member, _MEMORY_MS]
        args += [deadline for deadline, _ in back]
        args += [frame for _, frame in back]
        self._outbox.submit(ScriptOp(self._outbox, LEAVE, self._keys[:4], args, patient=True))

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits."""
        self._take = None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def forget(self) -> None:
        """Everything was flushed."""
        self._hand.clear()

    def close(self) -> None:
        for timer in (self._timer, self._due):
            if timer is not None:
                timer.cancel()
        self._timer = self._due = None


class Readers:
    """The pulls of this node on one server."""

    def __init__(self, outbox: Outbox, names: Names, channel: bytes, sid: str) -> None:
        self._outbox = outbox
        self._names = names
        self._channel = channel
        self._sid = sid
        self._lines: dict[str, _Line] = {}
        self._slots: dict[bytes, _Line] = {}
        self._requests = itertools.count(1)
        self.leases = Leases(outbox, names, channel, sid)

    def pull(self, queue: str) -> Coroutine[Any, Any, bytes]:
        """Take the oldest frame of the queue; wait for one."""
        return (self._lines.get(queue) or self._make(queue)).pull()

    def _make(self, queue: str) -> _Line:
        if len(self._lines) >= _IDLE_LINES:
            self._lines = {name: line for name, line in self._lines.items() if not line.idle}
            self._slots = {line.slot: line for line in self._lines.values()}
        slot = f"{self._sid}.{next(self._requests)}".encode()
        *keys, held = self._names.queue_keys(queue)
        put_off = self._names.put_off_keys(queue)
        # A key for each slot: what is remembered of a slot goes when the slot has gone.
        line = _Line(
            self._outbox,
            (*keys, held + b":" + slot, *put_off),
            slot,
            self._channel + b" " + slot,
            self._requests,
        )
        self._lines[queue] = self._slots[slot] = line
        return line

    def wake(self, slot: bytes) -> None:
        """The server says that there is something for a slot."""
        line = self._slots.get(slot)
        if line is not None:
            line.wake()
        else:
            self.leases.wake(slot)

    def wake_all(self) -> None:
        """Let every waiting pull ask again."""
        for line in list(self._lines.values()):
            line.wake()
        self.leases.wake_all()

    def forget(self) -> None:
        """Everything was flushed."""
        for line in self._lines.values():
            line.forget()

    def leave(self) -> None:
        """Put back what nobody has asked for."""
        for line in self._lines.values():
            line.leave()
        self.leases.leave()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        for line in self._lines.values():
            line.fail(error)
            line.close()
        self.leases.fail(error)
