"""Messages as typed objects: dataclasses, TypedDicts, msgspec Structs and pydantic models.

An annotation becomes a converter once; a message is then a dict for the codec and an object for whoever wants one.

- dataclasses and TypedDicts are checked here, strictly: nothing is coerced but an int that a float holds. Their fields
  are of the types that travel: None, bool, int, float, str, bytes, list, tuple, dict with str keys, Literal, unions of
  these, ``Any``, and further typed objects.
- msgspec Structs and pydantic models are checked, and made plain, by their own library, which is never imported here.
- Fields that a class does not know are ignored, so that a newer sender can add one.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeAlias, Union

from .errors import InvalidEvent, InvalidMessage

__all__ = ["Convert", "MessageLike", "converter", "is_typed", "kinds", "plain"]

#: Makes an object of a message.
Convert = Callable[[Any], Any]

_TRAVELS = (
    "None, bool, int, float, str, bytes, list, tuple, dict[str, …], Literal, unions, Any and typed objects"
)


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _Model(Protocol):
    def model_dump(self) -> dict[str, Any]: ...


#: What can be sent: a dict, or an instance of a typed class that says its ``type``.
MessageLike: TypeAlias = Mapping[str, Any] | _Dataclass | _Struct | _Model


class _Wrong(Exception):
    """A value is not what its annotation says. The path grows on the way out, so a good value pays nothing for it."""

    def __init__(self, complaint: str) -> None:
        self.complaint = complaint
        self.path = ""

    def below(self, step: str) -> _Wrong:
        self.path = step + self.path
        return self


class _Rule(typing.NamedTuple):
    """How a value is made of plain data, and plain data of it."""

    load: Convert
    dump: Convert


class _Schema:
    """The rule of one class; made before its fields are, so that a class may contain itself."""

    def __init__(self, kind: Any) -> None:
        self.kind: Any = kind
        self.fields: list[tuple[str, _Rule, bool]] = []
        #: The ``type`` of its messages when it is no field of it.
        self.constant = _constant(kind)

    @property
    def rule(self) -> _Rule:
        return _Rule(self.load, self.dump)

    def load(self, value: Any) -> Any:
        raise NotImplementedError

    def dump(self, value: Any) -> Any:
        raise NotImplementedError


class _DataclassSchema(_Schema):
    def load(self, value: Any) -> Any:
        if not isinstance(value, dict):
            _expected(f"a dict for {self.kind.__name__}", value)
        arguments = _each(self.fields, value, 0)
        try:
            return self.kind(**arguments)
        except (TypeError, ValueError) as error:  # what its __post_init__ says
            raise _Wrong(f"{self.kind.__name__} refused it: {error}") from error

    def dump(self, value: Any) -> Any:
        if not isinstance(value, self.kind):
            _expected(self.kind.__name__, value)
        return _each(self.fields, {name: getattr(value, name) for name, *_ in self.fields}, 1)


class _TypedDictSchema(_Schema):
    def load(self, value: Any) -> Any:
        if not isinstance(value, dict):
            _expected(f"a dict for {self.kind.__name__}", value)
        return {**value, **_each(self.fields, value, 0)}

    def dump(self, value: Any) -> Any:
        if not isinstance(value, dict):
            _expected(f"a dict for {self.kind.__name__}", value)
        return {**value, **_each(self.fields, value, 1)}


class _StructSchema(_Schema):
    def __init__(self, kind: Any) -> None:
        super().__init__(kind)
        self._library: Any = sys.modules["msgspec"]
        config: Any = kind.__struct_config__
        names = {*kind.__struct_encode_fields__, config.tag_field}
        self._knows_type = "type" in names

    def load(self, value: Any) -> Any:
        if not self._knows_type:
            value = _without_type(value)
        try:
            return self._library.convert(value, self.kind, builtin_types=(bytes,))
        except self._library.ValidationError as error:
            complaint, _, path = str(error).partition(" - at `$")
            raise _Wrong(_lower(complaint.replace("`", ""))).below(path.rstrip("`")) from error

    def dump(self, value: Any) -> Any:
        if not isinstance(value, self.kind):
            _expected(self.kind.__name__, value)
        return self._library.to_builtins(value, builtin_types=(bytes,), str_keys=True)


class _ModelSchema(_Schema):
    def __init__(self, kind: Any) -> None:
        super().__init__(kind)
        self._library: Any = sys.modules["pydantic"]
        fields: dict[str, Any] = kind.model_fields
        self._knows_type = any("type" in (name, field.alias) for name, field in fields.items())

    def load(self, value: Any) -> Any:
        if not self._knows_type:
            value = _without_type(value)
        try:
            return self.kind.model_validate(value)
        except self._library.ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in first["loc"])
            raise _Wrong(f"{_lower(first['msg'])}, got {_shown(first['input'])}").below(path) from error

    def dump(self, value: Any) -> Any:
        if not isinstance(value, self.kind):
            _expected(self.kind.__name__, value)
        return value.model_dump(mode="json", by_alias=True)


_schemas: weakref.WeakKeyDictionary[type, _Schema] = weakref.WeakKeyDictionary()


# What others ask for


def is_typed(annotation: Any) -> bool:
    """Whether events for this annotation are to be made objects of it."""
    return _schema_class(annotation) is not None


def converter(annotation: Any, namespace: Mapping[str, Any] | None = None) -> Convert:
    """What makes an object of a message, or raises ``InvalidEvent`` that names the field.

    ``namespace`` holds names that the annotations of its fields may need, beyond those of its module.

    Raises:
        TypeError: A field is of a type that does not travel; it names the field.
    """
    load = _schema(annotation, namespace).load
    name = annotation.__name__

    def convert(event: Any) -> Any:
        try:
            return load(event)
        except _Wrong as wrong:
            raise InvalidEvent(
                f"{name}{wrong.path}: {wrong.complaint}", name + wrong.path, event
            ) from wrong.__cause__

    return convert


def kinds(annotation: Any) -> frozenset[str] | None:
    """The types of message that can be of this class; None: it does not say."""
    config = getattr(annotation, "__struct_config__", None)
    if config is not None and config.tag_field == "type":
        return frozenset({config.tag})
    hint = _hints(annotation, None).get("type")
    if typing.get_origin(hint) is Literal:
        return frozenset(value for value in typing.get_args(hint) if isinstance(value, str))
    constant = _constant(annotation)
    return None if constant is None or hint is str else frozenset({constant})


def plain(message: Any) -> Any:
    """The dict that a typed object travels as; anything else as it is.

    Raises:
        InvalidMessage: A field is not what its class says, or the class has no ``type``.
    """
    kind = type(message)
    if _schema_class(kind) is None:
        return message
    try:
        schema = _schema(kind, None)
    except TypeError as error:
        raise InvalidMessage(str(error)) from None
    try:
        made = schema.dump(message)
    except _Wrong as wrong:
        raise InvalidMessage(f"{kind.__name__}{wrong.path}: {wrong.complaint}") from wrong.__cause__
    if "type" not in made and schema.constant is not None:
        made["type"] = schema.constant
    found = made.get("type")
    if not isinstance(found, str) or not found:
        raise InvalidMessage(
            f"{kind.__name__} does not say the type of its messages: "
            'add a field `type: Literal["some.event"] = "some.event"` to it'
        )
    return made


# From annotations to rules


def _schema_class(kind: Any) -> type[_Schema] | None:
    if not isinstance(kind, type):
        return None
    if dataclasses.is_dataclass(kind):
        return _DataclassSchema
    if typing.is_typeddict(kind):
        return _TypedDictSchema
    struct = getattr(sys.modules.get("msgspec"), "Struct", None)
    if struct is not None and issubclass(kind, struct):
        return _StructSchema
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    if model is not None and issubclass(kind, model):
        return _ModelSchema
    return None


def _schema(kind: type, namespace: Mapping[str, Any] | None) -> _Schema:
    found = _schemas.get(kind)
    if found is not None:
        return found
    make = _schema_class(kind)
    if make is None:
        raise TypeError(f"{kind!r} is no dataclass, TypedDict, msgspec Struct or pydantic model")
    schema = _schemas[kind] = make(kind)
    try:
        if make is _DataclassSchema:
            schema.fields = list(_dataclass_fields(kind, namespace))
        elif make is _TypedDictSchema:
            schema.fields = list(_typed_dict_fields(kind, namespace))
    except BaseException:
        del _schemas[kind]
        raise
    return schema


def _hints(kind: type, namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, localns=dict(namespace or {}), include_extras=True)
    except NameError as error:
        raise TypeError(
            f"an annotation of {kind.__name__} cannot be resolved: {error}. Import or define that name at the top of "
            f"{kind.__module__}"
        ) from None


def _dataclass_fields(kind: type, namespace: Mapping[str, Any] | None) -> Iterable[tuple[str, _Rule, bool]]:
    hints = _hints(kind, namespace)
    for field in dataclasses.fields(kind):
        if field.init:
            missing = dataclasses.MISSING
            needed = field.default is missing and field.default_factory is missing
            where = f"{kind.__name__}.{field.name}"
            yield field.name, _rule(hints[field.name], where, namespace), needed


def _typed_dict_fields(kind: Any, namespace: Mapping[str, Any] | None) -> Iterable[tuple[str, _Rule, bool]]:
    for name, hint in _hints(kind, namespace).items():
        needed = name in kind.__required_keys__
        while (origin := typing.get_origin(hint)) in (typing.Required, typing.NotRequired):
            # In a module with `from __future__ import annotations` only the resolved hint tells.
            needed = origin is typing.Required
            hint = typing.get_args(hint)[0]
        yield name, _rule(hint, f"{kind.__name__}.{name}", namespace), needed


def _rule(hint: Any, where: str, namespace: Mapping[str, Any] | None) -> _Rule:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _rule(arguments[0], where, namespace)
    if isinstance(hint, typing.NewType):
        return _rule(hint.__supertype__, where, namespace)
    if type(hint).__name__ == "TypeAliasType":
        return _rule(hint.__value__, where, namespace)
    if hint is Any or hint is object:
        return _Rule(_same, _same)
    if hint in _CHECKS:
        return _Rule(_CHECKS[hint], _CHECKS[hint])
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, types.UnionType):
        return _union([_rule(each, where, namespace) for each in arguments], hint)
    if hint is list or origin in (list, Sequence):
        return _list(_rule(arguments[0] if arguments else Any, where, namespace))
    if hint is tuple or origin is tuple:
        return _tuple([_rule(each, where, namespace) for each in arguments if each is not ...], arguments)
    if hint is dict or origin in (dict, Mapping):
        if arguments and arguments[0] is not str:
            raise TypeError(f"{where}: the keys of a dict that travels are str, not {_name(arguments[0])}")
        return _dict(_rule(arguments[1] if arguments else Any, where, namespace))
    if _schema_class(hint) is not None:
        return _schema(hint, namespace).rule
    raise TypeError(f"{where}: {_name(hint)} does not travel; types that do: {_TRAVELS}")


def _literal(values: tuple[Any, ...]) -> _Rule:
    shown = " or ".join(map(repr, values))

    def check(value: Any) -> Any:
        for allowed in values:
            if value == allowed and type(value) is type(allowed):
                return value
        _expected(shown, value)

    return _Rule(check, check)


def _union(rules: list[_Rule], hint: Any) -> _Rule:
    def chosen(way: int) -> Convert:
        def check(value: Any) -> Any:
            deepest: _Wrong | None = None
            for rule in rules:
                try:
                    return rule[way](value)
                except _Wrong as wrong:
                    if deepest is None or len(wrong.path) > len(deepest.path):
                        deepest = wrong
            if deepest is not None and deepest.path:  # of the right shape, but for something in it
                raise deepest
            _expected(_name(hint).replace(" | ", " or "), value)

        return check

    return _Rule(chosen(0), chosen(1))


def _list(item: _Rule) -> _Rule:
    def each(way: int) -> Convert:
        check = item[way]

        def whole(value: Any) -> Any:
            if not isinstance(value, (list, tuple)):
                _expected("a list", value)
            return _items([check] * len(value), value)

        return whole

    return _Rule(each(0), each(1))


def _tuple(items: list[_Rule], arguments: tuple[Any, ...]) -> _Rule:
    """A tuple; it travels as a list."""
    endless = not arguments or ... in arguments

    def each(way: int) -> Convert:
        checks = [item[way] for item in items] or [_same]

        def whole(value: Any) -> Any:
            if not isinstance(value, (list, tuple)):
                _expected("a list", value)
            if not endless and len(value) != len(checks):
                raise _Wrong(f"expected {len(checks)} items, got {len(value)}")
            return tuple(_items(checks * len(value) if endless else checks, value))

        return whole

    return _Rule(each(0), each(1))


def _dict(item: _Rule) -> _Rule:
    def each(way: int) -> Convert:
        check = item[way]

        def whole(value: Any) -> Any:
            if not isinstance(value, dict):
                _expected("a dict", value)
            made = {}
            for key, inner in value.items():
                try:
                    made[_str(key)] = check(inner)
                except _Wrong as wrong:
                    raise wrong.below(f"[{key!r}]")
            return made

        return whole

    return _Rule(each(0), each(1))


# Values


def _each(fields: list[tuple[str, _Rule, bool]], value: Any, way: int) -> dict[str, Any]:
    made = {}
    for name, rule, needed in fields:
        if name in value:
            try:
                made[name] = rule[way](value[name])
            except _Wrong as wrong:
                raise wrong.below(f".{name}")
        elif needed:
            raise _Wrong("it is missing").below(f".{name}")
    return made


def _items(checks: Sequence[Convert], values: Sequence[Any]) -> list[Any]:
    made: list[Any] = []
    try:
        for check, value in zip(checks, values, strict=True):
            made.append(check(value))
    except _Wrong as wrong:
        raise wrong.below(f"[{len(made)}]")
    return made


def _same(value: Any) -> Any:
    return value


def _none(value: Any) -> Any:
    if value is not None:
        _expected("None", value)
    return value


def _bool(value: Any) -> Any:
    if not isinstance(value, bool):
        _expected("bool", value)
    return value


def _int(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        _expected("int", value)
    return value


def _float(value: Any) -> Any:
    if isinstance(value, float):
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        _expected("float", value)
    try:
        if (exact := float(value)) == value:
            return exact
    except OverflowError:
        pass
    _expected("float", value)


def _str(value: Any) -> Any:
    if not isinstance(value, str):
        _expected("str", value)
    return value


def _bytes(value: Any) -> Any:
    if not isinstance(value, bytes):
        _expected("bytes", value)
    return value


_CHECKS: dict[Any, Convert] = {
    None: _none,
    types.NoneType: _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
}


def _expected(what: str, value: Any) -> NoReturn:
    raise _Wrong(f"expected {what}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = "None" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _without_type(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "type"} if isinstance(value, dict) else value


def _constant(kind: Any) -> str | None:
    found = getattr(kind, "type", None)
    return found if isinstance(found, str) and found else None
