"""`trunkline doctor redis://…`: is the server there, is it fit for this, how quick is it, what should be changed.

Rules of this room: what a managed service forbids to ask is "cannot tell", never a failure; every complaint comes with
the command or setting that mends it; nothing is left on the server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import statistics
import time
from dataclasses import dataclass, field

from ...errors import ConfigurationError, TransportUnavailable, TrunklineError
from ...transport import Finding
from .cluster_doctor import examine_cluster
from .connection import Connection, ReplyError, connect
from .diagnosis import why_unreachable
from .hosts import Host
from .permissions import examine_permissions
from .sentinel import Sentinels
from .topology import Names

__all__ = ["examine"]

_OLDEST = (6, 2)
_PINGS, _PINGING = 100, 2.0  # how many, for how many seconds at most
_SLOW = 0.005
_SCANNING = 1.0
#: The server's own defaults; below them a process that is busy for a moment is cut off.
_HARD, _SOFT = 32 << 20, 8 << 20
#: Seconds; the command connection is never silent as long.
_SHORT_TIMEOUT = 10


@dataclass
class Patient:
    """One server and what it said about itself."""

    host: Host
    names: Names
    #: ``INFO``; empty where that is forbidden.
    info: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    user: str = "default"
    in_cluster: bool = False
    wait_replicas: int = 0
    #: Seconds by which its clock is ahead of ours; None where it is not told.
    ahead: float | None = None

    def number(self, key: str) -> int:
        """A number of ``INFO``; 0 where it is not told."""
        text = self.info.get(key, "")
        return int(text) if text.isdigit() else 0


async def examine(
    hosts: list[Host], read_hosts: list[Host], *, prefix: str, deadline: float, wait_replicas: int = 0
) -> list[Finding]:
    """Examine every server of a layer."""
    found: list[Finding] = []
    run_ids: dict[str, str] = {}
    everyone = list({host.identity: host for host in hosts + read_hosts}.values())
    in_cluster = bool(hosts[0].seeds)
    if in_cluster:
        everyone, found = await examine_cluster(hosts[0], deadline)
    for host in everyone:
        patient = Patient(host, Names(prefix, host.db), in_cluster=in_cluster, wait_replicas=wait_replicas)
        findings = await _examine_server(patient, deadline)
        several = f"{host.address}: " if len(everyone) > 1 else ""
        found += [Finding(level, several + what, fix) for level, what, fix in findings]
        run_id = f"{patient.info.get('run_id')}/{host.db}"
        if patient.info and (other := run_ids.setdefault(run_id, host.address)) != host.address:
            what = f"{host.address} and {other} are one and the same server"
            found.append(Finding("error", what, "name each server once in hosts"))
    if read_hosts:
        what = "read_hosts is set: names are being moved between servers"
        found.append(
            Finding("warning", what, "take it away once every process has the new hosts for `expiry` seconds")
        )
    return found


async def _examine_server(patient: Patient, deadline: float) -> list[Finding]:
    if patient.host.sentinels:
        master, found = await _find_master(patient.host, deadline)
        if master is None:
            return found
        patient.host = master
        return found + await _examine_server(patient, deadline)
    host = patient.host
    found = _security(host)
    try:
        connection, gone = await _connect(host, deadline)
    except (TransportUnavailable, ConfigurationError) as error:
        return [why_unreachable(host, error)]
    try:
        await _question(patient, connection)
        unsuitable = _role(patient)
        found = [*_identity(patient), *unsuitable, *found, *_checks(patient)]
        if not unsuitable:
            found += await _keyspace(patient, connection)
            found.append(await _latency(connection))
            found += await examine_permissions(
                connection,
                patient.names,
                patient.user,
                in_cluster=patient.in_cluster,
                wait_replicas=patient.wait_replicas,
            )
    except TransportUnavailable as error:
        found.append(why_unreachable(host, error))
    finally:
        connection.drop()
        await gone
    return found


async def _find_master(host: Host, deadline: float) -> tuple[Host | None, list[Finding]]:
    sentinels, found = Sentinels(host, deadline), []
    try:
        master = await sentinels.find()
    except (TransportUnavailable, ConfigurationError) as error:
        return None, [Finding("error", str(error), "see docs/sentinel.md")]
    for sentinel in host.sentinels:
        try:
            named = await sentinels.ask(sentinel)
        except (TransportUnavailable, ConfigurationError) as error:
            what = f"sentinel {sentinel.address} is of no use: {error.__cause__ or error}"
            found.append(
                Finding("warning", what, "mend it: without a majority of sentinels nobody replaces a master")
            )
            continue
        if named != master:
            what = f"sentinel {sentinel.address} calls {named.address} the master of {host.master_name}"
            found.append(
                Finding("warning", what, f"the others say {master.address}: is it cut off from them?")
            )
    if len(host.sentinels) < 3:
        what = f"{len(host.sentinels)} sentinels are named"
        found.append(Finding("warning", what, "name three at least, on three machines: two must agree"))
    what = f"{host.master_name} is {master.address}, by {len(host.sentinels)} sentinels"
    return master, found or [Finding("ok", what)]


async def _connect(host: Host, deadline: float) -> tuple[Connection, asyncio.Future[None]]:
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_lost(error: TrunklineError) -> None:
        if not gone.done():
            gone.set_result(None)

    return await connect(host, name="trunkline-doctor", deadline=deadline, on_lost=on_lost), gone


async def _question(patient: Patient, connection: Connection) -> None:
    settings = ("save", "timeout", "client-output-buffer-limit")
    before = time.time()
    (clock,) = await connection.call(("TIME",))
    after = time.time()
    if not isinstance(clock, ReplyError):
        patient.ahead = int(clock[0]) + int(clock[1]) / 1e6 - (before + after) / 2
    who, info, *config = await connection.call(
        ("ACL", "WHOAMI"), ("INFO",), *[("CONFIG", "GET", name) for name in settings]
    )
    patient.user = who.decode() if isinstance(who, bytes) else patient.host.username or "default"
    if isinstance(info, bytes):
        lines = info.decode(errors="replace").splitlines()
        patient.info = dict(line.partition(":")[::2] for line in lines if ":" in line)
    for name, reply in zip(settings, config, strict=True):
        if isinstance(reply, list) and len(reply) == 2:
            patient.config[name] = reply[1].decode(errors="replace")


# What it is


def _security(host: Host) -> list[Finding]:
    if host.ssl:
        if host.ssl_context is None and host.ssl_cert_reqs != "required":
            what = f"TLS without checking the certificate (ssl_cert_reqs={host.ssl_cert_reqs})"
            fix = (
                'anybody in between can read and forge: set ssl_ca_certs to your CA, ssl_cert_reqs="required"'
            )
            return [Finding("warning", what, fix)]
        return [Finding("ok", "encrypted by TLS")]
    if host.path or _is_loopback(host.host):
        return []
    secret = "the password and every message travel" if host.password else "every message travels"
    return [Finding("warning", f"{secret} in clear text", "use rediss:// unless the network is yours alone")]


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _identity(patient: Patient) -> list[Finding]:
    address, info = patient.host.address, patient.info
    if not info:
        what = f"{address} is reachable; INFO is forbidden, so version, role, memory and persistence cannot be told"
        return [
            Finding("warning", what, f"ACL SETUSER {patient.user} +info, or look in your provider's console")
        ]
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "Redis" and numbers < _OLDEST:
        what = f"{name} {version} at {address} is too old"
        return [Finding("error", what, "install Redis 6.2 or newer, or any Valkey")]
    return [Finding("ok", f"{name} {version} at {address}, database {patient.host.db}, user {patient.user}")]


def _checks(patient: Patient) -> list[Finding]:
    found = [*_clock(patient)]
    replicas = patient.number("connected_slaves")
    if patient.info and replicas < patient.wait_replicas:
        what = (
            f"wait_replicas is {patient.wait_replicas}, and it has {replicas}: nothing can be sent for sure"
        )
        found.append(Finding("error", what, "add replicas, or wait for fewer"))
    if patient.info:
        found += [*_memory(patient), *_persistence(patient), *_clients(patient)]
    return [*found, *_settings(patient)]


def _role(patient: Patient) -> list[Finding]:
    info = patient.info
    if info.get("redis_mode") == "sentinel":
        return [
            Finding("error", "this is a Sentinel, not a server", "name the master it watches (port 6379?)")
        ]
    if info.get("cluster_enabled") == "1" and not patient.in_cluster:
        scheme = "rediss" if patient.host.ssl else "redis"
        fix = f"write {scheme}+cluster://{patient.host.address}, or cluster=True beside hosts"
        return [Finding("error", "the server is part of a cluster, and is not named as such", fix)]
    if info.get("role", "master") != "master":
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        what = f"this is a replica of {master}: it takes no messages"
        return [Finding("error", what, f"name {master} in hosts")]
    return []


def _clock(patient: Patient) -> list[Finding]:
    if patient.ahead is None:
        return []  # TIME is forbidden, which the permissions tell
    if abs(patient.ahead) <= 1:
        return [Finding("ok", f"its clock and ours differ by {abs(patient.ahead) * 1000:.0f} ms")]
    side = "ahead of" if patient.ahead > 0 else "behind"
    what = f"its clock is {abs(patient.ahead):.1f} s {side} ours; messages expire by its clock, which is harmless"
    return [Finding("warning", what, "run NTP (chrony, systemd-timesyncd) on both machines")]


def _memory(patient: Patient) -> list[Finding]:
    info, found = patient.info, []
    policy = info.get("maxmemory_policy", "")
    fix = "CONFIG SET maxmemory-policy noeviction"
    if policy.startswith("allkeys"):
        what = f"maxmemory-policy {policy}: when memory is full, the server deletes messages unseen"
        found.append(Finding("error", what, fix))
    elif policy.startswith("volatile") and patient.number("maxmemory"):
        what = (
            f"maxmemory-policy {policy}: when memory is full, keys with a time to live go first, as all ours"
        )
        found.append(Finding("warning", what, fix))
    limit, used = patient.number("maxmemory"), patient.number("used_memory")
    if limit and used >= 0.9 * limit:
        full = used >= limit
        what = f"memory {'is full' if full else 'is nearly full'}: {_mega(used)} of maxmemory {_mega(limit)}"
        more = f"CONFIG SET maxmemory {2 * limit}, or give messages a server of their own"
        found.append(Finding("error" if full else "warning", what, more))
    elif not found:
        of = f" of {_mega(limit)}" if limit else ", without a limit"
        found.append(Finding("ok", f"memory: {_mega(used)}{of}, policy {policy or 'unknown'}"))
    return found


def _mega(size: int) -> str:
    return f"{size / (1 << 20):.1f} MB"


def _persistence(patient: Patient) -> list[Finding]:
    info = patient.info
    if "err" in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")):
        what = "the server could not save to its disk; by default it then refuses messages (MISCONF)"
        return [Finding("error", what, "look into the server's log: disk full, or no permission for its dir")]
    if info.get("aof_enabled") == "1":
        return [Finding("ok", "persistence: append-only file")]
    off = "what waits in queues; groups and members come back by themselves"
    fix = "CONFIG SET appendonly yes, if jobs in queues must survive a restart"
    saves = patient.config.get("save")
    if saves is None and "save" not in patient.config:
        return [Finding("warning", f"no append-only file: a restart may lose {off}", fix)]
    if saves:
        return [Finding("warning", f"snapshots only: a crash loses, since the last one, {off}", fix)]
    return [Finding("warning", f"persistence is off: a restart loses {off}", fix)]


def _clients(patient: Patient) -> list[Finding]:
    now, most = patient.number("connected_clients"), patient.number("maxclients")
    if most and now > 0.8 * most:
        what = f"{now} of at most {most} clients are connected; each process of a layer takes 2"
        return [Finding("warning", what, f"CONFIG SET maxclients {most * 2}")]
    return [Finding("ok", f"{now} clients{f' of at most {most}' if most else ''}")]


def _settings(patient: Patient) -> list[Finding]:
    config, found = patient.config, []
    if not config:
        what = "CONFIG is forbidden: persistence, timeout and output buffers cannot be told in full"
        return [Finding("ok", what, "usual for a managed service; its console shows them")]
    timeout = int(config.get("timeout") or 0)
    if 0 < timeout < _SHORT_TIMEOUT:
        what = f"timeout {timeout}: the server ends connections that are quiet for {timeout} s"
        found.append(Finding("warning", what, "CONFIG SET timeout 0"))
    words = config.get("client-output-buffer-limit", "").split()
    if "pubsub" in words:
        hard, soft = (int(word) for word in words[words.index("pubsub") + 1 :][:2])
        if 0 < hard < _HARD or 0 < soft < _SOFT:
            what = (
                f"client-output-buffer-limit pubsub {hard} {soft}: a process busy for a moment is cut off, then "
                "catches up"
            )
            fix = f'CONFIG SET client-output-buffer-limit "pubsub {_HARD} {_SOFT} 60"'
            found.append(Finding("warning", what, fix))
    return found


# What it does


async def _keyspace(patient: Patient, connection: Connection) -> list[Finding]:
    """Look at the keys of the prefix, for a moment."""
    names = patient.names
    prefix = names.root.rpartition("/")[0]
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", names.root) + "{*"
    cursor: bytes = b"0"
    until, seen, nodes, eternal = time.monotonic() + _SCANNING, 0, 0, []
    while True:
        (reply,) = await connection.call(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
        if isinstance(reply, ReplyError):
            return [Finding("ok", "SCAN is forbidden: cannot tell who is connected and what is stored")]
        cursor, keys = reply
        # A node that has left keeps an empty sign of life for a while.
        signs = [key for key in keys if b"}a:" in key]
        sizes = await connection.call(*[("GET", key) for key in signs]) if signs else []
        nodes += sum(isinstance(value, bytes) and value != b"" for value in sizes)
        ttls = await connection.call(*[("PTTL", key) for key in keys]) if keys else []
        eternal += [key for key, ttl in zip(keys, ttls, strict=True) if ttl == -1]
        seen += len(keys)
        if cursor == b"0" or time.monotonic() > until:
            break
    part = "" if cursor == b"0" else " in the part looked at"
    found = [Finding("ok", f"prefix {prefix!r}: {nodes} nodes, {seen} keys{part}")]
    if eternal:
        some = ", ".join(key.decode(errors="replace") for key in eternal[:3])
        what = f"{len(eternal)} keys of the prefix would stay for ever: {some}"
        found.append(
            Finding("warning", what, f"give them an end: EXPIRE KEY 3600, e.g. {some.split(',')[0]}")
        )
    return found


async def _latency(connection: Connection) -> Finding:
    times: list[float] = []
    until = time.monotonic() + _PINGING
    while len(times) < _PINGS and (not times or time.monotonic() < until):
        start = time.perf_counter()
        await connection.call(("PING",))
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    what = f"answers in {median * 1000:.2f} ms (median of {len(times)} PINGs, slowest {max(times) * 1000:.1f} ms)"
    if median > _SLOW:
        fix = "every send waits this long: put the server into the same data centre, look for SLOWLOG GET"
        return Finding("warning", what, fix)
    return Finding("ok", what)
