"""A real Chromium for the tests of the admin, and what can be wrong with a page as it is drawn.

Needs the ``playwright`` package and a Chromium of the system (``CHROMIUM`` names another one).
With ``TEST_REQUIRE=browser`` their absence is a failure instead of a skip; ``TEST_PICTURES``
names a folder in which pages are left as pictures.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}

#: What sticks out of the window, apart from what scrolls within a box of its own.
STICKS_OUT = """() => {
    const wide = document.documentElement.clientWidth;
    const out = (box) => box.width && (box.right > wide + 1 || box.left < -1);
    const boxed = (node) => {
        for (let up = node.parentElement; up; up = up.parentElement) {
            if (["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX)) return true;
        }
        return false;
    };
    return [...document.querySelectorAll("#main *")]
        .filter((n) => out(n.getBoundingClientRect()) && !boxed(n))
        .map((n) => n.tagName + "." + n.className);
}"""
#: Texts that do not fit into their own box although nothing lets them scroll.
CUT = """() => [...document.querySelectorAll(
        ".dj-badge, .dj-facts dd, .dj-row, fieldset, .dj-tabs a, .dj-table td, .dj-table th, #result_list td, #result_list th"
    )]
    .filter((n) => n.offsetParent && n.clientWidth > 0 && n.scrollWidth > n.clientWidth + 1)
    .map((n) => n.className + ": " + n.textContent.trim())"""
#: A list that has to be scrolled sideways within its box.
SCROLLED = """() => [...document.querySelectorAll(".results")]
    .filter((n) => n.scrollWidth > n.clientWidth + 1).map((n) => n.scrollWidth)"""
#: Controls and short texts that lie over each other.
OVERLAPS = """() => {
    // Headings of lists are there for screen readers only where rows are cards.
    const clipped = (n) => n && (getComputedStyle(n).clipPath !== "none" || clipped(n.parentElement));
    const seen = [...document.querySelectorAll(
        "#content :is(h1, h2, a, button, input:not([type=hidden]), select, textarea, label, dt, dd, summary, time, .dj-badge)"
    )].filter((n) => n.checkVisibility({ visibilityProperty: true }) && !clipped(n));
    // A heading's box is as wide as the page; its text is what counts.
    const place = (n) => {
        if (!/^(H1|H2|DT|DD)$/.test(n.tagName)) return n.getBoundingClientRect();
        const text = document.createRange();
        text.selectNodeContents(n);
        return text.getBoundingClientRect();
    };
    const boxes = seen.map((n) => [n, place(n)]).filter(([, b]) => b.width > 1 && b.height > 1);
    const found = [];
    boxes.forEach(([one, a], index) => {
        for (const [other, b] of boxes.slice(index + 1)) {
            if (one.contains(other) || other.contains(one)) continue;
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > 2 && high > 2) found.push(`${one.tagName} ${one.textContent.trim().slice(0, 30)} / `
                + `${other.tagName} ${other.textContent.trim().slice(0, 30)}`);
        }
    });
    return found.slice(0, 5);
}"""
#: Contrast of the text of each badge with its ground (WCAG 2).
FAINT = """() => {
    const parts = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return [...document.querySelectorAll(".dj-badge")].map((n) => {
        const style = getComputedStyle(n);
        const [a, b] = [light(parts(style.color)), light(parts(style.backgroundColor))].sort((x, y) => y - x);
        return [n.textContent, (a + 0.05) / (b + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}"""


# Not for the session: the loop that Playwright keeps would run under the modules that follow.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("the playwright package is not installed")
    if CHROMIUM is None:
        _absent("no Chromium found: apt-get install chromium, or set CHROMIUM")
    # Playwright's sync API keeps an event loop running in this thread, which Django would refuse.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


def _absent(why: str) -> None:
    if "browser" in os.environ.get("TEST_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"The tests in a real browser are required here, but {why}.")
    pytest.skip(f"NOT TESTED IN A REAL BROWSER: {why}.")


@pytest.fixture
def open_page(chromium: Any, live_server: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens an address as a superuser and returns the page; closes all at the end."""
    client = Client()
    client.force_login(User.objects.create_superuser("operator", "o@example.org", "x"))
    contexts: list[Any] = []
    complaints: list[str] = []

    def use(path: str, scripts: bool = True) -> Any:
        width, height = SIZES["wide"]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, java_script_enabled=scripts
        )  # fmt: skip
        contexts.append(context)
        context.add_cookies(
            [
                {
                    "name": "sessionid",
                    "value": client.cookies["sessionid"].value,
                    "url": live_server.url,
                }
            ]
        )
        page = context.new_page()
        # axe-core tries things that the policy forbids; what our pages do is seen without it.
        page.is_examined = False
        page.on(
            "console",
            lambda m: (
                complaints.append(m.text) if is_complaint(m) and not page.is_examined else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "response",
            lambda r: (
                complaints.append(r.url) if r.status >= 400 and "favicon" not in r.url else None
            ),
        )
        page.goto(live_server.url + path)
        return page

    yield use
    for context in contexts:
        context.close()
    assert complaints == [], "\n".join(complaints)


def is_complaint(message: Any) -> bool:
    # The browser asks for an icon by itself; the test's site has none.
    return message.type == "error" and "favicon.ico" not in message.location.get("url", "")


def faults(page: Any, size: str) -> dict[str, Any]:
    """What is wrong with this page as it stands."""
    wide = page.evaluate("document.documentElement.scrollWidth")
    found = {
        "sideways": wide if wide > SIZES[size][0] else 0,
        "sticks out": page.evaluate(STICKS_OUT) if size == "narrow" else [],
        "cut": page.evaluate(CUT),
        "overlaps": page.evaluate(OVERLAPS),
        "faint": page.evaluate(FAINT),
        "scrolled": page.evaluate(SCROLLED),
    }
    return {what: value for what, value in found.items() if value}


WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


def barriers(page: Any) -> list[str]:
    """What axe-core finds serious in our part of the page, by the rules of WCAG 2 up to AA."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        _absent("axe-playwright-python is not installed")
    # In other colours nothing else is different.
    only = (
        WCAG
        if page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")
        else ["color-contrast"]
    )
    kind = "tag" if only is WCAG else "rule"
    options = {
        "resultTypes": ["violations"],
        "runOnly": {"type": kind, "values": only},
        "preload": False,
    }
    page.is_examined = True
    found = Axe().run(page, context="#content", options=options).response["violations"]
    page.is_examined = False
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]} {one['nodes'][0].get('failureSummary', '')[:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def look_at(page: Any, name: str, *, full: bool = True, axe: bool = False) -> dict[str, Any]:
    """The faults of a page, wide and narrow, light and dark; leaves pictures where asked to."""
    folder = os.environ.get("TEST_PICTURES")
    wrong = {}
    for size, scheme in itertools.product(SIZES, ("light", "dark")):
        page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
        page.emulate_media(color_scheme=scheme)
        if folder:
            page.screenshot(
                path=Path(folder) / f"{name}-{size}-{scheme}.png",
                full_page=full,
                animations="disabled",
            )
        if found := faults(page, size):
            wrong[f"{name} {size} {scheme}"] = found
        # What is narrow has the same colours and names.
        if axe and size == "wide" and (hard := barriers(page)):
            wrong[f"{name} {scheme} barriers"] = hard
    page.set_viewport_size(dict(zip(("width", "height"), SIZES["wide"], strict=True)))
    page.emulate_media(color_scheme="light")
    return wrong
