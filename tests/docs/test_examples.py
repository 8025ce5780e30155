"""The examples, started by the command at their top, with a browser's requests."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from websockets.asyncio.client import connect

from frameworks.programs import Program

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 15


class Site(NamedTuple):
    """A running example."""

    program: Program
    port: int
    layer: Path

    def http(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def socket(self, path: str) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}{path}", open_timeout=SECONDS)


def command(example: str) -> list[str]:
    """The one command that the example's docstring names."""
    text = (EXAMPLES / example / "main.py").read_text()
    found = re.search(r"^(?:uvicorn main:app.*|python main.py)$", text.split('"""')[1], re.M)
    assert found is not None, f"{example}/main.py does not say how to start it"
    return shlex.split(found[0])


@contextmanager
def running(example: str, folder: Path) -> Iterator[Site]:
    words = ["-m", *command(example), "--port", "0"]
    workers = int(words[words.index("--workers") + 1]) if "--workers" in words else 1
    # Not in pytest's folder: a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="trunkline-") as layer:
        env = {"TRUNKLINE_DIR": layer, "BROKER_DIR": str(folder / "broker")}
        with Program(words, EXAMPLES / example, folder / "log", env) as program:
            port = program.port()
            program.printed(rf"(?s)(startup complete.*){{{workers}}}")
            yield Site(program, port, Path(layer))


def alive(layer: Path) -> list[str]:
    """The processes that still have the layer open: a bound socket each, which the kernel closes with its process."""
    found = []
    for path in (layer / "asgi" / "nodes").glob("*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                found.append(path.name)
    return found


async def heard(client: Any) -> Any:
    async with asyncio.timeout(SECONDS):
        return await client.recv()


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in EXAMPLES.glob("*/main.py")))
def test_the_readme_lists_it(folder: str) -> None:
    """examples/README.md links every example, which has a test here."""
    assert f"({folder}/main.py)" in (EXAMPLES / "README.md").read_text()
    assert f'("{folder}"' in Path(__file__).read_text()


async def chats(site: Site, method: str, announcement: str, body: str = "") -> None:
    """Browsers of one room hear each other and the announcement, whichever worker serves them; another room does not."""
    async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=SECONDS) as browser:
        assert "<form>" in (await browser.get(site.http("/"))).text
        paths = [f"/ws/Z%C3%BCrich/{number}" for number in range(6)]
        room = [await stack.enter_async_context(site.socket(path)) for path in paths]
        other = await stack.enter_async_context(site.socket("/ws/Bern/x"))
        await room[0].send('{"text": "hello"}')
        for client in room:
            assert json.loads(await heard(client)) == {"name": "0", "text": "hello"}
        answer = await browser.request(method, site.http(announcement), content=body)
        assert answer.is_success, answer.text
        for client in room:
            assert json.loads(await heard(client)) == {"name": "*", "text": "back at 5"}
        await other.send('{"text": "only me"}')
        assert json.loads(await heard(other)) == {"name": "x", "text": "only me"}


async def test_starlette_chat(tmp_path: Path) -> None:
    """A consumer mounted in Starlette, and an endpoint that announces what its body says."""
    with running("starlette_chat", tmp_path) as site:
        await chats(site, "POST", "/announce/Zürich", "back at 5")
        assert "Traceback" not in site.program.output


async def test_litestar_chat(tmp_path: Path) -> None:
    """A consumer mounted in Litestar, and a handler that announces."""
    with running("litestar_chat", tmp_path) as site:
        await chats(site, "POST", "/announce/Zürich?text=back+at+5")
        assert "Traceback" not in site.program.output


async def test_django_native(tmp_path: Path) -> None:
    """Trunkline's consumer in Django without Channels, and a plain view that announces."""
    with running("django_native", tmp_path) as site:
        await chats(site, "GET", "/announce/Zürich?text=back+at+5")
        assert "Traceback" not in site.program.output


async def test_django_chat(tmp_path: Path) -> None:
    """Two servers and a worker, migrated and started by one command, are one chat; all of them end with it."""
    words = [*command("django_chat")[1:], "--port", "0"]
    with tempfile.TemporaryDirectory(prefix="trunkline-") as layer:
        env = {"TRUNKLINE_DIR": layer, "CHAT_DATABASE": str(tmp_path / "chat.sqlite3")}
        with Program(words, EXAMPLES / "django_chat", tmp_path / "log", env) as program:
            program.printed(r"(?s)(Listening on TCP address.*){2}", 60)  # after the database was migrated
            program.printed("working on thumbnails")
            ports = re.findall(r"Listening on TCP address 127\.0\.0\.1:(\d+)", program.output)
            async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=SECONDS) as browser:
                assert "<form>" in (await browser.get(f"http://127.0.0.1:{ports[0]}/")).text
                one, two = [
                    await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws/chat/"))
                    for port in ports
                ]
                await one.send("hello")
                assert [await heard(one), await heard(two)] == ["hello", "hello"]
                answer = await browser.post(f"http://127.0.0.1:{ports[1]}/announce/", content="tea")
                assert answer.is_success, answer.text
                assert [await heard(one), await heard(two)] == ["* tea", "* tea"]
                program.process.terminate()
                await asyncio.to_thread(program.ended)
            assert not alive(Path(layer))
            assert "Traceback" not in program.output


