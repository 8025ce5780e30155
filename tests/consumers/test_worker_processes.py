"""Workers as real processes: signals, grace, supervision. Every process is ended by its PID."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trunkline.opening import layer_from_url

PROGRAM = Path(__file__).with_name("worker_program.py")


class Program:
    """A running program and the lines it prints."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, arguments)]
        # A process group of its own, so that the test can end it with the workers it started.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, fits: Callable[[str], bool], timeout: float = 20) -> str:
        """Read on to the first line that fits."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no such line in {timeout} s; got {self.lines}") from None
            if line is None:
                raise AssertionError(f"the program ended first; it said {self.lines}")
            self.lines.append(line)
            if fits(line):
                return line

    def begun(self) -> int:
        """Wait for a job to begin; returns the PID it runs in."""
        return int(self.until(lambda line: line.startswith("begun")).rpartition(" ")[2])

    def ended(self, timeout: float = 20) -> int:
        """Wait for the end; returns the exit status."""
        status = self.process.wait(timeout)
        self.reader.join(5)
        while (line := self._queue.get_nowait()) is not None:
            self.lines.append(line)
        return status


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Starts programs, and ends them and the workers they started."""
    programs: list[Program] = []

    def begin(*arguments: object) -> Program:
        programs.append(Program(*arguments))
        return programs[-1]

    yield begin
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()
        program.reader.join(5)
        program.process.stdout.close()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(condition: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_signal_lets_the_message_in_hand_finish(start, tmp_path, kind, number):
    """The job at work finishes, the next is not begun, the process ends well."""
    gate = tmp_path / "gate"
    program = start("gated", kind, gate)
    program.begun()
    program.process.send_signal(number)
    program.until(lambda line: line == "stopping")
    gate.touch()
    assert program.ended() == 0
    assert [line.split(" in ")[0] for line in program.lines] == ["begun 0", "stopping", "finished 0", "ended"]


async def test_what_a_stopped_worker_did_not_take_stays_for_others(start, tmp_path):
    """Jobs of a queue that processes share: each is done once, by the worker that was stopped amid them or after it."""
    url = f"embedded://{tmp_path}/layer"
    layer = layer_from_url(url)
    for n in range(80):
        await layer.send("jobs", {"type": "job.count", "n": n})
    program = start("serve", url)
    await asyncio.to_thread(program.until, lambda line: line == "counted 20")
    program.process.terminate()
    assert await asyncio.to_thread(program.ended) == 0
    assert program.lines[-1] == "ended"
    counted = [int(line.split()[1]) for line in program.lines if line.startswith("counted")]
    left = []
    while len(counted) + len(left) < 80:
        left.append((await asyncio.wait_for(layer.receive("jobs"), 20))["n"])
    assert left
    assert sorted(counted + left) == list(range(80))
    await layer.close()


def test_a_job_beyond_its_grace_is_cancelled_and_named(start):
    """The process ends soon after its grace, with an error that names channel and type."""
    program = start("work", "async", 0.2, 60)
    program.begun()
    began = time.monotonic()
    program.process.terminate()
    assert program.ended() == 0
    assert time.monotonic() - began < 10
    assert any(line.startswith("ERROR the handler of 'job.work' on channel 'jobs'") for line in program.lines)
    assert "finished 0" not in program.lines


def test_a_supervisor_keeps_its_processes_and_ends_them_well(start):
    """A killed process is replaced; SIGTERM to the supervisor lets every job at work finish."""
    program = start("supervise", 2, 20, "work", "async", 20, 3)
    pids: set[int] = set()
    while len(pids) < 2:
        pids.add(program.begun())
    victim = pids.pop()
    os.kill(victim, signal.SIGKILL)
    program.until(lambda line: f"worker process {victim} died with status -9" in line)
    while len(pids) < 2:
        pids.add(program.begun())
    program.process.terminate()
    assert program.ended() == 0
    assert program.lines[-1] == "supervisor ended"
    assert all(gone(pid) for pid in pids)
    assert program.lines.count("ended") == 2
    begun = [line for line in program.lines if line.startswith("begun")]
    finished = [line for line in program.lines if line.startswith("finished")]
    assert len(finished) == len(begun) - 1  # all but the job of the killed one


def test_workers_do_not_outlive_their_supervisor(start):
    """When the supervisor is killed at once, its workers finish what they have in hand and end."""
    program = start("supervise", 2, 20, "work", "async", 20, 3)
    workers = {program.begun() for _ in range(2)}
    os.kill(program.process.pid, signal.SIGKILL)
    program.process.wait()
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker went on without its supervisor"
        time.sleep(0.05)
    program.reader.join(5)


def test_a_process_that_does_not_end_is_killed_by_its_pid(start):
    """The supervisor waits for the grace and a little more, then kills."""
    program = start("supervise", 1, 0.1, "stubborn")
    pid = program.begun()
    program.process.terminate()
    assert program.ended() == 0
    wait_until(lambda: gone(pid))
    assert f"ERROR worker process {pid} did not end within its grace and is killed" in program.lines


def test_a_process_that_dies_at_once_is_restarted_ever_more_slowly(start):
    """The pause doubles, and SIGTERM does not wait for it."""
    program = start("supervise", 1, 5, "hasty")
    deaths = [program.until(lambda line: "died with status 3" in line) for _ in range(3)]
    pauses = [float(line.split()[-2]) for line in deaths]
    assert pauses == [0.2, 0.4, 0.8]
    began = time.monotonic()
    program.process.terminate()
    assert program.ended() == 0
    assert time.monotonic() - began < 3


def test_a_command_that_cannot_be_started_is_an_error():
    """The supervisor does not try for ever."""
    code = "import asyncio; from trunkline.worker import run_processes; asyncio.run(run_processes(['/no/such'], 2))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert "FileNotFoundError" in run.stderr.splitlines()[-1]
