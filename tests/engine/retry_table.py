"""What the rules of retries say of every combination of settings; renews the expectation file.

``python -m tests.engine.retry_table`` writes ``retry_table.json`` beside this module. Imports
nothing of the package: the numbers come from the rules alone.

T is the step's extra tries: call over task over workflow over the setting RETRIES, else 0. W is
the workflow's own setting, without limit when unset. A step has 1 + min(T, W) tries; a job of a
plain task 1 + T, without a workflow. A Retry without ``max_attempts`` says nothing of tries.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("retry_table.json")

#: Extra tries that each spelling stands for; None says nothing.
TASK = {"unset": None, "0": 0, "1": 1, "3": 3, "Retry(delay=1)": None, "Retry(max_attempts=3)": 2}
WORKFLOW = {
    "unset": None,
    "0": 0,
    "1": 1,
    "2": 2,
    "Retry(delay=1)": None,
    "Retry(max_attempts=2)": 1,
}
CALL = {"unset": None, "0": 0, "2": 2, "Retry(max_attempts=3)": 2, "Retry(delay=1)": None}
SETTING = {"unset": None, "1": 1}
#: How often the function fails before it succeeds.
FAILURES = (2, 99)


def first_said(*levels: int | None) -> int:
    return next((level for level in levels if level is not None), 0)


def expect(extra: int, failures: int, *, kind: str) -> dict[str, Any]:
    """The end of a job whose function may be tried ``1 + extra`` times."""
    tries = min(1 + extra, failures + 1)
    completes = failures < tries
    flags = [False] * min(failures, tries)
    if not completes:
        flags[-1] = True
    status = "completed" if completes else "failed"
    return {
        "executions": tries,
        "status": status,
        "attempts": tries,
        "step": None if kind == "plain" else {"status": status, "total_tried": tries},
        "final": [] if kind == "inline" else flags,
    }


def table() -> dict[str, dict[str, Any]]:
    """Expectation by ``setting | kind | task | workflow | call | failures``."""
    rows: dict[str, dict[str, Any]] = {}
    for (setting, default), failures in itertools.product(SETTING.items(), FAILURES):
        for (task, t), (call, c) in itertools.product(TASK.items(), CALL.items()):
            key = " | ".join([setting, "plain", task, "-", call, str(failures)])
            rows[key] = expect(first_said(c, t, default), failures, kind="plain")
        for (workflow, w), (call, c) in itertools.product(WORKFLOW.items(), CALL.items()):
            for kind, tasks in (("registered", TASK), ("inline", {"-": None})):
                for task, t in tasks.items():
                    extra = first_said(c, t, w, default)
                    if w is not None:
                        extra = min(extra, w)
                    key = " | ".join([setting, kind, task, workflow, call, str(failures)])
                    rows[key] = expect(extra, failures, kind=kind)
    return rows


def as_text() -> str:
    lines = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in table().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(as_text())
