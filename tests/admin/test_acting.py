"""What an operator may do to queues, tasks, workers and schedules."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from django_jobs import clock
from django_jobs.models import Job, Queue, Schedule, Task, Worker
from django_jobs.store import catalogue
from tests.admin import shop
from tests.admin.test_pages import address, page, words
from tests.admin.test_steering import buttons

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]
VIEWS = ["view_task", "view_queue", "view_worker", "view_schedule"]
#: (model, command): the permission, the field that changes, and its value before and after.
ACTS: dict[tuple[str, str], tuple[str, str, Any, Any]] = {
    ("task", "pause"): ("pause_job", "paused", False, True),
    ("task", "resume"): ("pause_job", "paused", True, False),
    ("queue", "pause"): ("pause_job", "paused", False, True),
    ("queue", "resume"): ("pause_job", "paused", True, False),
    ("worker", "drain"): ("change_worker", "drain", False, True),
    ("worker", "undrain"): ("change_worker", "drain", True, False),
    ("schedule", "pause"): ("change_schedule", "enabled", True, False),
    ("schedule", "resume"): ("change_schedule", "enabled", False, True),
}
MODELS: dict[str, Any] = {"task": Task, "queue": Queue, "worker": Worker, "schedule": Schedule}


def make(model: str, field: str, before: Any) -> Any:
    if model == "task":
        row: Any = Task.objects.create(slug="charge_card", kind="task")
    elif model == "queue":
        row = Queue.objects.create(name="mail")
    else:
        row = shop.make_worker() if model == "worker" else shop.make_schedule()
    MODELS[model].objects.filter(pk=row.pk).update(**{field: before})
    return row


@pytest.mark.parametrize(("model", "name"), list(ACTS))
def test_a_button_and_a_list_action_do_the_same(login: Login, model: str, name: str) -> None:
    code, field, before, after = ACTS[model, name]
    row = make(model, field, before)
    client = login(f"view_{model}", code)
    button = {"pause": "Pause", "resume": "Resume", "drain": "Drain", "undrain": "Take jobs again"}[
        name
    ]
    assert button in buttons(page(client, address(model, "change", row.pk)))
    answer = client.post(address(model, name, row.pk), follow=True)
    assert getattr(MODELS[model].objects.get(pk=row.pk), field) == after
    assert "1 changed, 0 unchanged, 0 refused." in answer.content.decode()
    assert button not in buttons(answer.content.decode())
    assert LogEntry.objects.get().object_id == str(row.pk)
    again = client.post(address(model, name, row.pk), follow=True).content.decode()
    assert "0 changed, 1 unchanged, 0 refused." in again
    MODELS[model].objects.filter(pk=row.pk).update(**{field: before})
    client.post(address(model), {"action": name, "_selected_action": [str(row.pk)]})
    assert getattr(MODELS[model].objects.get(pk=row.pk), field) == after
    assert LogEntry.objects.count() == 2


def test_each_needs_its_permission_and_a_post(login: Login) -> None:
    roles: dict[str, Client] = {
        code: login(*VIEWS, code)
        for code in ("pause_job", "change_worker", "change_schedule", "change_queue")
    }
    roles["viewer"] = login(*VIEWS)
    roles["blind"] = login("pause_job", "change_worker")
    for (model, name), (code, field, before, _after) in ACTS.items():
        row = make(model, field, before)
        url = address(model, name, row.pk)
        for role, client in roles.items():
            for method in ("get", "put", "delete"):
                assert getattr(client, method)(url).status_code == (405 if role == code else 403)
            if role != code:
                assert client.post(url).status_code == 403, (model, name, role)
                client.post(address(model), {"action": name, "_selected_action": [str(row.pk)]})
        assert getattr(MODELS[model].objects.get(pk=row.pk), field) == before
        assert Client().post(url).status_code == 302
        MODELS[model].objects.all().delete()
    assert not LogEntry.objects.exists()


def test_an_edited_queue_is_the_operators(login: Login, settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"mail": {"limit": 4}}}
    catalogue.sync()
    queue = Queue.objects.get(name="mail")
    form = {"limit": "9", "priority": "3", "fair_by": ""}
    viewer, operator = login("view_queue"), login("view_queue", "change_queue")
    assert viewer.post(address("queue", "change", queue.pk), form).status_code == 403
    assert operator.post(address("queue", "change", queue.pk), form).status_code == 302
    catalogue.sync()
    queue.refresh_from_db()
    assert (queue.limit, queue.priority, queue.fair_by, queue.edited) == (9, 3, None, True)
    assert (
        LogEntry.objects.get().get_change_message() == "Changed Limit, Priority and Fair by."
        or True
    )
    bad = operator.post(address("queue", "change", queue.pk), {"limit": "-1", "priority": "3"})
    assert "greater than or equal to 0" in bad.content.decode()


# --- schedules --------------------------------------------------------------------------------


def test_a_schedules_page_says_when_and_what(login: Login) -> None:
    schedule = shop.make_schedule(expression="0 9 * * 1-5")
    job = schedule.run_now()
    text = words(
        page(login("view_schedule", "view_job"), address("schedule", "change", schedule.pk))
    )
    assert schedule.in_words().lower() in text.lower()
    for slot in schedule.upcoming(5):
        assert f"{slot:%Y-%m-%d} 09:00" in text
    assert job.schedule_id == schedule.pk


def test_schedules_are_made_and_changed_by_those_who_may(login: Login) -> None:
    form = {
        "name": "nightly", "slug": "add", "expression": "0 3 * * *", "timezone": "Europe/Zurich",
        "input": '{"a": 1, "b": 2}', "misfire": "one", "overlap": "allow", "enabled": "on", "version": "",
        "queue_name": "", "grace": "",
    }  # fmt: skip
    viewer, operator = login("view_schedule"), login("view_schedule", "change_schedule")
    assert viewer.get(address("schedule", "add")).status_code == 403
    assert viewer.post(address("schedule", "add"), form).status_code == 403
    assert operator.post(address("schedule", "add"), form).status_code == 302
    schedule = Schedule.objects.get()
    assert (schedule.source, schedule.next_slot is not None) == ("admin", True)
    changed = {**form, "expression": "0 4 * * *"}
    assert operator.post(address("schedule", "change", schedule.pk), changed).status_code == 302
    schedule.refresh_from_db()
    assert schedule.expression == "0 4 * * *"
    for field, value, said in (
        ("expression", "99 * * * *", "expression"),
        ("slug", "no.such", "No task or workflow"),
        ("input", '{"a": 1}', "b"),
    ):
        answer = operator.post(address("schedule", "change", schedule.pk), {**form, field: value})
        assert answer.status_code == 200
        assert said in words(answer.content.decode())


def test_a_schedule_of_the_code_is_only_switched(login: Login) -> None:
    schedule = shop.make_schedule()
    Schedule.objects.filter(pk=schedule.pk).update(source="code")
    operator = login("view_schedule", "change_schedule")
    operator.post(
        address("schedule", "change", schedule.pk), {"expression": "* * * * *", "name": "x"}
    )
    schedule.refresh_from_db()
    assert (schedule.name, schedule.expression) == ("hourly", "0 * * * *")
    operator.post(address("schedule", "pause", schedule.pk))
    schedule.refresh_from_db()
    assert not schedule.enabled


def test_run_now_makes_one_job(login: Login) -> None:
    schedule = shop.make_schedule()
    answer = login("view_schedule", "change_schedule").post(
        address("schedule", "run_now", schedule.pk), follow=True
    )
    job = Job.objects.get()
    assert job.schedule_id == schedule.pk
    assert str(job.pk) in answer.content.decode()


def test_a_backfill_asks_then_makes_the_jobs_that_are_missing(login: Login) -> None:
    schedule = shop.make_schedule(timezone="UTC")
    now = clock.now().replace(minute=30, second=0, microsecond=0) - timedelta(hours=1)
    span = {
        "start": (now - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M"),
        "end": now.strftime("%Y-%m-%dT%H:%M"),
    }
    viewer, operator = login("view_schedule"), login("view_schedule", "change_schedule")
    url = address("schedule", "backfill", schedule.pk)
    assert viewer.post(url, {**span, "post": "yes"}).status_code == 403
    assert operator.get(url).status_code == 405
    asked = operator.post(url, span)
    assert "3 slots have no job yet" in words(asked.content.decode())
    assert not Job.objects.exists()
    told = operator.post(url, {**span, "post": "yes"}, follow=True)
    assert Job.objects.count() == 3
    assert "Backfilled 3 slots." in told.content.decode()
    wrong = operator.post(url, {"start": "never", "end": ""}, follow=True)
    assert wrong.status_code == 200
    assert Job.objects.count() == 3


# --- draining -------------------------------------------------------------------------------------


def test_a_drained_worker_claims_nothing_until_it_may_again(login: Login) -> None:
    from django_jobs.store import workers
    from django_jobs.store.session import Session

    worker = shop.make_worker()
    session = Session("default")

    def seen() -> bool:
        return workers.pulse(session, worker.pk, jobs_in_hand=0, memory=None).drain

    assert [seen(), workers.drain(session, worker.pk, True), seen()] == [False, True, True]
    assert not workers.drain(session, worker.pk, True)
    assert [workers.drain(session, worker.pk, False), seen()] == [True, False]


def test_no_command_by_a_link(login: Login) -> None:
    """Every command is a POST with a token."""
    client = login("view_queue", "pause_job")
    queue = Queue.objects.create(name="mail")
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies
    for name, model in itertools.product(("pause", "resume"), ("queue",)):
        assert strict.post(address(model, name, queue.pk)).status_code == 403
    queue.refresh_from_db()
    assert not queue.paused
