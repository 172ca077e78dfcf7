"""The rows of tasks and queues follow the code and the settings."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, transaction

from django_jobs import conf, run_jobs, task, workflow
from django_jobs.definitions import registry
from django_jobs.models import Queue, Task
from django_jobs.store import catalogue
from django_jobs.store.session import Session
from django_jobs.worker.child import Child, Plan

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _definitions() -> Any:
    saved = registry.snapshot()
    yield
    registry.restore(saved)


@pytest.fixture
def queues(settings: Any) -> Any:
    """Set DJANGO_JOBS["QUEUES"] for this test."""

    def use(**names: dict[str, Any]) -> None:
        settings.DJANGO_JOBS = {"QUEUES": names}

    return use


def test_every_definition_has_a_row_that_describes_it() -> None:
    @task("cat.weigh", label="Weigh a cat", queue_name="vet")
    def weigh(name: str, grams: int = 4000) -> float:
        """Put the cat on the scales.

        It may object.
        """
        return grams / 1000

    catalogue.sync()
    row = Task.objects.get(slug="cat.weigh")
    assert (row.kind, row.label, row.queue_name) == ("task", "Weigh a cat", "vet")
    assert row.description == "Put the cat on the scales.\n\nIt may object."
    grams = row.input_schema["properties"]["grams"]
    assert (grams["type"], grams["default"]) == ("integer", 4000)
    assert row.input_schema["required"] == ["name"]
    assert row.output_schema == {"type": "number"}
    assert row.last_seen is not None
    assert set(Task.objects.values_list("slug", flat=True)) == set(registry.snapshot())


def test_a_task_can_be_paused_before_any_worker_has_run() -> None:
    @task("cat.wash")
    def wash(name: str) -> None: ...

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        wash.enqueue(name="Tom")
        1 / 0  # noqa: B018
    assert not Task.objects.filter(slug="cat.wash").exists()

    with transaction.atomic():
        wash.enqueue(name="Tom")
    row = Task.objects.get(slug="cat.wash")
    assert row.input_schema["required"] == ["name"]
    row.pause()
    assert run_jobs(all_queues=True).blocked == 1
    row.resume()
    assert run_jobs(all_queues=True).completed == 1


def test_a_row_that_is_known_costs_an_enqueue_nothing(django_assert_num_queries: Any) -> None:
    @task("cat.comb")
    def comb() -> None: ...

    comb.enqueue()
    statements = 1 if connections["default"].vendor == "postgresql" else 3
    with django_assert_num_queries(statements):
        comb.enqueue()


def test_emptied_tables_get_their_rows_again() -> None:
    @task("cat.pet")
    def pet() -> None: ...

    pet.enqueue()
    call_command("flush", interactive=False, verbosity=0)
    pet.enqueue()
    assert Task.objects.filter(slug="cat.pet").count() == 1


def test_all_versions_of_a_workflow_share_one_row() -> None:
    @workflow("cat.feed", version="1")
    def feed_1(run: Any) -> None: ...

    @workflow("cat.feed", version="2", label="Feed")
    def feed_2(run: Any) -> None: ...

    catalogue.sync()
    row = Task.objects.get(slug="cat.feed")
    assert (row.versions, row.label, row.kind) == (["1", "2"], "Feed", "workflow")


def test_a_changed_definition_changes_its_row_and_an_unchanged_one_is_not_written() -> None:
    @task("cat.brush", label="Brush")
    def brush() -> None: ...

    catalogue.sync()
    before = {row.slug: row for row in Task.objects.all()}
    registry.restore({s: v for s, v in registry.snapshot().items() if s != "cat.brush"})

    @task("cat.brush", label="Brush well")
    def brush_well(minutes: int) -> None: ...

    catalogue.sync()
    after = {row.slug: row for row in Task.objects.all()}
    assert after["cat.brush"].label == "Brush well"
    assert "minutes" in after["cat.brush"].input_schema["properties"]
    assert after["cat.brush"].first_seen == before["cat.brush"].first_seen
    assert {s: r.last_seen for s, r in after.items() if s != "cat.brush"} == {
        s: r.last_seen for s, r in before.items() if s != "cat.brush"
    }


def test_last_seen_is_written_again_after_a_minute() -> None:
    catalogue.sync()
    row = Task.objects.get(slug="add")
    old = row.last_seen.replace(year=2020)
    Task.objects.filter(slug="add").update(last_seen=old)
    catalogue.sync()
    row.refresh_from_db()
    assert row.last_seen > old.replace(year=2021)


def test_a_task_of_removed_code_keeps_its_row() -> None:
    Task.objects.create(slug="gone", kind="task")
    catalogue.sync()
    assert Task.objects.get(slug="gone").last_seen is None


def test_pauses_survive(queues: Any) -> None:
    queues(mail={"limit": 4})
    catalogue.sync()
    Task.objects.filter(slug="add").update(paused=True, label="old")
    Queue.objects.filter(name="mail").update(paused=True, limit=9)
    catalogue.sync()
    assert Task.objects.get(slug="add").paused is True
    assert Task.objects.get(slug="add").label == ""
    assert (Queue.objects.get(name="mail").paused, Queue.objects.get(name="mail").limit) == (
        True,
        4,
    )


def test_queues_of_the_settings_get_rows_and_follow_them(queues: Any) -> None:
    queues(mail={"limit": 4, "priority": 7, "fair_by": "tenant"}, slow={})
    catalogue.sync()
    mail = Queue.objects.get(name="mail")
    assert (mail.limit, mail.priority, mail.fair_by, mail.edited) == (4, 7, "tenant", False)
    assert Queue.objects.get(name="slow").limit is None
    queues(slow={"limit": 1})
    catalogue.sync()
    mail.refresh_from_db()
    assert (mail.limit, mail.priority, mail.fair_by) == (None, 0, None)
    assert Queue.objects.get(name="slow").limit == 1


def test_an_edited_queue_belongs_to_the_operator(queues: Any) -> None:
    Queue.objects.create(name="mail", limit=2, priority=3, edited=True)
    queues(mail={"limit": 4, "priority": 7})
    catalogue.sync()
    mail = Queue.objects.get(name="mail")
    assert (mail.limit, mail.priority) == (2, 3)


def test_a_hint_without_a_schema_does_not_keep_the_rest_out() -> None:
    @task("cat.odd")
    def odd(value: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    @task("cat.plain")
    def plain() -> None: ...

    catalogue.sync()
    assert Task.objects.get(slug="cat.odd").input_schema is None
    assert Task.objects.get(slug="cat.plain").input_schema is not None


def test_many_workers_may_write_it_at_the_same_time(queues: Any) -> None:
    queues(mail={"limit": 4}, slow={})
    barrier = threading.Barrier(6)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            session = Session()
            barrier.wait()
            for _ in range(5):
                session.committed(catalogue.sync)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Task.objects.count() == len(registry.snapshot())
    assert sorted(Queue.objects.values_list("name", flat=True)) == ["mail", "slow"]


def test_a_worker_writes_it_when_it_starts(queues: Any) -> None:
    queues(mail={"limit": 4})
    Child(Plan(alias=conf.get().database or "default", once=True)).serve()
    assert Task.objects.filter(slug="add").exists()
    assert Queue.objects.get(name="mail").limit == 4
