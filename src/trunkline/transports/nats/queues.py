"""Shared queues: one JetStream work queue for all of a prefix, in which every frame that waits has a slot.

A slot is a subject that takes one frame, so a queue of capacity n is n slots: the server itself refuses the frame above
it, however many push at once. Who is refused looks which slots are free. A frame leaves its slot when it is acknowledged,
which is done, and confirmed, before anybody gets it: at most once. What was delivered here and is not asked for any more
goes back.
"""

from __future__ import annotations

import asyncio
import base64
import bisect
import contextlib
import itertools
import logging
import math
import random
import struct
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ...errors import ChannelFull, ConfigurationError, LayerClosed, TransportUnavailable
from .link import Answer, Link
from .wire import unavailable

__all__ = ["Queues", "make_stream", "stamp"]

log = logging.getLogger("trunkline.nats")

_EXPIRES = struct.Struct(">Q")
#: Seconds that a frame waits here for somebody to ask for it, and within which a reader that comes back is a quick one.
_HOLD = 0.01
#: The same for a frame that is acknowledged: it can only go back to the end of the queue, so that waits longer.
_KEEP = 1.0
#: Frames that a quick reader is given ahead, and how many times more are asked for where there are more.
_AHEAD, _DEEP = 8, 4
#: Free slots that are remembered, at most; where a frame goes that is given back after all.
_FOUND, _BEYOND = 1000, 1 << 31
#: Seconds that a request for frames is open at the server.
_OPEN = 10.0
#: Seconds after which the server gives a frame to somebody else whose reader was cut off.
_ACK_WAIT = 6.0
#: Until then an acknowledgement may be repeated: later the frame may be somebody else's.
_ACK_UNTIL = 5.0
_EXISTS, _NO_STREAM = 10058, 10059


class _Slots:
    """What this node knows of the slots of one queue."""

    def __init__(self, root: str, first: int) -> None:
        self.root = root
        self.subject = root.encode()
        self.next = first
        #: Those that were free when somebody looked.
        self.free: deque[int] = deque()
        #: Somebody looks, for all who were refused; how often anybody did.
        self.looking: asyncio.Task[bool] | None = None
        self.looks = 0

    def looked(self, task: asyncio.Task[bool]) -> None:
        """It is known, or will not be: all who wait hear of it."""
        self.looking = None
        if not task.cancelled():
            task.exception()

    def take(self, capacity: int) -> int:
        """The slot to try next."""
        while self.free:
            if (slot := self.free.popleft()) < capacity:
                return slot
        slot = self.next % capacity
        self.next = slot + 1
        return slot


