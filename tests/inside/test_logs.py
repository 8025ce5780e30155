"""Log lines that come in floods: rarely written, counted, with fields that a machine reads."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from trunkline import logs
from trunkline.layers import InMemoryChannelLayer
from trunkline.logs import RateLimited


def test_one_line_for_each_cause(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line says how many were held back; another cause is not kept waiting."""
    now = 100.0
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now))
    limited = RateLimited(10.0)
    for _ in range(5):
        limited.warning("a", "%s was slow", "a", event="missed", channel="a")
    limited.warning("b", "b", event="gap", group=None)
    now = 111.0
    limited.warning("a", "%s was slow", "a", event="missed", channel="a")
    first, other, last = caplog.records
    assert (vars(first)["event"], vars(first)["channel"], vars(first)["held"]) == ("missed", "a", 0)
    assert (vars(other)["event"], vars(other)["group"]) == ("gap", None)
    assert vars(last)["held"] == 4
    assert last.getMessage() == "a was slow (4 more like this since the last such line)"


async def test_the_fields_of_a_layer(caplog: pytest.LogCaptureFixture) -> None:
    """What was missed and what was lost: by whom, in which group, why."""
    layer = InMemoryChannelLayer(capacity=1)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    for _ in range(2):
        await layer.group_send("room", {"type": "x"})
    (node,) = layer._nodes.values()
    node.gap("room", "it was cut")
    node.deliver(b"junk")
    found: list[dict[str, Any]] = [
        vars(record) for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert [line["event"] for line in found] == ["missed", "gap", "unreadable"]
    assert (found[0]["channel"], found[0]["group"], found[0]["waiting"]) == (channel, "room", 1)
    assert (found[1]["group"], found[1]["reason"]) == ("room", "it was cut")
    assert "not a frame" in found[2]["reason"]
    await layer.close()


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("metrics", "prometheus_client", "metrics"), ("otel", "opentelemetry", "tracing")],
)
def test_without_its_package(module: str, package: str, extra: str) -> None:
    """An exporter whose package is missing says what to install."""
    code = f"import sys; sys.modules[{package!r}] = None; import trunkline.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"pip install 'trunkline[{extra}]'" in done.stderr
