"""The link to one server: one supervisor that keeps two connections, one for commands and one for pushes.

Rules of this room: all trouble ends in one place, ``_lost``, and is mended in one place, ``_run``. After a connection
comes back, in this order: subscribe to all, show a sign of life, send what is unanswered, read the logs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Callable

from ...continuity import Receiver, Sender
from ...errors import ConfigurationError, TransportUnavailable
from ...transport import Arrivals, Server
from .clock import Clock
from .connection import Connection, ReplyError, connect, raise_refused, unavailable
from .hosts import Host
from .identity import identify
from .inbox import Inbox
from .inflow import Inflow
from .ops import Op
from .outbox import Outbox
from .pace import Pace
from .readers import Readers
from .scripts import ALL
from .sentinel import Sentinels
from .topology import Names

__all__ = ["Link"]

log = logging.getLogger("trunkline.redis")


class Link:
    """One server, as seen by one node."""

    def __init__(
        self,
        host: Host,
        names: Names,
        node: str,
        arrivals: Arrivals,
        *,
        expiry: float,
        deadline: float,
        log_length: int,
        pace: Pace,
        on_disconnect: Callable[[str], None],
        on_reconnect: Callable[[str], None],
    ) -> None:
        self.host, self.names, self._pace, self._deadline = host, names, pace, deadline
        self._on_disconnect, self._on_reconnect = on_disconnect, on_reconnect
        self._retention = expiry + 10
        self.expiry = expiry
        self._node = node
        self.clock = Clock()
        sid = os.urandom(8)
        self.sid = sid.hex()
        self._channel = names.node(node)
        sender: Sender[Op] = Sender(sid, retention=self._retention, window=pace.window)
        self.outbox = Outbox(host, sender, self.clock, log_length, self._echo)
        self._sender = sender
        self.readers = Readers(self.outbox, names, self._channel, self.sid)
        self.inbox = Inbox(self.outbox, names.post_keys(node, ""), arrivals, int((pace.life + expiry) * 1000))
        self._arrivals = arrivals
        #: Names of the topics we subscribe to, for those who are told of gaps.
        self._topics: dict[bytes, str] = {}
        #: Topics that have queues bound to them.
        self.bound: set[str] = set()
        self._bound_waiters: list[asyncio.Future[None]] = []
        self._news = 0
        self.inflow = Inflow(
            Receiver(retention=self._retention, patience=pace.patience),
            self.clock,
            others=(self._channel, names.news),
            deliver=self._deliver,
            gap=self._gap,
            other=self._hear,
        )
        self.inflow.want(self.inbox.keys[0], 0)
        self._sentinels = Sentinels(host, deadline) if host.sentinels else None
        self._connections: list[Connection] = []
        self._down: asyncio.Future[TransportUnavailable] = asyncio.get_running_loop().create_future()
        self._run_id: object = None
        #: The shared clock when surely everything pushed until then had been heard, and at the last heartbeat.
        self._alive_ms = self._beat_ms = 0
        self._probing = False
        self._task: asyncio.Task[None] | None = None
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patient = False
        #: Whether the server has ever been of use.
        self.met = False
        self._trouble: BaseException | None = None
        self.up = False

    # -- life

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"trunkline redis {self.host.address}"
        )

    async def opened(self) -> None:
        """Wait for the first connection.

        Raises:
            ConfigurationError: It will never come.
        """
        await asyncio.shield(self._open)

    async def tried(self) -> None:
        """Wait until the first attempt to connect has ended, well or not."""
        await asyncio.shield(self._tried)

    def keep_trying(self) -> None:
        """Go on whatever is wrong with the server, until it is mended."""
        self._patient = True

    async def close(self, error: Exception) -> None:
        """Finish what is on its way, say good-bye, leave nothing behind."""
        self.readers.leave()
        until = time.monotonic() + 1.0
        while self.up and self.outbox.busy and time.monotonic() < until:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.005)
        if self.up:
            try:
                await asyncio.wait_for(self._say_good_bye(self._connections[0]), 1.0)
            except (TransportUnavailable, TimeoutError):
                log.info("%s was gone before we could say good-bye", self.host.address)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._sentinels is not None:
            await self._sentinels.close()
        self._disconnect()
        self._fail(error)
        await asyncio.sleep(0)  # the loop calls connection_lost

    async def _say_good_bye(self, commands: Connection) -> None:
        inbox, alive, depth = self.inbox.keys[:3]
        ttl = int(self._pace.life * 1000)
        await commands.call(("SET", alive, "", "PX", ttl), ("UNLINK", inbox, depth))

    def unavailable(self) -> TransportUnavailable:
        """Why it is not up."""
        return unavailable(self.host, self._trouble or "no answer yet")

    def server(self) -> Server:
        """How it does, as far as is known without asking."""
        silent = self.clock.now() - self._beat_ms / 1000 if self._beat_ms else None
        trouble = "" if self.up and self.outbox.flowing else self.outbox.trouble
        return Server(self.host.address, self.up, silent, trouble, self.outbox.waiting)

    def abandon(self) -> None:
        """Let go of sockets without a word."""
        if self._task is not None:
            self._task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        if self._sentinels is not None:
            self._sentinels.abandon()
        for connection in self._connections:
            connection.abandon()

    def _fail(self, error: Exception) -> None:
        self.outbox.fail(error)
        self.inflow.fail(error)
        self.readers.fail(error)
        self.inbox.close()
        for future in (self._open, self._tried, *self._bound_waiters):
            if not future.done():
                future.set_exception(error)
                future.exception()

    # -- supervision

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._connect()
                attempt = 0
                trouble = await self._attend()
            except ConfigurationError as error:
                if not self.met and not self._patient:
                    self._open.set_exception(error)
                    self._open.exception()
                    self._has_tried()
                    return
                trouble = unavailable(self.host, error)
            except TransportUnavailable as error:
                trouble = error
            except TimeoutError as error:
                trouble = unavailable(self.host, error)
            except Exception as error:
                # Whatever it is, a link that stops trying is an outage without end.
                log.exception("unexpected trouble with %s, connecting anew", self.host.address)
                trouble = unavailable(self.host, error)
            self._interrupt(trouble)
            pause = min(0.02 * 2**attempt, self._pace.backoff) * random.uniform(0.5, 1.0)
            attempt = min(attempt + 1, 10)
            await asyncio.sleep(pause)

    def _lost(self, error: TransportUnavailable) -> None:
        if not self._down.done():
            self._down.set_result(error)
            self.inflow.broken(error)

    def _disconnect(self) -> None:
        if self._sentinels is not None:
            self._sentinels.stop()
        for connection in self._connections:
            connection.drop()
        self._connections = []

    def _has_tried(self) -> None:
        if not self._tried.done():
            self._tried.set_result(None)

    def _interrupt(self, trouble: TransportUnavailable) -> None:
        self._has_tried()
        was_up, self.up = self.up, False
        self._trouble = trouble.__cause__ or trouble
        self._disconnect()
        self.outbox.interrupt(self._trouble)
        self.inflow.interrupt()
        if was_up:
            log.warning("lost %s: %s", self.host.address, trouble)
            self._on_disconnect(self.host.address)

    def _moved(self, master: Host) -> None:
        """Leave a server that is the master no more, however well it answers."""
        trouble = ConnectionError(f"the master is {master.address} now")
        for connection in self._connections:
            connection.drop(trouble)
        self._lost(unavailable(self.host, trouble))

    async def _connect(self) -> None:
        self._down = asyncio.get_running_loop().create_future()
        server = self.host
        if self._sentinels is not None:
            server = await self._sentinels.find()
            self._sentinels.follow(server, self._moved)
        name = f"trunkline-{self._node}"
        for kind in ("commands", "pushes"):
            self._connections.append(
                await connect(server, name=f"{name}-{kind}", deadline=self._deadline, on_lost=self._lost)
            )
        commands, pushes = self._connections
        async with asyncio.timeout(self._deadline):
            run_id = await self._introduce(commands)
            first = self._run_id is None
            forgetful = not first and (run_id != self._run_id or run_id == "unknown")
            if not first:
                self.inflow.receiver.interrupted(self._alive_ms - 5000)
            try:
                await self.inflow.resume(pushes, commands)
            except ReplyError as reply:
                raise_refused(self.host, reply)
            known = await self._show_life(commands)
        self._run_id = run_id
        self._beat_ms = int(self.clock.now() * 1000)
        if first:
            self._alive_ms = self._beat_ms
        if forgetful and not known:
            await asyncio.sleep(2 * self._pace.backoff)
        if forgetful or not (known or first):
            self.inbox.doubt(30.0)
        self.outbox.resume(commands, forgetful=forgetful)
        self.inbox.flush()
        self.inflow.read_logs()
        self.readers.wake_all()
        self.up = True
        self._probing = False
        if self.met or self._patient:
            log.info("%s is back", self.host.address)
        if self.met:
            self._on_reconnect(self.host.address)
        else:
            self.met = True
            self._open.set_result(None)
            self._has_tried()

    async def _introduce(self, commands: Connection) -> str:
        """Learn who the server is, teach it our scripts; returns what changes when it may have lost data."""
        asked = time.monotonic()
        replies = await commands.call(("TIME",))
        if isinstance(replies[0], ReplyError):
            raise_refused(self.host, replies[0])
        self._set_clock(replies[0], asked)
        scripts = [("SCRIPT", "LOAD", script.text) for script in ALL]
        info, *loaded = await commands.call(("INFO",), *scripts)
        for reply in loaded:
            if isinstance(reply, ReplyError):
                raise_refused(self.host, reply)
        return identify(self.host, info, first=self._run_id is None)

    def _set_clock(self, reply: list[bytes], asked: float) -> None:
        jump_ms = int(self.clock.learn(reply, asked, time.monotonic()) * 1000)
        if jump_ms < -100:
            # Another server, or a clock set back: what comes now may look older than what we had.
            self.inflow.receiver.rebase(int(self.clock.now() * 1000))
            self._alive_ms += jump_ms
            self._beat_ms += jump_ms

    async def _show_life(self, commands: Connection) -> bool:
        """The sign of life; True when the server had the last one still."""
        _, alive, depth = self.inbox.keys[:3]
        ttl = int(self._pace.life * 1000)
        now = int(self.clock.now() * 1000)
        asked, news = time.monotonic(), self._news
        time_, bound, was, *_ = await commands.call(
            ("TIME",),
            ("ZRANGEBYSCORE", self.names.bound, now, "+inf"),
            ("SET", alive, self.sid, "PX", ttl, "GET"),
            ("PEXPIRE", self.inbox.keys[0], self.inbox.ttl_ms),
            ("PEXPIRE", depth, self.inbox.ttl_ms),
        )
        if isinstance(time_, list):
            self._set_clock(time_, asked)
        if isinstance(bound, list):
            # What was bound since we asked is known from the news only.
            known = set() if news == self._news else self.bound
            self.bound = known | {topic.decode() for topic in bound}
            self._tell_bound()
        if not isinstance(was, ReplyError):
            return was is not None
        if not str(was).startswith(("OOM", "MISCONF", "BUSY")):
            raise_refused(self.host, was)
        return True  # it cannot say; it works and will remember us when it can

    async def _attend(self) -> TransportUnavailable:
        """Look after a link that works, until it does not."""
        pace, down = self._pace, self._down
        now = time.monotonic()
        beat, audit, rotate = now + pace.heartbeat, now + pace.audit, now + 2 * self._retention
        while True:
            await asyncio.wait([down], timeout=pace.heartbeat * random.uniform(0.3, 0.5))
            if down.done():
                return down.result()
            self.readers.wake_all()
            now = time.monotonic()
            if self._connections[
                0
            ].idle:  # a server that owes answers may be gone, and what it answered with it
                self._sender.prune(now)
            self.inbox.flush()
            if now >= beat:
                beat = now + pace.heartbeat
                await self._beat()
            if now >= audit:
                audit = now + pace.audit
                await self.inflow.audit(self._connections[0])
            if now >= rotate:
                rotate = now + 2 * self._retention
                self.inflow.receiver.rotate()

    async def _beat(self) -> None:
        commands = self._connections[0]
        if not await self._show_life(commands):
            # It forgot us without going away: somebody emptied it. Logs made since then have no time to live.
            self.inbox.doubt(30.0)
            await commands.call(("PING",), *self.outbox.renew(self._retention))
        self.inbox.tell_truth()
        beat_ms, self._beat_ms = self._beat_ms, int(self.clock.now() * 1000)
        if self.inflow.heard or not self._pace.probe:
            self._alive_ms = beat_ms
            self.inflow.heard = self._probing = False
        elif self._probing:
            raise unavailable(self.host, "the push connection is silent")
        else:
            self._probing = True
            await commands.call(("PUBLISH", self._channel, b"P"))

    # -- arrivals

    def _echo(self, op: Op) -> None:
        """Our own copy is here when the server has answered, whatever takes longer on the other connection."""
        if op.topic is not None and self.inflow.receiver.hears(op.topic):
            self.inflow.take(op.topic, self._sender.frame(op))

    def _deliver(self, topic: bytes, body: bytes) -> None:
        if topic == self.inbox.keys[0]:
            self.inbox.deliver(body)
        else:
            self._arrivals.deliver(body)

    def _gap(self, topic: bytes) -> None:
        if topic == self.inbox.keys[0]:
            self.inbox.doubt(30.0)
            self._arrivals.gap(None, f"{self.host.address} lost messages that were sent to this node")
        elif topic in self._topics:
            self._arrivals.gap(self._topics[topic], f"{self.host.address} lost messages")

    def _hear(self, channel: bytes, data: bytes) -> None:
        kind, text = data[:1], data[1:]
        if kind == b"W":
            self.readers.wake(text)
        elif kind == b"B":
            self.bound.add(text.decode())
            self._tell_bound()
        elif kind == b"F":
            self.bound.clear()
            self.inbox.forget()
            self.readers.forget()
            self.outbox.forget_logs()

    def _tell_bound(self) -> None:
        self._news += 1
        waiting, self._bound_waiters = self._bound_waiters, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def hear_of(self, topic: str) -> None:
        """Wait until this node knows that the topic has bindings; then the others were told too."""
        while topic not in self.bound:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._bound_waiters.append(future)
            await future

    async def flush(self) -> None:
        """Forget all keys of the prefix but the signs of life."""
        commands = self._connections[0] if self.up else None
        if commands is None:
            raise unavailable(self.host, "the connection is down")
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self.names.root) + "{*"
        cursor: bytes = b"0"
        while True:
            (reply,) = await commands.call(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
            if isinstance(reply, ReplyError):
                raise unavailable(self.host, reply)
            cursor, keys = reply
            doomed = [key for key in keys if b"}a:" not in key]
            if doomed:
                await commands.call(("UNLINK", *doomed))
            if cursor == b"0":
                break
        await commands.call(("PUBLISH", self.names.news, b"F"))

    # -- topics

    async def subscribe(self, topic: str) -> None:
        wire = self.names.topic(topic)
        self._topics[wire] = topic
        await self.inflow.subscribe(wire)

    def unsubscribe(self, topic: str) -> None:
        wire = self.names.topic(topic)
        self._topics.pop(wire, None)
        self.inflow.unsubscribe(wire)
