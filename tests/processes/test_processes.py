"""What only real processes show, on every transport; TRUNKLINE_TEST_URL names another one instead."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes.player import Player
from servers import Server, servers
from trunkline import layer_from_url

Start = Callable[..., Player]


KINDS = ["elsewhere"] if os.environ.get("TRUNKLINE_TEST_URL") else ["embedded", *sorted(servers())]


@pytest.fixture(scope="module", params=KINDS)
def base_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "elsewhere":
        yield os.environ["TRUNKLINE_TEST_URL"]
    elif request.param == "embedded":
        yield f"embedded://{directory}/layer"
    else:
        server = Server(request.param, directory)
        yield server.url
        server.kill()


@pytest.fixture
def url(base_url: str) -> str:
    """A layer of this test's own."""
    return f"{base_url}?prefix=p{uuid.uuid4().hex[:12]}"


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    players: list[Player] = []

    def start(options: str = "") -> Player:
        players.append(Player(url + options))
        return players[-1]

    yield start
    for player in players:
        player.end()


def test_one_queue_many_readers(start: Start) -> None:
    """Four processes read one normal channel: each of 20,000 messages is delivered once, and all four get some."""
    senders, readers = [start() for _ in range(2)], [start() for _ in range(4)]
    for reader in readers:
        reader.do("listen", "jobs", 2)
    for index, sender in enumerate(senders):
        sender.ask("send", "jobs", index * 10_000, 10_000, 0, True)
    for sender in senders:
        sender.answer()
    deadline = time.monotonic() + 30
    heard: list[list[int]] = []
    while sum(map(len, heard)) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.1)
        heard = [reader.heard("jobs", 0) for reader in readers]
    assert sorted(number for part in heard for number in part) == list(range(20_000))
    assert all(heard)


def test_churn_around_a_stable_member(start: Start) -> None:
    """200 consumers of two processes join and leave around a member of a third, which misses nothing."""
    sender, stable, *busy = [start("&capacity=2000") for _ in range(4)]
    channel = stable.do("channel", "room")
    stable.do("listen", channel)
    for player in busy:
        player.ask("churn", "room", 100)
    sender.do("group_send", "room", 0, 1500, 0.0005)
    for player in busy:
        player.answer()
    assert stable.heard(channel, 1500) == list(range(1500))


def test_polling_readers_lose_nothing(start: Start) -> None:
    """Readers that give up every 2 ms, on a specific and a normal channel, get everything once."""
    sender, reader = start(), start()
    channel = reader.do("channel")
    for name in (channel, "polled"):
        reader.do("listen", name, 1, 0.002)
        sender.do("send", name, 0, 300, 0.001, True)
        assert reader.heard(name, 300) == list(range(300))


def test_kill_leaves_no_member(start: Start) -> None:
    """Within 10 s after kill -9 of a process its channels are gone; the others miss nothing."""
    # Room for all: a machine that stands still for a moment is not what this is about.
    sender, stable, victim = [start("&capacity=1000") for _ in range(3)]
    channel, doomed = stable.do("channel", "room"), victim.do("channel", "room")
    stable.do("listen", channel)
    victim.do("listen", doomed)
    sender.ask("group_send", "room", 0, 500, 0.001)
    time.sleep(0.2)
    os.kill(victim.pid, signal.SIGKILL)
    victim.process.wait()
    sender.answer()
    assert stable.heard(channel, 500) == list(range(500))
    deadline = time.monotonic() + 10
    before = sender.do("gone", doomed)
    while sender.do("gone", doomed) == before:
        assert time.monotonic() < deadline, "the dead process is still there after 10 s"
        time.sleep(0.05)


