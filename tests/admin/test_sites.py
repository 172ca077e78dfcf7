"""The pages on other admin sites, under another theme, and with texts that mean harm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import django
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from django_jobs import clock
from django_jobs.lifecycle import Kind
from django_jobs.models import Job, Queue, Schedule, Task, Tick, Worker
from tests.admin import shop
from tests.admin.test_pages import addresses

pytestmark = [pytest.mark.django_db, pytest.mark.once]


def test_a_page_of_another_site_links_to_that_site_only(
    login: Callable[..., Client], settings: Any
) -> None:
    settings.ROOT_URLCONF = "tests.admin.sites"
    client = login(superuser=True)
    pages = {name: url for name, (url, _needed) in addresses(shop.make_everything()).items()}
    for name, url in pages.items():
        for prefix, other in (("/operations/", "/admin/"), ("/admin/", "/operations/")):
            answer = client.get(url.replace("/admin/", prefix, 1))
            assert answer.status_code == 200, name
            content = answer.content.decode()
            assert not re.findall(rf'(?:href|action|formaction)="{other}', content), name
            assert f'href="{prefix}' in content, name


def test_commands_of_another_site_answer_with_pages_of_it(
    login: Callable[..., Client], settings: Any
) -> None:
    settings.ROOT_URLCONF = "tests.admin.sites"
    client = login(superuser=True)
    job = shop.make_job()
    shop.make_catalogue()
    Task.objects.create(slug="add", kind="task")
    queue, task = Queue.objects.filter(paused=False).first(), Task.objects.get(slug="add")
    assert queue is not None
    for model, row, view, form in (
        ("job", job, "pause", {}),
        ("job", job, "cancel", {"post": "yes"}),
        ("job", job, "rerun", {"post": "yes"}),
        ("queue", queue, "pause", {}),
        ("task", task, "run", {"a": "1", "b": "2"}),
        ("schedule", shop.make_schedule(), "run_now", {}),
        ("worker", shop.make_worker(), "drain", {}),
    ):
        url = reverse(f"operations:django_jobs_{model}_{view}", args=[row.pk])
        answer = client.post(url, form)
        assert answer.status_code == 302, (model, view)
        assert answer["Location"].startswith("/operations/django_jobs/"), (model, view)


def test_a_template_of_the_project_goes_before_ours(
    login: Callable[..., Client], settings: Any, tmp_path: Any
) -> None:
    folder = tmp_path / "admin" / "django_jobs"
    folder.mkdir(parents=True)
    (folder / "job.html").write_text(
        '{% extends "admin/django_jobs/job.html" %}'
        "{% block actions %}<p>Ask the team first.</p>{{ block.super }}{% endblock %}"
    )
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    job = shop.make_job()
    content = (
        login(superuser=True)
        .get(reverse("admin:django_jobs_job_change", args=[job.pk]))
        .content.decode()
    )
    assert "Ask the team first." in content
    assert "dj-do-pause" in content


THEMED = """
import django, sys
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.contrib.auth.models import User
from django.test import Client
from tests.admin import shop
from tests.admin.test_pages import addresses
client = Client()
client.force_login(User.objects.create_superuser("boss", "b@example.org", "x"))
pages = addresses(shop.make_everything())
for name, (url, _needed) in pages.items():
    answer = client.get(url)
    content = answer.content.decode()
    assert answer.status_code == 200, (name, answer.status_code)
    assert "unfold/css/styles.css" in content, name
    assert "django_jobs/admin.css" in content or name == "job log", name
    assert ("dj-" in content) or name == "job log", name
