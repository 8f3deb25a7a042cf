import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from checks import killed_at, refused, write_file
from safetensors.torch import load_file, save_file

from lib import encoders, paths, tables
from lib.compute import Compute
from lib.tiny import distill, recipe
from lib.tiny.teacher import COMPONENTS, Speech, draw_rows, draw_view

VIEWS, SHARDS, EXACT = 16, 8, Compute("cpu", "float32", "")


def make_views(folder, monkeypatch, record=2, shards=SHARDS):
    """Write shards of one-second views with made-up answers of the teachers."""
    for name, value in {"VIEWS": VIEWS, "RECORD": record, "CHECKPOINT": 2}.items():
        monkeypatch.setattr(distill, name, value)
    draw = np.random.default_rng(0).normal
    for number in range(shards):
        shapes = {"frames": (49, sum(COMPONENTS)), "pooled": (5120,), "embedding": (192,), "voice": (256,)}
        answers = {name: torch.tensor(draw(size=(VIEWS, *shape))).half() for name, shape in shapes.items()}
        waveforms = torch.tensor(draw(0, 2000, (VIEWS, 16_000))).to(torch.int16)
        save_file({"waveforms": waveforms, **answers}, folder / f"views-{number:05d}.safetensors")


def test_a_killed_training_ends_as_one_that_ran_through_and_its_weights_load_as_the_encoder(tmp_path, monkeypatch):
    views, plan = tmp_path, distill.Recipe(steps=4, batch=VIEWS // 4, shards=SHARDS)
    make_views(views, monkeypatch)
    distill.distill(views, iter(range(8)), views / "whole", plan, EXACT)
    with killed_at(4, distill, "rate_at"):  # in the fourth step, amid a shard
        distill.distill(views, iter(range(8)), views / "killed", plan, EXACT)
    distill.distill(views, iter(range(8)), views / "killed", plan, EXACT)
    whole, killed = (load_file(views / name / "checkpoint.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    losses = [pd.read_csv(views / name / "history.csv").drop(columns="elapsed_s") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*losses)
    other = distill.Recipe(steps=5, batch=VIEWS, shards=SHARDS)
    refused("another recipe", distill.distill, views, iter([]), views / "whole", other, EXACT)
    recipe.export(views / "whole", views)
    card, weights = paths.load_json(views / "wav2vec2-tiny.json"), load_file(views / "wav2vec2-tiny.safetensors")
    model = encoders.build_wav2vec2(card["model"])
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    with torch.inference_mode():
        assert model(torch.randn(1, 48_000))[0].shape == (1, 149, 32)
    assert sum(value.numel() for value in weights.values()) <= 4_000_000


def test_views_are_made_when_they_are_asked_for_and_a_maker_that_fails_stops_the_student(tmp_path, monkeypatch):
    shards, asked = 14, []
    make_views(tmp_path, monkeypatch, shards=shards)

    def maker(views, fails):
        for number in range(fails):
            shutil.copy(tmp_path / f"views-{number:05d}.safetensors", views)
            asked.append(number)
            yield
        raise OSError("no room for the next shard")

    plan, late, early = distill.Recipe(16, batch=VIEWS // 2, shards=shards), tmp_path / "late", tmp_path / "early"
    for views in (late, early):
        views.mkdir()
    distill.distill(tmp_path, iter(range(shards)), tmp_path / "whole", plan, EXACT)
    distill.distill(late, maker(late, shards), late / "training", plan, EXACT)
    whole, lazy = (load_file(folder / "checkpoint.safetensors") for folder in (tmp_path / "whole", late / "training"))
    assert all(torch.equal(whole[name], lazy[name]) for name in whole)
    assert asked == list(range(shards))
    with pytest.raises(OSError, match="no room"):
        distill.distill(early, maker(early, 13), early / "training", plan, EXACT)
    step = load_file(early / "training" / "checkpoint.safetensors")["adam.0.step"]
    assert step == 2  # the steps that had their views


def test_speakers_left_out_are_not_heard_and_what_does_not_decode_stands_in_the_ledger(tmp_path):
    tone = np.sin(np.arange(16_000) / 20)
    for number, name in enumerate(["a.wav", "b.wav", "c.wav", "unlabelled_en/d.wav"]):
        soundfile.write(write_file(tmp_path / name), np.roll(tone, number) / (1 + number), 16_000)
    write_file(tmp_path / "broken.wav", b"RIFF" + bytes(40))
    rows = "a.wav,anna,en\nb.wav,bert,en\nc.wav,carl,it\nbroken.wav,dora,en\n"
    write_file(tmp_path / "own_data.csv", "path,speaker,language\n" + rows)
    left_out = {"languages": ["it"], "speakers": ["bert"]}
    speech = recipe.decode_speech(tmp_path, ["own_data"], left_out, tmp_path)
    assert [name.split(":")[1] for name in speech.rows["clip_id"]] == ["a.wav", "d.wav"]
    assert np.abs(speech.clip(0) - tone).max() < 1e-3
    assert tables.load_table(tmp_path / "ledger.parquet", "ledger")["item"].str.endswith("broken.wav").sum() == 1


def test_a_view_is_made_again_from_its_seed_and_every_clip_is_drawn_as_often_as_any_other():
    rng = np.random.default_rng(0)
    samples = (rng.normal(0, 3000, 64_000)).astype(np.int16)
    speech = Speech(samples, pd.DataFrame({"clip_id": list("ab"), "start": [0, 32_000], "samples": 32_000}))
    first, again, other = (draw_view(speech, 0, 1.1, 16_000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.bincount([*draw_rows(speech, 0, 0), *draw_rows(speech, 1, 0)]).tolist() == [256, 256]
