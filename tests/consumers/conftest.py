"""Fixtures for consumer tests: a layer that is the default one, and a guard against tasks left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from trunkline import ChannelLayer, opening
from trunkline.testing.plugin import layer_maker


@pytest.fixture
async def layer() -> AsyncIterator[ChannelLayer]:
    """The default layer: in memory, or where TRUNKLINE_TEST_URL says."""
    layer = layer_maker()()
    with opening.override("default", layer):
        yield layer
    await layer.close()


@pytest.fixture(params=["with layer", "without layer"])
async def perhaps_layer(request: pytest.FixtureRequest) -> AsyncIterator[ChannelLayer | None]:
    """What must hold with a layer and without one."""
    layer = layer_maker()() if request.param == "with layer" else None
    with opening.override("default", layer):
        yield layer
    if layer is not None:
        await layer.close()


@pytest.fixture(autouse=True)
async def no_task_left_behind() -> AsyncIterator[None]:
    """A test's consumers, workers and communicators leave no task behind."""
    before = asyncio.all_tasks()
    yield
    left = {
        task
        for task in asyncio.all_tasks() - before
        if task is not asyncio.current_task() and not task.done()
    }
    if left:
        await asyncio.wait(left, timeout=10)  # an ending task may need a tick
        left = {task for task in left if not task.done()}
    assert not left, f"left behind: {left}"
