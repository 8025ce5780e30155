"""The link to one partition of a cluster. It has a chain of its own, so it moves from master to master in one piece.

Rules of this room: a partition is at one master at a time. When it leaves, it waits for what is outstanding there before
it sends anything to the next, so nothing overtakes. What the old master cannot be asked any more is sent again, and
counts once by its number.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, TransportUnavailable
from .connection import ReplyError, asking, unavailable
from .dialect import Dialect
from .hosts import Host
from .link import Link, Setting
from .ops import Op
from .topology import Names

if TYPE_CHECKING:
    from .cluster import Cluster
    from .master import Master

__all__ = ["PartitionLink"]

log = logging.getLogger("trunkline.redis")


class PartitionLink(Link):
    """One partition, as seen by one node; it costs nothing before it is used."""

    def __init__(
        self,
        cluster: Cluster,
        place: int,
        host: Host,
        names: Names,
        setting: Setting,
        dialect: Dialect,
        *,
        is_home: bool,
    ) -> None:
        super().__init__(
            host, names.of(place), setting, is_home=is_home, dialect=dialect, redirect=self._redirected
        )
        self._cluster, self.place = cluster, place
        self._mark = self.names.mark(setting.node)
        self.master: Master | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._down: asyncio.Future[TransportUnavailable] = self._loop.create_future()
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._settled_at = 0.0

    # -- life

    @property
    def used(self) -> bool:
        """Whether it is kept at a master."""
        return self._task is not None

    @property
    def is_home(self) -> bool:
        """Whether the node's inbox is here."""
        return self._is_home

    def use(self) -> None:
        """Keep it at its master from now on."""
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name=f"trunkline redis partition {self.place}")

    async def meet(self) -> None:
        """Wait until it was at its master once, as long as a frame lives."""
        self.use()
        try:
            async with asyncio.timeout(self._setting.expiry):
                await asyncio.shield(self._settled)
        except TimeoutError:
            raise self.unavailable() from None

    def stop(self) -> list[asyncio.Task[None]]:
        """End the task; returns it, to be waited for."""
        if self._task is None:
            return []
        self._task.cancel()
        return [self._task]

    def abandon(self) -> None:
        """Let go without a word."""
        if self._task is not None:
            self._task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant

    def fail(self, error: Exception) -> None:
        """It will not come back: tell whoever waits."""
        self._fail(error)
        if not self._settled.done():
            self._settled.set_exception(error)
            self._settled.exception()

    async def say_good_bye(self) -> None:
        """Tell the others that this node is gone."""
        if self.up and self.master is not None:
            await self._say_good_bye(_Lane(self, self.master, self._cluster))

    # -- at one master after the other

    async def _run(self) -> None:
        attempt = 0
        while True:
            self._down = self._loop.create_future()
            master: Master | None = None
            try:
                master = await self._cluster.home(self.place)
                await self._settle(master)
                attempt = 0
                trouble = await self._down
            except (TransportUnavailable, ConfigurationError, TimeoutError) as error:
                trouble = error if isinstance(error, TransportUnavailable) else unavailable(self.host, error)
            except Exception as error:
                # Whatever it is, a link that stops trying is an outage without end.
                log.exception("unexpected trouble with partition %d, trying anew", self.place)
                trouble = unavailable(self.host, error)
            await self._leave(master, trouble)
            if attempt:
                self._cluster.look()
                pause = min(0.02 * 2**attempt, self._pace.backoff) * random.uniform(0.5, 1.0)
                await asyncio.sleep(pause)
            attempt = min(attempt + 1, 10)

    async def _settle(self, master: Master) -> None:
        self.master = master
        lane = _Lane(self, master, self._cluster)
        master.links[self.place] = self
        self._jumped(self.clock.adopt(master.clock))
        await self._resume(_Ears(master), lane, master.line, master.run_id)
        if self._down.done():
            raise self._down.result()
        self._settled_at = time.monotonic()
        self.met = True
        if not self._settled.done():
            self._settled.set_result(None)
        self._cluster.settled()

    async def _leave(self, master: Master | None, trouble: TransportUnavailable) -> None:
        if master is not None and master.up and not self._dialect.sharded:
            self.inflow.leave_server()
        self._interrupted(trouble)
        self.master = None
        if master is not None:
            await master.fence()
            if master.links.get(self.place) is self:
                del master.links[self.place]
            self._cluster.tidy()

    def trouble(self, error: TransportUnavailable) -> None:
        """Leave the master: it is gone, or the partition is."""
        if not self._down.done():
            self._down.set_result(error)
            self.inflow.broken(error)

    def moved(self, reply: Exception | str, by: Host) -> None:
        """A ``MOVED``: follow."""
        self._cluster.moved(self.place, str(reply), by)
        self.trouble(unavailable(by, f"partition {self.place} moved: {reply}"))

    def left(self, by: Host) -> None:
        """The master has told that the partition is there no more."""
        self._cluster.look()
        self.trouble(unavailable(by, f"partition {self.place} has left"))

    def _redirected(self, op: Op, text: str, alone: bool) -> bool:
        master = self.master
        if master is None:
            return False
        if text.startswith("ASK"):
            if alone:
                self._cluster.spawn(self._ask(op, text, master.host))
            return alone
        if text.startswith("MOVED"):
            self.moved(text, master.host)
        elif text.startswith(("CLUSTERDOWN", "READONLY", "MASTERDOWN")):
            self._cluster.look()
        return False

    async def _ask(self, op: Op, text: str, by: Host) -> None:
        try:
            master = await self._cluster.named(text, by)
            data = op.commands()
            data = asking(data if isinstance(data, bytes) else b"".join(data))
            master.line.send(data, _Asked(op))
        except (TransportUnavailable, TimeoutError):
            self.outbox.untried(op)

    # -- looked after by its master

    def heard_until(self, moment: float) -> None:
        """Everything pushed until this ``time.monotonic()`` has been heard."""
        if self.up and self._settled_at <= moment:
            self._alive_ms = max(self._alive_ms, int(self.clock.at(moment) * 1000))

    def look_after(self, now: float, *, idle: bool) -> None:
        """What is to be done every second or so. ``idle``: the master owes no answers."""
        if not self.up:
            return
        self.readers.wake_all()
        if idle:
            self._sender.prune(now)
        if self._is_home:
            self.inbox.flush()

    async def beat(self, master: Master) -> None:
        """Show a sign of life."""
        await self._beat_life(_Lane(self, master, self._cluster))

    async def audit(self, master: Master) -> None:
        """Look at the ends of quiet logs."""
        lane = _Lane(self, master, self._cluster)
        if not self._is_home:
            await self._beat_life(lane)
        await self.inflow.audit(lane)

    def rotate(self) -> None:
        """Forget senders that are silent for long."""
        self.inflow.receiver.rotate()

    @property
    def probe(self) -> bytes:
        """A channel that is subscribed."""
        return self._channel

    def _sign(self) -> tuple[tuple[bytes | str | int, ...], ...]:
        if self._is_home:
            return super()._sign()
        return (("SET", self._mark, "1", "PX", int(self._pace.audit * 3000), "GET"),)


