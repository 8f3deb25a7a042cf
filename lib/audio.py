"""Decoding: any audio file, at once or in blocks, to a mono float32 waveform at 16 kHz.

FFmpeg's libraries (PyAV) decode, libsndfile what they do not know, soxr resamples. A file is decoded until nothing more
comes: no header's count is believed, but what it promises in vain becomes a warning.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

RATE_HZ = 16_000  # what every encoder here was trained on
BLOCK_S = 20.0  # decoded at a time, counted from the start of the file, so that a cut is a slice of the whole
SHORTFALL_S = 0.06  # promised sound that does not come is told from here; codecs pad by less
COUNTED = {"aiff", "ape", "au", "flac", "matroska", "mov", "tta", "wv"}  # other lengths are guessed from a bit rate
MISTAKEN = [("wav", "g726"), ("au", "g726le"), ("wav", "amrnb"), ("caf", "alac"), ("aiff", "gsm")]  # by FFmpeg alone
COUNTS_LESS = "its header counts less sound than the file holds; all of it is heard"
UPSIDE_DOWN = "a channel is upside down; it was turned before the channels were averaged"

Blocks = Iterator[tuple[np.ndarray, int]]  # samples [n, C] in their own type, at their own rate in Hz


class UnreadableAudio(ValueError):
    """A file that is empty, missing or no audio; the message names it and why."""


class Recording:
    """A recording as blocks (samples,): mono, float32, 16 kHz, nominally in [-1, 1], decoded while one iterates.

    source: path of any audio file or video; or samples of shape (samples,), or of two axes, the shorter one for channels.
    rate_hz: of samples, None for a file. ValueError when the two make no waveform.
    start_s, end_s: a cut, seconds; None or NaN = to the end. It equals the slice of the whole, to the sample.

    Iterating raises UnreadableAudio and counts `samples`; then `warnings` tells what is missing, damaged, or differs by channel.
    """

    def __init__(self, source: Path | str | np.ndarray, rate_hz: int | None = None, start_s=0.0, end_s=None):
        self.source = source if rate_hz is None else _as_channels(source, rate_hz)
        self.rate_hz, self.start_s, self.end_s = rate_hz, start_s, np.inf if end_s is None or np.isnan(end_s) else end_s
        self.warnings, self.samples = [], 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.warnings.clear()
        if self.rate_hz:
            name, step = "the samples", round(BLOCK_S * self.rate_hz)
            starts = range(0, len(self.source), step)
            native = ((self.source[start : start + step], int(self.rate_hz)) for start in starts)
        else:
            name, native = shown_name(self.source), _file_blocks(self.source, self.warnings)
        first, last, done, self.samples = round(self.start_s * RATE_HZ), np.round(self.end_s * RATE_HZ), 0, 0
        for block in _resample_blocks(_mix_channels(native, name, self.warnings), name):
            part = block[max(0, first - done) : int(np.clip(last - done, 0, len(block)))]
            done, self.samples = done + len(block), self.samples + len(part)
            yield part
            if done >= last:
                return
        if first and done <= first:
            raise UnreadableAudio(f"{name}: cut from {self.start_s:g} s, but the file ends at {done / RATE_HZ:g} s")
        if SHORTFALL_S * RATE_HZ < last - done < np.inf:
            self.warnings.append(f"its cut ends at {self.end_s:g} s, the file at {done / RATE_HZ:.2f} s")


def read_waveform(path: Path | str, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Waveform (samples,) of a file or of a cut of it, as `Recording` gives it; its warnings are left unsaid."""
    return np.concatenate([*Recording(path, None, start_s, end_s), np.zeros(0, np.float32)])


def duration_s(path: Path | str) -> float:
    """Length of a file in seconds, by decoding it in blocks. UnreadableAudio naming the file and the reason."""
    return sum(len(block) for block in Recording(path)) / RATE_HZ


def shown_name(path: Path | str) -> str:
    """A file's name as it can be printed and written anywhere: bytes that are no UTF-8 stand as escapes."""
    return os.fsencode(Path(path).name).decode("utf-8", "backslashreplace")


