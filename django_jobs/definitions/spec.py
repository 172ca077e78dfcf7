"""A DAG from JSON data: the whole spec is checked, and every fault is told at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from django_jobs import conf, jsonvalues
from django_jobs.definitions.graph import Graph, HttpCall, Step
from django_jobs.definitions.options import check_name, check_step_id, seconds
from django_jobs.definitions.retry import Retry
from django_jobs.errors import ConfigurationError, InvalidInput
from django_jobs.lifecycle import StepKind

D = TypeVar("D")
Fault = tuple[str, str]

#: Seconds that a run, and an HTTP step, of a spec may take unless it says otherwise.
RUN_TIMEOUT, STEP_TIMEOUT = 24 * 3600.0, 300.0
#: Tries of an HTTP step that says nothing of retries.
HTTP_TRIES = 3
RUN_KEYS = {
    "id": "id", "steps": "steps", "context": "context", "timeout": "timeout", "saga": "saga", "version": "version",
    "onComplete": "on_complete", "on_complete": "on_complete", "onError": "on_error", "on_error": "on_error",
    "onCompensationError": "on_compensation_error", "on_compensation_error": "on_compensation_error",
}  # fmt: skip
STEP_KEYS = {
    "id": "id", "url": "url", "dependsOn": "depends_on", "depends_on": "depends_on", "parallel": "parallel",
    "retries": "retries", "timeout": "timeout", "compensation": "compensation", "optional": "optional",
    "runIf": "run_if", "run_if": "run_if", "callback": "callback", "headers": "headers",
}  # fmt: skip


def read_spec(cls: type[D], spec: Mapping[str, Any], place: str) -> D:
    """The DAG of class ``cls`` that ``spec`` describes; ConfigurationError lists every fault."""
    if not isinstance(spec, Mapping):
        raise ConfigurationError(f"A spec is an object with id and steps, not {spec!r}.")
    reader = _Reader(str(spec.get("id", "?")))
    given, steps = reader.run(spec)
    if not reader.faults:
        try:
            Graph(f"spec {reader.name!r}", steps)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"Spec {reader.name!r} is not valid: field 'dependsOn': {error}"
            ) from None
    if reader.faults:
        told = "; ".join(f"{where}: {what}" for where, what in reader.faults)
        raise ConfigurationError(f"Spec {reader.name!r} is not valid: {told}")
    made: Any = cls.__new__(cls)
    context = given.pop("context")
    made._build(
        place,
        False,
        given.pop("id"),
        label="",
        queue_name="default",
        priority=0,
        concurrency=None,
        **given,
    )
    object.__setattr__(made, "_steps", {step.id: step for step in steps})
    object.__setattr__(
        made, "spec", {**jsonvalues.plain(dict(spec), what="spec"), "context": context}
    )
    return made


class _Reader:
    """Reads one spec and collects its faults: (where, what)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[Fault] = []

    def run(self, spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[Step]]:
        known = self._renamed(spec, RUN_KEYS, "the spec")
        where = "the spec, field "
        given = {
            "id": self._checked(f"{where}'id'", known.get("id"), lambda v: check_name(v, "id")),
            "version": self._checked(f"{where}'version'", known.get("version"), _or_none(_version)),
            "timeout": self._checked(f"{where}'timeout'", known.get("timeout", RUN_TIMEOUT), _duration),
            "saga": self._checked(f"{where}'saga'", known.get("saga"), _or_none(_boolean)),
            "on_complete": self._checked(f"{where}'onComplete'", known.get("on_complete"), _or_none(_url)),
            "on_error": self._checked(f"{where}'onError'", known.get("on_error"), _or_none(_url)),
            "on_compensation_error": self._checked(
                f"{where}'onCompensationError'", known.get("on_compensation_error", "stop"), _stop_or_continue
            ),
            "context": self._checked(f"{where}'context'", known.get("context", {}), _object),
        }  # fmt: skip
        return given, self._steps(known.get("steps"))

    def _steps(self, listed: Any) -> list[Step]:
        if not isinstance(listed, list | tuple) or not listed:
            self.faults.append(("the spec, field 'steps'", "must be a list of at least one step."))
            return []
        steps: list[Step] = []
        seen: set[str] = set()
        for number, one in enumerate(listed):
            if not isinstance(one, Mapping):
                self.faults.append((f"step {number}", f"is an object, not {one!r}."))
                continue
            name = repr(one["id"]) if "id" in one else str(number)
            step = self._step(one, f"step {name}")
            if step is None:
                continue
            if step.id in seen:
                self.faults.append((f"step {name}, field 'id'", "is used twice."))
            seen.add(step.id)
            steps.append(step)
        ids = {str(one.get("id")) for one in listed if isinstance(one, Mapping)}
        for step in steps:
            for other in step.after:
                if other not in ids:
                    self.faults.append(
                        (
                            f"step {step.id!r}, field 'dependsOn'",
                            f"names the unknown step {other!r}.",
                        )
                    )
        return steps

    def _step(self, one: Mapping[str, Any], where: str) -> Step | None:
        before = len(self.faults)
        known = self._renamed(one, STEP_KEYS, where)
        field = f"{where}, field "
        step_id = self._checked(f"{field}'id'", known.get("id"), check_step_id)
        url = self._checked(f"{field}'url'", known.get("url"), _url)
        after = self._checked(f"{field}'dependsOn'", known.get("depends_on", ()), _names)
        parallel = self._checked(f"{field}'parallel'", known.get("parallel", False), _boolean)
        retries = self._checked(f"{field}'retries'", known.get("retries"), _retries)
        timeout = self._checked(f"{field}'timeout'", known.get("timeout", STEP_TIMEOUT), _duration)
        undo = self._checked(f"{field}'compensation'", known.get("compensation"), _or_none(_url))
        optional = self._checked(f"{field}'optional'", known.get("optional", False), _boolean)
        run_if = self._checked(f"{field}'runIf'", known.get("run_if"), _run_if)
        callback = self._checked(f"{field}'callback'", known.get("callback", False), _boolean)
        headers = self._checked(f"{field}'headers'", known.get("headers", {}), _headers)
        if len(self.faults) > before:
            return None
        call = HttpCall(url=url, headers=headers, callback=callback, compensation=undo)
        return Step(
            id=step_id, kind=StepKind.HTTP, after=after, retries=retries, timeout=timeout, optional=optional,
            run_if=run_if, parallel=parallel, http=call,
        )  # fmt: skip

    def _renamed(
        self, given: Mapping[str, Any], names: Mapping[str, str], where: str
    ) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for name, value in given.items():
            if name not in names:
                self.faults.append(
                    (f"{where}, field {name!r}", f"is not known. Known are {', '.join(names)}.")
                )
            elif names[name] in known:
                self.faults.append((f"{where}, field {name!r}", "is given in both spellings."))
            else:
                known[names[name]] = value
        return known

    def _checked(self, where: str, value: Any, check: Callable[[Any], Any]) -> Any:
        try:
            return check(value)
        except (InvalidInput, ConfigurationError, ValueError) as error:
            self.faults.append((where, str(error)))
            return None


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _version(value: Any) -> str:
    return check_name(value, "version")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"must be true or false, not {value!r}.")
    return value


