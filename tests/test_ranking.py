import numpy as np
import pandas as pd
import pytest

from lib.trust import ranking

LEFT_OUT_LANGUAGE = ranking.LEFT_OUT["languages"][0]


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
    parts = clips.groupby("speaker_id")["part"].unique()
    assert parts.map(len).max() == 1
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
