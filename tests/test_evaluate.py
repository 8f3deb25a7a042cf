from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_acoustics, make_corpus, make_stage, make_store
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from lib import evaluate, paths
from lib.baselines import BASELINES
from lib.compute import Compute, torch_threads
from lib.model_folder import load_model_folder
from lib.stages import Stage
from lib.tables import validate_table
from lib.tasks import Task
from lib.train import Recipe
from lib.trainings import split_tasks, train_networks
from lib.trust import confidence, ranking, summary
from lib.trust.probes import project_windows

CLIPS, WINDOWS = make_corpus(speakers=60)
GENDER, YEARS = Task("gender", ["male", "female"]), Task("age_years", ["0 to 19", "20 to 29", "30 and over"], [20, 30])
TASKS = [GENDER, YEARS]
ACOUSTICS = make_acoustics(WINDOWS, CLIPS)
LEFT_OUT_LANGUAGE = ranking.LEFT_OUT["languages"][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Splits, trainings, answers and scores of a made-up run, and the stage that holds the latter."""
    folder = tmp_path_factory.mktemp("run")
    store = make_store(folder / "store", WINDOWS, CLIPS)
    splits = split_tasks(WINDOWS, CLIPS, TASKS, ["speaker", "paper"], 0)
    trained, stage = make_stage(folder / "trained"), make_stage(folder / "evaluated", "05_evaluate")
    options = ["linear", "linear:bank"], [0], Recipe(), Compute("cpu", "float32", "")
    with torch_threads(1):
        fits = train_networks(trained, splits, [store], TASKS, *options)
    predictions = evaluate.predict_all(trained, fits, splits, store, ACOUSTICS, TASKS)
    stores = [store, make_store(folder / "copy", WINDOWS, CLIPS, seed=1, noise=4.0)]
    summary.score_run(stage, trained, predictions, splits, fits, stores, TASKS, "speaker", 200, 0)
    return SimpleNamespace(**locals(), scored=summary.load_scores(stage))


def test_every_window_that_is_not_trained_on_is_answered_once_by_every_model_and_baselines_see_no_other_label(run):
    validate_table(run.predictions, "predictions")
    assert not run.predictions.duplicated(["task", "model", "protocol", "fold", "seed", "window_id"]).any()
    wanted = run.splits[run.splits["split"] != "train"].groupby(["task", "protocol"]).size()
    for model in [*BASELINES, "linear", "linear:bank"]:
        assert run.predictions[run.predictions["model"] == model].groupby(["task", "protocol"]).size().equals(wanted)
    turned = run.splits.assign(target=run.splits["target"].where(run.splits["split"] == "train", 0))
    given = (run.trained, run.fits.head(0), turned, run.store)
    answers = evaluate.predict_all(*given, ACOUSTICS, TASKS).drop(columns="target")
    expected = run.predictions[run.predictions["model"].isin(BASELINES)].reset_index(drop=True)
    pd.testing.assert_frame_equal(answers, expected[answers.columns])
    assert set(evaluate.predict_all(*given, pd.DataFrame(), TASKS)["model"]) == {"majority"}  # without sound


def value_of(table, **wanted):
    rows = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_model_that_hears_is_chosen_and_scores_equal_scikit_learns(run):
    assert run.scored["chosen"].set_index("task")["network"].to_dict() == {"gender": "linear", "age_years": "linear"}
    fits = pd.DataFrame({"task": "gender", "network": ["paper", "linear"] * 2, "validation_uar": [0.9, 0.8, 0.6, 0.8]})
    fits = pd.concat([fits, run.fits.assign(validation_uar=1 - run.fits["validation_uar"])]).assign(protocol="speaker")
    best = evaluate.choose_models(fits.head(4), run.predictions, run.splits, [GENDER], "speaker")  # by its mean
    assert best.to_numpy().tolist() == [["gender", "UAR", "linear", 0.8, "paper", 0.75]]
    (best,) = evaluate.choose_models(fits[4:], run.predictions, run.splits, [YEARS], "speaker").to_numpy().tolist()
    told = evaluate.answer_years(run.predictions, run.splits, YEARS, "validation").query("protocol == 'speaker'")
    models = [told[told["model"] == name] for name in ("linear", "linear:bank")]  # by years, though its UAR is lower
    errors = [mean_absolute_error(one["years"], one["predicted_years"]) for one in models]
    assert best[:3] + best[4:5] == ["age_years", "error in years", "linear", "linear:bank"]
    assert best[3::2] == pytest.approx(errors) == sorted(errors)
    wanted, view = {"task": "gender", "model": "linear", "protocol": "speaker"}, (GENDER, "linear", "speaker", "test")
    answers = evaluate.select_answers(run.predictions, *view)
    seeds = pd.concat([run.predictions, run.predictions.assign(seed=3)])  # of all trainings, or of the first
    counts = [len(evaluate.select_answers(seeds, *view, first)) for first in (False, True)]
    assert counts == [2 * len(answers), len(answers)]
    row = value_of(run.scored["scores"], **wanted, level="window", metric="uar")
    right = balanced_accuracy_score(answers["target"], answers[["p_male", "p_female"]].to_numpy().argmax(axis=1))
    assert 0.9 < row["value"] == pytest.approx(right)
    assert row["low"] <= row["value"] <= row["high"]
    confusions = paths.load_json(run.stage.path("confusions.json"))
    (counts,) = [one["counts"] for one in confusions if wanted.items() <= one.items()]
    shares = np.diagonal(counts) / np.sum(counts, axis=1)
    assert (np.sum(counts), shares.mean()) == (len(answers), pytest.approx(right))


def test_leaks_and_differences_are_those_of_the_scores_and_networks_are_listed_with_their_size(run):
    for name, metric in (("leaks", "uar"), ("leaks", "mae_years"), ("copies", "mae_years")):
        protocols = ["altered" if name == "copies" else "paper", "speaker"]
        wanted = {"task": "age_years", "model": "linear", "level": "clip", "metric": metric}
        pair = [value_of(run.scored["scores"], **wanted, protocol=one)["value"] for one in protocols]
        row = value_of(run.scored[name], **wanted)
        assert row[["claimed", "shown", "value"]].tolist() == pytest.approx([*pair, pair[0] - pair[1]])
    assert row["low"] > 0  # the copies are noisier: ages are told worse
    assert row["n"] == value_of(run.scored["scores"], **wanted, protocol="speaker")["n"]  # of the test part alone
    differences = run.scored["differences"]
    assert (differences["metric"] == "uar_difference").sum() == 2 * 2 * len(BASELINES) * 3
    nearer = value_of(differences, **wanted | {"metric": "mae_years_difference", "against": evaluate.CONSTANT})
    assert nearer["high"] < 0  # the model that hears age is nearer than the constant
    table = evaluate.answer_years(run.predictions, run.splits, YEARS)
    constant = table[(table["model"] == evaluate.CONSTANT) & (table["protocol"] == "speaker")]["predicted_years"]
    train = run.splits.query("task == 'age_years' and protocol == 'speaker' and split == 'train'")
    assert constant.unique().tolist() == [train["age_years"].median()]
    table = evaluate.tabulate_networks(run.fits, run.scored["scores"], run.trained, "speaker", "window")
    assert table.set_index(["task", "network"]).loc[("gender", "linear"), "parameters"] == 2 * 28 + 2
    assert run.scored["chosen"]["next best"].tolist() == ["linear:bank"] * 2
    assert summary.describe_data(CLIPS, run.splits, "speaker")["speakers_by_language"] == {"en": 60}


def test_model_folders_leave_with_settings_and_scores_on_unseen_speakers(run, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    embedding = {"encoder": "wav2vec2-tiny-untrained", "feature": ""}
    stages = {"02_segment": {"window_s": 3.0}, "03_embed": embedding, "04_train": {}, "05_evaluate": {}}
    chain = {name: Stage(name, "made-up", "0", run.stage.folder, given, True) for name, given in stages.items()}
    chain["04_train"].folder = run.trained.folder
    given = ("made-up", chain, run.fits, run.splits, [run.store], run.predictions, run.scored, TASKS, CLIPS, "speaker")
    save = partial(summary.save_models, *given, level="clip", synthetic=True)
    model, again = (load_model_folder(save(refit=refit)[-1]) for refit in (False, True))
    assert sorted(path.name for path in (tmp_path / "made-up/models").iterdir()) == ["best", "linear", "linear-bank"]
    settings = run.scored["settings"].set_index(["task", "model", "fold"])["temperature"]
    for one, fold in ((model.heads["gender"], 0), (again.heads["gender"], -1)):
        assert (one.network, one.calibration.temperature) == ("linear", settings["gender", "linear", fold])
    years = confidence.fit_years(run.predictions, run.splits, YEARS, "linear", "speaker", 0)
    assert (model.heads["age_years"].years, model.fingerprint == again.fingerprint) == (years, False)
    assert any("synthetic" in warning for warning in model.warnings)
    embedding["encoder"] = ""
    assert save(refit=False) == []


@pytest.mark.parametrize("speakers", [8, 16])
def test_the_map_of_windows_stands_few_of_them_and_names_the_nearest_other_voice(tmp_path, speakers):
    clips, windows = make_corpus(speakers=speakers)  # 48 and 96 windows; 60 neighbours are looked at where there are
    store = make_store(tmp_path / "store", windows, clips)
    points = project_windows(make_stage(tmp_path / "stage"), store, windows, clips, 0)
    assert (len(points), set(points["near_gender"])) == (6 * speakers, {"male", "female"})


def make_clips(seed=0):
    """Two clips each of 120 speakers: Common Voice in English and in a language left out, and children and adults."""
    n = np.arange(240) // 2
    common, decades, ages = n < 80, np.array([10, 20, 30, 50])[n % 4], np.array([8.0, 9.0, 25.0, 31.0])[n % 4]
    clips = pd.DataFrame({"corpus": np.where(common, "common_voice", "speechocean762"), "age_decade": decades})
    clips["speaker_id"] = clips["corpus"] + [f":x{number:03}" for number in n]
    clips["window_id"] = clips["clip_id"] = [f"{number}-{row % 2}" for row, number in enumerate(n)]
    clips["years"], clips["gender"] = np.where(common, decades + 5.0, ages), np.array(["male", "female"])[n // 4 % 2]
    clips = clips.assign(
        age_years=clips["years"].mask(common), age_decade=clips["age_decade"].astype("Int64").where(common)
    )
    clips["language"] = np.where((n < 50) | ~common, "en", LEFT_OUT_LANGUAGE)
    return clips.assign(part=ranking.part_speakers(clips, seed))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Table, columns and the answers of an encoder that knows, of one that is deaf, each with a part that knows nothing."""
    rng = np.random.default_rng(0)
    table, tasks = ranking.assign_classes(make_clips())
    columns, folder, answers = ranking.list_columns(table, tasks), tmp_path_factory.mktemp("answers"), {}
    years = table["years"]
    truth = np.stack([table["gender"] == "female", years / 10, years < 16, years < 20], axis=1)
    vectors = {"noise": rng.normal(size=(len(table), 6)), "truth": truth + rng.normal(0, 0.3, (len(table), 4))}
    for model, parts in {"knows": ["noise", "truth"], "deaf": ["noise"]}.items():
        answers[model] = ranking.answer_all(folder / f"{model}.npz", table, columns, parts, vectors.get)
    return table, columns, answers, vectors


def test_whom_the_encoder_heard_is_never_tested_and_columns_are_those_with_enough_speakers(study):
    table, columns, _, _ = study
    titles = [column.title for column in columns]
    assert "gender of adults: languages left out" in titles
    assert "gender of adults: English" not in titles  # all of them were heard
    assert {"gender of children", "child or adult", "teen or adult", "age: common_voice"} <= set(titles)
    assert set(table.loc[table["class of child or adult"] >= 0, "corpus"]) == {"speechocean762"}
    assert set(table.loc[table["class of teen or adult"] >= 0, "corpus"]) == {"common_voice"}
    few = table[~((table["class of child or adult"] == 0) & (table["part"] == "test"))]
    tasks = list({column.task.name: column.task for column in columns}.values())
    assert "gender of children" not in [column.title for column in ranking.list_columns(few, tasks)]
    clips = make_clips()
    assert clips.groupby("speaker_id")["part"].unique().map(len).max() == 1
    of_speech = clips[clips["corpus"] == "common_voice"]
    assert (of_speech["part"] == "test").equals(of_speech["language"] == LEFT_OUT_LANGUAGE)
    drawn = clips[clips["corpus"] == "speechocean762"].drop_duplicates("speaker_id")["part"].value_counts()
    assert drawn.to_dict() == {"train": 24, "test": 16}
    assert not make_clips(1)["part"].equals(clips["part"])


def test_no_training_speaker_answers_for_himself_and_the_train_part_alone_chooses(study, tmp_path):
    table, columns, known, _ = study
    voices = pd.get_dummies(table["speaker_id"]).to_numpy(float)  # knows who speaks, and nothing else
    answers = ranking.answer_all(tmp_path / "voices.npz", table, columns, ["voices"], {"voices": voices}.get)
    inside = ranking.take_rows(table, columns[0], answers["voices|gender"], "train")
    assert ranking.score_rows(inside, columns[0], draws=0)["value"].iloc[0] < 0.65
    contrary = (table["part"] == "test").to_numpy()[:, None]
    wrong = {key: np.where(contrary, values[:, ::-1], values) for key, values in known["knows"].items()}
    scores = ranking.rank(table, columns, {"knows": wrong}, draws=0).query("task == 'gender' and model == 'knows'")
    assert set(scores.loc[scores["chosen"], "part"]) == {"truth"}
    assert scores.loc[scores["chosen"], "value"].max() < 0.2


def test_a_good_encoder_is_told_from_a_deaf_one_and_from_a_guess(study):
    table, columns, answers, vectors = study
    scores = ranking.rank(table, columns, answers, draws=200)
    best = scores[scores["chosen"]].set_index(["subset", "model"])["value"]
    behind = ranking.compare(table, columns, answers, scores, "", draws=200)
    for column in columns:
        ages, guess, knows = column.task.name == ranking.YEARS, *best[column.title][[ranking.GUESS, "knows"]]
        assert knows < guess if ages else knows > 0.85 > guess == 0.5
        row = behind[behind["subset"] == column.title].iloc[0]
        assert (row["model"], row["against"]) == ("deaf", "knows")
        assert row["low"] > 0 if ages else row["high"] < 0
    mean, spread = ranking.score_few_shots(table, columns[0], vectors["truth"], 0)
    assert (0.7 < mean < 1, spread > 0) == (True, True)
