"""The label contract, walked value by value."""

import itertools

import pandas as pd
import pytest

from lib.corpora import labels
from lib.tables import DECADES, GENDERS

EXPECTED_GENDERS = {
    "male": ["male", "Male", "MALE ", "male_masculine", "male-masculine", "Male Masculine", "m", "M", "man"],
    "female": ["female", "female_feminine", "FEMALE-FEMININE", "f", "F", "woman"],
    None: ["", " ", "other", "transgender", "non-binary", "non_binary", "Non Binary", "intersex", "do_not_wish_to_say",
           "do-not-wish-to-say", "unheard of"],
}  # fmt: skip
EXPECTED_DECADES = {
    "teens": 10, "twenties": 20, "thirties": 30, "fourties": 40, "forties": 40, "fifties": 50, "sixties": 60,
    "seventies": 70, "eighties": 80, "nineties": 90, "": None, "Fourties ": 40, "30s": 30,
}  # fmt: skip


def frame(**columns) -> pd.DataFrame:
    size = len(next(iter(columns.values())))
    base = {"corpus": ["a"] * size, "language": ["en"] * size, "speaker_id": [f"a:{i}" for i in range(size)],
            "gender": [None] * size, "gender_raw": [""] * size, "age_years": [float("nan")] * size,
            "age_decade": pd.array([None] * size, dtype="Int16"), "age_raw": [""] * size}  # fmt: skip
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize(("meaning", "raw"), [(m, r) for m, words in EXPECTED_GENDERS.items() for r in words])
def test_every_gender_word_means_what_its_speaker_said(meaning, raw):
    assert labels.read_gender(raw) == meaning


def test_only_words_that_name_a_sex_are_folded_into_one():
    named = {raw for _, _, raw, meaning in labels.GENDER_VALUES if meaning}
    assert named == {"male", "female", "male_masculine", "female_feminine", "m", "f", "man", "woman"}
    assert {meaning for *_, meaning in labels.GENDER_VALUES} == {*GENDERS, None}


@pytest.mark.parametrize(("raw", "decade"), EXPECTED_DECADES.items())
def test_every_age_word_gives_its_decade_and_no_years(raw, decade):
    assert labels.read_age(raw) == (None, decade)


