"""Tasks: what every form of age makes of the clips, and what is left out by name."""

import pytest
from learning_fixture import make_corpus
from test_own_data import make

from lib.corpora.own_data import read_own_data
from lib.tasks import TASKS, Task, assign_targets, make_tasks, task_table

CLIPS, WINDOWS = make_corpus()


def test_all_five_tasks_are_made_in_order_with_their_classes():
    tasks, notes = make_tasks(TASKS, ["child", "adult"], [16], CLIPS)
    assert [task.name for task in tasks] == TASKS
    named = {task.name: task.classes for task in tasks}
    assert named["gender"] == ["male", "female"]
    assert named["age_four"] == ["teens", "twenties", "thirties", "fourties"]
    assert named["age_decades"] == ["teens", "twenties", "thirties", "fourties"]
    assert len(named["age_years"]) == 6
    assert notes == [
        "age_decades: left out for having fewer than 3 speakers: fifties (0), sixties (0), seventies (0), eighties (0), nineties (0)"
    ]


def test_a_class_left_out_of_the_middle_moves_no_other():
    thin = CLIPS[~CLIPS["age_years"].between(20, 29)]
    (task,), notes = make_tasks(["age_decades"], [], [], thin)
    assert task.classes == ["teens", "thirties", "fourties"]
    assert "twenties (0)" in notes[0]
    told = assign_targets(CLIPS, task)
    assert told[CLIPS["age_years"].between(20, 29)].isna().all()
    assert set(told[CLIPS["age_years"].between(30, 39)]) == {1}
    assert Task(**vars(task)) == task


def test_a_form_without_labels_is_skipped_by_name_and_the_run_goes_on():
    decades = CLIPS.assign(age_decade=(CLIPS["age_years"] // 10 * 10).clip(10).astype("Int16"), age_years=float("nan"))
    tasks, notes = make_tasks(["gender", "age_years"], [], [], decades)
    assert [task.name for task in tasks] == ["gender"]
    assert notes == ["age_years: skipped, 0 different ages in years are known (it takes 6)"]


def test_age_without_any_age_stops_and_says_what_to_do():
    with pytest.raises(
        ValueError,
        match=r"task age: it takes two of the classes .* the 90 clips .* have none\. .* take age out of train.tasks",
    ):
        make_tasks(["gender", "age"], ["teen", "adult"], [20], CLIPS.assign(age_years=float("nan")))


def test_too_few_speakers_of_a_class_are_refused_with_names_and_words(tmp_path):
    lines = [f"{n}.wav,s{n},{'f' if n < 4 else 'm'},{30 + n}" for n in range(6)]
    make(tmp_path, "\n".join(["path,speaker,gender,age", *lines]), [f"{n}.wav" for n in range(6)])
    clips, _ = read_own_data(tmp_path)
    make_tasks(["gender"], ["teen", "adult"], [20], clips, least=2)
    words = {"gender": r".* with 3 speakers or more; .* male: 2 speakers \(own_data:s4, own_data:s5\)",
             "age": r".* clips \(0\.wav, 1\.wav \.\.\.\) have adult: 6 speakers .* take age out"}  # fmt: skip
    for name, text in words.items():
        with pytest.raises(ValueError, match=f"task {name}: {text}"):
            make_tasks([name], ["teen", "adult"], [20], clips)
    make(tmp_path, "path,speaker,gender\n0.wav,x,1\n1.wav,y,0\n", [])
    with pytest.raises(ValueError, match=r"have none\. Not understood: \{'1': 1, '0': 1\}; write male, female"):
        make_tasks(["gender"], ["teen", "adult"], [20], read_own_data(tmp_path)[0])


def test_an_unknown_task_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"agee.*choose from"):
        make_tasks(["agee"], [], [], CLIPS)


def test_windows_without_a_class_are_counted():
    some = CLIPS.assign(gender=CLIPS["gender"].where(CLIPS["speaker_id"] != "a:00"))
    table = task_table(WINDOWS, some, Task("gender", ["male", "female"]))
    assert table.attrs["unlabelled"] == 6
    assert len(table) == len(WINDOWS) - 6
    assert table["target"].isin([0, 1]).all()
