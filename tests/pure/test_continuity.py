"""The chain, piece by piece: each test is one sentence of the room's promise."""

from __future__ import annotations

import pytest

from trunkline.continuity import HEAD, REPEATED, VOID, Foreign, Outcome, Receiver, Sender, Sent

ROOM, HALL = b"room", b"hall"


class Line:
    """A sender whose frames we hold in our hand."""

    def __init__(self, sid: bytes = b"sender-1") -> None:
        self.sender: Sender[Sent] = Sender(sid, retention=60, window=5)

    def send(self, topic: bytes, body: bytes, at: int = 2000) -> Sent:
        sent = Sent(topic, body)
        self.sender.number(sent, at)
        return sent

    def frames(self, *bodies: bytes, topic: bytes = ROOM, at: int = 2000) -> list[bytes]:
        return [self.sender.frame(self.send(topic, body, at)) for body in bodies]


def receiver(*topics: bytes, patience: float = 1.0) -> Receiver:
    made = Receiver(retention=70, slack=0, patience=patience)
    for topic in topics or (ROOM,):
        made.join(topic, 1000)
    return made


def read(made: Receiver, log: list[bytes], topic: bytes = ROOM, now: float = 0.0) -> Outcome:
    """One round over one log whose entries are numbered from 2000 ms on."""
    starts = dict(made.reads(3000))
    for place, frame in enumerate(log):
        if topic in starts and 2000 + place >= starts[topic]:
            made.read(topic, (2000 + place, 0), frame)
    return made.settle(now)


def test_a_chain_is_handed_on_as_it_comes():
    made, (one, two) = receiver(), Line().frames(b"1", b"2")
    assert [made.push(ROOM, one), made.push(ROOM, two)] == [b"1", b"2"]


def test_a_frame_is_taken_once():
    made, (one, two) = receiver(), Line().frames(b"1", b"2")
    assert [made.push(ROOM, frame) for frame in (one, one, two, one, two)] == [b"1", None, b"2", None, None]


def test_topics_that_were_not_joined_are_not_heard():
    made, (one,) = receiver(), Line().frames(b"1", topic=HALL)
    assert made.push(HALL, one) is None


def test_a_gap_is_filled_from_the_log_and_nothing_overtakes_meanwhile():
    made, log = receiver(), Line().frames(b"1", b"2", b"3", b"4")
    assert made.push(ROOM, log[0]) == b"1"
    assert made.push(ROOM, log[2]) is None
    assert made.recovering
    assert made.push(ROOM, log[3]) is None
    outcome = read(made, log)
    assert outcome.deliver == [(ROOM, b"2"), (ROOM, b"3"), (ROOM, b"4")]
    assert (outcome.gaps, outcome.again, made.recovering) == ([], None, False)


def test_a_hole_in_the_log_too_is_told_and_the_rest_delivered():
    made, log = receiver(patience=0), Line().frames(b"1", b"2", b"3")
    made.push(ROOM, log[0])
    made.push(ROOM, log[2])
    outcome = read(made, [log[0], log[2]])
    assert (outcome.deliver, outcome.gaps) == ([(ROOM, b"3")], [ROOM])


def test_a_sender_that_is_repeating_is_waited_for_a_little():
    """Reading the log once is not enough: the missing frame is in it a moment later."""
    made, log = receiver(patience=1), Line().frames(b"1", b"2", b"3")
    made.push(ROOM, log[0])
    made.push(ROOM, log[2])
    outcome = read(made, [log[0], log[2]], now=100.0)
    assert (outcome.deliver, outcome.gaps) == ([], [])
    assert outcome.again
    outcome = read(made, [log[0], log[2], log[1]], now=100.1)
    assert (outcome.deliver, outcome.gaps) == ([(ROOM, b"2"), (ROOM, b"3")], [])


def test_patience_ends_and_is_not_shown_for_every_hole():
    made, log = receiver(patience=1), Line().frames(b"1", b"2", b"3", b"4", b"5")
    made.push(ROOM, log[0])
    made.push(ROOM, log[2])
    assert read(made, [], now=100.0).again
    assert read(made, [], now=101.1).gaps == [ROOM]
    made.push(ROOM, log[4])
    assert read(made, [], now=102.0).gaps == [ROOM]


def test_a_frame_that_was_told_lost_is_taken_late_once():
    made, log = receiver(patience=0), Line().frames(b"1", b"2", b"3", b"4")
    made.push(ROOM, log[0])
    made.push(ROOM, log[3])
    read(made, [])
    assert [made.push(ROOM, frame) for frame in (log[1], log[1], log[2], log[2])] == [b"2", None, b"3", None]


