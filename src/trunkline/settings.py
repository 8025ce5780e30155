"""The settings every layer has, checked when the layer is made."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict
from urllib.parse import SplitResult, urlsplit

from .codecs import Codec, codec_named
from .errors import ConfigurationError

__all__ = [
    "QUOTE",
    "Kept",
    "Options",
    "Overflow",
    "Settings",
    "nearest",
    "parse_number",
    "positive",
    "shown_url",
    "split_url",
]

#: The advice for a URL that cannot be what was meant.
QUOTE = "Write special characters of a password as %XX: urllib.parse.quote(password, safe='')"

Pattern = str | re.Pattern[str]

#: What a layer may have in its ``extensions``.
EXTENSIONS = ("groups", "flush", "leases", "history", "presence")


class Kept(NamedTuple):
    """How much a group remembers."""

    size: int
    seconds: float


class Overflow(NamedTuple):
    """What a full channel does with a further group message."""

    what: str
    #: With which code its consumer is closed.
    code: int = 0


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
    history: Mapping[Pattern, Mapping[str, float]] | None
    latest_only: Sequence[Pattern] | None
    overflow: Mapping[Pattern, str] | None
    requires: Sequence[str] | str


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
    #: Groups that remember their events, by name as above: ``{"size": events, "seconds": how long}``.
    history: Mapping[Pattern, Mapping[str, float]] | None = None
    #: Groups of whose messages a member that is slow gets only the newest, by name as above.
    latest_only: Sequence[Pattern] | None = None
    #: What a full channel does with a further group message, by name as above: "drop newest" (also where nothing is
    #: said), "drop oldest", "latest only", or "close 4008" to end its consumer with that code.
    overflow: Mapping[Pattern, str] | None = None
    #: Extensions without which the layer is not to be made: a list, or names with commas between them.
    requires: Sequence[str] | str = ()
    codec: Codec = field(init=False)
    #: ``channel_capacity`` compiled, in order.
    compiled: list[tuple[re.Pattern[str], int]] = field(init=False, default_factory=list)
    #: The patterns as they were written, in the same order.
    globs: list[str] = field(init=False, default_factory=list)
    #: ``history`` compiled, in order.
    histories: list[tuple[re.Pattern[str], Kept]] = field(init=False, default_factory=list)
    #: ``latest_only`` and ``overflow`` compiled, in order.
    latest: list[re.Pattern[str]] = field(init=False, default_factory=list)
    overflows: list[tuple[re.Pattern[str], Overflow]] = field(init=False, default_factory=list)
    _cache: dict[str, int] = field(init=False, default_factory=dict)
    _kept: dict[str, Kept | None] = field(init=False, default_factory=dict)
    _latest: dict[str, bool] = field(init=False, default_factory=dict)

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
        requires = self.requires
        if isinstance(requires, str):
            requires = [name.strip() for name in requires.split(",")]
        if not isinstance(requires, Iterable):
            raise ConfigurationError(f"requires is a list of extensions, not {requires!r}")
        self.requires = list(requires)
        for name in self.requires:
            if name not in EXTENSIONS:
                raise ConfigurationError(
                    f"requires: {name!r} is no extension{nearest(str(name), EXTENSIONS)}"
                )
        self.codec = codec_named(self.serializer_format)
        self._compile()

    def _compile(self) -> None:
        for pattern, rule, capacity in _rules("channel_capacity", self.channel_capacity, "capacity"):
            _positive(f"channel_capacity[{pattern!r}]", capacity, (int,), "messages")
            self.compiled.append((rule, capacity))
            self.globs.append(pattern if isinstance(pattern, str) else pattern.pattern)
        for pattern, rule, kept in _rules("history", self.history, "{'size': …, 'seconds': …}"):
            where = f"history[{pattern!r}]"
            if not isinstance(kept, Mapping) or set(kept) != {"size", "seconds"}:
                raise ConfigurationError(f"{where} is {{'size': events, 'seconds': how long}}, not {kept!r}")
            _positive(f"{where}['size']", kept["size"], (int,), "events")
            _positive(f"{where}['seconds']", kept["seconds"], (int, float), "seconds")
            self.histories.append((rule, Kept(kept["size"], kept["seconds"])))

        latest = self.latest_only
        if isinstance(latest, str) or (latest is not None and not isinstance(latest, Iterable)):
            raise ConfigurationError(f"latest_only is a list of patterns, not {latest!r}")
        self.latest = [rule for _, rule, _ in _rules("latest_only", dict.fromkeys(latest or ()), "")]
        for pattern, rule, what in _rules("overflow", self.overflow, "what to do"):
            self.overflows.append((rule, _overflow(f"overflow[{pattern!r}]", what)))

    def is_latest_only(self, group: str) -> bool:
        """Whether a slow member gets only the newest message of the group."""
        found = self._latest.get(group)
        if found is None:
            _bound(self._latest)
            found = self._latest[group] = any(rule.match(group) for rule in self.latest)
        return found

    def overflow_of(self, channel: str) -> Overflow | None:
        """What the channel does when it is full; None: it misses what is new."""
        found = next((what for rule, what in self.overflows if rule.match(channel)), None)
        return None if found is None or found.what == "drop newest" else found

    def kept_of(self, group: str) -> Kept | None:
        """How much a group remembers; None: nothing."""
        if group not in self._kept:
            _bound(self._kept)
            self._kept[group] = next((kept for rule, kept in self.histories if rule.match(group)), None)
        return self._kept[group]

    def capacity_of(self, channel: str) -> int:
        """Messages that may wait on this channel."""
        if not self.compiled:
            return self.capacity
        found = self._cache.get(channel)
        if found is None:
            found = next((size for rule, size in self.compiled if rule.match(channel)), self.capacity)
            _bound(self._cache)
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


def _bound(cache: dict[str, Any]) -> None:
    """Names come from outside: what is remembered of them must not grow for ever."""
    if len(cache) >= 16384:
        cache.clear()


def _rules(name: str, table: Any, value: str) -> Iterator[tuple[Pattern, re.Pattern[str], Any]]:
    """The entries of a table by patterns, each with its compiled pattern.

    Raises:
        ConfigurationError: It is no table, or one of its keys no pattern.
    """
    if table is not None and not isinstance(table, Mapping):
        raise ConfigurationError(f"{name} is a dict of pattern: {value}, not {type(table).__name__}")
    for pattern, entry in (table or {}).items():
        if isinstance(pattern, str):
            yield pattern, re.compile(fnmatch.translate(pattern)), entry
        elif isinstance(pattern, re.Pattern):
            yield pattern, pattern, entry
        else:
            raise ConfigurationError(f"{name}: {pattern!r} is neither a glob nor a compiled regex")


def _overflow(where: str, what: Any) -> Overflow:
    known = ["drop newest", "drop oldest", "latest only", "close CODE"]
    if what in known[:3]:
        return Overflow(what)
    word, _, code = what.partition(" ") if isinstance(what, str) else ("", "", "")
    if word == "close" and code.isascii() and code.isdigit():
        if not 4000 <= int(code) <= 4999:
            raise ConfigurationError(f"{where}: a close code of an application is 4000 to 4999, not {code}")
        return Overflow("close", int(code))
    raise ConfigurationError(f"{where}: {what!r} is none of: {', '.join(known)}{nearest(str(what), known)}")


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


def positive(key: str, value: Any) -> float:
    """A setting of a transport that is a number above 0.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(f"{key} is a number above 0, not {value!r}")
    return float(value)


def parse_number(key: str, value: str) -> float:
    """The number in a URL's text.

    Raises:
        ConfigurationError: It holds none.
    """
    try:
        return float(value)
    except ValueError:
        raise ConfigurationError(f"{key} in the URL is a number, not {value!r}") from None
