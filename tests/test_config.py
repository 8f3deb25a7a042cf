import re

import nbformat
import pytest
from checks import refused, write_file
from nbformat.v4 import new_code_cell, new_notebook

from lib import config, paths

CELLS = {
    "02_segment": 'run: str = "tiny"\nseed: int = 0\nsynthetic: bool = False\nwindow_s: float = 3.0',
    "04_train": 'run: str = "tiny"\nseed: int = 0\ntasks: list[str] = ["gender"]\nseeds: list[int] = [0]\nbatch: int = 50\n'
    "learning_rate: float = 0.001  # of Adam",
    "encoders": 'run: str = "tiny"\nroot: str = ""\nworkers: int = 0',
}
RUN_FILE = """
run:
  title: "A title"
  question: "A question?"
  notebooks: ["02_segment", "04_train", "encoders"]
  seed: 1
  synthetic: true
segment:
  window_s: 2
train:
  tasks: ["gender", "age"]
  learning_rate: 0.01
"""


def write_notebook(path, source, *work, tags=("parameters",)):
    """A notebook of one cell with these tags, and others with work."""
    cells = [new_code_cell(source, metadata={"tags": list(tags)}), *map(new_code_cell, work)]
    language = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    return write_file(path, nbformat.writes(new_notebook(cells=cells, metadata=language)))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A run file over three small notebooks: tiny(old, new) replaces text in it and returns its path."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    for name, source in CELLS.items():
        write_notebook(tmp_path / "notebooks" / ("" if name[0].isdigit() else "extra") / f"{name}.ipynb", source)

    def edit(old="", new=""):
        assert old in RUN_FILE
        return write_file(tmp_path / "tiny.yaml", RUN_FILE.replace(old, new, 1))

    return edit


def test_what_a_run_file_says_stands_beside_what_the_notebooks_declare_and_a_missing_one_names_those_there_are(tiny):
    sections = config.load_run(tiny())
    train = {"tasks": ["gender", "age"], "seeds": [0], "batch": 50, "learning_rate": 0.01}
    expected = {"segment": {"window_s": 2.0}, "train": train, "encoders": {"root": ""}, "compute": {"workers": 0}}
    assert {name: sections[name] for name in expected} == expected
    assert (sections["run"]["seed"], sections["run"]["synthetic"]) == (1, True)
    segment = {"run": "tiny", "seed": 1, "synthetic": True, "window_s": 2.0}  # its own keys and the shared ones
    assert config.parameters_for("02_segment", "tiny", sections) == segment
    refused(r"tny\.yaml: no such run file; there are tiny", config.load_run, paths.PARAMS / "tny.yaml")


@pytest.mark.parametrize(("old", "new", "told"), [
    ("  learning_rate", "  rate", r"unknown key train\.rate"), (RUN_FILE, "run: [", r"tiny\.yaml: while parsing"),
    ("train:", "train:\n  batch: 50.5", r"train\.batch = 50\.5"),
    ("\nsegment:", "\nsegments:", "unknown section 'segments'"),
    ("rate: 0.01", "rate: 1e-3", "train.learning_rate = '1e-3'.*write it as 0.001"),
    ("synthetic: true", 'synthetic: "yes"', "run.synthetic = 'yes'"),
    ('  title: "A title"\n', "", r"missing key run\.title"),
    ("  seed: 1", "  seed: 1\n  seed: 2", r"key written twice: \['seed'\]"),
    ('tasks: ["gender", "age"]', "tasks: gender", "train.tasks = 'gender'"),
    ("segment:\n  window_s: 2", "segment: none", "section 'segment' must hold keys"),
    (RUN_FILE, "- a\n- b", "a run file is a list of sections, found list"),
])  # fmt: skip
def test_bad_run_file_is_refused_with_the_file_and_the_key(tiny, old, new, told):
    refused(rf"(?s)tiny\.yaml: .*{told}" if "tiny" not in told else told, config.load_run, tiny(old, new))


def test_changes_from_the_command_line_are_typed_and_checked(tiny):
    path = tiny()
    several = 'train.batch=3 encoders.root=/x y  train.tasks=["age"]'  # in one text; values may hold blanks
    changed = config.load_run(path, [several, "compute.workers=2"])
    assert (changed["train"]["batch"], changed["train"]["tasks"]) == (3, ["age"])
    assert config.parameters_for("encoders", "tiny", changed) == {"run": "tiny", "root": "/x y", "workers": 2}
    assert config.load_run(path, ["encoders.root="])["encoders"]["root"] == ""
    for change in ("train.speed=3", "epochs=3", "train.epochs", ".a=1"):
        refused(r"unknown key train\.speed|write section\.key=value", config.load_run, path, [change])
    for value in ("[open", "!!python/object:os.system x"):
        refused(r"--set first\.\w+=", config.load_run, path, [f"first.x={value}"])


@pytest.mark.parametrize("line", ["seed = 0", "seed: complex = 0", "seed: int = 1 + x", "import os"])
def test_parameters_cell_holds_typed_literals_only(tmp_path, line):
    path = write_notebook(tmp_path / "n.ipynb", line)
    refused(rf"n\.ipynb: '{re.escape(line)}' must be name: type = literal", config.declared_parameters, path)
    write_notebook(path, "a: int = 1", tags=[])
    refused(r"n\.ipynb: 0 cells tagged 'parameters'", config.declared_parameters, path)


@pytest.mark.parametrize("path", sorted(paths.PARAMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_file_of_the_repository_is_accepted(path):
    sections = config.load_run(path)
    for name in sections["run"]["notebooks"]:
        assert config.parameters_for(name, path.stem, sections)["run"] == path.stem
