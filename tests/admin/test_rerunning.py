"""Re-running a job with another input: prefilled, checked, and secrets neither shown nor lost."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from pydantic import BaseModel

from django_jobs import task
from django_jobs.admin.inputform import hidden_path, restore
from django_jobs.jsonvalues import HIDDEN, redact
from django_jobs.lifecycle import Status
from django_jobs.models import HistoryEntry, Job
from django_jobs.testing import registry
from tests.admin import shop
from tests.admin.test_pages import address, page

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]
NEEDED = ["view_job", "retry_job", "enqueue_job", "view_payload_job"]
LINK = "Re-run with other input"


class Address(BaseModel):
    city: str
    zip: int = 0


@pytest.fixture
def ship() -> Any:
    with registry():

        @task("test.ship")
        def ship(
            order_id: int,
            to: Address,
            api_key: str = "",
            note: str | None = "none given",
            express: bool = False,
            tags: list[str] = [],  # noqa: B006
        ) -> int:
            return order_id

        yield ship


def finished(**input: Any) -> Job:
    return shop.make_job("test.ship", Status.FAILED, error=shop.ERROR, input=input)


STORED = {
    "order_id": 7, "to": {"city": "Bern", "zip": 3000}, "api_key": "k-123", "note": None, "tags": ["a"],
}  # fmt: skip
#: What the browser sends back of the form as it was shown.
UNCHANGED = {
    "order_id": "7", "to.city": "Bern", "to.zip": "3000", "api_key": "", "note": "", "tags": '["a"]',
}  # fmt: skip


def send(client: Client, job: Job, **changed: str) -> Any:
    form = {**UNCHANGED, **{name.replace("__", "."): value for name, value in changed.items()}}
    return client.post(address("job", "rerun_edited", job.pk), {**form, "call-reason": "typo"})


def test_the_form_has_the_stored_input_without_its_secrets(login: Login, ship: Any) -> None:
    job = finished(**STORED)
    client = login(*NEEDED)
    assert LINK in page(client, address("job", "change", job.pk))
    shown = page(client, address("job", "rerun_edited", job.pk))
    for text in ('value="7"', 'value="Bern"', 'value="3000"', "[&quot;a&quot;]"):
        assert text in shown
    assert "k-123" not in shown
    assert HIDDEN not in shown
    assert "Kept as it is" in shown


def test_what_is_not_changed_stays_as_it_was(login: Login, ship: Any) -> None:
    """The secret, the null that is no default, and a field of which the code knows nothing more."""
    job = finished(**STORED)
    client = login(*NEEDED)
    answer = send(client, job, order_id="8")
    again = Job.objects.get(rerun_of=job.pk)
    assert answer["Location"] == address("job", "change", again.pk)
    assert again.input == {**STORED, "order_id": 8}
    entry, logged = HistoryEntry.objects.get(job_id=job.pk), LogEntry.objects.get()
    assert (entry.event, entry.detail["reason"]) == ("rerun", "typo")
    assert logged.change_message == "Run again: typo"


def test_each_kind_of_field_can_be_changed_and_emptied(login: Login, ship: Any) -> None:
    job = finished(**STORED)
    send(
        login(*NEEDED), job, to__city="Basel", to__zip="", api_key="k-456", express="on", tags="[]", note="x",
    )  # fmt: skip
    assert Job.objects.get(rerun_of=job.pk).input == {
        "order_id": 7, "to": {"city": "Basel", "zip": 0}, "api_key": "k-456", "express": True, "tags": [],
        "note": "x",
    }  # fmt: skip


def test_what_the_schema_refuses_is_said_at_its_field(login: Login, ship: Any) -> None:
    job = finished(**STORED)
    for changed in ({"order_id": "many"}, {"to__city": ""}, {"as_json": '{"order_id": "many"}'}):
        answer = send(login(*NEEDED), job, **changed)
        assert answer.status_code == 200
        assert "errorlist" in answer.content.decode()
    assert not Job.objects.filter(rerun_of=job.pk).exists()


def test_as_json_the_mark_of_a_secret_stands_for_what_it_hides(login: Login, ship: Any) -> None:
    job = finished(**STORED)
    whole = {**redact(STORED), "order_id": 9}
    send(login(*NEEDED), job, as_json=json.dumps(whole))
    assert Job.objects.get(rerun_of=job.pk).input == {**STORED, "order_id": 9}
    elsewhere = {**whole, "note": HIDDEN}
    answer = send(login(*NEEDED), job, as_json=json.dumps(elsewhere))
    assert "input.note: a secret is hidden here" in html.unescape(answer.content.decode())
    assert Job.objects.filter(rerun_of=job.pk).count() == 1


def test_without_a_schema_it_is_json(login: Login) -> None:
    job = shop.make_job("gone.task", Status.FAILED, error=shop.ERROR, input={"n": 1, "token": "t"})
    shown = page(login(*NEEDED), address("job", "rerun_edited", job.pk))
    assert "&quot;n&quot;: 1" in shown
    assert HIDDEN in shown


def test_it_needs_the_rights_to_retry_to_enqueue_and_to_see(login: Login, ship: Any) -> None:
    job = finished(**STORED)
    url = address("job", "rerun_edited", job.pk)
    for left_out in NEEDED:
        client = login(*(code for code in NEEDED if code != left_out))
        assert client.get(url).status_code == 403
        assert send(client, job).status_code == 403
        if left_out != "view_job":
            assert LINK not in page(client, address("job", "change", job.pk))
    assert login(*NEEDED).put(url).status_code == 403
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = login(*NEEDED).cookies
    assert send(strict, job).status_code == 403
    assert not Job.objects.filter(rerun_of=job.pk).exists()


def test_a_live_job_is_not_run_again(login: Login, ship: Any) -> None:
    job = shop.make_job("test.ship", input=STORED)
    assert LINK not in page(login(*NEEDED), address("job", "change", job.pk))
    assert send(login(*NEEDED), job).status_code == 302
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("edited", "expected", "lost"),
    [
        ([{"n": 1, "token": HIDDEN}, {"n": 2, "token": HIDDEN}], "same", None),
        ([{"n": 1, "token": HIDDEN}], [{"n": 1, "token": "a"}], None),
        # The second has come to the place of the first: its secret is not the first one's.
        ([{"n": 2, "token": HIDDEN}], [{"n": 2, "token": HIDDEN}], "input.0.token"),
        ([{"n": 9, "token": HIDDEN}, {"n": 2, "token": HIDDEN}], None, "input.0.token"),
        ([{"n": 9, "token": "new"}, {"n": 2, "token": HIDDEN}], None, None),
    ],
)
def test_secrets_in_lists_never_change_places(edited: Any, expected: Any, lost: str | None) -> None:
    stored = [{"n": 1, "token": "a"}, {"n": 2, "token": "b"}]
    found = restore(edited, redact(stored), stored)
    if expected is not None:
        assert found == (stored if expected == "same" else expected)
    assert hidden_path(found, stored) == lost
