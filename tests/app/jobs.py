"""Tasks and workflows that the tests and their worker processes share."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, transaction
from django.utils import timezone, translation

from django_jobs import Retry, TaskContext, WorkflowContext, task, workflow


def note(path: str, *words: object) -> None:
    """Append one line to a file outside of the database, whole even among processes."""
    line = " ".join(map(str, words)) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def echo(value: Any = None) -> Any:
    return value


@task
def price(amount: Decimal) -> Decimal:
    return amount * 2


@task
async def slow_add(a: int, b: int) -> int:
    return a + b


@task
def fail(text: str = "broken") -> None:
    raise ValueError(text)


@task(retries=Retry(max_attempts=3, delay=0, jitter=0))
def flaky(marks: str, failures: int) -> str:
    """Fail the first ``failures`` times."""
    note(marks, "tried")
    if len(Path(marks).read_text().splitlines()) <= failures:
        raise RuntimeError("not yet")
    return "done"


@task(takes_context=True)
def record_execution(context: TaskContext, marks: str) -> None:
    """Leave job, pid and fence outside of the database."""
    claim = context._driver.claim  # type: ignore[attr-defined]
    note(marks, claim.job_id, os.getpid(), claim.fence)


@task
def hold(marks: str, release: str) -> str:
    """Say that it runs, then wait for the file ``release``."""
    note(marks, "started", os.getpid())
    while not Path(release).exists():
        time.sleep(0.01)
    return "released"


@task
def mark(marks: str, word: str) -> str:
    note(marks, word)
    return word


class Unprintable(Exception):
    """Its text raises, and its cause is itself."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Interrupting(Exception):
    """Whoever asks for its text is interrupted."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Textless(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __reduce__(self) -> Any:
        raise TypeError("not me")


def _raise(what: str) -> None:
    if what == "RecursionError":
        _raise(what)
    if what == "Unprintable":
        error = Unprintable()
        error.__cause__ = error
        raise error
    if what == "long chain":
        error: BaseException = ValueError("first")  # type: ignore[no-redef]
        for n in range(3000):
            following = ValueError(n)
            following.__cause__ = error
            error = following  # type: ignore[assignment]
        raise error
    odd: dict[str, Any] = {
        "Interrupting": Interrupting,
        "Textless": Textless,
        "Unpicklable": Unpicklable,
        "group": lambda: BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("inner")]),
        "surrogate": lambda: ValueError("\ud800 and \0"),
        "huge": lambda: ValueError("x" * (8 << 20)),
        "BaseException": BaseException,
    }
    if what in odd:
        raise odd[what]()
    raise {
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "GeneratorExit": GeneratorExit,
        "CancelledError": asyncio.CancelledError,
        "StopIteration": StopIteration,
        "MemoryError": MemoryError,
    }[what]("on purpose")


@task
def raises(what: str) -> None:
    _raise(what)


@task
async def araises(what: str) -> None:
    await asyncio.sleep(0)
    _raise(what)


@task
def leaves_behind(what: str) -> None:
    """Use the thread's connection and leave it in a state that no handler should leave."""
    from django.contrib.auth.models import Group

    with contextlib.suppress(DatabaseError):
        match what:
            case "open atomic":
                transaction.atomic().__enter__()
                Group.objects.create(name="lost")
            case "open atomic after an error":
                transaction.atomic().__enter__()
                connection.cursor().execute("SELECT nothing FROM nowhere")
            case "raw begin":
                connection.cursor().execute("BEGIN")
                Group.objects.create(name="lost")
            case "autocommit off":
                transaction.set_autocommit(False)
                Group.objects.create(name="lost")
            case "closed connection":
                connection.ensure_connection()
                connection.connection.close()
            case "broken statement":
                connection.cursor().execute("SELECT nothing FROM nowhere")


@task
def makes_group(name: str) -> None:
    from django.contrib.auth.models import Group

    Group.objects.create(name=name)


@task
def swallows_its_own() -> str:
    try:
        raise SystemExit
    except BaseException as error:
        return f"swallowed {type(error).__name__}"


