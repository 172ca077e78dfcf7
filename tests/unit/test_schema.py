"""Schemas: binding, validation, and that whatever is stored comes back as it was."""

import contextlib
import dataclasses
import enum
import functools
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional
from zoneinfo import ZoneInfo

import pydantic
import pytest
from django.contrib.auth.models import User
from django.db import models
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, SecretStr, model_validator
from pydantic_core import core_schema
from typing_extensions import TypedDict

from django_jobs import jsonvalues
from django_jobs.definitions.schema import UNSET, Schema
from django_jobs.errors import (
    ConfigurationError,
    InvalidInput,
    InvalidOutput,
    JobsError,
    NotSerializable,
)
from tests.examples import examples


def taking(hint: Any, **options: Any) -> Schema:
    """The schema of a function with one parameter ``x`` of this type."""

    def function(x):
        raise AssertionError("a schema never calls its function")

    function.__annotations__["x"] = hint
    return Schema(function, what="task 'f'", **options)


def returning(hint: Any, **options: Any) -> Schema:
    def function():
        raise AssertionError("a schema never calls its function")

    function.__annotations__["return"] = hint
    return Schema(function, what="task 'f'", **options)


def stored(schema: Schema, /, **kwargs: Any) -> Any:
    """What the database gives back for an input."""
    return jsonvalues.loads(jsonvalues.dumps(schema.dump_input(schema.bind((), kwargs))))


def round_trip(hint: Any, value: Any) -> Any:
    """What the handler gets for ``value``, and the caller for the same value as an output."""
    schema = taking(hint)
    args, kwargs = schema.load_input(stored(schema, x=value))
    assert args == ()
    assert list(kwargs) == ["x"]
    output = returning(hint)
    kept = jsonvalues.loads(jsonvalues.dumps(output.dump_output(value)))
    assert same(output.load_output(kept), kwargs["x"])
    return kwargs["x"]


def same(one: Any, two: Any) -> bool:
    """Equal in type and value at every depth; moments by the instant, as zones become offsets."""
    if type(one) is not type(two):
        return False
    if isinstance(one, datetime) and one.tzinfo is not None:
        return two.tzinfo is not None and one.astimezone(UTC) == two.astimezone(UTC)
    if isinstance(one, Decimal):
        return one.as_tuple() == two.as_tuple()
    if isinstance(one, list | tuple | deque):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, BaseModel):
        return same(dict(one), dict(two))
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(two, name)) for name in names)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return bool(one == two)


# --- types --------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Mixed(enum.Enum):
    ONE = 1
    TWO = "1"
    PAIR = (1, 2)
    NUMBER = Decimal("1.50")


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 3


class Name(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: int
    y: Decimal


class Size(TypedDict):
    width: int
    depth: NotRequired[date]


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    raw: bytes = b""
    when: datetime | None = None


@dataclasses.dataclass
class GiftLine(Line):
    wrapping: str = "paper"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    id: uuid.UUID
    lines: tuple[Line, ...] = ()


class Order(BaseModel):
    id: int
    total: Decimal
    colour: Colour | None = None
    lines: list[Line] = []
    weight: float = 0.0


class Express(Order):
    hours: int = 24


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")
    note: str = Field("", validation_alias="in", serialization_alias="out")


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
zones = st.sampled_from(["Europe/Zurich", "America/New_York", "Asia/Kolkata", "UTC"]).map(ZoneInfo)
whole_minutes = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))
# Before 1972 zones had offsets with seconds, which ISO 8601 as pydantic writes it has no room for.
moments = (
    st.datetimes()
    | st.datetimes(timezones=whole_minutes)
    | st.datetimes(datetime(1973, 1, 1), datetime(2100, 1, 1), timezones=zones)
)
lines = st.builds(Line, texts, decimals, st.binary(max_size=9), st.none() | moments)
# Bytes in a model follow the model's own configuration, which has its own test.
texty = st.builds(Line, texts, decimals, st.just(b""), st.none() | moments)
orders = st.builds(
    Order,
    id=integers,
    total=decimals,
    colour=st.none() | st.sampled_from(Colour),
    lines=st.lists(texty, max_size=2),
    weight=floats,
)
jsons = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)

