"""Stated probabilities against known truth: temperature, cap, thresholds, silence, margins of years, disagreement."""

import numpy as np
import pandas as pd
import pytest
from checks import refused
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss

from lib.trust import calibration
from lib.trust.calibration import Calibration, Years
from lib.trust.confidence import score_calibration


def make_probabilities(rows=6000, classes=3, temperature=1.0, seed=0):
    """Targets drawn from true probabilities, which are then sharpened by 1 / temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, classes))
    targets = (rng.random(rows)[:, None] > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return targets, softmax(logits / temperature, axis=1)


def scores_of(targets, probabilities, draws=0):
    table = pd.DataFrame(probabilities, columns=["p_a", "p_b", "p_c"]).assign(target=targets, seed=0)
    table["speaker_id"] = table.index % 40
    return score_calibration(table, list("abc"), draws=draws, seed=0).set_index("metric")


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered_and_heals_the_error(temperature):
    targets, probabilities = make_probabilities(temperature=temperature)
    fitted = calibration.fit_temperature(probabilities, targets, np.arange(len(targets)))
    assert fitted.temperature == pytest.approx(1 / temperature, rel=0.06)
    unseen_targets, unseen = make_probabilities(temperature=temperature, seed=1)
    before, after = (scores_of(unseen_targets, p).loc["ece", "value"] for p in (unseen, fitted.apply(unseen)))
    assert after < 0.025
    assert temperature == 1 or before > 0.08
    np.testing.assert_array_equal(fitted.apply(unseen).argmax(axis=1), unseen.argmax(axis=1))


def test_no_probability_goes_beyond_what_so_few_speakers_support_and_speakers_weigh_alike():
    probabilities, targets = np.tile([[0.0, 1.0], [1.0, 0.0]], (50, 1)), np.tile([1, 0], 50)
    fitted = calibration.fit_temperature(probabilities, targets, np.arange(100) // 10)
    assert fitted.cap == pytest.approx(11 / 12)
    assert fitted.apply(probabilities).max() == pytest.approx(11 / 12)
    np.testing.assert_allclose(fitted.apply(probabilities).sum(axis=1), 1)
    assert Calibration().apply(probabilities) is probabilities
    targets, probabilities = make_probabilities(300, temperature=0.5)
    many = np.concatenate([np.arange(300), np.repeat(299, 5000)])  # one voice with most of the windows
    fits = [calibration.fit_temperature(probabilities[rows], targets[rows], rows) for rows in (np.arange(300), many)]
    assert fits[0].temperature == pytest.approx(fits[1].temperature, rel=0.01)
    refused("must not be empty", calibration.fit_temperature, probabilities[:0], targets[:0], [])


def test_scores_equal_their_definitions():
    targets, probabilities = make_probabilities(500)
    scores = scores_of(targets, probabilities, draws=100)
    brier = np.square(probabilities - np.eye(3)[targets]).sum(axis=1).mean()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    place = pd.cut(confidence, np.linspace(0, 1, 16), labels=False)
    ece = np.abs(np.bincount(place, confidence - right)).sum() / 500
    values = [ece, brier, log_loss(targets, probabilities)]
    assert scores.loc[["ece", "brier", "nll"], "value"].tolist() == pytest.approx(values)
    assert scores.loc["brier", "low"] < brier < scores.loc["brier", "high"]


def test_the_threshold_for_a_rare_class_beats_one_half():
    rng = np.random.default_rng(0)
    targets = (rng.random(5000) < 0.05).astype(int)
    p = 1 / (1 + np.exp(-rng.normal(2 * targets - 3, 1)))
    probabilities = np.stack([1 - p, p], axis=1)
    chosen = calibration.choose_threshold(targets, probabilities, 1)
    best = f1_score(targets, calibration.answer_with_threshold(probabilities, 1, chosen))
    assert best >= max(f1_score(targets, p >= threshold) for threshold in p[:300])
    assert best > f1_score(targets, p > 0.5)
    assert np.isnan(calibration.choose_threshold(np.zeros(10, int), probabilities[:10], 1))
    three = np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.1, 0.5, 0.4]])  # the others go to the most probable
    assert calibration.answer_with_threshold(three, 2, 0.3).tolist() == [0, 1, 2]
    assert calibration.answer_with_threshold(three, 0, 0.9).tolist() == [1, 1, 1]


def test_silence_about_all_of_a_rare_class_is_not_rewarded():
    confidence = np.r_[np.linspace(0.8, 0.99, 90), np.linspace(0.5, 0.6, 10)]  # of the rare class nothing is sure
    targets, probabilities = np.repeat([0, 1], [90, 10]), np.stack([confidence, 1 - confidence], axis=1)
    probabilities[90:95] = probabilities[90:95, ::-1]
    table = calibration.coverage_table(targets, probabilities, ["adult", "teen"]).set_index("coverage")
    assert table.loc[0.9, ["accuracy", "macro_f1"]].tolist() == [1, 0.5]
    assert calibration.choose_coverage(targets, probabilities, ["adult", "teen"]) < 0.8
    sure = np.tile([0.9, 0.1], (50, 1))  # and where silence buys nothing, all is answered
    assert calibration.choose_coverage(np.zeros(50, int), sure, ["adult", "teen"]) == 0


def test_a_margin_takes_enough_speakers_not_enough_recordings():
    errors, many = np.arange(12.0), np.r_[np.arange(12), np.zeros(99, int)]
    for speakers, share, margin in ((12, 0.8, 10), (12, 0.9, 11), (4, 0.8, 11), (3, 0.8, None)):
        assert calibration.conformal_margin(errors, np.arange(12) % speakers, share) == margin
        assert calibration.conformal_margin(-errors, np.arange(12) % speakers, share) == margin
    # a hundred recordings of one voice move it by one voice
    assert calibration.conformal_margin(np.r_[errors, np.full(99, 50)], many, 0.8) == 11


def test_a_conformal_margin_holds_new_speakers_at_its_share():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        voices = rng.normal(0, 6, 13)  # each voice errs in its own way, in each of its recordings
        speakers = np.repeat(np.arange(13), [8, *range(1, 13)])  # of the new one, 8; of the others, 1 to 12 recordings
        errors = voices[speakers] + rng.normal(0, 2, len(speakers))
        margin = calibration.conformal_margin(errors[8:], speakers[8:], 0.8)
        held.append((np.abs(errors[:8]) <= margin).mean())
    assert 0.77 <= np.mean(held) <= 0.89  # 0.8 to 0.8 + 1 / 13, and chance
    assert Years([10.0, 30.0], None, speakers=3).describe() == "none: 3 validation speakers are too few"


def test_windows_that_contradict_one_another_disagree_and_unsure_ones_do_not():
    assert calibration.disagreement(np.tile([0.5, 0.5], (6, 1))) == pytest.approx(0, abs=1e-9)
    assert calibration.disagreement(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(1, abs=1e-4)
    rng = np.random.default_rng(0)
    p = np.clip(rng.normal(0.8, 0.05, 600), 0.01, 0.99)
    windows = pd.DataFrame({"p_a": p, "p_b": 1 - p, "speaker_id": np.arange(600) // 6, "target": 0})
    most = calibration.most_disagreement(windows, ["p_a", "p_b"])
    each = [calibration.disagreement(np.stack([part, 1 - part], axis=1)) for part in p.reshape(100, 6)]
    assert most == pytest.approx(np.quantile(each, 0.99))
    assert 0 < most < 0.05
    assert calibration.most_disagreement(windows.drop_duplicates("speaker_id"), ["p_a", "p_b"]) == float("inf")
