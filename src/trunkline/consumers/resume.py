"""Resuming: a client that comes back says where it was, and gets what it missed before anything new.

The client gives the positions it had last, one for each group, as ``?resume=`` in its URL, as often as needed. What it
missed goes through the ordinary handlers, in order; live events wait behind it, and those that were among what it missed
are left out: everything once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from ..errors import HistoryLost
from ..history import place_of
from .relay import Offer

__all__ = ["Past", "Resuming", "asked"]

Event = MutableMapping[str, Any]

#: Events fetched at a time.
_COUNT = 500


def asked(scope: Mapping[str, Any]) -> dict[str, str]:
    """The positions in the query string of a connection, by group. What is none is passed over."""
    query = parse_qs(bytes(scope.get("query_string", b"")).decode("ascii", "replace"))
    found = {}
    for position in query.get("resume", ()):
        try:
            found[place_of(position)[0]] = position
        except HistoryLost:
            continue
    return found


class Past:
    """What one client missed of its groups."""

    def __init__(self) -> None:
        self._missed: deque[Event] = deque()
        #: By group, the last place that was among it.
        self._until: dict[str, int] = {}

    async def begin(
        self, layer: Any, groups: Iterable[str], positions: Mapping[str, str]
    ) -> tuple[dict[str, str], Sequence[str]]:
        """Fetch what was missed of groups that were joined before.

        Returns:
            Where the client stands now: by group, its own position, or the newest one where it had none or too old a one;
            and the groups of which it has to load everything anew.
        """
        now: dict[str, str] = {}
        lost = []
        for group in groups:
            position = positions.get(group)
            if position is not None:
                try:
                    await self._fetch(layer, group, position)
                    now[group] = position
                    continue
                except HistoryLost:
                    lost.append(group)
            now[group] = await layer.group_position(group)
        return now, lost

    async def _fetch(self, layer: Any, group: str, position: str) -> None:
        found: list[Event] = []
        while True:
            some = await layer.group_history(group, since=position, limit=_COUNT)
            found += some
            if len(some) < _COUNT:
                break
            position = some[-1]["position"]
        self._missed += found
        if found:
            self._until[group] = place_of(found[-1]["position"])[1]

    def drain(self) -> list[Event]:
        """Everything that was missed."""
        missed, self._missed = list(self._missed), deque()
        return missed

    def had(self, event: Mapping[str, Any]) -> bool:
        """Whether it was among what the client missed, and has been given."""
        if not self._until or "position" not in event:
            return False
        try:
            group, place = place_of(event["position"])
        except HistoryLost:  # an event of the user's own making
            return False
        return place <= self._until.get(group, 0)


class Resuming(Past):
    """The events of one consumer: first what its client missed, then what comes.

    Args:
        receive: Waits for the next event of the layer.
    """

    def __init__(self, receive: Callable[[], Awaitable[Event]]) -> None:
        super().__init__()
        self._receive = receive
        self._ready = asyncio.Event()

    async def __call__(self) -> Event:
        """Wait for the next event; none comes before the connection is made."""
        if not self._ready.is_set():
            await self._ready.wait()
        if self._missed:
            return self._missed.popleft()
        while self.had(event := await self._receive()):
            pass
        return event

    def go(self) -> None:
        """The connection is made: from now on events come."""
        self._ready.set()

    def before(self, sink: Offer) -> Offer:
        """The sink, but for what was among what the client missed."""
        return lambda message, shared: self.had(message) or sink(message, shared)
