import numpy as np
from checks import refused
from learning_fixture import make_corpus

from lib.tasks import TASKS, Task, assign_targets, make_tasks, require_speakers, task_table, usable_bounds

CLIPS, WINDOWS = make_corpus()  # 30 speakers of 6 to 45 years
AGES = ["child", "teen", "adult"], [14, 20]


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
    assert (task.bounds, notes) == (sorted(task.bounds), [])
    assert len(task.classes) == len(task.bounds) + 1
    assert (task.classes[0][:5], task.classes[-1][-9:]) == ("0 to ", " and over")
    assert CLIPS.groupby(assign_targets(CLIPS, task))["speaker_id"].nunique().min() >= 3
    years = CLIPS.groupby("speaker_id")["age_years"].median()
    for first, last in zip([0, *usable_bounds(CLIPS, 9)], [*usable_bounds(CLIPS, 9), 99]):
        assert years.between(first, last, inclusive="left").sum() >= 9


def test_a_class_left_out_of_the_middle_moves_no_other_and_a_form_without_labels_is_skipped_by_name():
    thin = CLIPS[~CLIPS["age_years"].between(20, 29)]
    (task,), notes = make_tasks(["age_decades"], [], [], thin)
    assert task.classes[:2] == ["teens", "thirties"]
    assert "twenties (0)" in notes[0]
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
