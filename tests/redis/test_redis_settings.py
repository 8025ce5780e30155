"""Every setting that channels_redis takes, with its meaning, on real servers."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import trunkline
from servers import Server
from trunkline.errors import ChannelFull, ConfigurationError, TransportUnavailable
from trunkline.layers import RedisChannelLayer


@asynccontextmanager
async def opened(*layers: RedisChannelLayer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for layer in layers:
            await layer.close()


async def talk(one: RedisChannelLayer, two: RedisChannelLayer) -> None:
    """A group message and a direct one from the first layer to the second, and a job by the queue."""
    async with opened(one, two):
        channel = await two.new_channel()
        await two.group_add("g", channel)
        await one.group_send("g", {"n": 1})
        await one.send(channel, {"n": 2})
        await one.send("jobs", {"n": 3})
        async with asyncio.timeout(10):
            assert [await two.receive(channel) for _ in range(2)] == [{"n": 1}, {"n": 2}]
            assert await two.receive("jobs") == {"n": 3}


# hosts

FORMS: dict[str, Callable[[int], Any]] = {
    "URL": lambda port: f"redis://127.0.0.1:{port}",
    "URL with database": lambda port: f"redis://127.0.0.1:{port}/2",
    "valkey URL": lambda port: f"valkey://127.0.0.1:{port}",
    "pair": lambda port: ("127.0.0.1", port),
    "list": lambda port: ["127.0.0.1", port],
    "host and port": lambda port: {"host": "127.0.0.1", "port": port, "db": 1},
    "address is a URL": lambda port: {"address": f"redis://127.0.0.1:{port}", "db": 3},
    "address is a pair": lambda port: {"address": ("127.0.0.1", port)},
    "options of a pool": lambda port: {
        "address": f"redis://127.0.0.1:{port}",
        "max_connections": 10,
        "socket_timeout": 5,
        "health_check_interval": 30,
        "retry_on_timeout": True,
    },
}


@pytest.mark.parametrize("form", FORMS)
async def test_forms_of_hosts(server: Server, prefix: str, form: str) -> None:
    """Each form that channels_redis takes leads to the server."""
    hosts = [FORMS[form](server.port)]
    await talk(RedisChannelLayer(hosts, prefix=prefix), RedisChannelLayer(hosts=hosts, prefix=prefix))


async def test_several_hosts(server: Server, serve: Callable[..., Server], prefix: str) -> None:
    """Names are spread over all of them, whatever the order of the list; a message reaches its channel from any."""
    hosts: list[Any] = [server.url, ("127.0.0.1", serve().port), {"address": serve().url}]
    one = RedisChannelLayer(hosts, prefix=prefix)
    two = RedisChannelLayer(hosts[::-1], prefix=prefix)
    async with opened(one, two):
        for number in range(12):
            channel = await two.new_channel()
            await two.group_add(f"g{number}", channel)
            await one.group_send(f"g{number}", {"n": number})
            await one.send(channel, {"n": -number})
            async with asyncio.timeout(10):
                assert [await two.receive(channel) for _ in range(2)] == [{"n": number}, {"n": -number}]


async def test_without_hosts_it_is_localhost() -> None:
    """None means redis://localhost:6379, as in channels_redis."""
    assert "localhost:6379" in repr(RedisChannelLayer()._first)


async def test_databases_never_mix(server: Server, prefix: str) -> None:
    """The same names in two databases of one server: channels, groups, queues and pub/sub stay apart."""
    layers = [RedisChannelLayer([f"{server.url}/{db}"], prefix=prefix) for db in (0, 1)]
    async with opened(*layers):
        channels = [await layer.new_channel() for layer in layers]
        for layer, channel in zip(layers, channels, strict=True):
            await layer.group_add("g", channel)
        for number, layer in enumerate(layers):
            await layer.group_send("g", {"db": number})
            await layer.send("jobs", {"db": number})
        await layers[0].send(channels[1], {"lost": True})
        assert layers[0].stats().gone == 1
        for number, (layer, channel) in enumerate(zip(layers, channels, strict=True)):
            await layer.send(channel, {"fence": number})
            async with asyncio.timeout(10):
                assert [await layer.receive(channel) for _ in range(2)] == [{"db": number}, {"fence": number}]
                assert await layer.receive("jobs") == {"db": number}
        await layers[0].send("jobs", {"db": 0})
        await layers[1].flush()
        async with asyncio.timeout(10):
            assert await layers[0].receive("jobs") == {"db": 0}


# How to get in


async def test_tls_with_a_private_ca(serve_tls: Callable[..., Any], prefix: str) -> None:
    """rediss:// and a CA file; or the same as a dict; without the file it is refused, with the reason."""
    tls = serve_tls()
    ca = tls.authority.path
    one = RedisChannelLayer([f"{tls.url}?ssl_ca_certs={quote(ca)}"], prefix=prefix)
    two = RedisChannelLayer([{"address": tls.url, "ssl_ca_certs": ca}], prefix=prefix)
    await talk(one, two)
    stranger = RedisChannelLayer([tls.url], prefix=prefix, connect_timeout=1)
    with pytest.raises(TransportUnavailable, match="certificate is not trusted"):
        await stranger.send("jobs", {"n": 1})
    missing = RedisChannelLayer([f"{tls.url}?ssl_ca_certs=/no/such/file.pem"], prefix=prefix)
    with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
        await missing.send("jobs", {"n": 1})


