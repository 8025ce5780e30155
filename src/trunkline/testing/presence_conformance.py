# ruff: noqa: S101
"""What users are promised of presence, as tests."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import InvalidMessage, InvalidName, MessageTooLarge, UsageError
from ..layer import ChannelLayer
from ..presence import Presence
from .kit import Kit, NotOffered, promise, refused, together

__all__ = ["PresenceConformance"]

#: Seconds of a lease that a test lets end.
SHORT = 0.4


class PresenceConformance(Kit):
    """The part of ``LayerConformance`` for layers with "presence" among their extensions."""

    @abstractmethod
    def layer(self, prefix: str | None = None, **options: Any) -> ChannelLayer:
        """A layer, closed after the test."""

    @abstractmethod
    async def get(self, layer: ChannelLayer, channel: str, timeout: float = 10.0) -> Any:
        """The next message on a channel."""

    @abstractmethod
    async def nothing(self, layer: ChannelLayer, *channels: str) -> None:
        """No message waits on any of the channels, nor is on its way there."""

    @abstractmethod
    async def member(self, layer: ChannelLayer, *groups: str) -> str:
        """A channel in these groups."""

    def attended(self, count: int, **options: Any) -> list[ChannelLayer]:
        """So many layers that know who is there."""
        layers = [self.layer(**options) for _ in range(count)]
        if "presence" not in layers[0].extensions:
            raise NotOffered("its transport keeps no records")
        return layers

    async def present(self, layer: ChannelLayer, group: str, **options: Any) -> str:
        """A channel that is present in a group."""
        channel = await layer.new_channel()
        await layer.group_add(group, channel, **{"presence": {}, **options})
        return channel

    def presence_of(self, layer: ChannelLayer) -> Presence:
        """The part of it whose pace is set here, and whose death is played."""
        return layer._nodes[asyncio.get_running_loop()]._present()

    async def hurry(self, *layers: ChannelLayer) -> None:
        """Let these look around often."""
        for layer in layers:
            await layer.new_channel()
            self.presence_of(layer).beat = self.presence_of(layer).retry = 0.05

    async def until(self, ask: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until an answer is yes."""
        deadline = time.monotonic() + self.patience
        while not await ask():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.02)

    def event(self, kind: str, channel: str, user: str | None, presence: Any) -> dict[str, Any]:
        kind = f"presence.{kind}"
        return {"type": kind, "group": "room", "user": user, "channel": channel, "presence": presence}

    @promise
    async def test_who_is_present(self) -> None:
        """Every process sees the members added with a presence: whose they are, what is told of them, since when."""
        a, b = self.attended(2)
        before = time.time()
        await self.member(a, "room")
        one = await self.present(a, "room", presence={"name": "Ann", "n": [1, {"deep": b"x"}]}, user="ann")
        await asyncio.sleep(0.01)
        two = await self.present(b, "room", presence={"name": "Ann 2"}, user="ann")
        await asyncio.sleep(0.01)
        three = await self.present(b, "room")
        for layer in (a, b):
            found = await layer.presence("room")
            assert [tuple(each)[:3] for each in found] == [
                (one, "ann", {"name": "Ann", "n": [1, {"deep": b"x"}]}),
                (two, "ann", {"name": "Ann 2"}),
                (three, None, {}),
            ]
            assert [each.since for each in found] == sorted(each.since for each in found)
            assert abs(found[0].since - before) < 60
            assert await layer.presence_count("room") == (3, 1)
            assert await layer.presence("other") == []
        await b.group_discard("room", three)
        await b.forget(two)
        assert [each.channel for each in await a.presence("room")] == [one]
        await a.group_discard("room", one)
        assert await b.presence("room") == []
        assert await b.presence_count("room") == (0, 0)

    @promise
    async def test_a_presence_changes(self) -> None:
        """A later group_add with another presence replaces it, and keeps its time; one without leaves it alone."""
        a, b = self.attended(2)
        channel = await self.present(a, "room", presence={"is": "here"}, user="ann")
        (first,) = await b.presence("room")
        await a.group_add("room", channel)
        assert await b.presence("room") == [first]
        await a.group_add("room", channel, presence={"is": "away"}, user="ann")
        assert await b.presence("room") == [first._replace(metadata={"is": "away"})]
        await a.group_add("room", channel, presence={"is": "away"}, user="bob")
        assert [each.user for each in await b.presence("room")] == ["bob"]
        assert await b.presence_count("room") == (1, 1)

    @promise
    async def test_events_once_per_user(self) -> None:
        """A user with channels in several processes is told to join with the first and to leave with the last."""
        a, b = self.attended(2)
        watcher = await self.member(b, "room")
        ann: dict[str, Any] = {"presence": {"name": "Ann"}, "user": "ann", "announce": True}
        one = await self.present(a, "room", **ann)
        assert await self.get(b, watcher) == self.event("join", one, "ann", {"name": "Ann"})
        assert await self.get(a, one) == self.event("join", one, "ann", {"name": "Ann"})
        two, three = await self.present(b, "room", **ann), await self.present(a, "room", **ann)
        await self.nothing(b, watcher)
        await a.group_discard("room", one)
        await a.forget(three)
        await self.nothing(b, watcher, two)
        await b.group_discard("room", two)
        assert await self.get(b, watcher) == self.event("leave", two, "ann", {"name": "Ann"})
        await self.nothing(b, watcher, two)

    @promise
    async def test_events_of_members_without_a_user(self) -> None:
        """A member without a user is told by itself; one that was not to be announced never is."""
        a, b = self.attended(2)
        watcher = await self.member(b, "room")
        quiet = await self.present(a, "room", presence={"n": 0})
        channels = [await self.present(a, "room", presence={"n": n}, announce=True) for n in (1, 2)]
        for n, channel in enumerate(channels, 1):
            assert await self.get(b, watcher) == self.event("join", channel, None, {"n": n})
        for n, channel in enumerate(channels, 1):
            await a.group_discard("room", channel)
            assert await self.get(b, watcher) == self.event("leave", channel, None, {"n": n})
        await a.group_discard("room", quiet)
        await self.nothing(b, watcher)

    @promise
    async def test_one_event_of_many_at_once(self) -> None:
        """However many channels of a user come or go at once, in several processes, there is one event."""
        a, b = self.attended(2)
        watcher = await self.member(b, "room")
        for _ in range(5):
            layers = [a, b] * 10
            channels = [await layer.new_channel() for layer in layers]
            both = list(zip(layers, channels, strict=True))
            await together(
                *[layer.group_add("room", one, presence={}, user="ann", announce=True) for layer, one in both]
            )
            # Before anybody goes: between two senders there is no order.
            assert (await self.get(b, watcher))["type"] == "presence.join"
            await together(
                *[
                    layer.group_discard("room", one) if index % 3 else layer.forget(one)
                    for index, (layer, one) in enumerate(both)
                ]
            )
            assert (await self.get(b, watcher))["type"] == "presence.leave"
            await self.nothing(b, watcher)
        assert await a.presence_count("room") == (0, 0)

    @promise
    async def test_presence_of_another_process(self) -> None:
        """group_add with a presence works for a channel of another process, and ends with that process."""
        a, b = self.attended(2)
        watcher, channel = await self.member(a, "room"), await b.new_channel()
        await a.group_add("room", channel, presence={"by": "a"}, user="ann", announce=True)
        assert await self.get(a, watcher) == self.event("join", channel, "ann", {"by": "a"})
        assert [tuple(each)[:3] for each in await a.presence("room")] == [(channel, "ann", {"by": "a"})]
        await a.group_discard("room", channel)
        assert await self.get(a, watcher) == self.event("leave", channel, "ann", {"by": "a"})
        await a.group_add("room", channel, presence={"by": "a"}, user="ann", announce=True)
        await b.close()
        assert [(await self.get(a, watcher))["type"] for _ in "ab"] == ["presence.join", "presence.leave"]
        assert await a.presence("room") == []

    @promise
    async def test_a_bad_presence_is_refused(self) -> None:
        """What cannot be a presence is refused with its reason, and the channel does not become a member."""
        (layer,) = self.attended(1)
        channel = await layer.new_channel()

        def add(**options: Any) -> Awaitable[None]:
            return layer.group_add("room", channel, **options)

        await refused(InvalidMessage, add(presence={"a": {1}}), naming="message['presence']['a']: set")
        await refused(InvalidMessage, add(presence=["x"]), naming="list")
        await refused(InvalidMessage, add(presence={}, user=7), add(presence={}, user=""), naming="user")
        await refused(InvalidMessage, add(presence={}, announce="yes"), naming="announce")
        await refused(InvalidMessage, add(user="ann"), add(announce=True), naming="presence={")
        await refused(MessageTooLarge, add(presence={"x": "y" * 5000}), naming="4,096")
        await refused(UsageError, layer.group_add("room", "jobs", presence={}), naming="jobs")
        await refused(InvalidName, layer.presence("a b"), layer.presence_count("a b"))
        await layer.group_send("room", {"type": "x"})
        await self.nothing(layer, channel)
        assert await layer.presence("room") == []

    @promise
    async def test_members_of_a_closed_layer_leave(self) -> None:
        """Closing a layer takes its members away at once, and tells of it."""
        a, b = self.attended(2)
        watcher = await self.member(a, "room")
        channels = [await self.present(b, "room", announce=True) for _ in range(20)]
        for channel in channels:
            assert await self.get(a, watcher) == self.event("join", channel, None, {})
        await b.close()
        left = [(await self.get(a, watcher))["channel"] for _ in channels]
        assert sorted(left) == sorted(channels)
        assert await a.presence("room") == []
        await self.nothing(a, watcher)

    @promise
    async def test_members_of_a_dead_process_leave(self) -> None:
        """The members of a process that died without a word leave by themselves, each told once, by one of the others."""
        a, b, dead = self.attended(3)
        await self.hurry(a, b)
        watcher = await self.member(a, "room")
        stays = [await self.present(layer, "room", user="bob", announce=True) for layer in (a, b)]
        gone = [await self.present(dead, "room", user=f"ann{n % 5}", announce=True) for n in range(20)]
        shared = await self.present(dead, "room", user="bob", announce=True)
        presence = self.presence_of(dead)
        presence.lease = SHORT
        await presence._renew()
        presence.abandon()
        dead._nodes[asyncio.get_running_loop()]._presence = None  # it says nothing from here on
        joined = [await self.get(a, watcher) for _ in range(6)]
        assert sorted(event["user"] for event in joined) == ["ann0", "ann1", "ann2", "ann3", "ann4", "bob"]
        left = [await self.get(a, watcher) for _ in range(5)]
        assert {event["type"] for event in left} == {"presence.leave"}
        assert sorted(event["user"] for event in left) == ["ann0", "ann1", "ann2", "ann3", "ann4"]
        assert {event["channel"] for event in left} < set(gone)

        async def only_those_who_stay() -> bool:
            return sorted(each.channel for each in await b.presence("room")) == sorted(stays)

        await self.until(only_those_who_stay, "the dead are gone")
        assert await b.presence_count("room") == (2, 1)
        await self.nothing(a, watcher)
        assert shared not in stays

    @promise
    async def test_who_comes_back_is_told_again(self) -> None:
        """Members of a process that was cut off for longer than its lease leave and join again, each told once."""
        a, late = self.attended(2)
        await self.hurry(a)
        watcher = await self.member(a, "room")
        await self.present(a, "room")
        await late.new_channel()
        presence = self.presence_of(late)
        presence.beat = 3600.0  # it cannot show life
        channels = [await self.present(late, "room", user=user, announce=True) for user in ("ann", "bob")]
        presence.lease = SHORT
        await presence._renew()
        events = [await self.get(a, watcher) for _ in range(4)]
        assert [event["type"] for event in events] == ["presence.join"] * 2 + ["presence.leave"] * 2
        presence.lease = 10.0
        await presence._renew()
        events = [await self.get(a, watcher) for _ in range(2)]
        assert {(event["type"], event["channel"]) for event in events} == {
            ("presence.join", channel) for channel in channels
        }
        await presence._renew()
        assert await a.presence_count("room") == (3, 2)
        await self.nothing(a, watcher)

    @promise
    async def test_what_a_server_forgets_comes_back(self) -> None:
        """When the transport forgets who was there, the processes tell it anew, and nobody hears of it."""
        a, b = self.attended(2)
        await self.hurry(a, b)
        watcher = await self.member(a, "room")
        for layer in (a, b):
            await self.present(layer, "room", user="ann")
            await self.present(layer, "room", user="bob", announce=True)
        assert (await self.get(a, watcher))["type"] == "presence.join"
        before = await b.presence("room")
        await a._nodes[asyncio.get_running_loop()]._transport.flush()

        async def all_back() -> bool:
            return await b.presence("room") == before

        await self.until(all_back, "all are back, and since the same time")
        assert await a.presence_count("room") == (4, 2)
        await self.nothing(a, watcher)

    @promise
    async def test_presence_ends_with_the_membership(self) -> None:
        """A member whose membership has expired is not present any more; flush forgets all of them."""
        brief, a, b = *self.attended(1, group_expiry=0.3), *self.attended(2)
        await self.hurry(brief, a)
        await self.present(brief, "room", user="ann")

        async def nobody() -> bool:
            await b.group_send("room", {"type": "x"})  # finds out
            return await b.presence("room") == []

        await self.until(nobody, "the membership has expired")
        await self.present(a, "other", user="ann")
        assert await b.presence_count("other") == (1, 1)
        await b.flush()
        assert await b.presence("other") == []
        await self.until(lambda: self._clear(a), "the other process has forgotten, too")
        assert await b.presence_count("other") == (0, 0)

    async def _clear(self, layer: ChannelLayer) -> bool:
        presence = self.presence_of(layer)
        return not presence._rooms and not presence._changing

    @promise
    async def test_a_presence_is_encrypted(self) -> None:
        """With keys, what is known of a member is readable with them only; its user counts as one all the same."""
        self.attended(1)
        a, b = [self.layer(symmetric_encryption_keys=["secret"]) for _ in "ab"]
        stranger = self.layer()
        for layer in (a, b):
            await self.present(layer, "room", presence={"name": "Ann"}, user="ann@example.com")
        assert [each.metadata for each in await b.presence("room")] == [{"name": "Ann"}] * 2
        assert await a.presence_count("room") == (2, 1)
        await stranger.new_channel()
        node = stranger._nodes[asyncio.get_running_loop()]
        for record in await node._transport.records("room"):
            assert b"Ann" not in record.value
            assert b"ann" not in record.value
            assert "ann" not in record.tag

    @promise
    async def test_presence_costs_nothing_unused(self) -> None:
        """Who adds members without a presence has no task, no timer and no record for it."""
        (layer,) = self.attended(1)
        before = asyncio.all_tasks()
        await self.member(layer, "room")
        assert layer._nodes[asyncio.get_running_loop()]._presence is None
        assert not any("_beat" in repr(task) for task in asyncio.all_tasks() - before)
        await self.present(layer, "room")
        assert any("_beat" in repr(task) for task in asyncio.all_tasks() - before)
