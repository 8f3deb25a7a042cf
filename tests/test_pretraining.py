"""Pretraining on generated voices: targets, views, resuming, and what is exported."""

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lib import pretraining, units, views
from lib.paths import load_json, save_json
from lib.pretraining import CONFIG, Recipe

RATE_HZ = units.RATE_HZ
SMALL = Recipe(steps=4, batch=2, view_s=0.5, units=4, copies=2, turn=2, settle=3)


def make_voice(pitch_hz: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A buzz of harmonics under two formants, with a little noise."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    harmonics_hz = np.arange(1, int(4000 / pitch_hz)) * pitch_hz
    gains = sum(np.exp(-(((harmonics_hz - centre) / 200) ** 2)) for centre in (600, 1700)) + 0.01
    wave = (gains[:, None] * np.sin(2 * np.pi * harmonics_hz[:, None] * time_s)).sum(0)
    noise = np.random.default_rng(seed).normal(0, 0.01, len(wave))
    return (0.3 * wave / np.abs(wave).max() + noise).astype(np.float32)


@pytest.fixture
def corpus(tmp_path):
    """Six utterances of three speakers in Kaldi's layout."""
    folder = tmp_path / "corpus"
    (folder / "train").mkdir(parents=True)
    names = [f"{place:04d}" for place in range(6)]
    for place, name in enumerate(names):
        soundfile.write(folder / f"{name}.wav", make_voice(110 + 30 * place, seed=place), RATE_HZ)
    (folder / "train/wav.scp").write_text("".join(f"{name}\t{name}.wav\n" for name in names))
    (folder / "train/utt2spk").write_text("".join(f"{name} {place // 2:04d}\n" for place, name in enumerate(names)))
    return folder


@pytest.fixture
def small_config(tmp_path, monkeypatch):
    """A far smaller encoder of the same kind."""
    config = load_json(CONFIG)
    shape = [[8, kernel, stride] for _, kernel, stride in config["model"]["extractor_conv_layer_config"]]
    config["model"] |= {"extractor_conv_layer_config": shape, "encoder_embed_dim": 16, "encoder_num_layers": 2,
                        "encoder_num_heads": 2, "encoder_ff_interm_features": 16}  # fmt: skip
    monkeypatch.setattr(pretraining, "CONFIG", save_json(tmp_path / "wav2vec2-tiny.json", config))
    return config


def test_pitch_of_a_buzz_is_found_and_noise_is_unvoiced():
    for pitch_hz in (90.0, 210.0, 380.0):
        pitch = units.track_pitch(make_voice(pitch_hz))
        assert np.median(pitch[pitch > 0]) == pytest.approx(pitch_hz, rel=0.02)
        assert (pitch > 0).mean() > 0.9
    noise = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    assert (units.track_pitch(noise) > 0).mean() < 0.2


def test_formant_warp_moves_the_envelope_and_keeps_the_pitch():
    voice = make_voice(120.0)
    warped = units.warp_formants(torch.from_numpy(voice), 1.25).numpy()
    pitch = units.track_pitch(warped)
    assert np.median(pitch[pitch > 0]) == pytest.approx(120.0, rel=0.03)
    axis_hz = np.fft.rfftfreq(len(voice), 1 / RATE_HZ)
    band = axis_hz > 1100
    peaks_hz = [axis_hz[band][np.abs(np.fft.rfft(wave))[band].argmax()] for wave in (voice, warped)]
    assert peaks_hz[1] / peaks_hz[0] == pytest.approx(1.25, rel=0.1)


def test_targets_have_one_row_for_every_frame_of_the_encoder():
    model = pretraining.build_model(load_json(CONFIG))
    waveform = torch.zeros(1, 48_000)
    with torch.inference_mode():
        emission, _ = model(waveform)
    assert emission.shape == (1, 149, 32)
    assert units.mfcc(waveform).shape == (1, 149, 13)
    assert len(views.frame_centres(48_000)) == 149


def test_shipped_architecture_has_one_to_four_million_parameters():
    model = pretraining.build_model(load_json(CONFIG))
    assert 1e6 < sum(value.numel() for value in model.parameters()) < 4e6


def test_views_tell_the_pitch_that_is_heard(corpus, tmp_path):
    speech = views.prepare_speech(views.read_utterances(corpus), tmp_path, 2, seed=0)
    drawn = views.draw_views(speech, np.arange(4), np.random.default_rng(0), RATE_HZ // 2)
    assert drawn.noisy.shape == drawn.clean.shape == (12, RATE_HZ // 2)
    assert torch.allclose(drawn.clean.std(1), torch.ones(12), atol=0.02)
    assert torch.equal(drawn.warp[:4], drawn.warp[4:8])
    for clean, said in zip(drawn.clean.numpy(), drawn.pitch.numpy()):
        heard = units.track_pitch(clean)
        assert np.median(heard[heard > 0]) == pytest.approx(np.median(said[said > 0]), rel=0.05)


def test_views_repeat_for_a_seed(corpus, tmp_path):
    speech = views.prepare_speech(views.read_utterances(corpus), tmp_path, 2, seed=0)
    first, second = (views.draw_views(speech, np.arange(2), np.random.default_rng(7), 8000) for _ in range(2))
    assert torch.equal(first.noisy, second.noisy)


def test_rows_go_on_where_a_stopped_run_left():
    whole, late = views.iterate_rows(7, 2, seed=3), views.iterate_rows(7, 2, seed=3, first_step=4)
    rows = [next(whole)[0].tolist() for _ in range(6)]
    assert [next(late)[0].tolist() for _ in range(2)] == rows[4:]
    assert len({row for batch in rows[:3] for row in batch}) == 6


def test_half_of_two_equal_views_is_masked():
    mask = pretraining.draw_mask(12, 200, 0.4, 10, np.random.default_rng(0))
    hidden = mask.any(1)
    assert torch.equal(hidden[:4], ~hidden[4:8])
    assert 0.25 < mask[hidden].float().mean() < 0.55


def test_unknown_listing_names_the_orphan(corpus):
    with (corpus / "train/utt2spk").open("a") as file:
        file.write("9999 0009\n")
    with pytest.raises(ValueError, match="9999"):
        views.read_utterances(corpus)


def test_stopped_run_ends_in_the_same_weights(corpus, tmp_path, small_config, monkeypatch):
    pretraining.pretrain(corpus, tmp_path / "whole", SMALL, record=1)

    calls, step = [], pretraining.train_step

    def stop_after_two(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return step(*arguments)

    save = pretraining.write_history
    monkeypatch.setattr(pretraining, "train_step", stop_after_two)
    monkeypatch.setattr(pretraining, "CHECKPOINT_RECORDS", 1)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(corpus, tmp_path / "stopped", SMALL, record=1)
    monkeypatch.setattr(pretraining, "train_step", step)
    monkeypatch.setattr(pretraining, "write_history", save)
    pretraining.pretrain(corpus, tmp_path / "stopped", SMALL, record=1)
    whole, stopped = (load_file(tmp_path / name / "wav2vec2-tiny.safetensors") for name in ("whole", "stopped"))
    for key, value in whole.items():
        assert torch.equal(value, stopped[key]), key
    steps = [row["step"] for row in pretraining.read_history(tmp_path / "stopped/history.csv")]
    assert steps == [1, 2, 3, 4]


def test_exported_weights_load_into_torchaudio_and_match_their_hash(corpus, tmp_path, small_config):
    path = pretraining.pretrain(corpus, tmp_path / "run", replace(SMALL, steps=1))
    written = load_json(path.with_suffix(".json"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == written["sha256"]
    model = pretraining.build_model(written)
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})


def test_folder_of_another_recipe_is_refused(corpus, tmp_path, small_config):
    pretraining.pretrain(corpus, tmp_path / "run", replace(SMALL, steps=1))
    with pytest.raises(ValueError, match="another recipe"):
        pretraining.pretrain(corpus, tmp_path / "run", replace(SMALL, steps=1, units=3))


def test_run_can_be_made_shorter_only_before_it_slows_down(tmp_path):
    save_json(tmp_path / "recipe.json", asdict(replace(SMALL, steps=100)))
    pretraining.write_history(tmp_path / "history.csv", [{"step": 35}])
    pretraining.check_recipe(tmp_path, replace(SMALL, steps=50))
    with pytest.raises(ValueError, match="another recipe"):
        pretraining.check_recipe(tmp_path, replace(SMALL, steps=40))
    rates = [pretraining.rate_at(34, replace(SMALL, steps=steps)) for steps in (50, 100)]
    assert rates[0] == rates[1] > pretraining.rate_at(45, replace(SMALL, steps=50))


def test_held_out_speakers_leave_the_training(corpus, tmp_path):
    speech = views.prepare_speech(views.read_utterances(corpus), tmp_path, 1, seed=0)
    kept = pretraining.keep_speakers(speech, replace(SMALL, hold_out=1)).rows
    assert kept.speaker_id.nunique() == 2
    assert len(kept) == 4