def test_a_gap_pushed_while_the_log_was_read_is_read_again():
    made, log = receiver(patience=0), Line().frames(b"1", b"2", b"3", b"4")
    made.push(ROOM, log[0])
    made.interrupted(2000)
    made.reads(3000)
    made.push(ROOM, log[3])
    outcome = made.settle(0.0)
    assert (outcome.deliver, outcome.gaps, outcome.again) == ([], [], 0.0)
    assert read(made, log).deliver == [(ROOM, b"2"), (ROOM, b"3"), (ROOM, b"4")]


def test_a_log_read_from_too_late_is_read_from_its_beginning():
    made, log = receiver(patience=0), Line().frames(b"1", b"2", b"3")
    made.push(ROOM, log[0])
    made.interrupted(2002)
    assert read(made, log).again == 0.0
    outcome = read(made, log)
    assert (outcome.deliver, outcome.gaps) == ([(ROOM, b"2"), (ROOM, b"3")], [])


def test_a_second_interruption_does_not_forget_the_first():
    made = receiver()
    made.interrupted(1500)
    made.reads(3000)
    made.interrupted(2500)
    assert made.reads(3000) == [(ROOM, 1500)]


def test_a_reading_that_failed_is_begun_again():
    made = receiver()
    made.interrupted(1500)
    assert made.reads(3000) == made.reads(3000) == [(ROOM, 1500)]


def test_one_sender_keeps_its_order_over_all_topics():
    made, line = receiver(ROOM, HALL), Line()
    one, two, three = (
        line.frames(body, topic=topic)[0] for body, topic in ((b"1", ROOM), (b"2", HALL), (b"3", ROOM))
    )
    made.interrupted(0)
    made.reads(3000)
    made.read(HALL, (2000, 0), two)
    made.read(ROOM, (2000, 1), three)
    made.read(ROOM, (2000, 0), one)
    assert [body for _, body in made.settle(0.0).deliver] == [b"1", b"2", b"3"]


def test_a_sender_heard_late_hides_no_loss():
    """Its first frame we hear follows another that was sent after we joined: that one is missing."""
    made, log = receiver(patience=0), Line().frames(b"1", b"2")
    assert made.push(ROOM, log[1]) is None
    assert read(made, log).deliver == [(ROOM, b"1"), (ROOM, b"2")]


def test_what_was_sent_before_joining_is_not_missed():
    line = Line()
    line.frames(b"old", at=900)
    made, (new,) = receiver(), line.frames(b"new")
    assert made.push(ROOM, new) == b"new"


def test_a_replay_from_before_joining_is_not_taken():
    line = Line()
    for body in (b"1", b"2"):
        line.sender.answer(line.send(ROOM, body, at=900), 1.0)
    made = receiver()
    again = [line.sender.frame(sent) for sent in line.sender.replay()]
    assert [made.push(ROOM, frame) for frame in (*again, *line.frames(b"3"))] == [None, None, b"3"]


def test_the_replay_window_holds_what_was_answered_in_its_time_and_comes_first():
    line = Line()
    for number in range(4):
        line.sender.answer(line.send(ROOM, b"%d" % number), float(number * 3))
    line.send(ROOM, b"unanswered")
    assert [sent.body for sent in line.sender.replay()] == [b"2", b"3", b"unanswered"]
    assert all(sent.flags & REPEATED for sent in line.sender.unanswered())


def test_the_replay_window_is_bounded_in_bytes():
    sender: Sender[Sent] = Sender(b"sender-1", retention=60, window=5, window_bytes=4000)
    for number in range(9):
        sent = Sent(ROOM, b"%d" % number + bytes(999))
        sender.number(sent, 2000)
        sender.answer(sent, 1.0)
    assert [sent.body[:1] for sent in sender.replay()] == [b"7", b"8"]


def test_a_refused_frame_leaves_no_hole():
    made, line = receiver(), Line()
    one, two = line.send(ROOM, b"1"), line.send(ROOM, b"2")
    frame, void = line.sender.frame(one), line.sender.header(two, VOID)
    (three,) = line.frames(b"3")
    assert [made.push(ROOM, data) for data in (frame, void, three)] == [b"1", None, b"3"]


def test_a_muted_topic_keeps_its_chain():
    made, log = receiver(), Line().frames(b"1", b"2", b"3")
    made.push(ROOM, log[0])
    made.mute(ROOM)
    assert made.push(ROOM, log[1]) is None
    made.mute(ROOM, False)
    assert made.push(ROOM, log[2]) == b"3"


def test_the_end_of_a_quiet_log_shows_what_nobody_pushed():
    made, log = receiver(), Line().frames(b"1", b"2")
    made.push(ROOM, log[0])
    assert made.quiet() == []
    assert made.quiet() == [ROOM]
    assert not made.audit(ROOM, (2000, 0), log[0], 3000)
    assert made.audit(ROOM, (2001, 0), log[1], 3000)
    assert read(made, log).deliver == [(ROOM, b"2")]


