"""Splits, gate and trainings of a run, on a made-up corpus."""

import numpy as np
import pandas as pd
import pytest
from learning_fixture import make_corpus, make_stage, make_store

from lib import figures, trainings
from lib.store import Features
from lib.trainings import Recipe

CLIPS, WINDOWS = make_corpus()
RECIPE = Recipe(2, 4, 0.01, 0.01, 50, 0.05, 0, "standard", "balanced")


@pytest.fixture(scope="module")
def tasks():
    return trainings.make_tasks(["gender", "age"], ["child", "adult"], [16], CLIPS)[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), WINDOWS, CLIPS)


@pytest.fixture(scope="module")
def splits(tasks):
    return trainings.split_tasks(WINDOWS, CLIPS, tasks, ["speaker", "paper"], seed=0, folds=3)


def test_folds_test_every_window_once_and_keep_speakers_apart(splits):
    here = splits[(splits["task"] == "gender") & (splits["protocol"] == "speaker")]
    assert sorted(here["fold"].unique()) == [0, 1, 2]
    tested = here[here["split"] == "test"]
    assert tested["window_id"].is_unique
    assert len(tested) == len(WINDOWS)
    for _, fold in here.groupby("fold"):
        assert (fold.groupby("speaker_id")["split"].nunique() == 1).all()
        assert set(fold["split"]) == {"train", "validation", "test"}


def test_random_windows_are_split_once_whatever_the_folds(splits):
    assert set(splits.loc[splits["protocol"] == "paper", "fold"]) == {0}


def test_the_gate_lets_unseen_speakers_pass_and_names_shared_ones(splits, store):
    audit = trainings.audit_splits(splits, store)
    trainings.stop_on_leakage(audit)
    assert audit.loc[(audit["protocol"] == "paper") & (audit["kind"] == "speaker"), "count"].gt(0).all()
    with pytest.raises(ValueError, match=r"task age, protocol speaker, fold 0: .*speaker"):
        trainings.stop_on_leakage(audit.assign(protocol=audit["protocol"].replace("paper", "speaker")))


def test_an_audit_that_leaves_the_averages_on_disk_finds_the_same(splits, store, monkeypatch):
    held = trainings.audit_splits(splits, store)
    monkeypatch.setattr(trainings, "IN_MEMORY", 0)
    monkeypatch.setattr(Features, "all", lambda self: pytest.fail("everything at once"))
    pd.testing.assert_frame_equal(trainings.audit_splits(splits, store), held)


def test_the_main_protocol_is_the_first_that_keeps_speakers_apart():
    assert trainings.main_protocol(["paper", "official"]) == "official"
    assert trainings.main_protocol(["speaker", "paper"]) == "speaker"
    assert trainings.main_protocol(["paper"]) == "paper"


def test_every_network_seed_and_fold_is_trained_and_again_gives_the_same(splits, store, tasks, tmp_path):
    fits = []
    for name in ("one", "two"):
        stage = make_stage(tmp_path / name)
        fits.append(trainings.train_networks(stage, splits, store, tasks, ["linear_layers"], [0, 1], RECIPE))
        history = trainings.load_history(stage, trainings.load_fits(stage))
    assert len(fits[0]) == 2 * (3 + 1) * 2
    pd.testing.assert_frame_equal(fits[0], fits[1])
    assert history.groupby(trainings.KEYS)["chosen"].sum().eq(1).all()
    assert history["validation_uar"].between(0, 1).all()
    figure, numbers = figures.plot_trainings(history, "gender", "speaker")
    assert len(numbers) == 4  # of six trainings the mean of each epoch
    assert numbers["trainings"].eq(3 * 2).all()
    one = history[(history["fold"] == 0) & (history["seed"] == history["seed"].min())]
    _, each = figures.plot_trainings(one, "gender", "speaker")
    np.testing.assert_array_equal(each["validation_uar"], one.loc[each.index, "validation_uar"])
    assert "gender" in figure.get_suptitle()


def test_heads_have_their_full_width_and_the_paper_its_factor(splits, store, tasks, tmp_path):
    table = splits[(splits["task"] == "gender") & (splits["protocol"] == "paper")]
    found = {}
    for network in ("paper", "attentive", "attentive_layers"):
        fit = trainings.train_network(tmp_path / network, table, store, tasks[0], network, 0, RECIPE)
        found[network] = len(fit.history)
        answers = trainings.ask_checkpoint(fit.checkpoint(), store, table["window_id"], network)
        assert np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert found == {"paper": 2, "attentive": 4, "attentive_layers": 4}


def test_the_papers_normalisation_is_its_own_for_each_task(tasks):
    assert [trainings.normalisation_of("paper", task) for task in tasks] == ["p10", "none"]
    assert trainings.normalisation_of("standard", tasks[0]) == "standard"
