"""Django, set up once for these tests, with the example project, a database file of its own and no channel layer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings

import django

PROJECT = Path(__file__).resolve().parents[2] / "examples" / "django_chat"
FOLDER = Path(tempfile.mkdtemp(prefix="trunkline-django-"))

if not settings.configured:
    sys.path.insert(0, str(PROJECT))
    from chatsite import settings as example

    # Not through DJANGO_SETTINGS_MODULE: the variable would reach other tests and their processes.
    values = {key: getattr(example, key) for key in dir(example) if key.isupper()}
    values["DATABASES"]["default"]["NAME"] = FOLDER / "chat.sqlite3"
    # Threads of the layer's machinery may ask for the layer too: only a test that names one has one.
    settings.configure(**{**values, "CHANNEL_LAYERS": {}, "DEBUG": False})
    django.setup()
    import chatsite.asgi  # noqa: F401

    os.environ.pop("DJANGO_SETTINGS_MODULE", None)  # which asgi.py sets for the servers it is made for


@pytest.fixture(scope="session", autouse=True)
def _database() -> Iterator[None]:
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0)
    connections.close_all()
    yield
    shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.fixture(autouse=True)
def _clean_rows() -> Iterator[None]:
    from chatsite.models import Client, Thumbnail
    from django.db import connections

    yield
    Client.objects.all().delete()
    Thumbnail.objects.all().delete()
    connections.close_all()


@pytest.fixture(params=["memory", "embedded"])
def entry(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """An entry of CHANNEL_LAYERS, for each backend."""
    if request.param == "memory":
        return {"BACKEND": "trunkline.layers.InMemoryChannelLayer", "CONFIG": {}}
    return {"BACKEND": "trunkline.layers.EmbeddedChannelLayer", "CONFIG": {"path": str(tmp_path / "layer")}}


@pytest.fixture
def layer(entry: dict[str, Any]) -> Iterator[Any]:
    """The default layer of Django Channels, one of ours."""
    from channels.layers import get_channel_layer

    with override_settings(CHANNEL_LAYERS={"default": entry}):
        made = get_channel_layer()
        yield made
        made.sync.close()


@pytest.fixture
def project_env(tmp_path: Path) -> dict[str, str]:
    """The environment for processes of the example project: a layer and a database of their own."""
    return {"TRUNKLINE_DIR": str(tmp_path / "layer"), "CHAT_DATABASE": str(tmp_path / "chat.sqlite3")}
