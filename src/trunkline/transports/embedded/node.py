"""One node's life: joined, cut off, joined again; what arrives; who has died.

Everything runs on the loop's thread by plain callbacks: nothing here is a task. A safety tick, once a second, catches
whatever a killed process left half done.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import weakref
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, TransportUnavailable
from ...transport import Arrivals, Server, Transport
from .depths import Depths
from .directory import default_root, prepare
from .inbox import Inbox
from .opening import Busy, open_store
from .peers import Peers
from .pulls import Pulls
from .store import Identity, Store, is_busy, is_corrupt
from .writer import After, Writer, nothing

__all__ = ["EmbeddedNode"]

#: Seconds between two safety ticks; every third one is a heartbeat.
_TICK = 1.0
_HEARTBEAT = 3
#: Bytes read after which the watermark is told at once, so that others can delete.
_UNTOLD = 8 << 20
#: Seconds that opening waits for other processes that are opening too.
_PATIENCE = 10.0

_open: weakref.WeakSet[EmbeddedNode] = weakref.WeakSet()


class EmbeddedNode(Transport):
    """The half of the transport that is not about sending."""

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, prefix: str = "asgi", max_size: int = 1 << 30
    ) -> None:
        if not isinstance(prefix, str) or not prefix or set(prefix) & set("/\\\0") or prefix.startswith("."):
            raise ConfigurationError(f"prefix is the name of a folder, not {prefix!r}")
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1 << 20:
            raise ConfigurationError(f"max_size is a number of bytes, at least {1 << 20}, not {max_size!r}")
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ConfigurationError(f"path is the path of a folder, not {path!r}")
        self._root = default_root() if path is None else Path(path).expanduser().absolute()
        self._prefix = prefix
        self._max_size = max_size
        self._node = ""
        self._arrivals: Arrivals | None = None
        self._store: Store | None = None
        #: A corrupt file, to be moved aside.
        self._condemned: Identity | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        #: Topics beside which this node keeps something, unless the file has lost it.
        self._kept: set[str] = set()
        #: Topics of which it was told that something was lost or reaped, and beside which it has kept nothing since.
        self._owing: set[str] = set()

    def __repr__(self) -> str:
        state = "closed" if self._arrivals is None else "open" if self._store is not None else "waiting"
        return f"<EmbeddedTransport {self._root / self._prefix} {state} node={self._node or None}>"

    # Life

    async def open(self, node: str, arrivals: Arrivals) -> None:
        self._loop = asyncio.get_running_loop()
        self._node, self._arrivals = node, arrivals
        self._topics: dict[str, None] = {f"@{node}": None}
        self._peers = Peers(self._loop, node, self._arrived, self._died)
        self._writer = Writer(self._loop, self._peers.send, self._lose_store)
        self._depths = Depths(self._loop, node, self._writer)
        self._inbox = Inbox(node, arrivals.deliver, self._depths)
        self._pulls = Pulls(self._loop, node, self._writer, self._wake)
        self._beats = 0
        self._alive = time.monotonic()
        self._told = self._told_bytes = 0
        _open.add(self)
        until = self._loop.time() + _PATIENCE
        try:
            while not self._attach():
                if self._loop.time() > until:
                    raise TransportUnavailable(
                        f"another process has kept {self._root} locked for {_PATIENCE:.0f} s"
                    )
                await asyncio.sleep(0.005)
        except BaseException:
            self._release()
            raise
        self._after(_TICK, self._tick)

    async def close(self) -> None:
        if self._arrivals is None:
            return
        self._pulls.close()
        if self._store is not None:
            self._writer.submit(self._leave)
            until = self._loop.time() + 1
            # Whoever finds our socket gone cleans up for us: so this need not wait for ever.
            while not self._writer.flush() and self._loop.time() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        self._release()

    def _leave(self, store: Store) -> After:
        store.unregister(self._node)
        return nothing

    def _release(self) -> None:
        self._arrivals = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._writer.use(None, "it is closed")
        self._writer.stop()
        self._depths.stop()
        self._peers.close()
        if self._store is not None:
            self._store.close()
            self._store = None
        _open.discard(self)

    def abandon(self) -> None:
        if self._arrivals is None:
            return
        self._arrivals = None
        self._writer.abandon()
        self._peers.abandon()
        if self._store is not None:
            self._store.abandon()
            self._store = None
        _open.discard(self)

    def servers(self) -> list[Server]:
        if self._arrivals is None:
            return []
        silent, outbox = time.monotonic() - self._alive, self._writer.waiting
        trouble = "" if self._store is not None else self._writer.why
        return [Server(str(self._root / self._prefix), not trouble, silent, trouble, outbox)]

    def _check_open(self) -> None:
        if self._arrivals is None:
            raise TransportUnavailable(f"the embedded transport at {self._root} is not open")

    # The store: attached, lost, attached again

    def _attach(self) -> bool:
        """Open the store, bind, register, subscribe: in this order, so that visible means alive. False when busy."""
        folder = prepare(self._root, self._prefix)
        try:
            store = open_store(folder, self._max_size, self._condemned)
        except Busy:
            return False
        try:
            if not store.begin():
                store.close()
                return False
            self._peers.open(folder / "nodes", store.epoch)
            self._inbox.reset(store.register(self._node))
            for topic in self._topics:
                self._inbox.topics[topic] = store.subscribe(topic, self._node)
            store.commit()
        except BaseException as error:
            self._peers.close()
            store.close()
            if is_corrupt(error):
                self._condemned = store.identity
                return False
            if isinstance(error, (OSError, sqlite3.Error)):
                raise TransportUnavailable(f"cannot join {folder}: {error}") from error
            raise
        self._store, self._condemned = store, None
        self._told = self._inbox.watermark
        self._writer.use(store)
        return True

    def _lose_store(self, reason: str, corrupt: bool = False) -> None:
        """Let go of a store that failed or was deleted, and attach to whatever is at the path now."""
        store, self._store = self._store, None
        if store is None:
            return
        self._writer.use(None, reason)
        self._peers.close()
        store.close()
        self._depths.forget()
        self._condemned = store.identity if corrupt else None
        self._recover(reason)

    def _recover(self, reason: str) -> None:
        if self._arrivals is None:
            return
        try:
            attached = self._attach()
        except (TransportUnavailable, ConfigurationError) as error:
            self._writer.use(None, f"{reason}; {error}")
            self._after(_TICK, self._recover, reason)
            return
        if not attached:
            self._after(0.005, self._recover, reason)
            return
        self._arrivals.gap(None, reason)
        self._pulls.restart()

    def _after(self, delay: float, call: Any, *args: Any) -> None:
        """Run a method later, once, unless the transport is closed by then."""
        name = call.__name__
        if name not in self._timers:
            self._timers[name] = self._loop.call_later(delay, self._due, name, call, args)

    def _due(self, name: str, call: Any, args: tuple[Any, ...]) -> None:
        del self._timers[name]
        call(*args)

    # Arrivals

    def _arrived(
        self,
        epoch: int,
        sender: str,
        previous: int,
        last: int,
        frames: list[list[Any]] | None,
        queues: list[str],
    ) -> int:
        if self._store is None or epoch != self._store.epoch:
            return 0
        before = self._inbox.delivered
        known = self._inbox.push(self._store, sender, previous, last, frames)
        if not known or self._inbox.delivered - self._told_bytes > _UNTOLD:
            self._read()
        for queue in queues:
            self._pulls.woken(queue)
        return self._inbox.delivered - before

    def _read(self) -> None:
        """Bring this node up to date with the log, a part at a time."""
        store = self._store
        if store is None or self._arrivals is None:
            return
        before = self._inbox.watermark
        try:
            complete = self._inbox.read(store)
            missed = store.missed(self._node)
        except sqlite3.Error as error:
            self._stumble(store, error)
            return
        if missed is None:
            self._lose_store("another process took this node for dead")
            return
        if missed > before:
            self._arrivals.gap(None, "frames expired before this process read them")
            self._writer.submit(self._recount)
        if self._inbox.delivered - self._told_bytes > _UNTOLD:
            self._tell_watermark()
        if not complete:
            self._after(0, self._read)

    def _stumble(self, store: Store, error: sqlite3.Error) -> None:
        """Reading failed: look again soon when the store is only busy, else let go of it."""
        if is_busy(error):
            self._after(0.005, self._read)
        elif store is self._store:
            self._lose_store(f"{store.path}: {error}", is_corrupt(error))

    def _tell_watermark(self) -> None:
        watermark = self._told = self._inbox.watermark
        self._told_bytes = self._inbox.delivered

        def work(store: Store) -> After:
            store.set_watermark(self._node, watermark)
            return nothing

        self._writer.submit(work)

    def _recount(self, store: Store) -> After:
        return self._depths.recount(store, self._inbox.unread_posts(store, f"@{self._node}"))

    # Others

    def _wake_all(self, wakes: list[tuple[str, str]]) -> None:
        for node, queue in wakes:
            self._wake(node, queue)

    def _wake(self, node: str, queue: str) -> None:
        if node == self._node:
            self._pulls.woken(queue)
        else:
            self._peers.wake(node, queue)

    def _died(self, node: str, queues: set[str]) -> None:
        """Remove a dead node, and pass on the wakes that it did not take."""

        def work(store: Store) -> After:
            if self._peers.probe(node):
                return nothing
            store.unregister(node)
            return lambda: self._peers.bury(node)

        self._writer.submit(work)
        for queue in queues:
            self._pulls.pass_on(queue)

    def _tick(self) -> None:
        if self._arrivals is None:  # a forked child that goes on with its parent's loop
            return
        self._after(_TICK, self._tick)
        store = self._store
        if store is None:
            return
        if store.moved():
            self._lose_store(f"{store.path} was deleted or replaced")
        elif not self._peers.bound():
            self._lose_store(f"the socket of this node in {store.path.parent} was deleted")
        else:
            try:
                self._look_around(store)
            except sqlite3.Error as error:
                self._stumble(store, error)

    def _look_around(self, store: Store) -> None:
        if store.changed():
            self._read()
        self._alive = time.monotonic()
        if self._store is not store or self._arrivals is None:
            return
        if store.robbed:
            store.robbed = False
            self._arrivals.gap(None, f"large messages in {store.path.parent} were deleted or cut short")
            self._writer.submit(self._recount)
        self._pulls.refresh(store)
        if self._inbox.watermark != self._told:
            self._tell_watermark()
        self._beats += 1
        if self._beats % _HEARTBEAT == 0:
            self._heartbeat(store)

    def _heartbeat(self, store: Store) -> None:
        nodes = store.nodes()
        self._peers.forget(nodes)
        for node in [*nodes, *self._peers.orphans(nodes)]:
            if node != self._node and not self._peers.probe(node):
                self._died(node, set())
        if store.has_waste():
            self._writer.submit(_clean)


def _clean(store: Store) -> After:
    store.clean(2000)
    return nothing


def _close_inherited() -> None:
    """In a forked child: a socket it kept would make a dead parent look alive."""
    for transport in list(_open):
        transport.abandon()


os.register_at_fork(after_in_child=_close_inherited)
