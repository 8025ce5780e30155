"""History: the events of a group in one order for everyone, and what was missed of them.

The transport gives every remembered frame a *place* (1, 2, 3 …, see ``Transport.remember``) before it is published. Here
a node puts what arrives into that order, fetches what did not arrive, and notices when the places no longer are what they
were: a server that lost some and gives them again. A *position* is a place with a check of what stood there, so that a
position of a lost line is never taken for one of the present line.
"""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from . import names
from .envelope import GROUP, NO_OPTIONS, REMEMBERED, Envelope, FrameError, Seal
from .errors import ConfigurationError, HistoryLost, InvalidMessage, TransportUnavailable
from .settings import Kept, Settings
from .transport import Transport

__all__ = ["Event", "Follower", "History", "Outcome", "place_of", "position_of"]

#: Events held back for one that is missing, at most.
_HELD = 1000
#: Seconds that an event may come late before it is fetched, and between two attempts to fetch.
_PATIENCE, _RETRY = 0.02, 0.5
#: Events fetched at a time.
_COUNT = 500

#: Place, and the mark of the event before.
_head = struct.Struct(">Q8s")
_position = re.compile(r"([^:]+):([0-9]{1,19})\.[0-9a-f]{1,8}").fullmatch


class Event(NamedTuple):
    """One remembered event."""

    place: int
    #: Empty for an entry that only holds its place.
    body: bytes
    expires: float
    options: Mapping[str, Any] = NO_OPTIONS
    #: The mark of the event before it; "" when it is not known.
    before: str = ""
    sender: bytes = b""

    @property
    def mark(self) -> str:
        """A few characters that stand for it."""
        return f"{zlib.crc32(struct.pack('>d', self.expires), zlib.crc32(self.body)):08x}"


def position_of(group: str, event: Event) -> str:
    """The position of an event."""
    return f"{group}:{event.place}.{event.mark}"


def place_of(position: str) -> tuple[str, int]:
    """The group and the place in a position.

    Raises:
        HistoryLost: It is none.
    """
    found = _position(position) if isinstance(position, str) else None
    if found is None:
        raise HistoryLost(f"{position!r} is not a position in a group's history: load everything anew")
    return found[1], int(found[2])


class Outcome(NamedTuple):
    """What comes of an arrival, or of a look at the transport's memory."""

    deliver: list[Event]
    #: Some events are lost for good; why.
    gap: str | None = None


_FORGOT = "the server lost its memory of this group, or a part of it"


class Follower:
    """The line of one group, as one node hears it. Pure: no clock, no I/O."""

    def __init__(self, newest: Event | None = None) -> None:
        #: The place that comes next; None before anything is known.
        self.next: int | None = None
        #: The mark of the event before that; "" when it is not known.
        self._mark = ""
        self._held: dict[int, Event] = {}
        #: What was delivered lately: it may come once more, late, when places are given again.
        self._had: dict[tuple[int, str], None] = {}
        if newest is not None:
            self.start(newest)

    def start(self, newest: Event | None) -> None:
        """Follow from the newest event on, unless something came first."""
        if self.next is None:
            self.next, self._mark = (newest.place + 1, newest.mark) if newest else (1, "")

    @property
    def checking(self) -> bool:
        """Whether events are held until the transport's memory was looked at."""
        return bool(self._held)

    @property
    def full(self) -> bool:
        """Whether no more should be held."""
        return len(self._held) >= _HELD

    def take(self, event: Event) -> Outcome:
        """Take what arrived; returns what is to be delivered now, in order."""
        if self.next is None:
            self.next = event.place
        if (event.place, event.mark) not in self._had:
            self._held[event.place] = event
        return self._follow()

    def _follow(self) -> Outcome:
        found: list[Event] = []
        gap = None
        while self.next in self._held:
            event = self._held.pop(self.next)
            if self._mark and event.before and event.before != self._mark:
                gap = _FORGOT  # it stands behind another event than the one we had
            found.append(event)
            self.next, self._mark = event.place + 1, event.mark
            self._had[event.place, event.mark] = None
            if len(self._had) > _HELD:
                del self._had[next(iter(self._had))]
        return Outcome(found, gap)

    def settle(self, remembered: list[Event], newest: int) -> Outcome:
        """Decide about what is held, knowing what is remembered from the last event on and the newest place of all."""
        if self.next is None:
            self.next = newest + 1
        gap = None
        last = next((event for event in remembered if event.place == self.next - 1), None)
        if newest + 1 < self.next or (last is not None and self._mark and last.mark != self._mark):
            # Places are given again: the line we knew was lost, or a part of it.
            gap = _FORGOT
            self.next, self._mark = min(self._held, default=newest + 1), ""
        for event in remembered:
            if (event.place, event.mark) not in self._had:
                self._held.setdefault(event.place, event)
        # What is older than the line we follow was sent before we joined, or was told to be lost.
        self._held = {place: event for place, event in self._held.items() if place >= self.next}
        deliver, more = self._follow()
        gap = gap or more
        while self._held:
            gap = gap or "no longer remembered"
            self.next, self._mark = min(self._held), ""
            deliver += self._follow().deliver
        return Outcome(deliver, gap)


