"""`trunkline doctor` on the embedded layer: folders and files that are fresh, in use, foreign or damaged."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frameworks.programs import environment
from trunkline.layers import EmbeddedChannelLayer
from trunkline.transports.embedded import EmbeddedTransport, doctor

Finding = dict[str, str]


class Patient:
    """A folder, and what the doctor says of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "asgi"
        self.url = f"embedded://{root}"

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trunkline.cli", "doctor", *(words or (self.url,))]
        return subprocess.run(command, env=environment(env), capture_output=True, text=True, timeout=60)

    def look(self, query: str = "") -> list[Finding]:
        """The findings; the exit code must agree with them."""
        done = self.run(self.url + query, "--json")
        found: list[Finding] = json.loads(done.stdout)
        assert done.returncode == int(any(finding["level"] == "error" for finding in found)), done.stderr
        assert done.stderr == ""
        return found


def one(found: list[Finding], level: str, what: str) -> Finding:
    """The finding of that level that says this."""
    mine = [f for f in found if f["level"] == level and re.search(what, f["what"])]
    assert len(mine) == 1, found
    return mine[0]


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path / "layer")


@pytest.fixture
def layer(patient: Patient) -> Iterator[EmbeddedChannelLayer]:
    """A layer in use, with a job that waits."""
    made = EmbeddedChannelLayer(patient.root)
    made.sync.send("jobs", {"type": "x"})
    yield made
    made.sync.close()


def test_nobody_was_here(patient: Patient) -> None:
    """A folder that does not exist yet is fine, and is not made by looking."""
    found = patient.look()
    one(found, "ok", "nobody has used it yet")
    one(found, "ok", f"{patient.root} can be made")
    assert {finding["level"] for finding in found} == {"ok"}
    assert not patient.root.exists()


def test_a_layer_in_use(patient: Patient, layer: EmbeddedChannelLayer) -> None:
    """Open nodes and waiting messages are counted, a round trip is measured, nothing is left behind or taken."""
    for _ in range(2):
        found = patient.look()
        assert {finding["level"] for finding in found} == {"ok"}
        one(found, "ok", "closed to others")
        one(found, "ok", "are free on its disk")
        one(found, "ok", r"^the files take 0\.\d MB of max_size 1,024\.0 MB")
        one(found, "ok", "its integrity is checked")
        one(found, "ok", "^1 nodes are open; 1 messages wait in 1 queues")
        one(found, "ok", r"^a message takes \d+\.\d\d ms \(median of 50")
    assert layer.sync.receive("jobs", timeout=10) == {"type": "x"}


def test_what_it_prints(patient: Patient, layer: EmbeddedChannelLayer) -> None:
    """A mark and a line for each finding, what to do indented below; the default folder without a URL."""
    done = patient.run("--layer", "default", TRUNKLINE_DIR=str(patient.root))
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("✓ ") for line in done.stdout.splitlines())
    patient.folder.chmod(0o755)
    done = patient.run()
    assert done.returncode == 1
    assert re.fullmatch(
        rf"✗ {patient.folder} is open to other users .*\n    .*chmod 700 {patient.folder}\n✓ .*\n",
        done.stdout,
    )
    patient.folder.chmod(0o700)


def test_a_wrong_url_is_a_usage_error(patient: Patient) -> None:
    """Exit code 2 and one line, as for every command."""
    for url, text in (("embeded:", "did you mean 'embedded'"), ("embedded:?capasity=1", "'capacity'")):
        done = patient.run(url)
        assert (done.returncode, done.stdout) == (2, "")
        assert text in done.stderr


def test_an_in_memory_layer(patient: Patient) -> None:
    """Nothing is known against it, but that it ends at the process."""
    done = patient.run("memory:")
    assert done.returncode == 0
    assert "nothing is known against it" in done.stdout
    assert "no other process is reached" in done.stderr


def test_a_folder_of_the_wrong_kind(patient: Patient, tmp_path: Path) -> None:
    """A symlink, a file, a place where none can be made: each with what to do."""
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    patient.root.symlink_to(target)
    assert one(patient.look(), "error", "is a symlink")["fix"]
    patient.root.unlink()
    patient.root.write_text("a file")
    one(patient.look(), "error", "is not a folder")
    assert "sudo install -d" in one(Patient(patient.root / "below").look(), "error", "does not exist")["fix"]


