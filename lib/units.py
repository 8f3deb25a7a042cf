"""Targets that a recording gives about itself, without any label: MFCC, k-means units, pitch, and the vocal-tract warp."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

RATE_HZ = 16_000
STRIDE = 320  # samples between two frames of the encoder (20 ms)
RECEPTIVE = 400  # samples that one frame of the encoder sees (25 ms)
PITCH_STRIDE = 160  # samples between two values of pitch (10 ms)
PITCH_RANGE_HZ = (60.0, 500.0)
PITCH_WINDOW = 1024  # samples: a little under four periods of the lowest pitch


@cache
def mel_filters(bands: int = 40, bins: int = 257, low_hz: float = 60.0, high_hz: float = 6000.0) -> Tensor:
    """Triangular mel filters, shape (bins, bands). They end at 6 kHz, so that a slowed copy leaves no band empty."""
    points_mel = torch.linspace(*(1127.0 * math.log1p(hz / 700.0) for hz in (low_hz, high_hz)), bands + 2)
    points_hz = 700.0 * torch.expm1(points_mel / 1127.0)
    axis_hz = torch.linspace(0, RATE_HZ / 2, bins)[:, None]
    rise = (axis_hz - points_hz[:-2]) / (points_hz[1:-1] - points_hz[:-2])
    fall = (points_hz[2:] - axis_hz) / (points_hz[2:] - points_hz[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


@cache
def cosine_matrix(bands: int = 40, count: int = 13) -> Tensor:
    """Orthonormal cosine transform, shape (bands, count)."""
    steps = torch.arange(bands)[:, None] + 0.5
    matrix = torch.cos(math.pi / bands * steps * torch.arange(count)) * math.sqrt(2 / bands)
    matrix[:, 0] /= math.sqrt(2)
    return matrix


def mfcc(waveform: Tensor, count: int = 13) -> Tensor:
    """Mel cepstra on the encoder's own frames: waveform (B, samples) of unit variance -> (B, T, count)."""
    emphasised = torch.nn.functional.pad(waveform[:, 1:] - 0.97 * waveform[:, :-1], (1, 0))
    frames = emphasised.unfold(1, RECEPTIVE, STRIDE) * torch.hamming_window(RECEPTIVE, periodic=False)  # (B, T, 400)
    power = torch.fft.rfft(frames, n=512).abs().square()  # (B, T, 257)
    return torch.log(power @ mel_filters() + 1e-3) @ cosine_matrix(count=count)


