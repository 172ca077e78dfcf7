"""What an enqueue refuses, on the real database: RELIABILITY section 9."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from django_jobs import InvalidInput, NotSerializable, Retry, enqueue
from django_jobs.errors import ConfigurationError, JobsError, UnknownTask
from django_jobs.models import IdempotencyKey, Job, Queue
from tests.app import jobs

pytestmark = pytest.mark.django_db(transaction=True)


def cyclic() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, tuple[Any, type[JobsError], str]] = {
    "NaN": ({"n": [0.0, float("nan")]}, NotSerializable, r"input\.value\.n\[1\]: nan"),
    "Infinity": (float("inf"), NotSerializable, r"input\.value: inf"),
    "minus Infinity": (float("-inf"), NotSerializable, r"input\.value: -inf"),
    "self-reference": (cyclic(), NotSerializable, r"input\.value\[1\].*contains itself"),
    "object": ({"thing": object()}, NotSerializable, r"input\.value\.thing: object"),
    "set": ([{1, 2}], NotSerializable, r"input\.value\[0\]: set"),
    "bytes": (b"raw", NotSerializable, r"input\.value: bytes"),
    "naive use of a datetime": (datetime(2030, 1, 1), NotSerializable, r"input\.value: datetime"),
    "function": (print, NotSerializable, r"input\.value: builtin_function"),
    "number as a key": ({"a": {7: 1}}, NotSerializable, r"input\.value\.a: the key 7"),
    "tuple as a key": ({(1, 2): 1}, NotSerializable, r"input\.value: the key \(1, 2\)"),
    "NUL": ({"a": "x\0y"}, NotSerializable, r"input\.value\.a: .*NUL character at position 1"),
    "NUL in a key": ({"x\0y": 1}, NotSerializable, r"input\.value: a key holds a NUL"),
    "lone surrogate": (["\ud800"], NotSerializable, r"input\.value\[0\]: .*lone surrogate"),
    "surrogate in a key": ({"\udfff": 1}, NotSerializable, r"input\.value: a key .*surrogate"),
    "65 bits": (2**64, NotSerializable, r"input\.value: .*64 bits"),
    "minus 65 bits": ([-(2**63) - 1], NotSerializable, r"input\.value\[0\]: .*64 bits"),
    "too deep": (nested(70), NotSerializable, r"input\.value\[0\].*deeper than 64 levels"),
    "endlessly deep": (nested(5000), NotSerializable, r"deeper than 64 levels"),
    "over 1 MiB": ("x" * 1_048_577, NotSerializable, r"input: .*1,048,576 bytes.*1,048,589"),
    "many small parts": ([0] * 600_000, NotSerializable, r"input: .*1,048,576 bytes"),
}


def stored() -> tuple[int, int, int]:
    return Job.units.count(), Queue.objects.count(), IdempotencyKey.objects.count()


def refuse(call: Any, error: type[JobsError], text: str) -> None:
    """``call`` raises exactly this and writes nothing, inside a transaction and outside."""
    before = stored()
    with pytest.raises(error, match=text) as caught:
        call()
    assert type(caught.value) is error
    assert stored() == before
    with transaction.atomic():
        with pytest.raises(error, match=text):
            call()
        # The transaction is usable still, and what it writes besides is kept.
        kept = jobs.echo.using(queue_name="kept").enqueue(value="kept")
    assert Job.objects.get(pk=kept.pk).input == {"value": "kept"}
    assert Job.units.count() == before[0] + 1


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_cannot_be_stored_is_refused_with_its_path(case: str) -> None:
    value, error, text = VALUES[case]
    call = jobs.echo.using(queue_name="new", idempotency_key="new")
    refuse(lambda: call.enqueue(value=value), error, text)


@pytest.mark.parametrize("case", VALUES)
def test_one_bad_item_among_many_writes_none(case: str) -> None:
    value, error, text = VALUES[case]
    items = [{"value": 1}, {"value": value}, {"value": 2}]
    call = jobs.echo.using(queue_name="new")
    refuse(lambda: call.enqueue_many(items), error, rf"(?s)Item 1: .*{text}")


@pytest.mark.parametrize("case", ["NaN", "NUL", "65 bits", "self-reference", "object"])
def test_meta_and_context_are_checked_alike(case: str) -> None:
    value, error, text = VALUES[case]
    meta = jobs.echo.using(meta={"value": value})
    refuse(meta.enqueue, error, text.replace("input", "meta", 1))
    text = text.replace("input", "context", 1)
    refuse(lambda: jobs.async_steps.enqueue(n=1, context={"value": value}), error, text)


def test_values_up_to_the_limits_are_stored_as_they_are() -> None:
    """The refusals above are no stricter than they say."""
    values: list[Any] = [
        2**63 - 1,
        -(2**63),
        nested(62),
        "\U0001f600 ünïcode \u2028 \\u0000",
        "x" * 1_000_000,
        {"": None, "key with spaces": [True, 0.1]},
    ]
    made = jobs.echo.enqueue_many([{"value": value} for value in values])
    found = {job.pk: job.input["value"] for job in Job.objects.all()}
    assert [found[job.pk] for job in made] == values


@pytest.mark.parametrize(
    ("input", "text"),
    [
        ({"a": "one", "b": 1}, r"input\.a"),
        ({"a": None, "b": 1}, r"input\.a"),
        ({"a": 1.5, "b": 1}, r"input\.a"),
        ({"a": 1}, "b"),
        ({"a": 1, "b": 1, "c": 1}, "c"),
        ({"a": 1, "b": 2**63}, r"input\.b.*64 bits"),
    ],
)
def test_input_that_the_hints_refuse_is_not_stored(input: dict[str, Any], text: str) -> None:
    refuse_kind = NotSerializable if "64 bits" in text else InvalidInput
    refuse(lambda: jobs.add.using(queue_name="new").enqueue(**input), refuse_kind, text)


NAMES: dict[str, Any] = {
    "empty": "",
    "too long": "x" * 201,
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "a\x1bb",
    "C1 control": "a\x85b",
    "surrogate": "a\ud800",
    "number": 7,
    "bytes": b"name",
}


@pytest.mark.parametrize("option", ["queue_name", "idempotency_key", "concurrency_key"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_bad_name_is_refused(option: str, name: Any) -> None:
    refuse(lambda: jobs.echo.using(**{option: name}).enqueue(), InvalidInput, option)


@pytest.mark.parametrize("option", ["queue_name", "idempotency_key", "concurrency_key"])
def test_a_name_of_200_characters_is_stored_exactly(option: str) -> None:
    name = ("Grüße 😀 " * 40)[:199] + "."
    job = jobs.echo.using(**{option: name}).enqueue()
    assert getattr(Job.objects.get(pk=job.pk), option) == name


TIMES: dict[str, tuple[dict[str, Any], str]] = {
    "naive run_after": ({"run_after": datetime(2030, 1, 1)}, "run_after.*naive.*make_aware"),
    "run_after of another type": ({"run_after": "tomorrow"}, "run_after is a datetime or a"),
    "negative delay": ({"delay": -1}, "delay .*0 s up to the year 9999"),
    "negative timedelta": ({"run_after": timedelta(seconds=-1)}, "run_after .*0 s up to"),
    "delay beyond the year 9999": ({"delay": 10**12}, "delay .*year 9999"),
    "timedelta beyond the year 9999": ({"delay": timedelta.max}, "delay .*year 9999"),
    "delay up to the year 9999 from 1970": ({"delay": 3e11}, "delay .*year 9999"),
    "NaN as delay": ({"delay": float("nan")}, "delay is a duration"),
    "Infinity as delay": ({"delay": float("inf")}, "delay .*year 9999"),
    "text as delay": ({"delay": "5"}, "delay is a duration"),
    "bool as delay": ({"delay": True}, "delay is a duration"),
    "both": ({"delay": 1, "run_after": timedelta(1)}, "run_after or delay, not both"),
    "naive expires": ({"expires": datetime(2030, 1, 1)}, "expires.*naive"),
    "negative expires": ({"expires": -1}, "expires .*0 s up to"),
    "timeout of 0": ({"timeout": 0}, "timeout must be longer"),
    "negative timeout": ({"timeout": -5}, "timeout .*0 s up to"),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_bad_time_is_refused(case: str) -> None:
    options, text = TIMES[case]
    refuse(lambda: jobs.echo.using(**options).enqueue(), InvalidInput, text)


def test_a_time_in_the_past_means_now() -> None:
    from django_jobs import run_jobs

    past = datetime.fromisoformat("1999-12-31T00:00:00+00:00")
    job = jobs.echo.using(run_after=past).enqueue(value=1)
    assert run_jobs().completed == 1
    assert job.result() == 1


@pytest.mark.parametrize("priority", [101, -101, 1.5, "high", True, None.__class__])
def test_a_bad_priority_is_refused(priority: Any) -> None:
    refuse(lambda: jobs.echo.using(priority=priority).enqueue(), InvalidInput, "priority is")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"colour": "red"}, InvalidInput, "does not know colour"),
        ({"meta": [1]}, InvalidInput, "meta is a dict"),
        ({"runner": "nobody"}, InvalidInput, "runner is one of"),
        ({"version": "9"}, UnknownTask, "9"),
        ({"retries": -1}, ConfigurationError, "retries|max_attempts"),
        ({"retries": "many"}, ConfigurationError, "retries|Retry"),
    ],
)
def test_a_bad_option_is_refused(
    options: dict[str, Any], error: type[JobsError], text: str
) -> None:
    refuse(lambda: jobs.echo.using(**options).enqueue(), error, text)


def test_an_unknown_name_is_refused() -> None:
    refuse(lambda: enqueue("nobody-knows"), UnknownTask, "nobody-knows")
    refuse(lambda: enqueue("echo", version="9"), UnknownTask, "'9'")


def test_good_options_are_stored() -> None:
    """What is checked above is written when it is right."""
    job = jobs.echo.using(retries=Retry(max_attempts=2), priority=-100, meta={"a": 1}).enqueue()
    job = Job.objects.get(pk=job.pk)
    assert (job.priority, job.meta) == (-100, {"a": 1})
    assert job.options["retries"]["max_attempts"] == 2
