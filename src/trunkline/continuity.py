"""Continuity: the sender's chain, the receiver's dedupe and its gap detection.

Every frame carries who sent it (``sid``, fresh for each connection to a server that is opened), the sender's running
number (``seq``) and the number of the frame that the same sender sent *to the same topic* before (``prev``, 0 when
none is remembered). So a receiver sees a frame it already had (``seq`` not above the last one it took) and a frame it
missed (``prev`` above it) without any state on the server, and a server that loses its memory confuses nobody.

Rules of this room: no I/O, no clock, no chance. Time comes in as an argument; what has to be read from a log, delivered
or told as lost comes out as a value.

- Never doubled: a frame is taken at most once per receiver.
- Never reordered: one sender's frames are taken as sent, over all topics of one server. The exception is a frame that
  was told lost and turns up after all: it is taken late rather than never.
- Lost only when told: a hole in a chain that the log cannot fill comes out as a gap.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["HEAD", "HEADER_SIZE", "REPEATED", "VOID", "Foreign", "Outcome", "Receiver", "Sender", "Sent"]

#: mark and flags, sid, seq, prev, stamp (ms on the shared clock), age (ms since the frame ``prev`` was stamped)
_HEADER = struct.Struct(">B8sQQQI")
HEADER_SIZE = _HEADER.size
#: What the first byte of every frame says, beside its flags.
_MARK = 0xA0


class Foreign(Exception):
    """What arrived is no frame of ours."""


def _unpack(data: bytes) -> tuple[int, bytes, int, int, int, int]:
    try:
        return _HEADER.unpack_from(data)
    except struct.error:
        raise Foreign from None


#: Bytes that keeping a frame costs beside its body, roughly.
_OVERHEAD = 500

#: The frame carries nothing; it only keeps the chain closed where a frame was refused or given up.
VOID = 1
#: The frame is sent again: its answer was lost, or its server may have forgotten it.
REPEATED = 2
#: The head of a frame that is whole in the log only: whoever is pushed it fetches the frame there.
HEAD = 4


class Sent:
    """One command on its way: numbered, waiting for its answer, then kept for a while in case the server forgets it."""

    __slots__ = ("age", "answered_at", "body", "done", "flags", "prev", "seq", "stamp", "topic")

    def __init__(self, topic: bytes | None, body: bytes) -> None:
        #: The chain it belongs to; None: numbered and repeated like the others, but in no chain and never replayed.
        self.topic = topic
        self.body = body
        self.flags = self.seq = self.prev = self.stamp = self.age = 0
        #: The server has answered it.
        self.done = False
        #: When, by a local clock in seconds.
        self.answered_at = 0.0


_S = TypeVar("_S", bound=Sent)


class Sender(Generic[_S]):
    """What one sender keeps about one server.

    Args:
        sid: 8 bytes nobody else has.
        retention: Seconds that frames stay of interest; a chain is not continued over a longer silence.
        window: Seconds that answered frames are kept for a replay.
        window_bytes: Bound of the memory that they may take.
    """

    def __init__(
        self, sid: bytes, *, retention: float, window: float = 5.0, window_bytes: int = 32 << 20
    ) -> None:
        self.sid = sid
        self._retention_ms = int(retention * 1000)
        self._window = window
        self._window_bytes = window_bytes
        self._seq = 0
        self._last: dict[bytes, tuple[int, int]] = {}
        self._older: dict[bytes, tuple[int, int]] = {}
        self._rotated_ms = 0
        self._unanswered: deque[_S] = deque()
        self._kept: deque[_S] = deque()
        self._kept_bytes = 0

    def number(self, sent: _S, clock_ms: int) -> None:
        """Give it its place after everything numbered before. ``clock_ms`` is the shared clock."""
        self._seq = sent.seq = self._seq + 1
        sent.stamp = clock_ms
        topic = sent.topic
        if topic is not None:
            last = self._last.get(topic) or self._older.get(topic)
            if last is not None:
                sent.prev, before = last
                if clock_ms > before:
                    sent.age = min(clock_ms - before, 0xFFFFFFFF)
            self._last[topic] = (self._seq, clock_ms)
            if clock_ms - self._rotated_ms > self._retention_ms:
                self._older, self._last, self._rotated_ms = self._last, {}, clock_ms
        self._unanswered.append(sent)

    def frame(self, sent: _S) -> bytes:
        """The bytes to send: the header and the body."""
        return self.header(sent) + sent.body

    def header(self, sent: _S, flag: int = 0) -> bytes:
        """What stands in front of the body. With ``HEAD`` it is pushed when the whole frame is in the log; with ``VOID`` it
        takes the place of a frame that is refused, and keeps the chain closed."""
        flags = _MARK | sent.flags | flag
        return _HEADER.pack(flags, self.sid, sent.seq, sent.prev, sent.stamp, sent.age)

    def whole(self, head: bytes) -> bytes | None:
        """The frame of which this is the head, if it is our own and still here."""
        flags, sid, seq, _, _, _ = _unpack(head)
        if sid != self.sid or not flags & HEAD:
            return None
        sent = self.find(seq)
        return None if sent is None else self.frame(sent)

    def find(self, seq: int) -> _S | None:
        """What has this number, if it is still here."""
        here = itertools.chain(reversed(self._unanswered), reversed(self._kept))
        return next((sent for sent in here if sent.seq == seq), None)

    def answer(self, sent: _S, now: float) -> None:
        """The server did it. Frames of a chain are kept for a replay. ``now`` is a local clock in seconds."""
        if sent.done:
            return  # it was done before, and asked for once more
        sent.done = True
        waiting = self._unanswered
        while waiting and waiting[0].done:
            waiting.popleft()
        if sent.topic is not None and self._window > 0:
            sent.answered_at = now
            self._kept.append(sent)
            self._kept_bytes += _OVERHEAD + len(sent.body)
            if self._kept_bytes > self._window_bytes or not sent.seq % 32:
                self.prune(now)

    def refuse(self, sent: _S, now: float) -> None:
        """The server refused it and put an empty frame in its place."""
        self.give_up(sent)
        self.answer(sent, now)

    def give_up(self, sent: _S) -> None:
        """Send nothing but an empty frame in its place from now on."""
        sent.flags |= VOID
        sent.body = b""

    def forget(self, topic: bytes) -> None:
        """Start the topic's chain anew: nobody hears it."""
        self._last.pop(topic, None)
        self._older.pop(topic, None)

    def prune(self, now: float) -> None:
        """Drop what has left the replay window. Call it while the server is known to be well.

        ``answer`` does so now and then, for most of what it would look at is not near.
        """
        kept = self._kept
        while kept and (kept[0].answered_at < now - self._window or self._kept_bytes > self._window_bytes):
            self._kept_bytes -= _OVERHEAD + len(kept.popleft().body)

    @property
    def floor(self) -> int:
        """Everything numbered below this is answered."""
        return self._unanswered[0].seq if self._unanswered else self._seq + 1

    @property
    def busy(self) -> bool:
        """Whether something is not answered yet."""
        return bool(self._unanswered)

    @property
    def pending(self) -> int:
        """How many are not answered yet."""
        return len(self._unanswered)

    def unanswered(self) -> list[_S]:
        """What must be sent again on a new connection, in this order, before anything new."""
        again = [sent for sent in self._unanswered if not sent.done]
        for sent in again:
            sent.flags |= REPEATED
        return again

    def replay(self) -> list[_S]:
        """The same for a server that may have forgotten what it answered: the window comes back, in front."""
        if self._kept:
            self.prune(self._kept[-1].answered_at)
        again, self._kept = self._kept, deque()
        for sent in again:
            sent.done = False
        self._kept_bytes = 0
        merged = {sent.seq: sent for sent in (*again, *self.unanswered())}
        self._unanswered = deque(merged[seq] for seq in sorted(merged))
        return self.unanswered()


