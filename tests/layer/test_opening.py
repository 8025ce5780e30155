"""From settings to a layer: every way in, and every wrong turn."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import trunkline
from trunkline import opening
from trunkline.errors import ConfigurationError
from trunkline.layers import EmbeddedChannelLayer, InMemoryChannelLayer

MEMORY = "trunkline.layers.InMemoryChannelLayer"


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRUNKLINE_URL", raising=False)
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    for module in [name for name in sys.modules if name == "django.conf"]:
        monkeypatch.delitem(sys.modules, module)
    yield
    trunkline.configure(None)


def test_nothing_configured(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without configuration there is no layer, and that is not an error; it is logged once, with what to do."""
    monkeypatch.setattr(opening, "_missed", set())
    for _ in range(2):
        assert trunkline.get_channel_layer() is None
    (record,) = caplog.records
    assert "call trunkline.configure({'default': 'embedded:'}) first" in record.getMessage()
    trunkline.configure({})
    assert trunkline.get_channel_layer() is None
    assert trunkline.get_channel_layer("other") is None


async def test_the_same_dict_as_in_django() -> None:
    """configure takes CHANNEL_LAYERS; each alias has one layer, made once."""
    trunkline.configure(
        {"default": {"BACKEND": MEMORY, "CONFIG": {"capacity": 7}}, "other": {"BACKEND": MEMORY}}
    )
    layer = trunkline.get_channel_layer()
    assert isinstance(layer, InMemoryChannelLayer)
    assert layer.capacity == 7
    assert trunkline.get_channel_layer() is layer
    assert trunkline.get_channel_layer("other") is not layer
    assert trunkline.get_channel_layer("third") is None


def test_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A URL configures the default layer, its query any setting; TRUNKLINE_URL does the same from outside."""
    trunkline.configure("memory://here?capacity=5&expiry=2.5")
    layer = trunkline.get_channel_layer()
    assert (layer.capacity, layer.expiry) == (5, 2.5)
    trunkline.configure(None)
    monkeypatch.setenv("TRUNKLINE_URL", f"embedded://{tmp_path}?capacity=6&max_size=10000000")
    layer = trunkline.get_channel_layer()
    assert layer.capacity == 6
    assert trunkline.get_channel_layer() is layer
    assert trunkline.get_channel_layer("other") is None


def test_a_ready_made_layer() -> None:
    """configure takes a layer object too."""
    layer = InMemoryChannelLayer()
    trunkline.configure({"default": layer})
    assert trunkline.get_channel_layer() is layer


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        (7, "a URL or a dict of alias"),
        ({"default": 7}, r"CHANNEL_LAYERS\['default'\] is a URL, a layer or a dict"),
        ({"default": {}}, 'has no "BACKEND"'),
        ({"default": {"BACKEND": MEMORY, "CONFG": {}}}, "'CONFG': did you mean 'CONFIG'"),
        ({"default": {"BACKEND": MEMORY, "ROUTING": "x"}}, "unknown key 'ROUTING'"),
        (
            {"default": {"BACKEND": "trunkline.layers.InMemoryChanelLayer"}},
            "did you mean 'InMemoryChannelLayer'",
        ),
        ({"default": {"BACKEND": "trunkline.lairs.X"}}, "cannot import BACKEND 'trunkline.lairs.X'"),
        ({"default": {"BACKEND": "nothing"}}, "cannot import BACKEND 'nothing'"),
        (
            {"default": {"BACKEND": "no_package.X"}},
            r"No module named 'no_package'. Install the package that has it, or write trunkline\.layers\. and one of",
        ),
        (
            {"default": {"BACKEND": "no_package.RedisChannelLayer"}},
            'Write "trunkline.layers.RedisChannelLayer", or',
        ),
        ({"BACKEND": MEMORY}, r'write {"default": {"BACKEND": …}}'),
        ({"default": {"BACKEND": "redis://localhost"}}, "BACKEND names a class, not a URL"),
        ({"default": {"BACKEND": MEMORY, "CONFIG": {"capcity": 1}}}, "did you mean 'capacity'"),
        ({"default": {"BACKEND": MEMORY, "CONFIG": {"capacity": "1"}}}, "capacity is a whole number"),
        ({"default": {"BACKEND": MEMORY, "CONFIG": [1]}}, r"\['CONFIG'\] is a dict"),
        ("chat", "'chat' is not a URL of a layer"),
        ("localhost:6379", "'localhost:6379' is not a URL of a layer; it looks like redis://localhost:6379"),
        ("embeded:///x", "did you mean 'embedded'"),
        ("memory://x?capcity=3", "did you mean 'capacity'"),
        ("memory://x?capacity=none", "capacity is a whole number"),
        ("embedded://host/dir", "embedded"),
    ],
)
def test_wrong_turns(layers: Any, complaint: str) -> None:
    """Every mistake is a ConfigurationError, a ValueError, that names it and the nearest right thing."""
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        trunkline.configure(layers)
    assert not isinstance(caught.value, KeyError)


def test_two_names_for_one_place(caplog: pytest.LogCaptureFixture) -> None:
    """Layers with the same servers and prefix get each other's messages: that is said once, with the fix."""
    trunkline.configure(
        {"a": "memory://", "b": "memory://?prefix=b", "c": "memory://x", "d": {"BACKEND": MEMORY}}
    )
    trunkline.configure({"a": {"BACKEND": MEMORY}, "b": {"BACKEND": MEMORY}})  # each of its own hub
    assert not caplog.records
    trunkline.configure({"default": "memory://x", "jobs": "memory://x?prefix=asgi&capacity=5"})
    (record,) = caplog.records
    assert record.getMessage().endswith('Give \'jobs\' a prefix of its own: "prefix": "jobs"')


