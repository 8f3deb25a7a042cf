import numpy as np
import pandas as pd
import pytest
import torch
from checks import killed_at, refused
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib import linear, networks, train
from lib.compute import Compute, torch_threads
from lib.networks import AgeNet, GenderNet, Normaliser, StepsNet, build_network, describe_layers, select_input
from lib.train import Recipe, checkpoint_path, fit_network, load_model, predict_log_probabilities

# (in, out, kernel height, kernel width) of the convolutions, as published; a layer has a bias each, five are normalised
AGE = [(1, 96, 3, 3), (96, 256, 3, 3), (256, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 4096, 4, 1)]
GENDER = [(1, 96, 5, 5), (96, 256, 5, 5), (256, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 64, 2, 2)]
GENDER += [(64, 64, 3, 3), (64, 32, 3, 3)]
PARTS = {"conv": [0, 4], "layer:0": [4, 7], "layer:1": [7, 10], "emission": [10, 12], "bank": [12, 14]}
CLASSES = ["male", "female"]
EXACT = Compute("cpu", "float32", "")
TRAIN, VALIDATION = np.arange(180), np.arange(180, 240)


@pytest.fixture(autouse=True)
def one_thread():
    """So small a network waits for threads longer than it computes, above all on a busy machine."""
    with torch_threads(1):
        yield


def make_task(raised=2):
    """Features in which class 1 has a raised first column, one row in three of class 1."""
    targets = (np.arange(240) % 3 == 0).astype(np.int64)
    features = np.random.default_rng(0).normal(3, 2, (240, 20, 16)).astype(np.float32)
    features[..., 0] += raised * targets[:, None]
    return features, targets


def fit(folder, *, task=None, rows=(TRAIN, VALIDATION), compute=EXACT, every=True, seed=7, **recipe):
    """The paper's network after its last epoch, its history and the chosen epoch."""
    features, targets = task or make_task()
    recipe = Recipe(**{"epochs": 4, "learning_rate": 1e-3, "batch": 32, "width": 0.1} | recipe)
    model = networks.build_network("paper", CLASSES, features.shape[1:], width=0.1, seed=seed)
    options = {"seed": seed, "compute": compute, "every_epoch": every}
    return model, *fit_network(model, features, targets, *rows, recipe, folder, **options)


def fit_line(folder, name="linear", classes=CLASSES, task=None, widths=(), children=None, **options):
    """History and chosen checkpoint of a linear model on the means of frames, or on vectors; one voice speaks all rows."""
    features, targets = task or make_task()
    features = features.mean(axis=1) if features.ndim == 3 else features
    model = networks.build_network(name, classes, features.shape[1:], widths=widths)
    nobody = np.zeros(len(targets), bool)
    facts = (1 / np.bincount(targets[TRAIN])[targets], nobody if children is None else children, nobody)
    history, best = linear.fit_linear(model, features, targets, TRAIN, VALIDATION, folder, *facts, **options)
    assert list(train.list_checkpoints(folder)) == [best]
    return history.set_index("epoch"), checkpoint_path(folder, best)


def test_training_learns_and_a_checkpoint_gives_the_chosen_epochs_predictions_and_normalisation(tmp_path):
    features, targets = make_task(raised=6)
    _, table, best = fit(tmp_path, task=(features, targets), epochs=12, learning_rate=1e-2)
    history = table.set_index("epoch")
    assert history["validation_uar"].max() > 0.95
    assert best == history["validation_uar"][1:].idxmax()  # the earliest best
    names = ["loss", "accuracy", "uar", "macro_f1", "f1_male", "f1_female"]
    assert {f"{part}_{name}" for part in ("train", "validation") for name in names} <= set(history)
    assert [0, *sorted(train.list_checkpoints(tmp_path))] == history.index.tolist() == list(range(13))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), table, check_dtype=False)
    model, record = load_model(checkpoint_path(tmp_path, best))
    answers = predict_log_probabilities(model, features, VALIDATION)
    right = (answers.argmax(axis=1) == targets[VALIDATION]).mean()
    weights = len(TRAIN) / (2 * np.bincount(targets[TRAIN]))[targets[VALIDATION]]
    expected = [right, -np.average(answers[np.arange(60), targets[VALIDATION]], weights=weights)]
    assert history.loc[best, ["validation_accuracy", "validation_loss"]].tolist() == pytest.approx(expected, rel=1e-5)
    assert (record["epoch"], model.training, model.settings["classes"]) == (best, False, CLASSES)
    for fitted, expected in ((model.normaliser.mean, np.mean), (model.normaliser.scale, np.std)):
        np.testing.assert_allclose(fitted, expected(features[TRAIN], axis=(0, 1)), rtol=1e-3)


