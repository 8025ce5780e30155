"""The documentation site, which `make docs` builds of the pages beside this file.

The pages are plain Markdown whose links lead to files, so that they read as well where the code is read.
"""

import re
from pathlib import Path
from typing import Any

import trunkline

ROOT = Path(__file__).resolve().parent.parent

project = "Trunkline"
copyright = "the Trunkline authors, BSD 3-Clause"
version = release = trunkline.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"Trunkline {release}"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__new__"}

#: Pages that stand at the root of the project.
ELSEWHERE = {
    "architecture": "ARCHITECTURE.md",
    "changes": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "examples": "examples/README.md",
}


def read(app: Any, name: str, source: list[str]) -> None:
    """Put in what stands elsewhere, and turn links to files into links of the site."""
    page = ROOT / ELSEWHERE.get(name, f"docs/{name}.md")
    text = page.read_text() if name in ELSEWHERE else source[0]
    text = re.sub(
        r"\[([^\]]*)\]\((?!\w+:)([^)#]+)(#[^)]*)?\)",
        lambda link: linked(link[1], (page.parent / link[2]).resolve(), link[3] or ""),
        text,
    )
    if name == "examples":
        text += listings()
    elif name == "index":
        text = text.replace("PLACED NOWHERE\n", unplaced(app.env.found_docs, text))
    source[0] = text


def linked(text: str, target: Path, anchor: str) -> str:
    """A link as the site needs it: a page, an example's listing, a file to fetch, or, to a folder, none."""
    where = target.relative_to(ROOT).as_posix()
    pages = {file: page for page, file in ELSEWHERE.items()} | {"README.md": "index"}
    if where in pages:
        return f"[{text}]({pages[where]}.md{anchor})"
    if where.startswith("examples/"):
        return f"[{text}](examples.md#{target.parent.name.replace('_', '-')})"
    if where.startswith("docs/"):
        return f"[{text}]({where.removeprefix('docs/')}{anchor})"
    return text if target.is_dir() else f"[{text}](../{where})"


def listings() -> str:
    """The files of each example that show what it is about, under the name of its folder."""
    text = ""
    shown = [*(ROOT / "examples").glob("*/*.py"), *(ROOT / "examples").glob("*/*/consumers.py")]
    for path in sorted(path for path in shown if path.name != "manage.py"):
        where = path.relative_to(ROOT / "examples").as_posix()
        heading = f"## {where.partition('/')[0].replace('_', '-')}\n"
        if heading not in text:
            text += f"\n\n{heading}"
        text += f"\n```{{literalinclude}} ../examples/{where}\n:language: python\n:caption: {where}\n```\n"
    return text


def unplaced(pages: set[str], index: str) -> str:
    """Pages that the index does not name: a new one is on the site at once."""
    return "".join(
        f"{page}\n" for page in sorted(pages) if page != "index" and not re.search(rf"^{page}$", index, re.M)
    )


def promises(app: Any, kind: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Delivery, Order and Cancellation of a docstring are a paragraph each."""
    if kind == "attribute":
        lines.insert(0, "")  # or what stands before a colon in its first line is taken for a type
    inside = False
    for number, line in enumerate(lines):
        said = re.match(r"(Delivery|Order|Cancellation): (.*)", line)
        inside = said is not None or (inside and line.strip() != "")
        if said is not None:
            lines[number] = f"\n**{said[1]}:** {said[2]}"
        elif inside:
            lines[number] = line.strip()
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Any) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", promises, priority=100)
