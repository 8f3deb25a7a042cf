import numpy as np
import pandas as pd
import pytest
from checks import refused
from learning_fixture import make_answers, make_corpus
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from lib import evaluate, scores
from lib.scores import score_answers
from lib.tables import validate_table
from lib.tasks import Task, task_table
from lib.trust import slices

ABC, GENDERS = list("abc"), ["male", "female"]
TASKS = [Task("gender", GENDERS)]
GENDER, AGE = Task("gender", ["male", "female"]), Task("age", ["child", "adult"], [16])
MODELS = {"gender": "linear", "age": "linear"}
CLIPS, WINDOWS = make_corpus(speakers=80, clips=5)  # two windows a clip; half are men; a sixth are children
CLIPS.loc[CLIPS["speaker_id"].isin(["b:03", "b:07", "b:11", "b:15"]), "language"] = "cy"  # too few speakers
CLIPS.loc[CLIPS["clip_id"].isin([f"a:{number}-0" for number in range(20, 34)]), "language"] = "eu"  # too few windows
TABLES = [task_table(WINDOWS, CLIPS, task).assign(task=task.name) for task in (GENDER, AGE)]
SPLITS = pd.concat(TABLES, ignore_index=True).assign(protocol="speaker", fold=0, split="test", right=0.9)
SPLITS.loc[(SPLITS["gender"] == "female") & (SPLITS["corpus"] == "b"), "right"] = 0.6
ROWS = [(SPLITS[SPLITS["task"] == task.name], task) for task in (GENDER, AGE)]
PREDICTIONS = pd.concat([make_answers(*rows, rows[0]["right"], ["linear", "majority"]) for rows in ROWS])


def draw_answers(rows=600, classes="abc", speakers=30, right=0.7, seed=0):
    """A table of answers that favour the truth in a share `right` of rows; a speaker has one class."""
    rng, voices = np.random.default_rng(seed), np.arange(rows) % speakers
    targets = voices % len(classes)
    guess = np.where(rng.random(rows) < right, targets, rng.integers(0, len(classes), rows))
    probabilities = rng.dirichlet(np.ones(len(classes)), rows) + 2 * np.eye(len(classes))[guess]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    table = pd.DataFrame({"target": targets, "speaker_id": [f"s{voice}" for voice in voices]})
    return table.assign(**{f"p_{name}": probabilities[:, k] for k, name in enumerate(classes)})


def make_predictions(rows=600, right=0.7, seed=0, **changes):
    table = draw_answers(rows, GENDERS, right=right, seed=seed)
    table["clip_id"] = [f"{speaker}-{i // 120}" for i, speaker in enumerate(table["speaker_id"])]
    fixed = {"task": "gender", "model": "linear", "protocol": "speaker", "split": "test"} | changes
    fixed = {"seed": 0, "epoch": 3, "fold": 0} | fixed
    return table.assign(window_id=table["clip_id"] + "@" + table.index.astype("str"), **fixed)


def score(table, metric="uar", classes=ABC, **options):
    return scores.score_answers(table, classes, **options).set_index("metric").loc[metric]


def test_as_many_speakers_are_drawn_as_there_are_by_the_seed_and_draws_without_a_score_are_left_out():
    (sums,) = scores.sum_by_speaker(np.arange(8.0).reshape(4, 2), pd.DataFrame({"speaker_id": list("baba")}))
    assert (sums.index.tolist(), sums.to_numpy().tolist()) == (["a", "b"], [[8, 10], [4, 6]])
    sums = np.stack([np.ones(7), np.arange(7)], axis=1)
    drawn, again, other = (scores.draw_sums(sums, 500, seed) for seed in (3, 3, 4))
    assert [(drawn[:, 0] == 7).all(), (drawn == again).all(), (drawn == other).all()] == [True, True, False]
    assert drawn[:, 1].mean() == pytest.approx(21, rel=0.03)
    assert (scores.draw_sums(np.ones((300_000, 1)), 30, seed=0) == 300_000).all()  # in blocks

    def statistic(sums):  # only of draws that hold each of so many speakers
        return {f"of {k}": np.where((sums[..., :k] > 0).all(axis=-1), sums.sum(axis=-1), np.nan) for k in (3, 9)}

    records = scores.bootstrap_sums(np.eye(30), statistic)
    assert records["of 3"] == (30, 30, 30)
    for interval in (records["of 9"], scores.bootstrap_sums(np.eye(30), statistic, draws=0)["of 3"]):
        np.testing.assert_equal(interval, (30, np.nan, np.nan))
    # one voice alone has class b: a draw without it must not count as a UAR over class a
    table = pd.DataFrame({"target": [0] * 30 + [1], "speaker_id": range(31), "p_a": [1.0] * 27 + [0.0] * 3 + [1.0]})
    row = score(table.assign(p_b=1 - table["p_a"]), classes=["a", "b"])
    assert (row["value"], row["high"] <= 0.5) == (pytest.approx(0.45), True)


