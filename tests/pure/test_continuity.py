"""The chain, piece by piece: each test is one sentence of the room's promise."""

from __future__ import annotations

import pytest

from trunkline.continuity import REPEATED, VOID, Foreign, Outcome, Receiver, Sender, Sent

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
    frame, void = line.sender.frame(one), line.sender.void(two)
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


def test_only_a_mark_and_flags_that_are_known_make_a_frame():
    """Of the 256 first bytes that junk may have, four are ours; all others are foreign wherever they turn up."""
    frame = Line().frames(b"1")[0]
    ours = {frame[0] | flags for flags in (0, VOID, REPEATED, VOID | REPEATED)}
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
