"""A chat in Litestar, across the worker processes of one uvicorn. In this folder:

uvicorn main:app --workers 2
"""

from pathlib import Path

from litestar import Litestar, MediaType, asgi, get, post

import trunkline
from trunkline.consumers import AsyncJsonWebsocketConsumer
from trunkline.routing import PathRouter

PAGE = Path(__file__).with_name("index.html").read_text()
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


@get("/", media_type=MediaType.HTML, sync_to_thread=False)
def page() -> str:
    """The chat in a browser."""
    return PAGE


@post("/announce/{room:str}")
async def announce(room: str, text: str) -> dict[str, str]:
    """Say something to a room from outside: curl -X POST 'localhost:8000/announce/lobby?text=back+at+5'"""
    message = {"type": "chat.message", "name": "*", "text": text}
    await trunkline.get_channel_layer().group_send(trunkline.safe_group_name(room), message)
    return {"announced": text}


# Below a mount Litestar's paths end with a slash, whether the client's does or not.
websockets = asgi("/ws", is_mount=True, copy_scope=True)(PathRouter({"/{room}/{name}/": Chat.as_asgi()}))
app = Litestar([page, announce, websockets])
