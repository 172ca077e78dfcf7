"""How often, and after which wait, a failed try is repeated."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeAlias

from django_jobs import ids
from django_jobs.errors import (
    ConfigurationError,
    DuplicateStepId,
    InvalidOutput,
    NonRetryable,
    UnsafeURL,
)

logger = logging.getLogger("django_jobs.worker")

Backoff: TypeAlias = str | Callable[[int, BaseException | None], "float | timedelta | None"]
Matcher: TypeAlias = type[BaseException] | Callable[[BaseException], bool]
Restore: TypeAlias = bool | Callable[[Any, dict[str, Any]], bool]


class _Unset:
    """The one value that says "not given"."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final[Any] = _Unset()

#: A failure of these kinds would only repeat itself.
PERMANENT: tuple[type[BaseException], ...] = (
    NonRetryable,
    InvalidOutput,
    DuplicateStepId,
    UnsafeURL,
)
DEFAULT_MAX_DELAY = 60.0
#: Beyond this, a wait is a mistake in the unit.
LONGEST_WAIT = 10 * 365 * 86_400.0

_DEFAULTS: dict[str, Any] = {
    "max_attempts": None,
    "delay": 1.0,
    "backoff": "fixed",
    "factor": 2.0,
    "max_delay": None,
    "jitter": 0.25,
    "retry_on": (),
    "give_up_on": (),
    "restore": True,
}
_STORABLE = ("max_attempts", "delay", "backoff", "factor", "max_delay", "jitter")
_SPEC_KEYS = {
    **{key: key for key in _STORABLE},
    "maxAttempts": "max_attempts",
    "maxDelay": "max_delay",
}


class Retry:
    """A frozen retry policy. Only the keys that were ``given`` override those of a lower level.

    ``max_attempts`` counts the first try; ``delay``, ``max_delay`` and what ``backoff(attempt,
    error)`` returns are seconds or timedeltas; ``jitter`` is the part of the wait that is random
    (0.25 = a quarter up or down, 0 = exact). ``retry_on`` and ``give_up_on`` hold exception
    classes, or functions of the exception that return a bool.
    """

    __slots__ = (*_DEFAULTS, "given")

    max_attempts: int | None
    delay: float
    backoff: Backoff
    factor: float
    max_delay: float | None
    jitter: float
    retry_on: tuple[Matcher, ...]
    give_up_on: tuple[Matcher, ...]
    restore: Restore
    given: frozenset[str]

    def __init__(
        self,
        *,
        max_attempts: int | None = UNSET,
        delay: float | timedelta = UNSET,
        backoff: Backoff = UNSET,
        factor: float = UNSET,
        max_delay: float | timedelta | None = UNSET,
        jitter: float = UNSET,
        retry_on: Matcher | tuple[Matcher, ...] | list[Matcher] = UNSET,
        give_up_on: Matcher | tuple[Matcher, ...] | list[Matcher] = UNSET,
        restore: Restore = UNSET,
    ) -> None:
        keys = {
            "max_attempts": max_attempts,
            "delay": delay,
            "backoff": backoff,
            "factor": factor,
            "max_delay": max_delay,
            "jitter": jitter,
            "retry_on": retry_on,
            "give_up_on": give_up_on,
            "restore": restore,
        }
        given = {
            key: _CHECKS[key](key, value)
            for key, value in keys.items()
            if value is not UNSET and not (value is None and _DEFAULTS[key] is None)
        }
        self._fill({**_DEFAULTS, **given}, frozenset(given))

    def _fill(self, values: Mapping[str, Any], given: frozenset[str]) -> None:
        for key in _DEFAULTS:
            object.__setattr__(self, key, values[key])
        object.__setattr__(self, "given", given)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A Retry is frozen; make another one to change {name}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A Retry is frozen; {name} cannot be deleted.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Retry):
            return NotImplemented
        return self.given == other.given and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self.given, *self._values()))

    def __repr__(self) -> str:
        shown = (f"{key}={getattr(self, key)!r}" for key in _DEFAULTS if key in self.given)
        return f"Retry({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, ({key: getattr(self, key) for key in self.given},)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, key) for key in _DEFAULTS)

    # --- making ------------------------------------------------------------------------------

    @classmethod
    def of(cls, value: int | Retry | None) -> Retry | None:
        """The policy that ``retries=value`` stands for; a number ``n`` means n extra tries."""
        if value is None or isinstance(value, Retry):
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigurationError(
                f"retries must be a number of extra tries (0, 1, 2, …) or a Retry, got {value!r}."
            )
        return cls(max_attempts=value + 1)

    def over(self, base: Retry | None) -> Retry:
        """This policy laid over ``base``: keys not given here keep the base's value."""
        if base is None or not base.given:
            return self
        if not self.given:
            return base
        made = object.__new__(Retry)
        made._fill(
            {key: getattr(self if key in self.given else base, key) for key in _DEFAULTS},
            self.given | base.given,
        )
        return made

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Retry:
        """The policy that :meth:`to_dict` stored."""
        return cls._from(stored, {key: key for key in _STORABLE})

    @classmethod
    def from_spec(cls, spec: int | Mapping[str, Any] | None) -> Retry | None:
        """The policy of a spec's ``retries``: a number, or a mapping in camelCase or snake_case."""
        if spec is None or isinstance(spec, int):
            return cls.of(spec)
        if not isinstance(spec, Mapping):
            raise ConfigurationError(f"retries must be a number or an object, got {spec!r}.")
        return cls._from(spec, _SPEC_KEYS)

    @classmethod
    def _from(cls, mapping: Mapping[str, Any], names: Mapping[str, str]) -> Retry:
        keys: dict[str, Any] = {}
        for name, value in mapping.items():
            if name not in names:
                raise ConfigurationError(
                    f"retries has no key {name!r}. Use {', '.join(sorted(names))}."
                )
            if names[name] in keys:
                raise ConfigurationError(f"retries gives {names[name]} twice. Keep one spelling.")
            if callable(value):
                raise ConfigurationError(f"retries: {name} must be data here, got {value!r}.")
            keys[names[name]] = value
        return cls(**keys)

    def to_dict(self) -> dict[str, Any]:
        """The given keys that JSON can hold; functions and classes stay with the code."""
        return {
            key: getattr(self, key)
            for key in _STORABLE
            if key in self.given and not callable(getattr(self, key))
        }

    # --- asking ------------------------------------------------------------------------------

    @property
    def extra(self) -> int | None:
        """Extra tries after the first one, ``None`` when this policy does not say."""
        return None if self.max_attempts is None else self.max_attempts - 1

    @property
    def proposes_wait(self) -> bool:
        """Whether this policy says how long to wait, so that its wait counts beside others."""
        return "delay" in self.given or "backoff" in self.given

    @property
    def cap(self) -> float:
        """The longest wait in seconds."""
        return max(DEFAULT_MAX_DELAY, self.delay) if self.max_delay is None else self.max_delay

    def wait(self, attempt: int, error: BaseException | None = None) -> float | None:
        """Seconds before try ``attempt`` + 1, never above :attr:`cap`; ``None`` = give up."""
        jitter = self.jitter
        if callable(self.backoff):
            asked = self._ask_backoff(attempt, error)
            if asked is None:
                return None
            seconds = asked
            # A function says what it wants; its wait is moved only where jitter was asked for.
            jitter = jitter if "jitter" in self.given else 0.0
        elif self.backoff == "exponential":
            seconds = _power(self.delay, self.factor, attempt - 1, self.cap)
        else:
            seconds = self.delay
        seconds = min(seconds, self.cap)
        moved = seconds + ids.jitter(seconds * jitter)
        # What would pass the cap is mirrored below it, so that a fleet at its cap stays spread.
        return max(2 * self.cap - moved if moved > self.cap else moved, 0.0)

    def _ask_backoff(self, attempt: int, error: BaseException | None) -> float | None:
        assert callable(self.backoff)
        try:
            asked = self.backoff(attempt, error)
            return None if asked is None else _seconds("backoff", asked)
        except Exception:
            logger.warning(
                "The backoff function %r failed for attempt %d; its delay of %g s is used.",
                self.backoff, attempt, self.delay, exc_info=True,
            )  # fmt: skip
            return self.delay

    def retries(self, error: BaseException) -> bool:
        """Whether a failure of this kind may be tried again, whatever number of tries is left."""
        if isinstance(error, PERMANENT):
            return False
        if any(_matches(matcher, error, failing=False) for matcher in self.give_up_on):
            return False
        if not self.retry_on:
            return True
        return any(_matches(matcher, error, failing=True) for matcher in self.retry_on)


