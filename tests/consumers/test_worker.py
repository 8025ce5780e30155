"""The worker: one message at a time, none lost to another's error, a stop that loses nothing."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

import pytest

from trunkline import opening
from trunkline.consumers import AsyncConsumer, StopConsumer, SyncConsumer
from trunkline.errors import ConfigurationError, InvalidName, LayerClosed
from trunkline.routing import ChannelNameRouter, ProtocolTypeRouter
from trunkline.testing import eventually
from trunkline.worker import Worker

done: list[Any] = []


@pytest.fixture(autouse=True)
def empty_list():
    done.clear()


class Jobs(AsyncConsumer):
    async def job_do(self, event: dict[str, Any]) -> None:
        done.append(event["n"])

    async def job_fail(self, event: dict[str, Any]) -> None:
        raise LookupError("the job's own")

    async def job_stop(self, event: dict[str, Any]) -> None:
        raise StopConsumer

    async def job_send(self, event: dict[str, Any]) -> None:
        await self.send({"type": "websocket.send", "text": "?"})

    async def job_wait(self, event: dict[str, Any]) -> None:
        done.append("begun")
        await gates[event["gate"]].wait()
        done.append("finished")


class SyncJobs(SyncConsumer):
    def job_do(self, event: dict[str, Any]) -> None:
        done.append(event["n"])

    def job_fail(self, event: dict[str, Any]) -> None:
        raise LookupError("the job's own")


gates: dict[str, asyncio.Event] = {}


@asynccontextmanager
async def working(worker: Worker):
    """Run a worker for the length of a block, then stop it."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        await asyncio.wait([task], timeout=20)
        assert task.done()


@pytest.mark.parametrize("jobs", [Jobs, SyncJobs])
async def test_messages_are_handled_in_order_on_every_channel(jobs, layer):
    """Each message reaches the consumer of its channel, in the order sent, those from before the start too."""
    for n in range(5):
        await layer.send("first", {"type": "job.do", "n": n})
    router = ProtocolTypeRouter(
        {"channel": ChannelNameRouter({"first": jobs.as_asgi(), "second": jobs.as_asgi()})}
    )
    async with working(Worker(router, layer, ["first", "second"])):
        for n in range(5, 10):
            await layer.send("first", {"type": "job.do", "n": n})
        await layer.send("second", {"type": "job.do", "n": "other"})
        await eventually(lambda: len(done) == 11)
    assert [n for n in done if n != "other"] == list(range(10))


async def test_the_scope_names_the_channel(layer):
    """``{"type": "channel", "channel": name}``."""
    scopes = []

    async def application(scope, receive, send):
        scopes.append(scope)
        await receive()

    async with working(Worker(application, layer, ["a.b"])):
        await layer.send("a.b", {"type": "x"})
        await eventually(lambda: scopes)
    assert scopes[0] == {"type": "channel", "channel": "a.b"}


@pytest.mark.parametrize("jobs", [Jobs, SyncJobs])
async def test_an_error_costs_only_its_own_message(jobs, layer, caplog):
    """Later messages and other channels go on; the error is logged once, with traceback, channel and type."""
    async with working(Worker(jobs.as_asgi(), layer, ["first", "second"])):
        for n in range(3):
            await layer.send("first", {"type": "job.fail"})
            await layer.send("first", {"type": "job.do", "n": n})
            await layer.send("second", {"type": "job.do", "n": n})
        await eventually(lambda: len(done) == 6)
    assert Counter(done) == {0: 2, 1: 2, 2: 2}
    records = [record for record in caplog.records if record.exc_info]
    assert len(records) == 3
    assert records[0].name == "trunkline.worker"
    assert "'job.fail' on channel 'first'" in records[0].getMessage()
    assert records[0].exc_info[0] is LookupError


async def test_many_errors_do_not_slow_it_down(layer):
    """The pause after a failure is for instances that took nothing: a hundred bad messages take no time."""
    async with working(Worker(Jobs.as_asgi(), layer, ["first"])):
        for _ in range(90):
            await layer.send("first", {"type": "job.fail"})
        await layer.send("first", {"type": "job.do", "n": 1})
        await eventually(lambda: done)


async def test_a_message_without_a_type_is_logged_and_skipped(layer, caplog):
    """It is named in the log, and the next one is handled."""
    async with working(Worker(Jobs.as_asgi(), layer, ["first"])):
        for message in ({"n": 1}, {"type": 7}, {"type": ""}):
            await layer.send("first", message)
        await layer.send("first", {"type": "job.do", "n": 2})
        await eventually(lambda: done)
    assert done == [2]
    assert [record.getMessage()[:23] for record in caplog.records] == ["skipped a message witho"] * 3


