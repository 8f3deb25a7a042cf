"""Altered views of speech: another speed, room, microphone, noise, line, codec, level and length.

What is drawn for a view depends on the seed and the view's number alone, so any view can be made again, anywhere.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
import soundfile
from scipy import fft

RATE_HZ = 16_000
SCALE = 32767.0
LENGTHS_S = (1.0, 1.5, 2.0, 3.0, 4.0)
LENGTH_SHARES = (0.1, 0.1, 0.2, 0.45, 0.15)
SPEEDS = (0.8, 1.25)  # pitch, formants and tempo together
CODECS = (  # container, subtype, rate of the line in Hz; quality is drawn where the codec has one
    ("OGG", "OPUS", 16_000),
    ("OGG", "VORBIS", 16_000),
    ("MP3", "MPEG_LAYER_III", 16_000),
    ("WAV", "GSM610", 8_000),
    ("WAV", "ULAW", 8_000),
    ("WAV", "ALAW", 8_000),
)


@dataclass(frozen=True)
class Speech:
    """Every clip, decoded once: `samples` int16 at 16 kHz, one clip after the other, and `rows` (clip_id, start, samples)."""

    samples: np.ndarray
    rows: pd.DataFrame

    def clip(self, row: int) -> np.ndarray:
        """Float32 samples of one clip."""
        start, count = self.rows["start"].iat[row], self.rows["samples"].iat[row]
        return self.samples[start : start + count].astype(np.float32) / SCALE


def draw_length(rng: np.random.Generator) -> int:
    """Samples of a batch's views: 1 to 4 s."""
    return round(rng.choice(LENGTHS_S, p=LENGTH_SHARES) * RATE_HZ)


def draw_speed(rng: np.random.Generator) -> float:
    """Factor of pitch, formants and tempo; a third of the views keep their own."""
    return 1.0 if rng.random() < 0.35 else float(np.exp(rng.uniform(*np.log(SPEEDS))))


