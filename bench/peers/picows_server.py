"""Just enough of an ASGI server on picows to see what a websocket in C would bring. It accepts every handshake at once."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

__all__ = ["serve"]


class Connection(WSListener):
    def __init__(self, app: Any, path: str) -> None:
        self._app = app
        self._scope = {
            "type": "websocket",
            "path": path,
            "headers": [],
            "query_string": b"",
            "subprotocols": [],
        }
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._events.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.get_running_loop().create_task(
            self._app(self._scope, self._events.get, self._send)
        )

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self._events.put_nowait({"type": "websocket.receive", "text": frame.get_payload_as_utf8_text()})
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._writable.set()
        self._events.put_nowait({"type": "websocket.disconnect", "code": 1006})

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _send(self, event: dict[str, Any]) -> None:
        if not self._writable.is_set():
            await self._writable.wait()
        if event["type"] == "websocket.send":
            text = event.get("text")
            if text is not None:
                self._transport.send(WSMsgType.TEXT, text.encode())
            else:
                self._transport.send(WSMsgType.BINARY, event["bytes"])
        elif event["type"] == "websocket.close":
            self._transport.send_close(event.get("code", 1000))


def serve(app: Any, port: int) -> None:
    def connection(request: WSUpgradeRequest) -> Connection:
        return Connection(app, request.path.decode())

    async def run() -> None:
        server = await ws_create_server(connection, "127.0.0.1", port)
        await server.serve_forever()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
