"""Queues over JetStream, where they differ from others: what was delivered ahead is given back."""

from __future__ import annotations

import asyncio

from faults.nats_load import TTL, Node, unique
from nats_servers import NatsServer


async def test_what_is_given_back_keeps_its_place(nats: NatsServer) -> None:
    """A reader stops amid traffic, and another of its node goes on: the frames come as they were pushed."""
    prefix = unique()
    async with Node(nats.url, prefix) as sender, Node(nats.url, prefix) as node:
        for turn in range(4):
            frames = [b"%d.%03d" % (turn, number) for number in range(120)]
            got: list[bytes] = []

            async def read(got: list[bytes] = got) -> None:
                while True:
                    got.append(await node.transport.pull("jobs"))

            reading = asyncio.ensure_future(read())
            for number, frame in enumerate(frames):
                await sender.transport.push("jobs", frame, 1000, TTL)
                if number == 20 + turn:
                    reading.cancel()
                if number > 40:  # so that it goes on while what was held is given back
                    await asyncio.sleep(0.0005)
            async with asyncio.timeout(20):
                while len(got) < len(frames):
                    got.append(await node.transport.pull("jobs"))
            assert got == frames