def _duration(value: Any) -> float:
    limit = seconds(value, "it")
    if not limit:
        raise InvalidInput("must be longer than 0 s.")
    return limit


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"must be an object, not {value!r}.")
    plain: dict[str, Any] = jsonvalues.plain(dict(value), what="context")
    return plain


def _stop_or_continue(value: Any) -> str:
    if value not in ("stop", "continue"):
        raise InvalidInput(f"must be 'stop' or 'continue', not {value!r}.")
    return str(value)


def _run_if(value: Any) -> str | None:
    if value not in (None, "all_done"):
        raise InvalidInput(f"must be 'all_done' or left out, not {value!r}.")
    return value


def _names(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise InvalidInput(f"must be a list of step ids, not {value!r}.")
    return tuple(dict.fromkeys(listed))


def _headers(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(one, str) for pair in value.items() for one in pair
    ):
        raise InvalidInput(f"must be an object of texts, not {value!r}.")
    return dict(value)


def _retries(value: Any) -> Retry:
    return (Retry.from_spec(value) or Retry()).over(Retry(max_attempts=HTTP_TRIES))


def _url(value: Any) -> str:
    """An http(s) URL; a relative one is joined to HTTP_BASE_URL, without which it is refused."""
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"must be a URL, not {value!r}.")
    parts = urlsplit(value)
    if not parts.scheme and not parts.netloc:
        base = conf.get().http_base_url
        if not base:
            raise InvalidInput(
                f"is the relative URL {value!r}. Give a whole one, or set DJANGO_JOBS['HTTP_BASE_URL']."
            )
        value = urljoin(base, value)
        parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"must be an https URL, not {value!r}.")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("must not hold credentials.")
    return value
