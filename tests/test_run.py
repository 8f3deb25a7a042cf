import pytest
from checks import write_file
from test_config import write_notebook
from test_own_data import make

from lib import paths, run
from lib.config import load_run
from lib.stages import finish_stage, open_stage


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
