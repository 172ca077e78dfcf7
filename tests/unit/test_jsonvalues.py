"""The JSON boundary: what passes it, what is refused and where, and how texts are repaired."""

from __future__ import annotations

import enum
import json
import math
import timeit
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_jobs import jsonvalues
from django_jobs.errors import InvalidInput, NotSerializable

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=30,
)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Plain(enum.Enum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: int


class Weight(float):
    pass


class Twin(str):
    """A text that equals no other one."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return 1


# --- what passes --------------------------------------------------------------------------------


@given(values)
def test_every_json_value_comes_back_as_it_was(value: Any) -> None:
    again = jsonvalues.loads(jsonvalues.dumps(value))
    assert again == value
    assert repr(again) == repr(value)  # tells 1 from 1.0 and from True, and keeps the key order


@given(values)
def test_the_text_says_to_other_readers_what_it_says_to_us(value: Any) -> None:
    assert json.loads(jsonvalues.dumps(value)) == value


@given(values)
def test_a_plain_value_is_passed_on_without_a_copy(value: Any) -> None:
    assert jsonvalues.plain(value) is value


@given(values)
def test_the_fast_text_of_a_plain_value_is_the_checked_one(value: Any) -> None:
    assert jsonvalues.dumps_plain(jsonvalues.plain(value)) == jsonvalues.dumps(value)


@given(st.recursive(
    st.none() | st.floats() | st.integers() | st.text(st.characters(codec=None)) | st.binary(),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner)
    | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
def test_whatever_is_given_either_round_trips_or_is_refused(value: Any) -> None:
    try:
        text = jsonvalues.dumps(value)
    except NotSerializable as error:
        assert str(error).startswith("input")
        jsonvalues.dumps(str(error))  # the refusal itself can be stored
    else:
        assert jsonvalues.loads(text) == _lists(value)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(member) for key, member in value.items()}
    return [_lists(member) for member in value] if isinstance(value, list | tuple) else value


def test_the_text_is_compact_and_keeps_order_and_letters() -> None:
    assert jsonvalues.dumps({"b": [1, 2.5, None], "a": "é✓"}) == '{"b":[1,2.5,null],"a":"é✓"}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Weight(1.5), 1.5),
        (Point(1, 2), [1, 2]),
        ((1, (2,)), [1, [2]]),
        ({"a": (1,)}, {"a": [1]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({Colour.RED: Level.HIGH}, {"red": 3}),
    ],
)
def test_subclasses_of_json_types_become_their_plain_value(value: Any, expected: Any) -> None:
    made = jsonvalues.plain(value)
    assert repr(made) == repr(expected)
    assert type(made) is type(expected)


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert jsonvalues.loads(jsonvalues.dumps({"a": "\\u0000"})) == {"a": "\\u0000"}


def test_the_same_part_may_appear_twice() -> None:
    part = [1]
    assert jsonvalues.dumps([part, part]) == "[[1],[1]]"


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_whole_numbers_may_use_all_64_bits(number: int) -> None:
    assert jsonvalues.loads(jsonvalues.dumps([number])) == [number]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_64_levels_pass_and_the_65th_is_refused() -> None:
    assert jsonvalues.loads(jsonvalues.dumps(nested(64))) == nested(64)
    with pytest.raises(NotSerializable, match="nested deeper than 64 levels"):
        jsonvalues.dumps(nested(65))
    with pytest.raises(NotSerializable, match="nested deeper than 64 levels"):
        jsonvalues.dumps(nested(50_000))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"items": [1, 2, 3, {"price": math.nan}]}, "input.items[3].price", "nan"),
        ({"a": math.inf}, "input.a", "inf"),
        ([-math.inf], "input[0]", "-inf"),
        ({"first name": "a\0b"}, 'input["first name"]', "NUL character at position 1"),
        (["ok", "x\ud800"], "input[1]", "lone surrogate at position 1"),
        ({"k\0": 1}, "input", "a key holds a NUL"),
        ({"k\udfff": 1}, "input", "a key holds a lone surrogate"),
        ({"n": 2**63}, "input.n", "more than 64 bits"),
        (2**63, "input", "more than 64 bits"),
        ({"n": [-(2**63) - 1]}, "input.n[0]", "more than 64 bits"),
        ({"a": {1: 2}}, "input.a", "the key 1 is int"),
        ({None: 2}, "input", "the key None is NoneType"),
        ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, "input.when", "datetime.datetime"),
        ({"sum": Decimal(1)}, "input.sum", "decimal.Decimal"),
        ({"raw": b"x"}, "input.raw", "base64"),
        ({"set": {1}}, "input.set", "set is not a JSON type"),
        ({"plain": Plain.ONE}, "input.plain", "Pass its value"),
        ({"call": print}, "input.call", "Pass data"),
        ({"user": SimpleNamespace(_meta=1, pk=1)}, "input.user", "Pass the primary key"),
        ({"a": 1, Twin("a"): 2}, "input", "two keys become"),
    ],
)
def test_a_refusal_names_path_and_reason(value: Any, path: str, reason: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        jsonvalues.dumps(value)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert isinstance(caught.value, InvalidInput)
    with pytest.raises(NotSerializable):
        jsonvalues.plain(value)
    with pytest.raises(NotSerializable):
        jsonvalues.canonical(value)


def test_the_path_begins_with_the_name_that_is_given() -> None:
    with pytest.raises(NotSerializable, match=r"^output\.a\[0\]: "):
        jsonvalues.dumps({"a": [math.nan]}, what="output")


def test_a_value_that_contains_itself_is_refused_by_name() -> None:
    loop: dict[str, Any] = {"list": []}
    loop["list"].append(loop)
    with pytest.raises(NotSerializable, match=r"^input\.list\[0\]: the value contains itself"):
        jsonvalues.dumps(loop)


def test_a_small_value_with_an_endless_text_is_refused_at_once() -> None:
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(NotSerializable, match="1,048,576 bytes"):
        jsonvalues.dumps(value)


def test_the_limit_counts_bytes_and_is_named_with_the_size() -> None:
    assert jsonvalues.dumps("é" * 10, limit=22) == '"' + "é" * 10 + '"'
    with pytest.raises(NotSerializable) as caught:
        jsonvalues.dumps("é" * 10, limit=21)
    assert "21 bytes" in str(caught.value)
    assert "22 bytes" in str(caught.value)
    with pytest.raises(NotSerializable, match="21 bytes"):
        jsonvalues.dumps_plain("é" * 10, limit=21)


def test_a_mebibyte_is_the_limit_when_none_is_given() -> None:
    room = 1024 * 1024 - 2
    assert len(jsonvalues.dumps("x" * room)) == 1024 * 1024
    with pytest.raises(NotSerializable):
        jsonvalues.dumps("x" * (room + 1))


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a":-Infinity}', "{", "", '"\\ud800"', "[1,]"]
)
def test_reading_refuses_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        jsonvalues.loads(text)
    with pytest.raises(ValueError):
        jsonvalues.loads(text.encode())


def test_a_number_beyond_every_float_is_refused_before_it_is_stored() -> None:
    with pytest.raises(NotSerializable, match=r"input\[0\]: inf"):
        jsonvalues.dumps(jsonvalues.loads("[1e999]"))


def test_reading_no_text_gives_none() -> None:
    assert jsonvalues.loads(None) is None
    assert jsonvalues.loads("null") is None


# --- canonical ----------------------------------------------------------------------------------


@given(st.dictionaries(texts, values, max_size=6), st.randoms())
def test_the_canonical_text_ignores_the_order_of_keys(value: dict[str, Any], random: Any) -> None:
    pairs = list(value.items())
    random.shuffle(pairs)
    assert jsonvalues.canonical(dict(pairs)) == jsonvalues.canonical(value)


@given(values, values)
def test_two_canonical_texts_are_equal_only_for_equal_values(one: Any, two: Any) -> None:
    if jsonvalues.canonical(one) == jsonvalues.canonical(two):
        assert one == two


def test_the_canonical_text_sorts_keys_at_every_depth() -> None:
    assert jsonvalues.canonical({"b": {"d": 1, "c": (2,)}, "a": 0}) == '{"a":0,"b":{"c":[2],"d":1}}'


# --- texts --------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None)), st.integers(20, 200))
def test_a_cleaned_text_can_be_stored_and_fits(text: str, limit: int) -> None:
    cleaned = jsonvalues.clean_text(text, limit)
    assert len(cleaned.encode()) <= limit
    assert jsonvalues.loads(jsonvalues.dumps(cleaned)) == cleaned


@given(texts.filter(lambda text: len(text.encode()) <= 200))
def test_a_good_text_that_fits_is_not_touched(text: str) -> None:
    assert jsonvalues.clean_text(text, 200) == text


def test_nul_and_lone_surrogates_become_the_replacement_character() -> None:
    assert jsonvalues.clean_text("a\0b\ud800c\udfffd") == "a\ufffdb\ufffdc\ufffdd"


def test_a_long_text_is_cut_and_marked() -> None:
    cut = jsonvalues.clean_text("é" * 100_000)
    assert cut.endswith("… truncated")
    assert 65_000 < len(cut.encode()) <= 65_536


# --- errors -------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


def raised(error: BaseException) -> BaseException:
    local_variable = "never shown"
    try:
        assert local_variable
        raise error
    except BaseException as caught:
        return caught


def test_an_error_is_described_by_type_message_and_traceback() -> None:
    described = jsonvalues.describe_error(raised(ValueError("boom")), code="timeout")
    assert described["type"] == "builtins.ValueError"
    assert described["message"] == "boom"
    assert described["code"] == "timeout"
    assert described["traceback"].startswith("Traceback (most recent call last):")
    assert "in raised" in described["traceback"]
    assert "never shown" not in described["traceback"]


def test_the_type_is_the_full_dotted_path() -> None:
    assert jsonvalues.describe_error(NotSerializable("x"))["type"] == (
        "django_jobs.errors.NotSerializable"
    )
    assert jsonvalues.describe_error(Unprintable())["type"] == f"{__name__}.Unprintable"


def test_without_a_code_the_code_is_none() -> None:
    assert jsonvalues.describe_error(ValueError())["code"] is None


@pytest.mark.parametrize("kind", [Unprintable, Leaving])
def test_an_error_without_a_text_is_told_by_its_type(kind: type[Exception]) -> None:
    described = jsonvalues.describe_error(raised(kind()))
    assert kind.__name__ in described["message"]
    assert "unprintable" in described["message"]
    assert kind.__name__ in described["traceback"]


def test_causes_that_go_in_a_circle_end() -> None:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    one.__context__, two.__context__ = two, one
    assert "one" in jsonvalues.describe_error(one)["traceback"]


class Hostile(Exception):
    """Its attributes raise, as those of a wrapped remote error may."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


def test_an_error_whose_attributes_raise_is_described() -> None:
    described = jsonvalues.describe_error(raised(Hostile("boom")))
    assert described["message"] == "boom"
    assert "unprintable" in described["traceback"]


def test_a_very_long_chain_of_causes_is_described() -> None:
    error = ValueError("first")
    for number in range(20_000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    described = jsonvalues.describe_error(error)
    assert described["message"] == "19999"
    assert len(described["traceback"].encode()) <= 65_536


@pytest.mark.parametrize("text", ["x" * 200_000, "é" * 100_000, "\0" * 70_000, "\ud800" * 70_000])
def test_a_huge_message_is_cut_and_the_description_can_be_stored(text: str) -> None:
    described = jsonvalues.describe_error(raised(ValueError(text)))
    for key in ("message", "traceback"):
        assert "truncated" in described[key]
        assert len(described[key].encode()) <= 65_536
    assert jsonvalues.loads(jsonvalues.dumps(described)) == described


def test_a_cut_traceback_keeps_its_beginning_and_its_end() -> None:
    described = jsonvalues.describe_error(raised(ValueError("x" * 200_000 + " the very end")))
    assert described["traceback"].startswith("Traceback")
    assert described["traceback"].rstrip().endswith("the very end")


def test_a_deep_recursion_is_described() -> None:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        described = jsonvalues.describe_error(error)
    assert described["type"] == "builtins.RecursionError"
    assert "more times" in described["traceback"]


def test_groups_of_errors_show_their_members() -> None:
    group = ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    assert "KeyError: 'two'" in jsonvalues.describe_error(raised(group))["traceback"]


def test_secrets_in_error_texts_are_hidden() -> None:
    error = raised(ValueError("cannot log in with password=hunter2 and ssn: 123-45"))
    described = jsonvalues.describe_error(error, names=["ssn"])
    for key in ("message", "traceback"):
        assert "hunter2" not in described[key]
        assert "123-45" not in described[key]


# --- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "password", "PASSWORD", "user_password", "passwd", "client_secret", "access_token",
        "api_key", "apiKey", "X-API-Key", "Authorization", "Set-Cookie", "credit_card",
        "creditCardNumber", "iban", "whsec_main",
    ],
)  # fmt: skip
def test_usual_secrets_are_hidden_at_any_depth(key: str) -> None:
    value = {"a": [{"b": {key: "hunter2", "id": 5}}]}
    assert jsonvalues.redact(value) == {"a": [{"b": {key: "********", "id": 5}}]}
    assert value["a"][0]["b"][key] == "hunter2"  # the original is left alone