SIMPLE: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, integers),
    (str, texts),
    (bool, st.booleans()),
    (float, floats),
    (None, st.none()),
    (Decimal, decimals),
    (date, st.dates()),
    (datetime, moments),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (bytes, st.binary()),
    (Colour, st.sampled_from(Colour)),
    (Mixed, st.sampled_from([Mixed.ONE, Mixed.TWO])),
    (Level, st.sampled_from(Level)),
    (Name, st.sampled_from(Name)),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (Literal[1, "1", None], st.sampled_from([1, "1", None])),
    (Path, st.just(Path("a/b"))),
]
NESTED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Point, st.builds(Point, integers, decimals)),
    (Size, st.fixed_dictionaries({"width": integers}, optional={"depth": st.dates()})),
    (Line, lines),
    (Frozen, st.builds(Frozen, st.uuids(), st.lists(lines, max_size=2).map(tuple))),
    (Order, orders),
    (dict, st.dictionaries(texts, jsons, max_size=3)),
    (list, st.lists(jsons, max_size=3)),
    (dict[str, Any], st.dictionaries(texts, jsons, max_size=3)),
    (dict[int, int], st.dictionaries(integers, integers, max_size=3)),
    (dict[bool, str], st.dictionaries(st.booleans(), texts, max_size=3)),
    (dict[float, bool], st.dictionaries(floats, st.booleans(), max_size=3)),
    (dict[int, Decimal], st.dictionaries(integers, decimals, max_size=3)),
    (dict[date, list[bytes]], st.dictionaries(st.dates(), st.lists(st.binary()), max_size=3)),
    (dict[uuid.UUID, Order], st.dictionaries(st.uuids(), orders, max_size=2)),
    (dict[Colour, int], st.dictionaries(st.sampled_from(Colour), integers)),
    (int | None, st.none() | integers),
    (Optional[bytes], st.none() | st.binary()),  # noqa: UP045 (both spellings are in use)
    (int | str, integers | texts),
    (int | Decimal, integers),
    (Line | Order, lines | orders),
    (Line | Decimal | None, st.none() | lines),
    (list[datetime], st.lists(moments, max_size=3)),
    (list[tuple[int, bytes]], st.lists(st.tuples(integers, st.binary()), max_size=3)),
    (tuple[Decimal, ...], st.lists(decimals, max_size=3).map(tuple)),
    (set[date], st.sets(st.dates(), max_size=3)),
    (set[bytes], st.sets(st.binary(), max_size=3)),
    (frozenset[Decimal], st.frozensets(decimals, max_size=3)),
    (list[set[frozenset[int]]], st.lists(st.sets(st.frozensets(integers, max_size=2)))),
    (deque[int], st.lists(integers).map(deque)),
    (Annotated[int, Field(ge=0)], st.integers(0, 100)),
    (Annotated[Decimal, Field(strict=True)], decimals),
    (Annotated[tuple[date, ...], Field(strict=True)], st.lists(st.dates()).map(tuple)),
]
ALL = SIMPLE + NESTED


def by_name(pairs: list[tuple[Any, Any]]) -> list[Any]:
    return [pytest.param(*pair, id=str(pair[0])) for pair in pairs]


@pytest.mark.parametrize(("hint", "strategy"), by_name(ALL))
def test_typed_values_come_back_exactly(hint: Any, strategy: st.SearchStrategy[Any]) -> None:
    schema, output = taking(hint), returning(hint)

    @settings(max_examples=examples(30))
    @given(strategy)
    def check(value: Any) -> None:
        assert same(schema.load_input(stored(schema, x=value))[1]["x"], value)
        kept = jsonvalues.loads(jsonvalues.dumps(output.dump_output(value)))
        assert same(output.load_output(kept), value)

    check()


@settings(max_examples=examples(75))
@given(st.data())
def test_nothing_is_accepted_that_does_not_come_back(data: st.DataObject) -> None:
    """Any value for any hint: refused, or stored so that it loads and would be stored alike."""
    hint, _ = data.draw(st.sampled_from(ALL))
    _, strategy = data.draw(st.sampled_from(ALL))
    wild = st.floats() | st.text(st.characters(codec=None)) | st.integers() | st.binary()
    value = data.draw(strategy | wild | st.lists(wild, max_size=2) | st.just(object()))
    schema = taking(hint)
    try:
        kept = schema.dump_input({"x": value})
    except InvalidInput as error:
        assert "input" in str(error)
        jsonvalues.dumps(str(error))
        return
    text = jsonvalues.dumps(kept)
    assert text == jsonvalues.dumps_plain(kept)
    _, kwargs = schema.load_input(jsonvalues.loads(text))
    assert jsonvalues.dumps(schema.dump_input(kwargs)) == text or hint in (set[date], set[bytes])


@given(jsons)
def test_without_hints_every_json_value_passes(value: Any) -> None:
    def function(x, y=1):
        return x

    schema = Schema(function)
    assert schema.load_input(stored(schema, x=value)) == ((), {"x": value})
    assert schema.load_output(schema.dump_output(value)) == value


# --- how values are stored ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (Decimal, Decimal("9.90"), '"9.90"'),
        (Decimal, "9.90", '"9.90"'),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), '"2026-01-02T03:04:05Z"'),
        (date, date(2026, 1, 2), '"2026-01-02"'),
        (bytes, b"\xff\xfe", '"__4="'),
        (Colour, Colour.RED, '"red"'),
        (Level, Level.HIGH, "3"),
        (Line, Line("a", Decimal("1.0")), '{"sku":"a","price":"1.0","raw":"","when":null}'),
        (Point, Point(1, Decimal(2)), '[1,"2"]'),
        (str, Name.A, '"a"'),
        (tuple[int, ...], [1, 2], "[1,2]"),
    ],
)
def test_values_are_stored_as_readable_json(hint: Any, value: Any, text: str) -> None:
    assert jsonvalues.dumps(taking(hint).dump_input({"x": value})) == f'{{"x":{text}}}'


