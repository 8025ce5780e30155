from __future__ import annotations

import pytest

from trunkline import line


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every consumer counts as one that is back at once, however busy the machine."""
    for patience in ("_AT_ONCE", "_PATIENCE", "_MOMENT"):
        monkeypatch.setattr(line, patience, 10.0)
