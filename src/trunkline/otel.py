"""OpenTelemetry: a span for each send and for each handling, and the way from one to the other.

Attributes follow the semantic conventions for messaging. The span of a handling is a child of the send's span, in whatever
process that was, and linked to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
except ImportError as error:
    raise ImportError("tracing needs OpenTelemetry: pip install 'trunkline[tracing]'") from error

from . import __version__, tracing

__all__ = ["handling", "instrument", "uninstrument"]

_node = re.compile(r"\.[0-9a-f]{20}!.*").sub


class _Tracer:
    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("trunkline", __version__, provider)

    @contextmanager
    def sending(self, destination: str, group: bool) -> Iterator[bytes]:
        name, attributes = _about(destination, "send", "send")
        attributes["trunkline.destination.kind"] = "group" if group else "channel"
        with self._tracer.start_as_current_span(
            f"send {name}", kind=trace.SpanKind.PRODUCER, attributes=attributes
        ):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            context = json.dumps(carrier, separators=(",", ":")).encode() if carrier else b""
            yield context if len(context) <= tracing.MAX_CONTEXT else b""

    @contextmanager
    def handling(self, destination: str, kind: str, context: bytes) -> Iterator[None]:
        remote = _remote(context)
        name, attributes = _about(destination, "process", "process")
        attributes["trunkline.message.type"] = kind
        sender = trace.get_current_span(remote).get_span_context() if remote is not None else None
        valid = sender is not None and sender.is_valid
        with self._tracer.start_as_current_span(
            f"process {name}",
            context=remote if valid else None,
            kind=trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=[trace.Link(sender)] if valid and sender is not None else None,
        ):
            yield


def _about(destination: str, operation: str, kind: str) -> tuple[str, dict[str, Any]]:
    """The name of a destination that is the same for all of its kind, and the attributes."""
    name = _node(".*", destination) if "!" in destination else destination
    attributes: dict[str, Any] = {
        "messaging.system": "trunkline",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
    }
    if name != destination:
        attributes |= {"messaging.destination.template": name, "messaging.destination.temporary": True}
    return name, attributes


def _remote(context: bytes) -> Context | None:
    if not context:
        return None
    try:
        carrier = json.loads(context)
    except ValueError:  # another process's tracer speaks another language
        return None
    return propagate.extract(carrier) if isinstance(carrier, dict) else None


def instrument(tracer_provider: trace.TracerProvider | None = None) -> None:
    """Trace every layer, consumer and worker of this process.

    Args:
        tracer_provider: Where spans go; None: OpenTelemetry's global one.
    """
    tracing.set_tracer(_Tracer(tracer_provider))


def uninstrument() -> None:
    """Trace no more."""
    tracing.set_tracer(None)


@contextmanager
def handling(channel: str, message: Any) -> Iterator[None]:
    """A span around the handling of a message, for code that calls ``layer.receive`` itself.

    To be used in the task that received the message, before it receives the next one. Consumers do it by themselves.
    """
    tracer = tracing.tracer
    if tracer is None:
        yield
        return
    kind = message.get("type") if isinstance(message, dict) else None
    with tracer.handling(channel, str(kind), tracing.incoming.get()):
        yield
