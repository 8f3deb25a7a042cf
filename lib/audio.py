"""Decoding: any audio file to a mono float32 waveform at 16 kHz. soundfile first, ffmpeg only for what it cannot read."""

from __future__ import annotations

import functools
import hashlib
import math
import subprocess
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000  # what every encoder here was trained on
LARGEST_FILTER = 2_000_000  # taps of torchaudio's resampling filter; every usual rate stays below 300,000
SOUNDFILE_SUFFIXES = {
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".oga",
    ".mp3",
    ".aiff",
    ".aif",
    ".aifc",
    ".au",
    ".caf",
    ".w64",
    ".rf64",
    ".snd",
}
FFMPEG_SUFFIXES = {".m4a", ".aac", ".mp4", ".m4b", ".mov", ".webm", ".mkv", ".wma", ".avi", ".3gp", ".amr", ".ts"}
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES


class UnreadableAudio(ValueError):
    """A file that is empty, missing or no audio; the message names it and why."""


def read_waveform(path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Decode a file, or the cut [start_s, end_s) of it, to a mono waveform at 16 kHz.

    Parameters
    ----------
    path: wav, flac, ogg, opus, mp3 through libsndfile; m4a, aac and video through ffmpeg when it is installed.
    start_s, end_s: seconds from the start of the file; None = to its end. A cut past the end gives what there is.

    Returns
    -------
    float32 array of shape (samples,), channels averaged, nominally within [-1, 1].

    Raises
    ------
    UnreadableAudio naming the file and the reason.
    """
    samples, rate_hz = decode(path, start_s, end_s)
    return resample(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1), rate_hz)


def decode(path: Path, start_s: float = 0.0, end_s: float | None = None) -> tuple[np.ndarray, int]:
    """Decode to float32 samples of shape (samples, channels) at the file's own rate; see `read_waveform`."""
    path = Path(path)
    check_file(path)
    if path.suffix.lower() in FFMPEG_SUFFIXES:
        return _decode_with_ffmpeg(path, start_s, end_s)
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz = file.samplerate
            first = round(start_s * rate_hz)
            if first and first >= file.frames:
                raise UnreadableAudio(
                    f"{path.name}: the cut starts at {start_s:g} s, the file ends at {file.frames / rate_hz:g} s"
                )
            if first:
                file.seek(first)
            count = -1 if end_s is None or np.isnan(end_s) else round(end_s * rate_hz) - first
            samples = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        return _decode_with_ffmpeg(path, start_s, end_s, f"libsndfile: {error.error_string}")
    return _finite(samples, path), rate_hz


def check_file(path: Path) -> None:
    """Raise UnreadableAudio when the file is missing or holds no byte."""
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no such file"
        raise UnreadableAudio(f"{path.name}: {what}")
    if path.stat().st_size == 0:
        raise UnreadableAudio(f"{path.name}: empty file (0 bytes)")


def _finite(samples: np.ndarray, path: Path) -> np.ndarray:
    if samples.size == 0:
        raise UnreadableAudio(f"{path.name}: decodes to no samples")
    if not np.isfinite(samples).all():
        raise UnreadableAudio(f"{path.name}: holds samples that are not numbers (NaN or infinite)")
    return samples


@functools.cache
def ffmpeg_command() -> str | None:
    """Path of ffmpeg (the PyPI wheel's, or the system's), None when there is none."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def _decode_with_ffmpeg(path: Path, start_s: float, end_s: float | None, cause: str = "") -> tuple[np.ndarray, int]:
    command = ffmpeg_command()
    if command is None:
        raise UnreadableAudio(f"{path.name}: {cause or 'needs ffmpeg'}; for AAC and video: pip install imageio-ffmpeg")
    span = ["-ss", f"{start_s:.6f}"] if start_s else []
    if end_s is not None and not np.isnan(end_s):
        span += ["-t", f"{end_s - start_s:.6f}"]
    call = [
        command,
        "-v",
        "error",
        "-nostdin",
        *span,
        "-i",
        str(path),
        "-vn",
        "-ac",
        "1",
        "-ar",
        str(RATE_HZ),
        "-f",
        "f32le",
        "-",
    ]
    done = subprocess.run(call, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise UnreadableAudio(f"{path.name}: {undecodable(cause, done.stderr)}".replace(str(path), path.name))
    return _finite(np.frombuffer(done.stdout, "<f4").reshape(-1, 1).copy(), path), RATE_HZ


def undecodable(cause: str, said: bytes) -> str:
    """Why neither libsndfile (`cause`, "" = not asked) nor ffmpeg (`said` on stderr) could decode a file."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return f"holds no audio that can be decoded ({cause or (lines[-1] if lines else 'ffmpeg finds none')})"


def resample(waveform: np.ndarray, rate_hz: int) -> np.ndarray:
    """Resample the last axis from `rate_hz` to 16 kHz; float32 in, float32 out.

    torchaudio's windowed-sinc filter; a rate that shares almost no factor with 16 kHz (such as 47,999 Hz), for which that
    filter would fill gigabytes, goes through scipy's polyphase filter.
    """
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if rate_hz == RATE_HZ:
        return waveform
    shared = math.gcd(rate_hz, RATE_HZ)
    if (rate_hz // shared) * (RATE_HZ // shared) > LARGEST_FILTER:
        from scipy.signal import resample_poly

        return resample_poly(waveform, RATE_HZ // shared, rate_hz // shared, axis=-1).astype(np.float32, copy=False)
    import torch
    import torchaudio.functional as F

    return F.resample(torch.from_numpy(waveform), rate_hz, RATE_HZ).numpy()


def duration_s(path: Path) -> float:
    """Length of a file in seconds, from its header where libsndfile reads it; UnreadableAudio otherwise."""
    path = Path(path)
    check_file(path)
    try:
        return float(soundfile.info(path).duration)
    except soundfile.LibsndfileError:
        return len(_decode_with_ffmpeg(path, 0.0, None)[0]) / RATE_HZ


def level_db(waveform: np.ndarray) -> float:
    """Root-mean-square level in dB below full scale; silence gives -120."""
    return float(20 * np.log10(max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-6)))


def content_hash(waveform: np.ndarray) -> str:
    """Hash of the samples as 16-bit integers, so that the same audio under two names is found."""
    return hashlib.blake2b(np.round(waveform * 32767).astype("<i2").tobytes(), digest_size=12).hexdigest()
