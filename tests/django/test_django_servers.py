"""The example project as it runs for real: two daphne processes, workers, commands, and websocket clients."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from frameworks.programs import ROOT, Program, daphne, environment, eventually

SECONDS = 15
PROJECT = ROOT / "examples" / "django_chat"


class Site(NamedTuple):
    """Two servers of one project."""

    one: int
    two: int
    folder: Path
    env: dict[str, str]

    def manage(self, *words: str) -> str:
        """Run a management command to its end."""
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=PROJECT,
            env=environment(self.env),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self, query: str) -> list[Any]:
        """Read the project's database."""
        with closing(sqlite3.connect(self.env["CHAT_DATABASE"])) as database:
            return database.execute(query).fetchall()

    def program(self, *words: str) -> Program:
        """A management command that runs until its block ends."""
        return Program(["manage.py", *words], PROJECT, self.folder / f"{words[-1]}.log", self.env)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    env = {"TRUNKLINE_DIR": str(folder / "layer"), "CHAT_DATABASE": str(folder / "chat.sqlite3")}
    Site(0, 0, folder, env).manage("migrate", "-v0")
    logs = [folder / "one.log", folder / "two.log"]
    application = "chatsite.asgi:application"
    with daphne(application, PROJECT, logs[0], env) as one, daphne(application, PROJECT, logs[1], env) as two:
        yield Site(one.port(), two.port(), folder, env)


def chat(port: int, path: str = "chat") -> connect:
    return connect(f"ws://127.0.0.1:{port}/ws/{path}/", open_timeout=SECONDS)


async def heard(socket: Any) -> Any:
    async with asyncio.timeout(SECONDS):
        return await socket.recv()


async def test_a_chat_across_two_servers(site: Site) -> None:
    """What is said to one daphne is heard by the clients of both, and a client that left hears nothing more."""
    async with chat(site.one) as ada:
        async with chat(site.two) as bob:
            await ada.send("hello from one")
            assert [await heard(ada), await heard(bob)] == ["hello from one"] * 2
            for number in range(30):
                await bob.send(str(number))
            for socket in (ada, bob):
                assert [await heard(socket) for _ in range(30)] == [str(number) for number in range(30)]
        await ada.send("alone")
        assert await heard(ada) == "alone"


async def test_a_view_of_one_server_announces_on_both(site: Site) -> None:
    """A sync Django view served by daphne reaches the sockets of the other process."""
    async with chat(site.one) as ada, chat(site.two) as bob, httpx.AsyncClient() as browser:
        answer = await browser.post(
            f"http://127.0.0.1:{site.one}/announce/", content="back at 5", timeout=SECONDS
        )
        assert answer.text == "announced\n"
        assert [await heard(ada), await heard(bob)] == ["* back at 5"] * 2


async def test_a_management_command_throws_everyone_out(site: Site) -> None:
    """chat.force_disconnect from a command in a process of its own closes the sockets of both servers."""
    async with chat(site.one) as ada, chat(site.two) as bob:
        await asyncio.to_thread(site.manage, "force_disconnect")
        for socket in (ada, bob):
            with pytest.raises(ConnectionClosed):
                await heard(socket)
            assert socket.protocol.close_code == 4001


async def test_a_command_reaches_one_socket_by_its_database_row(site: Site) -> None:
    """`manage.py trunkline send NAME` with the channel name of a row reaches that socket only."""
    async with chat(site.one, "inbox") as ada:
        ((name,),) = site.rows("select channel_name from chatsite_client")
        async with chat(site.two, "inbox") as bob:
            text = '{"type": "chat.message", "text": "%s"}'
            await asyncio.to_thread(site.manage, "trunkline", "send", name, text % "Hello there!")
            assert await heard(ada) == "Hello there!"
            ((other,),) = site.rows(
                f"select channel_name from chatsite_client where channel_name != '{name}'"
            )
            await asyncio.to_thread(site.manage, "trunkline", "send", other, text % "and you")
            assert await heard(bob) == "and you"
    await asyncio.to_thread(
        eventually, lambda: site.rows("select count(*) from chatsite_client") == [(0,)], "no rows left"
    )


@pytest.mark.parametrize("command", ["runworker", "trunkline worker"])
async def test_a_worker_takes_jobs(site: Site, command: str) -> None:
    """Jobs sent by another process are done, once, in the worker's process; the chat hears of it; SIGTERM ends it."""
    before = len(site.rows("select * from chatsite_thumbnail"))
    with site.program(*command.split(), "thumbnails") as worker:
        async with chat(site.two) as ada:
            job = '{"type": "thumbnail.make", "source": "cat.png"}'
            await asyncio.to_thread(site.manage, "trunkline", "send", "thumbnails", job)
            assert await heard(ada) == "* thumbnail of cat.png made"
        rows = site.rows("select made_by from chatsite_thumbnail")[before:]
        assert rows == [(worker.process.pid,)]
        if command == "trunkline worker":
            worker.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.ended) == 0
            assert "working on thumbnails" in worker.output
            assert "Traceback" not in worker.output


async def test_both_kinds_of_worker_share_one_queue(site: Site) -> None:
    """With runworker and two processes of our worker on a channel, each of 20 jobs is done exactly once."""
    before = len(site.rows("select * from chatsite_thumbnail"))
    jobs = "".join(
        f'send(["trunkline", "send", "thumbnails", \'{{"type": "thumbnail.make", "source": "{n}"}}\']);'
        for n in range(20)
    )
    script = f"import os; from django.core.management import call_command; send = lambda words: call_command(*words); {jobs}"
    with (
        site.program("runworker", "thumbnails") as one,
        site.program("trunkline", "worker", "--processes", "2", "thumbnails") as two,
    ):
        assert one.process.pid != two.process.pid
        await asyncio.to_thread(site.manage, "shell", "-c", script)
        done = await asyncio.to_thread(
            eventually,
            lambda: (
                (rows := site.rows("select source, made_by from chatsite_thumbnail")[before:])[19:] and rows
            ),
            "20 thumbnails",
        )
        assert sorted(int(source) for source, _ in done) == list(range(20))
        assert two.process.pid not in {pid for _, pid in done}  # it only keeps its two processes alive


async def test_the_members_of_a_killed_server_are_no_burden(site: Site) -> None:
    """After kill -9 of a server with members, the others go on at once, and hear a newly started server."""
    async with chat(site.one) as ada:
        third = daphne("chatsite.asgi:application", PROJECT, site.folder / "three.log", site.env)
        with third:
            async with chat(third.port()) as bob:
                await bob.send("hi")
                assert [await heard(ada), await heard(bob)] == ["hi"] * 2
                third.process.kill()
                third.process.wait()
                await ada.send("bob?")
                assert await heard(ada) == "bob?"
        async with chat(site.two) as carl:
            await carl.send("bob is gone")
            assert [await heard(ada), await heard(carl)] == ["bob is gone"] * 2
