"""Altered views of speech, random cuts at another speed, and what the teachers say of them: shards made once and read often.
What is drawn for a view depends on its generator alone. A shard is one safetensors file, made from the seed and its number alone:
several processes may make them, in any order, and a killed one goes on with the first that is missing."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from scipy import fft
from torch import Tensor

from lib.audio import RATE_HZ
from lib.compute import Compute, choose_compute
from lib.paths import write_whole
from lib.tiny.augment import alter_spectrum
from lib.tiny.speaker_models import load_campplus, load_resemblyzer

SCALE = 32767.0  # of int16 samples
VIEWS = 256  # a shard
SEED = 0  # of the views, which all students share
LENGTHS = {1.0: 0.1, 1.5: 0.1, 2.0: 0.2, 3.0: 0.45, 4.0: 0.15}  # seconds of a shard's views: their shares
SPEEDS = (0.8, 1.25)  # pitch, formants and tempo together; a third of the views keep their own
COMPONENTS = (64, 96, 64)  # principal components kept of the frames of each dense block
BASIS_VIEWS = 384  # unaltered cuts that the components are found on


@dataclass(frozen=True)
class Speech:
    """Every clip, decoded once: `samples` int16 at 16 kHz, one clip after the other, and `rows` (clip_id, start, samples)."""

    samples: np.ndarray
    rows: pd.DataFrame

    def clip(self, row: int) -> np.ndarray:
        """Float32 samples of one clip."""
        start, count = self.rows["start"].iat[row], self.rows["samples"].iat[row]
        return self.samples[start : start + count].astype(np.float32) / SCALE


def draw_view(speech: Speech, row: int, speed: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One altered view (samples,) float32 of a clip, with another clip's voice in the background now and then."""
    spectrum = cut_spectrum(speech.clip(row), speed, samples, rng)
    other = cut_spectrum(speech.clip(int(rng.integers(len(speech.rows)))), 1.0, samples, rng)
    return alter_spectrum(spectrum, other, samples, rng)


def cut_spectrum(clip: np.ndarray, speed: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Spectrum (samples // 2 + 1,) of a random cut played at `speed`; of three cuts the loudest, so that pauses are rare."""
    needed = max(2, round(samples * speed))
    if len(clip) < needed:
        clip = np.tile(clip, -(-needed // max(len(clip), 1)))  # too short: repeated
    begins = rng.integers(len(clip) - needed + 1, size=3)
    begin = max(begins, key=lambda b: float(np.square(clip[b : b + needed]).sum()))
    spectrum = np.zeros(samples // 2 + 1, dtype=np.complex64)
    heard = fft.rfft(clip[begin : begin + needed])[: len(spectrum)]
    spectrum[: len(heard)] = heard  # resampling by a longer or shorter inverse transform
    spectrum[0] = 0
    return spectrum * np.float32(1 / (np.sqrt(2 * np.sum(np.abs(spectrum) ** 2)) + 1e-6))


class Teacher:
    """CAM++ and Resemblyzer, with the principal components of CAM++'s blocks, `mean<k>` (C,) and `components<k>` (C, kept),
    which are found and written to `folder` when it has none."""

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
        *blocks, embedding = (torch.cat(stage).float() for stage in zip(*(part.values() for part in parts)))
        return blocks, embedding

    @torch.inference_mode()
    def answer(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Targets of (B, samples): `frames` (B, T, 224) whitened, `embedding` (B, 192), `voice` (B, 256)."""
        blocks, embedding = self.blocks(waveforms)
        frames = [(block - self.basis[f"mean{k}"]) @ self.basis[f"components{k}"] for k, block in enumerate(blocks)]
        with self.compute.autocast():
            voice = self.resemblyzer(waveforms.to(self.compute.device))["embedding"]
        answers = {"frames": torch.cat(frames, dim=2), "embedding": embedding, "voice": voice.float()}
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
    count, places = len(speech.rows), np.arange(number * VIEWS, (number + 1) * VIEWS)
    orders = {epoch: np.random.default_rng([seed, 2, epoch]).permutation(count) for epoch in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])
