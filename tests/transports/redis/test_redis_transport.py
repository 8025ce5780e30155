"""What is particular to Redis and Valkey, on servers that are well."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from faults.redis_load import TTL, Load, Node, eventually, unique
from servers import Server, free_port
from trunkline.errors import ChannelFull, ConfigurationError, LayerClosed, TransportUnavailable
from trunkline.names import new_node
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis.connection import Connection, connect
from trunkline.transports.redis.hosts import Host
from trunkline.transports.redis.inbox import label, pack_post
from trunkline.transports.redis.ops import Destination, Post, Posts
from trunkline.transports.redis.pace import Pace


class Replies:
    """A request that keeps what came."""

    want = 1

    def __init__(self) -> None:
        self.replies: list[Any] = []

    def answered(self, replies: list[Any]) -> None:
        self.replies = replies

    def lost(self, error: TransportUnavailable) -> None:
        raise error


async def test_commands_for_each_operation(server: Server) -> None:
    """A publish is XADD, PUBLISH and a look at what is bound, a post or push is one script, however many subscribe."""
    prefix = unique()
    still = Pace(heartbeat=60.0, life=180.0)  # however long it takes, no sign of life falls in between
    async with Node(server, prefix, _pace=still) as a, Node(server, prefix, _pace=still) as b:
        for node in (a, b):
            await node.transport.subscribe("room")
        await a.transport.publish("room", b"first", TTL)
        before = server.command_counts()
        for number in range(50):
            await a.transport.publish("room", b"%d" % number, TTL)
        after = server.command_counts()
        used = {
            name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)
        }
        del used["info"]
        assert used == {"xadd": 50, "publish": 50, "hgetall": 50}
        before = server.command_counts()
        for number in range(50):
            await a.transport.post(b.name, "c!1", b"%d" % number, 100, TTL)
            await a.transport.push("queue", b"%d" % number, 100, TTL)
        after = server.command_counts()
        assert after["evalsha"] - before.get("evalsha", 0) == 100


async def test_posts_of_one_turn_of_the_loop_are_one_command(server: Server) -> None:
    """Fifty posts to three channels: one script, one push, one entry of the inbox's log; the first one went ahead."""
    prefix = unique()
    still = Pace(heartbeat=60.0, life=180.0)
    async with Node(server, prefix, _pace=still) as a, Node(server, prefix, _pace=still) as b:
        frames = [b"%d" % number for number in range(51)]
        await asyncio.gather(
            *(a.transport.post(b.name, f"c!{number % 3}", frames[number], 100, TTL) for number in range(51))
        )
        await eventually(lambda: b.frames == frames)
        names = a.transport._links[0].names
        assert server.call("XLEN", names.inbox(b.name)) == 2
        # A publish among them neither overtakes nor is overtaken.
        await b.transport.subscribe("room")
        b.frames.clear()
        posts = [a.transport.post(b.name, "c!1", frame, None, TTL) for frame in frames]
        await asyncio.gather(*posts[:20], a.transport.publish("room", b"amid", TTL), *posts[20:])
        await eventually(lambda: b.frames == [*frames[:20], b"amid", *frames[20:]])


