"""A script from outside, as a cron job would be: ``python -m trunkline.demo.announce "Back at noon"``.

It is no server and has no event loop, and it reaches every window of every room.
"""

from __future__ import annotations

import argparse
import os
import sys

from .. import TrunklineError, layer_from_url
from .app import EVERYONE, MAX_TEXT

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Send one announcement and end."""
    parser = argparse.ArgumentParser(prog="python -m trunkline.demo.announce", description=__doc__)
    parser.add_argument("text", help="what everyone is to read")
    text = parser.parse_args(arguments).text.strip()
    url = os.environ.get("TRUNKLINE_URL")
    if not url:
        parser.error("TRUNKLINE_URL is not set; the demo prints it when it starts")
    if not 0 < len(text) <= MAX_TEXT:
        parser.error(f"the text has {len(text)} characters; it takes 1 to {MAX_TEXT}")
    try:
        layer = layer_from_url(url)
        layer.sync.group_send(EVERYONE, {"type": "announcement", "text": text, "pid": os.getpid()})
        layer.sync.close()
    except TrunklineError as error:
        sys.exit(f"Nothing was announced: {error}")


if __name__ == "__main__":
    main()
