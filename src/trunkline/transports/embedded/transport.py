"""The contract: each call is one transaction, and what follows its commit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from ...errors import ChannelFull, MessageTooLarge
from ...transport import Finding, Leased
from .directory import path_of_url
from .doctor import examine
from .records import EmbeddedRecords
from .store import Store
from .writer import After, StoreFull, nothing

__all__ = ["EmbeddedTransport"]

#: SQLite's own limit for one value, in bytes, less what else is in the row.
_LARGEST = 1_000_000_000 - 1024


class EmbeddedTransport(EmbeddedRecords):
    """Carries frames between all processes of one machine that share a folder, without a server.

    Args:
        path: The folder, made when it is missing; only its owner may have access. By default the processes that one
            user started in one working directory meet: ``<temp>/trunkline-<user id>/<project>``. ``$TRUNKLINE_DIR``
            changes that default.
        prefix: Layers of different prefixes never meet.
        max_size: Bytes the log and its large messages may grow to, about, of messages that were not read yet.
    """

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """``embedded://`` (the default folder), ``embedded:///abs/dir``, ``embedded://./relative``, ``embedded://~/dir``."""
        return cls(path_of_url(url), **options)

    features: ClassVar[frozenset[str]] = frozenset({"history", "leases", "records"})

    @classmethod
    async def examine(cls, url: str, **options: Any) -> list[Finding]:
        """As ``from_url``; or, with ``path`` among the options, as the constructor."""
        return await examine(lambda: cls(**options) if "path" in options else cls.from_url(url, **options))

    now = staticmethod(time.time)

    # Topics

    async def subscribe(self, topic: str) -> None:
        self._check_open()

        def work(store: Store) -> After:
            since = store.subscribe(topic, self._node)
            return lambda: self._subscribed(topic, since)

        await self._writer.write(work)

    def _subscribed(self, topic: str, since: int) -> None:
        self._topics[topic] = None
        self._inbox.topics.setdefault(topic, since)

    async def unsubscribe(self, topic: str) -> None:
        self._check_open()

        def work(store: Store) -> After:
            store.unsubscribe(topic, self._node)
            return lambda: self._unsubscribed(topic)

        await self._writer.write(work)

    def _unsubscribed(self, topic: str) -> None:
        self._topics.pop(topic, None)
        self._inbox.topics.pop(topic, None)

    async def publish(self, topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        self._check_size(frame)
        expires = time.time() + ttl

        def work(store: Store) -> After:
            targets = store.subscribers(topic)
            mine = self._node in targets
            if mine:
                targets.remove(self._node)
            row = store.append(topic, self._node, None, None, expires, frame) if targets else None
            full: list[str] = []
            wakes: list[tuple[str, str]] = []
            for queue, capacity in store.bound(topic):
                if store.room(queue, capacity):
                    wakes += _enqueue(store, queue, expires, frame)
                else:
                    full.append(queue)

            def after() -> list[str]:
                if row is not None:
                    for node in targets:
                        self._peers.stage(node, row)
                self._wake_all(wakes)
                if mine and self._arrivals is not None:
                    self._arrivals.deliver(frame)
                return full

            return after

        full: list[str] = await self._writer.write(work)
        return full

    # One node

    async def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        self._check_size(frame)
        expires = time.time() + ttl
        counted = channel if capacity is not None else None

        def work(store: Store) -> After:
            if node != self._node and not store.has_node(node):
                return _no
            if capacity is not None:
                depth = store.depth(node, channel)
                if depth >= capacity:
                    raise ChannelFull(f"{channel} holds {depth} messages, its capacity")
                store.set_depth(node, channel, depth + 1)
            if node == self._node:
                return lambda: self._deliver_own(counted, capacity, frame)
            row = store.append(f"@{node}", self._node, counted, capacity, expires, frame)

            def after() -> bool:
                self._peers.stage(node, row)
                return True

            return after

        try:
            known: bool = await self._writer.write(work)
        except StoreFull as error:
            raise ChannelFull(f"{channel}: {error}") from error
        return known and not self._peers.is_dead(node)

    def _deliver_own(self, channel: str | None, capacity: int | None, frame: bytes) -> bool:
        if channel is not None:
            self._depths.hold(channel, capacity)
        if self._arrivals is not None:
            self._arrivals.deliver(frame)
        return True

    def taken(self, channel: str, count: int) -> None:
        if self._store is not None:
            self._depths.take(channel, count)

    # Queues

    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        self._check_size(frame)
        expires = time.time() + ttl

        def work(store: Store) -> After:
            if not store.room(queue, capacity):
                raise ChannelFull(f"{queue} holds {capacity} messages, its capacity")
            wakes = _enqueue(store, queue, expires, frame)
            return lambda: self._wake_all(wakes)

        try:
            await self._writer.write(work)
        except StoreFull as error:
            raise ChannelFull(f"{queue}: {error}") from error

    async def pull(self, queue: str) -> bytes:
        self._check_open()
        return (await self._pulls.pull(queue)).body

    async def lease(self, queue: str, seconds: float, ttl: float) -> Leased:
        self._check_open()
        taken = await self._pulls.pull(queue, (seconds, ttl))
        return Leased(str(taken.token), taken.body, taken.tries + 1)

    async def hold(self, queue: str, token: str, seconds: float) -> bool:
        self._check_open()

        def work(store: Store) -> After:
            due = time.time() + seconds
            before = store.hold(queue, int(token), due)
            # Whoever waits has set a clock to the time before.
            node = store.next_waiting(queue) if before is not None and due < before else None

            def after() -> bool:
                if node is not None:
                    self._wake(node, queue)
                return before is not None

            return after

        held: bool = await self._writer.write(work)
        return held

    async def settle(self, queue: str, token: str) -> bool:
        self._check_open()

        def work(store: Store) -> After:
            settled = store.settle(queue, int(token))
            return lambda: settled

        settled: bool = await self._writer.write(work)
        return settled

    async def push_later(self, queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        self._check_size(frame)
        due = time.time() + delay

        def work(store: Store) -> After:
            if store.count_put_off(queue) >= capacity:
                raise ChannelFull(f"{queue} holds {capacity} messages that are put off, its capacity")
            store.put_off(queue, due, ttl, frame, 0)
            node = store.next_waiting(queue)
            return (lambda: self._wake(node, queue)) if node is not None else nothing

        try:
            await self._writer.write(work)
        except StoreFull as error:
            raise ChannelFull(f"{queue}: {error}") from error

    async def bind(self, topic: str, queue: str, capacity: int, ttl: float) -> None:
        self._check_open()

        def work(store: Store) -> After:
            store.bind(topic, queue, capacity, time.time() + ttl)
            return nothing

        await self._writer.write(work)

    async def unbind(self, topic: str, queue: str) -> None:
        self._check_open()

        def work(store: Store) -> After:
            store.unbind(topic, queue)
            return nothing

        await self._writer.write(work)

    # History

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        self._check_size(frame)

        def work(store: Store) -> After:
            placed = store.remember(topic, frame, mark, size, seconds)
            return lambda: placed

        placed: tuple[int, str] = await self._writer.write(work)
        return placed

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        self._check_open()

        def work(store: Store) -> After:
            found = store.recall(topic, first, count)
            return lambda: found

        found: list[tuple[int, bytes]] = await self._writer.write(work)
        return found

    async def flush(self) -> None:
        self._check_open()

        def work(store: Store) -> After:
            store.flush()
            return self._depths.forget

        await self._writer.write(work)

    def _check_size(self, frame: bytes) -> None:
        self._check_open()
        largest = min(self._max_size // 2, _LARGEST)
        if len(frame) > largest:
            raise MessageTooLarge(
                f"a frame of {len(frame)} bytes; max_size={self._max_size} allows {largest}"
            )


def _enqueue(store: Store, queue: str, expires: float, body: bytes) -> list[tuple[str, str]]:
    """Add to a queue; returns the (node, queue) to wake, if any is idle."""
    store.enqueue(queue, expires, body)
    node = store.next_waiting(queue)
    return [] if node is None else [(node, queue)]


def _no() -> bool:
    return False
