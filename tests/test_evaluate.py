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


def test_a_corpus_that_gives_the_label_away_is_told(run):
    assert run.scored["lines"]["line"].str.contains("no better than chance").all()
    rows = run.splits[(run.splits["task"] == "gender") & (run.splits["protocol"] == "speaker")]
    disguised = rows.assign(corpus=np.where(rows["target"] == 1, "studio", "street"))
    _, lines = corpus_audit.audit_corpora(disguised, run.store, [GENDER], "speaker", 50, 0)
    assert lines[0].startswith("gender: CONFOUNDED")


def test_slices_name_the_worst_group_and_leave_small_ones_unscored(run):
    table = run.scored["slices"]
    assert table.loc[~table["enough"], "value"].isna().all()
    main = slices.main_slices(table, run.models)
    assert set(main) == {"gender", "age_years"}
    worst = main["age_years"].loc[main["age_years"]["value"].idxmin()]
    assert worst["n"] >= slices.LEAST
    assert worst["subset"].count("=") >= 1


def test_leaks_and_differences_are_those_of_the_scores(run):
    scores = run.scored["scores"].set_index(["task", "model", "protocol", "level", "metric"])["value"]
    leaks = run.scored["leaks"]
    assert set(leaks["model"]) == {*BASELINES, "linear", "linear:bank"}
    row = leaks[(leaks["model"] == "linear:bank") & (leaks["level"] == "clip") & (leaks["metric"] == "accuracy")].iloc[
        0
    ]
    pair = [scores[row["task"], "linear:bank", protocol, "clip", "accuracy"] for protocol in ("paper", "speaker")]
    assert [row["claimed"], row["shown"], row["value"]] == pytest.approx([*pair, pair[0] - pair[1]])
    pairs = run.scored["differences"]
    assert len(pairs[pairs["metric"] == "uar_difference"]) == 2 * 2 * len(BASELINES) * 3
    row = pairs[
        (pairs["against"] == "majority") & (pairs["metric"] == "uar_difference") & (pairs["level"] == "clip")
    ].iloc[0]
    names = [row["task"], "speaker", "clip", "uar"]
    both = [scores[(names[0], model, *names[1:])] for model in (row["model"], "majority")]
    assert row["value"] == pytest.approx(both[0] - both[1])


def test_the_order_of_answers_changes_no_score(run):
    shuffled = run.predictions[run.predictions["task"] == "gender"].sample(frac=1, random_state=0)
    again = evaluate.score_all(shuffled, run.splits, [GENDER], 200, 0)
    keys = ["task", "model", "protocol", "level", "metric"]
    first = run.scored["scores"].set_index(keys)[["value", "low", "high"]]
    again = again.set_index(keys)[["value", "low", "high"]]
    pd.testing.assert_frame_equal(again, first.loc[again.index])


def test_tables_of_networks_say_what_was_chosen_and_its_size(run):
    table = evaluate.tabulate_networks(run.fits, run.scored["scores"], run.trained, "speaker", "window")
    assert table.set_index(["task", "network"]).loc[("gender", "linear"), "parameters"] == 2 * 28 + 2
    described = evaluate.describe_models(run.fits, run.models, "speaker")
    assert described["next best"].tolist() == ["linear:bank", "linear:bank"]
    data = evaluate.describe_data(CLIPS, run.splits, "speaker")
    assert (data["clips"], data["speakers"], data["speakers_by_language"]) == (180, 60, {"en": 60})
    parts = [data[f"{part}_speakers"]["gender"] for part in ("train", "validation", "test")]
    assert sum(parts) == 60


