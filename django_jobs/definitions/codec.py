"""One type to JSON and back, by pydantic, such that nothing is stored that would not come back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    SchemaValidator,
    core_schema,
    to_json,
)

from django_jobs import jsonvalues
from django_jobs.errors import ConfigurationError

#: Errors named in one message; the rest is counted.
SHOWN_ERRORS = 10

_CONFIG: core_schema.CoreConfig = {
    "ser_json_bytes": "base64",
    "val_json_bytes": "base64",
    "ser_json_inf_nan": "constants",
    "allow_inf_nan": False,
}
#: A validated value of these kinds is its own JSON.
_JSON_KINDS = frozenset(
    {
        "any", "none", "bool", "int", "float", "str", "list", "dict", "nullable", "literal",
        "typed-dict", "typed-dict-field",
    }
)  # fmt: skip
#: Whatever the value, these come back from JSON exactly as they were.
_EXACT_KINDS = (_JSON_KINDS - {"any"}) | {
    "decimal", "date", "uuid", "bytes", "set", "frozenset", "tuple", "enum",
}  # fmt: skip
_NOT_DATA = {
    "callable": "a callable is not data",
    "generator": "an iterator is read only once",
    "is-subclass": "a class is not data",
}


class Unfit(Exception):
    """A value does not fit its type; the text has the paths and the reasons, never the value."""


class Codec:
    """One type, to JSON and back.

    :meth:`dump` refuses what :meth:`load` would not give back: by the type alone where that is
    certain, else by trying it. ``closed`` says that ``hint`` is a TypedDict that drops what it
    does not name.
    """

    def __init__(self, hint: Any, what: str, *, closed: bool = False) -> None:
        found = _Findings()
        try:
            self.adapter: TypeAdapter[Any] = TypeAdapter(hint)
            core = _prepared(self.adapter.core_schema, found, {}, closed=closed)
            self._validator = SchemaValidator(core, _CONFIG)
            self._serializer = SchemaSerializer(core, _CONFIG)
        except Exception as error:
            found.refused = first_line(error)
        if found.refused:
            raise ConfigurationError(
                f"{what}: the type hint {_hint_name(hint)} cannot be stored as JSON "
                f"({found.refused}). Use JSON types, dataclasses or pydantic models; for a "
                "database object pass the primary key."
            )
        self._is_json = found.kinds <= _JSON_KINDS and not found.inexact
        self._is_exact = found.kinds <= _EXACT_KINDS and not found.inexact
        # Of these kinds a JSON value can be read as it is, without its way through text.
        self._reads_values = self._is_exact or self._is_json
        self._names: dict[str, Any] = {"by_name": True} if found.aliased else {}
        self._stored_names: dict[str, Any] = (
            {"by_name": True, "by_alias": False} if found.aliased else {}
        )

    def dump(self, value: Any, path: str, limit: int = jsonvalues.DEFAULT_LIMIT) -> Any:
        """The JSON value of ``value``; Unfit or NotSerializable name the path."""
        try:
            typed = self._validator.validate_python(value, **self._names)
        except ValidationError as error:
            raise Unfit(_listing(error, path)) from None
        if self._is_json:
            return jsonvalues.plain(typed, what=path, limit=limit)
        stored = jsonvalues.plain(self._encode(typed, path), what=path, limit=limit)
        if not self._is_exact:
            self._check_return(typed, stored, path)
        return stored

    def _encode(self, typed: Any, path: str) -> Any:
        try:
            return self.encode(typed)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise Unfit(f"{self._place(typed, path)}: {_encoding_fault(error)}") from None

    def encode(self, typed: Any) -> Any:
        """The JSON value of a validated value, unchecked; raises what pydantic raises."""
        # Polymorphic, so that a subclass keeps its own fields where its base is the hint.
        return self._serializer.to_python(
            typed,
            mode="json",
            by_alias=False,
            round_trip=True,
            warnings="none",
            polymorphic_serialization=True,
        )

    def _place(self, typed: Any, path: str) -> str:
        """The field that cannot be encoded, where ``typed`` is the dict of all parameters."""
        if isinstance(typed, dict):
            for name, value in typed.items():
                try:
                    self.encode({name: value})
                except Exception:
                    return jsonvalues.join(path, str(name))
        return path

    def _check_return(self, typed: Any, stored: Any, path: str) -> None:
        """Refuse a value that would come back as another one."""
        try:
            again = self.load(stored, path)
        except Unfit as error:
            raise Unfit(f"{error} (once stored, the value could not be read back)") from None
        if change := _difference(typed, again):
            *parts, before, after = change
            for part in parts:
                path = jsonvalues.join(path, part if isinstance(part, int) else str(part))
            raise Unfit(f"{path}: {_told(before, after)}")

    def load(self, stored: Any, path: str) -> Any:
        """The typed value of a JSON value; Unfit names the path."""
        try:
            if self._reads_values:
                return self._validator.validate_python(stored, **self._stored_names)
            return self._validator.validate_json(to_json(stored), **self._stored_names)
        except ValidationError as error:
            raise Unfit(_listing(error, path)) from None


# --- the core schema --------------------------------------------------------------------------


class _Findings:
    """What the walk over a core schema found."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.inexact = False
        self.aliased = False
        self.refused = ""


