"""A master, its replicas and three sentinels: real processes on free ports of the loopback, each ended by its PID."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from servers import Server, servers

__all__ = ["Sentinel", "Watched", "until"]


class Sentinel(Server):
    """One sentinel; it keeps its configuration in a file of its own, and writes to it."""

    def __init__(self, kind: str, directory: Path, lines: list[str], **options: str) -> None:
        self._lines = lines
        super().__init__(kind, directory, **options)

    def start(self, wait: float = 10.0) -> None:
        path = self.directory / "sentinel.conf"
        if is_new := not path.exists():
            password = self.options.get("requirepass")
            more = [f"requirepass {password}"] if password else []
            first = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}", "loglevel warning"]
            path.write_text("\n".join([*first, *more, *self._lines]) + "\n")
        command = [servers()[self.kind], str(path), "--sentinel"]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            until("the sentinel answers", self._answers, wait)
        except RuntimeError:
            self.kill()
            if is_new:
                path.unlink()
            raise

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the sentinel ended: {(self.directory / 'log').read_text()[-2000:]}")
        try:
            return bool(self.call("PING") == b"PONG")
        except (OSError, EOFError):
            return False


class Watched:
    """A master with replicas, watched by sentinels: ready when every sentinel knows all others and all replicas.

    Args:
        down_after: Milliseconds without an answer after which a server counts as down.
        failover_timeout: Milliseconds; sentinels start no failover within twice as long after the last one.
        password: Of the servers.
        sentinel_password: Of the sentinels.
        options: Of the servers.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        name: str = "mymaster",
        replicas: int = 1,
        sentinels: int = 3,
        down_after: int = 700,
        failover_timeout: int = 3000,
        password: str = "",
        sentinel_password: str = "",
        **options: str,
    ) -> None:
        self.kind, self.directory, self.name = kind, directory, name
        self._options = {"repl_diskless_sync_delay": "0", **options}
        if password:
            self._options |= {"requirepass": password, "masterauth": password}
        self.servers: list[Server] = []
        self.sentinels: list[Sentinel] = []
        try:
            self._start(replicas, sentinels, down_after, failover_timeout, sentinel_password)
        except BaseException:
            self.kill()
            raise

    def _start(
        self, replicas: int, sentinels: int, down_after: int, failover_timeout: int, sentinel_password: str
    ) -> None:
        for number in range(1 + replicas):
            upstream = {"replicaof": f"127.0.0.1 {self.servers[0].port}"} if number else {}
            directory = self.directory / f"server{number}"
            self.servers.append(Server(self.kind, directory, **self._options, **upstream))
        lines = [
            f"sentinel monitor {self.name} 127.0.0.1 {self.servers[0].port} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds {self.name} {down_after}",
            f"sentinel failover-timeout {self.name} {failover_timeout}",
        ]
        if password := self._options.get("requirepass"):
            lines.append(f"sentinel auth-pass {self.name} {password}")
        options = {"requirepass": sentinel_password} if sentinel_password else {}
        until("replicas are in step", lambda: all(self._in_step(server) for server in self.servers[1:]))
        for number in range(sentinels):
            self.sentinels.append(Sentinel(self.kind, self.directory / f"sentinel{number}", lines, **options))
        self.hurry()
        until("the sentinels know each other", lambda: self._agree(replicas))
        self.hurry(False)

    def hurry(self, hurried: bool = True) -> None:
        """Let the sentinels look around and talk ten times a second, or as usual: every 10 s and every 2 s."""
        for sentinel in self.sentinels:
            looks, talks = ("100", "100") if hurried else ("10000", "2000")
            sentinel.call("SENTINEL", "DEBUG", "INFO-PERIOD", looks, "PUBLISH-PERIOD", talks)

    def patience(self, down_after: int) -> None:
        """Change after how many milliseconds without an answer a server counts as down."""
        for sentinel in self.sentinels:
            sentinel.call("SENTINEL", "SET", self.name, "down-after-milliseconds", down_after)

    @staticmethod
    def ask(server: Server, *command: str) -> Any:
        """The answer; None when it was cut off: a sentinel that tells a server its part cuts all connections to it."""
        try:
            return server.call(*command)
        except ConnectionError:
            return None

    def _in_step(self, server: Server) -> bool:
        role = self.ask(server, "ROLE")
        return role is not None and role[0] == b"slave" and role[3] == b"connected"

    def is_replica(self, server: Server) -> bool:
        """Whether the server knows that it is one."""
        role = self.ask(server, "ROLE")
        return role is not None and role[0] == b"slave"

    def _agree(self, replicas: int) -> bool:
        for sentinel in self.sentinels:
            others = sentinel.call("SENTINEL", "SENTINELS", self.name)
            known = sentinel.call("SENTINEL", "REPLICAS", self.name)
            if len(others) != len(self.sentinels) - 1 or len(known) != replicas:
                return False
            if any(dict(zip(one[::2], one[1::2], strict=True))[b"flags"] != b"slave" for one in known):
                return False
        return True

    def mend(self) -> None:
        """After a failover: bring every server back, and wait until all but the master are replicas in step."""
        for server in self.servers:
            server.revive()
            password = self._options.get("masterauth", "")
            until("it takes the password", partial(self.ask, server, "CONFIG", "SET", "masterauth", password))
        self.hurry()  # a server that comes back is told what it is within some 15 s otherwise
        until("the others are replicas in step", self._mended, 30.0)
        self.hurry(False)

    def _mended(self) -> bool:
        master = self.master
        replicas = [server for server in self.servers if server is not master]
        return all(self._in_step(server) for server in replicas) and self._agree(len(replicas))

    @property
    def hosts(self) -> list[dict[str, Any]]:
        """The ``hosts`` setting."""
        pairs = [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]
        host: dict[str, Any] = {"sentinels": pairs, "master_name": self.name}
        if password := self._options.get("requirepass"):
            host["password"] = password
        if password := self.sentinels[0].options.get("requirepass"):
            host["sentinel_kwargs"] = {"password": password}
        return [host]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{self.name}"

    def port(self, number: int = 0) -> int:
        """The port of the master, as one sentinel names it."""
        return int(self.sentinels[number].call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])

    @property
    def master(self) -> Server:
        """The server that the first sentinel calls the master."""
        port = self.port()
        return next(server for server in self.servers if server.port == port)

    def cut_off(self, replica: Server) -> None:
        """From now on the replica hears nothing from its master, though it runs: what is written is not on it."""
        replica.calls(("CONFIG", "SET", "masterauth", "wrong"), ("CLIENT", "KILL", "TYPE", "master"))

    def kill(self) -> None:
        """End all processes."""
        for server in (*self.sentinels, *self.servers):
            server.kill()


def until(what: str, condition: Callable[[], bool], timeout: float = 15.0) -> None:
    """Wait until it is so.

    Raises:
        RuntimeError: It was not within the time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in {timeout} s: {what}")
        time.sleep(0.02)
