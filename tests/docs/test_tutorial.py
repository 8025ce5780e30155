"""The programs of the tutorial, in two processes as its last step says."""

from __future__ import annotations

import asyncio
import re
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from frameworks.programs import Program

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "application"), [("tutorial", "chat:app"), ("tutorial-django", "mysite.asgi:application")]
)
async def test_two_processes(page: str, application: str, tmp_path: Path) -> None:
    """A room is heard in both processes, from a socket and from outside; another room is not."""
    text = (DOCS / f"{page}.md").read_text()
    assert f"uvicorn {application} --port 8001 &\nuvicorn {application} --port 8002 &\n" in text
    for name, code in re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", text, re.S):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    words = ["-m", "uvicorn", application, "--port", "0"]
    with tempfile.TemporaryDirectory(prefix="trunkline-") as layer:
        env = {"TRUNKLINE_DIR": layer}
        with (
            Program(words, tmp_path, tmp_path / "log1", env) as one,
            Program(words, tmp_path, tmp_path / "log2", env) as two,
        ):
            ports = [one.port(), two.port()]
            async with (
                AsyncExitStack() as stack,
                asyncio.timeout(60),
                httpx.AsyncClient(timeout=30) as browser,
            ):
                assert "<form>" in (await browser.get(f"http://127.0.0.1:{ports[0]}/")).text
                room = [
                    await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws/garden"))
                    for port in ports
                ]
                other = await stack.enter_async_context(connect(f"ws://127.0.0.1:{ports[1]}/ws/cellar"))
                await room[0].send("hello")
                assert [await socket.recv() for socket in room] == ["hello", "hello"]
                answer = await browser.post(f"http://127.0.0.1:{ports[1]}/rooms/garden?text=tea")
                assert answer.is_success, answer.text
                assert [await socket.recv() for socket in room] == ["* tea", "* tea"]
                await other.send("only here")
                assert await other.recv() == "only here"