async def test_a_message_nobody_handles_is_logged_with_its_type(layer, caplog):
    """The worker goes on."""
    async with working(Worker(Jobs.as_asgi(), layer, ["first"])):
        await layer.send("first", {"type": "no.such"})
        await layer.send("first", {"type": "job.do", "n": 1})
        await eventually(lambda: done)
    assert "add `async def no_such(self, event)`" in caplog.text


async def test_sending_to_a_client_is_an_error_that_says_what_to_do(layer, caplog):
    """There is no client."""
    async with working(Worker(Jobs.as_asgi(), layer, ["first"])):
        await layer.send("first", {"type": "job.send"})
        await eventually(lambda: "cannot send 'websocket.send'" in caplog.text)
    assert "self.channel_layer.send" in caplog.text


async def test_a_consumer_that_ends_is_followed_by_another(layer):
    """``StopConsumer`` ends the instance, not the work."""
    async with working(Worker(Jobs.as_asgi(), layer, ["first"])):
        for n in range(3):
            await layer.send("first", {"type": "job.stop"})
            await layer.send("first", {"type": "job.do", "n": n})
        await eventually(lambda: done == [0, 1, 2])


async def test_an_application_that_takes_nothing_is_not_restarted_in_a_hurry(layer, caplog):
    """It is tried again after a growing pause, and said so; a stop does not wait for the pause."""
    starts = []

    async def useless(scope, receive, send):
        starts.append(scope)
        if len(starts) % 2:
            raise LookupError("at start")

    async with working(Worker(useless, layer, ["first"])):
        await eventually(lambda: len(starts) == 3)
    assert len(starts) <= 4
    assert "ended before it took a message" in caplog.text
    assert "failed while no message was in hand" in caplog.text


async def test_nothing_is_taken_ahead(layer):
    """While a handler works, the next message stays in the channel, for another worker."""
    gates["a"] = asyncio.Event()
    async with working(Worker(Jobs.as_asgi(), layer, ["first"])):
        await layer.send("first", {"type": "job.wait", "gate": "a"})
        await eventually(lambda: done == ["begun"])
        await layer.send("first", {"type": "job.do", "n": 1})
        assert (await asyncio.wait_for(layer.receive("first"), 10))["n"] == 1
        gates["a"].set()
        await eventually(lambda: done == ["begun", "finished"])


async def test_concurrency_is_how_many_are_handled_at_once(layer):
    """Three at once, and not a fourth."""
    gates["a"] = asyncio.Event()
    async with working(Worker(Jobs.as_asgi(), layer, ["first"], concurrency=3)):
        for _ in range(4):
            await layer.send("first", {"type": "job.wait", "gate": "a"})
        await eventually(lambda: len(done) >= 3)
        assert (await asyncio.wait_for(layer.receive("first"), 10))["type"] == "job.wait"
        assert done == ["begun"] * 3
        gates["a"].set()
        await eventually(lambda: done.count("finished") == 3)


async def test_stop_lets_the_handler_finish_and_takes_nothing_more(layer):
    """The message in hand is finished, the next one stays in the channel, idle channels do not hold it up."""
    gates["a"] = asyncio.Event()
    worker = Worker(Jobs.as_asgi(), layer, ["first", "idle"], grace=30)
    task = asyncio.create_task(worker.run())
    await layer.send("first", {"type": "job.wait", "gate": "a"})
    await eventually(lambda: done == ["begun"])
    await layer.send("first", {"type": "job.do", "n": 1})
    worker.stop()
    await layer.send("idle", {"type": "job.do", "n": 2})
    gates["a"].set()
    await asyncio.wait_for(task, 20)
    assert done == ["begun", "finished"]
    assert (await asyncio.wait_for(layer.receive("first"), 10))["n"] == 1


async def test_stop_does_not_wait_for_an_instance_without_a_message(layer):
    """One that failed has no message in hand any more, and neither has the next until it asks."""
    starts = []

    async def application(scope, receive, send):
        starts.append(True)
        if len(starts) == 1:
            await receive()
            raise LookupError
        await asyncio.get_running_loop().create_future()

    worker = Worker(application, layer, ["first"], grace=30)
    task = asyncio.create_task(worker.run())
    await layer.send("first", {"type": "x"})
    await eventually(lambda: len(starts) == 2)
    worker.stop()
    await asyncio.wait_for(task, 20)