@workflow(retries=2)
def swallows(run: WorkflowContext, marks: str) -> str:
    """Catch even what the engine raises to end the pass."""
    try:
        return run.task("flaky", flaky, marks=marks, failures=1, retries=Retry(delay=60))  # type: ignore[no-any-return]
    except BaseException:
        note(marks, "swallowed")
        return "swallowed"


@workflow
def three_steps(run: WorkflowContext, marks: str) -> dict[str, Any]:
    first = run.task("first", mark, marks=marks, word="first")
    second = run.inline("second", lambda: mark(marks, "second"))
    third = run.task("third", mark, marks=marks, word="third")
    run.progress(1, "all done")
    run.log.info("ran %s", first)
    return {"steps": [first, second, third]}


@workflow(retries=3)
def gate_before_last(run: WorkflowContext, marks: str, release: str) -> str:
    run.task("first", mark, marks=marks, word="first")
    run.task("second", mark, marks=marks, word="second")
    run.task("wait", hold, marks=marks, release=release)
    return run.task("last", mark, marks=marks, word="last")  # type: ignore[no-any-return]


@workflow
def deadly(run: WorkflowContext, marks: str, times: int) -> str:
    """Kill the worker process in the second step, the first ``times`` times."""
    run.task("before", mark, marks=marks, word="before")

    def die() -> None:
        if Path(marks).read_text().count("dying") < times:
            note(marks, "dying")
            os.kill(os.getpid(), signal.SIGKILL)

    run.inline("die", die)
    return "survived"


@workflow
def traces(run: WorkflowContext, marks: str, release: str) -> int:
    """Two steps with a gate between them, then a log line and progress; returns the pid."""
    run.task("first", mark, marks=marks, word="first")
    run.task("wait", hold, marks=marks, release=release)
    run.log.info("held by %d", os.getpid())
    run.progress(0.5, f"held by {os.getpid()}")
    run.task("last", mark, marks=marks, word="last")
    return os.getpid()


@workflow
async def async_steps(run: WorkflowContext, n: int) -> int:
    total = await run.task("sum", slow_add, a=n, b=1)
    return await run.inline("double", lambda: total * 2)  # type: ignore[no-any-return]


@task(takes_context=True)
def parent_task(context: TaskContext, marks: str) -> list[str]:
    """A task with steps of its own, also as a job by itself."""
    first = context.task("one", mark, marks=marks, word="one")
    second = context.inline("two", lambda: mark(marks, "two"))
    return [first, second]


@workflow
def nested(run: WorkflowContext, marks: str) -> list[list[str]]:
    left = run.task("left", parent_task, marks=marks)
    right = run.task("right", parent_task, marks=marks)
    return [left, right]


@workflow
def gathered(run: WorkflowContext, marks: str) -> list[Any]:
    both = run.gather(
        run.call("a", mark, marks=marks, word="a"), run.call("b", mark, marks=marks, word="b")
    )
    return [
        both,
        run.map("page", add, [{"a": n, "b": 1} for n in range(3)]),
        run.map("e", echo, [5, 6]),
    ]


@workflow
def ten_steps(run: WorkflowContext, n: int = 10) -> int:
    return sum(run.task(f"s{i}", add, a=i, b=1) for i in range(n))


@task(isolation="process", timeout=0.5)
def isolated_forever(marks: str) -> None:
    note(marks, "started", os.getpid())
    while True:
        time.sleep(0.05)


@task(isolation="process")
def isolated_pid(marks: str) -> int:
    note(marks, "ran", os.getpid())
    return os.getpid()


@task(timeout=0.3)
def runaway(marks: str, release: str) -> str:
    """Ignore its time limit until the file ``release`` is there."""
    note(marks, "started", os.getpid())
    while not Path(release).exists():
        time.sleep(0.01)
    note(marks, "ended", os.getpid())
    return "too late"


@task
def poison() -> None:
    os.kill(os.getpid(), 9)


@task(acknowledge="each")
def each(marks: str) -> None:
    note(marks, "ran")


@task
def whoami() -> int:
    return os.getpid()


