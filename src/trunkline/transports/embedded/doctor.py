"""`trunkline doctor embedded://…`: is the folder fit for this, is its file sound, who is there, how quick is it.

Rules of this room: what exists is looked at, and nothing is made, moved or repaired, except that two nodes join for a
moment to measure a round trip where others have joined before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import TrunklineError
from ...names import new_node
from ...transport import Arrivals, Finding
from .directory import _check, socket_address
from .large import length
from .node import EmbeddedNode
from .opening import VERSION
from .store import beside

__all__ = ["examine"]

_ROUND_TRIPS, _MEASURING = 50, 2.0  # how many, for how many seconds at most
_SLOW = 0.01
_LITTLE = 64 << 20
#: File systems on which SQLite's shared memory or Unix sockets do not work between machines.
_REMOTE = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "fuse.sshfs",
    "ceph",
    "fuse.glusterfs",
    "afs",
    "lustre",
}


async def examine(make: Callable[[], EmbeddedNode]) -> list[Finding]:
    """Examine the folder of the transports that ``make`` makes."""
    made = make()
    root, max_size = made._root, made._max_size
    folder = root / made._prefix
    found = _check_folders([root, folder, folder / "nodes"]) + _check_disk(_nearest(folder), max_size)
    if any(finding.level == "error" for finding in found):
        return found
    path = folder / "layer.db"
    if not path.exists():
        return [*found, Finding("ok", "nobody has used it yet: everything is made on first use")]
    found += _check_file(path, max_size)
    if not any(finding.level == "error" for finding in found):
        found += _check_leftovers(folder)
        found.append(await _round_trip(make))
    return found


def _nearest(path: Path) -> Path:
    return next(each for each in [path, *path.parents] if each.exists())


# Where it is


def _check_folders(folders: list[Path]) -> list[Finding]:
    """Look at each, the outermost first."""
    for folder in folders:
        if not os.path.lexists(folder):
            parent = _nearest(folder)
            if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
                return [Finding("ok", f"folder {folder} can be made in {parent}")]
            what = f"{folder} does not exist, and this user may not make it in {parent}"
            fix = f"sudo install -d -m 700 -o {os.geteuid()} {shlex.quote(str(folders[0]))}"
            return [Finding("error", what, fix)]
        try:
            _check(folder)
        except TrunklineError as error:
            what, _, fix = str(error).partition(": ")
            return [Finding("error", what, fix or "give a folder of this user's own")]
    return [Finding("ok", f"folder {folders[1]}: of user id {os.geteuid()}, closed to others")]


def _check_disk(place: Path, max_size: int) -> list[Finding]:
    kind = _file_system(place)
    if kind in _REMOTE:
        what = f"{place} is on a network file system ({kind}), where neither file locks nor sockets can be relied on"
        return [
            Finding(
                "error", what, "choose a folder on a disk of this machine, or use redis:// between machines"
            )
        ]
    free = shutil.disk_usage(place).free
    if free < _LITTLE:
        what = f"only {_mega(free)} are free on its disk: soon no message can be sent"
        return [Finding("error", what, f"make room: df -h {shlex.quote(str(place))}")]
    if free < max_size:
        what = f"{_mega(free)} are free on its disk, less than max_size ({_mega(max_size)})"
        return [Finding("warning", what, f"make room, or set max_size to less than {free}")]
    return [Finding("ok", f"{_mega(free)} are free on its disk")]


def _file_system(place: Path) -> str:
    """The kind of file system, where the system tells it."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    real = os.path.realpath(place)
    best, kind = "", ""
    for line in lines:
        _, point, this, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
            best, kind = point, this
    return kind


