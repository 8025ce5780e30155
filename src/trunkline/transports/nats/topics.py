"""What this node subscribed to, what it hears there, and what it missed: read from the log, or told."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ...continuity import Foreign, Receiver, Sender, Sent
from ...errors import TransportUnavailable
from ...transport import Arrivals

if TYPE_CHECKING:
    from .link import Link

__all__ = ["MANY", "SIZE", "Topics"]

log = logging.getLogger("trunkline.nats")

#: Seconds before an interruption from which logs are read again: what is read twice is delivered once.
_OVERLAP_MS = 2000
#: Topics one reading of the log names; of more it reads everything.
_NAMED = 100
#: What a message of several frames begins with, which no frame does, and what is in front of each in it: its length.
MANY = b"\xb0"
SIZE = struct.Struct(">I")


class Topics:
    """What one node hears.

    Args:
        recover: There is a log of what is published.
        retention: Seconds that it reaches back.
    """

    def __init__(self, link: Link, arrivals: Arrivals, *, recover: bool, retention: float) -> None:
        self._link = link
        self._arrivals = arrivals
        self._recover = recover
        # Without a log there is nothing to wait for: a hole is told at once.
        self._receiver = Receiver(retention=retention, slack=0.25, patience=1.5 if recover else 0.0)
        #: Subject -> subscription and topic; subscription -> subject.
        self._topics: dict[bytes, tuple[bytes, str]] = {}
        self.by_sid: dict[bytes, bytes] = {}
        self._inbox = link.subjects.node(link.node)
        #: Sender -> the last post of its that waits for the log to be read.
        self._aside: dict[bytes, int] = {}
        self._behind: list[asyncio.Future[None]] = []
        self.reading: asyncio.Task[None] | None = None

    # -- subscriptions

    def __len__(self) -> int:
        return len(self._topics)

    def subscriptions(self) -> list[tuple[bytes, bytes]]:
        """(subscription, subject) of each."""
        return [(sid, subject) for subject, (sid, _) in self._topics.items()]

    async def subscribe(self, topic: str) -> None:
        link = self._link
        name = link.subjects.topic(topic)
        if name not in self._topics:
            sid = link.new_sid()
            self._topics[name] = sid, topic
            self.by_sid[sid] = name
            self._receiver.join(name, int(link.now() * 1000))
            if link.wire is not None:
                link.send_raw(b"SUB %b %b\r\n" % (name, sid))
        until = link.loop.time() + 2 * link.deadline
        while True:
            try:
                await link.round_trip(link.deadline)
            except TransportUnavailable:
                if link.loop.time() > until:
                    raise
                await asyncio.sleep(0.05)
                continue
            refusal = link.refusal_of(name)
            if refusal is not None:
                self.unsubscribe(topic)
                raise refusal
            break
        if link.clustered and not await link.interest.spread() and name in self._topics:
            self._arrivals.gap(topic, "a server of the cluster did not say that it knows of the subscription")

    def unsubscribe(self, topic: str) -> None:
        name = self._link.subjects.topic(topic)
        sid, _ = self._topics.pop(name, (b"", ""))
        if sid:
            del self.by_sid[sid]
            self._receiver.leave(name)
            if self._link.wire is not None:
                self._link.send_raw(b"UNSUB %b\r\n" % sid)

    # -- in

    def heard(self, name: bytes, payload: bytes) -> None:
        """Take what came over a subscription to a topic."""
        for frame in _frames(payload):
            self._take(name, frame)

    def _take(self, name: bytes, payload: bytes) -> None:
        try:
            body = self._receiver.push(name, payload)
        except Foreign:
            self._arrivals.deliver(payload)  # for the layer to count and to log
            return
        if body is not None:
            self._arrivals.deliver(body)
        elif self._receiver.recovering:
            self.read_log()

    def take_post(self, sid: bytes, seq: int, body: bytes) -> None:
        """Deliver a post, in the order of its sender's publishes."""
        if not self._receiver.recovering or seq <= self._aside.get(sid, 0):
            self._arrivals.deliver(body)  # at once; or late already, as one that was sent again
            return
        self._aside[sid] = seq
        # Set aside with what was published, so that one sender's frames stay in their order.
        if not self._receiver.hears(self._inbox):
            self._receiver.join(self._inbox, 0)
        sent = Sent(self._inbox, body)
        sent.seq = seq
        self._receiver.push(self._inbox, Sender[Sent](sid, retention=1).frame(sent))

    # -- what was missed

    def interrupted(self, alive_ms: int) -> None:
        """The connection is a new one; until then, a time of the shared clock, everything was surely heard."""
        if self._recover:
            self._receiver.interrupted(alive_ms - _OVERLAP_MS)

    def resumed(self) -> None:
        """The connection that was lost is up again."""
        if not self._recover and self._topics:
            self._arrivals.gap(
                None, "the connection to NATS was lost for a moment; recover=True would have caught up"
            )
        self.read_log()

    def rebase(self, clock_ms: int) -> None:
        self._receiver.rebase(clock_ms)

    async def caught_up(self) -> None:
        """Wait until what came in is delivered: at once, unless the log is being read."""
        if self._receiver.recovering:
            future: asyncio.Future[None] = self._link.loop.create_future()
            self._behind.append(future)
            await future

    def stop(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
            self.reading = None

    def waiting(self) -> list[asyncio.Future[None]]:
        """Who waits for the log to be read."""
        return self._behind

    def read_log(self) -> None:
        link = self._link
        if not self._recover:
            while self._receiver.recovering:
                self._receiver.reads(int(link.now() * 1000))
                self._settle()
        elif self.reading is None and link.up and self._receiver.recovering:
            self.reading = link.loop.create_task(self._catch_up(), name="trunkline nats catch-up")

    def _settle(self) -> float | None:
        outcome = self._receiver.settle(time.monotonic())
        for topic in dict.fromkeys(outcome.gaps):
            if topic in self._topics:
                self._arrivals.gap(self._topics[topic][1], "NATS did not deliver them")
        for _, body in outcome.deliver:
            self._arrivals.deliver(body)
        return outcome.again

    async def _catch_up(self) -> None:
        while self._receiver.recovering:
            try:
                await self._read_entries(self._receiver.reads(int(self._link.now() * 1000)))
            except (TransportUnavailable, TimeoutError) as error:
                log.warning("reading the log failed, trying again: %s", error)
                await asyncio.sleep(0.2)
                continue
            if again := self._settle():
                await asyncio.sleep(again)
        self.reading = None
        self._receiver.leave(self._inbox)
        self._aside.clear()
        behind, self._behind = self._behind, []
        for future in behind:
            if not future.done():
                future.set_result(None)

    async def _read_entries(self, wanted: list[tuple[bytes, int]]) -> None:
        wanted = [(topic, since) for topic, since in wanted if topic != self._inbox]
        if not wanted:
            return
        subjects = self._link.subjects
        filters = [topic.decode() for topic, _ in wanted]
        if len(filters) > _NAMED:
            filters = [subjects.all_topics]
        since = datetime.fromtimestamp(min(since for _, since in wanted) / 1000, UTC)
        await self._link.reading.read(subjects.topics_stream, filters, self._logged, since)

    def _logged(self, subject: bytes, payload: bytes, ms: int, number: int) -> None:
        if subject in self._topics:
            for frame in _frames(payload):
                self._receiver.read(subject, (ms, number), frame)


def _frames(payload: bytes) -> Iterable[bytes]:
    """The frames of one message; what cannot be read comes out as it is."""
    if not payload.startswith(MANY):
        return (payload,)
    frames = []
    place = 1
    while place < len(payload):
        if place + SIZE.size > len(payload):
            return (payload,)
        begin = place + SIZE.size
        place = begin + SIZE.unpack_from(payload, place)[0]
        frames.append(payload[begin:place])
    return frames if place == len(payload) else (payload,)
