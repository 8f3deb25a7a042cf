"""What trained networks answered, scored beside baselines: an evaluation from answers to the model folders that leave it."""

import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_acoustics, make_corpus, make_stage, make_store
from sklearn.metrics import balanced_accuracy_score

from lib import evaluate, paths
from lib.baselines import BASELINES
from lib.compute import Compute, torch_threads
from lib.model_folder import load_model_folder
from lib.stages import Stage
from lib.tables import validate_table
from lib.tasks import Task
from lib.train import Recipe
from lib.trainings import split_tasks, train_networks
from lib.trust import confidence, corpus_audit, slices, summary

CLIPS, WINDOWS = make_corpus(speakers=60)
GENDER, YEARS = Task("gender", ["male", "female"]), Task("age_years", ["0 to 19", "20 to 29", "30 and over"], [20, 30])
TASKS = [GENDER, YEARS]
ACOUSTICS = make_acoustics(WINDOWS, CLIPS)


class Run:
    """Splits, trainings, answers and scores of a made-up run, and the stage that holds the latter."""

    def __init__(self, folder):
        self.store = make_store(folder / "store", WINDOWS, CLIPS)
        self.splits = split_tasks(WINDOWS, CLIPS, TASKS, ["speaker", "paper"], 0)
        self.trained, self.stage = make_stage(folder / "trained"), make_stage(folder / "evaluated", "05_evaluate")
        with torch_threads(1):
            options = ["linear", "linear:bank"], [0], Recipe(), Compute("cpu", "float32", "")
            self.fits = train_networks(self.trained, self.splits, [self.store], TASKS, *options)
        given = (self.trained, self.fits, self.splits, self.store, ACOUSTICS, TASKS)
        self.predictions = evaluate.predict_all(*given)
        self.models = evaluate.choose_models(self.fits, "speaker")
        summary.score_run(self.stage, self.predictions, self.splits, self.fits, self.store, TASKS, "speaker", 200, 0)
        self.scored = summary.load_scores(self.stage)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


def test_every_window_of_validation_and_test_is_answered_once_by_every_model(run):
    validate_table(run.predictions, "predictions")
    keys = ["task", "model", "protocol", "fold", "seed", "window_id"]
    assert not run.predictions.duplicated(keys).any()
    wanted = run.splits[run.splits["split"] != "train"].groupby(["task", "protocol"]).size()
    for model in [*BASELINES, "linear", "linear:bank"]:
        answered = run.predictions[run.predictions["model"] == model].groupby(["task", "protocol"]).size()
        assert answered.equals(wanted)


def test_the_model_that_hears_is_chosen_and_scores_equal_scikit_learns(run):
    assert run.models == {"gender": "linear", "age_years": "linear"}
    answers = evaluate.select_answers(run.predictions, GENDER, "linear", "speaker", "test")
    scores = run.scored["scores"]
    row = scores[(scores[["task", "model", "protocol", "level", "metric"]]
                  == ["gender", "linear", "speaker", "window", "uar"]).all(axis=1)].iloc[0]  # fmt: skip
    right = balanced_accuracy_score(answers["target"], answers[["p_male", "p_female"]].to_numpy().argmax(axis=1))
    assert row["value"] == pytest.approx(right)
    assert row["value"] > 0.9
    assert row["low"] <= row["value"] <= row["high"]


def test_the_constant_is_the_median_age_of_the_training_part_and_pairs_are_compared(run):
    answers = evaluate.answer_years(run.predictions, run.splits, YEARS)
    own = run.splits[(run.splits["task"] == "age_years") & (run.splits["protocol"] == "speaker")]
    constant = answers[(answers["model"] == evaluate.CONSTANT) & (answers["protocol"] == "speaker")]
    assert constant["predicted_years"].unique().tolist() == [own.loc[own["split"] == "train", "age_years"].median()]
    pairs = run.scored["differences"]
    row = pairs[(pairs["metric"] == "mae_years_difference") & (pairs["model"] == "linear") & (pairs["level"] == "clip")]
    assert row["high"].iloc[0] < 0


def test_confusion_counts_hold_every_test_window(run):
    counts = paths.load_json(run.stage.path("confusions.json"))
    confusion = evaluate.find_confusion(counts, "gender", "linear", "speaker")
    rows = run.splits[(run.splits["task"] == "gender") & (run.splits["protocol"] == "speaker")]
    assert np.sum(confusion["counts"]) == (rows["split"] == "test").sum()


def test_temperature_and_thresholds_come_from_validation_alone(run):
    changed = run.predictions.copy()
    rows = changed["split"] == "test"
    changed.loc[rows, ["p_male", "p_female"]] = changed.loc[rows, ["p_female", "p_male"]].to_numpy()
    options = (run.splits, TASKS, "speaker", ["linear"])
    before, after = (confidence.fit_reliability(table, *options) for table in (run.predictions, changed))
    pd.testing.assert_frame_equal(before, after)
    assert set(before["fold"]) == {0, -1}  # each training's own, and all folds pooled


