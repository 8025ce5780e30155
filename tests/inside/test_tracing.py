"""Spans of sends and handlings, and the way between processes, on every transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from trunkline import ChannelLayer, otel, tracing
from trunkline.consumers import AsyncConsumer, AsyncWebsocketConsumer, SyncConsumer
from trunkline.envelope import CHANNEL, OPTIONS, FrameError, Seal
from trunkline.errors import ChannelFull
from trunkline.testing import WebsocketCommunicator, eventually
from trunkline.worker import Worker

Layers = Callable[..., ChannelLayer]


class Spans:
    """What was traced."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    async def one(self, name: str) -> Any:
        await eventually(lambda: self.named(name), 10, name)
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    otel.instrument(made.provider)
    yield made
    otel.uninstrument()


async def test_from_a_send_to_its_handling(layers: Layers, spans: Spans) -> None:
    """The handling is a child of the send in another process, and linked to it; what the handler sends is its child."""
    web, script = layers(symmetric_encryption_keys=["k"]), layers(symmetric_encryption_keys=["k"])

    class Chat(AsyncWebsocketConsumer):
        channel_layer = web
        groups = ["room"]

        async def chat_message(self, event: Any) -> None:
            await web.send("thumbnails", {"type": "thumbnail.make"})
            await self.send(text_data="done")

    async with WebsocketCommunicator(Chat.as_asgi(), "/") as browser:
        await browser.connect(timeout=10)
        with spans.provider.get_tracer("test").start_as_current_span("view"):
            await script.group_send("room", {"type": "chat.message"})
        assert await browser.receive_from(timeout=10) == "done"
        handled, sent = await spans.one("process specific.*"), await spans.one("send room")
        inner, view = await spans.one("send thumbnails"), await spans.one("view")
    assert sent.parent.span_id == view.context.span_id
    assert handled.parent.span_id == sent.context.span_id
    assert handled.context.trace_id == view.context.trace_id
    assert [link.context.span_id for link in handled.links] == [sent.context.span_id]
    assert inner.parent.span_id == handled.context.span_id
    assert (sent.kind, handled.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert sent.attributes == {
        "messaging.system": "trunkline",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "room",
        "trunkline.destination.kind": "group",
    }
    assert handled.attributes["messaging.operation.type"] == "process"
    assert handled.attributes["messaging.destination.template"] == "specific.*"
    assert handled.attributes["trunkline.message.type"] == "chat.message"


@pytest.mark.parametrize("base", [AsyncConsumer, SyncConsumer])
async def test_a_worker(layers: Layers, spans: Spans, base: Any) -> None:
    """A job is handled in the trace of whoever sent it; an error is in its span."""
    web, background = layers(), layers()

    if base is AsyncConsumer:

        class Jobs(AsyncConsumer):
            channel_layer = background

            async def job_do(self, event: Any) -> None:
                if event["fails"]:
                    raise RuntimeError("oops")

    else:

        class Jobs(SyncConsumer):  # type: ignore[no-redef]
            channel_layer = background

            def job_do(self, event: Any) -> None:
                if event["fails"]:
                    raise RuntimeError("oops")

    worker = Worker(Jobs.as_asgi(), background, ["jobs"])
    task = asyncio.create_task(worker.run())
    await web.send("jobs", {"type": "job.do", "fails": False})
    await web.send("jobs", {"type": "job.do", "fails": True})
    await eventually(lambda: len(spans.named("process jobs")) == 2, 10)
    worker.stop()
    await task
    sent, handled = spans.named("send jobs"), spans.named("process jobs")
    assert [span.parent and span.parent.span_id for span in handled] == [
        span.context and span.context.span_id for span in sent
    ]
    assert [span.status.status_code for span in handled] == [StatusCode.UNSET, StatusCode.ERROR]


async def test_by_hand(layers: Layers, spans: Spans) -> None:
    """Whoever receives by hand says what the handling is; a message that was sent without a trace has none."""
    layer = layers(capacity=1)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "x"})
    with pytest.raises(ChannelFull):
        await layer.send(channel, {"type": "x"})
    message = await layer.receive(channel)
    with otel.handling(channel, message):
        pass
    otel.uninstrument()
    await layer.send(channel, {"type": "x"})
    otel.instrument(spans.provider)
    with otel.handling(channel, await layer.receive(channel)):
        pass
    first, second = spans.named("process specific.*")
    sent, refused = spans.named("send specific.*")
    assert first.parent is not None
    assert sent.context is not None
    assert first.parent.span_id == sent.context.span_id
    assert (second.parent, second.links) == (None, ())
    assert refused.status.status_code == StatusCode.ERROR


async def test_without_a_tracer_nothing_travels(layers: Layers) -> None:
    """Frames are what they were, and a process without a tracer takes a traced message as any other."""
    here, there = layers(), layers()
    frames: list[bytes] = []
    channel = await there.new_channel()
    (node,) = there._nodes.values()
    opens = node._seal.open

    def keep(frame: bytes) -> Any:
        frames.append(frame)
        return opens(frame)

    node._seal.open = keep  # type: ignore[method-assign]
    await here.send(channel, {"type": "x"})
    assert await there.receive(channel) == {"type": "x"}
    assert tracing.incoming.get() == b""
    assert len(frames[-1]) == 21 + len(channel) + len(b"\x81\xa4type\xa1x")
    otel.instrument(Spans().provider)
    try:
        await here.send(channel, {"type": "x"})
    finally:
        otel.uninstrument()
    assert await there.receive(channel) == {"type": "x"}
    assert b"traceparent" in frames[-1]


@pytest.mark.parametrize("keys", [[], ["secret"]])
def test_the_envelope(keys: list[str]) -> None:
    """A context travels with the body, encrypted as it is; one that is cut off is no frame, and its channel is known."""
    seal = Seal(keys)
    frame = seal.frame_with(CHANNEL, 1.0, "a.channel", b"\x80", {"trace": b"traceparent"})
    opened = seal.open(frame)
    assert (opened.kind, opened.body, opened.options) == (CHANNEL, b"\x80", {"trace": b"traceparent"})
    assert (b"traceparent" in frame) == (not keys)
    assert len(seal.frame_with(CHANNEL, 1.0, "a", b"\x80", {})) == len(seal.frame(CHANNEL, 1.0, "a", b"\x80"))
    for body in (b"", b"\x01", b"\x05\x00abc"):
        with pytest.raises(FrameError, match="options cannot be read") as caught:
            seal.open(seal.frame(CHANNEL | OPTIONS, 1.0, "a.channel", body))
        assert caught.value.channel == "a.channel"


def test_what_another_tracer_sent() -> None:
    """Is no trace, and no error."""
    for context in (b"", b"\xff", b"[1]", b'{"traceparent":"junk"}'):
        remote = otel._remote(context)
        assert remote is None or isinstance(remote, dict)
