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
    found = re.search(r"^uvicorn main:app.*$", text.split('"""')[1], re.M)
    assert found is not None, f"{example}/main.py does not say how to start it"
    return shlex.split(found[0])


@contextmanager
def running(example: str, folder: Path) -> Iterator[Site]:
    words = ["-m", *command(example), "--port", "0"]
    workers = int(words[words.index("--workers") + 1]) if "--workers" in words else 1
    # Not in pytest's folder: a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="trunkline-") as layer:
        env = {"TRUNKLINE_DIR": layer}
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
    """examples/README.md links every example, which has a page and a test here."""
    assert f"({folder}/main.py)" in (EXAMPLES / "README.md").read_text()
    assert (EXAMPLES / folder / "index.html").exists()
    assert f'running("{folder}"' in Path(__file__).read_text()


async def test_starlette_chat(tmp_path: Path) -> None:
    """Browsers of one room hear each other and the announcement, whichever worker serves them; another room does not."""
    with running("starlette_chat", tmp_path) as site:
        async with AsyncExitStack() as stack, httpx.AsyncClient() as browser:
            assert "<form>" in (await browser.get(site.http("/"), timeout=SECONDS)).text
            paths = [f"/ws/Z%C3%BCrich/{number}" for number in range(6)]
            room = [await stack.enter_async_context(site.socket(path)) for path in paths]
            other = await stack.enter_async_context(site.socket("/ws/Bern/x"))
            await room[0].send('{"text": "hello"}')
            for client in room:
                assert json.loads(await heard(client)) == {"name": "0", "text": "hello"}
            answer = await browser.post(site.http("/announce/Zürich"), content="back at 5", timeout=SECONDS)
            assert answer.text == "announced\n"
            for client in room:
                assert json.loads(await heard(client)) == {"name": "*", "text": "back at 5"}
            await other.send('{"text": "only me"}')
            assert json.loads(await heard(other)) == {"name": "x", "text": "only me"}


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
