"""Message and address in, frame out, and back.

A frame is what travels::

    magic u8 · kind u8 · expires f64 (seconds, the transport's clock) · sender 10 bytes · address length u8 · address · body

With ``OPTIONS`` in the kind, the body begins with a u16 length and so many bytes of msgpack: the options.

The body is the message in msgpack, or what ``serializer_format`` names; with encryption a 12-byte nonce and its AES-256-GCM
ciphertext, which also authenticates the part before it. A message is encoded when it is sent, whatever the transport, so
what cannot travel fails in the sender's hands.
"""

from __future__ import annotations

import copy
import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from . import typed
from .codecs import MSGPACK, Codec
from .errors import ConfigurationError, MessageTooLarge

__all__ = [
    "CHANNEL",
    "CONTROL",
    "DELAYED",
    "GROUP",
    "NO_OPTIONS",
    "OPTIONS",
    "RECORD",
    "REMEMBERED",
    "Envelope",
    "FrameError",
    "Message",
    "Seal",
    "decode",
    "delayed",
    "encode",
    "undelayed",
]

Message = dict[str, Any]

#: What a frame is for: the members of a group, one channel, the layer of another node, one channel at a later time
#: (``due``, of 8 bytes, before the message), the members of a group that remembers (the place, of 8 bytes, before it), or
#: to be kept beside a group.
GROUP, CHANNEL, CONTROL, DELAYED, REMEMBERED, RECORD = 1, 2, 3, 4, 5, 6
#: Added to the kind of a frame that has options.
OPTIONS = 0x40

#: The first byte says whether the body is encrypted: the decoder would take one ciphertext in 256 for an empty dict.
_MAGIC = _PLAIN, _SEALED = 0xA9, 0xAA
_header = struct.Struct("<BBd10sB")
_due = struct.Struct("<d")
_length = struct.Struct("<H")
_NONCE = 12


class FrameError(Exception):
    """A frame that cannot be opened: foreign, damaged, or encrypted with a key this layer does not have."""

    #: The channel it was for, when it was posted to one and that much could be read.
    channel: str | None = None


NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Envelope(NamedTuple):
    """An opened frame."""

    kind: int
    expires: float
    address: str
    body: bytes
    #: The node that sent it, as ``names.new_node`` makes them, in bytes; zeros: not said.
    sender: bytes
    options: Mapping[str, Any] = NO_OPTIONS


def encode(message: typed.MessageLike, limit: int, codec: Codec = MSGPACK) -> bytes:
    """Encode a message, a dict or a typed object.

    Raises:
        InvalidMessage: Neither, or a value in it cannot travel; names its path.
        MessageTooLarge: More than ``limit`` bytes.
    """
    body = codec.encode(message if type(message) is dict else typed.plain(message))
    if len(body) > limit:
        raise MessageTooLarge(
            f"the message takes {len(body):,} bytes; max_message_size is {limit:,}. "
            "Raise it, or store the data elsewhere and send a reference."
        )
    return body


