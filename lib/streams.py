"""Long audio in bounded memory: blocks of a file, resampled on the way, and the windows that slide over them.

Whatever its length, a recording gives the very samples that `lib.audio.read_waveform` gives, a minute at a time.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from lib.audio import FFMPEG_SUFFIXES, RATE_HZ, UnreadableAudio, check_file, ffmpeg_command, resample, undecodable
from lib.windows import Windowing, window_starts

BLOCK_S = 60.0  # seconds decoded at a time
SHORTEST_S = 1.0  # a recording below this is not answered
FILTER_ZEROS = 11  # zero crossings on each side that a resampling filter may reach: torchaudio's 6, scipy's 10, and one


def stream_waveform(
    path: Path, start_s: float = 0.0, end_s: float | None = None, block_s: float = BLOCK_S
) -> Iterator[np.ndarray]:
    """Decode a file, or the cut [start_s, end_s) of it, to mono float32 blocks at 16 kHz.

    The blocks put together equal `read_waveform` of the same cut. Raises UnreadableAudio naming the file and the reason;
    a file that breaks off after the first block does so in the middle of the iteration.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() in FFMPEG_SUFFIXES:
        return _ffmpeg_blocks(path, start_s, end_s, block_s)
    return _soundfile_blocks(path, start_s, end_s, block_s)


def array_blocks(samples: np.ndarray, rate_hz: int, block_s: float = BLOCK_S) -> Iterator[np.ndarray]:
    """The blocks of samples in memory: shape (samples,), or two axes of which the shorter one counts channels.

    Whole numbers are divided by the largest of their type, unsigned ones (8-bit wav) shifted first. ValueError for
    anything that is no sound.
    """
    samples = np.asarray(samples)
    if samples.dtype.kind in "iu":
        middle = 0 if samples.dtype.kind == "i" else np.iinfo(samples.dtype).max // 2 + 1
        samples = (samples.astype(np.float32) - middle) / (np.iinfo(samples.dtype).max - middle + 1)
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2) or not rate_hz > 0 or int(rate_hz) != rate_hz:
        raise ValueError(f"samples of type {samples.dtype}, shape {samples.shape}, {rate_hz} Hz: not a waveform")
    if samples.ndim == 2:
        samples = samples.reshape(-1) if not samples.size else samples.mean(axis=int(np.argmin(samples.shape)))
    if not np.isfinite(samples).all():
        raise UnreadableAudio("the samples hold values that are not numbers (NaN or infinite)")
    step = max(1, round(block_s * rate_hz))
    blocks = (samples[first : first + step].astype(np.float32) for first in range(0, len(samples), step))
    return resample_blocks(blocks, int(rate_hz))


