from collections.abc import Iterator
from typing import Any

import pytest

from postgres_server import Postgres
from trunkline.layers import PostgresChannelLayer
from trunkline.testing import LayerConformance, Link, TransportConformance
from trunkline.testing.proxy import TcpProxy
from trunkline.transports.postgres import PostgresTransport


@pytest.fixture(autouse=True)
def _server(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[None]:
    request.instance.server = postgres
    request.instance.proxies = []
    yield
    for proxy in request.instance.proxies:
        proxy.close()


class TestPostgres(TransportConformance):
    server: Postgres
    proxies: list[TcpProxy]

    def make_transport(self, link: Link, prefix: str) -> PostgresTransport:
        proxy = TcpProxy(link, "127.0.0.1", self.server.port)
        self.proxies.append(proxy)
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        return PostgresTransport(url, prefix=prefix, deadline=2.0)


class TestPostgresChannelLayer(LayerConformance):
    server: Postgres
    proxies: list[TcpProxy]

    def make_layer(self, prefix: str, **options: Any) -> PostgresChannelLayer:
        return PostgresChannelLayer(self.server.url, prefix=prefix, **options)


class TestPostgresByPsycopg(TransportConformance):
    server: Postgres
    proxies: list[TcpProxy]

    def make_transport(self, link: Link, prefix: str) -> PostgresTransport:
        proxy = TcpProxy(link, "127.0.0.1", self.server.port)
        self.proxies.append(proxy)
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        return PostgresTransport(url, prefix=prefix, deadline=2.0, driver="psycopg")
