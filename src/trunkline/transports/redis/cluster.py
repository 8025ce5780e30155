"""A cluster, as seen by one node: which master has which partition, and the connections to those in use.

Rules of this room: what a node of the cluster says about who has what is a rumour until that master serves us; a wrong one
costs a ``MOVED``. It is asked at the start, when a slot has moved, when a connection is lost or refused, and every
30 s. A node that has lost sight of the cluster is believed only if there is no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ...clock import Clock
from ...errors import ConfigurationError, TransportUnavailable
from ...transport import Server
from .connection import Connection, ReplyError, connect, raise_refused, unavailable
from .dialect import PLAIN, SHARDED, Dialect
from .hosts import Host
from .link import Setting
from .master import Master
from .partition import PartitionLink
from .server import sweep
from .topology import PARTITIONS, Names, partition, slot

__all__ = ["Cluster", "Layout", "ask_dialect", "ask_layout", "read_layout"]

log = logging.getLogger("trunkline.redis")

#: Seconds between two looks at who has what, when nothing gives reason to look; and when a partition has no master.
LOOK, _LOOK_AGAIN = 30.0, 0.2
#: Seconds that one node has to answer.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Layout:
    """Who has what."""

    #: The master of each partition; None where nobody has its slot.
    owners: tuple[Host | None, ...]
    #: Masters and replicas.
    nodes: tuple[Host, ...]
    #: Slots that somebody has.
    covered: int
    #: Master -> its replicas.
    replicas: dict[Host, tuple[Host, ...]]
    #: Whether the node that told it calls the cluster well.
    well: bool = True


def place_of(asked: Host, host: Any, port: Any) -> Host:
    """A node by its announced address; where that is left open, it is the host that told it."""
    name = host.decode() if isinstance(host, bytes) else host or ""
    return asked.at(asked.host if name in ("", "?") else name, int(port))


def read_layout(reply: list[Any], asked: Host, *, well: bool = True) -> Layout:
    """Read the answer to ``CLUSTER SLOTS``."""
    owners: list[Host | None] = [None] * PARTITIONS
    replicas: dict[Host, tuple[Host, ...]] = {}
    covered = 0
    for first, last, *nodes in reply:
        master, *others = (place_of(asked, *node[:2]) for node in nodes)
        replicas[master] = tuple(others)
        covered += last - first + 1
        for number in range(PARTITIONS):
            if first <= slot(number) <= last:
                owners[number] = master
    everyone = dict.fromkeys((*replicas, *(node for nodes in replicas.values() for node in nodes)))
    return Layout(tuple(owners), tuple(everyone), covered, replicas, well)


async def ask_layout(connection: Connection, host: Host) -> Layout:
    """Ask one node.

    Raises:
        ConfigurationError: It is no node of a cluster, or we may not ask.
        TransportUnavailable: It cannot tell.
    """
    info, slots = await connection.call(("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
    for reply in (info, slots):
        if isinstance(reply, ReplyError):
            if "cluster support disabled" in str(reply):
                scheme = "rediss" if host.ssl else "redis"
                raise ConfigurationError(
                    f"{host.address} is not part of a cluster: write {scheme}://{host.address}, without cluster=True"
                )
            raise_refused(host, reply)
    return read_layout(slots, host, well=b"cluster_state:ok" in info)


async def ask_dialect(connection: Connection) -> Dialect:
    """The words of pub/sub that all nodes of the cluster are taken to understand."""
    (reply,) = await connection.call(("PUBSUB", "SHARDNUMSUB"))
    unknown = isinstance(reply, ReplyError) and "unknown" in str(reply).lower()
    return PLAIN if unknown else SHARDED


class Cluster:
    """The links of one node to all partitions, and the masters they are at.

    Args:
        host: The seeds, and what all nodes of the cluster have in common: user, password, TLS.
    """

    def __init__(self, host: Host, names: Names, setting: Setting) -> None:
        self.host = host
        self._names, self._setting = names, setting
        self._loop = asyncio.get_running_loop()
        self.links: list[PartitionLink] = []
        self._owners: list[Host | None] = [None] * PARTITIONS
        self._nodes: tuple[Host, ...] = ()
        self._masters: dict[Host, Master] = {}
        self._change: asyncio.Future[None] = self._loop.create_future()
        self._wish = asyncio.Event()
        self._hint: Host | None = None
        self._refused: asyncio.Future[None] = self._loop.create_future()
        self._broken: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Connection] = set()
        self._turn = 0

    # -- life

    async def open(self, timeout: float) -> None:
        """Find out who has what, and bring the home of this node up.

        Raises:
            TransportUnavailable: It cannot be reached.
            ConfigurationError: It never will: no cluster, no permission.
        """
        until = time.monotonic() + timeout
        layout, dialect = await self._find(until)
        home = partition(self._setting.node)
        self.links = [
            PartitionLink(self, place, self.host, self._names, self._setting, dialect, is_home=place == home)
            for place in range(PARTITIONS)
        ]
        self._dialect = dialect
        self._apply(layout)
        self.spawn(self._watch())
        self.home_link.use()
        self.links[0].use()  # the clock that all nodes share
        meeting = asyncio.ensure_future(self.home_link.meet())
        try:
            timeout = max(until - time.monotonic(), 0.1)
            await asyncio.wait([meeting, self._refused], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()
            if not meeting.done():
                raise self.home_link.unavailable()
            meeting.result()
        finally:
            meeting.cancel()
            await asyncio.wait([meeting])

    async def _find(self, until: float) -> tuple[Layout, Dialect]:
        troubles: dict[str, Exception] = {}
        while True:
            for seed in self.host.seeds:
                try:
                    line = await self._connect(seed)
                    try:
                        layout = await ask_layout(line, seed)
                        if any(layout.owners):
                            return layout, await ask_dialect(line)
                        troubles[seed.address] = unavailable(seed, "its cluster has no slots yet")
                    finally:
                        line.drop()
                except (TransportUnavailable, ConfigurationError) as error:
                    troubles[seed.address] = error
            # What the one that does not answer would say is not known.
            if all(isinstance(error, ConfigurationError) for error in troubles.values()):
                raise next(iter(troubles.values()))
            if time.monotonic() > until:
                reasons = "; ".join(f"{name}: {error.__cause__ or error}" for name, error in troubles.items())
                raise unavailable(self.host, ConnectionError(reasons))
            await asyncio.sleep(_LOOK_AGAIN)

    async def _connect(self, host: Host) -> Connection:
        made: list[Connection] = []

        def lost(error: TransportUnavailable) -> None:
            self._open.difference_update(made)

        patience = min(_PATIENCE, self._setting.deadline)
        made.append(await connect(host, name="trunkline-cluster", deadline=patience, on_lost=lost))
        if not made[0].closed:
            self._open.add(made[0])
        return made[0]

    @property
    def home_link(self) -> PartitionLink:
        """Where this node's inbox is."""
        return self.links[partition(self._setting.node)]

    @property
    def clock(self) -> Clock:
        """The clock that all nodes share: that of the first partition's master."""
        return self.links[0].clock if self.links[0].clock.set else self.home_link.clock

    async def close(self, error: Exception) -> None:
        """Finish what is on its way, say good-bye, leave nothing behind."""
        used = self._used()
        for link in used:
            link.readers.leave()
            link.records.leave()
        until = time.monotonic() + 1.0
        while any(link.up and link.outbox.busy for link in used) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        try:
            if self.links:
                await asyncio.wait_for(self.home_link.say_good_bye(), 1.0)
        except (TransportUnavailable, TimeoutError):
            log.info("%s was gone before we could say good-bye", self.host.address)
        tasks = [task for link in used for task in link.stop()]
        tasks += [master.stop() for master in self._masters.values()]
        for task in self._tasks:
            task.cancel()
        tasks += self._tasks
        if tasks:
            await asyncio.wait(tasks)
        for connection in list(self._open):
            connection.drop()
        for link in self.links:
            link.fail(error)
        await asyncio.sleep(0)  # the loop calls connection_lost

    def abandon(self) -> None:
        """Let go of sockets without a word."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        for link in self.links:
            link.abandon()
        for master in self._masters.values():
            master.abandon()
        for connection in self._open:
            connection.abandon()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something seldom in the background, until the end at most."""
        task = self._loop.create_task(work, name=f"trunkline redis {self.host.address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _used(self) -> list[PartitionLink]:
        return [link for link in self.links if link.used]

    def servers(self) -> list[Server]:
        """How each master does, as far as is known without asking."""
        found = []
        for host, master in self._masters.items():
            waiting, trouble = 0, ""
            for link in self._used():
                if self._owners[link.place] == host:
                    waiting += link.outbox.waiting
                    trouble = trouble or ("" if link.up and link.outbox.flowing else link.outbox.trouble)
            found.append(Server(host.address, master.up, master.silent, trouble, waiting))
        return found

    # -- who has what

    def look(self) -> None:
        """Something has changed: ask who has what, soon."""
        self._wish.set()

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK):
                    await self._wish.wait()
            except TimeoutError:
                pass
            self._wish.clear()
            try:
                self._apply(await self._ask_someone())
            except TransportUnavailable as error:
                log.warning("nobody tells who has what in %s: %s", self.host.address, error)
            except Exception:
                log.exception("unexpected trouble with the layout of %s", self.host.address)
            await asyncio.sleep(_LOOK_AGAIN)
            if not all(link.up for link in self._used()):
                self._wish.set()

    async def _ask_someone(self) -> Layout:
        """Ask one node after the other, in turns, until one can tell."""
        hint, self._hint = self._hint, None
        known = list(dict.fromkeys((*self._nodes, *self.host.seeds)))
        self._turn = (self._turn + 1) % len(known)
        order = ([hint] if hint is not None else []) + known[self._turn :] + known[: self._turn]
        doubtful: Layout | None = None
        trouble: Exception = unavailable(self.host, "no answer")
        for host in dict.fromkeys(order):
            try:
                layout = await self._ask(host)
            except (TransportUnavailable, ConfigurationError, TimeoutError) as error:
                trouble = error
                continue
            if layout.well:
                return layout
            doubtful = doubtful or layout
        if doubtful is not None:
            return doubtful
        raise unavailable(self.host, trouble.__cause__ or trouble)

    async def _ask(self, host: Host) -> Layout:
        master = self._masters.get(host)
        if master is not None and master.up:
            async with asyncio.timeout(_PATIENCE):
                return await ask_layout(master.commands, host)
        line = await self._connect(host)
        try:
            return await ask_layout(line, host)
        finally:
            line.drop()

    def _apply(self, layout: Layout) -> None:
        # A slot that nobody has now stays where it was: its master is asked, and says so.
        self._owners = [new or old for new, old in zip(layout.owners, self._owners, strict=True)]
        self._nodes = layout.nodes
        for link in self._used():
            owner = self._owners[link.place]
            if link.master is not None and owner is not None and owner != link.master.host:
                link.trouble(unavailable(link.master.host, f"partition {link.place} is at {owner.address}"))
        self.tidy()
        self._tell()

    def moved(self, place: int, text: str, by: Host) -> None:
        """A master says who has a slot now."""
        self._hint = self._owners[place] = _named(text, by)
        self.look()
        self._tell()

    async def named(self, text: str, by: Host) -> Master:
        """The master that a ``MOVED`` or ``ASK`` names, connected.

        Raises:
            TimeoutError: It does not come up.
        """
        host = _named(text, by)
        async with asyncio.timeout(self._setting.deadline):
            while not (master := self._master(host)).up:
                await self._changed()
        return master

    async def home(self, place: int) -> Master:
        """The master of a partition, once it is up."""
        while True:
            host = self._owners[place]
            if host is not None and (master := self._master(host)).up:
                return master
            await self._changed()

    def _master(self, host: Host) -> Master:
        master = self._masters.get(host)
        if master is None:
            master = self._masters[host] = Master(
                host, self._setting, self._dialect, changed=self._master_changed, refused=self._never
            )
        return master

    def tidy(self) -> None:
        """Leave masters that have nothing of ours."""
        wanted = {self._owners[link.place] for link in self._used()}
        for host, master in list(self._masters.items()):
            if host not in wanted and not master.links:
                del self._masters[host]
                self.spawn(_ended(master.stop()))

    # -- what changes

    async def _changed(self) -> None:
        await asyncio.shield(self._change)

    def _tell(self) -> None:
        if not self._change.done():
            self._change.set_result(None)
        self._change = self._loop.create_future()

    def _master_changed(self, master: Master, lost: bool) -> None:
        if master.up:
            self._tell()
            return
        self.look()
        if lost and master.host.address not in self._broken:
            self._broken[master.host.address] = None
            self._setting.on_disconnect(master.host.address)

    def _never(self, error: ConfigurationError) -> None:
        if not self._refused.done():
            self._refused.set_exception(error)
            self._refused.exception()

    def settled(self) -> None:
        """A partition is at its master: was it the last one that was away?"""
        if self._broken and all(link.up for link in self._used()):
            broken, self._broken = self._broken, {}
            for address in broken:
                self._setting.on_reconnect(address)
            log.info("%s is back", self.host.address)

    # -- everything

    async def flush(self) -> None:
        """Forget all keys of the prefix but the signs of life, on all masters."""
        hosts = dict.fromkeys(self._owners)
        for host in hosts:
            if host is None:
                raise unavailable(self.host, "some slots belong to nobody")
            line = await self._connect(host)
            try:
                await sweep(host, line, self._names.root)
            finally:
                line.drop()
        for place, host in enumerate(self._owners):
            if host is not None:
                master = await self.home(place)
                news = self._names.of(place).news
                await master.commands.call((self._dialect.publish, news, b"F"))


def _named(text: str, by: Host) -> Host:
    host, _, port = text.split()[2].rpartition(":")
    return place_of(by, host, port)


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
