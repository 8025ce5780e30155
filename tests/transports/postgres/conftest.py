from __future__ import annotations

from collections.abc import Iterator

import pytest

from postgres_server import Postgres, binaries, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server, shared by all tests that do it no harm."""
    if binaries() is None:
        pytest.skip("no PostgreSQL on this machine")
    with running() as server:
        yield server
