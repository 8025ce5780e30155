"""A read-only page that shows what ``trunkline top`` shows: every process of the deployment, live.

Nobody sees it until it is mounted. **Whoever may open it sees the names of processes, hosts, servers and channels**, and
each look makes every process answer once; messages are never shown. So it takes a token, or ``token=None`` where
something else decides who gets here, such as a login in front of it.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import MutableMapping
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from ..errors import ConfigurationError, TransportUnavailable
from ..health import Send, answer, lifespan
from ..layer import ChannelLayer
from ..opening import configured_layer

__all__ = ["Dashboard"]

_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
     b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]  # fmt: skip
#: Seconds for which one look serves everybody.
_FRESH = 1.0


class Dashboard:
    """The ASGI application.

    Args:
        token: What a visitor must show: as ``?token=…`` or ``Authorization: Bearer …``. None: everybody may see it.
        layer: The layer; None: the configured one of that alias.
        alias: Which of the configured layers.
        wait: Seconds that processes have to answer.

    Raises:
        ConfigurationError: The token is empty or no text.
    """

    def __init__(
        self,
        *,
        token: str | None,
        layer: ChannelLayer | None = None,
        alias: str = "default",
        wait: float = 0.5,
    ) -> None:
        if token is not None and (not isinstance(token, str) or not token):
            raise ConfigurationError(
                "token is a secret that visitors must show, or None where everybody may see the page"
            )
        self._token = None if token is None else token.encode()
        self._layer, self._alias, self._wait = layer, alias, wait
        self._page = resources.files(__package__).joinpath("page.html").read_bytes()
        self._looked, self._seen = float("-inf"), b""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        """Serve the page, and its data where the query says ``data``."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ConfigurationError(f"the dashboard serves http, not {scope['type']}")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if scope["method"] not in ("GET", "HEAD"):
            await answer(scope, send, 405, b"", headers=[(b"allow", b"GET, HEAD")])
        elif not self._welcome(scope, query):
            text = b"This page wants its token: add ?token=... to the address.\n"
            await answer(scope, send, 401, text, headers=[(b"www-authenticate", b"Bearer")])
        elif "data" in query:
            status, body = await self._data()
            await answer(scope, send, status, body, b"application/json", _HEADERS)
        else:
            await answer(scope, send, 200, self._page, b"text/html; charset=utf-8", _HEADERS)

    def _welcome(self, scope: MutableMapping[str, Any], query: dict[str, list[str]]) -> bool:
        if self._token is None:
            return True
        shown = [each.encode() for each in query.get("token", [])]
        for name, value in scope.get("headers", ()):
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                shown.append(value[7:].strip())
        return any(hmac.compare_digest(each, self._token) for each in shown)

    async def _data(self) -> tuple[int, bytes]:
        layer = configured_layer(self._alias) if self._layer is None else self._layer
        if not isinstance(layer, ChannelLayer):
            raise ConfigurationError(f"no layer of Trunkline is configured as {self._alias!r}")
        if time.monotonic() - self._looked > _FRESH:  # many visitors cost what one does
            try:
                reports = await layer.survey(self._wait)
            except TransportUnavailable as error:
                return 503, json.dumps({"error": str(error)}).encode()
            content = {"at": time.time(), "nodes": [report.asdict() for report in reports]}
            self._seen, self._looked = json.dumps(content).encode(), time.monotonic()
        return 200, self._seen
