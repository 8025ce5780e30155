"""The link to one server: one supervisor that keeps two connections, one for commands and one for pushes.

Rules of this room: all trouble ends in one place, ``_lost``, and is mended in one place, ``_run``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time

from ...errors import ConfigurationError, TransportUnavailable
from ...transport import Server
from .connection import Connection, ReplyError, connect, raise_refused, unavailable
from .dialect import Dialect
from .hosts import Host
from .identity import identify
from .link import Link, Setting
from .replicas import line_to
from .sentinel import Sentinels
from .topology import Names

__all__ = ["ServerLink", "introduce", "sweep"]

log = logging.getLogger("trunkline.redis")


class ServerLink(Link):
    """One server, as seen by one node."""

    def __init__(self, host: Host, names: Names, setting: Setting) -> None:
        super().__init__(host, names, setting)
        self._deadline = setting.deadline
        self._on_disconnect, self._on_reconnect = setting.on_disconnect, setting.on_reconnect
        self._sentinels = Sentinels(host, setting.deadline) if host.sentinels else None
        self._connections: list[Connection] = []
        self._down: asyncio.Future[TransportUnavailable] = asyncio.get_running_loop().create_future()
        #: The shared clock at the last heartbeat.
        self._beat_ms = 0
        self._probing = False
        self._task: asyncio.Task[None] | None = None
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patient = False

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
        self.records.leave()
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

    async def meet(self) -> None:
        if not self.met:
            raise self.unavailable()

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
        super()._fail(error)
        for future in (self._open, self._tried):
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
        self._disconnect()
        if self._interrupted(trouble):
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
        name = f"trunkline-{self._setting.node}"
        for kind in ("commands", "pushes"):
            self._connections.append(
                await connect(server, name=f"{name}-{kind}", deadline=self._deadline, on_lost=self._lost)
            )
        commands, pushes = self._connections
        async with asyncio.timeout(self._deadline):
            asked = time.monotonic()
            (reply,) = await commands.call(("TIME",))
            if isinstance(reply, ReplyError):
                raise_refused(self.host, reply)
            self._set_clock(reply, asked)
            run_id = await introduce(self.host, commands, self._dialect, first=self._run_id is None)
        line = line_to(commands, self.host, self._setting.wait_replicas, self._deadline)
        await self._resume(pushes, commands, line, run_id)
        self._beat_ms = int(self.clock.now() * 1000)
        self._probing = False
        if self.met or self._patient:
            log.info("%s is back", self.host.address)
        if self.met:
            self._on_reconnect(self.host.address)
        else:
            self.met = True
            self._open.set_result(None)
            self._has_tried()

    def _set_clock(self, reply: list[bytes], asked: float) -> int:
        jump_ms = super()._set_clock(reply, asked)
        self._beat_ms += jump_ms
        return jump_ms

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
            if self._connections[0].idle:
                # A server that owes answers may be gone, and what it answered with it.
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
        await self._beat_life(commands)
        beat_ms, self._beat_ms = self._beat_ms, int(self.clock.now() * 1000)
        if self.inflow.heard or not self._pace.probe:
            self._alive_ms = beat_ms
            self.inflow.heard = self._probing = False
        elif self._probing:
            raise unavailable(self.host, "the push connection is silent")
        else:
            self._probing = True
            await commands.call(("PUBLISH", self._channel, b"P"))

    async def flush(self) -> None:
        """Forget all keys of the prefix but the signs of life."""
        commands = self._connections[0] if self.up else None
        if commands is None:
            raise unavailable(self.host, "the connection is down")
        await sweep(self.host, commands, self.names.root)
        await commands.call(("PUBLISH", self.names.news, b"F"))


async def introduce(
    host: Host, commands: Connection, dialect: Dialect, *, first: bool, in_cluster: bool = False
) -> str:
    """Learn who the server is, teach it our scripts; returns what changes when it may have lost data."""
    info, *loaded = await commands.call(("INFO",), *dialect.load_commands())
    for reply in loaded:
        if isinstance(reply, ReplyError):
            raise_refused(host, reply)
    return identify(host, info, first=first, in_cluster=in_cluster)


async def sweep(host: Host, commands: Connection, root: str) -> None:
    """Delete all keys that begin with ``root``, but the signs of life."""
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", root) + "{*"
    cursor: bytes = b"0"
    while True:
        (reply,) = await commands.call(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
        if isinstance(reply, ReplyError):
            raise unavailable(host, reply)
        cursor, keys = reply
        doomed = [("UNLINK", key) for key in keys if b"}a:" not in key and b"}m:" not in key]
        if doomed:
            await commands.call(*doomed)
        if cursor == b"0":
            break
