import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from sklearn.utils.class_weight import compute_class_weight

from lib import train
from lib.networks import Normaliser, build_network
from lib.train import compute_class_weights, fit_network, fit_normaliser, load_model, predict_log_probabilities

CLASSES = ["male", "female"]


def make_task(rows=240, frames=20, width=16, seed=0):
    """Features in which class 1 has a raised first column, one row in three of class 1."""
    rng = np.random.default_rng(seed)
    targets = (np.arange(rows) % 3 == 0).astype(np.int64)
    features = rng.normal(3, 2, (rows, frames, width)).astype(np.float32)
    features[:, :, 0] += 2 * targets[:, None]
    return features, targets, np.arange(0, rows * 3 // 4), np.arange(rows * 3 // 4, rows)


def fit(folder, name="attentive", epochs=4, task=None, **options):
    features, targets, train, validation = task or make_task()
    model = build_network(name, CLASSES, *features.shape[1:], width=0.1, seed=7)
    settings = {"epochs": epochs, "learning_rate": 1e-3, "batch": 32, "seed": 7, "progress": False} | options
    return model, fit_network(model, features, targets, train, validation, classes=CLASSES, folder=folder, **settings)


def test_training_learns_and_the_history_has_every_score(tmp_path):
    _, found = fit(tmp_path, epochs=12, learning_rate=1e-2)
    assert found.history["validation_uar"].max() > 0.95
    names = ["loss", "accuracy", "uar", "macro_f1", "weighted_f1", "f1_male", "f1_female"]
    assert {f"{part}_{name}" for part in ("train", "validation") for name in names} <= set(found.history)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), found.history)


@pytest.mark.parametrize(
    ("name", "options"),
    [("paper", {}), ("paper", {"precision": "bf16", "channels_last": True}), ("attentive", {}), ("linear", {})],
)
def test_same_seed_gives_the_same_numbers_to_the_last_digit(tmp_path, name, options):
    one, first = fit(tmp_path / "a", name, epochs=2, **options)
    torch.rand(3)
    two, second = fit(tmp_path / "b", name, epochs=2, **options)
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    _, third = fit(tmp_path / "c", name, epochs=2, **{**options, "seed": 8})
    assert not first.history.equals(third.history)


