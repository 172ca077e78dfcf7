"""Every task and workflow this process knows, by slug and version."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from django_jobs.errors import DuplicateSlug, UnknownTask

if TYPE_CHECKING:
    from django_jobs.definitions.task import Definition

#: Slug of steps that are plain functions, and of other steps without a task of their own.
RESERVED_SLUGS = frozenset({"inline", "sleep", "event", "http", "undo"})

_lock = threading.RLock()
_known: dict[str, dict[str | None, Definition]] = {}


def register(definition: Definition) -> None:
    """Add ``definition``; DuplicateSlug where its place is taken, with both places named."""
    slug, version = definition.slug, definition.version
    if slug in RESERVED_SLUGS:
        raise DuplicateSlug(
            f"{definition.place} uses the reserved slug {slug!r}. Give it another one."
        )
    with _lock:
        versions = _known.get(slug, {})
        for other in versions.values():
            if other.kind != definition.kind or other.version == version:
                what = (
                    f"version {version!r} of {slug!r}"
                    if version is not None
                    else f"the slug {slug!r}"
                )
                raise DuplicateSlug(
                    f"{definition.place} and {other.place} both define {what}. "
                    "Give one of them another slug or, for workflows, another version."
                )
        _known[slug] = {**versions, version: definition}


def find(slug: str, version: str | None = None) -> Definition | None:
    """The definition of exactly this (slug, version), or None."""
    return _known.get(slug, {}).get(version)


def latest(slug: str) -> Definition:
    """The version of ``slug`` registered last; UnknownTask if there is none."""
    versions = _known.get(slug)
    if not versions:
        raise UnknownTask(
            f"No task or workflow {slug!r} is registered here. Define it in jobs.py, tasks.py or "
            "workflows.py of an installed app."
        )
    return next(reversed(versions.values()))


def get(slug: str, version: str) -> Definition:
    """The definition of (slug, version); UnknownTask naming it if there is none."""
    definition = find(slug, version)
    if definition is None:
        latest(slug)
        raise UnknownTask(f"Version {version!r} of {slug!r} is not registered here.")
    return definition


def every() -> list[Definition]:
    """All definitions, in order of registration."""
    return [definition for versions in _known.values() for definition in versions.values()]


def check() -> None:
    """What can only be said once everything is defined: ConfigurationError names a graph at fault."""
    for definition in every():
        definition.check()


def codes() -> set[tuple[str, str | None]]:
    """The (slug, version) pairs that this process can run."""
    return {(slug, version) for slug, versions in _known.items() for version in versions}


def snapshot() -> dict[str, dict[str | None, Definition]]:
    """What is registered now, for :func:`restore`."""
    return dict(_known)


def restore(saved: dict[str, dict[str | None, Definition]]) -> None:
    """Forget what was registered since :func:`snapshot`."""
    with _lock:
        _known.clear()
        _known.update(saved)