def test_entries_older_than_the_retention_are_not_read():
    """Their senders may be forgotten, and then nothing would tell that they were taken already."""
    made = receiver()
    made.interrupted(0)
    assert made.reads(500_000) == [(ROOM, 430_000)]


def test_silent_senders_are_forgotten_after_two_rotations() -> None:
    made, (one,) = receiver(), Line().frames(b"1")
    made.push(ROOM, one)
    made.rotate()
    assert made.push(ROOM, one) is None
    made.rotate()
    made.rotate()
    assert made.push(ROOM, one) == b"1"


def fetch(made: Receiver, log: list[bytes], topic: bytes = ROOM) -> list[tuple[bytes, bytes]]:
    """One round of fetching from a log whose entries are numbered from 2000 ms on."""
    behind = {name: entry for name, entry, _ in made.fetches()}
    for place, frame in enumerate(log):
        if topic in behind and (2000 + place, 0) > behind[topic]:
            made.fetch(topic, (2000 + place, 0), frame)
    made.fetched()
    return made.release()


def test_a_frame_whose_head_is_pushed_is_fetched_and_holds_its_sender_only():
    made, line, other = receiver(ROOM, HALL), Line(), Line(b"sender-2")
    sent = [line.send(ROOM, b"1"), line.send(ROOM, b"2"), line.send(HALL, b"3"), line.send(ROOM, b"4")]
    log = [line.sender.frame(each) for each in sent if each.topic == ROOM]
    assert made.push(ROOM, log[0]) == b"1"
    assert made.push(ROOM, line.sender.header(sent[1], HEAD)) is None
    assert made.push(HALL, line.sender.frame(sent[2])) is None
    assert made.push(ROOM, line.sender.header(sent[3], HEAD)) is None
    assert made.push(ROOM, other.frames(b"other")[0]) == b"other"
    assert (made.release(), made.recovering) == ([], False)
    ((topic, behind, count),) = made.fetches()
    assert (topic, behind < (2000, 0), count) == (ROOM, True, 2)
    for place, frame in enumerate(log):
        made.fetch(ROOM, (2000 + place, 0), frame)
        assert made.fetching(ROOM) == (place < 2)
    made.fetched()
    assert made.release() == [(ROOM, b"2"), (HALL, b"3"), (ROOM, b"4")]
    assert not made.held
    assert not made.recovering


def test_what_was_fetched_is_not_read_again_but_what_came_before_its_head_is():
    made, line = receiver(), Line()
    one, two, three = (line.send(ROOM, body) for body in (b"1", b"2", b"3"))
    log = [line.sender.frame(each) for each in (one, two, three)]
    made.push(ROOM, line.sender.header(one, HEAD))
    assert fetch(made, log) == [(ROOM, b"1")]  # the others are in the log, and their heads on their way
    for head, at in ((two, 2000), (three, 2001)):
        made.push(ROOM, line.sender.header(head, HEAD))
        assert made.fetches() == [(ROOM, (at, 0), 1)]
        assert fetch(made, log) == [(ROOM, head.body)]


def test_a_head_of_what_is_known_is_nothing_new():
    made, line = receiver(), Line()
    one = line.send(ROOM, b"1")
    made.push(ROOM, line.sender.header(one, HEAD))
    assert fetch(made, [line.sender.frame(one)]) == [(ROOM, b"1")]
    assert made.push(ROOM, line.sender.header(one, HEAD)) is None
    assert made.push(ROOM, line.sender.frame(one)) is None
    assert not made.held


def test_a_frame_that_comes_after_all_takes_the_place_of_its_head():
    """As our own does: we have it in our hands."""
    made, line = receiver(), Line()
    one, two = line.send(ROOM, b"1"), line.send(ROOM, b"2")
    made.push(ROOM, line.sender.header(one, HEAD))
    made.push(ROOM, line.sender.frame(two))
    whole = line.sender.whole(line.sender.header(one, HEAD))
    assert whole == line.sender.frame(one)
    assert made.push(ROOM, whole) is None
    assert made.release() == [(ROOM, b"1"), (ROOM, b"2")]
    assert line.sender.whole(line.sender.frame(one)) is None
    assert line.sender.whole(Line(b"sender-2").sender.header(one, HEAD)) is None
    line.sender.answer(one, 1.0)
    assert line.sender.whole(line.sender.header(one, HEAD)) == whole
    line.sender.prune(100.0)
    assert line.sender.whole(line.sender.header(one, HEAD)) is None


