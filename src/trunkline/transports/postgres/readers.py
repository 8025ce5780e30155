"""Readers of shared queues: all pulls of this node on one queue are one *line*, with one place on the server's list.

Rules of this room: a line asks once for as much as its pulls want; when the queue holds less, the server lists it and
wakes it. A cancelled pull takes nothing: what came for it goes to the next one, here or back to its place in the queue.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence

from .outbox import LISTED, Kind, Op, Outbox

__all__ = ["Readers"]

#: Its place in the queue and its end of life (ms), in front of each frame that was taken.
_PLACE = struct.Struct(">qq")

#: Lines kept for queues that nobody pulls from any more.
_IDLE_LINES = 1000


class _Line:
    """The pulls of one queue."""

    def __init__(self, outbox: Outbox, queue: str) -> None:
        self._outbox = outbox
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._take: Op | None = None
        #: The server has us on its list, as far as we know.
        self._listed = False
        self._woken = False

    async def pull(self) -> bytes:
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(future)
        if self._take is None and not self._listed:
            self._ask()
        try:
            return (await future)[_PLACE.size :]
        except asyncio.CancelledError:
            self._withdraw(future)
            raise

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._take or self._listed)

    def _ask(self) -> None:
        self._woken = False
        self._take = self._outbox.submit(Op(Kind.TAKE, self._queue, number=len(self._waiting)))
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
        place, until = _PLACE.unpack_from(frame)
        body = frame[_PLACE.size :]
        self._outbox.submit(Op(Kind.GIVE_BACK, self._queue, body=body, number=place, ttl=until))

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
            self._outbox.submit(Op(Kind.LEAVE, self._queue))

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits."""
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)


class Readers:
    """The pulls of this node."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lines: dict[str, _Line] = {}

    async def pull(self, queue: str) -> bytes:
        """Take the oldest frame of the queue; wait for one."""
        line = self._lines.get(queue)
        if line is None:
            if len(self._lines) >= _IDLE_LINES:
                self._lines = {name: line for name, line in self._lines.items() if not line.idle}
            line = self._lines[queue] = _Line(self._outbox, queue)
        return await line.pull()

    def wake(self, queue: str) -> None:
        """The server says that there is something in a queue."""
        if (line := self._lines.get(queue)) is not None:
            line.wake()

    def wake_all(self) -> None:
        """Let every waiting pull ask again."""
        for line in list(self._lines.values()):
            if not line.idle:
                line.wake()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        for line in self._lines.values():
            line.fail(error)
