"""What a layer counts."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Stats"]


@dataclass(slots=True)
class Stats:
    """Counters since the node was opened, in messages."""

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
    #: Sends refused with ``ChannelFull``.
    refused: int = 0
    #: Sends to a channel whose process is gone.
    gone: int = 0
    #: Frames that could not be opened.
    unreadable: int = 0
    #: Events that were not what their handler's annotation says.
    invalid: int = 0
    #: Times the transport told that frames were lost.
    gaps: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Stats)))
