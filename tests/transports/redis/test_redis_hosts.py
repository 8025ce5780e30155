"""Settings and routing, without a server."""

from __future__ import annotations

import binascii
import ssl
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from trunkline.errors import ConfigurationError
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis.hosts import Host, parse_hosts
from trunkline.transports.redis.topology import PARTITIONS, TAGS, Names, owners, partition


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("redis://localhost", Host()),
        ("redis://h:7000/3", Host("h", 7000, db=3)),
        ("valkey://user:p%40ss@h", Host("h", username="user", password="p@ss")),
        ("redis://:secret@[::1]:6380", Host("::1", 6380, password="secret")),
        ("rediss://h?ssl_cert_reqs=none", Host("h", ssl=True, ssl_cert_reqs="none")),
        ("valkeys://h?ssl_ca_certs=/ca.pem", Host("h", ssl=True, ssl_ca_certs="/ca.pem")),
        ("unix:///run/redis.sock?db=2", Host(path="/run/redis.sock", db=2)),
        (("h", 7000), Host("h", 7000)),
        (["h", "7000"], Host("h", 7000)),
        ({"host": "h", "port": 7000, "db": 1, "password": "x"}, Host("h", 7000, db=1, password="x")),
        ({"address": "redis://h:7000", "db": 4}, Host("h", 7000, db=4)),
        ({"address": ("h", 7000), "socket_timeout": 3, "max_connections": 50}, Host("h", 7000)),
        (
            {"address": "rediss://h", "ssl_cert_reqs": ssl.CERT_NONE},
            Host("h", ssl=True, ssl_cert_reqs="none"),
        ),
        (
            {
                "sentinels": [("a", 26379), ["b", 26379]],
                "master_name": "m",
                "sentinel_kwargs": {"password": "x"},
            },
            Host(sentinels=(Host("a", 26379, password="x"), Host("b", 26379, password="x")), master_name="m"),
        ),
    ],
)
def test_forms_of_hosts(entry: object, host: Host) -> None:
    assert parse_hosts([entry]) == [host]


def test_no_hosts_mean_localhost() -> None:
    assert parse_hosts(None) == [Host("localhost", 6379)]


@pytest.mark.parametrize(
    ("hosts", "fix"),
    [
        ("redis://h", r'write "hosts": \[\'redis://h\'\]'),
        ([], "name a server"),
        (5, "hosts is a list"),
        ([5], "is no server"),
        (["http://h"], "redis://host:6379/0"),
        (["redis://h:99999"], "port"),
        (["redis://h/x"], "database 'x'"),
        ([("h", "x")], "port 'x'"),
        ([{"host": "h", "prot": 1}], "'prot' is not an option.*port"),
        ([{"sentinels": [("a", 1)]}], "master_name"),
        ([{"host": "h", "ssl": "maybe"}], "true or false"),
        ([{"host": "h", "ssl_cert_reqs": "maybe"}], "required"),
        (["redis://h", "redis://h/0"], "twice"),
    ],
)
def test_wrong_hosts_say_what_to_write(hosts: object, fix: str) -> None:
    with pytest.raises(ConfigurationError, match=fix):
        parse_hosts(hosts)


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(parse_hosts(["redis://:secret@h"]))
    assert "secret" not in repr(RedisTransport(["redis://:secret@h"]))


def test_tls_contexts() -> None:
    assert Host().context() is None
    strict = Host(ssl=True).context()
    assert strict is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    lax = Host(ssl=True, ssl_cert_reqs="none").context()
    assert lax is not None
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)
    with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
        Host(ssl=True, ssl_ca_certs="/nowhere.pem").context()


def test_options_in_the_url() -> None:
    transport = RedisTransport.from_url("redis://h:7000/1?prefix=p&expiry=5&deadline=2", connect_timeout=3)
    assert transport._hosts == [Host("h", 7000, db=1)]
    assert (transport._prefix, transport._expiry, transport._deadline, transport._connect_timeout) == (
        "p",
        5,
        2,
        3,
    )
    with pytest.raises(ConfigurationError, match="expiry"):
        RedisTransport.from_url("redis://h?expiry=soon")


@pytest.mark.parametrize(
    "wrong", [{"prefix": ""}, {"prefix": "a{b"}, {"expiry": 0}, {"deadline": "1"}, {"on_disconnect": 5}]
)
def test_wrong_settings_name_their_key(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RedisTransport(**wrong)  # type: ignore[arg-type]


def test_tags_sit_in_the_middle_of_equal_parts_of_a_cluster() -> None:
    """So that 256 partitions spread evenly over any number of masters, off by one at most."""
    slots = [binascii.crc_hqx(tag.encode(), 0) % 16384 for tag in TAGS]
    assert slots == [(2 * i + 1) * 32 for i in range(256)]
    for masters in range(1, 257):
        loads = Counter(slot * masters // 16384 for slot in slots)
        assert max(loads.values()) - min(loads[i] for i in range(masters)) <= 1


def test_routing_never_changes() -> None:
    """Pinned: processes of different versions must agree."""
    assert [partition(name) for name in ("room", "chat.42", "a" * 99)] == [155, 154, 238]
    assert Names("asgi", 0).topic("room") == b"asgi/0{nx9}t:room"
    assert [owners(["a:1/0", "b:1/0", "c:1/0"])[i] for i in range(10)] == [2, 0, 0, 0, 0, 1, 2, 1, 1, 2]


servers = st.lists(st.from_regex(r"\A[a-z]{1,8}:[0-9]{1,5}/0\Z"), min_size=1, max_size=6, unique=True)


@settings(max_examples=20)
@given(servers, st.randoms())
def test_owners_do_not_depend_on_the_order_of_the_servers(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert [names[i] for i in owners(names)] == [shuffled[i] for i in owners(shuffled)]


@settings(max_examples=20)
@given(servers)
def test_a_new_server_only_takes(names: list[str]) -> None:
    """Partitions move to the new server or stay where they are."""
    before, after = owners(names), owners([*names, "new:1/0"])
    assert all(new in (old, len(names)) for old, new in zip(before, after, strict=True))


def test_names_spread_evenly() -> None:
    loads = Counter(partition(f"room.{number}") for number in range(PARTITIONS * 100))
    assert len(loads) == PARTITIONS
    assert max(loads.values()) < 160
    shares = Counter(owners(["a:1/0", "b:1/0", "c:1/0", "d:1/0"]))
    assert min(shares.values()) > 40
