"""What a function takes and returns: checked, typed, and stored as JSON.

A :class:`Schema` is built from the function's signature and type hints. Hints are resolved when
they are first needed, never while Django still loads its apps.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import threading
import types
import typing
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pydantic
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    SchemaValidator,
    to_json,
    to_jsonable_python,
)
from pydantic_core.core_schema import CoreConfig
from typing_extensions import NotRequired, Required, TypedDict

from django_jobs import jsonvalues
from django_jobs.definitions.retry import UNSET
from django_jobs.errors import ConfigurationError, InvalidInput, InvalidOutput, NotSerializable

__all__ = ["SURPLUS", "UNSET", "Codec", "Schema"]

#: Under this key the stored input holds what ``*args`` took.
SURPLUS = "*"
#: Errors named in one message; the rest is counted.
SHOWN_ERRORS = 10


class Schema:
    """The input and output of one function.

    ``takes_context`` leaves out the first parameter. ``input_schema`` and ``output_schema``
    replace the hints. ``what`` names the function in error texts.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        takes_context: bool = False,
        input_schema: type[BaseModel] | None = None,
        output_schema: Any = UNSET,
        what: str = "",
    ) -> None:
        self.func = func
        self.takes_context = takes_context
        self.input_schema = input_schema
        self.output_schema = UNSET if output_schema is None else output_schema
        self.what = what or f"function {getattr(func, '__qualname__', func)!r}"
        self._lock = threading.Lock()
        self._resolved = False
        if input_schema is not None and not _is_model(input_schema):
            raise ConfigurationError(
                f"{self.what}: input_schema must be a pydantic model class, got {input_schema!r}."
            )

    def __repr__(self) -> str:
        return f"<Schema of {self.what}>"

    # --- the signature -----------------------------------------------------------------------

    @functools.cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters that take input, ``*args`` and ``**kwargs`` included."""
        try:
            found = list(inspect.signature(self.func).parameters.values())
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{self.what}: its signature cannot be read ({error}). Wrap it in a def."
            ) from error
        if self.takes_context:
            if not found or found[0].kind is inspect.Parameter.KEYWORD_ONLY:
                raise ConfigurationError(
                    f"{self.what}: it takes a context, so its first parameter must be the context."
                )
            if found[0].kind is not inspect.Parameter.VAR_POSITIONAL:
                found = found[1:]
        return {one.name: one for one in found}

    @functools.cached_property
    def _named(self) -> dict[str, inspect.Parameter]:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {name: one for name, one in self._parameters.items() if one.kind not in kinds}

    def _has(self, kind: Any) -> bool:
        return any(one.kind is kind for one in self._parameters.values())

    @functools.cached_property
    def _positional(self) -> list[str]:
        """Names that positional arguments fill, in order."""
        return [
            name for name, one in self._named.items() if one.kind is not one.KEYWORD_ONLY
        ]

    @functools.cached_property
    def _positional_only(self) -> list[str]:
        return [
            name for name, one in self._named.items() if one.kind is one.POSITIONAL_ONLY
        ]

    @functools.cached_property
    def _takes_surplus(self) -> bool:
        return self._has(inspect.Parameter.VAR_POSITIONAL)

    @functools.cached_property
    def _takes_any_name(self) -> bool:
        return self._has(inspect.Parameter.VAR_KEYWORD)

    @functools.cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the input's fields."""
        if self.input_schema is not None:
            return tuple(self.input_schema.model_fields)
        return tuple(self._named)

    @functools.cached_property
    def required_fields(self) -> tuple[str, ...]:
        """The fields without a default."""
        if self.input_schema is not None:
            fields = self.input_schema.model_fields
            return tuple(name for name, one in fields.items() if one.is_required())
        return tuple(name for name, one in self._named.items() if one.default is one.empty)

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        """Every key that an input may have."""
        known = set(self.parameter_names)
        if self.input_schema is not None:
            known |= _aliases(self.input_schema)
        elif self._takes_surplus:
            known.add(SURPLUS)
        return frozenset(known)

    @functools.cached_property
    def _needed(self) -> frozenset[str]:
        # A model names its own missing fields: they may arrive under an alias.
        return frozenset() if self.input_schema is not None else frozenset(self.required_fields)

    @functools.cached_property
    def _open(self) -> bool:
        """Whether keys that are not known are taken too."""
        if self.input_schema is not None:
            return self.input_schema.model_config.get("extra") == "allow"
        return self._takes_any_name

    # --- the hints ---------------------------------------------------------------------------

    def resolve(self) -> None:
        """Resolve the hints and build the validators; ConfigurationError names what is wrong."""
        if self._resolved:
            return
        with self._lock:
            if self._resolved:
                return
            hints = self._hints()
            self._typed = {name: hint for name, hint in hints.items() if not _is_open(hint)}
            self._typed.pop("return", None)
            self._takes_model = False
            self._input: Codec | None = None
            if self.input_schema is not None:
                self._takes_model = self._check_fits_model(hints)
                self._input = Codec(self.input_schema, f"{self.what}: its input schema")
            elif self._typed:
                self._input = Codec(self._input_type(self._typed), f"{self.what}: its parameters")
            self._all_typed = self._typed.keys() == self._named.keys() and not (
                self._takes_any_name or self._takes_surplus
            )
            returned = hints.get("return", Any)
            self._output = (
                None if _is_open(returned) else Codec(returned, f"{self.what}: its return value")
            )
            self._resolved = True

    def _hints(self) -> dict[str, Any]:
        """The resolved hints by parameter, and ``return``. The context's own hint is not looked at."""
        function = _plain_function(self.func)
        written = dict(getattr(function, "__annotations__", {}))
        wanted = dict.fromkeys(self._named) if self.input_schema is None else {}
        if self.input_schema is not None:
            wanted = {name: None for name in self._named if _may_be_model(written.get(name))}
        hints = {
            name: self._hint(function, name, written[name]) for name in wanted if name in written
        }
        if self.output_schema is not UNSET:
            hints["return"] = self.output_schema
            self._check_hint("return", self.output_schema)
        elif "return" in written:
            hints["return"] = _awaited(self._hint(function, "return", written["return"]))
        return hints

    def _hint(self, function: Any, name: str, written: Any) -> Any:
        place = "the return value" if name == "return" else f"the parameter {name!r}"
        holder = types.SimpleNamespace(__annotations__={name: written})
        try:
            hint = typing.get_type_hints(
                holder,
                globalns=getattr(function, "__globals__", {}),
                localns=_closure(function),
                include_extras=True,
            )[name]
        except Exception as error:
            raise ConfigurationError(
                f"{self.what}: the type hint {written!r} of {place} cannot be resolved ({error}). "
                "Import the type at module level, outside TYPE_CHECKING, or remove the hint."
            ) from error
        self._check_hint(name, hint)
        return hint

    def _check_hint(self, name: str, hint: Any) -> None:
        place = "the return value" if name == "return" else f"the parameter {name!r}"
        if found := _database_type(hint):
            raise ConfigurationError(
                f"{self.what}: {place} is annotated with {found}, which lives in the database. "
                "Pass the primary key and load the object in the handler."
            )

    def _input_type(self, hints: Mapping[str, Any]) -> Any:
        """One TypedDict for all parameters, so that one validator checks them together."""
        members = {
            name: (Required if name in self._needed else NotRequired)[hint]
            for name, hint in hints.items()
        }
        made = TypedDict("Input", members)  # type: ignore[operator]
        made.__module__ = getattr(_plain_function(self.func), "__module__", None) or __name__
        return made

    def _check_fits_model(self, hints: Mapping[str, Any]) -> bool:
        """Whether the handler takes the model itself; refuses one that takes neither form."""
        assert self.input_schema is not None
        if len(self._named) == 1:
            [only] = self._named
            hint = hints.get(only)
            if isinstance(hint, type) and issubclass(self.input_schema, hint):
                return True
        fields = set(self.input_schema.model_fields)
        strange = [] if self._takes_any_name else sorted(fields - self._named.keys())
        lacking = [
            name
            for name, one in self._named.items()
            if name not in fields and one.default is one.empty
        ]
        if strange or lacking:
            raise ConfigurationError(
                f"{self.what}: the input schema {self.input_schema.__name__} does not fit the "
                f"signature (fields without a parameter: {', '.join(strange) or '-'}; parameters "
                f"without a field: {', '.join(lacking) or '-'}). Give both the same names, or take "
                "the model as the only parameter."
            )
        return False

    # --- input -------------------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as one dict by field; what ``*args`` takes is a list under ``"*"``.

        InvalidInput names a field that is unknown, missing or given twice.
        """
        if args:
            kwargs = self._bind_positional(args, kwargs)
        elif SURPLUS in kwargs and not self._takes_surplus and self._takes_any_name:
            self._refuse(f"the field {SURPLUS!r} is reserved")
        keys = kwargs.keys()
        if not (keys >= self._needed and (keys <= self._known or self._open)):
            self._refuse_names(kwargs)
        return kwargs if type(kwargs) is dict else dict(kwargs)

    def _bind_positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self.input_schema is not None and isinstance(args[0], self.input_schema):
            if len(args) > 1 or kwargs:
                self._refuse("a model is given, so nothing else may be given beside it")
            return {name: getattr(args[0], name) for name in _set_fields(args[0])}
        names = self._positional
        surplus = args[len(names) :]
        if surplus and not self._takes_surplus:
            self._refuse(
                f"{len(args)} positional arguments are given and at most {len(names)} are taken"
            )
        bound = dict(zip(names, args, strict=False))
        if twice := [name for name in kwargs if name in bound]:
            self._refuse(f"{_listed(twice)} is given both by position and by name")
        bound.update(kwargs)
        if surplus:
            bound[SURPLUS] = list(surplus)
        return bound

    def _refuse_names(self, kwargs: Mapping[str, Any]) -> None:
        unknown = [] if self._open else [name for name in kwargs if name not in self._known]
        missing = [name for name in self.required_fields if name in self._needed - kwargs.keys()]
        reasons = []
        if unknown:
            takes = _listed(self.parameter_names) or "no input"
            reasons.append(f"{_listed(unknown)} is not a parameter (it takes {takes})")
        if missing:
            reasons.append(f"{_listed(missing)} is missing")
        self._refuse("; ".join(reasons))

    def _refuse(self, reason: str) -> None:
        raise InvalidInput(f"{self.what}: {reason}.")

    def dump_input(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object to store for the fields ``kwargs``; defaults of the code are left out.

        InvalidInput names every field that does not fit, and what would not come back as it was.
        """
        self.resolve()
        keys = kwargs.keys()
        if not (keys >= self._needed and (keys <= self._known or self._open)):
            self._refuse_names(kwargs)
        if self._input is None:
            return self._plain_input(kwargs)
        try:
            if self._all_typed or self.input_schema is not None:
                return self._input.dump(kwargs, "input")  # type: ignore[no-any-return]
            typed = {name: value for name, value in kwargs.items() if name in self._typed}
            rest = {name: value for name, value in kwargs.items() if name not in self._typed}
            stored = self._input.dump(typed, "input")
            return {**stored, **jsonvalues.plain(rest)}
        except NotSerializable as error:
            raise NotSerializable(f"{self.what}: {error}") from None
        except _Unfit as error:
            raise InvalidInput(f"{self.what}: {error}") from error.__cause__

    def _plain_input(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return jsonvalues.plain(kwargs)  # type: ignore[no-any-return]
        except NotSerializable as error:
            raise NotSerializable(f"{self.what}: {error}") from None

    def load_input(self, stored: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The typed arguments of the call; InvalidInput where the stored input no longer fits."""
        self.resolve()
        if not isinstance(stored, dict):
            self._refuse(f"the stored input is no JSON object but {type(stored).__name__}")
        keys = stored.keys()
        if not (keys >= self._needed and (keys <= self._known or self._open)):
            self._refuse_names(stored)
        values = stored
        if self._input is not None:
            try:
                if self._all_typed or self.input_schema is not None:
                    values = self._input.load(stored, "input")
                else:
                    typed = {name: value for name, value in stored.items() if name in self._typed}
                    values = {**stored, **self._input.load(typed, "input")}
            except _Unfit as error:
                raise InvalidInput(f"{self.what}: {error}") from error.__cause__
            if self.input_schema is not None:
                return self._model_call(values)
        if self._positional_only or SURPLUS in stored and self._takes_surplus:
            return self._split(values)
        return (), values if values is not stored else dict(stored)

    def _model_call(self, model: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._takes_model:
            return (model,), {}
        values = {name: getattr(model, name) for name in type(model).model_fields}
        values |= model.__pydantic_extra__ or {}
        return self._split(values) if self._positional_only else ((), values)

    def _split(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional arguments first: the positional-only ones, or all where ``*args`` follow."""
        named = dict(values)
        surplus = named.pop(SURPLUS, ()) if self._takes_surplus else ()
        args: list[Any] = []
        for name in self._positional if surplus else self._positional_only:
            if name in named:
                args.append(named.pop(name))
            elif (default := self._named[name].default) is not inspect.Parameter.empty:
                args.append(default)
        return (*args, *surplus), named

    # --- output ------------------------------------------------------------------------------

    def dump_output(self, value: Any) -> Any:
        """The JSON value to store for a returned ``value``; InvalidOutput names what does not fit."""
        self.resolve()
        try:
            if self._output is None:
                return jsonvalues.plain(value, what="output")
            return self._output.dump(value, "output")
        except (NotSerializable, _Unfit) as error:
            raise InvalidOutput(f"{self.what}: {error}") from error.__cause__

    def load_output(self, stored: Any) -> Any:
        """The typed output of a stored one; the JSON value itself without a return hint."""
        self.resolve()
        if self._output is None:
            return stored
        try:
            return self._output.load(stored, "output")
        except _Unfit as error:
            raise InvalidOutput(f"{self.what}: {error}") from error.__cause__

    # --- for forms ---------------------------------------------------------------------------

    def input_json_schema(self) -> dict[str, Any]:
        """JSON Schema of the input, with the defaults of the signature."""
        self.resolve()
        if self.input_schema is not None:
            return self.input_schema.model_json_schema()
        hints = {name: self._typed.get(name, Any) for name in self._named}
        try:
            made = TypeAdapter(self._input_type(hints)).json_schema()
        except PydanticUserError:
            made = {"type": "object", "properties": {name: {} for name in hints}}
        made.pop("title", None)
        made.setdefault("properties", {})
        if self._needed:
            made["required"] = list(self.required_fields)
        made["additionalProperties"] = self._takes_any_name
        for name, one in self._named.items():
            if one.default is not one.empty:
                try:
                    made["properties"][name]["default"] = jsonvalues.plain(
                        to_jsonable_python(one.default)
                    )
                except (ValueError, TypeError):
                    continue
        return made

    def output_json_schema(self) -> dict[str, Any] | None:
        """JSON Schema of the output; ``None`` without a return hint."""
        self.resolve()
        if self._output is None:
            return None
        try:
            return self._output.adapter.json_schema(mode="serialization")
        except PydanticUserError:
            return {}


# --- codecs -----------------------------------------------------------------------------------


class _Unfit(Exception):
    """A value does not fit its type; the text has the paths and the reasons."""


_CONFIG: CoreConfig = {
    "ser_json_bytes": "base64",
    "val_json_bytes": "base64",
    "ser_json_inf_nan": "constants",
    "allow_inf_nan": False,
}
_VERSION = tuple(int(part) for part in pydantic.VERSION.split(".")[:2])
#: So that a subclass keeps its own fields where its base is the hint.
_WHOLE: dict[str, Any] = (
    {"polymorphic_serialization": True} if _VERSION >= (2, 13) else {"serialize_as_any": True}
)

#: A value of these is its own JSON.
_JSON_TYPES = frozenset(
    {
        "any", "none", "bool", "int", "float", "str", "list", "dict", "nullable", "literal",
        "typed-dict", "typed-dict-field",
    }
)  # fmt: skip
#: These come back from JSON exactly as they were, whatever the value.
_EXACT_TYPES = (_JSON_TYPES - {"any"}) | {
    "decimal", "date", "uuid", "bytes", "set", "frozenset", "tuple", "enum",
}  # fmt: skip


class Codec:
    """One type, to JSON and back.

    ``dump`` refuses what ``load`` would not give back: by the type alone where that is certain,
    else by trying it.
    """

    def __init__(self, hint: Any, what: str) -> None:
        self.hint = hint
        self.what = what
        try:
            self.adapter: TypeAdapter[Any] = TypeAdapter(hint)
            found = _Findings()
            core = _prepared(self.adapter.core_schema, found, {})
            if found.refused:
                raise ConfigurationError(f"{found.refused} is not data")
            self._validator = SchemaValidator(core, _CONFIG)
            self._serializer = SchemaSerializer(core, _CONFIG)
        except Exception as error:
            raise ConfigurationError(
                f"{what}: the type hint {_hint_name(hint)} cannot be stored as JSON "
                f"({_first_line(error)}). Use JSON types, dataclasses or pydantic models; for a "
                "database object pass the primary key."
            ) from error
        self._is_json = found.types <= _JSON_TYPES and not found.inexact
        self._is_exact = self._is_json or (found.types <= _EXACT_TYPES and not found.inexact)
        # Python values of these types are read from JSON values as well as from JSON text.
        self._loads_values = self._is_exact and "bytes" not in found.types
        self._names: dict[str, Any] = {"by_name": True} if found.aliased else {}
        self._stored_names: dict[str, Any] = (
            {"by_name": True, "by_alias": False} if found.aliased else {}
        )

    def dump(self, value: Any, path: str) -> Any:
        """The JSON value of ``value``; _Unfit or NotSerializable name the path."""
        try:
            typed = self._validator.validate_python(value, **self._names)
        except ValidationError as error:
            raise _Unfit(_listing(error, path)) from error
        if self._is_json:
            return jsonvalues.plain(typed, what=path)
        if not self._is_exact:
            _refuse_nan(typed, path, 0)
        try:
            stored = self._serializer.to_python(
                typed, mode="json", by_alias=False, round_trip=True, warnings="none", **_WHOLE
            )
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise _Unfit(f"{path}: the value cannot be stored as JSON ({_first_line(error)}).") from error
        stored = jsonvalues.plain(stored, what=path)
        if not self._is_exact:
            self._check_return(typed, stored, path)
        return stored

    def _check_return(self, typed: Any, stored: Any, path: str) -> None:
        """Refuse a value that would come back as another one."""
        try:
            again = self.load(stored, path)
        except _Unfit as error:
            raise _Unfit(f"{error} (so the value could not be read back from storage)") from error
        if lost := _difference(typed, again, path):
            raise _Unfit(lost)

    def load(self, stored: Any, path: str) -> Any:
        """The typed value of a JSON value; _Unfit names the path."""
        try:
            if self._loads_values:
                return self._validator.validate_python(stored, **self._stored_names)
            return self._validator.validate_json(to_json(stored), **self._stored_names)
        except ValidationError as error:
            raise _Unfit(_listing(error, path)) from error


class _Findings:
    """What the walk over a core schema found."""

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.inexact = False
        self.aliased = False
        self.refused = ""


_LEAVES = frozenset({"metadata", "config", "default", "cls", "expected", "members", "ref"})
_NOT_DATA = {
    "callable": "a callable",
    "generator": "an iterator",
    "is-subclass": "a class",
}


def _prepared(node: Any, found: _Findings, seen: dict[int, Any]) -> Any:
    """A copy of a core schema with our defaults for bytes and NaN, and its kinds collected.

    Models keep their own configuration: pydantic reuses the validator of a finished class.
    """
    if isinstance(node, list):
        return [_prepared(member, found, seen) for member in node]
    if isinstance(node, tuple):
        return tuple(_prepared(member, found, seen) for member in node)
    if not isinstance(node, dict):
        return node
    if id(node) in seen:
        return seen[id(node)]
    made: dict[str, Any] = {}
    seen[id(node)] = made
    _collect(node, found)
    for key, member in node.items():
        made[key] = member if key in _LEAVES else _prepared(member, found, seen)
    if node.get("type") in ("dataclass", "typed-dict"):
        made["config"] = {**_CONFIG, **(node.get("config") or {})}
    return made


def _collect(node: dict[str, Any], found: _Findings) -> None:
    kind = node.get("type")
    if isinstance(kind, str):
        found.types.add(kind)
        found.refused = found.refused or _NOT_DATA.get(kind, "")
    if kind == "dict":
        keys = node.get("keys_schema") or {"type": "any"}
        found.inexact |= keys.get("type") not in ("str", "any")
    elif kind == "literal":
        found.inexact |= not _are_alike(node["expected"])
    elif kind == "enum":
        found.inexact |= not _are_alike([member.value for member in node["members"]])
        found.inexact |= "missing" in node
    if "serialization" in node or node.get("strict"):
        found.inexact = True
    found.aliased |= "validation_alias" in node or "serialization_alias" in node


def _are_alike(values: list[Any]) -> bool:
    kinds = {type(value) for value in values}
    return len(kinds) == 1 and kinds <= {str, int, bool}


# --- comparing --------------------------------------------------------------------------------


def _refuse_nan(value: Any, path: str, depth: int) -> None:
    """Refuse NaN and infinities in a Python value, inside models and dataclasses too."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotSerializable(f"{path}: {value!r} is not a JSON number. Pass None instead.")
        return
    if depth > jsonvalues.MAX_DEPTH:
        return  # the check of the JSON value names the limit
    for key, member in _members(value):
        _refuse_nan(member, jsonvalues.join(path, key), depth + 1)


def _members(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, str | bytes | int) or value is None:
        return []
    if isinstance(value, Mapping):
        return [(str(key), member) for key, member in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(enumerate(value))
    if isinstance(value, BaseModel):
        return [*value.__dict__.items(), *(value.__pydantic_extra__ or {}).items()]
    if dataclasses.is_dataclass(value):
        return [
            (one.name, getattr(value, one.name))
            for one in dataclasses.fields(value)
            if hasattr(value, one.name)
        ]
    return []


def _difference(before: Any, after: Any, path: str) -> str:
    """Where and how ``after`` is another value than ``before``; empty where it is not."""
    if before is after:
        return ""
    if isinstance(after, BaseModel) or dataclasses.is_dataclass(after):
        if not isinstance(before, type(after)):
            return _changed(before, after, path)
        # A subclass has more fields than its base: they are stored, and the base comes back.
        ours = dict(_members(before))
        return _first(
            _difference(ours.get(name), member, jsonvalues.join(path, name))
            for name, member in _members(after)
        )
    if isinstance(after, dict):
        if not isinstance(before, Mapping) or len(before) != len(after):
            return _changed(before, after, path)
        return _first(
            _difference(member, after[key], jsonvalues.join(path, str(key)))
            if key in after
            else f"{path}: the key {key!r} would come back as another one. Annotate its type."
            for key, member in before.items()
        )
    if isinstance(after, list | tuple | deque):
        if not isinstance(before, list | tuple | deque) or len(before) != len(after):
            return _changed(before, after, path)
        return _first(
            _difference(one, two, jsonvalues.join(path, index))
            for index, (one, two) in enumerate(zip(before, after, strict=True))
        )
    return "" if _equal(before, after) else _changed(before, after, path)


def _first(found: typing.Iterable[str]) -> str:
    return next((text for text in found if text), "")


def _equal(before: Any, after: Any) -> bool:
    if isinstance(after, bool) or isinstance(before, bool):
        return False  # the two singletons were told apart by identity
    if isinstance(before, datetime) and isinstance(after, datetime):
        if (before.tzinfo is None) != (after.tzinfo is None):
            return False
        if before.tzinfo is not None:
            # Aware times of two zones are never equal in a repeated hour, so UTC decides.
            return before.astimezone(UTC) == after.astimezone(UTC)
        return before == after
    if not isinstance(before, type(after)):
        return False
    if isinstance(before, Enum) != isinstance(after, Enum):
        return isinstance(after, str | int) and bool(before == after)
    if type(after).__eq__ is object.__eq__:
        # A type that cannot be compared is trusted where its attributes are the same.
        return not _difference(getattr(before, "__dict__", {}), getattr(after, "__dict__", {}), "")
    return bool(before == after)


def _changed(before: Any, after: Any, path: str) -> str:
    one, two = type(before).__qualname__, type(after).__qualname__
    how = f"{one} would come back as {two}" if one != two else f"this {one} would come back changed"
    return f"{path}: {how}. Annotate the exact type, or convert the value first."


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


def _first_line(error: BaseException) -> str:
    text = jsonvalues.clean_text(str(error), 2048).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _listed(names: typing.Iterable[Any]) -> str:
    return ", ".join(jsonvalues.clean_text(repr(name), 200) for name in names)


def _hint_name(hint: Any) -> str:
    return getattr(hint, "__qualname__", None) or repr(hint)


# --- hints ------------------------------------------------------------------------------------


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _is_open(hint: Any) -> bool:
    """Whether a hint says nothing, so that any JSON value fits."""
    return hint in (Any, object, typing.NoReturn, typing.Never) or isinstance(hint, typing.TypeVar)


def _may_be_model(written: Any) -> bool:
    return isinstance(written, str) or _is_model(written)


def _plain_function(func: Any) -> Any:
    """The function whose hints count: beneath partials, decorators, methods and callables."""
    while isinstance(func, functools.partial):
        func = func.func
    func = inspect.unwrap(func)
    if inspect.ismethod(func):
        func = func.__func__
    if not inspect.isfunction(func) and not isinstance(func, type):
        func = getattr(type(func), "__call__", func)
    return func


def _closure(function: Any) -> dict[str, Any]:
    """Names of the enclosing function that the body uses too: all that is left of its scope."""
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    found = {}
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _awaited(hint: Any) -> Any:
    """What awaiting gives: ``X`` of ``Awaitable[X]`` and ``Coroutine[..., X]``."""
    if typing.get_origin(hint) in (Awaitable, Coroutine):
        return typing.get_args(hint)[-1]
    return hint


def _database_type(hint: Any) -> str:
    """The name of a Django model, queryset or manager in a hint; empty without one."""
    from django.db.models import Manager, Model, QuerySet

    if isinstance(hint, type) and issubclass(hint, Model | QuerySet | Manager):
        return f"the {'model' if issubclass(hint, Model) else 'queryset'} {hint.__qualname__}"
    origin = typing.get_origin(hint)
    parts = [*([origin] if isinstance(origin, type) else []), *typing.get_args(hint)]
    return _first(_database_type(part) for part in parts if part is not hint)


def _aliases(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for one in model.model_fields.values():
        for alias in (one.alias, one.validation_alias):
            if isinstance(alias, str):
                found.add(alias)
            elif alias is not None:
                paths = getattr(alias, "choices", [alias])
                found |= {path if isinstance(path, str) else str(path.path[0]) for path in paths}
    return found


def _set_fields(model: BaseModel) -> list[str]:
    return [*type(model).model_fields, *(model.__pydantic_extra__ or {})]
