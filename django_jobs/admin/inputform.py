"""A form for a task's input, built from its JSON Schema; what fits no field is given as JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django import forms
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from django_jobs import jsonvalues
from django_jobs.errors import InvalidInput, JobsError
from django_jobs.jsonvalues import HIDDEN

#: Models within models get fields of their own down to here; deeper ones are given as JSON.
DEEPEST = 3
#: Between the names of a path in a field's name; no parameter of Python holds it.
DOT = "."
UNSET = object()


class JSONText(forms.CharField):
    """A JSON value as text."""

    widget = forms.Textarea(attrs={"rows": 4, "spellcheck": "false", "class": "dj-code"})

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        if not text:
            return UNSET
        try:
            return jsonvalues.loads(text)
        except (ValueError, JobsError) as error:
            raise forms.ValidationError(
                _("No valid JSON: %(error)s"), params={"error": error}
            ) from None

    def validate(self, value: Any) -> None:
        if value is UNSET and self.required:
            raise forms.ValidationError(self.error_messages["required"], code="required")

    def run_validators(self, value: Any) -> None:
        """A text is not what it holds."""


@dataclass
class Group:
    """Fields of one model, under its name."""

    title: str
    help_text: str = ""
    names: list[str] = field(default_factory=list)


class InputForm(forms.Form):
    """Fields for each parameter, and one that takes the whole input as JSON instead."""

    as_json = JSONText(
        label=_("The whole input as JSON"), required=False,
        help_text=_("Where this is filled in, the fields are not read."),
    )  # fmt: skip

    def __init__(
        self,
        schema: Mapping[str, Any] | None,
        *args: Any,
        stored: Any = None,
        secret_names: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        """``stored`` is the input to be edited; its secrets are neither shown nor lost."""
        kwargs.setdefault("use_required_attribute", False)
        super().__init__(*args, **kwargs)
        self.schema = schema or {}
        self.stored = stored
        self.shown = None if stored is None else jsonvalues.redact(stored, secret_names)
        self.groups: list[Group] = []
        last = self.fields.pop("as_json")
        self._add(self.schema, "", Group(""), 0)
        self.fields["as_json"] = last
        if not self.typed_names:
            last.widget.attrs["rows"] = 10
            last.help_text = ""
        if isinstance(stored, dict):
            self._fill()
        if self.data.get(self.add_prefix("as_json"), "").strip():
            for name in self.typed_names:
                self.fields[name].required = False

    @property
    def typed_names(self) -> list[str]:
        return [name for group in self.groups for name in group.names]

    def bound_groups(self) -> Iterator[tuple[Group, list[forms.BoundField]]]:
        for group in self.groups:
            yield group, [self[name] for name in group.names]

    # --- fields from the schema ------------------------------------------------------------------

    def _add(self, schema: Mapping[str, Any], path: str, group: Group, depth: int) -> None:
        self.groups.append(group)
        required = set(schema.get("required", ()))
        for name, given in (schema.get("properties") or {}).items():
            member, optional = self._plain(given)
            full = f"{path}{DOT}{name}" if path else name
            title = str(
                member.get("title") or given.get("title") or capfirst(name.replace("_", " "))
            )
            if self._is_model(member) and not optional and depth < DEEPEST:
                self._add(member, full, Group(title, str(member.get("description", ""))), depth + 1)
                continue
            made = _field(member)
            made.label = title
            made.help_text = _help(given, member)
            made.required = name in required and not isinstance(made, forms.BooleanField)
            if "default" in given and given["default"] is not None:
                made.initial = _initial(made, given["default"])
            self.fields[full] = made
            group.names.append(full)

    def _plain(self, schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
        """Without references and the arm for null; and whether there was one."""
        seen = 0
        optional = False
        while seen < 20:
            seen += 1
            if "$ref" in schema:
                schema = self._resolve(str(schema["$ref"]))
                continue
            arms = schema.get("anyOf") or schema.get("oneOf")
            if len(schema.get("allOf", ())) == 1:
                schema = schema["allOf"][0]
                continue
            if not arms:
                break
            real = [arm for arm in arms if arm.get("type") != "null"]
            optional = optional or len(real) < len(arms)
            if len(real) != 1:
                break
            schema = {**{k: v for k, v in schema.items() if k == "title"}, **real[0]}
        return schema, optional

    def _resolve(self, reference: str) -> Mapping[str, Any]:
        at: Any = self.schema
        for name in reference.removeprefix("#/").split("/"):
            at = at.get(name, {}) if isinstance(at, Mapping) else {}
        return at if isinstance(at, Mapping) else {}

    def _is_model(self, schema: Mapping[str, Any]) -> bool:
        return schema.get("type") == "object" and bool(schema.get("properties"))

    # --- an input to be edited -------------------------------------------------------------------

    def _fill(self) -> None:
        """Each field with the stored value; one with a secret stays empty."""
        if not self.typed_names:
            text = json.dumps(self.shown, indent=2, ensure_ascii=False)
            self.fields["as_json"].initial = text
        for name in self.typed_names:
            made = self.fields[name]
            found, value = _at(self.shown, name)
            made.initial = None
            if not found:
                continue
            if isinstance(value, str) and HIDDEN in value:
                made.required = False
                kept = _("Kept as it is; fill it in to replace it.")
                made.help_text = f"{made.help_text} {kept}".strip()
            elif value is not None:
                made.initial = _initial(made, value)

    def edited(self) -> dict[str, Any]:
        """The stored input with what was changed. InvalidInput where a hidden secret would be lost."""
        whole = self.cleaned_data.get("as_json", UNSET)
        if whole is UNSET:
            whole = copy.deepcopy(self.stored)
            for name in self.typed_names:
                if name in self.changed_data:
                    self._change(whole, name)
        restored: dict[str, Any] = restore(whole, self.shown, self.stored)
        lost = hidden_path(restored, self.stored)
        if lost is not None:
            raise InvalidInput(
                f"{lost}: a secret is hidden here, and what it was cannot be told any more. Type it anew."
            )
        return restored

    def _change(self, whole: dict[str, Any], name: str) -> None:
        value, made = self.cleaned_data.get(name, UNSET), self.fields[name]
        *above, last = name.split(DOT)
        at: Any = whole
        for one in above:
            at[one] = at.get(one) if isinstance(at.get(one), dict) else {}
            at = at[one]
        if value is UNSET or value in ("", None):
            at.pop(last, None)
        else:
            at[last] = made.typed(value) if isinstance(made, Choice) else _stored(value)

    # --- the input -------------------------------------------------------------------------------

    def clean_as_json(self) -> Any:
        value = self.cleaned_data["as_json"]
        if value is not UNSET and not isinstance(value, dict):
            raise forms.ValidationError(
                _("The input is a JSON object, with a key for each parameter.")
            )
        return value

    def given(self) -> dict[str, Any]:
        """What was filled in; a parameter left empty is left out, so that its default holds."""
        whole = self.cleaned_data.get("as_json", UNSET)
        if whole is not UNSET:
            return dict(whole)
        values: dict[str, Any] = {}
        for name in self.typed_names:
            value = self.cleaned_data.get(name, UNSET)
            made = self.fields[name]
            if value is UNSET or value in ("", None):
                continue
            *above, last = name.split(DOT)
            at = values
            for one in above:
                at = at.setdefault(one, {})
            at[last] = made.typed(value) if isinstance(made, Choice) else _stored(value)
        return values

    def add_input_error(self, error: JobsError) -> None:
        """Show what the task's own check says, at the field that it names."""
        said = str(error)
        for name in sorted(self.typed_names, key=len, reverse=True):
            if f"{name}:" in said or f"{name!r}" in said or f".{name} " in said:
                self.add_error(name, said)
                return
        self.add_error(None, said)


