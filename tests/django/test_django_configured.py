"""CHANNEL_LAYERS: unset, empty, several aliases, overridden, wrong; with Django Channels and without it."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import pytest
from channels.exceptions import InvalidChannelLayerError
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import channel_layers, get_channel_layer
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.core.checks import run_checks
from django.test import override_settings

import trunkline
from frameworks.programs import eventually
from trunkline.django.configured import make_test_layer

MEMORY = "trunkline.layers.InMemoryChannelLayer"


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data: str) -> None:
        await self.send(text_data=f"{text_data} {self.channel_layer is None}")


@pytest.mark.parametrize("value", [{}, None])
async def test_no_layer(value: Any) -> None:
    """CHANNEL_LAYERS empty or unset means None, and consumers serve their clients without a layer."""
    with override_settings():
        if value is None:
            del settings.CHANNEL_LAYERS
        else:
            settings.CHANNEL_LAYERS = value
        assert get_channel_layer() is None
        assert trunkline.get_channel_layer() is None
        socket = WebsocketCommunicator(Echo.as_asgi(), "/")
        assert (await socket.connect())[0]
        await socket.send_to(text_data="alone:")
        assert await socket.receive_from() == "alone: True"
        await socket.disconnect()


def test_aliases_are_separate_layers() -> None:
    """Each alias has its own layer with its own settings; an unknown one is None."""
    specs = {
        "default": {"BACKEND": MEMORY, "CONFIG": {"capacity": 5}},
        "jobs": {"BACKEND": MEMORY, "CONFIG": {"capacity": 7, "expiry": 3}},
    }
    with override_settings(CHANNEL_LAYERS=specs):
        default, jobs = trunkline.get_channel_layer(), trunkline.get_channel_layer("jobs")
        assert (default.capacity, jobs.capacity, jobs.expiry) == (5, 7, 3)
        assert default is get_channel_layer("default")
        assert jobs is get_channel_layer("jobs")
        assert get_channel_layer("absent") is trunkline.get_channel_layer("absent") is None


async def test_a_consumer_uses_the_alias_of_its_class() -> None:
    """channel_layer_alias picks the layer of a consumer."""

    class OnJobs(Echo):
        channel_layer_alias = "jobs"
        groups = ["g"]

        async def told(self, event: dict[str, Any]) -> None:
            await self.send(text_data=event["text"])

    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": MEMORY}, "jobs": {"BACKEND": MEMORY}}):
        socket = WebsocketCommunicator(OnJobs.as_asgi(), "/")
        await socket.connect()
        await get_channel_layer().group_send("g", {"type": "told", "text": "wrong"})
        await get_channel_layer("jobs").group_send("g", {"type": "told", "text": "right"})
        assert await socket.receive_from() == "right"
        await socket.disconnect()
        await get_channel_layer().close()
        await get_channel_layer("jobs").close()


def test_override_settings_replaces_the_layer_and_lets_the_old_one_go() -> None:
    """Inside the override there is a new layer; afterwards it is collected, and its node is closed, not leaked."""
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": MEMORY}}):
        before = trunkline.get_channel_layer()
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": MEMORY, "CONFIG": {"capacity": 3}}}):
            inside = trunkline.get_channel_layer()
            assert inside is not before
            assert inside.capacity == 3
            inside.sync.send(inside.sync.new_channel(), {"type": "a"})
            nodes, gone = list(inside._nodes.values()), weakref.ref(inside)
            assert len(nodes) == 1
            del inside
        # The background thread may hold the layer for the rest of the turn in which its last call ended.
        eventually(lambda: gc.collect() is not None and gone() is None, "the layer is collected")
        before.sync.flush()  # runs in the same background loop, after the close given to it
        eventually(lambda: nodes[0].closed, "its node is closed")
        before.sync.close()


WRONG = {
    "a misspelt setting": ({"BACKEND": MEMORY, "CONFIG": {"expirry": 3}}, "did you mean 'expiry'"),
    "a wrong value": ({"BACKEND": MEMORY, "CONFIG": {"capacity": "many"}}, "capacity is a whole number"),
    "one key instead of a list": (
        {"BACKEND": MEMORY, "CONFIG": {"symmetric_encryption_keys": "secret"}},
        r"write \[key\]",
    ),
}


@pytest.mark.parametrize(("spec", "fix"), WRONG.values(), ids=WRONG)
def test_a_wrong_config_is_told_by_both_names(spec: Any, fix: str) -> None:
    """Never a KeyError, which Channels would turn into None: a ValueError that names the key and the fix."""
    with override_settings(CHANNEL_LAYERS={"default": spec}):
        with pytest.raises(ValueError, match=fix):
            get_channel_layer()
        with pytest.raises(trunkline.ConfigurationError, match=f"CHANNEL_LAYERS\\['default'\\].*{fix}"):
            trunkline.get_channel_layer()


MISSHAPEN = {
    "no BACKEND": ({"CONFIG": {}}, 'has no "BACKEND"'),
    "a misspelt BACKEND": (
        {"BACKEND": "trunkline.layers.InMemoryChanelLayer"},
        "did you mean 'InMemoryChannelLayer'",
    ),
    "a missing module": ({"BACKEND": "trunklyne.layers.X"}, "cannot import BACKEND 'trunklyne.layers.X'"),
    "a misspelt key": ({"BACKEND": MEMORY, "CONFG": {}}, "did you mean 'CONFIG'"),
    "a URL": ("embedded:", "Django Channels does not know"),
    "a number": (7, "not int"),
    "a wrong TEST_CONFIG": (
        {"BACKEND": MEMORY, "TEST_CONFIG": {"expiry": 0}},
        "expiry is a number of seconds above 0",
    ),
}


@pytest.mark.parametrize(("spec", "fix"), [*WRONG.values(), *MISSHAPEN.values()], ids=[*WRONG, *MISSHAPEN])
def test_the_system_check_reports_it(spec: Any, fix: str) -> None:
    """`manage.py check` shows each wrong entry of CHANNEL_LAYERS, with its alias and the fix."""
    with override_settings(CHANNEL_LAYERS={"good": {"BACKEND": MEMORY}, "bad": spec}):
        (report,) = [message for message in run_checks() if message.id.startswith("trunkline")]
    assert report.id == "trunkline.E001"
    assert report.is_serious()
    assert "CHANNEL_LAYERS['bad']" in report.msg
    assert re.search(fix, report.msg), report.msg


def test_the_system_check_is_silent_when_all_is_well() -> None:
    """Good entries, no entries and layers of other makers are not reported; a list instead of a dict is."""
    other = {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 3}}
    for value, reports in (({}, 0), ({"default": {"BACKEND": MEMORY}, "other": other}, 0), (["default"], 1)):
        with override_settings(CHANNEL_LAYERS=value):
            assert len([m for m in run_checks() if m.id.startswith("trunkline")]) == reports


def test_a_deployment_with_memory_is_warned_of() -> None:
    """`check --deploy` says that an in-memory layer ends at the process."""
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": MEMORY}}, SECRET_KEY="k" * 60):
        ids = [message.id for message in run_checks(include_deployment_checks=True)]
    assert "trunkline.W001" in ids


def test_test_config() -> None:
    """TEST_CONFIG replaces CONFIG, through Channels' manager and ours; without one, both say so."""
    spec = {"BACKEND": MEMORY, "CONFIG": {"expiry": 9}, "TEST_CONFIG": {"expiry": 1}}
    with override_settings(CHANNEL_LAYERS={"default": spec, "bare": {"BACKEND": MEMORY}}):
        assert channel_layers.make_test_backend("default").expiry == 1
        assert make_test_layer().expiry == 1
        assert trunkline.get_channel_layer().expiry == 9
        with pytest.raises(InvalidChannelLayerError):
            channel_layers.make_test_backend("bare")
        with pytest.raises(trunkline.ConfigurationError, match=r"'bare'.*has no .TEST_CONFIG."):
            make_test_layer("bare")
        with pytest.raises(trunkline.ConfigurationError, match="does not exist"):
            make_test_layer("absent")