def open_sound(path: Path | str) -> io.FileIO:
    """Open a file to read. UnreadableAudio says why not: missing, a folder, a pipe, empty, forbidden, a name too long."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            # by number: bytes show what a file is, its name does not, and FFmpeg would take "http:x.wav" for an address
            return io.FileIO(os.open(path, os.O_RDONLY))
        reason = "empty file (0 bytes)" if stat.S_ISREG(status.st_mode) else "a folder, a pipe or a device, not a file"
    except FileNotFoundError:
        reason = "a link to nothing" if os.path.islink(path) else "no such file"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', error)})"
    raise UnreadableAudio(f"{shown_name(path)}: {reason}")


def _file_blocks(path: Path | str, warnings: list[str]) -> Blocks:
    """Blocks of a file by the first decoder that gives any; what is missing or damaged goes to `warnings`."""
    reasons, done_s = [], 0.0
    with open_sound(path) as file:
        for decode in (_ffmpeg_blocks, _libsndfile_blocks):
            file.seek(0)
            warnings.clear()
            try:
                for samples, rate_hz in decode(file, warnings):
                    yield samples, rate_hz
                    done_s += len(samples) / rate_hz
                reasons.append("decodes to no samples")
            except Exception as error:  # decoders raise whatever they like
                reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
                reasons.append(reason.strip(" ."))
                warnings += [f"breaks off after {done_s:.2f} s ({reason})"] if done_s else []
            if done_s:
                return
        if os.pread(file.fileno(), 4, 4) == b"ftyp" and reasons[0].startswith("Invalid data"):
            reasons = ["its index, the moov atom, is missing: the file was cut off"]
    raise UnreadableAudio(f"{shown_name(path)}: no audio that can be decoded ({'; '.join(dict.fromkeys(reasons))})")


def _libsndfile_blocks(file: io.FileIO, warnings: list[str]) -> Blocks:
    with soundfile.SoundFile(file) as sound:
        while len(samples := sound.read(round(BLOCK_S * sound.samplerate), "float32", always_2d=True)):
            yield samples, sound.samplerate


def _ffmpeg_blocks(file: io.FileIO, warnings: list[str]) -> Blocks:
    """Blocks of the sound that the program ffmpeg would take, each of one rate and number of channels."""
    too_short, seconds = _wav_goes_on(file), 0.0
    options = {"protocol_whitelist": "none", "ignore_length": str(int(too_short))}  # a list leads to no other file
    with av.open(file, metadata_errors="replace", options=options) as container:
        stream = container.streams.best("audio")
        codec = stream.codec_context.name if stream and stream.codec_context else ""
        if not codec or (container.format.name, codec) in MISTAKEN:
            raise ValueError("no sound in it that FFmpeg knows")
        frames = _decode_frames(container.demux(stream), warnings)
        # a joined file may change its rate and its channels on the way
        for (rate_hz, _), run in itertools.groupby(frames, lambda frame: (frame.sample_rate, frame.layout.nb_channels)):
            while len(samples := _gather_samples(run, round(BLOCK_S * rate_hz))):
                yield samples, rate_hz
                seconds += len(samples) / rate_hz
        warnings += [COUNTS_LESS] if too_short else _find_missing(container, file, seconds)


def _decode_frames(packets: Iterator[av.Packet], warnings: list[str]) -> Iterator[av.AudioFrame]:
    """Frames of a stream; a packet that is damaged is left out and counted, as the program ffmpeg does."""
    damaged = 0
    try:
        for packet in packets:
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                damaged += 1
    except (av.error.FFmpegError, OSError) as error:
        warnings.append(f"breaks off ({error.strerror})")
    warnings += [f"damaged pieces left out: {damaged}"] if damaged else []


def _gather_samples(frames: Iterator[av.AudioFrame], count: int) -> np.ndarray:
    """The next `count` samples or a few more, [n, C] in the decoder's own type; [0, 1] at the end."""
    parts, size = [], 0
    for frame in frames:
        if frame.format.is_planar and frame.layout.nb_channels > 7:  # PyAV would read a plane that is not there
            frame = av.AudioResampler(frame.format.packed).resample(frame)[0]
        values = frame.to_ndarray()
        parts.append(values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels))
        size += frame.samples
        if size >= count:
            break
    return np.concatenate(parts or [np.zeros((0, 1))])


