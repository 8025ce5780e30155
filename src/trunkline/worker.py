"""The worker: runs an application for the messages of fixed channels, as a server runs it for its clients.

Rules of this room:

- A message is taken when the application asks for it, never ahead of time.
- A message counts as handled when the application asks for the next one, or ends. What follows from that is told to
  ``redelivery``.
- One handler's error is logged, and costs neither the next message nor another channel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

from . import names
from .consumers.base import Application, Event
from .errors import ConfigurationError, LayerClosed, UsageError
from .redelivery import AtLeastOnce, AtMostOnce, Terms

__all__ = ["Worker", "run_processes"]

logger = logging.getLogger("trunkline.worker")

_FIRST_PAUSE = 0.1  # seconds before a new try after a failure without progress; doubled each time
_LONGEST_PAUSE = 5.0
_LAST_WORDS = 2.0  # seconds for what was cancelled to clean up
_SETTLED = 10.0  # seconds after which a process counts as well started
_SUPERVISOR = (
    "TRUNKLINE_SUPERVISOR"  # the environment variable that tells a worker process who looks after it
)


class Worker:
    """Listens on channels of a layer and runs an application for what arrives.

    Args:
        application: An ASGI application; it gets ``{"type": "channel", "channel": name}`` as its scope.
        channel_layer: Any object with the channel-layer interface.
        channels: The channels to listen on.
        grace: Seconds that a handler at work may take to finish once the worker is to stop.
        concurrency: How many messages of one channel are handled at the same time; a dict says it for each channel.
        ack: When a message is done: ``"before"`` it is handled, so it is handled at most once; or ``"after"``, so it comes
            back when its worker dies or its handler fails, and is handled at least once. The other arguments are for that.
        lease: Seconds after which the message of a worker that died comes back. A handler may take longer.
        retries: How often a message is tried again.
        backoff: Seconds before the second try; doubled for each further one.
        dead_letter: The channel that gets what could not be handled, as ``{"type": "dead.letter", "channel", "message",
            "tries", "error"}``. None: it is logged and dropped.

    Raises:
        ConfigurationError: An argument is wrong, or the layer cannot do it.
    """

    def __init__(
        self,
        application: Application,
        channel_layer: Any,
        channels: Iterable[str],
        grace: float = 10.0,
        concurrency: int | Mapping[str, int] = 1,
        *,
        ack: Literal["before", "after"] = "before",
        lease: float | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        dead_letter: str | None = None,
    ) -> None:
        if channel_layer is None:
            raise ConfigurationError(
                "a worker needs a channel layer, and got None: "
                "call trunkline.configure({'default': ...}) first, or set CHANNEL_LAYERS in Django"
            )
        if isinstance(channels, str):
            raise TypeError(f"channels is a list of names: write [{channels!r}]")
        wanted = list(dict.fromkeys(names.channel(name).name for name in channels))
        if not wanted:
            raise ConfigurationError("a worker needs at least one channel to listen on")
        if grace < 0:
            raise ConfigurationError(f"grace is a number of seconds, 0 or more, not {grace!r}")
        each = dict.fromkeys(wanted, 1)
        each |= dict(concurrency) if isinstance(concurrency, Mapping) else dict.fromkeys(wanted, concurrency)
        if unknown := [name for name in each if name not in wanted]:
            raise ConfigurationError(
                f"concurrency names {unknown[0]!r}, a channel that this worker does not have"
            )
        for count in each.values():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ConfigurationError(f"concurrency is 1 or more, not {count!r}")
        given = {"lease": lease, "retries": retries, "backoff": backoff, "dead_letter": dead_letter}
        options = {key: value for key, value in given.items() if value is not None}
        terms = _terms(ack, options, channel_layer, wanted)
        self._grace = grace
        self._stop = asyncio.Event()
        self._listeners = [
            _Listener(
                application,
                name,
                AtMostOnce(channel_layer, name) if terms is None else AtLeastOnce(channel_layer, name, terms),
            )
            for name in wanted
            for _ in range(each[name])
        ]

    def stop(self) -> None:
        """Take no further message; ``run`` returns when the handlers at work have finished, or ``grace`` is over.

        To be called in the event loop of ``run``.
        """
        for listener in self._listeners:
            listener.stop()
        self._stop.set()

    async def run(self) -> None:
        """Work until ``stop`` is called or, in the main thread, SIGTERM or SIGINT comes.

        Delivery: at most once; one message at a time for each channel and unit of concurrency.
        Cancellation: prompt, without grace; what waits in the channels stays there.

        Raises:
            LayerClosed: The channel layer was closed.
        """
        tasks = [listener.start() for listener in self._listeners]
        stopped = asyncio.create_task(self._stop.wait())
        try:
            with _on_signals(self.stop), _while_supervised(self.stop):
                await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
                self.stop()
                await asyncio.wait(tasks, timeout=self._grace)
                await self._cancel_late(tasks)
        finally:
            for task in [stopped, *tasks]:
                task.cancel()
            await asyncio.wait([stopped, *tasks], timeout=_LAST_WORDS)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _cancel_late(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        late = []
        for listener, task in zip(self._listeners, tasks, strict=True):
            if not task.done():
                logger.error(
                    "the handler of %r on channel %r did not finish within %s s and is cancelled",
                    listener.job,
                    listener.channel,
                    self._grace,
                )
                task.cancel()
                late.append(task)
        if late:
            _, stuck = await asyncio.wait(late, timeout=_LAST_WORDS)
            for task in stuck:
                logger.error("%s does not end; leaving it behind", task.get_name())


def _terms(ack: str, options: dict[str, Any], layer: Any, channels: list[str]) -> Terms | None:
    """The terms of redelivery; None: at most once."""
    if ack not in ("before", "after"):
        raise ConfigurationError(f'ack is "before" or "after", not {ack!r}')
    if ack == "before":
        if options:
            raise ConfigurationError(
                f'{next(iter(options))} needs ack="after": else a message is done before it is handled'
            )
        return None
    if "leases" not in getattr(layer, "extensions", ()):
        raise ConfigurationError(
            f'ack="after" needs a layer whose extensions have "leases", and {type(layer).__name__} has none: '
            "use a layer of trunkline.layers"
        )
    dead_letter = options.get("dead_letter")
    if dead_letter is not None and names.channel(dead_letter).name in channels:
        raise ConfigurationError(
            f"dead_letter is {dead_letter!r}, a channel of this same worker: give it another"
        )
    return Terms(**options)


class _Listener:
    """One channel, and one instance of the application at a time for it."""

    def __init__(self, application: Application, channel: str, messages: AtMostOnce) -> None:
        self._application = application
        self._messages = messages
        self.channel = channel
        #: The type of the message in hand; None while waiting for one.
        self.job: str | None = None
        self._received = False
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._listen(), name=f"worker on channel {self.channel!r}")
        return self._task

    def stop(self) -> None:
        """End at once if no message is in hand, otherwise when the application asks for the next."""
        self._stopping = True
        if self.job is None:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        try:
            await self._go_on()
        finally:
            await self._messages.let_go()

    async def _go_on(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping:
            self._received = False
            await self._run_instance()
            self.job = None
            if self._received:
                pause = _FIRST_PAUSE
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_instance(self) -> None:
        scope = {"type": "channel", "channel": self.channel}
        try:
            await self._application(scope, self._receive, self._send)
        except LayerClosed:
            raise
        except asyncio.CancelledError:
            if self._task is not None and self._task.cancelling():
                raise
            logger.exception("the handler of %r on channel %r cancelled itself", self.job, self.channel)
            await self._messages.failed(RuntimeError("it cancelled itself"))
        except Exception as error:
            if self.job is None:
                logger.exception(
                    "the application for channel %r failed while no message was in hand", self.channel
                )
            else:
                logger.exception("the handler of %r on channel %r failed", self.job, self.channel)
                await self._messages.failed(error)
        else:
            await self._messages.handled()
            if not self._received:
                logger.warning("the application for channel %r ended before it took a message", self.channel)

    async def _receive(self) -> Event:
        await self._messages.handled()
        self.job = None
        if self._stopping:
            self._cancel()
            await asyncio.get_running_loop().create_future()  # until that cancellation arrives
        while True:
            message = await self._messages.take()
            kind = message.get("type") if isinstance(message, Mapping) else None
            if isinstance(kind, str) and kind:
                self._received = True
                self.job = kind
                return message  # type: ignore[no-any-return]
            logger.error("skipped a message without a type on channel %r: %.200r", self.channel, message)
            await self._messages.failed(UsageError("it has no type"))

    async def _send(self, event: Event) -> NoReturn:
        raise UsageError(
            f"a worker has no client, so the consumer on channel {self.channel!r} cannot send {event.get('type')!r}: "
            "use self.channel_layer.send(...) or group_send(...) to reach others"
        )


async def run_processes(command: Sequence[str], count: int, grace: float = 10.0) -> None:
    """Keep ``count`` processes of one command running until SIGTERM or SIGINT comes.

    One that dies is replaced, after a pause that grows while they die young. To end, each gets SIGTERM, has ``grace``
    seconds and a little more to finish, and is then killed, by its PID. Should this process itself be killed, its
    workers end by themselves.

    Raises:
        OSError: The command cannot be started.
    """
    if count < 1:
        raise ConfigurationError(f"the number of processes is 1 or more, not {count!r}")
    stop = asyncio.Event()
    with _on_signals(stop.set):
        try:
            async with asyncio.TaskGroup() as processes:
                for _ in range(count):
                    processes.create_task(_keep_running(command, stop, grace))
        except* OSError as group:
            raise group.exceptions[0]


async def _keep_running(command: Sequence[str], stop: asyncio.Event, grace: float) -> None:
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE
    while not stop.is_set():
        began = loop.time()
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, _SUPERVISOR: str(os.getpid())}
        )
        logger.info("worker process %d started", process.pid)
        ended = asyncio.create_task(process.wait())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(process, ended, grace)
            stopped.cancel()
        if stop.is_set():
            return
        pause = _FIRST_PAUSE if loop.time() - began > _SETTLED else min(2 * pause, _LONGEST_PAUSE)
        logger.error(
            "worker process %d died with status %s, another starts in %.1f s",
            process.pid,
            process.returncode,
            pause,
        )
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped], timeout=pause)
        stopped.cancel()


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int], grace: float) -> None:
    if process.returncode is None:
        process.terminate()
        await asyncio.wait([ended], timeout=grace + _LAST_WORDS + 1)
    if process.returncode is None:
        logger.error("worker process %d did not end within its grace and is killed", process.pid)
        process.kill()
    await ended


@contextmanager
def _while_supervised(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` once the supervisor that started this process is gone: nobody would ever end it."""
    parent = os.getppid()
    if os.environ.get(_SUPERVISOR) != str(parent):
        yield
        return

    async def watch() -> None:
        while os.getppid() == parent:  # noqa: ASYNC110 the kernel tells a parent only, not its children
            await asyncio.sleep(1.0)
        logger.warning("the supervisor, process %d, is gone: ending", parent)
        stop()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


@contextmanager
def _on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and SIGINT; only the main thread may ask for that, any other goes without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in wanted]
    for number in wanted:
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number, handler in zip(wanted, before, strict=True):
            try:
                loop.remove_signal_handler(number)
            except NotImplementedError:
                pass
            signal.signal(number, handler)
