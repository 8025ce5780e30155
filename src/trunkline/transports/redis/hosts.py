"""Servers, as settings name them: URLs, pairs and dicts become ``Host`` values, or an error that says what to write."""

from __future__ import annotations

import functools
import os
import ssl as tls
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, unquote

from ...errors import ConfigurationError
from ...settings import QUOTE, shown_url, split_url

__all__ = ["URL_KEYS", "Host", "in_cluster", "parse_hosts"]

_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True, "unix": False}
_CLUSTER_SCHEMES = {f"{scheme}+cluster": tls for scheme, tls in _SCHEMES.items() if scheme != "unix"}
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
    #: Some nodes of a cluster, in place of host and port.
    seeds: tuple[Host, ...] = ()

    @property
    def address(self) -> str:
        """What a person calls it."""
        if self.sentinels:
            return f"{self.master_name} (Sentinel)"
        if self.seeds:
            return f"{', '.join(seed.address for seed in self.seeds)} (Cluster)"
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    @property
    def identity(self) -> str:
        """What decides which names it owns among several servers."""
        return f"{self.address}/{self.db}"

    def at(self, host: str, port: int) -> Self:
        """The server that sentinels, or nodes of a cluster, name, with the settings given here."""
        return replace(self, host=host, port=port, path=None, sentinels=(), master_name="", seeds=())

    def context(self) -> tls.SSLContext | None:
        """The TLS settings, of the certificate files as they are now; None without TLS.

        Raises:
            ConfigurationError: A certificate file cannot be read.
        """
        if not self.ssl:
            return None
        if self.ssl_context is not None:
            return self.ssl_context
        paths = tls.get_default_verify_paths()
        files = (self.ssl_ca_certs, self.ssl_certfile, self.ssl_keyfile, paths.cafile, paths.capath)
        return _context(self, tuple(_version(file) for file in files))


def _version(file: str | None) -> tuple[int, ...]:
    """What changes when a file is renewed."""
    try:
        found = os.stat(file or "")
    except OSError:
        return ()  # whoever reads it tells
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)  # reading the system's authorities takes 20 ms of the loop's time
def _context(host: Host, versions: tuple[tuple[int, ...], ...]) -> tls.SSLContext:
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


_FIELDS = {f.name for f in fields(Host)} - {"sentinels", "master_name", "seeds"}
_FIELDS_OF_A_NODE = _FIELDS - {"host", "port", "path", "ssl_context"}
_IN_A_URL = _FIELDS_OF_A_NODE
#: Query keys of a URL that are about the server, or about its sentinels.
URL_KEYS = frozenset(_IN_A_URL) | _WITHOUT_MEANING | {f"sentinel_{key}" for key in _IN_A_URL}


def parse_hosts(hosts: Any, setting: str = "hosts") -> list[Host]:
    """Read the ``hosts`` setting; None means one server on localhost.

    Raises:
        ConfigurationError: It is not a list of URLs, (host, port) pairs or dicts. No password is in its text.
    """
    if hosts is None:
        return [Host()]
    if isinstance(hosts, (str, bytes)) or not isinstance(hosts, Sequence):
        example = repr(shown_url(hosts)) if isinstance(hosts, str) else '"redis://localhost:6379"'
        raise ConfigurationError(
            f"{setting} is a list, one entry for each server, not {type(hosts).__name__}: "
            f'write "{setting}": [{example}]'
        )
    if not hosts:
        raise ConfigurationError(
            f'{setting} is empty: name a server, e.g. "{setting}": ["redis://localhost:6379"]'
        )
    found = [_parse(entry, setting) for entry in hosts]
    if len({host.identity for host in found}) < len(found):
        servers = ", ".join(host.identity for host in found)
        raise ConfigurationError(f"{setting} names the same server and database twice: {servers}")
    return found


