"""Presence against a plain set: joins, leaves, deaths and cuts in any order, over the memory transport.

The model knows who is there and which leases have ended; after every step all nodes must see exactly that, and the events
that the group was sent must be those of a set of users that is looked at after each step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from trunkline.envelope import Seal
from trunkline.presence import Presence
from trunkline.settings import Settings
from trunkline.transports.memory import MemoryTransport

NODES, CHANNELS, USERS = 2, 2, ["ann", None]

Step = tuple[str, int, int, "str | None"]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "join", "join", "leave", "leave", "forget", "die", "lapse", "renew", "look", "flush"]
        ),
        st.integers(0, NODES - 1),
        st.integers(0, CHANNELS - 1),
        st.sampled_from(USERS),
    ),
    max_size=40,
)


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0


class _Transport(MemoryTransport):
    clock: _Clock

    def now(self) -> float:
        return self.clock.now


class _Deaf:
    def deliver(self, frame: bytes) -> None:
        raise AssertionError("nothing is sent")

    def gap(self, topic: str | None, reason: str) -> None:
        raise AssertionError("nothing is lost")


class _World:
    """The nodes, the events they sent, and what should be."""

    def __init__(self, hub: str) -> None:
        self.hub = hub
        self.clock = _Clock()
        self.events: list[tuple[str, str | None, str]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.nodes: list[tuple[str, _Transport, Presence]] = []
        #: Channel -> user, of the members of each living node: what it tells again when it comes back.
        self.own: list[dict[str, str | None]] = []
        self.made = 0

    async def start(self) -> None:
        for _ in range(NODES):
            self.nodes.append(await self._node())
            self.own.append({})
        _, self.watch, self.watcher = await self._node()

    async def _node(self) -> tuple[str, _Transport, Presence]:
        self.made += 1
        name = f"node{self.made}"
        transport = _Transport(self.hub)
        transport.clock = self.clock
        await transport.open(name, _Deaf())

        async def say(group: str, event: dict[str, Any]) -> None:
            self.events.append((event["type"].rpartition(".")[2], event["user"], event["channel"]))

        def spawn(work: Any) -> asyncio.Task[None]:
            task = asyncio.get_running_loop().create_task(work)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            return task

        presence = Presence(
            transport, Seal(), Settings(), spawn=spawn, say=say, stays=lambda group, channel: True
        )
        presence.beat = 3600.0  # signs of life are steps of the model
        return name, transport, presence

    async def settle(self) -> None:
        """Until nothing is under way but the pauses between signs of life."""
        for _ in range(200):
            await asyncio.sleep(0)
            if not any(
                presence._changing or presence._reaping
                for *_, presence in [*self.nodes, ("", "", self.watcher)]
            ):
                return

    async def do(self, step: Step) -> None:
        kind, number, channel_number, user = step
        name, transport, presence = self.nodes[number]
        channel = f"x.{name}!{channel_number}"
        own = self.own[number]
        if kind == "join":
            await presence.join("g", channel, presence.card("g", channel, {"n": number}, user, True))
            own[channel] = user
        elif kind in ("leave", "forget"):
            await (presence.leave("g", channel) if kind == "leave" else presence.forget(channel))
            own.pop(channel, None)
        elif kind == "die":
            presence.abandon()
            transport.abandon()
            self.nodes[number], self.own[number] = await self._node(), {}
        elif kind == "lapse":  # all but this node renew in time; it does not
            self.clock.now += presence.lease - 1
            for index, (*_, other) in enumerate(self.nodes):
                if index != number:
                    await other._renew()
            self.clock.now += 2
        elif kind == "renew":
            await presence._renew()
        elif (
            kind == "flush"
        ):  # not while somebody does not know yet that it was reaped: that would be lost with the rest
            for *_, each in self.nodes:
                await each._renew()
            await transport.flush()
            for *_, each in self.nodes:
                await each._renew()
        await self.watcher.members("g")  # whoever looks, reaps
        await self.settle()


async def _play(steps: list[Step], hub: str) -> None:
    world = _World(hub)
    await world.start()
    for step in steps:
        await world.do(step)
        await _check_events(world)
    for *_, presence in world.nodes:
        await presence._renew()
    await world.settle()
    await _check_events(world)
    expected = {channel: user for own in world.own for channel, user in own.items()}
    for presence in (world.watcher, *[each[2] for each in world.nodes]):
        found = {each.channel: each.user for each in await presence.members("g")}
        assert found == expected
        users = {user for user in expected.values() if user is not None}
        assert await presence.count("g") == (len(expected), len(users))
    for *_, presence in world.nodes:
        await presence.close()
    assert await world.watcher.members("g") == []
    await _check_events(world)
    await world.watcher.close()
    for _, transport, _ in world.nodes:
        await transport.close()
    await world.watch.close()
    for task in tuple(world.tasks):
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)


async def _check_events(world: _World) -> None:
    """Whoever follows the events knows who is there: each user comes once before going once, and none is missing."""
    following: Counter[str] = Counter()
    for kind, user, channel in world.events:
        who = user or channel
        following[who] += 1 if kind == "join" else -1
        assert following[who] in (0, 1), world.events
    seen = await world.watch.records("g")
    there = {found["user"] or found["channel"] for record in seen if (found := world.watcher._read(record))}
    assert {who for who, count in following.items() if count} == there


_hubs = iter(range(10**9))


@settings(max_examples=400)
@given(STEPS)
@example([("join", 0, 0, None), ("lapse", 0, 0, None), ("leave", 0, 0, None)])
@example([("join", 0, 0, "ann"), ("lapse", 0, 0, None), ("join", 0, 0, "ann")])
@example(
    [
        ("join", 0, 0, "ann"),
        ("join", 1, 0, "ann"),
        ("die", 0, 0, None),
        ("lapse", 1, 0, None),
        ("renew", 1, 0, None),
    ]
)
def test_presence_is_a_set(steps: list[Step]) -> None:
    """After any joins, leaves, deaths, cuts and losses all nodes agree with a plain set, and the events tell its story."""
    asyncio.run(_play(steps, f"model {next(_hubs)}"))