job = shop.make_job()
from django.urls import reverse
answer = client.post(reverse("admin:django_jobs_job_cancel", args=[job.pk]))
assert b"dj-confirm" in answer.content
print(len(pages), "pages")
"""


def test_the_pages_get_on_with_the_theme_of_unfold(tmp_path: Any) -> None:
    pytest.importorskip("unfold", reason="django-unfold is not installed")
    environment = {
        **os.environ, "TEST_DATABASE": "sqlite", "DJANGO_SETTINGS_MODULE": "tests.admin.themed_settings",
    }  # fmt: skip
    environment.pop("TEST_DB", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", THEMED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pages" in done.stdout


@pytest.mark.skipif(
    django.VERSION < (6, 0), reason="Content-Security-Policy by Django came with 6.0"
)
def test_the_pages_hold_under_the_nonces_of_django_6(
    login: Callable[..., Client], settings: Any
) -> None:
    from django.utils.csp import CSP  # type: ignore[import-not-found,unused-ignore]

    settings.MIDDLEWARE = [
        "django.middleware.csp.ContentSecurityPolicyMiddleware",
        *(one for one in settings.MIDDLEWARE if "StrictPolicy" not in one),
    ]
    options = settings.TEMPLATES[0]["OPTIONS"]
    processors = [*options["context_processors"], "django.template.context_processors.csp"]
    settings.TEMPLATES = [
        {**settings.TEMPLATES[0], "OPTIONS": {**options, "context_processors": processors}}
    ]
    settings.SECURE_CSP = {
        "default-src": [CSP.NONE], "script-src": [CSP.SELF, CSP.NONCE], "style-src": [CSP.SELF, CSP.NONCE],
        "img-src": [CSP.SELF, "data:"], "connect-src": [CSP.SELF], "form-action": [CSP.SELF],
    }  # fmt: skip
    client = login(superuser=True)
    for name, (url, _needed) in addresses(shop.make_everything()).items():
        answer = client.get(url)
        assert answer.status_code == 200, name
        assert "script-src 'self'" in answer["Content-Security-Policy"], name
        own = answer.content.decode()
        own = own[own.index('<div id="content"') : own.index('id="footer"')]
        assert not re.search(r"<style|<script(?![^>]*(src|nonce)=)|\sstyle=|\son\w+=", own), name


# --- texts that mean harm ---------------------------------------------------------------------

#: Leaves an attribute, a text area, a script, a comment and a title; is code to a template; and is there twice
#: escaped, so that what is unescaped once too often shows as well.
PROBE = """x"'--><xss-probe onfocus=alert(1)>{{ 7|add:7 }}{% now "Y" %}&lt;xss-probe&gt;"""


