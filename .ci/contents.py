"""What must be in the wheel and the sdist of a folder, and what must not."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked(*where: str) -> set[str]:
    """What is committed, or would be."""
    lines = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name for name in lines.splitlines() if (ROOT / name).exists()}


def complain(what: str, names: set[str]) -> None:
    if names:
        raise SystemExit(f"{what}: {', '.join(sorted(names))}")


def main(folder: Path) -> None:
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    sources = {name.removeprefix("src/") for name in tracked("src")}
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in inside if not name.split("/")[0].endswith(".dist-info")}
    complain("not in the wheel", sources - ours)
    complain("in the wheel, but ignored", ours - sources)
    complain("in the wheel, without need", {name for name in ours if "/tests/" in name})
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    wanted = tracked(
        "src", "tests", "docs", "examples", "bench", ".ci", "Makefile", "*.md", "LICENSE", "pyproject.toml"
    )
    complain("not in the sdist", wanted - found)
    complain("in the sdist, but ignored", found - tracked() - {"PKG-INFO"})
    data = sorted(name for name in ours if not name.endswith(".py"))
    print(f"{wheel.name}: {len(ours)} files, {wheel.stat().st_size:,} bytes; data: {', '.join(data)}")
    print(f"{sdist.name}: {len(found)} files, {sdist.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
