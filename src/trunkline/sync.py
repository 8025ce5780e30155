"""The bridge for code that runs in another loop, or in none: threads, WSGI views, task queues, scripts.

It is never a second implementation: each call runs the layer's own coroutine in the loop where its node lives. Code
without a loop of its own shares one background thread per process, started on first use and again after a fork.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import names
from .envelope import Message, decode, encode
from .errors import LayerClosed, TrunklineError
from .presence import Present, PresentCount
from .stats import Report
from .switchboard import Sink
from .typed import MessageLike

if TYPE_CHECKING:
    from .layer import ChannelLayer

__all__ = ["Elsewhere", "SyncLayer", "background_loop"]

T = TypeVar("T")
#: Undoes what was done for somebody who is gone.
GiveBack = Callable[[T], Coroutine[Any, Any, None]]
_TRANSACTIONS = "trunkline.django.transactions"


class _Call(Generic[T]):
    """One call of a thread, on its way into the background loop and back."""

    __slots__ = ("_context", "_give_back", "_loop", "_task", "_work", "answered", "error", "result")

    result: T

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[], Coroutine[Any, Any, T]],
        give_back: GiveBack[T] | None,
    ) -> None:
        self._loop = loop
        self._work = work
        self._give_back = give_back
        #: The work sees the context of its caller: a trace goes on in it.
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        #: Locked until the work is done. It is what the thread waits on.
        self.answered = threading.Lock()
        self.answered.acquire()

    def start(self) -> None:
        self._task = self._loop.create_task(self._run(), context=self._context)

    async def _run(self) -> None:
        try:
            self.result = await self._work()
        except asyncio.CancelledError:
            self.error = LayerClosed("the layer was closed while the call was waiting")
        except BaseException as error:
            self.error = error
        self.answered.release()

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if self._task is None:
            return  # interrupted before it was to start
        if not self._task.done():
            self._task.cancel()
        elif self._give_back is not None and self.error is None:
            self._task = self._loop.create_task(self._give_back(self.result))


class _Background:
    """This process's background thread: a loop, and the calls of other threads on their way into it.

    Calls that come while it is awake share one waking. A call costs a lock and a task, no future of either kind.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        #: What the threads want of it, in their order.
        self._wanted: deque[Callable[[], None]] = deque()
        #: It was told to look there, and has not begun to.
        self._told = False
        threading.Thread(target=self._run, name="trunkline", daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], give_back: GiveBack[T] | None = None) -> T:
        """Do the work in the loop, and wait for what it returns.

        Where a signal's handler raises, as that of Ctrl-C does, the work is cancelled; a result that came in this very
        moment is given back.
        """
        call = _Call(self.loop, work, give_back)
        try:
            self._wanted.append(call.start)
            if not self._told:
                self._told = True
                self.loop.call_soon_threadsafe(self._look)
            call.answered.acquire()
        except BaseException:
            self._wanted.append(call.abandon)
            self.loop.call_soon_threadsafe(
                self._look
            )  # whatever it was told: that too may have been interrupted
            raise
        # No Python function is called from here on, so that no signal's handler runs while the answer is in nobody's hand.
        error, call.error = call.error, None
        if error is None:
            return call.result
        try:
            raise error
        finally:
            del error  # it knows this frame

    def _look(self) -> None:
        self._told = False  # first: who appends from here on tells it again
        while self._wanted:
            self._wanted.popleft()()


_lock = threading.Lock()
_background: _Background | None = None
_orphans: list[_Background] = []


def _running() -> _Background:
    global _background
    if _background is None:
        with _lock:
            if _background is None:
                _background = _Background()
    return _background


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process's background thread."""
    return _running().loop


def _stop() -> None:
    """At exit: let the nodes of the background loop leave properly, but not for long."""
    if _background is not None and (loop := _background.loop).is_running():
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(2)


