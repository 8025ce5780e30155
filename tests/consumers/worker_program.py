"""A worker process for the tests: an in-memory layer, a few jobs, and lines on stdout about what happens."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from typing import Any

from trunkline import configure
from trunkline.consumers import AsyncConsumer, SyncConsumer
from trunkline.opening import get_channel_layer
from trunkline.worker import Worker, run_processes


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # in one piece: several processes write to the same pipe


def closed(event: dict[str, Any]) -> bool:
    """Whether the job's gate, a file, is not there yet."""
    return "gate" in event and not os.path.exists(event["gate"])


class Jobs(AsyncConsumer):
    async def job_work(self, event: dict[str, Any]) -> None:
        tell(f"begun {event['n']} in {os.getpid()}")
        await asyncio.sleep(event["seconds"])
        while closed(event):
            await asyncio.sleep(0.01)
        tell(f"finished {event['n']}")


class SyncJobs(SyncConsumer):
    def job_work(self, event: dict[str, Any]) -> None:
        tell(f"begun {event['n']} in {os.getpid()}")
        time.sleep(event["seconds"])
        while closed(event):
            time.sleep(0.01)
        tell(f"finished {event['n']}")


class Counting(AsyncConsumer):
    async def job_count(self, event: dict[str, Any]) -> None:
        await asyncio.sleep(0.002)
        tell(f"counted {event['n']}")


async def serve(url: str) -> None:
    configure(url)
    layer = get_channel_layer()
    await Worker(Counting.as_asgi(), layer, ["jobs"], concurrency=3).run()
    await layer.close()
    tell("ended")


async def redeliver(url: str, lease: float) -> None:
    configure(url)
    layer = get_channel_layer()
    tell("ready")
    await Worker(Jobs.as_asgi(), layer, ["jobs"], ack="after", lease=lease, dead_letter="dead").run()
    await layer.close()
    tell("ended")


async def testament(url: str, delay: float) -> None:
    """Send a delayed message and die of SIGKILL."""
    configure(url)
    layer = get_channel_layer()
    began = time.time()
    await layer.send("jobs", {"type": "job.work", "n": 7, "seconds": 0}, delay=delay)
    tell(f"sent {began}")
    os.kill(os.getpid(), signal.SIGKILL)


class Telling(Worker):
    """Says when it was told to stop."""

    def stop(self) -> None:
        if not self._stop.is_set():
            tell("stopping")
        super().stop()


async def work(kind: str, grace: float, seconds: float, **gate: str) -> None:
    configure("memory://")
    layer = get_channel_layer()
    for n in range(2):
        await layer.send("jobs", {"type": "job.work", "n": n, "seconds": seconds, **gate})
    jobs, worker = SyncJobs if kind == "sync" else Jobs, Telling if gate else Worker
    await worker(jobs.as_asgi(), layer, ["jobs", "idle"], grace=grace).run()
    await layer.close()
    tell("ended")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    match sys.argv[1:]:
        case ["work", kind, grace, seconds]:
            asyncio.run(work(kind, float(grace), float(seconds)))
        case ["gated", kind, gate]:
            asyncio.run(work(kind, 60, 0, gate=gate))
        case ["serve", url]:
            asyncio.run(serve(url))
        case ["redeliver", url, lease]:
            asyncio.run(redeliver(url, float(lease)))
        case ["testament", url, delay]:
            asyncio.run(testament(url, float(delay)))
        case ["supervise", count, grace, *command]:
            asyncio.run(run_processes([sys.executable, __file__, *command], int(count), float(grace)))
            tell("supervisor ended")
        case ["stubborn"]:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            tell(f"begun - in {os.getpid()}")
            time.sleep(60)
        case ["hasty"]:
            tell(f"begun - in {os.getpid()}")
            sys.exit(3)
