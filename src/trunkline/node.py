"""One open layer in one event loop: the numbered steps of a message's life.

1. ``send`` or ``group_send`` puts the message into an envelope and makes a frame.
2. The transport carries it.
3. The other node's transport calls ``deliver``.
4. The switchboard puts it into each mailbox it is for.
5. ``receive`` hands it over.

Everything users mean by a message is decided here and in the switchboard, whatever the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

from . import names, tracing
from .envelope import (
    CHANNEL,
    CONTROL,
    DELAYED,
    GROUP,
    NO_OPTIONS,
    REMEMBERED,
    Envelope,
    FrameError,
    Message,
    Seal,
    decode,
    delayed,
    encode,
    undelayed,
)
from .errors import ChannelFull, InvalidMessage, LayerClosed, TransportUnavailable
from .history import Event, position_of
from .leases import Lease
from .logs import logger
from .membership import Membership, wake
from .settings import Settings
from .stats import Origin
from .switchboard import Parcel
from .targets import Recent, for_channel, for_group, passed_over
from .transport import Transport
from .typed import MessageLike

__all__ = ["Node"]

#: Seconds between two rounds of housekeeping, at most.
_SWEEP = 5.0
#: Seconds between two attempts to hear what is said to all nodes.
_RETRY = 0.5
#: Types whose values can be shared by all who are given them.
_UNCHANGEABLE = frozenset((str, int, float, bool, bytes, type(None)))


class Node(Membership):
    """The layer's part in one event loop."""

    def __init__(
        self,
        settings: Settings,
        seal: Seal,
        transport: Transport,
        on_gap: Callable[[str | None, str], object],
        on_closed: Callable[[Node], object],
    ) -> None:
        super().__init__(settings, seal, transport)
        self._on_gap = on_gap
        self._on_closed = on_closed
        #: Topics whose messages came late in this turn of the loop.
        self._told_late: set[str | None] = set()
        #: Messages to channels of this node that are not due yet.
        self._delayed: set[asyncio.TimerHandle] = set()
        self._recent = Recent(settings.expiry)
        self._timer: asyncio.TimerHandle | None = None
        self._farewell: AsyncGenerator[None, None] | None = None
        #: What a message to a channel of our own would have come in.
        self._ours = Envelope(CHANNEL, 0.0, "", b"", self._seal.sender)
        #: What ``receive`` or ``lease`` returned last, and what it came in.
        self._handed: Message = {}
        self._origin: Envelope | None = None

    # Life

    async def open(self) -> None:
        """Connect.

        Raises:
            TransportUnavailable: The transport could not connect.
        """
        await self._transport.open(self.name, self)
        self._now = self._transport.now  # it may have found a shorter way to its clock
        try:
            try:
                await self._transport.subscribe(names.ALL_NODES)
            except TransportUnavailable:  # a part of the transport is down, the rest works
                self._spawn(self._hear_all_nodes())
            # A loop that ends closes its async generators: the one sign that every way of running a loop gives.
            self._farewell = self._close_with_loop()
            await anext(self._farewell)
        except BaseException:
            await self.close()
            raise
        self._timer = self.loop.call_later(min(_SWEEP, self._settings.expiry / 4), self._sweep)

    async def _hear_all_nodes(self) -> None:
        while True:
            await asyncio.sleep(_RETRY)
            with contextlib.suppress(TransportUnavailable):
                await self._transport.subscribe(names.ALL_NODES)
                return

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if not self.closed:
                await self.close()

    async def close(self) -> None:
        """Leave; whoever waits in ``receive`` gets ``LayerClosed``. Closing twice is fine."""
        if self.closed:
            return
        if self._presence is not None:
            await self._presence.close()
            if self.closed:  # by somebody else meanwhile
                return
        self._stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()
        if self._farewell is not None:
            with contextlib.suppress(RuntimeError):  # already running: the loop itself is closing us
                await self._farewell.aclose()

    def abandon(self) -> None:
        """Let go of everything at once: this is a forked child, or the loop is closed."""
        self.closed = True
        if self._presence is not None:
            self._presence.abandon()
        self._transport.abandon()
        self._on_closed(self)

    def _stop(self) -> None:
        self.closed = True
        self._on_closed(self)
        if self._timer is not None:
            self._timer.cancel()
        self._drop_delayed()
        for box in self._board.boxes.values():
            wake(box.waiters)

    # 1. Envelope

    def send(self, channel: str, message: MessageLike, id: str | None = None) -> Coroutine[Any, Any, None]:
        """See ``ChannelLayer.send``."""
        chosen = NO_OPTIONS if id is None else for_channel(channel, id)
        if tracing.tracer is None:
            return self._send(channel, message, chosen)
        return self._traced(self._send, channel, message, chosen, tracing.tracer, False)

    async def _traced(
        self,
        work: Callable[[str, MessageLike, Mapping[str, Any]], Coroutine[Any, Any, None]],
        address: str,
        message: MessageLike,
        chosen: Mapping[str, Any],
        tracer: tracing.Tracer,
        group: bool,
    ) -> None:
        with tracer.sending(address, group) as context:
            await work(address, message, {**chosen, "trace": context} if context else chosen)

    async def _send(self, channel: str, message: MessageLike, chosen: Mapping[str, Any]) -> None:
        owner = names.channel(channel).node
        body = encode(message, self._settings.max_message_size, self._settings.codec)
        expires = self._now() + self._settings.expiry
        self.stats.sent += 1
        if owner == self.name:
            if self._is_first(channel, chosen):
                origin = self._ours._replace(options=chosen) if chosen else self._ours
                self._put(channel, body, expires, False, origin)
            return
        frame = self._seal.frame_with(CHANNEL, expires, channel, body, chosen)
        capacity = self._settings.capacity_of(channel)
        try:
            # 2. Transport
            if owner is None:
                await self._transport.push(channel, frame, capacity, self._settings.expiry)
            elif not await self._transport.post(owner, channel, frame, capacity, self._settings.expiry):
                self._gone(channel)
        except ChannelFull:
            self._refused(channel)
            raise

    def send_later(
        self, channel: str, message: MessageLike, delay: float, id: str | None = None
    ) -> Coroutine[Any, Any, None]:
        """See ``ChannelLayer.send``. For a channel of a process, its owner waits; for a normal one, the transport."""
        chosen = NO_OPTIONS if id is None else for_channel(channel, id)
        send = functools.partial(self._send_later, delay=delay)
        if tracing.tracer is None:
            return send(channel, message, chosen)
        return self._traced(send, channel, message, chosen, tracing.tracer, False)

    async def _send_later(
        self, channel: str, message: MessageLike, chosen: Mapping[str, Any], *, delay: float
    ) -> None:
        owner = names.channel(channel).node
        body = encode(message, self._settings.max_message_size, self._settings.codec)
        due, expiry = self._now() + delay, self._settings.expiry
        capacity = self._settings.capacity_of(channel)
        self.stats.sent += 1
        try:
            if owner is None:
                frame = self._seal.frame_with(CHANNEL, due + expiry, channel, body, chosen)
                await self._transport.push_later(channel, frame, capacity, expiry, delay)
            else:
                frame = self._seal.frame_with(DELAYED, due + expiry, channel, delayed(due, body), chosen)
                if not await self._transport.post(owner, channel, frame, capacity, expiry):
                    self._gone(channel)
        except ChannelFull:
            self._refused(channel)
            raise

    def group_send(
        self,
        group: str,
        message: MessageLike,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> Coroutine[Any, Any, None]:
        """See ``ChannelLayer.group_send``."""
        chosen = NO_OPTIONS if exclude is None and id is None else for_group(exclude, id)
        if tracing.tracer is None:
            return self._group_send(group, message, chosen)
        return self._traced(self._group_send, group, message, chosen, tracing.tracer, True)

    async def groups_send(
        self,
        groups: Iterable[str],
        message: MessageLike,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> None:
        """See ``ChannelLayer.groups_send``."""
        several = [names.group(group) for group in dict.fromkeys(groups)]
        encode(message, self._settings.max_message_size, self._settings.codec)  # or nothing is sent at all
        # All have the same mark; whoever is in several of the groups takes the first that comes.
        chosen = {**for_group(exclude, id), "once": id or os.urandom(9).hex()}
        await asyncio.gather(*(self._group_send(group, message, chosen) for group in several))

    async def _group_send(self, group: str, message: MessageLike, chosen: Mapping[str, Any]) -> None:
        names.group(group)
        body = encode(message, self._settings.max_message_size, self._settings.codec)
        expires = self._now() + self._settings.expiry
        kept = self._settings.kept_of(group) if self._settings.histories else None
        if kept is None:
            frame = self._seal.frame_with(GROUP, expires, group, body, chosen)
        else:
            if isinstance(message, dict) and "position" in message:
                raise InvalidMessage(
                    f"'position' is what messages of {group!r}, which has a history, are given: rename that key"
                )
            frame = await self._history.remember(group, body, expires, chosen, kept)
        self.stats.group_sent += 1
        try:
            # 2. Transport
            full = await self._transport.publish(group, frame, self._settings.expiry)
        except TransportUnavailable as error:
            if kept is None:
                raise
            raise TransportUnavailable(
                f"{error}. It stands in the history of {group!r}, so it was on its way and may have arrived"
            ) from error
        for queue in full:
            self._missed(queue, group)

    async def group_history(self, group: str, since: str | None, limit: int) -> list[Message]:
        """See ``ChannelLayer.group_history``."""
        messages = []
        for event in await self._history.events(group, since, limit):
            message = decode(event.body, self._settings.codec)
            message["position"] = position_of(group, event)
            messages.append(message)
        return messages

    async def group_position(self, group: str) -> str:
        """See ``ChannelLayer.group_position``."""
        return await self._history.newest(group)

    # 3. Arrival

    def deliver(self, frame: bytes) -> None:
        """Take a frame from the transport."""
        try:
            envelope = self._seal.open(frame)
            if envelope.kind == GROUP:
                self._fan_out(envelope)
            elif envelope.kind == CHANNEL:
                if envelope.options and not self._is_first(envelope.address, envelope.options):
                    self._transport.taken(envelope.address, 1)
                    return
                self._put(envelope.address, envelope.body, envelope.expires, True, envelope)
            elif envelope.kind == DELAYED:
                if not self._is_first(envelope.address, envelope.options):
                    self._transport.taken(envelope.address, 1)
                    return
                self._put_later(envelope)
            elif envelope.kind == REMEMBERED:
                self._history.arrive(envelope)
            elif envelope.kind == CONTROL:
                self._requests.obey(decode(envelope.body))
            else:
                raise FrameError(f"unknown kind {envelope.kind}")
        except FrameError as error:
            if error.channel is not None:  # it was counted when it was posted
                self._transport.taken(error.channel, 1)
            self._unreadable(error)

    def gap(self, topic: str | None, reason: str) -> None:
        """Learn from the transport that messages were lost."""
        if topic is not None and self._history.heal(topic):
            return
        self._lost(topic, reason)

    def _lost(self, topic: str | None, reason: str) -> None:
        self.stats.gaps += 1
        self._log.warning(
            f"gap {topic}",
            "messages for %s were lost: %s",
            topic or "this process",
            reason,
            event="gap",
            group=topic,
            reason=reason,
        )
        if topic == names.ALL_NODES:
            return  # what one layer tells another, which users never see
        event = encode({"type": "layer.gap", "group": topic, "reason": reason}, 2**62, self._settings.codec)
        expires = self._now() + self._settings.expiry
        for box in self._board.watchers(topic):
            with contextlib.suppress(ChannelFull):  # then it has a gap anyway, and is told of that
                self._put(box.channel, event, expires, False, self._ours)
        try:
            self._on_gap(topic, reason)
        except Exception:
            logger.exception("on_gap raised")

    def _late(self, topic: str | None) -> None:
        """A message expired on its way, in an outage: told once for all that come in this turn of the loop."""
        if not self._told_late:
            self.loop.call_soon(self._told_late.clear)
        if topic not in self._told_late:
            self._told_late.add(topic)
            self.gap(topic, f"an outage outlasted their expiry of {self._settings.expiry:g} s")

    # 4. Mailboxes

    def _fan_out(self, envelope: Envelope, position: str | None = None) -> None:
        _, expires, group, body, _, chosen = envelope
        if not self._board.has_members(group):
            return
        exclude: Collection[str] = ()
        if chosen:
            if not self._is_first(group, chosen):
                return
            exclude = self._had_already(group, chosen)
        # Decoded once here, which also proves that it can be. Each member gets a dict of its own later: a copy of this one
        # when it is flat, else by decoding again, which costs a fifth of a deep copy.
        parcel = Parcel(body, expires, False, decode(body, self._settings.codec), envelope)
        if position is not None:
            parcel.locate(position)
        now = self._now()
        if expires <= now:
            self._late(group)
        count, taken, woken = self._board.fan_out(
            group, parcel, now, lambda box: self._missed(box.channel, group), exclude
        )
        if count - taken > 1 and parcel.fresh is not None:
            parcel.flat = _UNCHANGEABLE.issuperset(map(type, parcel.fresh.values()))
        self.stats.delivered += count
        self.stats.received += taken
        wake(woken)
        if not count and not self._board.has_members(group):
            self._spawn(self._settle(group))

    def _fan_out_event(self, group: str, event: Event) -> None:
        try:
            envelope = Envelope(GROUP, event.expires, group, event.body, event.sender, event.options)
            self._fan_out(envelope, position_of(group, event))
        except FrameError as error:
            self._unreadable(error)

    def _is_first(self, address: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a message with this id is new here."""
        id = chosen.get("id") if chosen else None
        return id is None or self._recent.of((address, id), self._now())[0]

    def _had_already(self, group: str, chosen: Mapping[str, Any]) -> Collection[str]:
        """Who is passed over: excluded, or given the same message by another of its groups."""
        exclude = passed_over(chosen)
        once = chosen.get("once")
        if once is None:
            return exclude
        had = self._recent.of(("once", once), self._now())[1]
        exclude = {*exclude, *had}
        had.update(self._board.members(group))
        return exclude

    def _put(self, channel: str, body: bytes, expires: float, posted: bool, origin: Envelope) -> None:
        try:
            parcel = Parcel(body, expires, posted, decode(body, self._settings.codec), origin)
        except FrameError as error:
            error.channel = channel if posted else None
            raise
        now = self._now()
        if posted and expires <= now:
            self._late(None)
        accepted, waiter, handed = self._board.put(channel, parcel, now)
        if not accepted:
            self._refused(channel)
            raise ChannelFull(f"{channel} holds {self._settings.capacity_of(channel)} messages, its capacity")
        self.stats.delivered += 1
        if waiter is not None:
            try:
                waiter.set_result(handed)
            except asyncio.InvalidStateError:  # cancelled: it wakes the next one when it goes
                if handed is not None:
                    self._return(channel, handed)

    def _return(self, channel: str, parcel: Parcel) -> None:
        """It is the next one again."""
        waiter = self._board.put_back(channel, parcel, self._now())
        if waiter is not None:
            wake((waiter,))

    def _put_later(self, envelope: Envelope) -> None:
        try:
            due, body = undelayed(envelope.body)
        except FrameError as error:
            error.channel = envelope.address
            raise

        def put() -> None:
            self._delayed.discard(handle)
            try:
                self._put(envelope.address, body, envelope.expires, True, envelope)
            except FrameError as error:
                self._transport.taken(envelope.address, 1)
                self._unreadable(error)

        handle = self.loop.call_later(max(due - self._now(), 0.0), put)
        self._delayed.add(handle)

    def _drop_delayed(self) -> None:
        for handle in self._delayed:
            handle.cancel()
        self._delayed.clear()

    # 5. Handing over

    def receive(
        self, channel: str, given: Parcel | None = None
    ) -> Message | Awaitable[Message | Parcel | None]:
        """See ``ChannelLayer.receive``.

        Returns:
            The message, if one waits. Otherwise what to await: it gives the message, or else this is to be called again with
            what it gave. Whoever is cancelled meanwhile calls ``give_up``.
        """
        if self.closed:
            raise LayerClosed(f"the layer was closed while waiting on {channel}")
        if given is not None:
            if given.posted:
                self._transport.taken(channel, 1)
            if given.expires <= self._now():
                self._board.expired += 1
                return self.receive(channel)
            parcel = given
        else:
            box = self._board.boxes.get(channel)
            if box is None:
                if names.channel(channel).node is None:
                    return self._receive_queue(channel)
                self._check_owner(channel)
                box = self._board.box(channel, self._now())
            taken = self._board.take(box, self._now()) if box.parcels else None
            if box.released:
                self._report(box)
            if taken is None:
                waiter: asyncio.Future[Parcel | None] = asyncio.Future(loop=self.loop)
                box.waiters.append(waiter)
                return waiter
            parcel = taken
        message = parcel.fresh
        if message is None:
            message = decode(parcel.body, self._settings.codec)
            if parcel.position is not None:
                message["position"] = parcel.position
        elif parcel.flat:
            message = message.copy()
        else:
            parcel.fresh = None
        self.stats.received += 1
        self._handed, self._origin = message, parcel.origin
        if tracing.tracer is not None:
            tracing.incoming.set(parcel.origin.options.get("trace", b"") if parcel.origin else b"")
        return message

    def give_up(self, channel: str, waiting: object) -> None:
        """Say that nobody awaits what ``receive`` has returned any more."""
        if self.closed:
            return
        given: Parcel | None = None
        if isinstance(waiting, asyncio.Future) and waiting.done() and not waiting.cancelled():
            given = waiting.result()
        box = self._board.boxes.get(channel)
        if box is None:  # it was forgotten meanwhile
            if given is not None and given.posted:
                self._transport.taken(channel, 1)
            return
        box.alive_at = self._now()  # whoever waits is alive anyway
        if given is not None:
            self._return(channel, given)
        elif waiting in box.waiters:
            box.waiters.remove(waiting)
        elif box.parcels and box.waiters:  # it had been woken: the message is for the next one
            wake((box.waiters.pop(0),))

    def origin(self, message: Message) -> Origin | None:
        """See ``ChannelLayer.origin``."""
        handed, envelope = self._handed, self._origin
        if handed is not message or envelope is None:
            return None
        group = envelope.address if envelope.kind in (GROUP, REMEMBERED) else None
        return Origin(envelope.sender.hex() if any(envelope.sender) else None, group)

    async def _receive_queue(self, queue: str) -> Message:
        while True:
            try:
                frame = await self._transport.pull(queue)
            except LayerClosed:
                raise LayerClosed(f"the layer was closed while waiting on {queue}") from None
            try:
                message, envelope = self._open(frame)
            except FrameError as error:
                self._unreadable(error)
                continue
            if envelope.options and queue in passed_over(envelope.options):
                continue
            if envelope.expires <= self._now():
                self.stats.expired += 1
                continue
            self.stats.received += 1
            self._handed, self._origin = message, envelope
            if tracing.tracer is not None:
                tracing.incoming.set(envelope.options.get("trace", b""))
            return message

    async def lease(self, queue: str, seconds: float) -> Lease:
        """See ``ChannelLayer.lease``."""
        while True:
            try:
                token, frame, tries = await self._transport.lease(queue, seconds, self._settings.expiry)
            except LayerClosed:
                raise LayerClosed(f"the layer was closed while waiting on {queue}") from None
            hold = functools.partial(self._transport.hold, queue, token)
            settle = functools.partial(self._transport.settle, queue, token)
            try:
                message, envelope = self._open(frame)
            except FrameError as error:
                self._unreadable(error)
                await settle()
                continue
            if queue in passed_over(envelope.options):
                await settle()
                continue
            # What came back has a life of its own in the queue, which the transport knows.
            if tries == 1 and envelope.expires <= self._now():
                self.stats.expired += 1
                await settle()
                continue
            self.stats.received += 1
            self._handed, self._origin = message, envelope
            if tracing.tracer is not None:
                tracing.incoming.set(envelope.options.get("trace", b""))
            return Lease(message, tries, hold, settle)

    def _open(self, frame: bytes) -> tuple[Message, Envelope]:
        envelope = self._seal.open(frame)
        if envelope.kind != REMEMBERED:
            return decode(envelope.body, self._settings.codec), envelope
        event = self._history.event(envelope)
        message = decode(event.body, self._settings.codec)
        message["position"] = position_of(envelope.address, event)
        return message, envelope

    async def put_back(self, channel: str, message: Message) -> None:
        """Return a message whose receiver went away before it got it."""
        self.stats.received -= 1
        body = encode(message, 2**62, self._settings.codec)
        expires = self._now() + self._settings.expiry
        if names.channel(channel).node is None:
            frame = self._seal.of("").frame(CHANNEL, expires, channel, body)
            await self._transport.push(channel, frame, 2**31, self._settings.expiry)
            return
        self._return(channel, Parcel(body, expires, False, message))

    # Housekeeping

    def _sweep(self) -> None:
        if self.closed:
            return
        emptied, report = self._board.sweep(self._now())
        for box in report:
            self._report(box)
        for group in emptied:
            self._spawn(self._settle(group))
        self.health()  # so that ``since`` is right, whenever it is asked for
        self._timer = self.loop.call_later(min(_SWEEP, self._settings.expiry / 4), self._sweep)
