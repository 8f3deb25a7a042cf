"""Cutting: recordings, each decoded once, to 3-second windows: their samples in `windows.npy`, int16 [rows, samples] at 16 kHz, a
row each in `windows.parquet`, what baselines read in `acoustics.parquet`; what was left out, or warned of, in `ledger.parquet`."""

import functools
import hashlib
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import tables
from lib.audio import RATE_HZ, Recording, UnreadableAudio
from lib.baselines import ACOUSTICS, measure_acoustics
from lib.stages import Stage

VERSION = 2  # of what this module writes; raised by hand when the code's results change
VAD_CHUNK = 512  # samples: what silero-vad takes at 16 kHz, 32 ms
PART_FILES = 200  # files a resumable part
VAD_BATCH = 64  # windows silero-vad sees at once
HEADER_BYTES = 128  # of a .npy file: NumPy leaves room in it for any number of rows
KINDS = ["ledger", "acoustics", "windows"]  # a part is done when its last table is there


@dataclass(frozen=True)
class Windowing:
    """How clips are cut. The paper: 3 s windows every 2 s, clips shorter than a window give nothing."""

    window_s: float = 3.0
    step_s: float = 2.0
    short_clips: str = "drop"  # "repeat": a clip of at least min_clip_s is repeated until it fills one window
    min_clip_s: float = 1.0
    min_speech_ratio: float = 0.0  # windows with a smaller share of speech are dropped, and counted

    def __post_init__(self) -> None:
        if self.window_s <= 0 or self.step_s <= 0:
            raise ValueError(f"window_s = {self.window_s}, step_s = {self.step_s}: both must be above 0 seconds")
        if self.short_clips not in ("drop", "repeat"):
            raise ValueError(f"short_clips = {self.short_clips!r}: must be 'drop' or 'repeat'")

    @property
    def samples(self) -> int:
        """Samples in a window."""
        return round(self.window_s * RATE_HZ)


def slide_windows(blocks: Iterable[np.ndarray], windowing: Windowing) -> Iterator[tuple[int, np.ndarray]]:
    """(first sample, waveform) of every whole window of a recording in blocks, without the tail after the last. A shorter
    recording gives itself where `short_clips` is "repeat" and it is long enough, else nothing."""
    size, step = windowing.samples, round(windowing.step_s * RATE_HZ)
    pending, offset, start = np.zeros(0, np.float32), 0, 0  # `pending` begins at sample `offset`
    for block in blocks:
        pending = np.concatenate([pending, block])
        while start + size <= offset + len(pending):
            yield start, pending[start - offset : start - offset + size]
            start += step
        passed = min(start - offset, len(pending))
        pending, offset = pending[passed:], offset + passed
    if windowing.short_clips == "repeat" and not start and len(pending) >= max(1, windowing.min_clip_s * RATE_HZ):
        yield 0, pending


def as_stored(waveform: np.ndarray) -> np.ndarray:
    """A window in 16 bits; one that is louder than full scale is brought down to it."""
    loudest = float(np.abs(waveform).max(initial=1.0))
    return np.clip(np.round(waveform * (32768 / loudest)), -32768, 32767).astype(np.int16)


def as_heard(stored: np.ndarray, samples: int) -> np.ndarray:
    """What models hear of a stored window: float32 (samples,), a shorter one repeated until it fills so many."""
    return np.resize(stored, samples).astype(np.float32) / 32768


def open_windows(folder: Path) -> np.ndarray:
    """The samples of all windows as a memory map, int16 [rows, samples]; `row` of windows.parquet says whose."""
    return np.load(Path(folder) / "windows.npy", mmap_mode="r")


@functools.cache
def load_vad():
    """The silero-vad network (weights in its wheel), loaded once a process."""
    from silero_vad import load_silero_vad

    with warnings.catch_warnings():  # the wheel holds these weights as TorchScript alone, and loads them by this call
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
        return load_silero_vad()


