"""One job's page: the graph and its table, attempts with error and log together, undoing a run."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from django_jobs import DAG, Retry, StepContext, TaskContext, run_jobs, task
from django_jobs.admin.tries import share_out
from django_jobs.lifecycle import Kind, Status
from django_jobs.models import Attempt, HistoryEntry, Job, LogLine
from django_jobs.testing import drain, registry
from tests.admin import shop
from tests.admin.test_pages import address, page, words
from tests.admin.test_steering import buttons

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]


@pytest.fixture
def trip() -> Iterator[DAG]:
    """Two steps that can be undone, one that is left out, and one that fails."""

    def fails(ctx: StepContext) -> None:
        raise ValueError("no <room> left")

    def undo(ctx: StepContext) -> str:
        return f"undone {ctx.step_id}"

    with registry():
        yield (
            DAG("test.trip", saga=False)
            .step("flight", lambda ctx: "LX 1", compensate=undo)
            .step("seat", lambda ctx: "1A", after="flight", compensate=undo)
            .step("gift", lambda ctx: "none", after="flight", when=lambda ctx: False)
            .step("hotel", fails, after=["seat"])
            .step("taxi", lambda ctx: "yes", after=["hotel", "gift"])
        )


def part(content: str, name: str) -> str:
    found = re.search(rf'<section[^>]*data-dj-live="{name}".*?</section>', content, re.S)
    assert found is not None, name
    return found[0]


def table(content: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", content, re.S)[1:]
    return [
        [
            html.unescape(re.sub(r"<[^>]+>", "", cell)).strip()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        ]
        for row in rows
    ]


def failed_trip(trip: DAG) -> Job:
    job = trip.enqueue()
    drain()
    job.refresh_from_db()
    assert job.status == "failed"
    return job


def test_the_graph_and_its_table_say_the_same(login: Login, trip: DAG) -> None:
    job = failed_trip(trip)
    shown = part(page(login("view_job"), address("workflowrun", "change", job.pk)), "graph")
    drawn = dict(
        re.findall(r'class="jobs-node[^"]*status-([\w-]+)[^"]*".*?<title>(\w+)', shown, re.S)
    )
    assert drawn
    assert table(shown) == [
        ["flight", "completed", "–"],
        ["seat", "completed", "flight"],
        ["gift", "skipped", "flight"],
        ["hotel", "failed", "seat"],
        ["taxi", "canceled", "hotel, gift"],
    ]
    statuses = re.findall(r"status-([\w-]+)", shown)
    assert sorted(statuses) == ["canceled", "completed", "completed", "failed", "skipped"]


def test_a_failed_run_is_undone_by_its_button(login: Login, trip: DAG) -> None:
    job = failed_trip(trip)
    client, viewer = login("view_job", "cancel_job"), login("view_job", "retry_job")
    url = address("workflowrun", "change", job.pk)
    assert "Compensate" in buttons(page(client, url))
    assert "Compensate" not in buttons(page(viewer, url))
    order = address("workflowrun", "compensate", job.pk)
    assert viewer.post(order, {"post": "yes"}).status_code == 403
    assert client.get(order).status_code == 405
    assert "Undo this run?" in words(client.post(order).content.decode())
    job.refresh_from_db()
    assert job.status == "failed"
    client.post(order, {"post": "yes", "reason": "sold out"})
    job.refresh_from_db()
    assert job.status == "compensating"
    entry, logged = HistoryEntry.objects.get(event="compensating"), LogEntry.objects.get()
    assert (entry.detail["reason"], logged.change_message) == (
        "sold out",
        "Compensating: sold out",
    )
    drain()
    content = page(client, url)
    assert "2 of 2 compensations completed" in words(content)
    assert [row[1] for row in table(part(content, "graph"))][:2] == ["undone", "undone"]
    assert "Compensate" not in buttons(content)


@pytest.mark.parametrize("whole", [False, True])
def test_a_cancel_undoes_where_that_is_chosen(login: Login, whole: bool) -> None:
    """One run by its button, or all that match: the completed step is undone, then the run ends."""
    with registry():
        dag = DAG("test.slow").step("first", lambda ctx: 1, compensate=lambda ctx: "undone")
        dag.step("second", lambda ctx: 2, after="first", run_if="all_done")

        def later(ctx: StepContext) -> None:
            raise ConnectionError("not yet")

        dag.step("third", later, after="second", retries=Retry(max_attempts=9, delay=600))
        job = dag.enqueue()
        run_jobs()
        job.refresh_from_db()
        assert job.finished_at is None
        client = login("view_job", "cancel_job")
        form = {"post": "yes", "compensate": "on"}
        if whole:
            client.post(address("job", "matching_cancel") + "?slug=test.slow", form)
        else:
            client.post(address("workflowrun", "cancel", job.pk), form)
        drain()
        job.refresh_from_db()
        assert job.status == "compensated"
        assert job.task_status["undo"]["undo:first"]["status"] == "completed"
        said = LogEntry.objects.values_list("change_message", flat=True)
        assert "Canceled." in list(said)


def test_a_task_is_not_undone(login: Login) -> None:
    job = shop.make_job(status=Status.FAILED, error=shop.ERROR)
    client = login("view_job", "cancel_job")
    assert "Compensate" not in buttons(page(client, address("job", "change", job.pk)))
    answer = client.post(address("job", "compensate", job.pk), {"post": "yes"}, follow=True)
    assert "compensate" in answer.content.decode()
    job.refresh_from_db()
    assert (job.status, LogEntry.objects.count()) == ("failed", 0)


def test_each_attempt_stands_with_its_error_and_its_log(login: Login) -> None:
    with registry():

        @task("test.chatty", takes_context=True, retries=2)
        def chatty(context: TaskContext) -> str:
            context.log.info("try number %d", context.attempt)
            if context.attempt < 3:
                raise ValueError(f"broken {context.attempt}")
            return "done"

        job = chatty.enqueue()
        for _ in range(3):
            Job.objects.update(run_after=None, gate="open")
            run_jobs()
    job.refresh_from_db()
    assert job.status == "completed"
    content = page(login("view_job"), address("job", "change", job.pk))
    shown = part(content, "attempts")
    rows = re.split(r'<tr>\s*<td data-label="No."', shown)[1:]
    lines = [re.findall(r"try number (\d)", row) for row in rows]
    errors = [set(re.findall(r"broken (\d)", row)) for row in rows]
    # Each try that has a row; what has none stands in the log of the job.
    others = re.findall(r"try number (\d)", part(content, "log")) if 'id="log"' in content else []
    assert sorted(one for row in lines for one in row) + others == ["1", "2", "3"]
    for said, error in zip(lines, errors, strict=True):
        assert len(said) == 1
        assert error in (set(), set(said))


def test_an_event_by_hand_is_in_the_history_with_who_sent_it(login: Login) -> None:
    job = shop.make_job("order.process", kind=Kind.WORKFLOW)
    client = login("view_job", "send_event_job")
    client.post(address("workflowrun", "send_event", job.pk), {"name": "card.answer"})
    entry = HistoryEntry.objects.get()
    assert (entry.event, entry.detail) == ("event_sent", {"name": "card.answer"})
    shown = words(page(client, address("workflowrun", "change", job.pk)))
    assert f"an event was sent to it by {entry.actor} name: card.answer" in shown


def test_jobs_are_found_by_their_tags(login: Login) -> None:
    for tags in (["import", "acme"], ["imports"], ['quo"te'], [], None):
        shop.make_job(meta={"tags": tags} if tags is not None else {"note": "import"})
    client = login("view_job")
    for tag, expected in (("import", 1), ("acme", 1), ("imp", 0), ('quo"te', 1), ("note", 0)):
        content = page(client, f"{address('job')}?{urlencode({'tag': tag})}")
        assert content.count('class="dj-slug"') == expected, tag


def test_lines_go_to_the_try_that_was_under_way() -> None:
    job = shop.make_job(kind=Kind.WORKFLOW)
    now = job.created_at

    def row(pk: int, fence: int, key: str | None, second: int) -> Any:
        made = Attempt(pk=pk, job=job, number=pk, fence=fence, started_at=_after(now, second))
        made.key_of_step = key  # type: ignore[attr-defined]
        return made

    def line(fence: int, key: str | None, second: int) -> LogLine:
        return LogLine(job=job, fence=fence, step_key=key, at=_after(now, second), message="")

    rows = [row(1, 2, None, 0), row(2, 2, "a", 1), row(3, 2, "a", 5)]
    lines = [line(2, "a", 2), line(2, "a", 6), line(2, "b", 3), line(2, None, 3), line(1, None, 0)]
    shared, rest = share_out(rows, lines)
    assert shared == {2: [lines[0]], 3: [lines[1]], 1: [lines[2], lines[3]]}
    assert rest == [lines[4]]


def _after(moment: Any, seconds: int) -> Any:
    from datetime import timedelta

    return moment + timedelta(seconds=seconds)
