from typing import Any

import pytest

from nats_servers import NatsServer
from trunkline.layers import NatsChannelLayer
from trunkline.testing import LayerConformance


@pytest.fixture(autouse=True)
def _server(nats: NatsServer, request: pytest.FixtureRequest) -> None:
    request.instance.server = nats


class TestRecoveringNatsChannelLayer(LayerConformance):
    server: NatsServer

    def make_layer(self, prefix: str, **options: Any) -> NatsChannelLayer:
        return NatsChannelLayer(self.server.url, prefix=prefix, recover=True, **options)
