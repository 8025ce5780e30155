"""The documentation site: it builds without a warning, and its reference is complete."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

from trunkline import errors, layers, metrics
from trunkline.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    """What a module names in `__all__` is described under that name."""
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    described = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    rooms = [
        "",
        ".layers",
        ".consumers",
        ".routing",
        ".worker",
        ".testing",
        ".health",
        ".metrics",
        ".dashboard",
    ]
    for room in (f"trunkline{room}" for room in (*rooms, ".otel", ".serving.uvicorn", ".transport")):
        names = {f"{room}.{name}" for name in importlib.import_module(room).__all__}
        assert names <= described, f"docs/reference.md lacks {sorted(names - described)}"
    methods = [name for name in vars(importlib.import_module("trunkline").ChannelLayer) if name[0] != "_"]
    described |= {f"trunkline.ChannelLayer.{name}" for name in ("ChannelFull", "MessageTooLarge")}
    assert {f"trunkline.ChannelLayer.{name}" for name in methods} <= described


def test_every_page_is_on_the_site(site: Path) -> None:
    """Each Markdown file has a page, which the menu of the first one leads to."""
    menu = (site / "index.html").read_text()
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in menu, page.name


def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    """No link to a file that the site does not have, and none that still means the folder of the code."""
    for page in site.glob("*.html"):
        for target in re.findall(r'(?:href|src)="(?!\w+:|#)([^"#?]+)', page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_setting_is_on_its_page() -> None:
    """docs/settings.md has every setting; every argument of a layer is in that layer's docstring, which the site shows."""
    page = (DOCS / "settings.md").read_text()
    for setting in fields(Settings):
        assert not setting.init or f"`{setting.name}`" in page, setting.name
    for name in layers.__all__:
        found = getattr(layers, name)
        for argument in list(inspect.signature(found.__init__).parameters)[1:]:
            assert f"        {argument}: " in found.__doc__ or argument == "options", f"{name}: {argument}"


def test_every_error_is_on_its_page() -> None:
    """docs/errors.md has every class that Trunkline raises."""
    page = (DOCS / "errors.md").read_text()
    for name in (*errors.__all__, "NoHandler"):
        assert f"`{name}`" in page, name


def test_every_metric_is_on_its_page() -> None:
    """docs/observe.md has every metric by the name that Prometheus stores."""
    page = (DOCS / "observe.md").read_text()
    for family in metrics.TrunklineCollector({}).describe():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}`" in page, name
