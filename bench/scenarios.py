"""What is measured. Each scenario is a coroutine that takes a stage and returns its figures.

Throughput counts from the first send to the last verified delivery. Messages lost, doubled or out of order and sends
retried on a full channel are counted in every scenario. How many messages a run sends is found first, by ever longer
trials, so that slow and fast layers are measured for the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .contestants import CAPACITY, Contestant, Place
from .players import STRIDE, faults, pooled
from .processes import Failed, Part, Process

__all__ = ["FAULTS", "SCENARIOS", "Figures", "Scale", "run"]

Figures = dict[str, float]

#: The figures that count mishaps; the others measure.
FAULTS = ("lost", "doubled", "reordered", "full")
#: Messages of one run are numbered from here on, times the number of the run.
_RUN = 10**6
#: Bytes of text in a large message.
_LARGE = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    seconds: float = 1.0
    crowd: int = 5000
    rooms: int = 2000
    idle: float = 3.0
    waiting: int = 1000
    burst: int = 100
    local: int = 1000
    subscribed: tuple[int, ...] = (1, 4, 16)
    sockets: int = 200
    #: Seconds without any delivery after which what is missing counts as lost.
    patience: float = 1.5
    #: Seconds one run may take.
    limit: float = 30.0


QUICK = Scale(
    seconds=0.1,
    crowd=50,
    rooms=20,
    idle=0.3,
    waiting=50,
    burst=3,
    local=50,
    subscribed=(1, 2),
    sockets=20,
    patience=1.0,
)


@dataclass
class Stage:
    """Where one scenario is played by one contestant."""

    contestant: Contestant
    place: Place
    scale: Scale
    uvloop: bool
    processes: list[Process] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    runs: int = 0

    async def cast(self, count: int) -> list[Part]:
        """So many participants: each a process, unless the layer cannot leave its own."""
        own = 1 if self.contestant.alone else count
        for _ in range(own):
            self.processes.append(await Process.start(self.contestant, self.place, self.uvloop))
        self.parts = [Part(self.processes[number % own], number) for number in range(count)]
        await asyncio.gather(*[part.cost() for part in self.parts])  # they answer: they are ready
        return self.parts

    async def costs(self, key: str = "cpu", tidy: bool = False) -> list[float]:
        """One figure of what each process has used so far."""
        one_each = [
            next(part for part in self.parts if part.process is process) for process in self.processes
        ]
        return [used[key] for used in await asyncio.gather(*[part.cost(tidy) for part in one_each])]


@asynccontextmanager
async def stage(contestant: Contestant, scale: Scale, uvloop: bool) -> AsyncIterator[Stage]:
    with contestant.place() as place:
        made = Stage(contestant, place, scale, uvloop)
        try:
            yield made
        finally:
            await asyncio.gather(*[process.end() for process in made.processes])


async def run(
    scenario: Scenario, contestant: Contestant, scale: Scale, uvloop: bool = False
) -> Figures | str:
    """One contestant in one scenario, once: its figures, or why there are none."""
    try:
        async with stage(contestant, scale, uvloop) as made, asyncio.timeout(scale.limit):
            return await scenario.play(made)
    except Failed as error:
        return str(error)
    except TimeoutError:
        return f"no result in {scale.limit:g} s"


# Sending a volley and verifying every delivery


@dataclass(frozen=True)
class Volley:
    """Who sends what to whom."""

    senders: list[Part]
    receivers: list[Part]
    to: list[str]
    group: bool = False
    #: Senders in each process, each a task.
    tasks: int = 1
    size: int = 100
    #: Channels of each receiver that get every message.
    members: int = 1
    #: The channels of each part, or all of them, share the messages: each is for one of them.
    shared: Literal["no", "part", "all"] = "no"
    threads: bool = False

    async def fire(self, stage: Stage, count: int) -> tuple[float, Figures]:
        """Send ``count`` messages from every task; returns the seconds until the last delivery, and the figures."""
        await asyncio.gather(*[part.clear() for part in self.receivers])
        stage.runs += 1
        firsts = [
            number * STRIDE + stage.runs * _RUN for number in range(1, 1 + self.tasks * len(self.senders))
        ]
        shares = [firsts[number :: len(self.senders)] for number in range(len(self.senders))]
        before = sum(await stage.costs())
        said: dict[str, Any] = {"group": self.group, "size": self.size}
        if self.threads:
            said["own_bridge"] = stage.contestant.own_bridge
        sent = await asyncio.gather(
            *[
                (part.shout if self.threads else part.send)(self.to, share, count, **said)
                for part, share in zip(self.senders, shares, strict=True)
            ]
        )
        total = count * len(firsts)
        wanted = total * (1 if self.shared == "all" else self.members * len(self.receivers))
        await settle(self.receivers, wanted, stage.scale.patience)
        cpu = sum(await stage.costs()) - before
        last, mishaps = await self._verdict(firsts, count)
        if sum(mishaps):  # what is late or doubled may still be on its way
            await settle(self.receivers, None, stage.scale.patience)
            last, mishaps = await self._verdict(firsts, count)
        began = min(answer["began"] for answer in sent)
        seconds = max(last, *[answer["ended"] for answer in sent]) - began
        good = wanted - mishaps[0]
        figures = {"deliveries/s": good / seconds} if wanted > total else {}
        figures |= {
            "messages/s": good / seconds * total / wanted,
            "cpu µs/delivery": cpu / max(good, 1) * 1e6,
            **dict(zip(FAULTS, [*mishaps, sum(answer["full"] for answer in sent)], strict=True)),
        }
        return seconds, figures

    async def _verdict(self, firsts: list[int], count: int) -> tuple[float, list[int]]:
        if self.shared == "all":
            heard = [each for part in self.receivers for each in await part.heard()]
            expected = {number for first in firsts for number in range(first, first + count)}
            last = max((moments[-1] for _, moments in heard if moments), default=0.0)
            return last, pooled([numbers for numbers, _ in heard], expected)
        asked = [part.verdict(firsts, count, self.shared == "part") for part in self.receivers]
        said = await asyncio.gather(*asked)
        found = [sum(some) for some in zip(*[each["faults"] for each in said], strict=True)]
        return max(each["last"] for each in said), found

    async def last_for(self, stage: Stage, most: int = CAPACITY) -> Figures:
        """Fire ever longer volleys, then one of about ``scale.seconds``; returns the figures of that one."""
        most = min(most, CAPACITY // (self.tasks * len(self.senders)))
        count = 1
        while True:
            seconds, _ = await self.fire(stage, count)
            if count >= most or seconds >= stage.scale.seconds / 8:
                break
            count = min(most, count * 8)
        count = max(1, min(most, int(count * stage.scale.seconds / seconds)))
        return (await self.fire(stage, count))[1]


async def settle(receivers: list[Part], wanted: int | None, patience: float) -> None:
    """Wait until so many were delivered (None: no number is enough), or none for ``patience`` seconds."""
    newest, since = -1, time.monotonic()
    while True:
        count = sum(await asyncio.gather(*[part.count() for part in receivers]))
        if wanted is not None and count >= wanted:
            return
        if count != newest:
            newest, since = count, time.monotonic()
        elif time.monotonic() - since > patience:
            return
        await asyncio.sleep(0.02)


async def members(parts: list[Part], group: str, each: int) -> None:
    """So many listening members of a group in each part."""
    for part in parts:
        channels = await part.channels(each)
        await part.listen(channels)
        await part.join([(group, channel) for channel in channels], 50)


# The scenarios


async def direct(stage: Stage) -> Figures:
    here, there = await stage.cast(2)
    (channel,) = await there.channels(1)
    await there.listen([channel])
    sent: dict[str, Any] = {}
    count = 0
    for count in (5, max(10, int(stage.scale.seconds / 0.004))):  # the first few open the connections
        stage.runs += 1
        await there.clear()
        first = STRIDE + stage.runs * _RUN
        sent = await here.send([channel], [first], count, group=False, size=100, pause=0.002)
        await settle([there], count, stage.scale.patience)
    ((numbers, moments),) = await there.heard()
    left = dict(zip(range(first, first + count), sent["moments"], strict=True))
    delays = [at - left[number] for number, at in zip(numbers, moments, strict=True) if number in left]
    return {
        **quantiles(delays),
        **dict(zip(FAULTS, [*faults(numbers, set(left)), sent["full"]], strict=True)),
    }


async def pingpong(stage: Stage) -> Figures:
    here, there = await stage.cast(2)
    (back,), (to,) = await asyncio.gather(here.channels(1), there.channels(1))
    await there.echo(to, back)
    await here.ping(to, back, STRIDE, stage.scale.seconds / 10)
    before = sum(await stage.costs())
    said = await here.ping(to, back, 2 * STRIDE, stage.scale.seconds)
    cpu = sum(await stage.costs()) - before
    trips = said["trips"]
    return {
        **quantiles(trips),
        "cpu µs/trip": cpu / len(trips) * 1e6,
        **dict(zip(FAULTS, [*said["faults"], 0], strict=True)),
    }


async def hundred(stage: Stage) -> Figures:
    here, there = await stage.cast(2)
    channels = await there.channels(1)
    await there.listen(channels)
    return await Volley([here], [there], channels, tasks=100).last_for(stage)


async def group(stage: Stage) -> Figures:
    parts = await stage.cast(4)
    await members(parts, "room", 10)
    return await Volley(parts, parts, ["room"], group=True, members=10, tasks=10).last_for(stage)


async def crowd(stage: Stage) -> Figures:
    parts = await stage.cast(2)
    await members(parts, "crowd", stage.scale.crowd)
    return await Volley(parts, parts, ["crowd"], group=True, members=stage.scale.crowd).last_for(stage, 500)


async def rooms(stage: Stage) -> Figures:
    parts = await stage.cast(2)
    groups = [f"room-{number}" for number in range(stage.scale.rooms)]
    seconds = at_once = 0.0
    for part in parts:
        channels = await part.channels(len(groups))
        await part.listen(channels)
        pairs = list(zip(groups, channels, strict=True))
        seconds += await part.join(pairs, 1)
        # Others, as many at a time as core has connections for: the sockets of a restarted server come back.
        others = [(f"other-{group}", channel) for group, channel in pairs]
        at_once += await part.join(others, 200)
    volley = Volley(parts[:1], parts, groups, group=True, shared="part")
    figures = await volley.last_for(stage)
    joins = len(groups) * len(parts)
    return {"joins/s": joins / seconds, "joins, 200 at once/s": joins / at_once, **figures}


async def queue(stage: Stage) -> Figures:
    boss, *workers = await stage.cast(4)
    await asyncio.gather(*[worker.listen(["jobs"]) for worker in workers])
    return await Volley([boss], workers, ["jobs"], tasks=10, shared="all").last_for(stage)


async def large(stage: Stage) -> Figures:
    here, there = await stage.cast(2)
    channels = await there.channels(1)
    await there.listen(channels)
    return await Volley([here], [there], channels, size=_LARGE).last_for(stage, 400)


async def burst(stage: Stage) -> Figures:
    parts = await stage.cast(4)
    await members(parts, "room", 1)
    volley = Volley(parts[:1], parts, ["room"], group=True, size=_LARGE, tasks=stage.scale.burst)
    await Volley(parts[:1], parts, ["room"], group=True).fire(stage, 1)
    return (await volley.fire(stage, 1))[1]


async def local(stage: Stage) -> Figures:
    parts = await stage.cast(1)
    await members(parts, "room", stage.scale.local)
    figures = await Volley(parts, parts, ["room"], group=True, members=stage.scale.local).last_for(
        stage, 5000
    )
    return {"µs/delivery": 1e6 / max(figures["deliveries/s"], 1e-9), **figures}


async def idle(stage: Stage) -> Figures:
    parts = await stage.cast(4)
    await members(parts, "room", 10)
    figures = (await Volley(parts, parts, ["room"], group=True, members=10).fire(stage, 2))[1]
    percent = await idle_cpu(stage)
    return {"cpu % each": percent, **{key: figures[key] for key in FAULTS}}


async def waiting(stage: Stage) -> Figures:
    (part,) = await stage.cast(1)
    await members([part], "room", 1)
    volley = Volley([part], [part], ["room"], group=True)
    await volley.fire(stage, 1)
    before = await part.cost(tidy=True)
    await part.listen(await part.channels(stage.scale.waiting))
    await asyncio.sleep(min(1.0, stage.scale.idle))
    after = await part.cost(tidy=True)
    percent = await idle_cpu(stage)
    return {
        "KB/channel": (after["rss"] - before["rss"]) / stage.scale.waiting,
        "descriptors": after["fds"] - before["fds"],
        "cpu %": percent,
    }


async def idle_cpu(stage: Stage) -> float:
    """Percent of a core that each process takes while nothing happens."""
    await asyncio.sleep(min(1.0, stage.scale.idle))
    before, began = sum(await stage.costs()), time.monotonic()
    await asyncio.sleep(stage.scale.idle)
    used, seconds = sum(await stage.costs()) - before, time.monotonic() - began
    return used / seconds / len(stage.processes) * 100


async def server(stage: Stage) -> Figures:
    parts = await stage.cast(4)
    await members(parts, "room", 10)
    volley = Volley(parts[:1], parts, ["room"], group=True, members=10)
    await volley.fire(stage, 10)
    count = max(10, int(200 * stage.scale.seconds))
    before = stage.place.served()
    _, figures = await volley.fire(stage, count)
    after = stage.place.served()
    if before is None or after is None:
        raise Failed("it has no server")
    return {
        "commands": (after.commands - before.commands) / count,
        "bytes": (after.traffic - before.traffic) / count,
        "server cpu µs": (after.cpu - before.cpu) / count * 1e6,
        **{key: figures[key] for key in FAULTS},
    }


async def subscribers(stage: Stage) -> Figures:
    sender, *others = await stage.cast(1 + max(stage.scale.subscribed))
    figures: Figures = {}
    mishaps = dict.fromkeys(FAULTS, 0.0)
    joined: list[Part] = []
    for wanted in stage.scale.subscribed:
        await members(others[len(joined) : wanted], "room", 1)
        joined = others[:wanted]
        volley = Volley([sender], joined, ["room"], group=True, tasks=10)
        await volley.fire(stage, 1)
        count = max(1, int(50 * stage.scale.seconds))
        before = stage.place.served()
        _, found = await volley.fire(stage, count)
        after = stage.place.served()
        if before is None or after is None:
            raise Failed("it has no server")
        sent = count * volley.tasks
        figures[f"µs, {wanted}"] = (after.cpu - before.cpu) / sent * 1e6
        figures[f"commands, {wanted}"] = (after.commands - before.commands) / sent
        figures[f"bytes, {wanted}"] = (after.traffic - before.traffic) / sent
        for key in FAULTS:
            mishaps[key] += found[key]
    return {**figures, **mishaps}


async def sync(stage: Stage) -> Figures:
    here, there = await stage.cast(2)
    await members([there], "room", 1)
    volley = Volley([here], [there], ["room"], group=True, tasks=4, threads=True)
    without = stage.place.clients()
    await volley.fire(stage, 1)
    figures = await volley.last_for(stage)
    before = stage.place.connections()
    await volley.fire(stage, 25)
    after = stage.place.connections()
    now = stage.place.clients()
    made: Figures = {}
    if before is not None and after is not None and without is not None and now is not None:
        made = {
            "connections kept": now - without,
            "connections/call": (after - before - 1) / (25 * volley.tasks),
        }
    return {
        "calls/s": figures["messages/s"],
        **made,
        **{key: figures[key] for key in ("cpu µs/delivery", *FAULTS)},
    }


def quantiles(seconds: list[float]) -> Figures:
    if not seconds:
        raise Failed("nothing was delivered")
    ordered = sorted(seconds)
    return {
        "p50 µs": ordered[len(ordered) // 2] * 1e6,
        "p99 µs": ordered[int(len(ordered) * 0.99)] * 1e6,
    }


@dataclass(frozen=True)
class Scenario:
    """A row of tables in the report."""

    title: str
    play: Callable[[Stage], Awaitable[Figures]]
    #: What else a contestant has to have to take part.
    asks: Literal["nothing", "server", "threads"] = "nothing"

    def rows(self, contestant: Contestant) -> dict[str, Contestant]:
        """Who plays under which title: nobody, itself, and where threads send again by the layer's own way for them."""
        if not self.takes(contestant):
            return {}
        rows = {contestant.name: contestant}
        if self.asks == "threads" and "trunkline" in contestant.packages:
            rows[f"{contestant.name}, layer.sync"] = replace(contestant, own_bridge=True)
        return rows

    def takes(self, contestant: Contestant) -> bool:
        if self.asks == "server":
            return contestant.needs == "redis"
        if self.asks == "threads":
            return contestant.threads
        return True


