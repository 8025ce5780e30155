"""`trunkline conform URL`: which promises does this layer keep, here and now?

The kit of ``TransportConformance`` and ``LayerConformance``, run against a URL without pytest. Everything it makes has a
prefix of its own, so it may be pointed at a server in use; it needs a few thousand small messages.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from ..layer import ChannelLayer
from ..opening import layer_from_url, transport_class
from ..settings import shown_url
from ..transport import Transport
from .kit import Kit, Link, NotOffered, must_check
from .layer_conformance import LayerConformance
from .links import LINKED
from .transport_conformance import TransportConformance

__all__ = ["NOT_PROMISED_BY_A_CLUSTER", "run_conform"]


def kits(url: str) -> list[type[Kit]]:
    """The conformance classes for a URL."""
    scheme = urllib.parse.urlsplit(url).scheme
    transport = transport_class(scheme)
    linked = LINKED.get(scheme)

    class Carrier(TransportConformance):
        def make_transport(self, link: Link, prefix: str) -> Transport:
            if linked is not None:
                return linked(link, url, prefix)
            made: Transport = transport.from_url(url, prefix=prefix)
            return made

    class Layer(LayerConformance):
        def make_layer(self, prefix: str, **options: Any) -> ChannelLayer:
            return layer_from_url(url, prefix=prefix, **options)

    Carrier.__name__, Layer.__name__ = f"What {scheme}:// carries", f"What users see on {scheme}://"
    return [Carrier, Layer]


#: What is not promised where names live on several servers that take turns.
NOT_PROMISED_BY_A_CLUSTER = {"test_order_of_one_sender", "test_order"}


def _unreachable(name: str, linked: bool, scheme: str) -> str | None:
    """Why a promise cannot be tried on this road."""
    if scheme.endswith("+cluster") and name in NOT_PROMISED_BY_A_CLUSTER:
        return "in a cluster order holds within one group or channel, not between several"
    faulty = ("slow", "cut")
    if not linked and any(word in name for word in faulty):
        return "its link cannot be slowed or cut from here"
    return None


def run_conform(url: str, echo: Callable[[str], object]) -> int:
    """Try every promise and print the table.

    Returns:
        0 when all were kept, 1 otherwise.

    Raises:
        UsageError: Under python -O nothing would be checked.
    """
    must_check()
    scheme = urllib.parse.urlsplit(url).scheme
    linked = scheme in LINKED
    kept = broken = untried = 0
    for kit in kits(url):
        echo(f"\n{kit.__name__}")
        for name, claim in kit.promises().items():
            if (why := _unreachable(name, linked, scheme)) is not None:
                untried += 1
                echo(f"  -  {claim}  [not tried: {why}]")
                continue
            start = time.perf_counter()
            try:
                asyncio.run(kit().check(name))
            except NotOffered as error:
                untried += 1
                echo(f"  -  {claim}  [not tried: {error}]")
            except Exception as error:
                broken += 1
                echo(f"  ✗  {claim}\n       {name}: {type(error).__name__}: {error}")
            else:
                kept += 1
                echo(f"  ✓  {claim}  [{time.perf_counter() - start:.2f} s]")
    echo(f"\n{shown_url(url)}: {kept} promises kept, {broken} broken, {untried} not tried")
    return 1 if broken else 0
