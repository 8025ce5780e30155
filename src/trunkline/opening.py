"""From settings or a URL to a layer, with errors that name the mistake and the nearest right thing.

Where the configuration comes from, first that has one: ``trunkline.configure(...)``, Django's ``CHANNEL_LAYERS`` when Django
is set up, the environment variable ``TRUNKLINE_URL``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import os
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from .errors import ConfigurationError
from .layer import ChannelLayer
from .logs import logger
from .settings import Options, Settings, nearest, shown_url, split_url
from .transport import Transport

__all__ = [
    "configure",
    "configured_layer",
    "get_channel_layer",
    "layer_from_url",
    "layer_settings",
    "shared_places",
    "transport_class",
]

#: URL scheme -> "module:class". Installed packages add theirs by entry points of the group ``trunkline.transports``.
TRANSPORTS = {
    "memory": "trunkline.transports.memory:MemoryTransport",
    "embedded": "trunkline.transports.embedded:EmbeddedTransport",
    **dict.fromkeys(
        ("redis", "rediss", "unix", "valkey", "valkeys"), "trunkline.transports.redis:RedisTransport"
    ),
    **dict.fromkeys(
        (
            f"{scheme}+{kind}"
            for scheme in ("redis", "rediss", "valkey", "valkeys")
            for kind in ("sentinel", "cluster")
        ),
        "trunkline.transports.redis:RedisTransport",
    ),
    **dict.fromkeys(("postgres", "postgresql"), "trunkline.transports.postgres:PostgresTransport"),
    **dict.fromkeys(("nats", "nats+tls"), "trunkline.transports.nats:NatsTransport"),
}
_DJANGO = "trunkline.django.configured"
_CHAOS = "trunkline.testing.chaos"

_lock = threading.RLock()
_configured: dict[str, Mapping[str, Any] | str] | None = None
_layers: dict[str, Any] = {}
_overrides: dict[str, Any] = {}
_missed: set[str] = set()  # aliases of which was told that there is no layer


def configure(layers: Mapping[str, Any] | str | None) -> None:
    """Say which layers there are: the dict Django calls ``CHANNEL_LAYERS``, a URL for the default one, or None to forget.

    Nothing is opened before first use.

    Raises:
        ConfigurationError: It is neither; a wrong ``BACKEND`` or ``CONFIG`` is told at once too.
    """
    global _configured
    if isinstance(layers, str):
        layers = {"default": layers}
    if layers is not None and not isinstance(layers, Mapping):
        raise ConfigurationError(
            f"configure() takes a URL or a dict of alias: settings, not {type(layers).__name__}"
        )
    if layers is not None and "BACKEND" in layers:
        raise ConfigurationError(
            'configure() takes a dict of alias: settings: write {"default": {"BACKEND": …}}'
        )
    made = {} if layers is None else {alias: make_layer(alias, spec) for alias, spec in layers.items()}
    for text in shared_places(made):
        logger.warning("%s", text)
    with _lock:
        _configured = None if layers is None else dict(layers)
        _layers.clear()
        _layers.update(made)


def get_channel_layer(alias: str = "default") -> Any:
    """The configured layer of that alias; None when there is none, which is logged once.

    Raises:
        ConfigurationError: It is configured, but wrongly.
    """
    layer = configured_layer(alias)
    if layer is None and alias not in _missed:
        _missed.add(alias)
        logger.warning(
            "no channel layer is configured as %r, so get_channel_layer() is None: call trunkline.configure({%r: "
            "'embedded:'}) first, or set CHANNEL_LAYERS in Django%s",
            alias,
            alias,
            ", or the variable TRUNKLINE_URL" if alias == "default" else "",
        )
    return layer


def configured_layer(alias: str) -> Any:
    """The same for whoever can do without a layer: nothing is logged."""
    with _lock:
        if alias in _overrides:
            return _overrides[alias]
        if _configured is not None:
            return _layers.get(alias)
        if "django.conf" in sys.modules or os.environ.get("DJANGO_SETTINGS_MODULE"):
            django = importlib.import_module(_DJANGO)
            if django.is_configured():
                return django.layer(alias)
        url = os.environ.get("TRUNKLINE_URL")
        if not url or alias != "default":
            return None
        if url not in _layers:
            _layers[url] = layer_from_url(url)
        return _layers[url]


def shared_places(layers: Mapping[str, Any]) -> list[str]:
    """What is to be said about layers with one prefix in one place, where each gets the other's messages."""
    seen: dict[str, str] = {}
    found = []
    for alias, layer in layers.items():
        made = getattr(layer, "_make_transport", None)
        if isinstance(made, partial):
            kept = {key: made.keywords.get(key) for key in ("server", "schema")}
            place = repr((made.func, made.args, made.keywords.get("prefix", "asgi"), kept))
            if (first := seen.setdefault(place, alias)) != alias:
                found.append(
                    f"CHANNEL_LAYERS[{first!r}] and CHANNEL_LAYERS[{alias!r}] have the same servers and the same prefix: "
                    f'each gets the other\'s messages. Give {alias!r} a prefix of its own: "prefix": "{alias}"'
                )
    return found


@contextlib.contextmanager
def override(alias: str, layer: Any) -> Iterator[None]:
    """Make ``layer`` the one of that alias for a while, whatever is configured; Django Channels, if in use, gets it too."""
    guest = sys.modules.get("channels.layers")
    before = _overrides.get(alias)
    theirs = guest.channel_layers.set(alias, layer) if guest is not None else None
    _overrides[alias] = layer
    try:
        yield
    finally:
        if before is None:
            del _overrides[alias]
        else:
            _overrides[alias] = before
        if guest is not None:
            if theirs is None:
                guest.channel_layers.backends.pop(alias, None)
            else:
                guest.channel_layers.set(alias, theirs)