def speech_probabilities(waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """Probability of speech each 32 ms of waveforms (samples,), brought to one level so that a quiet voice is no silence."""
    import torch

    if not waveforms:
        return []
    batch = np.zeros((len(waveforms), max(map(len, waveforms))), dtype=np.float32)
    for row, waveform in zip(batch, waveforms):
        row[: len(waveform)] = waveform * min(0.5 / max(float(np.abs(waveform).max(initial=0.0)), 1e-4), 30.0)
    with torch.inference_mode():
        probabilities = load_vad().audio_forward(torch.from_numpy(batch), sr=RATE_HZ).numpy()  # (B, chunks)
    return [row[: -(-len(waveform) // VAD_CHUNK)] for row, waveform in zip(probabilities, waveforms)]


def speech_ratio(probabilities: np.ndarray, threshold: float = 0.5) -> float:
    """Share of 32 ms chunks that hold speech; 0.5 is silero-vad's own threshold."""
    return float(np.mean(probabilities >= threshold)) if len(probabilities) else 0.0


def cut_windows(stage: Stage, clips: pd.DataFrame, roots: dict[str, Path], windowing: Windowing) -> None:
    """Cut every clip, of corpora that lie at `roots`, and write the four files above into the stage's folder, in parts, so that a
    killed run goes on; three files at most are in memory. ValueError when no window is left."""
    order = clips.sort_values(["corpus", "path", "start_s", "clip_id"])
    files = [group for _, group in order.groupby(["corpus", "path"], sort=False)]
    partial, done = stage.path("windows.npy.partial"), sorted(stage.folder.glob("part-*.windows.parquet"))
    partial.touch()
    rows = sum(len(tables.load_table(path, "windows")) for path in done)
    if partial.stat().st_size < HEADER_BYTES + rows * windowing.samples * 2:  # it was lost: the parts are worth nothing
        done, rows = [], 0
    with tqdm(total=len(files), desc="cutting windows", unit="file") as bar, open(partial, "r+b") as store:
        bar.update(min(len(files), len(done) * PART_FILES))
        store.truncate(HEADER_BYTES + rows * windowing.samples * 2)
        store.seek(0, os.SEEK_END)
        for number in range(len(done), -(-len(files) // PART_FILES)):
            cut = _cut_part(files[number * PART_FILES :][:PART_FILES], roots, windowing, store, bar)
            cut["windows"]["row"] += rows
            rows += len(cut["windows"])
            for kind in KINDS:
                tables.save_table(stage.path(f"part-{number:05d}.{kind}.parquet"), cut[kind], kind)
        store.seek(0)
        shape = (rows, windowing.samples)
        np.lib.format.write_array_header_1_0(store, {"descr": "<i2", "fortran_order": False, "shape": shape})
    for kind in KINDS:
        parts = [tables.load_table(path, kind) for path in sorted(stage.folder.glob(f"part-*.{kind}.parquet"))]
        whole = pd.concat(parts, ignore_index=True) if parts else tables.empty_table(kind)
        tables.save_table(stage.path(f"{kind}.parquet"), whole, kind)
        if not rows:  # the ledger comes first
            reasons = whole["reason"].value_counts().to_dict()
            few = " | ".join(whole["item"][:3] + ": " + whole["detail"][:3])
            raise ValueError(
                f"no window is left of {len(clips)} clips: {reasons}; {few}. Bring other recordings, or loosen "
                "segment.short_clips, segment.min_clip_s or segment.min_speech_ratio"
            )
    for path in sorted(stage.folder.glob("part-*.parquet"), reverse=True):  # whole parts stay, should it be killed here
        path.unlink()
    partial.rename(stage.path("windows.npy"))


def _cut_part(files: list, roots: dict[str, Path], windowing: Windowing, store: Any, bar: tqdm) -> dict:
    """The tables of some files, `row` counted from 0; the windows' samples are appended to `store`."""
    windows, acoustics, ledger = [], [], []
    with ThreadPoolExecutor(3) as pool:  # two decode ahead, one measures while this thread listens for speech
        pieces = _cut_ahead(pool, files, roots, windowing, ledger, bar)
        while batch := list(islice(pieces, VAD_BATCH)):
            heard = [as_heard(stored, len(stored)) for _, _, stored in batch]
            padded = np.stack([np.pad(piece, (0, windowing.samples - len(piece))) for piece in heard])
            measuring = pool.submit(measure_acoustics, padded, RATE_HZ)
            ratios = [speech_ratio(track) for track in speech_probabilities(heard)]
            for (clip, start, stored), ratio, measures in zip(batch, ratios, measuring.result()):
                window_id = f"{clip.clip_id}@{round(1000 * start / RATE_HZ)}"
                if ratio < windowing.min_speech_ratio:
                    ledger.append((clip.corpus, window_id, "too little speech", f"{ratio:.2f} of the window"))
                    continue
                digest = hashlib.blake2b(stored.tobytes(), digest_size=12).hexdigest()
                place = (window_id, clip.clip_id, clip.speaker_id, start / RATE_HZ, len(stored) / RATE_HZ)
                windows.append((*place, ratio, measures[ACOUSTICS.index("level_db")], digest, len(windows)))
                acoustics.append((window_id, *measures))
                store.write(np.resize(stored, windowing.samples).tobytes())
    store.flush()
    return {
        "windows": pd.DataFrame(windows, columns=[*tables.WINDOWS.columns]),
        "acoustics": pd.DataFrame(acoustics, columns=["window_id", *ACOUSTICS]),
        "ledger": pd.DataFrame(ledger, columns=[*tables.LEDGER.columns]),
    }


def _cut_ahead(pool, files: list, roots: dict, windowing: Windowing, ledger: list, bar: tqdm) -> Iterator[tuple]:
    """(clip, first sample, samples as stored) of every window, in the order of the clips; the rest goes to `ledger`."""
    waiting = (pool.submit(_cut_file, group, roots, windowing) for group in files)  # submitted when it is asked for
    under_way = deque(islice(waiting, 3))
    while under_way:
        for clip, pieces, problem in under_way.popleft().result():
            ledger += [(clip.corpus, clip.clip_id, *problem)] if problem else []
            yield from ((clip, start, stored) for start, stored in pieces)
        under_way.extend(islice(waiting, 1))
        bar.update()


def _cut_file(group: pd.DataFrame, roots: dict[str, Path], windowing: Windowing) -> list[tuple[Any, list, tuple]]:
    """For each clip of one file: the clip, its (first sample, samples as stored), and (reason, detail) for the ledger or ()."""
    clips, cuts = list(group.itertuples(index=False)), []
    first_s, last_s = group["start_s"].min(), group["end_s"].max(skipna=False)
    recording, alone = Recording(roots[clips[0].corpus] / clips[0].path, None, first_s, last_s), len(clips) == 1
    try:  # decoded once: a lone clip block by block, several from the whole
        whole = np.zeros(0) if alone else np.concatenate([*recording])
        for clip in clips:
            begin, end = (clip.start_s - first_s) * RATE_HZ, (clip.end_s - first_s) * RATE_HZ
            part = whole[round(begin) : None if np.isnan(end) else round(end)]
            blocks = recording if alone else [part]
            pieces = [(start, as_stored(piece)) for start, piece in slide_windows(blocks, windowing)]
            length_s = (recording.samples if alone else len(part)) / RATE_HZ
            details = [*([] if pieces else [f"{length_s:.2f} s"]), *recording.warnings]
            reason = "used with a warning" if pieces else "shorter than a window"
            cuts.append((clip, pieces, (reason, "; ".join(details)) if details else ()))
    except UnreadableAudio as error:
        return [(clip, [], ("cannot be decoded", str(error))) for clip in clips]
    return cuts


def count_windows(clips: pd.DataFrame, windows: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """One row a corpus: clips in, clips with a window, windows out, hours of windows, and items of the ledger by reason."""
    used = windows.assign(corpus=windows["clip_id"].map(clips.set_index("clip_id")["corpus"])).groupby("corpus")
    sizes = {"clips": clips.groupby("corpus").size(), "clips with a window": used["clip_id"].nunique()}
    sizes |= {"windows": used.size(), "hours": used["duration_s"].sum() / 3600}
    counts = pd.DataFrame(sizes).join(pd.crosstab(ledger["corpus"], ledger["reason"])).fillna(0)
    return counts.astype({name: int for name in counts if name != "hours"}).rename_axis("corpus").reset_index()
