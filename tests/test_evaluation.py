"""From trainings to tables: a made-up corpus split in folds, trained, asked, scored, calibrated and sliced."""

import json

import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_corpus, make_stage, make_store
from report_fixture import outputs_of

from lib import evaluate, paths, results, tables, trainings
from lib.trainings import Recipe
from lib.trust import corpus_audit, reliability, slices

CLIPS, WINDOWS = make_corpus()
NETWORKS = ["linear_layers", "attentive_layers"]
DRAWS = 200


class Run:
    """Everything that the notebooks 04 and 05 hold of the made-up run."""

    def __init__(self, folder):
        self.tasks, _ = trainings.make_tasks(["gender", "age", "age_years"], ["child", "adult"], [16], CLIPS)
        self.store = make_store(folder / "store", WINDOWS, CLIPS)
        self.splits = trainings.split_tasks(WINDOWS, CLIPS, self.tasks, ["speaker", "paper"], seed=0, folds=3)
        self.stage = make_stage(folder / "trained")
        recipe = Recipe(2, 3, 0.05, 0.05, 25, 0.1, 0, "standard", "balanced")
        arrays = (self.stage, self.splits, self.store, self.tasks, NETWORKS, [0, 1], recipe)
        self.fits = trainings.train_networks(*arrays)
        self.predictions = evaluate.predict_all(self.stage, self.fits, self.splits, self.store, self.tasks)
        self.models = evaluate.choose_models(self.fits, "speaker")
        self.scores = evaluate.score_all(self.predictions, self.splits, self.tasks, DRAWS, 0)
        self.settings = reliability.fit_reliability(self.predictions, self.splits, self.tasks, "speaker", NETWORKS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


def value_of(scores, **wanted):
    rows = results.select_scores(scores, **wanted)
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_window_is_answered_by_every_model_and_baseline(run):
    table = tables.validate_table(run.predictions, "predictions")
    tested = table[(table["protocol"] == "speaker") & (table["split"] == "test") & (table["task"] == "gender")]
    assert set(tested["model"]) == {
        *NETWORKS,
        "majority",
        "baseline: mean F0",
        "baseline: duration and level",
        "baseline: MFCC",
    }
    assert (tested.groupby(["model", "seed"])["window_id"].nunique() == len(WINDOWS)).all()
    assert not tested.duplicated(["model", "seed", "window_id"]).any()


def test_folds_are_pooled_and_seeds_averaged_with_their_spread(run):
    row = value_of(run.scores, task="gender", model="linear_layers", protocol="speaker", level="window", metric="uar")
    assert (row["n"], row["speakers"], row["seeds"]) == (len(WINDOWS), 30, 2)
    assert row["seed_std"] >= 0
    assert row["low"] <= row["value"] <= row["high"]
    assert row["low"] > 0.5


def test_levels_count_windows_clips_and_speakers(run):
    sizes = {
        level: value_of(run.scores, task="gender", model="majority", protocol="speaker", level=level, metric="uar")["n"]
        for level in ("window", "clip", "speaker")
    }
    assert sizes == {"window": 180, "clip": 90, "speaker": 30}


def test_years_stand_beside_the_constant_and_the_model_that_hears_age_is_nearer(run):
    wanted = {"task": "age_years", "protocol": "speaker", "level": "clip", "metric": "mae_years"}
    model = value_of(run.scores, model=run.models["age_years"], **wanted)
    constant = value_of(run.scores, model=evaluate.CONSTANT, **wanted)
    years = CLIPS["age_years"].to_numpy()
    assert model["value"] < constant["value"]
    assert constant["value"] == pytest.approx(np.abs(years - np.median(years)).mean(), rel=0.1)
    assert model["n"] == constant["n"] == len(CLIPS)
    ages = {"task": "age_years", "protocol": "speaker", "level": "clip", "metric": ["mae_years", "mace"]}
    table = results.tabulate(results.select_scores(run.scores, **ages))
    assert (table["clips"] == len(CLIPS)).all()
    assert table["model"].tolist().count("always the median age") == 1
    differences = evaluate.compare_ages(
        evaluate.answer_years(run.predictions, run.splits, run.tasks[2]), "speaker", DRAWS, 0
    )
    row = value_of(differences, model=run.models["age_years"], level="clip")
    assert row["value"] == pytest.approx(model["value"] - constant["value"])
    assert row["high"] < 0


def test_differences_pair_every_network_with_every_baseline(run):
    found = evaluate.compare_all(run.predictions, run.tasks[:2], "speaker", NETWORKS, DRAWS, 0)
    assert len(found) == 2 * len(NETWORKS) * 4 * 3 * 3
    row = value_of(
        found, task="gender", model="linear_layers", against="majority", level="window", metric="uar_difference"
    )
    own = value_of(run.scores, task="gender", model="linear_layers", protocol="speaker", level="window", metric="uar")
    assert row["value"] == pytest.approx(own["value"] - 0.5)
    table = results.tabulate(results.select_scores(found, level="window", metric="uar_difference"), columns="against")
    assert table["minus a guess (majority)"].iloc[0].endswith("*")


def test_the_main_model_is_the_best_on_validation_or_the_one_named(run):
    means = run.fits[run.fits["protocol"] == "speaker"].groupby(["task", "network"])["validation_uar"].mean()
    assert all(means[task, model] == means[task].max() for task, model in run.models.items())
    assert set(evaluate.choose_models(run.fits, "speaker", NETWORKS[1]).values()) == {NETWORKS[1]}
    with pytest.raises(ValueError, match="'paper' was not trained; choose one of"):
        evaluate.choose_models(run.fits, "speaker", "paper")


def test_temperatures_come_from_validation_of_each_training_and_change_no_answer(run):
    assert len(run.settings) == 3 * len(NETWORKS) * 3 * 2
    swapped = run.predictions.assign(
        target=run.predictions["target"].where(run.predictions["split"] != "test", 0)
    )  # another truth on the test part must not be noticed
    again = reliability.fit_reliability(swapped, run.splits, run.tasks, "speaker", NETWORKS)
    pd.testing.assert_frame_equal(run.settings, again)
    raw = evaluate.select_answers(run.predictions, run.tasks[0], "linear_layers", "speaker", "test")
    told = reliability.calibrate_answers(raw, run.settings, run.tasks[0]).set_index(["seed", "window_id"])
    columns, keys = ["p_male", "p_female"], pd.MultiIndex.from_frame(raw[["seed", "window_id"]])
    assert len(told) == 2 * len(WINDOWS)
    assert (told.loc[keys, columns].to_numpy().argmax(axis=1) == raw[columns].to_numpy().argmax(axis=1)).all()


def test_the_order_of_answers_and_the_names_of_seeds_change_no_score(run):
    predictions = run.predictions.sample(frac=1, random_state=0)
    predictions = predictions.assign(seed=predictions["seed"].map({0: 0, 1: 7}))
    again = evaluate.score_all(predictions, run.splits, run.tasks[:2], DRAWS, 0)
    keys = ["task", "model", "protocol", "level", "metric"]
    first = run.scores[run.scores["task"] != "age_years"]
    tables = [table.set_index(keys)[["value", "low", "high"]].sort_index() for table in (first, again)]
    pd.testing.assert_frame_equal(*tables)


def test_calibration_and_slices_are_means_over_seeds(run):
    scored = reliability.score_reliability(run.predictions, run.settings, run.tasks[:1], "speaker", DRAWS, 0)
    wanted = {"task": "gender", "model": NETWORKS[0], "level": "window"}
    apart = []
    for seed in (0, 1):
        one = [table[table["seed"] == seed] for table in (run.predictions, run.settings)]
        found = reliability.score_reliability(*one, run.tasks[:1], "speaker", 0, 0)
        apart.append(value_of(found, **wanted, metric="ece_tempered")["value"])
    mean = value_of(scored, **wanted, metric="ece_tempered")
    assert mean["value"] == pytest.approx(np.mean(apart))
    assert (mean["n"], mean["seeds"]) == (len(WINDOWS), 2)
    models = {"gender": NETWORKS[0], "age": NETWORKS[0]}
    keys = ["task", "model", "subset"]
    groups = [
        slices.slice_all(table, run.splits, run.tasks[:2], models, "speaker", 0, 0).set_index(keys)
        for table in (run.predictions, *(run.predictions[run.predictions["seed"] == seed] for seed in (0, 1)))
    ]
    key = ("gender", NETWORKS[0], "age group=child")
    assert groups[0].loc[key, "value"] == pytest.approx((groups[1].loc[key, "value"] + groups[2].loc[key, "value"]) / 2)
    assert groups[0].loc[key, "n"] == groups[1].loc[key, "n"]
    assert groups[0].loc[key, "seeds"] == 2


def test_thresholds_and_silence_are_scored_with_what_they_leave_out(run):
    choices = reliability.score_choices(run.predictions, run.settings, run.tasks, run.models, "speaker", DRAWS, 0)
    table = choices[choices["metric"] == "accuracy"]
    assert {"most probable class", "always answers", "may stay silent"} <= set(table["rule"])
    assert table.loc[table["rule"] == "threshold for child", "task"].tolist() == ["age"]
    assert table["coverage"].between(0, 1).all()
    silent = table[table["rule"] == "may stay silent"]
    assert (silent["n"] <= 90).all()
    scored = reliability.score_reliability(run.predictions, run.settings, run.tasks, "speaker", 0, 0)
    assert {"ece", "ece_tempered", "brier", "brier_tempered"} <= set(scored["metric"])
    figure, numbers = reliability.plot_choices(
        run.predictions, run.settings, run.tasks[1], run.models["age"], "speaker"
    )
    assert numbers.loc[numbers["curve"] == "coverage", "coverage"].iloc[-1] == 1
    recalls = numbers.loc[numbers["curve"] == "precision, recall of child", ["threshold", "recall"]]
    assert recalls["threshold"].is_monotonic_increasing
    assert recalls["recall"].is_monotonic_decreasing
    assert len(figure.axes) == 2


def test_a_class_that_is_never_answered_for_leaves_no_uar(run):
    predictions = run.predictions.copy()
    for name, sure in (("child", [0.5, 0.01]), ("adult", [0.5, 0.99])):  # children: nothing is sure, adults: all is
        predictions[f"p_{name}"] = np.where(predictions["target"] == run.tasks[1].classes.index("adult"), *sure[::-1])
    settings = run.settings.assign(temperature=1.0, silence=0.9)
    choices = reliability.score_choices(predictions, settings, run.tasks[1:2], run.models, "speaker", DRAWS, 0)
    values = choices.set_index(["rule", "metric"])["value"]
    assert values["may stay silent", "accuracy"] == 1
    assert values["may stay silent"][["uar", "macro_f1"]].isna().all()
    assert values["always answers"][["uar", "macro_f1"]].notna().all()


def test_gender_is_scored_within_age_groups_for_every_model(run):
    found = slices.slice_all(run.predictions, run.splits, run.tasks, run.models, "speaker", DRAWS, 0)
    table = slices.tabulate_groups(found, "gender", "age group")
    assert set(table.columns) == {"model", "child", "adult"}
    assert len(table) == len(NETWORKS) + 4
    majority = found[(found["model"] == "majority") & (found["subset"] == "age group=child")].iloc[0]
    assert majority["value"] == 0.5
    worst = slices.worst_slices(found, run.models)
    assert worst["task"].tolist() == ["gender", "age", "age_years"]
    assert not found.loc[found["task"] == "age", "subset"].str.contains("age group").any()


def test_the_leak_is_random_windows_minus_unseen_speakers(run):
    leaks = evaluate.score_leaks(run.predictions, run.tasks, "speaker", DRAWS, 0)
    wanted = {"task": "gender", "model": NETWORKS[0], "level": "window", "metric": "accuracy"}
    row = value_of(leaks, **wanted)
    pair = [value_of(run.scores, **wanted, protocol=name)["value"] for name in ("paper", "speaker")]
    assert (row["claimed"], row["shown"]) == tuple(pair)
    assert row["value"] == pytest.approx(pair[0] - pair[1])
    assert row["low"] <= row["value"] <= row["high"]
    assert value_of(leaks, **{**wanted, "model": "majority", "metric": "uar"})["high"] == 0
    both = results.join_leaks(run.scores, leaks, "speaker")
    both = results.select_scores(both, level="window", metric=["accuracy", "uar"])
    table = results.tabulate(both, rows=["task", "model", "metric"], columns="protocol")
    assert len(table) == 3 * (len(NETWORKS) + 4) * 2
    assert table["leak (points)"].str.match(r"[+-]\d+").all()
    assert evaluate.score_leaks(run.predictions, run.tasks, "paper", DRAWS, 0).empty


def test_a_label_that_follows_the_corpus_is_called_out(run):
    records, lines = corpus_audit.audit_corpora(run.splits, run.store, run.tasks[:1], "speaker", DRAWS, 0)
    assert set(records["check"]) == {"corpus only", "across corpora", "corpus probe"}
    assert "no better than chance" in lines[0] or "CONFOUNDED" in lines[0]
    told = run.splits["target"].map({0: "a", 1: "b"})
    _, lines = corpus_audit.audit_corpora(run.splits.assign(corpus=told), run.store, run.tasks[:1], "speaker", DRAWS, 0)
    assert lines[0].startswith("gender: CONFOUNDED")
    alone, lines = corpus_audit.audit_corpora(
        run.splits.assign(corpus="a"), run.store, run.tasks[:1], "speaker", DRAWS, 0
    )
    assert alone.empty
    assert "no shortcut through the corpus" in lines[0]
    assert corpus_audit.tabulate_audit(alone).empty


def test_the_papers_figures_stand_beside_a_guess_that_beats_them_on_age(run):
    age = results.paper_records(run.scores, "age", ["majority"], "speaker")
    accuracy = age[age["metric"] == "accuracy"].groupby("model", sort=False)["value"].first()
    assert accuracy["a majority guess"] == pytest.approx(44_434 / 47_552)
    assert accuracy["a majority guess"] > accuracy["the paper"]
    assert "majority" in accuracy


def test_voices_of_other_corpora_are_never_played(run, tmp_path):
    answers = {
        task.name: evaluate.select_answers(run.predictions, task, "majority", "speaker", "test") for task in run.tasks
    }
    errors = slices.collect_errors(answers, run.tasks, 5)
    assert len(errors) == 15
    roots = {"a": tmp_path, "b": tmp_path}
    (shown,) = outputs_of(slices.play_errors, errors, CLIPS, WINDOWS, roots, 12, synthetic=False)
    assert "audio" not in shown.data["text/html"]
    assert "Not played" in shown.data["text/html"]


def test_metrics_json_keeps_full_precision_and_no_nan(run, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    confusions = evaluate.confusion_tables(run.predictions, run.tasks, "window")
    found = slices.slice_all(run.predictions, run.splits, run.tasks, run.models, "speaker", 0, 0)
    joined = evaluate.join_records(run.scores, found)
    path = evaluate.save_metrics("made-up", joined, confusions, trainings=run.fits, notes=["a note"])
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["scores"][0]["value"] == run.scores["value"].iloc[0]
    assert saved["trainings"][0]["network"] == "linear_layers"
    assert len(saved["scores"]) == len(joined)
    one = evaluate.find_confusion(confusions, "gender", "majority", "speaker")
    assert np.sum(one["counts"]) == len(WINDOWS)


def test_a_model_folder_takes_the_first_fold_with_its_own_temperature(run):
    chosen = {task: run.models[task] for task in ("gender", "age")}
    found = evaluate.main_checkpoints(run.stage, run.fits, list(chosen), chosen, "speaker")
    assert all("fold-0" in str(path) and path.exists() for path in found.values())
    found = reliability.find_settings(run.settings, {**chosen, "age_years": run.models["age_years"]})
    row = run.settings.set_index(["task", "model", "fold", "seed"]).loc[("age", chosen["age"], 0, 0)]
    assert found["calibrations"]["age"].temperature == row["temperature"]
    assert found["thresholds"]["age"] == row["silence"]
    assert found["rare"]["age"] == (row["rare"], row["rare_clip_threshold"])
    assert found["thresholds"].keys() == found["rare"].keys() == {"gender", "age"}


def test_an_interval_of_years_is_chosen_on_validation_and_scored_on_test(run):
    years = run.tasks[2]
    chosen = {"age_years": run.models["age_years"]}
    found = reliability.fit_years(run.predictions, run.splits, run.tasks, chosen, "speaker")["age_years"]
    assert reliability.fit_years(run.predictions, run.splits, run.tasks, {"age": "linear_layers"}, "speaker") == {}
    assert len(found.centres) == len(years.classes)
    assert sorted(found.centres) == found.centres
    told = evaluate.average_years(evaluate.answer_years(run.predictions, run.splits, years, "validation"), "clip")
    told = told.query("model == @chosen['age_years'] and protocol == 'speaker' and fold == 0 and seed == 0")
    errors = (told["told_years"] - told["years"]).abs()
    inside = (errors <= found.margin + 1e-9).groupby(told["speaker_id"]).mean()
    assert found.validation_coverage == pytest.approx(inside.mean())
    assert found.validation_coverage >= found.share
    assert errors.isin([found.margin]).any()
    assert 0 <= found.test_coverage <= 1
    swapped = run.predictions.copy()  # the test part must not matter
    tested = swapped["split"] == "test"
    columns = [name for name in swapped if name.startswith("p_")]
    swapped.loc[tested, columns] = swapped.loc[tested, columns[::-1]].to_numpy()
    assert reliability.fit_years(swapped, run.splits, run.tasks, chosen, "speaker")["age_years"].margin == found.margin
