"""End to end: a chat room of websockets over two server processes, the same clients for everybody."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .contestants import Place, place, server_command

__all__ = ["CHATS", "SERVING", "Chat", "chat", "versions"]

_HERE = Path(__file__).parent
_SOCKETIO = _HERE / "peers" / "socketio"
#: Seconds a server has to answer, and an installation to end.
_START = 20.0
_INSTALL = 180.0
#: Messages on their way at once, in the whole room.
_WINDOW = 24
_SENDERS = 10


@dataclass(frozen=True)
class Chat:
    """A chat as it is served."""

    name: str
    needs: Literal["nothing", "folder", "redis"]
    server: str = "trunkline"
    #: It plays in the first round only.
    once: bool = False

    @property
    def socketio(self) -> bool:
        return self.name == "socket.io"

    def missing(self) -> str | None:
        """What keeps it from taking part here; None when nothing does."""
        try:
            if self.needs == "redis":
                server_command()
            if self.socketio:
                install_socketio()
            elif self.server == "granian":
                import granian  # noqa: F401
            elif self.server == "picows":
                import picows  # noqa: F401
            elif self.server == "wsproto":
                import wsproto  # noqa: F401
        except (ImportError, OSError, subprocess.SubprocessError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def command(self, place: Place, port: int) -> list[str]:
        if self.socketio:
            return ["node", str(_SOCKETIO / "server.js"), str(port), place.where]
        app = self.name.partition(", ")[0]
        return [sys.executable, "-m", "bench.peers.server", app, place.where, str(port), self.server]


def install_socketio() -> None:
    """Bring the packages of the socket.io server, once.

    Raises:
        FileNotFoundError: There is no Node here.
        SubprocessError: npm could not bring them.
    """
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            raise FileNotFoundError(f"no {command} here: install Node.js 18 or newer")
    if not (_SOCKETIO / "node_modules" / "socket.io").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(install, cwd=_SOCKETIO, check=True, timeout=_INSTALL, stdout=subprocess.DEVNULL)


CHATS = {
    made.name: made
    for made in (
        Chat("socket.io", "redis"),
        Chat("relay on redis", "redis"),
        Chat("relay on embedded", "folder"),
        Chat("handler on redis", "redis"),
        Chat("handler on embedded", "folder", once=True),
        Chat("relay on redis, plain uvicorn", "redis", "sansio", once=True),
        Chat("relay on embedded, plain uvicorn", "folder", "sansio", once=True),
        Chat("channels on redis", "redis", "sansio"),
        Chat("channels on embedded", "folder", "sansio", once=True),
        Chat("channels on core", "redis", "sansio"),
        Chat("channels on pubsub", "redis", "sansio"),
    )
}

#: What may serve the quickest of them.
SERVING = {
    f"relay on embedded, {server}": Chat(f"relay on embedded, {server}", "folder", server)
    for server in ("sansio", "trunkline", "websockets", "wsproto", "granian", "picows")
}


def versions() -> str:
    """What the chats are made of, as far as it is here."""
    found = []
    for package in ("uvicorn", "websockets", "uvloop", "wsproto", "granian", "picows", "channels"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    if shutil.which("node"):
        told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        wanted = json.loads((_SOCKETIO / "package.json").read_text())["dependencies"]
        found += [f"node {told.stdout.strip()}", *[f"{name} {version}" for name, version in wanted.items()]]
    served = "on uvicorn and uvloop: Trunkline's consumers by trunkline.serving.uvicorn, plain uvicorn by websockets-sansio"
    return f"chats: {', '.join(found)}; {served}, as Channels' consumers"


async def chat(
    chat: Chat, seconds: float, sockets: int, patience: float, limit: float
) -> dict[str, float] | str:
    """Serve it once; returns the figures, or why there are none."""
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(place(chat.needs))
        try:
            ports, pids = stack.enter_context(servers(chat, where))
        except RuntimeError as error:
            return str(error)
        client = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "bench.crowd"],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=_HERE.parent,
        )
        order = {
            "ports": ports,
            "pids": pids,
            "sockets": sockets,
            "senders": min(_SENDERS, sockets),
            "size": 100,
            "seconds": seconds,
            "window": _WINDOW,
            "patience": patience,
            "socketio": chat.socketio,
        }
        try:
            async with asyncio.timeout(limit):
                out, errors = await client.communicate(json.dumps(order).encode() + b"\n")
        except TimeoutError:
            return f"no result in {limit:g} s"
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()
        if client.returncode:
            return f"the clients failed: {errors.decode()[-300:]} {where.errors()}"
    said = json.loads(out)
    if said["closed"]:
        return f"{said['closed']} connections were closed {where.errors()}"
    lost, doubled, reordered = said["mishaps"]
    return {
        "deliveries/s": said["rate"],
        "server cpu µs/delivery": said["cpu"] * 1e6,
        "client cpu µs/delivery": said["own"] * 1e6,
        "p50 ms at half": said["p50"] * 1e3,
        "p99 ms at half": said["p99"] * 1e3,
        "lost": lost,
        "doubled": doubled,
        "reordered": reordered,
    }


@contextlib.contextmanager
def servers(chat: Chat, where: Place) -> Iterator[tuple[list[int], list[int]]]:
    """Two server processes; yields their ports and their PIDs."""
    ports = [free_port(), free_port()]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for port in ports:
            with (where.folder / f"errors-{port}").open("wb") as errors:
                started.append(
                    subprocess.Popen(
                        chat.command(where, port), cwd=_HERE.parent, stdout=errors, stderr=errors
                    )
                )
        for port, process in zip(ports, started, strict=True):
            await_port(port, process, where)
        yield ports, [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def await_port(port: int, process: subprocess.Popen[bytes], where: Place) -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} did not start: {where.errors()}") from None
            time.sleep(0.02)
