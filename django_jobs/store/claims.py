"""Taking jobs: which rows are due, and whose they become."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django_jobs import failpoints, jsonvalues
from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import AttemptStatus, Kind, Status
from django_jobs.store import admission, fairness, history, permits, rates
from django_jobs.store.claimable import AVAILABLE, CLAIMABLE, NOT_PAUSED, TIMED
from django_jobs.store.recorded import StepRecord, read_steps
from django_jobs.store.session import Session
from django_jobs.store.waking import wake_due


@dataclass(slots=True)
class Claim:
    """One worker's hold on one job, under one fence."""

    #: The columns of RETURNED, in their order; those of ``order`` come after them.
    job_id: UUID
    slug: str
    version: str | None
    kind: str
    queue_name: str
    input: str
    fence: int
    attempts: int
    crashes: int
    started_at: datetime
    options: str | None
    context: str | None
    args: str | None
    parent: UUID | None
    key_hash: str | None
    key_hold: bool
    step_key: str | None
    deadline_at: datetime | None
    meta: str | None
    worker: UUID
    order: tuple[Any, ...] = ()
    steps: list[StepRecord] = field(default_factory=list)
    #: DB time of a run's later claim, and of the retry by which an operator opened it again.
    claimed_at: datetime | None = None
    retried_at: datetime | None = None
    #: Monotonic moment after which nothing new may start under this lease.
    deadline: float = 0.0
    #: Set when the lease is known to be lost or the job canceled.
    revoked: str | None = None
    #: Set when the job is known to be paused: nothing more of it may start under this claim.
    is_halted: bool = False
    #: Keys and queues of which units were taken with this claim.
    held: tuple[str, ...] = ()
    #: The handler still runs although its outcome is recorded: its permit stays taken.
    keeps_permit: bool = False
    #: Its place in the table of what this process really runs.
    charge: int | None = None
    #: The run is being undone: nothing of it starts but compensations.
    is_undoing: bool = False
    #: Set once the outcome is committed, where the handler's thread waits for that.
    acknowledged: threading.Event | None = None

    @property
    def drives_in(self) -> Status:
        """The status of the job in which this claim starts steps."""
        return Status.COMPENSATING if self.is_undoing else Status.RUNNING

    def hear(self, status: str | None) -> None:
        """Note the status that the job, still ours, is known to have now."""
        self.is_halted = status != self.drives_in

    @property
    def is_run(self) -> bool:
        return self.kind in (Kind.WORKFLOW, Kind.DAG)

    @property
    def tries(self) -> int:
        """Which try this is within the present budget, from 1: an operator's retry begins a new one."""
        return self.attempts + 1 - (self.attempts_before or 0)

    @property
    def attempts_before(self) -> int | None:
        """The tries before an operator's retry; None where there was none."""
        known = jsonvalues.loads(self.options) if self.options else None
        return known.get("attempts_before") if isinstance(known, dict) else None

    def time_left(self, limit: float) -> float:
        """Seconds of a run's time limit that are left with this claim, by DB time; fixes ``deadline_at``.

        They count from the first claim, or from an operator's retry.
        """
        if self.deadline_at is None:
            self.deadline_at = (self.retried_at or self.started_at) + timedelta(seconds=limit)
        return (self.deadline_at - (self.claimed_at or self.started_at)).total_seconds()

    @property
    def plain(self) -> bool:
        """Whether its completion touches no row but its own."""
        return self.kind == Kind.TASK and not (self.held or self.parent) and self.fence == 1


@dataclass(frozen=True, slots=True)
class Lane:
    """All ready jobs of one runner, queue, slug, version and need of permits."""

    lane: int
    queue_name: str
    slug: str
    version: str | None
    runner: str
    #: A key, a rate or the limit of its queue decides who of it may start.
    limited: bool


