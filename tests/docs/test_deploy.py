"""The servers of docs/deploy.md, started by the commands that stand there."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect

from frameworks.programs import Program
from servers import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
COMMANDS = dict(re.findall(r"^\| (\w+) \| `(.*?)` \|", PAGE, re.M))
PORT = {
    "uvicorn": "--port {port}",
    "gunicorn": "--bind 127.0.0.1:{port} --preload",
    "granian": "--port {port}",
    "hypercorn": "--bind 127.0.0.1:{port}",
    "daphne": "--port {port}",
}


async def connected(port: int) -> ClientConnection:
    """A websocket, as soon as the server is up."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await connect(f"ws://127.0.0.1:{port}/ws")
            except OSError:
                await asyncio.sleep(0.05)


def test_every_server_is_tested() -> None:
    assert COMMANDS.keys() == PORT.keys()


@pytest.mark.parametrize("server", COMMANDS)
async def test_server(server: str, tmp_path: Path) -> None:
    """Websockets of all its processes hear each other, and it ends on SIGTERM."""
    found = re.search(r"```python\n# main\.py\n(.*?)```", PAGE, re.S)
    assert found is not None
    (tmp_path / "main.py").write_text(found[1])
    port = free_port()
    name, *words = shlex.split(f"{COMMANDS[server]} {PORT[server].format(port=port)}")
    with tempfile.TemporaryDirectory(prefix="trunkline-") as layer:
        program = [Path(sys.executable).parent / name, *words]
        with Program(program, tmp_path, tmp_path / "log", {"TRUNKLINE_DIR": layer}) as running:
            processes = 2 if "--workers 2" in COMMANDS[server] else 1
            async with AsyncExitStack() as stack, asyncio.timeout(60):
                clients = []
                while len(list(Path(layer, "asgi", "nodes").glob("*.sock"))) < processes:
                    clients.append(await stack.enter_async_context(await connected(port)))
                    await asyncio.sleep(0.02)
                await clients[0].send("hello")
                assert [await client.recv() for client in clients] == ["hello"] * len(clients)
            running.process.terminate()
            await asyncio.to_thread(running.process.wait, 20)
            assert "Traceback" not in running.output
