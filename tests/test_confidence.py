"""What a run's probabilities are worth: every training by its own settings, chosen on validation, scored on test."""

import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_answers, make_corpus

from lib.scores import aggregate_predictions
from lib.tasks import Task, task_table
from lib.trust import confidence
from lib.trust.calibration import Calibration

AGE = Task("age", ["teen", "adult"], [20])
YEARS = Task("age_years", ["0 to 19", "20 to 39", "40 and over"], [20, 40])
FOLDS, SEEDS = [0, 1], [0, 1]


CLIPS, WINDOWS = make_corpus(speakers=60)  # three clips of two windows each


def make_splits(task):
    """Two folds: one half of the speakers tests, of the other a third validates."""
    table = task_table(WINDOWS, CLIPS, task).assign(task=task.name, protocol="speaker")
    speaker = table["speaker_id"].str[2:].astype(int)
    heard = np.where(speaker % 6 < 2, "validation", "train")
    parts = [table.assign(fold=fold, split=np.where(speaker % 2 == fold, "test", heard)) for fold in FOLDS]
    return pd.concat(parts, ignore_index=True)


SPLITS = make_splits(AGE)
PREDICTIONS = make_answers(SPLITS[SPLITS["split"] != "train"], AGE, right=0.8)
SETTINGS = confidence.fit_reliability(PREDICTIONS, SPLITS, [AGE], "speaker", ["linear"])
TESTED = PREDICTIONS[PREDICTIONS["split"] == "test"]
COLUMNS = ["p_teen", "p_adult"]


def score_choices(settings, predictions=PREDICTIONS, task=AGE, draws=20):
    records = confidence.score_choices(predictions, settings, task, "linear", "speaker", draws, 0)
    return records.set_index(["rule", "metric"])


