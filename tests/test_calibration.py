import json

import numpy as np
import pytest

from lib.trust.calibration import (
    Calibration,
    answer_with_threshold,
    apply_calibration,
    choose_coverage,
    choose_threshold,
    conformal_margin,
    coverage_table,
    fit_temperature,
    precision_recall_table,
    reliability_table,
    score_calibration,
    score_coverage,
)


def make_probabilities(rows=6000, classes=3, temperature=1.0, seed=0):
    """Targets drawn from true probabilities, which are then sharpened by 1 / temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (rng.random(rows)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    stated = np.exp(logits / temperature)
    return targets, stated / stated.sum(axis=1, keepdims=True)


def ece_of(targets, probabilities):
    scores = score_calibration(targets, probabilities, np.arange(len(targets)), draws=0)
    return scores.set_index("metric").loc["ece", "value"]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered_and_heals_the_error(temperature):
    targets, probabilities = make_probabilities(temperature=temperature)
    found = fit_temperature(probabilities, targets)
    assert found.temperature == pytest.approx(1 / temperature, rel=0.06)
    unseen_targets, unseen = make_probabilities(temperature=temperature, seed=1)
    healed = apply_calibration(unseen, found)
    assert ece_of(unseen_targets, healed) < 0.025
    if temperature != 1:
        assert ece_of(unseen_targets, unseen) > 0.08
    np.testing.assert_array_equal(healed.argmax(axis=1), unseen.argmax(axis=1))


def test_bias_undoes_the_priors_of_balanced_weights():
    rng = np.random.default_rng(0)
    targets = (rng.random(20_000) < 0.07).astype(int)
    score = rng.normal(2 * targets, 1)
    balanced = 1 / (1 + np.exp(-(2 * score - 2)))  # Bayes' rule with equal priors
    probabilities = np.stack([1 - balanced, balanced], axis=1)
    only = apply_calibration(probabilities, fit_temperature(probabilities, targets))
    both = apply_calibration(probabilities, fit_temperature(probabilities, targets, bias=True))
    assert ece_of(targets, both) < 0.01
    assert both[:, 1].mean() == pytest.approx(0.07, abs=0.005)
    assert only[:, 1].mean() > 0.1


def test_calibration_travels_as_json():
    found = Calibration(1.5, [0.1, 0.0])
    assert Calibration(**json.loads(json.dumps(found.as_json()))) == found
    probabilities = np.array([[0.3, 0.7]])
    np.testing.assert_allclose(apply_calibration(probabilities, Calibration()), probabilities)


def test_scores_equal_their_definitions():
    targets, probabilities = make_probabilities(500)
    scores = score_calibration(targets, probabilities, np.arange(500) % 40, bins=10, draws=100).set_index("metric")
    truth = np.eye(3)[targets]
    assert scores.loc["brier", "value"] == pytest.approx(np.square(probabilities - truth).sum(axis=1).mean())
    assert scores.loc["nll", "value"] == pytest.approx(-np.log(probabilities[np.arange(500), targets]).mean())
    table = reliability_table(targets, probabilities, bins=10)
    gap = (table["n"] * (table["confidence"] - table["accuracy"]).abs()).sum() / 500
    assert scores.loc["ece", "value"] == pytest.approx(gap)
    assert scores.loc["brier", "low"] < scores.loc["brier", "value"] < scores.loc["brier", "high"]
    assert table["n"].sum() == 500
    assert ((table["low"] <= table["confidence"]) & (table["confidence"] <= table["high"])).all()


def test_threshold_for_the_rare_class_beats_one_half():
    rng = np.random.default_rng(0)
    targets = (rng.random(5000) < 0.05).astype(int)
    p = 1 / (1 + np.exp(-rng.normal(2 * targets - 3, 1)))
    probabilities = np.stack([1 - p, p], axis=1)
    threshold = choose_threshold(targets, probabilities, 1)
    table = precision_recall_table(targets, probabilities, 1)
    told = answer_with_threshold(probabilities, 1, threshold)
    found = 2 * ((told == 1) & (targets == 1)).sum() / ((told == 1).sum() + targets.sum())
    half = 2 * ((p > 0.5) & (targets == 1)).sum() / ((p > 0.5).sum() + targets.sum())
    assert found == pytest.approx(table["f1"].max())
    assert found > half
    with pytest.raises(ValueError, match="no row is of class 1"):
        choose_threshold(np.zeros(10, int), probabilities[:10], 1)


def test_threshold_leaves_the_others_to_the_most_probable():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.1, 0.5, 0.4]])
    assert answer_with_threshold(probabilities, 2, 0.3).tolist() == [0, 1, 2]
    assert answer_with_threshold(probabilities, 0, 0.9).tolist() == [1, 1, 1]


def test_answering_less_is_right_more_often_and_the_threshold_transfers():
    targets, probabilities = make_probabilities()
    table = coverage_table(targets, probabilities, list("abc"), steps=20)
    assert table["coverage"].iloc[-1] == 1
    assert table["macro_f1"].iloc[4] > table["macro_f1"].iloc[-1] + 0.1
    threshold = choose_coverage(targets, probabilities, list("abc"), least=0.7)
    unseen = score_coverage(*make_probabilities(seed=1), list("abc"), threshold)
    assert unseen["coverage"] == pytest.approx(0.7, abs=0.05)
    assert unseen["macro_f1"] > table["macro_f1"].iloc[-1] + 0.03


def test_a_conformal_margin_holds_new_speakers_at_its_share():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        voices = rng.normal(0, 6, 13)  # each voice errs in its own way, in each of its recordings
        errors, speakers = zip(
            *[(voice + rng.normal(0, 2), k) for k, voice in enumerate(voices) for _ in range(1 + k % 5)]
        )
        margin = conformal_margin(np.array(errors[1:]), np.array(speakers[1:]), 0.8)  # the first speaker is the new one
        held.append(abs(errors[0]) <= margin)
    assert 0.77 < np.mean(held) < 0.9


def test_a_margin_takes_enough_speakers_not_enough_recordings():
    errors = np.arange(12.0)
    assert conformal_margin(errors, np.arange(12) % 3, 0.8) is None
    assert conformal_margin(errors, np.arange(12) % 4, 0.8) == 11
    assert conformal_margin(-errors, np.arange(12), 0.8) == conformal_margin(errors, np.arange(12), 0.8) == 10


def test_always_answering_is_chosen_where_silence_buys_nothing():
    probabilities = np.tile([0.9, 0.1], (50, 1))
    assert choose_coverage(np.zeros(50, int), probabilities, ["a", "b"]) == 0


def test_silence_about_all_of_a_rare_class_is_not_rewarded():
    confidence = np.r_[np.linspace(0.8, 0.99, 90), np.linspace(0.5, 0.6, 10)]  # of the rare class nothing is sure
    targets, probabilities = np.repeat([0, 1], [90, 10]), np.stack([confidence, 1 - confidence], axis=1)
    probabilities[90:95] = probabilities[90:95, ::-1]
    table = coverage_table(targets, probabilities, ["adult", "teen"], steps=10).set_index("coverage")
    assert table.loc[0.9, ["uar", "macro_f1"]].tolist() == [0.5, 0.5]
    assert choose_coverage(targets, probabilities, ["adult", "teen"], least=0.8) < 0.8


def test_empty_validation_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))