_LEAVES = frozenset({"metadata", "config", "default", "cls", "expected", "members", "ref"})


def _prepared(node: Any, found: _Findings, seen: dict[int, Any], *, closed: bool = False) -> Any:
    """A copy of a core schema with our rules for bytes, NaN and subclasses; collects its kinds.

    Models keep their own configuration: pydantic reuses the validator of a finished class.
    """
    if isinstance(node, list | tuple):
        return type(node)(_prepared(member, found, seen) for member in node)
    if not isinstance(node, dict):
        return node
    if id(node) in seen:
        return seen[id(node)]
    made: dict[str, Any] = {}
    seen[id(node)] = made
    for key, member in node.items():
        made[key] = member if key in _LEAVES else _prepared(member, found, seen)
    _collect(node, found)
    kind = node.get("type")
    if kind in ("dataclass", "typed-dict"):
        made["config"] = {**_CONFIG, **(node.get("config") or {})}
    if kind == "typed-dict" and not closed and not _says_extra(node):
        # A TypedDict is open: what it does not name is kept instead of silently dropped.
        made["extra_behavior"] = "allow"
        found.kinds.add("any")
    if kind == "dataclass" and "serialization" not in node:
        made["serialization"] = core_schema.wrap_serializer_function_ser_schema(
            functools.partial(_encode_dataclass, node["cls"])
        )
    return made


def _says_extra(node: dict[str, Any]) -> bool:
    """Whether a TypedDict itself says what becomes of keys that it does not name."""
    cls = node.get("cls")
    closed = getattr(cls, "__closed__", None) or "extras_schema" in node
    return bool(closed) or "extra" in (getattr(cls, "__pydantic_config__", None) or {})


def _encode_dataclass(cls: type, value: Any, handler: Callable[[Any], Any]) -> Any:
    """A dataclass by its own fields, not by those of the base that is the hint."""
    kind: Any = type(value)
    if kind is cls or not issubclass(kind, cls):
        return handler(value)
    return _codec_of(kind).encode(value)


@functools.lru_cache(maxsize=1024)
def _codec_of(kind: type) -> Codec:
    return Codec(kind, kind.__qualname__)


def _collect(node: dict[str, Any], found: _Findings) -> None:
    kind = node.get("type")
    if isinstance(kind, str):
        found.kinds.add(kind)
        found.refused = found.refused or _NOT_DATA.get(kind, "")
    if kind == "dict":
        found.inexact |= (node.get("keys_schema") or {"type": "any"}).get("type") not in _PLAIN_KEYS
    elif kind == "literal":
        found.inexact |= not _are_alike(node["expected"])
    elif kind == "enum":
        found.inexact |= not _are_alike([member.value for member in node["members"]])
    elif kind == "typed-dict":
        found.inexact |= bool((node.get("config") or {}).keys() - {"title"})
    if "serialization" in node or node.get("strict"):
        found.inexact = True
    found.aliased |= "validation_alias" in node or "serialization_alias" in node


_PLAIN_KEYS = frozenset({"str", "any"})


def _are_alike(values: list[Any]) -> bool:
    kinds = {type(value) for value in values}
    return len(kinds) == 1 and kinds <= {str, int, bool}


# --- comparing --------------------------------------------------------------------------------

