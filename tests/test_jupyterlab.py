"""Every notebook, opened in a real JupyterLab and run from top to bottom as a reader does: Run All."""

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

from lib import config, paths

pytestmark = needs_browser
FIGURES = dict(zip(["00_start", *config.NOTEBOOKS], [1, 3, 4, 4, 2, 4, 3]))  # at least
MOST_S = 120


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
def page():
    with running_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(MOST_S * 1000)
        yield page


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
