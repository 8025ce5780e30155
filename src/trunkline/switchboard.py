"""Mailboxes and membership of this process: who gets what, and is there room.

Pure: no clock and no loop in here. Time comes in as an argument, and whom to wake comes out as a list of waiters.

Room is counted per channel. A message sent to the channel itself (*direct*) is refused when ``capacity`` direct messages
wait; a group message is missed by a member on whose channel ``capacity`` messages of any kind wait. So a flood in a
group never keeps a direct message out, and a mailbox holds at most twice its capacity. What else a full channel may do
with group messages says its ``overflow``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeAlias

from .envelope import Envelope
from .settings import Overflow, Settings

__all__ = ["Mailbox", "Parcel", "Sink", "Switchboard", "Waiter"]

#: Takes a group message at once, or declines it (False). It is given the message, shared and not to be changed or kept,
#: and a dict shared by all sinks that are given this message. It raises nothing.
Sink: TypeAlias = Callable[[dict[str, Any], dict[object, Any]], bool]


class Waiter(Protocol):
    """Somebody waiting on a mailbox; waking is the caller's business."""

    def set_result(self, result: Parcel | None, /) -> None: ...


class Parcel:
    """One message on its way to a mailbox, shared by all that it is for."""

    __slots__ = ("body", "expires", "flat", "fresh", "group", "origin", "position", "posted")

    def __init__(
        self,
        body: bytes,
        expires: float,
        posted: bool,
        fresh: dict[str, Any] | None = None,
        origin: Envelope | None = None,
    ) -> None:
        self.body = body
        self.expires = expires
        #: It came by ``post``: the transport counts it until it is taken.
        self.posted = posted
        #: Where it stands in its group's history, for a group that remembers.
        self.position: str | None = None
        #: The group, when only its newest message is worth having.
        self.group: str | None = None
        #: The message as decoded on arrival, for the first taker; the others decode their own copy.
        self.fresh = fresh
        #: No value in it can be changed: ``fresh`` stays, and each taker gets a copy of that, which is quicker.
        self.flat = False
        #: What it came in.
        self.origin = origin

    def locate(self, position: str) -> None:
        """Give the message its position."""
        self.position = position
        if self.fresh is not None:
            self.fresh["position"] = position


class Mailbox:
    """What waits on one channel of this process."""

    __slots__ = (
        "alive_at",
        "capacity",
        "channel",
        "closing",
        "direct",
        "groups",
        "newest",
        "overflow",
        "parcels",
        "released",
        "sink",
        "waiters",
        "watches",
    )

    def __init__(self, channel: str, capacity: int, now: float, overflow: Overflow | None = None) -> None:
        self.channel = channel
        self.capacity = capacity
        #: What to do when it is full; None: miss what is new.
        self.overflow = overflow
        #: Its consumer is being ended because it was full.
        self.closing = False
        #: By group, the place of its message in ``parcels``, for groups of which only the newest is worth having.
        self.newest: dict[str, list[Any]] | None = None
        #: Each with whether it is direct.
        self.parcels: deque[Sequence[Any]] = deque()
        self.direct = 0
        #: Posted parcels that left since the transport was last told.
        self.released = 0
        #: Who waits here and was not woken yet.
        self.waiters: list[Waiter] = []
        self.groups: set[str] = set()
        #: Asked first for a group message when somebody waits here and nothing is before it.
        self.sink: Sink | None = None
        #: Its consumer wants to be told when messages to it were lost.
        self.watches = False
        self.alive_at = now

    def next_waiter(self, now: float) -> Waiter | None:
        """Whom to wake for a message that was put in. Whoever is woken waits no more, and is alive."""
        if not self.waiters:
            return None
        self.alive_at = now
        return self.waiters.pop(0)