def test_what_is_nested_too_deep_to_look_at_is_hidden() -> None:
    assert "hunter2" not in repr(jsonvalues.redact(nested(200))).replace("1", "hunter2")
    value: Any = {"password": "hunter2"}
    for _ in range(60):
        value = [value]
    assert "hunter2" not in repr(jsonvalues.redact(value))
    assert "[1]" in repr(jsonvalues.redact(nested(60)))


def test_a_secret_is_hidden_whatever_its_type() -> None:
    value = {"secret": {"a": 1}, "token": [1, 2], "password": 5}
    assert set(jsonvalues.redact(value).values()) == {"********"}


@pytest.mark.parametrize(
    ("key", "hidden"),
    [
        ("ssn", True), ("SSN", True), ("customer_ssn", True), ("customerSsn", True),
        ("ssn-number", True), ("classname", False), ("mission", False), ("birth_date", True),
        ("birthDate", True), ("birth", False),
    ],
)  # fmt: skip
def test_declared_names_are_hidden_as_whole_words(key: str, hidden: bool) -> None:
    shown = jsonvalues.redact({key: "x"}, ["ssn", "birth_date"])
    assert (shown[key] == "********") is hidden


def test_harmless_values_are_shown_unchanged() -> None:
    value = {"order_id": 1, "name": "Key Largo", "note": "token of thanks", "n": None, "t": [1.5]}
    assert jsonvalues.redact(value) == value


