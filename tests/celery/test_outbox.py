"""What an enqueue promises to the broker, and what is published of it, on a real Valkey."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_jobs import clock, conf, enqueue
from django_jobs.celery import publishing
from django_jobs.explain import explain
from django_jobs.models import Job, OutboxMessage, Queue
from django_jobs.store import outbox
from django_jobs.store.outbox import CELERY, Delivery
from django_jobs.store.session import Session
from django_jobs.testing import drain
from django_jobs.worker import relay
from tests.app.jobs import add, fail
from tests.celery.brokers import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


def messages(broker: Valkey) -> list[dict[str, Any]]:
    """The raw messages in Celery's queue, oldest first."""
    return [json.loads(raw) for raw in reversed(broker.client().lrange("celery", 0, -1))]


def body(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def published(broker: Valkey) -> list[str]:
    """The ids of the jobs that messages are about."""
    return [body(message)[0][0] for message in messages(broker)]


def relay_now() -> int:
    return relay.relay(Session())


def gates(job: Job) -> list[str]:
    return [gate.name for gate in explain(job)]


@pytest.fixture(autouse=True)
def nothing_is_known() -> None:
    """Not even that the broker was gone a moment ago."""
    publishing._gone_until = 0.0
    publishing._next_look.clear()


def test_a_message_carries_the_id_of_the_job_as_json_and_nothing_else(
    celery_app: Any, broker: Valkey
) -> None:
    job = add.using(runner="celery", timeout=5).enqueue(a=1, b=2)
    [message] = messages(broker)
    args, kwargs, embedded = body(message)
    assert (args, kwargs) == ([str(job.pk)], {})
    assert not any(embedded.values())
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == "django_jobs.execute"
    assert message["headers"]["eta"] is None
    assert message["headers"]["timelimit"] == [5 + conf.get().grace + publishing.MARGIN, None]


def test_nothing_is_published_of_what_is_rolled_back(celery_app: Any, broker: Valkey) -> None:
    with transaction.atomic():
        kept = add.using(runner="celery").enqueue(a=1, b=2)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            add.using(runner="celery").enqueue(a=1, b=1 // 0)
        with pytest.raises(RuntimeError), transaction.atomic():
            add.using(runner="celery").enqueue(a=3, b=4)
            raise RuntimeError
        assert published(broker) == []
    assert published(broker) == [str(kept.pk)]
    assert list(OutboxMessage.objects.values_list("job_id", flat=True)) == [kept.pk]


@pytest.mark.skipif("connection.vendor != 'postgresql'")
def test_job_and_message_are_one_statement(celery_app: Any) -> None:
    add.using(runner="celery").enqueue(a=1, b=2)
    with CaptureQueriesContext(connection) as seen, transaction.atomic():
        add.using(runner="celery").enqueue(a=1, b=2)
        written = [query["sql"] for query in seen.captured_queries if "INSERT" in query["sql"]]
    assert len(written) == 1


def test_other_runners_promise_nothing(celery_app: Any, broker: Valkey) -> None:
    add.enqueue(a=1, b=2)
    add.using(runner="inline").enqueue(a=1, b=2)
    relay_now()
    assert not OutboxMessage.objects.exists()
    assert published(broker) == []


def test_many_are_published_one_by_one(celery_app: Any, broker: Valkey) -> None:
    jobs = add.using(runner="celery").enqueue_many([{"a": n, "b": 1} for n in range(5)])
    assert published(broker) == [str(job.pk) for job in jobs]
    assert OutboxMessage.objects.filter(sent_at__isnull=False).count() == 5


def test_a_queue_goes_where_the_setting_says(
    celery_app: Any, broker: Valkey, settings: Any
) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "CELERY_QUEUES": {"mail": "mail-workers"}}
    add.using(runner="celery", queue_name="mail").enqueue(a=1, b=2)
    assert published(broker) == []
    assert broker.client().llen("mail-workers") == 1


def test_a_delayed_job_is_published_when_it_is_due(celery_app: Any, broker: Valkey) -> None:
    clock.freeze(clock.now())
    job = add.using(runner="celery", delay=60).enqueue(a=1, b=2)
    relay_now()
    assert published(broker) == []
    assert gates(job) == ["due"]
    clock.travel(timedelta(seconds=60))
    relay_now()
    assert published(broker) == [str(job.pk)]
    assert messages(broker)[0]["headers"]["eta"] is None


def test_what_waits_for_a_retry_or_was_resumed_is_published_again(
    celery_app: Any, broker: Valkey
) -> None:
    clock.freeze(clock.now())
    job = fail.using(runner="celery", retries=2).enqueue()
    broker.client().flushall()
    assert drain().retried == 1
    clock.travel(timedelta(minutes=1))
    # drain() takes jobs of every runner, and no message tells of it.
    OutboxMessage.objects.all().delete()
    relay_now()
    assert published(broker) == [str(job.pk)]
    job.pause()
    OutboxMessage.objects.all().delete()
    relay_now()
    assert len(published(broker)) == 1
    job.resume()
    relay_now()
    assert published(broker) == [str(job.pk)] * 2


def test_nothing_of_a_paused_queue_is_published(celery_app: Any, broker: Valkey) -> None:
    queue = Queue.objects.get_or_create(name="default")[0]
    job = add.using(runner="celery", delay=0.001).enqueue(a=1, b=2)
    queue.pause()
    clock.travel(timedelta(seconds=1))
    relay_now()
    assert published(broker) == []
    assert gates(job)[0] == "queue"
    queue.resume()
    relay_now()
    assert published(broker) == [str(job.pk)]


def test_a_lost_message_is_published_again_later_and_later(celery_app: Any, broker: Valkey) -> None:
    clock.freeze(clock.now())
    job = add.using(runner="celery").enqueue(a=1, b=2)
    assert gates(job) == ["celery"]
    broker.client().flushall()
    relay_now()
    assert published(broker) == []
    moments = []
    begun = clock.now()
    for _ in range(16):
        clock.travel(timedelta(seconds=30))
        if relay_now():
            moments.append((clock.now() - begun).total_seconds())
    assert moments == [60, 180, 420]
    assert published(broker) == [str(job.pk)] * 3


def test_an_enqueue_never_fails_because_of_the_broker(celery_app: Any, broker: Valkey) -> None:
    clock.freeze(clock.now())
    add.using(runner="celery").enqueue(a=5, b=6).cancel()
    broker.kill()
    job = add.using(runner="celery").enqueue(a=1, b=2)
    assert job.status == "pending"
    [gate] = explain(job)
    assert gate.name == "broker"
    assert "could not be published" in gate.why
    assert gate.about["error"]["type"].startswith(("kombu.", "redis."))
    # For a while an enqueue does not even try.
    second = add.using(runner="celery").enqueue(a=3, b=4)
    assert [gate.why for gate in explain(second)] == [
        "It is promised to Celery's broker, and not published yet."
    ]
    broker.start()
    clock.travel(timedelta(seconds=10))
    assert relay_now() == 2
    assert published(broker) == [str(job.pk), str(second.pk)]


def test_a_process_without_celery_leaves_the_message_to_others(broker: Valkey) -> None:
    job = enqueue("add", a=1, b=2)
    assert job.runner == "db"
    job = add.using(runner="celery").enqueue(a=1, b=2)
    message = OutboxMessage.objects.get()
    assert (message.tries, message.sent_at) == (0, None)
    assert relay_now() == 0
    assert gates(job) == ["broker"]


def test_a_message_whose_job_has_ended_is_dropped(celery_app: Any, broker: Valkey) -> None:
    clock.freeze(clock.now())
    job = add.using(runner="celery").enqueue(a=1, b=2)
    job.cancel()
    clock.travel(timedelta(minutes=2))
    relay_now()
    assert not OutboxMessage.objects.exists()
    assert len(published(broker)) == 1


def test_two_relays_send_a_message_once_and_a_dead_one_s_again(db: None) -> None:
    clock.freeze(clock.now())
    session = Session()
    sent: list[str] = []

    def send(_: Session, batch: Any) -> list[Delivery]:
        # While this one sends, another one looks.
        assert relay_now() == 0
        sent.extend(message.kind for message in batch)
        return [Delivery(message, "sent") for message in batch]

    job = add.enqueue(a=1, b=2)
    session.committed(lambda s: outbox.promise(s, "letter", [job.pk]))
    relay.register("letter", send)
    try:
        assert relay_now() == 1
        assert sent == ["letter"]
        assert OutboxMessage.objects.get().status == "sent"
        # One that took a message and died: its lease ends.
        session.committed(lambda s: outbox.promise(s, "letter", [job.pk]))
        assert session.committed(lambda s: outbox.take(s, ["letter"], limit=9, lease=60))
        assert relay_now() == 0
        clock.travel(timedelta(seconds=61))
        assert relay_now() == 1
    finally:
        relay.unregister("letter")


@pytest.mark.parametrize("way", ["raises", "answers"])
def test_a_sender_that_fails_is_asked_again_after_growing_waits(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock.freeze(clock.now())

    def send(_: Session, batch: Any) -> list[Delivery]:
        if way == "raises":
            raise ConnectionError("nobody there")
        error = {"type": "x", "message": "nobody there", "traceback": "", "code": None}
        return [Delivery(one, "again", relay.wait(one.tries), error) for one in batch]

    job = add.enqueue(a=1, b=2)
    Session().committed(lambda s: outbox.promise(s, "letter", [job.pk]))
    relay.register("letter", send)
    try:
        begun, moments = clock.now(), []
        for _ in range(40):
            before = OutboxMessage.objects.get().tries
            relay_now()
            if OutboxMessage.objects.get().tries > before:
                moments.append((clock.now() - begun).total_seconds())
            clock.travel(timedelta(seconds=1))
    finally:
        relay.unregister("letter")
    assert moments == [0, 1, 3, 7, 15, 31]
    message = OutboxMessage.objects.get()
    assert (message.status, message.error["message"]) == ("pending", "nobody there")


def test_a_claim_forgets_what_was_promised(celery_app: Any, broker: Valkey) -> None:
    from django_jobs.worker.single import Seat

    job = add.using(runner="celery").enqueue(a=1, b=2)
    assert Seat("default", runner=CELERY).run(job.pk) is not None
    assert not OutboxMessage.objects.exists()