def _at(value: Any, name: str) -> tuple[bool, Any]:
    """What is at a path; and whether there is anything."""
    for one in name.split(DOT):
        if not isinstance(value, dict) or one not in value:
            return False, None
        value = value[one]
    return True, value


def restore(edited: Any, shown: Any, stored: Any) -> Any:
    """``edited`` with the stored value wherever it is what was ``shown`` of it.

    In a list only whole members are taken back: another one may have come to its place.
    """
    if edited == shown:
        return stored
    if isinstance(edited, dict) and isinstance(shown, dict) and isinstance(stored, dict):
        return {
            key: restore(value, shown[key], stored[key]) if key in stored else value
            for key, value in edited.items()
        }
    if isinstance(edited, list) and isinstance(shown, list) and isinstance(stored, list):
        pairs = list(zip(shown, stored, strict=True))
        return [
            pairs[index][1] if index < len(pairs) and value == pairs[index][0] else value
            for index, value in enumerate(edited)
        ]
    return edited


def hidden_path(value: Any, stored: Any, path: str = "input") -> str | None:
    """Where ``value`` holds the mark of a hidden secret that ``stored`` does not; None = nowhere."""
    if value == stored:
        return None
    if isinstance(value, str):
        return path if HIDDEN in value else None
    members: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    for key, member in members:
        same = stored[key] if isinstance(stored, dict) and key in stored else None
        found = hidden_path(member, same, f"{path}.{key}")
        if found is not None:
            return found
    return None