def make_layer(alias: str, spec: Mapping[str, Any] | str | ChannelLayer, config_key: str = "CONFIG") -> Any:
    """Make the layer that one entry of ``CHANNEL_LAYERS`` describes.

    Raises:
        ConfigurationError: A key or value is wrong; names the alias, the key and the nearest right one.
    """
    where = f"CHANNEL_LAYERS[{alias!r}]"
    if isinstance(spec, str):
        return layer_from_url(spec)
    if isinstance(spec, ChannelLayer):
        return spec
    if not isinstance(spec, Mapping):
        raise ConfigurationError(
            f'{where} is a URL, a layer or a dict with "BACKEND", not {type(spec).__name__}'
        )
    for key in spec:
        if key not in ("BACKEND", "CONFIG", "TEST_CONFIG"):
            raise ConfigurationError(
                f"{where}: unknown key {key!r}{nearest(key, ['BACKEND', 'CONFIG', 'TEST_CONFIG'])}"
            )
    if "BACKEND" not in spec:
        raise ConfigurationError(f'{where} has no "BACKEND", e.g. "trunkline.layers.EmbeddedChannelLayer"')
    config = spec.get(config_key, {})
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"{where}[{config_key!r}] is a dict, not {type(config).__name__}")
    backend = _import(str(spec["BACKEND"]), where)
    try:
        return backend(**config)
    except (ConfigurationError, TypeError) as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _import(path: str, where: str) -> Any:
    if "://" in path:
        raise ConfigurationError(
            f'{where}: BACKEND names a class, not a URL: write "trunkline.layers.RedisChannelLayer" or another of '
            'them, and the server into "CONFIG"'
        )
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"{where}: cannot import BACKEND {path!r}: {error}. {_instead(name)}"
        ) from error
    if not hasattr(module, name):
        known = [key for key in getattr(module, "__all__", dir(module)) if not key.startswith("_")]
        raise ConfigurationError(f"{where}: {module_name} has no {name!r}{nearest(name, known)}")
    return getattr(module, name)


def _instead(name: str) -> str:
    ours = importlib.import_module("trunkline.layers").__all__
    if name in ours:
        return f'Write "trunkline.layers.{name}", or install that package'
    return f"Install the package that has it, or write trunkline.layers. and one of {', '.join(ours)}"


def layer_from_url(url: str, **options: Any) -> ChannelLayer:
    """Make a layer of a URL such as ``embedded:///run/shop?capacity=500``; its query may hold any setting.

    Raises:
        ConfigurationError: The scheme or a setting is unknown, or a value is wrong.
    """
    parts = split_url(url, "the URL of a layer")
    scheme = parts.scheme
    if not scheme or parts.path.isdigit():  # localhost:6379
        raise ConfigurationError(
            f"{shown_url(url)!r} is not a URL of a layer; it looks like redis://localhost:6379 or embedded:///run/my-project"
        )
    if scheme.startswith("chaos+"):
        made: ChannelLayer = importlib.import_module(_CHAOS).layer_of_url(url, **options)
        return made
    transport = transport_class(scheme)
    mine = inspect.signature(transport.__init__).parameters
    given: dict[str, Any] = {}
    kept = []
    for key, text in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
        if key in transport.url_keys:
            kept.append((key, text))
        else:
            given[key] = text if key in mine and "str" in str(mine[key].annotation) else _number(text)
    given |= options
    on_gap = given.pop("on_gap", None)
    mine_only = {key: value for key, value in given.items() if key not in Options.__annotations__}
    for key in mine_only:
        if key not in mine or key.startswith("_"):
            known = [*_spellable(Options.__annotations__, mine), *transport.url_keys]
            raise ConfigurationError(f"{scheme}://: unknown setting {key!r}{nearest(key, known)}")
    settings = Settings.build({key: value for key, value in given.items() if key in Options.__annotations__})
    if "expiry" in mine:
        mine_only["expiry"] = settings.expiry
    bare = urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(kept)))
    return ChannelLayer(partial(transport.from_url, bare, **mine_only), settings, on_gap)


def layer_settings(layer: type[ChannelLayer], options: Mapping[str, Any]) -> Settings:
    """The settings in a layer's keyword arguments.

    Raises:
        ConfigurationError: One is unknown, with the nearest right one, or wrong.
    """
    return Settings.build(options, also=_spellable({}, inspect.signature(layer.__init__).parameters))


def _spellable(*sources: Mapping[str, Any]) -> list[str]:
    return [key for source in sources for key in source if key not in ("self", "options") and key[0] != "_"]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def transport_class(scheme: str) -> Any:
    """The ``Transport`` class of a URL scheme.

    Raises:
        ConfigurationError: There is none, or its driver is not installed.
    """
    path = TRANSPORTS.get(scheme)
    if path is None:
        found = {
            entry.name: entry.value for entry in importlib.metadata.entry_points(group="trunkline.transports")
        }
        path = found.get(scheme)
        if path is None:
            raise ConfigurationError(f"no transport for {scheme}://{nearest(scheme, {*TRANSPORTS, *found})}")
    module, _, name = path.partition(":")
    try:
        transport = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigurationError(f"{scheme}:// needs a package: {error}") from error
    if not (inspect.isclass(transport) and issubclass(transport, Transport)):
        raise ConfigurationError(f"{path}, named for {scheme}://, is not a subclass of trunkline.Transport")
    return transport
