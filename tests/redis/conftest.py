from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from servers import Server, free_port, servers


@pytest.fixture(scope="session", params=sorted(servers()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of each kind, shared by all tests that do it no harm."""
    server = Server(request.param, tmp_path_factory.mktemp(request.param))
    yield server
    server.kill()


@pytest.fixture
def prefix() -> str:
    """A prefix for one test."""
    return f"t{uuid.uuid4().hex[:10]}"


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers for one test: Redis, unless another kind is named."""
    started: list[Server] = []

    def start(kind: str = "redis", **options: Any) -> Server:
        if kind not in servers():
            pytest.skip(f"no {kind} on this machine")
        started.append(Server(kind, tmp_path / f"server{len(started)}", **options))
        return started[-1]

    yield start
    for server in started:
        server.kill()


class TlsServer:
    """A server with a TLS port, and the authority that signed for it."""

    def __init__(self, serve: Serve, authority: Authority, **options: str) -> None:
        self.authority = authority
        self.port = free_port()
        certificate, key = authority.certificate("server")
        self.plain = serve(
            tls_port=str(self.port),
            tls_cert_file=certificate,
            tls_key_file=key,
            tls_ca_cert_file=authority.path,
            **{"tls_auth_clients": "no", **options},
        )

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"


@pytest.fixture
def serve_tls(serve: Serve, tmp_path: Path) -> Callable[..., TlsServer]:
    """Starts Redis with TLS and a private CA."""
    return lambda **options: TlsServer(serve, Authority(tmp_path), **options)
