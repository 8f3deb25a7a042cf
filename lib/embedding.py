"""Embedding: windows through a frozen encoder into the store. Decoding runs ahead in threads, shards are written whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib.audio import RATE_HZ
from lib.encoders import Encoder, frames_of
from lib.store import Store, fill_store
from lib.windows import Windowing, clip_waveform, cut_window

BATCH = {"small": 16, "large": 4}  # windows a call: what stays in the processor's cache, measured by `make bench`
AHEAD = 64  # clips decoded ahead of the encoder at most
DTYPES = {"float16": np.float16, "float32": np.float32}


def waveform_batches(
    windows: pd.DataFrame, clips: pd.DataFrame, roots: dict[str, Path], samples: int, batch: int
) -> Iterator[np.ndarray]:
    """Yield the windows' waveforms (B, samples) in the table's order, at most `batch` at a time.

    Neighbouring windows of one clip share one decoding; at most AHEAD clips are in memory.
    """
    by_id = clips.set_index("clip_id", drop=False)
    clip_ids = windows["clip_id"].to_numpy()
    starts = np.round(windows["start_s"].to_numpy() * RATE_HZ).astype(int)
    runs = np.flatnonzero(np.r_[True, clip_ids[1:] != clip_ids[:-1]]) if len(windows) else []
    spans = list(zip(runs, [*runs[1:], len(windows)]))

    def cut(span: tuple[int, int]) -> list[np.ndarray]:
        waveform = clip_waveform(by_id.loc[clip_ids[span[0]]], roots)
        return [cut_window(waveform, start, samples) for start in starts[span[0] : span[1]]]

    waiting: list[np.ndarray] = []
    with ThreadPoolExecutor(2) as pool:
        for pieces in _ahead(pool, cut, spans):
            waiting += pieces
            while len(waiting) >= batch:
                yield np.stack(waiting[:batch])
                waiting = waiting[batch:]
    if waiting:
        yield np.stack(waiting)


def _ahead(pool: ThreadPoolExecutor, work, items: list) -> Iterator:
    """Like `pool.map`, but with at most AHEAD results waiting."""
    futures: deque = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) >= AHEAD:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def embed_batch(encoder: Encoder, waveforms: np.ndarray, feature: str, dtype: str) -> dict[str, np.ndarray]:
    """Encode waveforms (B, samples) and give what the store keeps: frames, layers, conv and acoustics of each window."""
    from lib.baselines import baseline_features

    return {**encode_batch(encoder, waveforms, feature, dtype), **baseline_features(waveforms, RATE_HZ)}


def encode_batch(encoder: Encoder, waveforms: np.ndarray, feature: str, dtype: str) -> dict[str, np.ndarray]:
    """What the heads see of waveforms (B, samples), in the store's precision: frames, layers and conv of each window."""
    encoded = encoder.encode(torch.from_numpy(waveforms))
    kept = {
        "frames": frames_of(encoded, feature),  # (B, T, D)
        "layers": encoded["hidden"].mean(dim=2),  # (B, L, D')
        "conv": encoded["conv"].mean(dim=1),  # (B, C)
    }
    return {name: _fits(tensor.float().numpy(), DTYPES[dtype], name) for name, tensor in kept.items()}


def _fits(values: np.ndarray, dtype: type, name: str) -> np.ndarray:
    if dtype is np.float16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError(
            f"tensor '{name}' holds {np.abs(values).max():g}, too large for float16; set embed.dtype to float32"
        )
    return values.astype(dtype)


def embed_windows(
    folder: Path,
    windows: pd.DataFrame,
    clips: pd.DataFrame,
    roots: dict[str, Path],
    encoder: Encoder,
    *,
    feature: str = "emission",
    samples: int = 3 * RATE_HZ,
    shard_windows: int = 512,
    dtype: str = "float16",
) -> int:
    """Fill the store in `folder` with these windows' embeddings; return the number of shards made now.

    Windows must be in an order that keeps those of one clip together (as `cut_windows` writes them).
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: must be one of {list(DTYPES)}")
    batch = BATCH["small" if encoder.parameters < 10_000_000 else "large"]
    with tqdm(total=len(windows), desc=f"embedding with {encoder.name}", unit="window") as bar:

        def make(first: int, last: int) -> dict[str, np.ndarray]:
            bar.update(first - bar.n)  # shards that were on disk
            parts = []
            for waveforms in waveform_batches(windows.iloc[first:last], clips, roots, samples, batch):
                parts.append(embed_batch(encoder, waveforms, feature, dtype))
                bar.update(len(waveforms))
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        extra = {"encoder": encoder.name, "weights_sha256": encoder.weights_sha256, "feature": feature}
        made = fill_store(folder, windows["window_id"].tolist(), shard_windows, make, extra)
        bar.update(len(windows) - bar.n)
    return made


def seeded_noise(samples: int, seed: int) -> np.ndarray:
    """One window (1, samples) of white noise, the smoke test before any voice."""
    return np.random.default_rng(seed).normal(0, 0.1, (1, samples)).astype(np.float32)


@dataclass(frozen=True)
class LayerExample:
    """One window seen by an encoder: the hidden states [T, D] of some layers, and the feature the heads see."""

    layers: list[np.ndarray]
    names: list[str]
    frames: np.ndarray


def example_layers(
    encoder: Encoder,
    windows: pd.DataFrame,
    clips: pd.DataFrame,
    roots: dict[str, Path],
    windowing: Windowing,
    feature: str,
    layers: int = 3,
    seed: int = 0,
) -> LayerExample:
    """Encode one window drawn at random and keep its first transformer layers (1, 2, ...), as the paper shows them."""
    drawn = windows.sample(1, random_state=seed)
    waveform = next(waveform_batches(drawn, clips, roots, windowing.samples, 1))
    encoded = encoder.encode(torch.from_numpy(waveform))
    hidden = encoded["hidden"][0].numpy()  # (L, T, D)
    kept = range(1, min(layers, len(hidden) - 1) + 1)
    frames = frames_of(encoded, feature)[0].numpy()
    return LayerExample([hidden[k] for k in kept], [f"transformer layer {k}" for k in kept], frames)


def project_windows(
    store: Store, windows: pd.DataFrame, clips: pd.DataFrame, seed: int, most: int = 1500
) -> pd.DataFrame:
    """Place windows on a plane by t-SNE of their time-averaged layers (standardised, 30 principal components).

    Returns window_id, x, y, gender, corpus of at most `most` windows, drawn at random.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    drawn = windows.sample(min(most, len(windows)), random_state=seed)
    averages = store.features("layers", drawn["window_id"]).all().reshape(len(drawn), -1)
    components = PCA(min(30, *averages.shape), random_state=seed)
    reduced = components.fit_transform(StandardScaler().fit_transform(averages))
    perplexity = min(30.0, max(2.0, (len(drawn) - 1) / 4))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(reduced)
    facts = clips.set_index("clip_id").loc[drawn["clip_id"], ["gender", "corpus"]]
    return pd.DataFrame(
        {
            "window_id": drawn["window_id"].to_numpy(),
            "x": points[:, 0],
            "y": points[:, 1],
            "gender": facts["gender"].fillna("not known").to_numpy(),
            "corpus": facts["corpus"].to_numpy(),
        }
    )
