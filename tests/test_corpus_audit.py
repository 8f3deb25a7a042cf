from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torchaudio.transforms import MFCC

from lib.baselines import ACOUSTICS, BASELINES, fit_baseline, measure_acoustics, measure_mfcc
from lib.tasks import Task
from lib.trust import corpus_audit

AGE = Task("age", ["teen", "adult"], [20])
RATE_HZ = 16_000


def make_corpora(confounded, speakers=300):
    """Two corpora whose vectors differ by channel and, less, by voice; where confounded, most teens come from one of them."""
    rng, speaker = np.random.default_rng(0), np.repeat(np.arange(speakers), 6)
    teen = np.arange(speakers) % 4 < 2
    if confounded:
        teen = rng.random(speakers) < np.where(np.arange(speakers) % 2, 0.92, 0.08)
    corpus, targets = np.array(["vox", "cv"])[speaker % 2], 1 - teen[speaker].astype(int)
    vectors = rng.normal(size=(len(speaker), 6)).astype(np.float32)
    vectors[:, :2] += np.stack([6 * (corpus == "cv"), 0.8 * targets], axis=1)
    part = np.array(["train"] * 6 + ["validation"] + ["test"] * 3)[speaker % 10]
    table = pd.DataFrame({"corpus": corpus, "target": targets, "split": part, "speaker_id": speaker.astype(str)})
    return table.assign(task="age", protocol="speaker", fold=0, window_id=table.index), vectors


def audit(table, vectors):
    """Records, those across corpora by their pair, the value of each check, and the lines."""
    store = SimpleNamespace(statistics=lambda window_ids: vectors[window_ids.to_numpy()])
    records, lines = corpus_audit.audit_corpora(table, store, [AGE], "speaker", 50, 0)
    pairs = records[records["check"] == "across corpora"].set_index(["train_corpus", "test_corpus"])
    return records, pairs, records.set_index("check")["value"], lines


def test_a_label_that_follows_the_corpus_gives_a_loud_line_and_falls_within_each():
    table, vectors = make_corpora(True)
    _, pairs, values, (line,) = audit(table, vectors)
    test = table[table["split"] == "test"]
    by_corpus = (test["corpus"] == "vox").astype(int)  # teens come from "cv"
    uar = np.mean([(by_corpus[test["target"] == k] == k).mean() for k in (0, 1)])
    assert line.startswith(f"age: CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {uar:.3f}")
    assert values["corpus only"] == pytest.approx(uar)
    assert pairs.index.tolist() == [(train, test) for train in ("cv", "vox", "all") for test in ("cv", "vox")]
    assert (pairs.loc[("cv", "cv"), "value"] < uar - 0.1, pairs[["low", "high"]].isna().sum().sum()) == (True, 0)


def test_a_fair_label_gives_no_warning_and_the_probe_hears_the_corpus_of_unseen_speakers():
    table, vectors = make_corpora(False)
    records, _, values, (line,) = audit(table, vectors)
    assert line == "age: knowing the corpus alone scores no better than chance."
    assert values["corpus only"] == pytest.approx(0.5, abs=corpus_audit.MARGIN)
    assert values["corpus probe"] > 0.95
    assert records.iloc[-1][["task", "labels_of"]].tolist() == ["corpus", "age"]
    changed = table.assign(target=(table["corpus"] == "vox").astype(int))
    more = pd.concat([table, changed.assign(fold=1), changed.assign(protocol="paper")])  # which are not looked at
    pd.testing.assert_frame_equal(records, audit(more, vectors)[0])
    vectors[:, 0] = np.random.default_rng(1).normal(size=len(vectors))
    assert audit(table, vectors)[2]["corpus probe"] == pytest.approx(0.5, abs=0.1)


def test_a_pair_without_a_class_keeps_its_row_and_says_why_and_a_single_corpus_allows_no_shortcut():
    table, vectors = make_corpora(False)
    table["target"] = table["target"].where(table["corpus"] == "cv", 1)  # nobody of "vox" is a teen
    records, pairs, _, _ = audit(table, vectors)
    reasons = pairs["reason"]
    assert (reasons["vox", "cv"], reasons["cv", "vox"]) == ("no 'teen' to train on", "no 'teen' to test on")
    assert (pairs["value"].isna().sum(), pairs.loc[("cv", "cv"), "value"] > 0.5) == (4, True)
    shown = corpus_audit.tabulate_audit(records).set_index("check")
    assert shown["why not"].tolist().count("no 'teen' to test on") == 2
    assert shown.loc["corpus only", ["labels of", "learned from", "tested on"]].tolist() == ["age", "all", "all"]
    records, lines = corpus_audit.audit_corpora(table.assign(corpus="cv"), None, [AGE], "speaker", 50, 0)
    assert lines == ["age: all its labels come from cv, so no shortcut through it is possible."]
    shown = corpus_audit.tabulate_audit(records)
    assert (len(shown), [*shown]) == (0, [*corpus_audit.SHOWN.values()])


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
    assert measure(np.random.default_rng(0).normal(0, 0.1, RATE_HZ * 3))["voiced_share"] < 0.05
    silent = measure(np.zeros(RATE_HZ))
    assert (silent["voiced_share"], silent["duration_s"], silent["level_db"]) == (0, 0, -100)
    assert np.isnan(silent.pop("f0_hz"))
    assert np.isfinite([*silent.values()]).all()


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
