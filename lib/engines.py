"""Engines: the same encoder computed by torch, OpenVINO or ONNX Runtime, in float32, bfloat16 or int8.

Every engine gives what the store keeps of a window and nothing more: the frames that `feature` names, every layer's
average over time, and the average of the convolutional features.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.encoders import Encoder, Tap, layer_number, normalize_windows

SMALL = 10_000_000  # weights: an encoder below this is computed in larger batches
BATCH = {"small": 16, "large": 4}  # windows a call, by what stays in the processor's cache; measured by `make bench`


@dataclass(frozen=True)
class Engine:
    """An encoder made ready to run. `run` takes waveforms (B, samples), at most `batch` of them, float32.

    `run` gives {"frames": (B, T, D), "layers": (B, L, D'), "conv": (B, C)}, float32, and may be called from `streams`
    threads at once, each of which computes on `threads` cores.
    """

    encoder: str
    weights_sha256: str
    feature: str
    library: str
    precision: str
    streams: int
    threads: int
    batch: int
    note: str  # why this library and precision
    run: Callable[[np.ndarray], dict[str, np.ndarray]]

    @property
    def identity(self) -> list[str]:
        """Whatever changes a value beyond rounding."""
        return [self.weights_sha256, self.feature, self.library, self.precision]

    def describe(self) -> dict[str, Any]:
        """For the store's description and the report."""
        return {
            "encoder": self.encoder,
            "weights_sha256": self.weights_sha256,
            "feature": self.feature,
            "engine": self.library,
            "precision": self.precision,
            "note": self.note,
        }


class Kept(torch.nn.Module):
    """An encoder that gives only what the store keeps; `forward` takes waveforms (B, samples)."""

    def __init__(self, tap: Tap, feature: str, layers: int, normalize: bool):
        super().__init__()
        self.tap, self.feature, self.normalize = tap, feature, normalize
        self.number = None if feature in ("emission", "conv") else layer_number(feature, layers + 1)

    def forward(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames (B, T, D), layers (B, L, D') and conv (B, C)."""
        emission, hidden, conv = self.tap(normalize_windows(waveforms) if self.normalize else waveforms)
        frames = conv if self.feature == "conv" else emission if self.number is None else hidden[self.number]
        return frames, torch.stack([layer.mean(dim=1) for layer in hidden], dim=1), conv.mean(dim=1)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` cores in this thread and in those begun within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_engine(
    encoder: Encoder, feature: str, *, library: str = "torch", precision: str = "float32", streams: int | None = None
) -> Engine:
    """Make an engine for this encoder and feature."""
    kept = Kept(encoder.tap, feature, encoder.layers, encoder.normalize)

    def run(waveforms: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            frames, layers, conv = kept(torch.from_numpy(waveforms))
        return {"frames": frames.float().numpy(), "layers": layers.float().numpy(), "conv": conv.float().numpy()}

    streams = streams or cores()
    batch = BATCH["small" if encoder.parameters < SMALL else "large"]
    about = (encoder.name, encoder.weights_sha256, feature)
    return Engine(*about, library, precision, streams, cores() // streams, batch, "", run)
