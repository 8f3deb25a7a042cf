"""The classifiers on top of embeddings: the paper's two networks read frames (B, T, D), the linear models time statistics, one
vector (B, D) a window. All give log-probabilities (B, C). Normalisation is part of the model, so that training, evaluation and
inference cannot disagree about it."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

NORMALISATIONS = ["none", "standard", "p10"]


class PaperNet(nn.Module):
    """What the paper's networks share: frames (B, T, D) pass convolutions as a picture does, then two linear layers."""

    least: tuple[int, int]  # T and D of the smallest frames that do not shrink to nothing

    def forward(self, frames: Tensor) -> Tensor:
        return self.classifier(self.convolutions(frames.unsqueeze(1)))


class AgeNet(PaperNet):
    """The paper's age network by its published code: 10,980,866 parameters for two classes. `width` multiplies hidden sizes."""

    least = (126, 27)

    def __init__(self, classes: int = 2, width: float = 1.0) -> None:
        super().__init__()
        c96, c256, c384, c1024, c4096 = (max(1, round(n * width)) for n in (96, 256, 384, 1024, 4096))
        self.convolutions = nn.Sequential(
            *_block(1, c96, 3, nn.MaxPool2d(3)),  # (B, c96, 49, 10) for the paper's (149, 32)
            *_block(c96, c256, 3, nn.MaxPool2d(3)),  # (B, c256, 16, 3)
            *_block(c256, c384, 3),
            *_block(c384, c256, 3),
            *_block(c256, c256, 3, nn.MaxPool2d((5, 3), stride=(3, 2))),  # (B, c256, 4, 1)
            nn.Conv2d(c256, c4096, (4, 1)),  # (B, c4096, 1, 1)
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.classifier = _classifier(c4096, c1024, classes)


class GenderNet(PaperNet):
    """The paper's gender network, two further convolutions in it: 3,136,674 parameters for two classes."""

    least = (15, 15)

    def __init__(self, classes: int = 2, width: float = 1.0) -> None:
        super().__init__()
        c32, c64, c96, c256, c384, c1024 = (max(1, round(n * width)) for n in (32, 64, 96, 256, 384, 1024))
        self.convolutions = nn.Sequential(
            *_block(1, c96, 5, nn.MaxPool2d(3, stride=2)),  # (B, c96, 73, 14) for the paper's (149, 32)
            *_block(c96, c256, 5, nn.MaxPool2d(3, stride=1)),  # (B, c256, 69, 10)
            *_block(c256, c384, 3),
            *_block(c384, c256, 3),
            *_block(c256, c256, 3, nn.MaxPool2d(2, stride=1)),  # (B, c256, 68, 9)
            nn.Conv2d(c256, c64, 2, padding=1),  # (B, c64, 69, 10)
            nn.ReLU(),
            nn.Conv2d(c64, c64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, stride=2),  # (B, c64, 34, 5)
            nn.Conv2d(c64, c32, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.classifier = _classifier(c32, c1024, classes)


class LinearNet(nn.Module):
    """Multinomial logistic regression on one vector a window, (B, D)."""

    def __init__(self, width_in: int, classes: int = 2) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(width_in, classes), nn.LogSoftmax(dim=-1))

    def forward(self, statistics: Tensor) -> Tensor:
        return self.classifier(statistics)


class StepsNet(nn.Module):
    """Continuation-ratio logits for ordered classes (Fienberg 1980): step k tells class k from all that come after it, by
    columns of its own, `widths` of them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.steps = nn.ModuleList(nn.Linear(width, 1) for width in widths)

    def forward(self, statistics: Tensor) -> Tensor:
        logits = [step(part) for step, part in zip(self.steps, statistics.split(self.widths, dim=1))]
        passed, answers = torch.zeros_like(logits[0]), []
        for logit in logits:
            answers.append(passed + logsigmoid(logit))
            passed = passed + logsigmoid(-logit)
        return torch.cat([*answers, passed], dim=1)


class ExpertsNet(nn.Module):
    """Two linear experts, others' and children's, mixed by how likely a voice is a child's (Jacobs et al. 1991,
    10.1162/neco.1991.3.1.79). The gate reads the first of two `widths` of columns, the experts the second."""

    def __init__(self, widths: Sequence[int], classes: int = 2) -> None:
        super().__init__()
        self.widths = list(widths)
        self.gate = nn.Linear(widths[0], 1)
        self.experts = nn.ModuleList(nn.Linear(widths[1], classes) for _ in range(2))

    def forward(self, statistics: Tensor) -> Tensor:
        gate, values = statistics.split(self.widths, dim=1)
        child = self.gate(gate)
        shares = [logsigmoid(-child), logsigmoid(child)]
        answers = [share + expert(values).log_softmax(dim=1) for share, expert in zip(shares, self.experts)]
        return torch.stack(answers).logsumexp(dim=0)


class Normaliser(nn.Module):
    """The one normalisation of a network's input, kept with the weights; the shape stays. "standard": zero mean and unit
    variance over the training rows, and over frames. "p10": divided by the 10-norm over frames, as in the paper's gender training."""

    def __init__(self, kind: str, shape: Sequence[int]) -> None:
        super().__init__()
        if kind not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {kind!r}; choose one of {NORMALISATIONS}")
        self.kind = kind
        if kind == "standard":
            self.register_buffer("mean", torch.zeros(*shape))
            self.register_buffer("scale", torch.ones(*shape))

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "standard":
            return (features - self.mean) / self.scale
        return nn.functional.normalize(features, p=10.0, dim=1) if self.kind == "p10" else features


class Model(nn.Module):
    """A normaliser and a network, saved and loaded as one; `settings` rebuilds it."""

    def __init__(self, normaliser: Normaliser, network: nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.normaliser, self.network, self.settings = normaliser, network, settings

    def forward(self, features: Tensor) -> Tensor:
        return self.network(self.normaliser(features))


def split_name(network: str) -> tuple[str, list[list[str]]]:
    """Kind of a network and the parts of the store that it reads: a list for each of "steps", for gate and experts of "experts".
    "linear:layer:3+bank" -> ("linear", [["layer:3", "bank"]]); "steps:block:1|embedding" -> ("steps", [["block:1"], ["embedding"]]).
    An empty list means frames for "paper", everything for "linear". ValueError for an unknown name."""
    kind, _, parts = network.partition(":")
    steps = [step.split("+") for step in parts.split("|") if step]
    fits = {"paper": not parts, "linear": True, "steps": bool(parts), "experts": len(steps) == 2}
    if not fits.get(kind):
        raise ValueError(
            f"unknown network {network!r}; choose 'paper', 'linear', 'linear:part+part' with the parts that 03_embed "
            "lists, 'steps:part+part|part' for ordered classes, or 'experts:parts|parts' for children's voices and others'"
        )
    return kind, steps


def select_input(network: str, tensors: dict[str, np.ndarray], parts: dict[str, list[int]]) -> np.ndarray:
    """What a network reads of `frames` (n, T, D) and `statistics` (n, S), arrays or torch's: the former, or columns of the
    latter; parts: first and last column (exclusive) of each."""
    if network == "paper":
        return tensors["frames"]
    columns = [column for step in split_name(network)[1] for name in step for column in range(*parts[name])]
    return tensors["statistics"][:, columns] if columns else tensors["statistics"]


def build_network(
    name: str, classes: list[str], shape: Sequence[int], *, task: str = "gender", width: float = 1.0,
    normalisation: str = "standard", widths: Sequence[int] = (), seed: int = 0,
) -> Model:  # fmt: skip
    """A model with seeded weights. ValueError for an unknown name and for an input too small for the network's pooling.
    name: see `split_name`; "paper" is the age network for tasks that begin with "age", else the gender network. shape: of one
    window's input, (T, D) of frames, (D,) of one vector. width: factor on the hidden sizes of the paper's networks. widths: of
    the columns of each of the name's lists, for "steps" and "experts" alone."""
    settings = {
        "name": name, "classes": list(classes), "shape": [int(n) for n in shape], "task": task, "width": width,
        "normalisation": normalisation, "widths": list(widths), "seed": seed,
    }  # fmt: skip
    kind, _ = split_name(name)
    if kind == "steps" and (len(widths) != len(classes) - 1 or sum(widths) != shape[0]):
        raise ValueError(f"network {name!r}: {len(classes)} ordered classes take {len(classes) - 1} steps")
    if kind == "paper" and width <= 0:
        raise ValueError(f"width must be above 0, not {width}")
    paper = AgeNet if task.startswith("age") else GenderNet
    if kind == "paper" and (shape[0] < paper.least[0] or shape[1] < paper.least[1]):
        raise ValueError(
            f"frames of {list(shape)} are too small for the paper's {paper.__name__}, which needs T >= {paper.least[0]} "
            f"and D >= {paper.least[1]}; take longer windows, a wider embed.feature, or the network 'linear'"
        )
    sizes = {"linear": (shape[0], len(classes)), "steps": (widths,), "experts": (widths, len(classes))}
    kinds = {"linear": LinearNet, "steps": StepsNet, "experts": ExpertsNet, "paper": paper}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kinds[kind](*sizes.get(kind, (len(classes), width)))
    return Model(Normaliser(normalisation, shape[-1:] if kind == "paper" else shape), network, settings)


def describe_layers(network: PaperNet, shape: Sequence[int]) -> pd.DataFrame:
    """One row a layer of a network of the paper, for one window's frames (T, D): layer, output shape, parameters."""
    rows, values = [], torch.zeros(1, 1, *shape)
    with torch.inference_mode():
        for layer in copy.deepcopy(nn.Sequential(*network.convolutions, *network.classifier)).eval():
            values = layer(values)
            size = " x ".join(map(str, values.shape[1:]))
            rows.append({"layer": str(layer), "output": size, "parameters": count_parameters(layer)})
    return pd.DataFrame(rows)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _block(channels_in: int, channels_out: int, kernel: int, *pool: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, kernel, padding=1), nn.ReLU(), nn.BatchNorm2d(channels_out), *pool]


def _classifier(width_in: int, hidden: int, classes: int) -> nn.Sequential:
    first, last = nn.Linear(width_in, hidden), nn.Linear(hidden, classes)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*pooled, first, nn.ReLU(), nn.Dropout(0.5), last, nn.LogSoftmax(dim=-1))
