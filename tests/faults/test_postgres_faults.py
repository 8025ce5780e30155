"""PostgreSQL at its worst: ended backends, a server that freezes, restarts, crashes and fails over, late commits, bad roads,
processes that stand still and are killed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from faults.postgres_node import QUICK, Node
from faults.redis_load import TTL, Load, eventually, unique
from postgres_server import Postgres, binaries, running, sql
from trunkline.continuity import Sender, Sent
from trunkline.errors import ChannelFull, TransportUnavailable
from trunkline.testing import Link
from trunkline.testing.proxy import TcpProxy
from trunkline.transports.postgres import PostgresTransport
from trunkline.transports.postgres.names import CHANNEL, Names

pytestmark = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL on this machine")

END_ALL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'trunkline%'"
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server that each test leaves in good health."""
    with running() as server:
        yield server


async def in_thread(work: Any, *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


def accounted(load: Load, *nodes: Node) -> None:
    """What was lost was told, nothing was doubled, and nothing reordered that was not told."""
    for node in nodes:
        lost = load.lost(node)  # type: ignore[arg-type]
        topics = {frame.split(b":")[2].decode() for frame in lost}
        told = {"post" if topic is None else topic for topic in node.gaps}
        assert topics <= told, f"{len(lost)} lost, told {told}"
        assert load.doubled(node) == 0  # type: ignore[arg-type]
        assert load.reordered(node) == 0 or node.gaps  # type: ignore[arg-type]


def heard_enough(*nodes: Node) -> bool:
    """Whether so much came that its account says something."""
    return all(len(node.frames) > 150 for node in nodes)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_ended_backends_cost_nothing(postgres: Postgres, driver: str) -> None:
    """pg_terminate_backend again and again, under load: 0 lost, 0 doubled, 0 reordered."""
    prefix, url = unique(), postgres.url
    async with Node(url, prefix, driver=driver) as a, Node(url, prefix, driver=driver) as b:
        async with Load([a, b]) as load:  # type: ignore[list-item]
            ended, until = 0, time.monotonic() + 60
            while (ended < 20 or not heard_enough(a, b)) and time.monotonic() < until:
                await asyncio.sleep(0.25)
                ((count,),) = await sql(url, END_ALL)
                ended += count
        await load.check()
        assert ended >= 20
        await eventually(lambda: a.reconnects == a.disconnects > 0)


async def test_a_restart_costs_nothing(postgres: Postgres) -> None:
    """The server is shut down and started under load: its tables are still there."""
    prefix = unique()
    async with Node(postgres.url, prefix) as a, Node(postgres.url, prefix) as b:
        async with Load([a, b]) as load:  # type: ignore[list-item]
            await asyncio.sleep(0.5)
            await in_thread(postgres.stop)
            await in_thread(postgres.start)
            await eventually(lambda: a.reconnects and b.reconnects, 30)
            await eventually(lambda: heard_enough(a, b), 30)
        await load.check()


async def test_a_frozen_server_costs_nothing(postgres: Postgres) -> None:
    """The server and all its backends stand still for longer than the deadline, and go on."""
    prefix = unique()
    async with Node(postgres.url, prefix, deadline=1.0) as a, Node(postgres.url, prefix, deadline=1.0) as b:
        async with Load([a, b]) as load:  # type: ignore[list-item]
            await asyncio.sleep(0.4)
            postgres.freeze()
            try:
                await asyncio.sleep(3.0)
            finally:
                postgres.thaw()
            await eventually(lambda: a.reconnects and b.reconnects, 30)
            await eventually(lambda: heard_enough(a, b), 30)
        await load.check()


async def test_bad_roads_cost_nothing(postgres: Postgres) -> None:
    """One node's road is slow, the other's is cut again and again, noticed or not: 0 lost, 0 doubled, 0 reordered."""
    prefix = unique()
    slow, bad = Link(), Link()
    slow.delay = 0.04
    proxies = [TcpProxy(link, "127.0.0.1", postgres.port) for link in (slow, bad)]
    urls = [f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres" for proxy in proxies]
    try:
        async with Node(urls[0], prefix) as a, Node(urls[1], prefix, deadline=0.7) as b:
            async with Load([a, b]) as load:  # type: ignore[list-item]
                for silent in (False, True, False):
                    heard, lost, back = len(b.frames), b.disconnects, b.reconnects
                    await eventually(lambda heard=heard: len(b.frames) > heard + 30, 30)
                    bad.silent = silent
                    bad.cut()
                    await eventually(lambda lost=lost: b.disconnects > lost, 30)
                    bad.heal()
                    await eventually(lambda back=back: b.reconnects > back, 30)
                await eventually(lambda: heard_enough(a, b), 30)
            await load.check()
            assert a.disconnects == 0
    finally:
        for link in (slow, bad):
            link.close()


async def test_a_process_that_stands_still_and_is_killed(postgres: Postgres) -> None:
    """SIGSTOP for longer than its life: it misses nothing and is still there. SIGKILL: it is gone, with the job in hand, and
    what it waited for goes to others."""
    prefix = unique()
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("postgres_child.py")), postgres.url, prefix,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    async def said() -> dict[str, Any]:
        assert child.stdout is not None
        found: dict[str, Any] = json.loads(await asyncio.wait_for(child.stdout.readline(), 30))
        return found

    try:
        name = (await said())["name"]
        pace = QUICK.__class__(heartbeat=0.5, life=1.0)
        async with Node(postgres.url, prefix, _pace=pace) as node:
            transport = node.transport
            sent = []
            for number in range(60):
                if number == 10:
                    child.send_signal(signal.SIGSTOP)
                if number in (20, 40):
                    await asyncio.sleep(0.8)
                await transport.publish("room", b"%d" % number, TTL)
                assert await transport.post(name, "x!1", b"post %d" % number, None, TTL)
                sent += [f"{number}", f"post {number}"]
            child.send_signal(signal.SIGCONT)
            heard: dict[str, Any] = {"frames": []}
            while len(heard["frames"]) < len(sent):
                child.stdin.write(b"tell\n")
                heard = await said()
            assert heard == {"frames": sent, "gaps": []}

            child.stdin.write(b"take\n")
            await transport.push("jobs", b"in hand", 10, TTL)
            assert (await said())["taken"] == "in hand"
            child.stdin.write(b"take\n")
            area = Names("trunkline", prefix).area
            waiting = "SELECT count(*) FROM trunkline.readers WHERE queue = 'jobs' AND area = $1"
            while (await sql(postgres.url, waiting, area))[0][0] < 1:
                await asyncio.sleep(0.01)
            child.kill()
            await child.wait()
            until = time.monotonic() + 30
            while await transport.post(name, "x!1", b"anybody?", None, TTL):
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            await transport.push("jobs", b"next", 10, TTL)
            assert await asyncio.wait_for(transport.pull("jobs"), 10) == b"next"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_crash_is_told_or_made_good() -> None:
    """kill -9 of the whole server: unlogged tables come back empty, senders repeat, the rest is told."""
    with running() as server:
        prefix = unique()
        async with Node(server.url, prefix) as a, Node(server.url, prefix) as b:
            async with Load([a, b]) as load:  # type: ignore[list-item]
                await asyncio.sleep(0.5)
                await in_thread(server.kill)
                await in_thread(server.start)
                await eventually(lambda: a.reconnects and b.reconnects, 30)
                before = len(b.frames)
                await eventually(lambda: len(b.frames) > before + 100, 30)
            await asyncio.sleep(1.0)
            accounted(load, a, b)
            assert load.gone == 0
            assert not load.failed


async def test_a_failover_is_told_or_made_good() -> None:
    """The primary is gone, its standby is promoted: unlogged tables are empty there."""
    with running() as primary:
        standby = Postgres(standby_of=primary)
        try:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
            prefix = unique()
            found = await PostgresTransport.examine(standby.url)
            assert [(finding.level, finding.what) for finding in found] == [
                ("error", "this is a standby: it takes no messages")
            ]
            async with Node(url, prefix) as a, Node(url, prefix) as b:
                async with Load([a, b]) as load:  # type: ignore[list-item]
                    await asyncio.sleep(0.5)
                    await in_thread(primary.kill)
                    await in_thread(standby.promote)
                    await eventually(lambda: a.reconnects and b.reconnects, 30)
                    before = len(b.frames)
                    await eventually(lambda: len(b.frames) > before + 100, 30)
                await asyncio.sleep(1.0)
                accounted(load, a, b)
                assert load.gone == 0
                assert not load.failed
        finally:
            standby.kill()


@pytest.mark.parametrize("window", [5.0, 0.0])
async def test_what_a_crash_took_is_replayed(window: float) -> None:
    """A reader is cut off while frames are sent, and the server crashes. With the replay nothing is missing; without it
    the loss is told."""
    pace = QUICK.__class__(heartbeat=0.5, window=window)
    link = Link()
    with running() as server:
        prefix = unique()
        proxy = TcpProxy(link, "127.0.0.1", server.port)
        cut_url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        async with Node(server.url, prefix, _pace=pace) as a, Node(cut_url, prefix, _pace=pace) as b:
            for node in (a, b):
                await node.transport.subscribe("room")
            await a.transport.keep_record("room", "1", "ann", b"x", TTL)
            await a.transport.publish("room", b"before", TTL)
            await eventually(lambda: b.frames)
            link.cut()
            for number in range(50):
                await a.transport.publish("room", b"%d" % number, TTL)
            await in_thread(server.kill)
            await in_thread(server.start)
            await eventually(lambda: a.reconnects, 20)
            link.heal()
            await eventually(lambda: b.reconnects, 20)
            await a.transport.publish("room", b"after", TTL)
            await eventually(lambda: b"after" in b.frames)
            sent = [b"before", *(b"%d" % number for number in range(50)), b"after"]
            assert (a.frames, a.gaps) == (sent, [])
            if window:
                assert (b.frames, b.gaps) == (sent, [])
            else:
                assert (b.frames, b.gaps) == ([b"before", b"after"], ["room"])
            assert await a.transport.keep_record("room", "2", "ann", b"x", TTL) == 1
            assert await a.transport.renew_records(["room"], TTL) == (["room"], [], [])
        link.close()


async def test_a_late_commit_does_not_slip_behind(postgres: Postgres) -> None:
    """A frame's transaction is held open while later ones are heard, and is committed when the reader is cut off: the
    reader finds it when it is back, though its id and its time are old and its sender is silent."""
    prefix = unique()
    link = Link()
    proxy = TcpProxy(link, "127.0.0.1", postgres.port)
    names = Names("trunkline", prefix)
    topic = names.topic("room")
    sender: Sender[Sent] = Sender(b"latelate", retention=70)
    late = Sent(topic, b"late")
    cut_url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    async with Node(postgres.url, prefix) as a, Node(cut_url, prefix) as b:
        await b.transport.subscribe("room")
        held = await asyncpg.connect(postgres.url)
        try:
            await held.execute("BEGIN")
            sender.number(late, int(a.transport.now() * 1000))
            await held.execute(
                "INSERT INTO trunkline.frames (area, topic, stamp, until, data) "
                "VALUES ($1, $2, trunkline.now_2(), trunkline.now_2() + 70000, $3)",
                names.area, topic, sender.frame(late),
            )  # fmt: skip
            inflow = b.transport._link.inflow  # type: ignore[union-attr]
            for number in range(4):
                await a.transport.publish("room", b"%d" % number, TTL)
                beaten = inflow.heard_at
                await eventually(lambda beaten=beaten: inflow.heard_at != beaten)
            await eventually(lambda: len(b.frames) == 4)
            link.cut()
            await eventually(lambda: b.disconnects)
            await held.execute(f"SELECT pg_notify('{CHANNEL}{topic.hex()}', 'nobody hears this')")
            await held.execute("COMMIT")
        finally:
            await held.close()
        link.heal()
        await eventually(lambda: len(b.frames) == 5)
        assert b.frames == [b"0", b"1", b"2", b"3", b"late"]
        assert b.gaps == []
    link.close()


async def test_a_hole_in_a_chain_is_read_again(postgres: Postgres) -> None:
    """A frame that was committed but never notified is noticed by the next of its sender, and read in the log."""
    prefix = unique()
    names = Names("trunkline", prefix)
    topic = names.topic("room")
    sender: Sender[Sent] = Sender(b"silently", retention=70)
    async with Node(postgres.url, prefix) as node:
        await node.transport.subscribe("room")
        raw = await asyncpg.connect(postgres.url)
        try:
            for number, told in enumerate([True, False, False, True]):
                sent = Sent(topic, b"%d" % number)
                sender.number(sent, int(node.transport.now() * 1000) + 1000)
                await raw.execute(
                    "WITH put AS (INSERT INTO trunkline.frames (area, topic, stamp, until, data) "
                    "VALUES ($1, $2, trunkline.now_2(), trunkline.now_2() + 70000, $3) RETURNING data) "
                    "SELECT pg_notify($4, encode(data, 'base64')) FROM put WHERE $5",
                    names.area, topic, sender.frame(sent), f"{CHANNEL}{topic.hex()}", told,
                )  # fmt: skip
        finally:
            await raw.close()
        await eventually(lambda: len(node.frames) == 4)
        assert node.frames == [b"0", b"1", b"2", b"3"]
        assert node.gaps == []


async def test_a_batch_that_is_stuck_counts_once(postgres: Postgres) -> None:
    """Somebody holds the lock that a batch needs, for longer than the deadline: it is sent again, and done once."""
    prefix = unique()
    async with Node(postgres.url, prefix, deadline=0.7) as a, Node(postgres.url, prefix) as b:
        await b.transport.subscribe("room")
        holder = await asyncpg.connect(postgres.url)
        try:
            await holder.execute("BEGIN")
            me = Names("trunkline", prefix).inbox(a.name)
            await holder.execute("SELECT FROM trunkline.nodes WHERE inbox = $1 FOR UPDATE", me)
            calls = [asyncio.ensure_future(a.transport.push("jobs", b"%d" % n, 100, TTL)) for n in range(5)]
            calls += [asyncio.ensure_future(a.transport.publish("room", b"%d" % n, TTL)) for n in range(5)]
            await eventually(lambda: a.disconnects)
            stuck = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%hello_2%'"
            while not await sql(postgres.url, stuck):
                await asyncio.sleep(0.01)
            await holder.execute("ROLLBACK")
        finally:
            await holder.close()
        await asyncio.gather(*calls)
        await eventually(lambda: len(b.frames) == 5)
        assert b.frames == [b"%d" % n for n in range(5)]
        assert [await b.transport.pull("jobs") for _ in range(5)] == [b"%d" % n for n in range(5)]
        ((left,),) = await sql(postgres.url, "SELECT count(*) FROM trunkline.queues WHERE name = 'jobs'")
        assert left == 0


async def test_readers_of_one_queue_take_each_message_once(postgres: Postgres) -> None:
    """3 readers, backends ended all the time: each message is taken exactly once."""
    prefix = unique()
    nodes = [Node(postgres.url, prefix) for _ in range(4)]
    for node in nodes:
        await node.__aenter__()
    writer, *readers = nodes
    got: list[bytes] = []

    async def read(node: Node) -> None:
        while True:
            got.append(await node.transport.pull("jobs"))

    tasks = [asyncio.create_task(read(node)) for node in readers for _ in range(2)]
    pushed = 0
    start = time.monotonic()
    end_at = 0.0
    while time.monotonic() < start + 2.5 or (pushed < 150 and time.monotonic() < start + 60):
        if time.monotonic() > end_at:
            end_at = time.monotonic() + 0.4
            await sql(postgres.url, END_ALL)
        for _ in range(10):
            try:
                await writer.transport.push("jobs", b"%d" % pushed, 1000, TTL)
                pushed += 1
            except ChannelFull:
                pass
        await asyncio.sleep(0.005)
    await eventually(lambda: len(got) >= pushed, 30)
    await asyncio.sleep(0.2)
    assert len(got) == pushed > 100
    assert len(set(got)) == pushed
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for node in nodes:
        await node.transport.close()


async def test_a_killed_reader_is_not_waited_for(postgres: Postgres) -> None:
    """A reader whose connection is gone is passed over at once: the next one is woken."""
    prefix = unique()
    pace = QUICK.__class__(heartbeat=60.0)
    link = Link()
    proxy = TcpProxy(link, "127.0.0.1", postgres.port)
    cut_url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    url = postgres.url
    waiting = "SELECT count(*) FROM trunkline.readers WHERE queue = 'work' AND area = $1"
    area = Names("trunkline", prefix).area
    async with (
        Node(cut_url, prefix, _pace=pace) as gone,
        Node(url, prefix, _pace=pace) as reader,
        Node(url, prefix) as writer,
    ):
        first = asyncio.create_task(gone.transport.pull("work"))
        while (await sql(url, waiting, area))[0][0] < 1:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(reader.transport.pull("work"))
        while (await sql(url, waiting, area))[0][0] < 2:
            await asyncio.sleep(0.01)
        link.cut()
        label = f"trunkline {gone.name}"
        while await sql(url, "SELECT pid FROM pg_stat_activity WHERE application_name = $1", label):
            await asyncio.sleep(0.01)
        await writer.transport.push("work", b"job", 10, TTL)
        assert await asyncio.wait_for(second, 10) == b"job"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        link.heal()
    link.close()


async def test_sends_wait_and_then_say_so(postgres: Postgres) -> None:
    """In an outage what is sent waits for its ttl, then raises; what was on its way says that it may have arrived."""
    link = Link()
    proxy = TcpProxy(link, "127.0.0.1", postgres.port)
    url = f"postgresql://postgres:geheim@127.0.0.1:{proxy.port}/postgres"
    async with Node(url, unique()) as node:
        link.cut()
        await eventually(lambda: node.disconnects)
        with pytest.raises(TransportUnavailable, match="cannot be reached") as raised:
            await node.transport.publish("room", b"x", 0.3)
        assert "geheim" not in str(raised.value)
        waiting = asyncio.ensure_future(node.transport.push("jobs", b"x", 10, TTL))
        pull = asyncio.ensure_future(node.transport.pull("jobs"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert not pull.done()
        link.heal()
        await asyncio.wait_for(waiting, 10)
        assert await asyncio.wait_for(pull, 10) == b"x"
    link.close()
