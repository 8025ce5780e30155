"""What a command works on: the layer, an application named by ``module:name``, a message written as JSON."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from typing import Any

import click

from ..errors import ConfigurationError
from ..layer import ChannelLayer
from ..layers import InMemoryChannelLayer
from ..opening import configured_layer, layer_from_url
from ..settings import nearest

__all__ = ["Mistake", "application", "django_application", "examine", "layer", "message"]


class Mistake(click.ClickException):
    """The caller's mistake, told in full by its text."""

    exit_code = 2


_DJANGO = "trunkline.django.configured"


def layer(url: str | None, alias: str) -> Any:
    """The layer of ``--url``, else the one the application itself would get.

    Where nothing is configured, and outside a Django project, that is the embedded one of this folder.

    Raises:
        ConfigurationError: There is no such alias, or it is configured wrongly.
    """
    found = layer_from_url(url) if url else configured_layer(alias)
    if found is None and (alias != "default" or _in_django_project()):
        raise ConfigurationError(
            f"no layer is configured as {alias!r}: add it to CHANNEL_LAYERS, or use --url"
        )
    if isinstance(found, InMemoryChannelLayer) or (url or "").startswith("memory:"):
        click.echo("note: an in-memory layer ends at this process; no other process is reached", err=True)
    return found if found is not None else layer_from_url("embedded:")


async def examine(layer: Any) -> list[Any]:
    """What a layer has to say about what is behind it, as ``trunkline.transport.Finding``.

    Raises:
        Mistake: It is no layer of Trunkline's.
        ConfigurationError: It was made in a way of its own.
    """
    if not isinstance(layer, ChannelLayer):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise Mistake(
            f"{kind} is not a layer that can be examined: give a URL, as in: trunkline doctor redis://…"
        )
    return list(await layer.examine())


def message(text: str) -> Any:
    """Read a message as JSON; ``-`` stands for standard input.

    Raises:
        Mistake: It is not JSON; the text is shown with the place marked.
    """
    text = sys.stdin.read() if text == "-" else text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        before, after = text[max(0, error.pos - 30) : error.pos], text[error.pos : error.pos + 30]
        raise Mistake(
            f"the message is not JSON, at line {error.lineno} column {error.colno}: {error.msg}: {before}⟶{after}"
        ) from error


def application(path: str) -> Any:
    """Import what ``module:name`` names.

    Raises:
        Mistake: It cannot be imported or called; says what was tried, and where it failed.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise Mistake(f"{path!r} is not MODULE:APPLICATION, e.g. mysite.asgi:application")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        file = error.name.replace(".", os.sep)
        raise Mistake(
            f"no module {error.name!r}: looked for {file}.py and {file}{os.sep}__init__.py in {os.getcwd()} and on "
            "Python's path; start the command in the folder of your project, or set PYTHONPATH"
        ) from error
    except Exception as error:
        raise _broken(module_name, error) from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = (
                [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
            )
            raise Mistake(f"{module_name} has no {part!r}{nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise Mistake(f"{path} is not an ASGI application but an object of type {type(found).__name__}")
    return found


def django_application() -> str | None:
    """Django's ``ASGI_APPLICATION`` as ``module:name``, where there is a Django project."""
    if "django.conf" not in sys.modules and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    found: str | None = importlib.import_module(_DJANGO).default_application()
    return found


def _in_django_project() -> bool:
    # There a missing CHANNEL_LAYERS means that the application has no layer, so nobody would hear us on another.
    return bool(os.environ.get("DJANGO_SETTINGS_MODULE")) and importlib.util.find_spec("django") is not None


def _broken(module_name: str, error: Exception) -> Mistake:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    where = f" ({os.path.relpath(frames[-1].filename)}:{frames[-1].lineno})" if len(frames) > 2 else ""
    return Mistake(
        f"importing {module_name} failed: {type(error).__name__}: {error}{where}; --traceback shows where"
    )
