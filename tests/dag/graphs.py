"""Random graphs, and what must be true of any run of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from django_jobs import DAG, Retry
from django_jobs.models import Job, TaskStatus

#: Deeds that never complete.
FAILING = ("skipped", "fails", "times out")
#: What a step does: it returns, fails for good, fails once or twice and then returns, is skipped.
DEEDS = ("returns", "fails", "flaky", "skipped", "maps", "empty map")


@dataclass(frozen=True)
class Wish:
    """One step to be made."""

    deed: str
    after: tuple[int, ...]
    optional: bool
    over_failures: bool
    parallel: bool
    undo: str = ""


@dataclass
class Log:
    """What the functions of one run noted, in order."""

    starts: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)


@st.composite
def wishes(draw: Any, *, most: int = 9, undo: bool = False) -> list[Wish]:
    size = draw(st.integers(1, most))
    found = []
    for number in range(size):
        after = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        found.append(
            Wish(
                deed=draw(st.sampled_from(("returns",) * 6 + DEEDS)),
                after=tuple(sorted(after)),
                optional=draw(st.integers(0, 5)) == 0,
                over_failures=draw(st.integers(0, 5)) == 0,
                parallel=draw(st.integers(0, 4)) != 0,
                undo=draw(st.sampled_from(("", "works", "flaky") if undo else ("",))),
            )
        )
    return found


def build(
    slug: str,
    wanted: list[Wish],
    log: Log,
    *,
    delay: float = 10,
    too_long: Callable[[Any], Any] | None = None,
    **options: Any,
) -> DAG:
    """The graph of these wishes, whose functions note what they do.

    ``delay`` is the wait before another try in seconds; ``too_long`` is what a step does that times out.
    """
    dag = DAG(slug, **options)
    for number, wish in enumerate(wanted):
        given: dict[str, Any] = {
            "after": [str(one) for one in wish.after],
            "optional": wish.optional,
            "run_if": "all_done" if wish.over_failures else None,
            "parallel": wish.parallel,
            "retries": Retry(max_attempts=3, delay=delay, jitter=0)
            if "flaky" in (wish.deed, wish.undo)
            else None,
        }
        if wish.deed in ("maps", "empty map"):
            items = [10, 20, 30] if wish.deed == "maps" else []
            dag.map(str(number), step(log, "returns"), over=lambda ctx, items=items: items, **given)
            continue
        if wish.deed == "skipped":
            given["when"] = lambda ctx: False
        if wish.deed == "times out":
            given["timeout"] = 0.05
        if wish.undo:
            given["compensate"] = undo(log, wish.undo)
        does = too_long if wish.deed == "times out" else step(log, wish.deed)
        dag.step(str(number), does, **given)
    return dag


def step(log: Log, deed: str) -> Callable[[Any], Any]:
    def does(ctx: Any) -> Any:
        log.starts.append(ctx.step_id)
        if deed == "fails" or (deed == "flaky" and ctx.attempt < 3):
            raise ValueError(f"{ctx.step_id} fails")
        log.ends.append(ctx.step_id)
        return ctx.item if ctx.index is not None else int(ctx.step_id)

    return does


def undo(log: Log, deed: str) -> Callable[[Any], Any]:
    def undoes(ctx: Any) -> None:
        assert ctx.error is not None
        assert ctx.results[ctx.step_id] == int(ctx.step_id)
        if deed == "flaky" and ctx.attempt < 2:
            raise ValueError("not yet")
        log.undone.append(ctx.step_id)

    return undoes


# --- the rules ------------------------------------------------------------------------------------


def expected(wanted: list[Wish]) -> dict[str, set[str]]:
    """By the rules of the contract, the statuses that each step may end with, whatever the order."""
    certain: dict[int, set[str]] = {}
    for number, wish in enumerate(wanted):
        before = [certain[one] for one in wish.after]
        own = {"skipped": {"skipped"}, "fails": {"failed"}, "times out": {"failed"}}.get(
            wish.deed, {"completed"}
        )
        possible = set()
        if wish.over_failures or all(one <= {"completed", "skipped"} for one in before):
            possible = set(own)
        elif any("completed" in one or "skipped" in one for one in before) or before:
            possible = own | {"skipped", "canceled"}
        certain[number] = possible
    return {str(number): statuses for number, statuses in certain.items()}


def check(job: Job, wanted: list[Wish], log: Log) -> None:
    """Everything that must be true at the end of a run, whoever did its steps and in whatever order."""
    records = {one.step_id: one for one in TaskStatus.objects.filter(job=job)}
    status = {one: record.status for one, record in records.items()}
    failed_hard = [
        str(n) for n, wish in enumerate(wanted) if status.get(str(n)) == "failed" and not wish.optional
    ]  # fmt: skip
    # The end of the run follows from its steps.
    if failed_hard:
        assert job.status in ("failed", "compensated", "compensation_failed")
        assert job.error["step_id"] in failed_hard
    else:
        assert job.status == "completed", job.error
        assert set(job.output) == {
            str(n) for n in range(len(wanted)) if status[str(n)] == "completed"
        }
    for number, wish in enumerate(wanted):
        name = str(number)
        before = [status[str(one)] for one in wish.after]
        mine = status[name]
        assert mine in ("completed", "failed", "skipped", "canceled")
        # Topological order: nothing began before all it waits for had ended.
        if name in log.starts:
            for one in wish.after:
                if str(one) in log.ends:
                    assert log.ends.index(str(one)) >= 0
                    first = log.starts.index(name)
                    assert str(one) in log.starts[:first]
            if not wish.over_failures:
                assert set(before) <= {"completed", "skipped"}
        if mine == "canceled":
            assert failed_hard, "canceled without a failure"
        if mine == "skipped" and wish.deed != "skipped":
            assert "failed" in before
        if not failed_hard and wish.deed not in FAILING and "failed" not in before:
            assert mine == "completed"
    # Each step at most once after its record: what completed ran to its end once.
    for name in set(log.ends):
        assert log.ends.count(name) == 1, f"{name} ran {log.ends.count(name)} times"
        assert status[name] == "completed"
    for name, one in status.items():
        number = name.partition(":")[0]
        if (
            one == "completed"
            and number.isdecimal()
            and wanted[int(number)].deed in ("returns", "flaky")
        ):
            assert name in log.ends
    # Places in the order of completion are taken once.
    places = [record.done_no for record in records.values() if record.done_no is not None]
    assert len(places) == len(set(places))
    check_compensations(job, wanted, log, records)


def check_compensations(job: Job, wanted: list[Wish], log: Log, records: Any) -> None:
    undone = list(log.undone)
    if job.status not in ("compensated", "compensation_failed"):
        assert not undone
        return
    completed = [
        name
        for name, record in sorted(records.items(), key=lambda pair: -(pair[1].done_no or 0))
        if record.status == "completed"
        and name.isdecimal()
        and wanted[int(name)].undo
        and "map" not in wanted[int(name)].deed
    ]
    assert undone == completed
