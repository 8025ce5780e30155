"""Queues on Redis: several frames in one request, none of them out of reach of others for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from faults.redis_load import TTL, Node, eventually, unique
from servers import Server
from transports.lines import numbers, opened, push
from trunkline import line as lines
from trunkline.errors import ChannelFull
from trunkline.transports.redis.pace import Pace
from trunkline.transports.redis.scripts import LEAVE, PUSH, TAKE

#: No poll comes to the help of a wake that was forgotten.
RARE = Pace(heartbeat=60.0, life=180.0)

KEYS = ("frames", "deadlines", "idle", "last", "refused")


def nodes(server: Server, count: int) -> contextlib.AbstractAsyncContextManager[list[Node]]:
    return opened(lambda prefix: Node(server, prefix, _pace=RARE, deadline=10.0), count)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("quick")
async def test_a_consumer_that_comes_back_at_once_gets_several(server: Server) -> None:
    """200 frames, pulled one after the other, cost far fewer than 200 requests, and keep their order."""
    async with nodes(server, 2) as (a, b):
        await push(a, 0, 200)
        before = server.command_counts()["evalsha"]
        assert [await b.transport.pull("jobs") for _ in range(200)] == numbers(0, 200)
        assert server.command_counts()["evalsha"] - before < 30


async def test_what_a_consumer_does_not_ask_for_goes_back(server: Server) -> None:
    """A quick consumer gets stuck with frames in its hand: another reader has the rest at once, in order."""
    async with nodes(server, 3) as (a, b, c):
        await push(a, 0, 60)
        first = [await b.transport.pull("jobs") for _ in range(20)]
        async with asyncio.timeout(5):  # its own poll would come after 18 s
            rest = [await c.transport.pull("jobs") for _ in range(40)]
        assert first == numbers(0, 20)
        assert sorted(rest) == numbers(20, 40)


async def test_a_process_that_stands_still_gives_nothing_back_behind_a_quick_consumer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops for longer than the patience with a hand, right after it was given one: each consumer keeps its order."""
    monkeypatch.setattr(lines, "_AT_ONCE", 10.0)
    bound = lines.Line._bound

    def stand_still(line: Any) -> None:
        bound(line)
        time.sleep(0.006)
        line._timer.cancel()
        line._look(0.0)  # what an earlier hand had set, due in this very turn of the loop

    got: list[list[bytes]] = [[], []]

    async def consume(node: Node, into: list[bytes]) -> None:
        while True:
            into.append(await node.transport.pull("jobs"))

    async with nodes(server, 3) as (a, b, c):
        consumers = [asyncio.create_task(consume(node, into)) for node, into in zip((b, c), got, strict=True)]
        await asyncio.gather(*[push(a, first, 20) for first in range(0, 200, 20)])
        monkeypatch.setattr(lines.Line, "_bound", stand_still)
        for first in range(200, 400, 20):
            await push(a, first, 20)
        await eventually(lambda: len(got[0]) + len(got[1]) == 400)
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)
    assert got == [sorted(got[0]), sorted(got[1])]


async def test_a_wake_for_a_busy_consumer_is_passed_on(server: Server) -> None:
    """A quick consumer, still listed as idle, gets stuck: what is pushed then is taken by another reader that waits."""
    async with nodes(server, 3) as (a, b, c):
        await push(a, 0, 20)
        assert [await b.transport.pull("jobs") for _ in range(20)] == numbers(0, 20)
        waiting = asyncio.create_task(c.transport.pull("jobs"))
        for number in range(20, 40):
            await push(a, number, 1)
            assert await asyncio.wait_for(waiting, 5) == b"%03d" % number
            waiting = asyncio.create_task(c.transport.pull("jobs"))
        waiting.cancel()


async def test_slow_consumers_share(server: Server) -> None:
    """Three readers of 5 ms a frame take about a third each of what is pushed at once."""
    async with nodes(server, 4) as (a, *readers):
        got: list[list[bytes]] = [[], [], []]

        async def work(number: int) -> None:
            while True:
                got[number].append(await readers[number].transport.pull("jobs"))
                await asyncio.sleep(0.005)  # the work

        tasks = [asyncio.create_task(work(number)) for number in range(3)]
        await push(a, 0, 90)
        await eventually(lambda: sum(map(len, got)) == 90)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(frame for frames in got for frame in frames) == numbers(0, 90)
        assert min(map(len, got)) >= 15


async def test_closing_gives_back_what_nobody_asked_for(server: Server) -> None:
    """A node closes with frames in its hand: another has them all, in order."""
    async with nodes(server, 3) as (a, b, c):
        await push(a, 0, 50)
        assert [await b.transport.pull("jobs") for _ in range(10)] == numbers(0, 10)
        await b.transport.close()
        async with asyncio.timeout(5):
            assert [await c.transport.pull("jobs") for _ in range(40)] == numbers(10, 40)


