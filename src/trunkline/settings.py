"""The settings every layer has, checked when the layer is made."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict
from urllib.parse import SplitResult, urlsplit

from .codecs import Codec, codec_named
from .errors import ConfigurationError

__all__ = ["QUOTE", "Options", "Settings", "nearest", "shown_url", "split_url"]

#: The advice for a URL that cannot be what was meant.
QUOTE = "Write special characters of a password as %XX: urllib.parse.quote(password, safe='')"

Pattern = str | re.Pattern[str]


class Options(TypedDict, total=False):
    """Keyword arguments that every layer takes."""

    expiry: float
    group_expiry: float
    capacity: int
    channel_capacity: Mapping[Pattern, int] | None
    process_capacity: int
    max_message_size: int
    symmetric_encryption_keys: Sequence[str | bytes] | None
    serializer_format: str


@dataclass(slots=True)
class Settings:
    """What a layer promises, in numbers."""

    #: Seconds a message may wait before it is dropped, unread.
    expiry: float = 60
    #: Seconds a membership outlives the last sign of life of its channel.
    group_expiry: float = 86400
    #: Messages that may wait on one channel.
    capacity: int = 100
    #: Other capacities, by channel name: globs or compiled regular expressions; the first that matches counts.
    channel_capacity: Mapping[Pattern, int] | None = None
    #: Messages that may wait in one process, over all its channels.
    process_capacity: int = 100_000
    #: Bytes one encoded message may take.
    max_message_size: int = 16 * 1024 * 1024
    #: Secrets of any length; the first encrypts, all decrypt. None: no encryption.
    symmetric_encryption_keys: Sequence[str | bytes] | None = None
    #: How messages are encoded: "msgpack", "json" or a name given to ``register_serializer``.
    serializer_format: str = "msgpack"
    codec: Codec = field(init=False)
    #: ``channel_capacity`` compiled, in order.
    compiled: list[tuple[re.Pattern[str], int]] = field(init=False, default_factory=list)
    #: The patterns as they were written, in the same order.
    globs: list[str] = field(init=False, default_factory=list)
    _cache: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("expiry", "group_expiry"):
            _positive(name, getattr(self, name), (int, float), "seconds")
        for name, unit in (
            ("capacity", "messages"),
            ("process_capacity", "messages"),
            ("max_message_size", "bytes"),
        ):
            _positive(name, getattr(self, name), (int,), unit)
        keys = self.symmetric_encryption_keys
        if isinstance(keys, (str, bytes)):
            raise ConfigurationError("symmetric_encryption_keys is a list of keys, not one key: write [key]")
        if keys is not None and (isinstance(keys, Mapping) or not isinstance(keys, Iterable)):
            raise ConfigurationError(
                f"symmetric_encryption_keys is a list of keys, not {type(keys).__name__}"
            )
        keys = None if keys is None else list(keys)
        for key in keys or ():
            if not isinstance(key, (str, bytes)) or not key:
                raise ConfigurationError("symmetric_encryption_keys holds non-empty str or bytes keys")
        self.symmetric_encryption_keys = keys or []
        if not isinstance(self.serializer_format, str):
            kind = type(self.serializer_format).__name__
            raise ConfigurationError(f'serializer_format is a name, e.g. "msgpack" or "json", not {kind}')
        self.codec = codec_named(self.serializer_format)
        self._compile()

    def _compile(self) -> None:
        table = self.channel_capacity or {}
        if not isinstance(table, Mapping):
            raise ConfigurationError(
                f"channel_capacity is a dict of pattern: capacity, not {type(table).__name__}"
            )
        for pattern, capacity in table.items():
            _positive(f"channel_capacity[{pattern!r}]", capacity, (int,), "messages")
            if isinstance(pattern, str):
                self.compiled.append((re.compile(fnmatch.translate(pattern)), capacity))
            elif isinstance(pattern, re.Pattern):
                self.compiled.append((pattern, capacity))
            else:
                raise ConfigurationError(
                    f"channel_capacity: {pattern!r} is neither a glob nor a compiled regex"
                )
            self.globs.append(pattern if isinstance(pattern, str) else pattern.pattern)

    def capacity_of(self, channel: str) -> int:
        """Messages that may wait on this channel."""
        if not self.compiled:
            return self.capacity
        found = self._cache.get(channel)
        if found is None:
            found = next((size for rule, size in self.compiled if rule.match(channel)), self.capacity)
            if len(self._cache) >= 16384:
                self._cache.clear()
            self._cache[channel] = found
        return found

    @classmethod
    def build(cls, options: Mapping[str, Any], also: Iterable[str] = ()) -> Settings:
        """Make settings of keyword arguments; ``also`` are other keys the layer knows, for the hint.

        Raises:
            ConfigurationError: A key is unknown, with the nearest right one, or a value is wrong.
        """
        known = {name for name in cls.__dataclass_fields__ if cls.__dataclass_fields__[name].init}
        for key in options:
            if key not in known:
                raise ConfigurationError(f"unknown setting {key!r}{nearest(key, [*known, *also])}")
        return cls(**options)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the closest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"


def split_url(url: str, what: str) -> SplitResult:
    """The parts of a URL.

    Raises:
        ConfigurationError: It has none, or what looks like a password is where it cannot be. It is not shown.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may hold a part of the password
        raise ConfigurationError(f"{what}: {shown_url(url)!r} cannot be read as a URL. {QUOTE}") from None
    if "@" in parts.query + parts.fragment:
        raise ConfigurationError(f"{what}: a URL has an @ behind its ? or #. {QUOTE}")
    return parts


def shown_url(url: str) -> str:
    """A URL without its secrets, for texts that people read."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    return (
        scheme + mark + re.sub(r"(?i)\b([^?&=]*(?:password|key|secret|token)[^?&=]*=)[^&]*", r"\1***", rest)
    )


def _positive(name: str, value: Any, types: tuple[type, ...], unit: str) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, types)
    if wrong or not 0 < value < math.inf:
        kind = "a whole number" if types == (int,) else "a number"
        raise ConfigurationError(f"{name} is {kind} of {unit} above 0, not {value!r}")
