"""Handlers with typed events: they get objects, and what is no such object costs nobody the connection."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from trunkline import InvalidEvent, InvalidMessage, names
from trunkline.consumers import AsyncConsumer, SyncConsumer
from trunkline.testing import eventually
from trunkline.testing.communicators import ApplicationCommunicator
from trunkline.worker import Worker

if TYPE_CHECKING:
    from nowhere import Unseen  # type: ignore[import-not-found]

SCOPE = {"type": "test", "path": "/here"}


@dataclass
class Said:
    text: str
    type: Literal["data.said"] = "data.said"


class SaidDict(TypedDict):
    type: Literal["dict.said"]
    text: str


class SaidStruct(msgspec.Struct, tag_field="type", tag="struct.said"):
    text: str


class SaidModel(pydantic.BaseModel):
    type: Literal["model.said"] = "model.said"
    text: str


class Ears(AsyncConsumer):
    """Repeats what it hears, with the class it came as."""

    async def test_join(self, event: dict[str, Any]) -> None:
        await self.channel_layer.group_add("ears", self.channel_name)
        await self.send({"type": "name", "name": self.channel_name})

    async def data_said(self, event: Said) -> None:
        await self.send({"heard": event.text, "as": type(event).__name__})

    async def dict_said(self, event: SaidDict) -> None:
        await self.send({"heard": event["text"], "as": type(event).__name__})

    async def struct_said(self, event: SaidStruct) -> None:
        await self.send({"heard": event.text, "as": type(event).__name__})

    async def model_said(self, event: SaidModel) -> None:
        await self.send({"heard": event.text, "as": type(event).__name__})

    async def unseen_said(self, event: Unseen) -> None:
        await self.send({"heard": event["text"], "as": type(event).__name__})

    async def later_said(self, event: Later) -> None:
        await self.send({"heard": event.text, "as": type(event).__name__})


class SyncEars(SyncConsumer):
    def test_join(self, event):  # no annotation at all
        self.channel_layer.sync.group_add("ears", self.channel_name)
        self.send({"type": "name", "name": self.channel_name})

    def data_said(self, event: Said) -> None:
        self.send({"heard": event.text, "as": type(event).__name__})


@dataclass
class Later:
    text: str
    type: Literal["later.said"] = "later.said"


async def joined(application: Any) -> tuple[ApplicationCommunicator, str]:
    client = ApplicationCommunicator(application.as_asgi(), SCOPE)
    await client.send_input({"type": "test.join"})
    return client, (await client.receive_output(5))["name"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (Said("hi"), "Said"),
        ({"type": "data.said", "text": "hi"}, "Said"),
        ({"type": "dict.said", "text": "hi"}, "dict"),
        (SaidStruct("hi"), "SaidStruct"),
        (SaidModel(text="hi"), "SaidModel"),
        (Later("hi"), "Later"),
    ],
)
async def test_handlers_get_what_they_ask_for(layer, message, kind) -> None:
    """An object, however it was sent: to the channel, to a group, or by the client."""
    client, name = await joined(Ears)
    await layer.send(name, message)
    assert await client.receive_output(5) == {"heard": "hi", "as": kind}
    await layer.group_send("ears", message)
    assert await client.receive_output(5) == {"heard": "hi", "as": kind}
    if isinstance(message, dict):
        await client.send_input(message)
        assert await client.receive_output(5) == {"heard": "hi", "as": kind}
    client.stop()
    with suppress(asyncio.CancelledError):
        await client.future


async def test_sync_handlers_too(layer) -> None:
    """The conversion is the same in the sync tree."""
    client, name = await joined(SyncEars)
    await layer.send(name, Said("hi"))
    assert await client.receive_output(5) == {"heard": "hi", "as": "Said"}
    client.stop()
    with suppress(asyncio.CancelledError):
        await client.future


@pytest.mark.parametrize("consumer", [Ears, SyncEars])
async def test_a_bad_event_is_told_and_the_connection_lives(layer, caplog, consumer) -> None:
    """It is logged with handler, type, channel, group, sender and field, counted once, and the next event is handled."""
    client, name = await joined(consumer)
    with caplog.at_level(logging.ERROR):
        await layer.group_send("ears", {"type": "data.said", "text": 5})
        await layer.send(name, Said("next"))
        assert (await client.receive_output(5))["heard"] == "next"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{consumer.__name__}.data_said got an event of type 'data.said' on channel {name}, "
        f"sent to group ears by node {names.channel(name).node}, that it does not take: Said.text: expected str, got int 5"
    )
    assert layer.stats().invalid == 1
    await client.send_input({"type": "data.said"})
    await client.send_input({"type": "data.said", "text": "still here"})
    assert (await client.receive_output(5))["heard"] == "still here"
    assert "from the client that it does not take" in caplog.records[-1].getMessage()
    client.stop()
    with suppress(asyncio.CancelledError):
        await client.future


@pytest.mark.parametrize("base", [Ears, SyncEars])
async def test_the_hook(layer, caplog, base) -> None:
    """on_invalid_event replaces the log line; no event can call it."""
    if base is Ears:

        class Async(Ears):
            async def on_invalid_event(self, error: InvalidEvent) -> None:
                await self.send(
                    {"field": error.field, "event": error.event, "from": (error.sender, error.group)}
                )

        consumer: Any = Async
    else:

        class Sync(SyncEars):
            def on_invalid_event(self, error: InvalidEvent) -> None:
                self.send({"field": error.field, "event": error.event, "from": (error.sender, error.group)})

        consumer = Sync
    client, name = await joined(consumer)
    await layer.send(name, {"type": "data.said", "text": 5})
    bad = {"type": "data.said", "text": 5}
    told = {"field": "Said.text", "event": bad, "from": (names.channel(name).node, None)}
    assert await client.receive_output(5) == told
    await client.send_input(bad)
    assert await client.receive_output(5) == {**told, "from": (None, None)}
    assert not caplog.records
    await layer.send(name, {"type": "on.invalid.event"})
    with pytest.raises(ValueError, match="may not name a handler"):
        await client.wait(5)


async def test_an_annotation_for_type_checkers_only(layer, caplog) -> None:
    """It leaves the event a dict, which is said once."""
    client, name = await joined(Ears)
    for _ in range(2):
        await layer.send(name, {"type": "unseen.said", "text": "hi"})
        assert await client.receive_output(5) == {"heard": "hi", "as": "dict"}
    assert [record.levelname for record in caplog.records].count("WARNING") <= 1
    client.stop()
    with suppress(asyncio.CancelledError):
        await client.future


async def test_a_handlers_own_error_is_not_taken_for_it(layer) -> None:
    """A handler that raises InvalidEvent about something else fails as with any error."""

    class Raises(Ears):
        async def data_said(self, event: Said) -> None:
            raise InvalidEvent("about something else")

    client, name = await joined(Raises)
    await layer.send(name, Said("hi"))
    with pytest.raises(InvalidEvent, match="about something else"):
        await client.wait(5)


async def test_in_a_worker_it_is_an_error_of_that_message(layer, caplog) -> None:
    """The worker logs it with its channel, and handles the next."""
    heard: list[str] = []

    class Job(AsyncConsumer):
        async def data_said(self, event: Said) -> None:
            heard.append(event.text)

    worker = Worker(Job.as_asgi(), layer, ["jobs"])
    running = asyncio.create_task(worker.run())
    node = names.channel(await layer.new_channel()).node
    await layer.send("jobs", {"type": "data.said", "text": 5})
    await layer.send("jobs", Said("next"))
    await eventually(lambda: heard == ["next"], 10)
    assert any(
        f"on channel jobs, sent by node {node}, that it does not take: Said.text" in (r.exc_text or "")
        for r in caplog.records
    )
    assert layer.stats().invalid == 1
    worker.stop()
    await running


async def test_objects_that_cannot_be_sent(layer) -> None:
    """No type, or a field that is not what the class says: refused in the sender's hands, on every road."""

    @dataclass
    class Untold:
        text: str

    for send, name in ((layer.send, "jobs"), (layer.group_send, "ears")):
        with pytest.raises(InvalidMessage, match="Untold does not say the type"):
            await send(name, Untold("x"))
        with pytest.raises(InvalidMessage, match=r"Said.text: expected str, got int 5"):
            await send(name, Said(5))  # type: ignore[arg-type]


def test_mistakes_are_told_when_the_class_is_made() -> None:
    """A field that cannot travel; a type that would never reach the handler."""

    @dataclass
    class Timed:
        at: complex
        type: Literal["timed"] = "timed"

    with pytest.raises(TypeError, match=r"Timed\.at: complex does not travel"):

        class Wrong(AsyncConsumer):
            async def timed(self, event: Timed) -> None: ...

    with pytest.raises(TypeError, match=r"Misnamed\.said would never get a Said, whose type is 'data\.said'"):

        class Misnamed(AsyncConsumer):
            async def said(self, event: Said) -> None: ...


def test_inherited_and_overridden_handlers() -> None:
    """A subclass inherits typed handlers; one that overrides a handler without the annotation gets dicts."""

    class Mixin:
        async def data_said(self, event: Said) -> None: ...

    class Child(Mixin, AsyncConsumer): ...

    class Untyped(Child):
        async def data_said(self, event): ...

    assert set(Child._converters) == {"data_said"}
    assert not Untyped._converters
