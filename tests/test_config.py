import re

import nbformat
import pytest
from checks import refused, write_file
from nbformat.v4 import new_code_cell, new_notebook
from test_own_data import make

from lib import config, paths, run
from lib.config import load_run
from lib.stages import finish_stage, open_stage

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


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Folders of a small project with two notebooks; world(first, second) sets what they do and returns the run file."""
    for name in ("DATA", "REPORTS", "NOTEBOOKS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    for name in ("JUPYTER_PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # put back afterwards

    def write(first="", second=""):
        for name, source, work in (("first", "number: int = 1", first), ("second", "seed: int = 0", second)):
            write_notebook(paths.NOTEBOOKS / f"{name}.ipynb", f'run: str = "tiny"\n{source}', work)
        text = 'run: {title: "Two", question: "Do they run?", notebooks: ["first", "second"]}\nfirst: {number: 3}\n'
        return write_file(tmp_path / "tiny.yaml", text)

    return write


def test_a_run_hands_over_its_parameters_and_stops_at_the_first_failure(world, capsys):
    told_file = paths.DATA.parent / "told.txt"
    first = f"open({str(told_file)!r}, 'w').write(f'{{run}} {{number}}')"
    second = "total = 0\nfor step in range(3):\n    total += 1 / (1 - step)"
    assert run.main([str(world(first, second))]) == 1
    assert told_file.read_text() == "tiny 3"
    told = capsys.readouterr().err
    where, *why = told[told.index("stopped:") :].strip().splitlines()
    assert (where[:31], "second.failed.ipynb" in where) == ("stopped: notebook second, cell ", True)
    assert why == ["  in: total += 1 / (1 - step)", "  ZeroDivisionError: division by zero"]
    executed = sorted(path.name for path in (paths.DATA / "tiny" / "executed").iterdir())
    assert executed == ["first.ipynb", "second.failed.ipynb"]
    assert not (paths.REPORTS / "tiny").exists()


def test_what_is_wrong_is_refused_before_a_kernel_starts(world, capsys, monkeypatch):
    monkeypatch.setattr(run, "run_notebooks", lambda *_: pytest.fail("a notebook was run"))
    for arguments, told in [
        ([world(), "--set", "first.number=x"], "tiny.yaml: first.number = 'x'"),
        ([world(), "--from", "third"], "third: not a notebook of this run; it has first, second"),
        ([world(), "--only", "third"], "third: not a notebook of this run"),
        ([world().parent], "[Errno 21] Is a directory"),  # a folder is no run file
    ]:
        assert run.main([*map(str, arguments)]) == 2
        assert f"refused: {told}" in capsys.readouterr().err.replace(f"{paths.DATA.parent}/", "")
    assert run.select_notebooks(["a", "b", "c"], "b", None) == ["b", "c"]


def test_a_run_that_begins_behind_stages_of_other_labels_sounds_or_values_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.delenv("VOICE_CACHE", raising=False)
    table = "path,speaker,gender,age\na.wav,x,f,40\nb.wav,y,m,15\n"
    own = make(tmp_path / "mine", table) / "own_data.csv"
    change = ["--set", f"download.root={tmp_path}/mine"]
    sections = load_run(paths.PARAMS / "own_data.yaml", change[1:])
    settings = {"corpora": ["own_data"], "data": run.read_checksum(sections)}
    finish_stage(open_stage("01_download", "own_data", settings, version=1))
    finish_stage(open_stage("02_segment", "own_data", {"window_s": 3.0, "step_s": 2.0}, version=1))
    run.check_earlier("own_data", sections, "04_train")
    monkeypatch.setattr(run, "run_notebooks", lambda *_: pytest.fail("a notebook was run"))
    call = [str(paths.PARAMS / "own_data.yaml"), *change, "--only", "04_train"]
    assert run.main([*call, "--set", "segment.window_s=2.0"]) == 2
    assert "02_segment of run 'own_data' was made otherwise: window_s was 3.0, is 2.0; run" in capsys.readouterr().err
    own.write_text(table.replace("x,f", "x,m"))
    assert run.main(call) == 2
    assert "01_download of run 'own_data' was made otherwise: labels, ledger or sounds" in capsys.readouterr().err
    assert run.read_checksum(load_run(paths.PARAMS / "demo.yaml")) == ""  # never rendered here: not what 01 read
    own.unlink()  # nobody can tell, and what was read is there
    run.check_earlier("own_data", sections, "04_train")
