"""Opening with a part of the servers, signs of life, permissions that are missing, certificates that are renewed."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.redis_load import TTL, Node, eventually, unique
from servers import Server, free_port
from trunkline.errors import ConfigurationError, TransportUnavailable
from trunkline.layers import RedisChannelLayer
from trunkline.transports.redis.hosts import Host
from trunkline.transports.redis.pace import Pace
from trunkline.transports.redis.permissions import acl_line
from trunkline.transports.redis.topology import partition

# A part of the servers


async def test_a_server_that_is_down_when_the_layer_opens(
    serve: Callable[..., Server], tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Names of the living server work at once; those of the other raise, or wait in receive, until it is there."""
    alive, port = serve(), free_port()
    hosts = [alive.url, f"redis://127.0.0.1:{port}"]
    layer = RedisChannelLayer(hosts, prefix=prefix, connect_timeout=30)
    caplog.set_level(logging.INFO, "trunkline.redis")
    start = time.monotonic()
    channel = await layer.new_channel()
    assert time.monotonic() - start < 15  # of the 30 that it would wait for both
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"127.0.0.1:{port} of 2 servers did not answer" in warnings[0]
    (node,) = layer._nodes.values()
    transport: Any = node._transport
    by_port: dict[int, list[str]] = {alive.port: [], port: []}
    for number in range(100):
        link = transport._writes[partition(f"g{number}")]
        by_port[link.host.port].append(f"g{number}")
    good, bad = by_port[alive.port][0], by_port[port][0]
    late: Server | None = None
    waiting = asyncio.create_task(layer.receive(bad))
    try:
        await layer.group_add(good, channel)
        await layer.group_send(good, {"n": 1})
        await layer.send(good, {"n": 2})
        async with asyncio.timeout(10):
            assert await layer.receive(channel) == {"n": 1}
            assert await layer.receive(good) == {"n": 2}
        calls: list[Callable[[], Any]] = [
            lambda: layer.group_add(bad, channel),
            lambda: layer.group_send(bad, {"n": 3}),
            lambda: layer.send(bad, {"n": 3}),
            lambda: layer.group_add(bad, "jobs"),
            lambda: layer.group_discard(bad, "jobs"),
        ]
        for call in calls:
            start = time.monotonic()
            with pytest.raises(TransportUnavailable, match=f"127.0.0.1:{port} cannot be reached"):
                await call()
            assert (
                time.monotonic() - start < 10
            )  # at once: a server that was there before is waited for, for 60 s
        assert not waiting.done()
        late = Server("redis", tmp_path / "late", port=port)
        await eventually(lambda: all(link.met for link in transport._links))
        await layer.group_add(bad, channel)
        await layer.group_send(bad, {"n": 4})
        await layer.send(bad, {"n": 5})
        async with asyncio.timeout(10):
            assert await layer.receive(channel) == {"n": 4}
            assert await waiting == {"n": 5}
        assert f"127.0.0.1:{port} is back" in caplog.text
    finally:
        waiting.cancel()
        await layer.close()
        if late is not None:
            late.kill()


