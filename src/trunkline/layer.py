"""ChannelLayer: the methods users call, from any loop, any thread and after a fork.

A layer object holds one ``Node`` for each event loop that uses it. Calls that come through ``async_to_sync`` run in a loop
that ends with the call, and calls through ``layer.sync`` in none: those share one node in a background thread (see
``sync.py``), so a thousand such calls cost one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

from asgiref.sync import AsyncToSync

from . import names
from .envelope import Message, Seal
from .errors import (
    ChannelFull,
    ConfigurationError,
    MessageTooLarge,
    NotOwner,
    TransportUnavailable,
    TrunklineError,
    UsageError,
)
from .leases import Lease
from .logs import logger
from .node import Node
from .presence import Present, PresentCount
from .settings import Options, Settings
from .stats import Health, Origin, Report, Stats
from .switchboard import Parcel, Sink
from .sync import Elsewhere, SyncLayer, background_loop
from .transport import Finding, Transport
from .typed import MessageLike

__all__ = ["ChannelLayer", "Options"]

_RETRY = 0.5
_layers: weakref.WeakSet[ChannelLayer] = weakref.WeakSet()
_closing: set[asyncio.Task[None]] = set()


class ChannelLayer:
    """Named channels and groups across the processes of one application.

    Making one does no I/O and needs no event loop: it may be made anywhere, in any thread, before a fork.
    """

    #: What this layer can do beyond ``send`` and ``receive``.
    extensions = ["groups", "flush"]
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        settings: Settings,
        on_gap: Callable[[str | None, str], object] | None = None,
    ) -> None:
        if on_gap is not None and not callable(on_gap):
            raise ConfigurationError(f"on_gap is a callable that takes (group, reason), not {on_gap!r}")
        self._make_transport = make_transport
        # One is made right now: it tells wrong options here rather than on first use, and keeps a memory hub alive.
        self._first = make_transport()
        if "leases" in self._first.features:
            self.extensions = [*self.extensions, "leases"]
        if settings.histories:
            if "history" not in self._first.features:
                raise ConfigurationError(
                    f"history= needs a transport that can remember, and {type(self._first).__name__} cannot: "
                    "the layers of trunkline.layers can"
                )
            self.extensions = [*self.extensions, "history"]
        if "records" in self._first.features:
            self.extensions = [*self.extensions, "presence"]
        for name in settings.requires:
            if name not in self.extensions:
                have = ", ".join(self.extensions)
                fix = (
                    "say which groups remember: history={'room.*': {'size': 100, 'seconds': 3600}}"
                    if name == "history" and name in self._first.features
                    else "the memory, embedded, Redis and PostgreSQL layers have all"
                )
                raise ConfigurationError(
                    f"requires: this layer, on {type(self._first).__name__}, has {have}, and no {name}: {fix}"
                )
        self._settings = settings
        self._seal = Seal(settings.symmetric_encryption_keys or ())
        self._nodes: dict[asyncio.AbstractEventLoop, Node] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[Node]] = {}
        self._past = Stats()
        #: Why the last attempt to open failed, if it did, and when.
        self._trouble: tuple[TransportUnavailable, float] | None = None
        #: Called with the group (None: any) and the reason when messages were lost that cannot be fetched any more.
        self.on_gap = on_gap
        self.expiry = settings.expiry
        self.group_expiry = settings.group_expiry
        self.capacity = settings.capacity
        self.channel_capacity = settings.compiled
        #: The same methods without ``await``, for threads, views, scripts and task queues.
        self.sync = SyncLayer(self)
        self._made = time.time()
        _layers.add(self)
        weakref.finalize(self, _release, self._nodes).atexit = False

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} capacity={self.capacity} expiry={self.expiry} nodes={len(self._nodes)}>"
        )

    # Channels

    async def send(
        self, channel: str, message: MessageLike, *, delay: float = 0.0, id: str | None = None
    ) -> None:
        """Send a message to one channel: a dict, or a dataclass, msgspec Struct or pydantic model that says its ``type``.

        With an ``id``, a specific channel gets it once however often it is sent again within ``expiry`` seconds: what to do
        after an error that says it may have arrived.

        Delivery: at most once. It is kept for ``expiry`` seconds; to a specific channel whose process is gone it is dropped
        and counted. With ``delay`` it cannot be received for so many seconds, and is then kept for ``expiry`` seconds; this
        process need not live so long. On a normal channel ``capacity`` messages may be delayed beside those that wait, on
        a specific one they count as waiting.
        Order: as sent, for one sender; delayed messages come first when they are due.

        Raises:
            InvalidName: The name breaks the naming rules.
            InvalidMessage: Not a dict nor a typed object, or a value in it cannot travel.
            MessageTooLarge: It is above ``max_message_size`` bytes.
            ChannelFull: As many messages wait there as its capacity allows.
            TransportUnavailable: Nothing was sent; safe to retry, except where the text says that it was on its way
                and may have arrived.
            UsageError: ``delay`` is no number of seconds, or the transport cannot delay.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        if delay:
            _seconds("delay", delay)
            if names.channel(channel).node is None:
                self._check_leases("delay")
            await node.send_later(channel, message, delay, id)
            return
        await (node.send(channel, message) if id is None else node.send(channel, message, id))

    async def receive(self, channel: str) -> Message:
        """Wait for the next message on a channel.

        Delivery: at most once. Stale messages are skipped, never returned. Several receivers of one normal channel, in
        any process, share its messages.
        Order: as the sender sent them, for one sender; between senders, none.
        Cancellation: safe. A cancelled call takes nothing; the next one gets it. Outages are waited out.

        Raises:
            InvalidName: The name breaks the naming rules.
            NotOwner: The channel belongs to another process.
            LayerClosed: The layer was closed while waiting.
        """
        node = self._nodes.get(asyncio.get_running_loop())
        if node is None:
            return await self._receive_anew(channel)
        try:
            # This waits for the node: each coroutine between a task and its message costs with every message.
            given: Parcel | None = None
            while type(found := node.receive(channel, given)) is not dict:
                try:
                    given = await found  # type: ignore[misc]  # it is no dict
                except BaseException:
                    node.give_up(channel, found)
                    raise
                if type(given) is dict:
                    return given
            return found
        except NotOwner:
            owner = names.channel(channel).node
            for other in list(self._nodes.values()):
                if other.name == owner and other.loop.is_running():
                    return await Elsewhere(self, other.loop).receive(channel)
            raise

    async def _receive_anew(self, channel: str) -> Message:
        """Receive in a loop that has no node yet, or never has one of its own."""
        while True:
            try:
                node = await self._here()
            except TransportUnavailable as error:
                logger.warning("cannot receive yet, will retry: %s", error)
                await asyncio.sleep(_RETRY)
            else:
                return await (node.receive(channel) if isinstance(node, Elsewhere) else self.receive(channel))

    async def lease(self, channel: str, seconds: float = 30.0) -> Lease:
        """Wait for the next message on a normal channel, as ``receive``, but take it for so many seconds only.

        Delivery: at least once. Unless it is acknowledged, it comes back to the front of the channel when the lease
        ends, also when this process has died, to be kept there for another ``expiry`` seconds.
        Order: as the sender sent them, but for those that come back.
        Cancellation: safe. A cancelled call takes nothing. Outages are waited out.

        Raises:
            InvalidName: The name breaks the naming rules.
            UsageError: It is no normal channel, or the transport has no leases, or the call comes through
                ``async_to_sync``, whose loop ends with it.
            LayerClosed: The layer was closed while waiting.
        """
        _seconds("seconds", seconds)
        self._check_leases("lease")
        if names.channel(channel).node is not None:
            raise UsageError(
                f"{channel} belongs to one process; only messages on normal channels can be leased"
            )
        node: Node | Elsewhere | None = self._nodes.get(asyncio.get_running_loop())
        while node is None:
            try:
                node = await self._here()
            except TransportUnavailable as error:
                logger.warning("cannot lease yet, will retry: %s", error)
                await asyncio.sleep(_RETRY)
        if isinstance(node, Elsewhere):
            raise UsageError(
                "lease() needs an event loop that goes on; async_to_sync ends its own with the call"
            )
        return await node.lease(channel, seconds)

    def _check_leases(self, what: str) -> None:
        if "leases" not in self.extensions:
            raise UsageError(f"{what}: {type(self._first).__name__} has no leases")

    async def new_channel(self, prefix: str = "specific") -> str:
        """Make a channel name that nobody else has; only this process can receive on it.

        Raises:
            InvalidName: The prefix breaks the naming rules.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        return await node.new_channel(prefix)

    async def forget(self, channel: str) -> None:
        """Drop a channel of this process that nobody will receive on any more, with its messages and memberships.

        Without it, the memberships end after ``group_expiry`` and the rest after ``expiry`` seconds.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.forget(channel)

    async def watch_gaps(self, channel: str) -> None:
        """Have a channel of this process told when messages to it, or to one of its groups, were lost for good.

        It then gets ``{"type": "layer.gap", "group": name or None, "reason": text}``. Consumers of this package that have
        a handler ``layer_gap`` ask for it by themselves.

        Raises:
            NotOwner: The channel belongs to another process.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.watch_gaps(channel)

    async def attach_sink(self, channel: str, sink: Sink) -> None:
        """Have group messages to a channel of this process offered to a function, instead of waking who waits there.

        ``sink(message, shared)`` is called in this event loop, where the message arrives, when somebody waits in
        ``receive`` on the channel and no other message is before this one. True: it has taken the message. False: the
        message goes the ordinary road. It must not raise, and not change or keep the message, which all sinks of the
        process are given; in the dict ``shared`` they may keep what they have made of it. Consumers with a ``relay``
        use it. A layer that lives in another event loop than the caller's ignores it.

        Raises:
            NotOwner: The channel belongs to another process.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.attach_sink(channel, sink)

    # Groups

    async def group_add(
        self,
        group: str,
        channel: str,
        *,
        presence: dict[str, Any] | None = None,
        user: str | None = None,
        announce: bool = False,
    ) -> None:
        """Make a channel a member of a group: of this process or of another, specific or normal.

        On return, every ``group_send`` that starts from then on reaches it. The membership ends with the process that
        owns the channel, or ``group_expiry`` seconds after the channel's last sign of life (for a normal channel: after
        the last ``group_add``).

        Args:
            presence: What ``presence()`` tells of this member, a dict of at most 4,096 bytes. None: it is not told of,
                or stays what it was.
            user: Whose channel it is. The channels of one user, wherever they are, count as one in the events.
            announce: Have the group told by ``presence.join`` and ``presence.leave`` events: of a user, when the first
                of its channels comes and when the last one goes.

        Raises:
            InvalidName: A name breaks the naming rules.
            InvalidMessage: The presence is no dict, or a value in it cannot travel.
            MessageTooLarge: The presence is too large.
            UsageError: A presence for a normal channel.
            ConfigurationError: A presence, and "presence" is not in ``extensions``.
            TransportUnavailable: The membership was not made, or its owner did not confirm it.
            LayerClosed: The layer was closed meanwhile.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        if presence is None and user is None and not announce:
            await node.group_add(group, channel)
        else:
            await node.group_add(group, channel, presence, user=user, announce=announce)

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; one that does not exist is ignored.

        Raises:
            InvalidName: A name breaks the naming rules.
            TransportUnavailable: The owner of the channel could not be told.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.group_discard(group, channel)

    async def group_send(
        self,
        group: str,
        message: MessageLike,
        *,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> None:
        """Send a message to every member of a group, wherever it is. One publish, however many members.

        Args:
            exclude: Channels that do not get it, for example the one it comes from.
            id: Members that had a message of this id within ``expiry`` seconds do not get it again.

        Delivery: at most once to each member. A member whose channel is full misses it, which is counted and logged.
        Order: as sent, for one sender.

        Raises:
            InvalidName: The name breaks the naming rules.
            InvalidMessage: Not a dict nor a typed object, or a value in it cannot travel.
            MessageTooLarge: It is above ``max_message_size`` bytes.
            TransportUnavailable: Nothing was sent; safe to retry, except where the text says that it was on its way
                and may have arrived.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.group_send(group, message, exclude, id)

    async def groups_send(
        self,
        groups: Iterable[str],
        message: MessageLike,
        *,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> None:
        """Send one message to several groups: who is in more than one of them gets it once.

        Otherwise as ``group_send`` to each. If one fails, the others may have been sent: send again with the same ``id``.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.groups_send(groups, message, exclude, id)

    async def send_many(self, messages: Iterable[tuple[str, MessageLike]]) -> list[TrunklineError | None]:
        """Send (channel, message) pairs in one go.

        Order: as given, for messages to the same channel.

        Returns:
            For each, None, or the error that ``send`` would have raised.
        """
        return await _all(self.send(channel, message) for channel, message in messages)

    async def group_send_many(
        self, messages: Iterable[tuple[str, MessageLike]]
    ) -> list[TrunklineError | None]:
        """Send (group, message) pairs in one go.

        Order: as given, for messages to the same group.

        Returns:
            For each, None, or the error that ``group_send`` would have raised.
        """
        return await _all(self.group_send(group, message) for group, message in messages)

    # History

    async def group_history(self, group: str, since: str | None = None, limit: int = 100) -> list[Message]:
        """The events that a group remembers, oldest first; each has its ``position``.

        A group remembers when its name is in the layer's ``history``.

        Args:
            since: A position: only what came after it. None: the newest events.
            limit: At most so many. There may be more after the last one.

        Raises:
            HistoryLost: What came after that position is no longer known for certain: it is too old, or the server lost
                what it remembered.
            ConfigurationError: The group has no history.
            TransportUnavailable: Nobody can say.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        return await node.group_history(group, since, limit)

    def remembers(self, group: str) -> bool:
        """Whether a group has a history.

        Raises:
            InvalidName: The name breaks the naming rules.
        """
        return self._settings.kept_of(names.group(group)) is not None

    async def group_position(self, group: str) -> str:
        """The position of the newest event that a group remembers: what follows is ``group_history(group, since=…)``.

        Raises:
            ConfigurationError: The group has no history.
            TransportUnavailable: Nobody can say.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        return await node.group_position(group)

    # Presence

    async def presence(self, group: str) -> list[Present]:
        """The members of a group, in all processes, that were added with a ``presence``: the longest there first.

        Those of a process that was killed are in it for up to 10 seconds more.

        Raises:
            InvalidName: The name breaks the naming rules.
            ConfigurationError: "presence" is not in ``extensions``.
            TransportUnavailable: Nobody could be asked.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        return await node.presence(group)

    async def presence_count(self, group: str) -> PresentCount:
        """How many members a group has that were added with a ``presence``, and how many different users these are.

        What it costs grows with the processes that have members there, not with the members.

        Raises:
            InvalidName: The name breaks the naming rules.
            ConfigurationError: "presence" is not in ``extensions``.
            TransportUnavailable: Nobody could be asked.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        return await node.presence_count(group)

    # Life

    async def flush(self) -> None:
        """Forget every message and membership, in all processes. Receivers go on waiting."""
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        await node.flush()

    async def close(self) -> None:
        """Close what this layer holds open, in every loop. Receivers get ``LayerClosed``; the next call opens anew."""
        here = asyncio.get_running_loop()
        for loop, node in list(self._nodes.items()):
            if loop is here:
                await node.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(node.close(), loop))
            else:
                node.abandon()

    async def close_pools(self) -> None:
        """The same as ``close``, under the name other layers gave it."""
        await self.close()

    async def __aenter__(self) -> Self:
        await self._here()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def examine(self) -> list[Finding]:
        """Look at what is behind the layer: is it there, is it fit, how quick is it, what should be changed.

        Opens nothing of the layer's own, never raises for what it finds, leaves nothing behind.

        Raises:
            ConfigurationError: The layer was made in a way of its own, so nobody knows what is behind it.
        """
        make = self._make_transport
        if not isinstance(make, functools.partial):
            raise ConfigurationError(
                f"{type(self).__name__} was made by a function, so it cannot tell what is behind it: "
                "make it of a URL or of functools.partial(TransportClass, …)"
            )
        if inspect.ismethod(make.func):  # from_url
            return await type(self._first).examine(*make.args, **make.keywords)
        options = inspect.signature(make.func).bind(*make.args, **make.keywords).arguments
        return await type(self._first).examine(f"{type(self).__name__}", **options)

    def stats(self) -> Stats:
        """Counters of this process since the layer was made, and what waits in it now. No I/O; any thread may ask.

        What it costs is a pass over the channels of this process: a millisecond for some thousands.
        """
        return sum((node.snapshot() for node in list(self._nodes.values())), self._past)

    def health(self) -> Health:
        """Whether the layer works, as far as this process knows. No I/O; any thread may ask.

        It is ``down`` when nothing can be sent to other processes: every server is unreachable, or was silent for 15
        seconds. It is ``degraded`` when one of several is, when a server refuses to work, or when
        ``process_capacity`` messages wait here. A layer that was not used yet is ``ok``.
        """
        found = [node.health() for node in list(self._nodes.values())]
        if not found:
            if self._trouble is not None:
                return Health("down", [str(self._trouble[0])], self._trouble[1])
            return Health(since=self._made)
        worst = max(found, key=lambda health: ("ok", "degraded", "down").index(health.state))
        servers = {server.name: server for health in (*found, worst) for server in health.servers}
        reasons = list(dict.fromkeys(reason for health in found for reason in health.reasons))
        return Health(worst.state, reasons, worst.since, list(servers.values()))

    async def survey(self, seconds: float = 0.5) -> list[Report]:
        """Have every node of the deployment report on itself: its host and process, ``stats()`` and ``health()``.

        It takes ``seconds``; who does not answer within them is missing. Nothing is sent or kept while nobody asks.

        Raises:
            TransportUnavailable: Nobody could be asked.
        """
        node = self._nodes.get(asyncio.get_running_loop()) or await self._here()
        return await node.survey(seconds)

    def origin(self, message: Message) -> Origin | None:
        """Which process sent the message that ``receive`` or ``lease`` has just returned, and to which group.

        To be asked before anything else is awaited: only the last message of the running loop is known.

        Returns:
            None when that is another message, or one that was put back.
        """
        node = self._nodes.get(asyncio.get_running_loop())
        return None if node is None else node.origin(message)

    def count_invalid(self) -> None:
        """Count an event that was not what its handler's annotation says. Consumers call it."""
        self._past = self._past + Stats(invalid=1)

    # Nodes

    async def _here(self) -> Node | Elsewhere:
        """The node for the running loop, opened on first use."""
        loop = asyncio.get_running_loop()
        # asgiref lists here the loops it makes for one async_to_sync call: a node of their own would die with the call.
        if loop in AsyncToSync.loop_thread_executors:
            return Elsewhere(self, background_loop())
        if (node := self._nodes.get(loop)) is not None:
            return node
        for dead in [other for other in self._nodes.values() if other.loop.is_closed()]:
            dead.abandon()
        task = self._opening.get(loop)
        if task is None:
            task = self._opening[loop] = loop.create_task(self._open(loop))
        return await asyncio.shield(task)

    def _make_node(
        self, on_gap: Callable[[str | None, str], object], on_closed: Callable[[Node], object]
    ) -> Node:
        return Node(self._settings, self._seal, self._make_transport(), on_gap, on_closed)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Node:
        layer = weakref.ref(self)  # a node must not keep its layer alive

        def on_gap(topic: str | None, reason: str) -> None:
            if (owner := layer()) is not None and owner.on_gap is not None:
                owner.on_gap(topic, reason)

        def on_closed(node: Node) -> None:
            if (owner := layer()) is not None:
                owner._past = owner._past + node.counted()
                owner._nodes.pop(loop, None)

        try:
            node = self._make_node(on_gap, on_closed)
            await node.open()
            self._nodes[loop], self._trouble = node, None
            return node
        except TransportUnavailable as error:
            self._trouble = error, self._trouble[1] if self._trouble else time.time()
            raise
        finally:
            del self._opening[loop]

    async def _put_back(self, channel: str, message: Message) -> None:
        await self._nodes[asyncio.get_running_loop()].put_back(channel, message)

    def _after_fork(self) -> None:
        for node in list(self._nodes.values()):
            node.abandon()
        self._opening.clear()


def _seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"{name} is a number of seconds above 0, not {value!r}")


async def _all(sends: Iterable[Coroutine[Any, Any, None]]) -> list[TrunklineError | None]:
    found = await asyncio.gather(*sends, return_exceptions=True)
    for error in found:
        if error is not None and not isinstance(error, TrunklineError):
            raise error
    return [error for error in found if error is None or isinstance(error, TrunklineError)]


def _release(nodes: dict[asyncio.AbstractEventLoop, Node]) -> None:
    """The layer object is gone: close what it held open, where that still can be done."""
    for loop, node in list(nodes.items()):
        if loop.is_running():
            with contextlib.suppress(RuntimeError):  # it ended in this very moment
                loop.call_soon_threadsafe(_close_soon, node)
        else:
            node.abandon()


def _close_soon(node: Node) -> None:
    task = node.loop.create_task(node.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _forked() -> None:
    for layer in _layers:
        layer._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
