"""Which servers, and how to get in: what a URL or the settings say, read once and checked."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote

from ...errors import ConfigurationError
from ...settings import QUOTE, split_url

__all__ = ["SCHEMES", "Access", "access"]

SCHEMES = ("nats", "nats+tls")
_PORT = 4222


@dataclass
class Access:
    """The servers of one cluster and what they ask for."""

    #: ``host:port`` each.
    servers: list[str]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: str | None = None
    tls: bool = False
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True

    @property
    def address(self) -> str:
        """All servers, for texts that people read."""
        return ",".join(self.servers)

    @property
    def shown(self) -> str:
        """A URL without secrets."""
        return f"nats{'+tls' if self.tls else ''}://{self.address}"

    def context(self) -> ssl.SSLContext | None:
        """The TLS context; None without TLS.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_certs)
            if self.ssl_certfile:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"TLS files for {self.address} cannot be used ({error}): check ssl_ca_certs, ssl_certfile and ssl_keyfile"
            ) from error
        context.check_hostname = self.ssl_check_hostname
        return context


def access(
    servers: str | Sequence[str],
    *,
    credentials: str | None = None,
    ssl_ca_certs: str | None = None,
    ssl_certfile: str | None = None,
    ssl_keyfile: str | None = None,
    ssl_check_hostname: bool = True,
) -> Access:
    """Read one URL, which may name several servers, or several URLs.

    Raises:
        ConfigurationError: One cannot be read, or they disagree.
    """
    urls = [servers] if isinstance(servers, str) else servers
    if not isinstance(urls, (list, tuple)) or not urls or not all(isinstance(url, str) for url in urls):
        raise ConfigurationError('servers is a URL or a list of URLs, e.g. "nats://localhost:4222"')
    found: Access | None = None
    for url in urls:
        one = _read(url if "://" in url else f"nats://{url}")
        if found is None:
            found = one
        elif (one.user, one.password, one.token) not in (
            (None, None, None),
            (found.user, found.password, found.token),
        ):
            raise ConfigurationError("servers of one cluster take the same user, password or token")
        elif one.tls != found.tls:
            raise ConfigurationError("servers: nats:// and nats+tls:// cannot be mixed")
        else:
            found.servers += one.servers
    if found is None:
        raise ConfigurationError("servers is empty")
    if credentials is not None:
        found.credentials = _credentials(credentials)
    found.ssl_ca_certs, found.ssl_certfile, found.ssl_keyfile = ssl_ca_certs, ssl_certfile, ssl_keyfile
    found.ssl_check_hostname = ssl_check_hostname
    if not found.tls and (ssl_ca_certs or ssl_certfile or ssl_keyfile):
        raise ConfigurationError("ssl_… settings need TLS: write nats+tls:// instead of nats://")
    return found


def _credentials(name: str) -> str:
    path = Path(name).expanduser()
    try:
        text = path.read_text("utf-8", "replace")
    except OSError as error:
        raise ConfigurationError(f"credentials: the file {name} cannot be read: {error.strerror}") from error
    if "NATS USER JWT" not in text or "NKEY SEED" not in text:
        raise ConfigurationError(
            f"credentials: {name} is no .creds file: it has a NATS USER JWT and a USER NKEY SEED, as `nsc generate creds` "
            "writes them"
        )
    return str(path)


def _read(url: str) -> Access:
    parts: SplitResult = split_url(url, "servers")
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(f"servers: a URL begins with nats:// or nats+tls://, not {parts.scheme}://")
    if parts.path.strip("/"):
        raise ConfigurationError(f"servers: nothing follows the servers of a NATS URL, unlike {parts.path!r}")
    login, _, hosts = parts.netloc.rpartition("@")
    found = Access(
        [_server(host) for host in (hosts or "localhost").split(",")], tls=parts.scheme == "nats+tls"
    )
    if login:
        user, colon, password = login.partition(":")
        if colon:
            found.user, found.password = unquote(user), unquote(password)
        else:
            found.token = unquote(user)
    return found


def _server(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, str(_PORT)
    if not name or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"servers: {host!r} is not host:port. {QUOTE}")
    return f"{name}:{port}"
