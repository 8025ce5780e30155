"""Consumers: one object per connection, whose methods handle the events of the client and of the channel layer.

Rules of this room:

- Framework-free: nothing here imports Django or Django Channels. Any object with the channel-layer interface serves as
  the layer, and without one a consumer still serves its client.
- The handlers of one consumer run one after another, whichever side the event comes from; each side keeps its order.
  The client's events are handled in the server's own task, the layer's in one more; both see the same context variables.
- While a handler runs, at most one further event of each side has been taken.
- An error ends this connection only: it is logged once, here, and goes on to the server.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import CoroutineType
from typing import Any, ClassVar, TypeAlias

from asgiref.sync import async_to_sync, sync_to_async

from .. import opening, tracing
from ..errors import InvalidEvent, UsageError
from ..stats import Origin
from ..typed import Convert
from . import annotated, colour
from .relay import Offer, Relay, ToFrame, Turn, frame_for
from .resume import Resuming

__all__ = [
    "AcceptConnection",
    "AsyncConsumer",
    "DenyConnection",
    "NoHandler",
    "StopConsumer",
    "SyncConsumer",
    "around_sync_handlers",
]

logger = logging.getLogger("trunkline.consumers")

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Makers of context managers; each is entered around every handler of a sync consumer, in the handler's thread.
around_sync_handlers: list[Callable[[], AbstractContextManager[object]]] = []

_NOT_HANDLERS = frozenset(
    {"as_asgi", "base_send", "dispatch", "group_presence", "on_invalid_event", "resumed"}
)


class StopConsumer(Exception):
    """Raised by a handler to end its consumer."""


class AcceptConnection(Exception):
    """Raised by ``connect`` to accept the connection."""


class DenyConnection(Exception):
    """Raised by ``connect`` to refuse the connection."""


class NoHandler(UsageError, ValueError):
    """The event's type names no method of the consumer that may handle events."""


def signals(ours: type[Exception]) -> tuple[type[Exception], ...]:
    """A signal's class, and the one of the same name in Django Channels once somebody has imported it."""
    theirs = getattr(sys.modules.get("channels.exceptions"), ours.__name__, None)
    return (ours, theirs) if isinstance(theirs, type) else (ours,)


