"""What a function takes and returns: checked, typed, and stored as JSON.

A :class:`Schema` is built from the function's signature and type hints. Hints are resolved when
they are first needed, never while Django still loads its apps.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
import typing
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal, NotRequired, Required

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.json_schema import PydanticJsonSchemaWarning
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from django_jobs import conf, jsonvalues
from django_jobs.definitions.codec import Codec, Unfit, first
from django_jobs.definitions.retry import UNSET
from django_jobs.errors import ConfigurationError, InvalidInput, InvalidOutput, NotSerializable

__all__ = ["SURPLUS", "UNSET", "Schema"]

#: Under this key the stored input holds what ``*args`` took.
SURPLUS = "*"


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
        return [name for name, one in self._named.items() if one.kind is not one.KEYWORD_ONLY]

    @functools.cached_property
    def _positional_only(self) -> list[str]:
        return [name for name, one in self._named.items() if one.kind is one.POSITIONAL_ONLY]

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
        if not self._resolved:
            with self._lock:
                self._resolve()

    def _resolve(self) -> None:
        if not self._resolved:  # another thread may have been first
            hints = self._hints()
            self._typed = {name: hint for name, hint in hints.items() if not _is_open(hint)}
            self._typed.pop("return", None)
            self._takes_model = False
            self._input: Codec | None = None
            if self.input_schema is not None:
                self._takes_model = self._check_fits_model(hints)
                self._input = Codec(self.input_schema, f"{self.what}: its input schema")
            elif self._typed:
                self._input = Codec(
                    self._input_type(self._typed), f"{self.what}: its parameters", closed=True
                )
            self._all_typed = self.input_schema is not None or (
                self._typed.keys() == self._named.keys()
                and not (self._takes_any_name or self._takes_surplus)
            )
            returned = hints.get("return", Any)
            self._output = (
                None if _is_open(returned) else Codec(returned, f"{self.what}: its return value")
            )
            self._may_return_none = self._output is None or returned in (None, type(None))
            self._resolved = True

    def _hints(self) -> dict[str, Any]:
        """The resolved hints by parameter, and ``return``; the context's own is left alone."""
        function = _plain_function(self.func)
        written = dict(getattr(function, "__annotations__", {}))
        wanted = dict.fromkeys(self._named) if self.input_schema is None else {}
        if self.input_schema is not None:
            wanted = {name: None for name in self._named if _may_be_model(written.get(name))}
        hints = {
            name: self._hint(function, name, written[name]) for name in wanted if name in written
        }
        for name, hint in hints.items():
            if self._named[name].default is None and not _is_open(hint):
                hints[name] = hint | None
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
        made = TypedDict("Input", members)  # type: ignore[misc]
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

    def dump_input(self, kwargs: Mapping[str, Any], *, limit: int | None = None) -> dict[str, Any]:
        """The JSON object to store for the fields ``kwargs``; defaults of the code are left out.

        InvalidInput names every field that does not fit, and what would not come back as it was.
        ``limit`` is in bytes of JSON, the setting ``MAX_INPUT`` unless given.
        """
        limit = limit or conf.get().max_input
        self.resolve()
        keys = kwargs.keys()
        if not (keys >= self._needed and (keys <= self._known or self._open)):
            self._refuse_names(kwargs)
        try:
            if self._input is None:
                return jsonvalues.plain(kwargs, limit=limit)
            if self._all_typed:
                return self._input.dump(kwargs, "input", limit)
            typed = {name: value for name, value in kwargs.items() if name in self._typed}
            rest = {name: value for name, value in kwargs.items() if name not in self._typed}
            stored = self._input.dump(typed, "input", limit)
            return {**stored, **jsonvalues.plain(rest, limit=limit)}
        except NotSerializable as error:
            raise NotSerializable(f"{self.what}: {error}") from None
        except Unfit as error:
            # Without the cause: pydantic's own text repeats the value, which may be a secret.
            raise InvalidInput(f"{self.what}: {error}") from None

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
                if self._all_typed:
                    values = self._input.load(stored, "input")
                else:
                    typed = {name: value for name, value in stored.items() if name in self._typed}
                    values = {**stored, **self._input.load(typed, "input")}
            except Unfit as error:
                raise InvalidInput(f"{self.what}: {error}") from None
            if self.input_schema is not None:
                return self._model_call(values)
        if self._positional_only or (self._takes_surplus and SURPLUS in stored):
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
        names = list(self._positional if surplus else self._positional_only)
        while names and not surplus and names[-1] not in named:
            names.pop()  # the function fills in its own default
        args = [named.pop(n) if n in named else self._named[n].default for n in names]
        return (*args, *surplus), named

    # --- output ------------------------------------------------------------------------------

    def dump_output(self, value: Any, *, limit: int | None = None) -> Any:
        """The JSON value to store for a returned ``value``; InvalidOutput names what is wrong.

        ``limit`` is in bytes of JSON, the setting ``MAX_OUTPUT`` unless given.
        """
        self.resolve()
        if value is None and self._may_return_none:
            return None
        limit = limit or conf.get().max_output
        try:
            if self._output is None:
                return jsonvalues.plain(value, what="output", limit=limit)
            return self._output.dump(value, "output", limit)
        except (NotSerializable, Unfit) as error:
            raise InvalidOutput(f"{self.what}: {error}") from None

    def load_output(self, stored: Any) -> Any:
        """The typed output of a stored one; the JSON value itself without a return hint."""
        self.resolve()
        if self._output is None:
            return stored
        try:
            return self._output.load(stored, "output")
        except Unfit as error:
            raise InvalidOutput(f"{self.what}: {error}") from None

    # --- for forms ---------------------------------------------------------------------------

    def input_json_schema(self) -> dict[str, Any]:
        """JSON Schema of the input, with the defaults of the signature."""
        self.resolve()
        if self.input_schema is not None:
            return _json_schema(TypeAdapter(self.input_schema), "validation")
        hints = {name: self._typed.get(name, Any) for name in self._named}
        made = _json_schema(TypeAdapter(self._input_type(hints)), "validation")
        made.setdefault("type", "object")
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
        return _json_schema(self._output.adapter, "serialization")


# --- texts ------------------------------------------------------------------------------------


def _json_schema(
    adapter: TypeAdapter[Any], mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    """The JSON Schema of a type; empty, which fits everything, where pydantic has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
        try:
            return adapter.json_schema(mode=mode)
        except PydanticUserError:
            return {}


def _listed(names: typing.Iterable[Any]) -> str:
    return ", ".join(jsonvalues.clean_text(repr(name), 200) for name in names)


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
    if inspect.isfunction(func) or isinstance(func, type):
        return func
    return type(func).__call__  # an object with __call__: its hints are the method's


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
    return first(_database_type(part) for part in parts if part is not hint)


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
