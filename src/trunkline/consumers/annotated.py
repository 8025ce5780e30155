"""Which handlers of a consumer take typed events, found once when its class is made.

A handler's one parameter decides: a dataclass, TypedDict, msgspec Struct or pydantic model there is what it gets. Any
other annotation, or none, leaves the event the dict that it is.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from ..typed import Convert, converter, is_typed, kinds

__all__ = ["converters"]

logger = logging.getLogger("trunkline.consumers")

_OURS = "trunkline."


def converters(cls: type) -> dict[str, Convert]:
    """By the name of the handler: what makes the object it wants of an event.

    Raises:
        TypeError: A field of a type cannot travel, or its messages would never reach the handler.
    """
    found: dict[str, Convert] = {}
    seen: set[str] = set()
    namespace: Mapping[str, Any] | None = None
    for owner in cls.__mro__[:-1]:
        if owner.__module__.startswith(_OURS):
            continue
        for name, attribute in vars(owner).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            annotation = _annotation(attribute)
            if not isinstance(annotation, str):
                convert = _convert(annotation, cls, name, namespace)
            else:
                namespace = namespace or _where_the_class_is_made()
                convert = _of_text(annotation, inspect.unwrap(attribute), cls, name, namespace)
            if convert is not None:
                found[name] = convert
    return found


def _annotation(attribute: Any) -> Any:
    """What is written behind the one parameter of a handler; None where there is nothing of the kind."""
    function = inspect.unwrap(attribute) if callable(attribute) else attribute
    if not isinstance(function, FunctionType) or isinstance(attribute, (staticmethod, classmethod)):
        return None
    if function.__code__.co_argcount != 2:
        return None
    try:
        return function.__annotations__.get(function.__code__.co_varnames[1])
    except NameError:  # Python 3.14 looks only now
        return None


def _convert(annotation: Any, cls: type, name: str, namespace: Mapping[str, Any] | None) -> Convert | None:
    if not is_typed(annotation):
        return None
    types = kinds(annotation)
    if types is not None and name not in {kind.replace(".", "_") for kind in types}:
        shown = " or ".join(map(repr, sorted(types)))
        raise TypeError(
            f"{cls.__name__}.{name} would never get a {annotation.__name__}, whose type is {shown}: rename the handler "
            f"to {min(types).replace('.', '_')}, or mend the type"
        )
    return converter(annotation, namespace)


def _of_text(
    text: str, function: FunctionType, cls: type, name: str, namespace: Mapping[str, Any]
) -> Convert | None:
    """The converter for an annotation that is text, as all are under `from __future__ import annotations`."""
    try:
        annotation = eval(text, function.__globals__, dict(namespace))
    except NameError:  # defined further down, or for type checkers only: the first event will show
        pass
    except Exception:  # not meant for us
        return None
    else:
        return _convert(annotation, cls, name, namespace)

    known: list[Convert] = []

    def convert(event: Any) -> Any:
        if not known:
            try:
                annotation = eval(text, function.__globals__, dict(namespace))
            except NameError as error:
                annotation = None
                logger.warning(
                    "%s.%s gets plain dicts: its annotation %s cannot be resolved (%s); import it outside "
                    "`if TYPE_CHECKING`, or define it at the top of its module",
                    cls.__name__,
                    name,
                    text,
                    error,
                )
            known.append(_convert(annotation, cls, name, namespace) or (lambda event: event))
        return known[0](event)

    return convert


def _where_the_class_is_made() -> dict[str, Any]:
    """The local names around the class statement, for types that are defined inside a function."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    return dict(frame.f_locals)
