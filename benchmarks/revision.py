"""Our own side at an earlier commit, to be measured beside the present one in the same run."""

from __future__ import annotations

import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

from benchmarks.environments import CACHE, OURS, ROOT
from benchmarks.measures import Contender, Measure
from benchmarks.targets import Target

#: What a measure may lose against an earlier commit.
KEPT = 0.95


class UnknownRevision(Exception):
    """Git does not know this commit."""


def package_of(revision: str) -> tuple[str, Path]:
    """The short name of a commit, and a folder that holds the package as it was then."""
    name = _git("rev-parse", "--short", f"{revision}^{{commit}}").decode().strip()
    folder = CACHE / "revisions" / name
    if not (folder / "django_jobs").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", name, "django_jobs"))) as archive:
            archive.extractall(folder, filter="data")
    return name, folder


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise UnknownRevision(done.stderr.decode(errors="replace").strip())
    return done.stdout


def beside(measure: Measure, name: str, package: Path) -> Measure:
    """``measure`` with our sides only, each followed by itself at the commit ``name``."""
    pairs: list[Contender] = []
    for one in measure.contenders:
        if one.system == OURS.name:
            then = {**one.request, "package": str(package)}
            pairs += [one, replace(one, label=then_label(one.label, name), request=then)]
    return replace(measure, contenders=tuple(pairs))


def then_label(label: str, name: str) -> str:
    return f"{label} at {name}"


def targets_against(measure: Measure, name: str) -> list[Target]:
    """Nothing may be more than a twentieth worse than it was."""
    return [
        Target(measure.name, then_label(one.label, name), KEPT, ours=one.label)
        for one in measure.contenders
        if "package" not in one.request
    ]
