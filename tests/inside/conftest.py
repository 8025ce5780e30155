"""Layers of every kind, for what must hold on each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import trunkline
from servers import Server, servers

KINDS = ["memory", "embedded", *sorted(servers())[:1]]


@pytest.fixture(scope="session", params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the layers of a test meet."""
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}"
    elif request.param == "embedded":
        yield f"embedded://{tmp_path_factory.mktemp('inside')}/layer"
    else:
        server = Server(request.param, tmp_path_factory.mktemp("inside"))
        yield server.url
        server.kill()


@pytest.fixture
def layers(url: str) -> Iterator[Callable[..., trunkline.ChannelLayer]]:
    """Makes layers of one deployment, one for each test."""
    prefix = f"t{uuid.uuid4().hex[:10]}"
    made: list[trunkline.ChannelLayer] = []

    def make(**options: Any) -> trunkline.ChannelLayer:
        made.append(trunkline.layer_from_url(url, prefix=prefix, **options))
        return made[-1]

    yield make
    for layer in made:
        layer.sync.close()