RETURNED = (
    "{job}.id, {job}.slug, {job}.version, {job}.kind, {job}.queue_name, {text(input)}, {job}.fence, "
    "{job}.attempts, {job}.crashes, {job}.started_at, {text(options)}, {text(context)}, {text(args)}, "
    "{job}.parent_id, {job}.key_hash, {job}.key_hold, {job}.step_key, {job}.deadline_at, {text(meta)}, "
    "{job}.precedence, {job}.turn, {job}.due_at, {job}.history_length"
)
#: Where the columns of the order begin in RETURNED: precedence, turn, due time; then the history's length.
ORDER_FROM = 19
#: Rounds of one claim in which jobs without a permit are put aside.
ROUNDS = 40
#: When something becomes due that waits for its time, or for its rate.
MOMENTS = (
    f"SELECT MIN(run_after) AS moment FROM {{job}} WHERE {TIMED} "
    "UNION ALL SELECT MIN(opens_at) FROM {ratewait}"
)
# From the second claim on, the claim itself is a history entry; the first one is derived. The fence
# comes last: MySQL lets an assignment see those before it.
TAKE = """
UPDATE {job} SET status = 'running', worker = %(worker)s,
       lease_expires_at = {after(lease)}, started_at = COALESCE({job}.started_at, {now}),
       history_length = {job}.history_length + CASE WHEN {job}.fence > 0 THEN 1 ELSE 0 END,
       fence = {job}.fence + 1
"""


def _limited(job: str) -> str:
    """Whether a key, a rate or the limit of its queue decides if ``job`` may start."""
    return (
        f"({job}.key_limit IS NOT NULL OR {job}.rate_hash IS NOT NULL OR EXISTS "
        f"(SELECT 1 FROM {{queue}} q WHERE q.name = {job}.queue_name AND q.job_limit IS NOT NULL))"
    )


NEXT_LANE = f"""
SELECT lane, queue_name, slug, version, runner, {_limited("{job}")} FROM {{job}} {{index(claim)}}
 WHERE status = 'pending' AND gate = 'open' AND lane > %(lane)s ORDER BY lane LIMIT 1
"""


def lanes(session: Session) -> list[Lane]:
    """The lanes that hold ready jobs, by jumping from lane to lane through the claim's index."""
    if session.vendor == "mysql":
        return _lanes_one_by_one(session)
    rows = session.rows(
        f"""
        WITH RECURSIVE found(lane) AS (
            SELECT MIN(lane) FROM {{job}} WHERE status = 'pending' AND gate = 'open'
            UNION ALL
            SELECT (SELECT MIN(j.lane) FROM {{job}} j
                     WHERE j.status = 'pending' AND j.gate = 'open' AND j.lane > found.lane)
              FROM found WHERE found.lane IS NOT NULL
        )
        SELECT j.lane, j.queue_name, j.slug, j.version, j.runner, {_limited("j")}
          FROM found JOIN {{job}} j ON j.id = (
            SELECT k.id FROM {{job}} k
             WHERE k.status = 'pending' AND k.gate = 'open' AND k.lane = found.lane LIMIT 1)
        """
    )
    return [_lane(row) for row in rows]


def _lanes_one_by_one(session: Session) -> list[Lane]:
    """MySQL reads its index from the start for each lane of a recursion; a jump of its own does not."""
    found: list[Lane] = []
    while row := session.one(NEXT_LANE, lane=found[-1].lane if found else -(1 << 63)):
        found.append(_lane(row))
    return found


def _lane(row: tuple[Any, ...]) -> Lane:
    return Lane(row[0], row[1], row[2], row[3], row[4], bool(row[5]))