class Switchboard:
    """All mailboxes and groups of one node."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.boxes: dict[str, Mailbox] = {}
        self._groups: dict[str, dict[str, Mailbox]] = {}
        #: Messages waiting, over all mailboxes.
        self.waiting = 0
        #: Messages dropped because they expired unread.
        self.expired = 0
        #: Messages replaced by a newer one of their group.
        self.replaced = 0

    # Mailboxes

    def box(self, channel: str, now: float) -> Mailbox:
        """The mailbox of a channel, made on first use."""
        box = self.boxes.get(channel)
        if box is None:
            box = self.boxes[channel] = Mailbox(
                channel, self._settings.capacity_of(channel), now, self._settings.overflow_of(channel)
            )
        return box

    def put(self, channel: str, parcel: Parcel, now: float) -> tuple[bool, Waiter | None, Parcel | None]:
        """Put a direct message; if somebody waits and nothing is before it, it is to be handed over.

        Returns:
            Whether there was room, whom to wake, and what to hand over.
        """
        box = self.boxes.get(channel) or self.box(channel, now)
        # A posted parcel had its room counted before it was sent: refusing it here would lose it.
        if not parcel.posted and self._full(box, True, now):
            return False, None, None
        if box.waiters and not box.parcels and parcel.expires > now:
            box.alive_at = now
            return True, box.waiters.pop(0), parcel
        box.parcels.append((parcel, True))
        box.direct += 1
        self.waiting += 1
        return True, box.next_waiter(now), None

    def fan_out(
        self,
        group: str,
        parcel: Parcel,
        now: float,
        missed: Callable[[Mailbox], None],
        exclude: Collection[str] = (),
    ) -> tuple[int, int, list[Waiter]]:
        """Put a group message into the mailbox of every member, or into its sink.

        ``missed`` is called for each member that has no room, ``exclude`` names members that are passed over.

        Returns:
            How many members got it, how many of these by their sinks, and whom to wake.
        """
        members = self._groups.get(group)
        if members is None:
            return 0, 0, []
        if exclude:
            members = {channel: box for channel, box in members.items() if channel not in exclude}
        if self._settings.latest and self._settings.is_latest_only(group):
            parcel.group = group
            members = {channel: box for channel, box in members.items() if not self._replace(box, parcel)}
        horizon = now - self._settings.group_expiry
        limit = self._settings.process_capacity
        entry: Sequence[Any] = (parcel, False)
        wake: list[Waiter] = []
        gone: list[Mailbox] = []
        offered: list[Mailbox] = []
        count = 0
        for box in members.values():
            if box.waiters:
                if box.sink is not None and not box.parcels and parcel.expires > now:
                    offered.append(box)
                    continue
                box.alive_at = now
                wake.append(box.waiters.pop(0))
            elif box.alive_at < horizon:
                gone.append(box)
                continue
            # The common case is decided here: a call for each member would be a third of what a delivery costs.
            if (len(box.parcels) >= box.capacity or self.waiting >= limit) and self._full(box, False, now):
                missed(box)
                if not self._make_room(box):
                    continue
            if parcel.group is not None:
                entry = self._note(box, parcel)
            box.parcels.append(entry)
            self.waiting += 1
            count += 1
        for box in gone:
            self.leave(group, box.channel)
        if not offered:
            return count, 0, wake
        # Out of the loop above: what a sink runs may come back here.
        taken = self._offer(parcel, offered)
        for box in offered:
            if self.boxes.get(box.channel) is not box:  # it has been forgotten meanwhile
                continue
            if self._full(box, False, now):
                missed(box)
                if not self._make_room(box):
                    continue
            if parcel.group is not None:
                entry = self._note(box, parcel)
            box.parcels.append(entry)
            self.waiting += 1
            count += 1
            if (waiter := box.next_waiter(now)) is not None:
                wake.append(waiter)
        return count + taken, taken, wake

    def _make_room(self, box: Mailbox) -> bool:
        """Do with a full mailbox as its channel's overflow says; whether the new message goes in."""
        if box.overflow is None or box.closing:
            return False
        what, code = box.overflow
        if what == "drop oldest":
            for place, (parcel, direct) in enumerate(box.parcels):
                if not direct:
                    del box.parcels[place]
                    self.waiting -= 1
                    self._took(box, parcel)
                    return True
            return False
        kept = [entry for entry in box.parcels if entry[1]]
        self.waiting -= len(box.parcels) - len(kept)
        box.parcels = deque(kept)
        box.newest = None
        if what == "latest only":
            return True
        box.closing, box.capacity = True, 0
        message = {"type": "layer.close", "code": code}
        parcel = Parcel(self._settings.codec.encode(message), float("inf"), False, message)
        box.parcels.appendleft((parcel, True))
        box.direct += 1
        self.waiting += 1
        return False

    @staticmethod
    def _note(box: Mailbox, parcel: Parcel) -> list[Any]:
        """The entry of a message that a newer one of its group may replace."""
        if box.newest is None:
            box.newest = {}
        entry = box.newest[parcel.group or ""] = [parcel, False]
        return entry

    def _replace(self, box: Mailbox, parcel: Parcel) -> bool:
        """Put the message in the place of an older one of its group; False when none waits."""
        entry = box.newest.get(parcel.group or "") if box.newest else None
        if entry is None:
            return False
        entry[0] = parcel
        self.replaced += 1
        return True

    @staticmethod
    def _took(box: Mailbox, parcel: Parcel) -> None:
        if parcel.group is not None and box.newest is not None:
            box.newest.pop(parcel.group, None)

    @staticmethod
    def _offer(parcel: Parcel, boxes: list[Mailbox]) -> int:
        """Offer a parcel to the sinks of these mailboxes; returns how many took it, and leaves those that did not."""
        message, parcel.fresh = parcel.fresh, None  # the others decode their own: this one is shared
        if message is None:
            return 0
        shared: dict[object, Any] = {}
        count = len(boxes)
        boxes[:] = [box for box in boxes if box.sink is None or not box.sink(message, shared)]
        return count - len(boxes)

    def _full(self, box: Mailbox, direct: bool, now: float) -> bool:
        limit = self._settings.process_capacity
        if (box.direct if direct else len(box.parcels)) < box.capacity and self.waiting < limit:
            return False
        self._drop_stale(box, now)
        return (box.direct if direct else len(box.parcels)) >= box.capacity or self.waiting >= limit

    def take(self, box: Mailbox, now: float) -> Parcel | None:
        """Take the oldest message that has not expired."""
        box.alive_at = now
        while box.parcels:
            parcel, direct = box.parcels.popleft()
            self.waiting -= 1
            if direct:
                self._removed(box, parcel)
            elif parcel.group is not None:
                self._took(box, parcel)
            if parcel.expires > now:
                return parcel  # type: ignore[no-any-return]
            self.expired += 1
        return None

    def put_back(self, channel: str, parcel: Parcel, now: float) -> Waiter | None:
        """Undo a take whose taker went away: the message is the next one again, room or not."""
        box = self.box(channel, now)
        box.parcels.appendleft((parcel, True))
        box.direct += 1
        self.waiting += 1
        return box.next_waiter(now)

    @staticmethod
    def _removed(box: Mailbox, parcel: Parcel) -> None:
        box.direct -= 1
        if parcel.posted:
            box.released += 1

    def _drop_stale(self, box: Mailbox, now: float) -> None:
        # Layers of one deployment share their expiry, so what is stale stands at the front.
        while box.parcels and box.parcels[0][0].expires <= now:
            self._drop_first(box)
            self.expired += 1

    def _drop_first(self, box: Mailbox) -> None:
        parcel, direct = box.parcels.popleft()
        self.waiting -= 1
        if direct:
            self._removed(box, parcel)
        else:
            self._took(box, parcel)

    def forget(self, channel: str) -> tuple[list[str], Mailbox | None]:
        """Drop a channel that is done with: its mailbox and its memberships.

        Returns:
            The groups left without a member here, and the mailbox as it was.
        """
        box = self.boxes.pop(channel, None)
        if box is None:
            return [], None
        while box.parcels:
            self._drop_first(box)
        return [group for group in tuple(box.groups) if self._drop(group, box)], box

    # Groups

    def join(self, group: str, channel: str, now: float) -> None:
        """Make a channel of this process a member; again is fine, and counts as a sign of life."""
        box = self.box(channel, now)
        box.alive_at = now
        box.groups.add(group)
        self._groups.setdefault(group, {})[channel] = box

    def leave(self, group: str, channel: str) -> None:
        """End a membership, if there is one."""
        box = self.boxes.get(channel)
        if box is not None:
            self._drop(group, box)

    def _drop(self, group: str, box: Mailbox) -> bool:
        box.groups.discard(group)
        members = self._groups.get(group)
        if members is None or members.pop(box.channel, None) is None:
            return False
        if not members:
            del self._groups[group]
        return not members

    def has_members(self, group: str) -> bool:
        """Whether any channel of this process is in the group."""
        return group in self._groups

    def members(self, group: str) -> list[str]:
        """The channels of this process in the group."""
        return list(self._groups.get(group, ()))

    def is_member(self, group: str, channel: str) -> bool:
        """Whether a channel of this process is in the group."""
        return channel in self._groups.get(group, ())

    @property
    def groups(self) -> list[str]:
        """The groups with a member here."""
        return list(self._groups)

    def watchers(self, group: str | None) -> list[Mailbox]:
        """The mailboxes to tell when messages to a group (None: to anybody here) were lost."""
        boxes = self.boxes if group is None else self._groups.get(group, {})
        return [box for box in boxes.values() if box.watches]

    # Housekeeping

    def sweep(self, now: float) -> tuple[list[str], list[Mailbox]]:
        """Drop what is stale: expired messages, expired memberships, mailboxes nobody has used for ``expiry`` seconds.

        Returns:
            The groups left without a member here, and the mailboxes with something to report to the transport.
        """
        emptied: list[str] = []
        report: list[Mailbox] = []
        horizon = now - self._settings.group_expiry
        idle = now - self._settings.expiry
        for box in list(self.boxes.values()):
            self._drop_stale(box, now)
            if box.released:
                report.append(box)
            if box.waiters:
                continue
            if box.groups and box.alive_at < horizon:
                emptied += [group for group in tuple(box.groups) if self._drop(group, box)]
            if not box.groups and not box.parcels and box.alive_at < idle and box.sink is None:
                del self.boxes[box.channel]
        return emptied, report

    def clear(self) -> None:
        """Forget every message and membership; whoever waits goes on waiting."""
        self._groups.clear()
        self.waiting = 0
        for box in list(self.boxes.values()):
            box.parcels.clear()
            box.groups.clear()
            box.direct = box.released = 0
            box.newest, box.closing = None, False
            if not box.waiters and box.sink is None:
                del self.boxes[box.channel]