class _Ears:
    """The push connection of a master, which hands on by itself what is ours."""

    def __init__(self, master: Master) -> None:
        self._master = master

    def listen(self, on_push: Callable[[list[Any]], None]) -> None:
        """It does already."""

    def write(self, data: bytes) -> None:
        self._master.pushes.write(data)


class _Lane:
    """Questions of one partition to its master, and where that sends us."""

    def __init__(self, link: PartitionLink, master: Master, cluster: Cluster) -> None:
        self._link, self._master, self._cluster = link, master, cluster

    async def call(self, *commands: tuple[bytes | str | int, ...]) -> list[Any]:
        replies = await self._master.commands.call(*commands)
        for number, reply in enumerate(replies):
            if isinstance(reply, ReplyError):
                if str(reply).startswith("ASK"):
                    other = await self._cluster.named(str(reply), self._master.host)
                    _, replies[number] = await other.commands.call(("ASKING",), commands[number])
                elif str(reply).startswith("MOVED") and self._link.master is self._master:
                    self._link.moved(reply, self._master.host)
        return replies

    def drop(self, cause: BaseException | None = None) -> None:
        self._link.trouble(unavailable(self._master.host, cause or "it is of no use"))


class _Asked:
    """An operation sent where the slot is going, each command behind an ``ASKING``."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self.want = 2 * op.want

    def answered(self, replies: list[Any]) -> None:
        self._op.answered(replies[1::2])

    def short(self, replies: list[Any], error: TransportUnavailable) -> None:
        self._op.short(replies[1::2], error)

    def lost(self, error: TransportUnavailable) -> None:
        self._op.outbox.untried(self._op)
