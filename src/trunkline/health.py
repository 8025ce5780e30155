"""An ASGI application that says whether the layer works: for load balancers, probes and people.

``GET`` gives 200 while it is ``ok`` or ``degraded``, 503 while it is ``down``, with the reasons as JSON. It tells names of
servers, but no secret and nothing of any message.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from .errors import ConfigurationError, TrunklineError
from .layer import ChannelLayer
from .opening import configured_layer
from .stats import Health

__all__ = ["HealthApp", "app", "check"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def check(layer: ChannelLayer | None = None, *, alias: str = "default", timeout: float = 5.0) -> Health:
    """The health of a layer, by default the configured one; opened first when it is not open yet.

    Raises:
        ConfigurationError: There is no such layer, or it is not of Trunkline.
    """
    found = configured_layer(alias) if layer is None else layer
    if not isinstance(found, ChannelLayer):
        kind = (
            "no layer is configured" if found is None else f"{type(found).__qualname__} is not of Trunkline"
        )
        raise ConfigurationError(f"the health of layer {alias!r} cannot be told: {kind}")
    if not found.health().servers:  # not open: what is behind it is not known yet
        try:
            async with asyncio.timeout(timeout):
                await found.new_channel()
        except TimeoutError:
            return Health("down", [f"it could not be opened within {timeout:g} s"])
        except TrunklineError as error:
            health = found.health()
            return health if health.state == "down" else Health("down", [str(error)])
    return found.health()


class HealthApp:
    """The application; mount it where you like.

    Args:
        layer: The layer; None: the configured one of that alias, looked up for each request.
        alias: Which of the configured layers.
        timeout: Seconds that opening the layer, which happens once, may take.
    """

    def __init__(
        self, layer: ChannelLayer | None = None, *, alias: str = "default", timeout: float = 5.0
    ) -> None:
        self._layer, self._alias, self._timeout = layer, alias, timeout

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        """Serve one request; a server's lifespan events are answered too."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ConfigurationError(f"the health application serves http, not {scope['type']}")
        if scope["method"] not in ("GET", "HEAD"):
            await answer(scope, send, 405, b"", headers=[(b"allow", b"GET, HEAD")])
            return
        health = await check(self._layer, alias=self._alias, timeout=self._timeout)
        body = json.dumps(health.asdict(), ensure_ascii=False).encode()
        await answer(scope, send, 503 if health.state == "down" else 200, body, b"application/json")


async def answer(
    scope: MutableMapping[str, Any],
    send: Send,
    status: int,
    body: bytes,
    kind: bytes = b"text/plain; charset=utf-8",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send one response that nobody may keep."""
    always = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*always, *headers]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def lifespan(receive: Any, send: Send) -> None:
    """Start and stop with the server: there is nothing to do."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


#: Of the configured layer ``default``.
app = HealthApp()
