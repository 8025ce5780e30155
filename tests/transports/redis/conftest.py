from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import Server, servers


@pytest.fixture(scope="session", params=sorted(servers()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of each kind, shared by all tests that do it no harm."""
    server = Server(request.param, tmp_path_factory.mktemp(request.param))
    yield server
    server.kill()
