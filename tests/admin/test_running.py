"""The "Run…" form of a task, and events sent by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from pydantic import BaseModel, Field

from django_jobs import run_jobs, task, workflow
from django_jobs.admin.inputform import InputForm
from django_jobs.definitions import registry
from django_jobs.models import Job, Task
from django_jobs.testing import registry as own_registry
from tests.admin import shop
from tests.admin.test_pages import address, page, words

pytestmark = pytest.mark.django_db

Login = Callable[..., Client]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str = Field(description="With the number.")
    zip: int | None = None


@dataclass
class Order:
    address: Address
    amount: Decimal
    gift: bool = False


@pytest.fixture
def order_task() -> Any:
    with own_registry():

        @task("shop.order")
        def place(
            order: Order, day: date, colour: Colour = Colour.RED, copies: int = 1,
            tags: list[str] | None = None,
        ) -> None:  # fmt: skip
            """Place an order."""

        Task.objects.create(slug="shop.order", kind="task", description="Place an order.")
        yield place


def fields(client: Client) -> Any:
    return client.get(address("task", "run", Task.objects.get().pk)).context["form"]


FILLED = {
    "order.address.street": "Main 1", "order.address.zip": "8000", "order.amount": "9.90",
    "order.gift": "on", "day": "2026-05-01", "colour": "blue", "copies": "3", "tags": '["a", "b"]',
}  # fmt: skip


def test_the_form_is_that_of_the_input(login: Login, order_task: Any) -> None:
    client = login("view_task", "enqueue_job")
    form = fields(client)
    assert set(form.typed_names) == set(FILLED)
    assert [group.title for group in form.groups] == ["", "Order", "Address"]
    kinds = {name: type(form.fields[name]).__name__ for name in form.typed_names}
    assert kinds["order.gift"] == "BooleanField"
    assert kinds["copies"] == "IntegerField"
    assert kinds["colour"] == "Choice"
    assert kinds["tags"] == "JSONText"
    assert form.fields["day"].required and not form.fields["copies"].required
    assert form["copies"].initial == 1
    text = words(page(client, address("task", "run", Task.objects.get().pk)))
    assert "With the number." in text
    assert "Place an order." in text


def test_what_is_filled_in_is_enqueued(login: Login, order_task: Any) -> None:
    client = login("view_task", "view_job", "enqueue_job")
    url = address("task", "run", Task.objects.get().pk)
    answer = client.post(url, {**FILLED, "call-priority": "5", "call-queue_name": "mail"})
    job = Job.objects.get()
    assert answer["Location"] == address("job", "change", job.pk)
    assert (job.priority, job.queue_name, job.meta["enqueued_by"]) == (
        5,
        "mail",
        job.meta["enqueued_by"],
    )
    assert job.input["order"]["address"] == {"street": "Main 1", "zip": 8000}
    assert Decimal(job.input["order"]["amount"]) == Decimal("9.90")
    assert (job.input["colour"], job.input["copies"], job.input["tags"]) == ("blue", 3, ["a", "b"])
    assert LogEntry.objects.get().object_id == str(job.pk)


def test_what_is_left_empty_takes_its_default(login: Login, order_task: Any) -> None:
    needed = {name: FILLED[name] for name in ("order.address.street", "order.amount", "day")}
    client = login("view_task", "enqueue_job")
    client.post(address("task", "run", Task.objects.get().pk), needed)
    job = Job.objects.get()
    run_jobs()
    job.refresh_from_db()
    assert job.status == "completed", job.error


def test_wrong_input_is_said_at_its_field(login: Login, order_task: Any) -> None:
    client = login("view_task", "enqueue_job")
    url = address("task", "run", Task.objects.get().pk)
    for name, value, said in (
        ("copies", "many", "Enter a whole number"),
        ("order.address.street", "", "This field is required"),
        ("tags", "[1", "No valid JSON"),
        ("day", "tomorrow", "date"),
        ("order.amount", "a lot", "decimal"),
        ("colour", "green", "Select a valid choice"),
    ):
        answer = client.post(url, {**FILLED, name: value})
        assert answer.status_code == 200, name
        errors = {**answer.context["form"].errors}
        assert said.lower() in str(errors).lower(), (name, errors)
        assert name in errors or "__all__" in errors, (name, errors)
    assert not Job.objects.exists()


def test_the_whole_input_may_be_given_as_json(login: Login) -> None:
    client = login("view_task", "enqueue_job")
    row = Task.objects.create(slug="add", kind="task")
    url = address("task", "run", row.pk)
    client.post(url, {"as_json": '{"a": 1, "b": 2}'})
    assert Job.objects.get().input == {"a": 1, "b": 2}
    for text in ("[1]", "{", '{"a": 1}', '{"a": NaN}'):
        assert client.post(url, {"as_json": text}).status_code == 200, text
    assert Job.objects.count() == 1


def test_a_task_without_code_here_is_refused(login: Login) -> None:
    row = Task.objects.create(
        slug="elsewhere", kind="task", input_schema={"properties": {"n": {"type": "integer"}}}
    )
    answer = login("view_task", "enqueue_job").post(address("task", "run", row.pk), {"n": "1"})
    assert "is registered here" in words(answer.content.decode())
    assert not Job.objects.exists()


def test_only_those_who_may_enqueue(login: Login) -> None:
    row = Task.objects.create(slug="add", kind="task")
    url = address("task", "run", row.pk)
    form = {"a": "1", "b": "2"}
    for codes in (["view_task"], ["enqueue_job"], ["view_task", "run_job", "change_schedule"]):
        client = login(*codes)
        assert client.get(url).status_code == 403
        assert client.post(url, form).status_code == 403
    assert "Run…" not in page(login("view_task", "view_job"), address("task", "change", row.pk))
    assert "Run…" in page(
        login("view_task", "enqueue_job", "view_queue"), address("task", "change", row.pk)
    )
    assert not Job.objects.exists()


def test_every_registered_task_has_a_form() -> None:
    for definition in registry.every():
        schema = definition.schema.input_json_schema()
        drawn = InputForm(schema).as_p()
        assert [name for name in schema["properties"] if name not in drawn] == []


# --- events -----------------------------------------------------------------------------------


def test_an_event_sent_by_hand_wakes_the_run(login: Login) -> None:
    with own_registry():

        @workflow("asks")
        def asks(run: Any) -> Any:
            return run.wait_for_event("answer", "order.approved")

        job = asks.enqueue()
        run_jobs()
        client = login("view_job", "send_event_job")
        url = address("workflowrun", "change", job.pk)
        assert 'value="order.approved"' in page(client, url)
        send = address("workflowrun", "send_event", job.pk)
        client.post(send, {"name": "order.approved", "payload": '{"by": "Ada"}'})
        run_jobs()
        job.refresh_from_db()
        assert (job.status, job.output) == ("completed", {"by": "Ada"})
        assert "order.approved" in LogEntry.objects.get().change_message
        again = client.post(send, {"name": "x"}, follow=True).content.decode()
        assert "completed" in again
        bad = client.post(send, {"name": "x", "payload": "{"}, follow=True).content.decode()
        assert "No valid JSON" in bad


def test_only_those_who_may_send(login: Login) -> None:
    job = shop.make_job("order.process", kind="workflow")
    send = address("workflowrun", "send_event", job.pk)
    assert "send_event/" not in page(login("view_job"), address("workflowrun", "change", job.pk))
    for codes in (["view_job"], ["send_event_job"], ["view_job", "cancel_job"]):
        assert login(*codes, staff=True).post(send, {"name": "x"}).status_code == 403
    assert login("view_job", "send_event_job").get(send).status_code == 403
    assert not job.events.exists()  # type: ignore[attr-defined]
