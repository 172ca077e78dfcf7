"""Commands on all jobs that match a filter: asked with count and sample, done by a job of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from django_jobs import clock, run_jobs
from django_jobs.admin import JobAdmin, bulk, filters
from django_jobs.admin.verbs import VERBS
from django_jobs.lifecycle import Command, Status
from django_jobs.models import HistoryEntry, Job, TaskStatus
from django_jobs.observe.selection import Selection
from django_jobs.testing import clock as test_clock
from django_jobs.testing import drain
from tests.admin import shop
from tests.admin.test_pages import address, page, words
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]
RIGHTS = ["pause_job", "run_job", "retry_job", "cancel_job", "reschedule_job"]


def failed(count: int, **values: Any) -> list[Job]:
    return [
        shop.make_job("charge_card", Status.FAILED, error=shop.ERROR, **values)
        for _ in range(count)
    ]


def order(client: Client, name: str, query: str = "", model: str = "job", **form: Any) -> Any:
    """Ask, then answer the form as it was shown."""
    asked = client.post(address(model, f"matching_{name}") + query)
    assert asked.status_code == 200, asked
    content = asked.content.decode()
    until = re.search(r'name="until" value="([^"]+)"', content)
    assert until is not None
    action = re.search(r'<form method="post" action="([^"]+)"', content)
    assert action is not None
    answer = client.post(
        action[1].replace("&amp;", "&"), {"post": "yes", "until": until[1], **form}, follow=True
    )
    return words(content), answer.content.decode()


def the_order() -> Job:
    return Job.objects.get(slug=bulk.SLUG)


def test_it_asks_with_count_and_sample_then_a_job_does_it(login: Login) -> None:
    wanted, other = failed(12), shop.make_job("mail.welcome", Status.FAILED, error=shop.ERROR)
    client = login("view_job", "retry_job")
    asked, told = order(client, "retry", "?status=failed&slug=charge_card", reason="bank is back")
    assert "Retry these 12 jobs?" in asked
    assert "12 would change, 0 stay as they are, 0 refuse" in asked
    assert "and 2 more" in asked
    assert "this page shows how far it is" in told
    assert Job.objects.filter(status="failed").count() == 13
    job = the_order()
    assert (job.status, job.input["command"]) == ("pending", "retry")
    later = failed(1)[0]
    run_jobs(where=bulk_only())
    job.refresh_from_db()
    assert job.output == {"changed": 12, "unchanged": 0, "refused": {}}
    assert job.progress == 1.0
    assert "12 changed" in job.progress_note
    states = Job.objects.filter(pk__in=[one.pk for one in wanted]).values_list("status", flat=True)
    assert set(states) == {"pending"}
    assert {Job.objects.get(pk=one.pk).status for one in (other, later)} == {"failed"}
    entries = HistoryEntry.objects.filter(event="retried")
    user = User.objects.get()
    assert {(entry.actor, entry.detail["reason"]) for entry in entries} == {
        (user.get_username(), "bank is back")
    }
    assert entries.count() == 12
    assert LogEntry.objects.filter(change_message="Retried: bank is back").count() == 12
    assert LogEntry.objects.filter(object_id=str(job.pk), action_flag=1).count() == 1
    shown = words(page(client, address("workflowrun", "change", job.pk)))
    assert "part-1" in shown
    assert "100%" in shown


def bulk_only() -> Any:
    from django.db.models import Q

    return Q(slug=bulk.SLUG)


def test_every_command_works_on_all(login: Login) -> None:
    statuses = {
        "pause": (Status.PENDING, "paused"), "resume": (Status.PAUSED, "pending"),
        "run_now": (Status.PENDING, "pending"), "reschedule": (Status.PENDING, "pending"),
        "retry": (Status.FAILED, "pending"), "rerun": (Status.FAILED, "failed"),
        "cancel": (Status.PENDING, "canceled"),
    }  # fmt: skip
    assert set(statuses) == {verb.name for verb in VERBS.values()}
    client = login("view_job", *RIGHTS)
    for name, (before, after) in statuses.items():
        Job.units.all().delete()
        later = clock.now() + timedelta(hours=1)
        waits = {"gate": "timer", "run_after": later, "due_at": later} if name == "run_now" else {}
        made = [shop.make_job("charge_card", before, started_at=None, **waits) for _ in range(3)]
        done = shop.make_job("charge_card", Status.COMPLETED)
        form = {"priority": "7"} if name == "reschedule" else {"cascade": "1"}
        order(client, name, "?slug=charge_card", **form)
        run_jobs(where=bulk_only())
        output = the_order().output
        if name == "rerun":
            assert output == {"changed": 4, "unchanged": 0, "refused": {}}
            assert Job.objects.exclude(rerun_of=None).count() == 4
        else:
            assert output == {"changed": 3, "unchanged": 0, "refused": {"completed": 1}}, name
        rows = Job.objects.filter(pk__in=[job.pk for job in made])
        assert set(rows.values_list("status", flat=True)) == {after}
        if name == "reschedule":
            assert set(rows.values_list("priority", flat=True)) == {7}
        done.refresh_from_db()
        assert done.status == "completed"


def test_select_all_in_the_list_goes_the_same_way(login: Login) -> None:
    ticked = failed(3)[0]
    client = login("view_job", "retry_job")
    form = {
        "action": "retry", "select_across": "1", "_selected_action": [str(ticked.pk)], "index": "0",
    }  # fmt: skip
    content = client.post(address("job") + "?status=failed", form).content.decode()
    assert "Retry these 3 jobs?" in words(content)
    assert f'action="{address("job", "matching_retry")}?status=failed"' in content


def test_the_list_offers_what_a_user_may_to_all(login: Login) -> None:
    shop.make_job()

    def offered(*codes: str) -> list[str]:
        return re.findall(r"matching/(\w+)/", page(login("view_job", *codes), address("job")))

    assert offered() == []
    assert offered("pause_job") == ["pause", "resume"]
    assert offered(*RIGHTS) == [verb.name for verb in VERBS.values()]


def test_only_who_may_gives_orders(login: Login) -> None:
    failed(2)
    for client in (login("view_job", "pause_job"), login("retry_job"), login("view_job")):
        for method in ("get", "post"):
            url = address("job", "matching_retry")
            assert getattr(client, method)(url, {"post": "yes"}).status_code == 403
    allowed = login("view_job", "retry_job")
    assert allowed.get(address("job", "matching_retry")).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = allowed.cookies
    assert strict.post(address("job", "matching_retry"), {"post": "yes"}).status_code == 403
    assert not Job.objects.filter(slug=bulk.SLUG).exists()


@pytest.mark.parametrize("lost", ["permission", "staff", "active", "gone"])
def test_who_gave_the_order_is_asked_again_when_it_runs(login: Login, lost: str) -> None:
    failed(2)
    order(login("view_job", "retry_job"), "retry", "?status=failed")
    user = User.objects.get()
    if lost == "permission":
        user.user_permissions.clear()
    elif lost == "gone":
        user.delete()
    else:
        User.objects.update(**{f"is_{lost}": False})
    run_jobs(where=bulk_only())
    job = the_order()
    assert (job.status, job.attempts) == ("failed", 1)
    assert "may not do so any more" in job.error["message"]
    assert Job.objects.filter(slug="charge_card", status="failed").count() == 2


def test_nobody_gives_an_order_in_the_name_of_another(login: Login) -> None:
    """Neither by enqueueing it with another's id, nor by running an old order again."""
    failed(2)
    order(login("view_job", "retry_job"), "retry", "?status=failed")
    given = the_order()
    forged = bulk.act_on_matching.enqueue(input=given.input)
    given.cancel()
    again = given.rerun()
    run_jobs(where=bulk_only())
    for job in (forged, again):
        job.refresh_from_db()
        assert job.status == "failed"
        assert "did not give it" in job.error["message"]
    assert Job.objects.filter(slug="charge_card", status="failed").count() == 2


