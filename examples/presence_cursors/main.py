"""A board with everybody's cursor, and who is there, across the worker processes of one uvicorn. In this folder:

uvicorn main:app --workers 2
"""

from pathlib import Path

import trunkline
from trunkline.consumers import AsyncHttpConsumer, AsyncJsonWebsocketConsumer
from trunkline.routing import PathRouter, ProtocolTypeRouter

PAGE = Path(__file__).with_name("index.html").read_bytes()
trunkline.configure("embedded:")  # all processes started in this folder meet


def cursor(event):
    """What a browser gets of a cursor that has moved, encoded once for all browsers of a process."""
    return {"id": event["id"], "x": event["x"], "y": event["y"], "waves": event["waves"]}


class Board(AsyncJsonWebsocketConsumer):
    """One browser. Presence is kept beside the membership, and ends with it, `kill -9` included."""

    relay = {"cursor.moved": cursor}

    async def connect(self):
        who = self.scope["url_route"]["kwargs"]["who"]
        self.board = trunkline.safe_group_name(self.scope["url_route"]["kwargs"]["board"])
        await self.accept()
        await self.channel_layer.group_add(
            self.board, self.channel_name, presence={"name": who}, announce=True
        )
        await self.tell()

    async def receive_json(self, content):
        moved = {name: int(content[name]) for name in ("x", "y", "waves")}
        event = {"type": "cursor.moved", "id": self.channel_name, **moved}
        await self.channel_layer.group_send(self.board, event, exclude=self.channel_name)

    async def presence_join(self, event):
        await self.tell()

    async def presence_leave(self, event):
        await self.tell()

    async def tell(self):
        """Who is there now: names by the id of their cursors."""
        there = await self.channel_layer.presence(self.board)
        await self.send_json(
            {"me": self.channel_name, "there": {each.channel: each.metadata["name"] for each in there}}
        )


class Page(AsyncHttpConsumer):
    """The board in a browser."""

    async def handle(self, body):
        await self.send_response(200, PAGE, headers={"content-type": "text/html; charset=utf-8"})


app = ProtocolTypeRouter(
    {
        "http": PathRouter({"/": Page.as_asgi()}),
        "websocket": PathRouter({"/ws/{board}/{who}": Board.as_asgi()}),
    }
)
