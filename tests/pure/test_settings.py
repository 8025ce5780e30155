import re
from typing import Any

import pytest

from trunkline.errors import ConfigurationError
from trunkline.settings import Settings


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"capcity": 5}, "unknown setting 'capcity': did you mean 'capacity'"),
        ({"zzz": 5}, "known are: capacity"),
        ({"capacity": 0}, "capacity is a whole number of messages above 0, not 0"),
        ({"capacity": 1.5}, "capacity is a whole number"),
        ({"capacity": True}, "capacity is a whole number"),
        ({"expiry": "60"}, "expiry is a number of seconds above 0, not '60'"),
        ({"group_expiry": -1}, "group_expiry is a number of seconds"),
        ({"max_message_size": None}, "max_message_size is a whole number of bytes"),
        ({"symmetric_encryption_keys": "secret"}, "list of keys, not one key"),
        ({"symmetric_encryption_keys": [7]}, "non-empty str or bytes"),
        ({"channel_capacity": ["a"]}, "channel_capacity is a dict"),
        ({"channel_capacity": {"a*": "9"}}, re.escape("channel_capacity['a*'] is a whole number")),
        ({"channel_capacity": {7: 9}}, "neither a glob nor a compiled regex"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], complaint: str) -> None:
    """Every wrong key or value is a ValueError that names it and the fix, never a KeyError."""
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        Settings.build(options)
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, KeyError)


def test_first_pattern_that_matches() -> None:
    """Patterns are tried in order; a name that matches none has the default capacity."""
    settings = Settings(capacity=1, channel_capacity={"a.*": 2, re.compile("[ab]"): 3})
    assert [settings.capacity_of(name) for name in ("a.x", "a", "b.x", "c")] == [2, 3, 3, 1]
