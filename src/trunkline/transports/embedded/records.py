"""Records: what this node keeps beside topics. Each change is one transaction, so it is done once or not at all."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...errors import TransportUnavailable
from ...transport import Record, Renewal
from .node import EmbeddedNode
from .store import Store
from .writer import After

__all__ = ["EmbeddedRecords"]

#: Records that are reaped in one transaction.
_AT_ONCE = 500
#: What a keeper's mark says.
_REAPED, _LOST = 1, 2

T = TypeVar("T")


class EmbeddedRecords(EmbeddedNode):
    """The part of the transport that keeps records."""

    async def keep_record(self, topic: str, key: str, tag: str, value: bytes, ttl: float) -> int:
        self._check_open()

        def work(store: Store) -> After:
            mark = store.mark(topic, self._node)
            if topic in self._owing:
                mark = 0
            elif mark is None:
                mark = _LOST if topic in self._kept else 0
            count = store.keep(topic, self._node, time.time() + ttl, mark, key, tag, value)
            return lambda: self._has_kept(topic, count)

        count: int = await self._writer.write(work)
        return count

    def _has_kept(self, topic: str, count: int) -> int:
        self._kept.add(topic)
        self._owing.discard(topic)
        return count

    async def drop_record(self, topic: str, key: str) -> int | None:
        self._check_open()

        def work(store: Store) -> After:
            left = store.drop(topic, self._node, key)
            empty = store.forget_keeper(topic, self._node)
            return lambda: self._has_dropped(topic, left, empty)

        left: int | None = await self._writer.write(work)
        return left

    def _has_dropped(self, topic: str, left: int | None, empty: bool) -> int | None:
        if empty:
            self._kept.discard(topic)
        return left

    async def renew_records(self, topics: Sequence[str], ttl: float) -> Renewal:
        self._check_open()

        def work(store: Store) -> After:
            store.renew(topics, self._node, time.time() + ttl)
            marks, lapsed = store.kept(self._node), store.lapsed(self._node)
            news = Renewal(
                [topic for topic in topics if marks.get(topic, _LOST) == _LOST],
                [topic for topic in topics if marks.get(topic) == _REAPED],
                [topic for topic in topics if topic in lapsed],
            )
            return lambda: self._hear(news)

        news: Renewal = await self._writer.write(work)
        return news

    def _hear(self, news: Renewal) -> Renewal:
        self._kept.difference_update(news.forgotten)
        self._owing.update(news.forgotten, news.reaped)
        return news

    async def records(self, topic: str) -> list[Record]:
        return [Record(*row) for row in self._look(lambda store: store.records(topic, self._node))]

    async def count_records(self, topic: str) -> tuple[int, int]:
        return self._look(lambda store: store.count_records(topic))

    async def reap_records(self, topic: str) -> list[tuple[Record, int]]:
        if not self._look(lambda store: store.left_behind(topic, self._node, 1)):
            return []  # as always; the write lock is not taken for that

        def work(store: Store) -> After:
            left_behind = [Record(*row) for row in store.left_behind(topic, self._node, _AT_ONCE)]
            reaped = [(record, store.reap(topic, record.node, record.key)) for record in left_behind]
            return lambda: reaped

        reaped: list[tuple[Record, int]] = await self._writer.write(work)
        return reaped

    def _look(self, ask: Callable[[Store], T]) -> T:
        self._check_open()
        if self._store is None:
            raise TransportUnavailable(self._writer.why)
        try:
            return ask(self._store)
        except sqlite3.Error as error:
            raise TransportUnavailable(f"{self._store.path}: {error}") from error