def test_defaults_of_the_code_are_not_stored() -> None:
    def function(a: int, b: Decimal = Decimal(5), c: Any = None) -> None: ...

    schema = Schema(function)
    assert stored(schema, a=1) == {"a": 1}
    assert schema.load_input({"a": 1}) == ((), {"a": 1})


def test_a_default_is_never_validated() -> None:
    def function(a: int = "not a number") -> None: ...  # type: ignore[assignment]

    assert stored(Schema(function)) == {}


def test_none_fits_a_parameter_whose_default_is_none() -> None:
    def function(a: Decimal = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    schema = Schema(function)
    assert schema.load_input(stored(schema, a=None)) == ((), {"a": None})
    assert schema.load_input(stored(schema, a="1.5")) == ((), {"a": Decimal("1.5")})


@pytest.mark.parametrize(
    ("hint", "value", "kept", "loaded"),
    [
        (
            Order,
            Express(id=1, total=Decimal(2)),
            {"id": 1, "total": "2", "colour": None, "lines": [], "weight": 0.0, "hours": 24},
            Order(id=1, total=Decimal(2)),
        ),
        (
            list[Line],
            [GiftLine("a", Decimal(1))],
            [{"sku": "a", "price": "1", "raw": "", "when": None, "wrapping": "paper"}],
            [Line("a", Decimal(1))],
        ),
    ],
)
def test_fields_of_subclasses_are_not_dropped(
    hint: Any, value: Any, kept: Any, loaded: Any
) -> None:
    schema = taking(hint)
    assert stored(schema, x=value) == {"x": kept}
    assert schema.load_input({"x": kept}) == ((), {"x": loaded})
    assert returning(hint).dump_output(value) == kept


def test_a_typed_dict_keeps_what_it_does_not_name() -> None:
    assert round_trip(Size, {"width": 1, "height": [2]}) == {"width": 1, "height": [2]}


def test_a_model_keeps_extra_fields_that_it_allows() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        a: Decimal

    again = round_trip(Open, Open(a=Decimal("1.0"), b=[1]))  # type: ignore[call-arg]
    assert again.__pydantic_extra__ == {"b": [1]}


def test_models_with_aliases_are_stored_under_their_own_names() -> None:
    value = Aliased(**{"orderId": 5, "in": "x"})
    assert stored(taking(Aliased), x=value) == {"x": {"order_id": 5, "note": "x"}}
    assert round_trip(Aliased, value) == value
    assert round_trip(Aliased, {"orderId": 5, "in": "x"}) == value
    assert round_trip(Aliased, {"order_id": 5, "note": "x"}) == value


def test_a_strict_model_is_read_back() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        when: datetime
        ids: tuple[uuid.UUID, ...]

    value = Strict(when=datetime(2026, 1, 1, tzinfo=UTC), ids=(uuid.uuid4(),))
    assert round_trip(Strict, value) == value


def test_bytes_in_a_model_follow_its_configuration() -> None:
    class Base64(BaseModel):
        model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        raw: bytes

    class Utf8(BaseModel):
        raw: bytes

    assert round_trip(Base64, Base64(raw=b"\xff")) == Base64(raw=b"\xff")
    assert round_trip(Utf8, Utf8(raw="é".encode())) == Utf8(raw="é".encode())
    with pytest.raises(InvalidInput, match=r"input\.x: the model holds bytes.*ser_json_bytes"):
        taking(Utf8).dump_input({"x": Utf8(raw=b"\xff")})


def test_pydantic_dataclasses_round_trip() -> None:
    @pydantic.dataclasses.dataclass
    class Item:
        sku: str
        price: Decimal

    @pydantic.dataclasses.dataclass
    class Gift(Item):
        wrapping: str = "paper"

    assert round_trip(Item, Item("a", Decimal("1.0"))) == Item("a", Decimal("1.0"))
    assert returning(Item).dump_output(Gift("a", Decimal(1)))["wrapping"] == "paper"


# --- what is refused at the call ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "place", "reason"),
    [
        (int, "five", "input.x", "valid integer"),
        (Decimal, "NaN", "input.x", "finite"),
        (float, float("nan"), "input.x", "finite"),
        (float, float("inf"), "input.x", "finite"),
        (list[int], [1, "b", 3, "d"], "input.x[1]", "input.x[3]"),
        (dict[str, list[Decimal]], {"a b": [1, "z"]}, 'input.x["a b"][1]', "valid decimal"),
        (Line, {"sku": "a"}, "input.x.price", "required"),
        (Order, Order.model_construct(id="no", total=Decimal(1)), "input.x.id", "integer"),
        (Order, Order(id=1, total=Decimal(1), weight=float("nan")), "input.x.weight", "nan"),
        (Line, Line("a", float("inf")), "input.x.price", ""),  # type: ignore[arg-type]
        (dict, {"a": [float("nan")]}, "input.x.a[0]", "nan"),
        (list[Any], [{"b": Decimal(1)}], "input.x[0].b", "decimal.Decimal is not a JSON type"),
        (dict[str, Any] | Line, {"a": {1, 2}}, "input.x.a", "set would come back as list"),
        (dict, {1: 2}, "input.x", "the key 1 is int"),
        (dict[str, Any] | Line, {"a": {1: 2}}, "input.x.a", "the key is int"),
        (int, 2**63, "input.x", "64 bits"),
        (str, "a\0", "input.x", "NUL"),
        (str, "a\ud800", "input.x", ""),
        (Line, Line("a\0", Decimal(1)), "input.x.sku", "NUL"),
        (SecretStr, SecretStr("hunter2"), "input.x", "come back changed"),
        (datetime | str, "2026-01-01T00:00:00", "input.x", "str would come back as datetime"),
        (None, 5, "input.x", "None"),
        (Annotated[int, Field(gt=0)], -1, "input.x", "greater than 0"),
    ],
)
def test_a_refused_value_is_told_by_path_and_reason(
    hint: Any, value: Any, place: str, reason: str
) -> None:
    schema = taking(hint)
    with pytest.raises(InvalidInput) as caught:
        schema.dump_input({"x": value})
    text = str(caught.value)
    assert text.startswith(f"task 'f': {place}")
    assert reason in text
    with pytest.raises(InvalidOutput) as output:
        returning(hint).dump_output(value)
    assert str(output.value).startswith(f"task 'f': {place.replace('input.x', 'output')}")