def test_a_damaged_file(patient: Patient) -> None:
    """A file with damaged pages, and one that is no database: an error, and it stays where it is."""
    layer = EmbeddedChannelLayer(patient.root)
    for number in range(60):
        layer.sync.send("jobs", {"n": number, "text": "x" * 2000})
    layer.sync.close()
    path = patient.folder / "layer.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    size = path.stat().st_size
    assert size > 100_000
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 3))
    assert "moves it aside" in one(patient.look(), "error", "is damaged")["fix"]
    path.write_bytes(b"not a database" * 1000)
    one(patient.look(), "error", "is damaged: file is not a database")
    assert path.read_bytes().startswith(b"not a database")
    # What the doctor announces is what happens.
    layer = EmbeddedChannelLayer(patient.root)
    layer.sync.send("jobs", {"n": 1})
    layer.sync.close()
    fix = one(patient.look(), "warning", "moved aside here")["fix"]
    subprocess.run(["sh", "-c", fix.partition(": ")[2]], check=True)
    assert {finding["level"] for finding in patient.look()} == {"ok"}


def test_large_messages(patient: Patient) -> None:
    """Those that wait are counted; without their file, and with an older log, it says what will happen, and does nothing."""
    layer = EmbeddedChannelLayer(patient.root)
    layer.sync.send("jobs", {"text": "x" * 500_000})
    one(patient.look(), "ok", r"^1 large messages take 0\.5 MB")
    layer.sync.receive("jobs", timeout=10)
    assert not [finding for finding in patient.look() if "large messages" in finding["what"]]
    layer.sync.close()
    path = patient.folder / "layer.db"
    (patient.folder / "layer.db-large").unlink()
    assert "moves it aside" in one(patient.look(), "error", "layer.db-large.* was deleted")["fix"]
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    assert "moves it aside" in one(patient.look(), "error", "by an older Trunkline")["fix"]
    assert path.exists()


def test_a_file_that_is_nearly_full(patient: Patient) -> None:
    """Above four fifths of max_size it is a warning."""
    layer = EmbeddedChannelLayer(patient.root, capacity=1000)
    for number in range(100):
        layer.sync.send("jobs", {"n": number, "text": "x" * 20_000})
    found = patient.look(f"?max_size={2 << 20}")
    layer.sync.close()
    assert "max_size" in one(found, "warning", r"of max_size 2\.0 MB")["fix"]


def test_a_dead_node(patient: Patient) -> None:
    """A killed process, and nobody left to notice: its node is told to be dead."""
    code = f"""
import signal
from trunkline.layers import EmbeddedChannelLayer
layer = EmbeddedChannelLayer({str(patient.root)!r})
layer.sync.new_channel()
print("there", flush=True)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        one(patient.look(), "ok", "^1 nodes are open")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    found = patient.look()
    one(found, "warning", "1 of 1 registered nodes are dead")
    one(found, "ok", "^0 nodes are open")


def test_a_socket_left_over(
    patient: Patient, layer: EmbeddedChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that nobody listens to any more is told, and is nothing to worry about."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        monkeypatch.chdir(patient.folder / "nodes")  # a path may be too long for a socket
        dead.bind("0123456789.sock")
    one(patient.look(), "ok", "1 sockets of processes that are gone")


@pytest.mark.parametrize(("free", "level"), [(10 << 20, "error"), (500 << 20, "warning"), (5 << 30, "ok")])
async def test_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    """Less than max_size is a warning, next to nothing an error."""
    usage: Callable[[Any], Any] = lambda path: type("Usage", (), {"free": free})()  # noqa: E731
    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    found = await EmbeddedTransport.examine(f"embedded://{tmp_path}/layer")
    assert [finding.level for finding in found if "free on its disk" in finding.what] == [level]


async def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There neither locks nor sockets work between machines: an error."""
    kind = doctor._file_system(tmp_path)
    assert re.fullmatch(r"[a-z0-9.]+", kind)
    monkeypatch.setattr(doctor, "_REMOTE", {kind})
    found = await EmbeddedTransport.examine(f"embedded://{tmp_path}/layer")
    assert [finding.level for finding in found] == ["ok", "error"]
    assert "redis://" in found[1].fix
