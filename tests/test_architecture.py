"""The walls of ARCHITECTURE.md, kept."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trunkline

ROOT = Path(trunkline.__file__).parent
PURE = {"errors", "names", "codecs", "settings", "typed", "envelope", "switchboard", "continuity"}
#: Standard library modules a pure room must not touch: time and the network come in as arguments.
IMPURE = {"asyncio", "time", "socket", "random", "threading", "select", "ssl", "logging"}
#: Rooms that see ChannelLayer only: never a transport, the node or the switchboard.
OUTSIDE = {
    "consumers",
    "routing",
    "worker",
    "cli",
    "demo",
    "django",
    "metrics",
    "otel",
    "health",
    "dashboard",
    "serving",
}
CORE = {
    "codecs",
    "errors",
    "names",
    "history",
    "settings",
    "targets",
    "typed",
    "envelope",
    "switchboard",
    "continuity",
    "transport",
    "membership",
    "node",
    "watching",
    "requests",
    "leases",
    "stats",
    "inspection",
    "tracing",
    "presence",
    "layer",
    "sync",
    "logs",
}
#: What a transport may import beside its own package.
SHARED = {"transport", "names", "errors", "continuity", "clock", "line", "logs", "settings"}
DRIVERS = {
    "hiredis": "transports.redis",
    "sqlite3": "transports.embedded",
    "asyncpg": "transports.postgres.driver",
    "psycopg": "transports.postgres.driver",
    "nats": "transports.nats.wire",
    "django": "django",
    "channels": "django",
    "click": "cli",
    "rich": "cli",
    "prometheus_client": "metrics",
    "opentelemetry": "otel",
    "cryptography": "envelope",
    "websockets": "serving.uvicorn",
    "ormsgpack": None,
    "msgspec": "nowhere",
    "pydantic": "nowhere",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else ""] = path
    return found


def imports(name: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Every module imported, ours as a path below trunkline with True; those for type checkers only are left out."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.unparse(guard.test)
        for child in guard.body
        for node in ast.walk(child)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                ours = alias.name.split(".")[0] == "trunkline"
                yield alias.name.removeprefix("trunkline.") if ours else alias.name, ours
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                stem = ".".join([*base, *((node.module or "").split("."))]).strip(".")
            elif node.module and node.module.split(".")[0] == "trunkline":
                stem = node.module.removeprefix("trunkline").strip(".")
            else:
                yield node.module or "", False
                continue
            for alias in node.names:
                inner = f"{stem}.{alias.name}".strip(".")
                yield inner if inner in MODULES else stem, True


MODULES = modules()


@pytest.mark.parametrize("name", sorted(PURE & set(MODULES)))
def test_pure_rooms(name: str) -> None:
    """Pure rooms import each other, the standard library without clock or network, and the codec."""
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            assert imported in PURE, f"{name} imports {imported}"
        else:
            top = imported.split(".")[0]
            assert top not in IMPURE, f"{name} imports {imported}"
            assert top in sys.stdlib_module_names or top in {"ormsgpack", "cryptography"}, (
                f"{name} imports {top}"
            )


@pytest.mark.parametrize("name", sorted(CORE & set(MODULES)))
def test_the_core_knows_no_transport(name: str) -> None:
    """Only opening.py names transports, as strings; the core imports neither those nor the rooms above it."""
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            assert imported.split(".")[0] in CORE, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(SHARED - {"settings"}))
def test_what_transports_share(name: str) -> None:
    """It knows no transport, and nothing of what is above."""
    for imported, ours in imports(name, MODULES[name]):
        assert not ours or imported in SHARED, f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("transports.")])
def test_transports(name: str) -> None:
    """A transport imports the contract, what all transports may share, and its own package; never another's."""
    own = ".".join(name.split(".")[:2])
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            assert imported in SHARED or imported == own or imported.startswith(own + "."), (
                f"{name} imports {imported}"
            )


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in OUTSIDE])
def test_rooms_outside(name: str) -> None:
    """Consumers, worker, CLI, demo and Django see the layer and its errors, never what is under it."""
    inside = {"switchboard", "node", "envelope", "continuity", "transport", "sync"}
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            assert imported.split(".")[0] not in inside | {"transports"}, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_drivers_stay_in_their_room(name: str) -> None:
    """A driver, and Django, is imported in exactly one room."""
    for imported, ours in imports(name, MODULES[name]):
        room = DRIVERS.get(imported.split(".")[0], "") if not ours else None
        if room:
            assert name == room or name.startswith(room + "."), f"{name} imports {imported}"


def test_no_drawers() -> None:
    """No module is called utils, helpers, common or manager."""
    assert not {name.split(".")[-1] for name in MODULES} & {"utils", "helpers", "common", "manager", "misc"}


@pytest.mark.parametrize(
    "name",
    [name for name in MODULES if not name.startswith(("django", "transports.redis", "transports.nats"))],
)
def test_exports_exist(name: str) -> None:
    """What a module names in __all__ is there."""
    if name.endswith("__main__"):
        return
    module = importlib.import_module(f"trunkline.{name}".rstrip("."))
    for exported in getattr(module, "__all__", []):
        assert hasattr(module, exported), f"{name}.{exported}"


def test_import_costs_nothing_extra() -> None:
    """`import trunkline` brings in no transport, no driver, no framework and no extra."""
    code = (
        "import sys, trunkline; bad = {'click','cryptography','django','channels','hiredis','asyncpg','psycopg','sqlite3',"
        "'pytest','uvicorn','msgspec','pydantic','opentelemetry','prometheus_client','rich'};"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in bad or 'trunkline.transports' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
