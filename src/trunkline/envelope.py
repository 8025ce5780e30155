"""Message and address in, frame out, and back.

A frame is what travels::

    magic u8 · kind u8 · expires f64 (seconds, the transport's clock) · address length u8 · address · body

The body is the message in msgpack, or with encryption a 12-byte nonce and its AES-256-GCM ciphertext; the part before it
is authenticated with it. A message is encoded when it is sent, whatever the transport, so what cannot travel fails in
the sender's hands, with the path of the value that is to blame.
"""

from __future__ import annotations

import enum
import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ormsgpack

from .errors import ConfigurationError, InvalidMessage, MessageTooLarge

__all__ = ["CHANNEL", "CONTROL", "GROUP", "Envelope", "FrameError", "Message", "Seal", "decode", "encode"]

Message = dict[str, Any]

#: What a frame is for: the members of a group, one channel, or the layer of another node.
GROUP, CHANNEL, CONTROL = 1, 2, 3

_MAGIC = 0xA7
_header = struct.Struct("<BBdB")
_NONCE = 12

# Strict on purpose: what these would turn into text arrives as another type than was sent.
_STRICT = (
    ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_ENUM
)


class FrameError(Exception):
    """A frame that cannot be opened: foreign, damaged, or encrypted with a key this layer does not have."""

    #: The channel it was for, when it was posted to one and that much could be read.
    channel: str | None = None


class Envelope(NamedTuple):
    """An opened frame."""

    kind: int
    expires: float
    address: str
    body: bytes


def encode(message: Mapping[str, Any], limit: int) -> bytes:
    """Encode a message.

    Raises:
        InvalidMessage: Not a dict, or a value in it cannot travel; names its path.
        MessageTooLarge: More than ``limit`` bytes.
    """
    try:
        body = ormsgpack.packb(message, option=_STRICT)
    except TypeError as error:
        body = _encode_plain(message, error)
    if body[0] & 0xF0 != 0x80 and body[0] not in (0xDE, 0xDF):
        raise InvalidMessage(f"a message is a dict, not {type(message).__name__}")
    if len(body) > limit:
        raise MessageTooLarge(
            f"the message takes {len(body):,} bytes; max_message_size is {limit:,}. "
            "Raise it, or store the data elsewhere and send a reference."
        )
    return body


def decode(body: bytes) -> Message:
    """Decode a body; every call makes a new dict.

    Raises:
        FrameError: It holds no message.
    """
    try:
        message = ormsgpack.unpackb(body)
    except ValueError as error:
        raise FrameError(f"the body is not msgpack: {error}") from None
    if type(message) is not dict:
        raise FrameError(f"the body holds no dict but {type(message).__name__}")
    return message


def _encode_plain(message: Any, error: TypeError) -> bytes:
    plain = _plain(message, "message", 0)
    try:
        return ormsgpack.packb(plain, option=_STRICT)
    except TypeError:  # nothing in it looks wrong to us: pass on what the encoder said
        raise InvalidMessage(f"the message cannot travel: {error}") from None


def _plain(value: Any, path: str, depth: int) -> Any:
    """Rebuild a value of the encoder's own types, or say where it holds another."""
    if depth > 128:
        raise InvalidMessage(f"{path[:60]}…: nested deeper than 128 levels, or it contains itself")
    if isinstance(value, enum.Enum):
        raise InvalidMessage(f"{path}: {type(value).__name__} is an Enum; send its .value")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or isinstance(key, enum.Enum):
                raise InvalidMessage(
                    f"{path}: the key {key!r} is {type(key).__name__}; keys of a message are str"
                )
        return {_text(key, path): _plain(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidMessage(f"{path}: {value} does not fit 64 bits; send it as a str")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise InvalidMessage(
        f"{path}: {type(value).__name__} is not a type that travels (None, bool, int, float, str, bytes, list, dict)"
    )


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"{path}: the text holds lone surrogates, which UTF-8 cannot carry") from None
    return str.__str__(text)


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


def _cipher(key: str | bytes) -> _Cipher:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigurationError(
            "symmetric_encryption_keys needs the cryptography package: pip install 'trunkline[crypto]'"
        ) from error
    return AESGCM(hashlib.sha256(key.encode() if isinstance(key, str) else key).digest())


class Seal:
    """Makes frames and opens them; with keys, the first encrypts and every one decrypts."""

    def __init__(self, keys: Sequence[str | bytes] = ()) -> None:
        self._ciphers = [_cipher(key) for key in keys]
        self.frame: Callable[[int, float, str, bytes], bytes] = self._sealed if self._ciphers else _frame

    def _sealed(self, kind: int, expires: float, address: str, body: bytes) -> bytes:
        head = _frame(kind, expires, address, b"")
        nonce = os.urandom(_NONCE)
        return head + nonce + self._ciphers[0].encrypt(nonce, body, head)

    def open(self, frame: bytes) -> Envelope:
        """Open a frame.

        Raises:
            FrameError: It is foreign or damaged, or no key opens it.
        """
        try:
            magic, kind, expires, length = _header.unpack_from(frame)
            end = 11 + length
            if magic != _MAGIC or len(frame) < end:
                raise FrameError("not a frame of this version of Trunkline")
            address = frame[11:end].decode("ascii")
        except (struct.error, UnicodeDecodeError):
            raise FrameError("not a frame of this version of Trunkline") from None
        body = frame[end:]
        if self._ciphers:
            try:
                body = self._decrypt(frame[:end], body)
            except FrameError as error:
                error.channel = address if kind == CHANNEL else None
                raise
        return Envelope(kind, expires, address, body)

    def _decrypt(self, head: bytes, sealed: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        for cipher in self._ciphers:
            try:
                return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], head)
            except (InvalidTag, ValueError):
                continue
        raise FrameError("no key in symmetric_encryption_keys opens it")


def _frame(kind: int, expires: float, address: str, body: bytes) -> bytes:
    return _header.pack(_MAGIC, kind, expires, len(address)) + address.encode("ascii") + body
