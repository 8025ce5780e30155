"""layer.sync: calls of many threads, and what becomes of a call that does not end as it should."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from trunkline import ChannelFull, ChannelLayer, LayerClosed, layer_from_url, tracing
from trunkline.sync import background_loop
from trunkline.testing import eventually


@pytest.fixture
def layer() -> Iterator[ChannelLayer]:
    made = layer_from_url("memory://", capacity=20)
    yield made
    made.sync.close()


def run(code: str) -> str:
    """What a script prints that complains of nothing."""
    # Python 3.12 and newer warn of any fork beside threads, which is what one of these is about.
    command = [sys.executable, "-W", "error", "-W", "ignore:This process", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def in_threads(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_each_thread_gets_its_own_answer(layer: ChannelLayer) -> None:
    """Sixteen threads send and receive at once: each gets its own messages in order, and its own errors."""

    def work(number: int) -> None:
        channel = layer.sync.new_channel()
        for round_ in range(50):
            layer.sync.send(channel, {"n": (number, round_)})
            assert layer.sync.receive(channel, timeout=20) == {"n": [number, round_]}
            with pytest.raises(TypeError, match=f"mine-{number}"):
                layer.sync.send(channel, {f"mine-{number}": object()})

    in_threads(work, 16)


def test_an_error_leaves_nothing_behind(layer: ChannelLayer) -> None:
    """What a failed call held is freed with its error, without a look for cycles."""

    class Sent(dict[str, Any]):
        pass

    message = Sent(type="x")
    there = weakref.ref(message)
    for _ in range(20):
        layer.sync.send("full", message)
    gc.disable()
    try:
        with contextlib.suppress(ChannelFull):
            layer.sync.send("full", message)
        layer.sync.flush()  # the loop is done with the call
        del message
        assert there() is None
    finally:
        gc.enable()


def test_a_running_loop_is_not_blocked(layer: ChannelLayer) -> None:
    """Called in a loop's own thread, it says what to write there; no coroutine is left."""

    async def blocks() -> None:
        with pytest.raises(RuntimeError, match=r"write: await layer\.receive"):
            layer.sync.receive("jobs", timeout=1)
        with pytest.raises(RuntimeError, match=r"write: await layer\.group_send"):
            layer.sync.group_send("room", {"type": "x"})

    asyncio.run(blocks())


def test_the_context_comes_along(layer: ChannelLayer) -> None:
    """A tracer sees the context variables of the thread that calls, although the calls share a loop."""
    request: ContextVar[int] = ContextVar("request")
    seen: set[tuple[str, int]] = set()

    class Tracer:
        def sending(self, destination: str, group: bool) -> contextlib.AbstractContextManager[bytes]:
            seen.add((destination, request.get()))
            return contextlib.nullcontext(b"")

        def handling(
            self, destination: str, kind: str, context: bytes
        ) -> contextlib.AbstractContextManager[object]:
            raise NotImplementedError

    def work(number: int) -> None:
        request.set(number)
        for _ in range(20):
            layer.sync.group_send(f"room-{number}", {"type": "x"})

    tracing.set_tracer(Tracer())
    try:
        in_threads(work, 8)
    finally:
        tracing.set_tracer(None)
    assert seen == {(f"room-{number}", number) for number in range(8)}


async def test_a_closed_layer_ends_the_wait(layer: ChannelLayer) -> None:
    """Threads that wait in receive, with and without a timeout, get LayerClosed."""
    channel = await asyncio.to_thread(layer.sync.new_channel)
    waiting = [
        asyncio.create_task(asyncio.to_thread(layer.sync.receive, name, timeout))
        for name in (channel, "jobs")
        for timeout in (None, 60)
    ]
    await eventually(lambda: len(asyncio.all_tasks(background_loop())) == 4, 20, "all wait")
    await asyncio.to_thread(layer.sync.close)
    async with asyncio.timeout(20):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [LayerClosed] * 4


def test_a_signal_takes_no_message() -> None:
    """A handler that raises, as those of Ctrl-C and of Celery's time limits do, ends a receive; nothing is lost."""
    told = run(
        """
import random, signal, threading, time
from trunkline import layer_from_url
layer = layer_from_url("memory://", capacity=1000)
channel = layer.sync.new_channel()
class Interrupted(BaseException):
    pass
def handler(signal, frame):
    if frame.f_code.co_name == "call":
        raise Interrupted
signal.signal(signal.SIGALRM, handler)
def send():
    for number in range(300):
        for name in (channel, "jobs"):
            layer.sync.send(name, {"n": number})
        time.sleep(random.random() / 1000)
threading.Thread(target=send).start()
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
got, interrupted = {channel: [], "jobs": []}, 0
deadline = time.monotonic() + 30
for name, numbers in got.items():
    while len(numbers) < 300 and time.monotonic() < deadline:
        try:
            numbers.append(layer.sync.receive(name)["n"])
        except Interrupted:
            interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(got[channel] == list(range(300)), sorted(got["jobs"]) == list(range(300)), interrupted > 10)
layer.sync.close()
"""
    )
    assert told == "True True True\n"


def test_a_fork_beside_a_call() -> None:
    """A child forked while threads of its parent call and wait has a bridge of its own."""
    told = run(
        """
import os, sys, threading
from trunkline import layer_from_url
layer = layer_from_url("memory://", capacity=10000)
waiting = threading.Thread(target=layer.sync.receive, args=("end",))
waiting.start()
busy = threading.Event()
def work():
    while not busy.is_set():
        layer.sync.group_send("room", {"type": "x"})
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(10):
    if (pid := os.fork()) == 0:
        layer.sync.send("child", {"from": "child"})
        os._exit(layer.sync.receive("child", timeout=20) != {"from": "child"})
    print(os.waitpid(pid, 0)[1], end=" ", flush=True)
busy.set()
layer.sync.send("end", {})
for thread in (waiting, *threads):
    thread.join(20)
print(waiting.is_alive())
"""
    )
    assert told == "0 " * 10 + "False\n"


def test_a_script_ends_while_a_thread_waits() -> None:
    """A daemon thread in receive does not keep its process: it gets LayerClosed, and nothing is complained of."""
    told = run(
        """
import asyncio, contextlib, threading, time
from trunkline import LayerClosed, layer_from_url
from trunkline.sync import background_loop
layer = layer_from_url("memory://")
def wait():
    with contextlib.suppress(LayerClosed):
        layer.sync.receive("jobs")
threading.Thread(target=wait, daemon=True).start()
while not asyncio.all_tasks(background_loop()):
    time.sleep(0.01)
layer.sync.send("other", {"type": "x"})
print("end")
"""
    )
    assert told == "end\n"
