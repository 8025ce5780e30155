"""Programs that tests start: output in a file, waited for with a deadline, ended by their PID."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
_FOREIGN = ("DJANGO_SETTINGS_MODULE", "TRUNKLINE_URL", "TRUNKLINE_DIR")
DEADLINE = 20.0  # seconds; the machine may be busy


def eventually(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Poll until the condition is true; return what it gave."""
    end = time.monotonic() + deadline
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.02)


def environment(*more: Mapping[str, str] | None, **words: str) -> dict[str, str]:
    """The environment for a process, without what a developer's shell or another test may have put there."""
    env = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
    for values in more:
        env.update(values or {})
    return {**env, **words}


class Program:
    """One process, running from ``with`` to the end of the block."""

    def __init__(
        self, words: Sequence[str | Path], cwd: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.words = [sys.executable, *map(str, words)]
        self.cwd = cwd
        self.log = log
        self.env = environment(env, PYTHONUNBUFFERED="1")

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.words, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(10)
        if kind is not None:
            print(f"--- {' '.join(self.words[1:4])}\n{self.output}", file=sys.stderr)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def printed(self, pattern: str, deadline: float = DEADLINE) -> re.Match[str]:
        """Wait until it has printed this; fail when it ends before."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            assert found or self.process.poll() is None, f"it ended before {pattern!r}:\n{self.output}"
            return found

        found: re.Match[str] = eventually(look, f"{pattern!r} in:\n{self.output}", deadline)
        return found

    def port(self) -> int:
        """The port that a daphne or uvicorn started on port 0 listens on."""
        return int(self.printed(r"(?:Listening on TCP address|running on http://)\D*?127\.0\.0\.1:(\d+)")[1])

    def ended(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(DEADLINE)


def uvicorn(application: str, cwd: Path, log: Path, env: Mapping[str, str]) -> Program:
    """A uvicorn on a free port."""
    return Program(["-m", "uvicorn", application, "--port", "0", "--log-level", "info"], cwd, log, env)


def daphne(application: str, cwd: Path, log: Path, env: Mapping[str, str]) -> Program:
    """A daphne on a free port."""
    endpoint = "tcp:0:interface=127.0.0.1"
    return Program(["-m", "daphne", "-e", endpoint, application], cwd, log, env)
