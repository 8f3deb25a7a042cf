import random

import numpy as np
import pandas as pd
import pytest
import torch
from checks import refused, write_file

from lib import paths, stages, tables

CLIP = dict.fromkeys(tables.CLIPS.columns, "c") | {"start_s": 0.0}
CLIP |= dict.fromkeys(["end_s", "gender", "age_years", "age_decade", "official_split"])


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VOICE_CACHE", raising=False)
    monkeypatch.setattr(paths, "DATA", tmp_path)


def open_one(**changes):
    asked = {"name": "02_segment", "run": "r", "parameters": {"window_s": 3.0}, "version": 1} | changes
    return stages.open_stage(**asked)


def test_same_parameters_find_the_finished_folder_any_change_opens_another_and_an_unfinished_one_is_not_found():
    first, other = open_one(), open_one(name="01_download", parameters={"root": "x"})
    assert not first.complete
    stages.finish_stage(first)
    assert (open_one().complete, open_one().folder) == (True, first.folder)
    for change in ({"parameters": {"window_s": 2.0}}, {"version": 2}, {"name": "03_embed"}, {"inputs": [other]}):
        assert not open_one(**change).complete
    refused("not finished; run notebooks/03_embed", stages.find_stage, "03_embed", "r")
    refused("04_train of run 'r' was never opened", stages.find_stage, "04_train", "r")


def test_record_keeps_the_cost_of_the_run_that_did_the_work():
    first = open_one()
    first.recomputed.append("windows")
    first.facts["encoder"] = "a"
    made, loaded = stages.finish_stage(first, {"windows": 3}), stages.finish_stage(open_one())
    assert (made["recomputed"], loaded["recomputed"]) == (["windows"], [])
    assert (loaded["counts"], loaded["made_in_seconds"]) == ({"windows": 3}, made["seconds"])
    assert paths.load_json(paths.DATA / "r" / "records" / "02_segment.json") == loaded
    assert open_one().facts == stages.find_stage("02_segment", "r").facts == loaded["facts"] == {"encoder": "a"}


def test_seeds_reach_python_numpy_and_torch():
    drawn = []
    for seed in (3, 3, 4):
        stages.seed_everything(seed)
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert [(first == again, first == other) for first, again, other in zip(*drawn)] == [(True, False)] * 3


@pytest.mark.parametrize(("change", "told"), [
    ({"gender": "other"}, "gender"), ({"age_decade": 15}, "age_decade"), ({"start_s": 4.0, "end_s": 3.0}, "end_s"),
    ({"age_years": 300.0}, "age_years"), ({"official_split": "dev"}, "official_split"), ({"accent": "x"}, "accent"),
    ({"clip_id": None}, "clip_id"), ({"start_s": "x"}, "start_s"), ({}, "clip_id"),
])  # fmt: skip
def test_bad_values_repeated_ids_and_missing_columns_are_refused_and_named(tmp_path, change, told):
    wrong = pd.DataFrame([CLIP | change] * (1 if change else 2))
    for table, name in ((wrong, told), (pd.DataFrame([CLIP]).drop(columns="path"), "path")):
        refused(name, tables.save_table, tmp_path / "clips.parquet", table, "clips")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["clips", "ledger", "windows", "acoustics", "index"])
def test_tables_survive_writing_and_reading_also_empty_and_missing_and_broken_ones_are_named(kind, tmp_path):
    refused(r"t\.parquet: no such table", tables.load_table, tmp_path / "t.parquet", kind)
    for table in (tables.empty_table(kind), *([pd.DataFrame([CLIP])] if kind == "clips" else [])):
        written = tables.save_table(tmp_path / "t.parquet", table, kind)
        pd.testing.assert_frame_equal(tables.load_table(tmp_path / "t.parquet", kind), written)
    broken = write_file(tmp_path / "t.parquet", b"PAR1 cut short")
    refused(r"t\.parquet: cannot be read as Parquet", tables.load_table, broken, kind)
    refused(r"a\.json: not valid JSON", paths.load_json, write_file(tmp_path / "a.json", "{"))


def test_a_writer_that_fails_leaves_the_old_file_and_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        paths.save_json(tmp_path / name / f"{name}.json", {"good": 1})
    with pytest.raises(TypeError), paths.write_whole(tmp_path / "old/old.json") as partial:
        partial.open("w").writelines(["half", 1])
    assert paths.load_json(tmp_path / "old/old.json") == {"good": 1}
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["old.json"]
    paths.replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new.json"]
