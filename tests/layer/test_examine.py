"""``examine()``: what is behind a layer, as the layer itself tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from trunkline import layer_from_url
from trunkline.errors import ConfigurationError
from trunkline.layer import ChannelLayer
from trunkline.layers import EmbeddedChannelLayer, InMemoryChannelLayer
from trunkline.settings import Settings
from trunkline.transports.memory import MemoryTransport


async def test_a_layer_of_a_url_and_one_of_settings(tmp_path: Path) -> None:
    """Both tell about the same folder; the layer itself is not opened."""
    for layer in (layer_from_url(f"embedded://{tmp_path}/x"), EmbeddedChannelLayer(tmp_path / "x")):
        found = await layer.examine()
        assert any(str(tmp_path / "x") in finding.what for finding in found)
        assert not layer._nodes


async def test_a_transport_that_says_nothing() -> None:
    """Is one finding, that is fine."""
    for layer in (InMemoryChannelLayer(), layer_from_url("memory://user:zecret@x")):
        (finding,) = await layer.examine()
        assert finding.level == "ok"
        assert "zecret" not in finding.what


async def test_a_layer_made_by_a_function() -> None:
    """Cannot tell, and says what to do."""
    layer = ChannelLayer(lambda: MemoryTransport("x"), Settings())
    with pytest.raises(ConfigurationError, match=r"URL or of functools\.partial"):
        await layer.examine()
