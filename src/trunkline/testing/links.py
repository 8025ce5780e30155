"""Transports whose arrivals obey a ``Link``: how the kit slows and cuts what has no wire to pull."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

from ..opening import transport_class
from ..transport import Transport
from ..transports.embedded import EmbeddedTransport
from ..transports.embedded.directory import path_of_url
from ..transports.memory import MemoryTransport
from .kit import Link
from .proxy import TcpProxy

__all__ = ["LINKED", "LinkedEmbedded", "LinkedMemory", "detoured"]


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

    def _arrived(self, *datagram: Any) -> int:
        if self._road is None:
            self._road = Road(self._link)
        if not self._link.down:
            self._road.carry(super()._arrived, *datagram)
        return 0  # it is on its way


def detoured(link: Link, transport: Any) -> Transport:
    """Let all roads of a Redis transport that is not open yet obey a link: to its server; or to its sentinels or
    seeds, and to whatever server they name."""
    from ..transports.redis.hosts import Host

    roads: dict[tuple[str, int], TcpProxy] = {}

    class Detoured(Host):
        def at(self, host: str, port: int) -> Self:
            road = roads.get((host, port))
            if road is None:
                road = roads[host, port] = TcpProxy(link, host, port)
            return super().at("127.0.0.1", road.port)

    def detour(host: Host) -> Host:
        here = Detoured(**vars(host))
        if not (host.sentinels or host.seeds):
            return here.at(host.host, host.port)
        sentinels, seeds = (tuple(map(detour, servers)) for servers in (host.sentinels, host.seeds))
        return replace(here, sentinels=sentinels, seeds=seeds)

    transport._hosts = [detour(host) for host in transport._hosts]
    made: Transport = transport
    return made


def _behind_proxies(link: Link, url: str, prefix: str) -> Transport:
    transport = transport_class(urllib.parse.urlsplit(url).scheme)
    return detoured(link, transport.from_url(url, prefix=prefix))


def _nats_behind_proxies(link: Link, url: str, prefix: str) -> Transport:
    transport: Any = transport_class("nats").from_url(url, prefix=prefix)
    addresses = [server.rpartition(":") for server in transport._access.servers]
    roads = [TcpProxy(link, host.strip("[]"), int(port)) for host, _, port in addresses]
    transport._access.servers = [f"127.0.0.1:{road.port}" for road in roads]
    made: Transport = transport
    return made


#: URL scheme -> how to make a transport of that URL and prefix behind a link.
LINKED: dict[str, Callable[[Link, str, str], Transport]] = {
    "memory": lambda link, url, prefix: LinkedMemory(link, "conform", prefix=prefix),
    "embedded": lambda link, url, prefix: LinkedEmbedded(link, path_of_url(url), prefix=prefix),
    **dict.fromkeys(
        (f"{server}{kind}" for server in ("redis", "valkey") for kind in ("", "+sentinel", "+cluster")),
        _behind_proxies,
    ),
    "nats": _nats_behind_proxies,
}
