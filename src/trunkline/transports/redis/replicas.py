"""Waiting for replicas: what leaves together waits together, by one ``WAIT`` behind it.

Rules of this room: a server holds back a connection's later commands while it waits, so nothing more is sent until the
answer is there; what comes meanwhile leaves as one with the next ``WAIT``. An answer is passed on only with the word of
the replicas.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ...errors import TransportUnavailable
from .connection import Connection, ReplyError, Request, pack, unavailable
from .hosts import Host

__all__ = ["Line", "Replicated", "line_to"]

#: Seconds that replicas have, at most.
_PATIENCE = 1.0


class Line(Protocol):
    """What an outbox needs of a connection."""

    @property
    def idle(self) -> bool:
        """Whether every reply has come."""

    def send(self, data: bytes | list[bytes], request: Request) -> None:
        """Send packed commands, ``request.want`` in number."""

    def drop(self, cause: BaseException | None = None) -> None:
        """End the connection now."""


def line_to(connection: Connection, host: Host, replicas: int, deadline: float) -> Line:
    """The connection itself, or one that waits for so many replicas."""
    return Replicated(connection, host, replicas, deadline) if replicas else connection


class Replicated:
    """A connection whose answers come when ``replicas`` replicas have what was written."""

    def __init__(self, connection: Connection, host: Host, replicas: int, deadline: float) -> None:
        self._connection = connection
        self._host = host
        self._replicas = replicas
        self._wait = pack("WAIT", replicas, int(min(_PATIENCE, deadline / 2) * 1000))
        self._loop = asyncio.get_running_loop()
        self._data: list[bytes] = []
        self._requests: list[Request] = []
        self._busy = False

    def send(self, data: bytes | list[bytes], request: Request) -> None:
        """Send it with all else of this turn of the loop, or when the replicas have what was sent before."""
        if not self._requests and not self._busy:
            self._loop.call_soon(self._flush)
        self._data += data if isinstance(data, list) else (data,)
        self._requests.append(request)

    def _flush(self) -> None:
        data, self._data = self._data, []
        requests, self._requests = self._requests, []
        self._busy = bool(requests)
        if requests:
            # In parts, as large frames come: the connection copies none of them.
            self._connection.send([*data, self._wait], _Together(self, requests))

    def finish(self, requests: list[Request], replies: list[Any]) -> None:
        """Pass the answers on."""
        count = replies[-1]
        error = self._short(count) if isinstance(count, ReplyError) or count < self._replicas else None
        at = 0
        for request in requests:
            own, at = replies[at : at + request.want], at + request.want
            if error is not None and hasattr(request, "short"):
                request.short(own, error)
            else:
                request.answered(own)
        self._flush()

    def _short(self, count: Any) -> TransportUnavailable:
        if isinstance(count, ReplyError):
            return unavailable(self._host, count, on_its_way=True)
        return TransportUnavailable(
            f"Redis at {self._host.address} has it, but {count} of wait_replicas={self._replicas} replicas have. "
            "The message was on its way and may have arrived"
        )

    def lost(self, requests: list[Request], error: TransportUnavailable) -> None:
        """The connection ended first."""
        waiting, self._requests, self._data = self._requests, [], []
        self._busy = False
        for request in (*requests, *waiting):
            request.lost(error)

    @property
    def idle(self) -> bool:
        return not (self._busy or self._requests) and self._connection.idle

    def drop(self, cause: BaseException | None = None) -> None:
        self._connection.drop(cause)


class _Together:
    """Requests that left together, and the word of the replicas."""

    __slots__ = ("_line", "_requests", "want")

    def __init__(self, line: Replicated, requests: list[Request]) -> None:
        self._line, self._requests = line, requests
        self.want = sum(request.want for request in requests) + 1

    def answered(self, replies: list[Any]) -> None:
        self._line.finish(self._requests, replies)

    def lost(self, error: TransportUnavailable) -> None:
        self._line.lost(self._requests, error)
