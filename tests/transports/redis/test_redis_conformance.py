from collections.abc import Iterator
from typing import Any

import pytest

from servers import Server
from trunkline.layers import RedisChannelLayer
from trunkline.testing import LayerConformance, Link, TransportConformance
from trunkline.testing.proxy import TcpProxy
from trunkline.transports.redis import RedisTransport


@pytest.fixture(autouse=True)
def _server(server: Server, request: pytest.FixtureRequest) -> Iterator[None]:
    request.instance.server = server
    request.instance.proxies = []
    yield
    for proxy in request.instance.proxies:
        proxy.close()


class TestRedis(TransportConformance):
    server: Server
    proxies: list[TcpProxy]

    def make_transport(self, link: Link, prefix: str) -> RedisTransport:
        proxy = TcpProxy(link, "127.0.0.1", self.server.port)
        self.proxies.append(proxy)
        return RedisTransport([f"redis://127.0.0.1:{proxy.port}"], prefix=prefix, deadline=2.0)


class TestRedisChannelLayer(LayerConformance):
    server: Server
    proxies: list[TcpProxy]

    def make_layer(self, prefix: str, **options: Any) -> RedisChannelLayer:
        return RedisChannelLayer([self.server.url], prefix=prefix, **options)