def test_every_bad_field_is_named() -> None:
    def function(a: int, b: date, c: list[Decimal]) -> None: ...

    with pytest.raises(InvalidInput) as caught:
        Schema(function).dump_input({"a": "x", "b": "y", "c": [1, "z"]})
    for place in ("input.a", "input.b", "input.c[1]"):
        assert place in str(caught.value)


def test_a_long_list_of_errors_is_cut_and_counted() -> None:
    with pytest.raises(InvalidInput, match="and 990 more"):
        taking(list[int]).dump_input({"x": ["a"] * 1000})


def test_a_refusal_never_repeats_the_value() -> None:
    def function(pin: int, card: Literal["visa"]) -> None: ...

    hidden = {"pin": "".join(["hunter", "2"]), "card": str(4000 + 111)}
    with pytest.raises(InvalidInput) as caught:
        Schema(function).dump_input(hidden)
    described = jsonvalues.describe_error(caught.value)
    assert "hunter2" not in str(described)
    assert "4111" not in str(described)


def test_what_a_handler_must_not_mutate_between_calls_is_a_copy() -> None:
    kept = {"x": [1]}
    schema = taking(list[int])
    _, kwargs = schema.load_input(kept)
    kwargs["x"].append(2)
    assert kept == {"x": [1]}


def test_a_value_over_the_limit_is_refused_with_limit_and_size() -> None:
    schema = taking(str)
    with pytest.raises(NotSerializable, match=r"100 bytes and has 208"):
        schema.dump_input({"x": "a" * 200}, limit=100)
    with pytest.raises(InvalidOutput, match="100 bytes"):
        returning(str).dump_output("a" * 200, limit=100)
    assert schema.dump_input({"x": "a" * 2_000_000}, limit=3_000_000)


def test_the_settings_give_the_limits() -> None:
    with override_settings(DJANGO_JOBS={"MAX_INPUT": 2000, "MAX_OUTPUT": 3000}):
        with pytest.raises(NotSerializable, match="2,000 bytes"):
            taking(str).dump_input({"x": "a" * 2000})
        with pytest.raises(InvalidOutput, match="3,000 bytes"):
            returning(str).dump_output("a" * 3000)
    with override_settings(DJANGO_JOBS={"MAX_INPUT": 3_000_000}):
        assert taking(str).dump_input({"x": "a" * 2_000_000})


def test_a_model_changed_by_its_own_validator_is_refused() -> None:
    class Growing(BaseModel):
        n: int

        @model_validator(mode="after")
        def grow(self) -> "Growing":
            object.__setattr__(self, "n", self.n + 1)
            return self

    with pytest.raises(InvalidInput, match=r"input\.x\.n: the int would come back changed"):
        taking(Growing).dump_input({"x": {"n": 1}})


@pytest.mark.parametrize("value", [True, 0.0, Name.A, (1, 2), {1: 2}, {"a": True}, [1, 1.0]])
@pytest.mark.parametrize("lossy", [bool, int, str, repr, list, lambda value: None])
def test_a_value_of_another_type_is_never_taken_for_the_same(value: Any, lossy: Any) -> None:
    """However a type writes its values, what would come back as another type is refused."""
    schema = taking(Annotated[Any, PlainSerializer(lossy)])
    try:
        kept = schema.dump_input({"x": value})
    except InvalidInput:
        return
    again = schema.load_input(kept)[1]["x"]
    assert same(again, jsonvalues.plain(value))