class _Consumer:
    """What both kinds of consumer share: the connection's life and the way from an event to its handler."""

    channel_layer_alias = "default"
    #: The layer; looked up by ``channel_layer_alias`` for each connection unless the class brings its own.
    channel_layer: Any = None
    #: The name under which the layer reaches this consumer. Not set without a layer.
    channel_name: str
    scope: Scope

    #: Whether a client that comes back gets what it missed; websockets only.
    resume: ClassVar[bool] = False

    _asynchronous: ClassVar[bool]
    _resuming: Resuming | None = None
    #: Handlers whose annotation names a type, and what makes an object of that type of an event.
    _converters: ClassVar[dict[str, Convert]] = {}
    #: Events of the layer that become the same frame for everyone.
    _relays: ClassVar[dict[str, ToFrame]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept whatever ``as_asgi`` was given; subclasses take what they need.

        Raises:
            TypeError: A server or router called the class itself, as if it were an application.
        """
        if args and isinstance(args[0], dict) and "type" in args[0]:
            name = type(self).__name__
            raise TypeError(f"{name} is a consumer's class, not an application: write {name}.as_asgi()")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_asynchronous"):
            colour.check(cls, cls._asynchronous)
            cls._converters = annotated.converters(cls)

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Application:
        """Make an ASGI application that serves each connection with a consumer of its own."""
        return _Application(cls, initkwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection until either side ends it.

        Order: each side's events as they came; handlers never overlap.
        Cancellation: prompt. The handler at work is cancelled, the channel and its memberships are dropped.

        Raises:
            Exception: Whatever a handler raised, after it was logged.
        """
        self.scope = scope
        self._server_send = send
        self._joined: list[str] = []
        self._handling: str | None = None
        self._client_gone: OSError | None = None
        self._client_receive = receive
        #: A websocket that is accepted, and not closed by this side or known to be gone.
        self._open = False
        self._bind_send()
        try:
            if self.channel_layer is None:
                self.channel_layer = opening.configured_layer(self.channel_layer_alias)
            if self.channel_layer is None:
                await self._serve(receive, Turn())
            else:
                self.channel_name = await self.channel_layer.new_channel()
                if hasattr(self, "layer_gap") and hasattr(self.channel_layer, "watch_gaps"):
                    await self.channel_layer.watch_gaps(self.channel_name)
                await self._serve_both(receive)
        except signals(StopConsumer):
            pass
        except Exception:
            if self._works:  # the worker logs it, with the name of the channel
                raise
            doing = f"handling {self._handling!r}" if self._handling else "waiting for events"
            where = f"{scope.get('type')} {scope.get('path') or scope.get('channel') or ''}".rstrip()
            logger.exception("%s failed while %s (%s)", type(self).__name__, doing, where)
            raise
        finally:
            await self._leave()

    async def _serve_both(self, receive: Receive) -> None:
        turn = Turn()
        take: Receive = functools.partial(self.channel_layer.receive, self.channel_name)
        if self.resume:
            take = self._resuming = Resuming(take)
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        failure: BaseException = StopConsumer()
        try:
            async with asyncio.TaskGroup() as sides:
                if self._relays and hasattr(self.channel_layer, "attach_sink"):
                    sink: Offer = Relay(self, turn, sides).offer
                    if self._resuming is not None:
                        sink = self._resuming.before(sink)
                    await self.channel_layer.attach_sink(self.channel_name, sink)
                sides.create_task(self._serve(take, turn))
                await self._serve(receive, turn)
        except BaseExceptionGroup as group:
            failure = _weightiest(group.exceptions)
        # Raised out here, where its own cause and context stay as they were.
        try:
            if task and task.cancelling() > cancelled:  # an error meanwhile does not undo the cancellation
                raise asyncio.CancelledError from failure
            raise failure
        finally:
            del failure

    async def _serve(self, source: Receive, turn: Turn) -> None:
        origin_of = getattr(self.channel_layer, "origin", None) if self._converters else None
        while True:
            event = await source()
            # Looked at now: taking the turn brings the other side's context variables.
            context = tracing.incoming.get() if tracing.tracer is not None else b""
            origin = origin_of(event) if origin_of is not None else None
            await turn.take(source)
            kind = event.get("type") if type(event) is dict or isinstance(event, MutableMapping) else None
            self._handling = kind
            try:
                relayed = self._relays and isinstance(kind, str) and kind in self._relays
                work = self._relay if relayed else self.dispatch
                if tracing.tracer is None or (source is self._client_receive and not self._works):
                    await work(event)
                else:
                    where = self.scope["channel"] if source is self._client_receive else self.channel_name
                    with tracing.tracer.handling(where, str(self._handling), context):
                        await work(event)
            except OSError as error:
                if error is not self._client_gone:
                    raise
                # The client left while the handler was sending to it: the server reports that next, and
                # the handler of that event must still run.
                logger.info("%s: the client was gone while handling %r", type(self).__name__, self._handling)
            except InvalidEvent as error:
                if error.event is not event:
                    raise
                await self._refuse(error, source, origin)
            self._handling = None
            # Not in a `finally`: after an error this consumer is ending, and must not handle another event.
            turn.give_back()

    async def _relay(self, event: Any) -> None:
        """Send what a relay makes of an event that could not be handed over when it came."""
        frame = frame_for(type(self), self._relays[event["type"]], event)
        if frame is not None and self._open:
            await self._send({"type": "websocket.send", frame[0]: frame[1]})

    async def dispatch(self, message: Event) -> None:
        """Run the handler of one event: the method named by its ``type``, with ``.`` as ``_``.

        Raises:
            NoHandler: The type is missing, private, or names no method.
            InvalidEvent: It is not what the annotation of its handler says.
        """
        raise NotImplementedError

    async def _refuse(self, error: InvalidEvent, source: Receive, origin: Origin | None) -> None:
        """Say who sent what is not what its handler's annotation says, and go on; a worker decides for itself."""
        from_client = source is self._client_receive
        name = self._handling.replace(".", "_") if self._handling else "?"
        whence = f"on channel {self.channel_name}"
        if from_client:
            whence = f"on channel {self.scope.get('channel')}" if self._works else "from the client"
        if origin is not None:
            error.sender, error.group = origin.node, origin.group
            to, by = (
                f" to group {origin.group}" if origin.group else "",
                f" by node {origin.node}" if origin.node else "",
            )
            whence += f", sent{to}{by}," if to or by else ""
        error.args = (
            f"{type(self).__name__}.{name} got an event of type {self._handling!r} {whence} that it does not take: "
            f"{error}",
        )
        if callable(count := getattr(self.channel_layer, "count_invalid", None)):
            count()
        if from_client and self._works:
            raise error
        await self._tell(error)

    @property
    def _works(self) -> bool:
        return self.scope.get("type") == "channel"

    async def _tell(self, error: InvalidEvent) -> None:
        raise NotImplementedError

    def _typed(self, event: Event) -> Any:
        """The event as its handler wants it."""
        convert = self._converters.get(event["type"].replace(".", "_"))
        return event if convert is None else convert(event)

    def _handler(self, event: Event) -> Callable[[Event], Any]:
        kind = event.get("type") if type(event) is dict or isinstance(event, MutableMapping) else None
        if not isinstance(kind, str) or not kind:
            raise NoHandler(
                f"{type(self).__name__} got an event without a type: {_shown(event)}. Add 'type': 'some.event' to it."
            )
        name = kind.replace(".", "_")
        if name.startswith("_") or name in _NOT_HANDLERS:
            raise NoHandler(
                f"{type(self).__name__} got an event of type {kind!r}, which may not name a handler. Rename the type."
            )
        handler = getattr(self, name, None)
        if not callable(handler):
            write = "async def" if self._asynchronous else "def"
            raise NoHandler(
                f"{type(self).__name__} has no handler for type {kind!r}: add `{write} {name}(self, event)` to it."
            )
        return handler  # type: ignore[no-any-return]

    def _wrong_colour(self) -> TypeError:
        kind = self._handling or ""
        name = kind.replace(".", "_")
        tree = self._asynchronous
        return colour.complaint(type(self).__name__, name, tree, tree, f"it handles {kind!r}")

    def _bind_send(self) -> None:
        raise NotImplementedError

    async def _send(self, message: Event) -> None:
        kind = message.get("type")
        if kind == "websocket.close":
            self._open = False
        try:
            await self._server_send(message)
        except OSError as error:  # what an ASGI server raises when the client is gone
            self._client_gone = error
            self._open = False
            raise
        if kind == "websocket.accept":
            self._open = True

    async def _leave(self) -> None:
        """Let the layer forget this channel; another maker's layer is told about the groups at least."""
        name = vars(self).get("channel_name")
        if self.channel_layer is None or name is None:
            return
        try:
            forget = getattr(self.channel_layer, "forget", None)
            if forget is not None:
                await forget(name)
            else:
                for group in self._joined:
                    await self.channel_layer.group_discard(group, name)
        except Exception:
            logger.exception("%s could not leave the channel layer (%s)", type(self).__name__, name)


class _Application:
    """What ``as_asgi`` returns: an object, because frameworks take a function for a view of their own."""

    def __init__(self, consumer: type[_Consumer], initkwargs: dict[str, Any]) -> None:
        self.consumer_class = consumer
        self.consumer_initkwargs = initkwargs
        functools.update_wrapper(self, consumer, updated=())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.consumer_class(**self.consumer_initkwargs)(scope, receive, send)


class AsyncConsumer(_Consumer):
    """A consumer whose handlers are ``async def``."""

    _asynchronous = True
    base_send: Send

    async def dispatch(self, message: Event) -> None:
        handler = self._handler(message)
        result = handler(self._typed(message) if self._converters else message)
        if type(result) is not CoroutineType and not inspect.isawaitable(result):
            raise self._wrong_colour()
        await result

    async def on_invalid_event(self, error: InvalidEvent) -> None:
        """Called with what was sent to a handler and is not what its annotation says. Unless overridden, logs it."""
        logger.error("%s", error)

    async def send(self, message: Event) -> None:
        """Send one ASGI event to the client."""
        await self.base_send(message)

    async def _tell(self, error: InvalidEvent) -> None:
        await self.on_invalid_event(error)

    def _bind_send(self) -> None:
        self.base_send = self._send


class SyncConsumer(_Consumer):
    """A consumer whose handlers are ``def``; they run in asgiref's thread for thread-sensitive code."""

    _asynchronous = False
    base_send: Callable[[Event], None]

    async def dispatch(self, message: Event) -> None:
        handler = self._handler(message)
        await self._in_thread(handler, self._typed(message) if self._converters else message)

    def on_invalid_event(self, error: InvalidEvent) -> None:
        """Called with what was sent to a handler and is not what its annotation says. Unless overridden, logs it."""
        logger.error("%s", error)

    def send(self, message: Event) -> None:
        """Send one ASGI event to the client."""
        self.base_send(message)

    async def _tell(self, error: InvalidEvent) -> None:
        await self._in_thread(self.on_invalid_event, error)

    def _bind_send(self) -> None:
        self.base_send = async_to_sync(self._send)

    @sync_to_async
    def _in_thread(self, handler: Callable[[Any], Any], message: Any) -> None:
        with ExitStack() as around:
            for make in around_sync_handlers:
                around.enter_context(make())
            result = handler(message)
        if inspect.iscoroutine(result):
            result.close()
            raise self._wrong_colour()


def _weightiest(failures: Sequence[BaseException]) -> BaseException:
    """The first real error; a farewell only where there is no error."""
    stopped = signals(StopConsumer)
    return next((failure for failure in failures if not isinstance(failure, stopped)), failures[0])


def _shown(event: Any) -> str:
    text = repr(event)
    return text if len(text) <= 120 else f"{text[:120]}…"
