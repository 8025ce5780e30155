"""The server-side scripts, one file each; this room reads them and knows their fingerprints."""

from __future__ import annotations

import hashlib
from importlib.resources import files

__all__ = [
    "BIND", "DROP_RECORD", "KEEP_RECORD", "LATER", "LEASE", "LEAVE", "POST", "PUSH", "REAP_RECORDS", "REMEMBER",
    "RENEW_RECORDS", "SETTLE", "TAKE", "TAKEN", "TRUTH", "UNLEASE", "Script", "load_commands",
]  # fmt: skip


class Script:
    """One script, with the files that stand before it, in two forms: ordinary pub/sub, and that of a cluster's shards."""

    def __init__(self, *names: str) -> None:
        self.text = "".join((files(__name__) / f"{name}.lua").read_text(encoding="utf-8") for name in names)
        self.sharded_text = self.text.replace("'PUBLISH'", "'SPUBLISH'").replace("'NUMSUB'", "'SHARDNUMSUB'")
        #: How the server names it: the digest is part of its protocol, nothing is kept secret by it.
        self.sha, self.sharded_sha = (
            hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for text in (self.text, self.sharded_text)
        )


POST = Script("post")
PUSH = Script("push")
TAKE = Script("put_off", "take")
LEASE = Script("put_off", "lease")
SETTLE = Script("put_off", "settle")
UNLEASE = Script("put_off", "unlease")
LATER = Script("put_off", "later")
LEAVE = Script("put_off", "leave")
TAKEN = Script("taken")
TRUTH = Script("truth")
BIND = Script("bind")
REMEMBER = Script("remember")
KEEP_RECORD = Script("records", "keep_record")
DROP_RECORD = Script("records", "drop_record")
RENEW_RECORDS = Script("records", "renew_records")
REAP_RECORDS = Script("records", "reap_records")

_ALL = (
    POST, PUSH, TAKE, LEAVE, TAKEN, TRUTH, BIND, LEASE, SETTLE, UNLEASE, LATER, REMEMBER,
    KEEP_RECORD, DROP_RECORD, RENEW_RECORDS, REAP_RECORDS,
)  # fmt: skip


def load_commands(sharded: bool) -> list[tuple[str, ...]]:
    """What makes a server know them all."""
    return [("SCRIPT", "LOAD", script.sharded_text if sharded else script.text) for script in _ALL]
