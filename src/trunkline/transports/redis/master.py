"""One master of a cluster: two connections, shared by all partitions that are there.

Rules of this room: it knows nothing of messages. It brings pushes to the partition they belong to, tells all partitions
when the connections are gone, and looks after those that are there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...clock import Clock
from ...errors import ConfigurationError, TransportUnavailable
from .connection import Connection, ReplyError, connect, pack, raise_refused, seconds, unavailable
from .dialect import Dialect
from .hosts import Host
from .link import Setting
from .replicas import Line, line_to
from .server import introduce
from .topology import PARTITIONS, SLOTS, partition_of_key

if TYPE_CHECKING:
    from .partition import PartitionLink

__all__ = ["Master"]

log = logging.getLogger("trunkline.redis")


class Master:
    """One server that partitions are at, and its two connections.

    Args:
        changed: Called when it has come up, cannot be reached, or (with True) was lost.
        refused: Called with an error that will not go away by itself.
    """

    def __init__(
        self,
        host: Host,
        setting: Setting,
        dialect: Dialect,
        *,
        changed: Callable[[Master, bool], None],
        refused: Callable[[ConfigurationError], None],
    ) -> None:
        self.host = host
        self._setting, self._dialect, self._pace = setting, dialect, setting.pace
        self._changed, self._refused_us = changed, refused
        #: The partitions that are here, by their numbers.
        self.links: dict[int, PartitionLink] = {}
        self._connections: list[Connection] = []
        self._down: asyncio.Future[TransportUnavailable] = asyncio.get_running_loop().create_future()
        self.line: Line
        self.run_id = ""
        self.clock = Clock()
        self.up = False
        self._heard = self._probing = False
        self._beat_at = 0.0
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"trunkline redis {host.address}"
        )

    @property
    def commands(self) -> Connection:
        """The connection for commands.

        Raises:
            TransportUnavailable: There is none now.
        """
        if not self.up:
            raise unavailable(self.host, "the connection is down")
        return self._connections[0]

    @property
    def pushes(self) -> Connection:
        """The connection for pushes."""
        return self._connections[1]

    @property
    def silent(self) -> float | None:
        """Seconds since the last heartbeat; None before there was one."""
        return time.monotonic() - self._beat_at if self._beat_at else None

    async def fence(self) -> None:
        """Wait until all that was sent is answered, or lost."""
        if self.up:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.line.send(pack("PING"), _Behind(done))
            await done

    def stop(self) -> asyncio.Task[None]:
        """End it; returns the task to be waited for."""
        self.up = False
        for connection in self._connections:
            connection.drop()
        self._task.cancel()
        return self._task

    def abandon(self) -> None:
        """Let go of sockets without a word."""
        self._task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        for connection in self._connections:
            connection.abandon()

    # -- supervision

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._connect()
                attempt = 0
                trouble = await self._attend()
            except ConfigurationError as error:
                self._refused_us(error)
                trouble = unavailable(self.host, error)
            except TransportUnavailable as error:
                trouble = error
            except TimeoutError as error:
                trouble = unavailable(self.host, error)
            except Exception as error:
                # Whatever it is, a master that is tried no more is an outage without end.
                log.exception("unexpected trouble with %s, connecting anew", self.host.address)
                trouble = unavailable(self.host, error)
            self._interrupt(trouble)
            pause = min(0.02 * 2**attempt, self._pace.backoff) * random.uniform(0.5, 1.0)
            attempt = min(attempt + 1, 10)
            await asyncio.sleep(pause)

    async def _connect(self) -> None:
        self._down = asyncio.get_running_loop().create_future()
        name, deadline = f"trunkline-{self._setting.node}", self._setting.deadline
        for kind in ("commands", "pushes"):
            self._connections.append(
                await connect(self.host, name=f"{name}-{kind}", deadline=deadline, on_lost=self._lost)
            )
        commands, pushes = self._connections
        async with asyncio.timeout(deadline):
            first = not self.run_id
            await self._ask_time(commands)
            self.run_id = await introduce(self.host, commands, self._dialect, first=first, in_cluster=True)
        pushes.listen(self._hear)
        self.line = line_to(commands, self.host, self._setting.wait_replicas, deadline)
        self._beat_at = time.monotonic()
        self._heard = self._probing = False
        self.up = True
        self._changed(self, False)

    async def _ask_time(self, commands: Connection) -> None:
        asked = time.monotonic()
        (reply,) = await commands.call(("TIME",))
        if isinstance(reply, ReplyError):
            raise_refused(self.host, reply)
        self.clock.learn(seconds(reply), asked, time.monotonic())

    def _lost(self, error: TransportUnavailable) -> None:
        if self.up:
            self.up = False
            log.warning("lost %s: %s", self.host.address, error)
            self._changed(self, True)
        if not self._down.done():
            self._down.set_result(error)
            for link in list(self.links.values()):
                link.trouble(error)

    def _interrupt(self, trouble: TransportUnavailable) -> None:
        self._lost(trouble)
        for connection in self._connections:
            connection.drop()
        self._connections = []
        self._changed(self, False)

    # -- pushes

    def _hear(self, reply: Any) -> None:
        self._heard = True
        if isinstance(reply, ReplyError):
            self._refused(reply)
            return
        place = partition_of_key(reply[1])
        link = self.links.get(place) if place is not None else None
        if link is None:
            return
        if reply[0] != self._dialect.unsubscribed:
            link.inflow.hear(reply)
        elif self._dialect.sharded and link.inflow.subscribed(reply[1]) and not self._down.done():
            # Not by our wish: the slot has left this master.
            link.left(self.host)

    def _refused(self, reply: Exception) -> None:
        words = str(reply).split()
        if words[0] == "MOVED" and len(words) == 3:
            link = self.links.get(int(words[1]) * PARTITIONS // SLOTS)
            if link is not None and link.master is self:
                link.moved(reply, self.host)
            return
        log.warning("%s refuses a subscription: %s", self.host.address, reply)
        for link in list(self.links.values()):
            link.trouble(unavailable(self.host, reply))

    # -- care

    async def _attend(self) -> TransportUnavailable:
        """Look after it while it works."""
        pace, down, retention = self._pace, self._down, self._setting.retention
        now = time.monotonic()
        beat, audit, rotate = now + pace.heartbeat, now + pace.audit, now + 2 * retention
        while True:
            await asyncio.wait([down], timeout=pace.heartbeat * random.uniform(0.3, 0.5))
            if down.done():
                return down.result()
            now = time.monotonic()
            idle = self._connections[0].idle
            for link in list(self.links.values()):
                link.look_after(now, idle=idle)
            if now >= beat:
                beat = now + pace.heartbeat
                await self._beat()
            if now >= audit:
                audit = now + pace.audit
                for link in self._present():
                    await self._care(link, link.audit)
            if now >= rotate:
                rotate = now + 2 * retention
                for link in list(self.links.values()):
                    link.rotate()

    def _present(self) -> list[PartitionLink]:
        return [link for link in self.links.values() if link.up]

    async def _care(self, link: PartitionLink, work: Callable[[Master], Any]) -> None:
        """A partition that is refused leaves; the others stay."""
        if link.up:
            try:
                await work(self)
            except (TransportUnavailable, ConfigurationError) as error:
                if self._connections[0].closed:
                    raise
                link.trouble(unavailable(self.host, error.__cause__ or error))

    async def _beat(self) -> None:
        home = next((link for link in self._present() if link.is_home), None)
        if home is not None:
            await self._care(home, home.beat)
        else:
            await self._ask_time(self.commands)
        beat_at, self._beat_at = self._beat_at, time.monotonic()
        present = self._present()
        if self._heard or not self._pace.probe:
            for link in present:
                link.heard_until(beat_at)
            self._heard = self._probing = False
        elif self._probing:
            raise unavailable(self.host, "the push connection is silent")
        elif present:
            self._probing = True
            await self.commands.call((self._dialect.publish, random.choice(present).probe, b"P"))


class _Behind:
    """A request whose answer comes behind those of all before it."""

    want = 1

    def __init__(self, done: asyncio.Future[None]) -> None:
        self._done = done

    def answered(self, replies: list[Any]) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def lost(self, error: TransportUnavailable) -> None:
        self.answered([])
