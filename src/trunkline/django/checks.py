"""System checks: what is wrong in ``CHANNEL_LAYERS``, told by ``manage.py check`` and at every start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from ..errors import ConfigurationError
from ..layer import ChannelLayer
from ..layers import InMemoryChannelLayer
from ..opening import make_layer, shared_places
from .configured import usable

__all__ = ["check_channel_layers", "check_deployment"]


def check_channel_layers(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Report every wrong entry, with its fix (``trunkline.E001``), and two that are one (``trunkline.W002``)."""
    specs = getattr(settings, "CHANNEL_LAYERS", None) or {}
    if not isinstance(specs, Mapping):
        return [
            Error(
                f"CHANNEL_LAYERS is a dict of alias: settings, not {type(specs).__name__}.",
                hint='CHANNEL_LAYERS = {"default": {"BACKEND": "trunkline.layers.EmbeddedChannelLayer"}}',
                id="trunkline.E001",
            )
        ]
    made: dict[str, ChannelLayer] = {}
    found: list[CheckMessage] = [
        Error(text, hint="Mend CHANNEL_LAYERS in your settings.", id="trunkline.E001")
        for text in _mistakes(specs, made)
    ]
    return found + [Warning(text, id="trunkline.W002") for text in shared_places(made)]


def check_deployment(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn, with ``check --deploy``, of layers that end at the process (``trunkline.W001``)."""
    specs = getattr(settings, "CHANNEL_LAYERS", None)
    return [
        Warning(
            f"CHANNEL_LAYERS[{alias!r}] keeps its messages in one process: others never see them.",
            hint='Use "BACKEND": "trunkline.layers.EmbeddedChannelLayer" on one machine, "…RedisChannelLayer" on several.',
            id="trunkline.W001",
        )
        for alias, spec in (specs.items() if isinstance(specs, Mapping) else ())
        if (found := _class(spec)) and issubclass(found, InMemoryChannelLayer)
    ]


def _mistakes(specs: Mapping[str, Any], made: dict[str, ChannelLayer]) -> Iterator[str]:
    for alias, spec in specs.items():
        if (found := _class(spec)) and not issubclass(found, ChannelLayer):
            continue  # somebody else's layer: making one might connect, or need an event loop
        for config in ("CONFIG", "TEST_CONFIG"):
            if config == "CONFIG" or (isinstance(spec, Mapping) and config in spec):
                try:
                    layer = make_layer(alias, usable(alias, spec), config)
                    if config == "CONFIG":
                        made[alias] = layer
                except ConfigurationError as error:
                    yield str(error)
                    break


def _class(spec: Any) -> type | None:
    if not isinstance(spec, Mapping):
        return None
    try:
        found = import_string(spec.get("BACKEND"))
    except (ImportError, AttributeError, TypeError):
        return None  # make_layer says what is wrong with it
    return found if isinstance(found, type) else None
