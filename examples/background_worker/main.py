"""Work that takes long goes to a process of its own, and its answers come back to the browser that asked. In this folder:

uvicorn main:app

The web process starts the worker here, so that one command shows both. Elsewhere they are two services: `uvicorn main:web`
and `trunkline worker main:worker primes --processes 4`.
"""

import asyncio
import contextlib
import sys
from pathlib import Path

from asgiref.sync import async_to_sync

import trunkline
from trunkline.consumers import AsyncHttpConsumer, AsyncJsonWebsocketConsumer, SyncConsumer
from trunkline.routing import ChannelNameRouter, PathRouter, ProtocolTypeRouter

PAGE = Path(__file__).with_name("index.html").read_bytes()
trunkline.configure("embedded:")  # all processes started in this folder meet


class Primes(SyncConsumer):
    """Runs in the worker. `def` handlers may block: nobody else waits for this process."""

    def primes_count(self, event):
        found, last = [], event["last"]
        for number in range(2, last + 1):
            if all(number % prime for prime in found if prime * prime <= number):
                found.append(number)
            if number == last // 2:
                self._tell(event, {"type": "primes.progress", "percent": 50})
        self._tell(event, {"type": "primes.done", "last": last, "count": len(found)})

    def _tell(self, event, message):
        async_to_sync(self.channel_layer.send)(event["reply_to"], message)


class Browser(AsyncJsonWebsocketConsumer):
    """Runs in the web process: passes the job on and is free again at once."""

    async def receive_json(self, content):
        job = {
            "type": "primes.count",
            "last": min(int(content["last"]), 20_000),
            "reply_to": self.channel_name,
        }
        try:
            await self.channel_layer.send("primes", job)
        except trunkline.ChannelFull:
            await self.send_json({"error": "too many jobs are waiting, please try again"})

    async def primes_progress(self, event):
        await self.send_json({"percent": event["percent"]})

    async def primes_done(self, event):
        await self.send_json({"last": event["last"], "count": event["count"]})


class Page(AsyncHttpConsumer):
    """The form in a browser."""

    async def handle(self, body):
        await self.send_response(200, PAGE, headers={"content-type": "text/html; charset=utf-8"})


async def lifespan(scope, receive, send):
    """Start the worker with the web server, and end it with the web server."""
    await receive()
    words = [sys.executable, "-m", "trunkline.cli", "worker", "main:worker", "primes"]
    process = await asyncio.create_subprocess_exec(*words, cwd=Path(__file__).parent)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    with contextlib.suppress(ProcessLookupError):  # Ctrl-C in a terminal reaches it too
        process.terminate()
    await process.wait()
    await send({"type": "lifespan.shutdown.complete"})


worker = ChannelNameRouter({"primes": Primes.as_asgi()})
web = ProtocolTypeRouter(
    {"http": PathRouter({"/": Page.as_asgi()}), "websocket": PathRouter({"/ws": Browser.as_asgi()})}
)
app = ProtocolTypeRouter({**web.application_mapping, "lifespan": lifespan})
