"""A worker that acknowledges after: what fails is tried again, what cannot be handled is put aside, nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from trunkline import TransportUnavailable
from trunkline.consumers import AsyncConsumer
from trunkline.errors import ConfigurationError, InvalidName
from trunkline.redelivery import Terms
from trunkline.testing import eventually
from trunkline.testing.plugin import layer_maker
from trunkline.worker import Worker

done: list[Any] = []


@dataclass
class Typed:
    n: int
    type: Literal["job.typed"] = "job.typed"


class Jobs(AsyncConsumer):
    async def job_do(self, event: dict[str, Any]) -> None:
        done.append(event["n"])

    async def job_fail(self, event: dict[str, Any]) -> None:
        """Fails so many times."""
        done.append(event["n"])
        if done.count(event["n"]) <= event["times"]:
            raise LookupError("the job's own")

    async def job_typed(self, event: Typed) -> None:
        done.append(event.n)

    async def job_sleep(self, event: dict[str, Any]) -> None:
        done.append("begun")
        await asyncio.sleep(event["seconds"])
        done.append("finished")


@pytest.fixture(autouse=True)
def empty_list():
    done.clear()


@pytest.fixture(autouse=True)
def leases(layer) -> None:
    if "leases" not in layer.extensions:
        pytest.skip("this layer's transport has no leases")


def worker(layer: Any, **options: Any) -> Worker:
    return Worker(Jobs.as_asgi(), layer, ["jobs"], **{"ack": "after", "backoff": 0.05, **options})


@asynccontextmanager
async def working(*workers: Worker):
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for each in workers:
            each.stop()
        await asyncio.gather(*running)


async def nothing_comes_back(layer: Any, channel: str = "jobs") -> None:
    """Nothing is in the channel, nor put off for a short time."""
    await asyncio.sleep(0.3)
    await layer.send(channel, {"type": "fence"})
    assert await asyncio.wait_for(layer.receive(channel), 10) == {"type": "fence"}


async def test_what_was_handled_is_done(layer) -> None:
    """Each message once, in order; nothing comes back when the leases would have ended."""
    async with working(worker(layer, lease=0.2)):
        for n in range(20):
            await layer.send("jobs", {"type": "job.do", "n": n})
        await eventually(lambda: len(done) == 20, 10)
    assert done == list(range(20))
    await nothing_comes_back(layer)


async def test_what_failed_is_tried_again(layer, caplog) -> None:
    """After a pause that doubles; others are handled meanwhile; at last it is done."""
    async with working(worker(layer, backoff=0.2)):
        began = time.monotonic()
        await layer.send("jobs", {"type": "job.fail", "n": "bad", "times": 2})
        await layer.send("jobs", {"type": "job.do", "n": "good"})
        await eventually(lambda: done.count("bad") == 3, 10)
        assert time.monotonic() - began > 0.55
    assert done == ["bad", "good", "bad", "bad"]
    assert [r.getMessage() for r in caplog.records if "tried again" in r.getMessage()] == [
        f"'job.fail' on channel 'jobs' is tried again in {pause} s (try {number})"
        for number, pause in ((1, 0.2), (2, 0.4))
    ]
    await nothing_comes_back(layer)


async def test_the_last_failure_goes_to_the_dead_letters(layer) -> None:
    """After so many retries: the message, its channel, its tries and its error."""
    message = {"type": "job.fail", "n": 1, "times": 99}
    async with working(worker(layer, retries=2, backoff=0.01, dead_letter="dead")):
        await layer.send("jobs", message)
        letter = await asyncio.wait_for(layer.receive("dead"), 10)
    assert letter == {
        "type": "dead.letter",
        "channel": "jobs",
        "message": message,
        "tries": 3,
        "error": "LookupError: the job's own",
    }
    assert done == [1, 1, 1]
    await nothing_comes_back(layer)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "job.typed", "n": "x"}, "InvalidEvent: Jobs.job_typed got an event of type 'job.typed' on channel "),
        ({"type": "job.unknown"}, "NoHandler: Jobs has no handler for type 'job.unknown'"),
        ({"no": "type"}, "UsageError: it has no type"),
    ],
)  # fmt: skip
async def test_what_will_never_work_is_not_tried_again(layer, message, text) -> None:
    """The mistake is in the message: straight to the dead letters, and the next is handled."""
    async with working(worker(layer, dead_letter="dead")):
        await layer.send("jobs", message)
        letter = await asyncio.wait_for(layer.receive("dead"), 10)
        await layer.send("jobs", {"type": "job.do", "n": "next"})
        await eventually(lambda: done == ["next"], 10)
    assert (letter["message"], letter["tries"]) == (message, 1)
    assert letter["error"].startswith(text)


async def test_without_dead_letters_it_is_logged_and_dropped(layer, caplog) -> None:
    """At last it is gone, which is said."""
    async with working(worker(layer, retries=0)):
        await layer.send("jobs", {"type": "job.fail", "n": 1, "times": 9})
        await eventually(lambda: "is dropped after 1 tries: LookupError: the job's own" in caplog.text, 10)
    await nothing_comes_back(layer)
    assert done == [1]


async def test_a_long_job_keeps_its_lease(layer) -> None:
    """It takes far longer than the lease, another worker is idle: it is handled once."""
    async with working(worker(layer, lease=0.6), worker(layer, lease=0.6)):
        await layer.send("jobs", {"type": "job.sleep", "seconds": 1.5})
        await eventually(lambda: "finished" in done, 20)
    assert done == ["begun", "finished"]
    await nothing_comes_back(layer)


async def test_a_job_beyond_its_grace_goes_to_another_at_once(layer) -> None:
    """A worker that must end gives back what it has in hand, long before the lease ends."""
    first, second = worker(layer, grace=0.1), worker(layer)
    async with working(first):
        await layer.send("jobs", {"type": "job.sleep", "seconds": 30})
        await eventually(lambda: done == ["begun"], 10)
    lease = await asyncio.wait_for(layer.lease("jobs"), 10)
    assert lease.tries == 2
    await lease.ack()
    async with working(second):
        await layer.send("jobs", {"type": "job.do", "n": "next"})
        await eventually(lambda: done == ["begun", "next"], 10)


async def test_a_cancelled_worker_gives_back_too(layer) -> None:
    """run() that is cancelled lets go of its message."""
    running = asyncio.create_task(worker(layer).run())
    await layer.send("jobs", {"type": "job.sleep", "seconds": 30})
    await eventually(lambda: done == ["begun"], 10)
    running.cancel()
    await asyncio.wait([running])
    assert (await asyncio.wait_for(layer.lease("jobs"), 10)).tries == 2


async def test_a_message_that_kills_its_workers_is_put_aside(layer) -> None:
    """Each time its holder is gone without a word: after so many tries it is a dead letter, without another try."""
    message = {"type": "job.do", "n": 1}
    await layer.send("jobs", message)
    for tries in (1, 2):
        lease = await asyncio.wait_for(layer.lease("jobs", 0.1), 10)
        assert lease.tries == tries  # and is never acknowledged
    async with working(worker(layer, retries=1, dead_letter="dead")):
        letter = await asyncio.wait_for(layer.receive("dead"), 10)
    assert (letter["message"], letter["tries"]) == (message, 3)
    assert "died" in letter["error"]
    assert done == []


async def test_dead_letters_without_room_wait(caplog) -> None:
    """The message comes back until the dead letters have room."""
    layer = layer_maker()(channel_capacity={"dead": 1})
    async with layer:
        await layer.send("dead", {"type": "in the way"})
        async with working(worker(layer, retries=0, backoff=0.01, dead_letter="dead")):
            await layer.send("jobs", {"type": "job.fail", "n": 1, "times": 99})
            await eventually(lambda: "cannot be moved to dead" in caplog.text, 10)
            assert await layer.receive("dead") == {"type": "in the way"}
            letter = await asyncio.wait_for(layer.receive("dead"), 10)
    assert letter["message"]["n"] == 1


async def test_a_lost_acknowledgement_is_survived(layer, caplog, monkeypatch) -> None:
    """The layer cannot be told: logged, the next message is handled, and this one comes back."""
    taken: list[Any] = []
    lease = layer.lease

    async def lost() -> bool:
        raise TransportUnavailable("cut")

    async def first_is_lost(channel: str, seconds: float) -> Any:
        found = await lease(channel, seconds)
        if not taken:
            monkeypatch.setattr(found, "ack", lost)
        taken.append(found)
        return found

    monkeypatch.setattr(layer, "lease", first_is_lost)
    async with working(worker(layer, lease=0.5)):
        for n in (1, 2):
            await layer.send("jobs", {"type": "job.do", "n": n})
        await eventually(lambda: done.count(1) == 2, 20)
    assert "was handled, but may be handled again: cut" in caplog.text
    assert sorted(done) == [1, 1, 2]


async def test_concurrency_for_each_channel(layer) -> None:
    """A dict says how many of each channel are handled at once; what it leaves out is 1."""
    most: dict[str, int] = {}
    now: dict[str, int] = {}

    class Counting(AsyncConsumer):
        async def job_do(self, event: dict[str, Any]) -> None:
            name = self.scope["channel"]
            now[name] = now.get(name, 0) + 1
            most[name] = max(most.get(name, 0), now[name])
            await asyncio.sleep(0.02)
            now[name] -= 1
            done.append(name)

    channels = ["many", "one"]
    async with working(Worker(Counting.as_asgi(), layer, channels, concurrency={"many": 3})):
        for _ in range(12):
            for name in channels:
                await layer.send(name, {"type": "job.do"})
        await eventually(lambda: len(done) == 24, 20)
    assert most == {"many": 3, "one": 1}


async def test_arguments_are_checked(layer) -> None:
    """Each error names the argument, what it may be, and what to do."""

    class OldLayer:
        extensions = ["groups"]

    for options, text in (
        ({"ack": "never"}, 'ack is "before" or "after"'),
        ({"ack": "before", "backoff": None, "retries": 2}, 'retries needs ack="after"'),
        ({"dead_letter": "jobs"}, "a channel of this same worker"),
        ({"lease": 0}, "lease is a number of seconds, above 0"),
        ({"lease": "x"}, "lease is a number of seconds"),
        ({"retries": -1}, "retries is a whole number"),
        ({"backoff": -1}, "backoff is a number of seconds, 0 or more"),
        ({"concurrency": {"jops": 2}}, "concurrency names 'jops'"),
        ({"concurrency": {"jobs": 0}}, "concurrency is 1 or more"),
        ({"concurrency": True}, "concurrency is 1 or more"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            worker(layer, **options)
    with pytest.raises(InvalidName):
        worker(layer, dead_letter="a b")
    with pytest.raises(
        ConfigurationError, match=r'needs a layer whose extensions have "leases", and OldLayer'
    ):
        worker(OldLayer())


def test_pauses() -> None:
    """They double, to an hour at most, however many there were."""
    terms = Terms(backoff=1.5)
    assert [terms.pause(tries) for tries in (1, 2, 3, 4)] == [1.5, 3, 6, 12]
    assert terms.pause(10_000) == 3600
    assert Terms(backoff=0).pause(5) == 0


async def test_at_most_once_stays_the_default(layer, caplog) -> None:
    """Without ack="after" a failure is logged, and the message is not tried again."""
    with caplog.at_level(logging.ERROR):
        async with working(Worker(Jobs.as_asgi(), layer, ["jobs"])):
            await layer.send("jobs", {"type": "job.fail", "n": 1, "times": 9})
            await layer.send("jobs", {"type": "job.do", "n": 2})
            await eventually(lambda: len(done) == 2, 10)
    assert done == [1, 2]
    await nothing_comes_back(layer)
