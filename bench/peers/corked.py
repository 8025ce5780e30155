"""uvicorn's own websockets, with all frames that one turn of the loop brings to a socket written at once.

What one system call for each socket and turn, instead of one for each frame, would bring. It leans on the inside of uvicorn.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN

__all__ = ["CorkedWebSockets"]


class CorkedWebSockets(WebSocketsSansIOProtocol):
    _frames: list[bytes]

    async def send(self, message: Any) -> None:
        if message["type"] != "websocket.send" or not self.handshake_complete or self.conn.extensions:
            self._flush()
            await super().send(message)
            return
        if not self.writable.is_set():
            await self.writable.wait()
        if self.disconnected or self.conn.state is not OPEN:
            raise ClientDisconnected
        text = message.get("text")
        payload, first = (text.encode(), 0x81) if text is not None else (message["bytes"], 0x82)
        size = len(payload)
        if size < 126:
            head = bytes((first, size))
        elif size < 65536:
            head = bytes((first, 126, size >> 8, size & 255))
        else:
            head = bytes((first, 127)) + size.to_bytes(8, "big")
        frames = self.__dict__.setdefault("_frames", [])
        if not frames:
            self.loop.call_soon(self._flush)
        frames.append(head)
        frames.append(payload)

    def _flush(self) -> None:
        frames = self.__dict__.get("_frames")
        if frames:
            if not self.disconnected and self.conn.state is OPEN:
                self.transport.write(b"".join(frames))
            frames.clear()
