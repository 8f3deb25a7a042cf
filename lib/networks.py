"""The classifiers on top of embeddings: the paper's two networks, a strong head of today, and the linear probe.

Every network takes features [B, T, D] and gives log-probabilities [B, C]. Normalisation is part of the model (`Model`),
so training, evaluation and inference cannot disagree about it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lib.convolutions import run_fast

NETWORKS = ["paper", "attentive", "linear"]
NORMALISATIONS = ["none", "standard", "p10"]


class AgeNet(nn.Module):
    """The paper's age network (layer for layer from its published code), for [B, T, D] with T >= 126 and D >= 27.

    `width` multiplies every hidden size; 1.0 is the paper.
    """

    fast = False  # True: bfloat16 through `run_fast`; set by the training loop

    def __init__(self, classes: int = 2, width: float = 1.0) -> None:
        super().__init__()
        c96, c256, c384, c1024, c4096 = (scaled(n, width) for n in (96, 256, 384, 1024, 4096))
        self.convolutions = nn.Sequential(
            *_block(1, c96, 3, 1, nn.MaxPool2d(3)),  # [B, c96, 49, 10] for the paper's [149, 32]
            *_block(c96, c256, 3, 1, nn.MaxPool2d(3)),  # [B, c256, 16, 3]
            *_block(c256, c384, 3, 1),
            *_block(c384, c256, 3, 1),
            *_block(c256, c256, 3, 1, nn.MaxPool2d((5, 3), stride=(3, 2))),  # [B, c256, 4, 1]
            nn.Conv2d(c256, c4096, (4, 1)),  # [B, c4096, 1, 1]
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.classifier = _classifier(c4096, c1024, classes)

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] -> log-probabilities [B, C]."""
        if self.fast:
            return self.classifier(run_fast(self.convolutions, features).float())
        return self.classifier(self.convolutions(features.unsqueeze(1)))


class GenderNet(nn.Module):
    """The paper's gender network, with its two further convolutions, for [B, T, D] with T and D >= 15."""

    fast = False  # as in AgeNet

    def __init__(self, classes: int = 2, width: float = 1.0) -> None:
        super().__init__()
        c32, c64, c96, c256, c384, c1024 = (scaled(n, width) for n in (32, 64, 96, 256, 384, 1024))
        self.convolutions = nn.Sequential(
            *_block(1, c96, 5, 1, nn.MaxPool2d(3, stride=2)),  # [B, c96, 73, 14] for the paper's [149, 32]
            *_block(c96, c256, 5, 1, nn.MaxPool2d(3, stride=1)),  # [B, c256, 69, 10]
            *_block(c256, c384, 3, 1),
            *_block(c384, c256, 3, 1),
            *_block(c256, c256, 3, 1, nn.MaxPool2d(2, stride=1)),  # [B, c256, 68, 9]
            nn.Conv2d(c256, c64, 2, padding=1),  # [B, c64, 69, 10]
            nn.ReLU(),
            nn.Conv2d(c64, c64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, stride=2),  # [B, c64, 34, 5]
            nn.Conv2d(c64, c32, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.classifier = _classifier(c32, c1024, classes)

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] -> log-probabilities [B, C]."""
        if self.fast:
            return self.classifier(run_fast(self.convolutions, features).float())
        return self.classifier(self.convolutions(features.unsqueeze(1)))


class AttentiveNet(nn.Module):
    """Attentive statistics pooling over frames (Okabe et al. 2018, arXiv 1803.10963), for any [B, T, D].

    A small attention weighs the frames; their weighted mean and standard deviation go through one hidden layer.
    """

    def __init__(self, width_in: int, classes: int = 2, hidden: int = 128) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.LayerNorm(hidden))
        self.attention = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.Tanh(), nn.Linear(hidden // 2, hidden))
        self.classifier = nn.Sequential(
            nn.LayerNorm(2 * hidden), nn.Dropout(0.3), nn.Linear(2 * hidden, classes), nn.LogSoftmax(dim=-1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] -> log-probabilities [B, C]."""
        lifted = self.lift(features)  # [B, T, H]
        weights = self.attention(lifted).softmax(dim=1)  # [B, T, H], sums to 1 over T
        mean = (weights * lifted).sum(dim=1)  # [B, H]
        variance = (weights * lifted.square()).sum(dim=1) - mean.square()
        return self.classifier(torch.cat([mean, variance.clamp_min(1e-5).sqrt()], dim=-1))


class LayerMixNet(nn.Module):
    """A learned mix of layers (as in SUPERB, arXiv 2105.01051) and one hidden layer, for layer averages [B, L, D]."""

    def __init__(self, layers: int, width_in: int, classes: int = 2, hidden: int = 128) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(layers))
        self.classifier = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(width_in, hidden),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, L, D] -> log-probabilities [B, C]."""
        mixed = torch.einsum("l,bld->bd", self.mix.softmax(dim=0), features)
        return self.classifier(mixed)


class LinearNet(nn.Module):
    """The linear probe: logistic regression on the average over axis 1 (frames or layers)."""

    def __init__(self, width_in: int, classes: int = 2) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(width_in, classes), nn.LogSoftmax(dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] -> log-probabilities [B, C]."""
        return self.classifier(features.mean(dim=1))


