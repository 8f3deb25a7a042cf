"""Scores with intervals: every number is a function of sums that speakers contribute, so one bootstrap serves all.

A tidy record is {task, model, protocol, split, level, subset, metric, value, low, high, n, speakers}; `low` and `high`
are the 95 % interval from a bootstrap over speakers, never over windows: windows of one voice are not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

LEVELS = ["window", "clip", "speaker"]
DRAWS = 2000
RECORD = ["task", "model", "protocol", "split", "level", "subset", "metric", "value", "low", "high", "n", "speakers"]
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


# ----------------------------------------------------------------------------------------------------------------------
# Scores from confusion counts


def confusion_counts(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion counts [C, C]: rows are the truth, columns the prediction, both in the classes' fixed order."""
    cells = np.asarray(targets, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def confusion_metrics(counts: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """Metrics from confusion counts [..., C, C]; each value has the leading shape.

    accuracy; uar (mean recall of the classes that occur); macro_f1 and weighted_f1 (over the classes that occur or are
    predicted, as scikit-learn does); f1_<class> and recall_<class> (NaN where the class does not occur); mace, the mean
    absolute class error, for three and more ordered classes.
    """
    counts = np.asarray(counts, np.float64)
    support, guessed = counts.sum(axis=-1), counts.sum(axis=-2)  # [..., C]
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / support
        f1 = 2 * right / (support + guessed)
        f1_or_zero = np.nan_to_num(f1)
        metrics = {
            "accuracy": right.sum(axis=-1) / total,
            "uar": np.nan_to_num(recall).sum(axis=-1) / (support > 0).sum(axis=-1),
            "macro_f1": f1_or_zero.sum(axis=-1) / (support + guessed > 0).sum(axis=-1),
            "weighted_f1": (f1_or_zero * support).sum(axis=-1) / total,
        }
        for k, name in enumerate(classes):
            metrics[f"f1_{name}"] = np.where(support[..., k] > 0, f1[..., k], np.nan)
        for k, name in enumerate(classes):
            metrics[f"recall_{name}"] = recall[..., k]
        if len(classes) > 2:
            steps = np.abs(np.subtract.outer(np.arange(len(classes)), np.arange(len(classes))))
            metrics["mace"] = (counts * steps).sum(axis=(-2, -1)) / total
    return metrics


# ----------------------------------------------------------------------------------------------------------------------
# The bootstrap over speakers


def sum_by_speaker(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Sum the rows of [n, K] by speaker: [S, K]."""
    codes, names = pd.factorize(np.asarray(speakers))
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
    sums = sum_by_speaker(values, speakers)
    point = statistic(sums.sum(axis=0))
    if not draws:
        return {name: (float(value), np.nan, np.nan) for name, value in point.items()}
    drawn = statistic(draw_sums(sums, draws, seed))
    return {name: (float(value), *_interval(drawn[name], value)) for name, value in point.items()}


def _interval(drawn: np.ndarray, value: float) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not np.isfinite(value):
        return np.nan, np.nan
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _one_hot_cells(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    cells = np.zeros((len(targets), classes * classes), np.float32)
    cells[np.arange(len(targets)), np.asarray(targets, np.int64) * classes + predicted] = 1
    return cells


def _confusion_statistic(classes: list[str], names: list[str] | None = None) -> Statistic:
    """From cell sums to metrics; a draw that lost a class of the whole sample has no UAR and no macro-F1."""
    size = len(classes)

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        counts = sums.reshape(*sums.shape[:-1], size, size)
        metrics = confusion_metrics(counts, classes)
        held = (counts.sum(axis=-1) > 0).sum(axis=-1)
        for name in ("uar", "macro_f1"):
            metrics[name] = np.where(held == held.max(), metrics[name], np.nan)
        return {name: metrics[name] for name in names or metrics}

    return statistic


# ----------------------------------------------------------------------------------------------------------------------
# Public scoring functions


def score_classes(
    targets: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    speakers: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
    metrics: list[str] | None = None,
) -> pd.DataFrame:
    """Tidy records of all class metrics with their intervals.

    Parameters
    ----------
    targets: [n] class numbers. probabilities: [n, C]; the class of highest probability is the answer.
    speakers: [n] ids, the unit of the bootstrap.
    context: further columns of every record (task, model, protocol, split, level, subset).
    metrics: None = all of `confusion_metrics`.
    """
    targets, probabilities = _checked(targets, probabilities, classes)
    cells = _one_hot_cells(targets, probabilities.argmax(axis=1), len(classes))
    found = bootstrap_speakers(cells, speakers, _confusion_statistic(classes, metrics), draws, seed)
    return make_records(found, speakers, context)


def score_difference(
    targets: np.ndarray,
    probabilities: np.ndarray,
    other: np.ndarray,
    classes: list[str],
    speakers: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
    metrics: list[str] | None = None,
) -> pd.DataFrame:
    """Paired difference "first minus other" of every metric, the same speakers drawn for both: tidy records.

    An interval that leaves out 0 is a difference that this many speakers can show.
    """
    targets, probabilities = _checked(targets, probabilities, classes)
    _, other = _checked(targets, other, classes)
    size = len(classes) ** 2
    values = np.concatenate(
        [_one_hot_cells(targets, p.argmax(axis=1), len(classes)) for p in (probabilities, other)], axis=1
    )
    single = _confusion_statistic(classes, metrics)

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        first, second = single(sums[..., :size]), single(sums[..., size:])
        return {f"{name}_difference": first[name] - second[name] for name in first}

    return make_records(bootstrap_speakers(values, speakers, statistic, draws, seed), speakers, context)


def make_records(
    found: dict[str, tuple[float, float, float]], speakers: np.ndarray, context: dict[str, Any] | None = None
) -> pd.DataFrame:
    """Tidy records from {metric: (value, low, high)}; a context key that is not given stays ""."""
    fixed = {name: "" for name in RECORD[:6]} | {"subset": "all"} | (context or {})
    size = {"n": len(speakers), "speakers": int(pd.Series(speakers).nunique())}
    rows = [fixed | {"metric": m, "value": v, "low": low, "high": high} | size for m, (v, low, high) in found.items()]
    extra = [name for name in fixed if name not in RECORD]
    return pd.DataFrame(rows, columns=RECORD + extra)


def make_predictions(
    windows: pd.DataFrame,
    targets: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    *,
    task: str,
    model: str,
    protocol: str,
    seed: int,
    split: str | np.ndarray,
    epoch: int = 0,
) -> pd.DataFrame:
    """A predictions table (`lib.tables.PREDICTIONS`) for `windows`, whose rows the other arrays follow.

    Parameters
    ----------
    windows: `window_id, clip_id, speaker_id`. probabilities: [n, C] in the order of `classes`.
    split: one part for all rows, or [n]. epoch: of the checkpoint; 0 for a baseline.
    """
    targets, probabilities = _checked(targets, probabilities, classes)
    table = windows[["window_id", "clip_id", "speaker_id"]].reset_index(drop=True)
    table = table.assign(task=task, model=model, protocol=protocol, seed=seed, split=split, target=targets, epoch=epoch)
    for k, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, k].astype(np.float64)
    return table


def aggregate_predictions(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Average the probabilities of windows up to "clip" or "speaker" ("window" changes nothing).

    Rows are kept apart by task, model, protocol, seed, split, epoch and target, so a speaker recorded at two ages counts
    once for each. `windows` tells how many were averaged.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; choose one of {LEVELS}")
    if level == "window":
        return predictions.assign(windows=1)
    keys = ["task", "model", "protocol", "seed", "split", "epoch", "target", "speaker_id"]
    keys = keys + ["clip_id"] if level == "clip" else keys
    columns = probability_columns(predictions)
    grouped = predictions.groupby(keys, sort=False)
    return grouped[columns].mean().assign(windows=grouped.size()).reset_index()


def score_predictions(
    predictions: pd.DataFrame, classes: list[str], *, draws: int = DRAWS, seed: int = 0, levels: list[str] | None = None
) -> pd.DataFrame:
    """Score a predictions table at window, clip and speaker level, each model, protocol, seed and split by itself."""
    records = []
    names = ["task", "model", "protocol", "split"]
    for (*key, run_seed), rows in predictions.groupby([*names, "seed"], sort=False):
        for level in levels or LEVELS:
            table = aggregate_predictions(rows, level)
            context = dict(zip(names, key)) | {"level": level, "seed": run_seed}
            probabilities = table[[f"p_{name}" for name in classes]].to_numpy()
            arrays = (table["target"].to_numpy(), probabilities, classes, table["speaker_id"].to_numpy())
            records.append(score_classes(*arrays, draws=draws, seed=seed, context=context))
    return pd.concat(records, ignore_index=True)


def probability_columns(table: pd.DataFrame) -> list[str]:
    """Names of the columns p_<class>, in the table's order."""
    return [name for name in table.columns if name.startswith("p_")]


def _checked(targets: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    targets, probabilities = np.asarray(targets), np.asarray(probabilities)
    if probabilities.shape != (len(targets), len(classes)):
        raise ValueError(f"{len(targets)} targets of {len(classes)} classes, but probabilities {probabilities.shape}")
    if not len(targets):
        raise ValueError("nothing to score: no rows")
    if targets.min() < 0 or targets.max() >= len(classes):
        raise ValueError(f"targets run from {targets.min()} to {targets.max()}, outside the {len(classes)} classes")
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"row {np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0]} has a probability that is no number"
        )
    return targets.astype(np.int64), probabilities
