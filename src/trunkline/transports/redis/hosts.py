"""Servers, as settings name them: URLs, pairs and dicts become ``Host`` values, or an error that says what to write."""

from __future__ import annotations

import functools
import ssl as tls
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import ConfigurationError

__all__ = ["Host", "parse_hosts"]

_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True, "unix": False}
_SENTINEL_SCHEMES = {f"{scheme}+sentinel": tls for scheme, tls in _SCHEMES.items() if scheme != "unix"}

#: Options of a client library's connection pool that mean nothing here: one connection pair never runs out, has its
#: deadline and its liveness probe. Accepted, so that settings written for channels_redis go on working.
_IGNORED = """
    max_connections timeout socket_timeout socket_connect_timeout socket_keepalive socket_keepalive_options
    socket_read_size health_check_interval retry_on_timeout retry_on_error single_connection_client protocol
    decode_responses encoding encoding_errors client_name lib_name lib_version
"""
_WITHOUT_MEANING = frozenset(_IGNORED.split())


@dataclass(frozen=True)
class Host:
    """One server."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ssl: bool = False
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    ssl_cert_reqs: str = "required"
    ssl_check_hostname: bool = True
    ssl_context: tls.SSLContext | None = None
    #: Who knows where the server is, in place of host, port and path.
    sentinels: tuple[Host, ...] = ()
    master_name: str = ""

    @property
    def address(self) -> str:
        """What a person calls it."""
        if self.sentinels:
            return f"{self.master_name} (Sentinel)"
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    @property
    def identity(self) -> str:
        """What decides which names it owns among several servers."""
        return f"{self.address}/{self.db}"

    def context(self) -> tls.SSLContext | None:
        """The TLS settings; None without TLS.

        Raises:
            ConfigurationError: A certificate file cannot be read.
        """
        return _context(self) if self.ssl else None


@functools.lru_cache(maxsize=64)
def _context(host: Host) -> tls.SSLContext:
    if host.ssl_context is not None:
        return host.ssl_context
    try:
        context = tls.create_default_context(cafile=host.ssl_ca_certs)
        if host.ssl_certfile:
            context.load_cert_chain(host.ssl_certfile, host.ssl_keyfile, host.ssl_keyfile_password)
    except OSError as error:
        raise ConfigurationError(
            f"hosts: TLS files of {host.address} cannot be used ({error}): check ssl_ca_certs, ssl_certfile "
            "and ssl_keyfile"
        ) from error
    if host.ssl_cert_reqs == "none" or not host.ssl_check_hostname:
        context.check_hostname = False
    if host.ssl_cert_reqs != "required":
        context.verify_mode = tls.CERT_NONE if host.ssl_cert_reqs == "none" else tls.CERT_OPTIONAL
    return context


_FIELDS = {f.name for f in fields(Host)} - {"sentinels", "master_name"}


def parse_hosts(hosts: Any, setting: str = "hosts") -> list[Host]:
    """Read the ``hosts`` setting; None means one server on localhost.

    Raises:
        ConfigurationError: It is not a list of URLs, (host, port) pairs or dicts.
    """
    if hosts is None:
        return [Host()]
    if isinstance(hosts, (str, bytes)) or not isinstance(hosts, Sequence):
        raise ConfigurationError(
            f"{setting} is a list, one entry for each server, not {type(hosts).__name__}: "
            f'write "{setting}": [{hosts!r}]'
        )
    if not hosts:
        raise ConfigurationError(
            f'{setting} is empty: name a server, e.g. "{setting}": ["redis://localhost:6379"]'
        )
    found = [_parse(entry, setting) for entry in hosts]
    if len({host.identity for host in found}) < len(found):
        raise ConfigurationError(f"{setting} names the same server and database twice: {hosts!r}")
    return found


def _parse(entry: Any, setting: str) -> Host:
    if isinstance(entry, str):
        return Host(**_from_url(entry, setting))
    if isinstance(entry, Mapping):
        return _from_dict(dict(entry), setting)
    if isinstance(entry, Sequence) and len(entry) == 2:
        return Host(host=_text(entry[0], setting), port=_number(entry[1], "port", setting))
    raise ConfigurationError(
        f'{setting}: {entry!r} is no server: write "redis://host:6379/0", ("host", 6379) or {{"host": …, "port": …}}'
    )


def _from_dict(entry: dict[str, Any], setting: str) -> Host:
    values: dict[str, Any] = {}
    if "address" in entry:
        address = entry.pop("address")
        if isinstance(address, str):
            values = _from_url(address, setting)
        elif isinstance(address, Sequence) and len(address) == 2:
            values = {"host": _text(address[0], setting), "port": _number(address[1], "port", setting)}
        else:
            raise ConfigurationError(f"{setting}: address is a URL or a (host, port) pair, not {address!r}")
    if "sentinels" in entry:
        name, places = entry.pop("master_name", None), entry.pop("sentinels")
        values.update(_sentinels(places, name, entry.pop("sentinel_kwargs", None), setting))
    values.update(_options(entry, setting))
    return Host(**values)


def _sentinels(places: Any, master_name: Any, options: Any, setting: str) -> dict[str, Any]:
    if not isinstance(master_name, str) or not master_name:
        raise ConfigurationError(f'{setting}: sentinels need a "master_name", the one they watch: a str')
    if isinstance(places, (str, bytes)) or not isinstance(places, Sequence) or not places:
        raise ConfigurationError(
            f'{setting}: sentinels is a list of their addresses, e.g. [("10.0.0.1", 26379)], not {places!r}'
        )
    if not isinstance(options, Mapping | None):
        raise ConfigurationError(f"{setting}: sentinel_kwargs is a dict, not {type(options).__name__}")
    common = _options(options or {}, f"{setting}: sentinel_kwargs")
    found = []
    for place in places:
        if isinstance(place, (str, bytes)) or not isinstance(place, Sequence) or len(place) != 2:
            raise ConfigurationError(f"{setting}: a sentinel is a (host, port) pair, not {place!r}")
        address = {"host": _text(place[0], setting), "port": _number(place[1], "port", setting)}
        found.append(Host(**{**common, **address}))
    return {"sentinels": tuple(found), "master_name": master_name}


def _from_sentinel_url(url: str, setting: str) -> dict[str, Any]:
    """``redis+sentinel://[user:password@]host:port,host:port/master_name[/database][?option=…&sentinel_option=…]``"""
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    master_name, _, database = parts.path.strip("/").partition("/")
    pairs = [
        (place, 26379) if _has_no_port(place) else place.rsplit(":", 1)
        for place in places.split(",")
        if place
    ]
    query = dict(parse_qsl(parts.query))
    theirs = {key[9:]: value for key, value in query.items() if key.startswith("sentinel_")}
    values: dict[str, Any] = {
        "ssl": _SENTINEL_SCHEMES[parts.scheme],
        "db": _number(database or 0, "database", setting),
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        **_sentinels(
            [(str(host).strip("[]"), port) for host, port in pairs], unquote(master_name), theirs, setting
        ),
    }
    values.update(_options({key: query[key] for key in query if not key.startswith("sentinel_")}, setting))
    return values


