"""Settings that are wrong, and what is said about them; settings that mean what they mean to redis-py."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from trunkline import layer_from_url
from trunkline.errors import ConfigurationError
from trunkline.layers import InMemoryChannelLayer, RedisChannelLayer
from trunkline.settings import shown_url
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis.hosts import Host, parse_hosts

# Mistakes


@pytest.mark.parametrize(
    ("hosts", "fix"),
    [
        ([{"sentinels": "x", "master_name": "m"}], r"sentinels is a list.*\(\"10.0.0.1\", 26379\)"),
        ([{"sentinels": [], "master_name": "m"}], "sentinels is a list"),
        ([{"sentinels": ["ab"], "master_name": "m"}], "a sentinel is a .host, port. pair"),
        ([{"sentinels": [("x",)], "master_name": "m"}], "a sentinel is a .host, port. pair"),
        ([("x",)], r"a tuple of 1 is no server: write"),
        ([("h", 1, "x")], r"a tuple of 3 is no server: write"),
        (["redis://[::1"], "cannot be read as a URL"),
        (["unix://"], "unix:///run/redis.sock"),
        (["unix:///"], "unix:///run/redis.sock"),
        ([{"address": 5}], "address is a .host, port. pair"),
        ([{"host": 5}], "host is a str, not int"),
        ([{"host": "h", "port": math.inf}], "port inf is not a number"),
        ([{"host": "h", "ssl_context": "x"}], "ssl_context is an ssl.SSLContext, not str"),
        ([{"host": "h", "ssl_cert_reqs": ["none"]}], 'ssl_cert_reqs is "required"'),
        (["redis://h?ssl_context=x"], "'ssl_context' is not an option"),
        (["redis://h?sentinels=x"], "'sentinels' is not an option"),
        ([], "hosts is empty: name a server"),
    ],
)
def test_wrong_hosts(hosts: Any, fix: str) -> None:
    """Each is a ConfigurationError that names what to write."""
    with pytest.raises(ConfigurationError, match=fix):
        RedisChannelLayer(hosts)


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"symmetric_encryption_keys": 5}, "symmetric_encryption_keys is a list of keys, not int"),
        ({"symmetric_encryption_keys": {"k": 1}}, "symmetric_encryption_keys is a list of keys, not dict"),
        ({"serializer_format": ["x"]}, "serializer_format is a name.*not list"),
        ({"expiry": math.inf}, "expiry is a number of seconds above 0, not inf"),
        ({"expiry": math.nan}, "expiry is a number of seconds above 0, not nan"),
        ({"group_expiry": math.inf}, "group_expiry is a number"),
        ({"on_gap": 5}, r"on_gap is a callable that takes \(group, reason\), not 5"),
        ({"random_prefix_length": "x"}, "random_prefix_length is a whole number.*'x'"),
        ({"random_prefix_length": True}, "random_prefix_length is a whole number"),
        ({"deadline": math.inf}, "deadline is a number above 0, not inf"),
        ({"log_length": math.nan}, "log_length is a number above 0, not nan"),
        ({"read_hosts": 5}, "read_hosts is a list"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], fix: str) -> None:
    """Each is a ConfigurationError, also where a bare error of Python came or nonsense was taken."""
    with pytest.raises(ConfigurationError, match=fix):
        RedisChannelLayer(**wrong)


def test_what_still_is_right() -> None:
    """Any iterable of keys, and the number that channels_redis takes."""
    layer = RedisChannelLayer(symmetric_encryption_keys=(key for key in ["a", "b"]), random_prefix_length=12)  # type: ignore[arg-type]
    assert layer._settings.symmetric_encryption_keys == ["a", "b"]
    with pytest.raises(ConfigurationError, match="on_gap"):
        InMemoryChannelLayer(on_gap=5)  # type: ignore[arg-type]


# Secrets

LEAKS: list[Any] = [
    ["redis://:p/zecret@h"],
    ["redis://:12/zecret@h"],
    ["redis://:12#zecret@h"],
    ["redis://:12?zecret@h"],
    ["redis://:12?zecret=x@h"],
    ["redis://user:p[zecret@h"],
    ["redis+sentinel://:12/zecret@h/m"],
    ["unix://:12/zecret@/run/r.sock"],
    ["http://user:zecret@h"],
    ["redis://:zecret@h:99999"],
    ["redis://:zecret@h/x"],
    ["redis://:zecret@h", "redis://:zecret@h"],
    "redis://:zecret@h",
    {"host": "h", "password": "zecret"},
    [("h", 6379, "zecret")],
    [{"host": "h", "password": "zecret", "prot": 1}],
    [{"host": "h", "password": ["zecret"]}],
    [{"address": ("h", 1, "zecret")}],
]


@pytest.mark.parametrize("hosts", LEAKS, ids=range(len(LEAKS)))
def test_no_error_shows_a_password(hosts: Any) -> None:
    """Whatever is wrong with hosts, its text and its cause have no part of the password; nor when it is a URL."""
    ways: list[Callable[[], Any]] = [
        lambda: RedisChannelLayer(hosts),
        lambda: RedisChannelLayer(read_hosts=hosts),
    ]
    if isinstance(hosts, list) and len(hosts) == 1 and isinstance(hosts[0], str):
        ways.append(lambda: layer_from_url(hosts[0]))
        ways.append(lambda: RedisTransport.from_url(hosts[0]))
    for way in ways:
        with pytest.raises(ConfigurationError) as raised:
            way()
        shown = f"{raised.value} {raised.value.__cause__ or ''}"
        assert "zecret" not in shown
        assert (
            raised.value.__cause__ is not None
            or raised.value.__suppress_context__
            or not raised.value.__context__
        )


@pytest.mark.parametrize("url", ["redis://:p/ss@h", "redis://:12#ss@h", "redis://:1?ss@h", "redis://:p[s@h"])
def test_special_characters_get_their_advice(url: str) -> None:
    """A password that ends the host too early is told how to be written."""
    for way in (lambda: RedisChannelLayer([url]), lambda: layer_from_url(url)):
        with pytest.raises(ConfigurationError, match=r"special characters of a password as %XX"):
            way()


def test_what_is_shown_of_a_url() -> None:
    """Everything but its secrets."""
    assert shown_url("redis://user:p@ss@h:1/2?capacity=5") == "redis://***@h:1/2?capacity=5"
    assert shown_url("redis://h?password=x&db=2") == "redis://h?password=***&db=2"
    assert shown_url("embedded:///run/shop") == "embedded:///run/shop"
    assert shown_url("user:p@ss") == "***@ss"
    with pytest.raises(ConfigurationError) as raised:
        layer_from_url("//user:zecret@h")
    assert "zecret" not in str(raised.value)


def test_reprs() -> None:
    """Neither the layer, its transport nor a Host shows a password."""
    url = "redis://user:zecret@h?ssl_keyfile_password=zecret"
    layer = layer_from_url(url)
    assert "zecret" not in f"{layer!r} {layer._first!r} {parse_hosts([url])!r}"


# The same as in redis-py


def test_cert_reqs_none() -> None:
    """None, "none" and ssl.CERT_NONE: no check of the certificate; without the key, it is checked."""
    for value in (None, "none", "None", ssl.CERT_NONE, 0, "CERT_NONE"):
        (host,) = parse_hosts([{"address": "rediss://h", "ssl_cert_reqs": value}])
        context = host.context()
        assert context is not None
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    for value in ("optional", ssl.CERT_OPTIONAL):
        assert parse_hosts([{"host": "h", "ssl_cert_reqs": value}]) == [Host("h", ssl_cert_reqs="optional")]
    (strict,) = parse_hosts([{"address": "rediss://h"}])
    assert strict.ssl_cert_reqs == "required"


def test_an_ssl_context_as_ssl() -> None:
    """``"ssl": context`` means TLS with that context."""
    context = ssl.create_default_context()
    for entry in ({"host": "h", "ssl": context}, {"address": "redis://h", "ssl": context}):
        (host,) = parse_hosts([entry])
        assert host.context() is context


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ({"address": "redis://h/2", "db": 4}, Host("h", db=2)),
        ({"address": "redis://h?db=3", "db": 4}, Host("h", db=3)),
        ({"address": "redis://h", "db": 4}, Host("h", db=4)),
        ({"address": "redis://:url@h", "password": "dict"}, Host("h", password="url")),
        ({"address": "redis://h", "password": "dict"}, Host("h", password="dict")),
        ({"address": "redis://h:7000", "port": 1}, Host("h", 7000)),
        ({"address": "redis://h", "port": 7000}, Host("h", 7000)),
        ({"address": "rediss://h", "ssl": False}, Host("h", ssl=True)),
        ({"address": "redis://h", "ssl": True}, Host("h", ssl=True)),
        ({"address": ("h", 7000), "db": 4}, Host("h", 7000, db=4)),
    ],
)
def test_what_a_url_says_wins(entry: dict[str, Any], host: Host) -> None:
    """Over the other keys of the dict; what it leaves open, they fill."""
    assert parse_hosts([entry]) == [host]


# URLs of a layer


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("rediss://h?ssl_ca_certs=/x", Host("h", ssl=True, ssl_ca_certs="/x")),
        ("rediss://h?ssl_cert_reqs=none", Host("h", ssl=True, ssl_cert_reqs="none")),
        (
            "rediss://h?ssl_certfile=/c&ssl_keyfile=/k",
            Host("h", ssl=True, ssl_certfile="/c", ssl_keyfile="/k"),
        ),
        ("rediss://h?ssl_check_hostname=false", Host("h", ssl=True, ssl_check_hostname=False)),
        ("unix:///s?db=2", Host(path="/s", db=2)),
        ("redis://h?username=u&password=123", Host("h", username="u", password="123")),
        ("redis://h?socket_timeout=5&max_connections=10&health_check_interval=3", Host("h")),
    ],
)
def test_options_of_a_server_in_the_url_of_a_layer(url: str, host: Host) -> None:
    """They reach the server, beside settings of the layer; a misspelt one is told with the nearest."""
    layer = layer_from_url(f"{url}&capacity=7&prefix=5&deadline=2")
    transport: Any = layer._first
    assert (transport._hosts, transport._prefix, transport._deadline) == ([host], "5", 2)
    assert layer.capacity == 7
    with pytest.raises(ConfigurationError, match="did you mean 'ssl_ca_certs'"):
        layer_from_url("rediss://h?ssl_ca_cert=/x")


def test_several_hosts_do_not_fit_in_a_url() -> None:
    """``hosts`` beside a URL is a mistake that is told, not a TypeError."""
    with pytest.raises(ConfigurationError, match="hosts"):
        layer_from_url("redis://h", hosts=["redis://other"])
    with pytest.raises(ConfigurationError, match="hosts"):
        layer_from_url("redis://h?hosts=other")