async def test_posts_whose_answer_was_lost_count_once(server: Server) -> None:
    """Sent again they are not done again, and the answer is the same: which of them were refused."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        link = a.transport._links[0]
        keys = link.names.post_keys(b.name, link.sid)
        to = Destination(link.outbox, keys, "c!1", 3, label("c!1", 3), TTL)
        bodies = [pack_post(to.label, b"%d" % number) for number in range(5)]
        posts = [Post(to, body, TTL) for body in bodies]
        together = Posts(posts)
        link.outbox.sender.number(together, link.clock.now_ms())
        commands = together.commands()
        assert isinstance(commands, bytes)
        connection = link.outbox._connection
        assert isinstance(connection, Connection)
        first, again = Replies(), Replies()
        connection.send(commands, first)
        connection.send(commands, again)
        await eventually(lambda: first.replies and again.replies)
        assert first.replies == again.replies == [b"FULL 4 5"]
        together.answered(first.replies)
        outcomes = await asyncio.gather(*(post.future for post in posts), return_exceptions=True)
        assert outcomes[:3] == [True, True, True]
        assert all(isinstance(outcome, ChannelFull) for outcome in outcomes[3:])
        # Should the server forget it, what comes again is what it had taken.
        assert together.body == b"".join(bodies[:3])
        assert await a.transport.post(b.name, "c!2", b"end", 3, TTL)
        await eventually(lambda: b"end" in b.frames)
        assert b.frames == [b"0", b"1", b"2", b"end"]


async def test_databases_of_one_server_never_meet(server: Server) -> None:
    """Pub/sub knows no databases, so the number is in the names."""
    prefix = unique()
    a = Node(server, prefix)
    b = Node(server, prefix)
    b.transport = RedisTransport([f"{server.url}/3"], prefix=prefix)
    async with a, b:
        for node in (a, b):
            await node.transport.subscribe("room")
        await a.transport.publish("room", b"a", TTL)
        await b.transport.publish("room", b"b", TTL)
        await a.transport.push("queue", b"job", 10, TTL)
        await eventually(lambda: a.frames and b.frames)
        assert (a.frames, b.frames) == ([b"a"], [b"b"])
        assert await a.transport.post(b.name, "c!1", b"hi", None, TTL) is False


async def test_every_key_has_a_time_to_live(server: Server) -> None:
    """Also after all kinds of use, and after the nodes are gone."""
    prefix = unique()
    async with Node(server, prefix) as a, Node(server, prefix) as b:
        await b.transport.subscribe("room")
        await a.transport.publish("room", b"x", TTL)
        await b.transport.bind("room", "queue", 1, 30)
        assert not await a.transport.publish("room", b"x", TTL)
        assert await a.transport.publish("room", b"x", TTL) == ["queue"]
        await b.transport.pull("queue")
        await a.transport.post(b.name, "c!1", b"x", 1, TTL)
        with pytest.raises(ChannelFull):
            await a.transport.post(b.name, "c!1", b"x", 1, TTL)
        b.transport.taken("c!1", 1)
        waiting = asyncio.create_task(b.transport.pull("queue"))
        await asyncio.sleep(0.2)
        waiting.cancel()
        assert len(server.call("KEYS", f"{prefix}*")) > 8
        assert server.without_ttl(prefix) == []
    assert server.without_ttl(prefix) == []


async def test_what_a_node_leaves_when_it_dies_at_once(server: Server) -> None:
    """Posted to before its first heartbeat, then gone without a word: nothing stays for ever."""
    prefix = unique()
    async with Node(server, prefix, _pace=Pace()) as a:
        b = Node(server, prefix, _pace=Pace())
        await b.transport.open(b.name, b)
        assert await a.transport.post(b.name, "c!1", b"x", 10, TTL)
        for link in b.transport._links:
            assert link._task is not None
            link._task.cancel()
            link._disconnect()
        assert server.without_ttl(prefix) == []


async def test_what_an_emptied_server_is_sent_does_not_stay_for_ever(server: Server) -> None:
    """Keys that were made anew have a time to live at once, not only when their owner has noticed."""
    prefix = unique()
    pace = Pace(heartbeat=30.0)
    async with Node(server, prefix, _pace=pace) as a, Node(server, prefix, _pace=pace) as b:
        for _ in range(2):
            assert await a.transport.post(b.name, "c!1", b"x", 10, TTL)
            server.call("DEL", *server.call("KEYS", f"{prefix}*"))
        assert await a.transport.post(b.name, "c!1", b"x", 10, TTL)
        assert server.call("KEYS", f"{prefix}*")
        assert server.without_ttl(prefix) == []


async def test_logs_keep_what_is_young_enough(server: Server) -> None:
    """What is older than the time to live leaves the logs, and the rest stays."""
    async with Node(server, unique(), expiry=0.5) as a:
        names = a.transport._links[0].names
        logs = names.topic("room"), names.inbox(a.name)

        async def send(count: int) -> list[int]:
            for _ in range(count):
                await a.transport.publish("room", b"x", 0.5)
                await a.transport.post(a.name, "c!1", b"x", None, 0.5)
            return [server.call("XLEN", log) for log in logs]

        old, *_ = await send(300)
        await asyncio.sleep(0.7)
        young = await send(10)
        # A server drops a hundred at a time, and a little later.
        assert old == 300
        assert all(10 <= length <= 110 for length in young)


async def test_logs_are_bounded_in_frames_and_bytes(server: Server) -> None:
    """Whatever is sent, a log keeps about ``log_length`` frames and 128 MB."""
    prefix = unique()
    async with Node(server, prefix, log_length=400) as a:
        for _ in range(4):
            for size, topic in ((10, "small"), (1 << 20, "large")):
                calls = [
                    a.transport.publish(topic, bytes(size), TTL) for _ in range(500 if size == 10 else 50)
                ]
                await asyncio.gather(*calls)
            for _ in range(500):  # what is posted at once is one frame
                await a.transport.post(a.name, "c!1", b"x", None, TTL)
        names = a.transport._links[0].names
        lengths = [
            server.call("XLEN", name)
            for name in (names.topic("small"), names.topic("large"), names.inbox(a.name))
        ]
        assert 300 < lengths[0] < 700
        assert 90 < lengths[1] < 150
        assert 300 < lengths[2] < 700


async def test_a_dead_node_is_gone(server: Server) -> None:
    """A node that vanished without a word is gone when its sign of life has run out."""
    prefix = unique()
    pace = Pace(heartbeat=0.2, life=0.6)
    async with Node(server, prefix, _pace=pace) as a:
        b = Node(server, prefix, _pace=pace)
        await b.transport.open(b.name, b)
        assert await a.transport.post(b.name, "c!1", b"x", None, TTL) is True
        for link in b.transport._links:
            assert link._task is not None
            link._task.cancel()
            link._disconnect()
        until = time.monotonic() + 5
        while await a.transport.post(b.name, "c!1", b"x", None, TTL):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


def test_a_closed_loop_is_let_go_without_a_complaint(server: Server) -> None:
    """The loop ended without a close, as after ``async_to_sync``: sockets are closed, nothing warns."""
    node = Node(server, unique())
    loop = asyncio.new_event_loop()
    loop.run_until_complete(node.transport.open(node.name, node))
    loop.close()
    node.transport.abandon()
    gc.collect()
    until = time.monotonic() + 5
    while node.name.encode() in server.call("CLIENT", "LIST"):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_loop_that_ended_while_connecting_is_let_go_without_a_complaint() -> None:
    """The coroutine that waits for the server's first answer is collected after its loop was closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = asyncio.new_event_loop()
        host = Host("127.0.0.1", listener.getsockname()[1])
        task = loop.create_task(connect(host, name="test", deadline=60, on_lost=lambda error: None))
        near, _ = loop.run_until_complete(loop.sock_accept(listener))
        assert b"PING" in loop.run_until_complete(loop.sock_recv(near, 1000))
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task
        gc.collect()
        near.setblocking(True)
        assert near.recv(1000) == b""
        near.close()


