"""The admin's pages through Django's test client: what they show, to whom, at what cost."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from django_jobs import clock, run_jobs
from django_jobs.lifecycle import Kind, Status
from django_jobs.models import Job, LogLine, Queue, Schedule, Task, TaskStatus, Worker
from django_jobs.observe import selection
from tests.admin import shop
from tests.app import jobs

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]
LISTS = {
    "job": "view_job", "workflowrun": "view_job", "task": "view_task", "queue": "view_queue",
    "worker": "view_worker", "schedule": "view_schedule",
}  # fmt: skip


def address(model: str, what: str = "changelist", *args: object) -> str:
    return reverse(f"admin:django_jobs_{model}_{what}", args=args)


def page(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def words(content: str) -> str:
    """The page as read: main part, without tags."""
    main = re.sub(
        r'<span class="dj-label">[^<]*</span>', "", content[content.index('id="content"') :]
    )
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", main)).split())


def listed(content: str) -> list[str]:
    """Ids of the jobs in a list, in order."""
    return re.findall(r'class="dj-id" title="([^"]+)"', content)


# --- permissions ------------------------------------------------------------------------------


def addresses(run: shop.Run) -> dict[str, tuple[str, str]]:
    """Every page by name: its address and the permission it needs."""
    task, queue = Task.objects.first(), Queue.objects.first()
    assert task is not None and queue is not None
    found = {f"{model} list": (address(model), code) for model, code in LISTS.items()}
    schedule = Schedule.objects.first() or shop.make_schedule()
    found |= {
        "schedule": (address("schedule", "change", schedule.pk), "view_schedule"),
        "dashboard": (address("overview"), "view_job"),
        "job": (address("job", "change", run.job.pk), "view_job"),
        "run": (address("workflowrun", "change", run.job.pk), "view_job"),
        "step": (address("job", "step", run.job.pk, run.steps[0].pk), "view_job"),
        "job log": (address("job", "history", run.job.pk), "view_job"),
        "task": (address("task", "change", task.pk), "view_task"),
        "queue": (address("queue", "change", queue.pk), "view_queue"),
        "worker": (address("worker", "change", run.worker.pk), "view_worker"),
    }
    return found


def test_a_page_opens_for_its_own_view_permission_only(login: Login) -> None:
    run = shop.make_everything()
    codes = sorted(set(LISTS.values()))
    clients = {code: login(code) for code in codes}
    nobody, payload_only = login(), login("view_payload_job")
    for name, (url, needed) in addresses(run).items():
        for code, client in clients.items():
            expected = 200 if code == needed else 403
            assert client.get(url).status_code == expected, (name, code)
        assert nobody.get(url).status_code == 403, name
        assert payload_only.get(url).status_code == 403, name
        assert Client().get(url).status_code == 302, name
        assert Client().get(url)["Location"].startswith("/admin/login/"), name


def test_a_user_who_is_no_staff_sees_nothing(login: Login) -> None:
    run = shop.make_everything()
    client = login("view_job", "view_payload_job", staff=False)
    for name, (url, _) in addresses(run).items():
        assert client.get(url).status_code == 302, name


def test_nobody_adds_changes_or_deletes_not_even_a_superuser(login: Login) -> None:
    run = shop.make_everything()
    client = login(superuser=True)
    before = list(Job.units.order_by("pk").values())
    for model in LISTS:
        if model == "schedule":
            # Those of the operator are made and changed here.
            continue
        assert client.get(address(model, "add")).status_code == 403
        assert client.post(address(model, "add"), {"slug": "x"}).status_code == 403
        row = {"job": run.job, "workflowrun": run.job, "task": Task.objects.first()}.get(
            model, Queue.objects.first() if model == "queue" else run.worker
        )
        assert row is not None
        form = {"slug": "x", "name": "x", "hostname": "x", "_save": "Save"}
        # Of a queue only the limits can be edited, and this form has none.
        refused = 200 if model == "queue" else 403
        assert client.post(address(model, "change", row.pk), form).status_code == refused
        assert client.post(address(model, "delete", row.pk), {"post": "yes"}).status_code == 403
        action = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
        client.post(address(model), action)
    assert list(Job.units.order_by("pk").values()) == before
    assert Task.objects.count() == Queue.objects.count() == 3


def test_the_index_names_only_what_a_user_may_see(login: Login) -> None:
    content = page(login("view_queue"), reverse("admin:index"))
    assert address("queue") in content
    assert address("job") not in content
    content = page(login("view_job"), reverse("admin:index"))
    assert address("job") in content
    assert address("workflowrun") in content
    assert address("queue") not in content


SECRETIVE = (
    "SECRET-INPUT",
    "SECRET-OUTPUT",
    "SECRET-META",
    "SECRET-CONTEXT",
    "SECRET-STEP",
    "SECRET-EVENT",
)


def secretive_run() -> shop.Run:
    run = shop.make_run(
        input={"v": "SECRET-INPUT"}, output={"v": "SECRET-OUTPUT"}, options={"v": "SECRET-META"}
    )
    Job.objects.filter(pk=run.job.pk).update(
        meta={"v": "SECRET-META"}, context={"v": "SECRET-CONTEXT"}
    )
    TaskStatus.objects.filter(job=run.job).update(input={"v": "SECRET-STEP"})
    run.job.events.update(payload={"v": "SECRET-EVENT"})  # type: ignore[attr-defined]
    return run


def test_payloads_show_only_with_their_own_permission(login: Login) -> None:
    run = secretive_run()
    urls = [address("job", "change", run.job.pk), address("workflowrun", "change", run.job.pk)]
    step = address("job", "step", run.job.pk, run.steps[0].pk)
    for url in urls:
        content = page(login("view_job") if url == urls[0] else login("view_job", "view_task"), url)
        assert not [word for word in SECRETIVE if word in content]
        assert "hidden: needs the permission to see input and output" in content
    assert "SECRET" not in page(login("view_job", "view_queue"), step)
    trusted = login("view_job", "view_payload_job")
    content = page(trusted, urls[0])
    assert [word for word in SECRETIVE if word not in content] == []
    assert "SECRET-STEP" in page(trusted, step)


def test_secrets_are_hidden_even_from_those_who_see_payloads(login: Login, settings: Any) -> None:
    settings.DJANGO_JOBS = {"REDACT": ["iban"]}
    run = shop.make_run(input={"password": "hunter2", "customer_iban": "CH93", "order": 1})
    content = page(login(superuser=True), address("job", "change", run.job.pk))
    assert "hunter2" not in content
    assert "CH93" not in content
    assert "k-123" not in content
    assert "********" in content


# --- escaping ---------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7|add:7 }}&lt;b&gt;"


def test_whatever_a_field_holds_is_shown_as_text(login: Login) -> None:
    shop.make_catalogue(HOSTILE)
    text = HOSTILE[:180]
    error = {
        "type": HOSTILE,
        "message": HOSTILE,
        "traceback": HOSTILE,
        "code": HOSTILE,
        "step_id": HOSTILE,
    }
    run = shop.make_run(
        slug=text, text=HOSTILE[:150], error=error, queue_name=text, version=text, concurrency_key=text,
        idempotency_key=text, input={HOSTILE: [HOSTILE]}, output=HOSTILE, args=[HOSTILE],
        options={"k": HOSTILE}, spec={"k": HOSTILE}, runner="<b>",
    )  # fmt: skip
    Job.objects.filter(pk=run.job.pk).update(
        status="<b>odd</b>", progress_note=text, finished_at=None
    )
    Worker.objects.update(queues=[HOSTILE], codes=[[HOSTILE, HOSTILE]], status="<i>odd</i>")
    shop.make_job(text, Status.COMPLETED, parent=run.job)
    client = login(superuser=True)
    urls = [url for url, _ in addresses(run).values()]
    for url in [
        *urls,
        f"{address('job')}?{urlencode(dict.fromkeys(('slug', 'queue', 'status', 'q'), HOSTILE))}",
    ]:
        content = page(client, url)
        for raw in ("<script>alert", "<img src=x", "<b>odd", "<i>odd", "alert(2)>", 'value="<'):
            assert raw not in content, (url, raw)
        assert "14}" not in content
    shown = page(client, address("job", "change", run.job.pk))
    assert shown.count(html.escape("<script>alert(1)</script>")) > 15


def test_no_page_has_inline_code(login: Login) -> None:
    client = login(superuser=True)
    for name, (url, _) in addresses(shop.make_everything()).items():
        content = page(client, url)
        own = content[content.index('<div id="content"') : content.index('id="footer"')]
        assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", own), name


def test_an_address_in_a_parameter_leads_nowhere(login: Login) -> None:
    run = shop.make_run()
    client = login(superuser=True)
    content = page(
        client, address("job", "change", run.job.pk) + "?steps=//evil.example&log=javascript:1"
    )
    assert "evil.example" not in content
    assert "javascript:" not in content


# --- the list ---------------------------------------------------------------------------------


def test_the_list_shows_what_tells_jobs_apart(login: Login) -> None:
    job = shop.make_job(
        "charge_card", Status.FAILED, error=shop.ERROR, queue_name="money", priority=7, attempts=3
    )
    content = page(login("view_job"), address("job"))
    text = words(content)
    for expected in (
        "charge_card",
        str(job.pk)[:8],
        "failed money 7",
        "CardDeclined: insufficient",
    ):
        assert expected in text, expected
    assert "1 min 18 s" in text
    assert "Traceback" not in content
    assert "4711" not in content.replace("order 4711", "")


def test_runs_are_listed_apart_and_units_of_runs_nowhere(login: Login) -> None:
    task = shop.make_job("charge_card")
    code = shop.make_job("order", kind=Kind.WORKFLOW)
    graph = shop.make_job("graph", kind=Kind.DAG)
    shop.make_job("order", kind=Kind.STEP, parent=code)
    client = login("view_job")
    ids = [str(job.pk) for job in (graph, code, task)]
    assert listed(page(client, address("job"))) == ids
    assert listed(page(client, address("workflowrun"))) == ids[:2]
    assert client.get(address("workflowrun", "change", task.pk)).status_code == 404


@pytest.mark.parametrize("status", list(Status))
def test_each_status_has_its_tab(login: Login, status: Status) -> None:
    jobs = {one: shop.make_job(status=one) for one in Status}
    client = login("view_job")
    content = page(client, address("job"))
    assert f'href="?status={status}"' in content
    chosen = page(client, f"{address('job')}?status={status}")
    assert listed(chosen) == [str(jobs[status].pk)]
    assert re.search(rf'href="\?status={status}" aria-current="page"', chosen)


def test_tabs_count_up_to_a_thousand(login: Login) -> None:
    old = clock.now() - timedelta(days=1)
    Job.units.bulk_create(
        [Job(slug="bulk", lane=1, created_at=old, due_at=old) for _ in range(1002)]
        + [Job(slug="bulk", lane=1, created_at=old, due_at=old, status="paused") for _ in range(3)]
    )
    text = words(page(login("view_job"), address("job")))
    assert "pending 1,000+" in text
    assert "paused 3" in text
    assert "more than 1,000 jobs" in text


def test_filters_by_task_and_queue_come_from_the_catalogue(login: Login) -> None:
    shop.make_catalogue()
    mail = shop.make_job("mail.welcome", queue_name="mail")
    card = shop.make_job("charge_card", queue_name="mail")
    client = login("view_job")
    content = page(client, address("job"))
    assert '<option value="order.process">' in content
    assert '<option value="slow">' in content
    assert listed(page(client, f"{address('job')}?slug=mail.welcome")) == [str(mail.pk)]
    assert listed(page(client, f"{address('job')}?queue=mail")) == [str(card.pk), str(mail.pk)]
    assert listed(page(client, f"{address('job')}?queue=mail&slug=charge_card&status=pending")) == [
        str(card.pk)
    ]
    chosen = page(client, f"{address('job')}?slug=no.such&status=failed")
    assert listed(chosen) == []
    assert '<option value="no.such" selected>' in chosen
    assert '<input type="hidden" name="status" value="failed">' in chosen


def test_search_finds_beginnings_of_ids_and_slugs(login: Login) -> None:
    shop.make_catalogue()
    mail = shop.make_job("mail.welcome", id=uuid.UUID("01900000-0000-7000-8000-000000000001"))
    card = shop.make_job("charge_card", id=uuid.UUID("01911111-2222-7000-8000-000000000002"))
    odd = shop.make_job("not.in.catalogue", id=uuid.UUID("01922222-0000-7000-8000-000000000003"))
    client = login("view_job")

    def search(text: str) -> list[str]:
        return listed(page(client, f"{address('job')}?q={text}"))

    assert search("mail.") == [str(mail.pk)]
    assert search("charge") == [str(card.pk)]
    assert search("not.in.catalogue") == [str(odd.pk)]
    assert search("01911111") == [str(card.pk)]
    assert search("01911111-22") == [str(card.pk)]
    assert search(str(mail.pk)) == [str(mail.pk)]
    assert search(mail.pk.hex.upper()) == [str(mail.pk)]
    assert search("welcome") == []
    assert search("%25") == []
    assert search("019f") == []


def test_order_is_newest_first_whatever_is_asked(login: Login) -> None:
    jobs = [shop.make_job(slug) for slug in "bca"]
    newest_first = [str(job.pk) for job in reversed(jobs)]
    client = login("view_job")
    for query in ("", "?o=1", "?o=-1.2", "?o=4"):
        assert listed(page(client, address("job") + query)) == newest_first


def test_pages_lead_through_all_jobs_and_back(login: Login) -> None:
    jobs = [shop.make_job(queue_name="q") for _ in range(123)]
    everything = [str(job.pk) for job in reversed(jobs)]
    client = login("view_job")

    def follow(content: str, rel: str) -> str | None:
        found = re.search(rf'href="([^"]+)" rel="{rel}"', content)
        return page(client, address("job") + html.unescape(found[1])) if found else None

    first = page(client, f"{address('job')}?queue=q")
    seen, current = [], first
    pages = []
    while current is not None:
        pages.append(listed(current))
        seen += pages[-1]
        last, current = current, follow(current, "next")
    assert seen == everything
    assert [len(one) for one in pages] == [50, 50, 23]
    assert follow(first, "prev") is None
    back = follow(last, "prev")
    assert back is not None and listed(back) == pages[1]
    back = follow(back, "prev")
    assert back is not None and listed(back) == pages[0]
    # Queues have no index of their own, so that these are not counted.
    assert "more than 50 jobs" in words(first)


def test_what_no_index_serves_is_looked_for_piece_by_piece(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_jobs.admin import paging

    monkeypatch.setattr(paging, "LOOKED_THROUGH", 10)
    wanted = [shop.make_job(queue_name="rare") for _ in range(3)]
    for _ in range(25):
        shop.make_job()
    client = login("view_job")
    seen: list[str] = []
    content, pages = page(client, f"{address('job')}?queue=rare"), 1
    while found := re.search(r'href="([^"]+)" rel="next"', content):
        assert "Older ones have not been looked through yet." in content
        seen += listed(content)
        content, pages = page(client, address("job") + html.unescape(found[1])), pages + 1
    seen += listed(content)
    assert pages == 3
    assert seen == [str(job.pk) for job in reversed(wanted)]
    assert "looked through" not in page(client, f"{address('job')}?status=pending")


def test_failed_runs_are_looked_for_among_failed_jobs(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_jobs.admin import paging

    monkeypatch.setattr(paging, "LOOKED_UP", 5)
    monkeypatch.setattr(paging, "LOOKED_THROUGH", 2)
    failed = {"status": Status.FAILED, "error": shop.ERROR}
    wanted = [shop.make_job("order", kind=Kind.WORKFLOW, **failed) for _ in range(2)]
    for _ in range(7):
        shop.make_job("order", kind=Kind.WORKFLOW)
        shop.make_job("charge_card", **failed)
    shop.make_job("order", kind=Kind.STEP, parent=wanted[0], **failed)
    client = login("view_job")
    content = page(client, f"{address('workflowrun')}?status=failed")
    assert listed(content) == []
    found = re.search(r'href="([^"]+)" rel="next"', content)
    assert found is not None
    content = page(client, address("workflowrun") + html.unescape(found[1]))
    assert listed(content) == [str(job.pk) for job in reversed(wanted)]
    assert "looked through" not in page(client, address("workflowrun"))


def test_a_slug_that_nobody_knows_is_sought_among_the_newest(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "LOOKED_THROUGH", 3)
    shop.make_job("forgotten")
    done, new = shop.make_job("forgotten", Status.COMPLETED), shop.make_job("forgotten")
    for _ in range(2):
        shop.make_job()
    found = listed(page(login("view_job"), f"{address('job')}?q=forgotten"))
    assert found == [str(new.pk), str(done.pk)]


def test_a_search_of_runs_finds_no_tasks(login: Login) -> None:
    shop.make_catalogue()
    run = shop.make_job("order.process", kind=Kind.WORKFLOW)
    shop.make_job("charge_card")
    client = login("view_job")
    assert listed(page(client, f"{address('workflowrun')}?q=order")) == [str(run.pk)]
    assert listed(page(client, f"{address('workflowrun')}?q=charge")) == []


def test_a_job_that_arrives_meanwhile_moves_no_page(login: Login) -> None:
    for _ in range(60):
        shop.make_job()
    client = login("view_job")
    content = page(client, address("job"))
    second = re.search(r'href="([^"]+)" rel="next"', content)
    assert second is not None
    before = listed(page(client, address("job") + html.unescape(second[1])))
    shop.make_job()
    assert listed(page(client, address("job") + html.unescape(second[1]))) == before


def test_a_broken_parameter_is_answered_with_the_plain_list(login: Login) -> None:
    shop.make_job()
    client = login("view_job")
    for query in ("?before=nonsense", "?after=1", "?nonsense=1", "?id__foo=1"):
        response = client.get(address("job") + query)
        assert response.status_code in (200, 302, 400), query


def test_a_job_with_a_status_nobody_knows_still_shows(login: Login) -> None:
    job = shop.make_job()
    Job.units.filter(pk=job.pk).update(status="odd", error=["not a dict"])
    client = login(superuser=True)
    assert "odd" in words(page(client, address("job")))
    assert "not a dict" in words(page(client, address("job", "change", job.pk)))


# --- the page of a job ------------------------------------------------------------------------


def test_a_jobs_page_tells_its_whole_story(login: Login) -> None:
    run = shop.make_everything()
    content = page(login(superuser=True), address("workflowrun", "change", run.job.pk))
    text = words(content)
    for expected in (
        "order.process", str(run.job.pk), "failed", "web-1:4242", "66%",
        "insufficient funds for order 4711", "raise CardDeclined", '"order_id": 4711',
        "reserve reserve_task", "sum-up inline", "charge/nested", "for the event card.answer until",
        "enqueued", "claimed by a worker", "failed, will be tried again", "waits 5.5 s",
        "reserved 3 items", "the bank said no", "invoice", "re-run", "card.answer",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.count("CardDeclined: insufficient") > 4


def test_a_plain_job_has_a_timeline_from_its_own_columns(login: Login) -> None:
    job = shop.make_job(status=Status.COMPLETED, output={"done": 1}, attempts=1)
    text = words(page(login("view_job"), address("job", "change", job.pk)))
    timeline = text[text.index("Timeline") :]
    places = [timeline.index(word) for word in ("enqueued", "claimed by a worker", "completed")]
    assert places == sorted(places)


def test_long_lists_are_cut_and_lead_on(login: Login) -> None:
    run = shop.make_run()
    TaskStatus.objects.bulk_create(
        [
            TaskStatus(
                job=run.job, step_key=f"k{n}", step_id=f"page:{n}", kind="task", slug="fetch",
                status="completed", input={"n": n}, output=n,
            )
            for n in range(150)
        ]
    )  # fmt: skip
    LogLine.objects.bulk_create(
        [
            LogLine(job=run.job, at=clock.now(), level="INFO", message=f"line number {n};")
            for n in range(700)
        ]
    )
    client = login(superuser=True)
    url = address("job", "change", run.job.pk)
    content = page(client, url)
    assert "page:95" in content and "page:149" not in content
    assert "line number 699;" in content and "line number 10;" not in content
    steps = re.search(r'href="(\?steps=\d+)#steps"', content)
    log = re.search(r'href="(\?log=\d+)#log"', content)
    assert steps is not None and log is not None
    assert "page:149" in page(client, url + steps[1])
    assert "line number 390;" in page(client, url + log[1])


def test_a_big_step_payload_has_a_page_of_its_own(login: Login) -> None:
    run = shop.make_run()
    TaskStatus.objects.filter(pk=run.steps[0].pk).update(output="x" * 50_000 + "END")
    client = login(superuser=True)
    content = page(client, address("job", "change", run.job.pk))
    assert "xxxEND" not in content
    step = address("job", "step", run.job.pk, run.steps[0].pk)
    assert step in content
    assert "xxxEND" in page(client, step)
    other = shop.make_job()
    assert client.get(address("job", "step", other.pk, run.steps[0].pk)).status_code == 404


def test_an_unknown_job_is_not_found(login: Login) -> None:
    client = login("view_job")
    for pk in (uuid.uuid4(), "nonsense", "1"):
        assert client.get(address("job", "change", pk)).status_code == 404


# --- catalogue --------------------------------------------------------------------------------


def test_tasks_queues_and_workers_are_listed(login: Login) -> None:
    run = shop.make_everything()
    old = clock.now() - timedelta(minutes=5)
    silent = shop.make_worker(hostname="web-9", heartbeat_at=old)
    shop.make_worker(hostname="web-8", heartbeat_at=old, stopped_at=old)
    client = login(superuser=True)
    text = words(page(client, address("task")))
    assert "charge_card Charge_Card task default 1" in text
    text = words(page(client, address("queue")))
    assert "slow paused 0 0 0 – 1 4 operator" in text
    text = words(page(client, address("worker")))
    for expected in (
        "web-1:4242 running all 4 1 92 MiB",
        "web-9:4242 silent",
        "web-8:4242 stopped",
    ):
        assert expected in text
    assert "order (2)" in words(page(client, address("worker", "change", silent.pk)))
    Job.objects.filter(pk=run.job.pk).update(
        status="running", worker=silent.pk, lease_expires_at=clock.now()
    )
    assert address("job", "change", run.job.pk) in page(
        client, address("worker", "change", silent.pk)
    )


# --- cost -------------------------------------------------------------------------------------


def test_no_page_needs_more_than_fifteen_statements(
    login: Login, django_assert_max_num_queries: Any
) -> None:
    run = shop.make_everything()
    for number in range(60):
        shop.make_job(parent=run.job)
        TaskStatus.objects.create(
            job=run.job, step_key=f"k{number}", step_id=f"s{number}", kind="task", slug=f"t{number}",
            status="completed", worker=shop.make_worker().pk, child=run.job.pk, output=number,
        )  # fmt: skip
    client = login(
        "view_job",
        "view_payload_job",
        "view_task",
        "view_queue",
        "view_worker",
        "view_schedule",
        "change_schedule",
        "change_queue",
    )
    urls = {name: url for name, (url, _) in addresses(run).items()}
    urls |= {
        "filtered": f"{address('job')}?status=failed&slug=charge_card&queue=mail&q=charge",
        "deep": f"{address('job')}?before={run.job.pk}",
    }
    for name, url in urls.items():
        with django_assert_max_num_queries(15, info=name):
            assert client.get(url).status_code == 200


def plan_of(client: Client, query: str) -> str:
    """How the database reads the rows of the list with these parameters, a line a table."""
    with CaptureQueriesContext(connection) as done:
        page(client, address("job") + query)
    sql = next(one["sql"] for one in done.captured_queries if "LIMIT 51" in one["sql"])
    with connection.cursor() as cursor:
        how = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
        cursor.execute(f"{how} {sql}")
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


DIGITS = "(SELECT 0 AS d" + "".join(f" UNION ALL SELECT {digit}" for digit in range(1, 10)) + ")"
NUMBERS = (
    "(SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d AS n "
    f"FROM {DIGITS} a, {DIGITS} b, {DIGITS} c, {DIGITS} e)"
)
#: A number as the time of an id, as each database writes it.
AS_ID = {
    "sqlite": "'0190' || printf('%%08x', n) || '70008000000000000000'",
    "postgresql": "('0190' || lpad(to_hex(n), 8, '0') || '70008000000000000000')::uuid",
    "mysql": "concat('0190', lpad(lower(hex(n)), 8, '0'), '70008000000000000000')",
}


def fill() -> None:
    """Ten thousand finished jobs by one statement; a model for each costs ten times as much."""
    old = clock.now() - timedelta(days=1)
    shop.make_job("pattern", lane=1, created_at=old, due_at=old, started_at=old, finished_at=old)
    own = {
        "id": AS_ID[connection.vendor],
        "slug": "CASE WHEN n %% 2000 = 0 THEN 'rare' WHEN n %% 9 = 3 THEN 'task_3' ELSE 'task_0' END",
        "status": "CASE WHEN n %% 100 = 0 THEN 'failed' ELSE 'completed' END",
    }
    columns = [field.column for field in Job._meta.local_concrete_fields]
    values = [own.get(name, f"job.{connection.ops.quote_name(name)}") for name in columns]
    table, names = Job._meta.db_table, ", ".join(map(connection.ops.quote_name, columns))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({names}) SELECT {', '.join(values)} "
            f"FROM {table} job, {NUMBERS} number WHERE job.slug = %s",
            ["pattern"],
        )
    Job.units.filter(slug="pattern").delete()
    assert Job.units.count() == 10_000


def test_lists_are_read_by_an_index(login: Login) -> None:
    fill()
    shop.make_job("rare", Status.RUNNING)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    middle = str(uuid.UUID(f"0190{5_000:08x}70008000000000000000"))
    client = login("view_job")
    for query in (
        "", f"?before={middle}", f"?after={middle}", "?status=failed", "?status=completed", "?status=running",
        "?slug=rare&status=completed", f"?q={middle[:13]}", "?slug=task_3",
    ):  # fmt: skip
        plan = plan_of(client, query)
        whole = re.search(r"Seq Scan|^SCAN \S+$", plan, re.M)
        assert whole is None, (query, plan)


@pytest.mark.django_db(transaction=True)
def test_what_the_engine_recorded_can_be_read(login: Login, tmp_path: Path) -> None:
    run = jobs.three_steps.enqueue(marks=str(tmp_path / "marks"))
    flaky = jobs.flaky.enqueue(marks=str(tmp_path / "tries"), failures=1)
    for _ in range(3):
        run_jobs()
    client = login(superuser=True)
    text = words(page(client, address("workflowrun", "change", run.pk)))
    for expected in ("completed 100% all done", "second inline", '"steps": [ "first"', "ran first"):
        assert expected in text, expected
    text = words(page(client, address("job", "change", flaky.pk)))
    assert "failed, will be tried again" in text
    assert "RuntimeError: not yet" in text
    assert text.index("failed, will be tried again") < text.rindex("claimed by a worker")
