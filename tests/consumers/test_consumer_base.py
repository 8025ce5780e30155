"""How events reach handlers: by type, one after another, from the client and from the layer."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from contextlib import contextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from trunkline import opening
from trunkline.consumers import AsyncConsumer, NoHandler, StopConsumer, SyncConsumer, base
from trunkline.errors import ChannelFull, LayerClosed
from trunkline.testing import eventually
from trunkline.testing.communicators import ApplicationCommunicator

SCOPE = {"type": "test", "path": "/here"}


class Diary(AsyncConsumer):
    """Writes down what it handles, and stops when told to."""

    async def test_say(self, event: dict[str, Any]) -> None:
        await self.send({"type": "said", "text": event["text"]})

    async def test_whoami(self, event: dict[str, Any]) -> None:
        await self.send({"type": "name", "name": self.channel_name})

    async def test_stop(self, event: dict[str, Any]) -> None:
        raise StopConsumer

    async def test_crash(self, event: dict[str, Any]) -> None:
        raise LookupError("the handler's own")


class SyncDiary(SyncConsumer):
    """The same in plain functions."""

    def test_say(self, event: dict[str, Any]) -> None:
        self.send({"type": "said", "text": event["text"]})

    def test_whoami(self, event: dict[str, Any]) -> None:
        self.send({"type": "name", "name": self.channel_name})

    def test_stop(self, event: dict[str, Any]) -> None:
        raise StopConsumer

    def test_crash(self, event: dict[str, Any]) -> None:
        raise LookupError("the handler's own")


both = pytest.mark.parametrize("consumer", [Diary, SyncDiary])


async def name_of(client: ApplicationCommunicator) -> str:
    await client.send_input({"type": "test.whoami"})
    return (await client.receive_output())["name"]


@both
async def test_an_event_is_handled_by_the_method_its_type_names(consumer, perhaps_layer):
    """``test.say`` is handled by ``test_say``, in either kind of consumer, with and without a layer."""
    async with ApplicationCommunicator(consumer.as_asgi(), SCOPE) as client:
        await client.send_input({"type": "test.say", "text": "hello"})
        assert await client.receive_output() == {"type": "said", "text": "hello"}


@both
async def test_the_layer_reaches_a_consumer_by_its_channel_name(consumer, layer):
    """What is sent to ``channel_name`` is handled like an event of the client."""
    async with ApplicationCommunicator(consumer.as_asgi(), SCOPE) as client:
        await layer.send(await name_of(client), {"type": "test.say", "text": "from outside"})
        assert (await client.receive_output())["text"] == "from outside"


@both
async def test_stop_consumer_ends_it_quietly(consumer, perhaps_layer, caplog):
    """``StopConsumer`` ends the consumer without an error."""
    client = ApplicationCommunicator(consumer.as_asgi(), SCOPE)
    await client.send_input({"type": "test.stop"})
    await client.wait()
    assert not caplog.records


@both
async def test_stop_consumer_from_a_layer_event_ends_the_clients_side_too(consumer, layer):
    """A layer event may end the consumer while it waits for its client."""
    client = ApplicationCommunicator(consumer.as_asgi(), SCOPE)
    await layer.send(await name_of(client), {"type": "test.stop"})
    await client.wait()


@both
@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        ({"text": "x"}, "without a type"),
        ({"type": 7}, "without a type"),
        ({"type": ""}, "without a type"),
        ({"type": "_private"}, "'_private'"),
        ({"type": ".private"}, "'.private'"),
        ({"type": "..class.."}, "'..class..'"),
        ({"type": "dispatch"}, "'dispatch'"),
        ({"type": "scope"}, "add `(async )?def scope"),
        ({"type": "no.such"}, "add `(async )?def no_such\\(self, event\\)`"),
    ],
)
async def test_an_event_without_a_handler_is_refused_by_name(consumer, event, complaint, perhaps_layer):
    """The error names the type, the consumer and the method to add; private methods cannot be reached."""
    client = ApplicationCommunicator(consumer.as_asgi(), SCOPE)
    await client.send_input(event)
    with pytest.raises(NoHandler, match=f"{consumer.__name__}.*{complaint}"):
        await client.wait()


@both
@pytest.mark.parametrize("side", ["client", "layer"])
async def test_a_crash_is_logged_once_and_reaches_the_server(consumer, side, layer, caplog):
    """The handler's own error goes to the server, with one traceback in the log that names consumer, event and path."""
    client = ApplicationCommunicator(consumer.as_asgi(), SCOPE)
    name = await name_of(client)
    if side == "client":
        await client.send_input({"type": "test.crash"})
    else:
        await layer.send(name, {"type": "test.crash"})
    with pytest.raises(LookupError, match="the handler's own") as caught:
        await client.wait()
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value.__context__, BaseExceptionGroup)
    (record,) = [record for record in caplog.records if record.name == "trunkline.consumers"]
    assert record.exc_info is not None
    for word in (consumer.__name__, "test.crash", "/here"):
        assert word in record.getMessage()


