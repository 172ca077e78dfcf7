"""From the outbox to the broker. A message carries the id of a job and nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from django_jobs import clock, conf, jsonvalues
from django_jobs.celery.connection import find_app
from django_jobs.definitions import registry
from django_jobs.errors import ConfigurationError, ErrorDict
from django_jobs.lifecycle import Gate, Status
from django_jobs.models import Job
from django_jobs.store import claims as claiming
from django_jobs.store import outbox
from django_jobs.store.outbox import CELERY, Call, Delivery, Message
from django_jobs.store.session import Session
from django_jobs.worker import relay

logger = logging.getLogger("django_jobs.celery")

EXECUTE = "django_jobs.execute"
#: One more try with a new connection: the pooled one may be of a broker that was restarted.
POLICY = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.0, "interval_max": 0.0}
#: Seconds in which an enqueue does not try a broker that was just found gone.
SPARED = 5.0
#: Jobs that are promised in one transaction.
PAGE = 1000
#: Seconds that Celery's hard limit leaves the engine to end a job by itself.
MARGIN = 10.0
#: A look for jobs that nobody was told of may take this part of the time.
SHARE = 0.05
#: Longest pause between two publications of one message, in seconds.
LONGEST_PAUSE = 6 * 3600.0

_gone_until = 0.0
_next_look: dict[str, float] = {}
_lock = threading.Lock()


# --- right after an enqueue -------------------------------------------------------------------


def publish_new(jobs: list[Job], alias: str) -> None:
    """Publish jobs that were just committed. Never raises: what is not sent here stays promised."""
    try:
        _publish_new(jobs, alias)
    except Exception:
        logger.warning("New jobs could not be published; others will do it.", exc_info=True)


def _publish_new(jobs: list[Job], alias: str) -> None:
    if clock.monotonic() < _gone_until:
        return
    calls = [
        Call(job.pk, job.slug, job.version, job.queue_name, _options(job))
        for job in jobs
        if job.created and job.status == Status.PENDING and job.gate == Gate.OPEN and not job.run_after
    ]  # fmt: skip
    app = find_app() if calls else None
    if app is None:
        return
    errors = publish(app, calls)
    session = Session(alias, through_django=True)
    sent = [call.job_id for call in calls if call.job_id not in errors]
    if sent:
        outbox.note_sent(session, CELERY, sent, delay=conf.get().celery_republish, error=None)
    if errors:
        error = next(iter(errors.values()))
        outbox.note_sent(session, CELERY, list(errors), delay=relay.wait(0), error=error)


def _options(job: Job) -> str | None:
    return None if not job.options else jsonvalues.dumps(job.options, what="options")


# --- the duty ---------------------------------------------------------------------------------


def promise_due(session: Session) -> int:
    """Promise the due jobs that nobody was told of: delayed, retried, resumed, freed, taken back.

    A long line in the broker makes this look slow, so it takes a small part of the time at most.
    """
    if clock.monotonic() < _next_look.get(session.alias, 0.0):
        return 0
    begun = clock.monotonic()
    session.committed(claiming.open_gates)
    lanes = [lane.lane for lane in session.committed(claiming.lanes) if lane.runner == CELERY]
    promised = session.committed(_promise_undoing)
    while lanes:
        written = session.committed(lambda s: _promise_page(s, lanes))
        promised += written
        if written < PAGE:
            break
    took = clock.monotonic() - begun
    _next_look[session.alias] = clock.monotonic() + (took / SHARE if took > SHARE else 0.0)
    return promised


def _promise_undoing(session: Session) -> int:
    found = outbox.unpromised_undoing(session, CELERY, PAGE)
    outbox.promise(session, CELERY, found)
    return len(found)


def _promise_page(session: Session, lanes: list[int]) -> int:
    found = outbox.unpromised(session, CELERY, lanes, PAGE)
    outbox.promise(session, CELERY, found)
    return len(found)


def send(session: Session, messages: Sequence[Message]) -> list[Delivery]:
    """Publish those whose jobs could be taken now; the others need no message any more."""
    app = find_app()
    if app is None:
        said = ConfigurationError(
            "This process has no Celery app to publish with. Import it in the project's __init__.py, "
            'or name it in DJANGO_JOBS["CELERY_APP"].'
        )
        return [Delivery(one, "again", relay.wait(one.tries), _described(said)) for one in messages]
    wanted = list(dict.fromkeys(one.job_id for one in messages if one.job_id is not None))
    calls = outbox.claimable(session, CELERY, wanted)
    errors = publish(app, [calls[job_id] for job_id in wanted if job_id in calls])
    return [_delivery(one, calls, errors) for one in messages]


def _delivery(message: Message, calls: dict[UUID, Call], errors: dict[UUID, ErrorDict]) -> Delivery:
    if message.job_id not in calls:
        return Delivery(message, "dropped")
    error = errors.get(message.job_id)
    if error is not None:
        return Delivery(message, "again", relay.wait(message.tries), error)
    pause = conf.get().celery_republish * 2.0 ** min(message.tries, 20)
    return Delivery(message, "again", min(pause, max(LONGEST_PAUSE, conf.get().celery_republish)))


# --- the broker -------------------------------------------------------------------------------


def publish(app: Any, calls: Sequence[Call]) -> dict[UUID, ErrorDict]:
    """Send one message for each call; the error of each that was not sent.

    After the first error the others are not tried: a broker that is gone costs its time once.
    """
    if not calls:
        return {}
    sent: set[UUID] = set()

    def work() -> None:
        from django_jobs.celery.messages import execute  # noqa: F401  (known to the app)

        task = app.tasks[EXECUTE]
        with app.producer_or_acquire() as producer:
            for call in calls:
                task.apply_async(
                    args=(str(call.job_id),), task_id=str(call.job_id), producer=producer,
                    retry=True, retry_policy=POLICY, **_routing(call),
                )  # fmt: skip
                sent.add(call.job_id)

    error = _tried(work)
    if error is None:
        return {}
    return {call.job_id: error for call in calls if call.job_id not in sent}


def _routing(call: Call) -> dict[str, Any]:
    options: dict[str, Any] = {}
    settings = conf.get()
    queue = settings.celery_queues.get(call.queue_name)
    if queue is not None:
        options["queue"] = queue
    limit = _limit(call)
    if limit is not None:
        options["time_limit"] = limit + settings.grace + MARGIN
    return options


def _limit(call: Call) -> float | None:
    """The time limit of the job itself, as far as it is known here."""
    chosen = jsonvalues.loads(call.options) if call.options else {}
    if isinstance(chosen, dict) and chosen.get("timeout"):
        return float(chosen["timeout"])
    definition = registry.find(call.slug, call.version)
    return definition.timeout if definition is not None else None


def _tried(work: Callable[[], None]) -> ErrorDict | None:
    """The error of ``work``, which talks to the broker; after one, enqueues spare the broker a while."""
    global _gone_until
    try:
        work()
    except Exception as error:
        with _lock:
            if clock.monotonic() >= _gone_until:
                logger.warning(
                    "The broker cannot be reached (%s: %s).", type(error).__name__, error
                )
            _gone_until = clock.monotonic() + SPARED
        return _described(error)
    _gone_until = 0.0
    return None


def _described(error: BaseException) -> ErrorDict:
    return {**jsonvalues.describe_error(error, names=conf.get().redact), "traceback": ""}


def revoke(sender: Any, job: Job, **kwargs: Any) -> None:
    """A canceled job: let Celery's workers drop its message unread. A hint; the claim decides."""
    if job.runner != CELERY or job.started_at is not None or clock.monotonic() < _gone_until:
        return
    app = find_app()
    if app is not None:
        _tried(lambda: app.control.revoke(str(job.pk)))