@task
def dawdle(marks: str, word: str) -> None:
    """A job of some 10 ms that leaves one line."""
    note(marks, word)
    time.sleep(0.01)


@task
async def wait_async(marks: str) -> None:
    """Wait until interrupted, and say so."""
    note(marks, "waiting")
    try:
        await asyncio.sleep(600)
    finally:
        note(marks, "interrupted")


@task
def watched(marks: str, word: str, run_id: str, step: str) -> str:
    """Say so if this step is recorded already: then it should not run."""
    from django_jobs.models import TaskStatus

    of_step = TaskStatus.objects.filter(job_id=run_id, step_id=step)
    recorded = of_step.filter(status="completed").exists()
    note(marks, "again" if recorded else "ran", word, step)
    time.sleep(0.02)
    return step


@workflow(retries=3)
def watched_steps(run: WorkflowContext, marks: str, word: str) -> list[str]:
    run_id = str(run.job.pk)
    return [
        run.task(step, watched, marks=marks, word=word, run_id=run_id, step=step)
        for step in ("a", "b", "c")
    ]


@workflow
def three_marks(run: WorkflowContext, marks: str, word: str) -> None:
    for step in ("a", "b", "c"):
        run.task(step, dawdle, marks=marks, word=f"{word} {step}")


# --- what handlers leave in a session or a process -------------------------------------------


SESSION_CHANGES = {
    "sqlite": {
        "pragma": "PRAGMA query_only = ON",
        "attached": "ATTACH ':memory:' AS left_over",
        "temporary table": "CREATE TEMPORARY TABLE left_over (n integer)",
    },
    "postgresql": {
        "time zone": "SET TIME ZONE 'Asia/Tokyo'",
        "search path": "SET search_path TO pg_catalog",
        "by function": "SELECT set_config('statement_timeout', '5000', false)",
        "behind another": "SELECT 1; SET work_mem TO '1MB'",
        "role": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "temporary table": "CREATE TEMPORARY TABLE left_over (n integer)",
        "lock": "SELECT pg_advisory_lock(42)",
        "channel": "LISTEN left_over",
        "prepared": "PREPARE left_over AS SELECT 1",
    },
    "mysql": {
        "time zone": "SET time_zone = '+09:00'",
        "mode": "SET SESSION sql_mode = ''",
        "variable": "SELECT @left_over := 1",
        "other database": "USE mysql",
        "lock": "SELECT GET_LOCK('left_over', 1)",
        "locked tables": "LOCK TABLES auth_group READ",
        "temporary table": "CREATE TEMPORARY TABLE left_over (n integer)",
    },
}
PYTHON_CHANGES = ["active time zone", "active language", "decimals", "cursor wrapper"]
SESSION_SHOWN = {
    "sqlite": [
        "PRAGMA query_only",
        "PRAGMA database_list",
        "SELECT count(*) FROM sqlite_temp_master",
    ],
    "postgresql": [
        "SHOW TIME ZONE",
        "SHOW search_path",
        "SHOW statement_timeout",
        "SHOW work_mem",
        "SHOW default_transaction_read_only",
        "SELECT count(*) FROM pg_class WHERE relname = 'left_over'",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "SELECT count(*) FROM pg_listening_channels()",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_over'",
    ],
    "mysql": [
        "SELECT @@SESSION.time_zone, @@SESSION.sql_mode, @left_over, DATABASE()",
        "SELECT IS_USED_LOCK('left_over') = CONNECTION_ID()",
    ],
}


def _ignored(execute: Any, *args: Any) -> Any:
    return execute(*args)


def change_session(what: str) -> None:
    """Leave a setting behind, of the session or of this thread's context."""
    match what:
        case "active time zone":
            timezone.activate("Asia/Tokyo")
        case "active language":
            translation.activate("de")
        case "decimals":
            getcontext().prec = 3
        case "cursor wrapper":
            connection.execute_wrapper(_ignored).__enter__()
        case _:
            connection.cursor().execute(SESSION_CHANGES[connection.vendor][what])


