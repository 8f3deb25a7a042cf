"""What lies between a mouth and a file: room, noise, line, level, codec. For synthetic speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt

from lib.corpora.demo.speakers import Speaker
from lib.paths import write_whole

CODECS = {  # suffix of a file: format and subtype of libsndfile
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
BLOCK = 1 << 15  # samples a write: libsndfile's Vorbis encoder wants small pieces


def make_noise(count: int, tilt: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [count] of RMS 1 whose power falls as frequency ** -tilt (0 white, 1 pink, 2 brown)."""
    length = next_fast_len(max(count, 16), real=True)  # a prime length would take seconds
    spectrum = rfft(rng.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 4.0) ** (-tilt / 2)
    noise = irfft(spectrum, length)[:count]
    return (noise / (rms_of(noise) + 1e-12)).astype(np.float32)


def make_music(count: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A plain run of chords [count] of RMS 1, as between the parts of a programme."""
    time_s = np.arange(count) / rate_hz
    music = np.zeros(count)
    for start in range(0, count, rate_hz // 2):
        root_hz = 110 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12]) / 12)
        piece = slice(start, start + rate_hz // 2)
        fade = np.exp(-3 * (time_s[piece] - time_s[start]))
        for ratio in (1, 1.26, 1.5, 2):
            music[piece] += fade * np.sin(2 * np.pi * root_hz * ratio * time_s[piece])
    return (music / (rms_of(music) + 1e-12)).astype(np.float32)


def add_room(waveform: np.ndarray, rate_hz: int, reverb_s: float, wet: float, rng: np.random.Generator) -> np.ndarray:
    """Convolve with exponentially decaying noise (Polack's model of a diffuse room), same length.

    `reverb_s` is RT60, the time in which the tail falls by 60 dB; `wet` the share of the tail's level, 0 = dry.
    """
    tail = rng.standard_normal(int(reverb_s * rate_hz)) * np.exp(
        -6.9 * np.arange(int(reverb_s * rate_hz)) / reverb_s / rate_hz
    )
    wet_signal = fftconvolve(waveform, tail / np.sqrt((tail**2).sum()))[: len(waveform)]
    return ((1 - wet) * waveform + wet * wet_signal).astype(np.float32)


def record(waveform: np.ndarray, rate_hz: int, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Put a dry waveform [samples] into the speaker's room and through the speaker's device; same rate and length."""
    sound = add_room(waveform, rate_hz, speaker.reverb_s, speaker.wet, rng)
    snr_db = speaker.snr_db + rng.normal(0, 2)
    sound = sound + make_noise(len(sound), speaker.noise_tilt, rng) * rms_of(sound) * 10 ** (-snr_db / 20)
    if speaker.band_hz < 0.45 * rate_hz:
        sound = sosfilt(butter(4, speaker.band_hz, "low", fs=rate_hz, output="sos"), sound)
    if speaker.band_hz < 4000:  # a telephone line also lacks the lowest frequencies
        sound = sosfilt(butter(2, 300, "high", fs=rate_hz, output="sos"), sound)
    return set_level(sound, speaker.level_db + rng.normal(0, 2))


def set_level(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """Scale to an RMS of `level_db` below full scale, clipping peaks as a loud recording does."""
    return np.clip(waveform * (10 ** (level_db / 20) / (rms_of(waveform) + 1e-9)), -1, 1).astype(np.float32)


def rms_of(waveform: np.ndarray) -> float:
    """Root mean square of all samples."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Polyphase resampling of [samples], float32."""
    divisor = int(np.gcd(from_hz, to_hz))
    return resample_poly(waveform, to_hz // divisor, from_hz // divisor).astype(np.float32)


def write_audio(path: Path, waveform: np.ndarray, rate_hz: int, codec: str, compression: float | None = None) -> None:
    """Write [samples] or [samples, channels] whole or not at all. `codec` is a key of CODECS; `compression` is
    libsndfile's 0 (best) to 1 (smallest), None = its default."""
    import soundfile

    kind, subtype = CODECS[codec]
    channels = 1 if waveform.ndim == 1 else waveform.shape[1]
    options = {} if compression is None else {"compression_level": compression}
    with write_whole(path) as partial, soundfile.SoundFile(
        partial, "w", rate_hz, channels, subtype, format=kind, **options
    ) as stream:  # fmt: skip
        for start in range(0, len(waveform), BLOCK):
            stream.write(np.clip(waveform[start : start + BLOCK], -1, 1))
