"""No framework: a page, a POST and server-sent events, all of them consumers. In this folder:

uvicorn main:app --workers 2 --timeout-graceful-shutdown 1
"""

from pathlib import Path

import trunkline
from trunkline.consumers import AsyncHttpConsumer
from trunkline.routing import PathRouter, ProtocolTypeRouter

PAGE = Path(__file__).with_name("index.html").read_bytes()
trunkline.configure("embedded:")  # all processes started in this folder meet


class Page(AsyncHttpConsumer):
    """The wall in a browser."""

    async def handle(self, body):
        await self.send_response(200, PAGE, headers={"content-type": "text/html; charset=utf-8"})


class Say(AsyncHttpConsumer):
    """Write on the wall: curl -d hello localhost:8000/say"""

    async def handle(self, body):
        await self.channel_layer.group_send("wall", {"type": "wall.line", "text": body.decode()})
        await self.send_response(204, b"")


class Wall(AsyncHttpConsumer):
    """Read along, as server-sent events: the response stays open and grows with every event of the layer."""

    async def handle(self, body):
        await self.channel_layer.group_add("wall", self.channel_name)
        await self.send_headers(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        await self.send_body(b": welcome\n\n", more_body=True)

    async def wall_line(self, event):
        lines = "".join(f"data: {line}\n" for line in event["text"].splitlines() or [""])
        await self.send_body(f"{lines}\n".encode(), more_body=True)


pages = {"/": Page.as_asgi(), "/say": Say.as_asgi(), "/wall": Wall.as_asgi()}
app = ProtocolTypeRouter({"http": PathRouter(pages)})
