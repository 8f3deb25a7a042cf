"""What the teachers say of altered views: shards of views with the answers about these very views, made once and read often.

A shard is one safetensors file, made from the seed and its number alone: several processes may make them, in any order, and a
killed one goes on with the first that is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.paths import write_whole
from lib.tiny.speaker_models import load_campplus, load_resemblyzer
from lib.tiny.views import RATE_HZ, Speech, draw_length, draw_speed, draw_view

VIEWS = 256  # a shard
COMPONENTS = (64, 96, 64)  # principal components kept of the frames of each dense block
BASIS_VIEWS = 384  # unaltered cuts that the components are found on


class Teacher:
    """CAM++ and Resemblyzer with the principal components of CAM++'s blocks."""

    def __init__(self, basis: dict[str, Tensor] | None = None):
        self.campplus, self.resemblyzer, self.basis = load_campplus(), load_resemblyzer(), basis

    @torch.inference_mode()
    def blocks(self, waveforms: Tensor, precision: torch.dtype = torch.bfloat16) -> tuple[list[Tensor], Tensor]:
        """Blocks' frames and embedding of (B, samples), float32, 32 views at a time."""
        parts = []
        for some in waveforms.split(32):
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                blocks, embedding = self.campplus(some)
            parts.append(([block.float() for block in blocks], embedding.float()))
        return [torch.cat(block) for block in zip(*(p[0] for p in parts))], torch.cat([p[1] for p in parts])

    def answer(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Targets of (B, samples): `frames` (B, T, 224) whitened, `pooled` (B, 5120), `embedding` (B, 192), `voice` (B, 256)."""
        blocks, embedding = self.blocks(waveforms)
        frames = [(block - self.basis[f"mean{k}"]) @ self.basis[f"components{k}"] for k, block in enumerate(blocks)]
        pooled = torch.cat([statistic for block in blocks for statistic in (block.mean(1), block.std(1))], dim=1)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            voice = self.resemblyzer(waveforms).float()
        return {
            "frames": torch.cat(frames, dim=2).half(),
            "pooled": pooled.half(),
            "embedding": embedding.half(),
            "voice": voice.half(),
        }


def fit_basis(teacher: Teacher, speech: Speech, seed: int) -> dict[str, Tensor]:
    """Mean and whitening principal components of each block's frames: `mean<k>` (C,), `components<k>` (C, kept)."""
    rng = np.random.default_rng([seed, 7])
    rows = rng.choice(len(speech.rows), BASIS_VIEWS)
    waveforms = torch.from_numpy(np.stack([draw_view(speech, row, 1.0, 2 * RATE_HZ, rng) for row in rows]))
    basis = {}
    for k, block in enumerate(teacher.blocks(waveforms)[0]):
        frames = block.flatten(0, 1).double()
        mean = frames.mean(0)
        values, vectors = torch.linalg.eigh((frames - mean).T @ (frames - mean) / len(frames))
        values, vectors = values.flip(0)[: COMPONENTS[k]], vectors.flip(1)[:, : COMPONENTS[k]]
        basis |= {f"mean{k}": mean.float(), f"components{k}": (vectors / values.sqrt()).float()}
    return basis


def make_shard(teacher: Teacher, speech: Speech, folder: Path, number: int, seed: int) -> Path:
    """Write shard `number` of views and answers, unless it is there; its path."""
    path = folder / f"views-{number:05d}.safetensors"
    if path.exists():
        return path
    rng = np.random.default_rng([seed, 1, number])
    samples = draw_length(rng)
    rows = draw_rows(speech, number, seed)
    speeds = np.array([draw_speed(rng) for _ in rows], dtype=np.float32)
    waveforms = np.stack([draw_view(speech, row, float(speed), samples, rng) for row, speed in zip(rows, speeds)])
    stored = torch.from_numpy(np.round(waveforms * 32767).astype(np.int16))
    answers = teacher.answer(stored.float() / 32767)
    with write_whole(path) as partial:
        save_file(
            {"waveforms": stored, "rows": torch.from_numpy(rows), "speeds": torch.from_numpy(speeds), **answers},
            partial,
        )
    return path


def draw_rows(speech: Speech, number: int, seed: int) -> np.ndarray:
    """Clips (VIEWS,) of shard `number`: shuffled epochs, each clip as often as any other."""
    count = len(speech.rows)
    places = np.arange(number * VIEWS, (number + 1) * VIEWS)
    orders = {epoch: np.random.default_rng([seed, 2, epoch]).permutation(count) for epoch in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])


def load_basis(teacher: Teacher, speech: Speech, folder: Path, seed: int) -> dict[str, Tensor]:
    """The basis of a folder of shards, found and written when it is not there."""
    path = folder / "basis.safetensors"
    if not path.exists():
        with write_whole(path) as partial:
            save_file({key: value.contiguous() for key, value in fit_basis(teacher, speech, seed).items()}, partial)
    return load_file(path)