def test_silence_covers_what_it_says_and_tables_are_made_of_it(run):
    table = confidence.tabulate_choices(run.scored["choices"])
    assert {"always answers", "may stay silent"} <= set(table["rule"])
    assert table.loc[table["rule"] == "always answers", "answered"].unique().tolist() == ["100 %"]
    raw = evaluate.select_answers(run.predictions, GENDER, "linear", "speaker", "test")
    calibrated = confidence.calibrate_answers(raw, run.scored["settings"], GENDER)
    curves = confidence.tabulate_reliability({"as trained": raw, "after": calibrated}, GENDER)
    assert [table["n"].sum() for table in curves.values()] == [raw["clip_id"].nunique()] * 2
    choice = confidence.list_choices(calibrated, run.scored["settings"], GENDER)
    assert 0 < choice["answered"] <= 1
    assert len(choice["targets"]) == raw["clip_id"].nunique()


def test_an_interval_of_years_is_fitted_on_validation(run):
    years = confidence.fit_years(run.predictions, run.splits, YEARS, "linear", "speaker")
    assert years.centres == sorted(years.centres)
    assert 0 < years.margin < 20
    assert years.validation_coverage >= 0.7


def test_a_corpus_that_gives_the_label_away_is_told(run):
    rows = run.splits[(run.splits["task"] == "gender") & (run.splits["protocol"] == "speaker")]
    disguised = rows.assign(corpus=np.where(rows["target"] == 1, "studio", "street"))
    _, lines = corpus_audit.audit_corpora(disguised, run.store, [GENDER], "speaker", 50, 0)
    assert lines[0].startswith("gender: CONFOUNDED")
    records, lines = corpus_audit.audit_corpora(rows, run.store, [GENDER], "speaker", 50, 0)
    assert "no better than chance" in lines[0]
    assert set(records["check"]) == {"corpus only", "across corpora", "corpus probe"}
    assert len(corpus_audit.tabulate_audit(records)) == len(records)
    single, lines = corpus_audit.audit_corpora(rows.assign(corpus="one"), run.store, [GENDER], "speaker", 50, 0)
    assert single.empty
    assert "come from one" in lines[0]


def test_slices_name_the_worst_group_and_leave_small_ones_unscored(run):
    table = run.scored["slices"]
    assert set(table.loc[~table["enough"], "value"].isna()) <= {True}
    assert set(slices.main_slices(table, run.models)) == {"gender", "age_years"}
    bands = slices.band_values([1.0, 2.0, 3.9, 4.0, np.nan], [2, 4], "s")
    assert bands.tolist() == ["under 2 s", "2 to 4 s", "2 to 4 s", "4 s and over", ""]


def test_errors_are_listed_most_confident_first(run):
    answers = evaluate.select_answers(run.predictions, GENDER, "linear:bank", "speaker", "test")
    errors = slices.list_errors(answers, GENDER, 10)
    assert len(errors) == 10
    assert (errors["truth"] != errors["answer"]).all()
    assert errors["confidence"].is_monotonic_decreasing


def test_tables_of_networks_say_what_was_chosen_and_its_size(run):
    table = evaluate.tabulate_networks(run.fits, run.scored["scores"], run.trained, "speaker", "window")
    assert table.set_index(["task", "network"]).loc[("gender", "linear"), "parameters"] == 2 * 28 + 2
    described = evaluate.describe_models(run.fits, run.models, "speaker")
    assert described["next best"].tolist() == ["linear:bank", "linear:bank"]


def test_model_folders_leave_with_settings_and_scores_on_unseen_speakers(run, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    embedding = {"encoder": "wav2vec2-tiny-untrained", "feature": ""}
    stages = {"02_segment": {"window_s": 3.0}, "03_embed": embedding, "04_train": {}, "05_evaluate": {}}
    chain = {name: Stage(name, "made-up", "0", run.stage.folder, given, True) for name, given in stages.items()}
    chain["04_train"].folder = run.trained.folder
    options = {"level": "clip", "synthetic": True, "refit": False}
    given = (run.fits, run.splits, [run.store], run.predictions, run.scored, TASKS, CLIPS, "speaker")
    folders = summary.save_models("made-up", chain, *given, **options)
    assert [folder.name for folder in folders] == ["linear", "linear-bank", "best"]
    model = load_model_folder(tmp_path / "made-up" / "models" / "best")
    assert model.heads["gender"].network == "linear"
    assert model.heads["gender"].calibration.temperature > 0
    assert model.heads["age_years"].years.margin > 0
    assert any("synthetic" in warning for warning in model.warnings)
    embedding["encoder"] = ""
    assert summary.save_models("made-up", chain, *given, **options) == []