@pytest.mark.parametrize(("every", "arithmetic"), [(True, "float32"), (False, "float32"), (True, "bfloat16")])
def test_killed_training_goes_on_and_ends_with_the_same_numbers(tmp_path, every, arithmetic):
    options = {"every": every, "compute": Compute("cpu", arithmetic, "")}
    whole = fit(tmp_path / "whole", **options)
    torch.rand(3)
    with killed_at(15, torch.optim.Adam, "step"):  # inside the third epoch
        fit(tmp_path / "cut", **options)
    assert len(pd.read_csv(tmp_path / "cut" / "history.csv")) == 3  # before, and two whole epochs
    resumed = fit(tmp_path / "cut", **options)
    assert all(map(torch.equal, whole[0].state_dict().values(), resumed[0].state_dict().values()))
    pd.testing.assert_frame_equal(whole[1], resumed[1], check_exact=True)  # to the last digit
    assert sorted(train.list_checkpoints(tmp_path / "cut")) == sorted(train.list_checkpoints(tmp_path / "whole"))
    assert not whole[1].equals(fit(tmp_path / "other", **options, seed=8)[1])


def test_folder_of_another_training_missing_class_empty_validation_and_what_is_no_checkpoint_are_refused(tmp_path):
    fit(tmp_path, epochs=1)
    for change in ({"learning_rate": 1e-4}, {"seed": 8}, {"rows": (TRAIN[1:], VALIDATION)}):
        refused("other settings or rows; delete it or choose another", fit, tmp_path, epochs=1, **change)
    silent = make_task()[0], np.zeros(240, np.int64)
    refused("hold every class, it has 180 male, 0 female; fewer classes", fit, tmp_path, task=silent)
    refused("validation part is empty", fit, tmp_path, rows=(TRAIN, VALIDATION[:0]))
    _, checkpoint = fit_line(tmp_path / "line", penalties=(1e-3,))
    content = checkpoint.read_bytes()
    for broken in (b"not weights", b"", content[:20], content[:-1]):
        checkpoint.write_bytes(broken)
        refused(r"epoch-001\.safetensors: not a checkpoint", load_model, checkpoint)
    checkpoint.unlink()
    refused(r"epoch-001\.safetensors: no such checkpoint", load_model, checkpoint)


def test_a_linear_model_is_scikit_learns_at_the_penalty_with_the_lowest_tempered_loss(tmp_path):
    (features, targets), (history, checkpoint) = make_task(), fit_line(tmp_path)
    features = features.mean(axis=1)
    assert [float(one) for one in history["penalty"]] == list(linear.PENALTIES)
    best = history["tempered_loss"].idxmin()
    assert checkpoint == checkpoint_path(tmp_path, best)
    regression = LogisticRegression(C=float(history["penalty"][best]), class_weight="balanced", max_iter=1000)
    probe = make_pipeline(StandardScaler(), regression).fit(features[TRAIN], targets[TRAIN])
    answers = np.exp(predict_log_probabilities(load_model(checkpoint)[0], features, VALIDATION))
    np.testing.assert_allclose(answers, probe.predict_proba(features[VALIDATION]), atol=2e-3)


