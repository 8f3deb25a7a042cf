"""Every notebook, opened in a real JupyterLab and run from top to bottom as a reader does: Run All."""

import json
import os
import time
from pathlib import Path

import chrome
import nbformat
import pytest
from chain_runner import places_of, small_parameters
from lab_server import running_lab
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from lib import config, paths

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chrome.find_chrome() is None, reason="Chromium is not installed"),
]
FIGURES = {
    "01_download": 3,
    "02_segment": 4,
    "03_embed": 4,
    "04_train": 2,
    "05_evaluate": 4,
    "06_predict": 3,
}  # at least
MOST_S = 120


@pytest.fixture(scope="module")
def lab(first, folders, tmp_path_factory):
    """Address of JupyterLab on a folder with the six notebooks, their parameters those of the small demo run."""
    folder = tmp_path_factory.mktemp("lab")
    for name, parameters in small_parameters().items():
        notebook = load_notebook_node(str(paths.NOTEBOOKS / f"{name}.ipynb"))
        nbformat.write(parameterize_notebook(notebook, parameters), folder / f"{name}.ipynb")
    with running_lab(folder, places_of(folders)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    found = chrome.Chrome()
    found.size(1280, 1000)
    yield found
    found.close()


@pytest.mark.parametrize("name", config.NOTEBOOKS)
def test_run_all_ends_without_an_error_and_shows_its_figures(lab, browser, name, tmp_path):
    browser.call("Page.navigate", url=f"{lab}/lab/tree/{name}.ipynb?token=t&reset")
    current = "window.jupyterapp?.shell?.currentWidget"
    browser.wait_for(f"{current}?.context?.sessionContext?.session?.kernel != null", 120)
    browser.wait_for(f"{current}.context.path === '{name}.ipynb'", 30)
    began = time.monotonic()
    browser.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1, () => 0)")
    took_s = time.monotonic() - began
    cells = json.loads(browser.run(f"JSON.stringify({current}.content.model.toJSON().cells)"))
    browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"lab-{name}.png", full=False)
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert [output.get("evalue") for output in outputs if output["output_type"] == "error"] == []
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code" and cell["source"])
    shown = "".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert shown.count("data-figure=") >= FIGURES[name]
    assert took_s < MOST_S
    print(f"{name}: {took_s:.0f} s in JupyterLab")
    browser.run("window.jupyterapp.commands.execute('docmanager:save').then(() => 1, () => 0)")
    browser.run(f"{current}.context.sessionContext.shutdown().then(() => 1, () => 0)")
