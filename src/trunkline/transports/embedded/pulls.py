"""The local readers of shared queues, in the order they came.

A frame is taken from the log only for a reader that waits, and handed over without an ``await`` in between. A reader
cancelled in the instant between hand-over and resumption gives it to the next one, or back to where it was. For a reader
that leases, the same transaction puts the frame off.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ...errors import LayerClosed
from .store import Queued, Store
from .writer import After, Writer, nothing

__all__ = ["Pulls"]

#: Seconds that a lease takes, and that its frame lives once it is back.
Terms = tuple[float, float]


class Taken(NamedTuple):
    """A frame on its way from the log to a reader."""

    row: int
    expires: float
    body: bytes
    tries: int
    #: What the frame is put off as, when it was leased.
    token: int | None
    terms: Terms | None


class _Reader(asyncio.Future[Taken]):
    """One that waits, to take a frame or, on terms, to lease it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, terms: Terms | None) -> None:
        super().__init__(loop=loop)
        self.terms = terms


class _Readers:
    __slots__ = ("asking", "idle", "timer", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Reader] = deque()
        #: When a frame that is put off is due.
        self.timer: asyncio.TimerHandle | None = None
        #: A transaction that takes for them is on its way.
        self.asking = False
        #: Others know that somebody here is idle, and send a wake with the next frame.
        self.idle = False


class Pulls:
    """Hands frames of shared queues to the readers of this node."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, node: str, writer: Writer, wake: Callable[[str, str], None]
    ) -> None:
        self._loop = loop
        self._node = node
        self._writer = writer
        self._wake = wake
        self._queues: dict[str, _Readers] = {}
        self.closed = False

    async def pull(self, queue: str, terms: Terms | None = None) -> Taken:
        if self.closed:
            raise LayerClosed
        readers = self._queues.setdefault(queue, _Readers())
        mine = _Reader(self._loop, terms)
        readers.waiting.append(mine)
        if not readers.idle:
            self._ask(queue, readers)
        try:
            return await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self._return(queue, readers, mine.result())
            elif mine in readers.waiting:
                readers.waiting.remove(mine)
            raise

    def woken(self, queue: str) -> None:
        """A frame came for an idle reader of this node."""
        readers = self._queues.get(queue)
        if readers is None or not readers.waiting:
            if readers is not None:
                del self._queues[queue]
            self.pass_on(queue)
            return
        readers.idle = False
        self._ask(queue, readers)

    def pass_on(self, queue: str) -> None:
        """Wake another idle reader, if there is still work."""

        def work(store: Store) -> After:
            node = store.next_waiting(queue) if store.has_work(queue) else None
            return (lambda: self._wake(node, queue)) if node is not None else nothing

        self._writer.submit(work)

    def refresh(self, store: Store) -> None:
        """Ask again wherever a frame lies and somebody waits: a wake was lost, or its node died with it."""
        for queue, readers in self._queues.items():
            if readers.waiting and store.has_work(queue):
                readers.asking = (
                    False  # asking twice does no harm; a question that failed would never be asked again
                )
                self._ask(queue, readers)

    def restart(self) -> None:
        """Ask for every reader: the store was replaced."""
        for queue, readers in self._queues.items():
            readers.idle = readers.asking = False
            if readers.waiting:
                self._ask(queue, readers)

    def close(self) -> None:
        self.closed = True
        for readers in self._queues.values():
            if readers.timer is not None:
                readers.timer.cancel()
            for waiting in readers.waiting:
                if not waiting.done():
                    waiting.set_exception(LayerClosed())
        self._queues.clear()

    def _ask(self, queue: str, readers: _Readers) -> None:
        if readers.asking:
            return
        readers.asking = True

        def work(store: Store) -> After:
            terms = [waiting.terms for waiting in readers.waiting if not waiting.done()]
            due = store.bring(queue)
            rows = store.dequeue(queue, len(terms))
            taken = [_take(store, queue, *row, each) for row, each in zip(rows, terms, strict=False)]
            idle = 0 < len(terms) > len(rows)
            if idle:
                store.await_work(queue, self._node)
            return lambda: self._hand_over(queue, readers, taken, idle, due if idle else None)

        def failed() -> None:
            readers.asking = False  # the safety tick asks again

        self._writer.submit(work, failed)

    def _hand_over(
        self, queue: str, readers: _Readers, rows: list[Taken], idle: bool, due: float | None
    ) -> None:
        readers.asking = False
        if due is not None:
            if readers.timer is not None:
                readers.timer.cancel()
            readers.timer = self._loop.call_later(max(due - time.time(), 0.0), self._due, queue, readers)
        readers.idle = readers.idle or idle
        for row in rows:
            self._give(queue, readers, row)
        if not readers.waiting and not readers.idle:
            self._queues.pop(queue, None)
        elif not readers.idle and any(not waiting.done() for waiting in readers.waiting):
            self._ask(queue, readers)  # somebody came while the transaction was on its way

    def _due(self, queue: str, readers: _Readers) -> None:
        readers.timer = None
        if readers.waiting and not self.closed:
            readers.idle = False
            self._ask(queue, readers)

    def _give(self, queue: str, readers: _Readers, row: Taken) -> None:
        while readers.waiting and readers.waiting[0].done():
            readers.waiting.popleft()
        for waiting in readers.waiting:
            if not waiting.done() and waiting.terms == row.terms:
                readers.waiting.remove(waiting)
                waiting.set_result(row)
                return
        self._put_back(queue, row)

    def _return(self, queue: str, readers: _Readers, row: Taken) -> None:
        self._give(queue, readers, row)

    def _put_back(self, queue: str, row: Taken) -> None:
        def work(store: Store) -> After:
            if row.token is None or store.settle(queue, row.token):
                store.enqueue(queue, row.expires, row.body, row.row, row.tries)
            node = store.next_waiting(queue)
            return (lambda: self._wake(node, queue)) if node is not None else nothing

        self._writer.submit(work)


def _take(store: Store, queue: str, row: Queued, frame: bytes, terms: Terms | None) -> Taken:
    id, expires, body, tries = row
    token = None
    if terms is not None:
        seconds, ttl = terms
        token = store.put_off(queue, time.time() + seconds, ttl, body, tries + 1)
    return Taken(id, expires, frame, tries, token, terms)
