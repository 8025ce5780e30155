# ruff: noqa: S101
"""What users are promised, as tests: the same for every layer, whatever carries it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import random
import re
import threading
import time
import uuid
from abc import abstractmethod
from contextlib import suppress
from typing import Any

from asgiref.sync import async_to_sync

from .. import names
from ..errors import (
    ChannelFull,
    ConfigurationError,
    HistoryLost,
    InvalidMessage,
    InvalidName,
    LayerClosed,
    MessageTooLarge,
    NotOwner,
    UsageError,
)
from ..layer import ChannelLayer
from ..stats import Origin
from .kit import NotOffered, eventually, promise, refused, together
from .presence_conformance import PresenceConformance

__all__ = ["LayerConformance"]


class LayerConformance(PresenceConformance):
    """Every promise of ``trunkline.ChannelLayer``. Each layer made plays a process of its own."""

    @abstractmethod
    def make_layer(self, prefix: str, **options: Any) -> ChannelLayer:
        """Make a layer; those of one prefix talk to each other, others never meet."""

    async def set_up(self) -> None:
        await super().set_up()
        self._layers: list[ChannelLayer] = []

    async def tear_down(self) -> None:
        for layer in self._layers:
            await layer.close()
        await super().tear_down()

    def layer(self, prefix: str | None = None, **options: Any) -> ChannelLayer:
        layer = self.make_layer(prefix or self.unique, **options)
        self._layers.append(layer)
        return layer

    async def member(self, layer: ChannelLayer, *groups: str) -> str:
        channel = await layer.new_channel()
        for group in groups:
            await layer.group_add(group, channel)
        return channel

    async def nothing(self, layer: ChannelLayer, *channels: str) -> None:
        """No message waits on any of the channels, nor is on its way there."""
        for channel in channels:
            await layer.send(channel, {"type": "fence"})
            assert await self.get(layer, channel) == {"type": "fence"}

    async def get(self, layer: ChannelLayer, channel: str, timeout: float = 10.0) -> Any:
        async with asyncio.timeout(timeout):
            return await layer.receive(channel)

    # Messages

    @promise
    async def test_round_trip(self) -> None:
        """Every type that travels arrives as it was sent: from another process, over a channel, a queue and a group."""
        a, b = self.layer(), self.layer()
        message: dict[str, Any] = {
            "type": "all.types",
            "none": None,
            "yes": True,
            "int": -(2**63),
            "big": 2**63 - 1,
            "float": 1.5,
            "text": "Zürich ✓ \0",
            "bytes": bytes(range(256)),
            "list": [1, [2, {"deep": [3]}]],
            "dict": {"a": {"b": {}}},
            "empty": "",
        }
        channel = await self.member(b, "round")
        await a.send(channel, message)
        await a.send("queue", message)
        await a.group_send("round", message)
        for name in (channel, "queue", channel):
            assert await self.get(b, name) == message

    @promise
    async def test_lookalikes_travel(self) -> None:
        """Subclasses of str, int, dict and list travel as what they are; tuples become lists."""

        class Safe(str):
            pass

        class Table(dict[str, Any]):
            pass

        layer = self.layer()
        channel = await layer.new_channel()
        await layer.send(channel, Table(type=Safe("x"), t=(1, (2,)), d=Table({Safe("k"): Safe("v")})))
        assert await self.get(layer, channel) == {"type": "x", "t": [1, [2]], "d": {"k": "v"}}

    @promise
    async def test_what_cannot_travel_fails_at_send(self) -> None:
        """A value that cannot travel is refused by send and group_send, with its path; nothing is sent."""
        layer = self.layer()
        channel = await self.member(layer, "strict")
        for bad, path in (
            ({"user": {"id": uuid.uuid4()}}, "message['user']['id']: UUID"),
            ({"rows": [1, {2}]}, "message['rows'][1]: set"),
            ({"rows": {1: "x"}}, "message['rows']: the key 1"),
            ({"n": 2**64}, "message['n']: 18446744073709551616"),
            ({"text": "\ud800"}, "message['text']"),
        ):
            await refused(
                InvalidMessage, layer.send(channel, bad), layer.group_send("strict", bad), naming=path
            )
        circle: list[Any] = []
        circle.append(circle)
        for wrong in ([1], "text", None, {"circle": circle}):
            await refused(
                TypeError,
                layer.send(channel, wrong),  # type: ignore[arg-type]
                layer.send("queue", wrong),  # type: ignore[arg-type]
                layer.group_send("strict", wrong),  # type: ignore[arg-type]
            )
        await self.nothing(layer, channel)

    @promise
    async def test_large_messages(self) -> None:
        """1 MB travels on every road; above max_message_size the sender gets MessageTooLarge and nothing is sent."""
        a, b = self.layer(), self.layer()
        channel = await self.member(b, "large")
        message = {"type": "x", "data": "x" * 1_000_000}
        await a.send(channel, message)
        await a.group_send("large", message)
        await a.send("queue", message)
        for name in (channel, channel, "queue"):
            assert await self.get(b, name) == message
        small = self.layer(max_message_size=1000)
        await refused(
            MessageTooLarge,
            small.send(channel, {"d": "x" * 1000}),
            small.send("queue", {"d": "x" * 1000}),
            small.group_send("large", {"d": "x" * 1000}),
            naming="max_message_size",
        )
        await small.send(channel, {"d": "x" * 900})
        assert await self.get(b, channel) == {"d": "x" * 900}

    @promise
    async def test_each_receiver_has_its_own_dict(self) -> None:
        """Nobody sees another's changes: not the sender's after send, not those of another member."""
        a, b = self.layer(), self.layer()
        one, two, far = await self.member(a, "own"), await self.member(a, "own"), await self.member(b, "own")
        message: dict[str, Any] = {"type": "x", "list": [1]}
        await a.group_send("own", message)
        message["list"].append(2)
        first = await self.get(a, one)
        first["list"].append(3)
        first["new"] = True
        assert await self.get(a, two) == {"type": "x", "list": [1]}
        assert await self.get(b, far) == {"type": "x", "list": [1]}
        assert message == {"type": "x", "list": [1, 2]}
        await a.group_send("own", {"type": "flat"})
        for layer, channel in ((a, one), (a, two), (b, far)):
            got = await self.get(layer, channel)
            assert got == {"type": "flat"}
            got["new"] = True

    @promise
    async def test_keyword_arguments(self) -> None:
        """The arguments' names are those every channel layer has."""
        layer = self.layer()
        channel = await layer.new_channel(prefix="mine")
        assert channel.startswith("mine.")
        await layer.group_add(group="kw", channel=channel)
        await layer.send(channel=channel, message={"type": "x"})
        await layer.group_send(group="kw", message={"type": "y"})
        assert [(await self.get(layer, channel))["type"] for _ in "xy"] == ["x", "y"]
        await layer.group_discard(group="kw", channel=channel)

    # Names

    @promise
    async def test_names(self) -> None:
        """Names that break the rules are a TypeError in every method; names at the edge of the rules work."""
        layer = self.layer()
        good = await layer.new_channel()
        for bad in ("", "a b", "ü", "a" * 100, "chat\n", "a!b!c", "a!", "!a", "a!é", "a/b", 7, None, b"x"):
            await refused(
                TypeError,
                layer.send(bad, {"type": "x"}),  # type: ignore[arg-type]
                layer.receive(bad),  # type: ignore[arg-type]
                layer.group_add("g", bad),  # type: ignore[arg-type]
                layer.group_discard("g", bad),  # type: ignore[arg-type]
                layer.group_add(bad, good),  # type: ignore[arg-type]
                layer.group_discard(bad, good),  # type: ignore[arg-type]
                layer.group_send(bad, {"type": "x"}),  # type: ignore[arg-type]
            )
        await refused(InvalidName, layer.group_send("room!1", {"type": "x"}), naming="room!1")
        await refused(InvalidName, layer.new_channel("a b"), layer.new_channel("x" * 90))
        edge = "A-z_0.9" + "x" * 92
        await layer.send(edge, {"type": "x"})
        assert await self.get(layer, edge) == {"type": "x"}
        await layer.group_add(edge, good)
        await layer.group_send(edge, {"type": "y"})
        assert await self.get(layer, good) == {"type": "y"}

    @promise
    async def test_new_channels_are_unique(self) -> None:
        """No two channels have one name, not even under the same random seed, and all are legal."""
        a, b = self.layer(), self.layer()
        found = set()
        for layer in (a, b):
            random.seed(1)
            found |= {await layer.new_channel() for _ in range(500)}
        assert len(found) == 1000
        assert all(len(name) < 100 and "!" in name for name in found)

    @promise
    async def test_only_the_owner_receives(self) -> None:
        """receive on a specific channel of another process, or of none, says so."""
        a, b = self.layer(), self.layer()
        channel = await b.new_channel()
        await refused(NotOwner, a.receive(channel), a.receive("specific.nobody!1"), naming="specific.")

    # Delivery

    @promise
    async def test_order(self) -> None:
        """Direct and group messages of one sender arrive in the order sent, whoever owns the channel."""
        a, b = self.layer(capacity=1000), self.layer(capacity=1000)
        near, far = await self.member(a, "order"), await self.member(b, "order")
        for number in range(0, 200, 2):
            await a.group_send("order", {"n": number})
            for channel in (near, far):
                await a.send(channel, {"n": number + 1})
        for layer, channel in ((a, near), (b, far)):
            assert [(await self.get(layer, channel))["n"] for _ in range(200)] == list(range(200))

    @promise
    async def test_where_a_message_came_from(self) -> None:
        """origin tells which process sent what was just received, and to which group; of other messages it says nothing."""
        a, b = self.layer(), self.layer()
        far = await self.member(b, "whence")
        for sender in (a, b):
            node = names.channel(await sender.new_channel()).node
            for send, channel, group in (
                (sender.send(far, {"n": 1}), far, None),
                (sender.group_send("whence", {"n": 2}), far, "whence"),
                (sender.send("queue", {"n": 3}), "queue", None),
            ):
                await send
                message = await self.get(b, channel)
                assert b.origin(message) == Origin(node, group)
                assert b.origin(dict(message)) is None

    @promise
    async def test_unread_messages_wait(self) -> None:
        """Messages sent before anybody receives are kept: on specific and on normal channels."""
        a, b = self.layer(), self.layer()
        channel = await b.new_channel()
        for number in range(20):
            await a.send(channel, {"n": number})
            await a.send("early", {"n": number})
        for name in (channel, "early"):
            assert [(await self.get(b, name))["n"] for _ in range(20)] == list(range(20))

    @promise
    async def test_normal_channels_are_shared(self) -> None:
        """Readers in several processes share a normal channel: each message goes to one of them."""
        sender, *readers = [self.layer(capacity=1000) for _ in range(4)]
        got: list[int] = []

        async def reader(layer: ChannelLayer) -> None:
            while True:
                got.append((await layer.receive("shared"))["n"])

        tasks = [asyncio.ensure_future(reader(layer)) for layer in readers for _ in range(2)]
        for number in range(500):
            await sender.send("shared", {"n": number})
        await eventually(lambda: len(got) >= 500, 15, "500 messages are received")
        await self._cancel(*tasks)
        assert sorted(got) == list(range(500))

    @promise
    async def test_cancelling_loses_nothing(self) -> None:
        """A reader that polls with short timeouts gets every message once, on specific and normal channels."""
        a, b = self.layer(capacity=1000), self.layer(capacity=1000)
        specific = await b.new_channel()
        for channel in (specific, "polled"):
            got: list[int] = []

            async def feed(channel: str = channel) -> None:
                for number in range(200):
                    await a.send(channel, {"n": number})
                    await asyncio.sleep(0.0005)

            feeder = asyncio.ensure_future(feed())
            step = 0
            while len(got) < 200:
                step += 1
                with suppress(TimeoutError, asyncio.CancelledError):
                    if step % 2:
                        async with asyncio.timeout(0.0003 * (step % 5)):
                            got.append((await b.receive(channel))["n"])
                    else:
                        message = await asyncio.wait_for(b.receive(channel), 0.002)
                        got.append(message["n"])
            await feeder
            assert got == list(range(200))

    @promise
    async def test_two_receivers_of_one_channel(self) -> None:
        """Two tasks that receive on one specific channel are both served, and one that is cancelled hands on."""
        layer = self.layer()
        channel = await layer.new_channel()
        first, second = (asyncio.ensure_future(layer.receive(channel)) for _ in range(2))
        await asyncio.sleep(0)
        await layer.send(channel, {"n": 1})
        first.cancel()  # woken, and gone before it took the message
        assert await asyncio.wait_for(second, 20) == {"n": 1}
        third = [asyncio.ensure_future(layer.receive(channel)) for _ in range(2)]
        await asyncio.sleep(0)
        await layer.send(channel, {"n": 2})
        await layer.send(channel, {"n": 3})
        assert [await asyncio.wait_for(task, 20) for task in third] == [{"n": 2}, {"n": 3}]

    @promise
    async def test_a_reader_that_is_cancelled_as_its_message_comes(self) -> None:
        """The message is the next reader's, and takes its room in the channel until that has it, and no longer."""
        a, b = self.layer(capacity=3), self.layer(capacity=3)
        channel = await b.new_channel()
        for number in range(8):
            before = b.stats().delivered
            reader = asyncio.ensure_future(b.receive(channel))
            await asyncio.sleep(0)
            await self._until_accepted(a, channel, {"n": number})
            while b.stats().delivered == before:  # noqa: ASYNC110 - the next turn of the loop is too late
                await asyncio.sleep(0)
            reader.cancel()
            (got,) = await asyncio.gather(reader, return_exceptions=True)
            if not isinstance(got, dict):
                got = await self.get(b, channel)
            assert got == {"n": number}
        for number in range(3):
            await self._until_accepted(a, channel, {"n": number})
        await refused(ChannelFull, a.send(channel, {"n": 3}), naming=channel)

    @promise
    async def test_a_message_to_a_dead_process_is_counted(self) -> None:
        """Sending to a channel whose process is gone is no error; the message is dropped and counted."""
        a, b = self.layer(), self.layer()
        channel = await self.member(b, "dead")
        await b.close()
        await a.send(channel, {"type": "x"})
        await a.send("specific.nobody!1", {"type": "x"})
        await a.group_add("dead", channel)
        await a.group_discard("dead", channel)
        await a.group_send("dead", {"type": "x"})
        assert a.stats().gone == 4

    # Capacity

    @promise
    async def test_capacity_is_exact(self) -> None:
        """The message above capacity raises ChannelFull at its sender: own channel, another process's, normal channel."""
        a, b = self.layer(capacity=5), self.layer(capacity=5)
        near, far = await a.new_channel(), await b.new_channel()
        for owner, channel in ((a, near), (b, far), (b, "queue")):
            for number in range(5):
                await a.send(channel, {"n": number})
            await refused(ChannelFull, a.send(channel, {"n": 5}), naming=channel)
            assert [(await self.get(owner, channel))["n"] for _ in range(5)] == list(range(5))
            await self._until_accepted(a, channel, {"n": 6})
            assert (await self.get(owner, channel))["n"] == 6
        assert a.stats().refused >= 3

    @promise
    async def test_capacity_is_per_channel(self) -> None:
        """A full channel takes no room from its neighbours in the same process, nor a full member from its siblings."""
        a, b = self.layer(capacity=5), self.layer(capacity=5)
        slow, quick = await self.member(b, "room"), await self.member(b, "room")
        for number in range(8):
            await a.group_send("room", {"n": number})
            assert (await self.get(b, quick))["n"] == number
        assert [(await self.get(b, slow))["n"] for _ in range(5)] == list(range(5))
        await self.nothing(b, slow, quick)
        assert b.stats().missed == 3

    @promise
    async def test_a_group_flood_leaves_room_for_direct_messages(self) -> None:
        """A channel full of group messages still takes a direct one, after them."""
        a, b = self.layer(capacity=5), self.layer(capacity=5)
        channel = await self.member(b, "flood")
        for number in range(20):
            await a.group_send("flood", {"n": number})
        await a.send(channel, {"n": "direct"})
        # Whoever takes earlier makes room for what is still on its way.
        await eventually(lambda: (b.stats().missed, b.stats().waiting) == (15, 6))
        assert [(await self.get(b, channel))["n"] for _ in range(6)] == [0, 1, 2, 3, 4, "direct"]

    @promise
    async def test_channel_capacity_patterns(self) -> None:
        """channel_capacity takes globs and compiled patterns; the first that matches counts."""
        layer = self.layer(
            capacity=4, channel_capacity={"big.*": 6, re.compile(r"(big|small)\."): 2, "other": 3}
        )
        for channel, room in (("big.q", 6), ("small.q", 2), ("other", 3), ("others", 4)):
            for _ in range(room):
                await layer.send(channel, {"type": "x"})
            await refused(ChannelFull, layer.send(channel, {"type": "x"}))

    @promise
    async def test_process_capacity(self) -> None:
        """All mailboxes of a process together hold process_capacity messages; what is above is told."""
        layer = self.layer(process_capacity=10)
        channels = [await self.member(layer, "all") for _ in range(4)]
        for _ in range(3):
            await layer.group_send("all", {"type": "x"})
        assert layer.stats().missed == 2
        await refused(ChannelFull, layer.send(channels[0], {"type": "x"}))

    # Time

    @promise
    async def test_stale_messages(self) -> None:
        """After expiry a message is not delivered and takes no room: channels, normal channels, groups."""
        a, b = self.layer(expiry=0.8, capacity=3), self.layer(expiry=0.8, capacity=3)
        near, far = await self.member(a, "stale"), await self.member(b, "stale")
        for channel in (near, far, "queue"):
            for _ in range(3):
                await a.send(channel, {"type": "old"})
        await a.group_send("stale", {"type": "old"})
        await asyncio.sleep(1.0)
        patient = self.layer(capacity=3)  # what it sends to others has time to arrive
        for sender, layer, channel in ((a, a, near), (patient, b, far), (patient, b, "queue")):
            await self._until_accepted(sender, channel, {"type": "new"})
            assert await self.get(layer, channel) == {"type": "new"}
        assert a.stats().expired + b.stats().expired >= 6

    @promise
    async def test_group_expiry(self) -> None:
        """A membership ends group_expiry seconds after the channel's last sign of life, not before."""
        a, b = self.layer(group_expiry=0.8, capacity=1000), self.layer(group_expiry=0.8)
        silent, renewed, reading = [await self.member(a, "lease") for _ in range(3)]
        await b.group_add("lease", "queue")
        got: list[Any] = []

        async def read() -> None:
            while True:
                got.append(await a.receive(reading))

        reader = asyncio.ensure_future(read())
        for _ in range(4):
            await asyncio.sleep(0.3)
            await a.group_add("lease", renewed)
        await b.group_send("lease", {"type": "x"})
        await eventually(lambda: got, what="the channel with a waiting receive is a member still")
        assert await self.get(a, renewed) == {"type": "x"}
        await self._cancel(reader)
        await self.nothing(a, silent)
        await self.nothing(b, "queue")

    # Groups

    @promise
    async def test_groups(self) -> None:
        """Members in every process get each message once; adding twice and discarding strangers change nothing."""
        a, b = self.layer(), self.layer()
        members = [(layer, await self.member(layer, "g", "g")) for layer in (a, a, b, b)]
        outsider = await self.member(b, "other")
        left = await self.member(b, "g")
        await b.group_discard("g", left)
        await b.group_discard("g", outsider)
        await b.group_discard("unknown", left)
        for sender in (a, b):
            await sender.group_send("g", {"type": "x"})
        await a.group_send("unknown", {"type": "x"})
        for layer, channel in members:
            for _ in range(2):
                assert await self.get(layer, channel) == {"type": "x"}
            await self.nothing(layer, channel)
        await self.nothing(b, outsider, left)

    @promise
    async def test_groups_of_other_processes(self) -> None:
        """group_add and group_discard work for a channel of another process, and have taken effect on return."""
        a, b, c = self.layer(), self.layer(), self.layer()
        channel = await b.new_channel()
        for number in range(10):
            await a.group_add("remote", channel)
            await c.group_send("remote", {"n": number})
            await a.group_discard("remote", channel)
            await c.group_send("remote", {"n": "no"})
        assert [(await self.get(b, channel))["n"] for _ in range(10)] == list(range(10))
        await self.nothing(b, channel)

    @promise
    async def test_normal_channels_in_groups(self) -> None:
        """A normal channel can be a member: one copy of each message for all its readers; full, it misses what comes."""
        a, b = self.layer(capacity=3), self.layer(capacity=3)
        channel = await self.member(a, "mixed")
        await a.group_add("mixed", "work")
        await b.group_add("mixed", "work")
        for number in range(5):
            await b.group_send("mixed", {"n": number})
            assert (await self.get(a, channel))["n"] == number
        assert b.stats().missed == 2
        assert [(await self.get(layer, "work"))["n"] for layer in (a, b, a)] == [0, 1, 2]
        await a.group_discard("mixed", "work")
        await b.group_send("mixed", {"n": 9})
        await self.nothing(b, "work")

    @promise
    async def test_churn_around_a_stable_member(self) -> None:
        """A member misses nothing while 200 others join, leave and vanish around it."""
        a, b = self.layer(capacity=2000), self.layer(capacity=2000)
        stable = await self.member(b, "churn")

        async def visitor(layer: ChannelLayer, number: int) -> None:
            channel = await layer.new_channel()
            await layer.group_add("churn", channel)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.001 * (number % 4)):
                    await layer.receive(channel)
            if number % 3 == 0:
                await layer.forget(channel)
            else:
                await layer.group_discard("churn", channel)

        async def send() -> None:
            for number in range(400):
                await a.group_send("churn", {"n": number})

        async def visit(layer: ChannelLayer) -> None:
            for number in range(100):
                await visitor(layer, number)

        await together(send(), visit(a), visit(b))
        assert [(await self.get(b, stable))["n"] for _ in range(400)] == list(range(400))

    @promise
    async def test_first_and_last_member_at_once(self) -> None:
        """Joining a group while its last member leaves, many times at once, always ends in a working membership."""
        a, b = self.layer(), self.layer()
        for _ in range(30):
            one, two = await self.member(b, "edge"), await b.new_channel()
            await together(b.group_discard("edge", one), b.group_add("edge", two))
            await a.group_send("edge", {"type": "x"})
            assert await self.get(b, two) == {"type": "x"}
            await b.group_discard("edge", two)

    @promise
    async def test_a_cancelled_group_add_disturbs_nobody(self) -> None:
        """Who joins a group beside one that is cancelled at any moment is in it on return, and gets each message once."""
        a, b = self.layer(), self.layer()
        first, second = await b.new_channel(), await b.new_channel()
        for turns in range(8):
            group = f"cancelled{turns}"
            cancelled = asyncio.ensure_future(b.group_add(group, first))
            beside = asyncio.ensure_future(b.group_add(group, second))
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait_for(beside, 20)
            await b.group_discard(group, first)
            for number in range(2):
                await a.group_send(group, {"n": number})
            assert [await self.get(b, second) for _ in range(2)] == [{"n": 0}, {"n": 1}]
            await self.nothing(b, first)

    @promise
    async def test_forget(self) -> None:
        """forget drops a channel's messages and memberships; a receive that waits on it goes on waiting."""
        a, b = self.layer(), self.layer()
        channel, other = await self.member(b, "f"), await self.member(b, "f")
        await a.send(channel, {"type": "old"})
        await self.nothing(b, other)
        await eventually(lambda: b.stats().delivered >= 2)
        await b.forget(channel)
        await a.group_send("f", {"type": "x"})
        assert await self.get(b, other) == {"type": "x"}
        await self.nothing(b, channel)
        await b.forget(channel)
        waiting = asyncio.ensure_future(b.receive(channel))
        await asyncio.sleep(0)
        await b.forget(channel)
        await a.send(channel, {"type": "again"})
        assert await asyncio.wait_for(waiting, 20) == {"type": "again"}

    @promise
    async def test_gaps_are_told(self) -> None:
        """What the transport reports as lost is counted, given to on_gap, and to the channels that watch for it."""
        told: list[Any] = []
        layer = self.layer(on_gap=lambda group, reason: told.append((group, reason)))
        member, stranger, silent = [await self.member(layer, *groups) for groups in (["gap"], [], ["gap"])]
        for channel in (member, stranger):
            await layer.watch_gaps(channel)
        with _Quiet():
            node = layer._nodes[asyncio.get_running_loop()]
            node.gap("gap", "the log was shorter than the outage")
            node.gap(None, "stopped for too long")
        assert told == [("gap", "the log was shorter than the outage"), (None, "stopped for too long")]
        assert layer.stats().gaps == 2
        lost = {"type": "layer.gap", "group": "gap", "reason": "the log was shorter than the outage"}
        all_lost = {"type": "layer.gap", "group": None, "reason": "stopped for too long"}
        assert [await self.get(layer, member) for _ in range(2)] == [lost, all_lost]
        assert await self.get(layer, stranger) == all_lost
        await self.nothing(layer, member, stranger, silent)
        await refused(NotOwner, layer.watch_gaps("specific.nobody!1"))

    # Encryption

    @promise
    async def test_encryption(self) -> None:
        """Layers that share a key talk; keys rotate; a layer without the key drops the frame, counts it and goes on."""
        old = self.layer(symmetric_encryption_keys=["old"])
        both = self.layer(symmetric_encryption_keys=["new", "old"])
        new = self.layer(symmetric_encryption_keys=["new"])
        plain = self.layer()
        members = {layer: await self.member(layer, "secret") for layer in (old, both, new, plain)}
        with _Quiet():
            await old.group_send("secret", {"from": "old"})
            for layer in (old, both):
                assert await self.get(layer, members[layer]) == {"from": "old"}
            await both.group_send("secret", {"from": "both"})
            for layer in (both, new):
                assert await self.get(layer, members[layer]) == {"from": "both"}
            await old.send(members[new], {"type": "x"})
            await plain.send(members[new], {"type": "x"})
            await old.send("secret.q", {"type": "unreadable"})
            await new.send("secret.q", {"type": "readable"})
            assert await self.get(new, "secret.q") == {"type": "readable"}
            await eventually(lambda: new.stats().unreadable == 4 and plain.stats().unreadable == 2)
        for layer, channel in members.items():
            await self.nothing(layer, channel)

    # Life

    @promise
    async def test_every_process_reports(self) -> None:
        """A survey brings a report of every process that has the layer open, with its counts; each is in good health."""
        a, b, stranger = self.layer(), self.layer(), self.layer(f"{self.unique}x")
        await self.member(b, "reports")
        await stranger.new_channel()
        await b.group_send("reports", {"type": "x"})
        reports: dict[str, Any] = {}
        async with asyncio.timeout(20):
            # A connection that nobody needed so far may still be on its way.
            while len(reports) < 2 or any(report.health.state != "ok" for report in reports.values()):
                reports |= {report.node: report for report in await a.survey(0.2)}
        assert sorted(report.stats.groups for report in reports.values()) == [0, 1]
        assert sum(report.stats.group_sent for report in reports.values()) == 1
        assert sum(report.stats.waiting for report in reports.values()) == 1
        for health in (a.health(), b.health(), *(report.health for report in reports.values())):
            assert (health.state, health.reasons) == ("ok", [])

    @promise
    async def test_flush(self) -> None:
        """flush leaves a blank state in every process: no messages, no members; receivers go on waiting."""
        a, b = self.layer(), self.layer()
        channel = await self.member(b, "flushed")
        await a.group_add("flushed", "queue")
        await a.send("queue", {"type": "old"})
        await a.send(channel, {"type": "old"})
        await eventually(lambda: b.stats().delivered)
        await a.flush()
        await a.group_send("flushed", {"type": "old"})
        await self.nothing(b, "queue")
        await eventually(lambda: not b._nodes[asyncio.get_running_loop()]._board.groups)
        await self.nothing(b, channel)
        await b.group_add("flushed", channel)
        await a.group_send("flushed", {"type": "new"})
        assert await self.get(b, channel) == {"type": "new"}

    @promise
    async def test_close_and_use_again(self) -> None:
        """close ends waiting receivers with LayerClosed; the same object works again afterwards."""
        layer = self.layer()
        channel = await layer.new_channel()
        waiting = [asyncio.ensure_future(layer.receive(name)) for name in (channel, "queue")]
        await asyncio.sleep(0.02)
        await layer.close()
        await layer.close_pools()
        await refused(LayerClosed, *waiting)
        channel = await self.member(layer, "again")
        await layer.group_send("again", {"type": "x"})
        assert await self.get(layer, channel) == {"type": "x"}

    @promise
    async def test_prefixes_never_meet(self) -> None:
        """Layers of different prefixes share neither channels nor groups."""
        a, b = self.layer(), self.layer(prefix=self.unique + "other")
        mine, theirs = await self.member(a, "same"), await self.member(b, "same")
        await a.send("queue", {"from": "a"})
        await b.send("queue", {"from": "b"})
        await a.group_send("same", {"from": "a"})
        assert await self.get(b, "queue") == {"from": "b"}
        assert await self.get(a, mine) == {"from": "a"}
        await self.nothing(b, theirs)

    @promise
    async def test_making_one_needs_nothing(self) -> None:
        """A layer can be made in a thread without a loop, costs nothing until used, and may be thrown away unused."""
        made: list[ChannelLayer] = []
        thread = threading.Thread(target=lambda: made.append(self.layer()))
        thread.start()
        await asyncio.to_thread(thread.join)
        channel = await self.member(made[0], "g")
        await made[0].group_send("g", {"type": "x"})
        assert await self.get(made[0], channel) == {"type": "x"}

    @promise
    async def test_a_dropped_layer_leaves(self) -> None:
        """A layer object that nobody holds any more closes what it had open."""
        a = self.layer()
        b = self.make_layer(self.unique)
        channel = await self.member(b, "g")
        del b
        gc.collect()

        async def gone() -> bool:
            before = a.stats().gone
            await a.send(channel, {"type": "x"})
            return a.stats().gone > before

        async with asyncio.timeout(20):
            while not await gone():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    # Delays and leases

    def lessor(self, **options: Any) -> ChannelLayer:
        layer = self.layer(**options)
        if "leases" not in layer.extensions:
            raise NotOffered("its transport has no leases")
        return layer

    @promise
    async def test_delayed_messages_wait(self) -> None:
        """A delayed message is received when it is due, not before: own channel, another process's, normal channel."""
        a, b = self.lessor(), self.layer()
        owners = {await a.new_channel(): a, await b.new_channel(): b, "queue": b}
        start = time.monotonic()
        await together(*(a.send(channel, {"type": "late"}, delay=0.8) for channel in owners))
        await together(*(a.send(channel, {"type": "early"}) for channel in owners))
        in_time = time.monotonic() - start < 0.7

        async def receive(channel: str) -> None:
            kinds = []
            for _ in range(2):
                kinds.append((await self.get(owners[channel], channel))["type"])
                assert kinds[-1] == "early" or time.monotonic() - start > 0.7
            assert sorted(kinds) == ["early", "late"]
            assert (
                kinds[0] == "early" or not in_time
            )  # a machine that stood still may send both when one is due

        await together(*map(receive, owners))

    @promise
    async def test_delayed_messages_outlive_their_sender(self) -> None:
        """The process that sent a delayed message may be gone when it is due."""
        a, b = self.lessor(), self.layer()
        far = await b.new_channel()
        for channel in (far, "queue"):
            await a.send(channel, {"type": "testament"}, delay=0.3)
        await a.close()
        for channel in (far, "queue"):
            assert await self.get(b, channel) == {"type": "testament"}

    @promise
    async def test_delayed_messages_are_bounded(self) -> None:
        """As many messages as the capacity says may be delayed; the next raises ChannelFull at its sender."""
        a, b = self.lessor(capacity=3), self.layer(capacity=3)
        near, far = await a.new_channel(), await b.new_channel()
        for owner, channel in ((a, near), (b, far), (b, "queue")):
            for _ in range(3):
                await a.send(channel, {"type": "x"}, delay=30)
            await refused(ChannelFull, a.send(channel, {"type": "x"}, delay=30), naming=channel)
            if channel == "queue":  # what waits there has its own room
                await a.send(channel, {"type": "now"})
                assert await self.get(owner, channel) == {"type": "now"}
        await a.flush()
        await a.send("queue", {"type": "again"}, delay=0.01)
        assert await self.get(b, "queue") == {"type": "again"}

    @promise
    async def test_wrong_delays_and_leases(self) -> None:
        """A delay or a lease that is no number of seconds, and a lease on a channel of one process, are refused."""
        layer = self.lessor()
        channel = await layer.new_channel()
        for wrong in (-1, float("nan"), float("inf"), True, "1"):
            await refused(
                UsageError,
                layer.send("queue", {"type": "x"}, delay=wrong),  # type: ignore[arg-type]
                layer.lease("queue", wrong),  # type: ignore[arg-type]
                naming="number of seconds",
            )
        await refused(UsageError, layer.lease(channel), naming=channel)
        await refused(InvalidName, layer.lease("a b"), layer.send("a b", {"type": "x"}, delay=1))

    @promise
    async def test_leased_messages_are_received_at_least_once(self) -> None:
        """A leased message that was not acknowledged comes back: when its process is gone, or when it was given back."""
        a, b, c = self.lessor(), self.layer(), self.layer()
        for number in range(3):
            await a.send("queue", {"n": number})
        first = await b.lease("queue")
        assert (first.message, first.tries) == ({"n": 0}, 1)
        assert await first.ack()
        assert not await first.ack()
        second = await b.lease("queue")
        assert await second.retry()
        async with asyncio.timeout(20):
            again = await c.lease("queue")
        assert (again.message, again.tries) == ({"n": 1}, 2)
        third = await b.lease("queue", 0.5)
        assert (third.message, third.tries) == ({"n": 2}, 1)
        await b.close()
        async with asyncio.timeout(20):
            back = await c.lease("queue")
        assert (back.message, back.tries) == ({"n": 2}, 2)
        assert await back.extend(30)
        assert await back.ack()
        assert await again.ack()
        await a.send("queue", {"type": "fence"})
        assert await self.get(c, "queue") == {"type": "fence"}

    @promise
    async def test_stale_messages_are_not_leased(self) -> None:
        """What nobody has taken for expiry seconds is not leased; what comes back can be leased for as long anew."""
        a = self.lessor(expiry=0.8)
        await a.send("queue", {"type": "stale"})
        await asyncio.sleep(1.0)
        await a.send("queue", {"type": "live"})
        lease = await a.lease("queue")
        assert lease.message == {"type": "live"}
        await asyncio.sleep(1.0)
        assert await lease.retry()
        async with asyncio.timeout(10):
            assert (await a.lease("queue")).message == {"type": "live"}

    @promise
    async def test_attributes(self) -> None:
        """What code written for other layers looks up is there."""
        layer = self.layer(expiry=7, group_expiry=8, capacity=9, channel_capacity={"a*": 3})
        assert {"groups", "flush"} <= set(layer.extensions)
        assert (layer.expiry, layer.group_expiry, layer.capacity) == (7, 8, 9)
        assert [(bool(rule.match("abc")), size) for rule, size in layer.channel_capacity] == [(True, 3)]
        assert issubclass(layer.ChannelFull, Exception)
        assert issubclass(layer.MessageTooLarge, Exception)
        for method in (
            "send",
            "receive",
            "new_channel",
            "group_add",
            "group_discard",
            "group_send",
            "flush",
            "close",
        ):
            assert inspect.iscoroutinefunction(getattr(layer, method))

    # Loops and threads

    @promise
    async def test_async_to_sync_from_threads(self) -> None:
        """200 async_to_sync calls from plain threads open one node between them, and their state lasts."""
        layer, other = self.layer(capacity=1000), self.layer(capacity=1000)
        far = await self.member(other, "sync")

        def work(mark: int) -> list[Any]:
            channel = async_to_sync(layer.new_channel)()
            async_to_sync(layer.group_add)(f"mine{mark}", channel)
            for number in range(10):
                async_to_sync(layer.group_send)("sync", {"n": mark * 10 + number})
                async_to_sync(layer.group_send)(f"mine{mark}", {"n": number})
            return [async_to_sync(layer.receive)(channel)["n"] for _ in range(10)]

        for mark in range(0, 8, 2):
            pair = await together(*[asyncio.to_thread(self._plain, work, mark + more) for more in (0, 1)])
            assert pair == [list(range(10))] * 2
        assert len(layer._nodes) == 1
        got = [(await self.get(other, far))["n"] for _ in range(80)]
        assert sorted(got) == list(range(80))

    @promise
    async def test_the_synchronous_face(self) -> None:
        """layer.sync does without await what the layer does, from any thread; in a running loop it refuses."""
        layer, other = self.layer(), self.layer()
        far = await self.member(other, "face")

        def work() -> Any:
            channel = layer.sync.new_channel()
            layer.sync.group_add("face", channel)
            layer.sync.group_send("face", {"n": 1})
            layer.sync.send(far, {"n": 2})
            first = layer.sync.receive(channel, timeout=20)
            try:
                layer.sync.receive(channel, timeout=0.05)
            except TimeoutError:
                layer.sync.group_discard("face", channel)
                layer.sync.group_send("face", {"n": 3})
                layer.sync.send("queue", {"n": 4})
                return first, layer.sync.receive("queue", timeout=20)
            raise AssertionError("a message came out of nowhere")

        assert await asyncio.to_thread(work) == ({"n": 1}, {"n": 4})
        assert [(await self.get(other, far))["n"] for _ in range(3)] == [1, 2, 3]
        try:
            layer.sync.send(far, {"n": 5})
        except RuntimeError as error:
            assert "await layer.send" in str(error)  # noqa: PT017
        else:
            raise AssertionError("it blocked the loop")

    @promise
    async def test_two_running_loops(self) -> None:
        """One layer object serves several running loops at once; a channel can be received on from another loop."""
        layer = self.layer(capacity=1000)
        here = await self.member(layer, "loops")
        ready = threading.Event()
        results: list[Any] = []

        async def elsewhere() -> None:
            there = await self.member(layer, "loops")
            ready.set()
            for _ in range(50):
                results.append((await layer.receive(there))["n"])
            await layer.send(here, {"n": "done"})

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await asyncio.to_thread(ready.wait, 10)
        for number in range(50):
            await layer.group_send("loops", {"n": number})
        got = [(await self.get(layer, here))["n"] for _ in range(51)]
        await asyncio.to_thread(thread.join, 10)
        assert results == list(range(50))
        assert got == [*range(50), "done"]

    @promise
    async def test_cancelling_across_loops_loses_nothing(self) -> None:
        """A receive from another loop that times out at any moment takes nothing with it."""
        layer = self.layer(capacity=1000)
        channel = await layer.new_channel()
        got: list[int] = []

        async def poll() -> None:
            step = 0
            while len(got) < 100:
                step += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.0004 * (step % 6)):
                        got.append((await layer.receive(channel))["n"])

        thread = threading.Thread(target=lambda: asyncio.run(poll()))
        thread.start()
        for number in range(100):
            await layer.send(channel, {"n": number})
            await asyncio.sleep(0.001)
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert sorted(got) == list(range(100))

    @promise
    async def test_loops_one_after_the_other(self) -> None:
        """asyncio.run may be called any number of times with one layer object; each run's node ends with its loop."""
        layer, witness = self.layer(), self.layer()
        seen = await self.member(witness, "runs")

        async def run(number: int) -> str:
            channel = await self.member(layer, "runs")
            await layer.group_send("runs", {"n": number})
            assert (await self.get(layer, channel))["n"] == number
            return channel

        channels = [await asyncio.to_thread(asyncio.run, run(number)) for number in range(5)]
        assert [(await self.get(witness, seen))["n"] for _ in range(5)] == list(range(5))
        assert not layer._nodes
        for channel in channels:
            await witness.send(channel, {"type": "x"})
        assert witness.stats().gone == 5

    # Tools

    async def _until_accepted(self, layer: ChannelLayer, channel: str, message: Any) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await layer.send(channel, message)
                except ChannelFull:
                    await asyncio.sleep(0.01)

    # History

    def rememberer(self, **options: Any) -> ChannelLayer:
        layer = self.layer(**options)
        if "history" not in layer._first.features:
            raise NotOffered("its transport has no history")
        layer = self.layer(history={"room.*": {"size": 50, "seconds": 60}}, **options)
        assert "history" in layer.extensions
        return layer

    @promise
    async def test_history_is_what_members_got(self) -> None:
        """A group that remembers gives every member, and whoever asks later, the same events in the same order."""
        a, b, c = (self.rememberer() for _ in range(3))
        group = "room." + self.fresh("g")
        start = await a.group_position(group)
        assert await b.group_position(group) == start
        assert await c.group_history(group) == []
        channels = [(layer, await self.member(layer, group)) for layer in (a, b, b)]

        async def send(layer: ChannelLayer, mark: int) -> None:
            for number in range(15):
                await layer.group_send(group, {"type": "x", "sender": mark, "n": number})

        await asyncio.gather(send(a, 0), send(b, 1), send(c, 2))
        got = [[await self.get(layer, channel) for _ in range(45)] for layer, channel in channels]
        history = await c.group_history(group)
        assert got == [history] * 3
        for mark in range(3):
            assert [event["n"] for event in history if event["sender"] == mark] == list(range(15))
        for place in (0, 17, 44):
            since = await b.group_history(group, since=history[place]["position"])
            assert since == history[place + 1 :]
        assert await a.group_history(group, since=start, limit=7) == history[:7]
        assert await a.group_history(group, limit=7) == history[-7:]
        assert await b.group_position(group) == history[-1]["position"]

    @promise
    async def test_history_outlives_its_processes(self) -> None:
        """What a group remembers can be asked for when everybody who sent or got it is gone."""
        a, b = self.rememberer(), self.rememberer()
        group = "room." + self.fresh("g")
        position = await a.group_position(group)
        await a.group_send(group, {"type": "x", "data": "x" * 100_000})
        await a.close()
        (event,) = await b.group_history(group, since=position)
        assert event["data"] == "x" * 100_000

    @promise
    async def test_a_lost_position_is_told(self) -> None:
        """A position too old, of another group, of a flushed or of no history is refused with HistoryLost."""
        layer = self.rememberer()
        group, other = "room." + self.fresh("g"), "room." + self.fresh("o")
        old = await layer.group_position(group)
        foreign = await layer.group_position(other)
        for number in range(51):
            await layer.group_send(group, {"type": "x", "n": number})
        newest = await layer.group_position(group)
        assert await layer.group_history(group, since=newest) == []
        for position in (old, foreign, "junk", f"{newest}0"):
            await refused(HistoryLost, layer.group_history(group, since=position))
        await layer.flush()
        await layer.group_send(group, {"type": "x"})
        await refused(HistoryLost, layer.group_history(group, since=newest))

    @promise
    async def test_history_has_its_bounds(self) -> None:
        """Only groups named in history remember; a message there may not have a position of its own."""
        layer = self.rememberer()
        plain = self.fresh("plain")
        await refused(
            ConfigurationError, layer.group_history(plain), layer.group_position(plain), naming=plain
        )
        await refused(InvalidMessage, layer.group_send("room.a", {"type": "x", "position": 1}))
        await refused(InvalidMessage, layer.group_history("room.a", limit=0))
        channel = await self.member(layer, plain)
        await layer.group_send(plain, {"type": "x", "position": 1})
        assert await self.get(layer, channel) == {"type": "x", "position": 1}

    @promise
    async def test_normal_channels_hear_groups_that_remember(self) -> None:
        """A normal channel in a group that remembers gets the events too, with their positions."""
        layer = self.rememberer()
        group = "room." + self.fresh("g")
        await layer.group_add(group, "queue")
        await layer.group_send(group, {"type": "x"})
        assert [await self.get(layer, "queue")] == await layer.group_history(group)

    # Targeted

    @promise
    async def test_excluded_members_get_nothing(self) -> None:
        """Members named in exclude are passed over, in every process, normal channels too; nobody else is."""
        a, b = self.layer(), self.layer()
        group = self.fresh("g")
        mine, yours, third = [await self.member(layer, group) for layer in (a, b, b)]
        await a.group_add(group, "queue")
        await a.group_send(group, {"type": "all"})
        await a.group_send(group, {"type": "few"}, exclude=[yours, "queue"])
        await a.group_send(group, {"type": "one"}, exclude=mine)
        await a.group_send(group, {"type": "end"})
        for layer, channel, missing in (
            (a, mine, {"one"}),
            (b, yours, {"few"}),
            (b, third, set()),
            (a, "queue", {"few"}),
        ):
            expected = [kind for kind in ("all", "few", "one", "end") if kind not in missing]
            assert [(await self.get(layer, channel))["type"] for _ in expected] == expected
        await refused(InvalidName, a.group_send(group, {"type": "x"}, exclude="a b"))

    @promise
    async def test_several_groups_are_sent_to_once(self) -> None:
        """A message to several groups reaches who is in more than one of them once; messages of others do not matter."""
        a, b = self.layer(), self.layer()
        groups = [self.fresh("g") for _ in range(3)]
        both = await self.member(b, *groups[:2])
        one = await self.member(b, groups[2])
        none = await self.member(b, self.fresh("other"))
        for number in range(5):
            await a.groups_send(groups, {"n": number})
        await a.groups_send([groups[0], groups[0]], {"n": 5})
        assert [(await self.get(b, both))["n"] for _ in range(6)] == list(range(6))
        assert [(await self.get(b, one))["n"] for _ in range(5)] == list(range(5))
        await self.nothing(b, both, one, none)
        await a.groups_send([], {"n": 6})
        await refused(InvalidName, a.groups_send([groups[0], "a b"], {"n": 7}))
        await self.nothing(b, both)

    @promise
    async def test_an_id_is_taken_once(self) -> None:
        """A message sent again with the same id is delivered once; another address or another id is another message."""
        a, b = self.layer(), self.layer()
        group, other = self.fresh("g"), self.fresh("o")
        mine, yours = await self.member(a, group), await self.member(b, group, other)
        for layer in (a, b, a):
            await layer.group_send(group, {"type": "once"}, id="order 1")
            await layer.send(yours, {"type": "direct"}, id="order 1")
        await a.group_send(other, {"type": "other"}, id="order 1")
        await a.group_send(group, {"type": "end"}, id="order 2")
        assert [(await self.get(a, mine))["type"] for _ in range(2)] == ["once", "end"]
        kinds = sorted([(await self.get(b, yours))["type"] for _ in range(4)])
        assert kinds == ["direct", "end", "once", "other"]
        await self.nothing(a, mine)
        await self.nothing(b, yours)
        await refused(
            InvalidMessage, a.send("queue", {"type": "x"}, id="1"), a.send(yours, {"type": "x"}, id="")
        )
        # What was not delivered again does not count either.
        small = self.layer(capacity=3)
        channel = await small.new_channel()
        for _ in range(20):
            await a.send(channel, {"type": "x"}, id="again")
        await self.get(small, channel)

    @promise
    async def test_many_at_once(self) -> None:
        """send_many and group_send_many send all in order, and say of each what became of it."""
        a, b = self.layer(), self.layer(capacity=3)
        group = self.fresh("g")
        one, two = await self.member(b, group), await b.new_channel()
        outcome = await a.send_many(
            [(one, {"n": 0}), ("a b", {"n": 1}), (two, {"n": 2}), (one, {"n": object()}), (one, {"n": 3})]
        )
        assert [type(each) for each in outcome] == [
            type(None),
            InvalidName,
            type(None),
            InvalidMessage,
            type(None),
        ]
        # Over several servers there is no order between what one and what a group is sent.
        assert [(await self.get(b, one))["n"] for _ in range(2)] == [0, 3]
        assert await a.group_send_many([(group, {"n": 4}), (group, {"n": 5})]) == [None, None]
        assert [(await self.get(b, one))["n"] for _ in range(2)] == [4, 5]
        assert (await self.get(b, two))["n"] == 2

    # Overflow

    @promise
    async def test_overflow_policies(self) -> None:
        """A full channel drops what is new, what is oldest or all but the newest, as its pattern says; each is counted."""
        options: dict[str, Any] = {
            "capacity": 3,
            "overflow": {"oldest.*": "drop oldest", "latest.*": "latest only", "newest.*": "drop newest"},
        }
        sender, layer = self.layer(), self.layer(**options)
        group = self.fresh("g")
        expected = {"plain": [0, 1, 2], "newest": [0, 1, 2], "oldest": [4, 5, 6], "latest": [6]}
        channels = {}
        for prefix in expected:
            channels[prefix] = await layer.new_channel(prefix)
            await layer.group_add(group, channels[prefix])
        with _Quiet():
            for number in range(7):
                await sender.group_send(group, {"n": number})
            last = await self.member(layer, self.fresh("fence"))
            await sender.send(last, {"type": "fence"})
            await self.get(layer, last)
        for prefix, numbers in expected.items():
            assert [(await self.get(layer, channels[prefix]))["n"] for _ in numbers] == numbers, prefix
            await self.nothing(layer, channels[prefix])
        missed = {name: pattern.missed for name, pattern in layer.stats().patterns.items() if pattern.missed}
        assert missed == {"plain.*": 4, "newest.*": 4, "oldest.*": 4, "latest.*": 2}

    @promise
    async def test_direct_messages_survive_an_overflow(self) -> None:
        """Whatever a full channel drops, it is never a message that was sent to the channel itself."""
        layer = self.layer(capacity=2, overflow={"*": "latest only"})
        group = self.fresh("g")
        channel = await self.member(layer, group)
        await layer.send(channel, {"n": "direct"})
        with _Quiet():
            for number in range(6):
                await layer.group_send(group, {"n": number})
        got = [(await self.get(layer, channel))["n"] for _ in range(2)]
        assert got == ["direct", 5]

    @promise
    async def test_overflow_can_close(self) -> None:
        """A channel whose pattern says so tells its consumer to close, with the code; nothing follows."""
        layer = self.layer(capacity=2, overflow={"strict.*": "close 4008"})
        group = self.fresh("g")
        channel = await layer.new_channel("strict")
        await layer.group_add(group, channel)
        with _Quiet():
            for number in range(6):
                await layer.group_send(group, {"n": number})
        assert await self.get(layer, channel) == {"type": "layer.close", "code": 4008}
        with _Quiet():
            await layer.group_send(group, {"n": 6})
        assert layer.stats().waiting == 0

    @promise
    async def test_latest_only_groups(self) -> None:
        """Of a group that is latest_only a slow member gets the newest message only; of other groups everything."""
        a, b = self.layer(latest_only=["cursor.*"]), self.layer(latest_only=["cursor.*"])
        group, other = "cursor." + self.fresh("g"), self.fresh("chat")
        channel = await self.member(b, group, other)
        for number in range(5):
            await a.group_send(group, {"cursor": number})
            await a.group_send(other, {"chat": number})
        await eventually(
            lambda: b.stats().waiting == 6 and b.stats().replaced == 4, self.patience, "all came"
        )
        got = [await self.get(b, channel) for _ in range(6)]
        assert got == [{"cursor": 4}, *({"chat": number} for number in range(5))]
        await a.group_send(group, {"cursor": 5})
        assert await self.get(b, channel) == {"cursor": 5}
        assert b.stats().replaced == 4

    @staticmethod
    async def _cancel(*tasks: asyncio.Future[Any]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _plain(work: Any, *args: Any) -> Any:
        """Run in a thread that has no event loop above it, as a WSGI worker's or a task queue's."""
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(work(*args)))
        thread.start()
        thread.join()
        return result[0]


class _Quiet:
    """Expected warnings stay out of the log."""

    def __enter__(self) -> None:
        logging.getLogger("trunkline").addFilter(self._drop)

    def __exit__(self, *_: Any) -> None:
        logging.getLogger("trunkline").removeFilter(self._drop)

    @staticmethod
    def _drop(record: logging.LogRecord) -> bool:
        return False
