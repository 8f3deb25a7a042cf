"""Stages: the same work is found again, other work is not, unfinished work is never read."""

import pytest

from lib import paths, stages


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    return tmp_path


def open_one(**changes):
    asked = {"name": "02_segment", "run": "r", "parameters": {"window_s": 3.0}, "version": 1} | changes
    return stages.open_stage(**asked)


def test_same_parameters_find_the_finished_folder():
    first = open_one()
    assert not first.complete
    stages.finish_stage(first, {"windows": 3})
    again = open_one()
    assert again.complete
    assert again.folder == first.folder


@pytest.mark.parametrize("change", [{"parameters": {"window_s": 2.0}}, {"version": 2}, {"name": "03_embed"}])
def test_any_change_opens_another_folder(change):
    stages.finish_stage(open_one())
    assert not open_one(**change).complete


def test_a_changed_input_opens_another_folder():
    one = open_one(inputs=[open_one(name="01_download")])
    other = open_one(inputs=[open_one(name="01_download", parameters={"root": "x"})])
    assert one.fingerprint != other.fingerprint


def test_unfinished_stage_is_not_found():
    open_one()
    with pytest.raises(ValueError, match="not finished; run notebooks/02_segment"):
        stages.find_stage("02_segment", "r")


def test_never_opened_stage_names_its_notebook():
    with pytest.raises(ValueError, match="03_embed of run 'r' was never opened"):
        stages.find_stage("03_embed", "r")


def test_record_keeps_the_cost_of_the_run_that_did_the_work():
    first = open_one()
    first.recomputed.append("windows")
    made = stages.finish_stage(first, {"windows": 3})
    loaded = stages.finish_stage(open_one())
    assert made["recomputed"] == ["windows"]
    assert loaded["recomputed"] == []
    assert loaded["counts"] == {"windows": 3}
    assert loaded["made_in_seconds"] == made["seconds"]


def test_opening_a_stage_forgets_figures_of_an_earlier_run(data_folder):
    stage = open_one()
    stage.figures.mkdir(parents=True)
    (stage.figures / "old.png").write_bytes(b"x")
    assert not (open_one().figures / "old.png").exists()


def test_notes_of_a_run_add_up(data_folder):
    stages.note_run("r", encoder={"name": "a"})
    stages.note_run("r", data_checksum="b")
    assert paths.load_json(data_folder / "r" / "about.json") == {"encoder": {"name": "a"}, "data_checksum": "b"}


def test_unchanged_files_are_not_read_again_and_one_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    first = stages.digest_files(tmp_path, ["a", "b", "gone"])
    monkeypatch.setattr(stages, "file_checksum", lambda path: pytest.fail(f"{path} was read"))
    assert stages.digest_files(tmp_path, ["a", "b", "gone"]) == first
    assert len(set(first.values())) == 3
    assert first["gone"] == "unreadable: gone"
