"""For tests: communicators for consumers, a pytest plugin, and the conformance kit that certifies layers and transports."""

from .communicators import ApplicationCommunicator, HttpCommunicator, WebsocketCommunicator
from .kit import Link, eventually
from .layer_conformance import LayerConformance
from .transport_conformance import TransportConformance

__all__ = [
    "ApplicationCommunicator",
    "HttpCommunicator",
    "LayerConformance",
    "Link",
    "TransportConformance",
    "WebsocketCommunicator",
    "eventually",
]
