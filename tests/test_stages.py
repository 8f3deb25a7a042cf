"""Stages: the same work is found again, other work is not, unfinished work is never read."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from lib import paths, stages


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VOICE_CACHE", raising=False)
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


def test_facts_noted_by_the_run_that_did_the_work_are_known_to_all_later_ones():
    first = open_one()
    first.facts["encoder"] = {"name": "a"}
    stages.finish_stage(first)
    assert open_one().facts == stages.find_stage("02_segment", "r").facts == {"encoder": {"name": "a"}}
    record = stages.finish_stage(open_one())
    assert record["facts"] == {"encoder": {"name": "a"}}
    assert paths.load_json(paths.DATA / "r" / "records" / "02_segment.json") == record


def test_the_stage_found_is_the_one_opened_last():
    for window_s in (2.0, 3.0, 2.0):
        stages.finish_stage(open_one(parameters={"window_s": window_s}))
    assert stages.find_stage("02_segment", "r").parameters == {"window_s": 2.0}


def test_peak_memory_grows_with_what_is_held():
    call = "import sys, numpy; from lib.stages import peak_memory_mb; held = numpy.ones({}); print(peak_memory_mb())"
    small, large = (
        int(subprocess.run([sys.executable, "-c", call.format(n)], capture_output=True, check=True).stdout)
        for n in (1, 30_000_000)
    )
    assert 230 < large - small < 260  # 240 MB


def test_seeds_reach_python_numpy_and_torch():
    drawn = []
    for seed in (3, 3, 4):
        stages.seed_everything(seed)
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2]))


def test_corpus_folders_are_those_that_downloading_noted(tmp_path):
    stage = open_one(name="01_download")
    paths.save_json(stage.path("roots.json"), {"demo": str(tmp_path)})
    assert stages.load_roots(stage) == {"demo": tmp_path}


def test_unchanged_files_are_not_read_again_and_one_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    first = stages.digest_files(tmp_path, ["a", "b", "gone"])
    monkeypatch.setattr(stages, "file_checksum", lambda path: pytest.fail(f"{path} was read"))
    assert stages.digest_files(tmp_path, ["a", "b", "gone"]) == first
    assert len(set(first.values())) == 3
    assert first["gone"] == "unreadable: gone"
    (tmp_path / "a").write_bytes(b"longer")
    monkeypatch.undo()
    monkeypatch.setattr(paths, "DATA", tmp_path)
    assert stages.digest_files(tmp_path, ["a"])["a"] != first["a"]


def test_files_are_read_again_once_their_digests_are_forgotten(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    state = path.stat()
    first = stages.digest_files(tmp_path, ["a"])
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert stages.digest_files(tmp_path, ["a"]) == first  # same size and time: not looked into
    stages.forget_digests()
    assert stages.digest_files(tmp_path, ["a"]) != first
