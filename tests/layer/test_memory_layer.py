import asyncio
import random
from typing import Any

import pytest

from trunkline import ConfigurationError, configure, names
from trunkline.layer import ChannelLayer
from trunkline.layers import InMemoryChannelLayer
from trunkline.settings import Settings
from trunkline.testing import LayerConformance
from trunkline.transports.memory import MemoryTransport


class TestInMemoryChannelLayer(LayerConformance):
    def make_layer(self, prefix: str, **options: Any) -> InMemoryChannelLayer:
        return InMemoryChannelLayer(hub="conformance", prefix=prefix, **options)


async def test_where_a_remembered_message_came_from() -> None:
    """What a group remembers tells its sender and its group as any other."""
    layer = InMemoryChannelLayer(history={"room": {"size": 10, "seconds": 60}})
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {"type": "x"})
    origin = layer.origin(await layer.receive(channel))
    assert origin is not None
    assert (origin.node, origin.group) == (names.channel(channel).node, "room")
    await layer.close()


@pytest.mark.parametrize("seed", range(20))
async def test_receivers_of_one_channel_come_and_go(seed: int) -> None:
    """Whoever is cancelled, woken or not, takes nothing along, and nobody waits while a message does."""
    choose = random.Random(seed).choices
    async with InMemoryChannelLayer(capacity=1000) as layer:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        receivers: list[asyncio.Task[dict[str, Any]]] = []
        sent = 0
        for _ in range(20):
            for step in choose(["receive", "send", "group_send", "cancel", "turn"], [4, 1, 1, 2, 2], k=20):
                waiting = [task for task in receivers if not task.done()]
                if step == "receive":
                    receivers.append(asyncio.create_task(layer.receive(channel)))
                elif step == "cancel" and waiting:
                    choose(waiting)[0].cancel()
                elif step == "turn":
                    await asyncio.sleep(0)
                elif step == "send":
                    await layer.send(channel, {"n": sent})
                    sent += 1
                elif step == "group_send":
                    await layer.group_send("room", {"n": sent})
                    sent += 1
            for _ in range(50):  # no message needs more than a few turns of the loop
                await asyncio.sleep(0)
            assert all(task.done() for task in receivers) or not layer.stats().waiting
        got = [task.result()["n"] for task in receivers if task.done() and not task.cancelled()]
        got += [(await layer.receive(channel))["n"] for _ in range(layer.stats().waiting)]
        assert sorted(got) == list(range(sent))
        for task in receivers:
            task.cancel()


async def test_a_node_has_few_attributes() -> None:
    """CPython reads the attributes of an object quickest while there are fewer than 30: that is 4 % of a delivery."""
    async with InMemoryChannelLayer() as layer:
        (node,) = layer._nodes.values()
        assert len(vars(node)) < 30


@pytest.mark.parametrize(
    ("requires", "text"),
    [
        (["presence", "leases"], None),
        ("presence, groups", None),
        (["history"], "say which groups remember"),
        (["presents"], "did you mean 'presence'"),
        (5, "requires is a list of extensions, not 5"),
    ],
)
def test_what_is_required(requires: Any, text: str | None) -> None:
    """A layer without it is not made; the text says what to do."""
    if text is None:
        InMemoryChannelLayer(requires=requires)
        return
    with pytest.raises(ConfigurationError, match=text):
        InMemoryChannelLayer(requires=requires)


def test_what_a_transport_lacks_is_told_at_start_up() -> None:
    """Not at the first call: by configure(), by a URL, and by Django's check, which makes the layers too."""

    class Bare(MemoryTransport):
        features = frozenset()

    with pytest.raises(
        ConfigurationError, match="on Bare, has groups, flush, and no presence: the memory, embedded"
    ):
        ChannelLayer(lambda: Bare("bare"), Settings.build({"requires": ["presence"]}))
    with pytest.raises(ConfigurationError, match="and no history"):
        configure("memory://?requires=history")
