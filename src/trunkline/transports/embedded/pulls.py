"""The local readers of shared queues, in the order they came.

A frame is taken from the log only for a reader that waits, and handed over without an ``await`` in between. A reader
cancelled in the instant between hand-over and resumption gives it to the next one, or back to where it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ...errors import LayerClosed
from .store import Store
from .writer import After, Writer, nothing

__all__ = ["Pulls"]

#: (row, expires, body)
Taken = tuple[int, float, bytes]


class _Readers:
    __slots__ = ("asking", "idle", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[Taken]] = deque()
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

    async def pull(self, queue: str) -> bytes:
        if self.closed:
            raise LayerClosed
        readers = self._queues.setdefault(queue, _Readers())
        mine: asyncio.Future[Taken] = self._loop.create_future()
        readers.waiting.append(mine)
        if not readers.idle:
            self._ask(queue, readers)
        try:
            return (await mine)[2]
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
            for waiting in readers.waiting:
                if not waiting.done():
                    waiting.set_exception(LayerClosed())
        self._queues.clear()

    def _ask(self, queue: str, readers: _Readers) -> None:
        if readers.asking:
            return
        readers.asking = True

        def work(store: Store) -> After:
            wanted = sum(not waiting.done() for waiting in readers.waiting)
            rows = store.dequeue(queue, wanted)
            idle = 0 < wanted > len(rows)
            if idle:
                store.await_work(queue, self._node)
            return lambda: self._hand_over(queue, readers, rows, idle)

        def failed() -> None:
            readers.asking = False  # the safety tick asks again

        self._writer.submit(work, failed)

    def _hand_over(self, queue: str, readers: _Readers, rows: list[Taken], idle: bool) -> None:
        readers.asking = False
        readers.idle = readers.idle or idle
        for row in rows:
            self._give(queue, readers, row)
        if not readers.waiting and not readers.idle:
            self._queues.pop(queue, None)
        elif not readers.idle and any(not waiting.done() for waiting in readers.waiting):
            self._ask(queue, readers)  # somebody came while the transaction was on its way

    def _give(self, queue: str, readers: _Readers, row: Taken) -> None:
        while readers.waiting:
            waiting = readers.waiting.popleft()
            if not waiting.done():
                waiting.set_result(row)
                return
        self._put_back(queue, row)

    def _return(self, queue: str, readers: _Readers, row: Taken) -> None:
        if any(not waiting.done() for waiting in readers.waiting):
            self._give(queue, readers, row)
        else:
            self._put_back(queue, row)

    def _put_back(self, queue: str, row: Taken) -> None:
        id, expires, body = row

        def work(store: Store) -> After:
            store.enqueue(queue, expires, body, id)
            node = store.next_waiting(queue)
            return (lambda: self._wake(node, queue)) if node is not None else nothing

        self._writer.submit(work)
