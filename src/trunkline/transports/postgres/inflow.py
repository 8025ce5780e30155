"""What this node hears: subscriptions, notifications, large frames, and the reading of the log after an interruption.

Rules of this room: what to take, suppress or report is decided in ``continuity.Receiver``; here it gets its data.
Notifications are handed on at once and never awaited. While a large frame is fetched, what was notified after it waits.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from collections import deque
from collections.abc import Callable

from ...clock import Clock
from ...continuity import HEADER_SIZE, Foreign, Receiver
from .driver import Connection
from .names import CHANNEL
from .schema import quoted

__all__ = ["Inflow"]

#: Topics in one command, and bytes of large frames in one query, roughly.
_CHUNK, _FETCH = 512, 16 << 20

#: Seconds that a topic stays subscribed after the last wish for it: groups are often left and joined again at once.
LINGER = 1.0

#: Bytes that the log may take, roughly: what is older goes, however young.
LOG_BYTES = 512 << 20


class _Subscription:
    __slots__ = ("confirmed", "left")

    def __init__(self, confirmed: asyncio.Future[None]) -> None:
        self.confirmed = confirmed
        self.left: float | None = None


class Inflow:
    """The way in.

    Args:
        life: Milliseconds after which a node that has shown no sign of life is dead.
        deliver: Gets (topic, body) in order.
        gap: Gets topics that lost frames for good.
        other: Gets what is no frame: wakes, flushes, probes.
    """

    def __init__(
        self,
        receiver: Receiver,
        clock: Clock,
        *,
        schema: str,
        life: int,
        deliver: Callable[[bytes, bytes], None],
        gap: Callable[[bytes], None],
        other: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.receiver = receiver
        self._clock = clock
        self._frames = f"{quoted(schema)}.frames"
        self._deliver, self._gap, self._other = deliver, gap, other
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._channels: dict[str, bytes] = {}
        self._unwritten: list[bytes] = []
        self._leaving: list[bytes] = []
        #: Our own writing connection: what it notifies is told by its answer.
        self.own_pid = 0
        self._held: deque[tuple[bytes, str]] = deque()
        self._read_at = 0.0
        self._behind: list[asyncio.Future[None]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._work = asyncio.Event()
        self._audit_due = self._beat_due = self._sweep_due = False
        self._sweep_sql = f"SELECT {quoted(schema)}.sweep_2($1::bigint, $2::bigint)"
        #: How many there are, by the last sweep.
        self.nodes = 1
        self._life = life
        self._horizons = (0, 0)
        #: The local clock when the listening connection last gave a sign of life.
        self.heard_at: float | None = None

    # -- subscriptions

    async def subscribe(self, topic: bytes) -> None:
        """Return when the server has confirmed; an outage is waited out."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            subscription = self.want(topic, int((self._clock.now() - self._clock.error) * 1000))
        else:
            subscription.left = None
            self.receiver.mute(topic, False)
        if not subscription.confirmed.done():
            await asyncio.shield(subscription.confirmed)

    def want(self, topic: bytes, since_ms: int) -> _Subscription:
        """Subscribe as soon as there is a connection, and then again on each new one."""
        subscription = self._subscriptions[topic] = _Subscription(self._loop.create_future())
        self._channels[CHANNEL + topic.hex()] = topic
        self.receiver.join(topic, since_ms)
        self._unwritten.append(topic)
        self._work.set()
        return subscription

    def unsubscribe(self, topic: bytes) -> None:
        """Deliver no more of it; the server is told a little later."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            return
        subscription.left = time.monotonic()
        self.receiver.mute(topic)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(LINGER, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = time.monotonic()
        left = [(topic, sub.left) for topic, sub in self._subscriptions.items() if sub.left is not None]
        leaving = [topic for topic, at in left if at <= now - LINGER]
        for topic in leaving:
            confirmed = self._subscriptions.pop(topic).confirmed
            if not confirmed.done():
                confirmed.set_result(None)  # whoever waits for it was overtaken by an unsubscribe
            del self._channels[CHANNEL + topic.hex()]
            self.receiver.leave(topic)
        self._leaving += leaving
        self._work.set()
        if len(left) > len(leaving):
            oldest = min(at for _, at in left if at > now - LINGER)
            self._sweeper = self._loop.call_later(max(oldest + LINGER - now, 0.01), self._sweep)

    async def _change(self, connection: Connection) -> None:
        """Tell the server what we want to hear, and what no more."""
        leaving, self._leaving = self._leaving, []
        gone = [topic for topic in leaving if topic not in self._subscriptions]
        for start in range(0, len(gone), _CHUNK):
            await connection.run(_commands("UNLISTEN", gone[start : start + _CHUNK]))
        topics, self._unwritten = self._unwritten, []
        await self._listen(connection, topics)

    async def _listen(self, connection: Connection, topics: list[bytes]) -> None:
        for start in range(0, len(topics), _CHUNK):
            chunk = topics[start : start + _CHUNK]
            await connection.run(_commands("LISTEN", chunk))
            for topic in chunk:
                subscription = self._subscriptions.get(topic)
                if subscription is not None and not subscription.confirmed.done():
                    subscription.confirmed.set_result(None)

    # -- notifications

    def notified(self, pid: int, channel: str, payload: str) -> None:
        """Take in one notification."""
        topic = self._channels.get(channel)
        if topic is None:
            return
        if payload[:1] == "!":
            self._other(payload[1:])
        elif pid != self.own_pid:
            for part in payload.split(","):
                if self._held or part[:1] == "#":
                    self._held.append((topic, part))
                    self._work.set()
                else:
                    self.take(topic, _frame(part))

    def take(self, topic: bytes, data: bytes) -> None:
        """Take in one frame, wherever it came from."""
        try:
            body = self.receiver.push(topic, data)
        except Foreign:
            self._deliver(b"", data)  # for the layer to count and to log
            return
        if body is not None:
            self._deliver(topic, body)
        elif self.receiver.recovering:
            self._work.set()

    async def _fetch(self, connection: Connection) -> None:
        """Get large frames, and hand on what was notified behind them."""
        while self._held:
            wanted: list[int] = []
            room = _FETCH
            for _, part in self._held:
                if part[:1] == "#" and room > 0:
                    number, _, size = part[1:].partition(":")
                    wanted.append(int(number))
                    room -= int(size)
            rows = await connection.fetch(
                f"SELECT id, data FROM {self._frames} WHERE id = ANY ($1::bigint[])", wanted
            )
            found = {int(row[0]): row[1] for row in rows}
            asked = set(wanted)
            while self._held:
                topic, part = self._held[0]
                if part[:1] != "#":
                    self.take(topic, _frame(part))
                else:
                    key = int(part[1:].partition(":")[0])
                    if key not in asked:
                        break  # it came in the meantime, or is one too many
                    if key in found:  # one that is not there any more is missed by the chain
                        self.take(topic, found[key])
                self._held.popleft()

    # -- the connection

    async def resume(self, connection: Connection) -> None:
        """Subscribe to all again on a new connection; returns when all is confirmed."""
        self._unwritten, self._leaving = [], []
        self._held.clear()
        await self._listen(connection, list(self._subscriptions))
        self.heard_at = time.monotonic()

    async def interrupted(self, connection: Connection, *, forgetful: bool) -> None:
        """Find from when on the log must be read: all that was committed since we surely heard everything."""
        since = 0
        if not forgetful:
            ((oldest,),) = await connection.fetch(
                f"SELECT min(stamp) FROM {self._frames} WHERE topic = ANY ($1::bytea[]) AND xid >= $2::text::xid8",
                list(self._subscriptions),
                str(self._horizons[0]),
            )
            since = self._clock.now_ms() if oldest is None else oldest
        self.receiver.interrupted(since)

    async def run(self, connection: Connection) -> None:
        """Do what there is to do on the listening connection, for as long as it works.

        Raises:
            Trouble: It does not any more.
        """
        self._read_at = 0.0
        self._work.set()
        while True:
            await self._work.wait()
            self._work.clear()
            if self._unwritten or self._leaving:
                await self._change(connection)
            if self._held:
                await self._fetch(connection)
            if self._beat_due:
                self._beat_due = False
                await self._beat(connection)
            if self._audit_due:
                self._audit_due = False
                await self._audit(connection)
            if self._sweep_due:
                self._sweep_due = False
                ((self.nodes,),) = await connection.fetch(self._sweep_sql, self._life, LOG_BYTES)
            if self.receiver.recovering and self._loop.time() >= self._read_at:
                await self._recover(connection)

    async def _recover(self, connection: Connection) -> None:
        receiver = self.receiver
        wanted = receiver.reads(self._clock.now_ms())
        # One query, so one snapshot: no frame is seen without those that its sender sent before, to whatever topic.
        rows = await connection.fetch(
            "SELECT f.topic, f.stamp, f.id, f.data FROM unnest($1::bytea[], $2::bigint[]) w(topic, since) "
            f"JOIN {self._frames} f ON f.topic = w.topic AND f.stamp >= w.since ORDER BY f.id",
            [topic for topic, _ in wanted],
            [since for _, since in wanted],
        )
        for topic, stamp, number, data in rows:
            receiver.read(topic, (stamp, number), data)
        outcome = receiver.settle(time.monotonic())
        for topic in dict.fromkeys(outcome.gaps):
            self._gap(topic)
        for topic, body in outcome.deliver:
            self._deliver(topic, body)
        if outcome.again is not None:
            self._read_at = self._loop.time() + outcome.again
            self._loop.call_later(outcome.again + 0.001, self._work.set)
            return
        behind, self._behind = self._behind, []
        for future in behind:
            if not future.done():
                future.set_result(None)

    async def caught_up(self, topic: bytes) -> None:
        """Wait until what came in for a topic is delivered: at once, unless the log is being read."""
        if self.receiver.recovering and self.receiver.hears(topic):
            future: asyncio.Future[None] = self._loop.create_future()
            self._behind.append(future)
            await future

    # -- idle

    def beat(self, *, audit: bool = False, sweep: bool = False) -> None:
        """Look whether the connection lives, and remember up to where everything was heard."""
        self._beat_due = True
        self._audit_due = self._audit_due or audit
        self._sweep_due = self._sweep_due or sweep
        self._work.set()

    async def _beat(self, connection: Connection) -> None:
        # Whatever a transaction older than this horizon did was committed, and so notified, when it was taken; what was
        # notified before one beat was heard before the next.
        ((horizon,),) = await connection.fetch("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
        self._horizons = (self._horizons[1] or int(horizon), int(horizon))
        self.heard_at = time.monotonic()

    async def _audit(self, connection: Connection) -> None:
        """Look at the last entry of the logs of quiet topics: was everything heard?"""
        rows = await connection.fetch(
            "SELECT w.topic, f.stamp, f.id, f.head FROM unnest($1::bytea[]) w(topic), LATERAL ("
            f"SELECT stamp, id, substr(data, 1, {HEADER_SIZE}) AS head FROM {self._frames} l "
            "WHERE l.topic = w.topic ORDER BY l.id DESC LIMIT 1) f",
            self.receiver.quiet(),
        )
        for topic, stamp, number, head in rows:
            self.receiver.audit(topic, (stamp, number), head, self._clock.now_ms())

    def fail(self, error: Exception) -> None:
        """Nothing will come any more: tell whoever waits."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        confirmations = (subscription.confirmed for subscription in self._subscriptions.values())
        for future in (*self._behind, *confirmations):
            if not future.done():
                future.set_exception(error)
                future.exception()


def _commands(word: str, topics: list[bytes]) -> str:
    return "; ".join(f"{word} {CHANNEL}{topic.hex()}" for topic in topics)


def _frame(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        return b""
