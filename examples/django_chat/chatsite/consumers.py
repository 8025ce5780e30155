"""The chat's consumers. They are Django Channels' own: only the layer is Trunkline's."""

import os

from asgiref.sync import async_to_sync
from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, WebsocketConsumer
from django.conf import settings

from .models import Client, Thumbnail


class ChatConsumer(WebsocketConsumer):
    """Everything a client says goes to everyone; the system may announce, and may throw everyone out."""

    def connect(self):
        async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
        self.accept()

    def disconnect(self, close_code):
        async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)

    def receive(self, text_data):
        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.message", "text": text_data})

    def chat_message(self, event):
        self.send(text_data=event["text"])

    def chat_system_message(self, event):
        self.send(text_data=f"* {event['text']}")

    def chat_force_disconnect(self, event):
        self.close(code=4001)


class InboxConsumer(WebsocketConsumer):
    """A client that is found through a database row, and written to by its channel name."""

    def connect(self):
        Client.objects.create(channel_name=self.channel_name)
        self.accept()

    def disconnect(self, close_code):
        Client.objects.filter(channel_name=self.channel_name).delete()

    def chat_message(self, event):
        self.send(text_data=event["text"])


class RoomConsumer(AsyncJsonWebsocketConsumer):
    """Many rooms over one socket, with the names of those who speak."""

    async def connect(self):
        self.rooms = set()
        await self.accept()

    async def disconnect(self, code):
        for room_id in self.rooms:
            await self.channel_layer.group_discard(f"room-{room_id}", self.channel_name)

    async def receive_json(self, content):
        room_id = int(content["room"])
        if content["command"] == "join":
            await self.channel_layer.group_add(f"room-{room_id}", self.channel_name)
            self.rooms.add(room_id)
            await self.send_json({"joined": room_id})
        elif content["command"] == "send" and room_id in self.rooms:
            await self.channel_layer.group_send(
                f"room-{room_id}",
                {
                    "type": "chat.message",
                    "room_id": room_id,
                    "username": self.scope["user"].username,
                    "message": content["message"],
                },
            )

    async def chat_message(self, event):
        await self.send_json(
            {
                "msg_type": settings.MSG_TYPE_MESSAGE,
                "room": event["room_id"],
                "username": event["username"],
                "message": event["message"],
            },
        )


class ThumbnailConsumer(SyncConsumer):
    """What the worker runs for messages on the channel ``thumbnails``."""

    def thumbnail_make(self, event):
        Thumbnail.objects.create(source=event["source"], made_by=os.getpid())
        async_to_sync(self.channel_layer.group_send)(
            "chat", {"type": "chat.system_message", "text": f"thumbnail of {event['source']} made"}
        )
