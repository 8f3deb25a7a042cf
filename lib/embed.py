"""Embedding: windows through a frozen encoder into the store, in blocks; memory is bounded by a block, never by the corpus."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib.augment import alter_waveforms
from lib.encoders import Encoder, bank_statistics
from lib.speed.engines import CALIBRATION, Choice, Engine, load_engine, torch_threads
from lib.store import StoreWriter

SCALE = 32_767  # of int16 samples


def read_waveforms(windows: np.ndarray, rows: Any) -> np.ndarray:
    """Float32 waveforms (B, samples) of rows of `windows.npy`, int16 (n, samples)."""
    return windows[rows].astype(np.float32) / SCALE


def embed_windows(
    folder: Path,
    windows: np.ndarray,
    window_ids: list[str],
    encoder: Encoder,
    choice: Choice,
    *,
    feature: str = "emission",
    dtype: str = "float16",
    copy: int = 0,
    seed: int = 0,
    workers: int = 0,
    address: str = "",
) -> int:
    """Fill the store in `folder` with these windows' embeddings; return the number of blocks made now.

    Parameters
    ----------
    windows: int16 (n, samples), a memory map of what 02_segment wrote; window_ids: their ids, in the same order.
    choice: what computes, from `lib.speed.engines.choose_engine`.
    feature: stage whose frames are kept; "" = statistics alone.
    copy: 0 = the windows as they are; 1, 2 ... = an altered copy of each (see `lib.augment`), drawn by `seed` and this number.
    workers: batches computed at once, or Ray's actors; 0 = one a core. address: of a Ray cluster; "" = one started here.
    """
    if not len(window_ids):
        raise ValueError("there are no windows to embed; the ledger of 02_segment tells why clips were left out")
    writer = StoreWriter(folder, window_ids, describe_store(encoder, feature, dtype, windows.shape[1]))
    missing = writer.missing()
    if choice.place == "ray":
        from lib.speed.ray import embed_on_ray

        embed_on_ray(writer, windows, encoder, choice, feature, copy, seed, workers, address)
    elif missing:
        rows = np.unique(np.linspace(0, len(windows) - 1, CALIBRATION).astype(int))
        engine = load_engine(
            encoder, feature, choice, samples=windows.shape[1], streams=workers,
            calibration=lambda: read_waveforms(windows, rows),
        )  # fmt: skip
        embed_blocks(writer, windows, engine, missing, copy, seed)
    writer.finish()
    return len(missing)


def describe_store(encoder: Encoder, feature: str, dtype: str, samples: int) -> dict[str, Any]:
    """Shapes, type and parts of a store of this encoder's embeddings."""
    parts = encoder.parts()
    shapes = {"statistics": [parts["bank"][1]]}
    if feature:
        frames = encoder.encode(torch.zeros(1, samples))[feature]
        shapes["frames"] = list(frames.shape[1:])
    return {"encoder": encoder.name, "feature": feature, "dtype": dtype, "shapes": shapes, "parts": parts}


def embed_blocks(
    writer: StoreWriter, windows: np.ndarray, engine: Engine, blocks: Iterable[slice], copy: int, seed: int
) -> None:
    """Embed these blocks of rows, several batches at once where the engine can; a bar shows the windows done."""
    with (
        torch_threads(engine.threads),
        ThreadPoolExecutor(engine.streams) as pool,
        tqdm(
            total=sum(rows.stop - rows.start for rows in blocks), desc=f"embedding with {engine.encoder}", unit="window"
        ) as bar,
    ):
        for rows in blocks:
            starts = range(rows.start, rows.stop, engine.batch)
            batches = [slice(start, min(start + engine.batch, rows.stop)) for start in starts]
            parts = []
            for tensors in pool.map(lambda batch: embed_batch(engine, windows, batch, copy, seed), batches):
                parts.append(tensors)
                bar.update(len(tensors["statistics"]))
            writer.write(rows, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def embed_batch(
    engine: Engine, windows: np.ndarray, rows: slice, copy: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Frames (B, T, D) and statistics (B, S) of some rows of windows."""
    waveforms = read_waveforms(windows, rows)
    if copy:
        waveforms = alter_waveforms(waveforms, [seed, copy, rows.start])
    return encode_batch(engine, waveforms)


def encode_batch(engine: Engine, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """Frames (B, T, D), where the engine keeps some, and statistics (B, S) of waveforms (B, samples), float32.

    The filter bank is measured here and not by the engine: it costs little, and not every library knows a Fourier transform.
    """
    tensors = engine.run(waveforms)
    with torch.inference_mode():
        bank = bank_statistics(torch.from_numpy(waveforms)).numpy()
    return tensors | {"statistics": np.concatenate([tensors["statistics"], bank], axis=1)}


def project_statistics(statistics: np.ndarray, seed: int) -> np.ndarray:
    """Windows on a plane (n, 2) by t-SNE of their standardised statistics (n, S), after 30 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    components = PCA(min(30, *statistics.shape), random_state=seed)
    reduced = components.fit_transform(StandardScaler().fit_transform(statistics))
    perplexity = min(30.0, max(2.0, (len(reduced) - 1) / 4))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(reduced)
