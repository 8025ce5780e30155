"""The memory transport: nodes of one process, for tests and development.

A *hub* plays the broker. Nodes in different event loops, and so in different threads, may share one: each delivery runs in
the loop of the node it is for.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import urllib.parse
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

from ..errors import ChannelFull, ConfigurationError, LayerClosed, TransportUnavailable
from ..transport import Arrivals, Leased, Record, Renewal, Server, Transport

__all__ = ["MemoryTransport"]


class _Waiting(NamedTuple):
    """A frame in its queue."""

    deadline: float
    frame: bytes
    tries: int


class _PutOff(NamedTuple):
    """A frame that goes to the front of its queue when it is due."""

    due: float
    frame: bytes
    tries: int
    ttl: float


class _Queue:
    """Frames that wait for a taker, and takers that wait for a frame; never both."""

    def __init__(self) -> None:
        self.frames: deque[_Waiting] = deque()
        self.takers: deque[_Taker] = deque()
        self.put_off: dict[str, _PutOff] = {}

    def bring(self, now: float) -> None:
        """Bring what is due to the front, the longest due first."""
        due = [token for token, off in self.put_off.items() if off.due <= now]
        for token in sorted(due, key=lambda token: self.put_off[token].due, reverse=True):
            off = self.put_off.pop(token)
            self.frames.appendleft(_Waiting(off.due + off.ttl, off.frame, off.tries))

    def live(self, now: float) -> int:
        if self.put_off:
            self.bring(now)
        while self.frames and self.frames[0][0] <= now:
            self.frames.popleft()
        return len(self.frames)


class _Taker:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.wake: asyncio.Future[None] = loop.create_future()
        #: When a frame that is put off is due.
        self.timer: asyncio.TimerHandle | None = None

    def call(self) -> bool:
        try:
            self.loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # its loop has ended
            return False
        return True

    def _set(self) -> None:
        if not self.wake.done():
            self.wake.set_result(None)


class _Keeper:
    """What one node keeps beside one topic."""

    def __init__(self) -> None:
        self.until = 0.0
        #: Some of it was reaped, or lost, and its node has not kept it anew; it may have been told.
        self.reaped = self.lost = self.told = False
        self.records: dict[str, Record] = {}


class _Roll:
    """What all nodes keep beside one topic."""

    def __init__(self) -> None:
        self.keepers: dict[str, _Keeper] = {}
        self.tags: Counter[str] = Counter()

    def add(self, record: Record) -> int:
        self.tags[record.tag] += 1
        return self.tags[record.tag]

    def remove(self, record: Record) -> int:
        self.tags[record.tag] -= 1
        left = self.tags[record.tag]
        if not left:
            del self.tags[record.tag]
        return left

    def lapsed(self, node: str, now: float) -> list[_Keeper]:
        keepers = [keeper for name, keeper in self.keepers.items() if name != node]
        return [keeper for keeper in keepers if keeper.until <= now and keeper.records]


class _Hub:
    """What the nodes share. Every access is under the lock; nothing waits while it is held."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.nodes: dict[str, MemoryTransport] = {}
        self.topics: dict[str, dict[str, MemoryTransport]] = {}
        self.queues: dict[str, _Queue] = {}
        self.bindings: dict[str, dict[str, tuple[int, float]]] = {}
        self.depths: dict[str, int] = {}
        self.tokens = itertools.count(1)
        #: What each topic remembers, as (place, end of its time, frame, mark).
        self.histories: dict[str, deque[tuple[int, float, bytes, str]]] = {}
        self.rolls: dict[str, _Roll] = {}

    def append(self, queue: str, frame: bytes, capacity: int, ttl: float, now: float) -> bool:
        waiting = self.queues.setdefault(queue, _Queue())
        if waiting.live(now) >= capacity:
            return False
        waiting.frames.append(_Waiting(now + ttl, frame, 0))
        self.rouse(waiting)
        return True

    def rouse(self, queue: _Queue) -> None:
        while (queue.frames or queue.put_off) and queue.takers:
            if queue.takers[0].call():
                return
            queue.takers.popleft()


