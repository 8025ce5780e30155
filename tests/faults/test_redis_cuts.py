"""The network is cut between one process and its server, or its master and all sentinels; the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from faults.redis_load import QUICK, eventually, unique
from sentinels import Watched
from servers import Server, servers
from trunkline.errors import TransportUnavailable
from trunkline.layer import ChannelLayer
from trunkline.settings import Settings
from trunkline.testing import Link
from trunkline.testing.links import detoured
from trunkline.transports.redis import RedisTransport

GROUPS = [f"group.{number}" for number in range(10)]

#: ``hosts`` of one server, and of a master that sentinels watch.
Roads = dict[str, list[Any]]


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roads]:
    kind, directory = sorted(servers())[-1], tmp_path_factory.mktemp("cuts")
    server = Server(kind, directory / "server")
    try:
        watched = Watched(kind, directory / "watched")
        try:
            yield {"server": [server.url], "sentinel": watched.hosts}
        finally:
            watched.kill()
    finally:
        server.kill()


class Scene:
    """Two processes, one of which can be cut off, and what became of each message that the other sent to it."""

    def __init__(self, hosts: list[Any], expiry: float, cut: str, pause: float = 0.05) -> None:
        self._pause = pause
        self.link = Link()
        self._expiry, self._prefix, self._hosts = expiry, unique(), hosts
        self.sender = self._layer(cut == "sender")
        self.receiver = self._layer(cut == "receiver")
        self.gaps: list[str | None] = []
        #: Number of each message -> how it was sent: to a group, or directly.
        self.accepted: dict[int, str] = {}
        self.refused: dict[int, TransportUnavailable] = {}
        self.heard: list[int] = []
        self._number = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._stop = False

    def _layer(self, cut: bool) -> ChannelLayer:
        def make() -> Any:
            transport = RedisTransport(
                self._hosts, prefix=self._prefix, expiry=self._expiry, deadline=2.0, _pace=QUICK
            )
            return detoured(self.link, transport) if cut else transport

        settings = Settings.build(
            {"expiry": self._expiry, "capacity": 100_000, "process_capacity": 1_000_000}
        )
        return ChannelLayer(make, settings, lambda group, reason: self.gaps.append(group))

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """One sends without a pause, the other receives; until all that was sent has an outcome."""
        channel = await self.receiver.new_channel()
        await self.receiver.watch_gaps(channel)
        for group in GROUPS:
            await self.receiver.group_add(group, channel)
        receiving = asyncio.create_task(self._receive(channel))
        sending = asyncio.create_task(self._send(channel))
        try:
            await eventually(lambda: len(self.heard) > 100, 30)
            yield
            self._stop = True
            await sending
            await asyncio.gather(*self._calls)
            await eventually(lambda: max(self.accepted) in self.heard, 30)
        finally:
            self._stop = True
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            for layer in (self.sender, self.receiver):
                await layer.close()
            self.link.close()

    async def _receive(self, channel: str) -> None:
        while True:
            message = await self.receiver.receive(channel)
            if message.get("type") == "layer.gap":
                self.heard.append(-1)
            else:
                self.heard.append(message["n"])

    async def _send(self, channel: str) -> None:
        while not self._stop:
            for group in GROUPS:
                self._start(group, self.sender.group_send, group)
            self._start("direct", self.sender.send, channel)
            await asyncio.sleep(self._pause)
        # The last word: all before it was heard by then, or will not be.
        self._start(GROUPS[0], self.sender.group_send, GROUPS[0])

    def _start(self, how: str, send: Any, name: str) -> None:
        self._number += 1
        call = asyncio.create_task(self._try(how, send(name, {"n": self._number}), self._number))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _try(self, how: str, call: Any, number: int) -> None:
        try:
            await call
        except TransportUnavailable as error:
            self.refused[number] = error
        else:
            self.accepted[number] = how

    @property
    def numbers(self) -> list[int]:
        return [number for number in self.heard if number > 0]

    @property
    def lost(self) -> dict[int, str]:
        heard = set(self.heard)
        return {number: how for number, how in self.accepted.items() if number not in heard}

    def check_order(self) -> None:
        """Nothing came twice, and all as it was sent."""
        assert self.numbers == sorted(set(self.numbers))


async def test_a_receiver_that_was_cut_off(roads: Roads) -> None:
    """For 20 s. With a longer expiry it has all group messages afterwards, and if the network was cut, so that the server
    did not see its connections end, all messages to itself too: otherwise it counts as gone, and is told that it missed
    some. With a shorter expiry it has what is still fresh, and is told of each group that it missed messages of."""
    silent = [Scene(hosts, 60.0, "receiver") for hosts in roads.values()]
    patient = [Scene(hosts, 60.0, "receiver") for hosts in roads.values()]
    hasty = [Scene(hosts, 3.0, "receiver") for hosts in roads.values()]
    scenes = [*silent, *patient, *hasty]
    for scene in silent:
        scene.link.silent = True
    async with AsyncExitStack() as stack:
        for scene in scenes:
            await stack.enter_async_context(scene.busy())
        for scene in scenes:
            scene.link.cut()
        await asyncio.sleep(20)  # the cut itself
        heard = [len(scene.heard) for scene in scenes]
        for scene in scenes:
            scene.link.heal()
        for scene, before in zip(scenes, heard, strict=True):
            await eventually(lambda scene=scene, before=before: len(scene.heard) > before + 200, 30)
        for scene in [*patient, *hasty]:
            await eventually(lambda scene=scene: None in scene.gaps, 30)
    for scene in scenes:
        scene.check_order()
        assert not scene.refused
        gone = scene.sender.stats().gone
        print(
            f"{len(scene.accepted)} sent, {len(scene.lost)} lost ({gone} of them to a process that counted as gone), "
            f"told of {len(set(scene.gaps))}"
        )
    for scene in silent:
        assert scene.lost == {}
        assert scene.gaps == []
    for scene in patient:
        assert 0 < scene.sender.stats().gone == len(scene.lost)
        assert set(scene.lost.values()) == {"direct"}
        assert set(scene.gaps) == {None}
    for scene in hasty:
        assert set(scene.lost.values()) == {*GROUPS, "direct"}
        assert set(scene.gaps) == {*GROUPS, None}
        assert -1 in scene.heard


async def test_a_receiver_that_was_cut_off_for_a_little_longer_than_expiry(roads: Roads) -> None:
    """The logs still have everything, for little was sent. What has expired is not handed over, and that is told before
    what came after it."""
    one, two = [Scene(hosts, 2.0, "receiver", pause=0.25) for hosts in roads.values()]
    async with one.busy(), two.busy():
        for scene in (one, two):
            scene.link.cut()
        await asyncio.sleep(4)  # the cut itself
        for scene in (one, two):
            before = len(scene.heard)
            scene.link.heal()
            await eventually(lambda scene=scene, before=before: len(scene.heard) > before + 50, 30)
    for scene in (one, two):
        scene.check_order()
        assert set(scene.lost.values()) == set(scene.gaps) - {None} | {"direct"} == {*GROUPS, "direct"}
        assert None in scene.gaps
        first_after = next(place for place, number in enumerate(scene.heard) if number > min(scene.lost))
        assert 0 < scene.heard.index(-1) < first_after


async def test_a_sender_that_was_cut_off(roads: Roads) -> None:
    """For 5 s: what it accepted arrives, once and in order, or has expired when it does, and that is told. What it refused
    was told, and did not arrive unless the error says that it may have."""
    one, two, three, four = [
        Scene(hosts, expiry, "sender") for hosts in roads.values() for expiry in (60.0, 2.0)
    ]
    scenes = one, two, three, four
    async with one.busy(), two.busy(), three.busy(), four.busy():
        for scene in scenes:
            scene.link.cut()
        await asyncio.sleep(5)  # the cut itself
        for scene in scenes:
            before = len(scene.heard)
            scene.link.heal()
            await eventually(lambda scene=scene, before=before: len(scene.heard) > before + 200, 30)
    for scene in scenes:
        scene.check_order()
        # Each loss is told; a gap may also be about a message that was refused with "may have arrived".
        assert {None if how == "direct" else how for how in scene.lost.values()} <= set(scene.gaps)
        for number in set(scene.refused) & set(scene.heard):
            assert "may have arrived" in str(scene.refused[number])
    for scene in (one, three):
        assert (scene.lost, scene.refused) == ({}, {})
    assert two.refused
    assert four.refused
