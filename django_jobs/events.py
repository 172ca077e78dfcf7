"""Sending events to runs."""

from __future__ import annotations

import functools
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async

from django_jobs import conf, ids, jsonvalues
from django_jobs.definitions.options import check_name
from django_jobs.errors import InvalidInput, InvalidTransition
from django_jobs.lifecycle import FINAL, Kind
from django_jobs.models import Job
from django_jobs.store import events
from django_jobs.store.session import Session, engine_alias


def send_event(
    name: str,
    payload: Any = None,
    *,
    to: Job | UUID | str | None = None,
    key: str | None = None,
    actor: object = None,
) -> list[UUID]:
    """Send ``payload`` under ``name``; the ids of the runs reached. In the caller's transaction, if there is one.

    With ``to`` (a job or its id) that run gets it: now if it waits, else when it does. Without,
    every run that waits for the name at this moment gets it, and nothing is kept for others. A
    ``key``, unique per receiver, makes repetition harmless: it returns the first answer. With an
    ``actor``, who sends it by hand, and ``to``, the run's history tells of it.

    Raises InvalidInput for a name, key or payload that cannot be stored, and for a job that is no
    run; InvalidTransition for one that has ended; Job.DoesNotExist.
    """
    check_name(name, "an event's name")
    if key is not None:
        check_name(key, "the key of an event")
    text = jsonvalues.dumps(payload, what="event", limit=conf.get().max_event)
    if to is None:
        session = Session(engine_alias())
        key_hash = None if key is None else ids.digest("broadcast", key)
        return session.committed(lambda s: events.broadcast(s, name, text, key_hash))
    receiver, alias = _receiver(to)
    key_hash = None if key is None else ids.digest("event", receiver.hex, key)
    said = None if actor is None else jsonvalues.clean_text(str(actor))[:200]
    reached = Session(alias).committed(
        lambda s: events.send(s, receiver, name, text, key_hash, actor=said)
    )
    if reached is None:
        raise Job.DoesNotExist(f"There is no job {receiver}.")
    if reached.kind not in (Kind.WORKFLOW, Kind.DAG):
        raise InvalidInput(
            f"Job {receiver} is no run but a {reached.kind}, and only runs of workflows wait for events."
        )
    if not reached.delivered and reached.status in FINAL:
        raise InvalidTransition("send an event to", reached.status)
    return [receiver]


async def asend_event(
    name: str,
    payload: Any = None,
    *,
    to: Job | UUID | str | None = None,
    key: str | None = None,
    actor: object = None,
) -> list[UUID]:
    """:func:`send_event` from async code."""
    send = functools.partial(send_event, name, payload, to=to, key=key, actor=actor)
    return await sync_to_async(send)()


def _receiver(to: Job | UUID | str) -> tuple[UUID, str]:
    if isinstance(to, Job):
        return to.pk, to._state.db or engine_alias()
    if isinstance(to, UUID):
        return to, engine_alias()
    try:
        return UUID(str(to)), engine_alias()
    except ValueError:
        raise InvalidInput(f"to= is a job or the id of one, not {to!r}.") from None
