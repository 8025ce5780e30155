"""Lines: all pulls of a node on one queue are one *line*, which asks for several frames at a time. For transports whose
server keeps a list of the readers that wait, and wakes them.

Rules of this room: a line asks once; if the queue holds less than it asks for, the server lists it, and wakes it when
there is something. A line whose consumer comes back at once is given several frames, its *hand*; what nobody has asked for
a few milliseconds later goes back to its place in the queue, so a slow consumer never sits on what others could do.
A server may leave the rest of a queue to a line whose consumer is quick, and tell nobody else: when the consumer stays away
for a few milliseconds, the line passes that on.
A cancelled pull takes nothing: what it may have been given goes to the next one, here or back on the server.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Answer", "Line", "Lines"]

#: Frames and bytes given at a time, at most; bytes roughly, for nobody knows them before.
_MOST, _MOST_BYTES = 16, 128 << 10

#: Seconds within which a consumer is back that asks at once, and that a hand may lie unasked for.
_AT_ONCE, _PATIENCE = 0.001, 0.005

#: Seconds of work that are not worth waking another reader for.
_MOMENT = 0.0005

#: Lines kept for queues that nobody pulls from any more.
_IDLE_LINES = 1000

#: A frame as the server gives it, and what a pull returns of it.
_Given = TypeVar("_Given")
_Taken = TypeVar("_Taken")


class Asked(Protocol):
    """A request on its way out."""

    #: Zero until it was sent.
    seq: int
    future: asyncio.Future[Any]


class Answer(asyncio.Future[Any]):
    """An answer that its line takes at once, not in the next turn of the loop."""

    def __init__(self, line: Line[Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._line = line

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self._line.answered(result)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        if (error := self.exception()) is not None:  # which also marks it as heard
            self._line.fail(error)


class Line(ABC, Generic[_Given, _Taken]):
    """The pulls of one queue.

    Args:
        most: Frames that it is given at a time, at most.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int = _MOST) -> None:
        self._loop = loop
        self._limit = most
        self._waiting: deque[asyncio.Future[_Given]] = deque()
        self._hand: deque[_Given] = deque()
        self._asked: Asked | None = None
        #: The server has us on its list, as far as we know.
        self._listed = False
        self._woken = False
        self._most, self._given = 1, 0
        self._given_at = self._handed_at = 0.0
        #: Frames that its consumer does in a moment, as far as the last ones tell.
        self._swift = 0
        self._timer: asyncio.TimerHandle | None = None
        #: When a frame that is put off is due.
        self._due: asyncio.TimerHandle | None = None

    # -- what each transport does its own way

    @abstractmethod
    def _request(self, count: int) -> Asked:
        """Ask the server for so many frames; its ``Answer`` comes to ``answered``."""

    @abstractmethod
    def answered(self, result: Any) -> None:
        """Take the answer apart, for ``_give`` and ``_look_again``."""

    @abstractmethod
    def _return(self, hand: list[_Given], *, listed: bool) -> None:
        """Put frames back to their place, the oldest first; a line that may be listed, or was woken, is to be no more."""

    @abstractmethod
    def _size(self, given: _Given) -> int:
        """Bytes of a frame."""

    @abstractmethod
    def _open(self, given: _Given) -> _Taken:
        """What a pull returns."""

    # -- pulling

    async def pull(self) -> _Taken:
        """Take the oldest frame; wait for one."""
        if self._hand:
            self._handed_at = time.monotonic()
            return self._open(self._hand.popleft())
        future: asyncio.Future[_Given] = self._loop.create_future()
        self._waiting.append(future)
        if self._asked is None:
            self._adapt()
            if not self._listed:
                self._ask()
        try:
            return self._open(await future)
        except asyncio.CancelledError:
            self._withdraw(future)
            raise

    @property
    def idle(self) -> bool:
        """Whether it could be forgotten."""
        return not (self._waiting or self._hand or self._asked or self._listed)

    # -- asking

    def _adapt(self) -> None:
        """How much to ask for: the consumer is back, and all it was given is done."""
        now = time.monotonic()
        if self._given:
            self._swift = int(self._given * _MOMENT / max(now - self._given_at, 1e-6))
            self._given = 0
        if now - self._handed_at > _AT_ONCE:
            self._most = 1
        elif now - self._given_at < _PATIENCE / 2:
            self._most = min(self._most * 2, self._limit)

    def _ask(self) -> None:
        self._woken = False
        self._stop_due()
        # With less than it asks for it is listed, though the consumer may be busy with what it got: one that comes back at
        # once is thus saved a request that finds nothing.
        self._asked = self._request(max(len(self._waiting), self._most))

    def _give(self, frames: list[_Given], *, listed: bool, more: bool = False) -> None:
        """Take what the server gave: those who wait first, the rest stays in the hand for a moment.

        Args:
            more: There is more, of which nobody else was told.
        """
        self._asked = None
        # A wake from before we asked is used up: who takes passes it on. One that overtook this answer is not.
        self._woken = (self._woken and listed) or more
        self._listed = listed and not self._woken
        self._given, self._given_at = len(frames), time.monotonic()
        waited = bool(self._waiting)
        for given in frames:
            self._pass_on(given)
        if not waited:
            self._rest()
        elif not self._waiting:
            self._bound()
        elif not self._listed:
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
        if self._asked is None and self._waiting:
            self._listed = False
            self._ask()
        elif self._asked is not None or self._listed:
            self._listed = False
            self._woken = True

    def _look_again(self, seconds: float) -> None:
        """A frame that is put off is due then."""
        self._stop_due()
        self._due = self._loop.call_later(seconds, self.wake)

    def _stop_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    # -- giving back

    def _bound(self) -> None:
        """Nobody waits any more, but somebody was there: it has a moment to come back."""
        if not (self._hand or self._listed or self._woken):
            return
        if self._hand:
            size = sum(map(self._size, self._hand))
            if size > _MOST_BYTES:
                self._most = max(self._most * _MOST_BYTES // (2 * size), 1)
        if self._timer is None:
            self._timer = self._loop.call_later(_PATIENCE, self._look, self._given_at)

    def _look(self, given_at: float) -> None:
        self._timer = None
        if self._waiting or self._asked is not None or not (self._hand or self._listed or self._woken):
            return
        rest = self._given_at + _PATIENCE - time.monotonic()
        # However late it is: who was given something in this very turn of the loop has a turn first.
        if rest > 0 or self._given_at != given_at:
            self._timer = self._loop.call_later(max(rest, 0.0), self._look, self._given_at)
        else:
            if self._hand:
                self._most = min(max(self._given - len(self._hand), 1), self._limit)
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
        if self._asked is not None:
            if self._asked.seq:
                return  # its answer decides
            self._asked.future.cancel()
            self._asked = None
        self.leave()

    def leave(self) -> None:
        """Put back what is in the hand, and wait for no more; a wake that we may have had goes to another reader."""
        listed = self._listed or self._woken
        if self._hand or listed:
            hand = list(self._hand)
            self._hand.clear()
            self._listed = self._woken = False
            self._stop_due()
            self._return(hand, listed=listed)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits."""
        self._asked = None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def forget(self) -> None:
        """Everything was flushed."""
        self._hand.clear()

    def close(self) -> None:
        """Wait for nothing more."""
        self._stop_due()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_Key = TypeVar("_Key", bound=Hashable)
_Name = TypeVar("_Name", bound=Hashable)
_L = TypeVar("_L", bound=Line[Any, Any])


class Lines(Generic[_Key, _Name, _L]):
    """The lines of a node on one server."""

    def __init__(self) -> None:
        self._lines: dict[_Key, _L] = {}
        #: By what the server knows them by.
        self._named: dict[_Name, _L] = {}

    def _add(self, key: _Key, name: _Name, line: _L) -> _L:
        if len(self._lines) >= _IDLE_LINES:
            self._lines = {each: line for each, line in self._lines.items() if not line.idle}
            self._named = {each: line for each, line in self._named.items() if not line.idle}
        self._lines[key] = self._named[name] = line
        return line

    def wake(self, name: _Name) -> None:
        """The server says that there is something for a line."""
        if (line := self._named.get(name)) is not None:
            line.wake()

    def wake_all(self) -> None:
        """Let everyone who waits ask again."""
        for line in list(self._lines.values()):
            line.wake()

    def leave(self) -> None:
        """Put back what nobody has asked for."""
        for line in self._lines.values():
            line.leave()

    def forget(self) -> None:
        """Everything was flushed."""
        for line in self._lines.values():
            line.forget()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        for line in self._lines.values():
            line.fail(error)
            line.close()