def test_the_interval_covers_the_true_accuracy_about_95_times_in_100():
    covered, rng = 0, np.random.default_rng(1)
    voices = pd.DataFrame({"speaker_id": np.arange(1500) // 30})
    for trial in range(200):  # speakers have an accuracy of their own around 0.7: an interval of windows would miss it
        right = rng.random(1500) < np.repeat(rng.beta(7, 3, 50), 30)
        sums = scores.sum_by_speaker(np.stack([right, np.ones(1500)], axis=1), voices)[0].to_numpy()
        _, low, high = scores.bootstrap_sums(sums, lambda s: {"share": s[..., 0] / s[..., 1]}, 400, trial)["share"]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 199


def test_metrics_equal_scikit_learns_and_answers_that_cannot_be_scored_are_refused():
    table = draw_answers()
    targets, predicted = table["target"].to_numpy(), table[["p_a", "p_b", "p_c"]].to_numpy().argmax(axis=1)
    counts = scores.confusion_counts(targets, predicted, 3)
    np.testing.assert_array_equal(counts, confusion_matrix(targets, predicted))
    expected = {"accuracy": (targets == predicted).mean(), "uar": balanced_accuracy_score(targets, predicted)}
    expected |= {f"{kind}_f1": f1_score(targets, predicted, average=kind) for kind in ("macro", "weighted")}
    for name, score_of in (("f1", f1_score), ("recall", recall_score)):
        expected |= {f"{name}_{c}": one for c, one in zip(ABC, score_of(targets, predicted, average=None))}
    expected["mace"] = np.abs(targets - predicted).mean()
    assert scores.confusion_metrics(counts, ABC) == pytest.approx(expected)
    absent = scores.confusion_metrics(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]), ABC)  # nobody is of class c
    assert [absent[name] for name in ("f1_c", "recall_c", "uar")] == pytest.approx([np.nan, np.nan, 0.85], nan_ok=True)
    table.loc[7, "p_a"] = np.nan
    for rows in (table, table.head(0)):
        refused("nothing to score", scores.score_answers, rows, ABC)
    ages = pd.DataFrame({"years": [np.nan], "predicted_years": 1.0, "speaker_id": "a"})
    refused("ages to score must be finite", scores.score_years, ages)


def test_seeds_are_averaged_and_folds_pooled():
    one, other = draw_answers(right=0.9), draw_answers(right=0.5, seed=3)
    both = pd.concat([one.assign(seed=0), other.assign(seed=1)], ignore_index=True)
    values = [score(table, draws=0)["value"] for table in (one, other)]
    row, folds = score(both, draws=0), score(both.assign(fold=both["seed"], seed=0), draws=0)
    expected = pytest.approx([np.mean(values), np.std(values), 600, 2])
    assert row[["value", "seed_std", "n", "seeds"]].tolist() == expected
    assert folds[["n", "seeds", "seed_std"]].tolist() == [1200, 1, 0]


def test_predictions_fit_the_contract_and_are_averaged_in_probability():
    table = make_predictions()
    records = evaluate.score_all(table, pd.DataFrame(), TASKS, 0, 0)
    uar = records[records["metric"] == "uar"].set_index("level")
    assert uar["n"].to_dict() == {"window": 600, "clip": 150, "speaker": 30}
    assert uar.loc["window", "value"] < uar.loc["clip", "value"] <= uar.loc["speaker", "value"]
    validate_table(table, "predictions")
    clips = scores.aggregate_predictions(table, "clip").set_index("clip_id")
    assert clips.loc["s3-2", "p_male"] == pytest.approx(table.loc[table["clip_id"] == "s3-2", "p_male"].mean())
    assert clips["windows"].sum() == len(table)
    rows = make_predictions(120).assign(speaker_id="s0", clip_id="s0-0")  # one speaker, at two ages
    apart = pd.concat([rows, rows.assign(seed=1), rows.assign(fold=1), rows.assign(protocol="paper")])
    assert sorted(scores.aggregate_predictions(apart, "speaker")["target"]) == [0] * 4 + [1] * 4