def open_gates(session: Session, limit: int = 1000) -> int:
    """Let jobs whose time has come into the claim's index, and wake sleeping runs; return how many.

    Of those that need a permit, or have a rate, only so many as seem to get one.
    """
    due = session.rows(
        "SELECT id, key_limit, key_hash, rate_hash, share, queue_name, turn, started_at FROM {job} {index(timer)} "
        f"WHERE {TIMED} AND status = 'pending' AND gate = 'timer' AND run_after <= {{now}} "
        "ORDER BY run_after LIMIT %(limit)s {skip_locked}",
        limit=limit,
    )
    shared = [
        (session.dialect.uuid(row[0]), row[5], row[4], row[6], row[7] is not None)
        for row in due
        if row[4] is not None
    ]
    fairness.again(session, shared)
    opened = 0
    for gate, listed in _by_gate(due).items():
        opened += session.run(
            "UPDATE {job} SET gate = %(gate)s, due_at = run_after WHERE id {among(ids)} "
            "AND status = 'pending' AND gate = 'timer'",
            gate=gate, ids=[session.dialect.uuid(row[0]) for row in listed],
        )  # fmt: skip
        if gate == "permit":
            permits.let_in_of(session, {row[2] for row in listed})
        elif gate == "rate":
            rates.look_at(session, {row[3] for row in listed})
    return opened + wake_due(session, limit) + rates.let_in(session)


