"""For tests: communicators for consumers, a pytest plugin, a layer that is unkind on purpose, and the conformance kit.

The kit certifies layers and transports.
"""

from .chaos import ChaosLayer, Mishap
from .communicators import ApplicationCommunicator, HttpCommunicator, WebsocketCommunicator
from .kit import Link, eventually
from .layer_conformance import LayerConformance
from .transport_conformance import TransportConformance

__all__ = [
    "ApplicationCommunicator",
    "ChaosLayer",
    "HttpCommunicator",
    "LayerConformance",
    "Link",
    "Mishap",
    "TransportConformance",
    "WebsocketCommunicator",
    "eventually",
]
