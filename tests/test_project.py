"""Around the code: pins that agree, commands and names in the prose that exist, notebooks that a reader can follow."""

import ast
import itertools
import pkgutil
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml

from lib import config, paths

PROSE = [paths.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "lib/assets/wav2vec2-tiny.md")]
PROSE += sorted((paths.ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted([*paths.NOTEBOOKS.glob("*.ipynb"), *(paths.NOTEBOOKS / "extra").glob("*.ipynb")])


def read(name):
    return (paths.ROOT / name).read_text(encoding="utf-8")


def call(*command):
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)


def find_names(pattern):
    """(file, name) of everything in the prose that the pattern's first group matches."""
    return [(path.name, name) for path in PROSE for name in re.findall(pattern, read(path))]


def test_conda_and_pip_get_the_same_pins_and_everything_asked_for_is_pinned_exactly():
    environment = yaml.safe_load(read("environment.yml"))
    conda = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    pinned = [line.strip() for line in read("requirements.txt").splitlines() if line.strip() and line[0] != "#"]
    assert sorted(conda) == sorted(pinned)
    assert "python=3.11" in environment["dependencies"]
    for wanted in tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]:
        name = re.split(r"[\[=<>~ ]", wanted)[0]
        assert re.search(rf"^{re.escape(name)}==\S+", "\n".join(pinned), re.MULTILINE | re.IGNORECASE), name
    assert {"torch==2.14.1", "torchaudio==2.11.0"} <= {*pinned}


def test_git_tracks_the_package_and_ignores_what_runs_write_and_no_pickle_is_written_or_read():
    tracked = ["lib/audio.py", "lib/assets/wav2vec2-tiny.json", "reports/demo/index.html"]
    done = call("git", "check-ignore", "--no-index", *tracked, "data/demo/x.parquet", ".venv/bin/python")
    assert done.stdout.split() == ["data/demo/x.parquet", ".venv/bin/python"]
    unsafe = r"\bimport pickle\b|\bpickle\.load|joblib\.(dump|load)|torch\.save\(|torch\.load\((?!.*weights_only=True)"
    for path in paths.ROOT.glob("lib/**/*.py"):  # the importer of published pickles runs none of their code
        assert path.stem == "authors" or not re.search(unsafe, read(path)), path


def test_make_hands_a_value_of_set_over_as_it_was_written_and_ships_nothing_where_there_is_no_model(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\nshift 2\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    reports = ["make", "-s", f"BIN={tmp_path}", f"READY={tmp_path}/python", "-o", f"{tmp_path}/python", "reports"]
    for text in ("/my data", "$x$(y)", "'it' \"is\"", '`id` #;&& c.d=["1", "2"]', "back\\slash", ""):
        value = text and f"a.b={text}"
        done = call(*reports, f"SET={value}")
        assert done.stdout.splitlines() == ["params/demo.yaml", *(["--set", value] if value else [])]
    for run in ("", "of-no-run", "../x"):
        done = call("make", "-s", f"READY={tmp_path}", "-o", str(tmp_path), "ship", f"RUN={run}")
        assert (done.returncode, "holds no model; make reports" in done.stdout) == (2, True)
    assert (paths.ASSETS / "ready" / "model.json").exists()


def test_files_modules_tests_and_refusals_that_the_prose_names_are_there():
    below = r"(?<![\w/.])((?:lib|notebooks|params|tests|docs|reports)/[\w./-]*\w)(?![\w/]*<)"
    root = r"(?<![\w/.-])((?:requirements[\w-]*|environment|pyproject|README|CONTRIBUTING|CHANGELOG)\.\w+)"
    test_files = [(where, f"tests/{name}") for where, name in find_names(r"`(test_\w+\.py)")]
    names = find_names(below) + find_names(root) + test_files
    assert len(names) > 100
    assert [pair for pair in names if not (paths.ROOT / pair[1]).exists()] == []
    modules, proofs = find_names(r"(?<![\w/.])(lib\.\w[\w.]*\w)"), find_names(r"`(test_\w+\.py)::(test_\w+)`")
    assert (len(modules) > 10, len(proofs) > 100) == (True, True)
    for _, name in modules:
        pkgutil.resolve_name(name)  # imports what is a module
    assert [name for _, (file, name) in proofs if f"def {name}(" not in read(f"tests/{file}")] == []
    rows = re.findall(r"^\| (.*) \| `(lib/\S+)` \| `", read("docs/refusals.md"), re.MULTILINE)
    assert len(rows) >= 60
    for message, where in rows:
        said = "\n".join(str(node.value) for node in ast.walk(ast.parse(read(where))) if isinstance(node, ast.Constant))
        assert [part for part in message.split("...") if part not in said] == [], (message, where)


def test_run_file_keys_models_runs_and_targets_are_there():
    sections = config.load_run(paths.PARAMS / "demo.yaml")
    known = {f"{section}.{key}" for section, keys in sections.items() for key in keys} | {"section.key"}
    keys = find_names(rf"(?<![\w/.])((?:{'|'.join(sections)})\.(?!json\b|yaml\b|py\b)[a-z]\w*)")
    assert len(keys) > 10
    assert [pair for pair in keys if pair[1] not in known] == []
    runs, targets = find_names(r"RUN=(\w+)"), find_names(r"(?:`|\n)make ([a-z]+)")
    models = find_names(r"--model (\w+)(?![\w/])")
    assert [pair for pair in models if not (paths.ASSETS / pair[1] / "model.json").exists()] == []
    assert [pair for pair in runs if not (paths.PARAMS / f"{pair[1]}.yaml").exists()] == []
    assert [pair for pair in targets if not re.search(rf"^{pair[1]}:", read("Makefile"), re.MULTILINE)] == []


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found.cells


def test_a_notebook_says_first_what_it_asks_has_prose_above_every_short_cell_of_code_and_defines_nothing(cells):
    assert (cells[0].cell_type, cells[0].source[:2]) == ("markdown", "# ")
    assert all(label in cells[0].source for label in ["**Reads**", "**Writes**", "**Question**"])
    for above, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert (above.cell_type, above.source.rstrip()[-1] in ":.?!") == ("markdown", True), above.source
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
    done = call(sys.executable, "-m", "nbstripout", "--verify", "--keep-id", *map(str, NOTEBOOKS))
    assert done.returncode == 0, done.stdout + done.stderr
