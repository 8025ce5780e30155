"""What this node hears from one server: subscriptions, pushes, and the reading of logs after an interruption.

Rules of this room: what to take, suppress or report is decided in ``continuity.Receiver``; here it gets its data.
Pushes are handed on at once and never awaited; only reading logs is a task, one at a time and seldom.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from ...clock import Clock
from ...continuity import Foreign, Receiver
from .connection import ReplyError, pack
from .dialect import PLAIN, Dialect

__all__ = ["Asking", "Ears", "Inflow"]

log = logging.getLogger("trunkline.redis")

#: Topics subscribed in one command, logs read in one trip.
_BATCH, _LOGS = 512, 64

#: Entries read from one log in the first trip, large frames fetched from it, and what later trips bring at most: entries,
#: and bytes if they are like those before.
_ENTRIES, _FRAMES, _MOST, _MOST_BYTES = 32, 4, 500, 4 << 20

#: Seconds between two attempts at a server that is busy.
_PAUSE = 0.05

#: Seconds that a topic stays subscribed after the last wish for it: groups are often left and joined again at once.
LINGER = 1.0


class Asking(Protocol):
    """The connection that logs are read over."""

    async def call(self, *commands: tuple[bytes | str | int, ...]) -> list[Any]:
        """Send commands and wait for their replies."""

    def drop(self, cause: BaseException | None = None) -> None:
        """End it: it is of no use."""


class Ears(Protocol):
    """The connection that pushes come over."""

    def listen(self, on_push: Callable[[list[Any]], None]) -> None:
        """From now on every push goes to ``on_push``."""

    def write(self, data: bytes) -> None:
        """Send commands whose replies are pushes."""


class _Subscription:
    __slots__ = ("confirmed", "left", "waiters")

    def __init__(self) -> None:
        self.confirmed = False
        self.left: float | None = None
        self.waiters: list[asyncio.Future[None]] = []

    def confirm(self, error: Exception | None = None) -> None:
        """Tell whoever waits: the server has confirmed, or never will."""
        self.confirmed = True
        for waiter in self.waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
        self.waiters.clear()


class Inflow:
    """The way in from one server.

    Args:
        others: Channels that are not topics; nobody but us hears the first one.
        deliver: Gets (topic, body) in order.
        gap: Gets topics that lost frames for good.
        other: Gets (channel, data) of those.
        whole: Returns our own frame, to its head.
        dialect: The words of pub/sub there.
    """

    def __init__(
        self,
        receiver: Receiver,
        clock: Clock,
        *,
        others: tuple[bytes, ...],
        deliver: Callable[[bytes, bytes], None],
        gap: Callable[[bytes], None],
        other: Callable[[bytes, bytes], None],
        whole: Callable[[bytes], bytes | None],
        dialect: Dialect = PLAIN,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.receiver = receiver
        self._clock = clock
        self._others = others
        self._deliver, self._gap, self._other, self._whole = deliver, gap, other, whole
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._dialect = dialect
        self._message, self._subscribed = dialect.message, dialect.subscribed
        self._pushes: Ears | None = None
        self._commands: Asking | None = None
        self._unwritten: list[bytes] = []
        self._unconfirmed: set[bytes] = set()
        self._all_confirmed: asyncio.Future[None] | None = None
        self._behind: list[asyncio.Future[None]] = []
        self._reading: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        #: What we publish to ourselves, and its arrival.
        self._fence: tuple[bytes, asyncio.Future[None]] | None = None
        #: Something was pushed since this was last set to False.
        self.heard = False

    # -- subscriptions

    async def subscribe(self, topic: bytes) -> None:
        """Return when the server has confirmed; an outage is waited out."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            subscription = self.want(topic, int((self._clock.now() - self._clock.error) * 1000))
        else:
            subscription.left = None
            self.receiver.mute(topic, False)
        if not subscription.confirmed:
            waiter: asyncio.Future[None] = self._loop.create_future()
            subscription.waiters.append(waiter)
            await waiter

    def want(self, topic: bytes, since_ms: int) -> _Subscription:
        """Subscribe as soon as there is a connection, and then again after each new one."""
        subscription = self._subscriptions[topic] = _Subscription()
        self.receiver.join(topic, since_ms)
        if not self._unwritten:
            self._loop.call_soon(self._write)
        self._unwritten.append(topic)
        return subscription

    def _write(self) -> None:
        topics, self._unwritten = self._unwritten, []
        if self._pushes is not None:
            for start in range(0, len(topics), _BATCH):
                self._pushes.write(pack(self._dialect.subscribe, *topics[start : start + _BATCH]))

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
            self._subscriptions.pop(topic).confirm()  # whoever waits for it was overtaken by an unsubscribe
            self.receiver.leave(topic)
        if self._pushes is not None:
            for start in range(0, len(leaving), _BATCH):
                self._pushes.write(pack(self._dialect.unsubscribe, *leaving[start : start + _BATCH]))
        if len(left) > len(leaving):
            oldest = min(at for _, at in left if at > now - LINGER)
            self._sweeper = self._loop.call_later(max(oldest + LINGER - now, 0.01), self._sweep)

    # -- pushes

    def hear(self, reply: Any) -> None:
        """Take in what the push connection brought."""
        self.heard = True
        if isinstance(reply, ReplyError):
            if self._all_confirmed is None or self._all_confirmed.done():
                log.error("the server refuses a subscription: %s", reply)
            self.broken(reply)
            return
        kind = reply[0]
        if kind == self._message:
            topic, data = reply[1], reply[2]
            if topic in self._others:
                if self._fence is not None and data == self._fence[0] and not self._fence[1].done():
                    self._fence[1].set_result(None)
                self._other(topic, data)
            else:
                self.take(topic, data)
        elif kind == self._subscribed:
            subscription = self._subscriptions.get(reply[1])
            if subscription is not None and not subscription.confirmed:
                subscription.confirm()
            if self._unconfirmed:
                self._unconfirmed.discard(reply[1])
                waiter = self._all_confirmed
                if not self._unconfirmed and waiter is not None and not waiter.done():
                    waiter.set_result(None)

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
            self.read_logs()
        elif self.receiver.held:
            if (frame := self._whole(data)) is not None:
                self.receiver.push(topic, frame)
            self._release()
            self.read_logs()

    def _release(self) -> None:
        for topic, body in self.receiver.release():
            self._deliver(topic, body)

    async def caught_up(self, topic: bytes) -> None:
        """Wait until what came in for a topic is delivered: at once, unless logs are being read."""
        if self.receiver.recovering and self.receiver.hears(topic):
            future: asyncio.Future[None] = self._loop.create_future()
            self._behind.append(future)
            await future

    def subscribed(self, topic: bytes) -> bool:
        """Whether pushes of the topic are expected: the server has confirmed, and was not told that we leave."""
        subscription = self._subscriptions.get(topic)
        return topic in self._others if subscription is None else subscription.confirmed

    def leave_server(self) -> None:
        """Tell a server that is still there to push nothing more."""
        topics = [*self._others, *self._subscriptions]
        if self._pushes is not None:
            for start in range(0, len(topics), _BATCH):
                self._pushes.write(pack(self._dialect.unsubscribe, *topics[start : start + _BATCH]))

    async def resume(self, pushes: Ears, commands: Asking) -> None:
        """Subscribe to all again over new connections; returns when all is confirmed."""
        topics = [*self._others, *self._subscriptions]
        self._unwritten = []
        self._pushes, self._commands = pushes, commands
        self._unconfirmed = set(topics)
        self._all_confirmed = self._loop.create_future()
        pushes.listen(self.hear)
        for start in range(0, len(topics), _BATCH):
            pushes.write(pack(self._dialect.subscribe, *topics[start : start + _BATCH]))
        await self._all_confirmed

    def broken(self, error: Exception) -> None:
        """A connection ended while ``resume`` may be waiting for it."""
        if self._all_confirmed is not None and not self._all_confirmed.done():
            self._all_confirmed.set_exception(error)
            self._all_confirmed.exception()

    def interrupt(self) -> None:
        """The connections are gone."""
        self._pushes = self._commands = None
        self._stop_reading()

    def fail(self, error: Exception) -> None:
        """It will not come back: tell whoever waits, leave nothing behind."""
        self.interrupt()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for subscription in self._subscriptions.values():
            subscription.confirm(error)
        for future in self._behind:
            if not future.done():
                future.set_exception(error)
                future.exception()

    # -- logs

    def read_logs(self) -> None:
        """Read what the receiver wants to know, in the background."""
        wanted = self.receiver.recovering or self.receiver.held
        if wanted and self._reading is None and self._commands is not None:
            self._reading = self._loop.create_task(
                self._catch_up(self._commands), name="trunkline redis catch-up"
            )
            self._reading.add_done_callback(self._read)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _read(self, task: asyncio.Task[None]) -> None:
        if task is self._reading:
            self._reading = None
        if not task.cancelled() and (error := task.exception()) is not None and self._commands is not None:
            log.warning("reading logs failed, connecting anew: %s", error)
            self._commands.drop(error)

    async def _catch_up(self, commands: Asking) -> None:
        receiver = self.receiver
        while True:
            if receiver.recovering:
                await self._recover(commands)
            elif wanted := receiver.fetches():
                for start in range(0, len(wanted), _LOGS):
                    await self._fetch(commands, wanted[start : start + _LOGS])
                if missing := receiver.fetched():
                    await self._ask_for(commands, missing)
                self._release()
            else:
                break
        self._reading = None  # now, for what comes next may need another

    async def _ask_for(self, commands: Asking, missing: list[tuple[bytes, int]]) -> None:
        """Ask the senders for frames that went with their log, while there is patience."""
        news = self._others[1]
        asked = [(self._dialect.publish, news, b"R%b%d" % (sid, seq)) for sid, seq in missing]
        await commands.call(*asked)

    async def _recover(self, commands: Asking) -> None:
        receiver = self.receiver
        while receiver.recovering:
            wanted = receiver.reads(self._clock.now_ms())
            for start in range(0, len(wanted), _LOGS):
                await self._read_some(commands, wanted[start : start + _LOGS])
            await self._level(commands)
            outcome = receiver.settle(time.monotonic())
            for topic in dict.fromkeys(outcome.gaps):
                self._gap(topic)
            for topic, body in outcome.deliver:
                self._deliver(topic, body)
            if outcome.again:
                await asyncio.sleep(outcome.again)
        behind, self._behind = self._behind, []
        for future in behind:
            if not future.done():
                future.set_result(None)

    async def _fetch(self, commands: Asking, wanted: list[tuple[bytes, tuple[int, int], int]]) -> None:
        receiver = self.receiver
        starts = [(topic, b"(%d-%d" % entry, min(count, _FRAMES)) for topic, entry, count in wanted]
        while starts:
            following = []
            for (topic, _, count), entries in zip(starts, await _entries(commands, starts), strict=True):
                for entry_id, fields in entries:
                    receiver.fetch(topic, _entry(entry_id), fields[1])
                if len(entries) == count and receiver.fetching(topic):
                    following.append((topic, b"(" + entries[-1][0], _more(count, entries)))
            self._release()
            starts = following

    async def _read_some(self, commands: Asking, wanted: list[tuple[bytes, int]]) -> None:
        starts = [(topic, str(since).encode(), _ENTRIES) for topic, since in wanted]
        while starts:
            following = []
            for (topic, _, count), entries in zip(starts, await _entries(commands, starts), strict=True):
                for entry_id, fields in entries:
                    self.receiver.read(topic, _entry(entry_id), fields[1])
                if len(entries) == count:
                    following.append((topic, b"(" + entries[-1][0], _more(count, entries)))
            starts = following

    async def _level(self, commands: Asking) -> None:
        """Wait until all that was pushed before the logs were read is here. Otherwise a frame of one log would overtake
        another of its sender that reached a log which had been read before, and whose push is still on its way."""
        self._fence = b"L" + os.urandom(8), self._loop.create_future()
        data, arrived = self._fence
        (reply,) = await commands.call((self._dialect.publish, self._others[0], data))
        if isinstance(reply, ReplyError):
            raise reply
        await arrived

    async def audit(self, commands: Asking) -> None:
        """Look at the last entry of the logs of quiet topics: was everything heard?"""
        quiet = self.receiver.quiet()
        for start in range(0, len(quiet), _BATCH):
            chunk = quiet[start : start + _BATCH]
            replies = await commands.call(*[("XREVRANGE", topic, "+", "-", "COUNT", 1) for topic in chunk])
            clock_ms = self._clock.now_ms()
            for topic, entries in zip(chunk, replies, strict=True):
                if entries and not isinstance(entries, ReplyError):
                    entry_id, fields = entries[0]
                    self.receiver.audit(topic, _entry(entry_id), fields[1], clock_ms)
        self.read_logs()


async def _entries(commands: Asking, starts: list[tuple[bytes, bytes, int]]) -> list[list[Any]]:
    """Entries of logs: of each topic so many from a start on. A long script of somebody is waited out.

    Raises:
        ReplyError: The server refuses.
    """
    while True:
        replies = await commands.call(
            *[("XRANGE", topic, start, "+", "COUNT", count) for topic, start, count in starts]
        )
        refusal = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if refusal is None:
            return replies
        if not str(refusal).startswith("BUSY"):
            raise refusal
        await asyncio.sleep(_PAUSE)


def _more(count: int, entries: list[Any]) -> int:
    """How many entries to read next."""
    size = sum(len(fields[1]) for _, fields in entries)
    return max(1, min(8 * count, _MOST, _MOST_BYTES * count // max(size, 1)))


def _entry(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
