import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_answers, make_corpus
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss

from lib.scores import aggregate_predictions
from lib.tasks import Task, task_table
from lib.trust import calibration, confidence
from lib.trust.calibration import Calibration, Years

AGE = Task("age", ["teen", "adult"], [20])
YEARS = Task("age_years", ["0 to 19", "20 to 39", "40 and over"], [20, 40])
CLIPS, WINDOWS = make_corpus(speakers=60)  # three clips of two windows each


def make_probabilities(rows=6000, temperature=1.0, seed=0):
    """Targets of three classes drawn from true probabilities, which are then sharpened by 1 / temperature."""
    rng = np.random.default_rng(seed)
    logits, drawn = rng.normal(0, 1.5, (rows, 3)), rng.random((rows, 1))
    return (drawn > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1), softmax(logits / temperature, axis=1)


def scores_of(targets, probabilities, draws=0):
    table = pd.DataFrame(probabilities, columns=["p_a", "p_b", "p_c"]).assign(target=targets, seed=0)
    table["speaker_id"] = table.index % 40
    return confidence.score_calibration(table, list("abc"), draws=draws, seed=0).set_index("metric")


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
    assert fitted.cap == fitted.apply(probabilities).max() == pytest.approx(11 / 12)
    np.testing.assert_allclose(fitted.apply(probabilities).sum(axis=1), 1)
    assert Calibration().apply(probabilities) is probabilities
    targets, probabilities = make_probabilities(300, temperature=0.5)
    many = np.concatenate([np.arange(300), np.repeat(299, 5000)])  # one voice with most of the windows
    fits = [calibration.fit_temperature(probabilities[rows], targets[rows], rows) for rows in (np.arange(300), many)]
    assert fits[0].temperature == pytest.approx(fits[1].temperature, rel=0.01)


def test_scores_equal_their_definitions():
    targets, probabilities = make_probabilities(500)
    scores = scores_of(targets, probabilities, draws=100)
    brier = np.square(probabilities - np.eye(3)[targets]).sum(axis=1).mean()
    stated, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    ece = np.abs(np.bincount(pd.cut(stated, np.linspace(0, 1, 16), labels=False), stated - right)).sum() / 500
    expected = {"ece": ece, "brier": brier, "nll": log_loss(targets, probabilities)}
    assert scores.loc[[*expected], "value"].to_dict() == pytest.approx(expected)
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
    three = np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.1, 0.5, 0.4]])  # the others go to the most probable
    assert calibration.answer_with_threshold(three, 2, 0.3).tolist() == [0, 1, 2]
    assert calibration.answer_with_threshold(three, 0, 0.9).tolist() == [1, 1, 1]


def test_silence_about_all_of_a_rare_class_is_not_rewarded():
    stated = np.r_[np.linspace(0.8, 0.99, 90), np.linspace(0.5, 0.6, 10)]  # of the rare class nothing is sure
    targets, probabilities = np.repeat([0, 1], [90, 10]), np.stack([stated, 1 - stated], axis=1)
    probabilities[90:95] = probabilities[90:95, ::-1]
    table = calibration.coverage_table(targets, probabilities, ["adult", "teen"]).set_index("coverage")
    assert table.loc[0.9, ["accuracy", "macro_f1"]].tolist() == [1, 0.5]
    assert calibration.choose_coverage(targets, probabilities, ["adult", "teen"]) < 0.8
    sure = np.tile([0.9, 0.1], (50, 1))  # and where silence buys nothing, all is answered
    assert calibration.choose_coverage(np.zeros(50, int), sure, ["adult", "teen"]) == 0


def test_a_conformal_margin_holds_new_speakers_at_its_share_and_takes_enough_of_them():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        voices = rng.normal(0, 6, 13)  # each voice errs in its own way, in each of its recordings
        speakers = np.repeat(np.arange(13), [8, *range(1, 13)])  # of the new one, 8; of the others, 1 to 12 recordings
        errors = voices[speakers] + rng.normal(0, 2, len(speakers))
        margin = calibration.conformal_margin(errors[8:], speakers[8:], 0.8)
        held.append((np.abs(errors[:8]) <= margin).mean())
    assert 0.77 <= np.mean(held) <= 0.89  # 0.8 to 0.8 + 1 / 13, and chance
    errors, many = np.arange(12.0), np.r_[np.arange(12), np.zeros(99, int)]
    for speakers, share, margin in ((12, 0.8, 10), (12, 0.9, 11), (4, 0.8, 11), (3, 0.8, None)):
        assert calibration.conformal_margin(-errors, np.arange(12) % speakers, share) == margin
    assert calibration.conformal_margin(np.r_[errors, np.full(99, 50)], many, 0.8) == 11  # of one voice, one step
    assert Years([10.0, 30.0], None, speakers=3).describe() == "none: 3 validation speakers are too few"


