"""Which jobs: conditions that people can put together, each in a form for which an index exists.

``Selection`` is the same as plain values, so that it can be kept and read again later: an action
on all that match a list's filters is carried out by a job of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.db.models import Q

from django_jobs import clock, conf, ids
from django_jobs.definitions import registry
from django_jobs.lifecycle import FINAL, Gate, Kind, Status
from django_jobs.models import Job, Task
from django_jobs.models.commands import JobQuerySet

#: More tasks than this are not searched by the beginning of their name.
MATCHES = 200
#: Live jobs among which those of an unknown slug are sought.
LOOKED_THROUGH = 20_000
TENANT_COLUMNS = ("tenant_1", "tenant_2", "tenant_3")
RUNS = (Kind.WORKFLOW, Kind.DAG)
_HEX = re.compile(r"[0-9a-f]{4,32}\Z")


@dataclass(frozen=True, slots=True)
class Selection:
    """Jobs by what people know of them; an empty field says nothing."""

    status: str = ""
    slug: str = ""
    queue: str = ""
    #: The beginning of a slug or an id, or a tenant field's whole value.
    search: str = ""
    #: The value of the first, second, third of ``TENANT_FIELDS``.
    tenants: tuple[str, ...] = ()
    key: str = ""
    worker: str = ""
    code: str = ""
    #: One of the list ``meta["tags"]``.
    tag: str = ""
    #: ISO 8601; created since then.
    since: str = ""
    only_runs: bool = False
    #: Not created after this id.
    until_id: str = ""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Selection:
        """What :meth:`as_dict` gave, perhaps to an older or newer version of this code."""
        known = {name: values[name] for name in cls.__slots__ if name in values}
        return cls(**{**known, "tenants": tuple(known.get("tenants") or ())})

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tenants": list(self.tenants)}

    def jobs(self, alias: str) -> JobQuerySet:
        """The jobs that match now."""
        everything: Any = Job.objects.using(alias).all()
        return self.narrow(everything)

    def narrow(self, found: JobQuerySet) -> JobQuerySet:
        """Those of ``found`` that match now."""
        narrowed: Any = found
        for condition in self._conditions(str(narrowed.db)):
            narrowed = narrowed.filter(condition)
        return narrowed

    def _conditions(self, alias: str) -> list[Q]:
        found = [
            Q(kind__in=RUNS) if self.only_runs else None,
            of_status(self.status) if self.status else None,
            of_slugs([self.slug]) if self.slug else None,
            Q(queue_name=self.queue) if self.queue else None,
            of_search(self.search, alias, only_runs=self.only_runs)
            if self.search.strip()
            else None,
            of_key(self.key) if self.key else None,
            of_worker(self.worker) if self.worker else None,
            of_code(self.code) if self.code else None,
            of_tag(self.tag) if self.tag else None,
            Q(pk__gte=first_id(datetime.fromisoformat(self.since))) if self.since else None,
            Q(pk__lte=UUID(self.until_id)) if self.until_id else None,
            *(
                Q(**{column: value}) if value else None
                for column, value in zip(TENANT_COLUMNS, self.tenants, strict=False)
            ),
        ]
        return [one for one in found if one is not None]


def of_status(status: str) -> Q:
    """Jobs of one status, said so that the partial indexes can be used."""
    if status == Status.PENDING:
        # One arm for each index that holds pending jobs.
        return reduce(or_, (Q(status=status, gate=gate) for gate in Gate))
    wanted = Q(status=status)
    if status in FINAL:
        wanted &= Q(finished_at__isnull=False)
    elif status == Status.RUNNING:
        wanted &= Q(lease_expires_at__isnull=False)
    return wanted


def of_slugs(slugs: Sequence[str]) -> Q:
    """Jobs of these tasks: the finished by their index, the live ones by what keeps them alive."""
    live = reduce(or_, (of_status(status) for status in Status if status not in FINAL))
    return Q(slug__in=slugs) & (Q(finished_at__isnull=False) | live)


def of_key(key: str) -> Q:
    """Live jobs of a concurrency key, by its hash."""
    return Q(key_hash=ids.digest("key", key), finished_at__isnull=True)


def of_worker(worker: str) -> Q:
    """Jobs that a worker has in hand."""
    try:
        return Q(worker=UUID(worker), lease_expires_at__isnull=False)
    except ValueError:
        return Q(pk__in=[])


def of_code(code: str) -> Q:
    """Jobs whose error bears this code."""
    return Q(error__code=code, finished_at__isnull=False)


def of_tag(tag: str) -> Q:
    """Jobs with this tag, whatever its case: enqueued with ``using(meta={"tags": ["import", …]})``."""
    # The text of the list: no lookup for members of a list works on every database.
    return Q(meta__tags__icontains=json.dumps(tag, ensure_ascii=False))


def first_id(moment: datetime) -> UUID:
    """The least id that a job made at ``moment`` can have: ids begin with the time."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


def ago(span: timedelta) -> datetime:
    return clock.now() - span


def id_range(text: str) -> tuple[UUID, UUID] | None:
    """The least and the greatest id that begins with ``text``; None where it begins none."""
    digits = text.strip().lower().replace("-", "")
    if not _HEX.match(digits):
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def of_search(text: str, alias: str, *, only_runs: bool = False) -> Q:
    """Jobs whose id or slug begins with ``text``, or one of whose tenant fields is just that.

    ``only_runs`` leaves out tasks by their slug. Of a slug that neither the catalogue nor the code
    knows, live jobs are sought among the newest ``LOOKED_THROUGH`` only.
    """
    text = text.strip()
    slugs = _slugs(text, alias, only_runs)
    parts = [of_slugs(slugs)] if slugs else []
    ends = id_range(text)
    if ends is not None:
        parts.append(Q(pk__gte=ends[0], pk__lte=ends[1]))
    parts += [Q(**{column: text}) for column, _ in tenant_columns()]
    return reduce(or_, parts) if parts else _of_unknown_slug(text, alias)


def _slugs(text: str, alias: str, only_runs: bool) -> list[str]:
    """Those known that begin so."""
    known = {
        slug
        for slug, versions in registry.snapshot().items()
        if slug.startswith(text)
        and not (only_runs and all(one.kind == Kind.TASK for one in versions.values()))
    }
    listed = Task.objects.using(alias).filter(slug__startswith=text)
    if only_runs:
        listed = listed.exclude(kind=Kind.TASK)
    known.update(listed.values_list("slug", flat=True)[:MATCHES])
    return sorted(known)[:MATCHES]


def _of_unknown_slug(slug: str, alias: str) -> Q:
    """No index has live jobs by their slug, and there may be millions."""
    units: Any = Job.units
    ids = units.using(alias).order_by("-pk").values_list("pk", flat=True)
    edge = next(iter(ids[LOOKED_THROUGH - 1 : LOOKED_THROUGH]), None)
    live = (
        Q(finished_at__isnull=True) if edge is None else Q(finished_at__isnull=True, pk__gte=edge)
    )
    return Q(slug=slug) & (Q(finished_at__isnull=False) | live)


def tenant_columns() -> list[tuple[str, str]]:
    """Column and name of each of ``TENANT_FIELDS``."""
    return list(zip(TENANT_COLUMNS, conf.get().tenant_fields, strict=False))
