"""The rows of tasks and queues, kept in step with the code and the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from django.db import transaction

from django_jobs import conf, jsonvalues
from django_jobs.definitions import registry
from django_jobs.definitions.task import Definition
from django_jobs.errors import JobsError
from django_jobs.store.session import Session

#: Seconds after which "last seen" is written anew: a fleet that starts at once writes it once.
SEEN_AGAIN = 60.0
TASK_COLUMNS = "kind label description queue_name versions input_schema output_schema".split()
QUEUE_COLUMNS = "job_limit priority fair_by".split()


def sync(session: Session | str | None = None) -> None:
    """Write a row for every registered task and for every queue of the settings.

    Never touched are ``paused``, and queues that were edited in the admin. Only differences are
    written, in order of name, so that many workers may do this at the same time.
    """
    if not isinstance(session, Session):
        session = Session(session)
        session.committed(sync)
        return
    _sync_tasks(session)
    _sync_queues(session)


#: Tasks whose row this process has seen committed: (alias, name of the database, slug).
_known: set[tuple[str, str, str]] = set()


def ensure_task(session: Session, slug: str) -> None:
    """Make the row of a registered task after its first use, so that it can be paused before any worker ran.

    For connections of callers; a worker process writes all rows when it starts. After the commit:
    two transactions that wait for each other's first row would be a deadlock.
    """
    key = (session.alias, str(session.connection.settings_dict["NAME"]), slug)
    if key in _known or not session.through_django:
        return

    def write() -> None:
        if key in _known:
            return
        versions = registry.snapshot().get(slug)
        if versions:
            if session.one("SELECT 1 FROM {task} WHERE slug = %(slug)s", slug=slug) is None:
                session.many(_new_task(), [_task_row(slug, versions)])
            _known.add(key)

    transaction.on_commit(write, using=session.alias, robust=True)


def forget_known(**_: Any) -> None:
    """Look at the tables again: they were made anew or emptied."""
    _known.clear()


def _new_task() -> str:
    marks = ", ".join(f"{{json({n})}}" if n in _TASK_JSON else f"%({n})s" for n in TASK_COLUMNS)
    return (
        f"{{insert_ignore}} {{task}} (slug, {', '.join(TASK_COLUMNS)}, first_seen, last_seen) "
        f"VALUES (%(slug)s, {marks}, {{now}}, {{now}}) {{ignore_conflict}}"
    )


def _sync_tasks(session: Session) -> None:
    wanted = {
        slug: _task_row(slug, versions)
        for slug, versions in sorted(registry.snapshot().items())
        if versions
    }
    shown = ", ".join(f"{{text({name})}}" if name in _TASK_JSON else name for name in TASK_COLUMNS)
    stored = {row[0]: row[1:] for row in session.rows(f"SELECT slug, {shown} FROM {{task}}")}
    session.many(_new_task(), [row for slug, row in wanted.items() if slug not in stored])
    changes = ", ".join(
        f"{n} = {{json({n})}}" if n in _TASK_JSON else f"{n} = %({n})s" for n in TASK_COLUMNS
    )
    session.many(
        f"UPDATE {{task}} SET {changes}, last_seen = {{now}} WHERE slug = %(slug)s",
        [row for slug, row in wanted.items() if slug in stored and _differs(row, stored[slug])],
    )
    session.many(
        "UPDATE {task} SET last_seen = {now} WHERE slug = %(slug)s "
        "AND (last_seen IS NULL OR last_seen < {after(ago)})",
        [{"slug": slug, "ago": -SEEN_AGAIN} for slug in wanted if slug in stored],
    )


_TASK_JSON = frozenset({"versions", "input_schema", "output_schema"})


def _task_row(slug: str, versions: dict[str | None, Definition]) -> dict[str, Any]:
    latest = next(reversed(versions.values()))
    return {
        "slug": slug,
        "kind": str(latest.kind),
        "label": jsonvalues.clean_text(latest.label)[:200],
        "description": jsonvalues.clean_text(inspect.getdoc(latest.func) or ""),
        "queue_name": latest.queue_name,
        "versions": jsonvalues.dumps(list(versions), what="versions"),
        "input_schema": _described(latest.schema.input_json_schema),
        "output_schema": _described(latest.schema.output_json_schema),
    }


def _described(schema: Callable[[], Any]) -> str | None:
    """A JSON Schema as text; None where there is none, or none that can be stored."""
    try:
        made = schema()
        return None if made is None else jsonvalues.dumps(made, what="schema")
    except JobsError:
        # A catalogue without this schema is better than a worker that does not start.
        return None


def _differs(row: dict[str, Any], stored: tuple[Any, ...]) -> bool:
    def read(name: str, value: Any) -> Any:
        # Compared as values: jsonb does not give texts back as they were written.
        return jsonvalues.loads(value) if name in _TASK_JSON else value

    pairs = zip(TASK_COLUMNS, stored, strict=True)
    return any(read(name, row[name]) != read(name, value) for name, value in pairs)


def _sync_queues(session: Session) -> None:
    rows = session.rows(f"SELECT name, edited, {', '.join(QUEUE_COLUMNS)} FROM {{queue}}")
    stored = {row[0]: (bool(row[1]), tuple(row[2:])) for row in rows}
    set_up = {
        name: (queue.limit, queue.priority, queue.fair_by)
        for name, queue in sorted(conf.get().queues.items())
    }
    plain = (None, 0, None)
    session.many(
        f"{{insert_ignore}} {{queue}} (name, {', '.join(QUEUE_COLUMNS)}) "
        f"VALUES (%(name)s, {', '.join(f'%({name})s' for name in QUEUE_COLUMNS)}) "
        "{ignore_conflict}",
        [_queue_row(name, values) for name, values in set_up.items() if name not in stored],
    )
    changed = {
        name: set_up.get(name, plain)
        for name, (edited, values) in sorted(stored.items())
        if not edited and values != set_up.get(name, plain)
    }
    session.many(
        f"UPDATE {{queue}} SET {', '.join(f'{name} = %({name})s' for name in QUEUE_COLUMNS)} "
        "WHERE name = %(name)s AND NOT edited",
        [_queue_row(name, values) for name, values in changed.items()],
    )


def edit_queue(
    session: Session, name: str, *, limit: int | None, priority: int, fair_by: str | None
) -> bool:
    """Make a queue's row the operator's; whether there is such a row."""
    found = session.run(
        "UPDATE {queue} SET job_limit = %(limit)s, priority = %(priority)s, fair_by = %(fair_by)s, "
        "edited = %(edited)s WHERE name = %(name)s",
        name=name, limit=limit, priority=priority, fair_by=fair_by, edited=True,
    )  # fmt: skip
    return bool(found)


def _queue_row(name: str, values: tuple[Any, ...]) -> dict[str, Any]:
    return {"name": name, **dict(zip(QUEUE_COLUMNS, values, strict=True))}