class Normaliser(nn.Module):
    """The one normalisation of features [B, T, D], kept with the weights.

    "none": as they come. "standard": zero mean and unit variance, statistics of the training rows only (per D for frames,
    per layer and D for layer averages). "p10": divided by the 10-norm over frames, as in the paper's gender training.
    """

    def __init__(self, kind: str, rows: int, columns: int) -> None:
        super().__init__()
        if kind not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {kind!r}; choose one of {NORMALISATIONS}")
        self.kind = kind
        if kind == "standard":
            self.register_buffer("mean", torch.zeros(rows, columns))
            self.register_buffer("scale", torch.ones(rows, columns))

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        if self.kind == "standard":
            return (features - self.mean) / self.scale
        if self.kind == "p10":
            return nn.functional.normalize(features, p=10.0, dim=1)
        return features


class Model(nn.Module):
    """A normaliser and a network, saved and loaded as one; `settings` rebuilds it."""

    def __init__(self, normaliser: Normaliser, network: nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.normaliser, self.network, self.settings = normaliser, network, settings

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D] -> log-probabilities [B, C]."""
        return self.network(self.normaliser(features))


def build_network(
    name: str,
    classes: list[str],
    frames: int,
    features: int,
    *,
    task: str = "gender",
    layers: bool = False,
    width: float = 1.0,
    normalisation: str = "standard",
    seed: int = 0,
) -> Model:
    """Build a model with seeded weights from its name in the run file.

    Parameters
    ----------
    name: "paper" (the age network for tasks that begin with "age", else the gender network), "attentive" or "linear".
    classes: class names in the fixed order of the outputs.
    frames, features: T and D of the input [B, T, D]; with `layers`, L and D of time-averaged layers.
    layers: True when axis 1 holds layers, not frames.
    width: factor on the hidden sizes, 1.0 = as published.
    normalisation: "none", "standard" (fitted by `fit_network`) or "p10" (the paper's gender training).

    Raises ValueError for an unknown name and for an input too small for the network's pooling.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"a classifier needs at least two different classes, not {classes}")
    settings = {
        "name": name, "classes": list(classes), "frames": frames, "features": features, "task": task,
        "layers": layers, "width": width, "normalisation": normalisation, "seed": seed,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(name, len(classes), frames, features, task, layers, width)
    normaliser = Normaliser(normalisation, frames if layers else 1, features)
    return Model(normaliser, network, settings)


def _build(name: str, classes: int, frames: int, features: int, task: str, layers: bool, width: float) -> nn.Module:
    hidden = scaled(128, width)
    if name == "linear":
        return LinearNet(features, classes)
    if name == "attentive":
        if layers:
            return LayerMixNet(frames, features, classes, hidden)
        return AttentiveNet(features, classes, hidden)
    if name == "paper":
        network = (AgeNet if task.startswith("age") else GenderNet)(classes, width)
        require_size(network, frames, features)
        return network
    raise ValueError(f"unknown network {name!r}; choose one of {NETWORKS}")


def require_size(network: nn.Module, frames: int, features: int) -> None:
    """Raise ValueError when [T, D] shrinks to nothing inside the network's convolutions and poolings."""
    size = (frames, features)
    for layer in network.convolutions:
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            continue
        size = tuple(
            (n + 2 * _pair(layer.padding)[i] - _pair(layer.kernel_size)[i]) // _pair(layer.stride)[i] + 1
            for i, n in enumerate(size)
        )
        if min(size) < 1:
            least = "T >= 126 and D >= 27" if isinstance(network, AgeNet) else "T >= 15 and D >= 15"
            raise ValueError(
                f"[T={frames}, D={features}] is too small for the paper's {type(network).__name__}, which needs {least}; "
                "take longer windows, a wider feature, or the network 'attentive'"
            )


def scaled(channels: int, width: float) -> int:
    """Number of channels at this width factor, at least 1."""
    if width <= 0:
        raise ValueError(f"width must be above 0, not {width}")
    return max(1, round(channels * width))


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _block(
    channels_in: int, channels_out: int, kernel: int, padding: int, pool: nn.Module | None = None
) -> list[nn.Module]:
    layers = [nn.Conv2d(channels_in, channels_out, kernel, padding=padding), nn.ReLU(), nn.BatchNorm2d(channels_out)]
    return [*layers, pool] if pool else layers


def _classifier(width_in: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width_in, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, classes),
        nn.LogSoftmax(dim=-1),
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
