"""How often a link does what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]


@dataclass(frozen=True)
class Pace:
    """How often what is done; in seconds."""

    #: A sign of life, and a probe of the push connection when it was silent as long.
    heartbeat: float = 2.5
    #: A node without a sign of life for so long is dead, unless the server still has its subscription. Beats come
    #: every 1 to 1.5 heartbeats, so two may be late before that question is even asked.
    life: float = 8.0
    #: The ends of quiet logs are looked at, against anything nobody thought of.
    audit: float = 30.0
    #: Answered frames are kept, for a server that loses what it answered.
    window: float = 5.0
    #: A frame that is missing in its log is waited for: its sender may be repeating it.
    patience: float = 1.0
    #: Longest pause between two attempts to connect. A server that comes back empty gets twice as long, so that the
    #: other nodes are back before we send.
    backoff: float = 0.5
    #: Whether silence of the push connection is probed at all.
    probe: bool = True