def test_models_and_protocols_are_compared_on_equal_windows():
    good, poor = make_predictions(right=0.95), make_predictions(model="majority", seed=4)
    given = (pd.DataFrame(), TASKS, "speaker", 200, 0)
    records = evaluate.compare_all(pd.concat([good, poor]), *given).set_index(["metric", "level"])
    row = records.loc[("accuracy_difference", "window")]
    right = [(rows["target"] == (rows["p_female"] > 0.5)).mean() for rows in (good, poor)]
    assert (row["value"], row["low"] > 0, row["against"]) == (pytest.approx(right[0] - right[1]), True, "majority")
    same = scores.score_answers(poor, GENDERS, minus=poor)[["value", "low", "high"]]
    assert (same == 0).all(axis=None)  # drawn in pairs
    shown = make_predictions(seed=4).query("speaker_id < 's5'")  # fewer speakers
    right[1] = (shown["target"] == (shown["p_female"] > 0.5)).mean()
    leaks = evaluate.score_leaks(pd.concat([good.assign(protocol="paper"), shown]), *given)
    row = leaks.set_index(["metric", "level"]).loc[("accuracy", "window")]
    assert row[["claimed", "shown", "value"]].tolist() == pytest.approx([*right, right[0] - right[1]])
    assert row["low"] > 0
    assert evaluate.score_leaks(shown, *given).empty  # random windows were not run


