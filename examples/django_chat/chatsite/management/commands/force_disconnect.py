"""``manage.py force_disconnect``: close every socket of the chat."""

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Close every socket of the chat."

    def handle(self, *args, **options):
        async_to_sync(get_channel_layer().group_send)("chat", {"type": "chat.force_disconnect"})
