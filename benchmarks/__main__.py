"""``python -m benchmarks [MEASURE …] [--vs PEER …] [--quick]``

Without names all measures run and docs/benchmarks.md is written; with names they are printed only,
unless ``--write`` is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import environments, measures, report, runner
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
    made.add_argument("--write", action="store_true", help="write docs/benchmarks.md in any case")
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


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    wanted = chosen(arguments)
    if arguments.list:
        for one in wanted:
            sys.stdout.write(f"{one.name}: {one.title}, {one.unit}\n{one.definition}\n\n")
        return 0
    broken = install(wanted)
    versions = {
        name: environments.version(PEERS[name])
        for name in dict.fromkeys(c.system for one in wanted for c in one.contenders)
        if name != OURS.name and name not in broken
    }
    server = Server() if any(not one.sqlite for one in wanted) else None
    rounds = 1 if arguments.quick else arguments.rounds
    write = not arguments.quick and (arguments.write or not (arguments.measures or arguments.vs))
    missed: list[report.Verdict] = []
    for one in wanted:
        results = runner.run(one, server, rounds=rounds, broken=broken, tell=tell)
        rows = [report.row(result) for result in results]
        sys.stdout.write(f"\n{one.title}\n{report.plain(report.table(one, rows))}\n")
        for verdict in report.verdicts(one, rows):
            sys.stdout.write(f"  {'met   ' if verdict.met else 'MISSED'} {verdict.text}\n")
            if not verdict.met:
                missed.append(verdict)
        sys.stdout.flush()
        if write:
            settings = ", ".join(f"{name}={value}" for name, value in SETTINGS.items())
            database = (
                f"PostgreSQL {server.version()} ({settings})"
                if server is not None and not one.sqlite
                else "SQLite"
            )
            section = report.Section(
                one.name, rows, report.commit(), report.today(),
                " ".join(["python -m benchmarks", *(sys.argv[1:] if words is None else words)]),
                rounds, report.machine(), database, versions,
            )  # fmt: skip
            report.publish(report.remember(section))
    if arguments.quick:
        if any(result.median is None for result in results):
            tell("Not judged: a side did not end; see above.")
            return 2
        return 1 if missed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
