"""A switchboard looked at: how many channels, groups and messages there are, and which channels are slow.

It costs nothing until somebody looks, and then a pass over the mailboxes.
"""

from __future__ import annotations

from .settings import Settings
from .stats import Slow, Stats, pattern_of, slowest
from .switchboard import Switchboard

__all__ = ["fill", "label"]


def fill(stats: Stats, board: Switchboard, settings: Settings, now: float) -> None:
    """Add what there is at this moment to a copy of the counters."""
    names: dict[str, str] = {}
    slow: list[Slow] = []
    # Another thread may ask: the list is made in one step, the rest reads what may just have changed.
    for box in list(board.boxes.values()):
        # Without globs, what stands before the mark decides, and all channels of a kind share that.
        kind = box.channel if settings.globs else box.channel.partition("!")[0]
        name = names.get(kind)
        if name is None:
            name = names[kind] = label(box.channel, settings)
        waiting = len(box.parcels)
        oldest = 0.0
        if waiting:
            try:
                oldest = max(0.0, now - (box.parcels[0][0].expires - settings.expiry))
            except IndexError:  # taken meanwhile, in the thread that owns it
                waiting = 0
            else:
                slow.append(Slow(box.channel, waiting, box.capacity, round(oldest, 3)))
        pattern = stats.pattern(name)
        pattern.channels += 1
        pattern.waiting += waiting
        pattern.deepest = max(pattern.deepest, waiting)
        pattern.oldest = max(pattern.oldest, round(oldest, 3))
        stats.memberships += len(box.groups)
        stats.channels += 1
    stats.groups = len(board.groups)
    stats.waiting = board.waiting
    stats.slowest = slowest(slow)


def label(channel: str, settings: Settings) -> str:
    """The pattern under which a channel's drops are counted."""
    return pattern_of(channel, settings.compiled, settings.globs)
