"""What a user of the server must be allowed, and what of it is missing.

Rules of this room: every command that the transport or its scripts use is tried once, under the layer's own prefix, in
a form that changes nothing. The few that cannot help making a key are tried only where it can be removed again.
"""

from __future__ import annotations

import os
import shlex

from ...transport import Finding
from .connection import Connection, ReplyError
from .topology import Names

__all__ = ["acl_line", "examine_permissions"]

Command = tuple[bytes | str | int, ...]

#: What the transport uses, as an ACL writes it: a form of it that changes nothing. ``k`` and ``c`` stand for a key and a
#: pub/sub channel of the prefix.
_HARMLESS = {
    "ping": "PING",
    "client|setname": "CLIENT SETNAME trunkline-doctor",
    "info": "INFO server",
    "time": "TIME",
    "scan": "SCAN 0 COUNT 1",
    "script|load": "SCRIPT LOAD )",
    "evalsha": "EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 k",
    "publish": "PUBLISH c doctor",
    "pubsub|numsub": "PUBSUB NUMSUB x",
    "unsubscribe": "UNSUBSCRIBE x",
    "xadd": "XADD k NOMKSTREAM MINID ~ 0 * d x",
    "xrange": "XRANGE k - + COUNT 1",
    "xrevrange": "XREVRANGE k + - COUNT 1",
    "xtrim": "XTRIM k MAXLEN ~ 1",
    "xdel": "XDEL k 0",
    "get": "GET k",
    "getrange": "GETRANGE k 0 0",
    "set": "SET k x XX PX 1",
    "del": "DEL k",
    "unlink": "UNLINK k",
    "pttl": "PTTL k",
    "pexpire": "PEXPIRE k 1",
    "pexpireat": "PEXPIREAT k 1",
    "hget": "HGET k f",
    "hgetall": "HGETALL k",
    "hdel": "HDEL k f",
    "hset": "HSET k f v odd",
    "hincrby": "HINCRBY k f odd",
    "hlen": "HLEN k",
    "hexists": "HEXISTS k f",
    "hscan": "HSCAN k 0 COUNT 1",
    "zcard": "ZCARD k",
    "zscore": "ZSCORE k m",
    "zrem": "ZREM k m",
    "zadd": "ZADD k XX 0 m",
    "zrangebyscore": "ZRANGEBYSCORE k 0 0",
    "zremrangebyscore": "ZREMRANGEBYSCORE k 0 0",
    "llen": "LLEN k",
    "lindex": "LINDEX k 0",
    "lrange": "LRANGE k 0 0",
    "lpop": "LPOP k",
    "lset": "LSET k 0 x",
    "lrem": "LREM k 0 x",
    "srem": "SREM k m",
    "spop": "SPOP k",
}
#: These make a key, which is removed in the same breath.
_MAKING = {"lpush": "LPUSH k x", "rpush": "RPUSH k x", "sadd": "SADD k m"}
_CLEANING = ("pexpire", "unlink")
_LAST = {"subscribe": "SUBSCRIBE c"}
#: Beside all these in a cluster.
_IN_CLUSTER = {
    "cluster|info": "CLUSTER INFO",
    "cluster|slots": "CLUSTER SLOTS",
    "asking": "ASKING",
    "spublish": "SPUBLISH c doctor",
    "pubsub|shardnumsub": "PUBSUB SHARDNUMSUB",
    "sunsubscribe": "SUNSUBSCRIBE x",
}
_LAST_IN_CLUSTER = {"ssubscribe": "SSUBSCRIBE c"}
#: With wait_replicas.
_FOR_REPLICAS = {"wait": "WAIT 0 1"}
#: What the layer can do without: seeing restarts and replicas, its name in CLIENT LIST, ``flush``.
_OPTIONAL = {"info", "client|setname", "scan"}