def test_metrics_are_kept_in_full_precision_and_without_nan(run, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    counts = paths.load_json(run.stage.path("confusions.json"))
    path = summary.save_metrics("made-up", run.scored, counts, pd.DataFrame(), run.fits, {}, {"windows": len(WINDOWS)})
    saved = paths.load_json(path)
    assert saved["scores"][0]["value"] == run.scored["scores"]["value"].iloc[0]
    assert len(saved["scores"]) == len(run.scored["scores"]) + len(run.scored["slices"])
    assert [row["value"] for row in saved["scores"] if row["subset"] != "all"].count(None) == (
        ~run.scored["slices"]["enough"]
    ).sum()
    assert saved["confusions"] == counts
    assert saved["notes"] == []


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


# ---------------------------------------------------------------------------------------------------- by hand, several folds


TWO = Task("age_years", ["0 to 19", "20 and over"], [20])


def test_years_are_told_by_the_centres_of_their_own_fold_beside_its_median():
    rows = [(0, "train", "a", 10), (0, "train", "b", 30), (0, "train", "c", 50), (0, "test", "d", 18),
            (1, "train", "a", 10), (1, "train", "d", 18), (1, "train", "b", 30), (1, "test", "c", 50)]  # fmt: skip
    splits = pd.DataFrame(rows, columns=["fold", "split", "clip_id", "age_years"])
    splits = splits.assign(task="age_years", protocol="speaker", speaker_id=splits["clip_id"])
    splits = splits.assign(window_id=splits["clip_id"] + "@0", target=(splits["age_years"] >= 20).astype(int))
    answers = splits[splits["split"] == "test"].drop(columns="age_years").assign(model="linear", seed=0)
    answers = answers.assign(**{"p_0 to 19": [0.5, 0.25], "p_20 and over": [0.5, 0.75]})
    table = evaluate.answer_years(answers, splits, TWO).set_index(["model", "clip_id"])
    assert table.loc["linear", "predicted_years"].to_dict() == {"d": 25.0, "c": 26.0}  # of 10 and 40, of 14 and 30
    assert table.loc[evaluate.CONSTANT, "predicted_years"].to_dict() == {"d": 30.0, "c": 18.0}
    assert table["years"].to_dict() == {(model, clip): {"d": 18, "c": 50}[clip] for model, clip in table.index}


def test_errors_in_years_are_means_over_trainings_at_every_level():
    years, truth = [], {"a": 20.0, "b": 30.0, "c": 50.0}
    for seed, shift in ((0, 0.0), (1, 6.0)):
        for voice, age in truth.items():
            for window, error in enumerate((-4.0, 2.0)):
                years.append(["linear", seed, f"{voice}-0@{window}", f"{voice}-0", voice, age, age + error + shift])
    for voice, age in truth.items():
        years += [[evaluate.CONSTANT, 0, f"{voice}-0@{window}", f"{voice}-0", voice, age, 30.0] for window in (0, 1)]
    columns = ["model", "seed", "window_id", "clip_id", "speaker_id", "years", "predicted_years"]
    table = pd.DataFrame(years, columns=columns).assign(protocol="speaker", fold=0)
    scores = evaluate.score_ages(table, 100, 0).set_index(["model", "level", "metric"])
    expected = {"window": (3 + 5) / 2, "clip": (1 + 5) / 2}  # |-4|, |2| and |2|, |8|; of clips |-1| and |5|
    for level, value in expected.items():
        row = scores.loc[("linear", level, "mae_years")]
        assert row["value"] == pytest.approx(value)
        assert (row["n"], row["seeds"], row["speakers"]) == ({"window": 6, "clip": 3}[level], 2, 3)
    assert scores.loc[("linear", "clip", "mae_years"), "seed_std"] == pytest.approx(2)
    assert scores.loc[("linear", "clip", "bias_years"), "value"] == pytest.approx(2)
    apart = [
        evaluate.score_ages(table[table["seed"] == seed], 0, 0).set_index(["model", "level", "metric"])
        for seed in (0, 1)
    ]
    ccc = [one.loc[("linear", "clip", "ccc"), "value"] for one in apart]
    assert scores.loc[("linear", "clip", "ccc"), "value"] == pytest.approx(np.mean(ccc))
    differences = evaluate.compare_ages(table, "speaker", 100, 0).set_index("level")
    constant = scores.loc[(evaluate.CONSTANT, "clip", "mae_years"), "value"]
    assert constant == pytest.approx(10)
    assert differences.loc["clip", "value"] == pytest.approx(3 - 10)
    assert differences["against"].unique().tolist() == [evaluate.CONSTANT]


def test_the_best_on_validation_is_chosen_as_a_mean_over_folds_and_seeds():
    fits = pd.DataFrame({
        "task": "gender", "network": ["paper", "linear"] * 3, "protocol": ["speaker"] * 4 + ["paper"] * 2,
        "validation_uar": [0.9, 0.8, 0.6, 0.8, 1.0, 0.0],
    })  # fmt: skip
    assert evaluate.choose_models(fits, "speaker") == {"gender": "linear"}
    assert evaluate.choose_models(fits, "paper") == {"gender": "paper"}


def test_answers_are_selected_by_training_and_without_sound_the_guess_stands_alone(run):
    rows = pd.concat([run.predictions, run.predictions.assign(seed=3)])
    answers = evaluate.select_answers(rows, GENDER, "linear", "speaker", "test")
    assert set(answers["seed"]) == {0, 3}
    assert [name for name in answers if name.startswith("p_")] == ["p_male", "p_female"]
    assert set(evaluate.select_answers(rows, GENDER, "linear", "speaker", "test", first_seed=True)["seed"]) == {0}
    given = (run.trained, run.fits.head(0), run.splits, run.store, pd.DataFrame(), [GENDER, YEARS])
    assert set(evaluate.predict_all(*given)["model"]) == {"majority"}
