"""Settings, mistakes, secrets, the schema and who may make it, poolers, and the doctor."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postgres_server import Postgres
from servers import free_port
from trunkline import ConfigurationError, TransportUnavailable, layer_from_url
from trunkline.layers import PostgresChannelLayer
from trunkline.transport import Finding
from trunkline.transports.postgres import PostgresTransport, schema_sql


class Ear:
    def deliver(self, frame: bytes) -> None: ...

    def gap(self, topic: str | None, reason: str) -> None: ...


async def opened(transport: PostgresTransport) -> None:
    """Open and close."""
    await transport.open(uuid.uuid4().hex[:20], Ear())
    await transport.close()


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def role(postgres: Postgres) -> Iterator[str]:
    """A user with a password, who may do nothing but log in."""
    name = f"u{uuid.uuid4().hex[:8]}"
    postgres.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    yield name
    postgres.sql(f"DROP OWNED BY {name}")
    postgres.sql(f"DROP ROLE {name}")


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"dsn": "redis://h"}, "is not a URL such as postgresql://"),
        ({"dsn": 5}, "the server is a URL"),
        ({"dsn": "postgres://h", "database": "default"}, "keep one of them"),
        ({"prefix": ""}, "prefix is a str that is not empty"),
        ({"schema": 'a"b'}, "schema is a name of letters"),
        ({"deadline": 0}, "deadline is a number above 0"),
        ({"connect_timeout": "x"}, "connect_timeout is a number above 0"),
        ({"driver": "pg8000"}, "driver is 'asyncpg' or 'psycopg'"),
        ({"on_disconnect": 5}, "on_disconnect is a callable"),
        ({"capacty": 5}, "did you mean 'capacity'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], fix: str) -> None:
    """Each is a ConfigurationError that names what to write."""
    with pytest.raises(ConfigurationError, match=fix):
        PostgresChannelLayer(**wrong)


def test_settings_in_a_url() -> None:
    layer = layer_from_url(
        "postgres://u:zecret@h/db?capacity=7&schema=s&deadline=2&sslmode=require&driver=asyncpg"
    )
    assert layer.capacity == 7
    with pytest.raises(ConfigurationError, match="unknown setting 'schemma'"):
        layer_from_url("postgres://h/db?schemma=s")
    assert "zecret" not in repr(layer._first)


LEAKS = [
    "postgres://u:p/zecret@h/db",
    "postgres://u:p%zzzecret@h/db",
    "postgres://u:zecret@h:port/db",
    "postgres://h/db?password=zecret&port=x",
]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("url", LEAKS)
async def test_no_text_shows_a_password(url: str, driver: str) -> None:
    """Neither an error nor the doctor nor a repr shows a part of it, however odd the URL."""
    texts = []
    try:
        transport = PostgresTransport(url, driver=driver, connect_timeout=0.3)
        texts.append(repr(transport))
        await opened(transport)
    except (ConfigurationError, TransportUnavailable) as error:
        texts.append(str(error))
    try:
        texts += [
            str(finding) for finding in await PostgresTransport.examine(url, driver=driver, deadline=0.3)
        ]
    except ConfigurationError as error:
        texts.append(str(error))
    assert texts
    assert "zecret" not in " ".join(texts)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_what_never_will_work_is_told_at_once(postgres: Postgres, driver: str) -> None:
    nowhere = postgres.url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(ConfigurationError, match='database "nowhere" does not exist'):
        await opened(PostgresTransport(nowhere, driver=driver))
    start = time.monotonic()
    dead = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    with pytest.raises(TransportUnavailable, match="cannot be reached"):
        await opened(PostgresTransport(dead, driver=driver, connect_timeout=0.5))
    assert time.monotonic() - start < 30


# Django


def test_a_database_of_django(postgres: Postgres, prefix: str) -> None:
    """{"database": "default"} takes everything from DATABASES, when it is needed; mistakes name the alias."""
    code = f"""
