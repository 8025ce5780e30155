"""What turns a message into bytes and back.

A codec is strict: what would arrive as another type than was sent is refused where it is sent, with the path of the value
that is to blame.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ormsgpack

from .errors import ConfigurationError, InvalidMessage

__all__ = ["JSON", "MSGPACK", "Codec", "codec_named", "register_serializer"]

# What these would turn into text arrives as another type than was sent.
_STRICT = (
    ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_ENUM
)


# The encoder asks for two and a half times what a large message takes. glibc maps whatever is above a threshold anew each
# time, and the kernel clears each page of it, which costs more than all else; the threshold follows the largest piece that
# was given back.
bytearray(8 << 20)


@dataclass(frozen=True, slots=True)
class Codec:
    """A named pair of functions. ``decode`` may raise anything: the message is then dropped and counted."""

    name: str
    encode: Callable[[Mapping[str, Any]], bytes]
    decode: Callable[[bytes], Any]


def _encode_msgpack(message: Mapping[str, Any]) -> bytes:
    try:
        body = ormsgpack.packb(message, option=_STRICT)
    except TypeError as error:
        body = _encode_plain(message, error)
    if body[0] & 0xF0 != 0x80 and body[0] not in (0xDE, 0xDF):
        raise InvalidMessage(f'a message is a dict, not {type(message).__name__}: write {{"type": …}}')
    return body


def _encode_json(message: Mapping[str, Any]) -> bytes:
    if not isinstance(message, dict):
        raise InvalidMessage(f'a message is a dict, not {type(message).__name__}: write {{"type": …}}')
    plain = _plain(message, "message", 0, binary=False)
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()


def _encode_plain(message: Any, error: TypeError) -> bytes:
    plain = _plain(message, "message", 0)
    try:
        return ormsgpack.packb(plain, option=_STRICT)
    except TypeError:  # nothing in it looks wrong to us: pass on what the encoder said
        raise InvalidMessage(f"the message cannot travel: {error}") from None


def _plain(value: Any, path: str, depth: int, binary: bool = True) -> Any:
    """Rebuild a value of the encoder's own types, or say where it holds another."""
    if depth > 128:
        raise InvalidMessage(f"{path[:60]}…: nested deeper than 128 levels, or it contains itself")
    if isinstance(value, enum.Enum):
        raise InvalidMessage(f"{path}: {type(value).__name__} is an Enum; send its .value")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or isinstance(key, enum.Enum):
                fix = "write its .value" if isinstance(key, enum.Enum) else f"write str({key!r})"
                raise InvalidMessage(
                    f"{path}: the key {key!r} is {type(key).__name__}; keys of a message are str: {fix}"
                )
        return {
            _text(key, path): _plain(item, f"{path}[{key!r}]", depth + 1, binary)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{index}]", depth + 1, binary) for index, item in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidMessage(f"{path}: {value} does not fit 64 bits; send it as a str")
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not binary:
            raise InvalidMessage(
                f"{path}: JSON carries no bytes; use serializer_format='msgpack', or send text"
            )
        return bytes(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise InvalidMessage(
        f"{path}: {type(value).__name__} is not a type that travels (None, bool, int, float, str, bytes, list, dict): "
        "turn it into one of them first, e.g. by str(…)"
    )


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"{path}: the text holds lone surrogates, which UTF-8 cannot carry") from None
    return str.__str__(text)


MSGPACK = Codec("msgpack", _encode_msgpack, ormsgpack.unpackb)
JSON = Codec("json", _encode_json, json.loads)
_codecs = {"msgpack": MSGPACK, "json": JSON}


def register_serializer(
    name: str, encode: Callable[[Mapping[str, Any]], bytes], decode: Callable[[bytes], Any]
) -> None:
    """Add a codec under the name that ``serializer_format`` takes; every process has to know it."""
    _codecs[name] = Codec(name, encode, decode)


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in _codecs:
        known = ", ".join(repr(known) for known in sorted(_codecs))
        raise ConfigurationError(
            f"serializer_format {name!r} is not known: {known}; trunkline.register_serializer(...) adds one"
        )
    return _codecs[name]