def test_two_names_for_one_redis(caplog: pytest.LogCaptureFixture) -> None:
    """The same of a server; its password is not told."""
    trunkline.configure({"default": "redis://:zecret@h", "jobs": "redis://:zecret@h?prefix=asgi&capacity=5"})
    (record,) = caplog.records
    assert record.getMessage().endswith('Give \'jobs\' a prefix of its own: "prefix": "jobs"')
    assert "zecret" not in record.getMessage()


def test_direct_construction() -> None:
    """The classes tell wrong arguments at once too."""
    with pytest.raises(ConfigurationError, match="did you mean 'hub'"):
        InMemoryChannelLayer(hbu="x")  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="hub is a name"):
        InMemoryChannelLayer(hub=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_size"):
        EmbeddedChannelLayer("/tmp/x", max_size=-1)


def test_third_party_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package adds a scheme by an entry point; a wrong one is told."""

    class Entry:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

    entries = [
        Entry("kafka", "trunkline.transports.memory:MemoryTransport"),
        Entry("broken", "trunkline.layers:InMemoryChannelLayer"),
        Entry("missing", "no_such_package:Transport"),
    ]
    monkeypatch.setattr(opening.importlib.metadata, "entry_points", lambda group: entries)
    assert trunkline.layer_from_url("kafka://x").capacity == 100
    with pytest.raises(ConfigurationError, match=r"broken://.*not a subclass"):
        trunkline.layer_from_url("broken://x")
    with pytest.raises(
        ConfigurationError, match="missing:// needs a package: No module named 'no_such_package'"
    ):
        trunkline.layer_from_url("missing://x")
    with pytest.raises(ConfigurationError, match="did you mean 'kafka'"):
        trunkline.layer_from_url("kafak://x")


def test_the_fixture(channel_layer: InMemoryChannelLayer) -> None:
    """The pytest plugin's layer is the default one while the test runs."""
    assert trunkline.get_channel_layer() is channel_layer


async def test_the_factory_fixture(make_channel_layer: Any) -> None:
    """Layers of the plugin's factory hear each other, as processes would."""
    a, b = make_channel_layer(), make_channel_layer(capacity=5)
    channel = await b.new_channel()
    await a.send(channel, {"type": "x"})
    assert await b.receive(channel) == {"type": "x"}


def test_a_lost_layer_makes_no_noise() -> None:
    """A layer dropped in mid-use, with its loop closed or not, leaves no warning and no pending task."""
    code = """
import asyncio, gc, logging
from trunkline.layers import InMemoryChannelLayer
# In debug mode asyncio also tells of steps that took 100 ms, as any does on a busy machine.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing <"))
async def use():
    layer = InMemoryChannelLayer()
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.group_send("g", {"type": "x"})
asyncio.run(use()); gc.collect()
loop = asyncio.new_event_loop(); loop.run_until_complete(use()); gc.collect(); loop.close(); gc.collect()
layer = InMemoryChannelLayer()
loop = asyncio.new_event_loop(); loop.run_until_complete(layer.new_channel()); loop.close()
asyncio.run(layer.new_channel())
layer.sync.new_channel()
del layer; gc.collect()
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
