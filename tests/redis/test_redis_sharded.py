"""What users see, on three servers that share the load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from servers import Server, servers
from trunkline.layers import RedisChannelLayer
from trunkline.testing import LayerConformance

KINDS = sorted(servers())
#: Order holds for names of one server; a group and a channel may live on two.
NOT_PROMISED = {"test_order"}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Three servers, of both kinds where this machine has both; one is used by a database number too."""
    made = [Server(kind, tmp_path_factory.mktemp("shard")) for kind in (KINDS * 3)[:3]]
    yield [made[0].url, made[1].url, f"{made[2].url}/5", f"{made[2].url}/6"]
    for server in made:
        server.kill()


class _Sharded(LayerConformance):
    urls: list[str]

    def make_layer(self, prefix: str, **options: Any) -> RedisChannelLayer:
        return RedisChannelLayer(self.urls, prefix=prefix, **options)


@pytest.mark.parametrize("promise", sorted(set(_Sharded.promises()) - NOT_PROMISED))
def test_a_promise_on_several_servers(urls: list[str], promise: str) -> None:
    """Each promise of the kit but one holds when names are spread over four databases of three servers."""
    kit = _Sharded()
    kit.urls = urls
    asyncio.run(kit.check(promise))
