"""Views of speech for the encoder's training: random cuts at another speed, altered as recordings of the world are.

What is drawn for a view depends on its generator alone, so any view can be made again, anywhere.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import fft

from lib.tiny.augment import alter_spectrum

SCALE = 32767.0


@dataclass(frozen=True)
class Speech:
    """Every clip, decoded once: `samples` int16 at 16 kHz, one clip after the other, and `rows` (clip_id, start, samples)."""

    samples: np.ndarray
    rows: pd.DataFrame

    def clip(self, row: int) -> np.ndarray:
        """Float32 samples of one clip."""
        start, count = self.rows["start"].iat[row], self.rows["samples"].iat[row]
        return self.samples[start : start + count].astype(np.float32) / SCALE


def draw_view(speech: Speech, row: int, speed: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One altered view (samples,) float32 of a clip, with another clip's voice in the background now and then."""
    spectrum = cut_spectrum(speech.clip(row), speed, samples, rng)
    other = cut_spectrum(speech.clip(int(rng.integers(len(speech.rows)))), 1.0, samples, rng)
    return alter_spectrum(spectrum, other, samples, rng)


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
    heard = fft.rfft(clip[begin : begin + needed])[: len(spectrum)]
    spectrum[: len(heard)] = heard  # resampling by a longer or shorter inverse transform
    spectrum[0] = 0
    return spectrum * np.float32(1 / (np.sqrt(2 * np.sum(np.abs(spectrum) ** 2)) + 1e-6))
