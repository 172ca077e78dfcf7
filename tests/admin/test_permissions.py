"""Who may do what: every address of the admin, each permission missing in turn, every method.

The addresses are those that the site itself resolves: a page that is not in ``NEEDS`` fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import URLPattern, URLResolver, reverse

from django_jobs.admin import JobAdmin
from django_jobs.lifecycle import Kind
from django_jobs.models import (
    Event,
    HistoryEntry,
    Job,
    Queue,
    Schedule,
    Task,
    TaskStatus,
    Worker,
)
from tests.admin import shop

pytestmark = [pytest.mark.django_db, pytest.mark.once]

VIEW = {
    "overview": "view_job", "job": "view_job", "workflowrun": "view_job", "task": "view_task",
    "queue": "view_queue", "worker": "view_worker", "schedule": "view_schedule",
}  # fmt: skip
NOBODY = "nobody"
#: What a view needs besides seeing the page, for GET and for POST; None where the method is not served.
#: Django shows the log of changes whatever the method.
READS = {"changelist": ("", ""), "history": ("", ""), "step": ("", None), "change": ("", NOBODY)}
JOB_COMMANDS = {
    "pause": (None, "pause_job"), "resume": (None, "pause_job"), "run_now": (None, "run_job"),
    "retry": (None, "retry_job"), "rerun": (None, "retry_job"), "cancel": (None, "cancel_job"),
    "send_event": (None, "send_event_job"), "reschedule": (None, "reschedule_job"),
    "compensate": (None, "cancel_job"),
}  # fmt: skip
#: Who edits an input sees it, and enqueues what they like.
EDITED = "retry_job enqueue_job view_payload_job"
SWITCHES = {"pause": (None, "pause_job"), "resume": (None, "pause_job")}
NEEDS: dict[str, dict[str, tuple[str | None, str | None]]] = {
    "overview": {"changelist": ("", None), "history": (NOBODY, NOBODY), "change": (NOBODY, NOBODY)},
    "job": {**READS, **JOB_COMMANDS, "rerun_edited": (EDITED, EDITED)},
    "workflowrun": {**READS, **JOB_COMMANDS, "rerun_edited": (EDITED, EDITED)},
    "task": {**READS, **SWITCHES, "run": ("enqueue_job", "enqueue_job")},
    "queue": {**READS, **SWITCHES, "change": ("", "change_queue")},
    "worker": {**READS, "drain": (None, "change_worker"), "undrain": (None, "change_worker")},
    "schedule": {
        **READS, "change": ("", "change_schedule"), "add": ("change_schedule", "change_schedule"),
        **dict.fromkeys(("backfill", "run_now", "pause", "resume"), (None, "change_schedule")),
    },
}  # fmt: skip
#: Permissions that actions of lists are given by.
RIGHTS = {
    "pause": "pause_job", "run": "run_job", "retry": "retry_job", "cancel": "cancel_job",
    "reschedule": "reschedule_job", "change": "change_schedule", "drain": "change_worker",
}  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FORM = {
    "post": "yes", "name": "x", "payload": "1", "a": "1", "b": "2", "start": "2026-01-01T00:00",
    "end": "2026-01-01T03:00", "slug": "add", "limit": "3", "priority": "1", "_save": "Save",
    "expression": "0 1 * * *", "input": '{"a": 1, "b": 2}', "timezone": "UTC", "misfire": "one",
    "overlap": "allow", "enabled": "on", "next": "//evil.example/", "back": "//evil.example/",
    "_changelist_filters": "//evil.example/", "_popup": "1",
}  # fmt: skip


def names(patterns: Iterable[Any] | None = None) -> Iterator[str]:
    for one in patterns if patterns is not None else admin.site.urls[0]:
        if isinstance(one, URLResolver):
            yield from names(one.url_patterns)
        elif isinstance(one, URLPattern) and str(one.name).startswith("django_jobs_"):
            yield str(one.name).removeprefix("django_jobs_")


@pytest.fixture
def rows() -> dict[str, Any]:
    run = shop.make_everything()
    live = shop.make_job("order.process", kind=Kind.WORKFLOW)
    step = TaskStatus.objects.create(
        job=live, step_key="k", step_id="s", slug="x", kind="task", status="running"
    )
    Task.objects.create(slug="add", kind="task")
    return {
        "job": live, "workflowrun": live, "overview": live, "task": Task.objects.get(slug="add"),
        "queue": Queue.objects.first(), "worker": run.worker, "schedule": shop.make_schedule(), "step": step,
    }  # fmt: skip


@pytest.fixture
def addresses(rows: dict[str, Any]) -> dict[tuple[str, str], str]:
    found = {}
    for name in names():
        model, _, view = name.partition("_")
        args = (
            []
            if view in ("changelist", "add") or view.startswith("matching_")
            else [rows[model].pk]
        )
        if view == "step":
            args.append(rows["step"].pk)
        found[model, view] = reverse(f"admin:django_jobs_{name}", args=args)
    return found


@pytest.fixture
def user() -> Callable[..., Client]:
    """A client logged in as somebody with these permissions of django_jobs."""
    made: dict[Any, Client] = {}

    def use(codes: Iterable[str], staff: bool = True) -> Client:
        key = (frozenset(codes), staff)
        if key not in made:
            one = User.objects.create_user(f"user-{len(made)}", password="x", is_staff=staff)
            one.user_permissions.set(
                Permission.objects.filter(
                    content_type__app_label="django_jobs", codename__in=key[0]
                )
            )
            made[key] = Client()
            made[key].force_login(one)
        return made[key]

    return use


def every() -> set[str]:
    found = Permission.objects.filter(content_type__app_label="django_jobs")
    return set(found.values_list("codename", flat=True))


def state() -> list[Any]:
    """All that an answer might have changed."""
    models: tuple[Any, ...] = (
        Job,
        TaskStatus,
        HistoryEntry,
        Event,
        Task,
        Queue,
        Worker,
        Schedule,
        LogEntry,
    )
    return [
        list((model.units if model is Job else model._base_manager).order_by("pk").values())
        for model in models
    ]


def needs(model: str, view: str, method: str) -> set[str] | None:
    """The permissions that a request needs; None where nobody has them all."""
    # All that match is asked for by the same right as each of them.
    view = view.removeprefix("matching_")
    if view == "delete" or (view == "add" and view not in NEEDS[model]):
        return None
    assert view in NEEDS[model], f"The page {model}_{view} is not in NEEDS: who may open it?"
    get, post = NEEDS[model][view]
    # Django takes what is no POST for a look at the page.
    right = post if method == "POST" else get
    if right is None or right == NOBODY:
        return None
    return {right} if view == "add" else {VIEW[model], *(right or "").split()}


def lacking(wanted: set[str] | None) -> list[set[str]]:
    """All permissions but one of those needed; where nobody may, all of them."""
    whole = every()
    if wanted is None:
        return [whole]
    # As everywhere in the admin, who may change may look.
    return [whole - {one, one.replace("view_", "change_")} for one in sorted(wanted)]


def test_no_page_of_the_site_is_forgotten(addresses: dict[tuple[str, str], str]) -> None:
    for model, view in addresses:
        for method in METHODS:
            needs(model, view, method)
    assert len(addresses) > 60


def test_what_one_lacks_the_permission_for_is_refused(
    addresses: dict[tuple[str, str], str], user: Callable[..., Client]
) -> None:
    whole = every()
    before = state()
    for (model, view), url in addresses.items():
        for method in METHODS:
            for codes in lacking(needs(model, view, method)):
                answer = user(codes).generic(method, url)
                assert answer.status_code in (403, 405), (model, view, method, answer.status_code)
            assert user([]).generic(method, url).status_code in (403, 405), (model, view, method)
            if method in ("GET", "POST"):
                form = FORM if method == "POST" else {}
                for stranger in (Client(), user(whole, staff=False)):
                    call = stranger.post if method == "POST" else stranger.get
                    answer = call(url, form)
                    assert answer.status_code == 302, (model, view)
                    assert answer["Location"].startswith("/admin/login/"), (model, view)
    # With a body that would do it, were it allowed.
    for (model, view), url in addresses.items():
        for codes in lacking(needs(model, view, "POST")):
            assert user(codes).post(url, FORM).status_code in (403, 405), (model, view)
    assert state() == before


def test_the_permissions_that_a_page_needs_are_enough(
    addresses: dict[tuple[str, str], str], user: Callable[..., Client]
) -> None:
    for (model, view), url in addresses.items():
        for method in ("GET", "HEAD", "POST"):
            wanted = needs(model, view, method)
            if wanted is None:
                continue
            answer = user(wanted).generic(method, url)
            assert answer.status_code in (200, 302), (model, view, method, answer.status_code)


def test_actions_of_a_list_are_refused_and_not_offered_without_their_permission(
    rows: dict[str, Any], addresses: dict[tuple[str, str], str], user: Callable[..., Client]
) -> None:
    whole = every()
    tried = 0
    for model, model_admin in admin.site._registry.items():
        name = model._meta.model_name or ""
        if model._meta.app_label != "django_jobs" or name == "overview":
            continue
        url = addresses[name, "changelist"]
        for action in model_admin.actions or []:
            rights = getattr(action, "allowed_permissions", [])
            assert rights, f"The action {action} of {name} asks for no permission."
            codes = {RIGHTS[right] for right in rights}
            for code in codes:
                before = state()
                client = user(whole - {code})
                form = {"action": action.__name__, "_selected_action": [str(rows[name].pk)], **FORM}
                assert client.post(url, form).status_code in (200, 302, 403)
                assert state() == before, (name, action.__name__)
                tried += 1
            assert f'value="{action.__name__}"' not in user(whole - codes).get(url).content.decode()
            assert f'value="{action.__name__}"' in user(whole).get(url).content.decode()
    assert tried > 15


def test_no_post_is_taken_without_its_token(addresses: dict[tuple[str, str], str]) -> None:
    boss = User.objects.create_superuser("boss", "b@example.org", "x")
    client = Client(enforce_csrf_checks=True)
    client.force_login(boss)
    before = state()
    for key, url in addresses.items():
        assert client.post(url, FORM).status_code == 403, key
    assert state() == before


def test_no_answer_leads_away_from_the_site(addresses: dict[tuple[str, str], str]) -> None:
    boss = User.objects.create_superuser("boss", "b@example.org", "x")
    client = Client(
        headers={"referer": "https://evil.example/", "x-forwarded-host": "evil.example"}
    )
    client.force_login(boss)
    query = "?next=//evil.example/&back=https://evil.example/&q=//evil.example&_changelist_filters=//evil.example"
    for key, url in addresses.items():
        for answer in (client.get(url + query), client.post(url + query, FORM)):
            where = answer.get("Location", "/admin/")
            assert where.startswith(("/admin/", "?")) and not where.startswith("//"), (key, where)
            content = answer.content.decode()
            for mark in ('href="//', 'href="https://evil', 'action="//', 'action="https://evil'):
                assert mark not in content, key


# --- by object --------------------------------------------------------------------------------


class OursAdmin(JobAdmin):
    """Nobody sees jobs of the queue ``hidden``, nobody acts on those of ``guarded``."""

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).exclude(queue_name="hidden")


def _guarded(self: Any, request: Any, obj: Any = None) -> bool:
    return obj is None or obj.queue_name != "guarded"


for _right in ("pause", "cancel", "retry", "run", "reschedule", "send"):
    setattr(OursAdmin, f"has_{_right}_permission", _guarded)


def test_permissions_are_asked_of_each_object(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.admin.sites"
    boss = User.objects.create_superuser("boss", "b@example.org", "x")
    client = Client()
    client.force_login(boss)
    hidden = shop.make_job("order", kind=Kind.WORKFLOW, queue_name="hidden")
    guarded = shop.make_job("order", kind=Kind.WORKFLOW, queue_name="guarded")
    base = reverse("operations:django_jobs_job_changelist")
    before = state()
    known = set(names())
    for view in ("change", "step", *(one for one in JOB_COMMANDS if f"job_{one}" in known)):
        tail = "step/1" if view == "step" else view
        assert client.get(f"{base}{hidden.pk}/{tail}/").status_code in (404, 405, 403), view
        assert client.post(f"{base}{hidden.pk}/{tail}/", FORM).status_code in (404, 403), view
        if view in JOB_COMMANDS:
            assert client.post(f"{base}{guarded.pk}/{view}/", FORM).status_code == 403, view
    for action in ("pause", "cancel", "run_now"):
        for one in (hidden, guarded):
            client.post(base, {"action": action, "_selected_action": [str(one.pk)], "post": "yes"})
    assert state() == before
    content = client.get(f"{base}{guarded.pk}/change/").content.decode()
    assert "dj-do-" not in content
    assert str(hidden.pk) not in client.get(base).content.decode()