def _has_no_port(place: str) -> bool:
    return ":" not in place or place.endswith("]")


def _from_url(url: str, setting: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme in _SENTINEL_SCHEMES:
        return _from_sentinel_url(url, setting)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{setting}: {url!r} is no server URL: write redis://host:6379/0, rediss://… for TLS, or unix:///path"
        )
    values: dict[str, Any] = {"ssl": _SCHEMES[parts.scheme]}
    if parts.scheme == "unix":
        values["path"] = unquote(parts.path)
    else:
        values["host"] = parts.hostname or "localhost"
        try:
            values["port"] = parts.port or 6379
        except ValueError:
            raise ConfigurationError(f"{setting}: the port in {url!r} is not a number up to 65535") from None
        if parts.path.strip("/"):
            values["db"] = _number(parts.path.strip("/"), "database", setting)
    if parts.username:
        values["username"] = unquote(parts.username)
    if parts.password:
        values["password"] = unquote(parts.password)
    values.update(_options(dict(parse_qsl(parts.query)), setting))
    return values


def _options(options: Mapping[str, Any], setting: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key in _WITHOUT_MEANING or value is None:
            continue
        if key not in _FIELDS:
            raise ConfigurationError(f"{setting}: {key!r} is not an option of a server; known: {_known()}")
        if key in ("port", "db"):
            value = _number(value, key, setting)
        elif key in ("ssl", "ssl_check_hostname"):
            value = _flag(value, key, setting)
        elif key == "ssl_cert_reqs":
            value = _cert_reqs(value, setting)
        elif key != "ssl_context":
            value = _text(value, setting)
        values[key] = value
    return values


def _known() -> str:
    return ", ".join(sorted(_FIELDS))


def _text(value: Any, setting: str) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{setting}: {value!r} should be a str")
    return value


def _number(value: Any, what: str, setting: str) -> int:
    if not isinstance(value, bool):
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = -1
        if 0 <= number <= 65535:
            return number
    raise ConfigurationError(f"{setting}: {what} {value!r} is not a number between 0 and 65535")


def _flag(value: Any, what: str, setting: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "0", "false", "no"):
        return str(value).lower() in ("1", "true", "yes")
    raise ConfigurationError(f"{setting}: {what} is true or false, not {value!r}")


def _cert_reqs(value: Any, setting: str) -> str:
    names = {tls.CERT_NONE: "none", tls.CERT_OPTIONAL: "optional", tls.CERT_REQUIRED: "required"}
    name = names.get(value) or str(value).lower().removeprefix("cert_")
    if name not in names.values():
        raise ConfigurationError(
            f'{setting}: ssl_cert_reqs is "required", "optional" or "none", not {value!r}'
        )
    return name
