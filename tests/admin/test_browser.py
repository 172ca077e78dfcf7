"""The admin's pages in a real Chromium: light and dark, wide and narrow."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.urls import reverse

from django_jobs import ids
from django_jobs.models import Job, Queue, Schedule, Task
from django_jobs.testing import clock
from tests.admin import shop
from tests.admin.browsing import SIZES, look_at

pytestmark = [pytest.mark.django_db(transaction=True)]


#: Pictures of the docs: the page, its size and its colours.
PICTURES = {
    "dashboard": ("dashboard", "wide", "light"),
    "dashboard-dark": ("dashboard", "wide", "dark"),
    "jobs": ("jobs", "wide", "light"),
    "jobs-narrow": ("jobs", "narrow", "light"),
    "run": ("run", "wide", "light"),
    "graph": ("graph", "wide", "dark"),
    "schedule": ("schedule", "wide", "light"),
}


def addresses(run: shop.Run) -> dict[str, str]:
    def to(model: str, what: str = "changelist", *args: object) -> str:
        return reverse(f"admin:django_jobs_{model}_{what}", args=args)

    task, queue = Task.objects.first(), Queue.objects.first()
    assert task is not None and queue is not None
    schedule = Schedule.objects.first() or shop.make_schedule()
    graph = Job.objects.filter(kind="dag").first() or shop.make_graph()
    return {
        "graph": to("workflowrun", "change", graph.pk),
        "run-task": to("task", "run", task.pk),
        "schedule-add": to("schedule", "add"),
        "jobs-none": to("job") + "?slug=nobody&status=paused",
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
    page = open_page(reverse("admin:index"))
    for name, path in addresses(run).items():
        page.goto(page.url.split("/admin/")[0] + path)
        # What a page says for screen readers is the same on every database.
        axe = connection.vendor == "sqlite"
        wrong |= look_at(page, name, full=name != "jobs", axe=axe)
    assert wrong == {}


@pytest.mark.once
def test_pages_without_anything_say_so(open_page: Any) -> None:
    wrong: dict[str, Any] = {}
    page = open_page(reverse("admin:index"))
    for model in ("overview", "job", "workflowrun", "task", "queue", "worker", "schedule"):
        url = reverse(f"admin:django_jobs_{model}_changelist")
        page.goto(page.url.split("/admin/")[0] + url)
        wrong |= look_at(page, f"empty-{model}")
        said = page.locator("#content-main").inner_text()
        assert re.search(r"\b(No|None|Nothing|0)\b", said), model
    assert wrong == {}


@pytest.mark.once
@pytest.mark.parametrize("language", ["he", "ar"])
def test_pages_are_mirrored_where_people_read_from_right_to_left(
    open_page: Any, settings: Any, language: str
) -> None:
    settings.LANGUAGE_CODE = language
    run = shop.make_everything()
    wrong: dict[str, Any] = {}
    page = open_page(reverse("admin:index"))
    wanted = ["dashboard", "jobs", "run", "graph", "queue", "schedule", "run-task"]
    for name in wanted if language == "he" else wanted[1:3]:
        page.goto(page.url.split("/admin/")[0] + addresses(run)[name])
        assert page.evaluate("document.documentElement.dir") == "rtl"
        wrong |= look_at(page, f"{language}-{name}")
        left = "(n) => n.getBoundingClientRect().left"
        for row in (".dj-tabs li", ".dj-heading > *", ".dj-tiles li", ".dj-filters > label"):
            shown = page.locator(row)
            if shown.count() > 1:
                assert shown.nth(0).evaluate(left) > shown.nth(1).evaluate(left), (name, row)
    assert wrong == {}


#: Controls that look the same with and without the focus, and how many there are.
UNSEEN_FOCUS = """() => {
    const controls = [...document.querySelectorAll(
        "#content :is(a[href], button:not([disabled]), input:not([type=hidden]), select, textarea, summary, [tabindex='0'])"
    )].filter((n) => n.checkVisibility({ visibilityProperty: true }));
    const look = (n) => ["outlineStyle", "outlineWidth", "boxShadow", "borderColor", "backgroundColor", "textDecorationLine"]
        .map((name) => getComputedStyle(n)[name]).join();
    document.activeElement.blur();
    const before = controls.map(look);
    const unseen = controls.filter((n, i) => {
        n.focus({ focusVisible: true });
        return document.activeElement !== n || look(n) === before[i];
    });
    document.activeElement.blur();
    controls.forEach((n, i) => n.setAttribute("data-nth", i));
    return [controls.length, unseen.map((n) => n.outerHTML.slice(0, 160))];
}"""


@pytest.mark.once
def test_every_control_is_reached_by_keyboard_and_shows_it(open_page: Any) -> None:
    run = shop.make_everything()
    page = open_page(reverse("admin:index"))
    pages = addresses(run)
    live = shop.make_job("order.process", "sleeping", kind="workflow")
    pages["live"] = reverse("admin:django_jobs_workflowrun_change", args=[live.pk])
    for name in ("dashboard", "jobs", "run", "live", "queue", "schedule", "run-task", "workers"):
        page.goto(page.url.split("/admin/")[0] + pages[name])
        count, unseen = page.evaluate(UNSEEN_FOCUS)
        assert unseen == [], name
        reached: set[int] = set()
        page.locator("#content").evaluate("(n) => { n.tabIndex = -1; n.focus(); }")
        for _ in range(count + 40):
            page.keyboard.press("Tab")
            nth = page.evaluate("document.activeElement.getAttribute('data-nth')")
            if nth is None and reached:
                break
            reached.add(int(nth or 0))
        # Boxes of one group, and options of one select, are one stop; here there are none such.
        assert len(reached) == count, name


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


@pytest.mark.once
def test_pictures_of_the_docs_are_the_same_each_time(
    open_page: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With ``TEST_DOC_PICTURES`` they are left in that folder: docs/images."""
    numbers = iter(range(1, 10_000))

    def made(count: int) -> list[UUID]:
        milliseconds = int(clock.now().timestamp() * 1000)
        return [
            UUID(int=milliseconds << 80 | 0x7 << 76 | 0x2 << 62 | next(numbers))
            for _ in range(count)
        ]

    monkeypatch.setattr(ids, "job_ids", made)
    monkeypatch.setattr(ids, "worker_id", lambda: UUID(int=next(numbers)))
    request.addfinalizer(clock.reset)
    clock.freeze(datetime(2026, 3, 2, 9, 30, tzinfo=UTC))
    run = shop.make_busy_hour()
    pages = addresses(run)
    page = open_page(pages["dashboard"])
    folder = os.environ.get("TEST_DOC_PICTURES")
    for name, (what, size, scheme) in PICTURES.items():
        page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        taken = []
        for _ in range(2):
            page.goto(page.url.split("/admin/")[0] + pages[what])
            page.wait_for_load_state()
            taken.append(
                page.screenshot(full_page=what in ("dashboard", "run"), animations="disabled")
            )
        assert taken[0] == taken[1], name
        if folder:
            (Path(folder) / f"admin-{name}.png").write_bytes(taken[0])


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
def test_nothing_is_asked_for_while_nobody_looks(open_page: Any) -> None:
    shop.make_job("a_task")
    page = open_page(reverse("admin:django_jobs_job_changelist"))
    page.wait_for_selector("[data-dj-control]:not([hidden])")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => window.nobodyLooks, configurable: true });"
        "window.nobodyLooks = true"
    )
    page.evaluate(REFRESH_OFTEN)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(600)
    assert len(asked) <= 1
    Job.objects.update(status="paused")
    page.evaluate(
        "window.nobodyLooks = false; document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.locator("#result_list .dj-paused").wait_for(timeout=10_000)
    # Off is off, and stays off on the next page.
    page.get_by_label("Keep up to date").uncheck()
    del asked[:]
    page.wait_for_timeout(400)
    assert len(asked) <= 1
    page.reload()
    page.wait_for_selector("[data-dj-control]:not([hidden])")
    assert not page.get_by_label("Keep up to date").is_checked()


@pytest.mark.once
def test_a_job_page_keeps_what_is_open_and_where_one_was(open_page: Any) -> None:
    run = shop.make_run()
    page = open_page(reverse("admin:django_jobs_job_change", args=[run.job.pk]))
    page.wait_for_selector("[data-dj-control]:not([hidden])")
    page.evaluate(WATCH_SHIFTS)
    page.evaluate("window.shifted = 0")
    summary = page.locator("#dj-payloads ~ .dj-body summary").first
    summary.click()
    page.evaluate("scrollTo(0, 300)")
    page.wait_for_timeout(600)
    page.evaluate("window.shifted = 0")
    page.evaluate(REFRESH_OFTEN)
    summary.focus()
    Job.objects.filter(pk=run.job.pk).update(attempts=9)
    page.locator(".dj-facts dd", has_text="9").first.wait_for(timeout=10_000)
    assert page.locator("#dj-payloads ~ .dj-body details").first.get_attribute("open") is not None
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert page.evaluate("scrollY") == 300
    assert page.evaluate("shifted") == 0


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


def test_an_operator_steers_queues_tasks_workers_and_schedules(open_page: Any) -> None:
    shop.make_catalogue()
    Task.objects.create(slug="add", kind="task")
    worker, schedule = shop.make_worker(), shop.make_schedule()
    queue, task = Queue.objects.get(name="mail"), Task.objects.get(slug="add")
    page = open_page(reverse("admin:index"))
    wrong: dict[str, Any] = {}

    def go(model: str, row: Any) -> None:
        page.goto(
            page.url.split("/admin/")[0]
            + reverse(f"admin:django_jobs_{model}_change", args=[row.pk])
        )

    def press(name: str) -> str:
        with page.expect_navigation():
            page.get_by_role("button", name=name, exact=True).click()
        return str(page.locator(".messagelist").inner_text())

    for model, row, first, second in (
        ("queue", queue, "Pause", "Resume"),
        ("task", task, "Pause", "Resume"),
        ("worker", worker, "Drain", "Take jobs again"),
        ("schedule", schedule, "Pause", "Resume"),
    ):
        go(model, row)
        assert "1 changed" in press(first), model
        assert page.get_by_role("button", name=first, exact=True).count() == 0
        wrong |= look_at(page, f"{model}-told")
        assert "1 changed" in press(second), model
    assert "Made the job" in press("Run now")
    go("queue", queue)
    page.get_by_label("Limit").fill("7")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator("#result_list").wait_for()
    queue.refresh_from_db()
    assert (queue.limit, queue.edited, queue.paused) == (7, True, False)
    go("schedule", schedule)
    page.locator("input[name=start]").fill("2026-01-05T09:00")
    page.locator("input[name=end]").fill("2026-01-05T12:00")
    with page.expect_navigation():
        page.get_by_role("button", name="Backfill…").click()
    wrong |= look_at(page, "backfill")
    assert "Backfilled" in press("Backfill")
    # One from the schedule's run now, the others made up for.
    assert Job.objects.filter(slug="add").count() > 3
    page.get_by_label("Expression").fill("every now and then")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".errornote").wait_for()
    wrong |= look_at(page, "schedule-wrong")
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
    assert told.strip() == "Paused: 2 changed, 1 unchanged, 1 refused. Refused: completed 1."
    wrong |= look_at(page, "jobs-told")
    assert Job.objects.filter(status="paused").count() == 3
    assert wrong == {}
