"""Paths of the chat, for HTTP and for websockets."""

from channels.routing import URLRouter
from django.urls import path

from . import consumers, views

urlpatterns = [path("", views.page), path("announce/", views.announce)]

websockets = URLRouter(
    [
        path("ws/chat/", consumers.ChatConsumer.as_asgi()),
        path("ws/inbox/", consumers.InboxConsumer.as_asgi()),
        path("ws/rooms/", consumers.RoomConsumer.as_asgi()),
    ]
)