@pytest.mark.parametrize("name", ["paper", "attentive"])
def test_killed_training_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch, name):
    whole, expected = fit(tmp_path / "whole", name)
    steps = 0
    step = train._Loop.train_step

    def killed(self, *arguments):
        nonlocal steps
        steps += 1
        if steps == 15:  # inside the third epoch
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(train._Loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", name)
    monkeypatch.setattr(train._Loop, "train_step", step)
    assert sorted(train.list_checkpoints(tmp_path / "cut")) == [1, 2]
    resumed, found = fit(tmp_path / "cut", name)
    pd.testing.assert_frame_equal(found.history, expected.history, check_exact=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_finished_training_is_loaded_not_repeated(tmp_path, monkeypatch):
    _, expected = fit(tmp_path)
    monkeypatch.setattr(train._Loop, "run_epoch", None)
    _, found = fit(tmp_path)
    pd.testing.assert_frame_equal(found.history, expected.history)


def test_folder_of_another_training_is_refused(tmp_path):
    fit(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="other settings"):
        fit(tmp_path, epochs=1, learning_rate=1e-4)


def test_checkpoint_gives_the_chosen_epochs_predictions_and_normalisation(tmp_path):
    features, targets, _train, validation = make_task()
    _, found = fit(tmp_path, epochs=3)
    model, record = load_model(found.checkpoint())
    predicted = predict_log_probabilities(model, features, validation).argmax(axis=1)
    row = found.history.set_index("epoch").loc[found.best_epoch]
    assert (predicted == targets[validation]).mean() == pytest.approx(row["validation_accuracy"])
    assert record["epoch"] == found.best_epoch
    assert model.normaliser.mean.abs().max() > 1  # fitted, not the identity
    with safe_open(found.checkpoint(1), "pt") as stream:
        assert "normaliser.mean" in stream.keys()  # noqa: SIM118


def test_patience_stops_and_the_best_epoch_is_the_earliest_best(tmp_path):
    _, found = fit(tmp_path, epochs=40, learning_rate=1e-2, patience=3)
    scores = found.history["validation_uar"].to_numpy()
    assert len(scores) < 40
    assert found.best_epoch == int(scores.argmax()) + 1
    assert len(scores) == found.best_epoch + 3


def test_class_weights_are_balanced_on_the_training_part_only():
    targets = np.array([0, 0, 0, 1, 0, 1, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(compute_class_weights(targets, 3, "balanced"), expected)
    with pytest.raises(ValueError, match=r"counts are \[5, 2\]|counts are \[4, 2, 1, 0\]"):
        compute_class_weights(targets, 4, "balanced")


def test_loss_is_the_weighted_negative_log_likelihood(tmp_path):
    features, targets, train, validation = make_task()
    model, found = fit(tmp_path, epochs=1)
    weights = torch.tensor(compute_class_weights(targets[train], 2, "balanced"), dtype=torch.float32)
    log_probabilities = torch.from_numpy(predict_log_probabilities(model, features, validation))
    expected = torch.nn.functional.nll_loss(log_probabilities, torch.from_numpy(targets[validation]), weights)
    assert found.history["validation_loss"][0] == pytest.approx(float(expected), rel=1e-5)


def test_sample_weights_of_zero_hide_rows(tmp_path):
    features, targets, train, validation = make_task()
    spoiled = targets.copy()
    spoiled[train[:60]] = 1 - spoiled[train[:60]]
    weights = np.ones(len(targets))
    weights[train[:60]] = 0
    _, found = fit(tmp_path, "linear", 30, (features, spoiled, train, validation), sample_weights=weights,
                   learning_rate=3e-2, class_weights=None)  # fmt: skip
    assert found.history["validation_uar"].max() > 0.9


@pytest.mark.parametrize("rows", [1, 20])
def test_normaliser_is_fitted_on_training_rows_only(rows):
    features, _, train, _ = make_task()
    features[train[-1] + 1 :] += 1000
    normaliser = fit_normaliser(Normaliser("standard", rows, 16), features, train, batch=7)
    axes = (0, 1) if rows == 1 else (0,)
    np.testing.assert_allclose(normaliser.mean.squeeze(), features[train].mean(axis=axes), rtol=1e-4)
    np.testing.assert_allclose(normaliser.scale.squeeze(), features[train].std(axis=axes), rtol=1e-3)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"channels_last": True}])
def test_faster_forms_follow_the_same_loss(tmp_path, options):
    _, plain = fit(tmp_path / "plain", "paper", epochs=2)
    _, fast = fit(tmp_path / "fast", "paper", epochs=2, **options)
    np.testing.assert_allclose(fast.history["train_loss"], plain.history["train_loss"], rtol=0.02)


def test_batches_are_read_in_ascending_order_and_returned_in_the_asked_one():
    class Features:
        def __len__(self):
            return 10

        def __getitem__(self, rows):
            assert (np.diff(rows) >= 0).all()
            return np.asarray(rows, np.float32)[:, None, None]

    rows = np.array([5, 2, 9, 0, 2])
    read = np.concatenate([values.numpy().ravel() for _, values in train.read_batches(Features(), rows, 3)])
    assert read.tolist() == rows.tolist()


def test_missing_class_and_empty_validation_are_refused(tmp_path):
    features, targets, train, validation = make_task()
    with pytest.raises(ValueError, match="must hold each of 2 classes"):
        fit(tmp_path, task=(features, targets * 0, train, validation))
    with pytest.raises(ValueError, match="validation part is empty"):
        fit(tmp_path, task=(features, targets, train, validation[:0]))


def test_file_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "epoch-001.safetensors"
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_model(path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"epoch-001\.safetensors: not a checkpoint"):
        load_model(path)