def test_what_a_project_hides_or_forbids_by_object_stays_as_it_is(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, forbidden, hidden = (failed(1, queue_name=name)[0] for name in ("mine", "no", "hidden"))
    base = JobAdmin.get_queryset
    monkeypatch.setattr(
        JobAdmin,
        "get_queryset",
        lambda self, request: base(self, request).exclude(queue_name="hidden"),
    )
    monkeypatch.setattr(
        JobAdmin,
        "has_retry_permission",
        lambda self, request, obj=None: obj is None or obj.queue_name == "mine",
    )
    order(login("view_job"), "retry", "?status=failed")
    run_jobs(where=bulk_only())
    assert the_order().output == {"changed": 1, "unchanged": 0, "refused": {"not permitted": 1}}
    assert [Job.objects.get(pk=job.pk).status for job in (mine, forbidden, hidden)] == [
        "pending", "failed", "failed",
    ]  # fmt: skip


def test_a_filter_that_cannot_be_kept_is_refused(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(2)

    class OnlyMine(filters.TypedFilter):
        title = "mine"
        parameter_name = "mine"

        def condition(self, value: str) -> Any:
            from django.db.models import Q

            return Q(queue_name=value)

    monkeypatch.setattr(JobAdmin, "list_filter", [*JobAdmin.list_filter, OnlyMine])
    client = login("view_job", "retry_job")
    url = address("job", "matching_retry") + "?mine=x"
    told = client.post(url, {"post": "yes"}, follow=True).content.decode()
    assert "narrowed by mine" in told
    assert not Job.objects.filter(slug=bulk.SLUG).exists()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Selection()),
        ("?status=failed&slug=a&queue=b", Selection(status="failed", slug="a", queue="b")),
        (
            "?q=charge&key=k&worker=w&code=crashed&tag=x",
            Selection(search="charge", key="k", worker="w", code="crashed", tag="x"),
        ),
        ("?tenant_1=acme", Selection(tenants=("acme", "", ""))),
    ],
)
def test_each_filter_of_the_list_is_kept(
    login: Login, settings: Any, query: str, expected: Selection
) -> None:
    settings.DJANGO_JOBS = {"TENANT_FIELDS": ["org"]}
    shop.make_job("charge_card", Status.FAILED)
    client = login("view_job", "cancel_job")
    order(client, "cancel", query)
    kept = Selection.read(the_order().input["selection"])
    assert kept.until_id
    assert {**kept.as_dict(), "until_id": ""} == {
        **expected.as_dict(),
        "tenants": [*expected.tenants, "", "", ""][:3],
    }