async def test_unix_socket(serve: Callable[..., Server], prefix: str) -> None:
    """unix:///path, with a database in the query."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/r.sock"
        serve(unixsocket=path)
        hosts = [f"unix://{path}?db=4"]
        await talk(RedisChannelLayer(hosts, prefix=prefix), RedisChannelLayer(hosts, prefix=prefix))


PASSWORD = "p@s:s/w#o?r d%41é+&=[]"


async def test_users_and_special_characters(server: Server, prefix: str) -> None:
    """An ACL user whose password has every special character: quoted in a URL, plain in a dict."""
    rules = ("on", f">{PASSWORD}", f"~{prefix}/*", f"&{prefix}/*", "+@all")
    assert server.call("ACL", "SETUSER", prefix, "reset", *rules) == b"OK"
    try:
        url = f"redis://{prefix}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}"
        entry = {"host": "127.0.0.1", "port": server.port, "username": prefix, "password": PASSWORD}
        one, two = RedisChannelLayer([url], prefix=prefix), RedisChannelLayer([entry], prefix=prefix)
        await talk(one, two)
        assert PASSWORD not in repr(one._first) + repr(two._first)
        wrong = RedisChannelLayer([{**entry, "password": "not the one"}], prefix=prefix)
        with pytest.raises(ConfigurationError, match="WRONGPASS") as raised:
            await wrong.send("jobs", {"n": 1})
        assert "not the one" not in str(raised.value)
    finally:
        server.call("ACL", "DELUSER", prefix)


async def test_requirepass(serve: Callable[..., Server], prefix: str) -> None:
    """A password without a user, as redis://:password@host."""
    server = serve(requirepass="secret")
    hosts = [f"redis://:secret@127.0.0.1:{server.port}"]
    await talk(RedisChannelLayer(hosts, prefix=prefix), RedisChannelLayer(hosts, prefix=prefix))


# The other keys


def stored(server: Server, prefix: str) -> bytes:
    """All that the server keeps in logs of the prefix, as one string."""
    keys = server.call("KEYS", f"{prefix}/*")
    logs = [key for key in keys if server.call("TYPE", key) in (b"stream", "stream")]
    return b"".join(
        field for key in logs for _, fields in server.call("XRANGE", key, "-", "+") for field in fields
    )


async def test_prefix(server: Server, prefix: str) -> None:
    """Layers with different prefixes do not meet; every key begins with the prefix."""
    before = set(server.call("KEYS", "*"))
    one, two = (RedisChannelLayer([server.url], prefix=f"{prefix}{name}") for name in "ab")
    async with opened(one, two):
        channels = [await one.new_channel(), await two.new_channel()]
        await one.group_add("g", channels[0])
        await two.group_add("g", channels[1])
        await two.group_send("g", {"from": "two"})
        await one.group_send("g", {"from": "one"})
        async with asyncio.timeout(10):
            assert await one.receive(channels[0]) == {"from": "one"}
            assert await two.receive(channels[1]) == {"from": "two"}
        made = set(server.call("KEYS", "*")) - before
        assert {key[: len(prefix) + 2] for key in made} == {f"{prefix}a/".encode(), f"{prefix}b/".encode()}


async def test_capacity_and_channel_capacity(server: Server, prefix: str) -> None:
    """capacity, a glob and a compiled pattern: the sender of the message that does not fit gets ChannelFull."""
    table = {"thumbs.*": 2, re.compile(r"big\."): 4}
    sender = RedisChannelLayer([server.url], prefix=prefix, capacity=3, channel_capacity=table)
    async with opened(sender):
        for channel, room in (("jobs", 3), ("thumbs.small", 2), ("big.one", 4)):
            for number in range(room):
                await sender.send(channel, {"n": number})
            with pytest.raises(ChannelFull, match=channel):
                await sender.send(channel, {"n": room})


async def test_expiry(server: Server, prefix: str) -> None:
    """A message older than expiry is not received, and no key outlives its purpose for long."""
    layer = RedisChannelLayer([server.url], prefix=prefix, expiry=0.8, group_expiry=60)
    async with opened(layer):
        await layer.send("jobs", {"n": 1})
        await asyncio.sleep(1.0)
        await layer.send("jobs", {"n": 2})
        assert await layer.receive("jobs") == {"n": 2}
        assert server.without_ttl(prefix) == []


