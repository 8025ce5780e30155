"""Continuity against a model of a network and a server that do their worst, in any order.

Two senders write through pipelines that can be cut (what was on its way may still be executed, late), a server keeps
logs and may lose their ends, two receivers hear pushes over connections that can be cut. Whatever happens: nothing is
doubled, nothing is reordered, and what is missing was told. Of every third frame only the head is pushed.
"""

from __future__ import annotations

import os

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trunkline.continuity import HEAD, HEADER_SIZE, Receiver, Sender, Sent

TOPICS = [b"a", b"b", b"c"]
WINDOW = 0.3  # seconds; every step takes one millisecond of the model's clock

which = st.integers(0, 1)
topics = st.sampled_from(TOPICS)


class Writer:
    """A sender and its pipeline: written, executed, answered."""

    def __init__(self, number: int) -> None:
        self.sender: Sender[Sent] = Sender(b"sender-%d" % number, retention=1000, window=WINDOW)
        self.name = b"%d" % number
        self.count = 0
        self.connected = True
        self.epoch = 0
        self.waiting: list[Sent] = []
        self.pipe: list[Sent] = []
        self.replies: list[Sent] = []
        self.late: list[tuple[bytes, bytes, bytes]] = []


class Listener:
    """A receiver, its connection, and all that came out of it."""

    patience = 0.05

    def __init__(self) -> None:
        self.receiver = Receiver(retention=1000, slack=0, patience=self.patience)
        self.joined: dict[bytes, int] = {}
        self.live: set[bytes] = set()
        self.connected = True
        self.alive_ms = 0
        self.pushes: list[tuple[bytes, bytes]] = []
        self.to_read: list[tuple[bytes, int]] | None = None
        self.to_fetch: list[tuple[bytes, tuple[int, int], int]] | None = None
        self.got: list[tuple[bytes, bytes]] = []
        self.told: list[tuple[bytes, int]] = []


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = 1_000
        self.epoch = 0
        self.writers = [Writer(0), Writer(1)]
        self.listeners = [Listener(), Listener()]
        self.log: list[tuple[int, bytes, bytes]] = []
        self.sent: list[tuple[int, bytes, bytes]] = []
        self.sent_at: dict[bytes, int] = {}

    def step(self) -> int:
        self.clock += 1
        return self.clock

    @property
    def now(self) -> float:
        return self.clock / 1000

    # -- sending

    @rule(number=which, topic=topics)
    def send(self, number: int, topic: bytes) -> None:
        writer = self.writers[number]
        writer.count += 1
        body = b"%b-%b-%d" % (writer.name, topic, writer.count)
        self.sent.append((self.step(), topic, body))
        self.sent_at[body] = self.clock
        sent = Sent(topic, body)
        if writer.connected:
            writer.sender.number(sent, self.clock)
            writer.pipe.append(sent)
        else:
            writer.waiting.append(sent)

    @staticmethod
    def command(writer: Writer, sent: Sent) -> tuple[bytes, bytes, bytes]:
        assert sent.topic is not None
        frame = writer.sender.frame(sent)
        return sent.topic, frame, frame if sent.seq % 3 else writer.sender.header(sent, HEAD)

    def carry_out(self, topic: bytes, frame: bytes, pushed: bytes) -> None:
        self.log.append((self.step(), topic, frame))
        for listener in self.listeners:
            if listener.connected and topic in listener.live:
                listener.pushes.append((topic, pushed))

    @rule(number=which, count=st.integers(1, 4))
    def execute(self, number: int, count: int) -> None:
        writer = self.writers[number]
        for sent in writer.pipe[:count]:
            self.carry_out(*self.command(writer, sent))
        writer.replies += writer.pipe[:count]
        del writer.pipe[:count]

    @rule(number=which, where=st.lists(topics, min_size=2, max_size=6), heard=st.booleans())
    def flow(self, number: int, where: list[bytes], heard: bool) -> None:
        """A while without trouble."""
        for topic in where:
            self.send(number, topic)
        self.execute(number, 10**6)
        self.answer(number, 10**6)
        for listener in (0, 1) if heard else ():
            self.push(listener, 10**6)

    @rule(number=which)
    def execute_late(self, number: int) -> None:
        """What a dead connection had still in its buffers is executed after all."""
        late = self.writers[number].late
        if late:
            self.carry_out(*late.pop(0))

    @rule(number=which, count=st.integers(1, 4))
    def answer(self, number: int, count: int) -> None:
        writer = self.writers[number]
        for sent in writer.replies[:count]:
            writer.sender.answer(sent, self.now)
        del writer.replies[:count]

    @rule(number=which)
    def cut_sender(self, number: int) -> None:
        writer = self.writers[number]
        writer.late += [self.command(writer, sent) for sent in writer.pipe]
        writer.connected, writer.pipe, writer.replies = False, [], []

    @rule(number=which)
    def reconnect_sender(self, number: int) -> None:
        writer = self.writers[number]
        if writer.connected:
            return
        forgetful = writer.epoch != self.epoch
        writer.connected, writer.epoch = True, self.epoch
        writer.pipe = writer.sender.replay() if forgetful else writer.sender.unanswered()
        for sent in writer.waiting:
            writer.sender.number(sent, self.step())
            writer.pipe.append(sent)
        writer.waiting = []

    # -- receiving

    @initialize()
    def join_some(self) -> None:
        self.join(0, b"a")
        self.join(1, b"a")
        self.join(1, b"b")

    @rule(number=which, topic=topics)
    def join(self, number: int, topic: bytes) -> None:
        listener = self.listeners[number]
        if topic not in listener.joined:
            listener.joined[topic] = self.step()
            listener.receiver.join(topic, self.clock)
            if listener.connected:
                listener.live.add(topic)

    @rule(number=which, count=st.integers(1, 5))
    def push(self, number: int, count: int) -> None:
        listener = self.listeners[number]
        for topic, frame in listener.pushes[:count]:
            body = listener.receiver.push(topic, frame)
            if body is not None:
                listener.got.append((topic, body))
            listener.got += listener.receiver.release()
        del listener.pushes[:count]

    @rule(number=which)
    def cut_receiver(self, number: int) -> None:
        listener = self.listeners[number]
        if listener.connected:
            if not listener.receiver.recovering:
                # All that arrived is known to be everything up to the oldest push that did not.
                listener.alive_ms = max(listener.alive_ms, self.oldest_unheard(listener) - 1)
            listener.connected, listener.pushes = False, []
            listener.to_read = listener.to_fetch = None
            listener.live.clear()

    def oldest_unheard(self, listener: Listener) -> int:
        pushed = {frame[1:HEADER_SIZE] for _, frame in listener.pushes}
        return min((at for at, _, frame in self.log if frame[1:HEADER_SIZE] in pushed), default=self.clock)

    @rule(number=which)
    def reconnect_receiver(self, number: int) -> None:
        listener = self.listeners[number]
        if not listener.connected:
            listener.connected = True
            listener.live = set(listener.joined)
            listener.receiver.interrupted(listener.alive_ms)

    @precondition(lambda self: any(x.connected and x.receiver.recovering for x in self.listeners))
    @rule(number=which)
    def begin_reading(self, number: int) -> None:
        listener = self.listeners[number]
        if listener.connected and listener.receiver.recovering:
            listener.to_fetch, listener.to_read = None, listener.receiver.reads(self.clock)

    @rule(number=which)
    def begin_fetching(self, number: int) -> None:
        listener = self.listeners[number]
        if listener.connected and listener.receiver.held and listener.to_read is None:
            listener.to_fetch = listener.receiver.fetches()

    @rule(number=which, count=st.integers(1, 5))
    def fetch(self, number: int, count: int) -> None:
        """As many entries as are wanted, then as many more until all are there."""
        listener = self.listeners[number]
        if listener.to_fetch:
            topic, behind, _ = listener.to_fetch[0]
            entries = [((at, 0), frame) for at, name, frame in self.log if name == topic and (at, 0) > behind]
            for entry, frame in entries[:count]:
                listener.receiver.fetch(topic, entry, frame)
            if len(entries) > count and listener.receiver.fetching(topic):
                listener.to_fetch[0] = topic, entries[count - 1][0], count
            else:
                del listener.to_fetch[0]
            listener.got += listener.receiver.release()
        elif listener.to_fetch is not None:
            listener.receiver.fetched()
            listener.to_fetch = None

    @rule(number=which)
    def read(self, number: int) -> None:
        listener = self.listeners[number]
        if listener.to_read:
            topic, since = listener.to_read.pop(0)
            for at, name, frame in self.log:
                if name == topic and at >= since:
                    listener.receiver.read(topic, (at, 0), frame)

    @rule(number=which)
    def settle(self, number: int) -> None:
        listener = self.listeners[number]
        if listener.to_read == []:
            self.step()
            outcome = listener.receiver.settle(self.now)
            listener.told += [(topic, len(listener.got)) for topic in outcome.gaps]
            listener.got += outcome.deliver
            listener.to_read = None
            if outcome.again:
                self.clock += int(outcome.again * 1000)

    # -- the server

    @rule(keep=st.integers(0, 40))
    def roll_back(self, keep: int) -> None:
        """The server comes back, or another one in its place, and the end of what it had is gone."""
        self.log = self.log[: max(len(self.log) - 40 + keep, 0)]
        self.epoch += 1
        for number in (0, 1):
            self.cut_sender(number)
            self.writers[number].late = []
            self.cut_receiver(number)

    @rule(ms=st.integers(1, 500))
    def pass_time(self, ms: int) -> None:
        self.clock += ms

    # -- what must hold

    @invariant()
    def nothing_is_doubled(self) -> None:
        for listener in self.listeners:
            assert len(listener.got) == len(set(listener.got))

    @invariant()
    def nothing_is_reordered(self) -> None:
        for listener in self.listeners:
            highest: dict[bytes, int] = {}
            for place, (topic, body) in enumerate(listener.got):
                writer, _, count = body.split(b"-")
                if self.sent_at[body] < listener.joined[topic]:
                    continue  # a dead connection may still carry out what was sent before the join: it has no place
                if int(count) < highest.get(writer, 0):
                    assert any(name == topic and at <= place for name, at in listener.told), body
                highest[writer] = max(highest.get(writer, 0), int(count))

    def quiesce(self) -> None:
        for _ in range(200):
            for number in (0, 1):
                self.reconnect_sender(number)
                self.reconnect_receiver(number)
                self.execute_late(number)
                self.execute(number, 10**6)
                self.answer(number, 10**6)
                self.push(number, 10**6)
                listener = self.listeners[number]
                self.begin_fetching(number)
                while listener.to_fetch is not None:
                    self.fetch(number, 3)
                if listener.receiver.recovering:
                    self.begin_reading(number)
                    while listener.to_read:
                        self.read(number)
                    self.settle(number)
            busy = [x.receiver.recovering or x.receiver.held or x.pushes for x in self.listeners]
            if not any(busy) and not any(x.pipe or x.late or x.replies for x in self.writers):
                return
        raise AssertionError("it does not come to rest")

    def teardown(self) -> None:
        self.quiesce()
        for number in (0, 1):
            for topic in TOPICS:
                self.send(number, topic)  # a chain shows its holes when it goes on
        self.quiesce()
        self.nothing_is_doubled()
        self.nothing_is_reordered()
        for listener in self.listeners:
            got, told = set(listener.got), {topic for topic, _ in listener.told}
            for at, topic, body in self.sent:
                if topic in listener.joined and at > listener.joined[topic] and (topic, body) not in got:
                    assert topic in told, f"{body!r} is missing and nobody was told"
            if self.epoch == 0:
                assert not told, "told of a loss where nothing was lost"


TestContinuity = World.TestCase
TestContinuity.settings = settings(
    max_examples=int(os.environ.get("CONTINUITY_EXAMPLES", "30")), stateful_step_count=50, deadline=None
)