async def test_a_crash_closes_only_its_own_connection(layer):
    """Another connection of the same class goes on."""
    async with ApplicationCommunicator(Diary.as_asgi(), SCOPE) as other:
        other_name = await name_of(other)
        client = ApplicationCommunicator(Diary.as_asgi(), SCOPE)
        await client.send_input({"type": "test.crash"})
        with pytest.raises(LookupError):
            await client.wait()
        await layer.send(other_name, {"type": "test.say", "text": "still here"})
        assert (await other.receive_output())["text"] == "still here"


async def test_an_exception_group_of_the_handlers_own_arrives_whole(layer):
    """Errors are unwrapped from our own group only."""

    class Grouped(AsyncConsumer):
        async def test_crash(self, event: dict[str, Any]) -> None:
            raise ExceptionGroup("mine", [ValueError("a"), KeyError("b")])

    client = ApplicationCommunicator(Grouped.as_asgi(), SCOPE)
    await client.send_input({"type": "test.crash"})
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        await client.wait()
    assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]


async def test_no_handler_runs_after_one_failed(layer):
    """A client event that was already waiting is not handled once a layer event has failed."""
    handled = []

    class Fails(AsyncConsumer):
        async def test_name(self, event: dict[str, Any]) -> None:
            await self.send({"type": "name", "name": self.channel_name})

        async def test_slow_crash(self, event: dict[str, Any]) -> None:
            handled.append("crash begins")
            await gate.wait()
            raise LookupError

        async def test_next(self, event: dict[str, Any]) -> None:
            handled.append("next")

    gate = asyncio.Event()
    client = ApplicationCommunicator(Fails.as_asgi(), SCOPE)
    await client.send_input({"type": "test.name"})
    await layer.send((await client.receive_output())["name"], {"type": "test.slow.crash"})
    await eventually(lambda: handled)
    await client.send_input({"type": "test.next"})
    await eventually(client.input_queue.empty)
    gate.set()
    with pytest.raises(LookupError):
        await client.wait()
    assert handled == ["crash begins"]


async def test_handlers_never_overlap_and_each_side_keeps_its_order(layer):
    """Client and layer events interleave, each side in its order, one handler at a time."""
    log: list[tuple[str, int]] = []
    running = 0

    class Both(AsyncConsumer):
        async def test_name(self, event: dict[str, Any]) -> None:
            await self.send({"type": "name", "name": self.channel_name})

        async def test_note(self, event: dict[str, Any]) -> None:
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            log.append((event["side"], event["n"]))
            running -= 1

    async with ApplicationCommunicator(Both.as_asgi(), SCOPE) as client:
        await client.send_input({"type": "test.name"})
        name = (await client.receive_output())["name"]
        for n in range(50):
            await client.send_input({"type": "test.note", "side": "client", "n": n})
            await layer.send(name, {"type": "test.note", "side": "layer", "n": n})
        await eventually(lambda: len(log) == 100)
    for side in ("client", "layer"):
        assert [n for where, n in log if where == side] == list(range(50))
    # Turns are fair: neither side waits until the other has run dry.
    assert {where for where, _ in log[:20]} == {"client", "layer"}


async def test_a_busy_handler_loses_nothing_that_there_is_room_for(layer):
    """While a handler works, messages wait up to the capacity, and the sender is told when that is reached."""
    gate = asyncio.Event()
    seen: list[int] = []

    class Busy(AsyncConsumer):
        async def test_name(self, event: dict[str, Any]) -> None:
            await self.send({"type": "name", "name": self.channel_name})
            await gate.wait()

        async def test_count(self, event: dict[str, Any]) -> None:
            seen.append(event["n"])

    async with ApplicationCommunicator(Busy.as_asgi(), SCOPE) as client:
        await client.send_input({"type": "test.name"})
        name = (await client.receive_output())["name"]
        sent = 0
        with pytest.raises(ChannelFull):
            while sent < 10 * layer.capacity:
                await layer.send(name, {"type": "test.count", "n": sent})
                sent += 1
                await asyncio.sleep(0)  # let the consumer take ahead what it dares
        assert layer.capacity <= sent <= layer.capacity + 1  # at most one was taken ahead
        gate.set()
        await eventually(lambda: len(seen) == sent)
        assert seen == list(range(sent))


