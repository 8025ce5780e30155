"""Messages as typed objects: what is made of them, what is refused, and how it is told."""

import datetime
import enum
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NewType, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline import InvalidEvent, InvalidMessage, typed
from trunkline.envelope import decode, encode

UserId = NewType("UserId", int)


@dataclass
class User:
    id: UserId
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Post:
    text: str
    author: User
    type: Literal["chat.post"] = "chat.post"
    tags: list[str] = field(default_factory=list)
    place: tuple[float, float] | None = None
    raw: bytes = b""
    scores: dict[str, float] = field(default_factory=dict)
    answers: "list[Post]" = field(default_factory=list)
    extra: Annotated[Any, "whatever"] = None
    ok: bool = True


class Row(TypedDict):
    type: Literal["row"]
    n: int
    note: NotRequired[str]
    user: NotRequired[User]


class Tick(msgspec.Struct, tag_field="type", tag="tick"):
    n: int
    at: datetime.datetime | None = None
    raw: bytes = b""


class Price(pydantic.BaseModel):
    type: Literal["price"] = "price"
    amount: float
    currency: str = pydantic.Field(alias="cur", default="CHF")
    at: datetime.datetime | None = None


def there_and_back(message: Any) -> Any:
    return typed.converter(type(message))(decode(encode(message, 1 << 20)))


@pytest.mark.parametrize(
    "message",
    [
        Post("hi", User(UserId(1))),
        Post("hi", User(UserId(1), "Ada"), tags=["a"], place=(1.5, 2.0), raw=b"\xff", scores={"x": 1.0}, extra={"a": [1]}),
        Post("hi", User(UserId(1)), answers=[Post("ho", User(UserId(2)), ok=False)]),
        Tick(1, datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), b"\xff"),
        Price(amount=1.5, cur="EUR", at=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
    ],
)  # fmt: skip
def test_objects_arrive_as_they_were_sent(message: Any) -> None:
    """What is sent as an object is a plain dict with its type on the way, and an equal object for its receiver."""
    assert isinstance(typed.plain(message)["type"], str)
    assert there_and_back(message) == message


def test_plain_dicts_stay_what_they_are() -> None:
    """Anything that is no typed object is handed to the codec as it is."""
    for message in ({"type": "x"}, {}, [1], None, User):
        assert typed.plain(message) is message


def test_typed_dicts() -> None:
    """A TypedDict is a dict that was checked; keys it does not know stay."""
    convert = typed.converter(Row)
    assert convert({"type": "row", "n": 1, "more": 2}) == {"type": "row", "n": 1, "more": 2}
    assert convert({"type": "row", "n": 1, "user": {"id": 1}})["user"] == User(UserId(1))
    for event, text in (
        ({"type": "row"}, "Row.n: it is missing"),
        ({"type": "row", "n": 1, "note": 2}, "Row.note"),
    ):
        with pytest.raises(InvalidEvent, match=text):
            convert(event)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"text": 5}, "Post.text: expected str, got int 5"),
        ({"text": None}, "Post.text: expected str, got None"),
        ({"author": {"name": "x"}}, "Post.author.id: it is missing"),
        ({"author": {"id": True}}, "Post.author.id: expected int, got bool True"),
        ({"author": {"id": 1, "name": 2}}, "Post.author.name: expected str or None, got int 2"),
        ({"author": 7}, "Post.author: expected a dict for User, got int 7"),
        ({"type": "chat.other"}, "Post.type: expected 'chat.post', got str 'chat.other'"),
        ({"tags": ["a", 1]}, "Post.tags[1]: expected str, got int 1"),
        ({"tags": "a"}, "Post.tags: expected a list, got str 'a'"),
        ({"place": [1.0]}, "Post.place: expected tuple[float, float] or None, got list [1.0]"),
        ({"place": [1.0, "x"]}, "Post.place[1]: expected float, got str 'x'"),
        ({"raw": "x"}, "Post.raw: expected bytes, got str 'x'"),
        ({"scores": {"a": "b"}}, "Post.scores['a']: expected float, got str 'b'"),
        ({"scores": []}, "Post.scores: expected a dict, got list []"),
        ({"answers": [{"text": "x", "author": {"id": "y"}}]}, "Post.answers[0].author.id: expected int, got str 'y'"),
        ({"ok": 1}, "Post.ok: expected bool, got int 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, Any], text: str) -> None:
    """The error names the path, what was expected and what came, on arrival; it holds the event."""
    event = {"type": "chat.post", "text": "hi", "author": {"id": 1}, **change}
    with pytest.raises(InvalidEvent) as caught:
        typed.converter(Post)(event)
    assert str(caught.value) == text
    assert caught.value.field == text.partition(":")[0]
    assert caught.value.event is event


def test_libraries_name_the_field_too() -> None:
    """msgspec and pydantic check their own classes; the error is ours."""
    for kind, event, field_, text in (
        (Tick, {"type": "tick", "n": "x"}, "Tick.n", "expected int, got str"),
        (Tick, {"type": "tock", "n": 1}, "Tick.type", "invalid value 'tock'"),
        (Price, {"type": "price", "amount": "cheap"}, "Price.amount", "valid number"),
    ):
        with pytest.raises(InvalidEvent, match=text) as caught:
            typed.converter(kind)(event)
        assert caught.value.field == field_


def test_the_sender_learns_it_too() -> None:
    """An object that is not what its class says is refused where it is sent, with the path."""
    wrong: Any = User("x")  # type: ignore[arg-type]
    for message, text in (
        (Post("hi", wrong), "Post.author.id: expected int, got str 'x'"),
        (Post("hi", User(UserId(1)), extra=uuid.uuid4()), r"message\['extra'\]: UUID"),
        (Post("hi", User(UserId(1)), scores={"a": "b"}), r"Post.scores\['a'\]: expected float"),  # type: ignore[dict-item]
        (User(UserId(1)), "User does not say the type of its messages: add a field"),
    ):
        with pytest.raises(InvalidMessage, match=text):
            encode(message, 1 << 20)


def test_unknown_fields_are_ignored() -> None:
    """A newer sender may add a field; an older one may leave out what has a default."""
    for kind, event in ((User, {"type": "x", "id": 1, "new": 1}), (Tick, {"type": "tick", "n": 1, "new": 1})):
        typed.converter(kind)(event)


def test_the_type_may_be_no_field() -> None:
    """A class attribute says the type as well, also where the class forbids what it does not know."""

    @dataclass
    class Plain:
        type: ClassVar[str] = "plain.event"
        n: int = 0

    class Strict(pydantic.BaseModel, extra="forbid"):
        type: ClassVar[str] = "strict.event"
        n: int = 0

    class Tight(msgspec.Struct, forbid_unknown_fields=True):
        type: ClassVar[str] = "tight.event"
        n: int = 0

    for kind in (Plain, Strict, Tight):
        assert typed.kinds(kind) == {f"{kind.__name__.lower()}.event"}
        assert there_and_back(kind(n=3)) == kind(n=3)


def test_ints_may_be_floats() -> None:
    """The one thing that is coerced; what no float holds is refused."""

    @dataclass
    class Point:
        x: float

    made = typed.converter(Point)({"x": 3}).x
    assert (made, type(made)) == (3.0, float)
    with pytest.raises(InvalidEvent):
        typed.converter(Point)({"x": 10**400})


def test_a_constructor_may_refuse() -> None:
    """What __post_init__ raises is an InvalidEvent too."""

    @dataclass
    class Even:
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise ValueError("n is odd")

    with pytest.raises(InvalidEvent, match="Even: Even refused it: n is odd"):
        typed.converter(Even)({"n": 1})


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "bad", [datetime.datetime, uuid.UUID, Colour, set[str], dict[int, str], complex, list[bytearray]]
)
def test_types_that_do_not_travel(bad: Any) -> None:
    """They are told when the converter is made, with the field, and stay told."""
    kind = dataclass(type("Holder", (), {"__annotations__": {"value": bad}}))
    for _ in range(2):
        with pytest.raises(TypeError, match=r"Holder\.value: "):
            typed.converter(kind)


