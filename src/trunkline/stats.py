"""What a layer counts, and what it says about its health. Plain values, which can travel as a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from .transport import Server

__all__ = ["DOWN_AFTER", "Health", "Origin", "Pattern", "Report", "Slow", "Stats", "judge", "pattern_of"]

#: Seconds without a sign of life after which a server counts as down.
DOWN_AFTER = 15.0
#: Slow channels that are named.
_SLOWEST = 5
#: Patterns that are told apart; the channels of further ones count as ``*``.
_PATTERNS = 256

State = Literal["ok", "degraded", "down"]

_owned = re.compile(r"\.[0-9a-f]{20}!.*").sub


def pattern_of(channel: str, compiled: Iterable[tuple[re.Pattern[str], int]], globs: Iterable[str]) -> str:
    """The pattern a channel is counted under.

    The first of ``channel_capacity`` that matches; otherwise ``prefix.*`` for what ``new_channel`` made, and ``*``.
    """
    for (rule, _), glob in zip(compiled, globs, strict=True):
        if rule.match(channel):
            return glob
    return _owned(".*", channel) if "!" in channel else "*"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from."""

    #: The name of the node that sent it, one process and loop; as in ``ChannelLayer.survey``. None: not known.
    node: str | None
    #: The group it was sent to; None: to the channel itself.
    group: str | None


@dataclass(slots=True)
class Pattern:
    """The channels of one pattern, in messages."""

    #: Group messages missed by members whose channel was full, since the node was opened.
    missed: int = 0
    #: Sends refused with ``ChannelFull``, since the node was opened.
    refused: int = 0
    #: Channels of this process there are now.
    channels: int = 0
    #: Messages waiting now, over all of them.
    waiting: int = 0
    #: Messages waiting now on the fullest of them.
    deepest: int = 0
    #: Seconds that the oldest waiting message has waited.
    oldest: float = 0.0

    def __add__(self, other: Pattern) -> Pattern:
        return Pattern(
            self.missed + other.missed,
            self.refused + other.refused,
            self.channels + other.channels,
            self.waiting + other.waiting,
            max(self.deepest, other.deepest),
            max(self.oldest, other.oldest),
        )


@dataclass(slots=True)
class Slow:
    """A channel on which messages wait."""

    channel: str
    waiting: int
    capacity: int
    #: Seconds that the oldest of them has waited.
    oldest: float


@dataclass(slots=True)
class Stats:
    """Counters since the node was opened, in messages; from ``channels`` on, what there is at this moment."""

    sent: int = 0
    group_sent: int = 0
    #: Put into a mailbox of this process.
    delivered: int = 0
    #: Handed over by ``receive``.
    received: int = 0
    #: Dropped because they waited longer than ``expiry``.
    expired: int = 0
    #: Group messages missed by a member whose channel was full.
    missed: int = 0
    #: Messages replaced by a newer one of their group, where only the newest is worth having.
    replaced: int = 0
    #: Sends refused with ``ChannelFull``.
    refused: int = 0
    #: Sends to a channel whose process is gone.
    gone: int = 0
    #: Frames that could not be opened.
    unreadable: int = 0
    #: Times the transport told that frames were lost.
    gaps: int = 0
    #: Events that were not what their handler's annotation says.
    invalid: int = 0
    #: Channels of this process that are in use.
    channels: int = 0
    #: Groups with a member in this process.
    groups: int = 0
    #: Memberships of channels of this process.
    memberships: int = 0
    #: Topics the transport has subscribed to for them.
    subscriptions: int = 0
    #: Messages waiting in mailboxes of this process. What waits in shared queues is the transport's.
    waiting: int = 0
    #: Operations that wait to be sent, or for a server's answer.
    outbox: int = 0
    #: By pattern: the globs of ``channel_capacity``, ``prefix.*`` for what ``new_channel`` made, ``*`` for the rest.
    patterns: dict[str, Pattern] = field(default_factory=dict)
    #: The channels whose oldest message has waited longest, and the fullest ones.
    slowest: list[Slow] = field(default_factory=list)

    def __add__(self, other: Stats) -> Stats:
        """The counts of two together."""
        total = Stats(*(getattr(self, name) + getattr(other, name) for name in _NUMBERS))
        for stats in (self, other):
            for name, pattern in stats.patterns.items():
                total.patterns[name] = total.patterns.get(name, Pattern()) + pattern
        total.slowest = slowest([*self.slowest, *other.slowest])
        return total

    def pattern(self, name: str) -> Pattern:
        """The counts of one pattern, made on first use."""
        found = self.patterns.get(name)
        if found is None:
            name = name if len(self.patterns) < _PATTERNS else "*"
            found = self.patterns.setdefault(name, Pattern())
        return found

    def copy(self) -> Stats:
        """The same counts, which do not go on."""
        return replace(
            self,
            patterns={name: replace(pattern) for name, pattern in list(self.patterns.items())},
            slowest=list(self.slowest),
        )

    @property
    def dropped(self) -> int:
        """Messages that some receiver did not get: expired, missed, refused, gone, unreadable or invalid."""
        return self.expired + self.missed + self.refused + self.gone + self.unreadable + self.invalid

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """What ``asdict`` made, back; fields of a newer version are left out."""
        made = cls(**{name: content[name] for name in _NUMBERS if name in content})
        made.patterns = {name: _known(Pattern, each) for name, each in content.get("patterns", {}).items()}
        made.slowest = [_known(Slow, each) for each in content.get("slowest", [])]
        return made


