"""Declared secrets, kept out of what is stored of errors and logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django_jobs import conf, jsonvalues
from django_jobs.definitions.task import Definition
from django_jobs.errors import ErrorDict

#: Shorter values are too common to be hidden wherever they occur.
SHORTEST = 4


class Secrets:
    """The secret names of one call, and the values that its input holds under them.

    A step's secrets include those of the job ``around`` it.
    """

    def __init__(
        self, definition: Definition | None, input: Any, *, around: Secrets | None = None
    ) -> None:
        declared = definition.redact if definition is not None else ()
        outer = conf.get().redact if around is None else around.names
        self.names: tuple[str, ...] = tuple(dict.fromkeys((*outer, *declared)))
        self._input = input
        self._around = around
        self._values: list[str] | None = None

    def learn(self, inner: Secrets) -> None:
        """Hide what ``inner`` hides as well: errors of a step are causes of the job's own."""
        self.names = tuple(dict.fromkeys((*self.names, *inner.names)))
        self._values = sorted({*self.values, *inner.values}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """``text`` without secrets, by pattern and by value."""
        return jsonvalues.redact_text(self._without_values(text), self.names)

    def describe(self, error: BaseException, *, code: str | None = None) -> ErrorDict:
        """The stored form of ``error``."""
        described = jsonvalues.describe_error(error, code=code, names=self.names)
        for key in ("message", "traceback"):
            described[key] = self._without_values(described[key])
        return described

    def _without_values(self, text: str) -> str:
        for value in self.values:
            text = text.replace(value, jsonvalues.HIDDEN)
        return text

    @property
    def values(self) -> list[str]:
        """Secret texts of the input, the longest first: one may hold another."""
        if self._values is None:
            shown = jsonvalues.redact(self._input, self.names)
            outer = [] if self._around is None else self._around.values
            found = {*outer, *_hidden(self._input, shown)}
            self._values = sorted(found, key=len, reverse=True)
        return self._values


def _hidden(value: Any, shown: Any) -> Iterator[str]:
    """The texts in ``value`` that ``shown``, its redacted copy, lacks."""
    if isinstance(value, dict) and isinstance(shown, dict):
        for key, member in value.items():
            yield from _hidden(member, shown.get(key))
    elif isinstance(value, list) and isinstance(shown, list):
        for member, seen in zip(value, shown, strict=True):
            yield from _hidden(member, seen)
    elif shown == jsonvalues.HIDDEN:
        yield from _texts(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value)
        if len(text) >= SHORTEST:
            yield text