def test_a_layer_set_by_a_test_is_the_one_for_all() -> None:
    """channel_layers.set(alias, layer) is what trunkline.get_channel_layer(alias) gives, too."""
    from trunkline.layers import InMemoryChannelLayer

    with override_settings(CHANNEL_LAYERS={}):
        mine = InMemoryChannelLayer()
        channel_layers.set("mine", mine)
        assert trunkline.get_channel_layer("mine") is mine
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": MEMORY}}):
        mine = InMemoryChannelLayer()
        channel_layers.set("default", mine)
        assert trunkline.get_channel_layer() is mine


def _python(code: str, *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", **(env or {})},
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WITHOUT_CHANNELS = """
    import sys
    sys.modules["channels"] = None  # what an import of an absent package amounts to
    import django
    from django.conf import settings
    settings.configure(INSTALLED_APPS=["trunkline.django"], CHANNEL_LAYERS={
        "default": {"BACKEND": "trunkline.layers.InMemoryChannelLayer", "TEST_CONFIG": {"expiry": 2}},
        "jobs": "memory://jobs?capacity=3",
    })
    django.setup()
    import gc, weakref
    import trunkline
    from django.test import override_settings
"""


def test_without_django_channels() -> None:
    """CHANNEL_LAYERS works with Django alone: one layer per alias, URLs too, override_settings, TEST_CONFIG, checks."""
    _python(
        WITHOUT_CHANNELS
        + """
    layer = trunkline.get_channel_layer()
    assert layer is trunkline.get_channel_layer()
    assert trunkline.get_channel_layer("jobs").capacity == 3
    assert trunkline.get_channel_layer("absent") is None
    from trunkline.django.configured import make_test_layer
    assert make_test_layer().expiry == 2
    layer.sync.send("a", {"type": "x"})
    node, = layer._nodes.values()
    gone = weakref.ref(layer)
    del layer
    with override_settings(CHANNEL_LAYERS={}):
        assert trunkline.get_channel_layer() is None
        gc.collect()
        assert gone() is None
    again = trunkline.get_channel_layer()
    again.sync.flush()
    assert node.closed
    from django.core.checks import run_checks
    assert run_checks() == []
    try:
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "trunkline.layers.Nope"}}):
            trunkline.get_channel_layer()
    except trunkline.ConfigurationError as error:
        assert "Nope" in str(error)
    else:
        raise SystemExit("no error")
    """
    )


def test_without_django() -> None:
    """DJANGO_SETTINGS_MODULE left in the shell does not matter where Django is not installed."""
    code = """
    import sys
    sys.modules["django"] = None
    import trunkline
    assert trunkline.get_channel_layer().capacity == 4
    """
    _python(code, env={"DJANGO_SETTINGS_MODULE": "elsewhere.settings", "TRUNKLINE_URL": "memory:?capacity=4"})


def test_settings_that_cannot_be_read() -> None:
    """A wrong DJANGO_SETTINGS_MODULE is a ConfigurationError that names it."""
    code = """
    import trunkline
    try:
        trunkline.get_channel_layer()
    except trunkline.ConfigurationError as error:
        print(error)
    """
    said = _python(code, env={"DJANGO_SETTINGS_MODULE": "elsewhere.settings"})
    assert "DJANGO_SETTINGS_MODULE=elsewhere.settings" in said
    assert "No module named 'elsewhere'" in said


def test_django_without_settings_is_no_configuration() -> None:
    """Importing Django alone, as a library may, changes nothing: TRUNKLINE_URL counts."""
    code = """
    import django.conf, trunkline
    assert trunkline.get_channel_layer().capacity == 4
    """
    _python(code, env={"TRUNKLINE_URL": "memory:?capacity=4"})