def _by_gate(due: list[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in due:
        gate = "permit" if row[1] is not None else "rate" if row[3] is not None else "open"
        found.setdefault(gate, []).append(row)
    return found


def seconds_to_next_due(session: Session) -> float | None:
    """How long until the next job that is held back by time or a rate fits; None if there is none."""
    row = session.one(f"SELECT MIN(moment), {{now}} FROM ({MOMENTS}) AS moments")
    if row is None or row[0] is None:
        return None
    first, present = session.dialect.time(row[0]), session.dialect.time(row[1])
    assert first is not None and present is not None
    return (first - present).total_seconds()


def claim(
    session: Session,
    chosen: Sequence[Lane],
    *,
    worker: UUID,
    limit: int,
    lease: float,
    limited: int | None = None,
) -> list[Claim]:
    """Take up to ``limit`` due jobs of these lanes, in order. One transaction of the caller's making.

    Nothing is taken of a paused queue or task. Jobs that need a permit and get none are put aside
    until one is free. At most ``limited`` of those that need one are taken: waiting in a worker's
    line they would keep it from others.
    """
    if not chosen:
        return []
    if is_direct(session, chosen):
        params = direct_params(chosen, worker=worker, limit=limit, lease=lease)
        claims = with_steps(
            session, taken_directly(session, session.rows(TAKE_DIRECT, **params), worker)
        )
    else:
        usable = _not_paused(session, chosen)
        most = limit if limited is None else min(limit, limited)
        full = {name for name, room in _room_of_queues(session, usable).items() if room <= 0}
        open_to = [lane for lane in usable if lane.queue_name not in full]
        if len(open_to) < len(usable):
            # Full queues are left alone, and cost the others nothing more.
            return claim(session, open_to, worker=worker, limit=limit, lease=lease, limited=limited)
        claims = _take_in_order(
            session, usable, worker=worker, limit=limit, limited=most, lease=lease
        )
    fairness.advance(session, claims)
    failpoints.reach("claim.before_commit")
    return claims


def take(session: Session, job_ids: Sequence[UUID], *, worker: UUID, lease: float) -> list[Claim]:
    """Take exactly these jobs, each only if it is claimable still and gets its permits."""
    return _take_admitted(session, job_ids, worker=worker, lease=lease)[0]


def _take_admitted(
    session: Session, job_ids: Sequence[UUID], *, worker: UUID, lease: float
) -> tuple[list[Claim], dict[UUID, str]]:
    """The claims of those that may start, and why others may not."""
    if not job_ids:
        return [], {}
    admitted = admission.admit(session, job_ids, lease=lease)
    claims = _take_listed(session, list(admitted.held), worker=worker, lease=lease)
    for taken in claims:
        taken.held = admitted.held.pop(taken.job_id)
    for job_id, held in admitted.held.items():
        if held:
            permits.give_back(session, job_id)
    admission.put_rest_aside(session, job_ids, admitted.refused)
    return claims, admitted.refused


def _take_in_order(
    session: Session,
    usable: Sequence[Lane],
    *,
    worker: UUID,
    limit: int,
    limited: int,
    lease: float,
) -> list[Claim]:
    """Take candidates until the batch is full: those put aside for a permit do not fill it."""
    claims: list[Claim] = []
    room = _room_of_queues(session, usable)
    for _ in range(ROUNDS):
        if len(claims) >= limit:
            break
        lanes = [
            lane
            for lane in usable
            if not lane.limited or (limited > 0 and room.get(lane.queue_name, 1) > 0)
        ]
        most = {
            lane.lane: min(limited, room.get(lane.queue_name, limited))
            for lane in lanes
            if lane.limited
        }
        picked = _candidates(session, lanes, limit - len(claims), most)
        bound = [one for one in picked if one.lane in most][:limited]
        free = [one.job_id for one in picked if one.lane not in most]
        claims += _take_listed(session, free, worker=worker, lease=lease)
        if not bound:
            break
        taken, refused = _take_admitted(
            session, [one.job_id for one in bound], worker=worker, lease=lease
        )
        claims += taken
        limited -= len(taken)
        queue_of = {one.job_id: one.queue_name for one in bound}
        for held in taken:
            if held.queue_name in room:
                room[held.queue_name] -= 1
        for job_id, why in refused.items():
            if why == "queue":
                room[queue_of[job_id]] = 0
    claims.sort(key=_place_in_line)
    return claims


def _room_of_queues(session: Session, usable: Sequence[Lane]) -> dict[str, int]:
    """How many more may run of each limited queue among these lanes."""
    names = {lane.queue_name for lane in usable if lane.limited}
    if not names:
        return {}
    known = {name: most for name, most in admission.limits(session).items() if name in names}
    return admission.free(session, known) if known else {}


def _take_listed(
    session: Session, job_ids: Sequence[UUID], *, worker: UUID, lease: float
) -> list[Claim]:
    """No permits needed: all by one statement, each row by its own compare-and-set."""
    if not job_ids:
        return []
    rows = session.rows(
        f"{TAKE} WHERE id {{among(ids)}} AND {CLAIMABLE} RETURNING {RETURNED}",
        ids=list(job_ids), worker=worker, lease=lease,
    )  # fmt: skip
    return _note_again(session, taken_directly(session, rows, worker))


def _not_paused(session: Session, chosen: Sequence[Lane]) -> list[Lane]:
    """Those that may be taken of, each with what is known now of its queue."""
    queues = dict(
        session.rows("SELECT name, paused FROM {queue} WHERE paused OR job_limit IS NOT NULL")
    )
    paused_tasks = {row[0] for row in session.rows("SELECT slug FROM {task} WHERE paused")}
    return [
        replace(lane, limited=True) if lane.queue_name in queues else lane
        for lane in chosen
        if not queues.get(lane.queue_name) and lane.slug not in paused_tasks
    ]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A due row, locked where the database can."""

    order: tuple[Any, ...]
    job_id: UUID
    lane: int
    queue_name: str


def _candidates(
    session: Session, usable: Sequence[Lane], limit: int, most: dict[int, int]
) -> list[Candidate]:
    """The first ``limit`` due rows over these lanes, at most ``most`` of one lane."""
    found: list[Candidate] = []
    uuid = session.dialect.uuid
    for lane in usable:
        rows = session.rows(
            "SELECT precedence, turn, due_at, id FROM {job} {index(claim)} "
            f"WHERE lane = %(lane)s AND {CLAIMABLE} "
            "ORDER BY precedence, turn, due_at, id LIMIT %(limit)s {skip_locked}",
            lane=lane.lane,
            limit=min(limit, most.get(lane.lane, limit)),
        )
        found += [
            Candidate((*row[:3], str(row[3])), uuid(row[3]), lane.lane, lane.queue_name)  # type: ignore[arg-type]
            for row in rows
        ]
    found.sort(key=lambda one: one.order)
    return found[:limit]


# PostgreSQL, no permits needed: one statement picks, locks and takes. Lanes of paused queues are left
# out, and those of limited ones, whatever the worker knew of them.
# The rows are found again by their key: a join would let the planner, with the stale statistics of
# a busy queue, walk all ready rows once for each row picked. Their lock has re-checked them.
TAKE_DIRECT = f"""
    WITH picked AS MATERIALIZED (
        SELECT c.id FROM (
            SELECT u.lane FROM unnest(%(lanes)s::bigint[], %(queues)s::text[], %(slugs)s::text[])
                AS u(lane, queue_name, slug)
             WHERE NOT EXISTS (SELECT 1 FROM {{queue}} q WHERE q.name = u.queue_name
                                                           AND (q.paused OR q.job_limit IS NOT NULL))
               AND NOT EXISTS (SELECT 1 FROM {{task}} t WHERE t.slug = u.slug AND t.paused)) l
         CROSS JOIN LATERAL (
            SELECT {{job}}.id, precedence, turn, due_at FROM {{job}}
             WHERE {{job}}.lane = l.lane AND {CLAIMABLE}
             ORDER BY precedence, turn, due_at, {{job}}.id LIMIT %(limit)s {{skip_locked}}) c
         ORDER BY c.precedence, c.turn, c.due_at, c.id LIMIT %(limit)s
    )
    , taken AS (
        {TAKE} WHERE {{job}}.id = ANY (ARRAY(SELECT id FROM picked)) AND {{job}}.status = 'pending'
        RETURNING {{job}}.*
    ), entries AS (
        INSERT INTO {{historyentry}} (job_id, n, at, event, from_status, to_status, attempt, fence, worker)
        SELECT id, history_length, {{now}}, 'claimed', 'pending', 'running', attempts + 1, fence, worker
          FROM taken WHERE fence > 1
    ), tries AS (
        INSERT INTO {{attempt}} (job_id, number, status, fence, worker, started_at)
        SELECT id, attempts + 1, 'running', fence, worker, {{now}} FROM taken WHERE fence > 1
    )
    SELECT {RETURNED.replace("{job}.", "")} FROM taken
"""


def is_direct(session: Session, chosen: Sequence[Lane]) -> bool:
    """Whether these lanes can be taken by one statement."""
    return session.vendor == "postgresql" and not any(lane.limited for lane in chosen)


def direct_params(
    chosen: Sequence[Lane], *, worker: UUID, limit: int, lease: float
) -> dict[str, Any]:
    return {
        "lanes": [lane.lane for lane in chosen],
        "queues": [lane.queue_name for lane in chosen],
        "slugs": [lane.slug for lane in chosen],
        "limit": limit,
        "worker": worker,
        "lease": lease,
    }


def taken_directly(session: Session, rows: list[tuple[Any, ...]], worker: UUID) -> list[Claim]:
    """The claims of the rows that the direct statement returned, in order."""
    claims = [claim_of(session, row, worker) for row in rows]
    claims.sort(key=_place_in_line)
    return claims


def _place_in_line(claim: Claim) -> tuple[Any, ...]:
    return (*claim.order[:3], claim.job_id.int)


def claim_of(session: Session, row: tuple[Any, ...], worker: UUID) -> Claim:
    values: list[Any] = [*row[:ORDER_FROM], worker, row[ORDER_FROM:]]
    if session.vendor != "postgresql":
        time, uuid = session.dialect.time, session.dialect.uuid
        for place, read in ((0, uuid), (9, time), (13, uuid), (15, bool), (17, time)):
            values[place] = read(values[place])
    return Claim(*values)


def _note_again(session: Session, claims: list[Claim]) -> list[Claim]:
    """Write what a second claim adds to the history, and read the steps recorded so far."""
    for taken in claims:
        if taken.fence == 1:
            continue
        history.add(
            session, taken.job_id, taken.order[3], event="claimed", frm=Status.PENDING, to=Status.RUNNING,
            fence=taken.fence, worker=taken.worker, attempt=taken.attempts + 1,
        )  # fmt: skip
        session.run(
            "INSERT INTO {attempt} (job_id, number, status, fence, worker, started_at) "
            "VALUES (%(job)s, %(number)s, %(status)s, %(fence)s, %(worker)s, {now})",
            job=taken.job_id, number=taken.attempts + 1, status=str(AttemptStatus.RUNNING),
            fence=taken.fence, worker=taken.worker,
        )  # fmt: skip
    return with_steps(session, claims)


def with_steps(session: Session, claims: list[Claim]) -> list[Claim]:
    """Read the recorded steps of jobs that were claimed before; a first claim has none."""
    again = [taken for taken in claims if taken.fence > 1]
    if again:
        found = read_steps(session, [taken.job_id for taken in again])
        for taken in again:
            taken.steps = found.get(taken.job_id, [])
        _note_times(session, [taken for taken in again if taken.is_run])
    return claims


def _note_times(session: Session, runs: list[Claim]) -> None:
    """The present moment, by which the time limit of a run is judged, and when it was retried."""
    if not runs:
        return
    retried = [run.job_id for run in runs if run.attempts_before is not None]
    row = session.one("SELECT {now}")
    moments: dict[UUID | None, Any] = {}
    if retried:
        rows = session.rows(
            "SELECT job_id, MAX(at) FROM {historyentry} WHERE job_id {among(ids)} AND event = 'retried' "
            "GROUP BY job_id",
            ids=retried,
        )
        moments = {session.dialect.uuid(job_id): at for job_id, at in rows}
    assert row is not None
    time = session.dialect.time
    for run in runs:
        run.claimed_at, run.retried_at = time(row[0]), time(moments.get(run.job_id))


def read_claim(session: Session, job_id: UUID, fence: int, worker: UUID) -> Claim | None:
    """The claim that ``worker`` holds on a job under ``fence``, for another process of that worker."""
    rows = session.rows(
        f"SELECT {RETURNED}, {{job}}.status FROM {{job}} WHERE id = %(id)s AND fence = %(fence)s "
        "AND worker = %(worker)s AND status IN ('running', 'compensating')",
        id=job_id, fence=fence, worker=worker,
    )  # fmt: skip
    claims = with_steps(session, [claim_of(session, row[:-1], worker) for row in rows])
    for taken in claims:
        taken.is_undoing = rows[0][-1] == Status.COMPENSATING
        taken.held = permits.held(session, job_id, fence)
    return claims[0] if claims else None


@dataclass(frozen=True, slots=True)
class Peek:
    """A live run as a claim would find it, and the error it shows. Nobody holds it by this."""

    claim: Claim
    error: ErrorDict | None


def peek(session: Session, job_id: UUID) -> Peek | None:
    """Look at a run that has started and not ended; None for another."""
    rows = session.rows(
        f"SELECT {RETURNED}, {{text(error)}} FROM {{job}} WHERE id = %(id)s AND kind = 'workflow' "
        "AND finished_at IS NULL AND started_at IS NOT NULL",
        id=job_id,
    )
    if not rows:
        return None
    [row] = rows
    claim = claim_of(session, row[:-1], job_id)
    claim.steps = read_steps(session, [job_id]).get(job_id, [])
    return Peek(claim, jsonvalues.loads(row[-1]))


def take_chosen(
    session: Session, job_ids: Sequence[UUID], *, worker: UUID, limit: int, lease: float
) -> list[Claim]:
    """Take the first ``limit`` of these jobs that could be taken now, in this order.

    One that waits for a permit or for its rate is asked as well: it may fit by now.
    """
    claims: list[Claim] = []
    left = claimable_ids(session, job_ids)
    while left and len(claims) < limit:
        portion, left = left[: limit - len(claims)], left[limit - len(claims) :]
        session.run(
            "UPDATE {job} SET gate = 'open' WHERE id {among(ids)} AND status = 'pending' "
            "AND gate IN ('permit', 'rate')",
            ids=portion,
        )
        claims += take(session, portion, worker=worker, lease=lease)
    return claims


def claimable_ids(session: Session, job_ids: Sequence[UUID]) -> list[UUID]:
    """Those of ``job_ids`` that could be taken now, paused queues and tasks left out."""
    if not job_ids:
        return []
    rows = session.rows(
        f"SELECT id FROM {{job}} WHERE id {{among(ids)}} AND {AVAILABLE} AND {NOT_PAUSED}",
        ids=list(job_ids),
    )
    found = {session.dialect.uuid(row[0]) for row in rows}
    return [job_id for job_id in job_ids if job_id in found]
