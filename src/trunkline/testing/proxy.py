"""A TCP proxy that obeys a ``Link``: slow, or cut so that connections break and no new one is taken.

A silent cut is one in the network: both ends keep their connections and hear nothing; when it heals those break.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

from .kit import Link

__all__ = ["TcpProxy"]

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _proxy_loop() -> asyncio.AbstractEventLoop:
    """The loop of the thread that all proxies share, so that a busy loop under test does not slow its own road."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = (
                asyncio.SelectorEventLoop()
            )  # whatever is under test: on uvloop, connections got stuck here
            threading.Thread(target=_loop.run_forever, name="trunkline-proxies", daemon=True).start()
        return _loop


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and forwards to a server, as its link allows."""

    def __init__(self, link: Link, host: str, port: int) -> None:
        self._link = link
        self._target = host, port
        self._loop = _proxy_loop()
        self._open: set[asyncio.BaseTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        listening = socket.create_server(("127.0.0.1", 0))
        #: Where to connect to instead.
        self.port: int = listening.getsockname()[1]
        started = asyncio.run_coroutine_threadsafe(
            self._loop.create_server(lambda: _Near(self), sock=listening), self._loop
        )
        self._server = started.result(5)
        link.changed.append(lambda: self._loop.call_soon_threadsafe(self._obey, link.down, link.silent))
        link.closing.append(self.close)

    @property
    def deaf(self) -> bool:
        """Whether nothing passes, and nobody is told."""
        return self._link.down and self._link.silent

    def _obey(self, down: bool, silent: bool) -> None:
        if down != silent:  # a cut, or the end of a silent one
            for transport in list(self._open):
                if isinstance(transport, asyncio.Transport):
                    transport.abort()

    def close(self) -> None:
        """Stop listening and break every connection."""

        def stop() -> None:
            self._server.close()
            for transport in list(self._open):
                transport.close()

        self._loop.call_soon_threadsafe(stop)


class _Near(asyncio.Protocol):
    """The side of the node under test."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._early: list[bytes] = []
        self._far: asyncio.Transport | None = None
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        # asyncio does so by itself only for sockets that name their protocol, which accepted ones do not.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        proxy = self._proxy
        if proxy._link.down and not proxy.deaf:
            transport.close()
            return
        proxy._open.add(transport)
        if proxy.deaf:
            return
        task = proxy._loop.create_task(self._connect())
        proxy._tasks.add(task)
        task.add_done_callback(proxy._tasks.discard)

    async def _connect(self) -> None:
        try:
            far, _ = await self._proxy._loop.create_connection(lambda: _Far(self), *self._proxy._target)
        except OSError:
            self.transport.close()
            return
        self._far = far
        self._proxy._open.add(far)
        if self.transport.is_closing():
            far.close()
        for data in self._early:
            far.write(data)

    def data_received(self, data: bytes) -> None:
        self.carry(lambda: self._far.write(data) if self._far else self._early.append(data))

    def carry(self, send: Callable[[], object]) -> None:
        delay, loop = self._proxy._link.delay, self._proxy._loop
        if delay or self._last > loop.time():
            # What comes later never overtakes, also where the road has become quicker.
            self._last = max(loop.time() + delay, self._last + 1e-6)
            loop.call_at(self._last, self._arrive, send)
        else:
            self._arrive(send)

    def _arrive(self, send: Callable[[], object]) -> None:
        # The link is cut in another thread, from that moment on: before this loop comes to breaking the connections.
        if not self._proxy._link.down:
            send()
        elif not self._proxy.deaf and isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._proxy._open.discard(self.transport)
        if self._far is not None and not self._proxy.deaf:
            self._far.close()


class _Far(asyncio.Protocol):
    """The side of the server."""

    def __init__(self, near: _Near) -> None:
        self._near = near

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        near = self._near.transport
        if isinstance(near, asyncio.Transport):
            self._near.carry(lambda: near.write(data))

    def connection_lost(self, error: Exception | None) -> None:
        self._near._proxy._open.discard(self._transport)
        if not self._near._proxy.deaf:
            self._near.transport.close()