async def test_several_pulls_of_a_node_share_a_request(server: Server) -> None:
    """Ten pulls that wait together get ten frames; those that are cancelled, whatever they had, lose none."""
    async with nodes(server, 2) as (a, b):
        for first in range(0, 200, 10):
            pulls = [asyncio.create_task(b.transport.pull("jobs")) for _ in range(10)]
            await asyncio.sleep(0.001 * (first % 3))
            await push(a, first, 10)
            for pull in pulls[::2]:
                pull.cancel()
            done = await asyncio.gather(*pulls, return_exceptions=True)
            got = [frame for frame in done if isinstance(frame, bytes)]
            async with asyncio.timeout(5):
                got += [await b.transport.pull("jobs") for _ in range(10 - len(got))]
            assert sorted(got) == numbers(first, 10)


async def test_a_batch_is_taken_as_far_as_there_is_room(server: Server) -> None:
    """Eight pushes at once into room for five: the first five are taken, the others are told."""
    async with nodes(server, 2) as (a, b):
        outcomes = await push(a, 0, 8, capacity=5)
        assert outcomes[:5] == [None] * 5
        assert all(isinstance(outcome, ChannelFull) for outcome in outcomes[5:])
        assert [await b.transport.pull("jobs") for _ in range(5)] == numbers(0, 5)
        assert await push(a, 8, 5, capacity=5) == [None] * 5
        with pytest.raises(ChannelFull, match="jobs"):
            await a.transport.push("jobs", b"x", 5, TTL)


def test_a_repeated_push_says_the_same(server: Server) -> None:
    """A batch whose answer was lost is answered as before, and appended once; also when it was half refused."""
    root = unique()
    keys = [f"{root}:{key}" for key in KEYS]

    def do(seq: int, *frames: str) -> int:
        answer = server.call("EVAL", PUSH.text, 5, *keys, 5, 60_000, seq, 1, 60_000, *frames)
        assert isinstance(answer, int)
        return answer

    for _ in range(2):
        assert do(1, "a", "b", "c") == 3
    for _ in range(2):
        assert do(2, "d", "e", "f") == 2
    assert do(1, "a", "b", "c") == 3
    assert do(3, "g") == 0
    assert do(2, "d", "e", "f") == 2
    assert server.call("LRANGE", keys[0], 0, -1) == [b"a", b"b", b"c", b"d", b"e"]
    assert server.without_ttl(root) == []


def test_a_repeated_take_gets_the_same(server: Server) -> None:
    """A lost answer loses nothing and doubles nothing; a request that comes late gets nothing; leaving twice is once."""
    root = unique()
    keys = [f"{root}:{key}" for key in KEYS]
    held = [*keys[:3], f"{root}:held"]
    put_off = [f"{root}:schedule", f"{root}:contents"]
    server.call("EVAL", PUSH.text, 5, *keys, 50, 60_000, 1, 1, 60_000, *"abcdefg")

    def do(request: int, count: int) -> list[bytes]:
        answer: list[bytes] = server.call(
            "EVAL", TAKE.text, 6, *held, *put_off, "slot", request, "n slot", 60_000, count, 0
        )
        return answer

    first = do(1, 3)
    assert first[1::2] == [b"a", b"b", b"c"]
    assert do(1, 3) == first
    assert do(3, 2)[1::2] == [b"d", b"e"]
    assert do(2, 2) == []
    back = [first[2], first[0], b"b", b"a"]
    for _ in range(2):
        server.call("EVAL", LEAVE.text, 4, *held, "slot", 4, "n slot", 60_000, *back)
    assert do(3, 2) == do(4, 2) == []
    assert do(5, 9)[1::2] == [b"a", b"b", b"f", b"g"]
    assert server.without_ttl(root) == []


async def test_large_and_small_frames_keep_their_order_on_a_full_socket(server: Server) -> None:
    """Frames of 1 MB and of a few bytes, published, posted and pushed in one turn, arrive whole and as sent."""
    async with nodes(server, 2) as (a, b):
        await b.transport.subscribe("room")
        sent, calls = [], []
        for number in range(20):
            frame = b"%03d" % number + bytes(1 << 20 if number % 3 == 0 else 10)
            sent.append(frame)
            if number % 2:
                calls.append(a.transport.post(b.name, "c!1", frame, 100, TTL))
            else:
                calls.append(a.transport.publish("room", frame, TTL))
            calls.append(a.transport.push("jobs", frame, 100, TTL))
        await asyncio.gather(*calls)
        await eventually(lambda: len(b.frames) == 20)
        assert b.frames == sent
        async with asyncio.timeout(10):
            assert [await b.transport.pull("jobs") for _ in range(20)] == sent


