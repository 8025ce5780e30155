"""Relays: events of the layer that become the same frame for everyone.

The frame is made once per process and message, and handed to each socket right where the message arrives: no task is
woken, no mailbox filled. That is done only where it changes nothing else: the consumer is waiting for its next event
and nothing waits before this one. Otherwise the event goes the ordinary road, through the mailbox and in its turn.

A socket whose ``send`` cannot finish at once keeps the turn until it has: one task sees to that, and what comes
meanwhile waits in the mailbox, up to its capacity.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import sys
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from ..logs import RateLimited

__all__ = ["Frame", "Offer", "Relay", "ToFrame", "Turn", "checked", "frame_for"]

logger = logging.getLogger("trunkline.consumers")
_log = RateLimited(logger=logger)

#: Makes what a frame holds of an event: text, bytes, or a dict or list that goes out as JSON.
ToFrame: TypeAlias = Callable[[dict[str, Any]], str | bytes | dict[str, Any] | list[Any]]
#: Takes an event at once, or declines it: see ``ChannelLayer.attach_sink``.
Offer: TypeAlias = Callable[[dict[str, Any], dict[object, Any]], bool]
#: A frame as ASGI has it: under "text" or "bytes".
Frame: TypeAlias = tuple[str, str | bytes]
#: What handing over an event here comes to, where it is no frame.
_ORDINARY: Final = ("", "ordinary")
_FAILED: Final = ("", "failed")


def checked(cls: type, relay: object) -> dict[str, ToFrame]:
    """The relays of a consumer class.

    Raises:
        TypeError: It names the entry that is wrong, and the fix.
    """
    who = f"{cls.__name__}.relay"
    if not isinstance(relay, Mapping):
        raise TypeError(
            f'{who} says which events become the same frame for everyone: write relay = {{"some.event": function}}, '
            f"not {type(relay).__name__}"
        )
    for kind, function in relay.items():
        if not isinstance(kind, str) or not kind or kind.startswith(("_", ".")):
            raise TypeError(f"{who}: {kind!r} is no type of an event that a consumer may get")
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{who}[{kind!r}] is a plain function that takes the event and returns a str, bytes, dict or list"
            )
        if hasattr(cls, name := kind.replace(".", "_")):
            raise TypeError(
                f"{cls.__name__} has a handler {name} and a relay for {kind!r}: an event goes one way, remove one of them"
            )
    return dict(relay)


def _frame_of(content: object) -> Frame:
    """The frame that holds what a relay returned.

    Raises:
        TypeError: It is none of str, bytes, dict and list, or JSON has no word for what is in it.
    """
    if isinstance(content, str):
        return "text", content
    if isinstance(content, bytes):
        return "bytes", content
    if isinstance(content, (dict, list)):
        return "text", json.dumps(content)
    raise TypeError(f"a relay returns a str, bytes, dict or list, not {type(content).__name__}")


class Turn:
    """Whose turn it is to run a handler, and the context variables as the last handler left them.

    Those who wait for it get it in the order in which they came.
    """

    def __init__(self) -> None:
        self.held = False
        self.context = contextvars.copy_context()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last: object = None

    async def take(self, source: object) -> None:
        if self.held:
            await self._wait()
        self.held = True
        if source is not self._last:
            # The two sides are two tasks, and tasks do not share context variables: bring what a handler of the
            # other side has set (the language, a log context).
            self._last = source
            for variable, value in self.context.items():
                if variable.get(self) is not value:
                    variable.set(value)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:  # it was handed over already
                self.release()
            raise

    def give_back(self) -> None:
        self.context = contextvars.copy_context()
        self.release()

    def release(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.held = False


class Connection(Protocol):
    """What a relay needs of its consumer."""

    _relays: ClassVar[dict[str, ToFrame]]
    #: Whether the socket is accepted and not closed.
    _open: bool
    _handling: str | None
    _server_send: Callable[[Any], Awaitable[None]]


class Relay:
    """The relays of one connection."""

    def __init__(self, consumer: Connection, turn: Turn, sides: asyncio.TaskGroup) -> None:
        self._consumer = consumer
        self._kind = type(consumer)
        self._turn = turn
        self._sides = sides

    def offer(self, message: dict[str, Any], made: dict[object, Any]) -> bool:
        """Hand a message over at once, if it is for a relay and nothing is before it; False: it goes the ordinary road.

        ``made`` is shared by all sockets of the process that get this message. Nothing is raised.
        """
        turn = self._turn
        if turn.held:
            return False
        frame = made.get(self._kind)
        if frame is None:
            frame = made[self._kind] = self._frame(message)
        if frame is _ORDINARY:
            return False
        consumer = self._consumer
        if frame is _FAILED or not consumer._open:
            return True
        turn.held = True
        try:
            rest = start(consumer._server_send({"type": "websocket.send", frame[0]: frame[1]}), turn.context)
        except (OSError, asyncio.CancelledError):  # the client is gone: the server reports that next
            consumer._open = False
            logger.info("%s: the client was gone when it was sent to", self._kind.__name__)
        except Exception as error:
            consumer._handling = message["type"]
            self._spawn(_raise(error))
            return True  # this consumer is ending, and must not handle another event
        else:
            if rest is not None:
                consumer._handling = message["type"]
                self._spawn(self._finish(rest))
                return True
        turn.release()
        return True

    def _frame(self, message: dict[str, Any]) -> Frame:
        kind = message.get("type")
        function = self._consumer._relays.get(kind) if isinstance(kind, str) else None
        if function is None:
            return _ORDINARY
        return frame_for(self._kind, function, message) or _FAILED

    async def _finish(self, rest: Awaitable[None]) -> None:
        consumer = self._consumer
        try:
            await rest
        except OSError:
            consumer._open = False
            logger.info("%s: the client was gone while it was sent to", self._kind.__name__)
        consumer._handling = None
        self._turn.release()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._sides.create_task(work)
        except RuntimeError:  # the connection is ending already
            work.close()


def frame_for(consumer: type, function: ToFrame, message: dict[str, Any]) -> Frame | None:
    """The frame for a message; None when its function failed, which is logged and costs nobody the connection."""
    try:
        return _frame_of(function(message))
    except Exception as error:
        who, kind = consumer.__name__, message["type"]
        _log.warning(
            f"{who} {kind}",
            "%s.relay[%r] failed, and nobody here gets this event: %s",
            who,
            kind,
            repr(error),
            event="relay",
            reason=repr(error),
            error=error,
        )
        return None


async def _raise(error: Exception) -> None:
    raise error


# Running a coroutine without a task of its own, as far as it goes without waiting


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


def start(work: Awaitable[None], context: contextvars.Context) -> Awaitable[None] | None:
    """Run it in the context until it waits for something; returns what is left of it, None when it is done."""
    coroutine = work if isinstance(work, types.CoroutineType) else _await(work)
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True, context=context)
        if not task.done():
            return task
        task.result()
        return None
    try:
        waiting = context.run(coroutine.send, None)
    except StopIteration:
        return None
    return _rest(coroutine, waiting)


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, None], waiting: object) -> Generator[Any, Any, None]:
    """What is left of a coroutine that has been run until it was ``waiting``."""
    while True:
        failure: BaseException | None = None
        value: Any = None
        try:
            value = yield waiting
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            failure = error
        try:
            waiting = coroutine.send(value) if failure is None else coroutine.throw(failure)
        except StopIteration:
            return