async def test_a_forked_child_leaves_its_parent_alone(server: Server) -> None:
    """The child abandons the transport; the parent's connections go on."""
    prefix = unique()
    async with Node(server, prefix) as a:
        await a.transport.subscribe("room")
        pid = os.fork()
        if pid == 0:
            try:
                a.transport.abandon()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        await a.transport.publish("room", b"still here", TTL)
        await eventually(lambda: a.frames == [b"still here"])
        assert a.disconnects == 0


async def test_open_says_who_does_not_answer_and_what_to_try() -> None:
    """Nobody listens: the error names the address, the cause and the next command."""
    port = free_port()
    transport = RedisTransport([("127.0.0.1", port)], connect_timeout=0.3)
    with pytest.raises(
        TransportUnavailable, match=rf"127\.0\.0\.1:{port} .*redis-cli -h 127\.0\.0\.1 -p {port} ping"
    ) as error:
        await transport.open(new_node(), Node.__new__(Node))
    assert isinstance(error.value.__cause__, OSError)
    await transport.close()


async def test_passwords_and_users(server: Server, tmp_path: Path) -> None:
    """A wrong password is a configuration error at once; ACL users and passwords work."""
    guarded = Server(server.kind, tmp_path / "guarded", requirepass="secret")
    try:
        guarded.call("ACL", "SETUSER", "layer", "on", ">pass", "~*", "&*", "+@all")
        for url in (f"redis://:wrong@127.0.0.1:{guarded.port}", guarded.url):
            with pytest.raises(ConfigurationError, match=r"WRONGPASS .*Check both|NOAUTH .*PASSWORD@"):
                await RedisTransport([url]).open(new_node(), Node.__new__(Node))
        for login in (":secret", "layer:pass"):
            transport = RedisTransport([f"redis://{login}@127.0.0.1:{guarded.port}"])
            await transport.open(new_node(), Node.__new__(Node))
            await transport.close()
    finally:
        guarded.kill()


async def test_unix_sockets(server: Server, tmp_path: Path) -> None:
    """A server can be named by the path of its socket."""
    path = f"/tmp/{unique()}.sock"
    local = Server(server.kind, tmp_path / "local", unixsocket=path)
    try:
        transport = RedisTransport.from_url(f"unix://{path}?prefix=here&db=2")
        await transport.open(new_node(), Node.__new__(Node))
        await transport.push("queue", b"job", 10, TTL)
        assert await transport.pull("queue") == b"job"
        await transport.close()
    finally:
        local.kill()


