"""`trunkline conform` and `trunkline doctor` on a master that sentinels watch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frameworks.programs import environment
from sentinels import Watched
from servers import servers


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    watched = Watched(sorted(servers())[-1], tmp_path_factory.mktemp("watched"))
    yield watched
    watched.kill()


def run(*words: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    script = Path(sys.executable).with_name("trunkline")
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=environment(PYTHONOPTIMIZE=""),  # which conform refuses
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_conform_tries_every_promise(watched: Watched) -> None:
    """All are kept, also over slow and cut links: to the sentinels, and to the master that they name."""
    code, out = run("conform", watched.url)
    assert code == 0, out
    promises = out.count("✓")
    assert promises > 70
    assert f"{watched.url}: {promises} promises kept, 0 broken, " in out
    assert "slowed or cut" not in out
    for kept in ("Over a slow link", "while it was cut off", "A link that is cut ten times"):
        assert any("✓" in line and kept in line for line in out.splitlines()), kept


def test_the_doctor_is_content(watched: Watched) -> None:
    """It names the master and who said so, and examines it."""
    code, out = run("doctor", watched.url)
    assert code == 0, out
    assert f"✓ mymaster is 127.0.0.1:{watched.master.port}, by 3 sentinels" in out
    assert f"{watched.master.port}, database 0, user default" in out
    assert "✗" not in out


def test_the_doctor_misses_a_sentinel_and_a_name(watched: Watched) -> None:
    """A sentinel that is down is a warning; a name that nobody knows an error, with what to check."""
    watched.sentinels[2].kill()
    try:
        code, out = run("doctor", watched.url)
        assert code == 0, out
        assert f"! sentinel 127.0.0.1:{watched.sentinels[2].port} is of no use" in out
    finally:
        watched.sentinels[2].start()
    code, out = run("doctor", watched.url.replace("mymaster", "nobody"))
    assert code == 1
    assert "✗ nobody (Sentinel) cannot be found" in out
    assert "check master_name" in out
