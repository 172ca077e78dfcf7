"""The admin in another language: German is the proof that every text can be translated."""

from __future__ import annotations

import gettext
import html
import re
from collections.abc import Callable

import pytest
from django.test import Client
from django.utils import translation

from tests import translations
from tests.admin import shop
from tests.admin.test_pages import addresses

#: Two languages may have a word in common; and these are names as well: of fields, tasks, columns.
NAMES = {
    "default",
    "mail",
    "slow",
    "input",
    "output",
    "order",
    "text",
    "note",
    "operator",
    "inline",
}


@pytest.fixture(scope="module")
def german() -> dict[str, str]:
    """Singular texts and what they are called in German, where that is not the same."""
    known = translations.read("de")
    texts = {str(one.id): str(one.string) for one in known if isinstance(one.id, str) and one.id}
    return {text: other for text, other in texts.items() if text != other}


def test_every_text_has_its_german_and_it_is_compiled() -> None:
    assert translations.catalogs()
    wanted = translations.messages()
    assert len(wanted) > 300
    for language in translations.catalogs():
        assert translations.problems(language, wanted) == []


def test_what_is_missing_in_a_catalog_is_found() -> None:
    wanted = translations.messages()
    wanted.add("Nobody has translated this.")
    wanted.delete("Timeline")
    assert translations.problems("de", wanted) == [
        "missing: 'Nobody has translated this.'",
        "unused: 'Timeline'",
    ]


def test_the_compiled_catalog_is_one_that_gettext_reads() -> None:
    with translations.catalogs()["de"].with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    assert compiled.gettext("Why it is not running") == "Warum er nicht läuft"
    said = [compiled.ngettext("Pause this job?", "Pause these %(shown)s jobs?", n) for n in (1, 2)]
    assert said == ["Diesen Job anhalten?", "Diese %(shown)s Jobs anhalten?"]


@pytest.mark.django_db
@pytest.mark.once
def test_each_page_speaks_german_all_over(
    login: Callable[..., Client], german: dict[str, str]
) -> None:
    run = shop.make_everything()
    client = login(superuser=True)
    pages = {name: url for name, (url, _needed) in addresses(run).items()}
    for name, url in pages.items():
        with translation.override("de"):
            content = client.get(url, headers={"accept-language": "de"}).content.decode()
        main = content[content.index('id="content"') : content.index('id="footer"')]
        texts = re.sub(r"<pre.*?</pre>|<code.*?</code>|<option.*?</option>", "", main, flags=re.S)
        found = {" ".join(html.unescape(one).split()) for one in re.findall(r">([^<>]+)<", texts)}
        found |= set(re.findall(r'(?:aria-label|data-label|placeholder|title)="([^"]+)"', texts))
        # What is a German text too says nothing: a "Kind" is a child.
        assert not {one for one in found if one in german} - NAMES - set(german.values()), name
        # The log of changes is a page of Django's own.
        assert name == "job log" or found & set(german.values()), name


@pytest.mark.django_db
@pytest.mark.once
def test_numbers_are_written_as_the_language_has_them(login: Callable[..., Client]) -> None:
    from django_jobs.admin import formatting

    assert [formatting.number(1234567), formatting.duration(1.25)] == ["1,234,567", "1.2 s"]
    with translation.override("de"):
        assert [formatting.number(1234567), formatting.duration(1.25)] == ["1.234.567", "1,2 s"]