async def test_flush_reaches_whoever_opened_before_the_server_was_there(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Whichever server is late: in the end the layer hears what is said to all."""
    alive, port = serve(), free_port()
    late: Server | None = None
    layers: list[RedisChannelLayer] = []
    try:
        # Where "what is said to all" lives depends on the address: with the roles exchanged, one of both is it.
        for prefix in (unique(), unique()):
            layers.append(RedisChannelLayer([alive.url, f"redis://127.0.0.1:{port}"], prefix=prefix))
            await layers[-1].new_channel()
        late = Server("redis", tmp_path / "late", port=port)
        for layer in layers:
            other = RedisChannelLayer([alive.url, late.url], prefix=layer._first._prefix)  # type: ignore[attr-defined]
            channel = await layer.new_channel()
            (node,) = layer._nodes.values()
            await eventually(lambda node=node: not node._tasks)
            await layer.send(channel, {"n": 1})
            await other.flush()
            await eventually(lambda node=node: not node._board.waiting)
            await other.close()
    finally:
        for layer in layers:
            await layer.close()
        if late is not None:
            late.kill()


async def test_when_none_answers() -> None:
    """The first call goes on trying for connect_timeout, then tells."""
    hosts = [f"redis://127.0.0.1:{free_port()}" for _ in range(2)]
    layer = RedisChannelLayer(hosts, connect_timeout=0.7)
    start = time.monotonic()
    with pytest.raises(TransportUnavailable, match="cannot be reached"):
        await layer.send("jobs", {"n": 1})
    assert 0.6 < time.monotonic() - start < 5  # of 10, the default


async def test_a_wrong_password_for_one_of_several(serve: Callable[..., Server], prefix: str) -> None:
    """Is a mistake, told at once, though the other server works."""
    closed = serve(requirepass="secret")
    layer = RedisChannelLayer([serve().url, f"redis://:wrong@127.0.0.1:{closed.port}"], prefix=prefix)
    with pytest.raises(ConfigurationError, match=f"{closed.port} refuses us: WRONGPASS"):
        await layer.send("jobs", {"n": 1})


# Signs of life


def test_the_dead_are_known_within_nine_seconds() -> None:
    """The sign of life ends before, and a beat may come late without its node being asked for."""
    pace = Pace()
    assert pace.life < 9
    assert 1.5 * pace.heartbeat < pace.life / 2


async def test_a_node_whose_sign_of_life_is_late_is_alive(server: Server) -> None:
    """While the server has its subscription, a node without the key gets what is posted; without both it is gone."""
    prefix = unique()
    async with Node(server, prefix, _pace=Pace()) as a:
        b = Node(server, prefix, _pace=Pace())
        await b.transport.open(b.name, b)
        (alive,) = [
            key for key in server.call("KEYS", f"{prefix}*") if key.endswith(f"}}a:{b.name}".encode())
        ]
        assert 0 < server.call("PTTL", alive) <= 8000
        assert server.call("DEL", alive) == 1
        assert await a.transport.post(b.name, "c!1", b"still here", 10, TTL) is True
        await eventually(lambda: b.frames == [b"still here"])
        (link,) = b.transport._links
        assert link._task is not None
        link._task.cancel()  # as kill -9 does: no good-bye
        link._disconnect()
        await eventually(lambda: b.name not in server.call("CLIENT", "LIST").decode())
        # That post was a sign too: a connection that only now ended may be one that was cut off.
        assert 0 < server.call("PTTL", alive) <= 8000
        assert await a.transport.post(b.name, "c!1", b"kept", 10, TTL) is True
        assert server.call("DEL", alive) == 1
        assert await a.transport.post(b.name, "c!1", b"gone", 10, TTL) is False


# Permissions


@pytest.mark.parametrize("missing", ["subscribe", "time", "script|load", "set"])
async def test_a_missing_permission_is_told_at_the_first_call(
    server: Server, prefix: str, missing: str
) -> None:
    """At once, as the mistake it is, with the server's own words and where to look."""
    rules = acl_line(prefix, prefix).replace(">PASSWORD", ">secret").split()
    rules.remove(f"+{missing}")
    assert server.call(*rules) == b"OK"
    layer = RedisChannelLayer(
        [f"redis://{prefix}:secret@127.0.0.1:{server.port}"], prefix=prefix, connect_timeout=20
    )
    try:
        start = time.monotonic()
        with pytest.raises(ConfigurationError, match="NOPERM") as raised:
            await layer.send("jobs", {"n": 1})
        assert time.monotonic() - start < 10  # of the 20 that it would go on trying
        text = str(raised.value)
        assert missing.partition("|")[0] in text
        assert "`trunkline doctor URL`" in text
        assert "secret" not in text
    finally:
        await layer.close()
        server.call("ACL", "DELUSER", prefix)


async def test_a_missing_channel_is_told_too(server: Server, prefix: str) -> None:
    """A user who may subscribe, but to other channels."""
    rules = (
        acl_line(prefix, prefix).replace(">PASSWORD", ">secret").replace(f"&{prefix}/*", "&other/*").split()
    )
    assert server.call(*rules) == b"OK"
    layer = RedisChannelLayer([f"redis://{prefix}:secret@127.0.0.1:{server.port}"], prefix=prefix)
    try:
        with pytest.raises(ConfigurationError, match=r"NOPERM.*trunkline doctor"):
            await layer.send("jobs", {"n": 1})
    finally:
        await layer.close()
        server.call("ACL", "DELUSER", prefix)


# Certificates


async def test_a_renewed_certificate_is_read_at_the_next_connection(
    serve_tls: Callable[..., Any], tmp_path: Path, prefix: str
) -> None:
    """The authority's file is replaced by a stranger's and back: each new connection goes by what is there."""
    tls = serve_tls()
    stranger_folder = tmp_path / "stranger"
    stranger_folder.mkdir()
    ca = tmp_path / "current.pem"
    shutil.copy(tls.authority.path, ca)
    layer = RedisChannelLayer([f"{tls.url}?ssl_ca_certs={ca}"], prefix=prefix, connect_timeout=2)
    await layer.send("jobs", {"n": 1})
    await layer.close()
    shutil.copy(type(tls.authority)(stranger_folder).path, tmp_path / "new.pem")
    os.replace(tmp_path / "new.pem", ca)
    with pytest.raises(TransportUnavailable, match="certificate is not trusted"):
        await layer.send("jobs", {"n": 2})
    shutil.copy(tls.authority.path, ca)
    async with asyncio.timeout(10):
        assert await layer.receive("jobs") == {"n": 1}
    await layer.close()


def test_contexts_are_made_once_for_the_same_files() -> None:
    """Reading the system's authorities costs 20 ms of the loop's time: not at each attempt to connect."""
    host = Host("h", ssl=True)
    assert host.context() is host.context()
