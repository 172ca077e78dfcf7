"""The tables of the reference pages, made from the code they describe.

python -m tests.docs_tables    writes them anew into docs/reference/
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
BEGIN, END = "<!-- made by tests/docs_tables.py -->", "<!-- end -->"


def settings_tables() -> Iterator[str]:
    from django_jobs import conf

    groups: dict[str, list[Any]] = {}
    for key, one in conf.FIELDS.items():
        groups.setdefault(one.metadata["group"], []).append((key, one))
    for group, members in groups.items():
        yield f"## {group}\n"
        yield "| Key | Default | Meaning |\n|---|---|---|"
        for key, one in members:
            default = _default(one.default_factory(), one.metadata["unit"])
            yield f"| `{key}` | {default} | {one.metadata['doc']} |"
        yield ""


def _default(value: Any, unit: str) -> str:
    if isinstance(value, tuple):
        value = list(value)
    elif isinstance(value, Mapping):
        value = dict(value)
    if value is None or not unit:
        return f"`{value!r}`"
    day = 86_400
    if unit == "s" and value >= day and value % day == 0:
        return f"{value / day:g} days"
    if unit == "bytes" and value % 1024 == 0:
        return f"{value // 1024} KiB" if value % (1 << 20) else f"{value >> 20} MiB"
    return f"{value:g} {unit}"


def errors_tables() -> Iterator[str]:
    from django_jobs import errors

    yield "| Error | Below | Meaning |\n|---|---|---|"
    for name, one in vars(errors).items():
        is_error = inspect.isclass(one) and issubclass(one, errors.JobsError)
        if is_error and one.__module__ == errors.__name__:
            parents = ", ".join(f"`{base.__name__}`" for base in one.__bases__)
            meaning = inspect.cleandoc(one.__doc__ or "").split("\n\n")[0].replace("\n", " ")
            yield f"| `{name}` | {parents} | {meaning.replace('``', '`')} |"


def statuses_tables() -> Iterator[str]:
    from django_jobs import lifecycle

    yield "## What may follow\n"
    yield "| Status | Next |\n|---|---|"
    for status, following in lifecycle.NEXT.items():
        ordered = [f"`{one}`" for one in lifecycle.Status if one in following]
        yield f"| `{status}` | {', '.join(ordered) or 'nothing, it is final'} |"
    yield "\n## What a command does\n"
    yield from control_tables()


def control_tables() -> Iterator[str]:
    from django_jobs import lifecycle

    yield f"| Status | {' | '.join(f'`{command}`' for command in lifecycle.COMMANDS)} |"
    yield "|---" * (len(lifecycle.COMMANDS) + 1) + "|"
    for status in lifecycle.Status:
        cells = [_effect(row[status]) for row in lifecycle.COMMANDS.values()]
        yield f"| `{status}` | {' | '.join(cells)} |"


def _effect(effect: str) -> str:
    from django_jobs import lifecycle

    plain = {
        lifecycle.CHANGE: "acts",
        lifecycle.KEEP: "no change",
        lifecycle.REFUSE: "`InvalidTransition`",
    }
    return plain.get(effect, f"→ `{effect}`")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "settings.md": settings_tables,
    "errors.md": errors_tables,
    "statuses.md": statuses_tables,
    "../how-to/control.md": control_tables,
}


def renewed(name: str) -> str:
    """The page as it should be: its own text around the tables made now."""
    before, _, rest = (REFERENCE / name).read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join(TABLES[name]()).strip()
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def main() -> None:
    for name in TABLES:
        (REFERENCE / name).write_text(renewed(name))


if __name__ == "__main__":
    main()
