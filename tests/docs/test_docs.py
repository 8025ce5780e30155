"""The documentation is true: its code and its commands run, its links lead somewhere, its promises are the kit's."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from frameworks.programs import environment, eventually
from trunkline import ChannelLayer
from trunkline.cli.commands import trunkline
from trunkline.opening import make_layer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [
    *PAGES,
    *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
]
FENCE = re.compile(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", re.S)


class Block(NamedTuple):
    """A python block, the output block that follows it directly, if any, and the files that its page shows."""

    place: str
    code: str
    output: str | None
    files: dict[str, str]


def place(page: Path, offset: int) -> str:
    return f"{page.name}:{page.read_text()[:offset].count(chr(10)) + 1}"


def shown_files(page: Path) -> dict[str, str]:
    """Blocks that begin with the name of a file are that file."""
    return dict(re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", page.read_text(), re.S))


def write(files: dict[str, str], folder: Path) -> None:
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)


def blocks() -> list[Block]:
    return [
        Block(place(page, match.start()), match[1], match[2], shown_files(page))
        for page in PAGES
        for match in FENCE.finditer(page.read_text())
    ]


@pytest.mark.parametrize("block", blocks(), ids=[block.place for block in blocks()])
def test_code_runs(block: Block, tmp_path: Path) -> None:
    """Every Python block runs as it stands, under pytest where it is a test, and prints what the page says."""
    write(block.files, tmp_path)
    is_test = re.search(r"^(?:async )?def test_|^class Test", block.code, re.M) is not None
    program = tmp_path / ("test_block.py" if is_test else "block.py")
    # Its folder below /tmp is one of its own: another version may have left its file there.
    program.write_text(block.code.replace('"/tmp/', f'"{tmp_path}/'))
    under_pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-W", "error", *(under_pytest if is_test else []), str(program)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
        env=environment(TRUNKLINE_DIR=str(tmp_path / "layer")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if block.output is not None:
        assert done.stdout == block.output


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(block.code, id=block.place)
        for block in blocks()
        if block.code.startswith("CHANNEL_LAYERS")
    ],
)
def test_settings_shown_are_settings_accepted(code: str, tmp_path: Path) -> None:
    """Each CHANNEL_LAYERS on a page makes its layers, with CONFIG and with TEST_CONFIG."""
    values: dict[str, Any] = {}
    exec(code, values)
    for alias, spec in values["CHANNEL_LAYERS"].items():
        for config in ("CONFIG", "TEST_CONFIG"):
            assert isinstance(make_layer(alias, spec, config), ChannelLayer)


def sessions() -> list[tuple[str, str, dict[str, str]]]:
    """Every console block with prompts, and the files that its page shows."""
    return [
        (place(page, match.start()), match[1], shown_files(page))
        for page in PAGES
        for match in re.finditer(r"```console\n(\$ .*?)```", page.read_text(), re.S)
    ]


@contextmanager
def shell(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell with `trunkline` and this Python in its path, whose output goes to ``log``."""
    env = environment(
        TRUNKLINE_DIR=str(folder / "layer"),
        PYTHONUNBUFFERED="1",
        PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin",
        COLUMNS="100",
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash"], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        # What still runs in the background ends with the shell that started it.
        process.stdin.write(b'trap "" TERM; kill $(jobs -p) 2>/dev/null; wait\n')
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("where", "session", "files"), sessions(), ids=[where for where, *_ in sessions()])
def test_commands_print_what_the_page_says(
    where: str, session: str, files: dict[str, str], tmp_path: Path
) -> None:
    """Lines with a `$` are typed into a shell, each when the output before it is there; ` &` stays in the background."""
    write(files, tmp_path)
    log = tmp_path / "log"
    expected = ""

    def printed() -> bool:
        output = log.read_text()
        assert output == expected[: len(output)]
        return output == expected

    with shell(tmp_path) as process:
        assert process.stdin is not None
        for line in session.splitlines(keepends=True):
            if line.startswith("$ "):
                eventually(printed, f"all of {expected!r}")
                process.stdin.write(line[2:].encode())
                process.stdin.flush()
            else:
                expected += line
        eventually(printed, f"all of {expected!r}")
    assert log.read_text() == expected


def commands() -> dict[str, click.Command]:
    return trunkline.commands


def test_the_table_of_commands() -> None:
    """docs/cli.md has every command with the words of its own help."""
    table = re.findall(
        r"^\| \[`trunkline ([\w-]+)`\]\(.*?\) \| (.*?) \|$", (ROOT / "docs/cli.md").read_text(), re.M
    )
    assert dict(table) == {name: command.get_short_help_str(200) for name, command in commands().items()}


@pytest.mark.parametrize("name", commands())
def test_every_option_is_on_the_page(name: str) -> None:
    """docs/cli.md names each option of a command in the section of that command."""
    text = (ROOT / "docs/cli.md").read_text()
    general, _, _ = text.partition("\n## ")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section is not None
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}" in general + section[1], f"{name} {parameter.opts[0]}"


def anchors(page: Path) -> set[str]:
    """What a link may name behind the `#`, made of the headings as code hosts make it."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=[str(page.relative_to(ROOT)) for page in ALL])
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link points to a file of the project, and to a heading that is there."""
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not target.startswith("http"):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(found), f"{page.name}: {target}#{anchor}"


def made(name: str) -> str:
    """What a program in docs/ makes."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page: str = module.page()
    return page


def test_promises_are_the_kits() -> None:
    """docs/promises.md is what the kit says; `make docs` writes it."""
    assert (ROOT / "docs" / "promises.md").read_text() == made("make_promises")


def test_tables_of_the_readme_are_true() -> None:
    """What transports can do is what they declare, and figures are those of docs/benchmarks.md; `make docs` writes both."""
    assert (ROOT / "README.md").read_text() == made("make_front")
