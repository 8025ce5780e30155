"""Every error that Trunkline raises on purpose.

::

    TrunklineError
    ├── UsageError                 the caller's mistake: mend the call
    │   ├── InvalidName            also TypeError: a channel, group or prefix breaks the naming rules
    │   ├── InvalidMessage         also TypeError: not a dict, or a value in it cannot travel
    │   ├── InvalidEvent           also ValueError: an event is not what its handler's annotation says
    │   ├── ConfigurationError     also ValueError: a setting is unknown, mistyped or out of range
    │   ├── NotOwner               also ValueError: receive() on a channel of another process
    │   └── consumers.NoHandler    also ValueError: an event's type names no method of its consumer
    ├── Refused                    a normal outcome: the message was not taken, the sender is told
    │   ├── ChannelFull
    │   └── MessageTooLarge
    ├── TransportUnavailable       also ConnectionError: nothing was sent, safe to retry, unless its text says that
    │                              the message was on its way and may have arrived
    ├── HistoryLost                also LookupError: what came after a position is no longer known
    └── LayerClosed                also RuntimeError: the layer was closed while the call waited

``ChannelFull`` and ``MessageTooLarge`` are also caught by ``except`` clauses written against the classes of the same
name in ``channels.exceptions``, once Django Channels has been imported.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Self

__all__ = [
    "ChannelFull",
    "ConfigurationError",
    "HistoryLost",
    "InvalidEvent",
    "InvalidMessage",
    "InvalidName",
    "LayerClosed",
    "MessageTooLarge",
    "NotOwner",
    "Refused",
    "TransportUnavailable",
    "TrunklineError",
    "UsageError",
]


class TrunklineError(Exception):
    """Something went wrong in the channel layer."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").partition("\n")[0]


class UsageError(TrunklineError):
    """The call itself is wrong; it will fail again until it is mended."""


class InvalidName(UsageError, TypeError):
    """A channel or group name breaks the naming rules."""


class InvalidMessage(UsageError, TypeError):
    """The message is not a dict, or holds a value that cannot travel."""


class InvalidEvent(UsageError, ValueError):
    """An event is not what the annotation of its handler says.

    Attributes:
        field: Which part of it, for example ``ChatMessage.user.id``.
        event: The event as it came.
        sender: The name of the node that sent it, as in ``ChannelLayer.survey``; None when it is not known, or it came from
            the client.
        group: The group it was sent to; None when it was sent to the channel itself, or that is not known.
    """

    def __init__(self, text: str, field: str = "", event: Any = None) -> None:
        super().__init__(text)
        self.field = field
        self.event = event
        self.sender: str | None = None
        self.group: str | None = None


class ConfigurationError(UsageError, ValueError):
    """A setting is unknown, mistyped or out of range."""


class NotOwner(UsageError, ValueError):
    """Only the process that made a channel can receive on it."""


@functools.cache
def _twin(ours: type[Refused], theirs: type[Exception]) -> type[Refused]:
    return type(ours.__name__, (ours, theirs), {"__doc__": ours.__doc__, "__module__": ours.__module__})


class Refused(TrunklineError):
    """The message was not taken. Nothing was sent."""

    def __new__(cls, *args: Any) -> Self:
        # `except channels.exceptions.ChannelFull` matches by inheritance only, and whoever wrote that line has
        # imported the module: join its class then, and import nothing otherwise.
        theirs = getattr(sys.modules.get("channels.exceptions"), cls.__name__, None)
        if isinstance(theirs, type) and not issubclass(cls, theirs):
            return super().__new__(_twin(cls, theirs), *args)  # type: ignore[return-value, arg-type]
        return super().__new__(cls, *args)


class ChannelFull(Refused):
    """The channel holds as many messages as its capacity allows."""

    def __str__(self) -> str:
        return f"{super().__str__().rstrip('.')}. It was not sent: send it later, raise the capacity, or add readers"


class MessageTooLarge(Refused):
    """The message is larger than the layer carries."""


class TransportUnavailable(TrunklineError, ConnectionError):
    """The transport cannot be reached. Nothing was sent; safe to retry.

    Except where the text says that the message was on its way and may have arrived: its answer alone was lost.
    """


class HistoryLost(TrunklineError, LookupError):
    """What came after a position is no longer known for certain: too old, or the server lost it. Load everything anew."""


class LayerClosed(TrunklineError, RuntimeError):
    """The layer was closed while the call was waiting."""