class _Asked(asyncio.Future[Answer]):
    """What somebody hears of at once, not in the next turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Callable[[Answer | None], None]) -> None:
        super().__init__(loop=loop)
        self._heard = heard

    def set_result(self, result: Answer) -> None:
        super().set_result(result)
        self._heard(result)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        self.exception()
        self._heard(None)


class _Reader:
    """What this node reads from one queue."""

    def __init__(self, queue: str, name: str) -> None:
        self.queue = queue
        self.name = name
        self.waiters: deque[asyncio.Future[None]] = deque()
        #: Delivered, not acknowledged, by place: (place, frame, where to acknowledge, until when it may be).
        self.held: list[tuple[int, bytes, bytes, float]] = []
        #: Places of what was given back and may come again: what is behind them waits.
        self.returned: set[int] = set()
        #: Acknowledged: ours.
        self.ready: deque[bytes] = deque()
        self.acking = 0
        self.asked = 0
        self.asked_at = 0.0
        #: The server answers what was asked for at once, be it with nothing.
        self.glance = False
        #: What was asked for last is what was given back.
        self.seeking = False
        #: It had all that was asked for: there is more.
        self.deep = False
        #: It will be looked after in this turn of the loop.
        self.soon = False
        self.returning = 0
        self.quick = 0
        #: When somebody last took a frame, and last went from those that wait: called to take one, or giving up.
        self.took_at = self.left_at = 0.0
        self.exists = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None


class Queues:
    """Push and pull of one node."""

    def __init__(self, link: Link, *, storage: str, replicas: int, expiry: float) -> None:
        self._link = link
        self._subjects = link.subjects
        self._storage, self._replicas, self._expiry = storage, replicas, expiry
        self._slots: dict[str, _Slots] = {}
        self._marks = b"NATS/1.0\r\nNats-Msg-Id: %b" % link.sid.hex().encode()
        self._readers: dict[str, _Reader] = {}
        self._by_name: dict[str, _Reader] = {}
        self._pushed = 0
        self._exists = False
        self._closed = False

    # -- push

    async def ensure(self, ttl: float, *, now: bool = False) -> None:
        """Make the stream unless it is there, for so many seconds.

        Raises:
            ConfigurationError: The server has no JetStream.
        """
        if self._exists:
            return
        name = self._subjects.queues_stream
        config = {
            "name": name, "subjects": [f"{self._subjects.root}.q.>"], "retention": "workqueue",
            "discard": "new", "max_msgs_per_subject": 1, "discard_new_per_subject": True, "max_msgs": -1,
            "max_bytes": -1, "max_age": int((self._expiry + 5) * 1e9), "storage": self._storage,
            "num_replicas": self._replicas, "duplicate_window": int(min(self._expiry, 60) * 1e9), "allow_direct": False,
        }  # fmt: skip
        await make_stream(self._link, config, ttl, now=now)
        self._exists = True

    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        slots = self._slots.get(queue)
        if slots is None:
            slots = self._slots[queue] = _Slots(self._subjects.queue(queue), random.randrange(capacity))
        await self._push(slots, queue, frame, capacity, ttl)

    async def _push(self, slots: _Slots, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        link = self._link
        until = link.loop.time() + ttl
        if not self._exists:
            await self.ensure(ttl)
        body = _EXPIRES.pack(int((link.now() + ttl) * 1000)) + frame
        looks = slots.looks
        slot, mark = 0, b""
        while True:
            if not mark:
                slot = slots.take(capacity)
                self._pushed += 1
                # One that is sent again is known by it, and counts once.
                mark = b"%b%d\r\n\r\n" % (self._marks, self._pushed)
            left = max(until - link.loop.time(), 0.001)
            answer, header = await link.request_op(b"%b.%d" % (slots.subject, slot), body, left, header=mark)
            if not header and b'"error"' not in answer:
                return
            if b"per subject" in answer:
                if not slots.free and not await self._find_room(slots, capacity, looks):
                    raise ChannelFull(f"{queue} holds {capacity} messages, its capacity")
                mark = b""
            elif header:
                self._exists = False  # somebody deleted the stream, or the server forgot it
                await self.ensure(left)
            elif link.loop.time() > until:
                raise unavailable(link.access, f"JetStream: {answer.decode()}", on_its_way=True)
            else:
                await asyncio.sleep(0.1)  # it has no leader yet, or has not done it yet

    async def _find_room(self, slots: _Slots, capacity: int, looks: int) -> bool:
        """Have somebody look for free slots, once for all who were refused.

        Returns:
            False when none was free after so many looks: that is, since the caller came.
        """
        while True:
            if slots.looking is None:
                slots.looks += 1
                slots.looking = self._link.loop.create_task(self._look_for_room(slots, capacity))
                slots.looking.add_done_callback(slots.looked)
            since = slots.looks
            found = await asyncio.shield(slots.looking)
            if found or since > looks:
                return found

    async def _look_for_room(self, slots: _Slots, capacity: int) -> bool:
        for attempt in range(2):
            taken = await self._taken(slots.root)
            if len(taken) < capacity:
                free = (slot for slot in range(capacity) if slot not in taken)
                slots.free = deque(itertools.islice(free, _FOUND))
                slots.free.rotate(random.randrange(_FOUND))  # others look too
                if slots.free:
                    return True
            if attempt or not await self._forget_stale(slots.root):
                break
        return False

    async def _taken(self, root: str) -> set[int]:
        """Slots that hold a frame."""
        taken: set[int] = set()
        while True:
            ask = {"subjects_filter": f"{root}.*", "offset": len(taken)}
            info = await self._link.api(f"STREAM.INFO.{self._subjects.queues_stream}", ask)
            if "error" in info:
                raise unavailable(self._link.access, f"JetStream: {info['error']['description']}")
            page = info["state"].get("subjects") or {}
            taken.update(int(subject.rpartition(".")[2]) for subject in page)
            if not page or len(taken) >= info.get("total", 0):
                return taken

    async def _forget_stale(self, root: str) -> bool:
        """Take out what nobody may read any more."""
        stream, after = self._subjects.queues_stream, 0
        while True:
            ask = {"seq": after + 1, "next_by_subj": f"{root}.*"}
            found = await self._link.api(f"STREAM.MSG.GET.{stream}", ask)
            if "error" in found:
                break
            data = base64.b64decode(found["message"].get("data", ""))
            if len(data) >= _EXPIRES.size and _EXPIRES.unpack_from(data)[0] > self._link.now() * 1000:
                break
            after = found["message"]["seq"]
        if not after:
            return False
        await self._link.api(f"STREAM.PURGE.{stream}", {"filter": f"{root}.*", "seq": after + 1})
        return True

    # -- pull

    async def pull(self, queue: str) -> bytes:
        reader = self._readers.get(queue)
        if reader is None:
            name = self._subjects.queue(queue).rpartition(".")[2]
            reader = self._readers[queue] = self._by_name[name] = _Reader(queue, name)
        while not reader.ready:
            if self._closed:
                raise LayerClosed("the layer was closed while waiting")
            waiter: asyncio.Future[None] = self._link.loop.create_future()
            reader.waiters.append(waiter)
            self._advance(reader)
            try:
                await waiter
            except BaseException:
                if waiter in reader.waiters:
                    reader.waiters.remove(waiter)
                reader.left_at = self._link.loop.time()
                self._advance(reader)
                raise
        frame = reader.ready.popleft()
        now = self._link.loop.time()
        reader.quick = min(reader.quick + 1, _AHEAD) if now - reader.took_at < _HOLD else 0
        reader.took_at = now
        self._advance_soon(reader)
        return frame

    def _advance_soon(self, reader: _Reader) -> None:
        if not reader.soon:
            reader.soon = True
            self._link.loop.call_soon(self._advance, reader)

    def _advance(self, reader: _Reader) -> None:
        """Wake who can be served, acknowledge what somebody waits for, ask for what is missing, or give it back later."""
        reader.soon = False
        self._wake(reader)
        wanted = len(reader.waiters) + reader.quick
        first = min(reader.returned, default=math.inf)
        while reader.held and reader.held[0][0] < first and len(reader.ready) + reader.acking < wanted:
            self._acknowledge(reader, *reader.held.pop(0)[1:])
        # Where there is more, the next frames are on their way while these are acknowledged.
        missing = wanted - len(reader.held) - len(reader.ready) - reader.acking
        if reader.deep:
            missing += reader.quick * (_DEEP - 1)
        if reader.returned:
            if reader.waiters and not reader.returning and not reader.seeking:
                self._ask(reader, len(reader.returned), seek=True)
        elif (
            (reader.waiters or (reader.deep and reader.quick))
            and not reader.returning
            and missing > reader.asked
            and reader.asked <= missing // 2
        ):
            self._ask(reader, missing - reader.asked)
        if reader.timer is None and (reader.waiters or reader.held or reader.ready):
            reader.timer = self._link.loop.call_later(_HOLD, self._look, reader)

    def _wake(self, reader: _Reader) -> None:
        for _ in range(min(len(reader.ready), len(reader.waiters))):
            waiter = reader.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                reader.left_at = self._link.loop.time()  # it takes its frame in a moment

    def _ask(self, reader: _Reader, count: int, *, seek: bool = False) -> None:
        link = self._link
        if not link.up or self._closed:
            return
        if not reader.exists:
            if reader.task is None:
                reader.task = link.loop.create_task(self._make_consumer(reader), name="trunkline nats queue")
            return
        reader.asked += count
        reader.asked_at = link.loop.time()
        reader.seeking = seek
        reader.glance = seek or not reader.waiters  # nobody may come back for what comes later
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._subjects.queues_stream}.{reader.name}".encode()
        if reader.glance:
            ask = b'{"batch":%d,"no_wait":true}' % count
        else:
            ask = b'{"batch":%d,"expires":%d}' % (count, int(_OPEN * 1e9))
        link.say(subject, ask, b"%b.%b" % (self._subjects.deliveries, reader.name.encode()))

    async def _make_consumer(self, reader: _Reader) -> None:
        stream, name = self._subjects.queues_stream, reader.name
        config = {
            "durable_name": name, "name": name, "filter_subject": f"{self._subjects.root}.q.{name}.*",
            "ack_policy": "explicit", "ack_wait": int(_ACK_WAIT * 1e9), "max_ack_pending": 100_000, "max_waiting": 10_000,
            "replay_policy": "instant", "deliver_policy": "all", "inactive_threshold": int(600e9),
        }  # fmt: skip
        try:
            while not reader.exists:
                try:
                    await self.ensure(self._link.deadline)
                    ask = {"stream_name": stream, "config": config, "action": ""}
                    made = await self._link.api(
                        f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", ask
                    )
                    if "error" not in made:
                        reader.exists = True
                        break
                    if made["error"].get("err_code") == _NO_STREAM:
                        self._exists = False
                    log.warning(
                        "queue %s cannot be read at the moment: %s",
                        reader.queue,
                        made["error"]["description"],
                    )
                except TransportUnavailable as error:
                    log.info("queue %s waits for the server: %s", reader.queue, error)
                await asyncio.sleep(0.2)
        except (ConfigurationError, LayerClosed) as error:
            waiters, reader.waiters = reader.waiters, deque()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        finally:
            reader.task = None
        self._advance(reader)

    def delivered(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        """Take in what JetStream delivers: a frame, or why there is none."""
        if not reply.startswith(b"$JS.ACK."):
            self._no_frame(subject, header)
            return
        reader = self._by_name.get(subject.split(b".")[2].decode())
        if reader is None:
            return
        reader.asked = max(reader.asked - 1, 0)
        if not reader.asked:
            self._sought(reader)
            reader.deep = self._link.loop.time() - reader.asked_at < _HOLD
        if len(payload) < _EXPIRES.size or _EXPIRES.unpack_from(payload)[0] <= self._link.now() * 1000:
            self._link.say(reply, b"+TERM")
        else:
            place = _place(reply)
            reader.returned.discard(place)
            until = self._link.loop.time() + _ACK_UNTIL
            bisect.insort(reader.held, (place, payload[_EXPIRES.size :], reply, until))
        self._advance_soon(reader)

    def _no_frame(self, subject: bytes, header: bytes) -> None:
        reader = self._by_name.get(subject.rpartition(b".")[2].decode())
        if reader is None:
            return
        reader.asked = 0
        reader.deep = False
        self._sought(reader)
        if header[8:12].strip() not in (b"404", b"408"):
            reader.exists = False  # it is gone, or has moved to another server
        elif reader.glance:
            self._advance_soon(reader)
            return
        self._link.loop.call_later(0.02, self._advance, reader)

    def _sought(self, reader: _Reader) -> None:
        """What was given back and did not come again, somebody else has."""
        if reader.seeking:
            reader.seeking = False
            reader.returned.clear()

    def _acknowledge(self, reader: _Reader, frame: bytes, where: bytes, until: float) -> None:
        left = until - self._link.loop.time()
        if left <= 0:
            return  # the server gives it to somebody again
        reader.acking += 1

        def answered(answer: Answer | None) -> None:
            reader.acking -= 1
            if answer is not None and not answer[1]:
                reader.ready.append(frame)
                self._wake(reader)
            self._advance_soon(reader)

        self._link.request_op(where, b"+ACK", left, _Asked(self._link.loop, answered))

    def _look(self, reader: _Reader) -> None:
        """Give back what nobody came for; ask again where an answer is overdue."""
        reader.timer = None
        now = self._link.loop.time()
        if not reader.waiters and now - reader.took_at >= _HOLD:
            reader.quick = 0
            self._give_back(reader, ready=now - max(reader.took_at, reader.left_at) >= _KEEP)
        elif reader.asked and now - reader.asked_at > _OPEN + 1:
            reader.asked = 0
            reader.exists = False
        self._advance(reader)

    def _give_back(self, reader: _Reader, ready: bool = True) -> None:
        held, reader.held = reader.held, []
        for place, _, where, _ in held:
            reader.returning += 1
            reader.returned.add(place)
            self._link.request_op(where, b"-NAK", _ACK_WAIT).add_done_callback(
                lambda _: self._returned(reader)
            )
        while ready and reader.ready:
            frame = reader.ready.popleft()
            reader.returning += 1
            task = self._link.loop.create_task(self._push_back(reader.queue, frame))
            task.add_done_callback(lambda _: self._returned(reader))

    async def _push_back(self, queue: str, frame: bytes) -> None:
        with contextlib.suppress(TransportUnavailable, LayerClosed):
            slots = _Slots(self._subjects.queue(queue), random.randrange(_BEYOND))
            await self._push(slots, queue, frame, _BEYOND, self._expiry)

    def _returned(self, reader: _Reader) -> None:
        reader.returning -= 1
        self._advance(reader)

    # -- life

    def resumed(self) -> None:
        """The connection is another one: what was asked for is forgotten."""
        for reader in self._readers.values():
            reader.asked = 0
            reader.exists = reader.seeking = False
            reader.returned.clear()
            self._advance(reader)

    def forget(self) -> None:
        """Everything was flushed."""
        for reader in self._readers.values():
            reader.held.clear()
            reader.ready.clear()
            reader.returned.clear()

    async def flush(self) -> None:
        await self._link.api(f"STREAM.PURGE.{self._subjects.queues_stream}", {})

    async def leave(self) -> None:
        """Give back what is here, while the link is up."""
        self._closed = True
        for reader in self._readers.values():
            self._give_back(reader)
            waiters, reader.waiters = reader.waiters, deque()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        until = time.monotonic() + 1.0
        while self._link.up and time.monotonic() < until:
            if not any(reader.returning or reader.acking for reader in self._readers.values()):
                break
            await asyncio.sleep(0.002)
        tasks = [reader.task for reader in self._readers.values() if reader.task is not None]
        for reader in self._readers.values():
            if reader.timer is not None:
                reader.timer.cancel()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _place(reply: bytes) -> int:
    """Where in the stream a frame stands, by the subject that acknowledges it."""
    words = reply.split(b".")
    return int(words[5 if len(words) == 9 else 7])


async def make_stream(link: Link, config: dict[str, Any], ttl: float, *, now: bool = False) -> dict[str, Any]:
    """Make a stream, or find it made; returns what the server says of it.

    Raises:
        ConfigurationError: There is no JetStream here, or not for us.
        TransportUnavailable: Not at the moment.
    """
    name = config["name"]
    wanted = config["num_replicas"] or (3 if link.clustered else 1)
    until = link.loop.time() + ttl
    while True:
        try:
            made = await link.api(f"STREAM.CREATE.{name}", {**config, "num_replicas": wanted}, now=now)
        except TransportUnavailable:
            if now or link.loop.time() > until:
                raise
            continue
        error = made.get("error")
        if error is None:
            return made
        if error.get("err_code") == _EXISTS:  # of other settings: it serves all the same
            found = await link.api(f"STREAM.INFO.{name}", now=now)
            if "error" not in found:
                return found
        code, text = error.get("err_code"), error["description"]
        if wanted > 1 and not config["num_replicas"] and code in (10005, 10074):
            wanted = 1  # a cluster of fewer servers
            continue
        jetstream = link.clustered and link.wire is not None and link.wire.info.get("jetstream")
        if (code == 0 and not jetstream) or code in (10039, 10076):
            raise ConfigurationError(
                f"NATS at {link.access.address} has no JetStream ({text}): queues, bindings and recover=True need it. "
                'Start the server with -js, or put "jetstream {}" into its configuration'
            )
        if link.loop.time() > until:
            raise unavailable(link.access, f"JetStream: {text}")
        await asyncio.sleep(0.1)


def stamp(text: str) -> float:
    """A server's time, in seconds."""
    head, dot, rest = text.rstrip("Z").partition(
        "."
    )  # of nanoseconds, which the standard library does not read
    text = f"{head}.{rest[:6].ljust(6, '0')}+00:00" if dot else f"{head}+00:00"
    return datetime.fromisoformat(text).timestamp()
