"""What is published has everything that it needs, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compares with what is committed")
def test_every_file_is_in_the_wheel_and_the_sdist(tmp_path: Path) -> None:
    """Each committed file below src, Lua, SQL and pages too, is in the wheel, and the rest of the project in the sdist."""
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    command = [sys.executable, str(ROOT / ".ci" / "contents.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "schema.sql" in done.stdout
    assert "take.lua" in done.stdout
    assert "page.html" in done.stdout
