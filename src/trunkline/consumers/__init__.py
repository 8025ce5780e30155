"""Consumers, for any ASGI framework."""

from .base import AcceptConnection, AsyncConsumer, DenyConnection, NoHandler, StopConsumer, SyncConsumer
from .http import AsyncHttpConsumer
from .websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)

__all__ = [
    "AcceptConnection",
    "AsyncConsumer",
    "AsyncHttpConsumer",
    "AsyncJsonWebsocketConsumer",
    "AsyncWebsocketConsumer",
    "DenyConnection",
    "JsonWebsocketConsumer",
    "NoHandler",
    "StopConsumer",
    "SyncConsumer",
    "WebsocketConsumer",
]
