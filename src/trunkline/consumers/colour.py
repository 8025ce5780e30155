"""Which methods are ``async def`` and which are ``def``, checked when a consumer class is made.

A handler of the wrong colour would be called and never run (or never awaited). So the class statement fails instead,
and says what to write. Only what is certain is refused here: a method whose colour cannot be seen, or that may well be
an ordinary helper, is left to the check at dispatch.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from asgiref.sync import iscoroutinefunction

__all__ = ["check", "complaint"]

_FRAMEWORK = "trunkline.consumers."
_EVENT_NAMES = {"event", "message"}


def complaint(owner: str, method: str, wanted: bool, tree: bool, why: str) -> TypeError:
    """The error for one method, with its fix; ``wanted`` and ``tree`` are True for async."""
    write = "async def" if wanted else "def"
    other = f", or inherit from the {'sync' if tree else 'async'} consumer" if wanted is tree else ""
    return TypeError(f"{owner}.{method} must be `{write}`: {why}. Write `{write} {method}(...)`{other}.")


def check(cls: type, asynchronous: bool) -> None:
    """Refuse a consumer class with a handler of the wrong colour.

    Raises:
        TypeError: It names the class, the method and the fix.
    """
    winners: dict[str, Any] = {}
    for owner in cls.__mro__[:-1]:
        for name, attribute in vars(owner).items():
            if name.startswith("_"):
                continue
            if name not in winners:
                winners[name] = attribute
            elif _refused(winners[name], attribute, owner, asynchronous):
                wanted = _is_async(attribute) is True
                raise complaint(
                    cls.__name__, name, wanted, asynchronous, f"it overrides {owner.__name__}.{name}"
                )
    inherited = {name for owner in cls.__mro__[1:] for name in vars(owner)}
    for name, attribute in vars(cls).items():
        if name not in inherited and not name.startswith("_") and isinstance(attribute, FunctionType):
            if _is_async(attribute) is not (not asynchronous) or not _looks_like_handler(
                cls, name, attribute
            ):
                continue
            error = complaint(cls.__name__, name, asynchronous, asynchronous, "it handles an event")
            error.add_note(f"If it handles no event, rename it to _{name}.")
            raise error


def _refused(ours: Any, theirs: Any, owner: type, asynchronous: bool) -> bool:
    """Whether a definition may not replace the one it overrides."""
    new, old = _is_async(ours), _is_async(theirs)
    if new is None or old is None or new is old:
        return False
    # What the framework awaits (or calls) keeps its colour; among users' own methods only the wrong direction fails.
    return owner.__module__.startswith(_FRAMEWORK) or new is not asynchronous


def _is_async(attribute: Any) -> bool | None:
    """True for a coroutine function, False for a plain one, None where that cannot be seen."""
    function = attribute.__func__ if isinstance(attribute, (classmethod, staticmethod)) else attribute
    if iscoroutinefunction(function):
        return True
    if not isinstance(function, FunctionType):
        return None
    # A plain wrapper around a coroutine function may return its coroutine or run it: both are common.
    return None if iscoroutinefunction(inspect.unwrap(function)) else False


def _looks_like_handler(cls: type, name: str, function: FunctionType) -> bool:
    """Whether a method takes one event, gives nothing back, and is called by nobody but the dispatch."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) != 1 or required[0].name not in _EVENT_NAMES:
        return False
    if required[0].name == "message" and "_" not in name:  # log(message), debug(message): helpers, as a rule
        return False
    return _returns_nothing(function.__code__) and not any(name in code.co_names for code in _codes(cls))


def _returns_nothing(code: CodeType) -> bool:
    returned = []
    before: Any = None
    for step in dis.get_instructions(code):
        if step.opname == "RETURN_CONST":
            returned.append(step.argval)
        elif step.opname == "RETURN_VALUE":
            is_constant = before is not None and before.opname == "LOAD_CONST"
            returned.append(before.argval if is_constant else ...)
        before = step
    return bool(returned) and all(value is None for value in returned)


def _codes(cls: type) -> Iterator[CodeType]:
    """The code of every method of a class and its bases, with the functions inside them."""
    for owner in cls.__mro__[:-1]:
        for attribute in vars(owner).values():
            plain = getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute)
            code = getattr(inspect.unwrap(plain), "__code__", None) if callable(plain) else None
            waiting = [code] if isinstance(code, CodeType) else []
            while waiting:
                code = waiting.pop()
                yield code
                waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
