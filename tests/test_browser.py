"""The report site from disk, and JupyterLab, as a reader meets them in Chromium: at a desk, on a phone, without script, in print."""

import json
import os
import time
from pathlib import Path

import nbformat
import pytest
from browsers import needs_browser, run_all, running_browser, running_lab
from chain_runner import places_of, small_parameters
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from report_fixture import EVIL

from lib import config, paths

FIGURES, MOST_S = dict(zip(["00_start", *config.NOTEBOOKS], [1, 3, 4, 4, 2, 4, 3])), 120  # so many at least
pytestmark = needs_browser
PAGES = ["index.html", "compare.html", "fixture/index.html", "fixture/02_segment.html", "fixture/05_evaluate.html", "second/index.html"]  # fmt: skip
BROKEN = """async () => {
  const pictures = [...document.images];
  pictures.forEach((picture) => { picture.loading = 'eager'; });
  await Promise.allSettled(pictures.map((picture) => picture.decode()));
  return pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src);
}"""


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture
def show(browser, site):
    """Open a page of the site at a width in CSS pixels; `problems` collects errors, warnings and requests to anywhere."""
    pages = []

    def open_page(name, width=1280, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        pages.append(page)
        page.problems = []
        page.on("console", lambda line: line.type in ("error", "warning") and page.problems.append(line.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda sent: sent.url.startswith(("file:", "data:")) or page.problems.append(sent.url))
        page.goto((site / name).as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_loads_without_error_network_sideways_scrolling_or_foreign_script(show, name, width):
    page = show(name, width)
    assert page.evaluate(BROKEN) == page.problems == []
    assert page.evaluate("[document.documentElement.scrollWidth, window.broken]") == [width, None]
    widths = "all => all.map((box) => [box.scrollWidth, box.clientWidth])"
    boxes = page.eval_on_selector_all(".result:has(table)", widths)
    assert all(outside <= width for _, outside in boxes)
    assert name != "fixture/05_evaluate.html" or any(inside > outside for inside, outside in boxes)  # it scrolls there
    if name in ("fixture/05_evaluate.html", "second/index.html"):
        assert EVIL in page.inner_text("body")  # shown as the text that it is


def test_a_figure_is_never_shrunk_and_two_share_a_row_only_where_both_fit(show):
    for width, rows in ((1280, 2), (360, 3)):
        page = show("fixture/05_evaluate.html", width)
        page.evaluate(BROKEN)
        widths = "all => all.map((one) => [parseFloat(getComputedStyle(one).width), one.naturalWidth / 1.5])"
        sizes = page.eval_on_selector_all(".figure img", widths)
        assert all(abs(shown - drawn) < 1 for shown, drawn in sizes)  # so text of 8.25 points and more is 11 px high
        tops = page.eval_on_selector_all(".figure", "all => all.map((one) => one.getBoundingClientRect().top)")
        assert len(set(tops)) == rows


def test_contents_stand_at_the_left_and_code_opens_by_one_click_and_all_at_once(show):
    page = show("fixture/04_train.html")
    toc, story = (page.locator(part).bounding_box() for part in (".toc", ".story"))
    assert toc["x"] + toc["width"] < story["x"]
    opened = "document.querySelectorAll('details.code[open]').length"
    assert page.evaluate(opened) == 0
    page.click("details.code summary >> nth=0")
    assert page.evaluate(opened) == 1
    page.click("button.fold")
    assert page.evaluate(opened) == page.locator("details.code").count()


def test_a_table_is_sorted_by_keyboard_as_numbers_unknown_last(show):
    page = show("fixture/01_download.html")
    head, cells = page.locator("table.table th >> nth=2"), page.locator("table.table tbody tr td:nth-child(3)")
    head.locator("button").focus()
    falling = ["100 %", "80 % (71 to 83)", "65 %", "50 %", "9 % (1 to 2)"]
    for key, order, expected in (("Enter", "descending", falling), (" ", "ascending", falling[::-1])):
        page.keyboard.press(key)
        assert [text.replace("\xa0", " ") for text in cells.all_inner_texts()] == [*expected, "–"]
        assert head.get_attribute("aria-sort") == order


def test_a_page_reads_well_without_script_and_a_sound_plays(show):
    page = show("fixture/05_evaluate.html", java_script_enabled=False)
    told = ("05 Evaluate", "A finer point", "voice-5", "Most are right.")
    assert all(page.get_by_text(words).first.is_visible() for words in told)
    assert not page.locator("button.fold").is_visible()
    page = show("fixture/02_segment.html")
    page.wait_for_function("document.querySelector('audio').readyState >= 1")
    assert 2.5 < page.evaluate("document.querySelector('audio').duration") < 3.5


def test_the_theme_follows_the_system_and_a_printed_page_is_light_and_clips_nothing(show):
    background = "getComputedStyle(document.body).backgroundColor"
    page = show("fixture/05_evaluate.html", color_scheme="dark")
    assert page.evaluate(background) == "rgb(20, 23, 27)"
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(251, 250, 247)"
    overflow = "all => all.map((one) => getComputedStyle(one).overflowX)"
    assert set(page.eval_on_selector_all(".result:has(table)", overflow)) == {"visible"}


@pytest.fixture(scope="module")
def lab(first, folders, tmp_path_factory):
    """Address of JupyterLab on a folder with the notebooks, the six with the parameters of the small demo run."""
    folder = tmp_path_factory.mktemp("lab")
    for name, parameters in [("00_start", {}), *small_parameters().items()]:
        notebook = load_notebook_node(str(paths.NOTEBOOKS / f"{name}.ipynb"))
        nbformat.write(parameterize_notebook(notebook, parameters), folder / f"{name}.ipynb")
    with running_lab(folder, places_of(folders)) as address:
        yield address


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(MOST_S * 1000)
    return page


@pytest.mark.parametrize("name", FIGURES)
def test_run_all_ends_without_an_error_and_shows_its_figures(lab, page, name, tmp_path):
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token=t&reset")
    current = "window.jupyterapp?.shell?.currentWidget"
    page.wait_for_function(f"{current}?.context?.path === '{name}.ipynb'")
    began = time.monotonic()
    run_all(page)
    took_s = time.monotonic() - began
    cells = json.loads(page.evaluate(f"JSON.stringify({current}.content.model.toJSON().cells)"))
    page.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"lab-{name}.png")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [output.get("evalue") for output in outputs if output["output_type"] == "error"] == []
    assert all(cell["execution_count"] for cell in code if cell["source"])
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= FIGURES[name]
    assert took_s < MOST_S
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => 1, () => 0)")
    page.evaluate(f"{current}.context.sessionContext.shutdown().then(() => 1, () => 0)")