def test_errors_in_years_equal_their_definitions_and_are_means_over_trainings_at_every_level():
    rng = np.random.default_rng(0)
    years = rng.uniform(6, 60, 300)
    predicted, worse = years + rng.normal(2, 5, 300), years + rng.normal(0, 9, 300)
    table = pd.DataFrame({"years": years, "predicted_years": predicted, "speaker_id": np.arange(300) // 10})
    records, other = scores.score_years(table).set_index("metric"), table.assign(predicted_years=worse)
    spread = years.var() + predicted.var() + (years.mean() - predicted.mean()) ** 2
    ccc = 2 * np.cov(years, predicted, bias=True)[0, 1] / spread
    expected = {"mae_years": np.abs(predicted - years).mean(), "bias_years": (predicted - years).mean(), "ccc": ccc}
    assert records["value"].to_dict() == pytest.approx(expected)
    assert ((records["low"] < records["value"]) & (records["value"] < records["high"])).all()
    paired, same = (scores.score_years(one, minus=other).iloc[0] for one in (table, other))
    difference = pytest.approx(expected["mae_years"] - np.abs(worse - years).mean())
    assert (paired["metric"], paired["value"]) == ("mae_years_difference", difference)
    assert paired["low"] < paired["value"] < paired["high"] < 0
    assert same[["value", "low", "high"]].tolist() == [0, 0, 0]
    assert scores.score_years(table.assign(predicted_years=30.0), draws=0)["value"].iloc[2] == pytest.approx(0)
    clips = table.assign(clip_id=table["speaker_id"], years=30.0)  # whose years are averaged before they are compared
    by_clip = scores.score_levels(clips, None, draws=0, seed=0).query("level == 'clip' and metric == 'mae_years'")
    assert by_clip["value"].item() == pytest.approx(np.abs(predicted.reshape(30, 10).mean(axis=1) - 30).mean())
    rows = []
    for voice, years in (("a", 20.0), ("b", 30.0), ("c", 50.0)):
        for window, error in ((0, -4.0), (1, 2.0)):
            answers = [("linear", 0, years + error), ("linear", 1, years + error + 6), ("constant", 0, 30.0)]
            rows += [(*answer, f"{voice}@{window}", voice, years) for answer in answers]
    table = pd.DataFrame(rows, columns=["model", "seed", "predicted_years", "window_id", "speaker_id", "years"])
    table = table.assign(task="age_years", protocol="speaker", split="test", fold=0, clip_id=table["speaker_id"])
    linear, constant = (table[table["model"] == model] for model in ("linear", "constant"))
    found = scores.score_levels(linear, None, draws=0, seed=0).set_index(["level", "metric"])
    windows, clips = (found.loc[level, "mae_years"] for level in ("window", "clip"))
    told = [[*row[["value", "n", "seeds", "speakers"]]] for row in (windows, clips)]
    assert told == [[(3 + 5) / 2, 6, 2, 3], [(1 + 5) / 2, 3, 2, 3]]  # of |-4|, |2| and |2|, |8|; of |-1| and |5|
    assert clips["seed_std"] == pytest.approx(2)
    pair = scores.score_levels(linear, None, constant, draws=0, seed=0).set_index(["level", "metric"])
    assert pair.loc[("clip", "mae_years_difference"), "value"] == pytest.approx(3 - (10 + 0 + 20) / 3)


@pytest.fixture(scope="module")
def table():
    return slices.slice_all(PREDICTIONS, SPLITS, [GENDER, AGE], MODELS, "speaker", 100, 0)


def test_the_worst_group_is_found_and_small_ones_keep_their_size_but_get_no_score(table):
    main = {task: rows.set_index("subset") for task, rows in slices.main_slices(table, MODELS).items()}
    assert main["gender"]["value"].idxmin().endswith("corpus=b")
    worst = main["age"].loc[main["age"]["value"].idxmin()]
    assert (worst.name, worst["value"]) == ("gender=female, corpus=b", pytest.approx(0.6, abs=0.06))
    assert worst["low"] < worst["value"] < worst["high"]
    voices = SPLITS.loc[(SPLITS["gender"] == "female") & (SPLITS["corpus"] == "b"), "speaker_id"]
    answers = PREDICTIONS[PREDICTIONS["speaker_id"].isin(voices)].query("task == 'age' and model == 'linear'")
    scores = score_answers(answers, AGE.classes, draws=0).set_index("metric").loc["uar"]
    assert worst[["value", "n", "speakers", "seeds"]].tolist() == [scores["value"], 200, 20, 2]
    small = main["gender"].loc[["language=cy", "language=eu"]]
    assert small[["n", "speakers"]].to_numpy().tolist() == [[40, 4], [14, 7]]
    assert (small["value"].isna() & ~small["enough"]).all()
    assert slices.main_slices(table[~table["enough"]], MODELS) == {}


def test_nothing_is_sliced_by_what_it_asks_for_tells_no_windows_apart_or_is_not_known_and_windows_are_described(table):
    gender, age = (table[table["task"] == name] for name in ("gender", "age"))
    assert not gender["subset"].str.contains("gender=|clip length").any()  # all clips are of five seconds
    assert not age["subset"].str.contains("age group=").any()
    assert set(gender.loc[gender["model"] == "majority", "subset"]) == {"age group=child", "age group=adult"}
    assert (set(age["model"]), age.loc[age["subset"].str.startswith("loudness"), "n"].sum()) == ({"linear"}, 800)
    blank = SPLITS.assign(language=SPLITS["language"].where(SPLITS["speaker_id"] < "b:20", ""))
    known = slices.slice_all(PREDICTIONS, blank, [AGE], MODELS, "speaker", 0, 0).set_index("subset")["n"]
    sizes = {"cy": 40, "en": 500 - 40 - 14, "eu": 14}
    assert known.filter(like="language").to_dict() == {f"language={name}": size for name, size in sizes.items()}
    described = slices.describe_windows(SPLITS[SPLITS["task"] == "gender"], AGE).set_index("window_id").loc["b:79-0@0"]
    expected = {"gender": "female", "corpus": "b", "language": "en", "age group": "adult", "clip length": "5 to 8 s"}
    assert described[list(expected)].to_dict() == expected
    levels = SPLITS.head(5).assign(level_db=[-36.0, -35.0, -25.1, -25.0, np.nan])
    bands = ["under -35 dB", "-35 to -25 dB", "-35 to -25 dB", "-25 dB and over", ""]
    described = slices.describe_windows(levels, None)
    assert described[["loudness", "age group"]].to_numpy().tolist() == [[band, ""] for band in bands]


def test_errors_come_most_confident_first_with_their_sound_and_what_clips_were_told_by_corpus_and_label():
    answers = pd.DataFrame({"window_id": list("vwxyz"), "clip_id": list("VWXYZ"), "target": [0, 0, 1, 1, 0]})
    answers = answers.assign(p_male=[0.9, 0.3, 0.8, 0.1, 0.05], p_female=[0.1, 0.7, 0.2, 0.9, 0.95])
    errors = slices.list_errors(answers, GENDER)
    assert errors["window_id"].tolist() == ["z", "x", "w"]
    assert errors.iloc[1].tolist() == ["gender", "x", "X", "female", "male", 0.8]
    windows = pd.DataFrame({"window_id": ["z", "x"], "row": [0, 1]})
    sound, title = slices.read_error(errors.iloc[1], windows, np.array([[0, 0], [16384, -32768]], np.int16))
    assert (sound.tolist(), title) == ([0.5, -1.0], "gender: male, is female (80 % sure)")
    answers = pd.DataFrame({"clip_id": ["a1", "a1", "a2", "b1"], "speaker_id": list("aaab"), "target": [1, 1, 0, 1]})
    answers = answers.assign(p_male=[0.9, 0.3, 0.2, 0.1], p_female=[0.1, 0.7, 0.8, 0.9])
    splits = pd.DataFrame({"clip_id": ["a1", "a2", "b1"], "corpus": ["a", "a", "b"]})
    table = slices.tabulate_told(answers, splits, GENDER).astype({"label": str})
    columns = ["corpus", "label", "male", "female", "clips"]
    rows = [["a", "male", 0, 100, 1], ["a", "female", 100, 0, 1], ["b", "female", 0, 100, 1]]
    assert table.to_dict("split") == {"index": [0, 1, 2], "columns": columns, "data": rows}