def test_a_wake_on_its_way_is_not_doubled(server: Server) -> None:
    """A push behind one of a moment ago wakes nobody: that has. Behind one that waits longer it does."""
    root = unique()
    keys = [f"{root}:{key}" for key in KEYS]

    def is_heeded(seq: int) -> bool:
        server.call("SADD", keys[2], "nobody slot")
        server.call("EVAL", PUSH.text, 5, *keys, 500, 60_000, seq, 1, 60_000, "x")
        return server.call("DEL", keys[2]) == 0

    def several_at_once(first: int) -> bool:
        assert is_heeded(first)  # the queue was empty
        heeded = is_heeded(first + 1)
        server.call("DEL", *keys[:2])
        return heeded

    # On a busy machine the second may come late.
    assert any(not several_at_once(first) for first in range(1, 201, 2))
    assert is_heeded(301)
    time.sleep(0.01)
    assert is_heeded(302)


def test_a_quick_reader_comes_back_for_a_rest_by_itself(server: Server) -> None:
    """What a reader does in a moment is left to it, of which it is told; it waits on the list while it does no more."""
    root = unique()
    keys = [f"{root}:{key}" for key in KEYS]
    idle = keys[2]
    held = [*keys[:3], f"{root}:held", f"{root}:schedule", f"{root}:contents"]
    server.call("EVAL", PUSH.text, 5, *keys, 50, 60_000, 1, 1, 60_000, *"abcdefghij")

    def take(request: int, count: int, swift: int) -> list[bytes | int]:
        server.call("SADD", idle, "nobody else", "n slot")
        answer: list[bytes | int] = server.call(
            "EVAL", TAKE.text, 6, *held, "slot", request, "n slot", 60_000, count, swift
        )
        return answer[1::2] if len(answer) % 2 == 0 else [*answer[1::2], answer[-1]]

    assert take(1, 2, 8) == [b"a", b"b", 0]
    assert server.call("SMEMBERS", idle) == [b"nobody else"]
    assert take(1, 2, 8) == [b"a", b"b"]  # asked again: others are told
    assert b"nobody else" not in server.call("SMEMBERS", idle)
    server.call("DEL", idle)
    assert take(2, 3, 3) == [b"c", b"d", b"e"]  # too much is left
    assert server.call("EXISTS", idle) == 0
    assert take(3, 9, 4) == [b"f", b"g", b"h", b"i", b"j"]  # too much was given
    assert server.call("SMEMBERS", idle) == [b"nobody else"]
    server.call("EVAL", PUSH.text, 5, *keys, 50, 60_000, 2, 1, 60_000, *"kl")
    assert take(4, 9, 2) == [b"k", b"l"]
    assert sorted(server.call("SMEMBERS", idle)) == [b"n slot", b"nobody else"]
    assert server.without_ttl(root) == []


async def test_nothing_is_left_lying_behind_a_quick_consumer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has done all that it was given and stops, while there is more: another that waits has it, without a poll."""
    monkeypatch.setattr(lines, "_AT_ONCE", 10.0)
    async with nodes(server, 3) as (a, b, c):
        got: list[bytes] = []
        came = asyncio.Event()

        async def consume(node: Node, most: int) -> None:
            for _ in range(most):
                got.append(await node.transport.pull("jobs"))
                came.set()

        await push(a, 0, 64)
        await consume(b, 64)
        others = asyncio.create_task(consume(c, 1000))
        for first in range(0, 400, 20):
            got.clear()
            quick = asyncio.create_task(consume(b, 16))
            line = b.transport._links[0].readers._lines["jobs"]
            await eventually(lambda: line._listed)  # noqa: B023
            line._most, line._swift = 16, 50
            await push(a, first, 20)
            async with asyncio.timeout(10):
                while len(got) < 20:
                    came.clear()
                    await came.wait()
            await cancelled(quick)
            assert sorted(got) == numbers(first, 20)
        await cancelled(others)


@pytest.mark.usefixtures("quick")
async def test_a_wake_that_overtakes_its_answer_is_heeded(server: Server) -> None:
    """The answer that lists the reader as idle comes after the wake by the next push: the reader asks again."""
    async with nodes(server, 2) as (a, b):
        await push(a, 0, 4)
        assert [await b.transport.pull("jobs") for _ in range(3)] == numbers(0, 3)
        link = b.transport._links[0]
        line = link.readers._lines["jobs"]

        def listed() -> int:
            is_member: int = server.call("SISMEMBER", line._keys[2], line._member)
            return is_member

        commands = link._connections[0]._transport
        assert commands is not None
        assert not listed()
        commands.pause_reading()
        pull = asyncio.create_task(b.transport.pull("jobs"))
        await eventually(listed)
        await push(a, 4, 1)
        await eventually(lambda: line._woken)
        commands.resume_reading()
        async with asyncio.timeout(5):
            assert await pull == b"003"
            assert await b.transport.pull("jobs") == b"004"
