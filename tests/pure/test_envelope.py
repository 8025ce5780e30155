import datetime
import decimal
import enum
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline import envelope
from trunkline.envelope import CHANNEL, GROUP, FrameError, Seal, decode, encode
from trunkline.errors import ConfigurationError, InvalidMessage, MessageTooLarge

LIMIT = 1 << 20
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)
messages = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values)
addresses = st.from_regex(r"[A-Za-z0-9\-_.!]{0,99}", fullmatch=True)


@given(messages, addresses, st.floats(0, 1e12), st.sampled_from([(), ("k",), ("k", "old")]))
def test_round_trip(message: dict[str, Any], address: str, expires: float, keys: tuple[str, ...]) -> None:
    """What goes into a frame comes out, with and without encryption."""
    frame = Seal(keys).frame(GROUP, expires, address, encode(message, LIMIT))
    opened = Seal(tuple(reversed(keys))).open(frame)
    assert (opened.kind, opened.expires, opened.address) == (GROUP, expires, address)
    assert decode(opened.body) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_error_at_worst(junk: bytes) -> None:
    """Whatever arrives is opened or is a FrameError, never another exception."""
    for seal in (Seal(), Seal(["k"])):
        try:
            decode(seal.open(junk).body)
        except FrameError:
            pass


@given(messages, st.data())
def test_tampering_is_noticed(message: dict[str, Any], data: st.DataObject) -> None:
    """With encryption, no bit of a frame can be changed: not of the body, not of address, kind or expiry."""
    seal = Seal(["secret"])
    frame = bytearray(seal.frame(CHANNEL, 1.0, "some.channel", encode(message, LIMIT)))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError):
        seal.open(bytes(frame))


def test_encrypted_bodies_show_nothing() -> None:
    """The body is not readable in the frame, and the same message never looks the same."""
    seal = Seal(["secret"])
    frames = {seal.frame(GROUP, 1.0, "g", encode({"text": "attack at dawn"}, LIMIT)) for _ in range(10)}
    assert len(frames) == 10
    assert not any(b"attack" in frame for frame in frames)


def test_key_rotation() -> None:
    """The first key encrypts, every key decrypts, another key is told from a damaged frame by nobody."""
    old, both, new = Seal(["old"]), Seal(["new", "old"]), Seal(["new"])
    assert both.open(old.frame(GROUP, 1.0, "g", b"\x80")).body == b"\x80"
    assert new.open(both.frame(GROUP, 1.0, "g", b"\x80")).body == b"\x80"
    with pytest.raises(FrameError, match="no key"):
        new.open(old.frame(GROUP, 1.0, "g", b"\x80"))
    with pytest.raises(FrameError, match="it is not encrypted"):
        new.open(Seal().frame(GROUP, 1.0, "g", b"\x80"))


def test_without_a_key_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer without keys never takes a ciphertext for a message, whatever its bytes happen to be."""
    monkeypatch.setattr(envelope.os, "urandom", lambda size: b"\x80" * size)  # msgpack for an empty dict
    with pytest.raises(FrameError, match="no symmetric_encryption_keys") as caught:
        Seal().open(Seal(["secret"]).frame(CHANNEL, 1.0, "some.channel", b"\x80"))
    assert caught.value.channel == "some.channel"


class Colour(enum.Enum):
    RED = "red"


class Choice(str, enum.Enum):  # noqa: UP042 what Django's TextChoices are
    ONE = "1"


class Circle(dict[str, Any]):
    pass


circle = Circle()
circle["me"] = circle


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"a": {"b": [0, uuid.UUID(int=1)]}}, r"message\['a'\]\['b'\]\[1\]: UUID"),
        ({"at": datetime.datetime(2026, 1, 1)}, r"message\['at'\]: datetime"),
        ({"price": decimal.Decimal(1)}, r"message\['price'\]: Decimal"),
        ({"c": Colour.RED}, r"message\['c'\]: Colour is an Enum; send its .value"),
        ({"c": Choice.ONE}, r"message\['c'\]: Choice is an Enum"),
        ({"s": {1}}, r"message\['s'\]: set"),
        ({"s": {"k": {2: 1}}}, r"message\['s'\]\['k'\]: the key 2 is int"),
        ({Colour.RED: 1}, "the key"),
        ({"n": 2**64}, r"message\['n'\]: 18446744073709551616 does not fit 64 bits"),
        ({"t": "\ud800"}, r"message\['t'\]: the text holds lone surrogates"),
        ({"o": object()}, r"message\['o'\]: object"),
        (circle, "contains itself"),
        (["a"], "a message is a dict, not list"),
        (7, "a message is a dict, not int"),
        (None, "a message is a dict, not NoneType"),
    ],
)
def test_what_cannot_travel_is_named(message: Any, complaint: str) -> None:
    """The error names the path of the value that is to blame, and is a TypeError."""
    with pytest.raises(InvalidMessage, match=complaint) as caught:
        encode(message, LIMIT)
    assert isinstance(caught.value, TypeError)


def test_what_looks_like_it_travels() -> None:
    """Subclasses of the types that travel, as values and as keys, arrive as those types."""

    class Text(str):
        pass

    class Data(bytes):
        pass

    message = {Text("k"): Text("v"), "b": Data(b"x"), "a": bytearray(b"y"), "m": memoryview(b"z"), "t": (1,)}
    opened = decode(encode(message, LIMIT))
    assert opened == {"k": "v", "b": b"x", "a": b"y", "m": b"z", "t": [1]}
    assert [type(value) for value in opened.values()] == [str, bytes, bytes, bytes, list]


def test_too_large() -> None:
    """The limit is exact and in encoded bytes."""
    size = len(encode({"d": b"x" * 500}, LIMIT))
    assert encode({"d": b"x" * 500}, size)
    with pytest.raises(MessageTooLarge, match=f"takes {size} bytes; max_message_size is {size - 1}"):
        encode({"d": b"x" * 500}, size - 1)


def test_decode_wants_a_dict() -> None:
    """A body that is no message is a FrameError."""
    for body in (b"", b"\x01", b"\xc1", b"\x81\x01", b"\x91\x01"):
        with pytest.raises(FrameError):
            decode(body)


def test_missing_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys without the package say what to install."""
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'trunkline\[crypto\]'"):
        envelope.Seal(["key"])