@pytest.mark.parametrize("tempered", [True, False])
def test_a_step_is_judged_as_it_learns_and_with_classes_alike_where_what_it_learned_lacks_one(tempered):
    rng, targets = np.random.default_rng(0), np.arange(60) % 3 == 0
    values, weights = rng.normal(targets, size=(3, 60)).T, np.r_[rng.uniform(1, 9, 40), 1.0 * targets[40:]]
    problem = linear.Problem(torch.nn.Linear(3, 2), slice(None), targets, weights, np.ones(60, bool), tempered)
    problem.fit(values[:40], np.arange(40), 1.0)
    for rows, own in ((np.arange(40), tempered), (np.arange(40, 60), False)):
        told = problem.probe.predict_log_proba(values[rows])
        even = weights[rows] if own else linear.compute_sample_weight("balanced", targets[rows])
        shares = [linear.softmax(s * told, axis=1) for s in linear.SHARPNESS]
        each = [linear.log_loss(targets[rows], share, sample_weight=even) for share in shares]
        assert problem.loss(values[rows], rows)[0] == pytest.approx(min(each))


def test_each_step_reads_its_own_columns_at_the_penalty_that_is_best_for_itself(tmp_path, monkeypatch):
    targets = np.arange(240) % 3  # the one clear column wants a weak penalty, one hidden among forty a strong one
    features = np.random.default_rng(1).normal(size=(240, 42)).astype(np.float32)
    features[:, 0] += 6 * (targets > 0)
    features[:, 2] += 0.7 * (targets > 1)
    ages = "steps:a|b", ["child", "teen", "adult"], (features, targets), (2, 40)
    history, checkpoint = fit_line(tmp_path, *ages, penalties=(1e-4, 1e-2, 1.0, 100.0))
    assert (len(history), checkpoint) == (4 + 1, checkpoint_path(tmp_path, 5))
    for step in load_model(checkpoint)[0].network.steps:
        told, *noise = step.weight.abs().detach().numpy()[0]
        assert told > 2 * np.mean(noise)
    first, second = linear.middle_penalty(history["penalty"].iloc[-1:], 2)
    assert first > second
    again, _ = fit_line(tmp_path / "again", *ages, penalties=[(first, second)])
    assert linear.middle_penalty(["0.1|0.01", "1", "0.001|0.01"], 2) == [0.1, 0.01]
    assert history["validation_loss"].iloc[-1] == pytest.approx(again["validation_loss"].iloc[-1], abs=0.01)
    tempered, _ = fit_line(tmp_path / "tempered", *ages, penalties=[(first, 100.0)])
    monkeypatch.setattr(linear, "SHARPNESS", [1.0])  # each step answers at a temperature of its own
    sure, _ = fit_line(tmp_path / "sure", *ages, penalties=[(first, 100.0)])
    assert tempered["validation_loss"].iloc[0] < sure["validation_loss"].iloc[0] - 0.1
    assert tempered["validation_uar"].iloc[0] >= sure["validation_uar"].iloc[0] - 0.05


def test_experts_answer_for_children_by_other_columns_than_for_others(tmp_path):
    targets, children = np.arange(240) % 2, np.arange(240) % 3 == 0
    features = np.random.default_rng(2).normal(size=(240, 2)).astype(np.float32)
    features[:, 0] += 5 * children
    features[:, 1] += 4 * (targets != children)  # means the one gender of a child and the other of anybody else
    experts = {"name": "experts:a|b", "task": (features, targets), "widths": (1, 1)}
    mixed, _ = fit_line(tmp_path, **experts, children=children, penalties=(1.0,))
    plain, _ = fit_line(tmp_path / "plain", task=(features, targets))
    assert mixed["validation_uar"].iloc[0] > 0.9 > 0.8 > plain["validation_uar"].max()
    refused("children from others by the ages", fit_line, tmp_path / "none", **experts)


