"""The line of one group: put in order, healed, and never taken for another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trunkline.errors import HistoryLost
from trunkline.history import Event, Follower, Outcome, place_of, position_of


def event(place: int, mark: str = "") -> Event:
    return Event(place, f"{mark}{place}".encode(), 60.0)


def started() -> Follower:
    """One that knows that nothing was sent yet."""
    follower = Follower()
    follower.start(None)
    return follower


def places(events: list[Event]) -> list[int]:
    return [each.place for each in events]


def test_what_comes_in_turn_is_delivered_at_once() -> None:
    follower = Follower(event(4))
    assert [places(follower.take(event(place)).deliver) for place in (5, 6, 7)] == [[5], [6], [7]]
    assert not follower.checking


def test_what_comes_too_early_waits_for_what_is_missing() -> None:
    follower = started()
    assert follower.take(event(3)) == ([], None)
    assert follower.take(event(2)) == ([], None)
    assert follower.checking
    assert places(follower.take(event(1)).deliver) == [1, 2, 3]
    assert not follower.checking


def test_what_never_comes_is_fetched() -> None:
    follower = started()
    follower.take(event(3))
    outcome = follower.settle([event(1), event(2), event(3)], 3)
    assert places(outcome.deliver) == [1, 2, 3]
    assert outcome.gap is None
    assert follower.take(event(2)) == ([], None)  # it comes after all
    assert follower.settle([], 3) == ([], None)


def test_what_is_no_longer_remembered_is_told() -> None:
    follower = started()
    follower.take(event(9))
    outcome = follower.settle([event(5), event(6), event(9)], 9)
    assert places(outcome.deliver) == [5, 6, 9]
    assert outcome.gap is not None
    assert places(follower.take(event(10)).deliver) == [10]


def test_a_line_that_begins_anew_is_told_and_followed() -> None:
    follower = Follower(event(57))
    follower.take(event(51, "new"))
    outcome = follower.settle([], 51)
    assert places(outcome.deliver) == [51]
    assert outcome.gap is not None
    assert places(follower.take(event(52, "new")).deliver) == [52]


def test_what_was_sent_before_the_join_is_not_delivered() -> None:
    follower = Follower(event(10))
    assert follower.take(event(9)) == ([], None)
    assert follower.settle([], 10) == ([], None)
    assert places(follower.take(event(11)).deliver) == [11]


@given(st.text(min_size=1, max_size=30), st.integers(1, 2**60), st.binary(max_size=20), st.floats(0, 2e9))
def test_positions_tell_events_apart(group: str, place: int, body: bytes, expires: float) -> None:
    group = group.replace(":", "_")
    position = position_of(group, Event(place, body, expires))
    assert place_of(position) == (group, place)
    assert position != position_of(group, Event(place, body + b"x", expires))
    assert position != position_of(group, Event(place, body, expires + 1))


@pytest.mark.parametrize(
    "wrong", ["", "room", "room:", "room:1", "room:x.1", ":1.a", "room:1.", None, 7, "room:1.a\n"]
)
def test_what_is_no_position(wrong: str) -> None:
    with pytest.raises(HistoryLost, match="is not a position"):
        place_of(wrong)


class Model(RuleBasedStateMachine):
    """A follower against a list: frames are late, lost, and the server may roll back to an earlier state."""

    SIZE = 6

    def __init__(self) -> None:
        super().__init__()
        #: What the server remembers: its whole line, of which the newest ``SIZE`` can be fetched.
        self.line: list[Event] = []
        self.on_its_way: list[Event] = []
        self.follower = started()
        self.delivered: list[Event] = []
        self.told = 0
        self.sent = 0
        self.rollbacks = 0

    @rule()
    def send(self) -> None:
        self.sent += 1
        before = self.line[-1].mark if self.line else ""
        new = Event(len(self.line) + 1, str(self.sent).encode(), 60.0, before=before)
        self.line.append(new)
        self.on_its_way.append(new)

    @precondition(lambda self: self.on_its_way)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, min(2, len(self.on_its_way) - 1)))
        self.note(self.follower.take(self.on_its_way.pop(number)))

    @precondition(lambda self: self.on_its_way)
    @rule()
    def lose(self) -> None:
        self.on_its_way.pop(0)

    @rule()
    def check(self) -> None:
        """What a node does when something is held: also while frames are on their way."""
        if not self.follower.checking:
            return
        first = max((self.follower.next or 1) - 1, 1)
        remembered = [each for each in self.line[-self.SIZE :] if each.place >= first]
        self.note(self.follower.settle(remembered, self.line[-1].place if self.line else 0))

    def note(self, outcome: Outcome) -> None:
        self.delivered += outcome.deliver
        self.told += outcome.gap is not None

    @precondition(lambda self: len(self.line) > 2 and self.follower.next == len(self.line) + 1)
    @rule()
    def roll_back(self) -> None:
        """The server forgets its newest two events, which everybody has had; what comes gets their places."""
        del self.line[-2:]
        self.rollbacks += 1

    @invariant()
    def nothing_is_doubled(self) -> None:
        bodies = [each.body for each in self.delivered]
        assert len(bodies) == len(set(bodies))

    @invariant()
    def everything_is_in_order(self) -> None:
        if self.told:  # from there on there are two lines, and late frames of both
            return
        numbers = [int(each.body) for each in self.delivered]
        assert numbers == sorted(numbers)

    @invariant()
    def what_was_lost_was_told(self) -> None:
        """Up to the newest that was delivered, everything was, unless a gap was told."""
        if self.told or not self.delivered:
            return
        assert [int(each.body) for each in self.delivered] == list(range(1, len(self.delivered) + 1))

    @invariant()
    def an_old_position_is_never_taken_for_a_new_one(self) -> None:
        known = {position_of("g", each) for each in self.line}
        for each in self.delivered:
            position = position_of("g", each)
            assert (position in known) == any(mine.body == each.body for mine in self.line)


TestModel: Callable[..., None] = Model.TestCase
