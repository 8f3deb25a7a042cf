"""The bootstrap over speakers: one engine for every score that is a function of sums which speakers contribute.

Windows of one voice are not independent, so speakers are drawn, never windows. Sums are taken by speaker once; a draw is
then a row of counts times the table of sums, and thousands of draws take seconds at any number of windows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

DRAWS = 2000
LEAST = 0.1  # of the draws must have the score (one without all classes has no UAR), or there is no interval
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]  # sums [..., K] -> {metric: values [...]}


def sum_by_speaker(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Sum the rows of [n, K] by speaker, speakers sorted, so that equal speakers are drawn alike everywhere: [S, K]."""
    codes, names = pd.factorize(np.asarray(speakers), sort=True)
    values = np.asarray(values, np.float64)
    return np.stack([np.bincount(codes, weights=column, minlength=len(names)) for column in values.T], axis=1)


def draw_sums(sums: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Bootstrap over speakers: [S, K] sums of S speakers -> [draws, K] sums of S speakers drawn with replacement.

    Equal S, draws and seed give equal draws, which is what makes a comparison of two models paired.
    """
    rng = np.random.default_rng(seed)
    size = len(sums)
    block = max(1, min(draws, 4_000_000 // size))
    drawn = []
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size
        weights = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
        drawn.append(weights.astype(np.float64) @ sums)
    return np.concatenate(drawn)


def bootstrap_speakers(
    values: np.ndarray, speakers: np.ndarray, statistic: Statistic, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Point value and 95 % interval of every metric that `statistic` computes from summed `values`.

    Parameters
    ----------
    values: [n, K], what each row adds to the sums.
    speakers: [n] ids.
    statistic: sums [..., K] -> {metric: values [...]}.
    draws: number of bootstrap draws; 0 = no interval (NaN).
    """
    return bootstrap_sums(sum_by_speaker(values, speakers), statistic, draws, seed)


def bootstrap_trainings(
    values: np.ndarray,
    speakers: np.ndarray,
    trainings: np.ndarray | None,
    statistic: Statistic,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """The same for the rows of several trainings of one model ([n] seeds): the mean over them, equal speakers drawn for all."""
    if trainings is None:
        return bootstrap_speakers(values, speakers, statistic, draws, seed)
    trainings, width = np.asarray(trainings), np.shape(values)[1]
    tables = [
        pd.DataFrame(values[trainings == one]).groupby(np.asarray(speakers)[trainings == one]).sum()
        for one in np.unique(trainings)
    ]
    voices = sorted(set().union(*(table.index for table in tables)))
    sums = np.concatenate([table.reindex(voices, fill_value=0).to_numpy(np.float64) for table in tables], axis=1)

    def mean(sums: np.ndarray) -> dict[str, np.ndarray]:
        found = [statistic(sums[..., k * width : (k + 1) * width]) for k in range(len(tables))]
        return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}

    return bootstrap_sums(sums, mean, draws, seed)


def bootstrap_sums(
    sums: np.ndarray, statistic: Statistic, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """The same from sums by speaker [S, K]."""
    point = statistic(sums.sum(axis=0))
    if not draws:
        return {name: (float(value), np.nan, np.nan) for name, value in point.items()}
    drawn = statistic(draw_sums(sums, draws, seed))
    return {name: (float(value), *_interval(drawn[name], value)) for name, value in point.items()}


def _interval(drawn: np.ndarray, value: float) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if len(known) < LEAST * len(drawn) or not np.isfinite(value):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
