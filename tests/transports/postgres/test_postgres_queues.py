"""Queues on PostgreSQL: several frames in one step, none of them out of reach of others for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from faults.postgres_node import Node
from postgres_server import Postgres
from transports.lines import numbers, opened, push
from trunkline import line as lines
from trunkline.errors import ChannelFull
from trunkline.transports.postgres.pace import Pace

#: No poll comes to the help of a wake that was forgotten.
RARE = Pace(heartbeat=60.0, life=180.0)


def nodes(server: Postgres, count: int) -> contextlib.AbstractAsyncContextManager[list[Node]]:
    return opened(lambda prefix: Node(server.url, prefix, _pace=RARE, deadline=10.0), count)


@pytest.mark.usefixtures("quick")
async def test_a_consumer_that_comes_back_at_once_gets_several(postgres: Postgres) -> None:
    """200 frames are pushed in one statement and pulled, one after the other, in far fewer than 200; the order stays."""
    async with nodes(postgres, 2) as (a, b):
        outboxes = [node.transport._link.outbox for node in (a, b)]  # type: ignore[union-attr]
        before = [outbox._number for outbox in outboxes]
        await push(a, 0, 200)
        assert outboxes[0]._number - before[0] == 1
        assert [await b.transport.pull("jobs") for _ in range(200)] == numbers(0, 200)
        assert outboxes[1]._number - before[1] < 30


async def test_what_a_consumer_does_not_ask_for_goes_back(postgres: Postgres) -> None:
    """A quick consumer gets stuck with frames in its hand: another reader has the rest at once."""
    async with nodes(postgres, 3) as (a, b, c):
        await push(a, 0, 60)
        first = [await b.transport.pull("jobs") for _ in range(20)]
        async with asyncio.timeout(10):
            rest = [await c.transport.pull("jobs") for _ in range(40)]
        assert first == numbers(0, 20)
        assert sorted(rest) == numbers(20, 40)


async def test_a_wake_for_a_busy_consumer_is_passed_on(postgres: Postgres) -> None:
    """A quick consumer, still listed as idle, gets stuck: what is pushed then is taken by another reader that waits."""
    async with nodes(postgres, 3) as (a, b, c):
        await push(a, 0, 20)
        assert [await b.transport.pull("jobs") for _ in range(20)] == numbers(0, 20)
        waiting = asyncio.create_task(c.transport.pull("jobs"))
        for number in range(20, 40):
            await push(a, number, 1)
            assert await asyncio.wait_for(waiting, 10) == b"%03d" % number
            waiting = asyncio.create_task(c.transport.pull("jobs"))
        waiting.cancel()


@pytest.mark.usefixtures("quick")
async def test_closing_gives_back_what_nobody_asked_for(postgres: Postgres) -> None:
    """A node closes with frames in its hand: another has them all, in order."""
    async with nodes(postgres, 3) as (a, b, c):
        await push(a, 0, 40)
        first = [await b.transport.pull("jobs") for _ in range(10)]
        await b.transport.close()
        async with asyncio.timeout(10):
            assert first + [await c.transport.pull("jobs") for _ in range(30)] == numbers(0, 40)


@pytest.mark.usefixtures("quick")
async def test_a_pull_that_is_cancelled_with_a_hand_loses_nothing(postgres: Postgres) -> None:
    """Pulls that were given their frame and cancelled in the same turn put it back in front of the others."""
    async with nodes(postgres, 2) as (a, b):
        await push(a, 0, 60)
        got = [await b.transport.pull("jobs") for _ in range(8)]
        for _ in range(15):
            pulls = [asyncio.ensure_future(b.transport.pull("jobs")) for _ in range(3)]
            await pulls[0]
            pulls[1].cancel()
            done = await asyncio.gather(*pulls, return_exceptions=True)
            got += [frame for frame in done if isinstance(frame, bytes)]
        got += [await b.transport.pull("jobs") for _ in range(60 - len(got))]
        assert sorted(got) == numbers(0, 60)


async def test_a_step_is_done_as_far_as_there_is_room(postgres: Postgres) -> None:
    """Pushes of one turn into two queues, from two nodes: the first of each queue are taken, the others are told."""
    async with nodes(postgres, 2) as (a, b):
        await push(a, 0, 2, 5)
        results = await asyncio.gather(
            push(a, 2, 8, 5), push(a, 0, 3, 4, "other"), push(a, 10, 2, 7), push(a, 3, 3, 4, "other")
        )
        full = [[isinstance(result, ChannelFull) for result in some] for some in results]
        assert full == [[False] * 3 + [True] * 5, [False] * 3, [True] * 2, [False, True, True]]
        pushes = [push(node, 20, 20, 8) for node in (a, b)]
        taken = [result for some in await asyncio.gather(*pushes) for result in some if result is None]
        assert len(taken) == 3
        rest = [await b.transport.pull("jobs") for _ in range(8)]
        assert rest[:5] == numbers(0, 5)
        assert [await a.transport.pull("other") for _ in range(4)] == numbers(0, 4)


async def test_a_process_that_stands_still_gives_nothing_back_behind_a_quick_consumer(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops for longer than the patience with a hand, right after it was given one: its consumer has a turn first."""
    monkeypatch.setattr(lines, "_AT_ONCE", 10.0)
    bound, looked = lines.Line._bound, []

    def stand_still(line: Any) -> None:
        bound(line)
        if line._timer is not None:
            time.sleep(0.006)
            line._timer.cancel()
            hand = list(line._hand)
            line._look(0.0)  # what an earlier hand had set, due in this very turn of the loop
            looked.append(hand == list(line._hand))

    async with nodes(postgres, 2) as (a, b):
        await push(a, 0, 100)
        assert [await b.transport.pull("jobs") for _ in range(80)] == numbers(0, 80)
        monkeypatch.setattr(lines.Line, "_bound", stand_still)
        await push(a, 100, 100)
        assert [await b.transport.pull("jobs") for _ in range(120)] == numbers(80, 120)
        assert looked
        assert all(looked)