@both
async def test_what_a_handler_sets_in_its_context_the_next_one_sees(consumer, layer):
    """Context variables go from handler to handler, across the two sides and in either kind of consumer."""
    language: contextvars.ContextVar[str] = contextvars.ContextVar("language", default="en")

    if consumer is Diary:

        class Speaker(Diary):
            async def test_set(self, event: dict[str, Any]) -> None:
                language.set(event["language"])

            async def test_get(self, event: dict[str, Any]) -> None:
                await self.send({"type": "language", "language": language.get()})
    else:

        class Speaker(SyncDiary):  # type: ignore[no-redef]
            def test_set(self, event: dict[str, Any]) -> None:
                language.set(event["language"])

            def test_get(self, event: dict[str, Any]) -> None:
                self.send({"type": "language", "language": language.get()})

    async with ApplicationCommunicator(Speaker.as_asgi(), SCOPE) as client:
        name = await name_of(client)
        for tongue in ("de", "fr"):
            await client.send_input({"type": "test.set", "language": tongue})
            await client.send_input({"type": "test.whoami"})
            await client.receive_output()
            await layer.send(name, {"type": "test.get"})
            assert (await client.receive_output())["language"] == tongue
            await layer.send(name, {"type": "test.set", "language": tongue * 2})
            await layer.send(name, {"type": "test.whoami"})
            await client.receive_output()
            await client.send_input({"type": "test.get"})
            assert (await client.receive_output())["language"] == tongue * 2
    assert language.get() == "en"


@pytest.mark.parametrize("at_work", ["waiting", "client handler", "layer handler"])
async def test_cancellation_is_prompt_and_raised_on(at_work, layer):
    """A cancelled consumer ends at once with the cancellation, whatever it was doing, and its channel is forgotten."""
    ended = []

    class Stuck(Diary):
        async def test_hang(self, event: dict[str, Any]) -> None:
            await self.send({"type": "hanging"})
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    consumer = Stuck()
    task = asyncio.create_task(consumer(SCOPE, inbox.get, outbox.put))
    inbox.put_nowait({"type": "test.whoami"})
    name = (await outbox.get())["name"]
    await layer.group_add("g", name)
    if at_work == "client handler":
        inbox.put_nowait({"type": "test.hang"})
        await outbox.get()
    elif at_work == "layer handler":
        await layer.send(name, {"type": "test.hang"})
        await outbox.get()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=10)
    assert done
    assert task.cancelled()
    assert bool(ended) is (at_work != "waiting")
    await assert_forgotten(layer, name)


async def assert_forgotten(layer, name: str) -> None:
    """Neither the mailbox nor a membership of the channel is left."""
    before = layer.stats()
    await layer.group_send("g", {"type": "test.say", "text": "anybody?"})
    assert layer.stats().delivered == before.delivered


async def test_an_error_while_being_cancelled_does_not_undo_the_cancellation(layer):
    """The server that cancelled sees a cancelled task."""

    class Clumsy(Diary):
        async def test_hang(self, event: dict[str, Any]) -> None:
            await self.send({"type": "hanging"})
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                raise LookupError("in clean-up")

    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(Clumsy()(SCOPE, inbox.get, outbox.put))
    inbox.put_nowait({"type": "test.whoami"})
    await layer.send((await outbox.get())["name"], {"type": "test.hang"})
    await outbox.get()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("ending", ["test.stop", "test.crash"])
async def test_the_channel_is_forgotten_when_the_consumer_ends(ending, layer):
    """A consumer that ends or crashes leaves neither mailbox nor membership."""
    client = ApplicationCommunicator(Diary.as_asgi(), SCOPE)
    name = await name_of(client)
    await layer.group_add("g", name)
    await client.send_input({"type": ending})
    await asyncio.wait([client.future], timeout=10)
    client.future.exception()
    await assert_forgotten(layer, name)


async def test_a_closed_layer_ends_the_consumer_with_its_error(layer):
    """The consumer does not outlive its layer in silence."""
    client = ApplicationCommunicator(Diary.as_asgi(), SCOPE)
    await name_of(client)
    await layer.close()
    with pytest.raises(LayerClosed):
        await client.wait()


async def test_the_layer_is_looked_up_once_per_connection_by_alias():
    """``channel_layer_alias`` names the layer, and a later change of configuration does not touch a live connection."""
    from trunkline.layers import InMemoryChannelLayer

    class Other(Diary):
        channel_layer_alias = "other"

    first = InMemoryChannelLayer()
    with opening.override("other", first):
        async with ApplicationCommunicator(Other.as_asgi(), SCOPE) as client:
            name = await name_of(client)
            with opening.override("other", None):
                await first.send(name, {"type": "test.say", "text": "same"})
                assert (await client.receive_output())["text"] == "same"
                assert await name_of(client) == name
    await first.close()


