"""Trunkline's parts mixed with those of Django Channels. Run in a process of its own by ``test_beside_django_channels``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.conf import settings

settings.configure(DATABASES={}, CHANNEL_LAYERS={}, INSTALLED_APPS=[])

import channels.consumer  # noqa: E402
import channels.exceptions  # noqa: E402
import channels.generic.websocket  # noqa: E402
import channels.layers  # noqa: E402
import channels.routing  # noqa: E402
import channels.testing  # noqa: E402

from trunkline import consumers, opening  # noqa: E402
from trunkline.layers import InMemoryChannelLayer  # noqa: E402
from trunkline.testing import communicators, eventually  # noqa: E402
from trunkline.worker import Worker  # noqa: E402


class TheirChat(channels.generic.websocket.AsyncJsonWebsocketConsumer):
    groups = ["chat"]

    async def receive_json(self, content, **kwargs):
        await self.channel_layer.group_send("chat", {"type": "chat.message", "text": content})

    async def chat_message(self, event):
        await self.send_json(event["text"])


class OurChat(consumers.AsyncJsonWebsocketConsumer):
    groups = ["chat"]

    async def receive_json(self, content, **kwargs):
        await self.channel_layer.group_send("chat", {"type": "chat.message", "text": content})

    async def chat_message(self, event):
        await self.send_json(event["text"])


class OurSyncChat(consumers.JsonWebsocketConsumer):
    groups = ["chat"]

    def receive_json(self, content, **kwargs):
        from asgiref.sync import async_to_sync

        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.message", "text": content})

    def chat_message(self, event):
        self.send_json(event["text"])


@pytest.fixture(params=[channels.layers.InMemoryChannelLayer, InMemoryChannelLayer])
async def any_layer(request):
    """A layer of either project, configured for both."""
    layer = request.param()
    with opening.override("default", layer):
        yield layer
    if request.param is InMemoryChannelLayer:
        await layer.close()


@pytest.mark.parametrize("chat", [TheirChat, OurChat, OurSyncChat])
@pytest.mark.parametrize(
    "communicator", [channels.testing.WebsocketCommunicator, communicators.WebsocketCommunicator]
)
async def test_consumers_layers_and_communicators_mix(chat, communicator, any_layer):
    """Every consumer works with every layer under every communicator, and leaves its group at the end."""
    first, second = (communicator(chat.as_asgi(), "/ws/") for _ in range(2))
    for ws in (first, second):
        assert (await ws.connect())[0]
    await first.send_json_to({"hello": 1})
    for ws in (first, second):
        assert await ws.receive_json_from() == {"hello": 1}
    await first.disconnect()
    await second.send_json_to("alone")
    assert await second.receive_json_from() == "alone"
    await second.disconnect()
    if isinstance(any_layer, channels.layers.InMemoryChannelLayer):
        assert any_layer.groups == {}


async def test_a_crash_leaves_the_groups_of_a_layer_that_cannot_forget():
    """``groups`` are discarded one by one where the layer has no ``forget``."""

    class Crashing(OurChat):
        async def chat_message(self, event):
            raise LookupError

    layer = channels.layers.InMemoryChannelLayer()
    with opening.override("default", layer):
        ws = communicators.WebsocketCommunicator(Crashing.as_asgi(), "/")
        await ws.connect()
        assert list(layer.groups) == ["chat"]
        await ws.send_json_to("x")
        with pytest.raises(LookupError):
            await ws.wait()
    assert layer.groups == {}


@pytest.mark.parametrize("signal", ["AcceptConnection", "DenyConnection", "StopConsumer"])
async def test_the_signals_of_django_channels_are_honoured(signal):
    """``from channels.exceptions import ...`` works in our consumers."""
    theirs = getattr(channels.exceptions, signal)

    class Raising(consumers.AsyncWebsocketConsumer):
        async def connect(self):
            raise theirs

    ws = communicators.WebsocketCommunicator(Raising.as_asgi(), "/")
    if signal == "StopConsumer":
        await ws.send_input({"type": "websocket.connect"})
        await ws.wait()
    else:
        assert (await ws.connect())[0] is (signal == "AcceptConnection")
        await ws.disconnect()


class TheirJobs(channels.consumer.AsyncConsumer):
    async def job_do(self, event: dict[str, Any]) -> None:
        done.append(event["n"])

    async def job_fail(self, event: dict[str, Any]) -> None:
        raise LookupError("theirs")

    async def job_wait(self, event: dict[str, Any]) -> None:
        done.append("begun")
        await gate.wait()
        done.append("finished")


class TheirSyncJobs(channels.consumer.SyncConsumer):
    def job_do(self, event: dict[str, Any]) -> None:
        done.append(event["n"])

    def job_fail(self, event: dict[str, Any]) -> None:
        raise LookupError("theirs")


done: list[Any] = []
gate = asyncio.Event()


@pytest.mark.parametrize("jobs", [TheirJobs, TheirSyncJobs])
async def test_the_worker_runs_their_consumers_behind_their_router(jobs, any_layer, caplog):
    """Order kept, errors logged and survived, on layers of either project."""
    done.clear()
    router = channels.routing.ProtocolTypeRouter(
        {"channel": channels.routing.ChannelNameRouter({"first": jobs.as_asgi()})}
    )
    worker = Worker(router, any_layer, ["first"])
    task = asyncio.create_task(worker.run())
    for n in range(5):
        await any_layer.send("first", {"type": "job.do", "n": n})
        await any_layer.send("first", {"type": "job.fail"})
    await eventually(lambda: len(done) == 5)
    await eventually(lambda: len([r for r in caplog.records if r.exc_info]) == 5)
    worker.stop()
    await asyncio.wait_for(task, 20)
    assert done == list(range(5))


async def test_the_worker_lets_their_consumer_finish():
    """A stop waits for the message in hand and leaves the next one in the channel."""
    done.clear()
    layer = InMemoryChannelLayer()
    with opening.override("default", layer):
        worker = Worker(TheirJobs.as_asgi(), layer, ["first"])
        task = asyncio.create_task(worker.run())
        await layer.send("first", {"type": "job.wait"})
        await eventually(lambda: done)
        await layer.send("first", {"type": "job.do", "n": 1})
        worker.stop()
        gate.set()
        await asyncio.wait_for(task, 20)
        assert done == ["begun", "finished"]
        assert (await asyncio.wait_for(layer.receive("first"), 1))["n"] == 1
    await layer.close()
