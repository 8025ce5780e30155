"""Where tracing comes in: one place for the tracer, if there is any, and for what came with the message in hand.

The core knows no tracing library. Without a tracer a send and a receive cost one look at a variable more, and frames
are what they always were; with one, a few bytes that it made travel inside the envelope, encrypted as the message is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

__all__ = ["MAX_CONTEXT", "Tracer", "incoming", "set_tracer", "tracer"]

#: Bytes of context that may travel with a message; more is left out.
MAX_CONTEXT = 4096


class Tracer(Protocol):
    """What is told of every message."""

    def sending(self, destination: str, group: bool) -> AbstractContextManager[bytes]:
        """Around a send to a channel, or to a group; gives what is to travel with the message."""

    def handling(self, destination: str, kind: str, context: bytes) -> AbstractContextManager[object]:
        """Around the handling of a message of this ``type``, with what travelled with it (empty: nothing did)."""


#: The process's tracer.
tracer: Tracer | None = None
#: What travelled with the message that this task received last; kept only while there is a tracer.
incoming: ContextVar[bytes] = ContextVar("trunkline_incoming", default=b"")


def set_tracer(new: Tracer | None) -> None:
    """Install a tracer for all layers and consumers of this process; None: take it out."""
    global tracer
    tracer = new