@pytest.mark.parametrize(
    ("text", "gone", "stays"),
    [
        ("password=hunter2 for bob", "hunter2", "for bob"),
        ("db_password='hunter 2', host=a", "hunter", "host=a"),
        ('{"api_key": "hunter\\"2", "n": 1}', "hunter", '"n": 1'),
        ("{'token': 'hunter2', 'n': 1}", "hunter2", "'n': 1"),
        ('"{\\"secret\\": \\"hunter2\\", \\"n\\": 1}"', "hunter2", "n"),
        ("Authorization: Bearer abc.def-123", "abc.def", "Authorization"),
        ("sent bearer abc.def-123 there", "abc.def", "there"),
        ("Cookie: sessionid=hunter2; other=1", "hunter2", "Cookie"),
        ("signed by whsec_C2FVsBQIhrscChlQ/+A= today", "C2FV", "today"),
        ("https://x.example/?access_token=hunter2&page=3", "hunter2", "page=3"),
        ("postgres://user:hunter2@host/db", "hunter2", "host/db"),
        ("charge(iban=hunter2)", "hunter2", "charge("),
        ("employee_number=hunter2 ok", "hunter2", "ok"),
    ],
)
def test_secrets_within_texts_are_hidden(text: str, gone: str, stays: str) -> None:
    shown = jsonvalues.redact_text(text, ["employee_number"])
    assert gone not in shown
    assert stays in shown
    assert "********" in shown