def test_every_training_gets_settings_of_its_own_and_one_row_pools_the_folds():
    assert SETTINGS[["fold", "seed"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [-1, -1]]
    assert SETTINGS["temperature"].nunique() == 5
    assert (SETTINGS["temperature"] > 1).all()  # it was surer than it was right
    assert set(SETTINGS["rare"]) == {"teen"}  # the fewest windows in training
    pooled = PREDICTIONS[(PREDICTIONS["split"] == "validation") & (PREDICTIONS["seed"] == 0)]
    expected = confidence.fit_settings(pooled, AGE, 0)
    assert SETTINGS.iloc[-1][list(expected)].to_dict() == expected
    assert (expected["validation_speakers"], expected["cap"]) == (20, pytest.approx(21 / 22))
    calibrated = Calibration(expected["temperature"], expected["cap"]).apply(pooled[COLUMNS].to_numpy())
    assert np.isclose(calibrated[:, 0], expected["rare_threshold"], atol=1e-12).any()  # chosen after the temperature
    assert np.isnan(confidence.fit_settings(pooled[pooled["target"] == 1], AGE, 0)["rare_clip_threshold"])


def test_answers_are_calibrated_by_the_settings_of_their_own_training():
    calibrated = confidence.calibrate_answers(TESTED, SETTINGS, AGE)
    assert len(calibrated) == len(TESTED)
    for row in SETTINGS[SETTINGS["fold"] >= 0].itertuples():
        own, raw = (part[(part["fold"] == row.fold) & (part["seed"] == row.seed)] for part in (calibrated, TESTED))
        assert own["window_id"].tolist() == raw["window_id"].tolist()
        np.testing.assert_allclose(own[COLUMNS], Calibration(row.temperature, row.cap).apply(raw[COLUMNS].to_numpy()))
        thresholds = own[["silence", "rare_threshold"]].drop_duplicates()
        assert thresholds.to_numpy().tolist() == [[row.silence, row.rare_threshold]]


def test_calibration_is_scored_as_a_mean_over_trainings_and_the_temperature_helps():
    def score(rows):
        return confidence.score_calibration(rows, AGE.classes, draws=0, seed=0).set_index("metric")

    both, each = score(TESTED), [score(TESTED[TESTED["seed"] == seed])["value"] for seed in SEEDS]
    np.testing.assert_allclose(both["value"], sum(each) / 2)
    assert both[["n", "speakers", "seeds"]].drop_duplicates().to_numpy().tolist() == [[360, 60, 2]]
    records = confidence.score_reliability(PREDICTIONS, SETTINGS, [AGE], "speaker", 0, 0)
    table = records.set_index(["level", "metric"])["value"]
    for metric in ("ece", "brier", "nll"):  # by window, where the temperature is fitted
        assert table["window", metric] == pytest.approx(both.loc[metric, "value"])
        assert table["window", f"{metric}_tempered"] < table["window", metric]
    assert set(records.loc[records["level"] == "clip", "n"]) == {180}


def test_choices_are_scored_with_what_they_leave_out():
    table = score_choices(SETTINGS)
    rules = ["most probable class", "threshold for teen", "always answers", "may stay silent"]
    assert table.index.get_level_values("rule").unique().tolist() == rules
    calibrated = confidence.calibrate_answers(TESTED, SETTINGS, AGE)
    answers = (calibrated["p_teen"] < calibrated["rare_threshold"]).astype(int)
    right = (answers == calibrated["target"]).groupby(calibrated["seed"]).mean().mean()
    assert table.loc[("threshold for teen", "accuracy"), "value"] == pytest.approx(right)
    clips = aggregate_predictions(calibrated, "clip")
    sure = clips[COLUMNS].max(axis=1) >= clips.merge(SETTINGS, on=["fold", "seed"])["silence"]
    silent = table.loc[("may stay silent", "accuracy")]
    assert silent["coverage"] == pytest.approx(sure.mean())
    assert silent["n"] == round(sure.sum() / 2)
    assert table.loc[("always answers", "accuracy"), ["coverage", "n", "level"]].tolist() == [1, 180, "clip"]
    assert confidence.tabulate_choices(table.reset_index())["answered"].tolist()[:3] == ["100 %"] * 3
    assert confidence.list_choices(calibrated, SETTINGS, AGE)["answered"] == silent["coverage"]
    assert confidence.tabulate_reliability({"after": calibrated}, AGE)["after"]["n"].sum() == len(clips)


def test_a_class_that_is_never_answered_for_leaves_no_uar_and_silence_about_all_no_row():
    sure = PREDICTIONS.copy()  # of adults all is sure and right, of teens nothing is sure
    sure["p_adult"] = np.where(sure["target"] == 1, 0.99, 0.5)
    sure["p_teen"] = 1 - sure["p_adult"]
    settings = SETTINGS.assign(temperature=1.0, cap=1.0, silence=0.9)
    table = score_choices(settings, sure)
    assert table.loc[("may stay silent", "accuracy"), "value"] == 1
    assert table.loc["may stay silent"].loc[["uar", "macro_f1"], ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc["always answers"].loc[["uar", "macro_f1"], "value"].notna().all()
    nothing = score_choices(settings.assign(silence=1.0, rare_threshold=np.nan), sure)
    assert "may stay silent" not in nothing.index.get_level_values("rule")
    assert nothing.loc[("threshold for teen", "recall_teen"), "value"] == 0  # validation had none: never told


YEARS_SPLITS = make_splits(YEARS)
YEARS_ANSWERS = make_answers(YEARS_SPLITS[YEARS_SPLITS["split"] != "train"], YEARS, right=0.93)


def fit_years(predictions=YEARS_ANSWERS, fold=0):
    return confidence.fit_years(predictions, YEARS_SPLITS, YEARS, "linear", "speaker", fold=fold)


def test_the_margin_of_years_comes_from_validation_clips_and_test_is_only_scored():
    years = fit_years()
    train = YEARS_SPLITS[(YEARS_SPLITS["fold"] == 0) & (YEARS_SPLITS["split"] == "train")]
    assert years.centres == pytest.approx(train.groupby("target")["age_years"].mean().tolist())
    assert (years.speakers, years.test_speakers) == (10, 30)
    answers = YEARS_ANSWERS[(YEARS_ANSWERS["fold"] == 0) & (YEARS_ANSWERS["seed"] == 0)]
    predicted = answers[[f"p_{name}" for name in YEARS.classes]].to_numpy() @ years.centres
    clips = answers.assign(error=predicted).groupby(["split", "speaker_id", "clip_id"])["error"].mean().reset_index()
    clips["error"] = (clips["error"] - clips["clip_id"].map(CLIPS.set_index("clip_id")["age_years"])).abs()
    assert np.isclose(clips.loc[clips["split"] == "validation", "error"], years.margin).any()
    inside = (clips["error"] <= years.margin + 1e-6).groupby([clips["split"], clips["speaker_id"]]).mean()
    coverages = years.validation_coverage, years.test_coverage
    assert coverages == pytest.approx([inside["validation"].mean(), inside["test"].mean()])
    assert years.validation_coverage >= years.share
    changed, rows = YEARS_ANSWERS.copy(), YEARS_ANSWERS["split"] == "test"
    changed.loc[rows, ["p_0 to 19", "p_40 and over"]] = changed.loc[rows, ["p_40 and over", "p_0 to 19"]].to_numpy()
    again = fit_years(changed)
    assert (again.margin, again.centres) == (years.margin, years.centres)
    assert again.test_coverage < years.test_coverage


def test_all_folds_may_be_pooled_and_too_few_speakers_give_no_margin():
    pooled, everyone = fit_years(fold=-1), YEARS_SPLITS.drop_duplicates("window_id")
    assert pooled.centres == pytest.approx(everyone.groupby("target")["age_years"].mean().tolist())
    assert (pooled.speakers, pooled.test_speakers) == (20, 60)
    few = YEARS_ANSWERS[(YEARS_ANSWERS["split"] == "test") | YEARS_ANSWERS["speaker_id"].isin(["b:01", "b:07", "b:13"])]
    years = fit_years(few)
    assert (years.speakers, years.margin, years.validation_coverage, years.test_coverage) == (3, None, None, None)
