import doctest
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline import names
from trunkline.errors import InvalidName

GOOD = ["a", "A-z_0.9", "x" * 99, "specific.ab12!cd34", "a!b"]
BAD = ["", "a b", "ü", "x" * 100, "chat\n", "a!b!c", "a!", "!a", "a!é", "a/b"]


@pytest.mark.parametrize("name", GOOD)
def test_good_channel_names(name: str) -> None:
    """Legal names are taken apart: what stands before '!' ends in the node."""
    parsed = names.channel(name)
    assert parsed.name == name
    assert (parsed.node is None) == ("!" not in name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_named(name: str) -> None:
    """An illegal name is shown in the error, with the rule; for groups also the way out."""
    with pytest.raises(InvalidName, match="ASCII letters"):
        names.channel(name)
    with pytest.raises(InvalidName, match="safe_group_name"):
        names.group(name)


@pytest.mark.parametrize("name", [None, 7, b"x", ["a"]])
def test_other_types(name: object) -> None:
    """A name of another type is a TypeError that says which type it was."""
    for parse in (names.channel, names.group):
        with pytest.raises(TypeError, match=type(name).__name__ if not isinstance(name, list) else "list"):
            parse(name)  # type: ignore[arg-type]


def test_the_owner_is_in_the_name() -> None:
    """The node of a new channel is read back from its name, whatever the prefix."""
    node = names.new_node()
    for prefix in ("specific", "a.b.c", "x" * 57):
        assert names.channel(names.new_channel(prefix, node)).node == node
    with pytest.raises(InvalidName):
        names.new_channel("x" * 58, node)


def test_names_are_unpredictable() -> None:
    """The same random seed gives different names."""
    found = set()
    for _ in range(2):
        random.seed(0)
        found |= {names.new_node(), names.new_channel("a", "b")}
    assert len(found) == 4


@given(st.text(max_size=200), st.text(max_size=200))
def test_safe_group_names(one: str, two: str) -> None:
    """Any text gives a legal name, the same text the same, another text another."""
    first, second = names.safe_group_name(one), names.safe_group_name(two)
    assert names.group(first) == first
    assert (first == second) == (one == two)


def test_safe_group_names_cannot_be_forged() -> None:
    """The name made from one text is not the name of the text that looks like it."""
    made = names.safe_group_name("Zürich")
    assert names.safe_group_name(made) != made
    assert names.safe_group_name("room.42") == "room.42"


def test_doctests() -> None:
    """The examples in the docstrings are true."""
    failed, tried = doctest.testmod(names, optionflags=doctest.ELLIPSIS)
    assert tried >= 2
    assert not failed
