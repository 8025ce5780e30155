from typing import Any

from trunkline.layers import InMemoryChannelLayer
from trunkline.testing import LayerConformance


class TestInMemoryChannelLayer(LayerConformance):
    def make_layer(self, prefix: str, **options: Any) -> InMemoryChannelLayer:
        return InMemoryChannelLayer(hub="conformance", prefix=prefix, **options)