def with_deltas(features: Tensor, reach: int = 2) -> Tensor:
    """Append first and second slopes over +-`reach` frames: (B, T, D) -> (B, T, 3 D)."""
    taps = torch.arange(-reach, reach + 1, dtype=features.dtype)
    taps = taps / taps.square().sum()

    def slope(values: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(values.transpose(1, 2), (reach, reach), mode="replicate")
        return (padded.unfold(2, 2 * reach + 1, 1) @ taps).transpose(1, 2)

    first = slope(features)
    return torch.cat([features, first, slope(first)], dim=2)


def fit_units(features: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Centroids (classes, D) of mini-batch k-means over frames (n, D), as HuBERT's first round (Hsu et al. 2021, 2106.07447)."""
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < classes:
        raise ValueError(f"{len(features)} frames cannot make {classes} units: give more audio or fewer classes")
    model = MiniBatchKMeans(classes, batch_size=10_000, n_init=3, max_iter=60, random_state=seed)
    return model.fit(features).cluster_centers_.astype(np.float32)


def assign_units(features: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid (classes, D) of every frame: (B, T, D) -> (B, T) int64."""
    return (centroids.square().sum(1) - 2 * features @ centroids.T).argmin(-1)


# ---------------------------------------------------------------------------------------------------------------- pitch


def pitch_candidates(waveform: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Best autocorrelation peaks of every 10 ms, after Boersma (1993, IFA Proceedings 17: 97-110).

    waveform (samples,) -> pitch in Hz (T, count) and strength in [0, 1] (T, count); strength 0 where there is no peak.
    """
    half = PITCH_WINDOW // 2
    frames = torch.nn.functional.pad(waveform, (half, half)).unfold(0, PITCH_WINDOW, PITCH_STRIDE)  # (T, 1024)
    window = torch.hann_window(PITCH_WINDOW)
    frames = (frames - frames.mean(1, keepdim=True)) * window

    def autocorrelation(signal: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(signal, n=2 * PITCH_WINDOW).abs().square())[..., : half + 2]

    lags = autocorrelation(frames) / (autocorrelation(window) + 1e-9)
    energy = lags[:, :1].clone()
    lags = lags / (energy + 1e-9)
    first, last = (round(RATE_HZ / hz) for hz in reversed(PITCH_RANGE_HZ))
    before, middle, after = (lags[:, first + step : last + step] for step in (-1, 0, 1))
    is_peak = (middle > before) & (middle >= after) & (energy > 1e-3 * energy.quantile(0.95))
    bend = (before - 2 * middle + after).clamp(max=-1e-9)
    offset = (0.5 * (before - after) / bend).clamp(-0.5, 0.5)  # parabola through three points
    hz = RATE_HZ / (torch.arange(first, last) + offset)
    strength = torch.where(is_peak, middle.clamp(0, 1), torch.zeros(()))
    score = torch.where(is_peak, strength + 0.02 * torch.log2(hz / PITCH_RANGE_HZ[0]), torch.zeros(()))
    best = score.topk(count, dim=1).indices
    return hz.gather(1, best), strength.gather(1, best)


def track_pitch(waveform: np.ndarray, count: int = 6, voicing: float = 0.5, jump: float = 0.6) -> np.ndarray:
    """Pitch in Hz every 10 ms by a Viterbi path over candidates; 0 where unvoiced.

    `voicing` is the strength above which a frame is voiced, `jump` the cost of an octave between two frames.
    """
    hz, strength = (value.numpy() for value in pitch_candidates(torch.as_tensor(waveform, dtype=torch.float32), count))
    octave = np.log2(hz)
    gain = np.where(strength > 0, strength + 0.02 * (octave - math.log2(PITCH_RANGE_HZ[0])), -1.0)
    gain = np.concatenate([gain, np.full((len(gain), 1), voicing)], axis=1)  # the last state is "unvoiced"
    move = np.full((len(gain), count + 1, count + 1), 0.15)  # cost of starting or ending a voice
    move[:, -1, -1] = 0.0
    move[1:, :count, :count] = jump * np.abs(octave[1:, None, :] - octave[:-1, :, None])
    best, back = gain[0], np.zeros(gain.shape, dtype=np.int64)
    for t in range(1, len(gain)):
        total = best[:, None] - move[t]
        back[t] = total.argmax(0)
        best = total.max(0) + gain[t]
    state, pitch = int(best.argmax()), np.zeros(len(gain), dtype=np.float32)
    for t in range(len(gain) - 1, -1, -1):
        pitch[t] = hz[t, state] if state < count else 0.0
        state = back[t, state]
    return pitch


# ------------------------------------------------------------------------------------------------------------ vocal tract


def warp_formants(waveform: Tensor, factor: float, quefrency: int = 28, size: int = 512, hop: int = 160) -> Tensor:
    """Move the spectral envelope by `factor` (> 1: a shorter vocal tract) and leave the pitch: (samples,) -> (samples,).

    The envelope is the low `quefrency` (in samples) part of the cepstrum of each frame.
    """
    window = torch.hann_window(size)
    spectrum = torch.stft(waveform, size, hop, window=window, return_complex=True)  # (257, T)
    cepstrum = torch.fft.irfft(torch.log(spectrum.abs() + 1e-5), dim=0)
    cepstrum[quefrency : size - quefrency + 1] = 0
    envelope = torch.fft.rfft(cepstrum, dim=0).real
    place = (torch.arange(size // 2 + 1) / factor).clamp(max=size // 2 - 1e-3)
    low, share = place.long(), (place % 1)[:, None]
    moved = envelope[low] * (1 - share) + envelope[low + 1] * share
    gain = torch.exp((moved - envelope).clamp(-5, 5))
    return torch.istft(spectrum * gain, size, hop, window=window, length=len(waveform))