def resample_blocks(blocks: Iterable[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
    """Resample mono blocks to 16 kHz as if they were one waveform; neighbours lend the filter what it needs.

    A single block is resampled in one call, exactly as `lib.audio.resample` does.
    """
    if rate_hz == RATE_HZ:
        yield from blocks
        return
    shared = math.gcd(rate_hz, RATE_HZ)
    step_in, step_out = rate_hz // shared, RATE_HZ // shared  # so many samples in give so many out
    reach = math.ceil(FILTER_ZEROS * max(1.0, step_in / step_out))  # in samples of the file
    lent = (math.ceil(reach / step_in) + 1) * step_in
    pending, left = np.zeros(0, np.float32), 0  # `left` samples at the head of `pending` are there for the filter alone
    waiting = iter(blocks)
    block = next(waiting, None)
    while block is not None:
        pending, block = np.concatenate([pending, block]), next(waiting, None)
        whole = (len(pending) - left - lent) // step_in * step_in
        if block is None or whole <= 0:
            continue
        done = left + whole
        made = resample(pending[: done + lent], rate_hz)
        yield made[left // step_in * step_out : done // step_in * step_out]
        left = min(lent, done)
        pending = pending[done - left :]
    if len(pending):
        yield resample(pending, rate_hz)[left // step_in * step_out :]


def _soundfile_blocks(path: Path, start_s: float, end_s: float | None, block_s: float) -> Iterator[np.ndarray]:
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        yield from _ffmpeg_blocks(path, start_s, end_s, block_s, f"libsndfile: {error.error_string}")
        return
    with file:
        rate_hz, first = file.samplerate, round(start_s * file.samplerate)
        if first and first >= file.frames:
            length_s = file.frames / rate_hz
            raise UnreadableAudio(f"{path.name}: the cut starts at {start_s:g} s, the file ends at {length_s:g} s")
        if first:
            file.seek(first)
        count = None if end_s is None or np.isnan(end_s) else round(end_s * rate_hz) - first
        yield from resample_blocks(_native_blocks(file, path, count, round(block_s * rate_hz)), rate_hz)


def _native_blocks(file: soundfile.SoundFile, path: Path, count: int | None, step: int) -> Iterator[np.ndarray]:
    """Mono blocks at the file's own rate, at most `count` samples (None = to the end)."""
    heard = 0
    while count is None or heard < count:
        try:
            samples = file.read(step if count is None else min(step, count - heard), "float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            where = f"breaks off soon after {heard / file.samplerate:.0f} s"
            raise UnreadableAudio(f"{path.name}: {where} (libsndfile: {error.error_string})") from error
        if not len(samples):
            break
        if not np.isfinite(samples).all():
            raise UnreadableAudio(f"{path.name}: holds samples that are not numbers (NaN or infinite)")
        heard += len(samples)
        yield samples.mean(axis=1)
    if not heard:
        raise UnreadableAudio(f"{path.name}: decodes to no samples")


def _ffmpeg_blocks(
    path: Path, start_s: float, end_s: float | None, block_s: float, cause: str = ""
) -> Iterator[np.ndarray]:
    """Blocks through a pipe from ffmpeg, which mixes and resamples by itself."""
    command = ffmpeg_command()
    if command is None:
        raise UnreadableAudio(f"{path.name}: {cause or 'needs ffmpeg'}; for AAC and video: pip install imageio-ffmpeg")
    span = ["-ss", f"{start_s:.6f}"] if start_s else []
    span += ["-t", f"{end_s - start_s:.6f}"] if end_s is not None and not np.isnan(end_s) else []
    sound = ["-vn", "-ac", "1", "-ar", str(RATE_HZ), "-f", "f32le", "-"]
    call = [command, "-v", "error", "-nostdin", *span, "-i", str(path), *sound]
    size, heard = round(block_s * RATE_HZ) * 4, 0
    # A pipe for stderr would fill while nobody reads it: a damaged file gives a megabyte of complaints
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=complaints) as process:
            while data := process.stdout.read(size):
                samples = np.frombuffer(data[: len(data) // 4 * 4], "<f4").copy()
                heard += len(samples)
                yield samples
        complaints.seek(0)
        said = complaints.read()
    if not heard:
        raise UnreadableAudio(f"{path.name}: {undecodable(cause, said)}".replace(str(path), path.name))
    if process.returncode:
        raise UnreadableAudio(f"{path.name}: breaks off soon after {heard / RATE_HZ:.0f} s (ffmpeg gave up)")


class WindowStream:
    """Windows (first sample, waveform) of a stream of blocks; after the last one, `samples` is the recording's length.

    Starts are those of `window_starts`. A recording shorter than a window, but of `shortest_s` at least, gives one piece
    that is as short as itself; a shorter one gives none.
    """

    def __init__(self, blocks: Iterable[np.ndarray], windowing: Windowing, shortest_s: float = SHORTEST_S):
        self.blocks, self.samples = blocks, 0
        self.windowing = replace(windowing, short_clips="repeat", min_clip_s=shortest_s)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        size, step = self.windowing.samples, round(self.windowing.step_s * RATE_HZ)
        pending, offset, start = np.zeros(0, np.float32), 0, 0  # `pending` begins at sample `offset`
        for block in self.blocks:
            pending = np.concatenate([pending, block])
            self.samples += len(block)
            while start + size <= self.samples:
                yield start, pending[start - offset : start - offset + size]
                start += step
            cut = min(start - offset, len(pending))
            pending, offset = pending[cut:], offset + cut
        if self.samples < size and window_starts(self.samples, self.windowing):
            yield 0, pending
