"""The documentation is true: its code runs, its links lead somewhere, its promises are the kit's."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks() -> list[tuple[str, str, str | None]]:
    """Every python block, with the output block that follows it directly, if there is one."""
    found = []
    for page in PAGES:
        pattern = r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?"
        for match in re.finditer(pattern, page.read_text(), re.S):
            line = page.read_text()[: match.start()].count("\n") + 1
            found.append((f"{page.name}:{line}", match[1], match[2]))
    return found


@pytest.mark.parametrize(("place", "code", "output"), blocks(), ids=[place for place, *_ in blocks()])
def test_code_runs(place: str, code: str, output: str | None, tmp_path: Path) -> None:
    """Every Python block of README and docs runs as it stands, and prints what the page says."""
    program = tmp_path / "block.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    if output is not None:
        assert done.stdout == output


@pytest.mark.parametrize("page", ALL, ids=[page.name for page in ALL])
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link points to a file of the project."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_promises_are_the_kits() -> None:
    """docs/promises.md is what the kit says; `make docs` writes it."""
    spec = importlib.util.spec_from_file_location("make_promises", ROOT / "docs" / "make_promises.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "promises.md").read_text() == module.page()
