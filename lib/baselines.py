"""What a score must beat: majority class, pitch, duration and level, MFCC statistics, a constant age."""

from __future__ import annotations

import numpy as np

BASELINES = ["majority"]


def fit_majority(targets: np.ndarray, classes: int) -> np.ndarray:
    """Class shares [C] of the training part; as constant probabilities they always answer its majority class."""
    counts = np.bincount(np.asarray(targets, np.int64), minlength=classes)
    if not counts.sum():
        raise ValueError("the training part is empty; no majority to learn")
    return counts / counts.sum()


def predict_constant(shares: np.ndarray, rows: int) -> np.ndarray:
    """The same probabilities for every row: [rows, C]."""
    return np.tile(np.asarray(shares, np.float64), (rows, 1))
