"""What holds in every framework: two uvicorn processes of one site, and the command line beside them."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from frameworks.programs import Program, environment, eventually

HERE = Path(__file__).resolve().parent
SECONDS = 15


class Site(NamedTuple):
    """Two servers of one application."""

    one: int
    two: int
    folder: Path
    env: dict[str, str]

    def trunkline(self, *words: str) -> str:
        """Run one command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "trunkline.cli", *words],
            cwd=HERE,
            env=environment(self.env),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self) -> list[Any]:
        """The channel names in the database."""
        with closing(sqlite3.connect(self.env["SITE_DATABASE"])) as database:
            return [name for (name,) in database.execute("select channel_name from clients")]


def socket(port: int, path: str = "ws/chat") -> connect:
    return connect(f"ws://127.0.0.1:{port}/{path}", open_timeout=SECONDS)


async def heard(client: Any) -> Any:
    async with asyncio.timeout(SECONDS):
        return await client.recv()


class FrameworkClaims:
    """Subclass it for a framework, with the application that uvicorn serves."""

    application: ClassVar[str]

    async def test_a_chat_across_two_servers(self, site: Site) -> None:
        """What is said to one process is heard by the clients of both, in order."""
        async with socket(site.one) as ada, socket(site.two) as bob:
            for number in range(30):
                await ada.send(str(number))
            for client in (ada, bob):
                assert [await heard(client) for _ in range(30)] == [str(number) for number in range(30)]

    async def test_a_consumer_mounts_without_a_router(self, site: Site) -> None:
        """The framework's own mount takes as_asgi()."""
        async with socket(site.one, "plain/") as ada, socket(site.two) as bob:
            await bob.send("hello")
            assert await heard(ada) == "hello"

    async def test_rooms_with_names(self, site: Site) -> None:
        """A path gives room and user; messages stay in their room, whatever characters its name has."""
        async with (
            socket(site.one, "ws/rooms/Z%C3%BCrich/ada") as ada,
            socket(site.two, "ws/rooms/Z%C3%BCrich/bob") as bob,
            socket(site.two, "ws/rooms/Bern/carl") as carl,
        ):
            await ada.send('{"message": "hi"}')
            expected = '{"username": "ada", "message": "hi"}'
            assert [await heard(ada), await heard(bob)] == [expected] * 2
            await carl.send('{"message": "only me"}')
            assert await heard(carl) == '{"username": "carl", "message": "only me"}'

    async def test_endpoints_announce_on_both_servers(self, site: Site) -> None:
        """An async endpoint, and a sync one in the thread pool without async_to_sync, reach every socket."""
        async with socket(site.one) as ada, socket(site.two) as bob, httpx.AsyncClient() as browser:
            for kind in ("async", "sync"):
                url = f"http://127.0.0.1:{site.one}/announce/{kind}/from-{kind}"
                assert "announced" in (await browser.get(url, timeout=SECONDS)).text
                assert [await heard(ada), await heard(bob)] == [f"* from-{kind}"] * 2

    async def test_force_disconnect_from_the_command_line(self, site: Site) -> None:
        """One group-send from outside closes the sockets of all processes."""
        async with socket(site.one) as ada, socket(site.two) as bob:
            command = ("group-send", "chat", '{"type": "chat.force_disconnect"}')
            await asyncio.to_thread(site.trunkline, *command)
            for client in (ada, bob):
                with pytest.raises(ConnectionClosed):
                    await heard(client)
                assert client.protocol.close_code == 4001  # websockets 13 has it there only

    async def test_one_socket_by_its_database_row(self, site: Site) -> None:
        """The channel name from a row reaches that one socket from another process; the row goes with it."""
        async with socket(site.one, "ws/inbox") as ada:
            (name,) = site.rows()
            message = '{"type": "chat.message", "text": "Hello there!"}'
            await asyncio.to_thread(site.trunkline, "send", name, message)
            assert await heard(ada) == "Hello there!"
        await asyncio.to_thread(eventually, lambda: not site.rows(), "no rows left")

    async def test_a_worker_beside_the_servers(self, site: Site) -> None:
        """`trunkline worker` does a job in its own process, tells the chat, and ends cleanly on SIGTERM."""
        words = ["-m", "trunkline.cli", "worker", "framework_site:worker", "thumbnails"]
        with Program(words, HERE, site.folder / "worker.log", site.env) as worker:
            async with socket(site.two) as ada:
                job = '{"type": "thumbnail.make", "source": "cat.png"}'
                await asyncio.to_thread(site.trunkline, "send", "thumbnails", job)
                assert await heard(ada) == f"* thumbnail of cat.png made by {worker.process.pid}"
            worker.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.ended) == 0

    async def test_a_path_without_a_consumer_is_refused(self, site: Site) -> None:
        """A websocket to an unknown path is rejected at the handshake."""
        with pytest.raises(InvalidStatus) as refused:
            await socket(site.one, "ws/nowhere")
        assert refused.value.response.status_code == 403

    async def test_workers_of_one_uvicorn(self, tmp_path: Path) -> None:
        """With `uvicorn --workers 2` clients hear each other, whichever worker took their connection."""
        env = {"TRUNKLINE_URL": f"embedded://{tmp_path}/layer"}
        words = ["-m", "uvicorn", self.application, "--port", "0", "--workers", "2"]
        async with AsyncExitStack() as stack:
            server = stack.enter_context(Program(words, HERE, tmp_path / "log", env))
            port = server.port()
            server.printed(r"(?s)(startup complete.*){2}")
            by_pid: dict[str, Any] = {}
            async with asyncio.timeout(SECONDS):
                while len(by_pid) < 2:  # the kernel chooses who accepts
                    client = await stack.enter_async_context(socket(port, "ws/pid"))
                    by_pid[await heard(client)] = client
            one, two = by_pid.values()
            await one.send("hello")
            assert [await heard(one), await heard(two)] == ["hello"] * 2