def test_a_refused_frame_that_is_in_the_log_is_taken_by_nobody():
    """Its empty frame stands before it there, and is pushed before its head."""
    line = Line()
    one, two = line.send(ROOM, b"1"), line.send(ROOM, b"2")
    void, head, after = line.sender.header(one, VOID), line.sender.header(one, HEAD), line.sender.frame(two)
    log = [void, line.sender.frame(one), after]
    made = receiver()
    assert [made.push(ROOM, frame) for frame in (void, head, after)] == [None, None, b"2"]
    made = receiver()
    assert (made.push(ROOM, head), made.push(ROOM, after)) == (None, None)  # the void frame's push was lost
    assert fetch(made, log) == [(ROOM, b"2")]
    made = receiver()
    made.interrupted(2000)
    made.push(ROOM, head)
    assert read(made, log) == Outcome([(ROOM, b"2")], [], None)


def test_a_head_whose_frame_is_not_in_the_log_is_waited_for_and_then_told():
    made, line = receiver(patience=1), Line()
    one, two = line.send(ROOM, b"1"), line.send(ROOM, b"2")
    after = line.sender.frame(two)
    made.push(ROOM, line.sender.header(one, HEAD))
    made.push(ROOM, after)
    assert fetch(made, [after]) == []
    assert made.recovering
    assert read(made, [after], now=10.0) == Outcome([], [], 0.1)
    assert read(made, [after], now=12.0) == Outcome([(ROOM, b"2")], [ROOM], None)
    # Told as lost, it is still taken when it turns up; its head alone changes nothing.
    made.push(ROOM, line.sender.header(one, HEAD))
    assert fetch(made, [after]) == []
    assert read(made, [after], now=20.0) == Outcome([], [], None)
    made.push(ROOM, line.sender.header(one, HEAD))
    assert fetch(made, [after, line.sender.frame(one)]) == [(ROOM, b"1")]
    assert made.push(ROOM, line.sender.frame(one)) is None


def test_an_interruption_takes_what_was_held_into_its_reading():
    made, line = receiver(), Line()
    one, two = line.send(ROOM, b"1"), line.send(ROOM, b"2")
    made.push(ROOM, line.sender.header(one, HEAD))
    made.push(ROOM, line.sender.frame(two))
    made.fetches()
    made.interrupted(3000)  # long after what we lack was pushed
    made.fetched()
    assert made.release() == []
    assert read(made, [line.sender.frame(one), line.sender.frame(two)]).deliver == [
        (ROOM, b"1"),
        (ROOM, b"2"),
    ]


def test_heads_that_come_while_logs_are_read_are_fetched_afterwards():
    """Reading on until none comes would never end under load."""
    made, line = receiver(), Line()
    one, two, three = (line.send(ROOM, body) for body in (b"1", b"2", b"3"))
    made.interrupted(2000)
    made.reads(3000)
    made.read(ROOM, (2000, 0), line.sender.frame(one))
    made.push(ROOM, line.sender.header(two, HEAD))
    made.push(ROOM, line.sender.frame(three))
    assert made.settle(0.0) == Outcome([(ROOM, b"1")], [], None)
    assert not made.recovering
    assert fetch(made, [line.sender.frame(each) for each in (one, two, three)]) == [
        (ROOM, b"2"),
        (ROOM, b"3"),
    ]


def test_of_a_muted_topic_nothing_is_fetched():
    made, line = receiver(), Line()
    one, two = line.send(ROOM, b"1"), line.send(ROOM, b"2")
    made.push(ROOM, line.sender.header(one, HEAD))
    made.mute(ROOM)
    assert made.fetches() == []
    made.fetched()
    assert (made.release(), made.held) == ([], {})
    made.push(ROOM, line.sender.header(two, HEAD))
    assert (made.held, made.recovering) == ({}, False)
    made.leave(ROOM)
    assert made.push(ROOM, line.sender.header(two, HEAD)) is None


def test_what_is_held_of_a_topic_that_was_left_holds_nobody():
    made, line = receiver(ROOM, HALL), Line()
    made.push(ROOM, line.sender.header(line.send(ROOM, b"1"), HEAD))
    made.push(HALL, line.sender.frame(line.send(HALL, b"2")))
    made.leave(ROOM)
    assert made.fetches() == []
    assert made.release() == [(HALL, b"2")]


def test_only_a_mark_and_flags_that_are_known_make_a_frame():
    """Of the 256 first bytes that junk may have, eight are ours; all others are foreign wherever they turn up."""
    frame = Line().frames(b"1")[0]
    ours = {frame[0] | flags for flags in range((VOID | REPEATED | HEAD) + 1)}
    for first in set(range(256)) - ours:
        made, junk = receiver(), bytes([first]) + frame[1:]
        with pytest.raises(Foreign):
            made.push(ROOM, junk)
        assert not made.audit(ROOM, (2000, 0), junk, 3000)
        assert not made.recovering
        made.interrupted(2000)
        with pytest.raises(Foreign):
            made.push(ROOM, junk)
        assert read(made, [junk, frame]) == Outcome([(ROOM, b"1")], [], None)
