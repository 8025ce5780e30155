"""The channel layer for Python's real-time web.

Processes of one application talk through named channels and groups: ``send`` to one channel, a queue that several workers
share, ``group_send`` to everyone in a group, wherever they are connected.
"""

from .codecs import register_serializer
from .errors import (
    ChannelFull,
    ConfigurationError,
    HistoryLost,
    InvalidEvent,
    InvalidMessage,
    InvalidName,
    LayerClosed,
    MessageTooLarge,
    NotOwner,
    TransportUnavailable,
    TrunklineError,
)
from .layer import ChannelLayer
from .names import safe_group_name
from .opening import configure, get_channel_layer, layer_from_url
from .transport import Transport

__version__ = "0.1.0"

__all__ = [
    "ChannelFull",
    "ChannelLayer",
    "ConfigurationError",
    "HistoryLost",
    "InvalidEvent",
    "InvalidMessage",
    "InvalidName",
    "LayerClosed",
    "MessageTooLarge",
    "NotOwner",
    "Transport",
    "TransportUnavailable",
    "TrunklineError",
    "configure",
    "get_channel_layer",
    "layer_from_url",
    "register_serializer",
    "safe_group_name",
]
