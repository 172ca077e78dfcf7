"""Buttons and list actions: offered where they act, refused where they may not, told in two logs."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from django_jobs import clock
from django_jobs.admin.verbs import VERBS
from django_jobs.lifecycle import CHANGE, COMMANDS, KEEP, REFUSE, Command, Status
from django_jobs.models import HistoryEntry, Job
from tests.admin import shop
from tests.admin.test_pages import address, page, words

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]
RIGHTS = ["pause_job", "run_job", "reschedule_job", "retry_job", "cancel_job"]
EVERY_PAIR = [(status, command) for status in Status for command in VERBS]


def buttons(content: str) -> list[str]:
    return re.findall(r'<button[^>]*formaction="[^"]*"[^>]*>([^<]*)</button>', content)


def job_in(status: Status) -> Job:
    """A job that every command may change which its status allows."""
    later = clock.now() + timedelta(hours=1)
    values: dict[str, Any] = {"output": {"a": 1}}
    if status == Status.PENDING:
        values = {"gate": "timer", "run_after": later, "due_at": later}
    if status == Status.SLEEPING:
        values = {"run_after": later, "error": shop.ERROR}
    if status in (Status.FAILED, Status.COMPENSATION_FAILED):
        values = {"error": shop.ERROR}
    return shop.make_job("charge_card", status, **values)


def acts(status: Status, command: Command) -> bool:
    return COMMANDS[command][status] not in (KEEP, REFUSE)


def command(job: Job, name: str) -> str:
    return address("job", name, job.pk)


# --- one job ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(Status))
def test_buttons_are_those_that_would_change_the_job(login: Login, status: Status) -> None:
    job = job_in(status)
    content = page(login("view_job", *RIGHTS), address("job", "change", job.pk))
    expected = [str(verb.label) for verb in VERBS.values() if acts(status, verb.command)]
    assert buttons(content) == expected


def test_run_now_is_offered_only_where_it_would_hasten_something(login: Login) -> None:
    due, slept = shop.make_job(), shop.make_job(status=Status.SLEEPING)
    Job.units.filter(pk=slept.pk).update(run_after=clock.now() + timedelta(hours=1), gate="wait")
    shop.TaskStatus.objects.create(
        job=slept, step_key="k", step_id="nap", slug="sleep", kind="sleep", status="sleeping"
    )
    client = login("view_job", *RIGHTS)
    for job in (due, slept):
        assert "Run now" not in buttons(page(client, address("job", "change", job.pk)))


@pytest.mark.parametrize(("status", "command_name"), EVERY_PAIR)
def test_a_command_does_what_the_table_says(
    login: Login, status: Status, command_name: Command
) -> None:
    job = job_in(status)
    client = login("view_job", *RIGHTS)
    before = Job.units.filter(pk=job.pk).values().get()
    form = {"post": "yes", "reason": "because", "priority": "7"}
    response = client.post(command(job, command_name), form, follow=True)
    assert response.status_code == 200
    after = Job.units.filter(pk=job.pk).values().get()
    cell = COMMANDS[command_name][status]
    if not acts(status, command_name):
        assert after == before
        assert not LogEntry.objects.exists()
        assert not HistoryEntry.objects.exists()
        return
    assert after["status"] == (status if cell == CHANGE else cell)
    entry, logged = HistoryEntry.objects.get(), LogEntry.objects.get()
    user = logged.user.get_username()
    assert (entry.job_id, entry.actor) == (job.pk, user)
    assert "because" in str(entry.detail)
    assert (logged.object_id, logged.content_type.model) == (str(job.pk), "job")
    assert logged.change_message == f"{VERBS[command_name].done}: because"
    again = Job.units.filter(rerun_of=job.pk)
    assert again.count() == (1 if command_name == Command.RERUN else 0)


def test_what_cannot_be_taken_back_asks_first(login: Login) -> None:
    live, done = shop.make_job(), shop.make_job(status=Status.COMPLETED)
    client = login("view_job", *RIGHTS)
    for job, name in ((live, "cancel"), (done, "rerun")):
        response = client.post(command(job, name), {"reason": "so be it"})
        assert response.status_code == 200
        content = response.content.decode()
        assert 'name="post" value="yes"' in content
        assert 'value="so be it"' in content
    assert Job.units.count() == 2
    assert not HistoryEntry.objects.exists()


def test_a_cancel_takes_the_children_along_where_asked(login: Login) -> None:
    client = login("view_job", *RIGHTS)
    for form, expected in (({}, "pending"), ({"cascade": "1"}, "canceled")):
        parent = shop.make_job("order.process", kind="workflow")
        child = shop.make_job(parent=parent)
        client.post(command(parent, "cancel"), {"post": "yes", **form})
        child.refresh_from_db()
        assert child.status == expected


def test_a_rerun_leads_to_the_new_job(login: Login) -> None:
    job = shop.make_job(status=Status.FAILED, error=shop.ERROR)
    response = login("view_job", *RIGHTS).post(command(job, "rerun"), {"post": "yes"})
    again = Job.units.get(rerun_of=job.pk)
    assert response["Location"] == address("job", "change", again.pk)


# --- who may ----------------------------------------------------------------------------------

NEEDS = {verb.name: f"{verb.right}_job" for verb in VERBS.values()}


def test_each_command_needs_its_own_permission_and_a_post(login: Login) -> None:
    job = job_in(Status.PENDING)
    before = Job.units.values().get()
    roles = {code: login("view_job", code) for code in [*RIGHTS, "view_payload_job"]}
    roles |= {"nothing": login(), "blind": login(*RIGHTS), "viewer": login("view_job")}
    for (role, client), (name, needed) in itertools.product(roles.items(), NEEDS.items()):
        for method in ("get", "head", "put", "patch", "delete", "options"):
            answer = getattr(client, method)(command(job, name))
            assert answer.status_code == (405 if role == needed else 403), (role, name, method)
        if role != needed:
            assert client.post(command(job, name), {"post": "yes"}).status_code == 403, (role, name)
    assert Job.units.values().get() == before
    outsider, stranger = login("view_job", *RIGHTS, staff=False), Client()
    for client, name in itertools.product((outsider, stranger), NEEDS):
        answer = client.post(command(job, name), {"post": "yes"})
        assert answer.status_code == 302
        assert answer["Location"].startswith("/admin/login/")
    assert Job.units.values().get() == before
    assert not LogEntry.objects.exists()


def test_a_page_without_permission_has_no_buttons(login: Login) -> None:
    job = job_in(Status.PENDING)
    assert buttons(page(login("view_job"), address("job", "change", job.pk))) == []
    pauser = page(login("view_job", "pause_job"), address("job", "change", job.pk))
    assert buttons(pauser) == ["Pause"]


def test_without_a_token_nothing_happens(login: Login) -> None:
    job = shop.make_job()
    client = login("view_job", *RIGHTS)
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies
    for name in NEEDS:
        assert strict.post(command(job, name), {"post": "yes"}).status_code == 403
    form = {"action": "cancel", "_selected_action": [str(job.pk)], "post": "yes"}
    assert strict.post(address("job"), form).status_code == 403
    job.refresh_from_db()
    assert job.status == "pending"


def test_an_unknown_job_is_not_found(login: Login) -> None:
    client = login("view_job", *RIGHTS)
    for name in NEEDS:
        for pk in ("nonsense", "019f0000-0000-7000-8000-000000000000"):
            assert client.post(address("job", name, pk), {"post": "yes"}).status_code == 404


# --- many jobs --------------------------------------------------------------------------------


def selected(name: str, jobs: list[Job], **more: Any) -> dict[str, Any]:
    return {"action": name, "_selected_action": [str(job.pk) for job in jobs], **more}


def test_the_list_offers_what_a_user_may(login: Login) -> None:
    shop.make_job()

    def offered(*codes: str) -> list[str]:
        content = page(login("view_job", *codes), address("job"))
        found = re.findall(r'<option value="(\w+)">[^<]*selected jobs</option>', content)
        return [name for name in found if name != "delete_selected"]

    assert offered() == []
    assert offered("pause_job") == ["pause", "resume"]
    assert offered("retry_job") == ["retry", "rerun"]
    assert offered(*RIGHTS) == list(NEEDS)


@pytest.mark.parametrize("model", ["job", "workflowrun"])
def test_an_action_asks_then_acts_and_tells(login: Login, model: str) -> None:
    jobs = [
        shop.make_job("order.process", status, kind="workflow")
        for status in (Status.PENDING, Status.RUNNING, Status.PAUSED, Status.COMPLETED)
    ]
    other = shop.make_job("order.process", kind="workflow")
    client = login("view_job", *RIGHTS)
    asked = client.post(address(model), selected("pause", jobs, index="0", select_across="0"))
    text = words(asked.content.decode())
    assert "Pause these 4 jobs?" in text
    assert "2 would change, 1 stay as they are, 1 refuse" in text
    assert set(Job.units.values_list("status", flat=True)) == {
        "pending",
        "running",
        "paused",
        "completed",
    }
    form = selected("pause", jobs, post="yes", reason="outage")
    told = client.post(address(model), form, follow=True).content.decode()
    assert "Paused: 2 changed, 1 unchanged, 1 refused." in told
    other.refresh_from_db()
    assert other.status == "pending"
    assert Job.units.filter(status="paused").count() == 3
    assert LogEntry.objects.count() == HistoryEntry.objects.filter(event="paused").count() == 2


def test_an_action_without_permission_does_nothing(login: Login) -> None:
    jobs = [job_in(status) for status in Status]
    before = list(Job.units.order_by("pk").values())
    for client in (login("view_job"), login("view_job", "view_payload_job")):
        for name in NEEDS:
            client.post(address("job"), selected(name, jobs, post="yes"))
    assert (
        login(*RIGHTS).post(address("job"), selected("pause", jobs, post="yes")).status_code == 403
    )
    pauser = login("view_job", "pause_job")
    for name in ("cancel", "retry", "rerun", "run_now"):
        pauser.post(address("job"), selected(name, jobs, post="yes"))
    assert list(Job.units.order_by("pk").values()) == before
    assert not LogEntry.objects.exists()


def test_a_project_may_say_by_object(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    from django_jobs.admin import JobAdmin

    mine, theirs = shop.make_job(queue_name="mine"), shop.make_job(queue_name="theirs")
    monkeypatch.setattr(
        JobAdmin,
        "has_cancel_permission",
        lambda self, request, obj=None: obj is None or obj.queue_name == "mine",
    )
    client = login("view_job")
    assert buttons(page(client, address("job", "change", theirs.pk))) == []
    assert client.post(command(theirs, "cancel"), {"post": "yes"}).status_code == 403
    form = selected("cancel", [mine, theirs], post="yes")
    told = client.post(address("job"), form, follow=True).content.decode()
    assert "Canceled: 1 changed, 0 unchanged, 1 refused." in told
    theirs.refresh_from_db()
    assert theirs.status == "pending"


# --- another time, queue or priority ----------------------------------------------------------


def test_a_reschedule_asks_for_what_is_to_change(login: Login) -> None:
    job = job_in(Status.PENDING)
    client = login("view_job", "reschedule_job")
    asked = words(client.post(command(job, "reschedule")).content.decode())
    for label in ("Not before", "Queue", "Priority"):
        assert label in asked
    for form, said in (
        ({}, "Say what is to be different"),
        ({"priority": "101"}, "less than or equal to 100"),
        ({"run_after": "soon"}, "valid date/time"),
        ({"queue_name": "a" * 201}, "at most 200"),
    ):
        answer = client.post(command(job, "reschedule"), {"post": "yes", **form})
        assert said in html.unescape(answer.content.decode())
    assert not HistoryEntry.objects.exists()
    form = {"post": "yes", "run_after": "2030-01-31T09:00", "queue_name": "mail", "priority": "3"}
    client.post(command(job, "reschedule"), form)
    job.refresh_from_db()
    assert (job.queue_name, job.priority) == ("mail", 3)
    assert job.run_after == timezone.make_aware(datetime(2030, 1, 31, 9))
    shown = words(page(client, address("job", "change", job.pk)))
    assert "rescheduled" in shown
    assert "queue: default → mail" in shown


def test_selected_jobs_are_rescheduled_together(login: Login) -> None:
    waiting, ended = [job_in(Status.PENDING) for _ in range(2)], job_in(Status.COMPLETED)
    form = selected("reschedule", [*waiting, ended], post="yes", queue_name="mail")
    answer = login("view_job", "reschedule_job").post(address("job"), form, follow=True)
    told = answer.content.decode()
    assert "Rescheduled: 2 changed, 0 unchanged, 1 refused. Refused: completed 1." in told
    assert Job.objects.filter(queue_name="mail").count() == 2


# --- why --------------------------------------------------------------------------------------


def test_a_waiting_jobs_page_says_why(login: Login) -> None:
    shop.Queue.objects.create(name="slow", paused=True)
    held = shop.make_job(queue_name="slow")
    done = shop.make_job(status=Status.COMPLETED)
    client = login("view_job")
    content = page(client, address("job", "change", held.pk))
    why = content[content.index('id="why-waiting"') :]
    assert "The queue &#x27;slow&#x27; is paused." in why[: why.index("</section>")]
    assert 'id="why-waiting"' not in page(client, address("job", "change", done.pk))
