"""Posts that come in: counted where they wait, which is here, and answered together."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ...continuity import REPEATED
from ...transport import Arrivals

if TYPE_CHECKING:
    from .link import Link
    from .topics import Topics

__all__ = ["ANSWER", "FULL", "HEAD", "POST", "Inbox"]

#: What a message of posts begins with: the sender, and the floor of its numbers.
HEAD = struct.Struct(">8sQ")
#: What each post in it begins with: number, capacity (0: no bound), flags, lengths of the channel and of the frame.
POST = struct.Struct(">QIBBI")
#: What it is answered with: its number, and what became of it.
ANSWER = struct.Struct(">QB")
_OK, FULL = 0, 1
#: Numbers of one sender that are remembered before those below its floor are forgotten.
_SEEN = 2048
#: So many posts at once, or so many bytes, are answered before they are delivered: their sender goes on meanwhile.
_MANY, _LARGE = 8, 64 << 10


class Inbox:
    """What is posted to one node."""

    def __init__(self, link: Link, topics: Topics, arrivals: Arrivals) -> None:
        self._link = link
        self._topics = topics
        self._arrivals = arrivals
        self._seen: dict[bytes, dict[int, int]] = {}
        self._counts: dict[str, int] = {}
        #: Where to -> what is answered in this turn of the loop.
        self._answers: dict[bytes, list[bytes]] = {}

    @property
    def answering(self) -> bool:
        return bool(self._answers)

    def posted(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        """Take the posts of one message: count them, answer, and deliver those there is room for."""
        posts: list[tuple[int, int, int, str, int, int]] = []
        try:
            sid, floor = HEAD.unpack_from(payload)
            place = HEAD.size
            while place < len(payload):
                seq, capacity, flags, length, size = POST.unpack_from(payload, place)
                channel = place + POST.size
                body = channel + length
                place = body + size
                posts.append((seq, capacity, flags, payload[channel:body].decode(), body, place))
        except (struct.error, UnicodeDecodeError):
            place = -1
        if place != len(payload) or not posts:
            self._arrivals.deliver(payload)  # for the layer to count and to log
            return
        seen = self._seen.get(sid)
        if seen is None:
            seen = self._seen[sid] = {}
        answer = b""
        taken = []
        for seq, capacity, flags, name, body, end in posts:
            outcome = seen.get(seq) if flags & REPEATED else None
            if outcome is None:
                outcome = _OK
                if capacity:
                    count = self._counts.get(name, 0)
                    if count >= capacity:
                        outcome = FULL
                    else:
                        self._counts[name] = count + 1
                seen[seq] = outcome
                if outcome == _OK:
                    taken.append((seq, body, end))
            answer += ANSWER.pack(seq, outcome)
        if len(seen) > _SEEN:
            self._seen[sid] = {number: was for number, was in seen.items() if number >= floor}
        inbox, _, _ = reply.rpartition(b".")
        self._answers.setdefault(inbox, []).append(answer)
        if len(posts) < _MANY and len(payload) < _LARGE:
            self._link.flush_soon()
        else:
            self._link.flush()
        for seq, body, end in taken:
            self._topics.take_post(sid, seq, payload[body:end])

    def answers(self) -> list[bytes]:
        """What is to be written now, one message for each sender."""
        answers, self._answers = self._answers, {}
        written = []
        for inbox, parts in answers.items():
            payload = b"".join(parts)
            written.append(b"PUB %b.0 %d\r\n%b\r\n" % (inbox, len(payload), payload))
        return written

    def interrupted(self) -> None:
        """Who is not answered asks again."""
        self._answers.clear()

    def taken(self, channel: str, count: int) -> None:
        left = self._counts.get(channel, 0) - count
        if left > 0:
            self._counts[channel] = left
        else:
            self._counts.pop(channel, None)

    def flushed(self) -> None:
        self._counts.clear()
