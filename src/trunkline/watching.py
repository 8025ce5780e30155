"""The ground floor of a node: what it is made of, what it counts, how it does, and its tasks in the background."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from . import names
from .envelope import FrameError, Seal
from .history import Event, History
from .inspection import fill, label
from .logs import RateLimited, logger
from .requests import Requests
from .settings import Settings
from .stats import Health, Report, Stats, judge
from .switchboard import Mailbox, Switchboard
from .transport import Server, Transport

__all__ = ["Watching"]


class Watching(ABC):
    """Knows itself."""

    def __init__(self, settings: Settings, seal: Seal, transport: Transport) -> None:
        self.name = names.new_node()
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.stats = Stats()
        self._settings = settings
        self._seal = seal.of(self.name)
        self._transport = transport
        self._now = transport.now
        self._board = Switchboard(settings)
        self._log = RateLimited()
        self._subscribed: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._requests = Requests(
            self.name,
            self._seal,
            settings,
            transport,
            spawn=self._spawn,
            change=self._asked,
            flush=self._clear,
            report=lambda: self.report().asdict(),
        )
        self._history = History(settings, self._seal, transport, self._fan_out_event, self._lost, self._spawn)
        self._opened = time.time()
        #: How it did when it was last looked at, and since when.
        self._state = "ok", self._opened

    # What the floors above do about it

    @abstractmethod
    def _asked(self, op: str, group: str, channel: str, **more: Any) -> Coroutine[Any, Any, None]:
        """Do what another node asks."""

    @abstractmethod
    def _clear(self) -> None:
        """Forget every message and membership."""

    @abstractmethod
    def _fan_out_event(self, group: str, event: Event) -> None:
        """Give a remembered event to the members."""

    @abstractmethod
    def _lost(self, topic: str | None, reason: str) -> None:
        """Tell that messages were lost."""

    # Counts

    def _report(self, box: Mailbox) -> None:
        self._transport.taken(box.channel, box.released)
        box.released = 0

    def _refused(self, channel: str) -> None:
        self.stats.refused += 1
        self.stats.pattern(label(channel, self._settings)).refused += 1

    def _missed(self, channel: str, group: str) -> None:
        self.stats.missed += 1
        self.stats.pattern(label(channel, self._settings)).missed += 1
        if self._board.waiting >= self._settings.process_capacity:
            text = "%s missed a message to group %s: this process holds %d messages, its process_capacity"
            waiting = self._board.waiting
            key, args = "missed", (channel, group, waiting)
        else:
            text = "%s missed a message to group %s: it holds %d, its capacity; is its consumer slow?"
            waiting = self._settings.capacity_of(channel)
            key, args = f"missed {channel}", (channel, group, waiting)
        self._log.warning(key, text, *args, event="missed", channel=channel, group=group, waiting=waiting)

    def _gone(self, channel: str) -> None:
        self.stats.gone += 1
        logger.debug("%s is gone with its process; the message was dropped", channel)

    def _unreadable(self, error: FrameError) -> None:
        self.stats.unreadable += 1
        self._log.warning(
            "unreadable", "a frame was dropped: %s", error, event="unreadable", reason=str(error)
        )

    def counted(self) -> Stats:
        """The counters as they stand."""
        self.stats.expired += self._board.expired
        self.stats.replaced += self._board.replaced
        self._board.expired = self._board.replaced = 0
        return self.stats

    # Seeing inside

    def snapshot(self) -> Stats:
        """The counters, and what there is at this moment."""
        stats = self.counted().copy()
        fill(stats, self._board, self._settings, self._now() if self._board.boxes else 0.0)
        stats.subscriptions = len(self._subscribed)
        stats.outbox = sum(server.outbox for server in self.servers())
        return stats

    def servers(self) -> list[Server]:
        """What the transport is linked to."""
        return self._transport.servers()

    def health(self) -> Health:
        """Whether this node works."""
        full = ""
        if self._board.waiting >= self._settings.process_capacity:
            full = f"{self._board.waiting} messages wait in this process, its process_capacity"
        health = judge(self.servers(), full)
        if health.state != self._state[0]:
            silent = max((server.silent or 0.0 for server in health.servers), default=0.0)
            self._state = health.state, time.time() - (silent if health.state == "down" else 0.0)
        health.since = self._state[1]
        return health

    def report(self) -> Report:
        """What it tells whoever asks all nodes."""
        program = os.path.basename(sys.argv[0]) if sys.argv else ""
        host = socket.gethostname()
        return Report(self.name, host, os.getpid(), program, self._opened, self.snapshot(), self.health())

    async def survey(self, seconds: float) -> list[Report]:
        """See ``ChannelLayer.survey``."""
        found = []
        for content in await self._requests.ask_all(seconds):
            try:
                found.append(Report.of(content))
            except (KeyError, TypeError, ValueError) as error:
                text = "a report of another node cannot be read: %r"
                self._log.warning("report", text, error, event="report", reason=repr(error))
        return found

    # In the background

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("background", "%s", error, event="background", reason=str(error))
