"""Orders given in a real Chromium: on all that match, another time, another input, undoing a run."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse

from django_jobs import DAG, StepContext, TaskContext, task
from django_jobs.admin import bulk
from django_jobs.models import Job
from django_jobs.testing import drain, registry
from tests.admin import shop
from tests.admin.browsing import look_at

pytestmark = [pytest.mark.django_db(transaction=True)]


def to(model: str, what: str = "changelist", *args: object) -> str:
    return reverse(f"admin:django_jobs_{model}_{what}", args=args)


def test_an_order_on_all_that_match_is_given_without_javascript(open_page: Any) -> None:
    for _ in range(12):
        shop.make_job("charge_card", "failed", error=shop.ERROR)
    page = open_page(to("job") + "?status=failed", scripts=False)
    wrong = look_at(page, "matching-list")
    page.get_by_role("button", name="Retry…").click()
    assert page.get_by_role("heading", name="Retry these 12 jobs?").is_visible()
    wrong |= look_at(page, "matching-confirm")
    page.get_by_label("Reason").fill("the bank is back")
    page.get_by_role("button", name="Retry").click()
    order = Job.objects.get(slug=bulk.SLUG)
    assert str(order.pk) in page.url
    drain()
    page.reload()
    assert page.get_by_text("12 changed").first.is_visible()
    wrong |= look_at(page, "matching-job")
    assert wrong == {}


def test_a_job_is_rescheduled_and_run_again_with_another_input(open_page: Any) -> None:
    wrong: dict[str, Any] = {}
    with registry():

        @task("test.mail", takes_context=True)
        def mail(context: TaskContext, to: str, api_key: str = "", times: int = 1) -> str:
            """Send a mail to one address."""
            context.log.info("sending to %s", to)
            return to

        job = mail.using(delay=3600).enqueue(to="ada@example.org", api_key="k-123")
        page = open_page(to("job", "change", job.pk))
        page.get_by_role("button", name="Reschedule").click()
        wrong |= look_at(page, "reschedule")
        page.get_by_label("Priority").fill("7")
        page.get_by_label("Queue").fill("mail")
        page.get_by_role("button", name="Reschedule").click()
        assert page.get_by_text("queue: default → mail").is_visible()
        page.get_by_role("button", name="Run now").click()
        drain()
        page.reload()
        wrong |= look_at(page, "rescheduled-job")
        page.get_by_role("link", name="Re-run with other input…").click()
        assert "k-123" not in page.content()
        wrong |= look_at(page, "rerun-edited")
        page.get_by_label("To", exact=True).fill("grace@example.org")
        page.get_by_role("button", name="Re-run").click()
        again = Job.objects.get(rerun_of=job.pk)
        assert again.input == {"to": "grace@example.org", "api_key": "k-123"}
    assert wrong == {}


def test_a_failed_run_of_a_graph_is_undone(open_page: Any) -> None:
    def fails(ctx: StepContext) -> None:
        ctx.log.warning("asking the hotel")
        raise ValueError("no room left")

    with registry():
        trip = DAG("test.trip", saga=False)
        for number in range(5):
            after = f"flight-{number - 1}" if number else ()
            trip.step(f"flight-{number}", lambda ctx: "LX 1", after=after, compensate=lambda ctx: 1)
        trip.step("hotel", fails, after="flight-4")
        job = trip.enqueue()
        drain()
        page = open_page(to("workflowrun", "change", job.pk))
        page.locator(".dj-graph-table summary").click()
        wrong = look_at(page, "failed-graph")
        page.get_by_role("button", name="Compensate").click()
        wrong |= look_at(page, "compensate")
        page.get_by_role("button", name="Compensate").click()
        drain()
        page.reload()
        assert page.get_by_text("5 of 5 compensations completed").is_visible()
        wrong |= look_at(page, "undone-graph")
    assert wrong == {}
