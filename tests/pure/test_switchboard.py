"""The switchboard against the plainest model of what it means."""

from functools import partial
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trunkline.settings import Settings
from trunkline.switchboard import Mailbox, Parcel, Switchboard

CHANNELS = st.sampled_from(["a", "b", "c"])
GROUPS = st.sampled_from(["g", "h"])
CAPACITY, PROCESS, EXPIRY, GROUP_EXPIRY = 3, 7, 10.0, 25.0


class Waiter:
    """A receive that waits."""

    def set_result(self, result: None) -> None:
        """Nobody looks."""


class Model(RuleBasedStateMachine):
    """Lists and sets in place of mailboxes and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Switchboard(
            Settings(expiry=EXPIRY, group_expiry=GROUP_EXPIRY, capacity=CAPACITY, process_capacity=PROCESS)
        )
        self.now = 1000.0
        self.number = 0
        #: channel -> [(number, expires, direct)]
        self.waiting: dict[str, list[tuple[int, float, bool]]] = {"a": [], "b": [], "c": []}
        self.members: set[tuple[str, str]] = set()
        self.alive: dict[str, float] = {}

    def parcel(self) -> Parcel:
        self.number += 1
        return Parcel(b"%d" % self.number, self.now + EXPIRY, False)

    def purge(self, channel: str) -> None:
        self.waiting[channel] = [entry for entry in self.waiting[channel] if entry[1] > self.now]

    def full(self, channel: str, direct: bool) -> bool:
        held = [entry for entry in self.waiting[channel] if entry[2] or not direct]
        return len(held) >= CAPACITY or sum(map(len, self.waiting.values())) >= PROCESS

    def refuses(self, channel: str, direct: bool) -> bool:
        if self.full(channel, direct):
            self.purge(channel)
        return self.full(channel, direct)

    @rule(channel=CHANNELS)
    def put(self, channel: str) -> None:
        parcel = self.parcel()
        refused = self.refuses(channel, True)
        self.alive.setdefault(channel, self.now)
        accepted, waiter, handed = self.board.put(channel, parcel, self.now)
        assert accepted is not refused
        assert waiter is handed is None
        if accepted:
            self.waiting[channel].append((self.number, parcel.expires, True))

    @rule(group=GROUPS)
    def fan_out(self, group: str) -> None:
        parcel = self.parcel()
        missed: list[Mailbox] = []
        oldest = {channel: box.parcels[0][0] for channel, box in self.board.boxes.items() if box.parcels}
        count, _, wake = self.board.fan_out(group, parcel, self.now, missed.append)
        assert wake == []
        expected = 0
        for channel in ("a", "b", "c"):
            if (group, channel) not in self.members:
                continue
            if self.alive[channel] < self.now - GROUP_EXPIRY:
                self.members.discard((group, channel))
                continue
            got = self.board.boxes[channel].parcels and self.board.boxes[channel].parcels[-1][0] is parcel
            # Which of several members gets the last room of the process is nobody's promise; the rest is.
            box = self.board.boxes[channel]
            dropped = channel in oldest and not (box.parcels and box.parcels[0][0] is oldest[channel])
            if len(self.waiting[channel]) >= CAPACITY or dropped:
                self.purge(channel)
            if got:
                assert len(self.waiting[channel]) < CAPACITY
                self.waiting[channel].append((self.number, parcel.expires, False))
                expected += 1
            else:
                assert self.board.boxes[channel] in missed
                self.purge(channel)
                assert self.full(channel, False) or self.board.waiting >= PROCESS - 3
        assert count == expected

    @rule(channel=CHANNELS)
    def take(self, channel: str) -> None:
        box = self.board.box(channel, self.now)
        parcel = self.board.take(box, self.now)
        self.alive[channel] = self.now
        while self.waiting[channel] and self.waiting[channel][0][1] <= self.now:
            self.waiting[channel].pop(0)
        if parcel is None:
            assert self.waiting[channel] == []
        else:
            assert int(parcel.body) == self.waiting[channel].pop(0)[0]

    @rule(group=GROUPS, channel=CHANNELS)
    def join(self, group: str, channel: str) -> None:
        self.board.join(group, channel, self.now)
        self.members.add((group, channel))
        self.alive[channel] = self.now

    @rule(group=GROUPS, channel=CHANNELS)
    def leave(self, group: str, channel: str) -> None:
        self.board.leave(group, channel)
        self.members.discard((group, channel))

    @rule(channel=CHANNELS)
    def forget(self, channel: str) -> None:
        before = {group for group, _ in self.members}
        emptied, _ = self.board.forget(channel)
        self.members = {(group, member) for group, member in self.members if member != channel}
        assert set(emptied) == before - {group for group, _ in self.members}
        self.waiting[channel] = []
        self.alive.pop(channel, None)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        before = {group for group, _ in self.members}
        emptied, _ = self.board.sweep(self.now)
        for channel in self.waiting:
            self.purge(channel)
        self.members = {(g, c) for g, c in self.members if self.alive[c] >= self.now - GROUP_EXPIRY}
        assert set(emptied) == before - {group for group, _ in self.members}
        for channel in list(self.alive):
            if channel not in self.board.boxes:
                assert self.alive.pop(channel) < self.now - EXPIRY
                assert not self.waiting[channel]

    @invariant()
    def nothing_is_invented(self) -> None:
        for group in ("g", "h"):
            assert self.board.has_members(group) == any(g == group for g, _ in self.members)
        for channel, entries in self.waiting.items():
            box = self.board.boxes.get(channel)
            held: list[Any] = [] if box is None else [int(parcel.body) for parcel, _ in box.parcels]
            assert held == [number for number, *_ in entries]
        assert self.board.waiting == sum(map(len, self.waiting.values())) <= PROCESS


Model.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=40)
TestModel = Model.TestCase


def test_waiters() -> None:
    """Each message names one of those who wait, the longest there first; waiting and being woken are signs of life.

    A direct one is handed over, unless another is before it or it has expired.
    """
    board = Switchboard(Settings(group_expiry=5))
    waiters = [Waiter() for _ in range(5)]
    board.join("g", "a", 0.0)
    board.box("a", 0.0).waiters.extend(waiters)
    parcel = Parcel(b"", 99.0, False)
    assert board.put("a", parcel, 50.0) == (True, waiters[0], parcel)
    assert board.waiting == 0
    assert board.put("a", Parcel(b"", 49.0, True), 50.0) == (True, waiters[1], None)
    assert board.take(board.box("a", 50.0), 50.0) is None
    assert board.fan_out("g", parcel, 60.0, lambda box: None) == (1, 0, [waiters[2]])
    assert board.put("a", parcel, 60.0) == (True, waiters[3], None)
    assert board.put_back("a", parcel, 60.0) is waiters[4]
    assert board.fan_out("g", parcel, 64.0, lambda box: None) == (1, 0, [])
    assert board.fan_out("g", parcel, 70.0, lambda box: None) == (0, 0, [])


def test_posted_parcels_always_fit() -> None:
    """A parcel whose room was counted by the transport is never refused, and leaving it is reported once."""
    board = Switchboard(Settings(capacity=1))
    for number in range(3):
        assert board.put("a", Parcel(b"%d" % number, 9.0, True), 0.0)[0]
    box = board.boxes["a"]
    assert board.take(box, 1.0) is not None
    assert box.released == 1
    board.sweep(10.0)
    assert box.released == 3


def test_put_back() -> None:
    """A parcel put back is the next one, even when the box is full."""
    board = Switchboard(Settings(capacity=2))
    for number in range(2):
        board.put("a", Parcel(b"%d" % number, 9.0, False), 0.0)
    first = board.take(board.boxes["a"], 0.0)
    assert first is not None
    board.put("a", Parcel(b"2", 9.0, False), 0.0)
    board.put_back("a", first, 0.0)
    bodies = [board.take(board.boxes["a"], 0.0) for _ in range(3)]
    assert [parcel.body for parcel in bodies if parcel] == [b"0", b"1", b"2"]


def test_clear_keeps_waiters() -> None:
    """clear forgets messages and members, not those who wait."""
    board = Switchboard(Settings())
    board.join("g", "a", 0.0)
    board.box("a", 0.0).waiters.append(Waiter())
    board.put("b", Parcel(b"", 9.0, False), 0.0)
    board.clear()
    assert list(board.boxes) == ["a"]
    assert not board.groups
    assert board.waiting == 0


def test_sinks() -> None:
    """A sink is asked where somebody waits and nothing is before; what it declines goes into the mailbox."""
    board = Switchboard(Settings(capacity=3))
    names = ["taking!", "declining!", "behind!", "absent!", "plain!"]
    asked: list[str] = []
    waiters = {}

    def sink(name: str, message: object, shared: dict[object, object]) -> bool:
        asked.append(name)
        assert shared.setdefault("first", name) == "taking!"
        return name == "taking!"

    board.put("behind!", Parcel(b"", 9.0, False), 0.0)
    for name in names:
        board.join("g", name, 0.0)
        box = board.boxes[name]
        if name != "plain!":
            box.sink = partial(sink, name)
        if name != "absent!":
            waiters[name] = Waiter()
            box.waiters.append(waiters[name])
    parcel = Parcel(b"", 9.0, False, {"type": "x"})
    count, taken, wake = board.fan_out("g", parcel, 1.0, lambda box: None)
    assert (count, taken) == (5, 1)
    assert asked == ["taking!", "declining!"]
    assert set(wake) == {waiters[name] for name in ("declining!", "behind!", "plain!")}
    assert {name: len(board.boxes[name].parcels) for name in names} == {
        "taking!": 0,
        "declining!": 1,
        "behind!": 2,
        "absent!": 1,
        "plain!": 1,
    }
    assert board.waiting == 5
    assert parcel.fresh is None  # shared with the sinks: nobody is handed it


def test_a_sink_may_bring_about_what_it_likes() -> None:
    """A member forgotten, or a group joined, while sinks are asked; and a stale message is offered to none."""
    board = Switchboard(Settings(capacity=3))
    for name in ("a!", "b!"):
        board.join("g", name, 0.0)
        board.boxes[name].waiters.append(Waiter())

    def upset(message: object, shared: object) -> bool:
        board.forget("b!")
        board.join("g", "c!", 1.0)
        return True

    board.boxes["a!"].sink = upset
    board.boxes["b!"].sink = lambda message, shared: False
    assert board.fan_out("g", Parcel(b"", 9.0, False, {}), 1.0, lambda box: None)[:2] == (1, 1)
    assert board.waiting == 0
    assert board.fan_out("g", Parcel(b"", 0.5, False, {}), 1.0, lambda box: None)[:2] == (2, 0)
