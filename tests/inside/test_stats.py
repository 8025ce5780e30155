"""What a layer counts, how it does, and what all processes say about themselves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from servers import Server, servers
from trunkline import ChannelFull, ChannelLayer, TransportUnavailable, layer_from_url
from trunkline.layers import InMemoryChannelLayer
from trunkline.stats import Pattern, Report, Slow, Stats, judge, pattern_of
from trunkline.testing import eventually
from trunkline.transport import Server as Linked

Layers = Callable[..., ChannelLayer]


async def test_what_waits_and_what_was_dropped(layers: Layers) -> None:
    """Counts by pattern, and the slow channels by name: on every transport the same."""
    layer, other = layers(capacity=3, channel_capacity={"slow.*": 2}), layers(capacity=3)
    quick, slow = await layer.new_channel(), await layer.new_channel("slow")
    for channel in (quick, slow):
        await layer.group_add("room", channel)
    for number in range(4):
        await other.group_send("room", {"type": "x", "number": number})
    await eventually(lambda: layer.stats().missed == 3, 10)  # between two senders there is no order
    await layer.send(slow, {"type": "y"})
    await layer.send(slow, {"type": "y"})
    with pytest.raises(ChannelFull):
        await layer.send(slow, {"type": "y"})

    stats = layer.stats()
    assert (stats.channels, stats.groups, stats.memberships, stats.subscriptions) == (2, 1, 2, 1)
    assert stats.waiting == 3 + 2 + 2
    specific, narrow = stats.patterns["specific.*"], stats.patterns["slow.*"]
    assert (specific.missed, specific.refused, specific.channels, specific.deepest) == (1, 0, 1, 3)
    assert (narrow.missed, narrow.refused, narrow.channels, narrow.waiting) == (2, 1, 1, 4)
    assert {(each.channel, each.waiting, each.capacity) for each in stats.slowest} == {
        (slow, 4, 2),
        (quick, 3, 3),
    }
    assert stats.dropped == 4
    assert 0 <= narrow.oldest < 30

    await layer.receive(quick)
    assert layer.stats().waiting == 6
    assert stats.waiting == 7, "a look is not changed by what comes after it"
    await layer.close()
    after = layer.stats()
    assert (after.missed, after.patterns["slow.*"].refused, after.waiting) == (3, 1, 0)


async def test_every_process_answers(layers: Layers) -> None:
    """A survey brings a report of each node, this one included; it can travel as JSON."""
    here, there, third = layers(), layers(), layers()
    for layer in (there, third):
        await layer.group_add("room", await layer.new_channel())
    await there.group_send("room", {"type": "x"})

    reports: dict[str, Report] = {}
    async with asyncio.timeout(20):
        while len(reports) < 3:
            reports |= {report.node: report for report in await here.survey(0.2)}
    assert {report.pid for report in reports.values()} == {os.getpid()}
    assert sorted(report.stats.groups for report in reports.values()) == [0, 1, 1]
    assert sum(report.stats.group_sent for report in reports.values()) == 1
    assert all(report.health.state == "ok" for report in reports.values())
    assert all(report.host and report.program and report.opened for report in reports.values())
    for report in reports.values():
        assert Report.of(json.loads(json.dumps(report.asdict()))) == report


async def test_nobody_is_asked_while_nobody_asks(layers: Layers) -> None:
    """Answers that come too late, and those to somebody else, are no trouble."""
    here, there = layers(), layers()
    await there.new_channel()
    await asyncio.gather(here.survey(0.0), there.survey(0.0), here.survey(0.0))
    await there.send("fence", {"type": "fence"})
    assert (await here.receive("fence"))["type"] == "fence"
    assert here.stats().unreadable == there.stats().unreadable == 0


def test_survey_without_a_loop(layers: Layers) -> None:
    """Scripts ask by `layer.sync`."""
    layer = layers()
    assert [report.node for report in layer.sync.survey(0.05)]


async def test_health_of_a_layer_that_works(layers: Layers) -> None:
    """It is ok before its first use and after it, and names what it is linked to."""
    layer = layers()
    assert (layer.health().state, layer.health().servers) == ("ok", [])
    await layer.new_channel()
    health = layer.health()
    assert (health.state, health.reasons) == ("ok", [])
    assert all(server.up for server in health.servers)
    assert len(health.servers) == 1
    assert health.since > 1_600_000_000
    json.dumps(health.asdict())


async def test_any_thread_may_look() -> None:
    """While channels come and go in the loop."""
    layer = InMemoryChannelLayer()
    wrong: list[BaseException] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                assert layer.stats().waiting >= 0
                assert layer.health().state == "ok"
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=look)
    await layer.new_channel()
    thread.start()
    for _ in range(2000):
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.send(channel, {"type": "x"})
        await layer.receive(channel)
        await layer.forget(channel)
    done.set()
    thread.join(20)
    assert wrong == []
    await layer.close()


@pytest.mark.skipif(not servers(), reason="no Redis or Valkey on this machine")
async def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    """Down, since about when, with the reason; then ok again. A password is never shown."""
    server = Server(sorted(servers())[0], tmp_path / "server", requirepass="zecret")
    layer = layer_from_url(f"redis://:zecret@127.0.0.1:{server.port}")
    try:
        await layer.new_channel()
        before = layer.health()
        server.kill()
        await eventually(lambda: layer.health().state == "down", 20)
        health = layer.health()
        assert str(server.port) in health.reasons[0]
        assert "zecret" not in json.dumps(health.asdict())
        assert before.since <= health.since
        server.start()
        await eventually(lambda: layer.health().state == "ok", 20)
        assert layer.health().reasons == []
    finally:
        await layer.close()
        server.kill()


@pytest.mark.skipif(not servers(), reason="no Redis or Valkey on this machine")
async def test_one_of_two_servers(tmp_path: Path) -> None:
    """Degraded, and it says which."""
    from trunkline.layers import RedisChannelLayer

    kind = sorted(servers())[0]
    one, two = Server(kind, tmp_path / "one"), Server(kind, tmp_path / "two")
    layer = RedisChannelLayer(hosts=[one.url, two.url])
    try:
        await layer.new_channel()
        two.kill()
        await eventually(lambda: layer.health().state == "degraded", 20)
        (reason,) = layer.health().reasons
        assert f":{two.port} is down" in reason
        assert sorted(server.up for server in layer.health().servers) == [False, True]
    finally:
        await layer.close()
        for server in (one, two):
            server.kill()


async def test_a_layer_that_could_not_open() -> None:
    """Down, with the error."""
    layer = layer_from_url("redis://127.0.0.1:1?connect_timeout=0.1")
    with pytest.raises(TransportUnavailable):
        await layer.new_channel()
    assert layer.health().state == "down"
    assert "127.0.0.1:1" in layer.health().reasons[0]


async def test_a_full_process_is_degraded() -> None:
    """At its process_capacity nothing comes in any more."""
    layer = InMemoryChannelLayer(process_capacity=2)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "x"})
    assert layer.health().state == "ok"
    await layer.send(channel, {"type": "x"})
    assert layer.health().state == "degraded"
    assert "process_capacity" in layer.health().reasons[0]
    await layer.close()


def test_judging() -> None:
    """15 seconds without a sign of life are an outage, whatever the link says."""
    assert judge([Linked("a", True, 14.9)]).state == "ok"
    assert judge([Linked("a", True, 15.1)]).state == "down"
    assert judge([Linked("a", True, 1.0), Linked("b", True, 15.1)]).state == "degraded"
    assert judge([Linked("a", True, 1.0, "it refuses: OOM")]).reasons == ["a: it refuses: OOM"]
    assert judge([Linked("a", False, None)]).reasons == ["a is down: no connection"]
    assert judge([]).state == "ok"


def test_patterns() -> None:
    """Globs first, then the prefix of a channel's name, then the star."""
    rules = [(re.compile(r"chat\..*"), 5)]
    mine = f"specific.{'a' * 20}!{'b' * 20}"
    assert pattern_of("chat.x", rules, ["chat.*"]) == "chat.*"
    assert pattern_of(mine, rules, ["chat.*"]) == "specific.*"
    assert pattern_of("thumbnails", rules, ["chat.*"]) == "*"
    stats = Stats()
    for number in range(400):
        stats.pattern(f"p{number}.*").missed += 1
    assert len(stats.patterns) == 257
    assert stats.patterns["*"].missed == 400 - 256


def test_sums_and_copies() -> None:
    """Two processes together; a newer version's fields are left out."""
    a = Stats(sent=1, waiting=2, patterns={"x": Pattern(1, 0, 1, 2, 2, 3.0)}, slowest=[Slow("c", 2, 9, 3.0)])
    both = a + a
    assert (both.sent, both.waiting) == (2, 4)
    assert both.patterns == {"x": Pattern(2, 0, 2, 4, 2, 3.0)}
    content = asdict(a)
    content["tomorrow"] = content["patterns"]["x"]["tomorrow"] = 1
    assert Stats.of(content) == a
