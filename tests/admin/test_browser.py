"""The admin's pages in a real Chromium: light and dark, wide and narrow."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse

from django_jobs.models import Job, Queue, Schedule, Task
from tests.admin import shop
from tests.admin.browsing import look_at

pytestmark = [pytest.mark.django_db(transaction=True)]


def addresses(run: shop.Run) -> dict[str, str]:
    def to(model: str, what: str = "changelist", *args: object) -> str:
        return reverse(f"admin:django_jobs_{model}_{what}", args=args)

    task, queue = Task.objects.first(), Queue.objects.first()
    assert task is not None and queue is not None
    schedule = Schedule.objects.first() or shop.make_schedule()
    return {
        "dashboard": to("overview"),
        "jobs": to("job"),
        "jobs-failed": to("job") + "?status=failed",
        "runs": to("workflowrun"),
        "run": to("workflowrun", "change", run.job.pk),
        "step": to("job", "step", run.job.pk, run.steps[0].pk),
        "tasks": to("task"),
        "task": to("task", "change", task.pk),
        "queues": to("queue"),
        "queue": to("queue", "change", queue.pk),
        "workers": to("worker"),
        "worker": to("worker", "change", run.worker.pk),
        "schedules": to("schedule"),
        "schedule": to("schedule", "change", schedule.pk),
    }


def test_every_page_is_whole_and_legible(open_page: Any) -> None:
    run = shop.make_everything()
    for number in range(50):
        shop.make_job("report.build", "completed", queue_name="slow", attempts=1, priority=number)
    shop.make_job(
        "a.task.with.a.very.long.name_that_goes_on_and_on_" + "x" * 60, "failed",
        error={"type": "builtins.ValueError", "message": "no" * 400}, queue_name="q" * 60,
    )  # fmt: skip
    wrong: dict[str, Any] = {}
    for name, path in addresses(run).items():
        wrong |= look_at(open_page(path), name, full=name != "jobs")
    assert wrong == {}


def test_all_of_it_works_without_javascript_and_by_keyboard(open_page: Any) -> None:
    run = shop.make_everything()
    page = open_page(addresses(run)["jobs"], scripts=False)
    page.get_by_label("Task").select_option("order.process")
    page.get_by_label("Search").fill("order")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("#result_list tbody tr").count() == 2
    page.get_by_role("navigation", name="Status").get_by_role("link", name="failed").click()
    assert page.locator("#result_list tbody tr").count() == 1
    page.locator("#result_list th a").focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.get_by_role("heading", level=1).filter(has_text="order.process").count() == 1
    summary = page.locator("details.dj-payload > summary", has_text="Input").first
    hidden = page.locator("details.dj-payload > pre").first
    assert not hidden.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert hidden.is_visible()
    assert '"order_id": 4711' in hidden.inner_text()


@pytest.mark.once
def test_hostile_texts_run_nowhere(open_page: Any) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    )
    run = shop.make_run(
        hostile, hostile, {"type": hostile, "message": hostile, "traceback": hostile}
    )
    shop.make_catalogue(hostile)
    for name, path in addresses(run).items():
        page = open_page(path)
        assert page.title() != "owned", name
        assert page.locator("img[src=x]").count() == 0, name


# --- live -------------------------------------------------------------------------------------

#: The sum of what moved without anybody's doing since the page was loaded.
WATCH_SHIFTS = """() => {
    window.shifted = 0;
    new PerformanceObserver((list) => list.getEntries().forEach((e) => { window.shifted += e.value; }))
        .observe({ type: "layout-shift" });
}"""
REFRESH_OFTEN = """() => {
    const control = document.querySelector("[data-dj-control]");
    control.dataset.djEvery = 100;
    const box = control.querySelector("input");
    box.click();
    box.click();
}"""


@pytest.mark.once
def test_a_list_keeps_itself_up_to_date_and_disturbs_nobody(open_page: Any) -> None:
    jobs = [shop.make_job(f"task_{number}") for number in range(45)]
    page = open_page(reverse("admin:django_jobs_job_changelist"))
    page.wait_for_selector("[data-dj-control]:not([hidden])")
    link = page.locator("#result_list th a", has_text="task_3").last
    link.focus()
    page.evaluate("scrollTo(0, 400)")
    page.evaluate(WATCH_SHIFTS)
    page.evaluate(REFRESH_OFTEN)
    link.focus()
    Job.objects.filter(pk=jobs[44].pk).update(status="paused")
    page.locator("#result_list .dj-paused").wait_for(timeout=10_000)
    assert page.evaluate("document.activeElement.textContent").strip().startswith("task_3")
    assert page.evaluate("scrollY") == 400
    assert page.evaluate("shifted") == 0
    # A new row moves the others down; the boxes still belong to their rows.
    new = shop.make_job("the_newest")
    page.locator("#result_list", has_text="the_newest").wait_for(timeout=10_000)
    first = page.locator("#result_list tbody tr").first
    assert first.locator("input.action-select").input_value() == str(new.pk)
    # While a row is ticked nothing changes under the operator's hands.
    first.locator("input.action-select").check()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    Job.objects.filter(pk=new.pk).update(status="paused")
    page.wait_for_timeout(700)
    assert first.locator(".dj-pending").count() == 1
    assert len(asked) <= 1
    first.locator("input.action-select").uncheck()
    first.locator(".dj-paused").wait_for(timeout=10_000)
    page.locator("#action-toggle").check()
    assert page.locator("input.action-select:checked").count() == 46


@pytest.mark.once
def test_an_operator_runs_a_task_by_its_form(open_page: Any) -> None:
    task = Task.objects.create(slug="add", kind="task")
    page = open_page(reverse("admin:django_jobs_task_change", args=[task.pk]))
    page.get_by_role("link", name="Run…").click()
    page.get_by_label("A", exact=True).fill("1")
    wrong = look_at(page, "run-form")
    page.get_by_role("button", name="Run", exact=True).click()
    assert page.get_by_text("This field is required.").count() == 1
    wrong |= look_at(page, "run-form-wrong")
    page.get_by_label("B", exact=True).fill("2")
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator(".dj-heading").wait_for()
    assert Job.objects.get().input == {"a": 1, "b": 2}
    assert wrong == {}


# --- acting -----------------------------------------------------------------------------------


def test_an_operator_steers_one_job(open_page: Any) -> None:
    job = shop.make_job("order.process", kind="workflow")
    page = open_page(reverse("admin:django_jobs_workflowrun_change", args=[job.pk]))
    wrong = look_at(page, "job-pending")

    def press(name: str) -> None:
        with page.expect_navigation():
            page.get_by_role("button", name=name, exact=True).click()

    def shown() -> str:
        return str(page.locator(".dj-heading .dj-badge").inner_text())

    page.get_by_label("Reason").fill("the bank is down")
    page.get_by_label("Reason").press("Enter")
    press("Pause")
    assert shown() == "paused"
    assert "the bank is down" in page.locator("#why-waiting").inner_text()
    press("Resume")
    assert shown() == "pending"
    page.get_by_label("Reason").fill("never mind")
    press("Cancel")
    assert page.get_by_label("Reason").input_value() == "never mind"
    wrong |= look_at(page, "confirm-cancel")
    page.get_by_label("Their live child runs too").check()
    press("Cancel")
    assert shown() == "canceled"
    assert "operator" in page.locator(".dj-timeline").inner_text()
    press("Re-run")
    press("Re-run")
    again = Job.objects.get(rerun_of=job.pk)
    assert str(again.pk) in page.url
    assert shown() == "pending"
    assert wrong == {}


def test_an_operator_steers_what_is_ticked(open_page: Any) -> None:
    for status in ("pending", "running", "completed", "paused"):
        shop.make_job("charge_card", status)
    page = open_page(reverse("admin:django_jobs_job_changelist"))
    for box in page.locator("#result_list input.action-select").all():
        box.check()
    wrong = look_at(page, "jobs-ticked")
    page.locator("select[name=action]").select_option("pause")
    with page.expect_navigation():
        page.get_by_role("button", name="Go").or_(
            page.get_by_role("button", name="Run")
        ).first.click()
    assert page.get_by_role("heading", level=1).last.inner_text() == "Pause these 4 jobs?"
    wrong |= look_at(page, "confirm-pause")
    with page.expect_navigation():
        page.get_by_role("button", name="Pause", exact=True).click()
    told = page.locator(".messagelist").inner_text()
    assert told.strip() == "Paused: 2 changed, 1 unchanged, 1 refused."
    wrong |= look_at(page, "jobs-told")
    assert Job.objects.filter(status="paused").count() == 3
    assert wrong == {}