def test_kill_stalls_nobody(start: Start) -> None:
    """While members are killed, no sender and no other member waits 100 ms for a message."""
    sender, stable = [start("&capacity=1000") for _ in range(2)]
    channel = stable.do("channel", "room")
    stable.do("listen", channel)
    sent = itertools.count()

    def longest_wait(victims: list[Player]) -> float:
        """In seconds, while one after the other is killed and 1000 messages are sent."""
        for victim in victims:
            victim.do("listen", victim.do("channel", "room"))
        began = next(sent) * 1000
        sender.ask("group_send", "room", began, 1000, 0.001)
        for victim in victims:
            time.sleep(0.3)
            os.kill(victim.pid, signal.SIGKILL)
            victim.process.wait()
        slowest_call: float = sender.answer()
        assert stable.heard(channel, began + 1000) == list(range(began + 1000))
        return max(slowest_call, *(delay for _, delay in stable.do("heard", channel)[began:]))

    # A busy machine stalls people with nobody killed, too; what a kill causes would show in every round.
    rounds: list[tuple[float, float]] = []
    while len(rounds) < 3:
        killed = longest_wait([start() for _ in range(2)])
        if killed < 0.1 or killed < 1.5 * (unharmed := longest_wait([])):
            return
        rounds.append((killed, unharmed))
    raise AssertionError(f"the longest waits with and without kills, in seconds: {rounds}")


def test_a_stopped_process_catches_up(start: Start) -> None:
    """A process stopped for 2 s under load gets everything it has room for, in order, once; the others go on."""
    sender, stopped, other = [start("&capacity=5000") for _ in range(3)]
    channels = []
    for player in (stopped, other):
        channels.append(player.do("channel", "room"))
        player.do("listen", channels[-1])
    sender.ask("group_send", "room", 0, 1500, 0.001)
    time.sleep(0.3)
    os.kill(stopped.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(stopped.pid, signal.SIGCONT)
    sender.answer()
    for player, channel in zip((stopped, other), channels, strict=True):
        assert player.heard(channel, 1500) == list(range(1500))


def test_many_threads(url: str, start: Start) -> None:
    """200 async_to_sync calls from plain threads leak neither descriptors nor threads, and all arrive."""
    from asgiref.sync import async_to_sync

    reader = start("&capacity=1000")
    channel = reader.do("channel", "room")
    reader.do("listen", channel)
    layer = layer_from_url(url)
    async_to_sync(layer.group_send)("room", {"n": -1})
    descriptors, running = len(os.listdir("/proc/self/fd")), threading.active_count()

    def work(start: int) -> None:
        for number in range(start, start + 20):
            async_to_sync(layer.group_send)("room", {"n": number})

    threads = [threading.Thread(target=work, args=(index * 20,)) for index in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reader.heard(channel, 201)) == list(range(-1, 200))
    deadline = time.monotonic() + 10  # the loops' own threads may still be ending
    while threading.active_count() > running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= running
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    layer.sync.close()


def test_fork_after_first_use(url: str) -> None:
    """A child forked after first use has nodes of its own; both talk, and the parent's are as before."""
    code = f"""
import asyncio, os, sys
from trunkline import layer_from_url
layer = layer_from_url({url!r})
channel = layer.sync.new_channel()
layer.sync.group_add("family", channel)
layer.sync.send(channel, {{"from": "parent"}})
async def child():
    mine = await layer.new_channel()
    if mine.split("!")[0] == channel.split("!")[0]:
        raise SystemExit("the child took its parent's node")
    await layer.group_add("family", mine)
    await layer.group_send("family", {{"from": "child"}})
    print((await asyncio.wait_for(layer.receive(mine), 10))["from"])
    await layer.send(channel, {{"from": "grown"}})
pid = os.fork()
if pid == 0:
    asyncio.run(child())
    layer.sync.send(channel, {{"from": "thread"}})
    layer.sync.close()
    sys.stdout.flush()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
print([layer.sync.receive(channel, timeout=10)["from"] for _ in range(4)])
layer.sync.group_send("family", {{"from": "parent again"}})
print(layer.sync.receive(channel, timeout=10)["from"])
layer.sync.close()
"""
    # Python 3.12 and newer warn of any fork beside threads, which is what this is about.
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-W", "ignore:This process", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "child",
        "0",
        "['parent', 'child', 'grown', 'thread']",
        "parent again",
    ]


async def test_fork_from_a_running_loop(url: str) -> None:
    """A child forked from within a running loop does not disturb the parent's node."""
    layer = layer_from_url(url)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    other = layer_from_url(url)
    for number in range(50):
        await other.group_send("g", {"n": number})
        assert await asyncio.wait_for(layer.receive(channel), 10) == {"n": number}
    await other.close()
    await layer.close()
