"""What mypy and pyright infer of the public interface, pinned."""

import json
import subprocess
import sys
from pathlib import Path

PINNED = Path(__file__).with_name("pinned.py")
SOURCE = Path(__file__).parents[2] / "src"


def test_mypy(tmp_path: Path) -> None:
    """mypy --strict agrees with every line, and each ignored error is one."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path}",
        str(PINNED),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=110)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr


def test_pyright(tmp_path: Path) -> None:
    """So does pyright, in the wheel that brings its own Node."""
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "include": [str(PINNED)],
                "extraPaths": [str(SOURCE)],
                "typeCheckingMode": "standard",
                "reportUnnecessaryTypeIgnoreComment": True,
                "enableTypeIgnoreComments": False,
                "pythonVersion": "3.11",
            }
        )
    )
    command = [sys.executable, "-m", "basedpyright", "-p", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors" in done.stdout
