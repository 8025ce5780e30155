"""For whom a message is beyond its address: who is passed over, and who has had it already."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from . import names
from .errors import InvalidMessage

__all__ = ["Recent", "for_channel", "for_group", "passed_over"]

_MAX_ID = 200  # characters


def for_group(exclude: str | Iterable[str] | None, id: str | None) -> dict[str, Any]:
    """The options of a frame that say so.

    Raises:
        InvalidName: A channel to pass over is no channel name.
        InvalidMessage: The id is none.
    """
    made: dict[str, Any] = {} if id is None else {"id": _checked(id)}
    if exclude is not None:
        channels = [exclude] if isinstance(exclude, str) else list(exclude)
        for channel in channels:
            names.channel(channel)
        if channels:
            made["exclude"] = channels
    return made


def for_channel(channel: str, id: str) -> dict[str, Any]:
    """The options of a frame to a channel.

    Raises:
        InvalidMessage: The id is none, or the channel is one that several processes take from.
    """
    if names.channel(channel).node is None:
        raise InvalidMessage(
            f"{channel!r} is a channel that several processes may take from, and none of them knows what another has "
            "taken: send without id, and let the consumer look whether the work is done"
        )
    return {"id": _checked(id)}


def _checked(id: str) -> str:
    if not isinstance(id, str) or not 0 < len(id) <= _MAX_ID:
        raise InvalidMessage(f"id is a str of 1 to {_MAX_ID} characters, not {id!r}")
    return id


class Recent:
    """What came lately, by a key: forgotten between one and two times ``seconds`` later."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._new: dict[Any, set[str]] = {}
        self._old: dict[Any, set[str]] = {}
        self._turn_at = 0.0

    def of(self, key: Any, now: float) -> tuple[bool, set[str]]:
        """Whether the key is new, and what is noted under it."""
        if now >= self._turn_at:
            self._old = self._new if now < self._turn_at + self._seconds else {}
            self._new, self._turn_at = {}, now + self._seconds
        for known in (self._new, self._old):
            if key in known:
                return False, known[key]
        return True, self._new.setdefault(key, set())


def passed_over(options: Mapping[str, Any]) -> Collection[str]:
    """The channels that do not get it."""
    excluded = options.get("exclude", ())
    return excluded if isinstance(excluded, list) else ()