def draw_view(speech: Speech, row: int, speed: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One altered view (samples,) float32 of a clip. A fifth of them is only cut and played at its speed."""
    spectrum = cut_spectrum(speech.clip(row), speed, samples, rng)
    if rng.random() < 0.2:
        return to_level(fft.irfft(spectrum, samples))
    if rng.random() < 0.7:
        spectrum = spectrum * draw_channel(samples, rng)
    if rng.random() < 0.1:
        other = cut_spectrum(speech.clip(int(rng.integers(len(speech.rows)))), 1.0, samples, rng)
        spectrum = add_scaled(spectrum, other, rng.uniform(10, 25))
    if rng.random() < 0.6:
        spectrum = add_scaled(spectrum, draw_noise(len(spectrum), rng), rng.triangular(0, 20, 45))
    waveform = to_level(fft.irfft(spectrum, samples))
    if rng.random() < 0.1:  # an overdriven recorder
        waveform = np.clip(waveform * rng.uniform(2, 12), -1, 1)
    if rng.random() < 0.35:
        waveform = through_codec(waveform, *CODECS[rng.integers(len(CODECS))], rng.random())
    return to_level(waveform)


def to_level(waveform: np.ndarray, rms: float = 0.06) -> np.ndarray:
    """Bring to a root-mean-square level, softly kept within [-1, 1]: encoders normalise anyway."""
    waveform = waveform - waveform.mean()
    return np.clip(waveform * (rms / (np.sqrt(np.mean(waveform**2)) + 1e-7)), -1, 1).astype(np.float32)


def cut_spectrum(clip: np.ndarray, speed: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Spectrum (samples // 2 + 1,) of a random cut played at `speed`; of three cuts the loudest, so that pauses are rare.

    A clip that is too short is repeated.
    """
    needed = max(2, round(samples * speed))
    if len(clip) < needed:
        clip = np.tile(clip, -(-needed // max(len(clip), 1)))
    begins = rng.integers(len(clip) - needed + 1, size=3)
    begin = max(begins, key=lambda b: float(np.square(clip[b : b + needed]).sum()))
    spectrum = np.zeros(samples // 2 + 1, dtype=np.complex64)
    heard = fft.rfft(clip[begin : begin + needed])
    kept = min(len(spectrum), len(heard))
    spectrum[:kept] = heard[:kept]  # resampling by a longer or shorter inverse transform
    spectrum[0] = 0
    return spectrum * np.float32(1 / (np.sqrt(2 * np.sum(np.abs(spectrum) ** 2)) + 1e-6))


def add_scaled(spectrum: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """The first spectrum with the second below it by `snr_db`."""
    ratio = np.sum(np.abs(spectrum) ** 2) / (np.sum(np.abs(other) ** 2) + 1e-12)
    return spectrum + other * np.float32(np.sqrt(ratio) * 10 ** (-snr_db / 20))


def draw_noise(bins: int, rng: np.random.Generator) -> np.ndarray:
    """Spectrum of stationary noise between white and brown."""
    noise = rng.standard_normal((2, bins), dtype=np.float32)
    return (noise[0] + 1j * noise[1]) * np.maximum(np.arange(bins, dtype=np.float32), 50) ** -np.float32(
        rng.uniform(0, 1)
    )


def draw_channel(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Random microphone, band and room as one transfer function (samples // 2 + 1,)."""
    axis_hz = np.linspace(0, RATE_HZ / 2, samples // 2 + 1, dtype=np.float32)
    knots_hz = np.array([0, 150, 300, 600, 1000, 1500, 2200, 3000, 4000, 5500, 8000])
    gains_db = rng.normal(0, rng.uniform(0, 5), len(knots_hz)) + np.linspace(-1, 1, len(knots_hz)) * rng.normal(0, 5)
    response = 10 ** (np.interp(axis_hz, knots_hz, gains_db).astype(np.float32) / 20)
    if rng.random() < 0.3:  # the upper edge of a codec or a telephone
        response = response / (1 + (axis_hz / rng.uniform(3200, 7500)) ** 16)
    if rng.random() < 0.3:  # the lower edge
        response = response / (1 + (rng.uniform(60, 400) / np.maximum(axis_hz, 1)) ** 4)
    if rng.random() < 0.5:  # a room: a direct path and a tail that decays by 60 dB in `decay_s`
        decay_s, length = rng.uniform(0.1, 0.8), RATE_HZ // 2
        tail = rng.standard_normal(length, dtype=np.float32) * 10 ** (
            -3 * np.arange(length, dtype=np.float32) / RATE_HZ / decay_s
        )
        tail *= 10 ** (rng.uniform(-18, 2) / 20) / np.sqrt(np.sum(tail**2))
        tail[0] += 1
        response = response * fft.rfft(tail.astype(np.float32), samples)
    return response


def through_codec(waveform: np.ndarray, container: str, subtype: str, rate_hz: int, level: float) -> np.ndarray:
    """Encode and decode, at 8 kHz where the line is a telephone's; `level` 0 is a fair quality and 1 the worst."""
    count = len(waveform)
    if rate_hz != RATE_HZ:
        short = round(count * rate_hz / RATE_HZ)
        waveform = fft.irfft(fft.rfft(waveform)[: short // 2 + 1], short) * (short / count)
    options = {"compression_level": 0.5 + 0.49 * level} if subtype in ("OPUS", "VORBIS", "MPEG_LAYER_III") else {}
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.astype(np.float32), rate_hz, format=container, subtype=subtype, **options)
    buffer.seek(0)
    decoded, heard_hz = soundfile.read(buffer, dtype="float32")
    if heard_hz != rate_hz:
        raise ValueError(f"{subtype} came back at {heard_hz} Hz, not at {rate_hz} Hz")
    decoded = np.pad(decoded, (0, max(0, len(waveform) - len(decoded))))[: len(waveform)]
    if rate_hz == RATE_HZ:
        return decoded
    spectrum = np.zeros(count // 2 + 1, dtype=np.complex64)
    heard = fft.rfft(decoded)
    spectrum[: len(heard)] = heard
    return fft.irfft(spectrum, count) * (count / len(decoded))
