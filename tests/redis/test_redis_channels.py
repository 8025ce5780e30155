"""Whole applications over a real server: Django Channels' consumers, and the demo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from browser.demo_process import Demo, running
from frameworks.programs import environment
from servers import Server


def test_django_channels(server: Server) -> None:
    """The tests of ``with_django_channels.py`` pass: the documented chat, and CHANNEL_LAYERS with every key."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(here / "with_django_channels.py")],
        cwd=here.parents[1],
        env=environment({"REDIS_URL": server.url}),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


async def line(socket: ClientConnection, **wanted: Any) -> dict[str, Any]:
    """Wait for a line with these values; others are skipped."""
    while True:
        found: dict[str, Any] = json.loads(await socket.recv())
        if found.items() >= wanted.items():
            return found


async def join(demo: Demo, name: str, not_on: int = 0) -> tuple[ClientConnection, dict[str, Any]]:
    """A window in room ``redis``, on any server process but one."""
    for _ in range(60):
        socket = await websockets.connect(demo.url.replace("http:", "ws:") + "chat")
        hello = json.loads(await socket.recv())
        if hello["server"] != not_on:
            await socket.send(json.dumps({"do": "join", "room": "redis", "name": name}))
            await line(socket, **{"is": "joined", "by": hello["id"]})
            return socket, hello
        await socket.close()
    raise AssertionError(f"60 connections in a row went to server {not_on}")


@pytest.mark.timeout(90)
async def test_the_demo(server: Server, prefix: str) -> None:
    """`trunkline demo` with TRUNKLINE_URL: a message crosses its two server processes by way of the server."""
    with running(TRUNKLINE_URL=f"{server.url}?prefix={prefix}") as demo:
        ada, hello = await join(demo, "Ada")
        grace, other = await join(demo, "Grace", not_on=hello["server"])
        assert hello["pid"] != other["pid"]
        for number in range(5):
            await ada.send(json.dumps({"do": "say", "text": f"Grüezi {number}", "ref": number}))
            assert (await line(grace, **{"is": "message"}))["text"] == f"Grüezi {number}"
        nodes = [key for key in server.call("KEYS", f"{prefix}/*") if b"}a:" in key]
        assert len(nodes) >= 3  # two servers and a worker
        await ada.close()
        await grace.close()