def test_the_time_preset_is_fixed_when_it_is_asked(login: Login) -> None:
    order(login("view_job", "cancel_job"), "cancel", "?since=1h")
    assert the_order().input["selection"]["since"]


@pytest.fixture(autouse=True)
def real_time() -> Iterator[None]:
    """A clock that was moved here would make jobs due too late for real workers."""
    yield
    test_clock.reset()


@pytest.fixture
def finished() -> Iterator[list[Job]]:
    made = jobs.echo.enqueue_many([{"value": n} for n in range(120)])
    now = clock.now()
    Job.objects.update(status="completed", started_at=now, finished_at=now)
    yield made


def enqueue_rerun(part: int) -> Job:
    user = User.objects.create_superuser("operator", "o@example.org", "x")
    job = bulk.act_on_matching.enqueue(
        command=str(Command.RERUN), values={}, actor=str(user.pk), actor_name="operator", reason="",
        site="admin", model="job", part=part,
        selection=Selection(slug="echo", until_id=str(Job.objects.order_by("-pk")[0].pk)).as_dict(),
    )  # fmt: skip
    LogEntry.objects.log_actions(user.pk, [job], 1, "Re-run")
    return job


def assert_each_once(made: list[Job]) -> None:
    again = Job.objects.filter(rerun_of__in=[job.pk for job in made])
    sources = sorted(again.values_list("rerun_of", flat=True))
    assert sources == sorted(job.pk for job in made)
    logged = sorted(LogEntry.objects.filter(action_flag=2).values_list("object_id", flat=True))
    assert logged == sorted(str(job.pk) for job in made)


@pytest.mark.django_db(transaction=True)
def test_after_kill_9_in_the_middle_each_job_is_done_once(
    finished: list[Job], tmp_path: Path
) -> None:
    """Re-run, the command that is not harmless to repeat, over parts of two jobs."""
    order = enqueue_rerun(part=2)
    first = RunJobs(tmp_path / "first.log", "--threads", 2, LEASE=2, HEARTBEAT=0.5)
    parts = TaskStatus.objects.filter(job=order.pk, status="completed")
    try:
        eventually(lambda: parts.count() > 10, "some parts are done")
    except AssertionError:
        order.refresh_from_db()
        raise AssertionError(f"{order.status} {order.error} {first.output()}") from None
    finally:
        first.kill_all()
    killed_at = parts.count()
    assert Job.objects.get(pk=order.pk).status != "completed"
    second = RunJobs(tmp_path / "second.log", "--threads", 2, LEASE=2, HEARTBEAT=0.5)
    try:
        eventually(lambda: Job.objects.get(pk=order.pk).finished_at, "the order is done")
    finally:
        second.kill_all()
    order.refresh_from_db()
    assert order.status == "completed", order.error
    assert order.output == {"changed": 120, "unchanged": 0, "refused": {}}
    assert order.crashes == 1
    assert killed_at < parts.count() == 62
    assert_each_once(finished)


def test_a_part_that_is_rolled_back_is_done_again_from_its_start(finished: list[Job]) -> None:
    order = enqueue_rerun(part=50)
    calls: list[int] = []
    done = JobAdmin.carry_out

    def breaks_once(self: Any, *args: Any) -> Any:
        tally = done(self, *args)
        calls.append(1)
        if len(calls) == 2:
            raise OSError("after the changes")
        return tally

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobAdmin, "carry_out", breaks_once)
        drain(until=timedelta(minutes=5))
    order.refresh_from_db()
    assert (order.status, order.output["changed"], len(calls)) == ("completed", 120, 4)
    assert_each_once(finished)