class Looking(HTMLParser):
    """Elements and attributes that no page of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _value in attrs]
        if tag == "xss-probe" or any(name.startswith("on") for name in names):
            self.found.append(f"<{tag} {attrs}>")
        for name, value in attrs:
            if name in ("href", "src", "action", "formaction") and (
                value or ""
            ).strip().lower().startswith("javascript:"):
                self.found.append(f"{tag} {name}={value}")


def probe_everything() -> list[str]:
    """Puts the probe wherever a text can stand, and says the addresses of all pages."""
    text, now = PROBE[:150], clock.now()
    shop.make_catalogue(text)
    schema = {
        "type": "object", "required": ["a"],
        "properties": {
            "a": {"type": "string", "title": PROBE, "description": PROBE, "default": PROBE},
            "b": {"enum": [PROBE, "y"], "title": PROBE},
            "c": {"type": "object", "title": PROBE, "description": PROBE, "properties": {PROBE: {"type": "integer"}}},
            PROBE: {"type": "array", "description": PROBE},
        },
    }  # fmt: skip
    Task.objects.update(input_schema=schema, output_schema=schema, queue_name=text)
    error = dict.fromkeys(("type", "message", "traceback", "code", "step_id"), PROBE)
    run = shop.make_run(slug=text, text=text, error=error, queue_name=text, version=text)
    Worker.objects.update(queues=[PROBE], codes=[[PROBE, PROBE]], hostname=text)
    for number in range(12):
        shop.make_job(
            text,
            "failed",
            queue_name=text,
            error=error,
            finished_at=now - timedelta(seconds=number),
        )
        shop.make_job(text, "pending", queue_name=text, concurrency_key=text)
    step = text.replace("/", "")[:60]
    spec = {
        "id": step,
        "steps": [
            {"id": step, "url": "https://example.org/a"},
            {"id": f"{step}2", "url": "https://example.org/b", "dependsOn": [step]},
        ],
    }
    graph = shop.make_job(text, kind=Kind.DAG, spec=spec, progress=0.5, progress_note=text)
    schedule = shop.make_schedule()
    Schedule.objects.filter(pk=schedule.pk).update(
        name=text, slug=text, error=error, input={PROBE: PROBE}, queue_name=text, version=text,
        next_slot=now - timedelta(hours=2),
    )  # fmt: skip
    Tick.objects.create(schedule=schedule, slot=now, outcome=text[:20], error=error, created_at=now)
    task = Task.objects.exclude(paused=True).first()
    assert task is not None
    pages = [url for url, _needed in addresses(run).values()]
    pages += [
        reverse("admin:django_jobs_workflowrun_change", args=[graph.pk]),
        reverse("admin:django_jobs_task_run", args=[task.pk]),
        reverse("admin:django_jobs_schedule_add"),
        reverse("admin:django_jobs_overview_changelist") + "?period=7d",
    ]
    return pages


def assert_harmless(answer: Any, url: str) -> None:
    looking = Looking()
    content = answer.content.decode()
    looking.feed(content)
    assert looking.found == [], url
    assert "<xss-probe" not in content, url
    assert "14{" not in content and "}}14" not in content, url


def test_no_page_lets_a_text_become_code(login: Callable[..., Client]) -> None:
    pages = probe_everything()
    client = login(superuser=True)
    seen = 0
    for url in pages:
        answer = client.get(url)
        assert answer.status_code == 200, url
        assert_harmless(answer, url)
        seen += answer.content.decode().count("&lt;xss-probe onfocus")
    assert seen > 150
    graph = client.get(pages[-4]).content.decode()
    assert "jobs-graph" in graph
    assert graph[graph.index("jobs-graph") :].count("&lt;xss-probe") >= 2


def test_no_form_gives_back_a_text_as_code(login: Callable[..., Client]) -> None:
    probe_everything()
    client = login(superuser=True)
    fields = "a b c as_json call-queue_name call-priority name payload reason slug expression timezone input start end"
    hostile = dict.fromkeys((*fields.split(), "limit", "fair_by", "q", "action"), PROBE)
    jobs = list(Job.objects.values_list("pk", flat=True)[:2])
    targets = [
        *(("job", view, jobs[0]) for view in ("cancel", "rerun", "pause", "send_event")),
        ("schedule", "backfill", Schedule.objects.get().pk),
        ("schedule", "change", Schedule.objects.get().pk),
        *(("task", "run", pk) for pk in Task.objects.values_list("pk", flat=True)[:1]),
        *(("queue", "change", pk) for pk in Queue.objects.values_list("pk", flat=True)[:1]),
    ]
    for model, view, pk in targets:
        url = reverse(f"admin:django_jobs_{model}_{view}", args=[pk])
        assert_harmless(client.post(url, hostile, follow=True), url)
    assert_harmless(client.post(reverse("admin:django_jobs_schedule_add"), hostile), "add")
    listed = reverse("admin:django_jobs_job_changelist")
    chosen = {"action": "cancel", "_selected_action": list(map(str, jobs)), "reason": PROBE}
    assert_harmless(client.post(listed, chosen), "confirm")
    for name in (
        "q",
        "slug",
        "queue",
        "status",
        "since",
        "key",
        "worker",
        "code",
        "before",
        "p",
        "o",
        PROBE,
    ):
        assert_harmless(client.get(listed, {name: PROBE}, follow=True), name)


def test_a_user_name_and_a_session_mean_no_harm_either() -> None:
    boss = User.objects.create_superuser("b", "b@example.org", "x")
    User.objects.filter(pk=boss.pk).update(username=PROBE[:100], first_name=PROBE[:100])
    client = Client()
    client.force_login(User.objects.get(pk=boss.pk))
    job = shop.make_job()
    client.post(reverse("admin:django_jobs_job_pause", args=[job.pk]), {"reason": PROBE})
    url = reverse("admin:django_jobs_job_change", args=[job.pk])
    answer = client.get(url)
    assert_harmless(answer, url)
    assert answer.content.decode().count("&lt;xss-probe onfocus") >= 3
