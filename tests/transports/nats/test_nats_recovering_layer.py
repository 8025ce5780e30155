"""What layers promise, with the log: ``make soak`` runs it. Transports with it are certified by every run."""

import os
from typing import Any

import pytest

from nats_servers import NatsServer
from trunkline.layers import NatsChannelLayer
from trunkline.testing import LayerConformance

pytestmark = pytest.mark.skipif(
    int(os.environ.get("TRUNKLINE_FAILOVERS", "3")) <= 3, reason="a longer run: make soak"
)


@pytest.fixture(autouse=True)
def _server(nats: NatsServer, request: pytest.FixtureRequest) -> None:
    request.instance.server = nats


class TestRecoveringNatsChannelLayer(LayerConformance):
    server: NatsServer

    def make_layer(self, prefix: str, **options: Any) -> NatsChannelLayer:
        return NatsChannelLayer(self.server.url, prefix=prefix, recover=True, **options)