async def test_live_dashboard(tmp_path: Path) -> None:
    """What Celery's forked processes say is read by every open dashboard, in order."""
    with running("live_dashboard", tmp_path) as site:
        async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=SECONDS) as browser:
            assert "EventSource" in (await browser.get(site.http("/"))).text
            streams = []
            for _ in range(2):
                stream = await stack.enter_async_context(browser.stream("GET", site.http("/progress/")))
                lines = stream.aiter_lines()
                assert await anext(lines) == ": welcome"
                streams.append(lines)
            answer = await browser.post(site.http("/orders?loaves=3"))
            assert answer.json() == {"order": 1}
            for lines in streams:
                told = []
                while len(told) < 3:
                    line = await anext(lines)
                    if line.startswith("data: "):
                        told.append(json.loads(line.removeprefix("data: ")))
                assert [(each["order"], each["done"], each["of"]) for each in told] == [
                    (1, done, 3) for done in (1, 2, 3)
                ]
                assert told[0]["worker"] != site.program.process.pid
        site.program.process.terminate()
        await asyncio.to_thread(site.program.ended)
        assert not alive(site.layer)


def test_many_processes(tmp_path: Path) -> None:
    """A group and a work queue over processes without a server; the one that is killed is gone, the others go on."""
    folder = EXAMPLES / "many_processes"
    words = command("many_processes")[1:]
    with Program(words, folder, tmp_path / "log") as program:
        program.ended()
        assert program.output == (
            "here: Ada Bob Eve\nsquares: 0 1 4 9 16 25 36 49 64 81\nhere after kill -9: Ada Eve\n"
        )


async def test_presence_cursors(tmp_path: Path) -> None:
    """Everybody on a board is told who is there and where their cursors are, the one who moves excepted."""
    with running("presence_cursors", tmp_path) as site:
        async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=SECONDS) as browser:
            assert "cursor" in (await browser.get(site.http("/"))).text

            async def until(client: Any, names: list[str]) -> dict[str, Any]:
                while sorted((told := json.loads(await heard(client))).get("there", {}).values()) != names:
                    pass
                return told

            names = ["Ada", "Bob", "Eve", "Zoë"]
            clients = [await stack.enter_async_context(site.socket(f"/ws/main/{name}")) for name in names]
            ids = [(await until(client, names))["me"] for client in clients]
            await clients[0].send('{"x": 500, "y": 10, "waves": 1}')
            for client in clients[1:]:
                while "x" not in (told := json.loads(await heard(client))):
                    pass
                assert told == {"id": ids[0], "x": 500, "y": 10, "waves": 1}
            await clients[0].close()
            for client in clients[1:]:
                assert ids[0] not in (await until(client, names[1:]))["there"]
        assert "Traceback" not in site.program.output


async def test_fastapi_chat(tmp_path: Path) -> None:
    """The framework's own endpoints hear each other across workers, and a leaving browser leaves no error behind."""
    with running("fastapi_chat", tmp_path) as site:
        async with AsyncExitStack() as stack, httpx.AsyncClient() as browser:
            assert "<form>" in (await browser.get(site.http("/"), timeout=SECONDS)).text
            room = [await stack.enter_async_context(site.socket("/ws/lobby")) for _ in range(6)]
            async with site.socket("/ws/lobby") as leaving:
                await leaving.send("bye")
            for client in room:
                assert await heard(client) == "bye"
            answer = await browser.post(site.http("/rooms/lobby/messages?text=tea"), timeout=SECONDS)
            assert answer.json() == {"announced": "tea"}
            for client in room:
                assert await heard(client) == "* tea"
        assert "Traceback" not in site.program.output


async def test_bare_asgi(tmp_path: Path) -> None:
    """What is posted to one worker is read by the event streams of all; an unknown path is a 404."""
    with running("bare_asgi", tmp_path) as site:
        async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=SECONDS) as browser:
            assert "EventSource" in (await browser.get(site.http("/"))).text
            assert (await browser.get(site.http("/nowhere"))).status_code == 404
            streams = []
            for _ in range(6):
                stream = await stack.enter_async_context(browser.stream("GET", site.http("/wall")))
                lines = stream.aiter_lines()
                assert await anext(lines) == ": welcome"
                streams.append(lines)
            assert (await browser.post(site.http("/say"), content="one\ntwo")).status_code == 204
            for lines in streams:
                assert [await anext(lines) for _ in range(4)] == ["", "data: one", "data: two", ""]
        assert "Traceback" not in site.program.output


async def test_background_worker(tmp_path: Path) -> None:
    """The worker's progress and answer come back to the browser that asked, and the worker ends with the server."""
    with running("background_worker", tmp_path) as site:
        async with site.socket("/ws") as one, site.socket("/ws") as two, httpx.AsyncClient() as browser:
            assert "<form>" in (await browser.get(site.http("/"), timeout=SECONDS)).text
            await one.send('{"last": 100}')
            await two.send('{"last": 10}')
            assert [json.loads(await heard(one)) for _ in range(2)] == [
                {"percent": 50},
                {"last": 100, "count": 25},
            ]
            assert [json.loads(await heard(two)) for _ in range(2)] == [
                {"percent": 50},
                {"last": 10, "count": 4},
            ]
        assert len(alive(site.layer)) == 2
        site.program.process.terminate()
        await asyncio.to_thread(site.program.ended)
        assert not alive(site.layer)