def test_windows_that_contradict_one_another_disagree_and_unsure_ones_do_not():
    assert calibration.disagreement(np.tile([0.5, 0.5], (6, 1))) == pytest.approx(0, abs=1e-9)
    assert calibration.disagreement(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(1, abs=1e-4)
    p = np.clip(np.random.default_rng(0).normal(0.8, 0.05, 600), 0.01, 0.99)
    windows = pd.DataFrame({"p_a": p, "p_b": 1 - p, "speaker_id": np.arange(600) // 6, "target": 0})
    most = calibration.most_disagreement(windows, ["p_a", "p_b"])
    each = [calibration.disagreement(np.stack([part, 1 - part], axis=1)) for part in p.reshape(100, 6)]
    assert most == pytest.approx(np.quantile(each, 0.99))
    assert 0 < most < 0.05
    assert calibration.most_disagreement(windows.drop_duplicates("speaker_id"), ["p_a", "p_b"]) == float("inf")


def make_run(task, right):
    """Splits of two folds (one half of the speakers tests, of the other a third validates), and answers to them."""
    table = task_table(WINDOWS, CLIPS, task).assign(task=task.name, protocol="speaker")
    speaker = table["speaker_id"].str[2:].astype(int)
    heard = np.where(speaker % 6 < 2, "validation", "train")
    splits = [table.assign(fold=fold, split=np.where(speaker % 2 == fold, "test", heard)) for fold in (0, 1)]
    splits = pd.concat(splits, ignore_index=True)
    return splits, make_answers(splits[splits["split"] != "train"], task, right=right)


SPLITS, PREDICTIONS = make_run(AGE, 0.8)
YEARS_SPLITS, YEARS_ANSWERS = make_run(YEARS, 0.93)
SETTINGS = confidence.fit_reliability(PREDICTIONS, SPLITS, [AGE], "speaker", ["linear"])
TESTED = PREDICTIONS[PREDICTIONS["split"] == "test"]
CALIBRATED = confidence.calibrate_answers(TESTED, SETTINGS, AGE)
COLUMNS = ["p_teen", "p_adult"]


def score_choices(settings, predictions=PREDICTIONS):
    records = confidence.score_choices(predictions, settings, AGE, "linear", "speaker", 20, 0)
    return records.set_index(["rule", "metric"])


def test_every_training_gets_settings_of_its_own_and_one_row_pools_the_folds():
    assert SETTINGS[["fold", "seed"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [-1, -1]]
    assert (SETTINGS["temperature"].nunique(), set(SETTINGS["rare"])) == (5, {"teen"})  # of the fewest windows
    assert (SETTINGS["temperature"] > 1).all()  # it was surer than it was right
    pooled = PREDICTIONS[(PREDICTIONS["split"] == "validation") & (PREDICTIONS["seed"] == 0)]
    expected = confidence.fit_settings(pooled, AGE, 0)
    assert SETTINGS.iloc[-1][list(expected)].to_dict() == expected
    assert (expected["validation_speakers"], expected["cap"]) == (20, pytest.approx(21 / 22))
    calibrated = Calibration(expected["temperature"], expected["cap"]).apply(pooled[COLUMNS].to_numpy())
    assert np.isclose(calibrated[:, 0], expected["rare_threshold"], atol=1e-12).any()  # chosen after the temperature
    assert np.isnan(confidence.fit_settings(pooled[pooled["target"] == 1], AGE, 0)["rare_clip_threshold"])
    assert len(CALIBRATED) == len(TESTED)  # and answers are calibrated by the settings of their own
    for row in SETTINGS[SETTINGS["fold"] >= 0].itertuples():
        own, raw = (part[(part["fold"] == row.fold) & (part["seed"] == row.seed)] for part in (CALIBRATED, TESTED))
        assert own["window_id"].tolist() == raw["window_id"].tolist()
        np.testing.assert_allclose(own[COLUMNS], Calibration(row.temperature, row.cap).apply(raw[COLUMNS].to_numpy()))
        assert set(zip(own["silence"], own["rare_threshold"])) == {(row.silence, row.rare_threshold)}


def test_calibration_is_scored_as_a_mean_over_trainings_and_the_temperature_helps():
    each = [TESTED, *(TESTED[TESTED["seed"] == seed] for seed in (0, 1))]
    both, *each = (confidence.score_calibration(rows, AGE.classes, 0, 0).set_index("metric") for rows in each)
    np.testing.assert_allclose(both["value"], (each[0]["value"] + each[1]["value"]) / 2)
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
    answers = (CALIBRATED["p_teen"] < CALIBRATED["rare_threshold"]).astype(int)
    right = (answers == CALIBRATED["target"]).groupby(CALIBRATED["seed"]).mean().mean()
    assert table.loc[("threshold for teen", "accuracy"), "value"] == pytest.approx(right)
    clips = aggregate_predictions(CALIBRATED, "clip")
    sure = clips[COLUMNS].max(axis=1) >= clips.merge(SETTINGS, on=["fold", "seed"])["silence"]
    silent = table.loc[("may stay silent", "accuracy")]
    assert silent[["coverage", "n"]].tolist() == pytest.approx([sure.mean(), round(sure.sum() / 2)])
    assert table.loc[("always answers", "accuracy"), ["coverage", "n", "level"]].tolist() == [1, 180, "clip"]
    assert confidence.list_choices(CALIBRATED, SETTINGS, AGE)["answered"] == silent["coverage"]
    assert confidence.tabulate_reliability(CALIBRATED, AGE)["n"].sum() == len(clips)


def test_a_class_that_is_never_answered_for_leaves_no_uar_and_silence_about_all_no_row():
    sure = PREDICTIONS.assign(p_adult=np.where(PREDICTIONS["target"] == 1, 0.99, 0.5))  # of teens nothing is sure
    sure["p_teen"] = 1 - sure["p_adult"]
    settings = SETTINGS.assign(temperature=1.0, cap=1.0, silence=0.9)
    table = score_choices(settings, sure)
    assert table.loc[("may stay silent", "accuracy"), "value"] == 1
    assert table.loc["may stay silent"].loc[["uar", "macro_f1"], ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc["always answers"].loc[["uar", "macro_f1"], "value"].notna().all()
    nothing = score_choices(settings.assign(silence=1.0, rare_threshold=np.nan), sure)
    assert "may stay silent" not in nothing.index.get_level_values("rule")
    assert nothing.loc[("threshold for teen", "recall_teen"), "value"] == 0  # validation had none: never told


def fit_years(predictions=YEARS_ANSWERS, fold=0):
    return confidence.fit_years(predictions, YEARS_SPLITS, YEARS, "linear", "speaker", fold=fold)


def test_the_margin_of_years_comes_from_validation_clips_and_test_is_only_scored_and_few_speakers_give_none():
    years = fit_years()
    train = YEARS_SPLITS[(YEARS_SPLITS["fold"] == 0) & (YEARS_SPLITS["split"] == "train")]
    assert years.centres == pytest.approx(train.groupby("target")["age_years"].mean().tolist())
    assert (years.speakers, years.test_speakers) == (10, 30)
    answers = YEARS_ANSWERS[(YEARS_ANSWERS["fold"] == 0) & (YEARS_ANSWERS["seed"] == 0)]
    answers = answers.assign(told=answers[[f"p_{name}" for name in YEARS.classes]].to_numpy() @ years.centres)
    clips = answers.groupby(["split", "speaker_id", "clip_id"])["told"].mean().reset_index()
    clips["error"] = (clips["told"] - clips["clip_id"].map(CLIPS.set_index("clip_id")["age_years"])).abs()
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
    pooled, everyone = fit_years(fold=-1), YEARS_SPLITS.drop_duplicates("window_id")
    assert pooled.centres == pytest.approx(everyone.groupby("target")["age_years"].mean().tolist())
    assert (pooled.speakers, pooled.test_speakers) == (20, 60)
    few = YEARS_ANSWERS[(YEARS_ANSWERS["split"] == "test") | YEARS_ANSWERS["speaker_id"].isin(["b:01", "b:07", "b:13"])]
    few = fit_years(few)
    assert (few.speakers, few.margin, few.validation_coverage, few.test_coverage) == (3, None, None, None)
