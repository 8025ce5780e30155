"""Sentinels and servers that speak TLS, each with a certificate of its own authority."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from certificates import Authority
from sentinels import Sentinel
from servers import Server, free_port
from trunkline.errors import TransportUnavailable
from trunkline.opening import layer_from_url


async def test_tls(serve: Callable[..., Server], tmp_path: Path, prefix: str) -> None:
    """`rediss+sentinel://` is TLS to the server, `sentinel_ssl` TLS to the sentinels; each needs its own authority."""
    folders = tmp_path / "server", tmp_path / "sentinel"
    for folder in folders:
        folder.mkdir()
    ours, theirs = (Authority(folder) for folder in folders)
    (certificate, key), (other_certificate, other_key) = ours.certificate("a"), theirs.certificate("b")
    port, sentinel_port = free_port(), free_port()
    tls = {"tls_cert_file": certificate, "tls_key_file": key, "tls_ca_cert_file": ours.path}
    serve(tls_port=str(port), tls_auth_clients="no", **tls)
    lines = [
        f"tls-port {sentinel_port}",
        f"tls-cert-file {other_certificate}",
        f"tls-key-file {other_key}",
        f"tls-ca-cert-file {ours.path}",
        "tls-auth-clients no",
        "tls-replication yes",
        f"sentinel monitor m 127.0.0.1 {port} 1",
    ]
    sentinel = Sentinel("redis", tmp_path / "watch", lines)
    try:
        url = f"rediss+sentinel://127.0.0.1:{sentinel_port}/m?prefix={prefix}&connect_timeout=0.5"
        trust = f"ssl_ca_certs={ours.path}&sentinel_ssl=true&sentinel_ssl_ca_certs={theirs.path}"
        async with layer_from_url(f"{url}&{trust}") as layer:
            await layer.send("jobs", {"n": 1})
            assert await layer.receive("jobs") == {"n": 1}
        swapped = f"ssl_ca_certs={theirs.path}&sentinel_ssl=true&sentinel_ssl_ca_certs={ours.path}"
        with pytest.raises(TransportUnavailable, match=f"{sentinel_port}: .*certificate"):
            await layer_from_url(f"{url}&{swapped}").send("jobs", {"n": 1})
    finally:
        sentinel.kill()