class History:
    """The groups with a history that have members on this node.

    Args:
        deliver: Gets (group, event) in order.
        gap: Gets groups that lost events for good, and why.
        spawn: Runs a coroutine in the background.
    """

    def __init__(
        self,
        settings: Settings,
        seal: Seal,
        transport: Transport,
        deliver: Callable[[str, Event], None],
        gap: Callable[[str, str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._settings = settings
        self._seal = seal
        self._transport = transport
        self._deliver = deliver
        self._gap = gap
        self._spawn = spawn
        self._followers: dict[str, Follower] = {}

    async def follow(self, group: str) -> None:
        """Begin with what comes next. What arrives meanwhile waits.

        Raises:
            TransportUnavailable: Nobody can say what comes next.
        """
        follower = self._followers[group] = Follower()
        newest = await self.recall(group, None, 1)
        follower.start(newest[-1] if newest else None)

    def unfollow(self, group: str) -> None:
        self._followers.pop(group, None)

    async def remember(
        self, group: str, body: bytes, expires: float, chosen: Mapping[str, Any], kept: Kept
    ) -> bytes:
        """Give an event its place; returns the frame to publish."""
        place, before = await self._append(group, body, expires, chosen, kept)
        head = _head.pack(place, before.encode())
        return self._seal.frame_with(REMEMBERED, expires, group, head + body, chosen)

    async def _append(
        self, group: str, body: bytes, expires: float, chosen: Mapping[str, Any], kept: Kept
    ) -> tuple[int, str]:
        frame = self._seal.frame_with(GROUP, expires, group, body, chosen)
        mark = Event(0, body, expires).mark
        return await self._transport.remember(group, frame, mark, kept.size, kept.seconds)

    def arrive(self, envelope: Envelope) -> None:
        """Take an event that was published.

        Raises:
            FrameError: It is none.
        """
        group = envelope.address
        follower = self._followers.get(group)
        if follower is None:
            return
        was_checking = follower.checking
        self._act(group, follower.take(self.event(envelope)))
        if follower.checking and not was_checking:
            self._spawn(self._check(group, follower, _PATIENCE))

    def heal(self, group: str) -> bool:
        """Fetch what the transport has lost; False when the group remembers nothing."""
        follower = self._followers.get(group)
        if follower is None:
            return False
        self._spawn(self._check(group, follower, 0.0))
        return True

    async def _check(self, group: str, follower: Follower, patience: float) -> None:
        await asyncio.sleep(patience)
        healing = not patience
        while (follower.checking or healing) and self._followers.get(group) is follower:
            try:
                remembered = await self._all_from(group, max((follower.next or 1) - 1, 1))
                newest = remembered or await self.recall(group, None, 1)
            except TransportUnavailable as error:
                if not follower.full:
                    await asyncio.sleep(_RETRY)
                    continue
                self._gap(group, f"more came than may wait while it could not be asked for: {error}")
                self._act(group, Outcome(follower.settle([], follower.next or 0).deliver))
                return
            healing = False
            self._act(group, follower.settle(remembered, newest[-1].place if newest else 0))

    def _act(self, group: str, outcome: Outcome) -> None:
        if outcome.gap is not None:
            self._gap(group, outcome.gap)
        for event in outcome.deliver:
            if event.body:
                self._deliver(group, event)

    async def _all_from(self, group: str, first: int) -> list[Event]:
        found: list[Event] = []
        while True:
            some = await self.recall(group, first, _COUNT)
            found += some
            if len(some) < _COUNT:
                return found
            first = some[-1].place + 1

    async def recall(self, group: str, first: int | None, count: int) -> list[Event]:
        """Remembered events, oldest first. One that cannot be opened has no body: its place is kept."""
        found = []
        for place, frame in await self._transport.recall(group, first, count):
            try:
                envelope = self._seal.open(frame)
                found.append(
                    Event(place, envelope.body, envelope.expires, envelope.options, sender=envelope.sender)
                )
            except FrameError:
                found.append(Event(place, b"", 0.0))
        return found

    @staticmethod
    def event(envelope: Envelope) -> Event:
        """The event in a frame that ``remember`` made.

        Raises:
            FrameError: It did not.
        """
        try:
            place, before = _head.unpack_from(envelope.body)
        except struct.error:
            raise FrameError("a history frame without a place") from None
        body = envelope.body[_head.size :]
        mark = before.rstrip(b"\0").decode("ascii", "replace")
        return Event(place, body, envelope.expires, envelope.options, mark, envelope.sender)

    async def events(self, group: str, since: str | None, limit: int) -> list[Event]:
        """What came after a position, or the newest events, oldest first.

        Raises:
            HistoryLost: What came after it is no longer known for certain.
        """
        kept = self._kept_of(group)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidMessage(f"limit is a number of events from 1 on, not {limit!r}")
        if since is None:
            found = await self.recall(group, None, limit)
            # What is kept only because nothing has come since.
            oldest = self._transport.now() + self._settings.expiry - kept.seconds
            events = [event for event in found if event.body and event.expires > oldest]
            return await self._once(group, events, kept)
        whose, place = place_of(since)
        if whose != group:
            raise HistoryLost(f"{since!r} is a position of another group than {group!r}")
        found = await self.recall(group, place, limit + 1)
        if not found or position_of(group, found[0]) != since:
            raise HistoryLost(
                f"group {group!r} no longer remembers what came after this position: load everything anew"
            )
        return await self._once(group, [event for event in found[1:] if event.body], kept)

    async def _once(self, group: str, events: list[Event], kept: Kept) -> list[Event]:
        """Leave out what was sent again under the same id."""
        if not any("id" in event.options for event in events):
            return events
        first: dict[str, int] = {}
        for event in await self.recall(group, None, kept.size):
            if "id" in event.options:
                first.setdefault(event.options["id"], event.place)
        return [
            event for event in events if first.get(event.options.get("id", ""), event.place) == event.place
        ]

    async def newest(self, group: str) -> str:
        """The position of the newest event."""
        kept = self._kept_of(group)
        while not (found := await self.recall(group, None, 1)):
            # A position is one of something: an entry that says nothing and is never published.
            expires = self._transport.now() + self._settings.expiry
            await self._append(group, b"", expires, NO_OPTIONS, kept)
        return position_of(group, found[-1])

    def _kept_of(self, group: str) -> Kept:
        kept = self._settings.kept_of(names.group(group))
        if kept is None:
            rule = "{'size': 100, 'seconds': 3600}"
            raise ConfigurationError(
                f"group {group!r} has no history: give the layer history={{{group!r}: {rule}}}"
            )
        return kept
