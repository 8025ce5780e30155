"""Writes: those of a loop tick together in one transaction; where one task alone writes, each at once.

So a caller that sends one message after the other waits for nothing, and a hundred callers share one commit. The loop
never waits for another process's lock: a busy lock is tried again by a timer, and by then more writes may have joined.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any

from ...errors import MessageTooLarge, Refused, TransportUnavailable
from .store import Store, is_busy, is_corrupt, is_full

__all__ = ["After", "StoreFull", "Work", "Writer", "nothing"]


class StoreFull(TransportUnavailable):
    """The log has reached its largest size. Nothing was sent."""


#: What to do once the transaction is committed; its value is the caller's.
After = Callable[[], Any]
#: Runs inside the transaction, perhaps more than once (a rolled-back attempt leaves no trace).
Work = Callable[[Store], After]

#: Writes that a task may commit, one after the other, before others have their turn.
_IN_A_ROW = 8
#: Seconds between two tries for a busy lock.
_RETRY = 0.0002
#: Seconds a caller waits for the lock.
_PATIENCE = 5.0


def nothing() -> None:
    """The second half of a write that has none."""


class _Job:
    __slots__ = ("error", "failed", "future", "since", "value", "work")

    def __init__(self, work: Work, since: float, failed: Callable[[], None] | None = None) -> None:
        self.work = work
        self.future: asyncio.Future[Any] | None = None
        self.failed = failed
        #: Loop time when it was asked for; infinite for a write that nobody waits for.
        self.since = since
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.error is not None and self.failed is not None:
            self.failed()
        if self.future is None or self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


class Writer:
    """Runs transactions on one node's store."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        committed: Callable[[], None],
        broken: Callable[[str, bool], None],
    ) -> None:
        self._loop = loop
        self._committed = committed
        self._broken = broken
        self._store: Store | None = None
        self._why = "it is not open"
        self._jobs: deque[_Job] = deque()
        #: No two tasks wrote in the last turn of the loop.
        self._alone = True
        #: Of this turn: who wrote first, whether others did, and how many writes there were.
        self._caller: asyncio.Task[Any] | None = None
        self._shared = False
        self._in_a_row = 0
        self._turn: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None

    def use(self, store: Store | None, why: str = "") -> None:
        """Write to this store from now on; None: callers learn why there is none."""
        self._store, self._why = store, why
        if store is None:
            waiting, self._jobs = self._jobs, deque()
            for job in waiting:
                job.error = TransportUnavailable(why)
                job.settle()

    @property
    def why(self) -> str:
        """Why there is no store."""
        return self._why

    @property
    def waiting(self) -> int:
        """Writes that are not committed."""
        return len(self._jobs)

    async def write(self, work: Work) -> Any:
        """Run ``work`` in a transaction and return what its second half returns after the commit.

        Cancellation: safe. It was committed or it was not; nothing else in the transaction notices.

        Raises:
            TransportUnavailable: It was not committed.
        """
        job = _Job(work, self._loop.time())
        if self._may_run_now() and self._run([job]):
            if job.error is not None:
                raise job.error
            return job.value
        job.future = self._loop.create_future()
        self._jobs.append(job)
        self._schedule()
        return await job.future

    def _may_run_now(self) -> bool:
        """Whether one task alone writes, as far as the last turn tells, and has not kept the others waiting for long."""
        caller = asyncio.current_task()
        if self._turn is None:
            self._turn = self._loop.call_soon(self._next_turn)
        if self._caller is None:
            self._caller = caller
        elif caller is not self._caller:
            self._shared = True
        self._in_a_row += 1
        return self._alone and not self._shared and not self._jobs and self._in_a_row <= _IN_A_ROW

    def submit(self, work: Work, failed: Callable[[], None] | None = None) -> None:
        """Run ``work`` with the next transaction; nobody waits for it. ``failed`` is called if it was not committed.

        Without a store it is forgotten: whatever it was about is made anew with the next one.
        """
        if self._store is not None:
            self._jobs.append(_Job(work, float("inf"), failed))
            self._schedule()

    def _schedule(self) -> None:
        if self._turn is None and self._retry is None:
            self._turn = self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn = self._caller = None
        self._alone, self._shared, self._in_a_row = not self._shared, False, 0
        if self._retry is None:
            self.flush()

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    def flush(self) -> bool:
        """Commit everything that waits; False when another process has the lock."""
        jobs = [job for job in self._jobs if job.future is None or not job.future.done()]
        self._jobs.clear()
        if not jobs or self._run(jobs):
            return True
        self._jobs.extendleft(reversed(self._patient(jobs)))
        if self._retry is None and self._jobs:
            self._retry = self._loop.call_later(_RETRY, self._try_again)
        return False

    def _patient(self, jobs: list[_Job]) -> list[_Job]:
        oldest = self._loop.time() - _PATIENCE
        for job in jobs:
            if job.since < oldest:
                job.error = TransportUnavailable(
                    f"another process has held the write lock for {_PATIENCE:.0f} s; is one stopped, in a debugger?"
                )
                job.settle()
        return [job for job in jobs if job.error is None]

    def stop(self) -> None:
        for handle in (self._turn, self._retry):
            if handle is not None:
                handle.cancel()
        self._turn = self._retry = None

    def abandon(self) -> None:
        """Forget everything; nobody is told, for this may be a forked child or the loop be closed."""
        self._store, self._why = None, "it was abandoned"
        self._jobs.clear()
        self.stop()

    # One transaction

    def _run(self, jobs: list[_Job]) -> bool:
        """Run jobs in one transaction and settle them; False when the lock is busy and nothing was done."""
        store = self._store
        if store is None:
            for job in jobs:
                job.error = TransportUnavailable(self._why)
                job.settle()
            return True
        try:
            afters = self._transact(store, jobs)
        except Exception as error:
            store.rollback()
            if len(jobs) > 1:  # one of them is the culprit: let it fail alone
                self._run_each(jobs)
                return True
            jobs[0].error = self._translate(store, error)
            jobs[0].settle()
            return True
        if afters is None:
            return False
        for job, after in afters:
            try:
                job.value = after()
            except Exception as error:  # committed all the same: the others must not wait for ever
                job.error = error
        self._committed()
        for job in jobs:
            job.settle()
        return True

    def _run_each(self, jobs: list[_Job]) -> None:
        for index, job in enumerate(jobs):
            if not self._run([job]):
                self._jobs.extend(jobs[index:])  # all of the rest: they keep their order
                self._schedule()
                return

    def _transact(self, store: Store, jobs: list[_Job]) -> list[tuple[_Job, After]] | None:
        afters: list[tuple[_Job, After]] = []
        if not store.begin():
            return None
        for job in jobs:
            job.error = None
            try:
                afters.append((job, job.work(store)))
            except Refused as refusal:  # it was decided before anything was written
                job.error = refusal
            except sqlite3.Error as error:
                if len(jobs) > 1 or not is_full(error):
                    raise
                store.rollback()
                return self._transact_in_less_room(store, job)
        store.commit()
        return afters

    def _transact_in_less_room(self, store: Store, job: _Job) -> list[tuple[_Job, After]] | None:
        full: sqlite3.Error | None = None
        # A process that is stopped may not stop the others: at last its unread frames go, and it is told.
        for make_room in (store.clean, store.drop_older_half):
            if not store.begin():
                return None
            make_room()
            store.commit()
            if not store.begin():
                return None
            try:
                after = job.work(store)
            except sqlite3.Error as error:
                store.rollback()
                if not is_full(error):
                    raise
                full = error
            else:
                store.commit()
                return [(job, after)]
        raise full or RuntimeError("unreachable")

    def _translate(self, store: Store, error: Exception) -> BaseException:
        if is_full(error):
            return StoreFull(
                f"{store.path} is full: unread messages take all of max_size={store.max_size} bytes, or the disk"
            )
        if isinstance(error, (sqlite3.DataError, OverflowError)):
            return MessageTooLarge(f"SQLite cannot hold it: {error}")
        if not isinstance(error, sqlite3.Error) or is_busy(error):
            return error
        self._loop.call_soon(self._broken, f"{store.path}: {error}", is_corrupt(error))
        unavailable = TransportUnavailable(f"{store.path}: {error}")
        unavailable.__cause__ = error
        return unavailable
