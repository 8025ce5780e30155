"""How many connections there are, whose, and what is told when one is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

from asgiref.sync import async_to_sync

from frameworks.programs import eventually
from servers import Server
from trunkline.layers import RedisChannelLayer


def clients(server: Server) -> set[str]:
    """The ids of the connections that are a layer's."""
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    return {line.split()[0] for line in lines if "name=trunkline-" in line}


def ours(server: Server, layer: RedisChannelLayer) -> list[str]:
    """The lines of CLIENT LIST for this layer's nodes."""
    names = [f"name=trunkline-{node.name}-" for node in layer._nodes.values()]
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    return [line for line in lines if any(name in line for name in names)]


def test_two_hundred_calls_from_threads(server: Server, prefix: str) -> None:
    """200 async_to_sync(group_send) from 10 plain threads: two connections on the server, none after close."""
    layer = RedisChannelLayer([server.url], prefix=prefix, capacity=500)
    reader = RedisChannelLayer([server.url], prefix=prefix, capacity=500)
    channel = reader.sync.new_channel()
    reader.sync.group_add("g", channel)
    before = clients(server)
    most: list[set[str]] = []

    def work(first: int) -> None:
        for number in range(first, first + 20):
            async_to_sync(layer.group_send)("g", {"n": number})
        most.append(clients(server) - before)

    threads = [threading.Thread(target=work, args=(index * 20,)) for index in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = sorted(reader.sync.receive(channel, timeout=10)["n"] for _ in range(200))
    assert got == list(range(200))
    assert len(ours(server, layer)) == 2
    assert len(set().union(*most)) == 2
    names = [node.name for each in (layer, reader) for node in each._nodes.values()]
    assert len(names) == 2
    layer.sync.close()
    reader.sync.close()
    eventually(lambda: not any(n in server.call("CLIENT", "LIST").decode() for n in names), "all are gone")


def test_a_script_leaves_nothing(server: Server, prefix: str) -> None:
    """A script that sends a few messages and ends, without a close, leaves no connection and no complaint."""
    before = clients(server)
    code = f"""
from asgiref.sync import async_to_sync
from trunkline.layers import RedisChannelLayer
layer = RedisChannelLayer([{server.url!r}], prefix={prefix!r})
for number in range(5):
    async_to_sync(layer.send)("jobs", {{"n": number}})
print(layer.sync.receive("jobs", timeout=10))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("{'n': 0}\n", "", 0)
    eventually(lambda: clients(server) <= before, "its connections are gone")


async def test_one_loop_takes_two_connections(server: Server, prefix: str) -> None:
    """A hundred channels in a hundred groups, sent to at once, share one pair; close ends it."""
    layer = RedisChannelLayer([server.url], prefix=prefix)
    channels = await asyncio.gather(*[layer.new_channel() for _ in range(100)])
    await asyncio.gather(*[layer.group_add(f"g{n}", channel) for n, channel in enumerate(channels)])
    await asyncio.gather(*[layer.group_send(f"g{n}", {"n": n}) for n in range(100)])
    got = await asyncio.gather(*[layer.receive(channel) for channel in channels])
    assert [message["n"] for message in got] == list(range(100))
    assert len(ours(server, layer)) == 2
    name = next(iter(layer._nodes.values())).name
    await layer.close()
    deadline = time.monotonic() + 10
    while name in server.call("CLIENT", "LIST").decode():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_hooks_on_client_kill(server: Server, prefix: str) -> None:
    """CLIENT KILL: on_disconnect, then on_reconnect, each once; the group works on as if nothing had happened."""
    told: list[Any] = []
    layer = RedisChannelLayer(
        [server.url],
        prefix=prefix,
        on_disconnect=lambda address: told.append(("lost", address)),
        on_reconnect=lambda: told.append("back"),
    )
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    for round_ in range(1, 3):
        (node,) = layer._nodes.values()
        assert server.kill_clients(f"{node.name}-pushes") == 1
        async with asyncio.timeout(10):
            await layer.group_send("g", {"n": round_})
            assert await layer.receive(channel) == {"n": round_}
            while len(told) < 2 * round_:
                await asyncio.sleep(0.01)
        assert told == [("lost", f"127.0.0.1:{server.port}"), "back"] * round_
    await layer.close()
    assert len(told) == 4
