"""Starts the demo's processes, starts them again when they die, and ends them.

This process serves nothing itself and is not in the layer: it only watches. Each child is ended by its own PID, and
ends by itself when this process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from urllib.parse import quote, urlsplit, urlunsplit

from ..errors import TrunklineError

__all__ = ["run"]

_NEEDS = {"uvicorn": "uvicorn", "websockets": "websockets", "PIL": "pillow"}
#: Seconds a child may take to start, and to end.
_START, _END = 30.0, 5.0
#: A child that ends this many times in a row, each before it has served for so many seconds, is not started again.
_TIMES, _YOUNG = 5, 3.0


def run(host: str = "127.0.0.1", port: int = 8000, servers: int = 2, open_browser: bool = False) -> None:
    """Serve the demo until Ctrl-C.

    The layer is the one ``TRUNKLINE_URL`` names; unset, it is the embedded one in a new directory of its own.

    Args:
        host: The address of this machine to serve on.
        port: The port; 0 for any that is free.
        servers: How many server processes.
        open_browser: Whether to open the page in the default browser.

    Raises:
        SystemExit: It cannot start; the text says why.
    """
    missing = [package for module, package in _NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"The demo needs {', '.join(missing)}: pip install 'trunkline[demo]'")
    if servers < 1:
        raise SystemExit(f"The demo needs at least one server process, not {servers}.")
    with _layer_url() as url:
        _try_layer(url)
        with _reserve(host, port) as held:
            failure = asyncio.run(_Demo(url, host, held, servers).run(open_browser))
    if failure:
        raise SystemExit(failure)


@contextlib.contextmanager
def _layer_url() -> Iterator[str]:
    if url := os.environ.get("TRUNKLINE_URL"):
        yield url
        return
    # mkdtemp makes it mode 0700. A process that is just being killed may still write there: then some files stay.
    with tempfile.TemporaryDirectory(prefix="trunkline-demo-", ignore_cleanup_errors=True) as folder:
        yield f"embedded://{quote(folder)}"


def _try_layer(url: str) -> None:
    from .. import layer_from_url
    from .child import layer_settings

    if urlsplit(url).scheme == "memory":
        raise SystemExit(
            f"TRUNKLINE_URL is {url}, which ends at each process; unset it, or name a layer that crosses processes."
        )

    async def open_and_close() -> None:
        async with layer_from_url(**layer_settings(url)["default"]["CONFIG"]):
            pass

    try:
        asyncio.run(open_and_close())
    except TrunklineError as error:
        raise SystemExit(f"The channel layer cannot be used: {error}") from None


@contextlib.contextmanager
def _reserve(host: str, port: int) -> Iterator[socket.socket]:
    """Hold the port as long as the demo runs, whichever of its servers come and go.

    Linux spreads connections over all sockets that share a port; elsewhere the servers inherit one socket and take turns.
    """
    from .child import listen

    try:
        taken = listen(host, port, shared=False)
        if sys.platform == "linux":
            port = taken.getsockname()[1]
            taken.close()
            taken = socket.socket(taken.family, socket.SOCK_STREAM)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind((host, port))  # it never listens, so it gets no connection
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise SystemExit(
            f"Cannot serve on {host} port {port} ({why}); choose another: --port {port % 60000 + 1}"
        ) from None
    with taken:
        yield taken


class _Demo:
    """All processes together."""

    def __init__(self, url: str, host: str, held: socket.socket, servers: int) -> None:
        self._layer = url
        self._host, self._port = host, held.getsockname()[1]
        self._stop = asyncio.Event()
        self._failure = ""
        if sys.platform == "linux":
            where, inherit = ["--bind", host, str(self._port)], ()
        else:
            where, inherit = ["--fd", str(held.fileno())], (held.fileno(),)
        self._parts = [
            _Part(f"server {number}", ["server", str(number), *where], inherit)
            for number in range(1, servers + 1)
        ]
        self._parts.append(_Part("worker", ["worker"], ()))

    @property
    def address(self) -> str:
        """The page's URL."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/"

    async def run(self, open_browser: bool) -> str:
        """Run until a signal comes; return why it ended early, if it did."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        env = {**os.environ, "TRUNKLINE_URL": self._layer}
        keeping = [asyncio.create_task(self._keep(part, env)) for part in self._parts]
        stopped = asyncio.create_task(self._stop.wait())
        started = asyncio.create_task(self._started())
        ending = [stopped, *keeping]  # one of the latter ends first only if it failed
        await asyncio.wait([started, *ending], return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            self._greet()
            if open_browser and _has_screen():
                await asyncio.to_thread(webbrowser.open, self.address)
            await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            _say("\nEnding the servers and the worker.")
        started.cancel()
        self._stop.set()
        await asyncio.gather(*keeping)
        return self._failure

    async def _started(self) -> None:
        for part in self._parts:
            await part.ready.wait()

    def _greet(self) -> None:
        _say(f"\nTrunkline demo:  {self.address}\n")
        for part in self._parts:
            _say(f"  {part.name:<9} pid {part.pid}")
        _say(f"  layer     {_without_password(self._layer)}")
        _say(
            "\nOpen it in two windows and talk. Then end a server: its windows move to another by themselves."
        )
        _say(f"  kill -9 {self._parts[0].pid}")
        _say("Reach every window from another terminal:")
        env = "" if "TRUNKLINE_URL" in os.environ else f"TRUNKLINE_URL={shlex.quote(self._layer)} "
        _say(f'  {env}{shlex.quote(sys.executable)} -m trunkline.demo.announce "Hello"')
        _say("Ctrl-C ends everything.")

    async def _keep(self, part: _Part, env: dict[str, str]) -> None:
        """Have this part running until it is time to stop."""
        young = 0
        while not self._stop.is_set():
            how = await part.run(env, self._stop)
            if self._stop.is_set():
                return
            young = young + 1 if time.monotonic() - part.served_from < _YOUNG else 0
            if young >= _TIMES:
                self._failure = f"{part.name} {how} {_TIMES} times in a row; giving up."
                self._stop.set()
                return
            _say(f"{part.name} (pid {part.pid}) {how}; starting another.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1 * 2**young):
                    await self._stop.wait()


class _Part:
    """One child, and the next one in its place."""

    def __init__(self, name: str, arguments: list[str], inherit: tuple[int, ...]) -> None:
        self.name = name
        self.pid = 0
        #: Set once the first child serves.
        self.ready = asyncio.Event()
        #: When the present child began to serve; endlessly far ahead until it does.
        self.served_from = math.inf
        self._arguments = arguments
        self._inherit = inherit

    async def run(self, env: dict[str, str], stop: asyncio.Event) -> str:
        """Start it, wait until it ends or ``stop`` is set, and leave nothing behind; return how it ended."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "trunkline.demo.child", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=env,
            pass_fds=self._inherit,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent alone, which then ends its children
        )
        self.pid = child.pid
        self.served_from = math.inf
        ended = asyncio.create_task(child.wait())
        stopped = asyncio.create_task(stop.wait())
        greeting = asyncio.create_task(self._greeted(child))
        try:
            await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not ended.done():
                child.terminate()
                await asyncio.wait([ended], timeout=_END)
            if not ended.done():
                child.kill()
            code = await ended
            for task in (stopped, greeting):
                task.cancel()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    async def _greeted(self, child: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(_START):
                line = await child.stdout.readline() if child.stdout else b""
        except TimeoutError:
            _say(f"{self.name} (pid {self.pid}) did not start within {_START:g} s and is ended.")
            child.kill()
            return
        if line == b"ready\n":
            self.served_from = time.monotonic()
            again = self.ready.is_set()
            self.ready.set()
            if again:
                _say(f"{self.name} is back as pid {self.pid}.")


def _has_screen() -> bool:
    """Without one, ``webbrowser`` would start a text browser in this terminal."""
    return sys.platform != "linux" or any(
        os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
