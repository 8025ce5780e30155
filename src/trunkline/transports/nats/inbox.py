"""Posts that come in: counted where they wait, which is here, and answered together, once in a turn of the loop."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ...continuity import REPEATED
from ...transport import Arrivals

if TYPE_CHECKING:
    from .link import Link
    from .topics import Topics

__all__ = ["ANSWER", "FULL", "POST", "Inbox"]

#: What a post begins with: sender, number, floor of its numbers, capacity (0: no bound), flags, length of the channel.
POST = struct.Struct(">8sQQIBB")
#: What it is answered with: its number, and what became of it.
ANSWER = struct.Struct(">QB")
_OK, FULL = 0, 1
#: Numbers of one sender that are remembered before those below its floor are forgotten.
_SEEN = 2048


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
        try:
            sid, seq, floor, capacity, flags, length = POST.unpack_from(payload)
        except struct.error:
            self._arrivals.deliver(payload)  # for the layer to count and to log
            return
        seen = self._seen.get(sid)
        if seen is None:
            seen = self._seen[sid] = {}
        outcome = seen.get(seq) if flags & REPEATED else None
        if outcome is None:
            outcome = _OK
            if capacity:
                channel = payload[POST.size : POST.size + length].decode()
                count = self._counts.get(channel, 0)
                if count >= capacity:
                    outcome = FULL
                else:
                    self._counts[channel] = count + 1
            seen[seq] = outcome
            if len(seen) > _SEEN:
                self._seen[sid] = {number: was for number, was in seen.items() if number >= floor}
            if outcome == _OK:
                self._topics.take_post(sid, seq, payload[POST.size + length :])
        inbox, _, _ = reply.rpartition(b".")
        if not self._answers:
            self._link.send_raw(b"")
        self._answers.setdefault(inbox, []).append(ANSWER.pack(seq, outcome))

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