_hubs: weakref.WeakValueDictionary[str, _Hub] = weakref.WeakValueDictionary()
_hubs_lock = threading.Lock()


def hub(name: str) -> _Hub:
    """The hub of that name, for as long as somebody uses it."""
    with _hubs_lock:
        return _hubs.setdefault(name, _Hub())


class MemoryTransport(Transport):
    """Carries frames between the nodes of one hub. Different hubs never meet."""

    features: ClassVar[frozenset[str]] = frozenset({"history", "leases", "records"})

    def __init__(self, hub_name: str, *, prefix: str = "asgi") -> None:
        if not isinstance(hub_name, str) or not hub_name:
            raise ConfigurationError(f"hub is a name that several layers may share, not {hub_name!r}")
        self._hub = hub(f"{prefix}/{hub_name}")
        self._node = ""
        self._arrivals: Arrivals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pulls: set[_Taker] = set()
        #: Topics beside which this node keeps something, unless it was flushed.
        self._kept: set[str] = set()

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """``memory://`` is the hub "default"; ``memory://name`` is a hub of its own."""
        return cls(urllib.parse.urlsplit(url).netloc or "default", **options)

    async def open(self, node: str, arrivals: Arrivals) -> None:
        self._node, self._arrivals, self._loop = node, arrivals, asyncio.get_running_loop()
        with self._hub.lock:
            self._hub.nodes[node] = self

    async def close(self) -> None:
        self.abandon()
        for taker in self._pulls:
            taker._set()

    def abandon(self) -> None:
        self._arrivals = None
        hub = self._hub
        with hub.lock:
            hub.nodes.pop(self._node, None)
            for topic in [topic for topic, nodes in hub.topics.items() if self._node in nodes]:
                self._leave(topic)
            marker = f".{self._node}!"
            for channel in [channel for channel in hub.depths if marker in channel]:
                del hub.depths[channel]
            for roll in hub.rolls.values():
                if self._node in roll.keepers:
                    roll.keepers[self._node].until = 0.0

    def servers(self) -> list[Server]:
        return [Server("memory", self._arrivals is not None)]

    now = staticmethod(time.time)

    def _carry(self, target: MemoryTransport, frame: bytes) -> None:
        """Hand a frame to a node: at once in its own loop, else through it."""
        if target._loop is self._loop:
            target._arrive(frame)
        elif target._loop is not None:
            try:
                target._loop.call_soon_threadsafe(target._arrive, frame)
            except RuntimeError:  # its loop has ended without closing the layer
                target.abandon()

    def _arrive(self, frame: bytes) -> None:
        if self._arrivals is not None:
            self._arrivals.deliver(frame)

    def _check_open(self) -> None:
        if self._arrivals is None:
            raise TransportUnavailable("the memory transport is closed")

    async def subscribe(self, topic: str) -> None:
        self._check_open()
        with self._hub.lock:
            self._hub.topics.setdefault(topic, {})[self._node] = self

    async def unsubscribe(self, topic: str) -> None:
        with self._hub.lock:
            self._leave(topic)

    def _leave(self, topic: str) -> None:
        nodes = self._hub.topics.get(topic, {})
        nodes.pop(self._node, None)
        if not nodes:
            self._hub.topics.pop(topic, None)

    async def publish(self, topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        self._check_open()
        hub, now = self._hub, self.now()
        with hub.lock:
            targets = list(hub.topics.get(topic, {}).values())
            full = []
            for queue, (capacity, until) in list(hub.bindings.get(topic, {}).items()):
                if until <= now:
                    del hub.bindings[topic][queue]
                elif not hub.append(queue, frame, capacity, ttl, now):
                    full.append(queue)
            for target in targets:
                self._carry(target, frame)
        return full

    async def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        self._check_open()
        hub = self._hub
        with hub.lock:
            target = hub.nodes.get(node)
            if target is None:
                return False
            if capacity is not None:
                depth = hub.depths.get(channel, 0)
                if depth >= capacity:
                    raise ChannelFull(f"{channel} holds {depth} messages, its capacity")
                hub.depths[channel] = depth + 1
            self._carry(target, frame)
        return True

    def taken(self, channel: str, count: int) -> None:
        with self._hub.lock:
            left = self._hub.depths.get(channel, 0) - count
            if left > 0:
                self._hub.depths[channel] = left
            else:
                self._hub.depths.pop(channel, None)

    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        self._check_open()
        with self._hub.lock:
            if not self._hub.append(queue, frame, capacity, ttl, self.now()):
                raise ChannelFull(f"{queue} holds {capacity} messages, its capacity")

    async def pull(self, queue: str) -> bytes:
        return (await self._take(queue)).frame

    async def _take(self, queue: str) -> _Waiting:
        loop = asyncio.get_running_loop()
        hub = self._hub
        while True:
            if self._arrivals is None:
                raise LayerClosed
            with hub.lock:
                waiting = hub.queues.setdefault(queue, _Queue())
                if waiting.live(self.now()):
                    taken = waiting.frames.popleft()
                    hub.rouse(waiting)
                    return taken
                taker = _Taker(loop)
                if waiting.put_off:
                    pause = min(off.due for off in waiting.put_off.values()) - self.now()
                    taker.timer = loop.call_later(pause, taker._set)
                waiting.takers.append(taker)
                self._pulls.add(taker)
            try:
                await taker.wake
            except BaseException:
                with hub.lock:
                    waiting.takers.remove(taker)
                    hub.rouse(waiting)  # it may have been woken for a frame that it will not take now
                raise
            finally:
                if taker.timer is not None:
                    taker.timer.cancel()
                self._pulls.discard(taker)
            with hub.lock:
                waiting.takers.remove(taker)

    async def lease(self, queue: str, seconds: float, ttl: float) -> Leased:
        taken = await self._take(queue)
        with self._hub.lock:
            token = self._put_off(queue, taken.frame, taken.tries + 1, seconds, ttl)
        return Leased(token, taken.frame, taken.tries + 1)

    def _put_off(self, queue: str, frame: bytes, tries: int, seconds: float, ttl: float) -> str:
        waiting = self._hub.queues.setdefault(queue, _Queue())
        token = str(next(self._hub.tokens))
        waiting.put_off[token] = _PutOff(self.now() + seconds, frame, tries, ttl)
        self._hub.rouse(waiting)
        return token

    async def hold(self, queue: str, token: str, seconds: float) -> bool:
        self._check_open()
        with self._hub.lock:
            waiting = self._hub.queues.get(queue) or _Queue()
            waiting.bring(self.now())
            off = waiting.put_off.get(token)
            if off is None:
                return False
            waiting.put_off[token] = off._replace(due=self.now() + seconds)
            self._hub.rouse(waiting)
        return True

    async def settle(self, queue: str, token: str) -> bool:
        self._check_open()
        with self._hub.lock:
            waiting = self._hub.queues.get(queue) or _Queue()
            waiting.bring(self.now())
            return waiting.put_off.pop(token, None) is not None

    async def push_later(self, queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        self._check_open()
        with self._hub.lock:
            waiting = self._hub.queues.setdefault(queue, _Queue())
            waiting.bring(self.now())
            if len(waiting.put_off) >= capacity:
                raise ChannelFull(f"{queue} holds {capacity} messages that are put off, its capacity")
            self._put_off(queue, frame, 0, delay, ttl)

    async def bind(self, topic: str, queue: str, capacity: int, ttl: float) -> None:
        self._check_open()
        with self._hub.lock:
            self._hub.bindings.setdefault(topic, {})[queue] = capacity, self.now() + ttl

    async def unbind(self, topic: str, queue: str) -> None:
        with self._hub.lock:
            queues = self._hub.bindings.get(topic, {})
            queues.pop(queue, None)
            if not queues:
                self._hub.bindings.pop(topic, None)

    async def flush(self) -> None:
        self._check_open()
        with self._hub.lock:
            self._hub.bindings.clear()
            self._hub.depths.clear()
            self._hub.histories.clear()
            for queue in self._hub.queues.values():
                queue.frames.clear()
                queue.put_off.clear()
            self._hub.rolls.clear()

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        self._check_open()
        now = self.now()
        with self._hub.lock:
            line = self._hub.histories.setdefault(topic, deque())
            place, before = (line[-1][0] + 1, line[-1][3]) if line else (1, "")
            line.append((place, now + seconds, frame, mark))
            while len(line) > size or line[0][1] <= now:
                line.popleft()
        return place, before

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        self._check_open()
        with self._hub.lock:
            line = [(place, frame) for place, _, frame, _ in self._hub.histories.get(topic, ())]
        if first is None:
            return line[-count:]
        return [pair for pair in line if pair[0] >= first][:count]

    # Records

    async def keep_record(self, topic: str, key: str, tag: str, value: bytes, ttl: float) -> int:
        self._check_open()
        with self._hub.lock:
            roll = self._hub.rolls.setdefault(topic, _Roll())
            keeper = roll.keepers.setdefault(self._node, _Keeper())
            keeper.until = self.now() + ttl
            if keeper.told:
                keeper.reaped = keeper.lost = keeper.told = False
            elif not keeper.records and not keeper.reaped:
                keeper.lost = topic in self._kept
            self._kept.add(topic)
            known = keeper.records.get(key)
            record = keeper.records[key] = Record(self._node, key, tag, value)
            return 0 if known else roll.add(record)

    async def drop_record(self, topic: str, key: str) -> int | None:
        self._check_open()
        with self._hub.lock:
            roll = self._hub.rolls.get(topic, _Roll())
            keeper = roll.keepers.get(self._node, _Keeper())
            record = keeper.records.pop(key, None)
            left = None if record is None else roll.remove(record)
            if not keeper.records and not keeper.reaped:
                roll.keepers.pop(self._node, None)
                self._kept.discard(topic)
            if not roll.keepers:
                self._hub.rolls.pop(topic, None)
            return left

    async def renew_records(self, topics: Sequence[str], ttl: float) -> Renewal:
        self._check_open()
        now, news = self.now(), Renewal([], [], [])
        with self._hub.lock:
            for topic in topics:
                roll = self._hub.rolls.get(topic)
                keeper = roll.keepers.get(self._node) if roll is not None else None
                if keeper is not None:
                    keeper.until = now + ttl
                    keeper.told = keeper.reaped or keeper.lost
                if keeper is None or keeper.lost:
                    news.forgotten.append(topic)
                    self._kept.discard(topic)
                elif keeper.reaped:
                    news.reaped.append(topic)
                if roll is not None and roll.lapsed(self._node, now):
                    news.lapsed.append(topic)
        return news

    async def records(self, topic: str) -> list[Record]:
        self._check_open()
        now = self.now()
        with self._hub.lock:
            keepers = self._hub.rolls.get(topic, _Roll()).keepers.items()
            live = [keeper for node, keeper in keepers if keeper.until > now or node == self._node]
            return [record for keeper in live for record in keeper.records.values()]

    async def count_records(self, topic: str) -> tuple[int, int]:
        self._check_open()
        with self._hub.lock:
            roll = self._hub.rolls.get(topic, _Roll())
            records = sum(len(keeper.records) for keeper in roll.keepers.values())
            return records, len(roll.tags) - ("" in roll.tags)

    async def reap_records(self, topic: str) -> list[tuple[Record, int]]:
        self._check_open()
        with self._hub.lock:
            roll = self._hub.rolls.get(topic, _Roll())
            reaped = []
            for keeper in roll.lapsed(self._node, self.now()):
                reaped += [(record, roll.remove(record)) for record in keeper.records.values()]
                keeper.records.clear()
                keeper.reaped, keeper.told = True, False
            for node in [node for node in roll.keepers if node not in self._hub.nodes]:
                if not roll.keepers[node].records:
                    del roll.keepers[node]
            return reaped
