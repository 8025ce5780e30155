"""A process with one node of PostgreSQL, to be stopped and killed: it hears a topic and its posts, and tells what came.

Lines in: ``tell`` answers with one line of JSON; ``take`` takes one frame of the queue "jobs" and keeps it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.postgres_node import Node


async def _play(url: str, prefix: str) -> None:
    loop = asyncio.get_running_loop()
    async with Node(url, prefix, deadline=0.7) as node:
        await node.transport.subscribe("room")

        def say(**what: Any) -> None:
            print(json.dumps(what), flush=True)

        say(name=node.name)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.strip() == "take":
                say(taken=(await node.transport.pull("jobs")).decode())
            else:
                say(frames=[frame.decode() for frame in node.frames], gaps=node.gaps)


if __name__ == "__main__":
    asyncio.run(_play(*sys.argv[1:]))
