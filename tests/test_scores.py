import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from lib.scores import (
    aggregate_predictions,
    compare_models,
    confusion_counts,
    confusion_metrics,
    expected_years,
    make_predictions,
    make_year_bins,
    score_answers,
    score_classes,
    score_difference,
    score_predictions,
    score_years,
)
from lib.tables import validate_table


def make_answers(rows=600, classes=3, speakers=30, right=0.7, seed=0):
    """Targets by speaker, and probabilities that favour the truth in a share `right` of rows."""
    rng = np.random.default_rng(seed)
    voices = np.arange(rows) % speakers
    targets = voices % classes
    guess = np.where(rng.random(rows) < right, targets, rng.integers(0, classes, rows))
    probabilities = rng.dirichlet(np.ones(classes), rows) + 2 * np.eye(classes)[guess]
    return targets, probabilities / probabilities.sum(axis=1, keepdims=True), np.array([f"s{v}" for v in voices])


def test_metrics_equal_scikit_learns():
    targets, probabilities, _ = make_answers()
    predicted = probabilities.argmax(axis=1)
    counts = confusion_counts(targets, predicted, 3)
    np.testing.assert_array_equal(counts, confusion_matrix(targets, predicted))
    metrics = confusion_metrics(counts, ["a", "b", "c"])
    assert metrics["accuracy"] == pytest.approx((targets == predicted).mean())
    assert metrics["uar"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    for average in ("macro", "weighted"):
        assert metrics[f"{average}_f1"] == pytest.approx(f1_score(targets, predicted, average=average))
    np.testing.assert_allclose([metrics[f"f1_{c}"] for c in "abc"], f1_score(targets, predicted, average=None))
    np.testing.assert_allclose([metrics[f"recall_{c}"] for c in "abc"], recall_score(targets, predicted, average=None))
    assert metrics["mace"] == pytest.approx(np.abs(targets - predicted).mean())


def test_class_that_never_occurs_has_no_score_of_its_own():
    metrics = confusion_metrics(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert np.isnan(metrics["f1_c"])
    assert np.isnan(metrics["recall_c"])
    assert metrics["uar"] == pytest.approx(0.85)


def test_interval_counts_speakers_not_windows():
    targets, probabilities, speakers = make_answers(rows=60, speakers=60)
    once = score_classes(targets, probabilities, list("abc"), speakers).set_index("metric")
    arrays = (np.repeat(targets, 50), np.repeat(probabilities, 50, axis=0), list("abc"), np.repeat(speakers, 50))
    copied = score_classes(*arrays).set_index("metric")
    assert copied.loc["uar", ["value", "low", "high"]].tolist() == pytest.approx(
        once.loc["uar", ["value", "low", "high"]].tolist()
    )
    assert copied.loc["uar", "n"] == 3000
    assert copied.loc["uar", "speakers"] == 60


def test_interval_covers_the_true_accuracy_about_95_times_in_100():
    """Each speaker has an accuracy of their own around 0.7; the interval must cover 0.7, which windows' would not."""
    covered, rng = 0, np.random.default_rng(1)
    for trial in range(200):
        chance = np.repeat(rng.beta(7, 3, 50), 30)
        right = rng.random(1500) < chance
        probabilities = np.where(right[:, None], [1.0, 0.0], [0.0, 1.0])
        row = score_classes(
            np.zeros(1500, int),
            probabilities,
            ["a", "b"],
            np.arange(1500) // 30,
            draws=400,
            seed=trial,
            metrics=["accuracy"],
        ).iloc[0]
        covered += row["low"] <= 0.7 <= row["high"]
    assert 180 <= covered <= 199


def test_difference_is_paired():
    targets, probabilities, speakers = make_answers(right=0.6)
    same = score_difference(targets, probabilities, probabilities, list("abc"), speakers)
    assert (same[["value", "low", "high"]] == 0).all().all()
    _, better, _ = make_answers(right=0.95, seed=5)
    row = (
        score_difference(targets, better, probabilities, list("abc"), speakers)
        .set_index("metric")
        .loc["uar_difference"]
    )
    assert 0 < row["low"] < row["value"] < row["high"]


def test_2000_draws_of_150000_windows_take_seconds():
    targets, probabilities, speakers = make_answers(150_000, 2, 5_000)
    started = time.monotonic()
    score_classes(targets, probabilities, ["male", "female"], speakers)
    assert time.monotonic() - started < 10


def make_table(rows=600):
    targets, probabilities, speakers = make_answers(rows, 2)
    names = [f"{speaker}-{i // 120}" for i, speaker in enumerate(speakers)]
    windows = pd.DataFrame(
        {"window_id": [f"{c}@{i}" for i, c in enumerate(names)], "clip_id": names, "speaker_id": speakers}
    )
    fixed = {"task": "gender", "model": "paper", "protocol": "speaker", "seed": 0, "split": "test", "epoch": 3}
    return make_predictions(windows, targets, probabilities, ["male", "female"], **fixed)


def test_predictions_fit_the_contract():
    validate_table(make_table(), "predictions")


def test_windows_are_averaged_in_probability_up_to_clips_and_speakers():
    table = make_table()
    clips = aggregate_predictions(table, "clip").set_index("clip_id")
    one = table[table["clip_id"] == "s3-2"]
    assert clips.loc["s3-2", "p_male"] == pytest.approx(one["p_male"].mean())
    assert clips["windows"].sum() == len(table)
    assert len(aggregate_predictions(table, "speaker")) == table["speaker_id"].nunique()
    with pytest.raises(ValueError, match="unknown level 'word'"):
        aggregate_predictions(table, "word")


def test_every_level_is_scored_and_more_windows_help():
    scores = score_predictions(make_table(), ["male", "female"], draws=200)
    uar = scores[scores["metric"] == "uar"].set_index("level")
    assert uar["n"].to_dict() == {"window": 600, "clip": 150, "speaker": 30}
    assert uar.loc["window", "value"] < uar.loc["clip", "value"] <= uar.loc["speaker", "value"]
    assert ((scores["low"] <= scores["value"]) & (scores["value"] <= scores["high"])).all()


def test_bad_arrays_are_refused():
    targets, probabilities, speakers = make_answers()
    with pytest.raises(ValueError, match="600 targets of 2 classes"):
        score_classes(targets, probabilities, ["a", "b"], speakers)
    probabilities[7] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        score_classes(targets, probabilities, list("abc"), speakers)


def make_seeds(seeds=3):
    """One model trained three times, and a worse one."""
    tables = []
    for seed in range(seeds):
        for model, right in (("paper", 0.85), ("majority", 0.55)):
            targets, probabilities, speakers = make_answers(600, 2, right=right, seed=10 * seed + len(model))
            ids = [f"c{i}@0" for i in range(600)]
            windows = pd.DataFrame({"window_id": ids, "clip_id": ids, "speaker_id": speakers})
            fixed = {"task": "gender", "protocol": "speaker", "split": "test", "seed": seed, "model": model}
            tables.append(make_predictions(windows, targets, probabilities, ["male", "female"], **fixed))
    return pd.concat(tables, ignore_index=True)


def test_seeds_are_averaged_with_their_spread():
    table = make_seeds()
    scores = score_predictions(table, ["male", "female"], levels=["window"], draws=200)
    row = scores[(scores["model"] == "paper") & (scores["metric"] == "uar")].iloc[0]
    each = [
        score_predictions(table[table["seed"] == seed], ["male", "female"], levels=["window"], draws=0)
        .query("model == 'paper' and metric == 'uar'")["value"]
        .iloc[0]
        for seed in range(3)
    ]
    assert row["value"] == pytest.approx(np.mean(each))
    assert row["seed_std"] == pytest.approx(np.std(each))
    assert (row["seeds"], row["n"], row["speakers"]) == (3, 600, 30)


def test_models_are_compared_in_pairs_over_seeds():
    table = make_seeds()
    found = compare_models(table, ["male", "female"], "paper", "majority", levels=["window"], draws=500)
    row = found.set_index("metric").loc["accuracy_difference"]
    assert row["value"] == pytest.approx(0.15, abs=0.04)
    assert 0 < row["low"] < row["value"] < row["high"]
    assert row["against"] == "majority"
    one = (table["model"] == "paper") & (table["window_id"] == "c0@0")
    with pytest.raises(ValueError, match="different windows"):
        compare_models(table[~one], ["male", "female"], "paper", "majority")


def test_answers_with_a_threshold_are_scored_as_given():
    targets, _, speakers = make_answers()
    scores = score_answers(targets, targets, list("abc"), speakers, draws=10)
    assert (scores.set_index("metric").drop(index="mace")["value"] == 1).all()


def test_years_are_scored_against_their_definitions():
    rng = np.random.default_rng(0)
    years = rng.uniform(6, 60, 500)
    predicted = years + rng.normal(2, 5, 500)
    scores = score_years(years, predicted, np.arange(500) % 50, draws=300).set_index("metric")
    assert scores.loc["mae_years", "value"] == pytest.approx(np.abs(predicted - years).mean())
    assert scores.loc["bias_years", "value"] == pytest.approx((predicted - years).mean())
    covariance = np.cov(years, predicted, bias=True)[0, 1]
    ccc = 2 * covariance / (years.var() + predicted.var() + (years.mean() - predicted.mean()) ** 2)
    assert scores.loc["ccc", "value"] == pytest.approx(ccc)
    assert (scores["low"] < scores["value"]).all()
    assert (scores["value"] < scores["high"]).all()
    constant = score_years(years, np.full(500, 30.0), np.arange(500), draws=0).set_index("metric")
    assert constant.loc["ccc", "value"] == pytest.approx(0)
    with pytest.raises(ValueError, match="finite"):
        score_years([np.nan], [3.0], ["s"])


def test_year_bins_are_even_and_their_expectation_lies_between_them():
    years = np.r_[np.repeat(np.arange(6, 16), 20), np.repeat(np.arange(20, 44), 10)]
    bounds, centres, names = make_year_bins(years, 6)
    places = np.searchsorted(bounds, years, side="right")
    assert len(names) == len(centres) == places.max() + 1
    assert np.bincount(places).min() > 0.5 * len(years) / 6
    assert names[0].startswith("6")
    assert centres == sorted(centres)
    assert expected_years(np.eye(len(centres)), centres).tolist() == centres
    with pytest.raises(ValueError, match="ask for fewer"):
        make_year_bins(np.full(10, 30), 4)
