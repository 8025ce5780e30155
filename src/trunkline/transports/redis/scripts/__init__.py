"""The server-side scripts, one file each; this room reads them and knows their fingerprints."""

from __future__ import annotations

import hashlib
from importlib.resources import files

__all__ = ["ALL", "BIND", "LEAVE", "POST", "PUSH", "TAKE", "TAKEN", "TRUTH", "Script"]


class Script:
    """One script."""

    def __init__(self, name: str) -> None:
        self.text = (files(__name__) / f"{name}.lua").read_text(encoding="utf-8")
        #: How the server names it: the digest is part of its protocol, nothing is kept secret by it.
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


POST = Script("post")
PUSH = Script("push")
TAKE = Script("take")
LEAVE = Script("leave")
TAKEN = Script("taken")
TRUTH = Script("truth")
BIND = Script("bind")

ALL = (POST, PUSH, TAKE, LEAVE, TAKEN, TRUTH, BIND)
