"""Embedding: windows through a frozen encoder into the store.

One pipeline for all shards that are missing: threads decode ahead, the engine's streams encode, a thread writes; the
encoder waits for nobody. Memory is bounded by the windows ahead, never by the corpus.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib import paths
from lib.audio import RATE_HZ, UnreadableAudio, read_waveform
from lib.baselines import MEASURED, measure_acoustics
from lib.encoders import Encoder, frames_of
from lib.speed.engines import BATCH, CALIBRATION, Choice, Engine, load_engine, torch_threads  # noqa: F401 - BATCH is predict's
from lib.stages import fingerprint_of
from lib.store import Store, finish_store, missing_shards, save_shard, shard_ids
from lib.windows import Windowing, as_heard, as_stored

DECODERS = 2  # threads that decode
AHEAD = 256  # windows decoded ahead of the encoder at most, about 50 MB; two clips in any case
DTYPES = {"float16": np.float16, "float32": np.float32}


# ----------------------------------------------------------------------------------------------------------- the parts


def run_ahead(
    work: Callable[[Any], Any], items: Iterable[Any], workers: int, ahead: int, cost: Callable[[Any], int] = lambda _: 1
) -> Iterator[Any]:
    """Yield `work(item)` in order, computed by so many threads.

    Items whose costs add up to `ahead` are under way at most, but two in any case, so that one huge item does not stop
    the next from being begun. When the caller stops early, what has not begun is given up.
    """
    pool, waiting, total = ThreadPoolExecutor(workers), deque(), 0
    try:
        for item in items:
            waiting.append((pool.submit(work, item), cost(item)))
            total += waiting[-1][1]
            while total >= ahead and len(waiting) > 2:
                future, weight = waiting.popleft()
                total -= weight
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def waveform_batches(
    windows: pd.DataFrame, clips: pd.DataFrame, roots: dict[str, Path], samples: int, sizes: list[int]
) -> Iterator[np.ndarray]:
    """Yield the windows' waveforms (B, samples) in the table's order, in batches of these sizes.

    Neighbouring windows of one clip share one decoding. ValueError when a clip that was cut can no longer be decoded,
    or when two clips share an id.
    """
    clip_ids = windows["clip_id"].to_numpy()
    starts = np.round(windows["start_s"].to_numpy() * RATE_HZ).astype(int)
    runs = np.flatnonzero(np.r_[True, clip_ids[1:] != clip_ids[:-1]])
    by_id = clips.set_index("clip_id", drop=False)
    if not by_id.index.is_unique:
        twice = by_id.index[by_id.index.duplicated()][0]
        raise ValueError(f"the table of clips has clip_id {twice} twice; run 01_download again")
    in_turn = by_id.loc[clip_ids[runs]].itertuples(index=False)
    spans = zip(in_turn, runs, [*runs[1:], len(windows)], strict=True)

    def cut(span: tuple[Any, int, int]) -> list[np.ndarray]:
        clip, first, last = span
        try:
            waveform = read_waveform(roots[clip.corpus] / clip.path, clip.start_s, clip.end_s)
        except UnreadableAudio as error:
            raise ValueError(f"clip {clip.clip_id} was cut, but {error}; run 02_segment again") from error
        return [as_heard(as_stored(waveform[start : start + samples]), samples) for start in starts[first:last]]

    pieces: deque[np.ndarray] = deque()
    left = iter(sizes)
    size = next(left, 0)
    for cuts in run_ahead(cut, spans, DECODERS, AHEAD, lambda span: span[2] - span[1]):
        pieces.extend(cuts)
        while size and len(pieces) >= size:
            yield np.stack([pieces.popleft() for _ in range(size)])
            size = next(left, 0)


def batch_sizes(windows: int, batch: int) -> list[int]:
    """Sizes of the batches that one shard of so many windows is encoded in; they never straddle two shards.

    So a shard comes out the same in a run that was killed and went on, and on another machine.
    """
    return [min(batch, windows - first) for first in range(0, windows, batch)]


def encode_batch(encoder: Encoder, waveforms: np.ndarray, feature: str, dtype: str) -> dict[str, np.ndarray]:
    """What the heads see of waveforms (B, samples), in the store's precision: frames, layers and conv of each window."""
    with _making:  # once, not in every thread
        engine = _exact_engine(encoder, feature)
    return fit_dtype(engine.run(waveforms), dtype)


