"""The layers of ``CHANNEL_LAYERS``, one object per alias for the whole process, whoever asks for it.

With Django Channels installed they live in its manager, so that ``channels.layers.get_channel_layer()`` and
``trunkline.get_channel_layer()`` give the same object. Without it they live here. Either way ``override_settings`` forgets
them, and a layer nobody holds any more closes what it held open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from ..errors import ConfigurationError
from ..opening import make_layer

__all__ = ["default_application", "is_configured", "layer", "make_test_layer", "usable"]

_own: dict[str, Any] = {}
_listening = False


def is_configured() -> bool:
    """Whether Django's ``CHANNEL_LAYERS`` names any layer, or a test has given one to Django Channels."""
    theirs = sys.modules.get("channels.layers")
    return bool(_setting()) or (theirs is not None and bool(theirs.channel_layers.backends))


def layer(alias: str = "default") -> Any:
    """The layer of that alias; None when ``CHANNEL_LAYERS`` has none.

    Raises:
        ConfigurationError: It is configured, but wrongly.
    """
    layers = _layers()
    if alias not in layers:
        spec = _specs().get(alias)
        if spec is None:
            return None
        layers[alias] = make_layer(alias, usable(alias, spec))
    return layers[alias]


def make_test_layer(alias: str = "default") -> Any:
    """A new layer made with the alias's ``TEST_CONFIG`` in place of its ``CONFIG``; nothing else gets to see it.

    Raises:
        ConfigurationError: There is no such alias, it has no ``TEST_CONFIG``, or it is configured wrongly.
    """
    where = f"CHANNEL_LAYERS[{alias!r}]"
    spec = _specs().get(alias)
    if spec is None:
        raise ConfigurationError(f"{where} does not exist: add it to your Django settings")
    if isinstance(spec, str) or "TEST_CONFIG" not in spec:
        raise ConfigurationError(f'{where} has no "TEST_CONFIG": add it, e.g. "TEST_CONFIG": {{"expiry": 5}}')
    return make_layer(alias, spec, "TEST_CONFIG")


def default_application() -> str | None:
    """The project's ``ASGI_APPLICATION`` as ``module:name``, with Django set up; None without a Django project.

    Raises:
        ConfigurationError: The settings cannot be read.
    """
    if _setting() is None and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    from django.conf import settings

    from django import setup

    setup()
    module, _, name = (getattr(settings, "ASGI_APPLICATION", None) or "").rpartition(".")
    return f"{module}:{name}" if module else None


def _setting() -> Any:
    try:
        from django.conf import settings
        from django.core.exceptions import ImproperlyConfigured
    except ModuleNotFoundError as error:
        if error.name not in ("django", "django.conf"):
            raise
        return None  # DJANGO_SETTINGS_MODULE is left over from another project
    if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    try:
        return getattr(settings, "CHANNEL_LAYERS", None)
    except (ImportError, ImproperlyConfigured) as error:
        name = os.environ.get("DJANGO_SETTINGS_MODULE")
        raise ConfigurationError(
            f"DJANGO_SETTINGS_MODULE={name}: cannot read the settings: {error}"
        ) from error


def _specs() -> Mapping[str, Any]:
    specs = _setting() or {}
    if not isinstance(specs, Mapping):
        raise ConfigurationError(f"CHANNEL_LAYERS is a dict of alias: settings, not {type(specs).__name__}")
    return specs


def usable(alias: str, spec: Any) -> Any:
    """The entry as it is, if everybody who will read it can.

    Raises:
        ConfigurationError: It is a URL, and Django Channels is installed.
    """
    if isinstance(spec, str) and _channels() is not None:
        # It would work here, and fail in every consumer of Django Channels with an AttributeError.
        raise ConfigurationError(
            f"CHANNEL_LAYERS[{alias!r}] is a URL, which Django Channels does not know: write "
            '{"BACKEND": "trunkline.layers.EmbeddedChannelLayer", "CONFIG": {…}}'
        )
    return spec


def _layers() -> MutableMapping[str, Any]:
    theirs = _channels()
    if theirs is not None:
        return theirs.backends  # type: ignore[no-any-return]
    _listen()
    return _own


def _channels() -> Any:
    """The manager of Django Channels; None where that is not installed."""
    try:
        from channels.layers import channel_layers
    except ModuleNotFoundError as error:
        # A project may well have an app of its own called "channels".
        if error.name not in ("channels", "channels.layers"):
            raise
        return None
    return channel_layers


def _listen() -> None:
    global _listening
    if not _listening:
        from django.core.signals import setting_changed

        setting_changed.connect(_on_setting_changed)
        _listening = True


def _on_setting_changed(*, setting: str, **_: Any) -> None:
    if setting == "CHANNEL_LAYERS":
        _own.clear()