import asyncio, django
from django.conf import settings
pool = {{"pool": False}} if django.VERSION > (5, 1) else {{}}
settings.configure(DATABASES={{
    "default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "later", "USER": "postgres", "HOST": "127.0.0.1",
                "PORT": {postgres.port}, "PASSWORD": "p@ss/wörd", "OPTIONS": {{"sslmode": "disable", **pool}}}},
    "lite": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
}}, CHANNEL_LAYERS={{"default": {{"BACKEND": "trunkline.layers.PostgresChannelLayer",
                                "CONFIG": {{"database": "default", "prefix": "{prefix}"}}}}}})
django.setup()
import trunkline
from trunkline.layers import PostgresChannelLayer
layer = trunkline.get_channel_layer()
from django.db import connections
connections["default"].settings_dict["NAME"] = "postgres"  # as the test runner does
channel = layer.sync.new_channel()
layer.sync.group_add("g", channel)
layer.sync.group_send("g", {{"type": "hello"}}, on_commit=True)
print(layer.sync.receive(channel, timeout=10))
layer.sync.close()
print(asyncio.run(layer.examine())[0].level)
for alias in ("defualt", "lite"):
    try:
        PostgresChannelLayer(database=alias).sync.new_channel()
    except trunkline.ConfigurationError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "{'type': 'hello'}",
        "ok",
        "DATABASES has no 'defualt': did you mean 'default'?",
        "DATABASES['lite'] is sqlite, not PostgreSQL: write the database's URL as dsn",
    ], done.stderr


SHOP = {
    "settings.py": """
import os
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": os.environ["ROLE"],
                         "PASSWORD": "x", "HOST": "127.0.0.1", "PORT": os.environ["PORT"]}}
INSTALLED_APPS = ["shop"]
USE_TZ = True
CHANNEL_LAYERS = {"default": {"BACKEND": "trunkline.layers.PostgresChannelLayer",
                              "CONFIG": {"database": "default", "schema": os.environ["SCHEMA"]}}}
""",
    "shop/__init__.py": "",
    "shop/migrations/__init__.py": "",
    "shop/migrations/0001_initial.py": """
import os
from django.db import migrations
from trunkline.transports.postgres import schema_sql

SCHEMA, ROLE = os.environ["SCHEMA"], os.environ["APP"]
GRANTS = f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}; " \\
         f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {ROLE}"

class Migration(migrations.Migration):
    operations = [
        migrations.RunSQL(schema_sql(SCHEMA), f"DROP SCHEMA {SCHEMA} CASCADE"),
        migrations.RunSQL(GRANTS, migrations.RunSQL.noop),
    ]
""",
    "play.py": """
import django
django.setup()
from django.db import transaction
from trunkline import ConfigurationError, get_channel_layer

layer = get_channel_layer()
try:
    channel = layer.sync.new_channel()
    layer.sync.group_add("g", channel)
except ConfigurationError as error:
    print("python -m trunkline.transports.postgres" in str(error))
else:
    try:
        with transaction.atomic():
            layer.sync.group_send("g", {"type": "rolled.back"}, on_commit=True)
            raise KeyError
    except KeyError:
        pass
    with transaction.atomic():
        layer.sync.group_send("g", {"type": "committed"}, on_commit=True)
        layer.sync.group_send("g", {"type": "at.once"})
    print([layer.sync.receive(channel, timeout=10)["type"] for _ in range(2)])
layer.sync.close()
""",
}