class Choice(forms.ChoiceField):
    """One of the values of an enum, which need not be texts."""

    def __init__(self, values: list[Any], **kwargs: Any) -> None:
        self.values = {
            json.dumps(value) if not isinstance(value, str) else value: value for value in values
        }
        super().__init__(
            choices=[("", "---------"), *((name, name) for name in self.values)], **kwargs
        )

    def typed(self, name: str) -> Any:
        return self.values[name]


def _field(schema: Mapping[str, Any]) -> forms.Field:
    """The field for a value of this schema."""
    values = schema.get("enum")
    if values or "const" in schema:
        return Choice(list(values or [schema["const"]]))
    match schema.get("type"), schema.get("format"):
        case "boolean", _form:
            return forms.BooleanField()
        case "integer", _form:
            return forms.IntegerField(
                min_value=_bound(schema, "minimum"), max_value=_bound(schema, "maximum")
            )
        case "number", _form:
            return forms.FloatField()
        case "string", "date":
            return forms.CharField(widget=forms.DateInput(attrs={"type": "date"}))
        case "string", "date-time":
            return forms.CharField(
                widget=forms.TextInput(attrs={"placeholder": "2026-01-31T09:00:00+01:00"})
            )
        case "string", _form:
            return forms.CharField(
                strip=False, max_length=schema.get("maxLength"), min_length=schema.get("minLength")
            )
    if any(arm.get("type") == "string" for arm in schema.get("anyOf", ())):
        # Such as a Decimal, which is a number or a text.
        return forms.CharField()
    return JSONText()


def _bound(schema: Mapping[str, Any], name: str) -> int | None:
    value = schema.get(name)
    return value if isinstance(value, int) else None


def _help(given: Mapping[str, Any], member: Mapping[str, Any]) -> str:
    said = str(given.get("description") or member.get("description") or "")
    kinds = {"array": _("A list, as JSON."), "object": _("An object, as JSON.")}
    kind = kinds.get(str(member.get("type")))
    return " ".join(str(part) for part in (said, kind) if part)


def _initial(made: forms.Field, value: Any) -> Any:
    if isinstance(made, JSONText):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(made, Choice):
        return value if isinstance(value, str) else json.dumps(value)
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)


def _stored(value: Any) -> Any:
    return value if isinstance(value, str | bool | int | float | dict | list) else str(value)
