"""The real demo, in processes of its own, on a free port of its own choice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_RUN = "from trunkline.demo.serve import run; run(port=0)"


class Demo:
    """A running demo, and what it wrote."""

    def __init__(self, code: str = _RUN, **env: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if key != "TRUNKLINE_URL"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**inherited, **env},
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def find(self, pattern: str, seconds: float = 20) -> list[str]:
        """Wait until the output holds the pattern; return its groups."""
        eventually(lambda: re.search(pattern, self.output, re.M) is not None, seconds, lambda: self.output)
        found = re.search(pattern, self.output, re.M)
        assert found is not None
        return list(found.groups())

    @property
    def url(self) -> str:
        return self.find(r"(http://\S+)")[0]

    @property
    def layer(self) -> str:
        return self.find(r"layer +(\S+)")[0]

    def pid(self, part: str) -> int:
        """The PID this part has now."""
        self.find(r"(Ctrl-C)")
        found = re.findall(rf"^ *{part} +(?:is back as )?pid (\d+)", self.output, re.M)
        return int(found[-1])

    def pids(self) -> list[int]:
        return [self.process.pid, *(self.pid(part) for part in ("server 1", "server 2", "worker"))]

    def close(self) -> int:
        """End it as Ctrl-C does, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()


def eventually(
    true: Callable[[], bool], seconds: float = 20, shown: Callable[[], object] = lambda: ""
) -> None:
    """Poll until it is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not true within {seconds} s: {shown()}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process still runs; one that has ended and was not yet collected does not."""
    try:
        os.kill(pid, 0)
        if sys.platform != "linux":
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@contextmanager
def running(code: str = _RUN, **env: str) -> Iterator[Demo]:
    demo = Demo(code, **env)
    try:
        demo.find(r"(Ctrl-C)")
        yield demo
    finally:
        demo.close()
    assert "Traceback" not in demo.output
