"""The retry policy: how many tries, after which wait, for which errors, and how levels merge."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_jobs.definitions.retry import Retry, tries_allowed
from django_jobs.errors import (
    ConfigurationError,
    DuplicateStepId,
    InvalidOutput,
    NonRetryable,
    UnsafeURL,
)

seconds = st.floats(0, 10_000)
policies = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.integers(1, 50),
        "delay": seconds,
        "backoff": st.sampled_from(["fixed", "exponential"]),
        "factor": st.floats(1, 10),
        "max_delay": seconds,
        "jitter": st.floats(0, 1),
    },
).map(lambda keys: Retry(**keys))


# --- numbers of tries ---------------------------------------------------------------------------


def test_a_number_of_retries_means_extra_tries() -> None:
    retry = Retry.of(3)
    assert retry is not None
    assert (retry.max_attempts, retry.extra) == (4, 3)


def test_none_is_unset_and_a_policy_stands_for_itself() -> None:
    policy = Retry(delay=1)
    assert Retry.of(None) is None
    assert Retry.of(policy) is policy


@pytest.mark.parametrize("wrong", [-1, True, False, 1.5, "3", [3]])
def test_other_retries_are_refused_with_the_remedy(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="number of extra tries"):
        Retry.of(wrong)


def test_a_policy_without_max_attempts_limits_nothing() -> None:
    assert Retry(delay=1).extra is None
    assert Retry(max_attempts=None, delay=1) == Retry(delay=1)
    assert Retry(max_attempts=1).extra == 0


@pytest.mark.parametrize(
    ("step", "workflow", "default", "tries"),
    [
        (None, None, 0, 1),
        (None, None, 2, 3),
        (0, None, 2, 1),
        (3, None, 0, 4),
        (3, 1, 0, 2),
        (3, 0, 9, 1),
        (None, 5, 2, 3),
        (None, 1, 2, 2),
    ],
)
def test_tries_are_one_and_the_smaller_budget(
    step: int | None, workflow: int | None, default: int, tries: int
) -> None:
    assert tries_allowed(step, workflow, default) == tries


# --- waits --------------------------------------------------------------------------------------


def waits(retry: Retry, count: int = 5) -> list[float | None]:
    return [retry.wait(attempt, None) for attempt in range(1, count + 1)]


def test_a_fixed_wait_is_always_the_delay() -> None:
    assert waits(Retry(delay=3, jitter=0)) == [3, 3, 3, 3, 3]


def test_the_wait_when_nothing_is_given_is_a_second_give_or_take_a_quarter() -> None:
    found = [Retry().wait(attempt, None) for attempt in range(1, 200)]
    assert all(wait is not None and 0.75 <= wait <= 1.25 for wait in found)
    assert len(set(found)) > 100
    assert Retry.of(3) == Retry(max_attempts=4)
    assert (Retry().backoff, Retry().delay, Retry().jitter) == ("fixed", 1.0, 0.25)


def test_exponential_waits_grow_by_the_factor_up_to_the_cap() -> None:
    retry = Retry(delay=2, backoff="exponential", factor=3, max_delay=50, jitter=0)
    assert waits(retry) == [2, 6, 18, 50, 50]
    assert retry.wait(100_000, None) == 50


def test_the_cap_is_a_minute_or_the_delay_if_that_is_longer() -> None:
    assert Retry(delay=2, backoff="exponential", jitter=0).wait(20, None) == 60
    assert Retry(delay=3600, jitter=0).wait(1, None) == 3600
    assert Retry(delay=3600, backoff="exponential", jitter=0).wait(9, None) == 3600


def test_an_explicit_cap_holds_for_every_kind() -> None:
    assert Retry(delay=100, max_delay=10, jitter=0).wait(1, None) == 10
    assert Retry(backoff=lambda attempt, error: 100, max_delay=10).wait(1, None) == 10
    assert Retry(backoff=lambda attempt, error: 100).wait(1, None) == 60


@given(policies, st.integers(1, 1000))
def test_a_wait_stays_between_the_jitter_and_the_cap(retry: Retry, attempt: int) -> None:
    exact = Retry(jitter=0).over(retry).wait(attempt, None)
    moved = retry.wait(attempt, None)
    assert exact is not None
    assert moved is not None
    assert exact * (1 - retry.jitter) - 1e-9 <= moved <= retry.cap
    assert moved <= exact * (1 + retry.jitter) + 1e-9


def test_waits_at_the_cap_are_spread_below_it() -> None:
    found = {Retry(delay=60, max_delay=60).wait(1, None) for _ in range(100)}
    assert len(found) > 50
    assert all(wait is not None and 45 <= wait <= 60 for wait in found)


def test_a_function_gets_attempt_and_error_and_its_wait_is_exact() -> None:
    seen: list[Any] = []

    def backoff(attempt: int, error: BaseException | None) -> float:
        seen.append((attempt, error))
        return attempt * 1.5

    error = ValueError()
    assert Retry(backoff=backoff).wait(4, error) == 6.0
    assert seen == [(4, error)]


def test_a_function_is_jittered_only_when_jitter_was_asked_for() -> None:
    found = {Retry(backoff=lambda a, e: 10, jitter=0.5).wait(1, None) for _ in range(50)}
    assert len(found) > 20


def test_a_function_may_answer_a_timedelta_or_give_up() -> None:
    assert Retry(backoff=lambda a, e: timedelta(seconds=7)).wait(1, None) == 7
    assert Retry(backoff=lambda a, e: None).wait(1, None) is None


@pytest.mark.parametrize("answer", ["soon", -1, float("nan"), True])
def test_a_function_that_answers_nonsense_costs_no_retries(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "django_jobs.worker"):
        assert Retry(backoff=lambda a, e: answer, delay=3).wait(1, None) == 3
    assert "backoff" in caplog.text


def test_a_function_that_raises_costs_no_retries(caplog: pytest.LogCaptureFixture) -> None:
    def backoff(attempt: int, error: BaseException | None) -> float:
        raise LookupError("broken")

    with caplog.at_level(logging.WARNING, "django_jobs.worker"):
        assert Retry(backoff=backoff).wait(1, ValueError()) == 1.0
    assert "LookupError: broken" in caplog.text


def test_only_delay_or_backoff_propose_a_wait() -> None:
    assert Retry(delay=5).proposes_wait
    assert Retry(backoff="exponential").proposes_wait
    assert not Retry(max_attempts=3, factor=3, jitter=0, max_delay=9).proposes_wait


# --- which errors -------------------------------------------------------------------------------


def test_every_error_is_retried_when_nothing_is_said() -> None:
    assert Retry().retries(ValueError())
    assert Retry().retries(SystemExit())


@pytest.mark.parametrize(
    "error", [NonRetryable("x"), InvalidOutput("x"), DuplicateStepId("x"), UnsafeURL("x")]
)
def test_permanent_errors_are_never_retried(error: Exception) -> None:
    assert not Retry().retries(error)
    assert not Retry(retry_on=Exception).retries(error)


def test_retry_on_names_the_only_errors_to_retry() -> None:
    retry = Retry(retry_on=(OSError, KeyError))
    assert retry.retries(ConnectionError())
    assert retry.retries(KeyError())
    assert not retry.retries(ValueError())


def test_give_up_on_wins_over_retry_on() -> None:
    retry = Retry(retry_on=OSError, give_up_on=[FileNotFoundError])
    assert retry.retries(ConnectionError())
    assert not retry.retries(FileNotFoundError())


def test_conditions_may_be_functions_of_the_error() -> None:
    retry = Retry(give_up_on=lambda error: "gone" in str(error))
    assert retry.retries(ValueError("busy"))
    assert not retry.retries(ValueError("gone"))
    assert not Retry(retry_on=lambda error: False).retries(ValueError())


def test_a_condition_that_raises_costs_no_retries(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: BaseException) -> bool:
        raise LookupError

    with caplog.at_level(logging.WARNING, "django_jobs.worker"):
        assert Retry(retry_on=broken).retries(ValueError())
        assert Retry(give_up_on=broken).retries(ValueError())
    assert len(caplog.records) == 2


# --- levels -------------------------------------------------------------------------------------


def test_given_keys_are_laid_over_the_base_one_by_one() -> None:
    base = Retry(max_attempts=5, delay=10, backoff="exponential")
    merged = Retry(delay=1).over(base)
    assert merged == Retry(max_attempts=5, delay=1, backoff="exponential")
    assert merged.given == {"max_attempts", "delay", "backoff"}


def test_a_key_given_with_its_default_value_counts_as_given() -> None:
    assert Retry(delay=1.0).over(Retry(delay=10)).delay == 1.0
    assert Retry(max_attempts=3).over(Retry(delay=10)).delay == 10


@given(policies, policies, policies)
def test_laying_over_is_associative_and_keeps_what_was_given(a: Retry, b: Retry, c: Retry) -> None:
    assert a.over(b).over(c) == a.over(b.over(c))
    assert a.over(None) == a
    assert a.over(a) == a
    assert a.over(b).given == a.given | b.given


# --- storing ------------------------------------------------------------------------------------


@given(policies)
def test_a_policy_comes_back_from_json(retry: Retry) -> None:
    assert Retry.from_dict(json.loads(json.dumps(retry.to_dict()))) == retry


def test_code_stays_out_of_the_stored_form() -> None:
    retry = Retry(max_attempts=3, backoff=lambda a, e: 1, retry_on=OSError, restore=False)
    assert retry.to_dict() == {"max_attempts": 3}
    assert Retry.from_dict(retry.to_dict()).over(retry) == retry


def test_a_spec_may_use_camel_case_snake_case_or_a_number() -> None:
    wanted = Retry(max_attempts=3, max_delay=5, backoff="exponential")
    camel = {"maxAttempts": 3, "maxDelay": 5, "backoff": "exponential"}
    snake = {"max_attempts": 3, "max_delay": 5, "backoff": "exponential"}
    assert Retry.from_spec(camel) == Retry.from_spec(snake) == wanted
    assert Retry.from_spec(2) == Retry(max_attempts=3)
    assert Retry.from_spec(None) is None


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"maxAttempt": 3}, "maxAttempt"),
        ({"maxAttempts": 3, "max_attempts": 3}, "twice"),
        ({"retry_on": "x"}, "retry_on"),
        ({"backoff": print}, "backoff"),
        ({"maxAttempts": 0}, "max_attempts"),
        ({"delay": None}, "delay"),
        ("often", "often"),
        (True, "True"),
    ],
)
def test_a_bad_spec_is_refused_by_name(spec: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Retry.from_spec(spec)


# --- a frozen value -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("max_attempts", 0), ("max_attempts", True), ("max_attempts", 1.5), ("delay", -1),
        ("delay", "1"), ("delay", float("nan")), ("delay", float("inf")), ("delay", None),
        ("delay", timedelta(seconds=-1)), ("delay", 1e12), ("backoff", "linear"),
        ("backoff", None), ("factor", 0), ("factor", True), ("max_delay", -1), ("jitter", 1.1),
        ("jitter", -0.1), ("retry_on", "ValueError"), ("retry_on", (int,)), ("give_up_on", (5,)),
        ("restore", None), ("restore", "yes"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_at_once_with_name_and_remedy(key: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Retry\({key}=.*: give"):
        Retry(**{key: wrong})


def test_durations_may_be_timedeltas() -> None:
    retry = Retry(delay=timedelta(minutes=1), max_delay=timedelta(hours=1))
    assert (retry.delay, retry.max_delay) == (60.0, 3600.0)


def test_a_policy_cannot_be_changed() -> None:
    retry = Retry(delay=1)
    with pytest.raises(AttributeError):
        retry.delay = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del retry.delay


@given(policies)
def test_a_policy_can_be_copied_pickled_and_hashed(retry: Retry) -> None:
    for twin in (copy.copy(retry), copy.deepcopy(retry), pickle.loads(pickle.dumps(retry))):
        assert twin == retry
        assert hash(twin) == hash(retry)


def test_the_repr_shows_what_was_given() -> None:
    assert repr(Retry(max_attempts=3, jitter=0)) == "Retry(max_attempts=3, jitter=0.0)"


def test_restore_may_be_a_function() -> None:
    def decide(input: Any, task_status: dict[str, Any]) -> bool:
        return True

    assert Retry(restore=decide).restore is decide
    assert Retry().restore is True
