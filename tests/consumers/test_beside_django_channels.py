"""Mixed use with Django Channels, in a process of its own because Django's settings are made once per process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_trunkline_works_beside_django_channels():
    """The tests of ``beside_django_channels.py`` pass."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, str(here / "beside_django_channels.py")],
        cwd=here.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_trunklines_consumers_do_not_import_django():
    """Neither Django nor Django Channels is imported by using consumers, routers, worker or communicators."""
    code = """
import asyncio, sys
from trunkline import consumers, routing, worker
from trunkline.testing.communicators import WebsocketCommunicator

class Chat(consumers.AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        raise consumers.StopConsumer

async def main():
    async with WebsocketCommunicator(Chat.as_asgi(), "/") as ws:
        await ws.connect()
        await ws.send_to(text_data="x")
        await ws.wait()

asyncio.run(main())
print([name for name in sys.modules if name.partition(".")[0] in ("django", "channels")])
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")
