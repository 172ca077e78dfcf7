"""The messages of the package, for translators.

    python -m tests.translations            brings every catalog up to date, and compiles it
    python -m tests.translations --check    says what is missing, unused, unsure or not compiled

A new language is a folder ``django_jobs/locale/<code>/LC_MESSAGES`` with an empty ``django.po``.
Needs Babel, and no gettext tools.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract_python
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po

PACKAGE = Path(__file__).resolve().parent.parent / "django_jobs"
LOCALE = PACKAGE / "locale"
FORMS = {
    "_": None, "gettext": None, "gettext_lazy": None, "gettext_noop": None, "ngettext": (1, 2),
    "ngettext_lazy": (1, 2), "pgettext": ((1, "c"), 2), "pgettext_lazy": ((1, "c"), 2),
}  # fmt: skip
#: Lines of the head that say nothing of the texts.
NOISE = tuple(
    f'"{name}'
    for name in ("POT-Creation", "PO-Revision", "Generated-By", "Last-Trans", "Report-Msgid")
)
#: What a translator should know of a message; comments that begin so go with it.
TAGS = ("Translators:",)


def messages() -> Catalog:
    """What the code and the templates say, as a catalog without translations."""
    found = Catalog(project="django-jobs-workflows", charset="utf-8")
    for file in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html")]):
        if "migrations" in file.parts:
            continue
        where = file.relative_to(PACKAGE.parent).as_posix()
        for line, identity, comments in _of(file):
            found.add(identity, locations=[(where, line)], auto_comments=comments)
    return found


def _of(file: Path) -> Iterator[tuple[int, str | tuple[str, str], list[str]]]:
    text = file.read_text("utf-8")
    if file.suffix == ".html":
        from django.utils.translation.template import templatize

        # What is no message comes as words without meaning; Python would stumble over their indents.
        text = "\n".join(line.strip() for line in templatize(text).splitlines())
    source = io.BytesIO(text.encode())
    for line, function, given, comments in extract_python(source, list(FORMS), TAGS, {}):
        members = given if isinstance(given, tuple) else (given,)
        places = FORMS[function or "_"] or (1,)
        texts = [
            members[place - 1]
            for place in places
            if isinstance(place, int) and place <= len(members)
        ]
        if not texts or not all(isinstance(one, str) and one for one in texts):
            continue
        yield line, (texts[0], texts[1]) if len(texts) > 1 else texts[0], comments


def catalogs() -> dict[str, Path]:
    """The file of each language."""
    return {
        file.parent.parent.name: file for file in sorted(LOCALE.glob("*/LC_MESSAGES/django.po"))
    }


def read(language: str) -> Catalog:
    with catalogs()[language].open("rb") as file:
        return read_po(file, locale=language)


def problems(language: str, wanted: Catalog) -> list[str]:
    """What keeps this language from being whole."""
    known = read(language)
    wrong = []
    for message in wanted:
        if not message.id:
            continue
        entry = known.get(message.id)
        if entry is None:
            wrong.append(f"missing: {message.id!r}")
            continue
        texts = entry.string if isinstance(entry.string, tuple) else (entry.string,)
        if not all(texts):
            wrong.append(f"not translated: {message.id!r}")
        elif entry.fuzzy:
            wrong.append(f"unsure: {message.id!r}")
        wrong += [f"{message.id!r}: {error}" for error in entry.check(known)]
    wrong += [f"unused: {entry.id!r}" for entry in known if entry.id and entry.id not in wanted]
    if _compiled(catalogs()[language].with_suffix(".mo")) != _texts(known):
        wrong.append("the compiled catalog is another one")
    return wrong


def _compiled(file: Path) -> set[tuple[str, ...]]:
    if not file.exists():
        return set()
    with file.open("rb") as opened:
        return _texts(read_mo(opened))


def _texts(catalog: Catalog) -> set[tuple[str, ...]]:
    """Message and translation, with their plurals."""
    both = [(one.id, one.string) for one in catalog if one.id]
    return {
        tuple(t for part in pair for t in ([part] if isinstance(part, str) else part))
        for pair in both
    }


def bring_up_to_date(language: str, wanted: Catalog) -> None:
    file, known = catalogs()[language], read(language)
    known.update(wanted, no_fuzzy_matching=True)
    known.obsolete.clear()
    buffer = io.BytesIO()
    write_po(buffer, known, width=100, include_lineno=False, sort_output=True)
    # Dates and versions of tools would change the file with every run.
    lines = [one for one in buffer.getvalue().decode().splitlines() if not one.startswith(NOISE)]
    file.write_text("\n".join(lines).strip() + "\n", "utf-8")
    compiled = read(language)
    # The time of this run would make another file of the same texts.
    compiled.creation_date = compiled.revision_date = datetime(2026, 1, 1, tzinfo=UTC)
    with file.with_suffix(".mo").open("wb") as opened:
        write_mo(opened, compiled)


def main(arguments: list[str]) -> int:
    wanted = messages()
    wrong = []
    for language in catalogs():
        if "--check" not in arguments:
            bring_up_to_date(language, wanted)
        wrong += [f"{language}: {one}" for one in problems(language, wanted)]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
