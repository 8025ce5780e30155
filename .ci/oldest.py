"""The lowest versions that pyproject.toml allows, as constraints for pip and uv.

``oldest.py`` prints them. ``oldest.py --installed PYTHON`` fails when that Python has another version of one of them.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def lowest() -> dict[str, str]:
    """Of all that users may install us with or beside; not of the tools that run the tests."""
    parsed = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    project, groups = parsed["project"], parsed["dependency-groups"]
    wanted = [*project["dependencies"], *groups["beside"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    found = {}
    for line in wanted:
        if line.startswith("trunkline["):  # another of the extras
            continue
        match = REQUIREMENT.match(line)
        if match is None:
            raise SystemExit(f"pyproject.toml: {line!r} has no lower bound")
        if found.setdefault(match[1], match[2]) != match[2]:
            raise SystemExit(
                f"pyproject.toml: two lower bounds for {match[1]}: {found[match[1]]}, {match[2]}"
            )
    return found


def installed(python: str) -> None:
    code = "import importlib.metadata as m, sys\nfor n in sys.argv[1:]: print(n, m.version(n))"
    names = lowest()
    lines = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout
    wrong = []
    for name, version in (line.split() for line in lines.splitlines()):
        padded = [part.split(".") + ["0"] * 4 for part in (version, names[name])]
        if padded[0][:4] != padded[1][:4]:
            wrong.append(f"{name} {version} is installed, not {names[name]}")
    if wrong:
        raise SystemExit("; ".join(wrong))
    print(" ".join(lines.replace(" ", "==").split()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--installed"]:
        installed(sys.argv[2])
    else:
        print("\n".join(f"{name}=={version}" for name, version in lowest().items()))
