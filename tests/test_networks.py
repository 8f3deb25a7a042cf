import numpy as np
import pytest
import torch
from checks import refused

from lib.networks import AgeNet, GenderNet, Normaliser, StepsNet, build_network, describe_layers, select_input

# (in, out, kernel height, kernel width) of the convolutions, as published; a layer has a bias each, five are normalised
AGE = [(1, 96, 3, 3), (96, 256, 3, 3), (256, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 4096, 4, 1)]
GENDER = [(1, 96, 5, 5), (96, 256, 5, 5), (256, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 64, 2, 2)]
GENDER += [(64, 64, 3, 3), (64, 32, 3, 3)]
PARTS = {"conv": [0, 4], "layer:0": [4, 7], "layer:1": [7, 10], "emission": [10, 12], "bank": [12, 14]}


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