def tries_allowed(step: int | None, workflow: int | None, default: int) -> int:
    """1 + min(T, W): T is the step's extra tries or else ``default``, W ``None`` is unlimited."""
    extra = default if step is None else step
    return 1 + (extra if workflow is None else min(extra, workflow))


def _rebuild(keys: dict[str, Any]) -> Retry:
    return Retry(**keys)


def _power(delay: float, factor: float, exponent: int, cap: float) -> float:
    try:
        return delay * factor**exponent
    except OverflowError:
        return cap


def _matches(matcher: Matcher, error: BaseException, *, failing: bool) -> bool:
    """Whether ``matcher`` names ``error``; ``failing`` is the answer of a function that raises."""
    if isinstance(matcher, type):
        return isinstance(error, matcher)
    try:
        return bool(matcher(error))
    except Exception:
        logger.warning("The retry condition %r failed; it is ignored.", matcher, exc_info=True)
        return failing


def _wrong(key: str, value: Any, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"Retry({key}={value!r}): {remedy}")


def _number(key: str, value: Any, low: float, high: float, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(key, value, remedy)
    if not (low <= value <= high) or not math.isfinite(value):
        raise _wrong(key, value, remedy)
    return float(value)


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    remedy = "give a number of seconds or a timedelta, 0 or more and at most ten years."
    return _number(key, value, 0, LONGEST_WAIT, remedy)


def _attempts(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(key, value, "give the number of tries, the first one included: 1 or more.")
    return value


def _backoff(key: str, value: Any) -> Any:
    if callable(value) or value in ("fixed", "exponential"):
        return value
    remedy = 'give "fixed", "exponential" or a function (attempt, error) -> seconds.'
    raise _wrong(key, value, remedy)


def _factor(key: str, value: Any) -> float:
    remedy = 'give a number from 1 to 1000; for equal waits use backoff="fixed".'
    return _number(key, value, 1, 1000, remedy)


def _jitter(key: str, value: Any) -> float:
    return _number(key, value, 0, 1, "give the random part of the wait, from 0 (exact) to 1.")


def _matchers(key: str, value: Any) -> tuple[Matcher, ...]:
    matchers = tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)
    for matcher in matchers:
        wrong_class = isinstance(matcher, type) and not issubclass(matcher, BaseException)
        if wrong_class or not callable(matcher):
            raise _wrong(key, matcher, "give exception classes, or functions of the exception.")
    return matchers


def _restore(key: str, value: Any) -> Restore:
    if isinstance(value, bool) or callable(value):
        return value
    raise _wrong(key, value, "give True, False or a function (input, task_status) -> bool.")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_attempts": _attempts,
    "delay": _seconds,
    "backoff": _backoff,
    "factor": _factor,
    "max_delay": _seconds,
    "jitter": _jitter,
    "retry_on": _matchers,
    "give_up_on": _matchers,
    "restore": _restore,
}
