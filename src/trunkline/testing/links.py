"""Transports whose arrivals obey a ``Link``: how the kit slows and cuts what has no wire to pull."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from ..opening import transport_class
from ..transport import Transport
from ..transports.embedded import EmbeddedTransport
from ..transports.embedded.directory import path_of_url
from ..transports.memory import MemoryTransport
from .kit import Link
from .proxy import TcpProxy

__all__ = ["LINKED", "LinkedEmbedded", "LinkedMemory", "around_sentinels"]


class Road:
    """Carries calls over a link, in order: late when it is slow, held back while it is cut."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        link.changed.append(self._drain)

    def carry(self, call: Any, *args: Any) -> None:
        if not self._link.delay and not self._link.down and not self._held:
            call(*args)
            return
        self._held.append((call, args))
        self._loop.call_later(self._link.delay, self._drain_one)

    def _drain_one(self) -> None:
        if self._held and not self._link.down:
            call, args = self._held.popleft()
            call(*args)

    def _drain(self) -> None:
        while self._held and not self._link.down:
            self._drain_one()


class LinkedMemory(MemoryTransport):
    """The memory transport behind a link."""

    def __init__(self, link: Link, hub_name: str, **options: Any) -> None:
        super().__init__(hub_name, **options)
        self._link = link
        self._road: Road | None = None

    def _arrive(self, frame: bytes) -> None:
        if self._road is None:
            self._road = Road(self._link)
        self._road.carry(super()._arrive, frame)


class LinkedEmbedded(EmbeddedTransport):
    """The embedded transport with late or lost datagrams; what a lost one carried is in the log."""

    def __init__(self, link: Link, path: str | None, **options: Any) -> None:
        super().__init__(path, **options)
        self._link = link
        self._road: Road | None = None

    def _arrived(self, *datagram: Any) -> None:
        if self._road is None:
            self._road = Road(self._link)
        if not self._link.down:
            self._road.carry(super()._arrived, *datagram)


def _behind_proxy(link: Link, url: str, port: int, prefix: str) -> Transport:
    parts = urllib.parse.urlsplit(url)
    proxy = TcpProxy(link, parts.hostname or "localhost", parts.port or port)
    credentials = parts.netloc.rpartition("@")[0]
    netloc = f"{credentials}@127.0.0.1:{proxy.port}" if credentials else f"127.0.0.1:{proxy.port}"
    made: Transport = transport_class(parts.scheme).from_url(
        urllib.parse.urlunsplit(parts._replace(netloc=netloc)), prefix=prefix
    )
    return made


def around_sentinels(link: Link, transport: Any) -> Transport:
    """Let all roads of a transport obey the link: to its sentinels, and to whatever server they name."""
    from ..transports.redis.hosts import Host

    roads: dict[tuple[str, int], TcpProxy] = {}

    class Detoured(Host):
        def at(self, host: str, port: int) -> Self:
            road = roads.get((host, port))
            if road is None:
                road = roads[host, port] = TcpProxy(link, host, port)
            return super().at("127.0.0.1", road.port)

    def detour(host: Host) -> Host:
        sentinels = tuple(Detoured(**vars(one)).at(one.host, one.port) for one in host.sentinels)
        return Detoured(**{**vars(host), "sentinels": sentinels})

    transport._hosts = [detour(host) for host in transport._hosts]
    made: Transport = transport
    return made


def _behind_sentinels(link: Link, url: str, prefix: str) -> Transport:
    transport = transport_class(urllib.parse.urlsplit(url).scheme)
    return around_sentinels(link, transport.from_url(url, prefix=prefix))


#: URL scheme -> how to make a transport of that URL and prefix behind a link.
LINKED: dict[str, Callable[[Link, str, str], Transport]] = {
    "memory": lambda link, url, prefix: LinkedMemory(link, "conform", prefix=prefix),
    "embedded": lambda link, url, prefix: LinkedEmbedded(link, path_of_url(url), prefix=prefix),
    "redis": lambda link, url, prefix: _behind_proxy(link, url, 6379, prefix),
    "valkey": lambda link, url, prefix: _behind_proxy(link, url, 6379, prefix),
    "redis+sentinel": _behind_sentinels,
    "valkey+sentinel": _behind_sentinels,
}
