"""The embedded transport between real processes: killed, stopped, blocked, many at once."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from processes.embedded_child import Child, Stage
from trunkline.transports.embedded import EmbeddedTransport

Start = Callable[..., Child]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layer"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    children: list[Child] = []

    def make(node: str, **options: Any) -> Child:
        children.append(Child(folder, node, **options))
        return children[-1]

    yield make
    for child in children:
        child.end()


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def look(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{folder}/asgi/layer.db?mode=ro", uri=True, timeout=5)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def nodes(folder: Path) -> set[str]:
    return {row[0] for row in look(folder, "SELECT name FROM node")}


def test_each_pushed_frame_reaches_one_reader(start: Start) -> None:
    """Of 2000 frames in one queue, four processes with two readers each take every one exactly once."""
    readers = [start(f"reader{n}") for n in range(4)]
    for reader in readers:
        reader.ask("pull", "work", 2)
    start("writer").ask("push", "work", "w", 2000)
    eventually(lambda: sum(reader.ask("count") for reader in readers) >= 2000)
    reports = [reader.ask("report")["heard"].get("w", []) for reader in readers]
    assert sorted(number for report in reports for number in report) == list(range(2000))
    assert all(report == sorted(report) for report in reports)
    assert sum(bool(report) for report in reports) > 1


def test_killed_processes_lose_and_stall_nothing(folder: Path, start: Start) -> None:
    """Saturating writers and readers are killed with -9 while another publishes 1000 a second: each survivor hears
    every frame once, in order, and the file stays whole."""
    survivors = [start("one"), start("two")]
    for survivor in survivors:
        survivor.ask("subscribe", "paced")
    paced = start("paced")
    paced.tell("publish", "paced", "p", 3000, 0.001)
    for n in range(6):
        writer, reader = start(f"writer{n}"), start(f"reader{n}")
        reader.ask("subscribe", "paced")
        reader.ask("pull", "flood", 2)
        writer.ask("saturate", "paced", "flood")
        time.sleep(0.05 + 0.01 * n)  # the load itself, not something to wait for
        for victim in (writer, reader):
            os.kill(victim.pid, signal.SIGKILL)
    worst_call = paced.answer()
    eventually(lambda: all(len(s.ask("report")["heard"].get("p", [])) >= 3000 for s in survivors))
    one, two = survivors
    eventually(lambda: one.ask("report")["heard"] == two.ask("report")["heard"])
    for survivor in survivors:
        report = survivor.ask("report")
        assert report["gaps"] == []
        assert len(report["heard"]) > 3
        for sender, numbers in report["heard"].items():
            assert numbers == list(range(len(numbers))), sender
        assert len(report["heard"]["p"]) == 3000
    # A lock that the dead kept would be waited for for 5 s; what is less may be the machine.
    assert worst_call < 3, "a killed process stalled the others"
    print(f"longest publish {worst_call * 1000:.1f} ms, longest pause {report['pause'] * 1000:.1f} ms")
    eventually(lambda: nodes(folder) == {"one", "two", "paced"}, 10)
    assert {path.stem for path in (folder / "asgi/nodes").iterdir()} == {"one", "two", "paced"}
    assert look(folder, "PRAGMA integrity_check") == [("ok",)]


def test_killed_processes_and_large_frames(folder: Path, start: Start) -> None:
    """Processes that write, read and lease large frames as fast as they can are killed with -9: survivors hear every
    frame of each sender once, in order and whole, and no place stays taken."""
    survivors = [start("one"), start("two")]
    for survivor in survivors:
        survivor.ask("subscribe", "t")
    for n in range(3):
        writer, reader = start(f"writer{n}"), start(f"reader{n}")
        reader.ask("subscribe", "t")
        reader.ask("lease", "flood")
        heard = survivors[0].ask("count")
        writer.ask("flood", "t", "flood", 100_000 * (n + 1))
        eventually(lambda heard=heard: survivors[0].ask("count") > heard + 20)
        for victim in (writer, reader):
            os.kill(victim.pid, signal.SIGKILL)
    one, two = survivors
    eventually(lambda: one.ask("report")["heard"] == two.ask("report")["heard"])
    eventually(lambda: nodes(folder) == {"one", "two"})
    one.ask("lease", "flood")
    eventually(
        lambda: look(folder, "SELECT count(*) FROM queue UNION SELECT count(*) FROM put_off") == [(0,)]
    )
    two_report, one_report = two.ask("report"), one.ask("report")
    assert (one_report["torn"], one_report["gaps"]) == (two_report["torn"], two_report["gaps"]) == (0, [])
    assert len(two_report["heard"]) == 3
    for sender, numbers in two_report["heard"].items():
        assert numbers == list(range(len(numbers))), sender
    eventually(lambda: look(folder, "SELECT count(*) FROM large") == [(0,)])
    assert look(folder, "PRAGMA integrity_check") == [("ok",)]


def test_killed_while_writing_a_large_frame(folder: Path, start: Start) -> None:
    """A process is killed between the large frame and its commit: nobody hears it, and its place is free."""
    one, victim = start("one"), start("victim")
    one.ask("subscribe", "t")
    assert victim.ask("half", 1 << 20) > 1 << 20
    assert look(folder, "SELECT count(*) FROM large") == [(0,)]
    os.kill(victim.pid, signal.SIGKILL)
    other = start("other")
    other.ask("publish", "t", "whole", 3, 0, 1 << 20)
    eventually(lambda: one.ask("count") == 3)
    assert one.ask("report") | {"pause": 0} == {
        "heard": {"whole": [0, 1, 2]},
        "gaps": [],
        "torn": 0,
        "pause": 0,
    }
    assert min(look(folder, "SELECT place FROM large"))[0].startswith("0" * 10), "the place was free again"


async def test_a_dead_node_is_known_at_once(folder: Path, start: Start) -> None:
    """The first post to a killed process says that it is gone, and nothing of it stays."""
    victim = start("victim")
    await asyncio.to_thread(victim.ask, "subscribe", "t")
    transport = EmbeddedTransport(folder)
    await transport.open("sender", Stage(transport))
    try:
        assert await transport.post("victim", "c", b"a:0:", 10, 60)
        victim.end()
        assert not await transport.post("victim", "c", b"a:1:", 10, 60)
        assert not await transport.post("victim", "c", b"a:2:", 10, 60)
        async with asyncio.timeout(20):
            while "victim" in nodes(folder):
                await asyncio.sleep(0.01)
        assert not (folder / "asgi/nodes/victim.sock").exists()
        assert look(folder, "SELECT * FROM subscription WHERE node = 'victim'") == []
        assert look(folder, "SELECT * FROM depth WHERE node = 'victim'") == []
    finally:
        await transport.close()


def test_a_stopped_process_catches_up(start: Start) -> None:
    """A process stopped for two seconds under load hears everything when it goes on: in order, each once."""
    sleeper, awake = start("sleeper"), start("awake")
    for reader in (sleeper, awake):
        reader.ask("subscribe", "t")
    writers = [start(f"writer{n}") for n in range(2)]
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        for writer in writers:
            writer.tell("publish", "t", writer.node, 4000, 0.0005)
        for writer in writers:
            assert writer.answer() < 1.0, "the stopped process held up a sender"
        eventually(lambda: awake.ask("count") == 8000)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    eventually(lambda: sleeper.ask("count") >= 8000)
    report = sleeper.ask("report")
    assert report["gaps"] == []
    assert report["heard"] == {writer.node: list(range(4000)) for writer in writers}


def test_a_full_socket_buffer_loses_nothing(start: Start) -> None:
    """Frames of all sizes to a process whose loop is blocked arrive afterwards: in order, each once."""
    blocked = start("blocked")
    blocked.ask("subscribe", "t")
    writer = start("writer")
    blocked.tell("block", 1.0)
    writer.ask("publish", "t", "small", 1000, 0)
    writer.ask("publish", "t", "large", 20, 0, 1 << 20)
    writer.ask("publish", "t", "last", 10, 0)
    blocked.answer()
    eventually(lambda: blocked.ask("count") >= 1030)
    heard = blocked.ask("report")["heard"]
    assert heard == {"small": list(range(1000)), "large": list(range(20)), "last": list(range(10))}


def test_many_processes_open_a_fresh_folder_together(folder: Path, start: Start) -> None:
    """Eight processes that start at the same time make one store, and all hear all."""
    children = [start(f"node{n}", wait=False) for n in range(8)]
    assert [child.answer() for child in children] == ["open"] * 8
    for child in children:
        child.ask("subscribe", "t")
    for child in children:
        child.ask("publish", "t", child.node, 5, 0)
    everything = {child.node: list(range(5)) for child in children}
    for child in children:
        eventually(lambda child=child: child.ask("count") >= 40)
        assert child.ask("report")["heard"] == everything
    assert not list((folder / "asgi").glob("*.aside*"))


def test_an_idle_process_sleeps(start: Start) -> None:
    """Two idle processes with a waiting reader use less than half a percent of a core."""
    pair = [start("a"), start("b")]
    for each in pair:
        each.ask("pull", "work", 1)
    ticks = os.sysconf("SC_CLK_TCK")

    def used(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    rounds = []
    for _ in range(4):  # what idling costs shows in every round, a busy machine's accounting only in some
        before = [used(each.pid) for each in pair]
        time.sleep(4)  # the measurement itself
        rounds.append(max(used(each.pid) - earlier for each, earlier in zip(pair, before, strict=True)))
        if rounds[-1] <= 0.02:
            return
    raise AssertionError(f"CPU seconds in 4 s of idling: {rounds}")


_FORK = """
import asyncio, os, sys, signal
from processes.embedded_child import Stage
from trunkline.transports.embedded import EmbeddedTransport

