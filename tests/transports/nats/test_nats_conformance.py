"""Every promise, over core NATS alone and with the log."""

from collections.abc import Iterator
from typing import Any

import pytest

from nats_servers import NatsServer
from trunkline.layers import NatsChannelLayer
from trunkline.testing import LayerConformance, Link, TransportConformance
from trunkline.testing.proxy import TcpProxy
from trunkline.transports.nats import NatsTransport


@pytest.fixture(autouse=True)
def _server(nats: NatsServer, request: pytest.FixtureRequest) -> Iterator[None]:
    request.instance.server = nats
    request.instance.proxies = []
    if request.node.originalname in getattr(request.instance, "known_gaps", ()):
        request.instance.patience = 2.0  # what is known not to come
    yield
    for proxy in request.instance.proxies:
        proxy.close()


_NO_LOG = "without recover=True what was missed while cut off is told as a gap, not fetched"


class TestNats(TransportConformance):
    server: NatsServer
    proxies: list[TcpProxy]
    known_gaps = {"test_cut_link": _NO_LOG, "test_cut_again_and_again": _NO_LOG}

    def make_transport(self, link: Link, prefix: str) -> NatsTransport:
        proxy = TcpProxy(link, "127.0.0.1", self.server.port)
        self.proxies.append(proxy)
        url = f"nats://127.0.0.1:{proxy.port}"
        return NatsTransport(url, prefix=prefix, deadline=2.0)


class TestNatsRecovering(TransportConformance):
    server: NatsServer
    proxies: list[TcpProxy]

    def make_transport(self, link: Link, prefix: str) -> NatsTransport:
        proxy = TcpProxy(link, "127.0.0.1", self.server.port)
        self.proxies.append(proxy)
        return NatsTransport(f"nats://127.0.0.1:{proxy.port}", prefix=prefix, deadline=2.0, recover=True)


class TestNatsChannelLayer(LayerConformance):
    server: NatsServer

    def make_layer(self, prefix: str, **options: Any) -> NatsChannelLayer:
        return NatsChannelLayer(self.server.url, prefix=prefix, **options)
