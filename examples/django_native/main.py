"""A chat in Django with Trunkline's consumers, across the worker processes of one uvicorn. In this folder:

uvicorn main:app --workers 2

No Channels, no server. One file holds what a project has in settings.py, urls.py and asgi.py.
"""

from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import FileResponse, HttpResponse
from django.urls import path

HERE = Path(__file__).parent

settings.configure(
    DEBUG=True,
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["trunkline.django"],
    # All processes started in this folder meet.
    CHANNEL_LAYERS={"default": {"BACKEND": "trunkline.layers.EmbeddedChannelLayer"}},
)
http = get_asgi_application()  # sets Django up: consumers may import models from here on

import trunkline  # noqa: E402
from trunkline.consumers import AsyncJsonWebsocketConsumer  # noqa: E402
from trunkline.routing import PathRouter, ProtocolTypeRouter  # noqa: E402


def said(event):
    """What a browser gets, encoded once for all of them."""
    return {"name": event["name"], "text": event["text"]}


class Chat(AsyncJsonWebsocketConsumer):
    """One browser in one room."""

    relay = {"chat.message": said}

    async def connect(self):
        where = self.scope["url_route"]["kwargs"]
        self.name, self.room = where["name"], trunkline.safe_group_name(where["room"])
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def receive_json(self, content):
        message = {"type": "chat.message", "name": self.name, "text": str(content["text"])}
        await self.channel_layer.group_send(self.room, message)


def page(request):
    """The chat in a browser."""
    return FileResponse((HERE / "index.html").open("rb"), content_type="text/html; charset=utf-8")


def announce(request, room):
    """A plain view: curl 'localhost:8000/announce/lobby?text=back+at+5'. Models need their transaction: on_commit=True."""
    message = {"type": "chat.message", "name": "*", "text": request.GET["text"]}
    trunkline.get_channel_layer().sync.group_send(trunkline.safe_group_name(room), message)
    return HttpResponse("announced\n")


urlpatterns = [path("", page), path("announce/<room>", announce)]
websockets = PathRouter({"/ws/{room}/{name}": Chat.as_asgi()})
app = ProtocolTypeRouter({"http": http, "websocket": websockets})
