"""`trunkline doctor postgres://…`: is the database there, is it fit for this, how quick is it, what should be changed.

Rules of this room: every complaint comes with the command or setting that mends it; nothing is left in the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time

from ...errors import ConfigurationError
from ...settings import shown_url
from ...transport import Finding
from .driver import Connection, Trouble, connect
from .link import POOLED
from .schema import quoted

__all__ = ["examine"]

_PINGS, _PINGING = 100, 2.0  # how many, for how many seconds at most
_SLOW = 0.005
#: Seconds after which somebody's open transaction keeps the server from tidying up.
_LONG = 300

_FIXES = {
    "28": "check user and password; in a URL write special characters as %XX: urllib.parse.quote(password, safe='')",
    "3D": "CREATE DATABASE …, or name one that exists",
    "53": "raise max_connections, or give fewer to each application: every process of a layer takes 2",
    "57": "wait: the server starts, stops or recovers; the layer waits too",
    "TL": "sslmode, sslrootcert and the server's ssl settings belong together: docs/postgres.md",
    "": "is it running, at this host and port, and may this machine connect (pg_hba.conf, firewall)?",
}


async def examine(url: str, *, driver: str, schema: str, area: int, deadline: float) -> list[Finding]:
    """Examine the database of a layer."""
    heard: set[str] = set()
    connections: list[Connection] = []

    async def open_one() -> Connection:
        connections.append(
            await connect(
                url,
                driver=driver,
                label="trunkline doctor",
                timeout=deadline,
                deadline=deadline,
                heard=lambda pid, channel, payload: heard.add(payload),
                lost=lambda: None,
            )
        )
        return connections[-1]

    found: list[Finding] = []
    try:
        first, second = await open_one(), await open_one()
        found += await _identity(first, url, driver)
        if any(finding.level == "error" for finding in found):
            return found
        found.append(await _listening(first, second, heard, deadline))
        found += await _permissions(first, schema, area)
        found += await _load(first)
        found.append(await _latency(first))
    except ConfigurationError as error:
        found.append(Finding("error", str(error), "mend the URL"))
    except Trouble as trouble:
        fix = _FIXES.get(trouble.state[:2], "the server's log says more")
        found.append(Finding("error", f"{shown_url(url)}: {trouble}", fix))
    finally:
        for connection in connections:
            with contextlib.suppress(Exception):
                await connection.close()
    return found


async def _identity(connection: Connection, url: str, driver: str) -> list[Finding]:
    ((number, version, database, user, standby, readonly, encrypted, near),) = await connection.fetch(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_database(), "
        "current_user::text, pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool, "
        "(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), "
        "coalesce(inet_client_addr() << '127.0.0.0/8' OR inet_client_addr() = '::1', true)"
    )
    if number < 130000:
        return [Finding("error", f"PostgreSQL {version} is too old", "install PostgreSQL 13 or newer")]
    found = [Finding("ok", f"PostgreSQL {version}, database {database}, user {user}, driver {driver}")]
    if standby:
        fix = "name the primary; with several hosts in the URL add ?target_session_attrs=read-write"
        return [Finding("error", "this is a standby: it takes no messages", fix)]
    if readonly:
        fix = f"ALTER ROLE {user} SET default_transaction_read_only = off"
        return [Finding("error", "transactions of this user are read-only", fix)]
    if not encrypted and not near:
        what = "the password and every message travel in clear text"
        found.append(
            Finding("warning", what, "add ?sslmode=verify-full to the URL unless the network is yours")
        )
    return found


async def _listening(first: Connection, second: Connection, heard: set[str], deadline: float) -> Finding:
    name = f"trunkline_doctor_{os.urandom(8).hex()}"
    await second.run(f"LISTEN {name}")
    await first.fetch("SELECT pg_notify($1::text, $2::text)", name, name)
    until = time.monotonic() + min(deadline, 2.0)
    while name not in heard and time.monotonic() < until:  # noqa: ASYNC110 - seldom more than once
        await asyncio.sleep(0.005)
    await second.run(f"UNLISTEN {name}")
    if first.pid == second.pid or name not in heard:
        text, _, fix = POOLED.partition(". ")
        return Finding("error", text, fix)
    return Finding("ok", "LISTEN and NOTIFY work")


async def _permissions(connection: Connection, schema: str, area: int) -> list[Finding]:
    name = quoted(schema)
    ((there, made, may_make, may_fill),) = await connection.fetch(
        "SELECT to_regnamespace($1::text) IS NOT NULL, "
        "EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace($1::text) AND proname = 'sweep_2'), "
        "has_database_privilege(current_database(), 'CREATE'), "
        "coalesce(has_schema_privilege(to_regnamespace($1::text), 'CREATE'), false)",
        name,
    )
    if not made:
        if may_fill if there else may_make:
            return [Finding("ok", f"schema {name} is not there yet: it is made on first use")]
        fix = "GRANT CREATE ON DATABASE … to this user, or run the SQL of `python -m trunkline.transports.postgres`"
        return [Finding("error", f"schema {name} is not there, and this user may not make it", fix)]
    missing = await connection.fetch(
        "SELECT c.relname::text, p.privilege FROM pg_class c, "
        "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p(privilege) "
        "WHERE c.relnamespace = to_regnamespace($1::text) AND c.relkind = 'r' "
        "AND NOT (has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, p.privilege))",
        name,
    )
    if missing:
        what = ", ".join(f"{privilege} on {table}" for table, privilege in missing[:4])
        fix = f"GRANT USAGE ON SCHEMA {name} TO …; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO …"
        return [Finding("error", f"this user may not do what is needed in schema {name}: {what}", fix)]
    ((nodes, frames, waiting),) = await connection.fetch(
        f"SELECT (SELECT count(*) FROM {name}.nodes WHERE area = $1::bigint), "
        f"(SELECT count(*) FROM {name}.frames WHERE area = $1::bigint), "
        f"(SELECT count(*) FROM {name}.queues WHERE area = $1::bigint)",
        area,
    )
    what = f"schema {name} is complete; this prefix: {nodes} nodes, {frames} frames in the log, {waiting} in queues"
    return [Finding("ok", what)]


async def _load(connection: Connection) -> list[Finding]:
    ((used, most, usage, oldest),) = await connection.fetch(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL), "
        "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, "
        "pg_notification_queue_usage(), "
        "(SELECT extract(epoch FROM max(now() - xact_start))::float8 FROM pg_stat_activity "
        "WHERE backend_type = 'client backend')"
    )
    found = []
    if used > 0.8 * most:
        what = f"{used} of {most} connections are in use; every process of a layer takes 2"
        found.append(
            Finding("warning", what, "raise max_connections, or put a pool in session mode in front")
        )
    else:
        found.append(Finding("ok", f"{used} of {most} connections are in use"))
    if usage > 0.1:
        what = f"the notification queue is {usage:.0%} full: some session listens and does not read"
        fix = "find it: SELECT pid, application_name, wait_event FROM pg_stat_activity; pg_terminate_backend ends it"
        found.append(Finding("warning", what, fix))
    if oldest is not None and oldest > _LONG:
        what = f"a transaction has been open for {oldest:.0f} s: meanwhile nothing that was deleted can be tidied up"
        fix = "find it in pg_stat_activity (xact_start); idle_in_transaction_session_timeout ends forgotten ones"
        found.append(Finding("warning", what, fix))
    return found


async def _latency(connection: Connection) -> Finding:
    times: list[float] = []
    until = time.monotonic() + _PINGING
    while len(times) < _PINGS and (not times or time.monotonic() < until):
        start = time.perf_counter()
        await connection.fetch("SELECT 1")
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    what = f"answers in {median * 1000:.2f} ms (median of {len(times)} queries, slowest {max(times) * 1000:.1f} ms)"
    if median > _SLOW:
        fix = "every send waits at least this long: put the database into the same data centre"
        return Finding("warning", what, fix)
    return Finding("ok", what)