@pytest.mark.parametrize("hint", [int | Decimal, float | Decimal | str, bool | int, date | str])
@given(value=integers | floats | decimals | st.booleans() | st.dates() | texts)
def test_what_fits_a_member_of_a_union_comes_back_as_that_member(hint: Any, value: Any) -> None:
    if type(value) not in hint.__args__:
        return
    schema = taking(hint)
    try:
        kept = stored(schema, x=value)
    except InvalidInput:
        return
    assert same(schema.load_input(kept)[1]["x"], value)


@pytest.mark.parametrize("member", [Mixed.PAIR, Mixed.NUMBER])
def test_an_enum_value_that_is_no_json_is_refused(member: Mixed) -> None:
    with pytest.raises(InvalidInput, match="could not be read back"):
        taking(Mixed).dump_input({"x": member})


def test_a_text_given_for_bytes_is_base64_as_in_json() -> None:
    assert round_trip(bytes, "__4=") == b"\xff\xfe"
    with pytest.raises(InvalidInput, match="base64"):
        taking(bytes).dump_input({"x": "é"})


class Money:
    """A type of its own that defines no equality."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


def test_a_type_without_equality_is_compared_by_its_attributes() -> None:
    def money(write: Callable[[Money], int]) -> Any:
        return Annotated[
            Any,
            pydantic.PlainValidator(lambda x: x if isinstance(x, Money) else Money(int(x))),
            PlainSerializer(write),
        ]

    assert round_trip_money(money(lambda value: value.cents)).cents == 150
    with pytest.raises(InvalidInput, match="the Money would come back changed"):
        round_trip_money(money(lambda value: value.cents // 100))


def round_trip_money(hint: Any) -> Money:
    schema = taking(hint)
    made = schema.load_input(stored(schema, x=Money(150)))[1]["x"]
    assert isinstance(made, Money)
    return made


def test_a_text_that_holds_json_stays_a_text() -> None:
    schema = taking(pydantic.Json[list[int]])
    assert stored(schema, x="[1, 2]") == {"x": "[1,2]"}
    assert schema.load_input({"x": "[1,2]"}) == ((), {"x": [1, 2]})


def test_computed_fields_are_computed_anew() -> None:
    class Sum(BaseModel):
        model_config = ConfigDict(extra="forbid")
        a: int

        @pydantic.computed_field
        def double(self) -> int:
            return 2 * self.a

    assert round_trip(Sum, Sum(a=2)).double == 4


def test_a_serializer_that_loses_something_is_refused() -> None:
    lossy = Annotated[int, PlainSerializer(lambda value: value // 10)]
    with pytest.raises(InvalidInput, match="come back changed"):
        taking(lossy).dump_input({"x": 15})


def test_an_offset_with_seconds_is_refused_because_iso_8601_drops_them() -> None:
    old = datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Zurich"))
    with pytest.raises(InvalidInput, match="come back changed"):
        taking(datetime).dump_input({"x": old})


def test_a_repeated_hour_is_told_apart() -> None:
    zone = ZoneInfo("Europe/Zurich")
    for fold, offset in ((0, 2), (1, 1)):
        moment = datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=zone)
        assert round_trip(datetime, moment).utcoffset() == timedelta(hours=offset)


# --- binding ------------------------------------------------------------------------------------


def ordinary(a: int, b: str = "b", *, c: Decimal = Decimal(0)) -> None: ...


def surplus(a: int, b: int = 2, /, *args: int, c: int, **rest: int) -> None: ...


def context_first(context: "NoSuchContext", user_id: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("args", "kwargs", "bound"),
    [
        ((), {"a": 1}, {"a": 1}),
        ((1,), {}, {"a": 1}),
        ((1, "x"), {"c": 2}, {"a": 1, "b": "x", "c": 2}),
        ((), {"c": 2, "a": 1}, {"c": 2, "a": 1}),
    ],
)
def test_arguments_are_bound_to_the_signature(args: Any, kwargs: Any, bound: Any) -> None:
    assert Schema(ordinary).bind(args, kwargs) == bound


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "'a' is missing"),
        ((), {"a": 1, "d": 2}, "'d' is not a parameter (it takes 'a', 'b', 'c')"),
        ((1,), {"a": 1}, "'a' is given both by position and by name"),
        ((1, "x", 3), {}, "3 positional arguments are given and at most 2 are taken"),
        ((), {"a": 1, "*": [1]}, "'*' is not a parameter"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(args: Any, kwargs: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Schema(ordinary, what="task 'ordinary'").bind(args, kwargs)
    assert str(caught.value).startswith("task 'ordinary': ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("kwargs", [{}, {"a": 1, "d": 2}])
def test_names_are_checked_without_binding_too(kwargs: dict[str, Any]) -> None:
    schema = Schema(ordinary)
    with pytest.raises(InvalidInput):
        schema.dump_input(kwargs)
    with pytest.raises(InvalidInput):
        schema.load_input(kwargs)


@pytest.mark.parametrize("wrong", [None, [], "x", 5])
def test_a_stored_input_that_is_no_object_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="no JSON object"):
        Schema(ordinary).load_input(wrong)


def test_a_stored_input_that_no_longer_fits_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"input\.a"):
        Schema(ordinary).load_input({"a": "five"})
    with pytest.raises(InvalidOutput, match="output"):
        returning(Decimal).load_output("five")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {"c": 3}),
        ((1, 2), {"c": 3}),
        ((1, 5, 6, 7), {"c": 3, "d": 4}),
        ((1,), {"c": 3, "d": [{"free": "form"}]}),
    ],
)
def test_positional_only_and_surplus_arguments_reach_the_call(args: Any, kwargs: Any) -> None:
    schema = Schema(surplus)
    kept = jsonvalues.loads(jsonvalues.dumps(schema.dump_input(schema.bind(args, kwargs))))
    made = schema.load_input(kept)
    assert made == (args, kwargs)


def test_a_positional_only_gap_is_filled_from_the_signature() -> None:
    def function(a: int = 1, b: int = 2, /) -> None: ...

    assert Schema(function).load_input({"b": 5}) == ((1, 5), {})


def test_a_surplus_is_checked_for_json_only() -> None:
    schema = Schema(surplus)
    with pytest.raises(NotSerializable, match=r"input\.d"):
        schema.dump_input(schema.bind((1,), {"c": 3, "d": Decimal(1)}))
    with pytest.raises(NotSerializable, match=r'input\["\*"\]\[0\]'):
        schema.dump_input(schema.bind((1, 2, Decimal(3)), {"c": 3}))


def test_the_key_of_the_surplus_cannot_be_given_by_name() -> None:
    def function(**rest: Any) -> None: ...

    with pytest.raises(InvalidInput, match="reserved"):
        Schema(function).bind((), {"*": [1]})


def test_surplus_without_other_parameters() -> None:
    def function(*args: Any) -> None: ...

    schema = Schema(function)
    assert schema.bind((1, 2), {}) == {"*": [1, 2]}
    assert schema.load_input({"*": [1, 2]}) == ((1, 2), {})
    assert schema.load_input({}) == ((), {})


def test_the_context_is_left_out_and_its_hint_is_not_looked_at() -> None:
    schema = Schema(context_first, takes_context=True)
    assert schema.parameter_names == ("user_id",)
    assert schema.bind((5,), {}) == {"user_id": 5}
    assert schema.load_input({"user_id": "5"}) == ((), {"user_id": 5})


def test_a_function_without_room_for_the_context_is_refused() -> None:
    def nothing() -> None: ...

    def only_named(*, a: int) -> None: ...

    for function in (nothing, only_named):
        with pytest.raises(ConfigurationError, match="first parameter must be the context"):
            Schema(function, takes_context=True).bind((), {})


def test_the_context_may_be_taken_by_star_args() -> None:
    def function(*args: Any, **kwargs: Any) -> None: ...

    assert Schema(function, takes_context=True).bind((), {"a": 1}) == {"a": 1}


def test_names_and_required_fields_are_known_without_resolving_hints() -> None:
    def function(a: "Missing", b: "Missing" = 1, *c: int, **d: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    schema = Schema(function)
    assert schema.parameter_names == ("a", "b")
    assert schema.required_fields == ("a",)
    assert schema.bind((1,), {}) == {"a": 1}


def test_odd_parameter_names_work() -> None:
    def function(_a: int, self: Decimal, model_config: int, json: date, schema: int) -> None: ...

    schema = Schema(function)
    given_ = {"_a": 1, "self": "1.5", "model_config": 2, "json": "2026-01-01", "schema": 3}
    assert schema.load_input(stored(schema, **given_))[1] == {
        **given_, "self": Decimal("1.5"), "json": date(2026, 1, 1),
    }  # fmt: skip


# --- callables ----------------------------------------------------------------------------------


def test_async_functions_are_typed_by_what_awaiting_gives() -> None:
    async def function(a: Decimal) -> Decimal:
        return a

    schema = Schema(function)
    assert schema.load_input({"a": "1.5"}) == ((), {"a": Decimal("1.5")})
    assert schema.load_output(schema.dump_output(Decimal("1.5"))) == Decimal("1.5")
    assert returning(Awaitable[Decimal]).load_output("1.5") == Decimal("1.5")


def test_partials_methods_wrappers_and_callable_objects_have_schemas() -> None:
    class Holder:
        def method(self, a: Decimal) -> None: ...

        def __call__(self, a: Decimal) -> None: ...

    def function(b: int, a: Decimal) -> None: ...

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    for callable_ in (Holder().method, Holder(), functools.partial(function, 1)):
        assert Schema(callable_).load_input({"a": "1.5"}) == ((), {"a": Decimal("1.5")})
    assert Schema(wrapper).load_input({"a": "1.5", "b": 1})[1] == {"a": Decimal("1.5"), "b": 1}


class Quiet(contextlib.ContextDecorator):
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def test_hints_beneath_a_decorator_of_another_module_are_resolved_where_they_stand() -> None:
    @Quiet()
    def function(a: "Decimal") -> None: ...

    assert Schema(function).load_input({"a": "1.5"}) == ((), {"a": Decimal("1.5")})


def test_hints_written_as_text_see_the_enclosing_function() -> None:
    class Local(BaseModel):
        n: Decimal

    def function(a: "Local") -> "Local":
        return Local(n=a.n)

    schema = Schema(function)
    assert schema.load_input({"a": {"n": "1.5"}}) == ((), {"a": Local(n=Decimal("1.5"))})


def test_partly_annotated_functions_check_what_is_annotated() -> None:
    def function(a: Decimal, b, c: Any = None, d: object = None):
        return a

    schema = Schema(function)
    kept = stored(schema, a="1.5", b=[(1,)], c={"x": 1})
    assert kept == {"a": "1.5", "b": [[1]], "c": {"x": 1}}
    assert schema.load_input(kept)[1] == {"a": Decimal("1.5"), "b": [[1]], "c": {"x": 1}}
    with pytest.raises(NotSerializable, match=r"input\.b"):
        schema.dump_input({"a": 1, "b": Decimal(1)})


# --- hints that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        ("NoSuchType", "'NoSuchType' of the parameter 'x' cannot be resolved"),
        ("list[NoSuchType]", "cannot be resolved"),
        (User, "the model User, which lives in the database. Pass the primary key"),
        (list[User], "the model User"),
        (User | None, "the model User"),
        (models.QuerySet, "the queryset QuerySet"),
        (models.QuerySet[User], "the queryset QuerySet"),
        (Annotated[User, "x"], "the model User"),
        (Callable[[], int], "a callable is not data"),
        (Iterator[int], "cannot be stored as JSON"),
        (type[int], "a class is not data"),
        (threading.Thread, "cannot be stored as JSON"),
    ],
)
def test_a_hint_that_is_no_data_is_a_configuration_error(hint: Any, reason: str) -> None:
    schema = taking(hint)
    with pytest.raises(ConfigurationError) as caught:
        schema.resolve()
    assert str(caught.value).startswith("task 'f': ")
    assert reason in str(caught.value)
    with pytest.raises(ConfigurationError):
        schema.dump_input({"x": 1})
    with pytest.raises(ConfigurationError):
        returning(hint).resolve()


def test_building_a_schema_resolves_nothing() -> None:
    code = """
