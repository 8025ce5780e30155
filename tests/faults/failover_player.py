"""A process of its own that sends or receives numbered messages through failovers, and keeps the account of them."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from array import array
from collections.abc import Coroutine
from typing import Any

from processes.player import perform
from trunkline.errors import TransportUnavailable
from trunkline.layers import RedisChannelLayer

#: A job's number is its sender's times this, plus its place among that sender's jobs.
STRIDE = 10**9
#: Seconds between two rounds of a sender, groups that get a message in each, and rounds that may be on their way.
_PAUSE, _GROUPS, _ROUNDS = 0.05, 5, 20


class Chain:
    """What was heard of messages that are numbered from 1 on. Its size does not grow with their number."""

    def __init__(self) -> None:
        self.last = self.doubled = self.reordered = 0
        self.holes: set[int] = set()

    def take(self, number: int) -> None:
        if number > self.last:
            self.holes.update(range(self.last + 1, number))
            self.last = number
        elif number in self.holes:
            self.holes.remove(number)
            self.reordered += 1
        else:
            self.doubled += 1


class Stage:
    """What such a process can do."""

    def __init__(self, hosts: Any, prefix: str, expiry: float) -> None:
        self._gaps: list[str | None] = []
        self._reconnects = 0
        self.layer = RedisChannelLayer(
            hosts,
            prefix=prefix,
            expiry=expiry,
            capacity=100_000,
            process_capacity=1_000_000,
            on_gap=lambda group, reason: self._gaps.append(group),
            on_reconnect=self._back,
        )
        self.tasks: list[asyncio.Task[None]] = []
        # A receiver's
        self._chains: dict[str, Chain] = {}
        self._count = 0
        self._heard_at = time.monotonic()
        self._silence = 0.0
        # A sender's and a receiver's: jobs, and when they were accepted, or taken.
        self._jobs, self._times = array("q"), array("d")
        # A sender's
        self._number = self._groups_sent = 0
        self._direct: list[int] = []
        self._failed: list[str] = []
        self._stop = False

    def _back(self) -> None:
        self._reconnects += 1

    async def reconnects(self) -> int:
        return self._reconnects

    # Receiving

    async def receive(self, groups: int) -> str:
        """Join so many groups, and take in all that comes, and jobs; returns the channel."""
        channel = await self.layer.new_channel()
        for number in range(groups):
            await self.layer.group_add(f"group.{number}", channel)
        self.tasks += [asyncio.create_task(self._listen(channel)), asyncio.create_task(self._work())]
        return channel

    async def _listen(self, channel: str) -> None:
        while True:
            message = await self.layer.receive(channel)
            now = time.monotonic()
            self._silence = max(self._silence, now - self._heard_at)
            self._heard_at = now
            self._count += 1
            groups = self._chains.setdefault(f"{message['s']} to groups", Chain())
            if message["d"]:
                self._chains.setdefault(f"{message['s']} to us", Chain()).take(message["d"])
                groups.reordered += message["g"] != groups.last  # one order for both kinds
            else:
                groups.take(message["g"])

    async def _work(self) -> None:
        while True:
            message = await self.layer.receive("jobs")
            self._jobs.append(message["n"])
            self._times.append(time.monotonic())

    async def heard(self) -> int:
        return self._count

    async def silence(self) -> float:
        """The longest time without a delivery since this was last asked."""
        silence, self._silence = max(self._silence, time.monotonic() - self._heard_at), 0.0
        return silence

    async def account(self) -> dict[str, Any]:
        chains = {
            name: [chain.last, len(chain.holes), chain.doubled, chain.reordered]
            for name, chain in self._chains.items()
        }
        return {"chains": chains, "gaps": self._gaps, "missed": self.layer.stats().missed}

    async def jobs(self) -> list[list[float]]:
        """Pairs of a job's number and when it was accepted, or taken."""
        return [[number, at] for number, at in zip(self._jobs, self._times, strict=True)]

    async def blocks(self) -> int:
        """Blocks of memory that are in use."""
        gc.collect()
        return sys.getallocatedblocks()

    async def lose_the_way(self) -> None:
        """From now on no sentinel can be asked."""

        async def no_road() -> Any:
            raise TransportUnavailable("no road to any sentinel")

        self._sentinels().find = no_road

    async def find_the_way(self) -> None:
        del self._sentinels().find

    def _sentinels(self) -> Any:
        return self._node()._transport._links[0]._sentinels

    def _node(self) -> Any:
        (node,) = self.layer._nodes.values()
        return node

    async def node(self) -> str:
        name: str = self._node().name
        return name

    # Sending

    async def send(self, number: int, groups: int, receivers: list[str]) -> None:
        """Send to groups, receivers and workers in turn until told to stop."""
        self._number = number
        self._direct = [0] * len(receivers)
        self.tasks.append(asyncio.create_task(self._send(groups, receivers)))

    async def _send(self, groups: int, receivers: list[str]) -> None:
        rounds: set[asyncio.Future[Any]] = set()
        job = 0
        while not self._stop or rounds:
            if not self._stop:
                calls = []
                for _ in range(_GROUPS):
                    self._groups_sent += 1
                    message = {"s": self._number, "g": self._groups_sent, "d": 0}
                    calls.append(
                        self._try(self.layer.group_send(f"group.{self._groups_sent % groups}", message))
                    )
                for place, receiver in enumerate(receivers):
                    self._direct[place] += 1
                    message = {"s": self._number, "g": self._groups_sent, "d": self._direct[place]}
                    calls.append(self._try(self.layer.send(receiver, message)))
                job += 1
                calls.append(self._give(self._number * STRIDE + job))
                rounds.add(asyncio.gather(*calls))
                await asyncio.sleep(_PAUSE)
            finished = {one for one in rounds if one.done()}
            rounds -= finished
            if len(rounds) >= _ROUNDS or (self._stop and rounds):
                await asyncio.wait(rounds, return_when=asyncio.FIRST_COMPLETED)

    async def _try(self, call: Coroutine[Any, Any, None]) -> bool:
        try:
            await call
        except Exception as error:
            self._failed.append(repr(error))
            return False
        return True

    async def _give(self, job: int) -> None:
        if await self._try(self.layer.send("jobs", {"n": job})):
            self._jobs.append(job)
            self._times.append(time.monotonic())

    async def stop(self) -> dict[str, Any]:
        """Send no more; returns what was sent, and what was refused, when all has been answered."""
        self._stop = True
        await asyncio.gather(*self.tasks)
        return {"groups": self._groups_sent, "direct": self._direct, "failed": self._failed}


async def main() -> None:
    hosts, prefix, expiry = json.loads(sys.argv[1])
    await perform(Stage(hosts, prefix, expiry))


if __name__ == "__main__":
    asyncio.run(main())
