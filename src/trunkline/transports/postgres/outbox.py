"""What this node sends to the database, in order: one batch at a time, each sent again until it is answered.

Rules of this room: a batch has a number and is done once, so that repeating it is harmless. What is in no batch yet
waits and can still be withdrawn. The server's answer concludes each operation, and brings our own copies.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ...clock import Clock
from ...continuity import VOID, Sender, Sent
from ...errors import ChannelFull, TransportUnavailable
from .driver import Connection, Trouble
from .schema import quoted

__all__ = ["FOR_EVER", "GONE", "LISTED", "Kind", "Op", "Outbox"]

FOR_EVER = float("inf")

#: What one batch holds, at most.
_MOST, _MOST_BYTES = 512, 4 << 20

#: What may wait while nothing is answered.
MAX_WAITING, MAX_WAITING_BYTES = 10_000, 16 << 20

#: Seconds without an answer after which no more than that may wait.
_STUCK = 1.0

#: Seconds that a post waits each time it finds its channel full, and for which, once that was in vain, none waits.
_PAUSES, _STRICT = (0.005, 0.01, 0.02, 0.04, 0.08), 2.0

#: What the server says of an operation, beside 0: done.
_FULL, GONE, LISTED = 1, 2, 3


class Kind(enum.IntEnum):
    """What is to be done; the numbers are those of the function on the server."""

    NOTHING = 0
    PUBLISH = 1
    POST = 2
    PUSH = 3
    TAKE = 4
    LEAVE = 5
    GIVE_BACK = 6
    TAKEN = 7
    TRUTH = 8
    BIND = 9
    UNBIND = 10
    FLUSH = 11
    UNLEASE = 12
    HOLD = 13
    SETTLE = 14
    LATER = 15
    REMEMBER = 16
    RECALL = 17
    KEEP = 18
    DROP = 19
    RENEW = 20
    RECORDS = 21
    COUNT = 22
    REAP = 23


class Op(Sent):
    """One operation and the future its caller waits for.

    Args:
        wire: The topic it is about, if any; ``chained`` says whether a frame of it goes there.
        number: Capacity, count or place, as the kind has it.
        ttl: In milliseconds, for the server.
        expires: Seconds after which its caller is told that it could not be sent.
    """

    __slots__ = ("expires", "future", "kind", "name", "number", "tries", "ttl", "wire")

    def __init__(
        self,
        kind: Kind,
        name: str = "",
        *,
        wire: bytes = b"",
        chained: bool = False,
        body: bytes = b"",
        number: int = 0,
        ttl: int = 0,
        expires: float = FOR_EVER,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        super().__init__(wire if chained else None, body)
        self.kind, self.name, self.wire, self.number, self.ttl = kind, name, wire, number, ttl
        self.tries = 0
        self.expires = time.monotonic() + expires
        self.future: asyncio.Future[Any] = (
            asyncio.get_running_loop().create_future() if future is None else future
        )


class Outbox:
    """The way out.

    Args:
        echo: Gets every frame of a chain that the server has taken, in the order of the chain.
        life: Milliseconds after which a node that has shown no sign of life is dead.
        unavailable: Makes the error for those whose time is over.
    """

    def __init__(
        self,
        sender: Sender[Op],
        clock: Clock,
        inbox: bytes,
        area: int,
        *,
        schema: str,
        life: int,
        echo: Callable[[bytes, bytes], None],
        unavailable: Callable[[bool], TransportUnavailable],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.sender = sender
        self._clock = clock
        self._me, self._area, self._life = inbox, area, life
        self._write = (
            f"SELECT clock, codes, places, extras FROM {quoted(schema)}.write_2("
            "$1::bytea, $2::bigint, $3::bigint, $4::bigint, $5::smallint[], $6::bytea[], $7::text[], $8::bytea[], "
            "$9::bigint[], $10::bigint[])"
        )
        self._echo = echo
        self._unavailable = unavailable
        self._told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._told.set_result(None)
        self._waiting: deque[Op] = deque()
        self._waiting_bytes = 0
        #: Answered by a server that forgot it: to be done again, before anything new.
        self._again: deque[Op] = deque()
        self._batch: list[Op] = []
        self._number = 0
        self._due = False
        self._stuck_since: float | None = time.monotonic()
        #: There is a connection that works, as far as we know.
        self.flowing = False
        self._wake = asyncio.Event()
        self._pause = self._strict_until = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._error: Exception | None = None

    # -- in

    def submit(self, op: Op) -> Op:
        """Send it with what else this turn of the loop sends, or keep it until it can be sent.

        Raises:
            TransportUnavailable: The server does not answer, and as much is waiting as may wait.
        """
        if self._error is not None:
            raise self._error
        if self._is_full() and op.expires != FOR_EVER:
            self._prune()
            if self._is_full():
                raise self._unavailable(False)
        self._waiting.append(op)
        self._waiting_bytes += len(op.body)
        self._wake.set()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(0.1, self._sweep)
        return op

    def _is_full(self) -> bool:
        stuck = self._stuck_since is not None and time.monotonic() - self._stuck_since > _STUCK
        return stuck and (len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES)

    def _prune(self) -> None:
        self._waiting = deque(op for op in self._waiting if not op.future.done())
        self._waiting_bytes = sum(len(op.body) for op in self._waiting)

    def beat(self) -> None:
        """Show a sign of life, with or without something to send."""
        self._due = True
        self._wake.set()

    @property
    def busy(self) -> bool:
        """Whether something is not answered yet."""
        return bool(self._waiting or self._again or self._batch)

    @property
    def pending(self) -> int:
        """How many operations wait to be sent, or for their answer."""
        return len(self._waiting) + self.sender.pending

    # -- out

    async def run(self, connection: Connection) -> None:
        """Send what there is to send, for as long as the connection works.

        Raises:
            Trouble: It does not any more, or the server has forgotten this node.
        """
        self.flowing = True
        while True:
            if not self._batch and not self._gather():
                self._stuck_since = None
                self._wake.clear()
                await self._wake.wait()
                continue
            if self._stuck_since is None:
                self._stuck_since = time.monotonic()
            asked = time.monotonic()
            ((clock, codes, places, extras),) = await connection.fetch(
                self._write, self._me, self._number, self._area, self._life, *self._columns()
            )
            if clock is None:
                raise Trouble("the server has forgotten this node")
            self._clock.learn(clock / 1000, asked, time.monotonic())
            self._stuck_since = None
            self._conclude(codes, places, extras)
            if self._pause:
                pause, self._pause = self._pause, 0.0
                await asyncio.sleep(pause)

    def _gather(self) -> bool:
        """Make the next batch; False when there is nothing to send."""
        batch, size = self._batch, 0
        while self._again and len(batch) < _MOST and size < _MOST_BYTES:
            batch.append(self._again.popleft())
            size += len(batch[-1].body)
        waiting, now = self._waiting, self._clock.now_ms()
        while waiting and not self._again and len(batch) < _MOST and size < _MOST_BYTES:
            op = waiting.popleft()
            self._waiting_bytes -= len(op.body)
            if not op.future.done():
                self.sender.number(op, now)
                batch.append(op)
                size += len(op.body)
        if not batch and not self._due:
            return False
        self._due = False
        self._number += 1
        return True

    def _columns(self) -> tuple[list[Any], ...]:
        columns: tuple[list[Any], ...] = ([], [], [], [], [], [])
        kinds, topics, names, datas, numbers, ttls = columns
        alike: tuple[Any, ...] = ()
        first = run = 0
        for place, op in enumerate(self._batch):
            given_up = op.topic is None and op.future.done() and op.expires != FOR_EVER
            kind = 0 if given_up else int(op.kind)
            kinds.append(kind)
            topics.append(op.wire)
            names.append(op.name)
            datas.append(op.body if op.topic is None else self.sender.frame(op))
            numbers.append(op.number)
            ttls.append(op.ttl)
            if kind == Kind.PUSH:  # the first of those that are alike says how many they are
                if alike != (op.name, op.number, op.ttl):
                    alike, first, run = (op.name, op.number, op.ttl), place, 0
                run += 1
                topics[first] = run.to_bytes(8, "big")
            else:
                alike = ()
        return columns

    def _conclude(self, codes: list[int], places: list[int], extras: list[bytes]) -> None:
        batch, self._batch = self._batch, []
        now = time.monotonic()
        given: dict[int, list[bytes]] = {}
        for place, extra in zip(places, extras, strict=True):
            given.setdefault(place - 1, []).append(extra)
        tried_again = self._try_again(batch, codes)
        for place, (op, code) in enumerate(zip(batch, codes, strict=True)):
            if code == _FULL:
                self.sender.refuse(op, now)
                if op.future in tried_again:
                    continue
                what = "channel" if op.kind is Kind.POST else "queue"
                text = f"{what} {op.name!r} holds {op.number} messages, as many as its capacity allows"
                if not op.future.done():
                    op.future.set_exception(ChannelFull(text))
                continue
            if code == GONE and op.topic is not None:
                self.sender.forget(op.topic)
                op.topic = None  # and never to be replayed
            if op.topic is not None and not op.flags & VOID:
                self._echo(op.topic, self.sender.frame(op))
            self.sender.answer(op, now)
            if not op.future.done():
                op.future.set_result((code, given.get(place, ())))
            if op.topic is not None:
                op.future = self._told  # it is kept for a while, its caller's need not be

    def _try_again(self, batch: list[Op], codes: list[int]) -> set[asyncio.Future[Any]]:
        """Put back posts that found their channel full; returns whose callers go on waiting.

        Owners report a little late what they took, and later still on a busy machine: a channel whose consumer keeps up
        must not be full for want of a report. Nothing sent behind such a post overtakes it, so all wait with it; once it
        was in vain, the next are told at once for a while.
        """
        now = self._loop.time()
        if _FULL not in codes or now < self._strict_until:
            return set()
        full: list[Op] = []
        passed: set[bytes] = set()
        published = False
        for op, code in zip(reversed(batch), reversed(codes), strict=True):
            if code == _FULL and op.kind is Kind.POST and not published and op.wire not in passed:
                full.append(op)
            elif code != _FULL and op.topic is not None:
                passed.add(op.topic)
                published = published or op.kind is Kind.PUBLISH
        if any(op.tries == len(_PAUSES) for op in full):
            self._strict_until = now + _STRICT
            return set()
        for op in full:
            again = Op(
                op.kind, op.name, wire=op.wire, chained=True, body=op.body, number=op.number, ttl=op.ttl
            )
            again.future, again.expires, again.tries = op.future, op.expires, op.tries + 1
            self._waiting.appendleft(again)
            self._waiting_bytes += len(again.body)
            self._pause = max(self._pause, _PAUSES[op.tries])
        return {op.future for op in full}

    def replay(self) -> None:
        """The server has forgotten everything: what was answered lately is sent again, before anything new."""
        self._batch = []
        self._again = deque(self.sender.replay())
        for op in self._again:
            if op.future.done() and op.topic is not None:
                # It was counted, and put into queues, when it was answered.
                op.number = -1 if op.kind is Kind.POST else 0
        self._wake.set()

    # -- outages

    def interrupt(self) -> None:
        """The connection is gone."""
        self.flowing = False
        if self._stuck_since is None:
            self._stuck_since = time.monotonic()

    def _sweep(self) -> None:
        """Give up what has waited for its whole life."""
        self._sweeper = None
        now = time.monotonic()
        if self._stuck_since is not None:
            for op in self._waiting:
                if op.expires <= now and not op.future.done():
                    op.future.set_exception(self._unavailable(False))
            self._prune()
            for op in (*self._again, *self._batch):  # they were on their way already
                if op.expires <= now and not op.future.done():
                    op.future.set_exception(self._unavailable(True))
                    if op.topic is not None:
                        self.sender.give_up(op)
        if self.busy:
            self._sweeper = self._loop.call_later(0.1, self._sweep)

    def fail(self, error: Exception) -> None:
        """Nothing will be sent any more: tell whoever waits."""
        self._error = error
        if self._sweeper is not None:
            self._sweeper.cancel()
        for op in (*self._again, *self._batch, *self._waiting):
            if not op.future.done():
                op.future.set_exception(error)
                op.future.exception()
        self._waiting.clear()
        self._again.clear()
        self._batch = []
