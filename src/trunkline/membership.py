"""The middle floor of a node: its channels, who is in which group, who is present, and what it is subscribed to."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine, Iterable
from typing import Any

from . import names
from .envelope import Seal
from .errors import LayerClosed, NotOwner, TransportUnavailable, UsageError
from .presence import Presence, Present, PresentCount
from .settings import Settings
from .switchboard import Sink, Waiter
from .transport import Transport
from .typed import MessageLike
from .watching import Watching

__all__ = ["Membership", "wake"]


class Membership(Watching):
    """Knows its channels and groups."""

    def __init__(self, settings: Settings, seal: Seal, transport: Transport) -> None:
        super().__init__(settings, seal, transport)
        #: Groups whose subscription somebody changes.
        self._settling: dict[str, asyncio.Future[None]] = {}
        #: Made on first use: who does not use it pays nothing.
        self._presence: Presence | None = None

    @abstractmethod
    def group_send(self, group: str, message: MessageLike) -> Coroutine[Any, Any, None]:
        """See ``ChannelLayer.group_send``."""

    @abstractmethod
    def _drop_delayed(self) -> None:
        """Forget the messages that are not due yet."""

    # Channels and groups

    async def new_channel(self, prefix: str = "specific") -> str:
        """See ``ChannelLayer.new_channel``."""
        return names.new_channel(prefix, self.name)

    async def forget(self, channel: str) -> None:
        """See ``ChannelLayer.forget``."""
        if names.channel(channel).node != self.name:
            return
        groups, box = self._board.forget(channel)
        if box is not None:
            wake(box.waiters)
            if box.released:
                self._report(box)
        for group in groups:
            await self._settle(group)
        if self._presence is not None:
            await self._presence.forget(channel)

    def _check_owner(self, channel: str) -> None:
        if names.channel(channel).node != self.name:
            raise NotOwner(
                f"{channel} belongs to another process, or to an event loop that has ended; "
                "receive where new_channel() was called"
            )

    async def watch_gaps(self, channel: str) -> None:
        """See ``ChannelLayer.watch_gaps``."""
        self._check_owner(channel)
        self._board.box(channel, self._now()).watches = True

    async def attach_sink(self, channel: str, sink: Sink) -> None:
        """See ``ChannelLayer.attach_sink``."""
        self._check_owner(channel)
        self._board.box(channel, self._now()).sink = sink

    async def group_add(
        self,
        group: str,
        channel: str,
        presence: dict[str, Any] | None = None,
        *,
        user: str | None = None,
        announce: bool = False,
    ) -> None:
        """See ``ChannelLayer.group_add``."""
        names.group(group)
        owner = names.channel(channel).node
        if presence is not None or user is not None or announce:
            await self._group_add_present(group, channel, owner, presence, user, announce)
        elif owner == self.name:
            self._board.join(group, channel, self._now())
            try:
                await self._settle(group)
            except TransportUnavailable:
                self._board.leave(group, channel)
                raise
            if self.closed:
                raise LayerClosed(f"the layer was closed while {channel} was added to {group}")
        elif owner is None:
            capacity = self._settings.capacity_of(channel)
            await self._transport.bind(group, channel, capacity, self._settings.group_expiry)
        else:
            await self._ask(owner, "join", group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """See ``ChannelLayer.group_discard``."""
        names.group(group)
        owner = names.channel(channel).node
        if owner == self.name:
            self._board.leave(group, channel)
            await self._settle(group)
            if self._presence is not None:
                await self._presence.leave(group, channel)
        elif owner is None:
            await self._transport.unbind(group, channel)
        else:
            await self._ask(owner, "leave", group, channel)

    # Presence

    async def _group_add_present(
        self,
        group: str,
        channel: str,
        owner: str | None,
        presence: dict[str, Any] | None,
        user: str | None,
        announce: bool,
    ) -> None:
        here = self._present()
        if owner is None:
            raise UsageError(
                f"{channel} is a normal channel, which no process owns, so it cannot be present in a group: leave out "
                "presence, or add a channel that new_channel() made"
            )
        card = here.card(group, channel, presence, user, announce)
        if owner != self.name:
            await self._ask(owner, "join", group, channel, presence=presence, user=user, announce=announce)
            return
        known = self._board.is_member(group, channel)
        await self.group_add(group, channel)
        try:
            await here.join(group, channel, card)
        except TransportUnavailable:
            if not known:
                self._board.leave(group, channel)
                self._spawn(self._settle(group))
            raise

    async def presence(self, group: str) -> list[Present]:
        """See ``ChannelLayer.presence``."""
        return await self._present().members(names.group(group))

    async def presence_count(self, group: str) -> PresentCount:
        """See ``ChannelLayer.presence_count``."""
        return await self._present().count(names.group(group))

    def _present(self) -> Presence:
        if self._presence is None:
            self._presence = Presence(
                self._transport,
                self._seal,
                self._settings,
                spawn=self._spawn,
                say=self.group_send,
                stays=self._board.is_member,
            )
        return self._presence

    # Everything

    async def flush(self) -> None:
        """See ``ChannelLayer.flush``."""
        await self._transport.flush()
        self._clear()
        await self._requests.tell_all_to_flush()

    def _clear(self) -> None:
        groups = self._board.groups
        self._drop_delayed()
        self._board.clear()
        if self._presence is not None:
            self._presence.clear()
        for group in groups:
            self._spawn(self._settle(group))

    async def _settle(self, group: str) -> None:
        """Make the subscription agree with the membership. One change at a time for each group."""
        while not self.closed and self._board.has_members(group) != (group in self._subscribed):
            change = self._settling.get(group)
            if change is not None:
                await asyncio.shield(change)  # of somebody else, whose error is ours too
                continue
            change = self._settling[group] = self.loop.create_future()
            try:
                await self._resubscribe(group)
            except asyncio.CancelledError:
                change.set_result(None)
                if not self.closed:
                    self._spawn(self._settle(group))  # the membership stays as it was made
                raise
            except BaseException as error:
                change.set_exception(error)
                change.exception()  # perhaps nobody else waits for it
                raise
            else:
                change.set_result(None)
            finally:
                self._settling.pop(group)

    async def _resubscribe(self, group: str) -> None:
        if self._board.has_members(group):
            await self._transport.subscribe(group)
            if self._settings.histories and self._settings.kept_of(group) is not None:
                await self._history.follow(group)
            self._subscribed.add(group)
        else:
            self._subscribed.discard(group)
            self._history.unfollow(group)
            await self._transport.unsubscribe(group)

    # Between layers

    async def _ask(self, owner: str, op: str, group: str, channel: str, **more: Any) -> None:
        if not await self._requests.ask(owner, op, group, channel, **more):
            self._gone(channel)

    def _asked(self, op: str, group: str, channel: str, **more: Any) -> Coroutine[Any, Any, None]:
        return self.group_add(group, channel, **more) if op == "join" else self.group_discard(group, channel)


def wake(waiters: Iterable[Waiter]) -> None:
    """Wake who waits."""
    for waiter in waiters:
        try:
            waiter.set_result(None)
        except asyncio.InvalidStateError:  # cancelled: it wakes the next one when it goes
            pass
