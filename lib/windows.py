"""Segmentation: clips to 3-second windows, each with its share of speech, its level and a hash of its samples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from lib import paths, tables
from lib.audio import RATE_HZ, UnreadableAudio, content_hash, level_db, read_waveform
from lib.stages import Stage

VAD_CHUNK = 512  # samples: what silero-vad takes at 16 kHz, 32 ms
SHORT_CLIPS = ["drop", "repeat"]
BLOCK_FILES = 200  # files a resumable part
VAD_BATCH = 64  # windows silero-vad sees at once


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
        if self.short_clips not in SHORT_CLIPS:
            raise ValueError(f"short_clips = {self.short_clips!r}: must be one of {SHORT_CLIPS}")

    @property
    def samples(self) -> int:
        """Samples in a window."""
        return round(self.window_s * RATE_HZ)


def window_starts(samples: int, windowing: Windowing) -> list[int]:
    """First sample of every whole window in a clip of so many samples; the tail after the last one is left out.

    A short clip has one window, starting at 0, when `short_clips` is "repeat" and it is long enough; else none.
    """
    if samples >= windowing.samples:
        return list(range(0, samples - windowing.samples + 1, round(windowing.step_s * RATE_HZ)))
    long_enough = windowing.short_clips == "repeat" and samples >= round(windowing.min_clip_s * RATE_HZ)
    return [0] if long_enough else []


def cut_window(waveform: np.ndarray, start: int, samples: int) -> np.ndarray:
    """The window of `samples` samples from `start`; a shorter rest is repeated until it fills the window."""
    piece = waveform[start : start + samples]
    return piece if len(piece) == samples else np.resize(piece, samples)


@functools.cache
def load_vad():
    """The silero-vad network (weights in its wheel), loaded once a process."""
    from silero_vad import load_silero_vad

    return load_silero_vad()


def speech_probabilities(waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """Probability of speech for every 32 ms of each waveform (samples,) at 16 kHz, computed as one batch.

    Each waveform is brought to a common level first, so that a quiet recording is not taken for silence.
    """
    import torch

    if not waveforms:
        return []
    longest = max(map(len, waveforms))
    batch = np.zeros((len(waveforms), longest), dtype=np.float32)
    for row, waveform in zip(batch, waveforms):
        row[: len(waveform)] = waveform * min(0.5 / max(float(np.abs(waveform).max(initial=0.0)), 1e-4), 30.0)
    with torch.inference_mode():
        probabilities = load_vad().audio_forward(torch.from_numpy(batch), sr=RATE_HZ).numpy()  # (B, chunks)
    return [row[: -(-len(waveform) // VAD_CHUNK)] for row, waveform in zip(probabilities, waveforms)]


def speech_ratio(probabilities: np.ndarray, start: int, samples: int, threshold: float = 0.5) -> float:
    """Share of the 32 ms chunks between two samples that hold speech; 0.5 is silero-vad's own threshold."""
    chunk = probabilities[start // VAD_CHUNK : -(-(start + samples) // VAD_CHUNK)]
    return float(np.mean(chunk >= threshold)) if len(chunk) else 0.0


def cut_windows(stage: Stage, clips: pd.DataFrame, roots: dict[str, Path], windowing: Windowing) -> None:
    """Cut every clip and write `windows.parquet` and `ledger.parquet` into the stage's folder.

    Work is done and kept in blocks of files, so a killed run goes on; audio of one block at most is in memory.
    A clip that does not decode, or that is too short, becomes a row of the ledger.
    """
    order = clips.sort_values(["corpus", "path", "start_s", "clip_id"])
    groups = [group for _, group in order.groupby(["corpus", "path"], sort=False)]
    blocks = [groups[first : first + BLOCK_FILES] for first in range(0, len(groups), BLOCK_FILES)]
    with tqdm(total=len(groups), desc="cutting windows", unit="file") as bar:
        for number, block in enumerate(blocks):
            windows_path = stage.path(f"part-{number:05d}.windows.parquet")
            ledger_path = stage.path(f"part-{number:05d}.ledger.parquet")
            if not (windows_path.exists() and ledger_path.exists()):
                windows, ledger = _cut_block(block, roots, windowing, bar)
                tables.save_table(ledger_path, ledger, "ledger")
                tables.save_table(windows_path, windows, "windows")
            else:
                bar.update(len(block))
    for kind in ["windows", "ledger"]:
        parts = [
            tables.load_table(stage.path(f"part-{number:05d}.{kind}.parquet"), kind) for number in range(len(blocks))
        ]
        whole = pd.concat(parts, ignore_index=True) if parts else tables.empty_table(kind)
        tables.save_table(stage.path(f"{kind}.parquet"), whole, kind)
    for part in stage.folder.glob("part-*.parquet"):
        part.unlink()


def _cut_block(block: list[pd.DataFrame], roots: dict[str, Path], windowing: Windowing, bar: tqdm):
    rows, dropped = [], []
    for clip, waveform, problem in _decode_block(block, roots, bar):
        if problem:
            dropped.append(_drop(clip, "cannot be decoded", problem))
            continue
        starts = window_starts(len(waveform), windowing)
        if not starts:
            dropped.append(_drop(clip, "shorter than a window", f"{len(waveform) / RATE_HZ:.2f} s"))
            continue
        rows += [_describe(clip, waveform, start, windowing) for start in starts]
        waiting = [row for row in rows[-VAD_BATCH - len(starts) :] if "waveform" in row]
        if len(waiting) >= VAD_BATCH:
            _add_speech_ratio(waiting)
    _add_speech_ratio([row for row in rows if "waveform" in row])
    kept = [row for row in rows if row["speech_ratio"] >= windowing.min_speech_ratio]
    for row in rows:
        if row["speech_ratio"] < windowing.min_speech_ratio:
            corpus = row["clip_id"].split(":", 1)[0]
            detail = f"{row['speech_ratio']:.2f} of the window"
            dropped.append(
                {"corpus": corpus, "item": row["window_id"], "reason": "too little speech", "detail": detail}
            )
    windows = pd.DataFrame(kept) if kept else tables.empty_table("windows")
    return windows, pd.DataFrame(dropped) if dropped else tables.empty_table("ledger")


def _decode_block(block: list[pd.DataFrame], roots: dict[str, Path], bar: tqdm) -> Iterator[tuple]:
    """Yield (clip, waveform, problem) for every clip of the block; two threads decode ahead."""

    def decode_file(group: pd.DataFrame) -> list[tuple]:
        return [(clip, *_try_decode(clip, roots)) for clip in group.itertuples(index=False)]

    with ThreadPoolExecutor(2) as pool:
        for decoded in pool.map(decode_file, block):
            bar.update()
            yield from decoded


def _try_decode(clip, roots: dict[str, Path]) -> tuple[np.ndarray | None, str]:
    try:
        return clip_waveform(clip, roots), ""
    except UnreadableAudio as error:
        return None, str(error)


def clip_waveform(clip, roots: dict[str, Path]) -> np.ndarray:
    """Waveform (samples,) at 16 kHz of one row of the clips table; `roots` tells where each corpus lies."""
    return read_waveform(roots[clip.corpus] / clip.path, clip.start_s, clip.end_s)


def _describe(clip, waveform: np.ndarray, start: int, windowing: Windowing) -> dict:
    piece = waveform[start : start + windowing.samples]
    return {
        "window_id": f"{clip.clip_id}@{round(1000 * start / RATE_HZ)}",
        "clip_id": clip.clip_id,
        "speaker_id": clip.speaker_id,
        "start_s": start / RATE_HZ,
        "duration_s": len(piece) / RATE_HZ,
        "speech_ratio": np.nan,
        "level_db": level_db(piece),
        "content_hash": content_hash(piece),
        "waveform": piece,
    }


def _add_speech_ratio(rows: list[dict]) -> None:
    """Fill in `speech_ratio` and let go of the waveforms, in batches so that memory stays bounded."""
    for first in range(0, len(rows), VAD_BATCH):
        part = rows[first : first + VAD_BATCH]
        for row, probabilities in zip(part, speech_probabilities([row["waveform"] for row in part])):
            row["speech_ratio"] = speech_ratio(probabilities, 0, len(row.pop("waveform")))


def _drop(clip, reason: str, detail: str) -> dict:
    return {"corpus": clip.corpus, "item": clip.clip_id, "reason": reason, "detail": detail}


def count_windows(clips: pd.DataFrame, windows: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """One row a corpus: clips in, clips with a window, windows out, hours of windows, and items left out by reason."""
    corpus = windows["clip_id"].map(clips.set_index("clip_id")["corpus"])
    table = pd.DataFrame(
        {
            "clips": clips.groupby("corpus").size(),
            "clips with a window": windows["clip_id"].drop_duplicates().groupby(corpus).size(),
            "windows": windows.groupby(corpus).size(),
            "hours": windows["duration_s"].groupby(corpus).sum() / 3600,
        }
    )
    reasons = ledger.groupby(["corpus", "reason"]).size().unstack(fill_value=0)
    counts = table.join(reasons).fillna(0)
    whole = [name for name in counts.columns if name != "hours"]
    return counts.astype(dict.fromkeys(whole, int)).rename_axis("corpus").reset_index()


@dataclass(frozen=True)
class Examples:
    """Windows to look at: waveforms (samples,) at 16 kHz, speech probability of each 32 ms, and a title each."""

    waveforms: list[np.ndarray]
    speech: list[np.ndarray]
    titles: list[str]


def example_windows(
    windows: pd.DataFrame,
    clips: pd.DataFrame,
    roots: dict[str, Path],
    windowing: Windowing,
    count: int,
    seed: int,
    folder: Path,
) -> Examples:
    """Draw `count` windows, decode them and say whose they are; kept in the stage's `folder`, so once only."""
    drawn = windows.sample(min(count, len(windows)), random_state=seed)
    by_id = clips.set_index("clip_id", drop=False)
    titles = []
    for window in drawn.itertuples(index=False):
        clip = by_id.loc[window.clip_id]
        told = [str(clip.gender) if pd.notna(clip.gender) else "gender not known", str(clip.age_raw) or "age not known"]
        titles.append(f"{window.window_id}: {', '.join(told)}")
    kept = Path(folder) / f"examples-{count}-{seed}.safetensors"
    if drawn.empty:
        return Examples([], [], [])
    if not kept.exists():
        starts = [round(start_s * RATE_HZ) for start_s in drawn["start_s"]]
        found = [clip_waveform(by_id.loc[clip_id], roots) for clip_id in drawn["clip_id"]]
        waveforms = [cut_window(waveform, start, windowing.samples) for waveform, start in zip(found, starts)]
        with paths.write_whole(kept) as partial:
            save_file({"waveforms": np.stack(waveforms), "speech": np.stack(speech_probabilities(waveforms))}, partial)
    held = load_file(kept)
    return Examples(list(held["waveforms"]), list(held["speech"]), titles)
