"""What a command asks besides the jobs: its form, and the same as plain values that can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_jobs import control
from django_jobs.errors import InvalidInput
from django_jobs.lifecycle import Command


class OrderForm(forms.Form):
    """A command that asks for nothing."""

    def values(self) -> dict[str, Any]:
        """What was chosen, as JSON."""
        return {}


class CancelForm(OrderForm):
    cascade = forms.BooleanField(label=_("Their live child runs too"), required=False)
    compensate = forms.BooleanField(
        label=_("Undo their completed steps (compensate)"), required=False
    )

    def values(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in ("cascade", "compensate")}


class RescheduleForm(OrderForm):
    run_after = forms.DateTimeField(
        label=_("Not before"), required=False,
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text=_("Empty: as it is. In the time zone of this admin."),
    )  # fmt: skip
    queue_name = forms.CharField(
        label=_("Queue"), required=False, max_length=200, help_text=_("Empty: as it is.")
    )
    priority = forms.IntegerField(
        label=_("Priority"), required=False, min_value=-100, max_value=100,
        help_text=_("Larger first; empty: as it is."),
    )  # fmt: skip

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if not self.errors:
            try:
                control.change_of(**_known(given))
            except InvalidInput as error:
                raise forms.ValidationError(str(error)) from None
        return given

    def values(self) -> dict[str, Any]:
        known = _known(self.cleaned_data)
        moment = known.get("run_after")
        return {**known, **({"run_after": moment.isoformat()} if moment is not None else {})}


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in given.items() if value not in (None, "")}
    moment = known.get("run_after")
    if moment is not None and timezone.is_naive(moment):
        known["run_after"] = timezone.make_aware(moment)
    return known


FORMS: dict[Command, type[OrderForm]] = {
    Command.CANCEL: CancelForm,
    Command.RESCHEDULE: RescheduleForm,
}


def form_of(command: Command, given: Any = None) -> OrderForm:
    """The form of a command; most have no field."""
    return FORMS.get(command, OrderForm)(given, auto_id="order_%s")


def arguments(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :mod:`django_jobs.control` for what :meth:`OrderForm.values` gave."""
    if command != Command.RESCHEDULE:
        return dict(values)
    moment = values.get("run_after")
    given = {**values, **({"run_after": datetime.fromisoformat(moment)} if moment else {})}
    return {"change": control.change_of(**given)}
