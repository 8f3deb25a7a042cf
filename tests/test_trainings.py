from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from checks import refused
from learning_fixture import make_corpus, make_stage, make_store

from lib import config, linear, paths, train, trainings
from lib.compute import Compute, torch_threads
from lib.tasks import Task
from lib.trust.leakage import audit_splits, stop_on_leakage

CLIPS, WINDOWS = make_corpus()
GENDER = Task("gender", ["male", "female"])
AGE = Task("age", ["child", "teen", "adult"], [14, 22])
EXACT = Compute("cpu", "float32", "")
RECIPE = train.Recipe(epochs=3, learning_rate=1e-3, batch=32, width=0.03, normalisation="standard")
NETWORKS = ["paper", "linear", "linear:bank", "age=steps:layer:0|layer:1+bank"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [make_store(folder / "0", WINDOWS, CLIPS), make_store(folder / "1", WINDOWS, CLIPS, seed=1, noise=0.8)]


@pytest.fixture(scope="module")
def splits():
    return trainings.split_tasks(WINDOWS, CLIPS, [GENDER, AGE], ["speaker", "paper"], seed=0)


@pytest.fixture(scope="module")
def trained(stores, splits, tmp_path_factory):
    """(stage, fits) of every network for gender and age by unseen speakers, two seeds; frames are too small for age."""
    stage = make_stage(tmp_path_factory.mktemp("trained"))
    rows, wanted = splits[splits["protocol"] == "speaker"], ["gender=paper", *NETWORKS[1:]]
    with torch_threads(1):
        fits = trainings.train_networks(stage, rows, stores, [GENDER, AGE], wanted, [0, 1], RECIPE, EXACT)
    pd.testing.assert_frame_equal(pd.read_csv(stage.path("fits.csv")), fits)
    return stage, fits


def test_quarters_name_stages_so_far_up_any_encoder():
    asked = ["gender=experts:quarter:1+bank|quarter:3+quarter:4", "linear:quarter:2", "paper"]
    for stages, expected in {
        "embedding": ["gender=experts:embedding+bank|embedding", "linear:embedding", "paper"],
        "conv layer:0 layer:1 layer:2 layer:3 emission":
            ["gender=experts:layer:0+bank|layer:3+emission", "linear:layer:1", "paper"],
    }.items():  # fmt: skip
        store = SimpleNamespace(parts=dict.fromkeys([*stages.split(), "bank"]))
        assert trainings.place_networks(asked, store) == expected
    shipped = paths.load_json(paths.ASSETS / "ready" / "model.json")
    networks = config.load_run(paths.PARAMS / "ready.yaml")["train"]["networks"]
    placed = trainings.place_networks(networks, SimpleNamespace(parts=shipped["encoder"]["parts"]))
    assert placed == [f"{task}={head['network']}" for task, head in shipped["heads"].items()]


def test_the_audit_finds_nothing_in_an_honest_split_and_names_a_planted_speaker(splits):
    honest = splits[splits["protocol"] == "speaker"]
    assert honest.groupby(["task", "speaker_id"])["split"].nunique().max() == 1
    stop_on_leakage(audit_splits(honest))
    moved = honest.query("task == 'gender' and split == 'test'").iloc[0]
    leaky = honest.assign(split=honest["split"].mask(honest.index == moved.name, "train"))
    told = rf"task gender, protocol speaker, fold 0: .*speaker.* in both .*{moved['speaker_id']}"
    refused(told, stop_on_leakage, audit_splits(leaky))


def test_every_network_is_trained_once_and_what_tells_is_told(trained, stores, splits, monkeypatch):
    stage, fits = trained
    assert len(fits.drop_duplicates(trainings.KEYS)) == len(fits) == 2 + 2 + 3
    assert set(fits.loc[fits["network"].str.startswith(("linear", "steps")), "seed"]) == {0}
    scores = fits.groupby(["task", "network"])["validation_uar"].mean()
    assert scores["gender", "linear:bank"] < 0.75  # noise
    assert (scores["gender", "linear"] > 0.9, scores["age", "linear"] > 0.5) == (True, True)
    for fit in fits.itertuples():
        assert train.checkpoint_path(stage.path(fit.folder), fit.best_epoch).exists()
    assert trainings.load_history(stage, fits).groupby(trainings.KEYS)["chosen"].sum().eq(1).all()
    for module, name in ((train, "train_epoch"), (linear, "list_problems")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("trained again"))
    rows = splits[(splits["protocol"] == "speaker") & (splits["task"] == "gender")]
    again = trainings.train_networks(stage, rows, stores, [GENDER], NETWORKS, [0, 1], RECIPE, EXACT)
    columns = [*trainings.KEYS, "best_epoch", "validation_uar", "folder"]
    pd.testing.assert_frame_equal(again[columns], fits.loc[fits["task"] == "gender", columns])


@pytest.mark.parametrize(("copies", "everybody"), [(1, False), (2, False), (1, True)])
def test_linear_models_learn_from_training_copies_included_or_from_all(stores, splits, tmp_path, copies, everybody):
    rows = splits[(splits["protocol"] == "speaker") & (splits["task"] == "gender")]
    rows = rows.assign(split="train") if everybody else rows
    _, best = trainings.train_linear(tmp_path, rows, stores[:copies], GENDER, "linear", 0, [[1e-3]])
    heard = rows.loc[rows["split"] == "train", "window_id"]
    expected = np.mean([store.statistics(heard)[:].mean(axis=0) for store in stores[:copies]], axis=0)
    model, _ = train.load_model(train.checkpoint_path(tmp_path, best))
    np.testing.assert_allclose(model.normaliser.mean, expected, atol=1e-4)


def test_rows_weigh_alike_by_class_and_by_the_root_of_their_number_within():
    speakers = pd.DataFrame({
        "speaker_id": list("abcdet"), "target": [0, 0, 1, 0, 0, 0], "corpus": list("xxxyyx"), "windows": [16, 4, 2, 1, 5, 1],
        "age_years": [30.0, 30, 30, 8, 30, 30], "split": ["train"] * 5 + ["test"],
    })  # fmt: skip
    table = speakers.loc[speakers.index.repeat(speakers["windows"])].reset_index(drop=True)
    table = table.assign(window_id=table.index).sample(frac=1, random_state=0)
    weights = pd.Series(trainings.balance_rows(table), index=table.index)
    by_speaker = weights.groupby(table["speaker_id"]).sum()
    assert (weights.groupby(table["target"]).sum().tolist(), by_speaker["t"]) == (pytest.approx([1, 1]), 0)
    by_number = weights * table["target"].map({0: 2, 1: 1})  # of years: the root of four speakers and of one
    np.testing.assert_allclose(trainings.balance_rows(table, 0.5), by_number)
    assert by_speaker["a"] / by_speaker["b"] == pytest.approx(2)  # 16 windows against 4
    assert (by_speaker["a"] + by_speaker["b"]) / by_speaker["d"] == pytest.approx(2**0.5)  # two voices against one
    assert by_speaker["d"] == pytest.approx(by_speaker["e"])  # a child and an adult of one corpus: groups of one voice
