"""Writes promises.md from the claims of the conformance kit."""

from pathlib import Path

from trunkline.testing import LayerConformance, TransportConformance

HEAD = """# Promises

Every layer keeps all of these; each line is a test of the conformance kit, run over every transport, over a slow link and
one that is cut. `trunkline conform URL` tries them on your machine and your server.

This page is made by `make docs` from the kit itself.
"""


def page() -> str:
    parts = [HEAD, "\n## What users see\n\n"]
    parts += [f"- {claim}\n" for claim in LayerConformance.promises().values()]
    parts += ["\n## What carries it\n\n"]
    parts += [f"- {claim}\n" for claim in TransportConformance.promises().values()]
    return "".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "promises.md").write_text(page())