async def test_a_stop_amid_traffic_loses_nothing(layer):
    """Every message sent is either handled or still in the channel."""
    for round_ in range(20):
        done.clear()
        worker = Worker(Jobs.as_asgi(), layer, ["first"])
        task = asyncio.create_task(worker.run())
        for n in range(50):
            await layer.send("first", {"type": "job.do", "n": n})
            if n == 20 + round_:
                worker.stop()
            if n % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.wait_for(task, 20)
        left = []
        while len(left) + len(done) < 50:
            left.append((await asyncio.wait_for(layer.receive("first"), 10))["n"])
        assert done + left == list(range(50))


async def test_a_handler_beyond_its_grace_is_cancelled_with_an_error_that_names_it(layer, caplog):
    """The log names the channel and the type of the message."""
    gates["never"] = asyncio.Event()
    worker = Worker(Jobs.as_asgi(), layer, ["first"], grace=0.05)
    task = asyncio.create_task(worker.run())
    await layer.send("first", {"type": "job.wait", "gate": "never"})
    await eventually(lambda: done == ["begun"])
    worker.stop()
    await asyncio.wait_for(task, 20)
    assert done == ["begun"]
    (record,) = caplog.records
    assert "'job.wait' on channel 'first' did not finish within 0.05 s" in record.getMessage()


async def test_a_handler_that_cancels_itself_is_an_error_like_any_other(layer, caplog):
    """A ``CancelledError`` that nobody asked for does not end the worker."""

    class Confused(Jobs):
        async def job_cancel(self, event: dict[str, Any]) -> None:
            raise asyncio.CancelledError

    async with working(Worker(Confused.as_asgi(), layer, ["first"])):
        await layer.send("first", {"type": "job.cancel"})
        await layer.send("first", {"type": "job.do", "n": 1})
        await eventually(lambda: done == [1])
    assert "cancelled itself" in caplog.text


async def test_a_closed_layer_ends_the_worker_with_its_error(layer):
    """Without its layer a worker has nothing to wait for."""
    task = asyncio.create_task(Worker(Jobs.as_asgi(), layer, ["first", "second"]).run())
    await layer.send("first", {"type": "job.do", "n": 1})
    await eventually(lambda: done)
    await layer.close()
    with pytest.raises(LayerClosed):
        await asyncio.wait_for(task, 20)


async def test_cancelling_run_is_prompt(layer):
    """The handler at work is cancelled, without grace."""
    gates["never"] = asyncio.Event()
    task = asyncio.create_task(Worker(Jobs.as_asgi(), layer, ["first"], grace=60).run())
    await layer.send("first", {"type": "job.wait", "gate": "never"})
    await eventually(lambda: done == ["begun"])
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()


async def test_a_worker_that_was_stopped_before_it_ran_does_not_run(layer):
    """``stop`` may come at any time."""
    await layer.send("first", {"type": "job.do", "n": 1})
    worker = Worker(Jobs.as_asgi(), layer, ["first"])
    worker.stop()
    await asyncio.wait_for(worker.run(), 20)
    assert done == []


async def test_signals_are_wired_for_the_run_only(layer):
    """SIGTERM stops it; before and after, the process has its own handlers."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        task = asyncio.create_task(Worker(Jobs.as_asgi(), layer, ["first"]).run())
        await layer.send("first", {"type": "job.do", "n": 1})
        await eventually(lambda: done)
        signal.raise_signal(number)
        await asyncio.wait_for(task, 20)
        done.clear()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_it_runs_in_another_thread_without_signals():
    """Only the main thread may wire signals; elsewhere ``stop`` is the way."""
    from trunkline.layers import InMemoryChannelLayer

    ended = []

    def work() -> None:
        async def main() -> None:
            layer = InMemoryChannelLayer()
            with opening.override("default", layer):
                worker = Worker(Jobs.as_asgi(), layer, ["first"])
                await layer.send("first", {"type": "job.do", "n": 1})
                task = asyncio.create_task(worker.run())
                await eventually(lambda: done)
                worker.stop()
                await task
            await layer.close()
            ended.append(True)

        asyncio.run(main())

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.get_running_loop().run_in_executor(None, thread.join, 10)
    assert ended


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"channel_layer": None}, ConfigurationError, "configure"),
        ({"channels": []}, ConfigurationError, "at least one channel"),
        ({"channels": "mail"}, TypeError, r"\['mail'\]"),
        ({"channels": ["no name"]}, InvalidName, "no name"),
        ({"grace": -1}, ConfigurationError, "grace"),
        ({"concurrency": 0}, ConfigurationError, "concurrency"),
    ],
)
def test_a_worker_that_cannot_work_is_refused_at_once(change, error, words):
    """The error names the argument."""
    arguments = {"application": Jobs.as_asgi(), "channel_layer": object(), "channels": ["mail"], **change}
    with pytest.raises(error, match=words):
        Worker(**arguments)