def _mega(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MB"


# What is in it


def _check_file(path: Path, max_size: int) -> list[Finding]:
    files = (path, path.with_name("layer.db-wal"), beside(path))
    size = sum(each.stat().st_size for each in files if each.exists())
    found = []
    if size > 0.8 * max_size:
        what = f"the files take {_mega(size)} of max_size {_mega(max_size)}: readers do not keep up"
        found.append(
            Finding("warning", what, "find who stopped reading (the nodes below), or raise max_size")
        )
    else:
        found.append(Finding("ok", f"the files take {_mega(size)} of max_size {_mega(max_size)}"))
    try:
        with _reading(path) as connection:
            verdict = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
            if verdict != ["ok"]:
                return [*found, _corrupt(path, "; ".join(verdict))]
            found.append(Finding("ok", "its integrity is checked"))
            if (version := connection.execute("PRAGMA user_version").fetchone()[0]) < VERSION:
                return [*found, _aside(f"{path} was written by an older Trunkline (schema {version})")]
            if not beside(path).exists():
                return [*found, _aside(f"{beside(path)}, which holds its large messages, was deleted")]
            return [*found, *_large(connection), *_nodes(connection, path.parent / "nodes")]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return [*found, _corrupt(path, str(error))]
        return [
            *found,
            Finding("error", f"{path} cannot be read: {error}", "another program may keep it locked"),
        ]


def _corrupt(path: Path, verdict: str) -> Finding:
    what = f"{path} is damaged: {verdict.splitlines()[0]}"
    fix = "the next process that opens it moves it aside and makes a fresh one; look for the cause: disk, a copy of it"
    return Finding("error", what, fix)


def _aside(what: str) -> Finding:
    return Finding("error", what, "the next process that opens it moves it aside and makes a fresh one")


def _large(connection: sqlite3.Connection) -> list[Finding]:
    sizes = [length(row[0]) for row in connection.execute("SELECT place FROM large")]
    return [Finding("ok", f"{len(sizes)} large messages take {_mega(sum(sizes))}")] if sizes else []


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)
    try:
        yield connection
    finally:
        connection.close()


def _nodes(connection: sqlite3.Connection, nodes: Path) -> list[Finding]:
    names = [row[0] for row in connection.execute("SELECT name FROM node ORDER BY name")]
    waiting = connection.execute("SELECT coalesce(sum(n), 0), count(*) FROM backlog").fetchone()
    alive = [name for name in names if _is_alive(nodes, name)]
    found = [Finding("ok", f"{len(alive)} nodes are open; {waiting[0]} messages wait in {waiting[1]} queues")]
    if len(alive) < len(names):
        what = f"{len(names) - len(alive)} of {len(names)} registered nodes are dead"
        fix = "nothing to do: the other nodes remove them within seconds, or the next one that opens"
        found.append(Finding("ok" if alive else "warning", what, fix))
    strays = [path.stem for path in nodes.glob("*.sock") if path.stem not in names]
    if gone := [name for name in strays if not _is_alive(nodes, name)]:
        what = f"{len(gone)} sockets of processes that are gone are left over"
        found.append(
            Finding("ok", what, "nothing to do: a process that is open for some seconds removes them")
        )
    return found


def _is_alive(nodes: Path, name: str) -> bool:
    descriptor = os.open(nodes, os.O_RDONLY | os.O_DIRECTORY)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        probe.connect(socket_address(nodes, descriptor, name))
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    finally:
        probe.close()
        os.close(descriptor)
    return True


def _check_leftovers(folder: Path) -> list[Finding]:
    aside = sorted(folder.glob("layer.db.aside-*"))
    if not aside:
        return []
    size = sum(path.stat().st_size for path in aside)
    what = f"{len(aside)} files of damaged or foreign logs were moved aside here ({_mega(size)})"
    return [
        Finding(
            "warning", what, f"look at them or remove them: rm {shlex.quote(str(folder))}/layer.db.aside-*"
        )
    ]


# How quick it is


class _Echo(Arrivals):
    """Notes that something has come."""

    def __init__(self) -> None:
        self.come = asyncio.Event()

    def deliver(self, frame: bytes) -> None:
        self.come.set()

    def gap(self, topic: str | None, reason: str) -> None:
        self.come.set()


async def _round_trip(make: Callable[[], EmbeddedNode]) -> Finding:
    """One node publishes, another hears it."""
    sender, hearer, echo = make(), make(), _Echo()
    times: list[float] = []
    topic = f"!doctor.{new_node()}"
    try:
        async with asyncio.timeout(_MEASURING + 15):
            await sender.open(new_node(), _Echo())
            await hearer.open(new_node(), echo)
            await hearer.subscribe(topic)
            until = time.monotonic() + _MEASURING
            while len(times) < _ROUND_TRIPS and (not times or time.monotonic() < until):
                echo.come.clear()
                start = time.perf_counter()
                await sender.publish(topic, b"doctor", 1.0)
                await echo.come.wait()
                times.append(time.perf_counter() - start)
    except (TrunklineError, TimeoutError) as error:
        what = f"a message did not get through: {str(error) or 'no answer in time'}"
        return Finding(
            "error", what, "is a process stopped while it writes? The nodes above are the candidates"
        )
    finally:
        await sender.close()
        await hearer.close()
    median = statistics.median(times)
    what = (
        f"a message takes {median * 1000:.2f} ms (median of {len(times)}, slowest {max(times) * 1000:.1f} ms)"
    )
    if median > _SLOW:
        return Finding(
            "warning", what, "the machine is overloaded, or the disk slow: try a folder in /dev/shm"
        )
    return Finding("ok", what)
