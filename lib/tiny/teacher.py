"""What the teachers say of altered views: shards of views with the answers about these very views, made once and read often.

A shard is one safetensors file, made from the seed and its number alone: several processes may make them, in any order, and a
killed one goes on with the first that is missing.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.audio import RATE_HZ
from lib.compute import Compute, choose_compute
from lib.paths import write_whole
from lib.tiny.speaker_models import load_campplus, load_resemblyzer
from lib.tiny.views import SCALE, Speech, draw_view

VIEWS = 256  # a shard
SEED = 0  # of the views, which all students share
LENGTHS = {1.0: 0.1, 1.5: 0.1, 2.0: 0.2, 3.0: 0.45, 4.0: 0.15}  # seconds of a shard's views: their shares
SPEEDS = (0.8, 1.25)  # pitch, formants and tempo together; a third of the views keep their own
COMPONENTS = (64, 96, 64)  # principal components kept of the frames of each dense block
WIDTHS = (1024, 2048, 2048)  # time mean and deviation of each block
BASIS_VIEWS = 384  # unaltered cuts that the components are found on


class Teacher:
    """CAM++ and Resemblyzer, with the principal components of CAM++'s blocks: `mean<k>` (C,), `components<k>` (C, kept).

    The components are found and written to `folder` when it has none.
    """

    def __init__(self, speech: Speech, folder: Path, seed: int, compute: Compute):
        self.compute, path = compute, folder / "basis.safetensors"
        self.campplus, self.resemblyzer = (load().to(compute.device) for load in (load_campplus, load_resemblyzer))
        if not path.exists():
            with write_whole(path) as partial:
                save_file({key: value.contiguous() for key, value in self.fit_basis(speech, seed).items()}, partial)
        self.basis = load_file(path, compute.device)

    def fit_basis(self, speech: Speech, seed: int) -> dict[str, Tensor]:
        """Mean and whitening principal components of each block's frames."""
        rng = np.random.default_rng([seed, 7])
        rows = rng.choice(len(speech.rows), BASIS_VIEWS)
        waveforms = torch.from_numpy(np.stack([draw_view(speech, row, 1.0, 2 * RATE_HZ, rng) for row in rows]))
        basis = {}
        for k, block in enumerate(self.blocks(waveforms)[0]):
            frames = block.flatten(0, 1).double()
            mean = frames.mean(0)
            values, vectors = torch.linalg.eigh((frames - mean).T @ (frames - mean) / len(frames))
            values, vectors = values.flip(0)[: COMPONENTS[k]], vectors.flip(1)[:, : COMPONENTS[k]]
            basis |= {f"mean{k}": mean.float(), f"components{k}": (vectors / values.sqrt()).float()}
        return basis

    @torch.inference_mode()
    def blocks(self, waveforms: Tensor) -> tuple[list[Tensor], Tensor]:
        """Blocks' frames and embedding of (B, samples), float32, 32 views at a time."""
        with self.compute.autocast():
            parts = [self.campplus(some) for some in waveforms.to(self.compute.device).split(32)]
        blocks = [torch.cat(block).float() for block in zip(*(blocks for blocks, _ in parts))]
        return blocks, torch.cat([embedding for _, embedding in parts]).float()

    @torch.inference_mode()
    def answer(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Targets of (B, samples): `frames` (B, T, 224) whitened, `pooled` (B, 5120), `embedding` (B, 192), `voice` (B, 256)."""
        blocks, embedding = self.blocks(waveforms)
        frames = [(block - self.basis[f"mean{k}"]) @ self.basis[f"components{k}"] for k, block in enumerate(blocks)]
        pooled = torch.cat([statistic for block in blocks for statistic in (block.mean(1), block.std(1))], dim=1)
        with self.compute.autocast():
            voice = self.resemblyzer(waveforms.to(self.compute.device))
        answers = {"frames": torch.cat(frames, dim=2), "pooled": pooled, "embedding": embedding, "voice": voice.float()}
        return {name: values.half().cpu() for name, values in answers.items()}


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a folder lies."""
    return folder / f"views-{number:05d}.safetensors"


@functools.cache
def open_speech(folder: Path) -> Speech:
    """What `lib.tiny.recipe.decode_speech` wrote to `folder`, once in each process."""
    return Speech(np.load(folder / "speech.npy", mmap_mode="r"), pd.read_parquet(folder / "speech.parquet"))


@functools.cache
def open_teacher(folder: Path) -> Teacher:
    """The teachers of a recipe's folder, once in each process."""
    return Teacher(open_speech(folder), folder / "views", SEED, choose_compute())


def make_shard(folder: Path, number: int) -> None:
    """Write shard `number` of views and answers below a recipe's folder, unless it is there."""
    path, speech, seed = shard_path(folder / "views", number), open_speech(folder), SEED
    if path.exists():
        return
    rng, rows = np.random.default_rng([seed, 1, number]), draw_rows(speech, number, seed)
    samples = round(rng.choice(list(LENGTHS), p=list(LENGTHS.values())) * RATE_HZ)
    speeds = [1.0 if rng.random() < 0.35 else float(np.exp(rng.uniform(*np.log(SPEEDS)))) for _ in rows]
    waveforms = np.stack([draw_view(speech, row, speed, samples, rng) for row, speed in zip(rows, speeds)])
    views = {"waveforms": torch.from_numpy(np.round(waveforms * SCALE).astype(np.int16))}
    views |= {"rows": torch.from_numpy(rows), "speeds": torch.tensor(speeds)}
    with write_whole(path) as partial:
        save_file(views | open_teacher(folder).answer(views["waveforms"].float() / SCALE), partial)


def draw_rows(speech: Speech, number: int, seed: int) -> np.ndarray:
    """Clips (VIEWS,) of shard `number`: shuffled epochs, each clip as often as any other."""
    count = len(speech.rows)
    places = np.arange(number * VIEWS, (number + 1) * VIEWS)
    orders = {epoch: np.random.default_rng([seed, 2, epoch]).permutation(count) for epoch in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])