import sys
from django.conf import settings
from django_jobs.definitions.schema import Schema
def function(a: "NotYet") -> "NotYet": ...
schema = Schema(function)
assert "django.db.models" not in sys.modules
NotYet = int
settings.configure()
assert schema.dump_input({"a": "5"}) == {"a": 5}
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_two_threads_build_a_schema_once() -> None:
    building: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            building.append(threading.get_ident())
            started.set()
            assert go_on.wait(10)
            return core_schema.int_schema()

    schema = taking(Slow)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(schema.dump_input({"x": "5"})))
        for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert len(building) == 1  # the second thread waits for the first
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert results == [{"x": 5}] * 2
    assert len(building) == 1


# --- output -------------------------------------------------------------------------------------


def test_an_output_without_a_hint_is_what_a_replay_would_give() -> None:
    def function():
        return None

    schema = Schema(function)
    assert schema.dump_output({"a": (1, (2,))}) == {"a": [1, [2]]}
    assert schema.load_output([1]) == [1]
    with pytest.raises(InvalidOutput, match=r"^function .*: output\.a\[0\]: .*Decimal"):
        schema.dump_output({"a": [Decimal(1)]})


def test_an_output_schema_replaces_the_hint() -> None:
    def function() -> int:
        return 1

    schema = Schema(function, output_schema=Order)
    kept = schema.dump_output({"id": 1, "total": "2.50"})
    assert schema.load_output(kept) == Order(id=1, total=Decimal("2.50"))
    assert Schema(function, output_schema=Any).dump_output("x") == "x"
    assert Schema(function, output_schema=None).dump_output("5") == 5
    assert Schema(function, output_schema=UNSET).dump_output("5") == 5


