"""``python -m benchmarks [MEASURE …] [--vs PEER …] [--quick] [--append] [--page] [--against REV]``

Without names all measures run and docs/benchmarks.md is written. With names they are printed only;
with ``--append`` they are kept beside those of earlier calls, and the page is made of all that are
kept, so that the table can be produced in pieces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import environments, measures, report, revision, runner
from benchmarks.environments import CACHE, OURS, PEERS
from benchmarks.measures import MEASURES, Measure
from benchmarks.runner import tell
from benchmarks.server import SETTINGS, Server


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure django_jobs beside its peers in one run."
    )
    names = ", ".join(MEASURES)
    made.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of {names} (default: all)")
    made.add_argument(
        "--vs",
        nargs="+",
        metavar="PEER",
        choices=list(PEERS),
        help=f"only these of {', '.join(PEERS)}",
    )
    made.add_argument(
        "--quick", action="store_true",
        help="within 60 s: no-op against pgqueuer and procrastinate; exit 1 when a target is missed, 2 when a side did not run",
    )  # fmt: skip
    made.add_argument("--rounds", type=int, default=3, help="how often each side runs (default: 3)")
    made.add_argument(
        "--append",
        action="store_true",
        help="keep these results beside earlier ones and write docs/benchmarks.md from all of them",
    )
    made.add_argument(
        "--page",
        action="store_true",
        help="measure nothing: write docs/benchmarks.md from what is kept",
    )
    made.add_argument(
        "--against",
        metavar="REV",
        help="only our own sides, each beside itself at this commit; exit 1 when one is over 5 %% worse",
    )
    made.add_argument(
        "--list", action="store_true", help="print the measures with their definitions"
    )
    return made


def chosen(arguments: argparse.Namespace) -> list[Measure]:
    """The measures asked for, reduced to the peers asked for. SystemExit on an unknown name."""
    if arguments.quick:
        return [measures.quick()]
    unknown = [name for name in arguments.measures if name not in MEASURES]
    if unknown:
        parser().error(f"no measure {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    wanted = [MEASURES[name] for name in arguments.measures or MEASURES]
    if arguments.vs is None:
        return wanted
    keep = {OURS.name, *arguments.vs}
    return [
        replace(one, contenders=tuple(c for c in one.contenders if c.system in keep))
        for one in wanted
    ]


def install(wanted: Sequence[Measure]) -> dict[str, str]:
    """Make the peers' environments; the reasons of those that could not be made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    broken = {}
    for name in dict.fromkeys(c.system for one in wanted for c in one.contenders):
        if name == OURS.name:
            continue
        try:
            environments.install(PEERS[name])
        except environments.NotInstalled as error:
            broken[name] = f"not installed: {error}"
            tell(f"{name}: {broken[name]}")
    return broken


def measured(
    one: Measure, server: Server | None, arguments: argparse.Namespace, broken: dict[str, str]
) -> tuple[list[runner.Result], list[report.Row]]:
    """Run one measure and print its table."""
    results = runner.run(one, server, rounds=rounds_of(one, arguments), broken=broken, tell=tell)
    rows = [report.row(result) for result in results]
    sys.stdout.write(f"\n{one.title}\n{report.plain(report.table(one, rows))}\n")
    return results, rows


def rounds_of(one: Measure, arguments: argparse.Namespace) -> int:
    if arguments.quick:
        return 1
    return min(one.rounds or arguments.rounds, arguments.rounds)


def judged(verdicts: Sequence[report.Verdict]) -> bool:
    """Print how the targets stand; whether all are met."""
    for verdict in verdicts:
        sys.stdout.write(f"  {'met   ' if verdict.met else 'MISSED'} {verdict.text}\n")
    sys.stdout.flush()
    return all(verdict.met for verdict in verdicts)


def against(wanted: Sequence[Measure], arguments: argparse.Namespace) -> int:
    """Our own sides beside themselves at an earlier commit."""
    try:
        name, package = revision.package_of(arguments.against)
    except revision.UnknownRevision as error:
        parser().error(f"--against {arguments.against}: {error}")
    pairs = [revision.beside(one, name, package) for one in wanted]
    server = Server() if any(not one.sqlite for one in pairs) else None
    kept = True
    for one in pairs:
        _, rows = measured(one, server, arguments, {})
        kept &= judged(report.verdicts(one, rows, revision.targets_against(one, name)))
    return 0 if kept else 1


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    wanted = chosen(arguments)
    if arguments.list:
        for one in wanted:
            sys.stdout.write(f"{one.name}: {one.title}, {one.unit}\n{one.definition}\n\n")
        return 0
    if arguments.page:
        report.publish(report.remembered())
        return 0
    if arguments.against is not None:
        return against(wanted, arguments)
    broken = install(wanted)
    versions = {
        name: environments.version(PEERS[name])
        for name in dict.fromkeys(c.system for one in wanted for c in one.contenders)
        if name != OURS.name and name not in broken
    }
    server = Server() if any(not one.sqlite for one in wanted) else None
    whole = not (arguments.quick or arguments.measures or arguments.vs)
    if whole:
        report.forget()
    met = complete = True
    for one in wanted:
        results, rows = measured(one, server, arguments, broken)
        met &= judged(report.verdicts(one, rows))
        complete &= all(result.median is not None for result in results)
        if whole or arguments.append:
            settings = ", ".join(f"{name}={value}" for name, value in SETTINGS.items())
            database = (
                f"PostgreSQL {server.version()} ({settings})"
                if server is not None and not one.sqlite
                else "SQLite"
            )
            section = report.Section(
                one.name, rows, report.commit(), report.today(),
                " ".join(["python -m benchmarks", *(sys.argv[1:] if words is None else words)]),
                rounds_of(one, arguments), report.machine(), database, versions,
            )  # fmt: skip
            report.remember(section)
            report.publish(report.remembered())
    if arguments.quick:
        if not complete:
            tell("Not judged: a side did not end; see above.")
            return 2
        return 0 if met else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
