"""What is not ours, what is damaged, and clocks that are wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from servers import Server
from trunkline.layers import RedisChannelLayer
from trunkline.testing import eventually

PROGRAM = """
import asyncio, sys, time
real, skew = time.time, float(sys.argv[1])
time.time = lambda: real() + skew
from trunkline.layers import RedisChannelLayer

async def main():
    layer = RedisChannelLayer([sys.argv[2]], prefix=sys.argv[3], expiry=30)
    mine = await layer.new_channel()
    await layer.group_add("clocks", mine)
    print(mine, flush=True)
    await layer.send("clocks.q", {"skew": skew})
    for _ in range(3):
        message = await layer.receive(mine)
        print(message["from"], flush=True)
        await layer.send(message["back"], {"skew": skew})
    await layer.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("skew", [-120, 120])
async def test_wrong_clocks(server: Server, prefix: str, skew: int) -> None:
    """A process whose clock is two minutes off loses nothing and expires nothing of anybody."""
    layer = RedisChannelLayer([server.url], prefix=prefix, expiry=30)
    here = await layer.new_channel()
    await layer.group_add("clocks", here)
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(skew), server.url, prefix), stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    there = (await other.stdout.readline()).decode().strip()
    async with asyncio.timeout(20):
        assert await layer.receive("clocks.q") == {"skew": skew}
        for number, send in enumerate((layer.group_send, layer.send, layer.send)):
            await send("clocks" if number == 0 else there, {"from": f"here {number}", "back": here})
            if number == 0:
                assert (await layer.receive(here))["from"] == "here 0"
            assert (await other.stdout.readline()).decode().strip() == f"here {number}"
            assert await layer.receive(here) == {"skew": skew}
        assert await other.wait() == 0
    assert layer.stats().expired == 0
    await layer.close()


@pytest.mark.parametrize("junk", [b"", b"x", b"\0" * 40, b"\xff" + bytes(range(199)), b"\xa8" + b"\x01" * 60])
async def test_poison(server: Server, prefix: str, junk: bytes) -> None:
    """Whatever somebody else puts where our frames travel is dropped and counted; what comes after it arrives."""
    a = RedisChannelLayer([server.url], prefix=prefix)
    b = RedisChannelLayer([server.url], prefix=prefix)
    member = await b.new_channel()
    await b.group_add("poison", member)
    await a.group_send("poison", {"n": 0})
    assert await b.receive(member) == {"n": 0}
    topics = list(server.call("PUBSUB", "CHANNELS", f"*{prefix}*"))
    assert len(topics) >= 2
    for topic in topics:
        server.call("PUBLISH", topic, junk)
        if server.call("TYPE", topic) == b"stream":
            server.call("XADD", topic, "*", "d", junk)
            server.call("XADD", topic, "*", "foreign", junk)
    await eventually(lambda: b.stats().unreadable >= 1)
    await a.group_send("poison", {"n": 1})
    await a.send(member, {"n": 2})
    async with asyncio.timeout(10):
        assert [await b.receive(member) for _ in range(2)] == [{"n": 1}, {"n": 2}]
    # The logs are read again after a broken connection: the poison is in them.
    assert server.kill_clients()
    for number in range(3, 13):
        await a.group_send("poison", {"n": number})
    async with asyncio.timeout(20):
        assert [(await b.receive(member))["n"] for _ in range(10)] == list(range(3, 13))
    await a.close()
    await b.close()


async def test_a_poisoned_queue(server: Server, prefix: str) -> None:
    """A frame in a queue that is not ours is dropped and counted; the job behind it is done."""
    layer = RedisChannelLayer([server.url], prefix=prefix)
    await layer.send("jobs", {"n": 0})
    lists = [key for key in server.call("KEYS", f"*{prefix}*") if server.call("TYPE", key) == b"list"]
    (frames,) = [key for key in lists if server.call("LINDEX", key, 0).startswith(b"+")]
    server.call("LSET", frames, 0, "+not one of ours at all")
    await layer.send("jobs", {"n": 1})
    async with asyncio.timeout(10):
        assert await layer.receive("jobs") == {"n": 1}
    assert layer.stats().unreadable == 1
    await layer.close()


async def test_a_group_costs_the_same_whatever_its_size(server: Server, prefix: str) -> None:
    """30 group_sends to 10 members in two processes, and to 10,000: the same commands, and nothing for each member."""

    async def cost(members: int) -> dict[str, int]:
        layers = [
            RedisChannelLayer([server.url], prefix=f"{prefix}{members}", process_capacity=10**6)
            for _ in range(3)
        ]
        sender, *holders = layers
        received: list[Any] = []
        last = []
        for layer in holders:
            for _ in range(members // 2):
                last.append((layer, await layer.new_channel()))
                await layer.group_add("room", last[-1][1])
        await sender.group_send("room", {"n": -1})
        before = server.command_counts()
        for number in range(30):
            await sender.group_send("room", {"n": number})
        await eventually(lambda: all(layer.stats().delivered == 31 * members // 2 for layer in holders), 30)
        after = server.command_counts()
        for layer, channel in (last[0], last[-1]):
            received += [(await layer.receive(channel))["n"] for _ in range(31)]
        assert received == list(range(-1, 30)) * 2
        for layer in layers:
            await layer.close()
        return {
            name: after[name] - before.get(name, 0)
            for name in ("xadd", "publish", "evalsha")
            if name in after
        }

    small, large = await cost(10), await cost(10_000)
    assert small["xadd"] == large["xadd"] == 30
    assert abs(small["publish"] - large["publish"]) <= 3  # a heartbeat may fall in between
    assert abs(small.get("evalsha", 0) - large.get("evalsha", 0)) <= 3
