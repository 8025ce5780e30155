"""Two uvicorn processes for each framework."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from frameworks.framework_claims import HERE, Site
from frameworks.programs import uvicorn


@pytest.fixture(scope="class")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The two servers of the class's application."""
    application = request.cls.application
    folder = tmp_path_factory.mktemp("site")
    env = {"TRUNKLINE_URL": f"embedded://{folder}/layer", "SITE_DATABASE": str(folder / "site.sqlite3")}
    with closing(sqlite3.connect(env["SITE_DATABASE"])) as database:
        database.execute("create table clients (channel_name text)")
    with (
        uvicorn(application, HERE, folder / "one.log", env) as one,
        uvicorn(application, HERE, folder / "two.log", env) as two,
    ):
        yield Site(one.port(), two.port(), folder, env)
