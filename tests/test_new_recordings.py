"""Recordings that no stage has seen: their labels, their scores, and how every epoch would have done on them."""

import os

import numpy as np
import pandas as pd
import pytest
from checks import refused, write_file
from learning_fixture import make_stage
from model_fixture import CLASSES, WINDOWING, make_checkpoint, make_model_folder, untrained

from lib import model_folder, networks, paths, train
from lib.compute import Compute
from lib.corpora.own_data import list_recordings
from lib.predict import predict_listed
from lib.report.sentences import say
from lib.tasks import Task
from lib.trust import new_recordings

GENDER, AGE = Task("gender", CLASSES["gender"]), Task("age", CLASSES["age"], [20])


def bundle(folder, heads):
    """A model folder of these checkpoints, each of a training that is named as its task."""
    trainings = {"trainings": dict(zip(heads, heads))}
    model_folder.save_model_folder(folder, heads, untrained(), WINDOWING, "emission", **trainings)
    return model_folder.load_model_folder(folder, untrained())


@pytest.fixture(scope="module")
def trained(spoken, tmp_path_factory):
    """Recordings with labels, a model folder of networks really trained on them, and the stage of their trainings."""
    stage = make_stage(tmp_path_factory.mktemp("trained"))
    listed = list_recordings(spoken / "labels.csv")
    targets = new_recordings.label_recordings(listed, [GENDER, AGE])
    blank = make_model_folder(stage.path("blank"))
    owners, tensors = new_recordings.join_tensors(predict_listed(listed, blank, keep=[True] * len(listed)))
    checkpoints, rows, compute = {}, np.arange(len(owners)), Compute("cpu", "float32", "")
    options = {"recipe": train.Recipe(epochs=3, learning_rate=1e-2, batch=8), "seed": 0, "compute": compute}
    for task in (GENDER, AGE):
        wanted, folder = targets[task.name].fillna(0).to_numpy(np.int64)[owners], stage.path(task.name)
        network = networks.build_network("paper", task.classes, (149, 32), task=task.name, width=0.125)
        fitted = train.fit_network(network, tensors["frames"], wanted, rows, rows, folder=folder, **options)
        checkpoints[task.name] = train.checkpoint_path(folder, fitted[1])
    model = bundle(stage.path("model"), checkpoints)
    predictions = predict_listed(listed, model, progress=False, keep=targets["gender"].notna())
    return predictions, targets, model, stage


def test_labels_follow_the_list_and_missing_ones_stay_missing(spoken):
    listed = list_recordings(spoken / "labels.csv")
    targets = new_recordings.label_recordings(listed, [GENDER, AGE]).set_index("name")
    assert targets["gender"].notna().sum() == targets["age"].notna().sum() == 10
    assert targets.loc["recordings/noise.wav"].isna().all()
    assert targets.loc["recordings/two-seconds.wav"].tolist() == [1, 1]
    unlabelled = new_recordings.label_recordings(list_recordings(spoken / "recordings"), [GENDER, AGE])
    assert unlabelled[["gender", "age"]].isna().all(axis=None)


def test_the_chosen_epoch_scores_as_the_answers_of_its_model_do_and_is_judged_against_the_best(trained):
    predictions, targets, model, stage = trained
    epochs = new_recordings.score_epochs(predictions, targets, model, stage)
    answers = pd.DataFrame([prediction.row() for prediction in predictions])
    scores = new_recordings.score_recordings(answers, targets, [GENDER, AGE]).set_index("task")
    assert epochs["task"].tolist() == ["gender"] * 3 + ["age"] * 3
    chosen = epochs[epochs["chosen"]].set_index("task")
    assert chosen["epoch"].to_dict() == {task: head["epoch"] for task, head in model.description["heads"].items()}
    assert chosen["recordings"].tolist() == scores["answered"].tolist() == [9, 9]
    np.testing.assert_allclose(chosen[["unseen_accuracy", "unseen_uar"]], scores[["accuracy", "UAR"]])
    nothing = targets.assign(gender=pd.array([pd.NA] * len(targets), dtype="Int64"), age=1)  # one class, or none at all
    assert new_recordings.score_epochs(predictions, nothing, model, stage).empty
    heads = {task: make_checkpoint(stage.path(f"other-{task}.safetensors"), task, "paper", seed=9) for task in CLASSES}
    other = bundle(stage.path("other"), heads)  # whose heads are none of the saved epochs
    epochs = new_recordings.score_epochs(predictions, targets, other, stage)
    assert (epochs.empty, new_recordings.judge_choice(epochs).empty) == (True, True)
    epochs = pd.DataFrame({"epoch": [1, 2, 3, 4], "unseen_uar": [0.5, 0.7, 0.9, 0.8]})
    epochs = epochs.assign(task="age", chosen=epochs["epoch"] == 2, recordings=9)
    row = new_recordings.judge_choice(epochs).iloc[0]
    assert row.tolist() == ["age", 4, 2, 0.7, 3, 0.9, pytest.approx(0.2), 9]