_making = threading.Lock()


@functools.lru_cache(maxsize=1)
def _exact_engine(encoder: Encoder, feature: str) -> Engine:
    return load_engine(encoder, feature)


def embed_batch(engine: Engine, waveforms: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """All that the store keeps of waveforms (B, samples): frames, layers, conv and acoustics of each window."""
    return {**fit_dtype(engine.run(waveforms), dtype), "acoustics": measure_acoustics(waveforms, RATE_HZ)}


def fit_dtype(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Tensors as they are stored; ValueError naming the one that float16 cannot hold."""
    for name, values in tensors.items():
        if dtype == "float16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ValueError(
                f"tensor '{name}' holds {np.abs(values).max():g}, too large for float16; set embed.dtype to float32"
            )
    return {name: values.astype(DTYPES[dtype]) for name, values in tensors.items()}


# ----------------------------------------------------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Work:
    """What is embedded and how: all that a worker, here or on another machine, must know beside its engine."""

    windows: pd.DataFrame  # in an order that keeps the windows of one clip together, as `cut_windows` writes them
    clips: pd.DataFrame
    roots: dict[str, Path]  # where each corpus lies
    samples: int = 3 * RATE_HZ  # of a window
    shard_windows: int = 512  # windows a shard: what a killed run may lose
    dtype: str = "float16"  # of the stored tensors

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r}: must be one of {list(DTYPES)}")
        if not len(self.windows):
            raise ValueError("there are no windows to embed; the ledger of 02_segment tells why clips were left out")

    @property
    def window_ids(self) -> list[str]:
        """Ids of all windows, in order."""
        return self.windows["window_id"].tolist()

    def calibration(self) -> np.ndarray:
        """Waveforms (n, samples) of some windows, spread evenly over all: the speech that int8 is calibrated on."""
        rows = np.unique(np.linspace(0, len(self.windows) - 1, CALIBRATION).astype(int))
        drawn = self.windows.iloc[rows]
        return np.concatenate(list(waveform_batches(drawn, self.clips, self.roots, self.samples, [len(drawn)])))

    def made_by(self, engine: Engine) -> str:
        """Fingerprint of whatever changes a stored value."""
        return made_by(engine, self.dtype, self.samples)


def made_by(engine: Engine, dtype: str, samples: int) -> str:
    """Fingerprint of whatever changes a stored value: encoder, feature, library, precision, type, window, acoustics."""
    return fingerprint_of(engine.identity, dtype, samples, MEASURED)


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
    choice: Choice | None = None,
    workers: int = 0,
    address: str = "",
) -> int:
    """Fill the store in `folder` with these windows' embeddings; return the number of shards made now.

    Parameters
    ----------
    windows: in an order that keeps those of one clip together (as `cut_windows` writes them).
    choice: what computes, from `lib.speed.engines.choose_engine`; None = torch in float32, here.
    workers: batches computed at once, or Ray's actors; 0 = one a core.
    address: of a Ray cluster; empty = one started here. Only read when the choice says Ray.
    """
    work = Work(windows, clips, roots, samples, shard_windows, dtype)
    if choice and choice.place == "ray":
        from lib.speed.ray import fill_store_on_ray

        return fill_store_on_ray(folder, work, encoder, feature, choice, workers, address)
    options = {"samples": samples, "streams": workers, "calibration": work.calibration}
    return fill_store(folder, work, load_engine(encoder, feature, choice, **options))


def fill_store(folder: Path, work: Work, engine: Engine) -> int:
    """Make the shards that are missing, finish the store, and return how many were made now."""
    folder, ids, made = Path(folder), work.window_ids, work.made_by(engine)
    folder.mkdir(parents=True, exist_ok=True)
    shards = missing_shards(folder, ids, work.shard_windows, made)
    counts = {shard: len(shard_ids(ids, shard, work.shard_windows)) for shard in shards}
    done = len(ids) - sum(counts.values())
    with (
        tqdm(total=len(ids), initial=done, desc=f"embedding with {engine.encoder}", unit="window") as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        writing = None
        for shard, tensors in embed_shards(work, shards, engine, bar.update):
            if writing:
                writing.result()  # one shard is written while the next is made, never two
            writing = writer.submit(save_shard, folder, shard, shard_ids(ids, shard, work.shard_windows), tensors, made)
        if writing:
            writing.result()
    finish_store(folder, -(-len(ids) // work.shard_windows), engine.describe())
    return len(shards)


def embed_shards(
    work: Work, shards: list[int], engine: Engine, advance: Callable[[int], Any] = lambda windows: None
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (shard, tensors) of these shards in order; `advance` is told of every few windows done."""
    rows = [np.arange(len(work.windows))[shard * work.shard_windows :][: work.shard_windows] for shard in shards]
    sizes = [batch_sizes(len(part), engine.batch) for part in rows]
    if not rows:
        return
    flat = [size for part in sizes for size in part]
    batches = waveform_batches(work.windows.iloc[np.concatenate(rows)], work.clips, work.roots, work.samples, flat)
    with torch_threads(engine.threads):
        encoded = run_ahead(
            lambda waveforms: embed_batch(engine, waveforms, work.dtype), batches, engine.streams, 2 * engine.streams
        )
        for shard, part in zip(shards, sizes):
            parts = []
            for size in part:
                parts.append(next(encoded))
                advance(size)
            yield shard, {name: np.concatenate([tensors[name] for tensors in parts]) for name in parts[0]}


# ------------------------------------------------------------------------------------------------------ for the notebook


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
    waveform = next(waveform_batches(drawn, clips, roots, windowing.samples, [1]))
    encoded = encoder.encode(torch.from_numpy(waveform))
    hidden = encoded["hidden"][0].numpy()  # (L, T, D)
    kept = range(1, min(layers, len(hidden) - 1) + 1)
    frames = frames_of(encoded, feature)[0].numpy()
    return LayerExample([hidden[k] for k in kept], [f"transformer layer {k}" for k in kept], frames)


def project_windows(
    store: Store, windows: pd.DataFrame, clips: pd.DataFrame, seed: int, most: int = 1500
) -> pd.DataFrame:
    """Place windows on a plane by t-SNE of their time-averaged layers (standardised, 30 principal components).

    Returns window_id, x, y, gender, corpus of at most `most` windows, drawn at random; kept beside the store's shards.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    kept = Path(store.folder) / f"projection-{seed}-{most}.parquet"
    if kept.exists():
        return pd.read_parquet(kept)
    drawn = windows.sample(min(most, len(windows)), random_state=seed)
    averages = store.features("layers", drawn["window_id"]).all().reshape(len(drawn), -1)
    components = PCA(min(30, *averages.shape), random_state=seed)
    reduced = components.fit_transform(StandardScaler().fit_transform(averages))
    perplexity = min(30.0, max(2.0, (len(drawn) - 1) / 4))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(reduced)
    facts = clips.set_index("clip_id").loc[drawn["clip_id"], ["gender", "corpus"]]
    table = pd.DataFrame(
        {
            "window_id": drawn["window_id"].to_numpy(),
            "x": points[:, 0],
            "y": points[:, 1],
            "gender": facts["gender"].fillna("not known").to_numpy(),
            "corpus": facts["corpus"].to_numpy(),
        }
    )
    with paths.write_whole(kept) as partial:
        table.to_parquet(partial, index=False)
    return table