def show_session() -> list[Any]:
    shown: list[Any] = [
        timezone.get_current_timezone_name(),
        translation.get_language(),
        getcontext().prec,
        len([one for one in connection.execute_wrappers if one is _ignored]),
    ]
    with connection.cursor() as cursor:
        for sql in SESSION_SHOWN[connection.vendor]:
            cursor.execute(sql)
            shown.append([list(map(str, row)) for row in cursor.fetchall()])
    return shown


@task
def changes_session(what: str) -> None:
    change_session(what)


@task
def shows_session() -> list[Any]:
    return show_session()


@task
async def achanges_session(what: str, where: str) -> None:
    if where == "to_thread":
        await asyncio.to_thread(change_session, what)
    else:
        await sync_to_async(change_session)(what)


@task
async def ashows_session(where: str) -> list[Any]:
    if where == "to_thread":
        return await asyncio.to_thread(show_session)
    return await sync_to_async(show_session)()


@task
def which_connection() -> int:
    """The address of the driver's connection, after ordinary use."""
    from django.contrib.auth.models import Group

    with transaction.atomic():
        Group.objects.filter(name="nobody").delete()
        Group.objects.create(name="nobody").delete()
    list(Group.objects.order_by("name")[:3])
    return id(connection.connection)


@task(isolation="process")
def isolated_leaves_open() -> str:
    """Leave a transaction open, in which the outcome would be rolled back."""
    transaction.atomic().__enter__()
    makes_group.func("lost")
    return "done"


def fork(how: str) -> int:
    """Let another process return, raise or exit from here; its exit code as seen by the handler."""
    pid = os.fork()
    if pid == 0:
        match how:
            case "raises":
                raise ValueError("in the other process")
            case "exits":
                sys.exit(7)
        return -1
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@task
def forks(how: str, marks: str) -> int:
    note(marks, "ran")
    return fork(how)


@task(isolation="process")
def isolated_forks(how: str, marks: str) -> int:
    note(marks, "ran")
    return fork(how)


@workflow
def forks_in_steps(run: WorkflowContext, how: str, marks: str) -> list[int]:
    return [
        run.task("task", forks, how=how, marks=marks),
        run.inline("inline", lambda: fork(how)),
        run.inline("transactional", lambda: fork(how), transactional=True),
        *run.gather(
            run.call("a", forks, how=how, marks=marks), run.call("b", forks, how=how, marks=marks)
        ),
    ]


@task
def terminates_its_own() -> int:
    """Start a process by forking and end it by SIGTERM, as multiprocessing does."""
    codes = set()
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(1)
        os.kill(pid, signal.SIGTERM)
        codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return max(codes)


@task
def exits_in_a_thread() -> str:
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()
    return "went on"


@task
def yields() -> Any:
    yield 1


@task
async def ayields() -> Any:
    yield 1


@task
def returns_a_coroutine() -> Any:
    return asyncio.sleep(0)


@task
def swallows_cancellation() -> str:
    try:
        raise asyncio.CancelledError
    except BaseException:
        return "swallowed"


# --- jobs that end their process -------------------------------------------------------------


@task
def deadly_by(how: str) -> None:
    """Take the process down without a Python exception."""
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "os._exit":
            os._exit(7)
        case "abort":
            os.abort()
        case "out of memory":
            # As code in C does that does not look at what malloc gives.
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), -1))
            libc = ctypes.CDLL(None)
            libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
            libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
            libc.memset(libc.malloc(1 << 40), 1, 4096)


@task
def needs_too_much_memory() -> int:
    """What Python itself does when memory is refused: MemoryError."""
    return len(bytearray(1 << 50))


@task
def ledgered(ledger: str, name: str, seconds: float) -> str:
    """Leave a line at the beginning and one at the end: kind, name, pid, thread."""
    here = os.getpid(), threading.get_native_id()
    note(ledger, "begin", name, *here)
    time.sleep(seconds)
    note(ledger, "end", name, *here)
    return name


@task(isolation="process")
def isolated_hold(marks: str, release: str) -> str:
    return hold.func(marks, release)