class _Topic:
    __slots__ = ("active", "fetched", "holes", "known", "muted", "name", "older", "since", "stepping")

    def __init__(self, name: bytes, since: int) -> None:
        self.name = name
        #: Frames sent before this (ms on the shared clock) are not ours.
        self.since = since
        self.known: dict[bytes, int] = {}
        self.older: dict[bytes, int] = {}
        self.holes: dict[bytes, list[tuple[int, int]]] = {}
        self.muted = False
        self.active = True
        #: The entry of the log up to which nothing is left to fetch.
        self.fetched = (0, 0)
        #: All entries that this round read were here, or are now.
        self.stepping = False


class _Item(NamedTuple):
    topic: _Topic
    flags: int
    sid: bytes
    seq: int
    prev: int
    stamp: int
    age: int
    data: bytes

    @property
    def body(self) -> bytes:
        return self.data[HEADER_SIZE:]


def _item(topic: _Topic, data: bytes) -> _Item:
    flags, sid, seq, prev, stamp, age = _unpack(data)
    if flags & ~(VOID | REPEATED | HEAD) != _MARK:
        raise Foreign
    return _Item(topic, flags ^ _MARK, sid, seq, prev, stamp, age, data)


def _lacks(item: _Item) -> bool:
    """Whether it has a body that somebody wants, and it is not here."""
    return item.flags & (HEAD | VOID) == HEAD and not item.topic.muted


