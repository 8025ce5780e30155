"""One running demo for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.demo_process import Demo, running


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """A test that ends a part of it waits until that part is back."""
    with running() as demo:
        yield demo
