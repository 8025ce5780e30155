"""The kit catches what it is there to catch."""

import asyncio

import pytest

from transports.test_memory_transport import TestMemory as Kit
from trunkline.testing.sabotage import FAULTS, Fault, caught_by


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_kit_catches(fault: Fault) -> None:
    """A planted fault makes the promise it breaks fail, and without it the promise is kept."""
    assert asyncio.run(caught_by(Kit, fault, FAULTS[fault])) is not None
    asyncio.run(Kit().check(FAULTS[fault]))


def test_a_promise_cannot_be_rewritten() -> None:
    """Overriding a promise is refused; a known gap needs the name of one."""
    with pytest.raises(TypeError, match="known_gaps"):
        type("Cheat", (Kit,), {"test_flush_forgets": lambda self: None})
    with pytest.raises(TypeError, match="names no promise"):
        type("Typo", (Kit,), {"known_gaps": {"test_flsh": "because"}})


def test_a_known_gap_must_be_one() -> None:
    """A promise that is kept although it is named as a gap fails; one that is not kept is an expected failure."""
    kept = type("Kept", (Kit,), {"known_gaps": {"test_clocks_agree": "it drifts"}})
    with pytest.raises(AssertionError, match="kept after all"):
        kept().test_clocks_agree()