class Outcome(NamedTuple):
    """What came out of a round of reading logs."""

    #: (topic, body), to be delivered in this order.
    deliver: list[tuple[bytes, bytes]]
    #: Topics that lost frames for good.
    gaps: list[bytes]
    #: None: done, back to live. Otherwise wait so many seconds and read again.
    again: float | None


class Receiver:
    """What one receiver keeps about one server.

    It is *live*, and ``push`` hands each frame on, or *recovering*: then frames are set aside until the logs have been
    read. The caller reads them as long as ``recovering`` is true: ``reads``, then ``read`` for each entry, then ``settle``.

    While it is live, a sender of whose frame it has but the head is *held*, and nobody else: what it sends waits for that
    frame. The caller fetches it: as long as ``fetches`` names a log, ``fetch`` for each entry, then ``fetched``. What that
    brings, or a ``push`` that hands nothing on, is handed on by ``release``.

    Args:
        retention: Seconds that logs reach back.
        slack: Seconds by which two nodes' ideas of the shared clock may differ.
        patience: Seconds to go on reading when a frame is missing in the log too: its sender may be repeating it.
    """

    #: Seconds between two readings, and between two times that patience is shown at all.
    _PAUSE, _RESPITE = 0.1, 10.0

    def __init__(self, *, retention: float, slack: float = 0.05, patience: float = 1.0) -> None:
        self._retention_ms = int(retention * 1000)
        self._slack_ms = int(slack * 1000)
        self._patience = patience
        self._patient_from: float | None = None
        self._topics: dict[bytes, _Topic] = {}
        #: Whether a topic was joined: asked for with every message, so there is no call in between.
        self.hears: Callable[[bytes], bool] = self._topics.__contains__
        self.recovering = False
        self._aside: list[_Item] = []
        self._logged: list[tuple[tuple[int, int], _Item]] = []
        self._wanted: dict[bytes, int] = {}
        self._reading: dict[bytes, int] = {}
        self._early = 0
        #: By sender: the head of a frame that is not here, and what came behind it, by their numbers.
        self.held: dict[bytes, dict[int, _Item]] = {}
        self._fetching: list[_Item] = []

    # -- membership

    def join(self, topic: bytes, since_ms: int) -> None:
        """Hear a topic from ``since_ms`` (shared clock) on."""
        self._topics[topic] = _Topic(topic, since_ms)

    def mute(self, topic: bytes, muted: bool = True) -> bool:
        """Keep following the chain but deliver nothing. False for an unknown topic."""
        state = self._topics.get(topic)
        if state is None:
            return False
        state.muted = muted
        return True

    def leave(self, topic: bytes) -> None:
        """Forget the topic."""
        self._topics.pop(topic, None)
        self._wanted.pop(topic, None)

    # -- live

    def push(self, topic: bytes, data: bytes) -> bytes | None:
        """Take a frame that was pushed to us; returns the body to deliver now, if any.

        Raises:
            Foreign: It is no frame of ours.
        """
        state = self._topics.get(topic)
        if state is None:
            return None
        state.active = True
        try:
            flags, sid, seq, prev, _, _ = _HEADER.unpack_from(data)
        except struct.error:
            raise Foreign from None
        if self.recovering:
            self._aside.append(_item(state, data))
            return None
        mark = state.known.get(sid)
        if flags != _MARK or mark is None or not prev <= mark < seq or (self.held and sid in self.held):
            return self._push_odd(_item(state, data))
        state.known[sid] = seq
        return None if state.muted else data[HEADER_SIZE:]

    def _push_odd(self, item: _Item) -> bytes | None:
        """A first frame, a repeated or empty one, a head, one after a gap, or one of a sender that is held."""
        if item.sid in self.held:
            self._hold(item)
            return None
        if not self._is_new(item):
            return None
        topic = item.topic
        if self._is_gap(item):
            self._aside.append(item)
            self._recover(topic, topic.since)
            return None
        if _lacks(item):
            self._hold(item)
            return None
        self._taken(item)
        return None if item.flags & VOID or topic.muted else item.body

    @staticmethod
    def _mark(item: _Item) -> int | None:
        known = item.topic.known.get(item.sid)
        return item.topic.older.get(item.sid) if known is None else known

    def _is_new(self, item: _Item) -> bool:
        """Whether it was not taken before."""
        mark = self._mark(item)
        if mark is None or item.seq > mark:
            # Sent before we joined, and heard only because it is sent again.
            if item.flags & REPEATED and item.stamp < item.topic.since:
                item.topic.known[item.sid] = item.seq
                return False
            return True
        return self._hole(item) is not None

    def _hole(self, item: _Item) -> int | None:
        """The place of the hole that a late frame belongs to."""
        for number, (low, high) in enumerate(item.topic.holes.get(item.sid, ())):
            if low <= item.seq <= high and item.stamp >= item.topic.since:
                return number
        return None

    def _taken(self, item: _Item) -> None:
        """Note that we have it; a late frame closes its part of a hole."""
        mark = self._mark(item) or 0
        item.topic.known[item.sid] = max(item.seq, mark)
        if item.seq <= mark and (number := self._hole(item)) is not None:
            holes = item.topic.holes[item.sid]
            low, high = holes[number]
            parts = ((low, item.seq - 1), (item.seq + 1, high))
            holes[number : number + 1] = [part for part in parts if part[0] <= part[1]]

    def _is_gap(self, item: _Item) -> bool:
        mark = self._mark(item)
        if mark is not None:
            return item.prev > mark
        # A sender we never heard here: what it sent before is ours only if it is younger than our joining.
        return bool(
            item.prev
            and item.age < self._retention_ms
            and item.stamp - item.age >= item.topic.since + self._slack_ms
        )

    # -- held

    def fetches(self) -> list[tuple[bytes, tuple[int, int], int]]:
        """Begin a round: the logs to read, behind which entry, and how many frames are wanted from there."""
        self._fetching = [item for held in self.held.values() for item in held.values() if self._wants(item)]
        wanted: dict[_Topic, list[int]] = {}
        for item in self._fetching:
            item.topic.stepping = True
            wanted.setdefault(item.topic, []).append(item.stamp - self._slack_ms - 1)
        return [
            (topic.name, max(topic.fetched, (min(starts), 0)), len(starts))
            for topic, starts in wanted.items()
        ]

    def fetch(self, topic: bytes, entry: tuple[int, int], data: bytes) -> None:
        """The next entry of one of these logs."""
        state = self._topics.get(topic)
        if state is None:
            return
        with contextlib.suppress(Foreign):
            item = _item(state, data)
            # What comes before its push may have to be fetched later.
            state.stepping = state.stepping and (self._fill(item) or not self._is_new(item))
        if state.stepping:
            state.fetched = entry

    def fetching(self, topic: bytes) -> bool:
        """Whether a frame is still to be found in this log."""
        return any(item.topic.name == topic for item in self._fetching)

    def fetched(self) -> list[tuple[bytes, int]]:
        """End a round: a frame that was not found is like one whose push was lost; returns sid and number of each."""
        missing = [item for item in self._fetching if self._wants(item)]
        self._fetching = []
        for item in missing:
            self._recover(item.topic, item.topic.since)
        return [(item.sid, item.seq) for item in missing]

    def release(self) -> list[tuple[bytes, bytes]]:
        """What is held no longer, (topic, body), to be delivered in this order."""
        deliver: list[tuple[bytes, bytes]] = []
        for sid in list(self.held):
            held = self.held.pop(sid, {})
            for place, item in enumerate(held.values()):
                topic = item.topic
                if self._topics.get(topic.name) is not topic or not self._is_new(item):
                    continue
                if self._is_gap(item) or _lacks(item):
                    self.held[sid] = dict(itertools.islice(held.items(), place, None)) if place else held
                    if self._is_gap(item):
                        self._recover(topic, topic.since)
                    break
                self._taken(item)
                if not (item.flags & VOID or topic.muted):
                    deliver.append((topic.name, item.body))
        return deliver

    def _wants(self, item: _Item) -> bool:
        return _lacks(item) and self._topics.get(item.topic.name) is item.topic

    def _fill(self, item: _Item) -> bool:
        """Whether it was pushed to a sender that is held; a frame takes the place of its head."""
        held = self.held.get(item.sid, {})
        other = held.get(item.seq)
        if other is None:
            return False
        if other.flags & HEAD > item.flags & HEAD or other.topic is not item.topic:
            held[item.seq] = item
            self._fetching = [each for each in self._fetching if each is not other]
        return True

    def _hold(self, item: _Item) -> None:
        if not self._fill(item):
            self.held.setdefault(item.sid, {})[item.seq] = item

    def _recover(self, topic: _Topic, since: int) -> None:
        """Read the logs before anything else is delivered, this one from ``since`` on."""
        self.recovering = True
        self._want(topic, since)
        self._put_aside()

    def _put_aside(self) -> None:
        for held in self.held.values():
            self._aside += held.values()
        self.held.clear()
        self._fetching = []

    def _want(self, topic: _Topic, since: int) -> None:
        pending = (self._wanted.get(topic.name, since), self._reading.get(topic.name, since))
        self._wanted[topic.name] = min(since, *pending)

    # -- recovering

    def interrupted(self, alive_ms: int) -> None:
        """The connection was lost: read the logs before anything else is delivered.

        Args:
            alive_ms: The shared clock when surely everything sent until then had been heard.
        """
        self.recovering = True
        pending = {**self._reading, **self._wanted}  # what a former interruption left to read
        for name, topic in self._topics.items():
            since = max(topic.since, alive_ms)
            self._wanted[name] = min(since, pending.get(name, since))
            topic.fetched = (0, 0)
        self._put_aside()

    def rebase(self, clock_ms: int) -> None:
        """The shared clock went back to ``clock_ms``: nothing we wait for is older than we are."""
        for topic in self._topics.values():
            topic.since = min(topic.since, clock_ms)

    def reads(self, clock_ms: int) -> list[tuple[bytes, int]]:
        """Begin a round: the logs to read now, and from when (ms, the log's own clock)."""
        horizon = clock_ms - self._retention_ms
        for item in self._aside:
            if self._wants(item):
                self._want(item.topic, max(item.topic.since, item.stamp - self._slack_ms))
        wanted = {**self._reading, **self._wanted}  # a round that was not settled is part of this one
        self._reading = {name: since for name, since in wanted.items() if name in self._topics}
        self._wanted = {}
        self._early = len(self._aside)
        self._logged = []
        return [(name, max(since, horizon, 0)) for name, since in self._reading.items()]

    def read(self, topic: bytes, entry: tuple[int, int], data: bytes) -> None:
        """One entry of a log, with its id; what is not ours is passed over."""
        state = self._topics.get(topic)
        if state is not None:
            with contextlib.suppress(Foreign):
                self._logged.append((entry, _item(state, data)))

    def settle(self, now: float) -> Outcome:
        """End a round: what can be delivered, what is lost, and whether to read again."""
        self._logged.sort(key=lambda pair: pair[0])
        early, late = self._aside[: self._early], self._aside[self._early :]
        items = _as_sent(
            [(item, False) for _, item in self._logged]
            + [(item, False) for item in early]
            + [(item, True) for item in late]
        )
        outcome = Outcome([], [], None)
        again = None
        for position, (item, is_late) in enumerate(items):
            if self._topics.get(item.topic.name) is not item.topic:
                continue
            again = self._take(item, is_late, outcome, now)
            if again is not None:
                self._aside = [waiting for waiting, _ in items[position:]]
                break
        else:
            self._aside = []
        self._logged = []
        self._reading = {}
        if again is None and self._wanted:
            again = 0.0
        self.recovering = again is not None
        return outcome._replace(again=again)

    def _take(self, item: _Item, is_late: bool, outcome: Outcome, now: float) -> float | None:
        """Deliver one item; or the seconds to wait before reading its log again."""
        topic = item.topic
        if item.sid in self.held:
            self._hold(item)
            return None
        if not self._is_new(item):
            return None
        is_gap, lacks = self._is_gap(item), _lacks(item)
        if lacks and is_late and not is_gap:
            self._hold(item)  # its log was read too early to have it
            return None
        if lacks and item.seq <= (self._mark(item) or 0):
            return None  # it was told
        if is_gap or lacks:
            pause = self._look_again(topic, is_late, now)
            if pause is not None:
                return pause
            low = (self._mark(item) or 0) + 1 if is_gap else item.seq
            topic.holes.setdefault(item.sid, []).append((low, item.seq if lacks else item.prev))
            outcome.gaps.append(topic.name)
            if lacks:
                topic.known[item.sid] = max(item.seq, self._mark(item) or 0)
                return None
        self._taken(item)
        if not (item.flags & VOID or topic.muted):
            outcome.deliver.append((topic.name, item.body))
        return None

    def _look_again(self, topic: _Topic, is_late: bool, now: float) -> float | None:
        read_from = self._reading.get(topic.name)
        self._wanted[topic.name] = topic.since
        # The log was read before this frame was sent, or not from its beginning: it may well hold what is missing.
        if is_late or read_from is None or read_from > topic.since:
            return 0.0
        if self._patient_from is None or now - self._patient_from > self._RESPITE:
            self._patient_from = now
        if now - self._patient_from < self._patience:
            return self._PAUSE
        del self._wanted[topic.name]
        return None

    # -- idle

    def quiet(self) -> list[bytes]:
        """Topics that heard nothing since the last call: the ends of their logs want a look."""
        found = []
        for topic in self._topics.values():
            if not topic.active:
                found.append(topic.name)
            topic.active = False
        return found

    def audit(self, topic: bytes, entry: tuple[int, int], data: bytes, clock_ms: int) -> bool:
        """Compare the last entry of a log with what was heard; True when the log must be read."""
        state = self._topics.get(topic)
        if state is None or entry[0] < max(state.since, clock_ms - self._retention_ms):
            return False
        try:
            item = _item(state, data)
        except Foreign:
            return False
        mark = self._mark(item)
        if (mark is not None and item.seq <= mark) or item.sid in self.held:
            return False
        self._recover(state, state.since)
        return True

    def rotate(self) -> None:
        """Forget senders that were silent for two calls. Call it every two retentions."""
        for topic in self._topics.values():
            for sid in topic.older.keys() - topic.known.keys():
                topic.holes.pop(sid, None)
            topic.older, topic.known = topic.known, {}


def _as_sent(items: Iterable[tuple[_Item, bool]]) -> list[tuple[_Item, bool]]:
    """Put each sender's frames in the order it sent them, into the places that this sender's frames had."""
    items = list(items)
    queues: dict[bytes, list[tuple[_Item, bool]]] = {}
    for pair in items:
        queues.setdefault(pair[0].sid, []).append(pair)
    following = {
        sid: iter(sorted(queue, key=lambda pair: (pair[0].seq, pair[0].flags & HEAD)))
        for sid, queue in queues.items()
    }
    return [next(following[item.sid]) for item, _ in items]
