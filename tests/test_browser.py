"""The report site as a reader meets it: opened from disk in Chromium, with keyboard, phone and dark theme.

`AXE=/path/to/axe.min.js` adds axe-core's accessibility check (npm package axe-core); without it that test is skipped.
"""

import os
import time
from pathlib import Path

import pytest
from chrome import Chrome, find_chrome
from report_fixture import shared_site

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chrome() is None, reason="no Chromium here: install it to test the pages in a browser"),
]
PAGES = [
    "index.html",
    "compare.html",
    "fixture/index.html",
    "fixture/02_segment.html",
    "fixture/05_evaluate.html",
    "second/index.html",
]
ALL_LOADED = """(async () => {
  document.querySelectorAll('img').forEach((img) => { img.loading = 'eager'; });
  const bad = [];
  for (const img of document.images) { await img.decode().catch(() => bad.push(img.src)); if (!img.naturalWidth) bad.push(img.src); }
  return bad;
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return shared_site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def browser():
    chrome = Chrome()
    yield chrome
    chrome.close()


@pytest.fixture
def show(browser, site):
    """Open a page of the site at a width in CSS pixels; the reader has chosen no theme yet."""

    def open_page(page, width=1280, dark=False):
        browser.size(width, 800, dark)
        browser.open((site / page).as_uri())
        browser.run("localStorage.removeItem('theme')")
        browser.open((site / page).as_uri())
        return browser

    return open_page


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_loads_without_error_network_or_horizontal_scroll(show, page, width):
    chrome = show(page, width)
    assert chrome.run(ALL_LOADED) == []
    assert chrome.problems == []
    assert all(url.startswith(("file:", "data:")) for url in chrome.requests)
    assert chrome.run("document.documentElement.scrollWidth") == width


def test_links_of_every_page_open(show, site):
    for page in PAGES:
        chrome = show(page)
        links = chrome.run("[...document.links].map((link) => link.href)")
        assert links, page
        for link in set(links):
            assert link.startswith("file:"), link
            assert Path(link.removeprefix("file://").partition("#")[0]).is_file(), link


def test_code_opens_by_one_click_and_all_at_once(show):
    chrome = show("fixture/04_train.html")
    opened = "[...document.querySelectorAll('details.code')].filter((cell) => cell.open).length"
    assert chrome.run(opened) == 0
    chrome.run("document.querySelector('details.code summary').click()")
    assert chrome.run(opened) == 1
    assert chrome.run("document.querySelector('details.code pre').checkVisibility()")
    chrome.run("document.querySelector('button.fold').click()")
    assert chrome.run(opened) == chrome.run("document.querySelectorAll('details.code').length")
    chrome.run("document.querySelector('button.fold').click()")
    assert chrome.run(opened) == 0


def test_a_table_is_sorted_by_keyboard_on_exact_numbers_unknown_last(show):
    chrome = show("fixture/01_download.html")
    column = "[...document.querySelector('table.table').tBodies[0].rows].map((row) => row.cells[2].textContent)"
    chrome.run("document.querySelectorAll('table.table th')[2].querySelector('button').focus()")
    chrome.press("Enter")
    assert chrome.run(column) == ["99.0 %", "50.0 %", "25.0 %", "12.5 %", "6.2 %", "–"]
    assert chrome.run("document.querySelectorAll('table.table th')[2].getAttribute('aria-sort')") == "descending"
    chrome.press(" ")
    assert chrome.run(column) == ["6.2 %", "12.5 %", "25.0 %", "50.0 %", "99.0 %", "–"]
    assert chrome.run("document.querySelectorAll('table.table th')[2].getAttribute('aria-sort')") == "ascending"


def test_a_wide_table_scrolls_inside_its_box_on_a_phone(show):
    chrome = show("fixture/index.html", 360)
    boxes = chrome.run("[...document.querySelectorAll('.table-box')].map((box) => [box.scrollWidth, box.clientWidth])")
    assert any(inside > outside for inside, outside in boxes)
    assert all(outside <= 360 for _, outside in boxes)


def test_the_first_tab_reaches_the_skip_link(show):
    chrome = show("fixture/05_evaluate.html")
    chrome.press("Tab")
    assert chrome.run("document.activeElement.className") == "skip"
    chrome.press("Enter")
    chrome.wait_for("location.hash === '#main'")


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_the_theme_follows_the_system_until_a_reader_chooses_and_is_remembered(show, site):
    chrome = show("fixture/index.html")
    light = chrome.run(BACKGROUND)
    chrome = show("fixture/index.html", dark=True)
    dark = chrome.run(BACKGROUND)
    assert light != dark
    chrome.run("document.querySelector('button.theme').click()")
    assert chrome.run(BACKGROUND) == light
    assert chrome.run("document.querySelector('button.theme').getAttribute('aria-label')") == "Change to the dark theme"
    chrome.open((site / "fixture/05_evaluate.html").as_uri())
    assert chrome.run(BACKGROUND) == light


def test_a_printed_page_is_light_keeps_its_table_heads_and_clips_nothing(show):
    chrome = show("fixture/index.html", dark=True)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    chrome.call("Emulation.setEmulatedMedia", media="print", features=features)
    try:
        assert chrome.run(BACKGROUND) == "rgb(255, 255, 255)"
        assert chrome.run("getComputedStyle(document.body).color") == "rgb(32, 37, 43)"
        heads = "[...document.querySelectorAll('th button.sort')].map((part) => getComputedStyle(part).display)"
        assert set(chrome.run(heads)) == {"contents"}
        boxes = "[...document.querySelectorAll('.table-box')].map((box) => getComputedStyle(box).overflowX)"
        assert set(chrome.run(boxes)) == {"visible"}
        assert not chrome.run("document.querySelector('button.theme').checkVisibility()")
    finally:
        chrome.call("Emulation.setEmulatedMedia", media="", features=features)


def test_sounds_can_be_played(show):
    chrome = show("fixture/02_segment.html")
    chrome.wait_for("document.querySelector('audio').readyState >= 1")
    assert 2.5 < chrome.run("document.querySelector('audio').duration") < 3.5
    assert chrome.run("document.querySelector('audio').error") is None


def test_choosing_runs_hides_the_others_and_what_they_agree_on(show):
    chrome = show("compare.html")
    rows = "[...document.querySelectorAll('table.differ tbody tr')].filter((row) => !row.hidden).length"
    assert chrome.run(rows) > 0
    chrome.run("document.querySelector('.choose input[value=second]').click()")
    assert chrome.run(rows) == 0
    assert chrome.run("[...document.querySelectorAll('[data-run=second]')].every((cell) => cell.hidden)")
    assert chrome.run("[...document.querySelectorAll('[data-pair]')].every((row) => row.hidden)")
    chrome.run("document.querySelector('.choose input[value=second]').click()")
    assert chrome.run(rows) > 0


def read_aloud(browser):
    """What a screen reader finds on the page."""
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    return {node["name"].get("value") for node in nodes if "name" in node and not node.get("ignored")}


def test_pages_read_well_without_script(browser, site):
    browser.size(1280, 800)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=(site / "fixture/05_evaluate.html").as_uri())
        deadline = time.monotonic() + 20
        while "05 Evaluate" not in (names := read_aloud(browser)) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert {"05 Evaluate", "What is seen", "voice-5", "Most are right.", "Code, 3 lines"} <= names


@pytest.mark.skipif("AXE" not in os.environ, reason="set AXE=/path/to/axe.min.js to check accessibility with axe-core")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_no_violation(show, page, dark):
    chrome = show(page, dark=dark)
    chrome.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    chrome.run(Path(os.environ["AXE"]).read_text() + "; 1")
    found = chrome.run(
        "axe.run({preload: false}).then((done) => done.violations.map((v) => [v.id, v.impact, v.nodes.map((n) => n.html.slice(0, 120))]))"
    )
    assert found == []
