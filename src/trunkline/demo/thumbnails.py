"""What the worker process does: it takes images from a queue that all workers share, and answers whoever sent them."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
from typing import Any

from PIL import Image, ImageOps

from ..consumers import AsyncConsumer
from ..errors import ChannelFull

__all__ = ["MAX_IMAGE", "QUEUE", "WAITING", "BadImage", "Bench", "Thumbnails", "shrink"]

logger = logging.getLogger("trunkline.demo")

#: The normal channel that holds the jobs.
QUEUE = "thumbnails"
#: Jobs that may wait there: few, because each holds a whole image.
WAITING = 4
#: Bytes of an image.
MAX_IMAGE = 5 * 2**20
#: Pixels of an image; a small file may unpack to a huge one.
MAX_PIXELS = 40_000_000
SIDE = 320  # pixels
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")


class BadImage(Exception):
    """These bytes are no image the worker can read."""


class Bench:
    """This worker process, as its consumers know it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.made = 0
        self.failed = 0

    def pulse(self) -> dict[str, Any]:
        """What every window is told about this process, once a second."""
        return {"part": "worker", "pid": self.pid, "made": self.made, "failed": self.failed}


class Thumbnails(AsyncConsumer):
    """Makes thumbnails."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench

    async def thumbnail_make(self, event: dict[str, Any]) -> None:
        """Shrink ``event["image"]`` and send it to ``event["reply_channel"]``."""
        started = time.perf_counter()
        reply: dict[str, Any] = {"room": event["room"], "pid": self.bench.pid}
        try:
            small = await asyncio.to_thread(shrink, event["image"])
        except BadImage as error:
            self.bench.failed += 1
            reply.update(type="thumbnail.failed", error=str(error))
        else:
            self.bench.made += 1
            ms = round((time.perf_counter() - started) * 1000)
            reply.update(type="thumbnail.done", ms=ms, **small)
        try:
            await self.channel_layer.send(event["reply_channel"], reply)
        except ChannelFull as error:
            logger.warning("a thumbnail was dropped: %s", error)


def shrink(data: bytes) -> dict[str, Any]:
    """Make a picture of at most ``SIDE`` pixels on each side.

    Returns:
        ``image`` (bytes), its ``kind`` (a media type), ``width`` and ``height`` (pixels).

    Raises:
        BadImage: The bytes are not an image, a broken one, or one of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"That picture has {image.width} by {image.height} pixels, which is too many.")
            image.draft("RGB", (SIDE * 2, SIDE * 2))  # lets JPEG decode at a fraction of the size
            clear = "A" in image.getbands() or "transparency" in image.info
            small = ImageOps.exif_transpose(image).convert("RGBA" if clear else "RGB")
            small.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            small.save(out, "PNG" if clear else "JPEG", quality=85)
    except BadImage:
        raise
    except (
        Exception
    ) as error:  # decoders raise a dozen types on broken files, whatever their documentation lists
        logger.info("not an image: %s: %s", type(error).__name__, error)
        raise BadImage(
            "That is no picture the worker can read: send a PNG, JPEG, GIF, WebP or BMP."
        ) from error
    kind = "image/png" if clear else "image/jpeg"
    return {"image": out.getvalue(), "kind": kind, "width": small.width, "height": small.height}