def test_invalid_output_is_told_apart_from_invalid_input() -> None:
    with pytest.raises(InvalidOutput) as caught:
        returning(int).dump_output("x")
    assert not isinstance(caught.value, InvalidInput)
    assert isinstance(caught.value, JobsError)


# --- input schemas ------------------------------------------------------------------------------


class OrderInput(BaseModel):
    order_id: int
    total: Decimal = Decimal(1)
    note: str = Field("", alias="theNote")


def takes_fields(order_id: int, total: Decimal, note: str) -> None: ...


def takes_model(data: OrderInput) -> None: ...


@pytest.mark.parametrize(
    "kwargs", [{"order_id": "5", "theNote": "n"}, {"order_id": 5, "note": "n"}]
)
def test_an_input_schema_validates_and_gives_its_fields(kwargs: dict[str, Any]) -> None:
    schema = Schema(takes_fields, input_schema=OrderInput)
    kept = stored(schema, **kwargs)
    assert kept == {"order_id": 5, "total": "1", "note": "n"}
    assert schema.load_input(kept) == (
        (),
        {"order_id": 5, "total": Decimal(1), "note": "n"},
    )
    assert schema.parameter_names == ("order_id", "total", "note")
    assert schema.required_fields == ("order_id",)


def test_a_handler_may_take_the_model_itself() -> None:
    schema = Schema(takes_model, input_schema=OrderInput)
    args, kwargs = schema.load_input(stored(schema, order_id=5))
    assert (args, kwargs) == ((OrderInput(order_id=5),), {})
    assert schema.bind((OrderInput(order_id=5, theNote="x"),), {}) == {
        "order_id": 5, "total": Decimal(1), "note": "x",
    }  # fmt: skip