def in_cluster(hosts: list[Host], cluster: Any, read_hosts: list[Host]) -> list[Host]:
    """Make seeds of the hosts if they are those of a cluster, by the ``cluster`` setting or by their URL.

    Raises:
        ConfigurationError: They cannot be.
    """
    if cluster is not None and not isinstance(cluster, bool):
        raise ConfigurationError(f"cluster is True or False, not {cluster!r}")
    named = [host for host in hosts if host.seeds]
    if cluster is False and named:
        raise ConfigurationError(f"cluster=False, but hosts has the URL of a cluster: {named[0].address}")
    if any(host.seeds for host in read_hosts) or (read_hosts and (cluster or named)):
        raise ConfigurationError(
            "read_hosts is for moving names between single servers; a cluster moves its slots by itself"
        )
    if not (cluster or named):
        return hosts
    if named and len(hosts) > 1:
        raise ConfigurationError(
            "hosts: the URL of a cluster stands alone; name all its seeds in it: redis+cluster://host:6379,host2:6379"
        )
    seeds = named[0].seeds if named else tuple(hosts)
    for number, seed in enumerate(seeds):
        if any(seed.address == other.address for other in seeds[:number]):
            raise ConfigurationError(f"hosts names the same node of the cluster twice: {seed.address}")
    for seed in seeds:
        if seed.sentinels or seed.path:
            what = "sentinels" if seed.sentinels else "a socket's path"
            raise ConfigurationError(
                f"hosts: a node of a cluster is a host and a port, not {what}: {seed.address}"
            )
        if seed.db:
            raise ConfigurationError(
                f"hosts: a cluster has database 0 only, not {seed.db}: leave the number out; "
                "prefix keeps layers apart"
            )
    common = replace(seeds[0], host="", port=0)
    if any(replace(seed, host="", port=0) != common for seed in seeds):
        raise ConfigurationError(
            "hosts: the nodes of a cluster have one user, one password and one way of TLS; write the same for each"
        )
    return [replace(seeds[0], seeds=seeds)]


def _parse(entry: Any, setting: str) -> Host:
    if isinstance(entry, str):
        return Host(**_from_url(entry, setting))
    if isinstance(entry, Mapping):
        return _from_dict(dict(entry), setting)
    if isinstance(entry, Sequence) and len(entry) == 2:
        return Host(**_pair(entry, "a server", setting))
    size = f" of {len(entry)}" if isinstance(entry, Sequence) else ""
    raise ConfigurationError(
        f"{setting}: a {type(entry).__name__}{size} is no server: "
        'write "redis://host:6379/0", ("host", 6379) or {"host": …, "port": …}'
    )


def _pair(pair: Any, what: str, setting: str) -> dict[str, Any]:
    if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ConfigurationError(
            f'{setting}: {what} is a (host, port) pair, e.g. ("host", 6379), not a {type(pair).__name__}'
        )
    return {"host": _text(pair[0], "host", setting), "port": _number(pair[1], "port", setting)}


def _from_dict(entry: dict[str, Any], setting: str) -> Host:
    values: dict[str, Any] = {}
    if "address" in entry:
        address = entry.pop("address")
        values = (
            _from_url(address, setting) if isinstance(address, str) else _pair(address, "address", setting)
        )
    if "sentinels" in entry:
        name, places = entry.pop("master_name", None), entry.pop("sentinels")
        values.update(_sentinels(places, name, entry.pop("sentinel_kwargs", None), setting))
    # What the URL says wins, as in redis-py.
    return Host(**{**_options(entry, _FIELDS, setting), **values})


def _sentinels(places: Any, master_name: Any, options: Any, setting: str) -> dict[str, Any]:
    if not isinstance(master_name, str) or not master_name:
        raise ConfigurationError(f'{setting}: sentinels need a "master_name", the one they watch: a str')
    if isinstance(places, (str, bytes)) or not isinstance(places, Sequence) or not places:
        raise ConfigurationError(
            f'{setting}: sentinels is a list of their addresses, e.g. [("10.0.0.1", 26379)], not {places!r}'
        )
    if not isinstance(options, Mapping | None):
        raise ConfigurationError(f"{setting}: sentinel_kwargs is a dict, not {type(options).__name__}")
    common = _options(options or {}, _FIELDS, f"{setting}: sentinel_kwargs")
    found = [Host(**{**common, **_pair(place, "a sentinel", setting)}) for place in places]
    return {"sentinels": tuple(found), "master_name": master_name}


def _from_sentinel_url(parts: SplitResult, setting: str) -> dict[str, Any]:
    """``redis+sentinel://[user:password@]host:port,host:port/master_name[/database][?option=…&sentinel_option=…]``"""
    login, _, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    master_name, _, database = parts.path.strip("/").partition("/")
    query = dict(parse_qsl(parts.query))
    theirs = {key[9:]: value for key, value in query.items() if key.startswith("sentinel_")}
    ours = {key: value for key, value in query.items() if not key.startswith("sentinel_")}
    return {
        "ssl": _SENTINEL_SCHEMES[parts.scheme],
        "db": _number(database or 0, "database", setting),
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        **_sentinels(_pairs(places, 26379), unquote(master_name), theirs, setting),
        **_options(ours, URL_KEYS, setting),
    }


