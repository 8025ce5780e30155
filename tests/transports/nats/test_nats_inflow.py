"""What the server says, in whatever pieces it comes: every message once, as it was sent."""

from __future__ import annotations

import random

import pytest

from trunkline.transports.nats.servers import access
from trunkline.transports.nats.wire import Wire, _Inflow

Heard = tuple[bytes, bytes, bytes, bytes, bytes]


class Listener:
    def __init__(self) -> None:
        self.messages: list[Heard] = []
        self.pongs = 0
        self.errors: list[BaseException] = []

    def message(self, sid: bytes, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        self.messages.append((sid, subject, reply, payload, header))

    def pong(self) -> None:
        self.pongs += 1

    def refused(self, text: str) -> None: ...

    def lame(self) -> None: ...

    def lost(self, wire: Wire, error: BaseException) -> None:
        self.errors.append(error)


def said(heard: Heard) -> bytes:
    sid, subject, reply, payload, header = heard
    to = b" ".join(filter(None, (subject, sid, reply)))
    if header:
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (to, len(header), len(header + payload), header, payload)
    return b"MSG %b %d\r\n%b\r\n" % (to, len(payload), payload)


@pytest.mark.parametrize("seed", range(8))
def test_messages_in_pieces(seed: int) -> None:
    """Cut anywhere, small and of a megabyte, with what looks like protocol inside."""
    chance = random.Random(seed)
    sent: list[Heard] = []
    pongs, stream = 0, b""
    for number in range(60):
        size = chance.choice(
            [0, 1, 40, 700, 65_535, 65_536, 65_537, 300_000] + [1_000_000] * (number % 20 == 7)
        )
        payload = chance.choice([b"\r\nMSG a 1 3\r\n", b"x", b"\0"]) * size
        header = b"NATS/1.0 503\r\n\r\n" if chance.random() < 0.2 else b""
        sent.append((b"%d" % number, b"a.b", chance.choice([b"", b"to.me"]), payload[:size], header))
        stream += said(sent[-1])
        if chance.random() < 0.3:
            stream, pongs = stream + b"PONG\r\n", pongs + 1
    listener = Listener()
    inflow = _Inflow(Wire(listener, access("nats://localhost")))
    position = 0
    while position < len(stream):
        room = inflow.get_buffer(-1)
        count = min(len(room), chance.choice([1, 3, 100, 5000, 64 << 10, 1 << 20]), len(stream) - position)
        assert count, "there is always room for more"
        room[:count] = stream[position : position + count]
        inflow.buffer_updated(count)
        position += count
    assert listener.messages == sent
    assert listener.pongs == pongs
    assert not listener.errors
    small = said((b"1", b"a", b"", b"x", b""))
    inflow.feed(small * 2)
    assert len(inflow.get_buffer(-1)) <= 64 << 10, "the large buffer is let go of"


def test_what_is_no_nats() -> None:
    """Whatever else speaks there ends the connection, and is told."""
    for words in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"MSG a 1 many\r\n", b"MSG \r\n"):
        listener = Listener()
        _Inflow(Wire(listener, access("nats://localhost"))).feed(words)
        assert len(listener.errors) == 1
        assert not listener.messages