def test_positional_arguments_are_bound_to_the_fields_of_the_signature() -> None:
    schema = Schema(takes_fields, input_schema=OrderInput)
    assert schema.bind((5, 2), {"note": "n"}) == {"order_id": 5, "total": 2, "note": "n"}


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"order_id": 5, "extra": 1}, "'extra' is not a parameter"),
        ({}, "input.order_id: Field required"),
        ({"order_id": "x"}, "input.order_id"),
        ({"order_id": 1, "total": "NaN"}, "input.total"),
    ],
)
def test_an_input_schema_refuses_by_field(kwargs: dict[str, Any], reason: str) -> None:
    for function in (takes_fields, takes_model):
        with pytest.raises(InvalidInput) as caught:
            Schema(function, input_schema=OrderInput).dump_input(kwargs)
        assert reason in str(caught.value)


def test_an_input_schema_may_allow_extra_fields() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        a: int

    def function(a: int, **rest: Any) -> None: ...

    schema = Schema(function, input_schema=Open)
    assert schema.load_input(stored(schema, a=1, b=[2])) == ((), {"a": 1, "b": [2]})


def test_an_input_schema_must_fit_the_signature() -> None:
    def lacking(order_id: int, other: int) -> None: ...

    schema = Schema(lacking, input_schema=OrderInput, what="task 'f'")
    with pytest.raises(ConfigurationError) as caught:
        schema.resolve()
    assert "note, total" in str(caught.value)
    assert "other" in str(caught.value)


def test_an_input_schema_must_be_a_model() -> None:
    with pytest.raises(ConfigurationError, match="pydantic model class"):
        Schema(ordinary, input_schema=dict)  # type: ignore[arg-type]


# --- JSON Schema --------------------------------------------------------------------------------


def test_the_json_schema_describes_every_parameter() -> None:
    def function(a: int, b: Decimal = Decimal("1.5"), c=None, *, d: list[date] | None = None):
        return a

    made = Schema(function).input_json_schema()
    assert made["type"] == "object"
    assert made["required"] == ["a"]
    assert made["additionalProperties"] is False
    assert list(made["properties"]) == ["a", "b", "c", "d"]
    assert made["properties"]["a"]["type"] == "integer"
    assert made["properties"]["b"]["default"] == "1.5"
    assert made["properties"]["c"]["default"] is None
    assert jsonvalues.loads(jsonvalues.dumps(made)) == made


@pytest.mark.parametrize(("hint", "_strategy"), by_name(ALL))
def test_every_type_has_a_json_schema(hint: Any, _strategy: Any) -> None:
    assert "x" in taking(hint).input_json_schema()["properties"]
    made = returning(hint).output_json_schema()
    assert made is not None
    jsonvalues.dumps(made)


def test_the_json_schema_of_an_input_schema_and_of_no_input() -> None:
    def nothing():
        return None

    made = Schema(takes_model, input_schema=OrderInput).input_json_schema()
    assert made["required"] == ["order_id"]
    assert Schema(nothing).input_json_schema() == {
        "type": "object", "properties": {}, "additionalProperties": False,
    }  # fmt: skip
    assert Schema(nothing).output_json_schema() is None


# --- speed --------------------------------------------------------------------------------------


def calls(function: Callable[[], Any]) -> int:
    """How many functions of Python are called within: the same on every machine, however busy."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    function()  # what is made once and kept
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def test_checking_costs_a_handful_of_calls() -> None:
    """A tripwire for a lost fast path."""

    def typed(order_id: int, amount: Decimal) -> Decimal:
        return amount

    def untyped(order_id, amount):
        return amount

    schema, plain = Schema(typed), Schema(untyped)
    given_ = {"order_id": 1, "amount": Decimal("9.90")}
    kept = schema.dump_input(given_)
    assert calls(lambda: schema.load_input(kept)) < 10
    assert calls(lambda: schema.dump_input(given_)) < 20
    assert calls(lambda: schema.dump_output(Decimal("9.90"))) < 20
    assert calls(lambda: plain.dump_input(kept)) < 15
    assert calls(lambda: plain.bind((), kept)) < 5
    assert calls(lambda: Schema(typed)) < 5