SCENARIOS = {
    "direct": Scenario("one message at a time to one channel of another process", direct),
    "pingpong": Scenario("there and back between two processes", pingpong),
    "hundred": Scenario("100 concurrent senders to one channel of another process", hundred),
    "group": Scenario("a group in 4 processes with 10 members and 10 senders each", group),
    "crowd": Scenario("a group in 2 processes with 5000 members each, a sender in each", crowd),
    "rooms": Scenario(
        "2000 groups in 2 processes with a member in each: joins, one and 200 at a time, then sends", rooms
    ),
    "queue": Scenario("a work queue with 3 worker processes, 10 senders", queue),
    "large": Scenario("1 MB messages to another process, one at a time", large),
    "burst": Scenario("100 messages of 1 MB at once to a group in 4 processes", burst),
    "local": Scenario("a group of 1000 in one process", local),
    "idle": Scenario("4 processes of 10 members with nothing to do", idle),
    "waiting": Scenario("1000 channels waiting in one process", waiting),
    "server": Scenario(
        "what one group_send to 4 processes with 10 members each costs the server, scripts' commands included",
        server,
        "server",
    ),
    "subscribers": Scenario(
        "what a group_send costs the server with 1, 4 and 16 subscribed processes: µs of CPU, commands, bytes in and out",
        subscribers,
        "server",
    ),
    "sync": Scenario(
        "group_send from 4 plain threads by async_to_sync, or by layer.sync where it says so", sync, "threads"
    ),
}
