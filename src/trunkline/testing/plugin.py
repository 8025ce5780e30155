"""The pytest plugin: layers for tests, made for each and closed after it.

They are in memory, or where ``TRUNKLINE_TEST_URL`` says: so a whole suite runs on another layer by one variable.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..layer import ChannelLayer

# Imported inside the functions: a test run that does not use the fixtures pays nothing for the plugin.


def layer_maker() -> Callable[..., ChannelLayer]:
    """Makes layers that hear each other and nobody else."""
    from ..layers import InMemoryChannelLayer
    from ..opening import layer_from_url

    url, unique = os.environ.get("TRUNKLINE_TEST_URL"), f"test{uuid.uuid4().hex[:12]}"

    def make(**options: Any) -> ChannelLayer:
        return (
            layer_from_url(url, prefix=unique, **options)
            if url
            else InMemoryChannelLayer(hub=unique, **options)
        )

    return make


@pytest.fixture
def channel_layer() -> Iterator[ChannelLayer]:
    """A layer that is the default one for this test, for consumers as for ``get_channel_layer()``."""
    from ..opening import override

    layer = layer_maker()()
    with override("default", layer):
        yield layer
    layer.sync.close()


@pytest.fixture
def make_channel_layer() -> Iterator[Callable[..., ChannelLayer]]:
    """Makes layers that hear each other, so that a test can play several processes."""
    create = layer_maker()
    made: list[ChannelLayer] = []

    def make(**options: Any) -> ChannelLayer:
        made.append(create(**options))
        return made[-1]

    yield make
    for layer in made:
        layer.sync.close()