def _wav_goes_on(file: io.FileIO) -> bool:
    """Whether something that is no chunk of a wav follows where its data should end: its header counts too little."""
    head, place = os.pread(file.fileno(), 12, 0), 12
    while head[:4] == b"RIFF" and head[8:] == b"WAVE" and len(chunk := os.pread(file.fileno(), 8, place)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        place += 8 + size + size % 2
        if chunk[:4] == b"data":
            behind = os.pread(file.fileno(), 4, place)
            return behind == b"RIFF" or (len(behind) == 4 and not behind.replace(b" ", b"").isalnum())
    return False


def _find_missing(container: av.container.InputContainer, file: io.FileIO, done_s: float) -> list[str]:
    """What a header promises beyond the `done_s` that came; FFmpeg's guesses from a bit rate are no promise."""
    kind, stream, promised_s = container.format.name.split(",")[0], container.streams.best("audio"), 0.0
    head, size = os.pread(file.fileno(), 1 << 16, 0), container.size
    if kind == "ogg":
        page = os.pread(file.fileno(), 1 << 17, max(0, size - (1 << 17))).rpartition(b"OggS")[2] + bytes(23)
        is_whole = len(page) >= 46 + page[22] + sum(page[23 : 23 + page[22]])  # by the lengths of its segments
        is_last = page[1] & 4
        return [] if is_whole and is_last else ["its end is missing, it does not tell how much"]
    if kind == "wav":  # FFmpeg cuts the count down to what is there; a stream's header holds the largest number
        whole = int.from_bytes(head[4:8], "little") + 8
        promised_s = done_s * whole / size if head.startswith(b"RIFF") and whole < 0x7FFFFF00 else 0.0
    elif kind in COUNTED or (kind == "mp3" and any(mark in head for mark in (b"Xing\0\0\0", b"Info\0\0\0", b"VBRI"))):
        promised_s = float((stream.duration or 0) * stream.time_base)
        if not promised_s and len(container.streams) == 1:
            promised_s = (container.duration or 0) / av.time_base
    promise = f"only {done_s:.2f} of the {promised_s:.2f} s that its header promises are there"
    return [promise] if promised_s > done_s + SHORTFALL_S else []


def _as_channels(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.dtype.kind not in "fiu" or samples.ndim not in (1, 2) or not rate_hz > 0 or int(rate_hz) != rate_hz:
        raise ValueError(f"samples of type {samples.dtype}, shape {samples.shape}, {rate_hz} Hz: not a waveform")
    samples = samples[:, None] if samples.ndim == 1 else samples
    return samples.T if 0 < samples.shape[0] < samples.shape[1] else samples


def _mix_channels(blocks: Blocks, name: str, warnings: list[str]) -> Blocks:
    """Average channels [n, C] to float32 [n, 1]; one that correlates with the loudest by less than -0.5 is turned first."""
    loudness: dict[int, list[np.ndarray]] = {}  # number of channels -> their loudness [20-ms frames, C] in each block
    try:
        for samples, rate_hz in blocks:
            if samples.dtype.kind in "iu":  # divided by the largest of their type, unsigned ones shifted first
                full = 2.0 ** (8 * samples.dtype.itemsize - 1)
                samples = (samples - full * (samples.dtype.kind == "u")) / full
            samples = samples.astype(np.float32)
            if not np.isfinite(samples).all():
                raise UnreadableAudio(f"{name}: holds samples that are not numbers (NaN or infinite)")
            if (count := samples.shape[1]) > 1:
                similar = samples.T @ samples  # [C, C]
                energy = similar.diagonal()
                opposite = similar[energy.argmax()] < -0.5 * np.sqrt(energy * energy.max())
                warnings += [UPSIDE_DOWN] if opposite.any() and UPSIDE_DOWN not in warnings else []
                step = max(1, rate_hz // 50)
                pieces = samples[: len(samples) // step * step].reshape(-1, step, count)
                loudness.setdefault(count, []).append(np.sqrt(np.square(pieces).mean(axis=1)))
                samples = (samples * np.where(opposite, -1, 1)).mean(axis=1, dtype=np.float32)[:, None]
            yield samples, rate_hz
    finally:  # at the end of a cut, too
        for frames in map(np.concatenate, loudness.values()):
            mean, deviation = frames.mean(axis=0), frames.std(axis=0)
            audible = frames[:, (mean > 0.03 * mean.max()) & (deviation > 0)]  # within 30 dB of the loudest channel
            if len(frames) > 50 and audible.shape[1] > 1 and np.corrcoef(audible.T).min() < 0.5:
                warnings.append("its channels are loud at different times, as two people are; their mean is heard")


def _resample_blocks(blocks: Blocks, name: str) -> Iterator[np.ndarray]:
    """Blocks (samples,) at 16 kHz; soxr gives the same samples however they are divided, and leaves 16 kHz as it is."""
    for rate_hz, run in itertools.groupby(blocks, lambda block: block[1]):
        if rate_hz < 1000:  # a header that says 1 Hz would fill gigabytes
            raise UnreadableAudio(f"{name}: {rate_hz} samples a second hold no voice; 1000 are the least")
        resampler = soxr.ResampleStream(rate_hz, RATE_HZ, 1, dtype="float32")
        for samples, _ in run:
            yield resampler.resample_chunk(samples[:, 0])
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
