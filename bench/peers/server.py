"""One server process of the chat: ``python -m bench.peers.server APP WHERE PORT SERVER``.

Every application does the same: who connects is in the room, and what one says everybody in it gets, as JSON.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

from ..contestants import BOUNDS, OPTIONS

__all__ = ["APPS", "SERVERS"]

ROOM = "room"


def of_trunkline(url: str, relaying: bool) -> Any:
    """Trunkline's consumer on Trunkline's layer."""
    import trunkline
    from trunkline.consumers import AsyncJsonWebsocketConsumer

    class Chat(AsyncJsonWebsocketConsumer):
        groups = [ROOM]
        channel_layer = trunkline.layer_from_url(url, **BOUNDS)

        async def receive_json(self, content: Any, **kwargs: Any) -> None:
            await self.channel_layer.group_send(ROOM, {"type": "chat.message", **content})

    class Ordinary(Chat):
        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send_json({"n": event["n"], "text": event["text"]})

    class Relaying(Chat):
        relay = {"chat.message": lambda event: {"n": event["n"], "text": event["text"]}}

    return (Relaying if relaying else Ordinary).as_asgi()


def of_channels(backend: str, config: dict[str, Any]) -> Any:
    """Django Channels' consumer on any layer."""
    from django.conf import settings

    settings.configure(
        CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}},
        DATABASES={},
        INSTALLED_APPS=["channels"],
    )
    import django

    django.setup()
    from channels.generic.websocket import AsyncJsonWebsocketConsumer

    class Chat(AsyncJsonWebsocketConsumer):
        groups = [ROOM]

        async def receive_json(self, content: Any, **kwargs: Any) -> None:
            await self.channel_layer.group_send(ROOM, {"type": "chat.message", **content})

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send_json({"n": event["n"], "text": event["text"]})

    return Chat.as_asgi()


def embedded(where: str) -> str:
    return f"embedded:///{where.lstrip('/')}/layer"


def redis(where: str) -> str:
    return f"redis://127.0.0.1:{where}/0"


def _hosts(where: str) -> dict[str, Any]:
    return {"hosts": [("127.0.0.1", int(where))], **OPTIONS}


#: What is served, made of ``Place.where``.
APPS: dict[str, Callable[[str], Any]] = {
    "relay on redis": lambda where: of_trunkline(redis(where), True),
    "relay on embedded": lambda where: of_trunkline(embedded(where), True),
    "handler on redis": lambda where: of_trunkline(redis(where), False),
    "handler on embedded": lambda where: of_trunkline(embedded(where), False),
    "channels on redis": lambda where: of_channels(
        "trunkline.layers.RedisChannelLayer", {"hosts": [redis(where)], **BOUNDS}
    ),
    "channels on embedded": lambda where: of_channels(
        "trunkline.layers.EmbeddedChannelLayer", {"path": f"{where}/layer", **BOUNDS}
    ),
    "channels on core": lambda where: of_channels("channels_redis.core.RedisChannelLayer", _hosts(where)),
    "channels on pubsub": lambda where: of_channels(
        "channels_redis.pubsub.RedisPubSubChannelLayer", _hosts(where)
    ),
}


def with_uvicorn(implementation: str) -> Callable[[Any, int], None]:
    def serve(app: Any, port: int) -> None:
        import uvicorn

        uvicorn.run(app, host="127.0.0.1", port=port, ws=implementation, lifespan="off", log_level="warning")  # type: ignore[arg-type]

    return serve


def with_granian(app: Any, port: int) -> None:
    import asyncio

    import uvloop
    from granian.constants import Interfaces
    from granian.server.embed import Server

    server = Server(app, "127.0.0.1", port, interface=Interfaces.ASGINL, log_enabled=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve())


def with_picows(app: Any, port: int) -> None:
    from .picows_server import serve

    serve(app, port)


#: What serves it.
SERVERS: dict[str, Callable[[Any, int], None]] = {
    "websockets": with_uvicorn("websockets"),
    "sansio": with_uvicorn("websockets-sansio"),
    "wsproto": with_uvicorn("wsproto"),
    "trunkline": with_uvicorn("trunkline.serving.uvicorn:WebSocketProtocol"),
    "granian": with_granian,
    "picows": with_picows,
}


def main() -> None:
    app, where, port, server = sys.argv[1:]
    made = APPS[app](where)
    gc.freeze()
    SERVERS[server](made, int(port))


if __name__ == "__main__":
    main()
