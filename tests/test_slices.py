import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_answers, make_corpus

from lib.scores import score_answers
from lib.tasks import Task, task_table
from lib.trust import slices

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
