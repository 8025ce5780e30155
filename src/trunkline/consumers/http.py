"""The HTTP consumer: the whole request body in, a response out, at once or in parts over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .base import AsyncConsumer, Event, StopConsumer

__all__ = ["AsyncHttpConsumer"]

Name = bytes | str
Headers = Mapping[Name, Name] | Iterable[tuple[Name, Name]]


class AsyncHttpConsumer(AsyncConsumer):
    """One HTTP request.

    ``handle`` answers it. If it leaves the response open (``more_body=True``) and there is a channel layer, the consumer
    goes on handling the layer's events, which may send more, until the response is finished or the client leaves.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body: list[bytes] = []
        self._open = False  # a part of the response was sent and more is to come
        self._handled = False
        self._left = False

    async def handle(self, body: bytes) -> None:
        """Answer the request."""
        raise NotImplementedError(f"add `async def handle(self, body)` to {type(self).__name__}")

    async def disconnect(self) -> None:
        """Clean up after the response, or after the client has gone. Do not send from here."""

    async def send_headers(self, *, status: int = 200, headers: Headers | None = None) -> None:
        """Begin the response. Servers send it together with the first ``send_body``."""
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        raw = [(_latin(name), _latin(value)) for name, value in pairs]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def send_body(self, body: bytes, *, more_body: bool = False) -> None:
        """Send a part of the response: the last one unless ``more_body``.

        Raises:
            TypeError: The body is not bytes.
        """
        if not isinstance(body, bytes):
            raise TypeError(f"a response body is bytes, not {type(body).__name__}: encode it first")
        await self.send({"type": "http.response.body", "body": body, "more_body": more_body})
        self._open = more_body

    async def send_response(self, status: int, body: bytes, **kwargs: Any) -> None:
        """Send a whole response; ``headers`` as for ``send_headers``."""
        await self.send_headers(status=status, **kwargs)
        await self.send_body(body)

    async def http_request(self, message: Event) -> None:
        """Gather the body, then call ``handle``."""
        self.body.append(message.get("body", b""))
        if message.get("more_body"):
            return
        try:
            await self.handle(b"".join(self.body))
        except BaseException:
            await self._leave_client()
            raise
        self._handled = True

    async def http_disconnect(self, message: Event) -> None:
        """End, because the client has gone."""
        await self._leave_client()
        raise StopConsumer

    async def dispatch(self, message: Event) -> None:
        await super().dispatch(message)
        if self._handled and not (self._open and self.channel_layer is not None):
            await self._leave_client()
            raise StopConsumer

    async def _leave_client(self) -> None:
        if not self._left:
            self._left = True
            await self.disconnect()


def _latin(text: Name) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text