async def test_encryption(server: Server, prefix: str) -> None:
    """The server never sees the text; a layer with the key among its keys reads it, one without drops and counts it."""
    secret = {"text": "attack at dawn"}
    make: Callable[..., RedisChannelLayer] = lambda *keys: RedisChannelLayer(  # noqa: E731
        [server.url], prefix=prefix, symmetric_encryption_keys=keys
    )
    one, two, outsider = make("new", "old"), make(b"old", b"new"), make("other")
    async with opened(one, two, outsider):
        channels = [await layer.new_channel() for layer in (two, outsider)]
        await two.group_add("g", channels[0])
        await outsider.group_add("g", channels[1])
        await one.group_send("g", secret)
        async with asyncio.timeout(10):
            assert await two.receive(channels[0]) == secret
            while not outsider.stats().unreadable:
                await asyncio.sleep(0.01)
        logs = stored(server, prefix)
        assert len(logs) > 50
        assert b"dawn" not in logs


async def test_serializers(server: Server, prefix: str) -> None:
    """msgpack, json, and one of the user's own: what the server stores is in that format."""
    trunkline.register_serializer(
        "shouted", lambda message: json.dumps(message).upper().encode(), lambda body: json.loads(body.lower())
    )
    for name, expected in (
        ("msgpack", b"\x81\xa4text\xa5hello"),
        ("json", b'{"text":"hello"}'),
        ("shouted", b'{"TEXT": "HELLO"}'),
    ):
        layer = RedisChannelLayer([server.url], prefix=f"{prefix}{name}", serializer_format=name)
        async with opened(layer):
            channel = await layer.new_channel()
            await layer.group_add("g", channel)
            await layer.group_send("g", {"text": "hello"})
            assert await layer.receive(channel) == {"text": "hello"}
            assert expected in stored(server, f"{prefix}{name}")


async def test_random_prefix_length(server: Server, prefix: str) -> None:
    """Accepted, and without meaning: frames are unique as they are."""
    hosts = [server.url]
    one, two = (RedisChannelLayer(hosts, prefix=prefix, random_prefix_length=8) for _ in range(2))
    await talk(one, two)


async def test_url_of_a_layer(server: Server, prefix: str) -> None:
    """Settings may stand in the query of a URL; trunkline.layer_from_url makes the same layer."""
    url = f"{server.url}/1?prefix={prefix}&capacity=2&expiry=30&deadline=2.5&log_length=500"
    layer = trunkline.layer_from_url(url)
    assert (layer.capacity, layer.expiry) == (2, 30)
    other = RedisChannelLayer([f"{server.url}/1"], prefix=prefix)
    await talk(other, layer)  # type: ignore[arg-type]


# Wrong values

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hosts": "redis://h"}, r'hosts is a list.* write "hosts": \[\'redis://h\'\]'),
    ({"hosts": []}, "hosts is empty"),
    ({"hosts": ["h:6379"]}, "hosts: 'h:6379' is no server URL: write redis://host:6379/0"),
    ({"hosts": [("h", 6379, 0)]}, r"is no server: write"),
    ({"hosts": [{"adress": "redis://h"}]}, "hosts: 'adress' is not an option"),
    ({"hosts": [{"host": "h", "db": "one"}]}, "hosts: db 'one' is not a number"),
    ({"hosts": [{"sentinels": [("a", 1)]}]}, 'hosts: sentinels need a "master_name"'),
    ({"prefix": ""}, "prefix is a str that is not empty"),
    ({"expiry": "60"}, "expiry is a number of seconds above 0, not '60'"),
    ({"group_expiry": 0}, "group_expiry is a number of seconds above 0"),
    ({"capacity": 1.5}, "capacity is a whole number of messages"),
    ({"channel_capacity": [("a", 1)]}, "channel_capacity is a dict"),
    ({"channel_capacity": {"a": "1"}}, r"channel_capacity\['a'\] is a whole number"),
    ({"symmetric_encryption_keys": "secret"}, r"symmetric_encryption_keys is a list of keys.*write \[key\]"),
    ({"serializer_format": "pickle"}, "serializer_format 'pickle' is not known: 'json', 'msgpack'"),
    ({"on_disconnect": "not.callable"}, "on_disconnect is a callable"),
    ({"connect_timeout": 0}, "connect_timeout is a number above 0"),
    ({"capasity": 5}, "unknown setting 'capasity': did you mean 'capacity'"),
    ({"host": "h"}, "unknown setting 'host': did you mean 'hosts'"),
]


@pytest.mark.parametrize(("config", "complaint"), WRONG, ids=[f"{key}" for key, _ in WRONG])
def test_wrong_values_name_the_key_and_the_fix(config: dict[str, Any], complaint: str) -> None:
    """Told when the layer is made, as a ValueError, never a KeyError."""
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        RedisChannelLayer(**config)
    assert isinstance(raised.value, ValueError)
    assert not isinstance(raised.value, KeyError)
    with pytest.raises(ConfigurationError, match=re.escape("CHANNEL_LAYERS['default']: ")):
        trunkline.configure({"default": {"BACKEND": "trunkline.layers.RedisChannelLayer", "CONFIG": config}})


def test_a_missing_file_of_certificates_is_not_a_secret(tmp_path: Path) -> None:
    """A layer can be made before its certificates exist; the doctor and first use tell."""
    assert RedisChannelLayer([f"rediss://h?ssl_ca_certs={tmp_path}/later.pem"]).capacity == 100
