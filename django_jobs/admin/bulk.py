"""A command on all jobs that match a filter: a run of its own, part by part.

Each part is a transactional step: its changes, its lines in the admin's log and its record commit
together, so that a run that is killed goes on without doing anything twice.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth import get_user_model
from django.http import HttpRequest
from django.urls import get_resolver

from django_jobs.admin.telling import Tally
from django_jobs.admin.verbs import VERBS
from django_jobs.definitions.context import WorkflowContext
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import workflow
from django_jobs.errors import NonRetryable
from django_jobs.lifecycle import Command
from django_jobs.models import Job, WorkflowRun
from django_jobs.observe.selection import Selection

SLUG = "django_jobs.act_on_matching"
#: Jobs of one part; more where there would be too many parts for one run.
PART, PARTS = 1_000, 900
#: What a part need not read of its jobs.
BIG = ("input", "output", "context", "args", "spec", "options", "meta", "error")
MODELS = {model._meta.model_name: model for model in (Job, WorkflowRun)}


@workflow(
    SLUG,
    label="Act on all jobs that match",
    priority=100,
    retries=Retry(max_attempts=8, delay=1, backoff="exponential", max_delay=30),
)
def act_on_matching(
    run: WorkflowContext,
    command: str,
    selection: dict[str, Any],
    values: dict[str, Any],
    actor: str,
    actor_name: str,
    reason: str,
    site: str,
    model: str,
    part: int = PART,
) -> dict[str, Any]:
    """Give a command to every job of a selection, in the name of who asked for it in the admin."""
    order = Bulk(run.job.pk, Command(command), selection, values, actor, reason, site, model)
    total = run.inline("count", order.count)
    size = max(part, ceil(total / PARTS))
    tally, place, number = Tally(), None, 0
    while True:
        number += 1
        done = run.inline(
            f"part-{number}", partial(order.carry_out, place, size), transactional=True
        )
        tally.merge(done)
        run.progress(min(1.0, tally.total / total) if total else 1.0, tally.said(order.verb.done))
        place = done["last"]
        if place is None:
            return tally.as_dict()


class Bulk:
    """One such order, with who gives it looked up anew for each part."""

    def __init__(
        self,
        job_id: UUID,
        command: Command,
        selection: dict[str, Any],
        values: dict[str, Any],
        actor: str,
        reason: str,
        site: str,
        model: str,
    ) -> None:
        self.job_id = job_id
        self.verb = VERBS[command]
        self.selection = Selection.read(selection)
        self.values, self.actor, self.reason = values, actor, reason
        self.site, self.model = site, model

    def count(self) -> int:
        """How many there are, for the progress."""
        model_admin, request = self._asker()
        return int(self._jobs(model_admin, request).count())

    def carry_out(self, place: str | None, size: int) -> dict[str, Any]:
        """The next ``size`` jobs after the id ``place``; ``last`` is where it goes on, or None."""
        model_admin, request = self._asker()
        found = self._jobs(model_admin, request).order_by("pk")
        if place is not None:
            found = found.filter(pk__gt=UUID(place))
        listed = list(found.values_list("pk", flat=True)[:size])
        tally = Tally()
        if listed:
            rows = Job.objects.using(found.db).filter(pk__in=listed).defer(*BIG)
            tally = model_admin.carry_out(request, rows, self.verb, self.values, self.reason)
        last = str(listed[-1]) if len(listed) == size else None
        return {**tally.as_dict(), "last": last}

    def _jobs(self, model_admin: Any, request: HttpRequest) -> Any:
        """Those that match and that the actor may see; never the order's own job."""
        visible = model_admin.get_queryset(request)
        return self.selection.narrow(visible).exclude(pk=self.job_id)

    def _asker(self) -> tuple[Any, HttpRequest]:
        """The page's admin, and a request of who gave the order. NonRetryable where they may not any more."""
        model_admin = self._model_admin()
        user = get_user_model()._default_manager.filter(pk=self.actor).first()
        request = HttpRequest()
        request.user = user  # type: ignore[assignment]
        if (
            user is None
            or not self._is_given()
            or not (
                model_admin.admin_site.has_permission(request)
                and model_admin.may(request, self.verb)
            )
        ):
            raise NonRetryable(
                "Who gave this order may not do so any more, or did not give it on the admin's page; "
                "nothing more is changed."
            )
        return model_admin, request

    def _is_given(self) -> bool:
        """Whether the admin's log says that the actor gave this order, as this very job.

        Whoever may enqueue could else write another's id into the input, or run an old order again.
        """
        given = LogEntry.objects.filter(user_id=self.actor, object_id=str(self.job_id))
        return given.filter(action_flag=ADDITION).exists()

    def _model_admin(self) -> Any:
        # A site of the project's own may be made by its URLconf, which a worker has not loaded yet.
        assert get_resolver().url_patterns is not None
        model = MODELS.get(self.model, Job)
        for site in admin.sites.all_sites:
            if site.name == self.site and site.is_registered(model):
                return site.get_model_admin(model)
        raise NonRetryable(f"No admin site {self.site!r} shows {self.model!r} in this process.")
