"""A chat in Starlette, across the worker processes of one uvicorn. In this folder:

uvicorn main:app --workers 2
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount, Route

import trunkline
from trunkline.consumers import AsyncJsonWebsocketConsumer
from trunkline.routing import PathRouter

PAGE = Path(__file__).with_name("index.html")
trunkline.configure("embedded:")  # all processes started in this folder meet


class Chat(AsyncJsonWebsocketConsumer):
    """One browser in one room."""

    async def connect(self):
        where = self.scope["url_route"]["kwargs"]
        self.name, self.room = where["name"], trunkline.safe_group_name(where["room"])
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def receive_json(self, content):
        message = {"type": "chat.message", "name": self.name, "text": str(content["text"])}
        await self.channel_layer.group_send(self.room, message)

    async def chat_message(self, event):
        await self.send_json({"name": event["name"], "text": event["text"]})


async def page(request):
    """The chat in a browser."""
    return FileResponse(PAGE)


async def announce(request):
    """Say something to a room from outside: curl -d 'back at 5' localhost:8000/announce/lobby"""
    text = (await request.body()).decode()
    room = trunkline.safe_group_name(request.path_params["room"])
    message = {"type": "chat.message", "name": "*", "text": text}
    await trunkline.get_channel_layer().group_send(room, message)
    return PlainTextResponse("announced\n")


app = Starlette(
    routes=[
        Route("/", page),
        Route("/announce/{room}", announce, methods=["POST"]),
        Mount("/ws", PathRouter({"/{room}/{name}": Chat.as_asgi()})),
    ]
)