def decode(body: bytes, codec: Codec = MSGPACK) -> Message:
    """Decode a body; every call makes a new dict.

    Raises:
        FrameError: It holds no message.
    """
    try:
        message = codec.decode(body)
    except Exception as error:  # whatever a registered serializer raises
        raise FrameError(f"the body is not {codec.name}: {error}") from None
    if type(message) is not dict:
        raise FrameError(f"the body holds no dict but {type(message).__name__}")
    return message


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

    frame: Callable[[int, float, str, bytes], bytes]

    def __init__(self, keys: Sequence[str | bytes] = ()) -> None:
        self._ciphers = [_cipher(key) for key in keys]
        self._sign("")
        self._secret = b"".join(
            hashlib.sha256(b"blind" + (key.encode() if isinstance(key, str) else key)).digest()
            for key in keys[:1]
        )

    def of(self, node: str) -> Seal:
        """The same, with this node as the sender of every frame; "" is nobody."""
        seal = copy.copy(self)
        seal._sign(node)
        return seal

    def _sign(self, node: str) -> None:
        self.sender = bytes.fromhex(node).ljust(10, b"\0")
        self.frame = self._sealed if self._ciphers else self._plain

    def blind(self, text: str) -> str:
        """A short name for a text, always the same; it tells nothing about the text to whoever has not the first key."""
        return hashlib.blake2b(text.encode(), digest_size=12, key=self._secret).hexdigest()

    def frame_with(
        self, kind: int, expires: float, address: str, body: bytes, options: Mapping[str, Any]
    ) -> bytes:
        """A frame with options; without any, the same as ``frame``."""
        if not options:
            return self.frame(kind, expires, address, body)
        packed = MSGPACK.encode(dict(options))
        return self.frame(kind | OPTIONS, expires, address, _length.pack(len(packed)) + packed + body)

    def _plain(self, kind: int, expires: float, address: str, body: bytes) -> bytes:
        return _header.pack(_PLAIN, kind, expires, self.sender, len(address)) + address.encode("ascii") + body

    def _sealed(self, kind: int, expires: float, address: str, body: bytes) -> bytes:
        head = _header.pack(_SEALED, kind, expires, self.sender, len(address)) + address.encode("ascii")
        nonce = os.urandom(_NONCE)
        return head + nonce + self._ciphers[0].encrypt(nonce, body, head)

    def open(self, frame: bytes) -> Envelope:
        """Open a frame.

        Raises:
            FrameError: It is foreign or damaged, or no key opens it.
        """
        try:
            magic, kind, expires, sender, length = _header.unpack_from(frame)
            end = 21 + length
            if magic not in _MAGIC or len(frame) < end:
                raise FrameError("not a frame of this version of Trunkline")
            address = frame[21:end].decode("ascii")
        except (struct.error, UnicodeDecodeError):
            raise FrameError("not a frame of this version of Trunkline") from None
        body = frame[end:]
        if self._ciphers or magic == _SEALED:
            try:
                body = self._decrypt(magic, frame[:end], body)
            except FrameError as error:
                error.channel = address if kind & ~OPTIONS in (CHANNEL, DELAYED) else None
                raise
        if kind & OPTIONS:
            return _with_options(Envelope(kind - OPTIONS, expires, address, body, sender))
        # As Envelope(…) does, without a call in between: this is once for every message.
        return tuple.__new__(Envelope, (kind, expires, address, body, sender, NO_OPTIONS))

    def _decrypt(self, magic: int, head: bytes, sealed: bytes) -> bytes:
        if not self._ciphers:
            raise FrameError("it is encrypted, and this layer has no symmetric_encryption_keys")
        if magic != _SEALED:
            raise FrameError("it is not encrypted, and this layer has symmetric_encryption_keys")
        from cryptography.exceptions import InvalidTag

        for cipher in self._ciphers:
            try:
                return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], head)
            except (InvalidTag, ValueError):
                continue
        raise FrameError("no key in symmetric_encryption_keys opens it")


def _with_options(envelope: Envelope) -> Envelope:
    kind, expires, address, body, sender, _ = envelope
    try:
        (length,) = _length.unpack_from(body)
        options = MSGPACK.decode(body[2 : 2 + length])
        if type(options) is not dict:
            raise ValueError("not a dict")
    except Exception as error:
        wrong = FrameError(f"its options cannot be read: {error}")
        wrong.channel = address if kind in (CHANNEL, DELAYED) else None
        raise wrong from None
    return Envelope(kind, expires, address, body[2 + length :], sender, options)


def delayed(due: float, body: bytes) -> bytes:
    """The body of a DELAYED frame."""
    return _due.pack(due) + body


def undelayed(body: bytes) -> tuple[float, bytes]:
    """When a DELAYED frame is due, and its message.

    Raises:
        FrameError: It does not say when.
    """
    try:
        return _due.unpack_from(body)[0], body[_due.size :]
    except struct.error:
        raise FrameError("it does not say when it is due") from None
