"""Who a server is: whether it can serve at all, and what tells it from one that has lost its memory."""

from __future__ import annotations

import logging

from ...errors import ConfigurationError
from .connection import ReplyError, unavailable
from .hosts import Host

__all__ = ["identify"]

log = logging.getLogger("trunkline.redis")


def identify(host: Host, info: bytes | ReplyError, *, first: bool, in_cluster: bool = False) -> str:
    """Read its INFO; returns what changes when it may have lost data, "unknown" where it does not tell.

    Raises:
        ConfigurationError: It is too old, or part of a cluster and was not named as such.
        TransportUnavailable: It is a replica.
    """
    if isinstance(info, ReplyError):
        return "unknown"
    facts = dict(line.partition(":")[::2] for line in info.decode(errors="replace").splitlines())
    version = tuple(int(part) for part in facts.get("redis_version", "7.0").split(".")[:2])
    if version < (6, 2):
        raise ConfigurationError(
            f"{host.address} is Redis {facts['redis_version']}: 6.2 or newer, or Valkey, is needed"
        )
    if facts.get("cluster_enabled") == "1" and not in_cluster:
        scheme = "rediss" if host.ssl else "redis"
        raise ConfigurationError(
            f"{host.address} is part of a cluster: write {scheme}+cluster://{host.address}, or cluster=True beside hosts"
        )
    if facts.get("role", "master") != "master":
        raise unavailable(host, f"it is a replica of {facts.get('master_host')}, name the master in hosts")
    if first and facts.get("maxmemory_policy", "").startswith("allkeys"):
        log.warning(
            "%s may evict any key (maxmemory-policy %s): messages may be lost; set it to noeviction",
            host.address,
            facts["maxmemory_policy"],
        )
    return f"{facts.get('run_id')} {facts.get('master_replid')}"
