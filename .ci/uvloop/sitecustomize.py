"""Found through PYTHONPATH by every Python that `make test-uvloop` starts: all their loops are uvloop's."""

import asyncio

import uvloop

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
