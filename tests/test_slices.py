"""Groups: the worst by name, small ones unscored, none that the task itself asks for; and errors one by one."""

import numpy as np
import pandas as pd
import pytest

from lib.scores import score_answers
from lib.tasks import Task
from lib.trust import slices

GENDER, AGE = Task("gender", ["male", "female"]), Task("age", ["child", "adult"], [16])
MODELS = {"gender": "linear", "age": "linear"}


def make_splits(speakers=80, windows=10):
    """Ten windows of three seconds a speaker, five clips; half the voices are children; one voice alone speaks Welsh."""
    rows = []
    for speaker in range(speakers):
        for window in range(windows):
            clip = f"s{speaker:02d}-{window // 2}"
            rows.append({
                "window_id": f"{clip}@{window % 2}", "clip_id": clip, "speaker_id": f"s{speaker:02d}", "corpus": "ab"[speaker % 2],
                "gender": GENDER.classes[speaker // 2 % 2], "age_years": 8.0 if speaker % 8 < 4 else 40.0, "age_decade": None,
                "language": "cy" if speaker == 3 else "en", "start_s": 2.0 * (window % 2), "duration_s": 3.0,
                "level_db": -40.0 + speaker % 3 * 10, "speech_ratio": np.nan if speaker == 0 else 0.7,
            })  # fmt: skip
    table = pd.DataFrame(rows).astype({"age_decade": "Int16"})
    parts = []
    for task, values in ((GENDER, table["gender"] == "female"), (AGE, table["age_years"] > 16)):
        parts.append(table.assign(task=task.name, protocol="speaker", fold=0, split="test", target=values.astype(int)))
    return pd.concat(parts, ignore_index=True)


def make_predictions(splits, models=("linear", "majority"), seeds=(0, 1)):
    """Answers right in nine of ten windows, of girls and women of corpus b in six of ten."""
    rng, parts = np.random.default_rng(0), []
    hard = ((splits["gender"] == "female") & (splits["corpus"] == "b")).to_numpy()
    keys = ["window_id", "clip_id", "speaker_id", "task", "protocol", "split", "fold", "target"]
    for model in models:
        for seed in seeds:
            right = rng.random(len(splits)) < np.where(hard, 0.6, 0.9)
            answer = np.where(right, splits["target"], 1 - splits["target"])
            p = np.where(answer == 1, 1, -1) * rng.uniform(0, 0.5, len(splits)) + 0.5
            table = splits[keys].assign(model=model, seed=seed, epoch=1)
            for name, first, second in (("gender", "male", "female"), ("age", "child", "adult")):
                own = (splits["task"] == name).to_numpy()
                table[f"p_{first}"], table[f"p_{second}"] = np.where(own, 1 - p, np.nan), np.where(own, p, np.nan)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


SPLITS = make_splits()
PREDICTIONS = make_predictions(SPLITS)


@pytest.fixture(scope="module")
def table():
    return slices.slice_all(PREDICTIONS, SPLITS, [GENDER, AGE], MODELS, "speaker", 100, 0)


def test_the_worst_group_is_found_with_its_own_score(table):
    main = slices.main_slices(table, MODELS)
    assert main["gender"].set_index("subset")["value"].idxmin() == "corpus=b"
    own = main["age"].set_index("subset")
    worst = own.loc[own["value"].idxmin()]
    assert worst.name == "gender=female, corpus=b"
    assert worst["value"] == pytest.approx(0.6, abs=0.06)
    assert worst["low"] < worst["value"] < worst["high"]
    voices = SPLITS.loc[(SPLITS["gender"] == "female") & (SPLITS["corpus"] == "b"), "speaker_id"].unique()
    answers = PREDICTIONS[
        (PREDICTIONS["task"] == "age") & (PREDICTIONS["model"] == "linear") & PREDICTIONS["speaker_id"].isin(voices)
    ]
    scores = score_answers(answers, AGE.classes, draws=0).set_index("metric").loc["uar"]
    assert worst[["value", "n", "speakers", "seeds"]].tolist() == scores[["value", "n", "speakers", "seeds"]].tolist()
    assert worst[["n", "speakers", "seeds"]].tolist() == [200, 20, 2]


def test_a_task_is_not_sliced_by_what_it_asks_for_and_all_models_stand_beside_in_age_groups(table):
    gender, age = (table[table["task"] == name] for name in ("gender", "age"))
    assert not gender["subset"].str.contains("gender=").any()
    assert not age["subset"].str.contains("age group=").any()
    assert {"age group=child", "age group=adult"} <= set(gender["subset"])
    assert set(gender.loc[gender["model"] == "majority", "subset"]) == {"age group=child", "age group=adult"}
    assert set(age["model"]) == {"linear"}
    assert set(table["metric"]) == {"uar"}


def test_small_groups_keep_their_size_but_get_no_score(table):
    welsh = table[table["subset"] == "language=cy"].set_index("task").loc["age"]
    assert not welsh["enough"]
    assert welsh[["n", "speakers"]].tolist() == [10, 1]
    assert np.isnan(welsh["value"])
    assert table.loc[table["enough"], "value"].notna().all()
    assert slices.main_slices(table[~table["enough"]], MODELS) == {}
    assert slices.main_slices(pd.DataFrame(), MODELS) == {}


def test_what_tells_no_windows_apart_is_no_slice_and_rows_not_known_are_left_out(table):
    assert not table["subset"].str.contains("clip length|share of speech").any()  # one band holds all that is known
    loud = table[(table["task"] == "age") & table["subset"].str.startswith("loudness")]
    assert loud["subset"].tolist() == [
        f"loudness={band}" for band in ("-25 dB and over", "-35 to -25 dB", "under -35 dB")
    ]
    assert loud["n"].sum() == 800
    blank = SPLITS.assign(language=SPLITS["language"].where(SPLITS["speaker_id"] < "s10", ""))
    known = slices.slice_all(PREDICTIONS, blank, [GENDER, AGE], MODELS, "speaker", 0, 0)
    assert known.loc[known["subset"] == "language=en", "n"].tolist() == [90, 90]


def test_windows_are_described_by_their_clip_their_age_group_and_bands():
    rows = SPLITS[SPLITS["task"] == "gender"]
    described = slices.describe_windows(rows, AGE).set_index("window_id")
    assert len(described) == rows["window_id"].nunique()
    expected = {"gender": "male", "corpus": "a", "language": "en", "age group": "adult", "clip length": "5 to 8 s"}
    expected |= {"loudness": "-35 to -25 dB", "share of speech": "0.6 to 0.8 of the window"}
    assert described.loc["s04-0@0"].to_dict() == expected
    assert described.loc["s00-0@0", "share of speech"] == ""
    assert set(slices.describe_windows(rows, None)["age group"]) == {""}
    bands = slices.band_values([1.0, 2.0, 3.9, 4.0, np.nan], [2, 4], "s")
    assert bands.tolist() == ["under 2 s", "2 to 4 s", "2 to 4 s", "4 s and over", ""]


def test_errors_are_the_wrong_answers_most_confident_first_with_their_sound():
    answers = pd.DataFrame({
        "window_id": list("vwxyz"), "clip_id": list("VWXYZ"), "target": [0, 0, 1, 1, 0],
        "p_male": [0.9, 0.3, 0.8, 0.1, 0.05], "p_female": [0.1, 0.7, 0.2, 0.9, 0.95],
    })  # fmt: skip
    errors = slices.list_errors(answers, GENDER)
    assert errors["window_id"].tolist() == ["z", "x", "w"]
    assert errors.iloc[1].to_dict() == {
        "task": "gender", "window_id": "x", "clip_id": "X", "truth": "female", "answer": "male", "confidence": 0.8,
    }  # fmt: skip
    assert len(slices.list_errors(answers, GENDER, count=2)) == 2
    waveforms = np.array([[0, 0], [16384, -32768]], np.int16)
    windows = pd.DataFrame({"window_id": ["z", "x"], "row": [0, 1]})
    sound, title = slices.read_error(errors.iloc[1], windows, waveforms)
    assert sound.tolist() == [0.5, -1.0]
    assert title == "gender: male, is female (80 % sure)"
