import pytest
import torch
from torch import nn

from lib.networks import AgeNet, GenderNet, Normaliser, build_network, count_parameters

# (in, out, kernel height, kernel width) of the convolutions, then (in, out) of the linear layers, as published.
AGE = [(1, 96, 3, 3), (96, 256, 3, 3), (256, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 4096, 4, 1)]
GENDER = [(1, 96, 5, 5), (96, 256, 5, 5), (256, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 64, 2, 2)]
GENDER += [(64, 64, 3, 3), (64, 32, 3, 3)]
AGE_SHAPES = [(49, 10), (16, 3), (4, 1)]
GENDER_SHAPES = [(73, 14), (69, 10), (68, 9), (34, 5)]


def published_parameters(convolutions, linears):
    """Weights and biases of the table, and two numbers a channel for each of its five batch normalisations."""
    convolved = sum(i * o * h * w + o for i, o, h, w in convolutions)
    return convolved + 2 * sum(o for _, o, _, _ in convolutions[:5]) + sum(i * o + o for i, o in linears)


@pytest.mark.parametrize(
    ("network", "convolutions", "linears", "total"),
    [
        (AgeNet(), AGE, [(4096, 1024), (1024, 2)], 10_980_866),
        (GenderNet(), GENDER, [(32, 1024), (1024, 2)], 3_136_674),
    ],
)
def test_parameters_equal_the_published_table(network, convolutions, linears, total):
    assert count_parameters(network) == published_parameters(convolutions, linears) == total


@pytest.mark.parametrize(
    ("network", "shapes"), [(AgeNet(width=0.05), AGE_SHAPES), (GenderNet(width=0.05), GENDER_SHAPES)]
)
def test_pooling_shrinks_the_papers_input_as_in_the_table(network, shapes):
    values, seen = torch.zeros(1, 1, 149, 32), []
    for layer in network.convolutions:
        values = layer(values)
        if isinstance(layer, nn.MaxPool2d):
            seen.append(tuple(values.shape[2:]))
    assert seen == shapes


@pytest.mark.parametrize(("network", "dropouts"), [(AgeNet(), 2), (GenderNet(), 2)])
def test_order_is_convolution_relu_normalisation_pooling(network, dropouts):
    names = [type(layer).__name__ for layer in network.convolutions]
    assert names[:4] == ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.5 for m in network.modules()) == dropouts


@pytest.mark.parametrize("name", ["paper", "attentive", "linear"])
@pytest.mark.parametrize("task", ["gender", "age_years"])
@pytest.mark.parametrize("size", [(149, 32), (149, 29), (199, 64)])
def test_outputs_are_log_probabilities_at_many_sizes(name, task, size):
    model = build_network(name, ["a", "b", "c"], *size, task=task, width=0.05).eval()
    log_probabilities = model(torch.randn(2, *size))
    assert log_probabilities.shape == (2, 3)
    torch.testing.assert_close(log_probabilities.exp().sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(("task", "least"), [("age", (126, 27)), ("gender", (15, 15))])
def test_too_small_an_input_is_refused_with_the_least_size(task, least):
    build_network("paper", ["a", "b"], *least, task=task, width=0.02)(torch.randn(2, *least))
    for size in [(least[0] - 1, least[1]), (least[0], least[1] - 1)]:
        with pytest.raises(ValueError, match=f"T >= {least[0]} and D >= {least[1]}"):
            build_network("paper", ["a", "b"], *size, task=task)


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build_network("paper", ["a", "b"], 149, 32, width=0.1, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    weights = [next(model.network.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_p10_divides_by_the_10_norm_over_frames():
    features = torch.randn(3, 20, 4)
    norm = features.abs().pow(10).sum(dim=1, keepdim=True).pow(0.1)
    torch.testing.assert_close(Normaliser("p10", 1, 4)(features), features / norm)


def test_unknown_names_and_single_classes_are_refused():
    with pytest.raises(ValueError, match="unknown network 'resnet'"):
        build_network("resnet", ["a", "b"], 149, 32)
    with pytest.raises(ValueError, match="unknown normalisation 'minmax'"):
        build_network("linear", ["a", "b"], 149, 32, normalisation="minmax")
    with pytest.raises(ValueError, match="two different classes"):
        build_network("linear", ["a", "a"], 149, 32)