def _forked() -> None:
    global _background, _lock
    # The thread did not come along, and closing its loop here would unregister the descriptors of the parent's.
    if _background is not None:
        _orphans.append(_background)
    _lock = threading.Lock()
    _background = None


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Elsewhere:
    """The layer's node in another loop of this process, for callers in this loop."""

    def __init__(self, layer: ChannelLayer, home: asyncio.AbstractEventLoop) -> None:
        self._layer = layer
        self._home = home

    async def _hop(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._home))

    async def send(self, channel: str, message: MessageLike, id: str | None = None) -> None:
        await self._hop(self._layer.send(channel, message, id=id))

    async def send_later(
        self, channel: str, message: MessageLike, delay: float, id: str | None = None
    ) -> None:
        await self._hop(self._layer.send(channel, message, delay=delay, id=id))

    async def new_channel(self, prefix: str) -> str:
        return await self._hop(self._layer.new_channel(prefix))

    async def forget(self, channel: str) -> None:
        await self._hop(self._layer.forget(channel))

    async def watch_gaps(self, channel: str) -> None:
        await self._hop(self._layer.watch_gaps(channel))

    async def attach_sink(self, channel: str, sink: Sink) -> None:
        """Nothing: a sink runs in its caller's loop, and messages arrive in the other."""

    async def group_add(
        self, group: str, channel: str, presence: dict[str, Any] | None = None, **more: Any
    ) -> None:
        await self._hop(self._layer.group_add(group, channel, presence=presence, **more))

    async def group_discard(self, group: str, channel: str) -> None:
        await self._hop(self._layer.group_discard(group, channel))

    async def group_send(
        self,
        group: str,
        message: MessageLike,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> None:
        await self._hop(self._layer.group_send(group, message, exclude=exclude, id=id))

    async def groups_send(
        self,
        groups: Iterable[str],
        message: MessageLike,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> None:
        await self._hop(self._layer.groups_send(groups, message, exclude=exclude, id=id))

    async def group_history(self, group: str, since: str | None, limit: int) -> list[Message]:
        return await self._hop(self._layer.group_history(group, since, limit))

    async def group_position(self, group: str) -> str:
        return await self._hop(self._layer.group_position(group))

    async def presence(self, group: str) -> list[Present]:
        return await self._hop(self._layer.presence(group))

    async def presence_count(self, group: str) -> PresentCount:
        return await self._hop(self._layer.presence_count(group))

    async def flush(self) -> None:
        await self._hop(self._layer.flush())

    async def survey(self, seconds: float) -> list[Report]:
        return await self._hop(self._layer.survey(seconds))

    async def receive(self, channel: str) -> Message:
        """Receive in the other loop. A message taken there for a caller that is gone by then is put back."""
        here = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = here.create_future()
        running: list[asyncio.Task[Message]] = []

        def start() -> None:
            task = self._home.create_task(self._layer.receive(channel))
            running.append(task)
            task.add_done_callback(taken)

        def taken(task: asyncio.Task[Message]) -> None:  # in the other loop
            try:
                here.call_soon_threadsafe(hand_over, task)
            except RuntimeError:
                put_back(task)

        def hand_over(task: asyncio.Task[Message]) -> None:  # in this loop
            if answer.done():
                self._home.call_soon_threadsafe(put_back, task)
            elif task.cancelled():
                answer.set_exception(LayerClosed(f"the layer was closed while waiting on {channel}"))
            elif (error := task.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        def put_back(task: asyncio.Task[Message]) -> None:
            if not task.cancelled() and task.exception() is None:
                self._home.create_task(self._layer._put_back(channel, task.result()))

        def cancel() -> None:
            for task in running:
                task.cancel()

        self._home.call_soon_threadsafe(start)
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._home.call_soon_threadsafe(put_back, running[0])
            self._home.call_soon_threadsafe(cancel)
            raise


class SyncLayer:
    """The layer's methods without ``await``.

    Any number of threads may call them at once. Called in a running event loop's own thread they would block it: that is
    refused.
    """

    def __init__(self, layer: ChannelLayer) -> None:
        self._layer = layer

    def _call(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        _refuse_to_block(method)
        return _running().call(functools.partial(method, *args, **options))

    def _call_after_commit(
        self,
        on_commit: bool | str,
        method: Callable[..., Coroutine[Any, Any, None]],
        name: str,
        message: MessageLike,
        **options: Any,
    ) -> None:
        _refuse_to_block(method)
        settings = self._layer._settings
        # What is sent is what it was now, whatever its owner does with it until then.
        body = encode(message, settings.max_message_size, settings.codec)
        using = on_commit if isinstance(on_commit, str) else None
        after_commit = importlib.import_module(_TRANSACTIONS).after_commit
        after_commit(lambda: self._call(method, name, decode(body, settings.codec), **options), using)

    def send(
        self,
        channel: str,
        message: MessageLike,
        *,
        delay: float = 0.0,
        id: str | None = None,
        on_commit: bool | str = False,
    ) -> None:
        """See ``ChannelLayer.send``.

        Args:
            on_commit: Send it only if, and when, the transaction of Django that runs in this thread is committed; at once
                where none does. True means the default database, a str names another. A wrong name or message is told
                now; what fails later is raised where the transaction ends, after its commit.
        """
        if on_commit is False:
            self._call(self._layer.send, channel, message, delay=delay, id=id)
        else:
            names.channel(channel)
            self._call_after_commit(on_commit, self._layer.send, channel, message, delay=delay, id=id)

    def send_many(self, messages: Iterable[tuple[str, MessageLike]]) -> list[TrunklineError | None]:
        """See ``ChannelLayer.send_many``."""
        return self._call(self._layer.send_many, messages)

    def receive(self, channel: str, timeout: float | None = None) -> Message:
        """See ``ChannelLayer.receive``.

        Cancellation: safe. Where a signal's handler raises, as that of Ctrl-C does, nothing is taken; what came in this
            very moment is given back, on a normal channel at its end.

        Raises:
            TimeoutError: Nothing came within ``timeout`` seconds; nothing was taken.
        """
        layer = self._layer
        _refuse_to_block(layer.receive)
        receive = functools.partial(layer.receive, channel)
        work = receive if timeout is None else functools.partial(_within, timeout, receive)
        return _running().call(work, functools.partial(layer._put_back, channel))

    def new_channel(self, prefix: str = "specific") -> str:
        """See ``ChannelLayer.new_channel``."""
        return self._call(self._layer.new_channel, prefix)

    def forget(self, channel: str) -> None:
        """See ``ChannelLayer.forget``."""
        self._call(self._layer.forget, channel)

    def group_add(
        self,
        group: str,
        channel: str,
        *,
        presence: dict[str, Any] | None = None,
        user: str | None = None,
        announce: bool = False,
    ) -> None:
        """See ``ChannelLayer.group_add``."""
        self._call(self._layer.group_add, group, channel, presence=presence, user=user, announce=announce)

    def group_discard(self, group: str, channel: str) -> None:
        """See ``ChannelLayer.group_discard``."""
        self._call(self._layer.group_discard, group, channel)

    def group_send(
        self,
        group: str,
        message: MessageLike,
        *,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
        on_commit: bool | str = False,
    ) -> None:
        """See ``ChannelLayer.group_send``; ``on_commit`` is that of ``send``."""
        if on_commit is False:
            self._call(self._layer.group_send, group, message, exclude=exclude, id=id)
        else:
            names.group(group)
            self._call_after_commit(on_commit, self._layer.group_send, group, message, exclude=exclude, id=id)

    def groups_send(
        self,
        groups: Iterable[str],
        message: MessageLike,
        *,
        exclude: str | Iterable[str] | None = None,
        id: str | None = None,
    ) -> None:
        """See ``ChannelLayer.groups_send``."""
        self._call(self._layer.groups_send, groups, message, exclude=exclude, id=id)

    def group_send_many(self, messages: Iterable[tuple[str, MessageLike]]) -> list[TrunklineError | None]:
        """See ``ChannelLayer.group_send_many``."""
        return self._call(self._layer.group_send_many, messages)

    def group_history(self, group: str, since: str | None = None, limit: int = 100) -> list[Message]:
        """See ``ChannelLayer.group_history``."""
        return self._call(self._layer.group_history, group, since, limit)

    def group_position(self, group: str) -> str:
        """See ``ChannelLayer.group_position``."""
        return self._call(self._layer.group_position, group)

    def presence(self, group: str) -> list[Present]:
        """See ``ChannelLayer.presence``."""
        return self._call(self._layer.presence, group)

    def presence_count(self, group: str) -> PresentCount:
        """See ``ChannelLayer.presence_count``."""
        return self._call(self._layer.presence_count, group)

    def flush(self) -> None:
        """See ``ChannelLayer.flush``."""
        self._call(self._layer.flush)

    def survey(self, seconds: float = 0.5) -> list[Report]:
        """See ``ChannelLayer.survey``."""
        return self._call(self._layer.survey, seconds)

    def close(self) -> None:
        """See ``ChannelLayer.close``."""
        self._call(self._layer.close)


def _refuse_to_block(method: Callable[..., Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    name = method.__name__
    raise RuntimeError(
        f"layer.sync.{name}() would block the running event loop; write: await layer.{name}(…)"
    )


async def _within(timeout: float, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async with asyncio.timeout(timeout):
        return await work()