def acl_line(prefix: str, user: str = "trunkline", *, in_cluster: bool = False) -> str:
    """The command that makes a user who may do what this layer needs, and nothing else."""
    names = ["auth", "select", *_HARMLESS, *_MAKING, *_LAST]
    if in_cluster:
        names = ["auth", *_IN_CLUSTER, *_HARMLESS, *_MAKING, *_LAST, *_LAST_IN_CLUSTER]
    commands = " ".join(f"+{name}" for name in names)
    return f"ACL SETUSER {user} on >PASSWORD resetkeys ~{prefix}/* resetchannels &{prefix}/* -@all {commands}"


async def examine_permissions(
    connection: Connection, names: Names, user: str, *, in_cluster: bool = False, wait_replicas: int = 0
) -> list[Finding]:
    """Try what the transport needs; the connection is only good for closing afterwards."""
    more = {**(_IN_CLUSTER if in_cluster else {}), **(_FOR_REPLICAS if wait_replicas else {})}
    missing = await _try(connection, names, {**_HARMLESS, **more})
    if set(_CLEANING) & set(missing.commands) or missing.keys:
        missing.untried = list(_MAKING)
    else:
        missing.add(await _try(connection, names, _MAKING, *_CLEANING))
    missing.add(await _try(connection, names, {**_LAST, **(_LAST_IN_CLUSTER if in_cluster else {})}))
    if not missing:
        return [Finding("ok", f"user {user} may do all that is needed")]
    rules = " ".join(missing.rules(names.root.rpartition("/")[0]))
    fix = f"ACL SETUSER {shlex.quote(user)} {rules}  (then ACL SAVE or CONFIG REWRITE)"
    if missing.keys or missing.channels or set(missing.commands) - _OPTIONAL:
        return [Finding("error", f"user {user} lacks permissions: {missing}", fix)]
    return [Finding("warning", f"user {user} lacks permissions, not needed for messages: {missing}", fix)]


class _Missing:
    """What was refused."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.keys = self.channels = False
        #: Kinds of names that some command was allowed to try, ``k`` or ``c``; nothing is known of the others.
        self.tried: set[str] = set()
        #: Commands that could not be tried; the line that mends the rest allows them too.
        self.untried: list[str] = []

    def note(self, command: str, form: str, reply: object) -> None:
        refusal = str(reply).lower() if isinstance(reply, ReplyError) else ""
        kinds = {"k", "c"} & set(form.split())
        if "noperm" not in refusal:
            self.tried |= kinds
        elif " key" in refusal:
            self.keys = True
        elif " channel" in refusal:
            self.channels = True
        else:
            self.commands.append(command)

    def add(self, other: _Missing) -> None:
        self.commands += other.commands
        self.keys |= other.keys
        self.channels |= other.channels
        self.tried |= other.tried

    def rules(self, prefix: str) -> list[str]:
        patterns = [f"~{prefix}/*"] if self.keys or "k" not in self.tried else []
        patterns += [f"&{prefix}/*"] if self.channels or "c" not in self.tried else []
        return patterns + [f"+{name}" for name in self.commands + self.untried]

    def __bool__(self) -> bool:
        return bool(self.commands or self.keys or self.channels)

    def __str__(self) -> str:
        parts = [f"the commands {' '.join(self.commands)}"] if self.commands else []
        parts += ["the keys of this prefix"] if self.keys else []
        parts += ["the pub/sub channels of this prefix"] if self.channels else []
        return ", ".join(parts)


async def _try(connection: Connection, names: Names, forms: dict[str, str], *cleaning: str) -> _Missing:
    """Send each form, and behind it those of ``cleaning``."""
    missing = _Missing()
    key = names.inbox(f"doctor.{os.urandom(8).hex()}")
    behind = [_command(_HARMLESS[name], key) for name in cleaning]
    for name, form in forms.items():
        reply, *_ = await connection.call(_command(form, key), *behind)
        missing.note(name, form, reply)
    return missing


def _command(form: str, key: bytes) -> Command:
    return tuple(key if word in ("k", "c") else word for word in form.split())