@pytest.mark.parametrize(("network", "convolutions", "total", "shapes"), [
    (AgeNet(), AGE, 10_980_866, [(49, 10), (16, 3), (4, 1)]),
    (GenderNet(), GENDER, 3_136_674, [(73, 14), (69, 10), (68, 9), (34, 5)]),
])  # fmt: skip
def test_parameters_equal_the_published_table(network, convolutions, total, shapes):
    made = [layer for layer in network.convolutions if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, *layer.kernel_size) for layer in made] == convolutions
    table = describe_layers(network, [149, 32])
    assert table["parameters"].sum() == total
    pooled = table[table["layer"].str.startswith("MaxPool2d")]["output"]
    assert [tuple(map(int, output.split(" x ")[1:])) for output in pooled] == shapes


@pytest.mark.parametrize(("name", "shape", "options"), [
    ("paper", (149, 32), {"task": "gender", "width": 0.05}), ("paper", (199, 64), {"task": "gender", "width": 0.05}),
    ("paper", (149, 29), {"task": "age_years", "width": 0.05}), ("linear", (70,), {}),
    ("steps:bank|conv", (70,), {"widths": (30, 40)}), ("experts:bank|conv", (70,), {"widths": (30, 40)}),
])  # fmt: skip
def test_outputs_are_log_probabilities(name, shape, options):
    model = build_network(name, ["a", "b", "c"], shape, **options).eval()
    log_probabilities = model(3 * torch.randn(2, *shape))
    assert log_probabilities.shape == (2, 3)
    torch.testing.assert_close(log_probabilities.exp().sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(("task", "least"), [("age", (126, 27)), ("gender", (15, 15))])
def test_too_small_an_input_is_refused_with_the_least_size(task, least):
    build_network("paper", ["a", "b"], least, task=task, width=0.02)(torch.randn(2, *least))
    for shape in [(least[0] - 1, least[1]), (least[0], least[1] - 1)]:
        refused(f"T >= {least[0]} and D >= {least[1]}", build_network, "paper", ["a", "b"], shape, task=task)


def test_steps_are_continuation_ratios_each_with_columns_of_its_own():
    network, values = StepsNet([1, 2]), torch.tensor([[0.5, -1.0, 2.0]])
    first, second = network.steps[0](values[:, :1]).sigmoid(), network.steps[1](values[:, 1:]).sigmoid()
    expected = torch.cat([first, (1 - first) * second, (1 - first) * (1 - second)], dim=1)
    torch.testing.assert_close(network(values).exp(), expected)
    refused("3 ordered classes take 2 steps", build_network, "steps:a", ["x", "y", "z"], (3,), widths=(3,))


def test_normalisations_do_what_they_say_and_unknown_names_and_no_width_are_refused():
    features = torch.randn(3, 20, 4)
    norm = features.abs().pow(10).sum(dim=1, keepdim=True).pow(0.1)
    torch.testing.assert_close(Normaliser("p10", [4])(features), features / norm)
    assert Normaliser("none", [4])(features) is features
    refused("unknown normalisation 'minmax'", build_network, "linear", ["a", "b"], (9,), normalisation="minmax")
    for name in ("resnet", "paper:conv", "steps", "experts:bank"):
        refused(rf"unknown network '{name}'; choose 'paper', 'linear'", build_network, name, ["a", "b"], (9,))
    refused("width must be above 0, not 0", build_network, "paper", ["a", "b"], (149, 32), width=0)


def test_a_network_is_given_the_columns_of_its_parts_in_its_order():
    tensors = {"frames": np.zeros((2, 5, 3)), "statistics": np.arange(28.0).reshape(2, 14)}
    assert select_input("paper", tensors, PARTS) is tensors["frames"]
    assert select_input("linear", tensors, PARTS) is tensors["statistics"]
    assert select_input("linear:bank+conv", tensors, PARTS)[0].tolist() == [12, 13, 0, 1, 2, 3]
    assert select_input("steps:emission|bank", tensors, PARTS)[1].tolist() == [24, 25, 26, 27]
