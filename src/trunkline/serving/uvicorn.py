"""For uvicorn, as ``--ws trunkline.serving.uvicorn:WebSocketProtocol``: one write for each socket and turn of the loop.

Rules of this room: all that goes out passes one cork, whoever it comes from, so the order is that of the calls, and nothing
is before or behind a close but what was sent before or behind it. A message that is one plain frame is framed here; all
else is what uvicorn's ``websockets-sansio`` makes of it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from ..errors import ConfigurationError

# In older ones a sender that waits for a slow reader may wait for ever, the client being gone.
_NEEDS = "trunkline.serving.uvicorn needs uvicorn 0.52.4 or newer, and websockets: pip install 'trunkline[uvicorn]'"
try:
    from uvicorn import __version__
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.protocol import OPEN
except ImportError as error:
    raise ConfigurationError(f"{_NEEDS}: {error}") from error
if [int(part) for part in re.findall(r"\d+", __version__)[:3]] < [0, 52, 4]:
    raise ConfigurationError(f"{_NEEDS}; here is uvicorn {__version__}")

__all__ = ["WebSocketProtocol"]

#: Bytes that are not held until the turn ends: as many as a transport takes before it has its writers wait.
_MOST = 64 << 10


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One websocket. Give it to uvicorn, as ``--ws`` or ``ws=``.

    Order: frames, pongs and the close leave as they were sent. What was sent before a close is not lost by it.
    A slow reader: ``send`` waits while more than 64 KiB are unread, beside what the operating system holds.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, _Cork(cast(asyncio.Transport, transport), self.loop)))

    async def send(self, message: Any) -> None:
        plain = (
            message["type"] == "websocket.send"
            and self.conn.state is OPEN
            and not self.conn.extensions
            and self.writable.is_set()
            and not self.transport.is_closing()
        )
        if plain and isinstance(data := message.get("bytes"), bytes):
            self._send_frame(0x82, data)
        elif plain and data is None and isinstance(text := message.get("text"), str):
            self._send_frame(0x81, text.encode())
        else:
            await super().send(message)

    def _send_frame(self, first: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((first, size))
        elif size < 65536:
            head = bytes((first, 126, size >> 8, size & 255))
        else:
            head = bytes((first, 127)) + size.to_bytes(8, "big")
        self.transport.write(head + payload)


class _Cork:
    """A transport that writes together what one turn of the loop brings."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > _MOST:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held and not self.is_closing():
            self._transport.write(b"".join(self._held))
        self._held.clear()
        self._size = 0