def test_other_spellings() -> None:
    """Sequence, Mapping, bare containers, unions of objects told apart by their Literal."""

    @dataclass
    class A:
        kind: Literal["a"]

    @dataclass
    class B:
        kind: Literal["b"]

    @dataclass
    class Many:
        seq: Sequence[int]
        table: Mapping[str, Any]
        bare: list
        pair: tuple[int, ...]
        either: A | B

    event = {"seq": [1], "table": {"x": 1}, "bare": [None], "pair": [1, 2], "either": {"kind": "b"}}
    assert typed.converter(Many)(event) == Many([1], {"x": 1}, [None], (1, 2), B("b"))
    with pytest.raises(InvalidEvent, match=r"Many.either.kind: expected 'a', got str 'c'"):
        typed.converter(Many)({**event, "either": {"kind": "c"}})


@dataclass
class Anything:
    n: int
    f: float
    s: str
    b: bytes
    o: bool | None
    items: list[int | str]
    table: dict[str, "list[Anything]"]
    type: Literal["anything"] = "anything"


numbers = st.integers(-(2**63), 2**63 - 1)
anythings = st.recursive(
    st.builds(
        Anything, n=numbers, f=st.floats(allow_nan=False), s=st.text(st.characters(codec="utf-8")), b=st.binary(),
        o=st.sampled_from([None, True, False]), items=st.lists(numbers | st.text(st.characters(codec="utf-8"))),
        table=st.just({}), type=st.just("anything"),
    ),
    lambda inner: st.builds(
        Anything, n=numbers, f=st.just(math.inf), s=st.just(""), b=st.just(b""), o=st.none(), items=st.just([]),
        table=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), st.lists(inner, max_size=2), max_size=2),
        type=st.just("anything"),
    ),
    max_leaves=5,
)  # fmt: skip

values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(anythings)
def test_any_object_survives_the_journey(message: Anything) -> None:
    """Whatever the fields hold: equal on arrival."""
    assert there_and_back(message) == message


@given(anythings, st.sampled_from(["n", "f", "s", "b", "o", "items", "table", "type"]), values)
def test_an_accepted_event_is_what_the_class_says(message: Anything, name: str, value: Any) -> None:
    """One field replaced by anything: either InvalidEvent below that field, or an object that can be sent again."""
    event = {**typed.plain(message), name: value}
    made, field_ = None, ""
    try:
        made = typed.converter(Anything)(event)
    except InvalidEvent as error:
        field_ = error.field
    if made is None:
        assert field_.startswith(f"Anything.{name}")
    else:
        assert typed.plain(made)[name] == value or value != value