def test_answers_are_joined_by_name_and_classes_and_years_scored_where_both_are_known():
    answers = pd.DataFrame({"name": list("dcba"), "gender": ["male", "unsure", "female", None]})
    targets = pd.DataFrame({"name": list("abcd"), "gender": pd.array([0, 1, 1, 1], dtype="Int64")})
    assert new_recordings.compare_answers(answers, targets, GENDER).tolist() == [[0, 0], [1, 1]]
    row = new_recordings.score_recordings(answers, targets, [GENDER]).iloc[0]
    assert (row["labelled"], row["answered"], row["right"], row["accuracy"]) == (4, 2, 1, 0.5)
    assert new_recordings.score_recordings(answers[["name"]], targets, [GENDER])["answered"].tolist() == [0]
    groups = new_recordings.tabulate_groups(answers, targets, [GENDER])["gender"]
    assert groups.columns.tolist() == ["gender label", "male", "female", "unsure", "several speakers", "no window"]
    assert groups.iloc[:, 1:].to_numpy().tolist() == [[0, 0, 0, 0, 1], [1, 1, 1, 0, 0]]
    assert len(new_recordings.tabulate_groups(answers, targets.assign(gender=pd.NA), [GENDER])["gender"]) == 0
    told = [("a", 20, 10, 30), ("b", 30, 25, 35), ("c", None, None, None), ("d", 50, 40, 60)]
    answers = pd.DataFrame(told, columns=["name", "age_years", "age_years_low", "age_years_high"])
    recordings = pd.DataFrame({"name": list("abcd"), "age_years": [24.0, 44.0, 20.0, None]})
    targets = pd.DataFrame({"name": list("abcde"), "age_years": pd.array([0, 1, 0, None, 1], dtype="Int64")})
    assert new_recordings.score_ages(answers, recordings, targets).iloc[0].tolist() == [2, 9.0, 0.5, 15.0]
    assert new_recordings.score_ages(answers, recordings[["name"]], targets)["answered and known"].tolist() == [0]
    heard = targets.assign(age_years=pd.array([None, 1, 0, None, 1], dtype="Int64"))  # the head learned from the first
    assert new_recordings.score_ages(answers, recordings, heard)["answered and known"].tolist() == [1]
    bare = new_recordings.score_ages(answers[["name", "age_years"]], recordings, targets)
    assert bare.columns.tolist()[1:] == ["mean absolute error, years"]


def test_without_new_recordings_test_clips_are_drawn_and_called_what_they_are(tmp_path):
    clips = pd.DataFrame([(f"c:{n}", "c", f"{n}.wav") for n in range(6)], columns=["clip_id", "corpus", "path"])
    clips, ids = clips.assign(start_s=0.0, end_s=np.nan), clips["clip_id"].tolist()
    splits = pd.DataFrame({"clip_id": ids * 2, "protocol": ["paper"] * 6 + ["speaker"] * 6})
    splits = splits.assign(fold=0, split=["test"] * 9 + ["train", "train", "validation"])
    drawn, origin = new_recordings.obtain_recordings("", False, 0, 2, splits, clips, {"c": tmp_path})
    assert (len(drawn), drawn["path"].iloc[0].parent) == (2, tmp_path)
    assert set(drawn["name"]) <= {"c:0", "c:1", "c:2"}
    assert "NOT new ones: they are clips of the test speakers" in say("origin", {"origin": origin})
    model = make_model_folder(tmp_path / "refit", about={"refit on everybody": True})
    heard = new_recordings.heard_splits(splits.assign(task="gender"), model)
    drawn, origin = new_recordings.obtain_recordings("", False, 0, 6, heard, clips, {"c": tmp_path})
    assert len(drawn) == 6
    assert "learned from everybody" in say("origin", {"origin": origin})
    labelled = drawn.assign(gender="male", age_decade=None, age_years=np.nan)
    assert new_recordings.label_recordings(labelled, [GENDER], heard)["gender"].isna().all()
    write_file(tmp_path / "given/a.wav")
    given, origin = new_recordings.obtain_recordings(str(tmp_path / "given"), False, 0, 2, splits, clips, {})
    assert given["name"].tolist() == ["a.wav"]
    assert "given in `predict.unseen`" in say("origin", {"origin": origin})


def test_answers_survive_their_files(tmp_path):
    stage = make_stage(tmp_path)
    answers = pd.DataFrame({"name": ["01", "b"], "state": ["ok", "unreadable"], "gender": ["male", None]})
    answers = answers.assign(duration_s=[2.0, 0.0], warning="", reason=["", "empty"])
    paths.save_frame(stage.path("answers.csv"), answers)
    paths.save_frame(stage.path("epochs.csv"), pd.DataFrame(columns=new_recordings.EPOCHS))
    told, epochs = new_recordings.load_answers(stage)
    assert told[["name", "reason"]].to_numpy().tolist() == [["01", ""], ["b", "empty"]]
    assert (epochs.empty, new_recordings.longest_answered(told)) == (True, "01")
    refused(r"none of 1 recordings got .*: b: unreadable \(empty\)", new_recordings.longest_answered, told[1:])


def test_a_changed_list_file_or_label_makes_new_work(tmp_path):
    path, _ = (write_file(tmp_path / name) for name in ("a.wav", "b.wav"))
    (tmp_path / "gone.wav").symlink_to("nothing")
    listed, tell = list_recordings(tmp_path), new_recordings.fingerprint_recordings
    told, before = [*map(tell, (listed, listed[:1], listed.assign(gender="male")))], path.stat()
    assert tell(list_recordings(tmp_path)) == told[0]
    path.write_bytes(b"other")  # as long and, so it says, as old
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len({*told, tell(list_recordings(tmp_path))}) == 4
