"""Workers that are killed while they handle a message, and senders that are killed after a delayed one: real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from consumers.test_worker_processes import Program
from servers import Server, servers
from trunkline.opening import layer_from_url


@pytest.fixture(params=["embedded", *sorted(servers())])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Every layer that several processes can share."""
    if request.param == "embedded":
        yield f"embedded://{tmp_path / 'layer'}"
        return
    server = Server(request.param, tmp_path / "server")
    yield server.url
    server.kill()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def begin(*arguments: object) -> Program:
        programs.append(Program(*arguments))
        return programs[-1]

    yield begin
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()
        program.reader.join(5)
        program.process.stdout.close()


async def test_a_killed_worker_loses_nothing(url, start) -> None:
    """kill -9 in the middle of a message: another worker gets it, once, after the lease; the rest goes on meanwhile."""
    layer = layer_from_url(url)
    victim = start("redeliver", url, 3)
    await asyncio.to_thread(victim.until, lambda line: line == "ready")
    await layer.send("jobs", {"type": "job.work", "n": 0, "seconds": 60})
    pid = await asyncio.to_thread(victim.begun)
    heir = start("redeliver", url, 3)
    for n in (1, 2):
        await layer.send("jobs", {"type": "job.work", "n": n, "seconds": 0})
        await asyncio.to_thread(heir.until, lambda line, n=n: line == f"finished {n}")
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    await asyncio.to_thread(heir.until, lambda line: line.startswith("begun 0"))
    assert time.monotonic() - killed > 1
    # This one is killed, too, and this process is the third: the tries are counted across all of them.
    os.kill(heir.process.pid, signal.SIGKILL)
    lease = await asyncio.wait_for(layer.lease("jobs"), 20)
    assert (lease.message["n"], lease.tries) == (0, 3)
    assert await lease.ack()
    await layer.send("jobs", {"type": "fence"})
    assert await asyncio.wait_for(layer.receive("jobs"), 10) == {"type": "fence"}
    await layer.close()


async def test_a_message_that_kills_is_put_aside(url, start) -> None:
    """Every worker that takes it dies: after 1 + retries deaths it is a dead letter, and the next worker lives."""
    layer = layer_from_url(url)
    await layer.send("jobs", {"type": "job.work", "n": 0, "seconds": 30})
    for tries in range(1, 5):
        lease = await asyncio.wait_for(layer.lease("jobs", 0.2), 20)
        assert lease.tries == tries  # and this process does not prolong it, as if it were dead
    survivor = start("redeliver", url, 5)
    letter = await asyncio.wait_for(layer.receive("dead"), 20)
    assert (letter["message"]["n"], letter["tries"]) == (0, 5)
    survivor.process.terminate()
    assert await asyncio.to_thread(survivor.ended) == 0
    assert not any(line.startswith("begun") for line in survivor.lines)
    await layer.close()


async def test_a_delay_outlives_a_killed_sender(url, start) -> None:
    """The sender is killed right after send: the message is handled when it is due, not before."""
    layer = layer_from_url(url)
    sender = start("testament", url, 1.0)
    sent = float((await asyncio.to_thread(sender.until, lambda line: line.startswith("sent"))).split()[1])
    assert await asyncio.to_thread(sender.ended) == -signal.SIGKILL
    message = await asyncio.wait_for(layer.receive("jobs"), 20)
    assert message["n"] == 7
    assert time.time() - sent > 0.95
    await layer.close()
