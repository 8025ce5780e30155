"""Names, parsed once at the door.

A channel is either *normal* (``thumbnails``: a queue that several processes may share) or *specific*
(``specific.k3J9…!q8Zt…``: one mailbox in one node). The node is written into a specific name, before the ``!``, so
that a sender needs no directory to find the owner. Rules follow the channel-layer specification.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from typing import Any, NamedTuple

from .errors import InvalidName

__all__ = ["ALL_NODES", "Channel", "channel", "group", "new_channel", "new_node", "safe_group_name"]

#: The topic that every node hears. Not a legal group name, so it never meets one.
ALL_NODES = "!all"

MAX_LENGTH = 99

_RULE = "use only ASCII letters, digits, '-', '_' and '.', and fewer than 100 characters"
_group = re.compile(r"[A-Za-z0-9\-_.]{1,99}").fullmatch
_hashed = re.compile(r".*\.[0-9a-f]{24}").fullmatch
_channel = re.compile(r"([A-Za-z0-9\-_.]+)(?:!([A-Za-z0-9\-_.]+))?").fullmatch


class Channel(NamedTuple):
    """A channel name, taken apart."""

    name: str
    #: The node that owns it; None for a normal channel.
    node: str | None


@functools.lru_cache(maxsize=16384)
def channel(name: str) -> Channel:
    """Take a channel name apart.

    Raises:
        InvalidName: It breaks the naming rules.
    """
    match = _channel(name) if isinstance(name, str) else None
    if match is None or len(name) > MAX_LENGTH:
        raise InvalidName(_complain("channel", name))
    if match[2] is None:
        return Channel(name, None)
    return Channel(name, match[1].rpartition(".")[2])


@functools.lru_cache(maxsize=16384)
def group(name: str) -> str:
    """Check a group name and return it.

    Raises:
        InvalidName: It breaks the naming rules; ``safe_group_name`` makes a legal name of any string.
    """
    if not isinstance(name, str) or _group(name) is None:
        raise InvalidName(_complain("group", name))
    return name


def _complain(kind: str, name: Any) -> str:
    if not isinstance(name, str):
        fix = "" if name is None else f": write str({name!r:.60})"
        return f"a {kind} name is a str, not {type(name).__name__}{fix}"
    fix = " (trunkline.safe_group_name(...) makes a legal group name of any text)" if kind == "group" else ""
    shown = name if len(name) <= 120 else f"{name[:120]}…"
    return f"{shown!r} is not a {kind} name: {_RULE}{fix}"


def safe_group_name(text: object) -> str:
    """Make a legal group name out of any text: the same text gives the same name, different texts different names.

    Legal text stays as it is; anything else stays readable and gets a hash.

    >>> safe_group_name("room.42")
    'room.42'
    >>> safe_group_name("Zürich Süd")
    'Z-rich-S-d.215095d8680efd4e4a5dca73'
    """
    plain = str(text)
    # Text that already looks hashed is hashed again, so that nobody can pick the name made from another text.
    if _group(plain) and not _hashed(plain):
        return plain
    digest = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', plain)[:70]}.{digest}"


def new_node() -> str:
    """A node name nobody else has: 80 random bits from the operating system, unaffected by ``random.seed``."""
    return os.urandom(10).hex()


def new_channel(prefix: str, node: str) -> str:
    """A fresh channel name owned by ``node``.

    Raises:
        InvalidName: The prefix breaks the naming rules.
    """
    name = f"{prefix}.{node}!{os.urandom(10).hex()}"
    if not isinstance(prefix, str) or _group(prefix) is None or len(name) > MAX_LENGTH:
        raise InvalidName(f"{prefix!r} is not a channel prefix: {_RULE.replace('100', '58')}")
    return name
