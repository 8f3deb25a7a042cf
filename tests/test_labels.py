import numpy as np
import pandas as pd
import pytest
from checks import refused
from learning_fixture import make_corpus

from lib.corpora import labels
from lib.tables import DECADES
from lib.tasks import TASKS, Task, assign_targets, make_tasks, require_speakers, task_table, usable_bounds

CLIPS, WINDOWS = make_corpus()  # 30 speakers of 6 to 45 years
AGES = ["child", "teen", "adult"], [14, 20]
GENDERS = {
    "male": ["male", "Male", "MALE ", "male_masculine", "male-masculine", "Male Masculine", "m", "M", "man"],
    "female": ["female", "female_feminine", "FEMALE-FEMININE", "f", "F", "woman"],
    "-": ["", " ", "other", "transgender", "non-binary", "non_binary", "Non Binary", "intersex", "do_not_wish_to_say",
          "do-not-wish-to-say", "unheard of"],
}  # fmt: skip
DECADE_OF = {
    "teens": 10, "twenties": 20, "thirties": 30, "fourties": 40, "forties": 40, "fifties": 50, "sixties": 60,
    "seventies": 70, "eighties": 80, "nineties": 90, "": 0, "Fourties ": 40, "30s": 30,
}  # fmt: skip


def frame(**columns) -> pd.DataFrame:
    size = len(next(iter(columns.values())))
    base = {"corpus": "a", "speaker_id": [f"a:{i}" for i in range(size)], "age_years": float("nan"), "age_decade": None}
    return pd.DataFrame(base | columns).astype({"age_decade": "Int16"})


def test_every_word_means_what_its_speaker_said_no_other_is_folded_into_a_sex_or_gives_years_and_all_are_in_a_table():
    words = pd.Series(GENDERS).explode()
    assert labels.genders_of(words).fillna("-").tolist() == words.index.tolist()
    ages = labels.ages_of(pd.Series([*DECADE_OF, "26.0"])).fillna(0)
    expected = [*((decade, 0) for decade in DECADE_OF.values()), (0, 26)]
    assert [*ages[["age_decade", "age_years"]].itertuples(index=False, name=None)] == expected
    table = labels.label_table().fillna({"age_decade": 0})
    contract = [*labels.GENDER_WORDS.values(), *labels.AGE_WORDS.values()]
    assert table["raw"].tolist() == [raw for words in contract for raw in words]
    words = table.set_index("raw").loc[["", "teens", "forties", "fifties"], ["age_decade", *labels.SCHEMES]]
    assert words.drop_duplicates().to_numpy().tolist() == [
        [0, "", "", "", ""], [10, "teen", "teens", "teens", "adult"], [40, "adult", "fourties", "fourties", "adult"],
        [50, "adult", "", "fifties", "adult"],
    ]  # fmt: skip


def test_credible_numbers_are_years_or_decades_and_nothing_else_is():
    numbers = {"26.0": 26, "6": 6, "109": 109, " 43 ": 43, "23,5": 23.5}
    assert {raw: labels.read_age(raw)[0] for raw in numbers} == numbers
    assert [labels.read_age(str(decade), "decade")[1] for decade in DECADES] == DECADES
    assert labels.read_age("34", "decade") == (None, None)
    odd = ["0", "-3", "110", "1969", "nan", "inf", "1_0", "1e1", "n/a", "elderly", "1,234"]
    assert [raw for raw in odd if labels.read_age(raw) != (None, None)] == []
    told = labels.unknown_labels(pd.Series([*numbers, "teens", "", *odd, "old", "old"]), "age")
    assert told == {**dict.fromkeys(odd, 1), "old": 2}
    assert labels.unknown_labels(pd.Series(["male", "robot", "robot", ""]), "gender") == {"robot": 2}


def test_age_class_needs_the_whole_interval_within_one_class():
    cases = [
        (19, None, "teen_adult", 0), (19.9, None, "teen_adult", 0), (20, None, "teen_adult", 1), (6, None, "teen_adult", 0),
        (None, 10, "teen_adult", 0), (None, 90, "teen_adult", 1), (49, None, "four_decades", 3),
        (50, None, "four_decades", None), (None, 50, "four_decades", None), (None, 40, "four_decades", 3),
        (None, 90, "nine_decades", 8), (95, None, "nine_decades", 8), (15, None, "child_adult", 0),
        (16, None, "child_adult", 1), (None, 10, "child_adult", 1), (None, 20, "child_adult", 1),
        (None, None, "teen_adult", None), (17, 20, "teen_adult", 0),
    ]  # fmt: skip
    for years, decade, scheme, expected in cases:
        clips = frame(age_years=[years], age_decade=[decade]).set_index(pd.Index([7]))
        index = labels.assign_age_class(clips, *labels.SCHEMES[scheme])[7]
        assert index == expected or (pd.isna(index) and expected is None), (years, decade, scheme)
    assert labels.assign_age_class(frame(age_years=[60.0]), ["child", "adult"], [16, 50]).isna().all()


