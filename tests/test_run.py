"""What the runner keeps of an earlier run, and what makes it execute a notebook again."""

import shutil

import pytest

from lib import paths, run, stages

NAME, RUN = "03_embed", "demo"


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """A data folder in which 03_embed was executed and its stage finished; returns what it depended on."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    stage = stages.open_stage(NAME, RUN, {"encoder": "a"}, version=1)
    stages.finish_stage(stage)
    stage.recomputed.append("shards: 3")
    stages.finish_stage(stage)
    (tmp_path / RUN / "executed").mkdir(parents=True)
    (tmp_path / RUN / "executed" / f"{NAME}.ipynb").write_text("{}")
    stage.figures.mkdir(parents=True)
    depends = run.what_decides(NAME, RUN, {"encoder": "a"})
    paths.save_json(tmp_path / RUN / "executed" / f"{NAME}.json", {"depends": depends, "stage": stage.fingerprint})
    return depends


def test_an_unchanged_notebook_is_not_executed_and_its_record_recomputed_nothing(executed, monkeypatch):
    done = []
    monkeypatch.setattr(run, "ALWAYS", ())
    monkeypatch.setattr(run.config, "parameters_for", lambda *_: {"encoder": "a"})
    monkeypatch.setattr(run, "execute_notebook", lambda name, *_: done.append(name))
    run.run_notebooks(RUN, {}, ["02_segment", NAME], anew=False)
    assert done == ["02_segment"]
    assert paths.load_json(paths.DATA / RUN / "records" / f"{NAME}.json")["recomputed"] == []
    run.run_notebooks(RUN, {}, ["02_segment", NAME])
    assert done == ["02_segment", "02_segment", NAME]


def test_other_parameters_or_another_stage_before_are_something_else(executed):
    assert run.what_decides(NAME, RUN, {"encoder": "b"}) != executed
    stages.open_stage("02_segment", RUN, {"window_s": 2.0}, version=1)
    assert run.what_decides(NAME, RUN, {"encoder": "a"}) != executed


def test_a_changed_notebook_or_module_is_something_else(executed, tmp_path, monkeypatch):
    for folder in ("lib", "notebooks"):
        shutil.copytree(
            paths.ROOT / folder, tmp_path / "tree" / folder, ignore=shutil.ignore_patterns("__pycache__", "assets")
        )
    shutil.copy(paths.ROOT / "requirements.txt", tmp_path / "tree")
    monkeypatch.setattr(paths, "ROOT", tmp_path / "tree")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "tree" / "notebooks")
    found = {run.what_decides(NAME, RUN, {})}
    for name in ("lib/audio.py", f"notebooks/{NAME}.ipynb", "requirements.txt"):
        with open(tmp_path / "tree" / name, "a") as file:
            file.write("\n")
        found.add(run.what_decides(NAME, RUN, {}))
    assert len(found) == 4


@pytest.mark.parametrize("lost", ["executed/03_embed.ipynb", "executed/03_embed.json", "records/03_embed.json"])
def test_a_notebook_of_which_something_is_lost_runs_again(executed, lost):
    path = paths.DATA / RUN / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not run.is_kept(NAME, RUN, executed)


def test_a_stage_that_was_opened_otherwise_since_or_lost_runs_again(executed):
    other = stages.open_stage(NAME, RUN, {"encoder": "b"}, version=1)  # as someone would in JupyterLab
    other.figures.mkdir(parents=True)
    assert not run.is_kept(NAME, RUN, executed)
    same = stages.open_stage(NAME, RUN, {"encoder": "a"}, version=1)
    same.figures.mkdir(parents=True)
    assert run.is_kept(NAME, RUN, executed)
    (same.folder / stages.COMPLETED).unlink()
    assert not run.is_kept(NAME, RUN, executed)