_COMPARED = frozenset({str, int, float, type(None), bytes, deque})


def _difference(before: Any, after: Any) -> tuple[Any, ...]:
    """Empty where ``after`` is the same value as ``before``, else the path and the two values."""
    kind = type(after)
    if before is after or (kind in _COMPARED and type(before) is kind and before == after):
        return ()
    if kind is dict:
        if not isinstance(before, Mapping) or len(before) != len(after):
            return before, after
        for key, member in before.items():
            if key not in after:
                return key, _Key(key), after
            if change := _difference(member, after[key]):
                return key, *change
        return ()
    if isinstance(after, list | tuple | deque):
        if not isinstance(before, list | tuple | deque) or len(before) != len(after):
            return before, after
        for index, member in enumerate(before):
            if change := _difference(member, after[index]):
                return index, *change
        return ()
    if (fields := _fields(after)) is not None:
        if not isinstance(before, kind):
            return before, after
        # A subclass has more fields than its base: they are stored, and the base comes back.
        known = _fields(before) or {}
        for name, member in fields.items():
            if change := _difference(known.get(name), member):
                return name, *change
        return ()
    return () if _equal(before, after) else (before, after)


_SAME_OBJECT: Any = object.__eq__


class _Key:
    """Stands for a key of a dict that would come back as another one."""

    def __init__(self, key: Any) -> None:
        self.key = key


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a model or dataclass; None for anything else."""
    if isinstance(value, BaseModel):
        extra = value.__pydantic_extra__
        return {**value.__dict__, **extra} if extra else value.__dict__
    if dataclasses.is_dataclass(value):
        return {
            one.name: getattr(value, one.name)
            for one in dataclasses.fields(value)
            if hasattr(value, one.name)
        }
    return None


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, bool) or isinstance(after, bool):
        return False  # two booleans were told apart by identity
    if isinstance(before, datetime) and isinstance(after, datetime):
        if before.tzinfo is None or after.tzinfo is None:
            return before.tzinfo is after.tzinfo and before == after
        # Aware times of two zones are never equal in a repeated hour, so UTC decides.
        return before.astimezone(UTC) == after.astimezone(UTC)
    if not isinstance(before, type(after)):
        return False
    kind: Any = type(after)
    if isinstance(before, Enum) and not isinstance(after, Enum):
        return kind in (str, int) and bool(before == after)
    if kind.__eq__ is _SAME_OBJECT:
        # A type that cannot be compared is trusted where its attributes are the same.
        return not _difference(getattr(before, "__dict__", {}), getattr(after, "__dict__", {}))
    return bool(before == after)


def _told(before: Any, after: Any) -> str:
    if isinstance(before, _Key):
        return (
            f"the key is {type(before.key).__qualname__}, and JSON keys are text. Use text keys, "
            "or annotate the type of the keys, for example dict[int, str]."
        )
    if isinstance(before, float) and not math.isfinite(before):
        return f"{before!r} is not a JSON number. Pass None instead."
    one, two = type(before).__qualname__, type(after).__qualname__
    how = f"{one} would come back as {two}" if one != two else f"the {one} would come back changed"
    return f"{how}. Annotate the exact type, or convert the value first."


# --- texts ------------------------------------------------------------------------------------


def _listing(error: ValidationError, path: str) -> str:
    """Every bad field with its reason; never the value, which may be a secret."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = []
    for one in errors[:SHOWN_ERRORS]:
        place = path
        for part in one["loc"]:
            place = jsonvalues.join(place, part)
        lines.append(f"{place}: {one['msg']}")
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"and {len(errors) - SHOWN_ERRORS} more")
    return jsonvalues.clean_text("; ".join(lines), 8192)


def _encoding_fault(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError) or "invalid utf-8" in str(error):
        return (
            "the model holds bytes that are no UTF-8 text. Give it "
            'model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64").'
        )
    return f"the value cannot be stored as JSON ({first_line(error)})."


def first_line(error: BaseException) -> str:
    """What went wrong, in one line without a full stop."""
    text = jsonvalues.clean_text(str(error), 2048).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def first(found: Iterable[str]) -> str:
    """The first text that is not empty."""
    return next((text for text in found if text), "")


def _hint_name(hint: Any) -> str:
    return getattr(hint, "__qualname__", None) or repr(hint)