_NUMBERS = tuple(each.name for each in fields(Stats) if each.name not in ("patterns", "slowest"))


def slowest(channels: list[Slow]) -> list[Slow]:
    """The oldest and the deepest of them, the oldest first."""
    deepest = sorted(channels, key=lambda each: -each.waiting)[:_SLOWEST]
    oldest = sorted(channels, key=lambda each: -each.oldest)[:_SLOWEST]
    return oldest + [each for each in deepest if each not in oldest]


@dataclass(slots=True)
class Health:
    """Whether a layer works, as far as this process knows."""

    #: ``ok``; ``degraded``: a part does not work; ``down``: nothing can be sent to other processes.
    state: State = "ok"
    #: What is wrong, in words; empty when it is ok.
    reasons: list[str] = field(default_factory=list)
    #: Since when it is in that state, as far as is known: Unix time in seconds.
    since: float = 0.0
    #: What the transport is linked to.
    servers: list[Server] = field(default_factory=list)

    def asdict(self) -> dict[str, Any]:
        """It as a dict of plain values."""
        return {
            "state": self.state,
            "reasons": self.reasons,
            "since": self.since,
            "servers": [server._asdict() for server in self.servers],
        }


def judge(servers: Iterable[Server], full: str = "") -> Health:
    """Health from what the transport tells of its servers; ``full`` says what else is wrong.

    A server that is not up, or was silent for 15 seconds, is down; the layer is down when all are.
    """
    found, reasons = list(servers), []
    for server in found:
        if not server.up:
            reasons.append(f"{server.name} is down: {server.trouble or 'no connection'}")
        elif server.silent is not None and server.silent > DOWN_AFTER:
            reasons.append(f"{server.name} gave no sign of life for {server.silent:.0f} s")
        elif server.trouble:
            reasons.append(f"{server.name}: {server.trouble}")
    dead = [server for server in found if not server.up or (server.silent or 0.0) > DOWN_AFTER]
    state: State = "down" if found and len(dead) == len(found) else "degraded" if reasons or full else "ok"
    return Health(state, [*reasons, *([full] if full else [])], 0.0, found)


@dataclass(slots=True)
class Report:
    """What one node of the deployment says about itself."""

    node: str
    host: str
    pid: int
    #: The program it runs, without its path and arguments.
    program: str
    #: When it was opened: Unix time of its host.
    opened: float
    stats: Stats
    health: Health

    def asdict(self) -> dict[str, Any]:
        """It as a dict of plain values."""
        content = asdict(self)
        content["health"] = self.health.asdict()
        return content

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """What ``asdict`` made, back."""
        health = content["health"]
        return cls(
            content["node"],
            content["host"],
            content["pid"],
            content["program"],
            content["opened"],
            Stats.of(content["stats"]),
            Health(
                health["state"],
                health["reasons"],
                health["since"],
                [Server(*(each[name] for name in Server._fields)) for each in health["servers"]],
            ),
        )


def _known(kind: type[Any], content: Mapping[str, Any]) -> Any:
    return kind(**{each.name: content[each.name] for each in fields(kind) if each.name in content})