def _from_cluster_url(parts: SplitResult, setting: str) -> dict[str, Any]:
    """``redis+cluster://[user:password@]host:port,host:port[?option=…]``"""
    login, _, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    options = _options(dict(parse_qsl(parts.query)), _FIELDS_OF_A_NODE, setting)
    if parts.path.strip("/"):
        options["db"] = _number(parts.path.strip("/"), "database", setting)
    common = {
        "ssl": _CLUSTER_SCHEMES[parts.scheme],
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        **options,
    }
    seeds = tuple(Host(**{**common, **_pair(pair, "a node", setting)}) for pair in _pairs(places, 6379))
    if not seeds:
        raise ConfigurationError(
            f"{setting}: name some nodes of the cluster: redis+cluster://host:6379,host2:6379"
        )
    return {**vars(seeds[0]), "seeds": seeds}


def _pairs(places: str, port: int) -> list[tuple[str, Any]]:
    """The addresses between the commas of a URL."""
    pairs = [
        (place, port) if _has_no_port(place) else place.rsplit(":", 1) for place in places.split(",") if place
    ]
    return [(str(host).strip("[]"), number) for host, number in pairs]


def _has_no_port(place: str) -> bool:
    return ":" not in place or place.endswith("]")


def _from_url(url: str, setting: str) -> dict[str, Any]:
    """What a URL says, and nothing it leaves open."""
    parts = split_url(url, setting)
    # A password with a "/" in it ends up where nobody looks for one.
    if "@" in parts.path and (parts.scheme != "unix" or parts.netloc):
        raise ConfigurationError(f"{setting}: a URL has an @ behind its host. {QUOTE}")
    if parts.scheme in _SENTINEL_SCHEMES:
        return _from_sentinel_url(parts, setting)
    if parts.scheme in _CLUSTER_SCHEMES:
        return _from_cluster_url(parts, setting)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{setting}: {shown_url(url)!r} is no server URL: "
            "write redis://host:6379/0, rediss://… for TLS, or unix:///path"
        )
    values = _place(parts, setting)
    if _SCHEMES[parts.scheme]:
        values["ssl"] = True
    if parts.username:
        values["username"] = unquote(parts.username)
    if parts.password:
        values["password"] = unquote(parts.password)
    values.update(_options(dict(parse_qsl(parts.query)), URL_KEYS, setting))
    return values


def _place(parts: SplitResult, setting: str) -> dict[str, Any]:
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if path in ("", "/"):
            raise ConfigurationError(f"{setting}: unix:// needs the path of a socket: unix:///run/redis.sock")
        return {"path": path}
    values: dict[str, Any] = {}
    if parts.hostname:
        values["host"] = parts.hostname
    try:
        if parts.port:
            values["port"] = parts.port
    except ValueError:
        raise ConfigurationError(
            f"{setting}: the port of a URL with host {parts.hostname or ''!r} is not a number up to 65535. {QUOTE}"
        ) from None
    if parts.path.strip("/"):
        values["db"] = _number(parts.path.strip("/"), "database", setting)
    return values


def _options(options: Mapping[str, Any], known: AbstractSet[str], setting: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if isinstance(context := options.get("ssl"), tls.SSLContext):
        options = {**options, "ssl": True, "ssl_context": context}
    for key, value in options.items():
        if key == "ssl_cert_reqs":
            values[key] = _cert_reqs(value, setting)
        elif key in _WITHOUT_MEANING:
            continue
        elif key not in known:
            names = ", ".join(sorted(known - _WITHOUT_MEANING))
            raise ConfigurationError(f"{setting}: {key!r} is not an option of a server; known: {names}")
        elif value is not None:
            read: Callable[[Any, str, str], Any] = _READ.get(key, _text)
            values[key] = read(value, key, setting)
    return values


def _text(value: Any, what: str, setting: str) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{setting}: {what} is a str, not {type(value).__name__}")
    return value


def _number(value: Any, what: str, setting: str) -> int:
    if not isinstance(value, bool):
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
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


def _ssl_context(value: Any, what: str, setting: str) -> tls.SSLContext:
    if not isinstance(value, tls.SSLContext):
        raise ConfigurationError(f"{setting}: {what} is an ssl.SSLContext, not {type(value).__name__}")
    return value


#: How values are read that are not plain text.
_READ: dict[str, Callable[[Any, str, str], Any]] = {
    "port": _number,
    "db": _number,
    "ssl": _flag,
    "ssl_check_hostname": _flag,
    "ssl_context": _ssl_context,
}


def _cert_reqs(value: Any, setting: str) -> str:
    if value is None:  # as hosting providers advise, for certificates that nobody signed
        return "none"
    if isinstance(value, int):  # the constants of the ssl module, in their order
        value = {0: "none", 1: "optional", 2: "required"}.get(value, value)
    name = str(value).lower().removeprefix("cert_")
    if name not in ("none", "optional", "required"):
        raise ConfigurationError(
            f'{setting}: ssl_cert_reqs is "required", "optional" or "none", not {value!r}'
        )
    return name
