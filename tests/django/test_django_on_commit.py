"""layer.sync.send(..., on_commit=True): sent if, and when, the transaction is committed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from chatsite.models import Client
from django.db import transaction

from trunkline import ConfigurationError, InvalidMessage, InvalidName
from trunkline.layers import InMemoryChannelLayer


@pytest.fixture
def layer() -> Any:
    layer = InMemoryChannelLayer()
    yield layer
    layer.sync.close()


def joined(layer: Any) -> str:
    channel: str = layer.sync.new_channel()
    layer.sync.group_add("chat", channel)
    return channel


def nothing(layer: Any, channel: str) -> bool:
    """A fence: what came before it would be received first."""
    layer.sync.send(channel, {"type": "fence"})
    return bool(layer.sync.receive(channel, timeout=20) == {"type": "fence"})


def test_it_waits_for_the_commit(layer: Any) -> None:
    channel = joined(layer)
    message = {"type": "chat.message", "text": "as it was"}
    with transaction.atomic():
        Client.objects.create(channel_name=channel)
        layer.sync.group_send("chat", message, on_commit=True)
        layer.sync.send(channel, {"type": "second"}, on_commit="default")
        message["text"] = "changed later"
        assert nothing(layer, channel)
    assert layer.sync.receive(channel, timeout=20) == {"type": "chat.message", "text": "as it was"}
    assert layer.sync.receive(channel, timeout=20) == {"type": "second"}


def test_a_rollback_takes_it_along(layer: Any) -> None:
    channel = joined(layer)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        layer.sync.group_send("chat", {"type": "chat.message"}, on_commit=True)
        raise ZeroDivisionError
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():  # a savepoint
            layer.sync.send(channel, {"type": "inner"}, on_commit=True)
            raise ZeroDivisionError
        layer.sync.send(channel, {"type": "outer"}, on_commit=True)
    assert layer.sync.receive(channel, timeout=20) == {"type": "outer"}
    assert nothing(layer, channel)


def test_without_a_transaction_it_is_sent_at_once(layer: Any) -> None:
    channel = joined(layer)
    layer.sync.group_send("chat", {"type": "now"}, on_commit=True)
    assert layer.sync.receive(channel, timeout=20) == {"type": "now"}


def test_mistakes_are_told_at_the_call(layer: Any) -> None:
    with transaction.atomic():
        with pytest.raises(InvalidName):
            layer.sync.group_send("not a group", {"type": "x"}, on_commit=True)
        with pytest.raises(InvalidName):
            layer.sync.send("not a channel", {"type": "x"}, on_commit=True)
        with pytest.raises(InvalidMessage):
            layer.sync.group_send("chat", {"type": {1, 2}}, on_commit=True)
        with pytest.raises(ConfigurationError, match=r"'defualt' names no database.*default"):
            layer.sync.group_send("chat", {"type": "x"}, on_commit="defualt")


async def test_it_is_refused_in_a_running_loop(layer: Any) -> None:
    with pytest.raises(RuntimeError, match=r"await layer\.group_send"):
        layer.sync.group_send("chat", {"type": "x"}, on_commit=True)
    await asyncio.to_thread(layer.sync.close)


@pytest.mark.parametrize(
    ("before", "what"), [("sys.modules['django'] = None", "installed"), ("", "set up here")]
)
def test_without_django_it_says_so(before: str, what: str) -> None:
    code = f"import sys; {before}\n" + (
        "from trunkline.layers import InMemoryChannelLayer\n"
        "InMemoryChannelLayer().sync.group_send('chat', {'type': 'x'}, on_commit=True)"
    )
    env = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (
        f"ConfigurationError: on_commit waits for a transaction of Django, which is not {what}" in done.stderr
    )
