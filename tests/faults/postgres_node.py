"""One open PostgreSQL transport and all that arrived at it."""

from __future__ import annotations

from typing import Any

from trunkline.names import new_node
from trunkline.transports.postgres import PostgresTransport
from trunkline.transports.postgres.pace import Pace

__all__ = ["QUICK", "Node"]

QUICK = Pace(heartbeat=0.5, audit=2.0)


class Node:
    def __init__(self, url: str, prefix: str, **options: Any) -> None:
        self.name = new_node()
        self.frames: list[bytes] = []
        self.gaps: list[str | None] = []
        self.disconnects = 0
        self.reconnects = 0
        options = {"deadline": 2.0, "_pace": QUICK, **options}
        self.transport = PostgresTransport(
            url, prefix=prefix, on_disconnect=self._lost, on_reconnect=self._back, **options
        )

    def _lost(self) -> None:
        self.disconnects += 1

    def _back(self, address: str) -> None:
        self.reconnects += 1

    def deliver(self, frame: bytes) -> None:
        self.frames.append(frame)

    def gap(self, topic: str | None, reason: str) -> None:
        self.gaps.append(topic)

    async def __aenter__(self) -> Node:
        await self.transport.open(self.name, self)
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.transport.close()
