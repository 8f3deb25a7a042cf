"""What a score must beat: majority class, pitch, duration and level, MFCC statistics, a constant age; measured once, where
windows are cut, so that evaluation needs no sound."""

from typing import Any

import numpy as np
import pandas as pd
import soxr
from scipy import fft
from scipy.signal import get_window
from threadpoolctl import threadpool_limits

MFCCS = 20
ACOUSTICS = ["f0_hz", "voiced_share", "duration_s", "level_db"]
ACOUSTICS += [f"mfcc_{kind}_{k}" for kind in ("mean", "std", "delta_std") for k in range(MFCCS)]
F0_RANGE_HZ = (60.0, 500.0)  # from a low man's voice to a small child's
F0_RATE_HZ = 4000  # pitch needs no more, and a quarter of the samples is a quarter of the work
FRAME_S, HOP_S = 0.06, 0.02
VOICED = 0.6  # least normalised autocorrelation of a voiced frame
LEVEL_RANGE_DB = 35.0  # frames quieter than this under the loudest are not looked at for pitch
BASELINES = {  # the columns of ACOUSTICS that a balanced logistic regression may use
    "majority": [],
    "baseline: mean F0": ["f0_hz"],
    "baseline: duration and level": ["duration_s", "level_db"],
    "baseline: MFCC": [name for name in ACOUSTICS if name.startswith("mfcc")],
}


def measure_acoustics(waveforms: np.ndarray, rate_hz: int) -> np.ndarray:
    """Measure windows [B, samples]: float32 [B, K], columns as in `ACOUSTICS`. Zeros at the end of a window are padding: they
    count neither as duration nor for any mean. `f0_hz` is NaN where no frame is voiced; `level_db` is dBFS, least -100."""
    waves = np.ascontiguousarray(waveforms, np.float32)
    backwards = waves[:, ::-1] != 0
    samples = np.where(backwards.any(axis=1), waves.shape[1] - backwards.argmax(axis=1), 0)  # [B], without padding
    f0_hz, voiced = measure_f0(waves, rate_hz)
    power = np.square(waves, dtype=np.float64).sum(axis=1) / np.maximum(samples, 1)
    level_db = 10 * np.log10(np.maximum(power, 1e-10))
    simple = np.stack([mean_f0(f0_hz, voiced), voiced.mean(axis=1), samples / rate_hz, level_db], axis=1)
    return np.concatenate([simple, _mfcc_statistics(waves, samples, rate_hz)], axis=1).astype(np.float32)


