"""Transports whose arrivals obey a ``Link``: how the kit slows and cuts what has no wire to pull."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from ..transports.memory import MemoryTransport
from .kit import Link

__all__ = ["LinkedMemory"]


class Road:
    """Carries calls over a link, in order: late when it is slow, held back while it is cut."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        link.changed.append(self._drain)

    def carry(self, call: Any, *args: Any) -> None:
        if not self._link.delay and not self._link.down and not self._held:
            call(*args)
            return
        self._held.append((call, args))
        self._loop.call_later(self._link.delay, self._drain_one)

    def _drain_one(self) -> None:
        if self._held and not self._link.down:
            call, args = self._held.popleft()
            call(*args)

    def _drain(self) -> None:
        while self._held and not self._link.down:
            self._drain_one()


class LinkedMemory(MemoryTransport):
    """The memory transport behind a link."""

    def __init__(self, link: Link, hub_name: str, **options: Any) -> None:
        super().__init__(hub_name, **options)
        self._link = link
        self._road: Road | None = None

    def _arrive(self, frame: bytes) -> None:
        if self._road is None:
            self._road = Road(self._link)
        self._road.carry(super()._arrive, frame)
