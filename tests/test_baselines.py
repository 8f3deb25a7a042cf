import numpy as np
import pandas as pd
import pytest
import torch
from torchaudio.transforms import MFCC

from lib.baselines import ACOUSTICS, BASELINES, fit_baseline, measure_acoustics, measure_mfcc

RATE_HZ = 16_000


def make_voice(f0_hz, seconds=3.0, seed=0, noise=0.01, formant_hz=600):
    """A buzz of decaying harmonics with a formant and a slow vibrato: the pitch is known; voices of one setting sound alike."""
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * f0_hz * (time_s + 0.01 / 5 * np.sin(2 * np.pi * 5 * time_s) / (2 * np.pi))
    weights = [1 / k * (1 + 2 * np.exp(-(((k * f0_hz - formant_hz) / 200) ** 2))) for k in range(1, 15)]
    wave = sum(w * np.sin(k * phase) for k, w in enumerate(weights, 1))
    return (0.1 * wave + noise * np.random.default_rng(seed).normal(size=len(wave))).astype(np.float32)


def measure(wave):
    found = measure_acoustics(np.atleast_2d(wave), RATE_HZ)
    assert found.dtype == np.float32
    return dict(zip(ACOUSTICS, found[0]))


@pytest.mark.parametrize("f0_hz", [75, 110, 155, 210, 260, 330, 420])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_pitch_of_a_voice_is_found_within_2_percent(f0_hz, noise):
    found = measure(make_voice(f0_hz, noise=noise))
    assert (found["f0_hz"], found["voiced_share"] > 0.95) == (pytest.approx(f0_hz, rel=0.02), True)


def test_noise_and_silence_have_no_pitch():
    rng = np.random.default_rng(0)
    assert measure(rng.normal(0, 0.1, RATE_HZ * 3))["voiced_share"] < 0.05
    silent = measure(np.zeros(RATE_HZ))
    assert (silent["voiced_share"], silent["duration_s"], silent["level_db"]) == (0, 0, -100)
    assert [name for name, value in silent.items() if not np.isfinite(value)] == ["f0_hz"]


def test_padding_changes_neither_duration_nor_level_nor_mfcc():
    wave = make_voice(150, 1.5)
    short, padded = measure(wave), measure(np.pad(wave, (0, RATE_HZ * 3 // 2)))
    for name in ("duration_s", "level_db", "f0_hz", "mfcc_mean_0", "mfcc_std_3", "mfcc_delta_std_1"):
        assert padded[name] == pytest.approx(short[name], rel=0.03), name
    assert short["level_db"] == pytest.approx(10 * np.log10(np.mean(wave**2)), abs=0.01)


def test_rows_do_not_depend_on_their_batch_and_mfcc_is_that_of_torchaudio_for_a_window_alone():
    waves = np.stack([level * make_voice(hz, 1) for hz, level in ((100, 1), (200, 1e-4), (300, 0.1))])
    together = measure_acoustics(waves, RATE_HZ)
    alone = np.concatenate([measure_acoustics(wave[None], RATE_HZ) for wave in waves])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)
    transform = MFCC(RATE_HZ, 20, melkwargs={"n_fft": 400, "hop_length": 320, "n_mels": 40, "center": False})
    for wave, coefficients in zip(torch.from_numpy(waves), measure_mfcc(waves, RATE_HZ)):
        np.testing.assert_allclose(coefficients.T, transform(wave), atol=2e-3)


def test_pitch_baseline_tells_genders_apart_and_the_others_cannot_and_none_reads_what_belongs_to_the_test_part():
    rng = np.random.default_rng(0)  # 400 windows of which class 1 has a higher pitch and nothing else
    rows = pd.DataFrame({"window_id": [f"w{number}" for number in range(400)], "target": rng.integers(0, 2, 400)})
    measures = rng.normal(size=(400, len(ACOUSTICS)))
    measures[:, 0] = np.where(rows["target"] == 1, 210, 120) + rng.normal(0, 15, 400)
    measures[::17, 0] = np.nan
    acoustics = pd.DataFrame(measures, columns=ACOUSTICS).assign(window_id=rows["window_id"])[::-1]
    train, test = rows[:200], rows[200:]
    answers = {name: fit_baseline(name, acoustics, train, test, 2) for name in BASELINES}
    assert all(np.allclose(probabilities.sum(axis=1), 1) for probabilities in answers.values())
    accuracy = {name: (values.argmax(axis=1) == test["target"]).mean() for name, values in answers.items()}
    assert accuracy["baseline: mean F0"] > 0.93
    assert max(accuracy["baseline: duration and level"], accuracy["baseline: MFCC"]) < 0.65
    loud = acoustics.mask(~acoustics["window_id"].isin([*train["window_id"], test["window_id"].iloc[0]]), 1e6)
    loud["window_id"] = acoustics["window_id"]
    for name, answer in answers.items():
        np.testing.assert_array_equal(fit_baseline(name, loud, train, test, 2)[0], answer[0])
