"""TLS, for both drivers, on a PostgreSQL of Debian: the wheel's speaks none. And what is private in a driver."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from certificates import Authority
from postgres_server import Postgres, installed_binaries, running, sql
from trunkline.errors import ConfigurationError, TransportUnavailable
from trunkline.layers import PostgresChannelLayer
from trunkline.transports.postgres import PostgresTransport, driver


class Secured(NamedTuple):
    server: Postgres
    authority: Authority
    stranger: Authority

    def url(self, options: str, host: str = "127.0.0.1", user: str = "postgres") -> str:
        return f"postgresql://{user}@{host}:{self.server.port}/postgres?{options}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server that insists on TLS, with a certificate for 127.0.0.1; it knows the user ``app`` by a certificate only."""
    programs = installed_binaries()
    if programs is None:
        text = "no PostgreSQL with TLS on this machine (apt install postgresql)"
        if "postgres" in os.environ.get("TRUNKLINE_REQUIRE", "").split(","):
            pytest.fail(text)
        pytest.skip(text)
    with running(programs) as server:
        authority = Authority(server.folder)
        stranger = Authority(tmp_path_factory.mktemp("stranger"))
        certificate, key = authority.certificate("server")
        os.chmod(key, 0o600)
        rules = server.folder / "pg_hba.conf"
        server.sql("CREATE ROLE app LOGIN")
        server.sql("GRANT CREATE ON DATABASE postgres TO app")
        rules.write_text("hostssl all app 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 trust\n")
        for path in (certificate, key, rules):
            os.chown(path, server.folder.stat().st_uid, server.folder.stat().st_gid)
        server.stop()
        server.options |= {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key}
        server.options["ssl_ca_file"] = authority.path
        server.options["hba_file"] = str(rules)
        server.start()
        yield Secured(server, authority, stranger)


async def works(url: str, driver: str, schema: str = "trunkline") -> None:
    """A group, a specific channel, a queue and presence carry a message each; both connections are encrypted."""
    async with (
        PostgresChannelLayer(url, driver=driver, schema=schema) as here,
        PostgresChannelLayer(url, driver=driver, schema=schema) as there,
    ):
        channel = await there.new_channel()
        await there.group_add("room", channel, presence={}, user="ann")
        await here.group_send("room", {"type": "to.group", "data": b"x" * 20000})
        assert (await there.receive(channel))["type"] == "to.group"
        await here.send(channel, {"type": "to.one"})
        assert await there.receive(channel) == {"type": "to.one"}
        await here.send("jobs", {"type": "job"})
        assert await there.receive("jobs") == {"type": "job"}
        assert [member.user for member in await here.presence("room")] == ["ann"]
        connections = await sockets(url)
        assert len(connections) >= 4
        assert all(connections)


async def sockets(url: str) -> list[bool]:
    query = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'trunkline %'"
    return [row[0] for row in await sql(url, query)]


async def refused(url: str, match: str, driver: str, lasting: bool = True) -> None:
    """The first call tells at once what is wrong, or, where that may pass, after a while; and so does the doctor."""
    layer = PostgresChannelLayer(url, driver=driver, connect_timeout=10 if lasting else 0.5)
    with pytest.raises(ConfigurationError if lasting else TransportUnavailable, match=match):
        await layer.send("jobs", {"type": "job"})
    await layer.close()
    (found,) = await PostgresTransport.examine(url, driver=driver)
    assert found.level == "error"
    assert found.fix


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_tls(secured: Secured, driver: str) -> None:
    """Whom we trust is let in; another certificate, another name, and talking in the clear, is refused with what to do."""
    await works(secured.url(f"sslmode=verify-full&sslrootcert={secured.authority.path}"), driver)
    strict = f"sslmode=verify-full&sslrootcert={secured.authority.path}"
    await refused(secured.url(strict, "localhost"), "(?s)localhost.*sslrootcert is the file", driver)
    await refused(
        secured.url(f"sslmode=verify-full&sslrootcert={secured.stranger.path}"),
        "sslrootcert is the file",
        driver,
    )
    await refused(
        secured.url("sslmode=verify-ca&sslrootcert=/nowhere"), "there is no file '/nowhere'", driver
    )
    await refused(secured.url("sslmode=disable"), "no encryption", driver)
    await refused(secured.url("sslmode=full"), "sslmode is one of verify-full.*, not 'full'", driver)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_that_wants_our_certificate(secured: Secured, driver: str) -> None:
    """``sslcert`` and ``sslkey`` say who we are, with no password; without them, and with another's, we are told so."""
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    trusted = f"sslmode=verify-full&sslrootcert={secured.authority.path}"

    def shown(authority: Authority, name: str, file: str, until: datetime.datetime | None = None) -> str:
        os.chmod(authority.certificate(name, until=until)[1], 0o600)
        for kind in ("pem", "key"):
            Path(f"{authority.folder}/{name}.{kind}").rename(f"{authority.folder}/{file}.{kind}")
        return f"{trusted}&sslcert={authority.folder}/{file}.pem&sslkey={authority.folder}/{file}.key"

    app = shown(secured.authority, "app", f"app-{driver}")
    await works(secured.url(app, user="app"), driver, f"of_app_{driver}")
    await refused(secured.url(trusted, user="app"), "valid client certificate.*sslcert", driver)
    other = shown(secured.authority, "other", f"other-{driver}")
    await refused(secured.url(other, user="app"), 'certificate authentication failed for user "app"', driver)
    # asyncpg hears of these only that the connection ended, which may be over in a moment.
    lasting = driver == "psycopg"
    strange = shown(secured.stranger, "app", f"strange-{driver}")
    await refused(secured.url(strange, user="app"), "certificate.*sslcert", driver, lasting)
    old = shown(secured.authority, "app", f"old-{driver}", yesterday)
    await refused(secured.url(old, user="app"), "certificate.*sslcert", driver, lasting)
    await refused(
        secured.url(app.partition("&sslkey")[0] + "&sslkey=/nowhere", user="app"),
        "sslkey: there is no file",
        driver,
    )
    crossed = app.partition("&sslkey")[0] + f"&sslkey={secured.authority.folder}/other-{driver}.key"
    await refused(secured.url(crossed, user="app"), "key values mismatch.*sslkey that of its key", driver)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_without_tls(postgres: Postgres, driver: str) -> None:
    """Nothing is sent in the clear where TLS was asked for."""
    await refused(f"{postgres.url}?sslmode=require", "turn ssl on at the server", driver)


def test_what_is_private_in_asyncpg_is_there() -> None:
    """If this fails, the newest asyncpg has changed: read why each of these is used, in driver.py, and find another way."""
    import asyncpg

    assert [name for name in driver._PRIVATE if not hasattr(asyncpg.Connection, name)] == []
    room = Path(driver.__file__).read_text()
    start, end = room.index("async def _connect_asyncpg"), room.index("async def _connect_psycopg")
    used = set(re.findall(r"(?:def |_raw\.)(_[a-z]\w*)", room[start:end])) & set(dir(asyncpg.Connection))
    assert used == driver._PRIVATE.keys()


async def test_an_asyncpg_that_lacks_it_is_told(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a layer that hears nothing."""
    monkeypatch.setitem(driver._PRIVATE, "_is_gone", "for the test")
    await refused(postgres.url, "asyncpg .* lacks _is_gone.*driver=psycopg", "asyncpg")
