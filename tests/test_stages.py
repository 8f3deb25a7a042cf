"""Stages: the same work is found again, other work is not, unfinished work is never read."""

import random

import numpy as np
import pytest
import torch
from checks import refused

from lib import paths, stages


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VOICE_CACHE", raising=False)
    monkeypatch.setattr(paths, "DATA", tmp_path)


def open_one(**changes):
    asked = {"name": "02_segment", "run": "r", "parameters": {"window_s": 3.0}, "version": 1} | changes
    return stages.open_stage(**asked)


def test_same_parameters_find_the_finished_folder_and_any_change_opens_another():
    first = open_one()
    assert not first.complete
    stages.finish_stage(first, {"windows": 3})
    assert (open_one().complete, open_one().folder) == (True, first.folder)
    other = open_one(name="01_download", parameters={"root": "x"})
    for change in ({"parameters": {"window_s": 2.0}}, {"version": 2}, {"name": "03_embed"}, {"inputs": [other]}):
        assert not open_one(**change).complete


def test_a_stage_that_is_unfinished_or_was_never_opened_is_not_found():
    open_one()
    refused("not finished; run notebooks/02_segment", stages.find_stage, "02_segment", "r")
    refused("03_embed of run 'r' was never opened", stages.find_stage, "03_embed", "r")


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
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2]))