def test_whole_vocabulary_has_a_row_in_the_label_table():
    table = labels.label_table()
    assert len(table) == len(labels.GENDER_VALUES) + len(labels.AGE_VALUES)
    ages = table[table["label"] == "age"].set_index("raw")
    for word, decade in EXPECTED_DECADES.items():
        if word not in ages.index:
            continue
        row = ages.loc[word]
        assert row["teen_adult"] == ("" if decade is None else "teen" if decade == 10 else "adult")
        young = decade in (10, 20, 30, 40)
        assert row["four_decades"] == (labels.DECADE_WORDS[decade // 10 - 1] if young else "")
        assert row["nine_decades"] == ("" if decade is None else labels.DECADE_WORDS[decade // 10 - 1])
        assert row["child_adult"] == ("" if decade in (None, 10) else "adult")


@pytest.mark.parametrize(("raw", "years"), [("26.0", 26.0), ("6", 6.0), ("109", 109.0), (" 43 ", 43.0)])
def test_numbers_are_years_of_age(raw, years):
    assert labels.read_age(raw) == (years, None)


@pytest.mark.parametrize("raw", ["0", "-3", "110", "1969", "nan", "inf", "1_0", "1e1", "n/a", "elderly"])
def test_incredible_ages_give_nothing(raw):
    assert labels.read_age(raw) == (None, None)
    assert not labels.is_known_age(raw)


def test_numbers_can_be_decades_when_the_table_says_so():
    assert [labels.read_age(str(d), "decade")[1] for d in DECADES] == DECADES
    assert labels.read_age("34", "decade") == (None, None)


@pytest.mark.parametrize(
    ("years", "decade", "scheme", "expected"),
    [
        (19, None, "teen_adult", 0), (19.9, None, "teen_adult", 0), (20, None, "teen_adult", 1), (6, None, "teen_adult", 0),
        (None, 10, "teen_adult", 0), (None, 90, "teen_adult", 1), (49, None, "four_decades", 3),
        (50, None, "four_decades", None), (None, 50, "four_decades", None), (None, 40, "four_decades", 3),
        (None, 90, "nine_decades", 8), (95, None, "nine_decades", 8), (15, None, "child_adult", 0),
        (16, None, "child_adult", 1), (None, 10, "child_adult", None), (None, 20, "child_adult", 1),
        (None, None, "teen_adult", None), (17, 20, "teen_adult", 0),
    ],
)  # fmt: skip
def test_age_class_needs_the_whole_interval_within_one_class(years, decade, scheme, expected):
    assert labels.age_class(years, decade, *labels.SCHEMES[scheme][:2])[0] == expected


def test_classless_ages_carry_their_reason():
    clips = frame(age_years=[None, 60.0, None], age_decade=pd.array([None, None, 10], dtype="Int16"))
    found = labels.assign_age_class(clips.set_index(pd.Index([7, 8, 9])), ["child", "adult"], [16, 50])
    assert found["age_class"].isna().all()
    assert found["reason"].tolist() == ["no age", "older than the last class", "age spans a bound"]
    assert found.index.tolist() == [7, 8, 9]


def test_vectorised_classes_equal_one_by_one():
    pairs = [(y, None) for y in range(1, 110)] + [(None, d) for d in DECADES] + [(None, None)]
    clips = frame(age_years=[y for y, _ in pairs], age_decade=pd.array([d for _, d in pairs], dtype="Int16"))
    for scheme in labels.SCHEMES.values():
        found = labels.assign_age_class(clips, scheme.classes, scheme.bounds)
        single = [labels.age_class(y, d, scheme.classes, scheme.bounds) for y, d in pairs]
        assert [None if pd.isna(i) else i for i in found["age_class"]] == [i for i, _ in single]
        assert found["reason"].tolist() == [why for _, why in single]


@pytest.mark.parametrize(
    ("classes", "bounds"),
    [(["a"], []), (["a", "a"], [20]), (["a", "b"], [20, 20]), (["a", "b"], []), (["a", "b"], [0])],
)
def test_broken_schemes_are_refused(classes, bounds):
    with pytest.raises(ValueError, match="age_"):
        labels.check_scheme(classes, bounds)


def test_unknown_words_are_counted_and_known_ones_are_not():
    assert labels.unknown_labels(pd.Series(["male", "robot", "robot", ""]), "gender") == {"robot": 2}
    assert labels.unknown_labels(pd.Series(["teens", "26", "", "old", "1969"]), "age") == {"old": 1, "1969": 1}


def test_counts_add_up_before_and_after():
    clips = frame(
        corpus=["a", "a", "b", "b"], language=["en", "de", "en", "en"], gender=["male", None, "female", "female"],
        gender_raw=["male", "other", "f", "f"], age_raw=["teens", "", "30", "31"], age_years=[None, None, 30, 31],
        age_decade=pd.array([10, None, None, None], dtype="Int16"), speaker_id=["a:1", "a:1", "b:2", "b:2"],
    )  # fmt: skip
    table = labels.count_labels(clips, ["teen", "adult"], [20])
    totals = table.query("corpus == 'all'").groupby(["target", "stage"])["clips"].sum()
    assert (totals == 4).all()
    assert len(totals) == 4
    per = table.query("corpus != 'all' and language == 'all'").groupby(["target", "stage"])["clips"].sum()
    assert (per == 4).all()
    assert table.query("corpus == 'b' and language == 'en' and `class` == 'adult'")["speakers"].tolist() == [1]
    assert set(table.query("target == 'age' and stage == 'before'")["class"]) == {"teens", "(blank)", "(number)"}


def test_class_from_one_corpus_only_is_called_confounded():
    clips = frame(corpus=["cv"] * 6 + ["vox"] * 4, age_years=[15.0] * 4 + [30.0] * 6)
    (sentence,) = labels.find_confounds(clips, "age", ["teen", "adult"], [20])
    assert "ALL 4 clips" in sentence
    assert "'teen'" in sentence
    assert "cv" in sentence


def test_a_lone_class_is_called_confounded_however_small_the_other_corpus():
    clips = frame(corpus=["cv"] * 99 + ["vox"], age_years=[15.0] * 50 + [30.0] * 50)
    (sentence,) = labels.find_confounds(clips, "age", ["teen", "adult"], [20])
    assert "ALL 50 clips" in sentence


def test_balanced_or_single_corpora_are_not_called_confounded():
    mixed = frame(corpus=["cv", "vox"] * 4, gender=["male", "male", "female", "female"] * 2)
    assert labels.find_confounds(mixed, "gender") == []
    alone = frame(corpus=["cv"] * 4, gender=["male", "male", "female", "female"])
    assert labels.find_confounds(alone, "gender") == []


def test_meanings_survive_vectorisation():
    raws = [raw for words in EXPECTED_GENDERS.values() for raw in words]
    found = labels.genders_of(pd.Series(raws))
    assert [None if pd.isna(value) else value for value in found] == [labels.read_gender(raw) for raw in raws]
    words = list(itertools.chain(EXPECTED_DECADES, ["26.0", "0"]))
    ages = labels.ages_of(pd.Series(words))
    assert [None if pd.isna(d) else d for d in ages["age_decade"]] == [labels.read_age(w)[1] for w in words]


def test_empty_tables_are_counted_without_complaint():
    empty = frame(gender=["male"], age_years=[30.0]).iloc[:0]
    assert len(labels.count_labels(empty, ["teen", "adult"], [20])) == 0
    assert labels.find_confounds(empty, "age", ["teen", "adult"], [20]) == []
    assert labels.find_confounds(empty, "gender") == []