def measure_f0(waveforms: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Pitch by normalised autocorrelation (the NCCF of Talkin 1995) of 60-ms frames every 20 ms: waveforms [B, samples] -> F0 in
    Hz [B, T] and voiced [B, T]. The shortest lag whose peak comes within 10 % of the best is taken, not an octave below it."""
    waves = soxr.resample(waveforms.T, rate_hz, F0_RATE_HZ).T  # [B, samples at 4 kHz]
    frames = _frames(waves, round(FRAME_S * F0_RATE_HZ), round(HOP_S * F0_RATE_HZ))
    frames = frames - frames.mean(axis=-1, keepdims=True)
    shortest, longest = int(F0_RATE_HZ / F0_RANGE_HZ[1]), int(F0_RATE_HZ / F0_RANGE_HZ[0]) + 1
    similar = _autocorrelation(frames, longest + 2)  # [B, T, lags 0 .. longest + 1]
    inner = similar[..., shortest : longest + 1]
    is_peak = (inner >= similar[..., shortest - 1 : longest]) & (inner > similar[..., shortest + 1 : longest + 2])
    heights = np.where(is_peak, inner, -1.0)
    best = heights.max(axis=-1, keepdims=True)
    lag = (heights >= 0.9 * np.maximum(best, 1e-3)).argmax(axis=-1, keepdims=True) + shortest
    left, top, right = (np.take_along_axis(similar, lag + step, axis=-1) for step in (-1, 0, 1))
    shift = 0.5 * (left - right) / np.minimum(left - 2 * top + right, -1e-6)  # of the parabola through three points
    energy = np.square(frames).mean(axis=-1)
    loud = energy > energy.max(axis=1, keepdims=True) * 10 ** (-LEVEL_RANGE_DB / 10)
    return F0_RATE_HZ / (lag + shift)[..., 0], (best[..., 0] >= VOICED) & loud & (energy > 1e-9)


def mean_f0(f0_hz: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Mean pitch [B] of the voiced frames [B, T] within a factor 1.5 of their median; NaN where none is voiced."""
    means = np.full(len(f0_hz), np.nan)
    for number, (pitch, is_voiced) in enumerate(zip(f0_hz, voiced)):
        if is_voiced.any():
            ratio = pitch[is_voiced] / np.median(pitch[is_voiced])
            means[number] = pitch[is_voiced][(ratio > 1 / 1.5) & (ratio < 1.5)].mean()
    return means


def _frames(waves: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Frames [B, T, size] of waves [B, samples], a view; at least one."""
    padded = np.pad(waves, ((0, 0), (0, max(0, size - waves.shape[1]))))
    return np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop]


def _autocorrelation(frames: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelation [B, T, lags], each lag divided by the energies of the two stretches that it compares."""
    size = frames.shape[-1]
    spectrum = fft.rfft(frames, fft.next_fast_len(size + lags, real=True))
    product = fft.irfft(spectrum.real**2 + spectrum.imag**2)[..., :lags]
    running = np.pad(np.square(frames).cumsum(axis=-1), ((0, 0), (0, 0), (1, 0)))  # [B, T, size + 1]
    head, tail = running[..., size - lags + 1 :][..., ::-1], running[..., -1:] - running[..., :lags]
    return product / np.sqrt(np.maximum(head * tail, 1e-12))


def measure_mfcc(waves: np.ndarray, rate_hz: int) -> np.ndarray:
    """Coefficients [B, T, MFCCS] as torchaudio's MFCC gives for one window at a time: 25-ms frames every 20 ms."""
    from torchaudio.functional import melscale_fbanks

    size, hop = int(0.025 * rate_hz), int(0.02 * rate_hz)
    filters = melscale_fbanks(size // 2 + 1, 0.0, rate_hz / 2, 40, rate_hz).numpy()  # [bins, 40]
    spectrum = fft.rfft(_frames(waves, size, hop) * get_window("hann", size).astype(np.float32))
    mel = (spectrum.real**2 + spectrum.imag**2) @ filters  # [B, T, 40]
    mel_db = 10 * np.log10(np.maximum(mel, 1e-10))
    mel_db = np.maximum(mel_db, mel_db.max(axis=(1, 2), keepdims=True) - 80)  # of its own window, not of the batch
    return fft.dct(mel_db, norm="ortho")[..., :MFCCS]


def _mfcc_statistics(waves: np.ndarray, samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mean, standard deviation and standard deviation of the differences of each coefficient: [B, 3 * MFCCS]."""
    mfcc = measure_mfcc(waves, rate_hz)
    frames = np.floor((samples - 0.025 * rate_hz) / (0.02 * rate_hz)).clip(0).astype(int) + 1
    rows = []
    for inside in (values[:count] for values, count in zip(mfcc, frames)):  # frames of padding are left out
        steps = np.diff(inside, axis=0) if len(inside) > 1 else np.zeros((1, MFCCS))
        rows.append(np.concatenate([inside.mean(axis=0), inside.std(axis=0), steps.std(axis=0)]))
    return np.stack(rows)


def fit_baseline(
    name: str, acoustics: pd.DataFrame, train: pd.DataFrame, rows: pd.DataFrame, classes: int
) -> np.ndarray | None:
    """Probabilities (len(rows), C) of one of `BASELINES` for the windows of `rows`, learned from those of `train` alone (both:
    window_id, target) and their `acoustics`; None where these are lacking. The majority answers with the class shares."""
    columns = BASELINES[name]
    if not columns:
        return np.tile(np.bincount(train["target"], minlength=classes) / max(len(train), 1), (len(rows), 1))
    if not set(columns) <= set(acoustics.columns) or acoustics.empty:
        return None
    measures = acoustics.set_index("window_id")[columns]
    learned, asked = (measures.loc[table["window_id"]].to_numpy() for table in (train, rows))
    return ask_probe(learned, train["target"].to_numpy(), asked, classes)


def make_probe(strength: float = 1.0) -> Any:
    """A logistic regression, classes balanced, on standardised vectors (n, K); NaN becomes the median. strength: C."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), logistic)


def ask_probe(
    vectors: np.ndarray, targets: np.ndarray, asked: np.ndarray, classes: int, strength: float = 1.0
) -> np.ndarray:
    """Probabilities (m, C) for vectors (m, K) by `make_probe`, learned from others (n, K); a class that these lack gets 0."""
    with threadpool_limits(1):  # such matrices gain nothing from a second core
        probe = make_probe(strength).fit(np.asarray(vectors, np.float64), targets)
    probabilities = np.zeros((len(asked), classes))
    probabilities[:, probe.classes_] = probe.predict_proba(np.asarray(asked, np.float64))
    return probabilities
