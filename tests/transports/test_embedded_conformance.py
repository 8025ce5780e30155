from pathlib import Path
from typing import Any

import pytest

from trunkline.layers import EmbeddedChannelLayer
from trunkline.testing import LayerConformance, Link, TransportConformance
from trunkline.testing.links import LinkedEmbedded


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.instance.folder = tmp_path / "layer"


class TestEmbedded(TransportConformance):
    folder: Path

    def make_transport(self, link: Link, prefix: str) -> LinkedEmbedded:
        return LinkedEmbedded(link, str(self.folder), prefix=prefix)


class TestEmbeddedChannelLayer(LayerConformance):
    folder: Path

    def make_layer(self, prefix: str, **options: Any) -> EmbeddedChannelLayer:
        return EmbeddedChannelLayer(self.folder, prefix=prefix, **options)
