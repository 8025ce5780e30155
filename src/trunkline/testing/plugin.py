"""The pytest plugin: layers for tests, made for each and closed after it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..layers import InMemoryChannelLayer

# Imported inside the fixtures: a test run that does not use them pays nothing for the plugin.


@pytest.fixture
def channel_layer() -> Iterator[InMemoryChannelLayer]:
    """An in-memory layer that is the default one for this test, for consumers as for ``get_channel_layer()``."""
    from ..layers import InMemoryChannelLayer
    from ..opening import override

    layer = InMemoryChannelLayer()
    with override("default", layer):
        yield layer
    layer.sync.close()


@pytest.fixture
def make_channel_layer() -> Iterator[Callable[..., InMemoryChannelLayer]]:
    """Makes in-memory layers that hear each other, so that a test can play several processes."""
    from ..layers import InMemoryChannelLayer

    hub = uuid.uuid4().hex
    made: list[InMemoryChannelLayer] = []

    def make(**options: Any) -> InMemoryChannelLayer:
        layer = InMemoryChannelLayer(hub=hub, **options)
        made.append(layer)
        return layer

    yield make
    for layer in made:
        layer.sync.close()
