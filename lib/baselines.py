"""What a score must beat: majority class, pitch, duration and level, MFCC statistics, a constant age.

Their inputs are measured once, beside the embedding (`baseline_features`), so evaluation never needs the audio again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

MEASURED = 2  # raised when acoustics are measured in another way; 2: MFCC of a window alone, not of its batch
MFCCS = 20
ACOUSTICS = ["f0_hz", "voiced_share", "duration_s", "level_db"]
ACOUSTICS += [f"mfcc_{kind}_{k}" for kind in ("mean", "std", "delta_std") for k in range(MFCCS)]
F0_RANGE_HZ = (60.0, 500.0)  # from a low man's voice to a small child's
F0_RATE_HZ = 4000  # pitch needs no more, and a quarter of the samples is a quarter of the work
FRAME_S, HOP_S = 0.06, 0.02
VOICED = 0.6  # least normalised autocorrelation of a voiced frame
LEVEL_RANGE_DB = 35.0  # frames quieter than this under the loudest are not looked at for pitch

# name in every table -> the columns of ACOUSTICS that a balanced logistic regression may use
BASELINES = {
    "majority": [],
    "baseline: mean F0": ["f0_hz"],
    "baseline: duration and level": ["duration_s", "level_db"],
    "baseline: MFCC": [name for name in ACOUSTICS if name.startswith("mfcc")],
}


def baseline_features(waveforms: np.ndarray, rate_hz: int) -> dict[str, np.ndarray]:
    """Measure windows [B, samples]: {"acoustics": float32 [B, K]}, its columns named by `ACOUSTICS`.

    Zeros at the end of a window are padding: they count neither as duration nor for any mean. `f0_hz` is NaN where no
    frame is voiced; `level_db` is the RMS in dB below full scale, at least -100.
    """
    waves = torch.from_numpy(np.ascontiguousarray(waveforms, np.float32))
    samples = _true_samples(waves)  # [B]
    with torch.inference_mode():
        f0_hz, voiced = measure_f0(waves, rate_hz)
        mfcc = _mfcc_statistics(waves, samples, rate_hz)
    power = waves.square().sum(dim=1) / samples.clamp_min(1)
    level = 10 * torch.log10(power.clamp_min(1e-10))
    columns = [mean_f0(f0_hz, voiced), voiced.float().mean(dim=1), samples / rate_hz, level]
    return {"acoustics": torch.cat([torch.stack(columns, dim=1), mfcc], dim=1).float().numpy()}


def measure_f0(waveforms: Tensor, rate_hz: int) -> tuple[Tensor, Tensor]:
    """Pitch by normalised autocorrelation (the NCCF of Talkin 1995) of 60-ms frames every 20 ms.

    waveforms [B, samples] -> F0 in Hz [B, T] and voiced [B, T]. The shortest lag whose peak comes within 10 % of the
    best is taken, so that an octave below is not mistaken for the pitch.
    """
    from torchaudio.functional import resample

    size, hop = round(FRAME_S * F0_RATE_HZ), round(HOP_S * F0_RATE_HZ)
    waves = resample(waveforms, rate_hz, F0_RATE_HZ)
    frames = torch.nn.functional.pad(waves, (0, max(0, size - waves.shape[1]))).unfold(1, size, hop)  # [B, T, size]
    frames = frames - frames.mean(dim=-1, keepdim=True)
    shortest, longest = int(F0_RATE_HZ / F0_RANGE_HZ[1]), int(F0_RATE_HZ / F0_RANGE_HZ[0]) + 1
    similar = _autocorrelation(frames, longest + 2)  # [B, T, lags 0 .. longest + 1]
    inner = similar[..., shortest : longest + 1]
    peak = (inner >= similar[..., shortest - 1 : longest]) & (inner > similar[..., shortest + 1 : longest + 2])
    heights = torch.where(peak, inner, -1.0)
    best = heights.amax(dim=-1, keepdim=True)
    lag = (heights >= 0.9 * best.clamp_min(1e-3)).int().argmax(dim=-1, keepdim=True) + shortest
    left, top, right = (similar.gather(-1, lag + step) for step in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * top + right).clamp_max(-1e-6)  # of the parabola through three points
    energy = frames.square().mean(dim=-1)
    loud = energy > energy.amax(dim=1, keepdim=True) * 10 ** (-LEVEL_RANGE_DB / 10)
    return F0_RATE_HZ / (lag + shift).squeeze(-1), (best.squeeze(-1) >= VOICED) & loud & (energy > 1e-9)


def mean_f0(f0_hz: Tensor, voiced: Tensor) -> Tensor:
    """Mean pitch [B] of the voiced frames within a factor 1.5 of their median; NaN where none is voiced."""
    kept = torch.where(voiced, f0_hz, torch.nan)
    ratio = kept / kept.nanmedian(dim=1, keepdim=True).values
    return torch.where((ratio > 1 / 1.5) & (ratio < 1.5), kept, torch.nan).nanmean(dim=1)


def _autocorrelation(frames: Tensor, lags: int) -> Tensor:
    """Autocorrelation [B, T, lags], each lag divided by the energies of the two stretches that it compares."""
    size = frames.shape[-1]
    product = torch.fft.irfft(_power(torch.fft.rfft(frames, n=next_fast_len(size + lags, real=True))))[..., :lags]
    running = torch.nn.functional.pad(frames.square().cumsum(dim=-1), (1, 0))  # [B, T, size + 1]
    head, tail = running[..., size - lags + 1 :].flip(-1), running[..., -1:] - running[..., :lags]
    return product / (head * tail).clamp_min(1e-12).sqrt()


def _power(spectrum: Tensor) -> Tensor:
    """Squared magnitude of complex numbers, without a root between."""
    return (spectrum * spectrum.conj()).real


def _true_samples(waves: Tensor) -> Tensor:
    """Number of samples up to the last that is not zero, [B]."""
    sounding = (waves != 0).to(torch.int8)
    return torch.where(sounding.amax(dim=1) > 0, waves.shape[1] - sounding.flip(1).argmax(dim=1), 0)


@lru_cache(maxsize=2)
def _mfcc_transform(rate_hz: int) -> Any:
    from torchaudio.transforms import MFCC

    size, hop = _mfcc_frames(rate_hz)
    return MFCC(rate_hz, MFCCS, melkwargs={"n_fft": size, "hop_length": hop, "n_mels": 40, "center": False})


def _mfcc_frames(rate_hz: int) -> tuple[int, int]:
    return int(0.025 * rate_hz), int(0.02 * rate_hz)  # samples of a frame, samples between two


def _mfcc(waves: Tensor, rate_hz: int) -> Tensor:
    """Coefficients [B, MFCCS, T] as torchaudio's MFCC gives for one window at a time.

    Given a batch, it would cut off what is 80 dB below the loudest of all windows, so that a window's values would
    depend on its neighbours.
    """
    transform, (size, hop) = _mfcc_transform(rate_hz), _mfcc_frames(rate_hz)
    window = transform.MelSpectrogram.spectrogram.window
    power = _power(torch.stft(waves, size, hop, size, window, center=False, return_complex=True))
    mel_db = transform.amplitude_to_DB(transform.MelSpectrogram.mel_scale(power)[:, None])[:, 0]
    return (mel_db.transpose(-1, -2) @ transform.dct_mat).transpose(-1, -2)


def _mfcc_statistics(waves: Tensor, samples: Tensor, rate_hz: int) -> Tensor:
    """Mean, standard deviation and standard deviation of the differences of each coefficient: [B, 3 * MFCCS]."""
    mfcc = _mfcc(waves, rate_hz)
    frames = ((samples - 0.025 * rate_hz) / (0.02 * rate_hz)).floor().clamp_min(0) + 1
    inside = torch.arange(mfcc.shape[-1]) < frames[:, None]  # [B, T]
    mean, std = _masked_moments(mfcc, inside)
    _, delta_std = _masked_moments(mfcc.diff(dim=-1), inside[:, 1:])
    return torch.cat([mean, std, delta_std], dim=1)


def _masked_moments(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    weight = inside[:, None].float() / inside.sum(dim=1).clamp_min(1)[:, None, None]
    mean = (values * weight).sum(dim=-1)
    return mean, ((values - mean[..., None]).square() * weight).sum(dim=-1).sqrt()


# ----------------------------------------------------------------------------------------------------------------------
# Fitting and answering


def fit_baselines(
    acoustics: np.ndarray, targets: np.ndarray, rows_train: np.ndarray, rows: np.ndarray, classes: list[str]
) -> dict[str, np.ndarray]:
    """Probabilities of every baseline for `rows`: {name: [len(rows), C]}, learned from `rows_train` only.

    Parameters
    ----------
    acoustics: [n, K], columns as in `ACOUSTICS`. targets: [n] class numbers; those outside `rows_train` are not read.

    The majority answers with the class shares; the others are logistic regressions with balanced class weights on the
    columns that `BASELINES` gives them. For two classes "mean F0" is a threshold on pitch; unvoiced windows get the
    training part's median pitch.
    """
    acoustics = np.asarray(acoustics)
    if acoustics.shape[1] != len(ACOUSTICS):
        raise ValueError(f"acoustics has {acoustics.shape[1]} columns, not the {len(ACOUSTICS)} of baseline_features")
    found = {}
    for name, columns in BASELINES.items():
        if not columns:
            found[name] = predict_constant(fit_majority(np.asarray(targets)[rows_train], len(classes)), len(rows))
            continue
        chosen = [ACOUSTICS.index(column) for column in columns]
        probe = fit_probe(acoustics[np.ix_(rows_train, chosen)], np.asarray(targets)[rows_train])
        found[name] = predict_probe(probe, acoustics[np.ix_(rows, chosen)], len(classes))
    return found


def fit_probe(vectors: np.ndarray, targets: np.ndarray, strength: float = 1.0) -> Any:
    """Fit a logistic regression with balanced class weights on standardised vectors [n, K]; NaN becomes the median.

    `strength` is the inverse of the penalty (scikit-learn's C). Used for baselines, layer probes and audits alike.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler(), logistic).fit(np.asarray(vectors, np.float64), targets)


def predict_probe(probe: Any, vectors: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities [n, C] of a probe; a class that its training part lacked gets 0."""
    probabilities = np.zeros((len(vectors), classes))
    probabilities[:, probe.classes_] = probe.predict_proba(np.asarray(vectors, np.float64))
    return probabilities


def fit_majority(targets: np.ndarray, classes: int) -> np.ndarray:
    """Class shares [C] of the training part; as constant probabilities they always answer its majority class."""
    counts = np.bincount(np.asarray(targets, np.int64), minlength=classes)
    if not counts.sum():
        raise ValueError("the training part is empty; no majority to learn")
    return counts / counts.sum()


def predict_constant(shares: np.ndarray, rows: int) -> np.ndarray:
    """The same probabilities for every row: [rows, C]."""
    return np.tile(np.asarray(shares, np.float64), (rows, 1))


def fit_constant_age(years: np.ndarray) -> float:
    """The median age of the training part: of all constants the one with the smallest mean absolute error."""
    years = np.asarray(years, np.float64)
    if not len(years) or not np.isfinite(years).all():
        raise ValueError("ages of the training part must be finite and at least one")
    return float(np.median(years))
