import numpy as np
import pandas as pd
import pytest

from lib.trust.slices import band_values, find_worst, list_errors, score_slices


def make_table(rows=800, seed=0):
    """Predictions that are right 9 times in 10, but for the old female voices: 6 in 10."""
    rng = np.random.default_rng(seed)
    speaker = np.arange(rows) % 80
    table = pd.DataFrame({"window_id": [f"w{i}" for i in range(rows)], "speaker_id": [f"s{s:02d}" for s in speaker]})
    table["target"] = speaker % 2
    table["gender"] = np.where(speaker % 2, "female", "male")
    table["age"] = np.where(speaker % 4 < 2, "young", "old")
    chance = np.where((table["gender"] == "female") & (table["age"] == "old"), 0.6, 0.9)
    told = np.where(rng.random(rows) < chance, table["target"], 1 - table["target"])
    confidence = rng.uniform(0.5, 1, rows)
    table["p_male"] = np.where(told == 0, confidence, 1 - confidence)
    return table.assign(p_female=1 - table["p_male"])


CLASSES = ["male", "female"]


def test_worst_intersection_is_named_with_its_gap():
    slices = score_slices(make_table(), CLASSES, ["gender", ("gender", "age")], draws=200)
    worst = find_worst(slices)
    assert worst["subset"] == "gender=female, age=old"
    assert worst["value"] == pytest.approx(0.6, abs=0.08)
    assert worst["gap"] == pytest.approx(0.3, abs=0.1)
    assert worst["low"] < worst["value"] < worst["high"]
    assert slices["subset"].tolist()[:2] == ["gender=female", "gender=male"]
    assert slices["n"].tolist() == [400, 400, 200, 200, 200, 200]


def test_small_groups_keep_their_size_but_get_no_score():
    table = make_table()
    table["corpus"] = np.where(table["speaker_id"] == "s03", "tiny", "large")
    slices = score_slices(table, CLASSES, ["corpus"], minimum_speakers=5, draws=50).set_index("subset")
    assert not slices.loc["corpus=tiny", "enough"]
    assert np.isnan(slices.loc["corpus=tiny", "value"])
    assert slices.loc["corpus=tiny", ["n", "speakers"]].tolist() == [10, 1]
    with pytest.raises(ValueError, match="lower the minimum"):
        find_worst(score_slices(table, CLASSES, ["corpus"], minimum=10_000, draws=0))


def test_rows_blank_in_a_column_are_left_out_of_its_slices():
    table = make_table().assign(language="")
    with pytest.raises(ValueError, match="no row"):
        score_slices(table, CLASSES, ["language"])
    table.loc[:99, "language"] = "en"
    assert score_slices(table, CLASSES, ["language"], draws=0)["n"].tolist() == [100]


def test_bands_are_named_with_their_unit():
    bands = band_values([1.0, 2.0, 3.9, 4.0, np.nan], [2, 4], "s")
    assert bands.tolist() == ["under 2 s", "2 to 4 s", "2 to 4 s", "4 s and over", ""]


def test_errors_are_listed_most_confident_first():
    table = make_table()
    errors = list_errors(table, CLASSES, 10)
    assert len(errors) == 10
    assert (errors["truth"] != errors["told"]).all()
    assert errors["confidence"].is_monotonic_decreasing
    wrong = table[table[["p_male", "p_female"]].to_numpy().argmax(axis=1) != table["target"]]
    assert errors["confidence"].iloc[0] == wrong[["p_male", "p_female"]].max(axis=1).max()
