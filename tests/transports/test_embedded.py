"""What is particular to the embedded transport, with several nodes in one process."""

import asyncio
import os
import random
import resource
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.errors import (
    ChannelFull,
    ConfigurationError,
    LayerClosed,
    MessageTooLarge,
    TransportUnavailable,
)
from trunkline.transports.embedded import EmbeddedTransport
from trunkline.transports.embedded.directory import default_root, prepare
from trunkline.transports.embedded.large import LARGE
from trunkline.transports.embedded.opening import open_store
from trunkline.transports.embedded.store import Store


class Heard:
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.gaps: list[str] = []

    def deliver(self, frame: bytes) -> None:
        self.frames.append(frame)

    def gap(self, topic: str | None, reason: str) -> None:
        self.gaps.append(reason)


async def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layer"


Node = tuple[EmbeddedTransport, Heard]
Open = Callable[..., Awaitable[Node]]


@pytest.fixture
async def node(folder: Path) -> AsyncIterator[Open]:
    opened: list[EmbeddedTransport] = []

    async def make(name: str, **options: Any) -> Node:
        transport, heard = EmbeddedTransport(folder, **options), Heard()
        await transport.open(name, heard)
        opened.append(transport)
        return transport, heard

    yield make
    for transport in opened:
        await transport.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes look around every tenth of a second."""
    monkeypatch.setattr("trunkline.transports.embedded.node._TICK", 0.1)


def look(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "asgi/layer.db", timeout=5)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


# Places and permissions


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL names the default folder, an absolute, a relative or a home one; a host is refused with the fix."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("TRUNKLINE_DIR", raising=False)

    def root(url: str) -> Path:
        return EmbeddedTransport.from_url(url, prefix="p")._root

    assert root("embedded://") == root("embedded:") == default_root()
    assert root("embedded:///run/my%20shop") == Path("/run/my shop")
    assert root("embedded://./run") == tmp_path / "run"
    assert root("embedded://~/run") == Path("/home/somebody/run")
    with pytest.raises(ConfigurationError, match="has no host"):
        root("embedded://localhost/run")


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default folder belongs to the user and the working directory; TRUNKLINE_DIR overrides it."""
    monkeypatch.delenv("TRUNKLINE_DIR", raising=False)
    places = set()
    for project in ("shop", "other/shop"):
        (tmp_path / project).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / project)
        assert default_root() == default_root()
        assert default_root().parent.name == f"trunkline-{os.geteuid()}"
        places.add(default_root())
    assert len(places) == 2
    monkeypatch.setenv("TRUNKLINE_DIR", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"


def test_construction_touches_nothing(folder: Path) -> None:
    """Making a transport makes no file and needs no loop; wrong settings are named."""
    assert "closed" in repr(EmbeddedTransport(folder))
    assert not folder.exists()
    for wrong in ({"prefix": "../x"}, {"prefix": ""}, {"max_size": 5}, {"max_size": "1G"}, {"path": 7}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            EmbeddedTransport(**wrong)  # type: ignore[arg-type]


async def test_only_the_owner_has_access(folder: Path, node: Open) -> None:
    """Whatever the umask, folders are 0700 and files 0600."""
    umask = os.umask(0)
    try:
        a, _ = await node("a")
        await a.subscribe("t")
    finally:
        os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("inner", [".", "asgi", "asgi/nodes"])
async def test_an_open_folder_is_refused(folder: Path, node: Open, inner: str) -> None:
    """A folder that others can enter is refused with the command that closes it; that command helps."""
    (folder / "asgi/nodes").mkdir(parents=True, mode=0o700)
    for each in (folder, folder / "asgi", folder / "asgi/nodes"):
        each.chmod(0o700)
    (folder / inner).chmod(0o755)
    with pytest.raises(ConfigurationError, match="mode 0755") as refused:
        await node("a")
    assert os.system(str(refused.value).rpartition(": ")[2]) == 0
    await node("a")


async def test_a_symlink_is_refused(folder: Path, node: Open, tmp_path: Path) -> None:
    """A symlink in place of the folder is refused."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="symlink"):
        await node("a")


async def test_a_long_path_works(tmp_path: Path) -> None:
    """A folder whose path is longer than a socket's address may be is reached another way."""
    folder = tmp_path / ("long" * 30)
    a, b = EmbeddedTransport(folder), EmbeddedTransport(folder)
    heard = Heard()
    await a.open("a", Heard())
    await b.open("b", heard)
    assert await a.post("b", "c", b"hello", 1, 60)
    await eventually(lambda: heard.frames == [b"hello"])
    await a.close()
    await b.close()


async def test_closing_leaves_nothing_running(folder: Path, node: Open) -> None:
    """After close no row, socket, task or descriptor of the node stays; closing twice is fine, opening again too."""
    before = len(os.listdir("/proc/self/fd"))
    a, heard = await node("a")
    await a.subscribe("t")
    pull = asyncio.ensure_future(a.pull("work"))
    await asyncio.sleep(0)
    await a.close()
    await a.close()
    with pytest.raises(LayerClosed):
        await pull
    assert look(folder, "SELECT * FROM node") == look(folder, "SELECT * FROM subscription") == []
    assert list((folder / "asgi/nodes").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(TransportUnavailable, match="not open"):
        await a.publish("t", b"x", 60)
    await a.open("a2", heard)
    await a.subscribe("t")
    await a.publish("t", b"again", 60)
    assert heard.frames == [b"again"]


# Files of others, files gone


@pytest.mark.parametrize("content", [b"this is no database" * 100, None])
async def test_a_foreign_file_is_moved_aside(
    folder: Path, node: Open, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of another program is kept under another name, with a warning, and a fresh one made."""
    (folder / "asgi").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    path = folder / "asgi/layer.db"
    if content is None:
        foreign = sqlite3.connect(path)
        foreign.executescript("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (7);")
        foreign.close()
        content = path.read_bytes()
    else:
        path.write_bytes(content)
    a, heard = await node("a")
    await a.subscribe("t")
    await a.publish("t", b"x", 60)
    assert heard.frames == [b"x"]
    [aside] = (folder / "asgi").glob("layer.db.aside-*[0-9]")
    assert aside.read_bytes() == content
    assert "moved aside" in caplog.text


async def test_a_newer_file_is_refused(folder: Path, node: Open) -> None:
    """A file of a newer version is left alone."""
    a, _ = await node("a")
    await a.close()
    look(folder, "PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="newer Trunkline"):
        await node("b")
    assert look(folder, "PRAGMA user_version") == [(99,)]


async def test_a_deleted_folder_is_made_again(folder: Path, node: Open) -> None:
    """When the folder is deleted under running nodes they meet again by themselves, tell of the gap, and a reader
    that waited goes on waiting."""
    (a, a_heard), (b, b_heard) = await node("a"), await node("b")
    await b.subscribe("t")
    pull = asyncio.ensure_future(b.pull("work"))
    await a.publish("t", b"before", 60)
    await eventually(lambda: b_heard.frames == [b"before"])
    shutil.rmtree(folder)
    await eventually(lambda: a_heard.gaps and b_heard.gaps)
    assert "deleted" in a_heard.gaps[0]
    await a.publish("t", b"after", 60)
    await eventually(lambda: b_heard.frames == [b"before", b"after"])
    assert await a.post("b", "c", b"post", 1, 60)
    await a.push("work", b"job", 10, 60)
    assert await asyncio.wait_for(pull, 20) == b"job"
    assert look(folder, "PRAGMA integrity_check") == [("ok",)]


async def test_an_outage_is_told_to_senders_and_waited_out_by_readers(folder: Path, node: Open) -> None:
    """While the folder cannot be used senders learn why; once it can, everything works."""
    (a, heard), (b, _) = await node("a"), await node("b")
    await a.subscribe("t")
    pull = asyncio.ensure_future(a.pull("work"))
    shutil.rmtree(folder)
    folder.write_text("in the way")
    await eventually(lambda: a._store is None and b._store is None)
    for call in (b.publish("t", b"x", 60), b.push("work", b"x", 10, 60), b.post("a", "c", b"x", 1, 60)):
        with pytest.raises(TransportUnavailable, match="not a folder"):
            await call
    assert not pull.done()
    folder.unlink()
    await eventually(lambda: a._store is not None and b._store is not None)
    await b.publish("t", b"well again", 60)
    await b.push("work", b"job", 10, 60)
    await eventually(lambda: heard.frames == [b"well again"])
    assert await asyncio.wait_for(pull, 20) == b"job"


async def test_a_corrupt_file_is_replaced(folder: Path, node: Open, caplog: pytest.LogCaptureFixture) -> None:
    """A file that becomes unreadable is moved aside while running, with a gap; nodes go on with a fresh one."""
    (a, a_heard), (b, b_heard) = await node("a"), await node("b")
    await b.subscribe("t")
    path = folder / "asgi/layer.db"
    look(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(TransportUnavailable):
        for _ in range(50):
            await a.publish("t", b"lost", 60)
    await eventually(lambda: a_heard.gaps and b_heard.gaps)
    await a.publish("t", b"fresh", 60)
    await eventually(lambda: b_heard.frames[-1:] == [b"fresh"])
    assert "moved aside" in caplog.text
    assert len(list((folder / "asgi").glob("layer.db.aside-*[0-9]"))) == 1


async def test_a_node_taken_for_dead_joins_again(folder: Path, node: Open) -> None:
    """A live node whose socket file was deleted is back within seconds, subscriptions included, and tells of a gap."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    (folder / "asgi/nodes/b.sock").unlink()
    await eventually(lambda: heard.gaps)
    await a.publish("t", b"x", 60)
    await eventually(lambda: heard.frames == [b"x"])


# Size


async def test_a_full_store_refuses_and_recovers(folder: Path, node: Open) -> None:
    """At max_size each call says so in its own way, nothing is corrupt, and room made is room used."""
    a, _ = await node("a", max_size=2 << 20)
    body = bytes(200_000)
    with pytest.raises(MessageTooLarge, match="max_size"):
        await a.publish("t", bytes(3 << 20), 60)
    pushed = 0
    with pytest.raises(ChannelFull, match="max_size"):
        while True:
            await a.push("work", body, 10**6, 60)
            pushed += 1
    assert pushed >= 5
    await a.subscribe("other")
    for _ in range(pushed):
        assert await asyncio.wait_for(a.pull("work"), 20) == body
    await a.push("work", b"small", 10, 60)
    assert await a.pull("work") == b"small"
    assert look(folder, "PRAGMA integrity_check") == [("ok",)]


async def test_one_too_many_fails_alone(folder: Path, node: Open) -> None:
    """When a transaction of many callers does not fit, only those fail that do not fit."""
    a, _ = await node("a", max_size=2 << 20)
    sizes = [100] * 10 + [900_000] * 4 + [100] * 10
    results = await asyncio.gather(
        *(a.push("work", bytes(size), 10**6, 60) for size in sizes), return_exceptions=True
    )
    failed = [size for size, result in zip(sizes, results, strict=True) if result is not None]
    assert set(failed) == {900_000}
    assert all(isinstance(result, ChannelFull) for result in results if result is not None)
    assert look(folder, "SELECT count(*) FROM queue") == [(len(sizes) - len(failed),)]


async def test_read_frames_are_deleted(folder: Path, node: Open, often: None) -> None:
    """What every node has read leaves the file, under load and at rest."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    for _ in range(3000):
        await a.publish("t", b"x" * 500, 60)
    await eventually(lambda: len(heard.frames) == 3000)
    await eventually(lambda: look(folder, "SELECT count(*) FROM frame") == [(0,)], 15)


@pytest.mark.parametrize("size", [5, 100_000])
async def test_expired_unread_frames_are_told(
    folder: Path, node: Open, often: None, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A node that was away for longer than frames live learns of the gap, and their channels have room again."""
    (a, _), (b, heard) = await node("a"), await node("b")
    monkeypatch.setattr("trunkline.transports.embedded.store._GRACE", 0.0)
    loop = asyncio.get_running_loop()
    loop.remove_reader(b._peers._own.fileno())
    b._timers.pop("_tick").cancel()
    for _ in range(3):
        assert await a.post("b", "c", b"stale".ljust(size), 3, 0.01)
    with pytest.raises(ChannelFull):
        await a.post("b", "c", b"refused", 3, 60)
    await eventually(lambda: look(folder, "SELECT count(*) FROM frame") == [(0,)])
    b._tick()
    assert len(heard.gaps) == 1
    assert heard.frames == []
    loop.add_reader(b._peers._own.fileno(), b._peers._readable)
    await eventually(lambda: look(folder, "SELECT * FROM depth") == [])
    for _ in range(3):
        assert await a.post("b", "c", b"fresh".ljust(size), 3, 60)
    await eventually(lambda: heard.frames == [b"fresh".ljust(size)] * 3)
    assert len(heard.gaps) == 1


# Counting and cancelling


async def test_a_keeping_up_consumer_is_never_refused(node: Open) -> None:
    """Thousands of posts to a channel of capacity 100 whose owner takes at once: none is refused, the count is exact."""
    (a, _), (b, heard) = await node("a"), await node("b")
    deliver = heard.deliver

    def take(frame: bytes) -> None:
        deliver(frame)
        b.taken("c", 1)

    b._inbox._deliver = take
    for _ in range(5000):
        await a.post("b", "c", b"x", 100, 60)
    await eventually(lambda: len(heard.frames) == 5000)
    b._inbox._deliver = deliver
    await eventually(lambda: not b._depths._taken)
    await asyncio.gather(*(a.post("b", "c", b"x", 100, 60) for _ in range(100)))
    with pytest.raises(ChannelFull):
        await a.post("b", "c", b"x", 100, 60)
    await eventually(lambda: len(heard.frames) == 5100)
    b.taken("c", 1)
    await eventually(lambda: not b._depths._taken)
    assert await a.post("b", "c", b"x", 100, 60)


async def test_taken_one_by_one_counts_once(node: Open) -> None:
    """Sixty frames taken in one loop tick, each reported by itself, make room for sixty and not one more."""
    (a, _), (b, heard) = await node("a"), await node("b")
    for _ in range(100):
        assert await a.post("b", "c", b"x", 100, 60)
    await eventually(lambda: len(heard.frames) == 100)
    for _ in range(60):
        b.taken("c", 1)
    await eventually(lambda: not b._depths._taken)
    for _ in range(60):
        assert await a.post("b", "c", b"x", 100, 60)
    with pytest.raises(ChannelFull):
        await a.post("b", "c", b"x", 100, 60)


async def test_a_laggard_cannot_fill_the_store(node: Open) -> None:
    """When unread frames of a stopped node fill the store, senders go on; the node is told what it missed and
    hears the rest in order."""
    (a, _), (b, heard) = await node("a", max_size=4 << 20), await node("b", max_size=4 << 20)
    await b.subscribe("t")
    loop = asyncio.get_running_loop()
    loop.remove_reader(b._peers._own.fileno())
    b._timers.pop("_tick").cancel()
    sent = [b"%06d" % n + bytes(10_000) for n in range(1000)]
    for frame in sent:
        await a.publish("t", frame, 60)
    loop.add_reader(b._peers._own.fileno(), b._peers._readable)
    b._tick()
    await eventually(lambda: heard.frames[-1:] == sent[-1:])
    assert len(heard.gaps) == 1
    assert heard.frames == sent[-len(heard.frames) :]


async def test_a_full_socket_is_reminded(node: Open) -> None:
    """What a full socket did not take arrives when it has room again, without the safety tick."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    loop = asyncio.get_running_loop()
    loop.remove_reader(b._peers._own.fileno())
    b._timers.pop("_tick").cancel()
    for n in range(100):
        await a.publish("t", b"%d" % n, 60)
    loop.add_reader(b._peers._own.fileno(), b._peers._readable)
    await eventually(lambda: len(heard.frames) == 100)
    assert heard.frames == [b"%d" % n for n in range(100)]


async def test_the_write_ahead_log_stays_small(folder: Path, node: Open) -> None:
    """The write-ahead log is copied into the file again and again instead of growing."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    for _ in range(5000):
        await a.publish("t", bytes(500), 60)
    await eventually(lambda: len(heard.frames) == 5000)
    assert (folder / "asgi/layer.db-wal").stat().st_size < 32 << 20
    assert look(folder, "SELECT checkpoints > 3 FROM meta") == [(1,)]


async def test_a_cancelled_write_leaves_the_others(node: Open) -> None:
    """Of many writes in one transaction, cancelled ones are either sent or not, and all others arrive."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    tasks = [asyncio.ensure_future(a.publish("t", b"%d" % n, 60)) for n in range(20)]
    await asyncio.sleep(0)
    for n in range(1, 20, 2):
        tasks[n].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await a.publish("t", b"end", 60)
    await eventually(lambda: heard.frames[-1:] == [b"end"])
    assert heard.frames == [b"%d" % n for n in range(0, 20, 2)] + [b"end"]


@pytest.mark.parametrize("second_reader", [False, True])
async def test_a_pull_cancelled_at_hand_over_takes_nothing(node: Open, second_reader: bool) -> None:
    """A reader cancelled in the instant it was given a frame passes it on, or back to its place."""
    a, _ = await node("a")
    first = asyncio.ensure_future(a.pull("work"))
    await eventually(lambda: "work" in a._pulls._queues and a._pulls._queues["work"].idle)
    second = asyncio.ensure_future(a.pull("work")) if second_reader else None
    await asyncio.sleep(0)
    hand_over = a._pulls._hand_over

    def hand_over_and_cancel(*args: Any) -> None:
        hand_over(*args)
        first.cancel()

    a._pulls._hand_over = hand_over_and_cancel
    await a.push("work", b"1", 10, 60)
    await a.push("work", b"2", 10, 60)
    with pytest.raises(asyncio.CancelledError):
        await first
    rest = [await asyncio.wait_for(second, 20)] if second else []
    while len(rest) < 2:
        rest.append(await asyncio.wait_for(a.pull("work"), 20))
    assert sorted(rest) == [b"1", b"2"]
    if not second_reader:
        assert rest == [b"1", b"2"]


async def test_a_busy_lock_does_not_stop_the_loop(folder: Path, node: Open) -> None:
    """While another process holds the write lock the loop goes on; what was asked for is written afterwards."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    other = sqlite3.connect(folder / "asgi/layer.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sent = [asyncio.ensure_future(a.publish("t", b"%d" % n, 60)) for n in range(10)]
    longest = []
    for _ in range(5):  # waiting for the lock would show in every round, a busy machine in some
        longest.append(0.0)
        for _ in range(60):
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest[-1] = max(longest[-1], time.monotonic() - began)
    assert min(longest) < 0.1, longest
    assert not any(task.done() for task in sent)
    other.execute("ROLLBACK")
    other.close()
    await asyncio.gather(*sent)
    await eventually(lambda: heard.frames == [b"%d" % n for n in range(10)])


async def test_a_lock_held_for_long_is_told(
    folder: Path, node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender does not wait for ever for a lock: it learns that nothing was sent."""
    monkeypatch.setattr("trunkline.transports.embedded.writer._PATIENCE", 0.1)
    a, _ = await node("a")
    other = sqlite3.connect(folder / "asgi/layer.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransportUnavailable, match="held the write lock"):
        await a.push("work", b"x", 10, 60)
    other.execute("ROLLBACK")
    other.close()
    await a.push("work", b"y", 10, 60)
    assert await asyncio.wait_for(a.pull("work"), 20) == b"y"


# Large frames

MIB = 1 << 20
TAKEN = "SELECT count(*) FROM large"


def body(mark: str, size: int = MIB) -> bytes:
    return mark.encode().ljust(size, mark[-1:].encode())


async def test_all_that_holds_a_frame_holds_a_large_one(folder: Path, node: Open) -> None:
    """Topics, posts, queues, leases, delays, histories: each gives it back whole and frees its place."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    await a.bind("t", "bound", 10, 60)
    await a.publish("t", body("published"), 60)
    assert await a.post("b", "c", body("posted"), 10, 60)
    await eventually(lambda: heard.frames == [body("published"), body("posted")])
    assert await b.pull("bound") == body("published")
    await a.push_later("work", body("later"), 10, 60, 0.1)
    leased = await b.lease("work", 60, 60)
    assert (leased.frame, leased.tries) == (body("later"), 1)
    [(kept,)] = look(folder, "SELECT body FROM put_off")
    assert await b.hold("work", leased.token, 0)
    again = await b.lease("work", 60, 60)
    assert (again.frame, again.tries) == (body("later"), 2)
    assert look(folder, "SELECT body FROM put_off") == [(kept,)], "it was written again"
    assert await b.settle("work", again.token)
    for number in range(4):
        await a.remember("h", body(f"r{number}"), "", 2, 60)
    assert await b.recall("h", None, 10) == [(3, body("r2")), (4, body("r3"))]
    assert await b.recall("h", 4, 10) == [(4, body("r3"))]
    await a.flush()
    assert look(folder, TAKEN) == [(0,)]


async def test_only_large_frames_go_there(folder: Path, node: Open) -> None:
    a, _ = await node("a")
    await a.push("work", bytes(LARGE - 1), 10, 60)
    assert look(folder, TAKEN) == [(0,)]
    await a.push("work", bytes(LARGE), 10, 60)
    assert look(folder, TAKEN) == [(1,)]
    assert [len(await a.pull("work")) for _ in range(2)] == [LARGE - 1, LARGE]
    assert (folder / "asgi/layer.db-large").stat().st_mode & 0o777 == 0o600


async def test_the_file_shrinks(folder: Path, node: Open, often: None) -> None:
    """After a flood the disk is given back; under a steady load the same places are used again."""
    (a, _), (b, heard) = await node("a"), await node("b")
    path = folder / "asgi/layer.db-large"
    for number in range(40):
        await a.push("work", body(str(number)), 100, 60)
    assert path.stat().st_size > 40 * MIB
    for number in range(40):
        assert await b.pull("work") == body(str(number))
    await eventually(lambda: path.stat().st_size <= 16 * MIB, 20)
    await b.subscribe("t")
    for number in range(60):
        await a.publish("t", body(str(number)), 60)
        await eventually(lambda number=number: len(heard.frames) > number)
    assert heard.frames == [body(str(number)) for number in range(60)]
    assert path.stat().st_size < 30 * MIB


async def test_max_size_counts_them(folder: Path, node: Open) -> None:
    """What does not fit is refused, alone; nothing else is lost, and room made is room used."""
    a, _ = await node("a", max_size=8 * MIB)
    results = await asyncio.gather(
        *(a.push("work", body(f"{n}"), 100, 60) for n in range(12)), return_exceptions=True
    )
    refused = [result for result in results if result is not None]
    assert all(isinstance(result, ChannelFull) and "max_size" in str(result) for result in refused)
    assert len(refused) == 5
    assert (folder / "asgi/layer.db-large").stat().st_size <= 8 * MIB
    await a.push("work", b"small", 100, 60)
    assert [await a.pull("work") for _ in range(8)] == [*(body(f"{n}") for n in range(7)), b"small"]
    await a.push("work", body("new"), 100, 60)
    assert await a.pull("work") == body("new")


@pytest.fixture
def little_disk() -> Iterator[None]:
    """No file may grow beyond 3 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk(folder: Path, node: Open, little_disk: None) -> None:
    """What cannot be written was not sent: nobody gets a part of it, and small messages go on."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    await a.push("work", body("0"), 10, 60)
    await a.push("work", body("1"), 10, 60)
    for size in (MIB, 2 * MIB):
        with pytest.raises(ChannelFull, match="or the disk"):
            await a.push("work", bytes(size), 10, 60)
        with pytest.raises(TransportUnavailable, match="or the disk"):
            await a.publish("t", bytes(size), 60)
    await a.publish("t", b"small", 60)
    await eventually(lambda: heard.frames)
    assert heard.frames == [b"small"]
    assert [await b.pull("work") for _ in range(2)] == [body("0"), body("1")]
    await a.publish("t", body("room"), 60)
    await eventually(lambda: heard.frames == [b"small", body("room")])


async def test_a_deleted_file_is_told(
    folder: Path, node: Open, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it the log is not whole: all nodes join a fresh one, with a gap, whoever notices first."""
    (a, a_heard), (b, b_heard) = await node("a"), await node("b")
    await b.subscribe("t")
    (folder / "asgi/layer.db-large").unlink()
    await eventually(lambda: a_heard.gaps and b_heard.gaps)
    await a.publish("t", body("fresh"), 60)
    await eventually(lambda: b_heard.frames == [body("fresh")])
    (folder / "asgi/layer.db-large").unlink()
    await node("c")
    assert "layer.db-large, which holds its large messages, was deleted" in caplog.text
    await eventually(lambda: len(a_heard.gaps) == len(b_heard.gaps) == 2)
    assert len(list((folder / "asgi").glob("layer.db.aside-*[0-9]"))) == 2


async def test_a_file_cut_short_is_told(folder: Path, node: Open, often: None) -> None:
    """Bodies that are gone are skipped and told, once; what is not touched arrives, and no channel stays full."""
    (a, _), (b, heard) = await node("a"), await node("b")
    await b.subscribe("t")
    loop = asyncio.get_running_loop()
    loop.remove_reader(b._peers._own.fileno())
    timer = b._timers.pop("_tick")
    timer.cancel()
    await a.push("work", body("job"), 10, 60)
    await a.push("work", b"small job", 10, 60)
    await a.publish("t", b"before", 60)
    await a.publish("t", body("published"), 60)
    assert await a.post("b", "c", body("posted"), 1, 60)
    await a.publish("t", b"after", 60)
    os.truncate(folder / "asgi/layer.db-large", 100)
    loop.add_reader(b._peers._own.fileno(), b._peers._readable)
    b._tick()
    assert await b.pull("work") == b"small job"
    await eventually(lambda: heard.gaps)
    assert heard.frames == [b"before", b"after"]
    await eventually(lambda: look(folder, TAKEN) == [(0,)])
    assert await a.post("b", "c", body("again"), 1, 60)
    await eventually(lambda: heard.frames[2:] == [body("again")])
    assert all("cut short" in reason for reason in heard.gaps)


# The log's side of it


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    opened: list[Store] = []

    def make() -> Store:
        opened.append(open_store(prepare(tmp_path / "layer", "asgi"), 1 << 30))
        return opened[-1]

    yield make
    for store in opened:
        store.rollback()
        store.close()


def put(store: Store, mark: str, size: int = LARGE) -> str:
    """Add a frame to the log; returns its place."""
    frame = store.append("t", "a", None, None, time.time() + 60, body(mark, size))
    assert isinstance(frame.body, str)
    return frame.body


def test_a_late_reader_gets_no_other_frame(stores: Callable[[], Store]) -> None:
    """Its row was deleted and the place written over after it had read the row: then there is nothing for it."""
    writer, reader = stores(), stores()
    assert writer.begin()
    writer.register("a")
    writer.register("b")
    writer.subscribe("t", "b")
    writer.commit()
    assert writer.begin()
    place = put(writer, "old")
    writer.commit()
    [row] = reader.unread("b", 0, 10)
    assert reader.load(row.id, row.body) == body("old", LARGE)
    assert writer.begin()
    writer.drop_older_half()
    writer.commit()
    assert reader.load(row.id, row.body) is None, "the bytes are still there, the frame is not"
    assert writer.begin()
    assert put(writer, "new")[:18] == place[:18], "the same place"
    writer.commit()
    assert reader.load(row.id, row.body) is None
    assert not reader.robbed, "it expired: that is told in another way"


def test_a_place_is_free_after_the_commit(stores: Callable[[], Store]) -> None:
    """What a transaction gives up, it may have back: nothing is written over before the commit."""
    store = stores()
    assert store.begin()
    place = put(store, "kept")
    store.commit()
    assert store.begin()
    store.drop_older_half()
    assert put(store, "other")[:10] != place[:10]
    store.clean()
    store.rollback()
    [(id, there)] = store._do("SELECT id, body FROM frame")
    assert there == place
    assert store.load(id, place) == body("kept", LARGE)
    assert store.begin()
    store.drop_older_half()
    store.commit()
    assert store.begin()
    assert put(store, "other")[:10] == place[:10]
    store.commit()


@pytest.mark.parametrize("seed", range(3))
def test_no_two_frames_share_a_place(stores: Callable[[], Store], seed: int) -> None:
    """Random pushes, takes, leases, their ends, rollbacks, by two processes: every frame comes back as it was pushed."""
    chance = random.Random(seed)
    pair = [stores(), stores()]
    waiting: dict[int, bytes] = {}
    leased: dict[int, bytes] = {}
    for step in range(400):
        store = chance.choice(pair)
        queue, held = dict(waiting), dict(leased)
        assert store.begin()
        for number in range(step * 10, step * 10 + chance.randrange(1, 4)):
            what = chance.choice(["push", "push", "take", "lease", "settle", "back"])
            if what == "push" and len(queue) < 40:
                frame = b"%d." % number * chance.randrange(LARGE // 8, LARGE)
                store.enqueue("q", time.time() + 60, frame)
                queue[number] = frame
            elif what in ("take", "lease") and queue:
                [(row, frame)] = store.dequeue("q", 1)
                assert frame == queue.pop(int(frame.partition(b".")[0]))
                if what == "lease":
                    token = store.put_off("q", time.time() + 60, 60, row[2], 1)
                    held[token] = frame
            elif what == "settle" and held:
                token = chance.choice(sorted(held))
                assert store.settle("q", token)
                del held[token]
            elif what == "back" and held:
                token = chance.choice(sorted(held))
                assert store.hold("q", token, time.time()) is not None
                store.bring("q")
                frame = held.pop(token)
                queue[int(frame.partition(b".")[0])] = frame
        if chance.random() < 0.2:
            store.rollback()
        else:
            store.commit()
            waiting, leased = queue, held
        if step % 50 == 0 and store.begin():
            store.clean()
            store.commit()
    assert store.begin()
    frames = [frame for _, frame in store.dequeue("q", 1000)]
    assert sorted(frames) == sorted(waiting.values())
    for token, frame in leased.items():
        [(there,)] = store._do("SELECT body FROM put_off WHERE token = ?", (token,))
        assert store._fetch(there) == frame
        store.settle("q", token)
    assert store._do(TAKEN).fetchone() == (0,)
    assert not any(each.robbed for each in pair)
