"""A live dashboard, fed by Celery tasks. In this folder:

uvicorn main:app --timeout-graceful-shutdown 1

The web process starts the Celery worker here, so that one command shows both. Elsewhere it is a service of its own:
`celery -A tasks worker`.
"""

import asyncio
import contextlib
import itertools
import sys
from pathlib import Path

import tasks
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route

from trunkline.consumers import AsyncHttpConsumer

HERE = Path(__file__).parent
orders = itertools.count(1)


class Progress(AsyncHttpConsumer):
    """What all tasks say, as server-sent events."""

    async def handle(self, body):
        await self.channel_layer.group_add("dashboard", self.channel_name)
        await self.send_headers(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        await self.send_body(b": welcome\n\n", more_body=True)

    async def order_progress(self, event):
        line = JSONResponse({name: event[name] for name in ("order", "done", "of", "worker")}).body
        await self.send_body(b"data: " + line + b"\n\n", more_body=True)


async def page(request):
    """The dashboard in a browser."""
    return FileResponse(HERE / "index.html")


async def order(request):
    """Give a task to Celery: curl -X POST 'localhost:8000/orders?loaves=20'"""
    number, loaves = next(orders), min(int(request.query_params.get("loaves", 10)), 100)
    await run_in_threadpool(tasks.bake.delay, number, loaves)
    return JSONResponse({"order": number})


@contextlib.asynccontextmanager
async def celery(app):
    """A worker with two processes, for as long as the web server runs."""
    words = ["-m", "celery", "-A", "tasks", "worker", "--concurrency", "2", "--loglevel", "warning"]
    # A session of its own: Celery hangs when Ctrl-C in a terminal reaches its processes as well.
    process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=HERE, start_new_session=True)
    yield
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


app = Starlette(
    lifespan=celery,
    routes=[
        Route("/", page),
        Route("/orders", order, methods=["POST"]),
        Mount("/progress", Progress.as_asgi()),
    ],
)