async def grandchild(folder):
    transport = EmbeddedTransport(folder)
    stage = Stage(transport)
    await transport.open("forked", stage)
    await transport.subscribe("t")
    await transport.publish("t", b"forked:0:", 60)
    for _ in range(3000):
        if stage.heard.get("later"):
            break
        await asyncio.sleep(0.01)
    await transport.publish("t", b"forked:1:", 60)
    await transport.close()

async def parent(folder):
    transport = EmbeddedTransport(folder)
    stage = Stage(transport)
    await transport.open("parent", stage)
    await transport.subscribe("t")
    await transport.publish("t", b"parent:0:", 60)
    return transport, stage

folder = sys.argv[1]
loop = asyncio.new_event_loop()
transport, stage = loop.run_until_complete(parent(folder))
if os.fork() == 0:
    asyncio.run(grandchild(folder))
    os._exit(0)

async def rest():
    for n in range(500):
        await transport.publish("t", f"more:{n}:".encode(), 60)
    while not stage.heard.get("forked"):
        await asyncio.sleep(0.01)
    print(len(stage.heard["more"]), stage.gaps, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

loop.run_until_complete(rest())
"""


def test_a_forked_child_harms_nobody(folder: Path, start: Start) -> None:
    """The parent works on beside a forked child with a transport of its own; once the parent is killed it is dead for
    all, whatever the child inherited, and the child works on."""
    watcher = start("watcher")
    watcher.ask("subscribe", "t")
    run = subprocess.Popen(
        [sys.executable, "-c", _FORK, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    with run.stdout:
        assert run.stdout.readline().split() == ["500", "[]"]
        assert run.wait(10) == -signal.SIGKILL
        eventually(lambda: "parent" not in nodes(folder), 10)
        assert "forked" in nodes(folder)
        later = start(
            "later"
        )  # opens the files after the process whose locks the child may not count on is gone
        later.ask("publish", "t", "later", 1, 0)
        eventually(lambda: watcher.ask("report")["heard"].get("forked") == [0, 1])
    assert watcher.ask("report")["heard"] == {
        "parent": [0],
        "forked": [0, 1],
        "more": list(range(500)),
        "later": [0],
    }
    eventually(lambda: nodes(folder) == {"watcher", "later"})
    assert look(folder, "PRAGMA integrity_check") == [("ok",)]


def test_a_forked_child_can_stay_alone(folder: Path, start: Start) -> None:
    """A forked child is the last process left; one that opens the files then meets it, and both hear each other."""
    run = subprocess.Popen(
        [sys.executable, "-c", _FORK, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    with run.stdout:
        assert run.stdout.readline().split() == ["500", "[]"]
        assert run.wait(10) == -signal.SIGKILL
        # One that comes and goes: whoever believes to be the last to leave takes the write-ahead log along.
        passer = start("passer")
        assert passer.process.stdin is not None
        passer.process.stdin.close()
        assert passer.process.wait(10) == 0
        later = start("later")
        later.ask("subscribe", "t")
        later.ask("publish", "t", "later", 1, 0)
        eventually(lambda: later.ask("report")["heard"] == {"later": [0], "forked": [1]}, 10)
    eventually(lambda: nodes(folder) == {"later"})
    assert look(folder, "PRAGMA integrity_check") == [("ok",)]
