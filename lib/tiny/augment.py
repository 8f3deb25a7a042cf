"""Altered copies of speech, for networks that should not mind the channel: another room, microphone, noise, line, codec and
level. What is drawn depends on the generator alone."""

import io

import numpy as np
import soundfile
from scipy import fft

from lib.audio import RATE_HZ

CODECS = (  # container, subtype, rate of the line in Hz; quality is drawn where the codec has one
    ("OGG", "OPUS", 16_000),
    ("OGG", "VORBIS", 16_000),
    ("MP3", "MPEG_LAYER_III", 16_000),
    ("WAV", "GSM610", 8_000),
    ("WAV", "ULAW", 8_000),
    ("WAV", "ALAW", 8_000),
)


def alter_waveforms(waveforms: np.ndarray, seed: list[int]) -> np.ndarray:
    """One altered copy of each waveform (B, samples) float32, drawn by the seed; the other voices are the batch's own."""
    rng, samples = np.random.default_rng(seed), waveforms.shape[1]
    spectra = fft.rfft(waveforms - waveforms.mean(axis=1, keepdims=True))
    copies = [alter_spectrum(spectrum, spectra[number - 1], samples, rng) for number, spectrum in enumerate(spectra)]
    return np.stack(copies).astype(np.float32)


def alter_spectrum(spectrum: np.ndarray, other: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """A waveform (samples,) from the spectrum (samples // 2 + 1,) of one, a fifth as it is; `other`: a voice behind it."""
    if rng.random() < 0.2:
        return to_level(fft.irfft(spectrum, samples))
    if rng.random() < 0.7:
        spectrum = spectrum * draw_channel(samples, rng)
    if rng.random() < 0.1:
        spectrum = add_scaled(spectrum, other, rng.uniform(10, 25))
    if rng.random() < 0.6:
        real, imaginary = rng.standard_normal((2, len(spectrum)), dtype=np.float32)
        slope = np.float32(rng.uniform(0, 1))
        noise = (real + 1j * imaginary) * np.maximum(np.arange(len(spectrum), dtype=np.float32), 50) ** -slope
        spectrum = add_scaled(spectrum, noise, rng.triangular(0, 20, 45))  # stationary, between white and brown
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


def add_scaled(spectrum: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """The first spectrum with the second below it by `snr_db`."""
    ratio = np.sum(np.abs(spectrum) ** 2) / (np.sum(np.abs(other) ** 2) + 1e-12)
    return spectrum + other * np.float32(np.sqrt(ratio) * 10 ** (-snr_db / 20))


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
        decay_s, time = rng.uniform(0.1, 0.8), np.arange(RATE_HZ // 2, dtype=np.float32)  # time in samples
        tail = rng.standard_normal(len(time), dtype=np.float32) * 10 ** (-3 * time / RATE_HZ / decay_s)
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
    decoded = soundfile.read(buffer, dtype="float32", frames=len(waveform), fill_value=0)[0]
    if rate_hz == RATE_HZ:
        return decoded
    spectrum = np.zeros(count // 2 + 1, dtype=np.complex64)
    heard = fft.rfft(decoded)
    spectrum[: len(heard)] = heard
    return fft.irfft(spectrum, count) * (count / len(decoded))
