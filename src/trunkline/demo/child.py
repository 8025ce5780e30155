"""One process of the demo: ``python -m trunkline.demo.child server …`` or ``… worker``; ``serve`` starts them.

It writes ``ready`` to its standard output once it serves, and ends when its standard input does: however the process that
started it goes, none is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from .. import ChannelLayer, TransportUnavailable, configure, get_channel_layer
from ..opening import transport_class
from ..routing import ChannelNameRouter, PathRouter, ProtocolTypeRouter
from ..serving.uvicorn import WebSocketProtocol
from ..worker import Worker
from .app import EVERYONE, Chat, Here, Page
from .thumbnails import MAX_IMAGE, QUEUE, WAITING, Bench, Thumbnails

__all__ = ["application", "layer_settings", "listen", "main"]

logger = logging.getLogger("trunkline.demo")

#: Seconds between two pulses.
_PULSE = 1.0
#: Seconds a process may take to say good-bye to its windows.
_GRACE = 2


def layer_settings(url: str) -> dict[str, Any]:
    """What ``configure`` gets: the layer of the URL, with a short queue for the worker, and rooms that remember.

    Of the drafts of a room only the newest is worth having.
    """
    config: dict[str, Any] = {
        "url": url,
        "channel_capacity": {QUEUE: WAITING},
        "latest_only": ["demo.draft.*"],
    }
    if "history" in transport_class(urlsplit(url).scheme).features:
        config["history"] = {"demo.room.*": {"size": 300, "seconds": 3600}}
    return {"default": {"BACKEND": "trunkline.layer_from_url", "CONFIG": config}}


def listen(host: str, port: int, *, shared: bool) -> socket.socket:
    """A listening socket; ``shared`` ones of several processes take turns on one port.

    Raises:
        OSError: The port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128, reuse_port=shared)


def application(here: Here, layer: ChannelLayer) -> ProtocolTypeRouter:
    """The ASGI application of a server process."""
    return ProtocolTypeRouter(
        {
            "http": Page.as_asgi(),
            "websocket": PathRouter({"/chat": Chat.as_asgi(here=here)}),
            "lifespan": _Lifespan(layer, here.pulse),
        }
    )


class _Lifespan:
    """Opens the layer when the server starts, sends its pulse, and closes the layer after the last window."""

    def __init__(self, layer: ChannelLayer, facts: Callable[[], dict[str, Any]]) -> None:
        self._layer = layer
        self._facts = facts

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        await receive()
        beating = asyncio.create_task(_beat(self._layer, self._facts))
        await send({"type": "lifespan.startup.complete"})
        _ready()
        await receive()
        beating.cancel()
        await self._layer.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _beat(layer: ChannelLayer, facts: Callable[[], dict[str, Any]]) -> None:
    while True:
        try:
            await layer.group_send(EVERYONE, {"type": "pulse", "facts": facts()})
        except TransportUnavailable as error:
            logger.warning("no pulse was sent: %s", error)
        await asyncio.sleep(_PULSE)


async def _serve(layer: ChannelLayer, kind: str, number: int, sock: socket.socket) -> None:
    config = uvicorn.Config(
        application(Here(number, kind), layer),
        lifespan="on",
        log_level="warning",
        ws=WebSocketProtocol,
        ws_max_size=MAX_IMAGE + 2**20,
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    watching = asyncio.create_task(_when_alone(stop))
    await server.serve(sockets=[sock])
    watching.cancel()


async def _work(layer: ChannelLayer) -> None:
    bench = Bench()
    consumers = ChannelNameRouter({QUEUE: Thumbnails.as_asgi(bench=bench)})
    worker = Worker(consumers, layer, [QUEUE], grace=_GRACE)
    others = [asyncio.create_task(_beat(layer, bench.pulse)), asyncio.create_task(_when_alone(worker.stop))]
    _ready()
    await worker.run()
    for task in others:
        task.cancel()
    await layer.close()


def _ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


async def _when_alone(stop: Callable[[], None]) -> None:
    """Call ``stop`` once standard input ends, which it does with the process that started this one."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        await reader.read()
    finally:
        pipe.close()
    stop()


def main() -> None:
    """Be the process that the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m trunkline.demo.child", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("worker")
    server = parts.add_parser("server")
    server.add_argument("number", type=int)
    server.add_argument("--bind", nargs=2, metavar=("HOST", "PORT"), help="share this port with others")
    server.add_argument("--fd", type=int, help="serve on this inherited listening socket")
    chosen = parser.parse_args()
    logging.basicConfig(level="WARNING", format=f"%(levelname)s (pid {os.getpid()}) %(name)s: %(message)s")
    url = os.environ["TRUNKLINE_URL"]
    configure(layer_settings(url))
    layer = get_channel_layer()
    if chosen.part == "worker":
        asyncio.run(_work(layer))
        return
    if chosen.fd is not None:
        sock = socket.socket(fileno=chosen.fd)
    else:
        sock = listen(chosen.bind[0], int(chosen.bind[1]), shared=True)
    asyncio.run(_serve(layer, urlsplit(url).scheme, chosen.number, sock))


if __name__ == "__main__":
    main()