async def test_tls(tmp_path: Path) -> None:
    """rediss:// with a private authority; a certificate nobody vouches for is refused."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ],
            *["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    options = {"tls_port": str(port), "tls_cert_file": str(cert), "tls_key_file": str(key)}
    server = Server("redis", tmp_path / "tls", tls_ca_cert_file=str(cert), tls_auth_clients="no", **options)
    try:
        for query in (f"ssl_ca_certs={cert}", "ssl_cert_reqs=none"):
            node = Node(server, unique())
            node.transport = RedisTransport.from_url(f"rediss://127.0.0.1:{port}?{query}")
            async with node:
                await node.transport.subscribe("room")
                await node.transport.publish("room", bytes(300_000), TTL)
                await node.transport.post(node.name, "c!1", bytes(range(256)) * 4096, 10, TTL)
                await eventually(lambda node=node: node.frames == [bytes(300_000), bytes(range(256)) * 4096])
        with pytest.raises(TransportUnavailable, match="certificate is not trusted"):
            stranger = RedisTransport.from_url(f"rediss://127.0.0.1:{port}", connect_timeout=0.5)
            await stranger.open(new_node(), Node.__new__(Node))
    finally:
        server.kill()


async def test_a_node_of_a_cluster_is_no_server(server: Server, tmp_path: Path) -> None:
    """Part of a cluster answers many commands and would fail at the first name of another part."""
    cluster = Server(server.kind, tmp_path / "cluster", cluster_enabled="yes", cluster_port=str(free_port()))
    try:
        with pytest.raises(ConfigurationError, match=r"redis\+cluster://127"):
            await RedisTransport([cluster.url]).open(new_node(), Node.__new__(Node))
    finally:
        cluster.kill()


async def test_a_replica_is_refused_by_name(server: Server, tmp_path: Path) -> None:
    """Writing to a replica never works: open says which server it follows."""
    replica = Server(server.kind, tmp_path / "replica")
    try:
        replica.call("REPLICAOF", "127.0.0.1", server.port)
        transport = RedisTransport([replica.url], connect_timeout=0.5)
        with pytest.raises(TransportUnavailable, match="replica of 127"):
            await transport.open(new_node(), Node.__new__(Node))
    finally:
        replica.kill()


async def test_senders_wait_for_their_ttl_and_no_longer(server: Server, tmp_path: Path) -> None:
    """In an outage a send waits as long as its message lives, a pull and a subscription as long as it takes."""
    own = Server(server.kind, tmp_path / "own")
    try:
        async with Node(own, unique()) as a:
            own.kill()
            await eventually(lambda: a.disconnects)
            pull = asyncio.create_task(a.transport.pull("queue"))
            subscription = asyncio.create_task(a.transport.subscribe("room"))
            patient = asyncio.create_task(a.transport.publish("room", b"patient", TTL))
            started = time.monotonic()
            with pytest.raises(TransportUnavailable, match=str(own.port)):
                await a.transport.publish("room", b"hasty", 0.3)
            assert 0.25 < time.monotonic() - started < 1.5
            assert not any(task.done() for task in (pull, subscription, patient))
            cancelled = asyncio.create_task(a.transport.publish("room", b"cancelled", TTL))
            await asyncio.sleep(0)
            cancelled.cancel()
            own.start()
            await asyncio.gather(subscription, patient)
            await a.transport.push("queue", b"job", 10, TTL)
            assert await pull == b"job"
            await eventually(lambda: a.frames)
            assert a.frames == [b"patient"]
    finally:
        own.kill()


async def test_waiting_readers_leave_nothing_behind_in_an_outage(server: Server, tmp_path: Path) -> None:
    """A worker that polls with a timeout through an outage makes no heap of requests."""
    own = Server(server.kind, tmp_path / "own")
    try:
        async with Node(own, unique()) as a:
            own.kill()
            await eventually(lambda: a.disconnects)
            for _ in range(50):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(a.transport.pull("queue"), 0.001)
            await eventually(lambda: not a.transport._links[0].outbox._waiting)
            subscription = asyncio.create_task(a.transport.subscribe("room"))
            await asyncio.sleep(0)
            await a.transport.unsubscribe("room")
            await asyncio.wait_for(subscription, 5)
    finally:
        own.kill()


async def test_what_waits_is_bounded(server: Server, tmp_path: Path) -> None:
    """16 MB wait in an outage; the next send fails at once."""
    own = Server(server.kind, tmp_path / "own")
    try:
        a = Node(own, unique())
        await a.transport.open(a.name, a)
        own.kill()
        await eventually(lambda: a.disconnects)
        waiting = [asyncio.create_task(a.transport.publish("room", bytes(1 << 20), TTL)) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(TransportUnavailable):
            await a.transport.publish("room", b"one more", TTL)
        assert not any(task.done() for task in waiting)
        await a.transport.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, LayerClosed) for outcome in outcomes)
    finally:
        own.kill()


async def test_cancelled_calls_leave_the_connection_in_step(server: Server) -> None:
    """Callers give up at any moment; every later answer still belongs to its question."""
    async with Node(server, unique()) as a:
        await a.transport.subscribe("room")
        for number in range(200):
            call = asyncio.create_task(a.transport.publish("room", b"c%d" % number, TTL))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            call.cancel()
        for number in range(20):
            assert await a.transport.post(a.name, "c!1", b"%d" % number, 20, TTL) is True
        with pytest.raises(ChannelFull):
            await a.transport.post(a.name, "c!1", b"x", 20, TTL)
        assert a.gaps == []


async def test_hooks_of_any_shape_do_no_harm(server: Server) -> None:
    """on_disconnect may take the address or nothing, and may raise."""
    told: list[str] = []

    def angry(address: str) -> None:
        told.append(address)
        raise ValueError("no")

    prefix = unique()
    transport = RedisTransport(
        [server.url], prefix=prefix, on_disconnect=angry, on_reconnect=lambda: told.append("back")
    )
    node = Node(server, prefix)
    await transport.open(node.name, node)
    await eventually(lambda: node.name.encode() in server.call("CLIENT", "LIST"))
    for line in server.call("CLIENT", "LIST").decode().splitlines():
        if node.name in line:
            server.call("CLIENT", "KILL", "ID", line.split()[0].partition("=")[2])
    await eventually(lambda: len(told) == 2)
    assert told == [f"127.0.0.1:{server.port}", "back"]
    await transport.close()


async def test_a_dead_server_hurts_only_its_names(server: Server, tmp_path: Path) -> None:
    """Two servers, one dies: names of the other go on as if nothing had happened."""
    other = Server(server.kind, tmp_path / "other")
    try:
        a = Node(server, unique())
        a.transport = RedisTransport([server.url, other.url], prefix=unique(), on_disconnect=a._lost)
        async with a:
            homes: dict[int, list[str]] = {server.port: [], other.port: []}
            for number in range(40):
                topic = f"topic.{number}"
                await a.transport.subscribe(topic)
                homes[a.transport._write(topic).host.port].append(topic)
            assert all(len(topics) > 8 for topics in homes.values())
            other.kill()
            await eventually(lambda: a.disconnects == 1)
            for topic in homes[server.port]:
                await a.transport.publish(topic, topic.encode(), 1.0)
            await eventually(lambda: len(a.frames) == len(homes[server.port]))
            with pytest.raises(TransportUnavailable, match=str(other.port)):
                await a.transport.publish(homes[other.port][0], b"x", 0.2)
    finally:
        other.kill()


async def test_names_move_to_other_servers_without_loss(server: Server, tmp_path: Path) -> None:
    """One server becomes two, process by process, in two steps: nothing is lost, doubled or reordered."""
    other = Server(server.kind, tmp_path / "other")
    old, new = [server.url], [server.url, other.url]
    prefix = unique()
    nodes = []
    jobs: set[bytes] = set()
    try:
        for hosts, read_hosts in ((old, new), (new, old)):
            node = Node(server, prefix)
            node.transport = RedisTransport(hosts, prefix=prefix, read_hosts=read_hosts)
            await node.transport.open(node.name, node)
            nodes.append(node)
        async with Load(nodes, topics=24) as load:  # so many that both servers have some
            for number in range(40):
                for node in nodes:
                    await node.transport.push(
                        f"queue.{number % 8}", b"%b %d" % (node.name.encode(), number), 100, TTL
                    )
            for number in range(8):
                for node in nodes * 5:
                    jobs.add(await node.transport.pull(f"queue.{number}"))
        await load.check(across_topics=False)  # order over several servers is not promised
        assert len(jobs) == 80
        homes = {node.transport._write(topic).host.port for node in nodes for topic in load.topics}
        assert homes == {server.port, other.port}
    finally:
        for node in nodes:
            await node.transport.close()
        other.kill()
