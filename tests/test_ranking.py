"""Encoders in one ranking: who is tested, what chooses, and that a good encoder is told from a deaf one."""

import numpy as np
import pandas as pd
import pytest

from lib.trust import ranking

LEFT_OUT_LANGUAGE = ranking.LEFT_OUT["languages"][0]


def make_clips(seed=0):
    """Two clips each of 120 speakers: Common Voice in English and in a language left out, and children and adults."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(120):
        corpus = "common_voice" if number < 80 else "speechocean762"
        language = ("en" if number < 50 else LEFT_OUT_LANGUAGE) if corpus == "common_voice" else "en"
        decade = [10, 20, 30, 50][number % 4] if corpus == "common_voice" else pd.NA
        years = np.nan if corpus == "common_voice" else [8.0, 9.0, 25.0, 31.0][number % 4]
        for clip in range(2):
            rows.append({"clip_id": f"{number}-{clip}", "speaker_id": f"{corpus}:x{number:03}", "corpus": corpus,
                         "language": language, "gender": "female" if (number // 4) % 2 else "male", "age_years": years,
                         "age_decade": decade, "years": years if pd.isna(decade) else decade + 5.0})  # fmt: skip
    clips = pd.DataFrame(rows).astype({"age_decade": "Int64"})
    return clips.assign(part=ranking.part_speakers(clips, seed), window_id=clips["clip_id"]), rng


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Table, columns and the answers of an encoder that knows, of one that is deaf, each with a part that knows nothing."""
    clips, rng = make_clips()
    table, tasks = ranking.assign_classes(clips)
    columns, folder, answers = ranking.list_columns(table, tasks), tmp_path_factory.mktemp("answers"), {}
    years = table["years"]
    truth = np.stack([table["gender"] == "female", years / 10, years < 16, years < 20], axis=1)
    vectors = {"noise": rng.normal(size=(len(table), 6)), "truth": truth + rng.normal(0, 0.3, (len(table), 4))}
    for model, parts in {"knows": ["noise", "truth"], "deaf": ["noise"]}.items():
        answers[model] = ranking.answer_all(folder / f"{model}.npz", table, columns, parts, vectors.get)
    return table, columns, answers, vectors


def test_whom_the_encoder_heard_is_never_tested_and_others_are_drawn_by_lot():
    clips, _ = make_clips()
    parts = clips.groupby("speaker_id")["part"].unique()
    assert parts.map(len).max() == 1
    of_speech = clips[clips["corpus"] == "common_voice"]
    assert (of_speech["part"] == "test").equals(of_speech["language"] == LEFT_OUT_LANGUAGE)
    drawn = clips[clips["corpus"] == "speechocean762"].drop_duplicates("speaker_id")["part"].value_counts()
    assert drawn.to_dict() == {"train": 24, "test": 16}
    assert not make_clips(1)[0]["part"].equals(clips["part"])


def test_columns_are_those_with_enough_speakers_and_age_groups_stay_within_a_corpus(study):
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


def test_no_training_speaker_answers_for_himself(study, tmp_path):
    table, columns, _, _ = study
    voices = pd.get_dummies(table["speaker_id"]).to_numpy(float)  # knows who speaks, and nothing else
    answers = ranking.answer_all(tmp_path / "voices.npz", table, columns, ["voices"], {"voices": voices}.get)
    inside = ranking.take_rows(table, columns[0], answers["voices|gender"], "train")
    assert ranking.score_rows(inside, columns[0], draws=0)["value"].iloc[0] < 0.65


def test_the_train_part_chooses_whatever_the_test_part_says(study):
    table, columns, answers, _ = study
    contrary = (table["part"] == "test").to_numpy()[:, None]
    wrong = {key: np.where(contrary, values[:, ::-1], values) for key, values in answers["knows"].items()}
    scores = ranking.rank(table, columns, {"knows": wrong}, draws=0).query("task == 'gender' and model == 'knows'")
    assert set(scores.loc[scores["chosen"], "part"]) == {"truth"}
    assert scores.loc[scores["chosen"], "value"].max() < 0.2


def test_a_good_encoder_is_told_from_a_deaf_one_and_from_a_guess(study):
    table, columns, answers, vectors = study
    scores = ranking.rank(table, columns, answers, draws=200)
    best = scores[scores["chosen"]].set_index(["subset", "model"])["value"]
    behind = ranking.compare(table, columns, answers, scores, "", draws=200)
    for column in columns:
        guess = best[column.title, ranking.GUESS]
        ages = column.task.name == ranking.YEARS
        if not ages:
            assert guess == 0.5
        assert (best[column.title, "knows"] < guess) if ages else (best[column.title, "knows"] > 0.85)
        row = behind[behind["subset"] == column.title].iloc[0]
        assert (row["model"], row["against"]) == ("deaf", "knows")
        assert row["low"] > 0 if ages else row["high"] < 0
    mean, spread = ranking.score_few_shots(table, columns[0], vectors["truth"], 0)
    assert 0.7 < mean < 1
    assert spread > 0