def test_a_migration_makes_the_schema(postgres: Postgres, role: str, tmp_path: Path) -> None:
    """The administrator migrates, there, back and there again; the application's user could not have made it."""
    for name, text in SHOP.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    schema = f"s{uuid.uuid4().hex[:8]}"
    common = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "settings",
        "SCHEMA": schema,
    }
    common |= {"PORT": str(postgres.port), "APP": role}

    def run(user: str, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=60,
            env={**common, "ROLE": user},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(role, str(tmp_path / "play.py")) == "True\n"
    call = "call_command('migrate', verbosity=0, **{})"
    calls = "; ".join(
        call.format(more) for more in ("{}", "{'app_label': 'shop', 'migration_name': 'zero'}", "{}")
    )
    run(
        "postgres",
        "-c",
        f"import django; from django.core.management import call_command; django.setup(); {calls}",
    )
    assert run(role, str(tmp_path / "play.py")) == "['at.once', 'committed']\n"
    postgres.sql(f'DROP SCHEMA "{schema}" CASCADE')
    postgres.sql("DROP TABLE django_migrations")


# The schema


async def test_the_schema_is_made_by_many_at_once(postgres: Postgres, prefix: str) -> None:
    schema = f"s{uuid.uuid4().hex[:8]}"
    await asyncio.gather(
        *(opened(PostgresTransport(postgres.url, prefix=prefix, schema=schema)) for _ in range(6))
    )
    await asyncio.to_thread(postgres.sql, f'DROP SCHEMA "{schema}" CASCADE')


async def test_an_older_schema_is_brought_up_to_date(postgres: Postgres, prefix: str) -> None:
    """What is missing is made beside what is there, which keeps its content."""
    schema = f"s{uuid.uuid4().hex[:8]}"
    transport = PostgresTransport(postgres.url, prefix=prefix, schema=schema)
    await transport.open(uuid.uuid4().hex[:20], Ear())
    await transport.push("queue", b"from before", 10, 60)
    await transport.close()
    for old in (
        "TABLE {}.keepers",
        "TABLE {}.records",
        "TABLE {}.tagged",
        "FUNCTION {}.sweep_2",
        "FUNCTION {}.write_2",
    ):
        await asyncio.to_thread(postgres.sql, "DROP " + old.format(schema))
    await transport.open(uuid.uuid4().hex[:20], Ear())
    assert await transport.keep_record("topic", "key", "tag", b"x", 60) == 1
    assert await transport.pull("queue") == b"from before"
    await transport.close()
    await asyncio.to_thread(postgres.sql, f'DROP SCHEMA "{schema}" CASCADE')


async def test_a_user_who_may_not_make_it_is_told_what_to_do(
    postgres: Postgres, prefix: str, role: str
) -> None:
    """First nothing, then the schema made by somebody else, then the right to use it."""
    schema = f"s{uuid.uuid4().hex[:8]}"
    url = postgres.url.replace("postgres@", f"{role}:x@")

    async def doctor() -> list[Finding]:
        return await PostgresTransport.examine(url, schema=schema, prefix=prefix)

    transport = PostgresTransport(url, prefix=prefix, schema=schema)
    with pytest.raises(ConfigurationError, match=r"python -m trunkline\.transports\.postgres"):
        await opened(transport)
    assert any(finding.level == "error" and "GRANT CREATE" in finding.fix for finding in await doctor())
    printed = subprocess.run(
        [sys.executable, "-m", "trunkline.transports.postgres", schema],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == schema_sql(schema)

    import asyncpg

    admin = await asyncpg.connect(postgres.url)
    await admin.execute(printed)
    await admin.execute(printed)
    with pytest.raises(ConfigurationError, match="permission denied"):
        await opened(transport)
    assert any(finding.level == "error" and "GRANT USAGE" in finding.fix for finding in await doctor())
    await admin.execute(
        f'GRANT USAGE ON SCHEMA "{schema}" TO {role}; '
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {role}'
    )
    layer = PostgresChannelLayer(url, prefix=prefix, schema=schema)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.group_send("g", {"type": "x"})
    assert await layer.receive(channel) == {"type": "x"}
    await layer.send("jobs", {"type": "y"})
    assert await layer.receive("jobs") == {"type": "y"}
    await layer.flush()
    await layer.close()
    assert {finding.level for finding in await doctor()} == {"ok"}
    await admin.execute(f'DROP SCHEMA "{schema}" CASCADE')
    await admin.close()


async def test_the_tables_stay_small(postgres: Postgres, prefix: str) -> None:
    """Whatever has ended is swept; whatever a node held is gone with it."""
    schema = f"s{uuid.uuid4().hex[:8]}"
    transport = PostgresTransport(postgres.url, prefix=prefix, schema=schema, expiry=30)
    await transport.open(uuid.uuid4().hex[:20], Ear())
    for number in range(50):
        await transport.publish("topic", b"%d" % number, 30)
        await transport.push("queue", b"%d" % number, 100, 30)
    await transport.bind("topic", "queue", 10, 30)
    await transport.push_later("queue", b"x", 10, 30, 0.01)
    assert await transport.remember("topic", b"x", "m", 10, 0.01) == (1, "")
    assert await transport.keep_record("topic", "key", "tag", b"x", 0.01) == 1
    await transport.close()
    import asyncpg

    admin = await asyncpg.connect(postgres.url)
    await admin.execute(
        f'UPDATE "{schema}".frames SET until = 0; UPDATE "{schema}".history SET until = 0; '
        f'UPDATE "{schema}".queues SET until = 0; UPDATE "{schema}".bindings SET until = 0; '
        f'UPDATE "{schema}".depths SET seen = 0; UPDATE "{schema}".later SET due = 0, ttl = 1; '
        f"UPDATE \"{schema}\".keepers SET until = 0 WHERE node <> ''"
    )
    await asyncio.sleep(0.2)
    assert await admin.fetchval(f'SELECT "{schema}".sweep_2(8000, 1000000)') == 0
    tables = await admin.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = $1::regnamespace", schema
    )
    assert len(tables) > 8
    for (table,) in tables:
        assert await admin.fetchval(f'SELECT count(*) FROM "{schema}".{table}') == 0, table
    await admin.execute(f'DROP SCHEMA "{schema}" CASCADE')
    await admin.close()


# Poolers


class Pool:
    """A PgBouncer before a server."""

    def __init__(self, folder: Path, postgres: Postgres, mode: str) -> None:
        self.port = free_port()
        root = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\npostgres = host=127.0.0.1 port={postgres.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nauth_type = any\nunix_socket_dir =\n"
            f"pool_mode = {mode}\n"
        )
        config = f"/proc/self/fd/{os.open(folder / 'pgbouncer.ini', os.O_RDONLY)}"
        number = int(config.rpartition("/")[2])
        binary = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        self._log = open(folder / "log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [binary, config], stdout=self._log, stderr=self._log, pass_fds=[number], **root
        )
        os.close(number)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture
def pool(request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres) -> Iterator[Pool]:
    if shutil.which("pgbouncer") is None and not Path("/usr/sbin/pgbouncer").exists():
        pytest.skip("no PgBouncer on this machine (apt install pgbouncer)")
    pool = Pool(tmp_path, postgres, request.param)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", pool.port)).close()
                break
            except OSError:
                assert pool.process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield pool
    finally:
        pool.end()


@pytest.mark.parametrize("pool", ["session"], indirect=True)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_pool_in_session_mode_works(pool: Pool, prefix: str, driver: str) -> None:
    async def play() -> None:
        layer = PostgresChannelLayer(pool.url, prefix=prefix, driver=driver)
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", {"type": "x", "data": b"y" * 20000})
        assert (await layer.receive(channel))["type"] == "x"
        await layer.close()

    asyncio.run(play())


@pytest.mark.parametrize("pool", ["transaction"], indirect=True)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_pool_in_transaction_mode_is_refused(pool: Pool, prefix: str, driver: str) -> None:
    """Notifications would go to nobody: that is told at once, and by the doctor."""

    async def play() -> None:
        with pytest.raises(ConfigurationError, match="pooler in transaction mode"):
            await opened(PostgresTransport(pool.url, prefix=prefix, driver=driver, deadline=1.0))
        found = await PostgresTransport.examine(pool.url, prefix=prefix, driver=driver, deadline=1.0)
        assert any(finding.level == "error" and "transaction mode" in finding.what for finding in found)

    asyncio.run(play())


# The doctor


async def test_the_doctor(postgres: Postgres, prefix: str) -> None:
    await opened(PostgresTransport(postgres.url, prefix=prefix))
    found = await PostgresTransport.examine(postgres.url, prefix=prefix)
    assert {finding.level for finding in found} == {"ok"}
    assert [finding.what.split()[0] for finding in found][:2] == ["PostgreSQL", "LISTEN"]
    ((left,),) = await asyncio.to_thread(
        postgres.sql, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'trunkline doctor'"
    )
    assert left == 0
    dead = await PostgresTransport.examine(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    assert [finding.level for finding in dead] == ["error"]
    assert "is it running" in dead[0].fix