@pytest.mark.parametrize(("classes", "bounds"), [("a", []), ("aa", [20]), ("ab", [20, 20]), ("ab", []), ("ab", [0])])
def test_broken_schemes_are_refused(classes, bounds):
    refused("age_", labels.assign_age_class, frame(age_years=[30.0]), [*classes], bounds)


def test_only_a_class_from_one_corpus_is_called_confounded_however_small_the_other():
    clips = frame(corpus=["cv"] * 99 + ["vox"], age_years=[15.0] * 50 + [30.0] * 50)
    (sentence,) = labels.find_confounds(clips.assign(age=labels.name_ages(clips, ["teen", "adult"], [20])), "age")
    assert sentence.startswith("CONFOUNDED: ALL 50 clips (50 speakers) of age class 'teen' come from cv.")
    clips = frame(corpus=["cv", "vox"] + ["vox"] * 20 + ["cv"] * 20, gender=["male"] * 22 + ["female"] * 20)
    told = "95.5% of the 22 clips (22 speakers) of gender class 'male' come from vox"
    assert told in labels.find_confounds(clips, "gender")[1]
    mixed = frame(corpus=["cv", "vox"] * 4, gender=["male", "male", "female", "female"] * 2)
    for clips in (mixed, mixed[mixed["corpus"] == "cv"], mixed.iloc[:0]):  # balanced, of one corpus, none
        assert labels.find_confounds(clips, "gender") == []


def test_all_tasks_are_made_in_order_with_their_classes_and_windows_joined_by_id():
    tasks, notes = make_tasks(TASKS, *AGES, CLIPS)
    assert [task.name for task in tasks] == TASKS
    decades = ["teens", "twenties", "thirties"]
    assert [task.classes[:3] for task in tasks[:4]] == [["male", "female"], AGES[0], decades, decades]
    assert "eighties (0)" in " ".join(notes)
    some = CLIPS.assign(gender=CLIPS["gender"].where(CLIPS["speaker_id"] != "a:00")).sample(frac=1, random_state=0)
    table = task_table(WINDOWS, some, Task("gender", ["male", "female"]))
    assert len(table) == len(WINDOWS) - 6
    genders = CLIPS.set_index("clip_id")["gender"]
    assert (table["target"] == (genders.loc[table["clip_id"]] == "female").to_numpy()).all()
    clips = CLIPS[:6].assign(age_years=[6.0, 13.9, 14.0, 19.0, 20.0, np.nan])
    assert assign_targets(clips, tasks[1]).fillna(-1).tolist() == [0, 0, 1, 1, 2, -1]


def test_years_have_classes_with_speakers_enough_on_both_sides_of_every_bound():
    (task,), notes = make_tasks(["age_years"], [], [], CLIPS)
    assert (task.bounds, notes, len(task.classes)) == (sorted(task.bounds), [], len(task.bounds) + 1)
    assert (task.classes[0][:5], task.classes[-1][-9:]) == ("0 to ", " and over")
    assert CLIPS.groupby(assign_targets(CLIPS, task))["speaker_id"].nunique().min() >= 3
    years = CLIPS.groupby("speaker_id")["age_years"].median()
    for first, last in zip([0, *usable_bounds(CLIPS, 9)], [*usable_bounds(CLIPS, 9), 99]):
        assert years.between(first, last, inclusive="left").sum() >= 9


def test_a_class_left_out_of_the_middle_moves_no_other_and_a_form_without_labels_is_skipped_by_name():
    (task,), notes = make_tasks(["age_decades"], [], [], CLIPS[~CLIPS["age_years"].between(20, 29)])
    assert [(name, task.spans[name]) for name in task.classes[:2]] == [("teens", [0, 20]), ("thirties", [30, 40])]
    assert ("twenties" in task.spans, "twenties (0)" in notes[0]) == (False, True)
    targets = assign_targets(CLIPS, task)
    assert targets[CLIPS["age_years"].between(20, 29)].isna().all()
    assert set(targets[CLIPS["age_years"].between(30, 39)]) == {1}
    tasks, notes = make_tasks(["gender", "age_years", "age_decades"], [], [], CLIPS.assign(age_years=np.nan))
    assert [task.name for task in tasks] == ["gender"]
    assert [note.split(",")[0] for note in notes] == ["age_years: skipped", "age_decades: skipped"]


def test_too_few_speakers_of_a_class_are_refused_with_their_names():
    few = CLIPS[(CLIPS["gender"] == "male") | CLIPS["speaker_id"].isin(["a:02", "b:03"])]
    none = CLIPS.assign(age_years=np.nan)
    refused(r"task age: .*have none\. .* take age out of train.tasks", make_tasks, ["age"], *AGES, none)
    refused(r"gender: .* 3 speakers or more; .* female: 2 speakers \(a:02, b:03\)", make_tasks, ["gender"], [], [], few)
    tasks, _ = make_tasks(["gender"], [], [], CLIPS)
    refused(r"gender: .* female: 2 speakers \(a:02, b:03\)", require_speakers, tasks, few)  # others gave no window
    for names in (["agee"], []):
        refused(r"tasks: .* not known; choose from \['gender', 'age'", make_tasks, names, [], [], CLIPS)