def test_the_search_for_secrets_is_never_skipped_by_mistake() -> None:
    for word in jsonvalues.SECRET_WORDS:
        assert "hunter2" not in jsonvalues.redact_text(f"my_{word}_1=hunter2 whsec_hunter2")


def test_ordinary_texts_are_not_touched() -> None:
    for text in (
        "KeyError: 'order' in /srv/app/tokens.py line 5, see https://x.example/a:b?page=2",
        "a basic rule: the bearer of news pays",
        "ValueError: boom",
    ):
        assert jsonvalues.redact_text(text) == text
        assert jsonvalues.redact_text(text, ["ssn"]) == text


@pytest.mark.parametrize(
    "text",
    ["a" * 65_536, "password" * 8_192, "token=" * 10_000, "://" * 20_000, '"' * 65_536,
     "password='" + "\\" * 65_000, "Bearer " * 9_000, ":" * 65_536, "secret" + " " * 65_000],
)  # fmt: skip
def test_hiding_takes_linear_time_on_hostile_texts(text: str) -> None:
    half = min(timeit.repeat(lambda: jsonvalues.redact_text(text[: len(text) // 4]), number=1))
    whole = min(timeit.repeat(lambda: jsonvalues.redact_text(text), number=1))
    assert whole < max(half * 12, 0.25)
