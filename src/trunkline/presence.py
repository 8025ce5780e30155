"""Who is in a group: the members of this process, kept beside the group's topic under a lease; those of all by asking.

A member is one record of the transport: its key is a number of this process, its tag stands for the user, its value is
sealed like a message. The events follow from the counts that the transport returns: whoever sees a user's first record
come tells that the user joined, whoever sees the last one go tells that the user left. A process renews one lease for
each of its groups, however many members they have; what a dead one left behind is reaped, and told, by any other with
members in the group, or by the next query.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from .envelope import RECORD, FrameError, Message, Seal, decode, encode
from .errors import ConfigurationError, InvalidMessage, LayerClosed, MessageTooLarge, TransportUnavailable
from .logs import RateLimited
from .settings import Settings
from .transport import Record, Transport

__all__ = ["Card", "Presence", "Present", "PresentCount"]

#: Bytes that what is known of a member may take.
_MOST = 4096
#: Records that are on their way at once when many are kept or dropped.
_AT_ONCE = 200
#: Seconds that closing may take to tell that the members of this process left.
_FAREWELL = 3.0


class Present(NamedTuple):
    """One member of a group."""

    channel: str
    #: The key of the user whose channel it is; None when none was given.
    user: str | None
    metadata: dict[str, Any]
    #: When it joined, on the transport's clock: Unix time in seconds.
    since: float


class PresentCount(NamedTuple):
    """How many are in a group."""

    #: Channels.
    members: int
    #: Different users; members without one do not count here.
    users: int


class Card(NamedTuple):
    """What is known of a member, checked and encoded."""

    user: str | None
    announce: bool
    body: bytes


class _Member:
    """A member of this process, and the record that stands for it."""

    __slots__ = ("back", "card", "channel", "key", "since", "tag", "value")

    def __init__(self, channel: str, card: Card, key: str, since: float, tag: str, value: bytes) -> None:
        self.channel, self.card = channel, card
        self.key, self.since, self.tag, self.value = key, since, tag, value
        #: How many had its tag when it came back by a change, after it was reaped or lost: the next renewal tells which.
        self.back = 0


class Presence:
    """The presence of one node.

    Args:
        spawn: Starts work in a task of its own.
        say: Sends an event to a group.
        stays: Whether a channel of this node is a member of a group.
    """

    #: Seconds that members outlive the last sign of life of their process; between two of these; and between two
    #: attempts at a transport that cannot be reached. A dead process' members have left within ``lease + beat``.
    lease: float = 10.0
    beat: float = 4.0
    retry: float = 1.0

    def __init__(
        self,
        transport: Transport,
        seal: Seal,
        settings: Settings,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        say: Callable[[str, Message], Coroutine[Any, Any, None]],
        stays: Callable[[str, str], bool],
    ) -> None:
        if "records" not in transport.features:
            raise ConfigurationError(
                f"presence needs a transport that keeps records, and {type(transport).__name__} does not: "
                "memory://, embedded://, redis:// and postgresql:// do"
            )
        self._transport = transport
        self._seal = seal
        self._settings = settings
        self._spawn, self._say, self._stays = spawn, say, stays
        self._log = RateLimited()
        self._rooms: dict[str, dict[str, _Member]] = {}
        #: The groups of each channel that is a member, or becomes one.
        self._groups: dict[str, set[str]] = {}
        #: The last change of a membership that is not done: they are done one after the other.
        self._changing: dict[tuple[str, str], asyncio.Task[None]] = {}
        #: Records to drop once the transport can be reached again, and whether to tell of it.
        self._owed: list[tuple[str, _Member, bool]] = []
        #: Groups whose records must be kept anew, and whether their members are told to have joined.
        self._anew: dict[str, bool] = {}
        self._reaping: dict[str, asyncio.Task[None]] = {}
        self._beating: asyncio.Task[None] | None = None
        self._last = 0

    # Members of this process

    def card(self, group: str, channel: str, presence: Any, user: Any, announce: Any) -> Card:
        """Check and encode what is to be known of a member.

        Raises:
            InvalidMessage: It is no dict, or a value in it cannot travel, or the user or announce are of the wrong type.
            MessageTooLarge: It takes more than 4,096 bytes, or an event with it more than ``max_message_size``.
        """
        if presence is None:
            raise InvalidMessage(
                "user and announce belong to a presence: write presence={…}, which may be empty"
            )
        if not isinstance(presence, dict):
            raise InvalidMessage(
                f"presence is a dict of what to tell of the member, not {type(presence).__name__}"
            )
        if user is not None and (not isinstance(user, str) or not user):
            raise InvalidMessage(f"user is a str that is not empty, e.g. str(user.pk), not {user!r}")
        if not isinstance(announce, bool):
            raise InvalidMessage(f"announce is True or False, not {announce!r}")
        content = {"presence": presence, "user": user, "announce": announce}
        body = encode(content, 2**62, self._settings.codec)
        if len(body) > _MOST:
            raise MessageTooLarge(
                f"the presence takes {len(body):,} bytes of at most {_MOST:,}: keep what is large elsewhere"
            )
        if announce:
            event = _event("presence.leave", group, channel, content)
            encode(event, self._settings.max_message_size, self._settings.codec)
        return Card(user, announce, body)

    async def join(self, group: str, channel: str, card: Card) -> None:
        """Make a channel of this process present, or change what is known of it.

        Cancellation: it is done all the same.

        Raises:
            TransportUnavailable: It is not.
        """
        self._groups.setdefault(channel, set()).add(group)
        await asyncio.shield(self._change(group, channel, partial(self._enter, group, channel, card)))

    async def leave(self, group: str, channel: str) -> None:
        """Undo ``join``; what cannot be undone now is as soon as the transport can be reached."""
        if group in self._groups.get(channel, ()):  # also while it is on its way
            await asyncio.shield(self._change(group, channel, partial(self._exit, group, channel)))

    async def forget(self, channel: str) -> None:
        """Undo every ``join`` of a channel."""
        for group in tuple(self._groups.get(channel, ())):
            await self.leave(group, channel)

    def clear(self) -> None:
        """Forget every member here, and tell nobody."""
        self._anew.clear()
        for group, room in self._rooms.items():
            for channel in room:
                self._change(group, channel, partial(self._exit, group, channel, tell=False))

    async def close(self) -> None:
        """Take every member of this process away, and tell of it; what takes too long is reaped by others."""
        if self._beating is not None:
            self._beating.cancel()
        try:
            async with asyncio.timeout(_FAREWELL):
                if self._changing:
                    await asyncio.wait(set(self._changing.values()))
                work = [self._exit(group, channel) for group, room in self._rooms.items() for channel in room]
                await _in_parts(work)
                if self._reaping:
                    await asyncio.wait(set(self._reaping.values()))
        except TimeoutError:
            text = "members of this process could not be told to have left within %g s: others will"
            self._log.warning("farewell", text, _FAREWELL, event="presence.farewell")

    def abandon(self) -> None:
        """End at once; tell nobody."""
        self._rooms.clear()
        self._owed.clear()
        if self._beating is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._beating.cancel()

    def _change(
        self, group: str, channel: str, step: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        place = group, channel
        before = self._changing.get(place)

        async def change() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await step()
            finally:
                if self._changing.get(place) is task:
                    del self._changing[place]
                    if channel not in self._rooms.get(group, ()):
                        self._forget(group, channel)

        task = self._changing[place] = self._spawn(change())
        return task

    async def _enter(self, group: str, channel: str, card: Card) -> None:
        old = self._rooms.get(group, {}).get(channel)
        if old is not None and old.card.user != card.user:
            await self._exit(group, channel)
            old = None
        member = self._member(channel, card, old)
        self._rooms.setdefault(group, {})[channel] = member
        self._start()
        try:
            # Nothing is awaited in between: from here on the lease on this group is renewed.
            count = await self._keep(group, member)
        except (TransportUnavailable, LayerClosed):
            if old is None:
                self._remove(group, channel)
                self._owed.append((group, member, False))
            else:
                self._rooms[group][channel] = old
            raise
        if count and old is None:
            await self._tell("presence.join", group, member, count == 1)
        elif count:
            member.back = count
            with contextlib.suppress(TransportUnavailable, LayerClosed):  # then with the next sign of life
                await self._renew([group])

    def _member(self, channel: str, card: Card, old: _Member | None) -> _Member:
        self._last += 1
        key, since = (str(self._last), self._transport.now()) if old is None else (old.key, old.since)
        tag = "" if card.user is None else self._seal.blind(card.user)
        return _Member(channel, card, key, since, tag, self._seal.frame(RECORD, since, channel, card.body))

    async def _keep(self, group: str, member: _Member) -> int:
        return await self._transport.keep_record(group, member.key, member.tag, member.value, self.lease)

    async def _exit(self, group: str, channel: str, tell: bool = True) -> None:
        member = self._remove(group, channel)
        if member is not None:
            await self._drop(group, member, tell)

    def _remove(self, group: str, channel: str) -> _Member | None:
        room = self._rooms.get(group, {})
        member = room.pop(channel, None)
        if not room:
            self._rooms.pop(group, None)
        return member

    def _forget(self, group: str, channel: str) -> None:
        groups = self._groups.get(channel, set())
        groups.discard(group)
        if not groups:
            self._groups.pop(channel, None)

    async def _drop(self, group: str, member: _Member, tell: bool) -> None:
        try:
            left = await self._transport.drop_record(group, member.key)
        except TransportUnavailable:
            self._owed.append((group, member, tell))
            self._start()
            return
        except LayerClosed:
            return
        if tell and left is not None:
            await self._tell("presence.leave", group, member, left == 0)

    # Life

    def _start(self) -> None:
        if self._beating is None:
            self._beating = self._spawn(self._beat())

    async def _beat(self) -> None:
        """Show life, as long as there is something to show it for."""
        pause = self.beat
        while self._rooms or self._owed:
            await asyncio.sleep(pause)
            pause = self.beat
            for group, channel in self._strays():
                self._change(group, channel, partial(self._exit, group, channel))
            try:
                await self._renew()
            except TransportUnavailable:
                pause = self.retry
            except LayerClosed:
                return
            except Exception as error:  # whatever it is: without a sign of life all members here would leave
                text = "members of this process may seem to leave: %r"
                self._log.warning("beat", text, error, error=error, event="presence.beat", reason=repr(error))
            owed, self._owed = self._owed, []
            await _in_parts(self._drop(*each) for each in owed)
        self._beating = None

    def _strays(self) -> list[tuple[str, str]]:
        """Members here whose membership has ended, by its ``group_expiry``."""
        return [
            (group, channel)
            for group, room in self._rooms.items()
            for channel in room
            if not self._stays(group, channel) and (group, channel) not in self._changing
        ]

    async def _renew(self, groups: list[str] | None = None) -> None:
        groups = list(self._rooms) if groups is None else groups
        if not groups:
            return
        news = await self._transport.renew_records(groups, self.lease)
        self._anew.update(dict.fromkeys(news.forgotten, False))
        self._anew.update(dict.fromkeys(news.reaped, True))
        for group in news.lapsed:
            self.reap(group)
        for group, tell in tuple(self._anew.items()):  # what failed half-way is done again
            channels = tuple(self._rooms.get(group, ()))
            await _in_parts(self._keep_anew(group, channel, tell) for channel in channels)
            self._anew.pop(group, None)

    async def _keep_anew(self, group: str, channel: str, tell: bool) -> None:
        member = self._rooms.get(group, {}).get(channel)
        if member is None:
            return
        count = await self._keep(group, member)
        count, member.back = count or member.back, 0
        if tell and count:
            await self._tell("presence.join", group, member, count == 1)

    def reap(self, group: str) -> asyncio.Task[None]:
        """Take away what dead processes left in a group, and tell of it, in the background."""
        task = self._reaping.get(group)
        if task is None:
            task = self._reaping[group] = self._spawn(self._reap(group))
        return task

    async def _reap(self, group: str) -> None:
        try:
            while reaped := await self._transport.reap_records(group):
                for record, left in reaped:
                    found = self._read(record)
                    if found is not None and found["announce"] and (found["user"] is None or left == 0):
                        await self._send(_event("presence.leave", group, found["channel"], found))
        except (TransportUnavailable, LayerClosed) as error:
            text = "what dead processes left in group %s stays for now: %s"
            self._log.warning(
                "reap", text, group, error, event="presence.reap", group=group, reason=str(error)
            )
        finally:
            del self._reaping[group]

    # Asking

    async def members(self, group: str) -> list[Present]:
        """See ``ChannelLayer.presence``."""
        await asyncio.shield(self.reap(group))
        found = []
        for record in await self._transport.records(group):
            if (content := self._read(record)) is not None:
                user, metadata = content["user"], content["presence"]
                found.append(Present(content["channel"], user, metadata, content["since"]))
        return sorted(found, key=lambda present: present.since)

    async def count(self, group: str) -> PresentCount:
        """See ``ChannelLayer.presence_count``."""
        await asyncio.shield(self.reap(group))
        return PresentCount(*await self._transport.count_records(group))

    def _read(self, record: Record) -> Message | None:
        try:
            kind, since, channel, body, *_ = self._seal.open(record.value)
            content = decode(body, self._settings.codec)
            if kind != RECORD or not content.keys() >= {"presence", "user", "announce"}:
                raise FrameError("no record of a member")
        except FrameError as error:
            text = "a member cannot be shown: %s"
            self._log.warning("unreadable", text, error, event="unreadable", reason=str(error))
            return None
        return {**content, "channel": channel, "since": since}

    # Telling

    async def _tell(self, kind: str, group: str, member: _Member, alone: bool) -> None:
        """Tell the group of a member, if that was asked for; of a user's, only if it is the first or was the last."""
        if member.card.announce and (alone or member.card.user is None):
            content = decode(member.card.body, self._settings.codec)
            await self._send(_event(kind, group, member.channel, content))

    async def _send(self, event: Message) -> None:
        try:
            await self._say(event["group"], event)
        except (TransportUnavailable, LayerClosed) as error:
            group, text = event["group"], "group %s was not told of %s: %s"
            args = group, event["type"], error
            self._log.warning("untold", text, *args, event="presence.untold", group=group, reason=str(error))


def _event(kind: str, group: str, channel: str, content: Mapping[str, Any]) -> Message:
    user, presence = content["user"], content["presence"]
    return {"type": kind, "group": group, "user": user, "channel": channel, "presence": presence}


async def _in_parts(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them all, so many at once; the first failure is raised when those that were begun have ended."""
    waiting = list(work)
    try:
        while waiting:
            begun, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            for outcome in await asyncio.gather(*begun, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
    finally:
        for each in waiting:
            each.close()
