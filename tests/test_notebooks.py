"""Notebooks as a reader wants them: prose above every code cell, nothing defined in them, committed without outputs."""

import ast
import itertools
import subprocess
import sys

import nbformat
import pytest

from lib import config, paths

NOTEBOOKS = sorted([*paths.NOTEBOOKS.glob("*.ipynb"), *(paths.NOTEBOOKS / "extra").glob("*.ipynb")])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found.cells


def test_the_first_cell_tells_what_is_read_written_and_asked_and_prose_stands_above_every_code_cell(cells):
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert all(label in cells[0].source for label in ["**Reads**", "**Writes**", "**Question**"])
    for above, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert above.cell_type == "markdown", cell.source
            assert above.source.rstrip().endswith((":", ".", "?", "!")), above.source


def test_code_comes_behind_one_cell_of_parameters_is_short_and_defines_nothing_and_no_path(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert ["parameters" in cell.metadata.get("tags", []) for cell in code] == [True] + [False] * (len(code) - 1)
    for number, cell in enumerate(code):
        assert len([line for line in cell.source.splitlines() if line.strip()]) <= 20, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While), cell.source
            if number and isinstance(node, ast.Constant) and isinstance(node.value, str):  # the first: parameters
                assert not node.value.startswith(("/", "./", "../", "~", "data/", "reports/")), cell.source


def test_the_six_notebooks_are_there_in_reading_order_and_nbstripout_finds_nothing_to_strip():
    assert [path.stem for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))] == ["00_start", *config.NOTEBOOKS]
    call = [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", *map(str, NOTEBOOKS)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
