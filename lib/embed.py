"""Embedding: windows through a frozen encoder into the store, in blocks; memory is bounded by a block, never by the corpus."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib.compute import torch_threads
from lib.encoders import Encoder, bank_statistics
from lib.speed.engines import Engine, EngineChoice, load_engine
from lib.store import StoreWriter
from lib.tiny.augment import alter_waveforms

VERSION = 5  # of a store's content; raised by hand when the code's results change
DTYPES = ("float16", "float32")
CALIBRATION = 32  # windows that int8 is calibrated on


def read_waveforms(windows: np.ndarray, rows: Any) -> np.ndarray:
    """Float32 waveforms (B, samples) of rows of `windows.npy`, int16 (n, samples)."""
    return windows[rows].astype(np.float32) / 32768


def calibration_waveforms(windows: np.ndarray) -> np.ndarray:
    """Waveforms (n, samples) of some windows, spread evenly over all: the speech that int8 is calibrated on."""
    return read_waveforms(windows, np.unique(np.linspace(0, len(windows) - 1, CALIBRATION).astype(int)))


def embed_windows(
    folder: Path, windows: np.ndarray, window_ids: list[str], encoder: Encoder, choice: EngineChoice, *,
    feature: str = "emission", dtype: str = "float16", copy: int = 0, seed: int = 0, workers: int = 0,
) -> int:  # fmt: skip
    """Fill the store in `folder` with these windows' embeddings; return the number of blocks made now.
    windows: int16 (n, samples), a memory map of what 02_segment wrote; window_ids: their ids, in the same order.
    choice: what computes, from `lib.speed.engines.choose_engine`. feature: stage whose frames are kept; "" = statistics
    alone. copy: 0 = the windows as they are; 1, 2 ... = an altered copy of each (see `lib.tiny.augment`), drawn by
    `seed` and this number. workers: batches computed at once; 0 = one a core."""
    if not len(window_ids):
        raise ValueError("there are no windows to embed; the ledger of 02_segment tells why clips were left out")
    if len(window_ids) != len(windows):
        raise ValueError(f"{len(window_ids)} ids for {len(windows)} windows; run 02_segment again")
    samples = windows.shape[1]
    writer = StoreWriter(folder, window_ids, describe_store(encoder, feature, dtype, samples))
    if missing := writer.missing():
        options = {"streams": workers, "calibration": lambda: calibration_waveforms(windows)}
        engine = load_engine(encoder, feature, choice, samples=samples, **options)
        embed_blocks(writer, windows, engine, missing, copy, seed)
    writer.finish()
    return len(missing)


def describe_store(encoder: Encoder, feature: str, dtype: str, samples: int) -> dict[str, Any]:
    """Shapes, type and parts of a store of this encoder's embeddings; ValueError for a feature or type that is none."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be {' or '.join(DTYPES)}")
    summary, parts = encoder.summary(feature), encoder.parts()
    shapes = {"statistics": [parts["bank"][1]]}
    if feature:
        with torch.inference_mode():
            shapes["frames"] = list(summary(torch.zeros(1, samples))[0].shape[1:])
    return {"encoder": encoder.name, "feature": feature, "dtype": dtype, "shapes": shapes, "parts": parts}


def embed_blocks(
    writer: StoreWriter, windows: np.ndarray, engine: Engine, blocks: Iterable[slice], copy: int, seed: int
) -> None:
    """Embed these blocks of rows, several batches at once where the engine can; a bar shows the windows done."""

    def embed(batch: slice) -> dict[str, np.ndarray]:
        waveforms = read_waveforms(windows, batch)
        return encode_batch(engine, alter_waveforms(waveforms, [seed, copy, batch.start]) if copy else waveforms)

    count, about = sum(rows.stop - rows.start for rows in blocks), f"embedding with {engine.encoder}"
    bar = tqdm(total=count, desc=about, unit="window")
    with torch_threads(1), ThreadPoolExecutor(engine.streams) as pool, bar:
        for rows in blocks:
            starts, parts = range(rows.start, rows.stop, engine.batch), []
            for tensors in pool.map(embed, [slice(start, min(start + engine.batch, rows.stop)) for start in starts]):
                parts.append(tensors)
                bar.update(len(tensors["statistics"]))
            writer.write(rows, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def encode_batch(engine: Engine, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """Frames (B, T, D), where the engine keeps some, and statistics (B, S) of waveforms (B, samples), float32."""
    tensors = engine.run(waveforms)  # the filter bank is measured here: not every library knows a Fourier transform
    with torch.inference_mode():
        bank = bank_statistics(torch.from_numpy(waveforms)).numpy()
    return tensors | {"statistics": np.concatenate([tensors["statistics"], bank], axis=1)}


def copy_folder(folder: Path, copy: int) -> Path:
    """Where the store of an altered copy lies within that of the windows as they are."""
    return Path(folder) / f"copy-{copy}" if copy else Path(folder)