async def test_an_event_that_may_not_travel_on_the_layer_leaves_the_consumer_alive(layer):
    """The sender gets the error; the consumer never hears of it."""
    async with ApplicationCommunicator(Diary.as_asgi(), SCOPE) as client:
        name = await name_of(client)
        with pytest.raises(TypeError):
            await layer.send(name, {"type": "test.say", "text": object()})
        await layer.send(name, {"type": "test.say", "text": "fine"})
        assert (await client.receive_output())["text"] == "fine"


async def test_sync_handlers_run_in_the_thread_sensitive_thread_with_the_hooks_around(
    perhaps_layer, monkeypatch
):
    """``around_sync_handlers`` are entered and left in the handler's thread, also when it raises."""
    log: list[tuple[str, int]] = []

    @contextmanager
    def around():
        log.append(("enter", threading.get_ident()))
        try:
            yield
        finally:
            log.append(("leave", threading.get_ident()))

    class Noting(SyncDiary):
        def test_note(self, event: dict[str, Any]) -> None:
            log.append(("handle", threading.get_ident()))
            raise StopConsumer

    monkeypatch.setattr(base, "around_sync_handlers", [around])
    client = ApplicationCommunicator(Noting.as_asgi(), SCOPE)
    await client.send_input({"type": "test.note"})
    await client.wait()
    thread = await sync_to_async(threading.get_ident)()
    assert log == [("enter", thread), ("handle", thread), ("leave", thread)]


async def test_sync_handlers_use_the_layer_through_async_to_sync(layer):
    """``async_to_sync(self.channel_layer.group_add)(...)`` works in a handler."""

    class Joiner(SyncDiary):
        def test_join(self, event: dict[str, Any]) -> None:
            async_to_sync(self.channel_layer.group_add)(event["group"], self.channel_name)
            async_to_sync(self.channel_layer.group_send)(
                event["group"], {"type": "test.say", "text": "joined"}
            )

    async with ApplicationCommunicator(Joiner.as_asgi(), SCOPE) as client:
        await client.send_input({"type": "test.join", "group": "club"})
        assert (await client.receive_output())["text"] == "joined"


async def test_dispatch_may_be_overridden_in_either_kind(perhaps_layer):
    """``dispatch`` is ``async def`` in both trees, so one mixin serves both."""
    seen = []

    class Watching:
        async def dispatch(self, message: Any) -> None:
            seen.append(message["type"])
            await super().dispatch(message)  # type: ignore[misc]

    for kind in (Diary, SyncDiary):
        watched = type("Watched", (Watching, kind), {})
        async with ApplicationCommunicator(watched.as_asgi(), SCOPE) as client:
            await client.send_input({"type": "test.say", "text": "x"})
            await client.receive_output()
    assert seen == ["test.say", "test.say"]


async def test_a_handler_that_finds_the_client_gone_does_not_cost_the_farewell(layer, caplog):
    """When the server says on send that the client is gone, the event of its leaving is still handled."""
    caplog.set_level(logging.INFO)
    left = []

    class Polite(Diary):
        async def test_left(self, event: dict[str, Any]) -> None:
            left.append(True)
            raise StopConsumer

    gone = False

    async def send(event: Any) -> None:
        if gone:
            raise ConnectionResetError("the client is gone")
        outbox.put_nowait(event)

    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(Polite()(SCOPE, inbox.get, send))
    inbox.put_nowait({"type": "test.whoami"})
    name = (await outbox.get())["name"]
    gone = True
    await layer.send(name, {"type": "test.say", "text": "too late"})
    await eventually(lambda: "client was gone" in caplog.text)
    inbox.put_nowait({"type": "test.left"})
    await task
    assert left == [True]


async def test_a_handlers_own_os_error_still_crashes_it(layer):
    """Only the server's own report of a gone client is forgiven."""

    class Reader(Diary):
        async def test_read(self, event: dict[str, Any]) -> None:
            raise FileNotFoundError("settings.toml")

    client = ApplicationCommunicator(Reader.as_asgi(), SCOPE)
    await client.send_input({"type": "test.read"})
    with pytest.raises(FileNotFoundError):
        await client.wait()


def test_as_asgi_shows_the_class_and_its_arguments():
    """The application carries the consumer's name, class and arguments, and each connection gets its own consumer."""
    application = Diary.as_asgi(colour="blue")
    assert application.__name__ == "Diary"
    assert application.consumer_class is Diary
    assert application.consumer_initkwargs == {"colour": "blue"}


async def test_the_class_in_place_of_its_application() -> None:
    """A consumer's class under a router is told with what to write; arguments of `__init__` stay the subclass's own."""

    class Chat(AsyncConsumer):
        pass

    async with ApplicationCommunicator(Chat, SCOPE) as client:  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Chat is a consumer's class, .*: write Chat\.as_asgi\(\)"):
            await client.wait(10)
    Chat("anything", scope=1)
