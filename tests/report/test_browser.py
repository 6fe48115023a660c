"""The page in a real browser: no error in the console, filters, keyboard, narrow screens, and without its script."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.view import report_of
from report.reports import eventful_facts
from support.browser import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(report_of(eventful_facts())))
    return path.as_uri()


@pytest.fixture
def page(chromium: Browser, address: str) -> Browser:
    chromium.show(1200, 900)
    chromium.open(address)
    return chromium


VISIBLE = """
return [...document.querySelectorAll(arguments[0])].filter((found) => found.getClientRects().length).length
"""


def visible(page: Browser, selector: str) -> int:
    found = page.run(VISIBLE, selector)
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_an_error_and_fits_its_window(
    chromium: Browser, address: str, width: int, scheme: str
) -> None:
    chromium.show(width, 900, "dark" if scheme == "dark" else "light")
    chromium.open(address)
    assert chromium.console() == []
    assert chromium.run("return document.documentElement.scrollWidth") == width
    assert visible(chromium, "svg.timeline") == 1
    background = chromium.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(251, 251, 250)") is (scheme == "light")


def test_a_filter_hides_the_marks_and_rows_of_one_state_and_shows_them_again(page: Browser) -> None:
    rows = visible(page, "tr[data-state=purged]")
    marks = visible(page, "svg.timeline a[data-state=purged]")
    kept = visible(page, "tr[data-state=kept]")
    assert rows > 50
    assert marks > 20
    page.click("#timeline [data-filter=purged]")
    assert visible(page, "[data-state=purged]") == 0
    assert visible(page, "tr[data-state=kept]") == kept
    pressed = "return [...document.querySelectorAll('[data-filter=purged]')].map((b) => b.ariaPressed)"
    assert page.run(pressed) == ["false", "false"]
    page.click("#snapshots [data-filter=purged]")
    assert visible(page, "tr[data-state=purged]") == rows
    assert visible(page, "svg.timeline a[data-state=purged]") == marks
    assert page.console() == []


FOCUS = "return document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"


def test_the_keyboard_reaches_a_picture_with_one_tab_and_moves_within_it_by_arrows(page: Browser) -> None:
    page.run("document.querySelector('#timeline .filters button:last-child').focus()")
    page.press("Tab")
    assert page.run(FOCUS).startswith("Step 11,500, kept")
    assert page.run("return document.querySelector('[role=tooltip]').textContent").startswith("Step 11,500, kept")
    page.press("Left")
    assert page.run(FOCUS).startswith("Step 11,400, kept")
    page.press("Escape")
    assert visible(page, "[role=tooltip]") == 0
    page.press("Tab")
    assert "attempt 5" in page.run(FOCUS)
    assert page.console() == []


def test_enter_on_a_mark_leads_to_its_row(page: Browser) -> None:
    page.run("document.querySelector('svg.timeline.wide .marks [tabindex=\"0\"]').focus()")
    page.press("Enter")
    assert page.run("return document.querySelector(':target').cells[0].textContent") == "11,500"


def test_without_its_script_the_page_shows_everything_but_the_filters(
    chromium: Browser, address: str, tmp_path: Path
) -> None:
    source = Path(address.removeprefix("file://")).read_text()
    bare = tmp_path / "bare.html"
    bare.write_text(source.partition("<script>")[0])
    chromium.show(1200, 900)
    chromium.open(bare.as_uri())
    assert visible(chromium, ".filters") == 0
    assert visible(chromium, "svg.timeline a.mark") > 50
    assert visible(chromium, "tr[data-state=kept]") > 10
