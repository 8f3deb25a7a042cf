"""Scores with intervals: every number is a function of sums that speakers contribute, so one bootstrap serves all. In a record,
`RECORD`, `low` and `high` are its 95 % interval; windows, which are not independent within a voice, are never drawn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

LEVELS = ["window", "clip", "speaker"]
RECORD = ["task", "model", "protocol", "split", "level", "subset", "metric", "value", "low", "high", "n", "speakers"]
DRAWS = 2000
LEAST = 0.1  # of the draws must have the score (one without all classes has no UAR), or there is no interval
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]  # sums (..., K) -> {metric: values (...)}


def sum_by_speaker(values: np.ndarray, table: pd.DataFrame) -> list[pd.DataFrame]:
    """For each training (`seed`; without it there is one) the sums (S, K) of the rows of (n, K) by `speaker_id`, sorted, so that
    equal speakers are drawn alike everywhere."""
    seeds = table["seed"].to_numpy() if "seed" in table else np.zeros(len(table), np.int64)
    sums = pd.DataFrame(np.asarray(values, np.float64)).groupby([seeds, table["speaker_id"].to_numpy()]).sum()
    return [sums.loc[one] for one in np.unique(seeds)]


def draw_sums(sums: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sums (S, ...) of S speakers -> (draws, ...), of S drawn with replacement; equal S, draws and seed give equal draws, so
    that a comparison of two models is paired."""
    rng, size = np.random.default_rng(seed), len(sums)
    block, parts = max(1, min(draws, 4_000_000 // size)), []
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size
        weights = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
        parts.append(np.tensordot(weights.astype(np.float64), sums, axes=1))
    return np.concatenate(parts)


def bootstrap_sums(sums: np.ndarray, statistic: Statistic, draws: int = DRAWS, seed: int = 0) -> dict[str, tuple]:
    """(value, low, high) of every metric that `statistic` computes of sums by speaker (S, ...); draws 0 = no interval, NaN."""
    drawn, found = statistic(draw_sums(sums, draws, seed)) if draws else {}, {}
    for name, (value,) in statistic(sums.sum(axis=0, keepdims=True)).items():
        values = drawn.get(name, np.zeros(0))
        known = values[np.isfinite(values)]
        is_known = len(known) > 0 and len(known) >= LEAST * len(values) and np.isfinite(value)
        low, high = np.percentile(known, [2.5, 97.5]) if is_known else (np.nan, np.nan)
        found[name] = (float(value), float(low), float(high))
    return found


def bootstrap_trainings(
    values: np.ndarray, table: pd.DataFrame, statistic: Statistic, draws: int = DRAWS, seed: int = 0,
    minus: tuple[np.ndarray, pd.DataFrame] | None = None, context: dict[str, Any] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The same as records from the rows (n, K) of a table as `sum_by_speaker` takes it: means over its trainings, `seeds` of
    them, and `seed_std` between them. minus: another model's values and table, whose mean is taken off; metrics are then
    <metric>_difference. All draw the same speakers; one who is missing somewhere adds 0 there. context: see `make_records`."""
    tables, other = sum_by_speaker(values, table), sum_by_speaker(*minus) if minus else []
    voices, own = sorted(set().union(*(one.index for one in tables + other))), len(tables)
    sums = np.stack([one.reindex(voices, fill_value=0) for one in tables + other], axis=1)  # (S, trainings, K)

    def means(sums: np.ndarray) -> dict[str, np.ndarray]:
        each = statistic(sums)  # {metric: (draws, trainings)}
        mean = {name: value[:, :own].mean(axis=1) for name, value in each.items()}
        if minus is None:
            return mean
        return {f"{name}_difference": value - each[name][:, own:].mean(axis=1) for name, value in mean.items()}

    spread = [np.std(value[0, :own]) for value in statistic(sums.sum(axis=0, keepdims=True)).values()]
    records = make_records(bootstrap_sums(sums, means, draws, seed), len(values) // own, len(voices), context)
    return records.assign(seeds=own, seed_std=spread)


def confusion_counts(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion counts (C, C): rows are the truth, columns the prediction, both in the classes' fixed order."""
    cells = np.asarray(targets, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def confusion_metrics(counts: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """Metrics from confusion counts (..., C, C); each value has the leading shape: accuracy; uar (mean recall of the classes that
    occur); macro_f1 and weighted_f1 (over the classes that occur or are predicted, as scikit-learn does); f1_<class> and
    recall_<class> (NaN where it does not occur); mace, the mean absolute class error, for three and more ordered classes."""
    counts = np.asarray(counts, np.float64)
    support, guessed, total = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    right = np.diagonal(counts, axis1=-2, axis2=-1)  # (..., C), as support and guessed
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = right / support, 2 * right / (support + guessed)
        f1_or_zero = np.nan_to_num(f1)
        metrics = {
            "accuracy": right.sum(axis=-1) / total,
            "uar": np.nan_to_num(recall).sum(axis=-1) / (support > 0).sum(axis=-1),
            "macro_f1": f1_or_zero.sum(axis=-1) / (support + guessed > 0).sum(axis=-1),
            "weighted_f1": (f1_or_zero * support).sum(axis=-1) / total,
        }
        f1 = np.where(support > 0, f1, np.nan)
        metrics |= {f"f1_{name}": f1[..., k] for k, name in enumerate(classes)}
        metrics |= {f"recall_{name}": recall[..., k] for k, name in enumerate(classes)}
        if len(classes) > 2:
            steps = np.abs(np.subtract.outer(np.arange(len(classes)), np.arange(len(classes))))
            metrics["mace"] = (counts * steps).sum(axis=(-2, -1)) / total
    return metrics


def _confusion_statistic(classes: list[str]) -> Statistic:
    """From cell sums to metrics; a draw that lost a class of the whole sample has no UAR and no macro-F1."""

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        counts = sums.reshape(*sums.shape[:-1], len(classes), len(classes))
        metrics = confusion_metrics(counts, classes)
        occurring = (counts.sum(axis=-1) > 0).sum(axis=-1)
        for name in ("uar", "macro_f1"):
            metrics[name] = np.where(occurring == occurring.max(axis=0), metrics[name], np.nan)
        return metrics

    return statistic


def _cells_of(table: pd.DataFrame, classes: list[str], answers: np.ndarray | None = None) -> np.ndarray:
    """Of each row its cell of the confusion counts: (n, C * C), of one 1 each."""
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy()
    if not len(table) or not np.isfinite(probabilities).all():
        raise ValueError("nothing to score: no rows, or a probability that is no number")
    answers = probabilities.argmax(axis=1) if answers is None else np.asarray(answers)
    return np.eye(len(classes) ** 2)[table["target"].to_numpy(np.int64) * len(classes) + answers]


def make_records(scores: dict[str, tuple], n: int, speakers: int, context: dict | None = None) -> pd.DataFrame:
    """Tidy records from {metric: (value, low, high)}; a context key that is not given stays ""."""
    fixed = dict.fromkeys(RECORD[:6], "") | {"subset": "all"} | (context or {}) | {"n": n, "speakers": speakers}
    table = pd.DataFrame(scores, ["value", "low", "high"]).T.rename_axis("metric").reset_index()
    return table.assign(**fixed)[list(dict.fromkeys([*RECORD, *fixed]))]


def score_answers(
    table: pd.DataFrame, classes: list[str], answers: np.ndarray | None = None, minus: pd.DataFrame | None = None, **options: Any
) -> pd.DataFrame:  # fmt: skip
    """Records of all class metrics of one model's answers, as `bootstrap_trainings` gives them. table: `target, speaker_id,
    p_<class>` and, for more than one training, `seed`; folds are pooled. answers: (n,) class numbers, None = the most probable.
    minus: another such table, whose scores are taken off; None = none. options: as of `bootstrap_trainings`."""
    other = None if minus is None else (_cells_of(minus, classes), minus)
    cells = _cells_of(table, classes, answers)
    return bootstrap_trainings(cells, table, _confusion_statistic(classes), minus=other, **options)


def aggregate_predictions(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Average windows' probabilities, or `predicted_years`, up to "clip" or "speaker" ("window" changes nothing), each training
    and part by itself, and a speaker at two ages or targets once for each; `windows` tells how many."""
    if level == "window":
        return predictions.assign(windows=1)
    keys = ["task", "model", "protocol", "seed", "split", "epoch", "target", "speaker_id", "fold", "years"]
    keys = [name for name in keys if name in predictions] + ["clip_id"] * (level == "clip")
    grouped = predictions.groupby(keys, sort=False)
    columns = [name for name in predictions if name.startswith(("p_", "predicted_"))]
    return grouped[columns].mean().assign(windows=grouped.size()).reset_index()


def score_levels(
    rows: pd.DataFrame, classes: list[str] | None, minus: pd.DataFrame | None = None, *, draws: int, seed: int, **context: str
) -> pd.DataFrame:  # fmt: skip
    """`score_answers` of predictions at window, clip and speaker level, or `score_years` where there are no classes."""
    records = []
    for level in LEVELS:
        table, less = (None if one is None else aggregate_predictions(one, level) for one in (rows, minus))
        options = {"minus": less, "draws": draws, "seed": seed, "context": context | {"level": level}}
        records.append(score_answers(table, classes, **options) if classes else score_years(table, **options))
    return pd.concat(records, ignore_index=True)


def score_years(table: pd.DataFrame, minus: pd.DataFrame | None = None, **options: Any) -> pd.DataFrame:
    """Records of mae_years, bias_years (predicted minus true) and ccc (Lin's concordance; 0 for a constant) of a table of `years,
    predicted_years, speaker_id` and, for more than one training, `seed`. minus, options: as of `score_answers`."""
    other = None if minus is None else (_errors_of(minus), minus)
    return bootstrap_trainings(_errors_of(table), table, _years_statistic, minus=other, **options)


def _errors_of(table: pd.DataFrame) -> np.ndarray:
    """What `_years_statistic` reads, (n, 8)."""
    years, predicted = table[["years", "predicted_years"]].to_numpy(np.float64).T
    if not len(years) or not (np.isfinite(years) & np.isfinite(predicted)).all():
        raise ValueError("ages to score must be finite and at least one; leave out windows of unknown age")
    x, y = years - years.mean(), predicted - years.mean()  # near 0, so that differences of squares stay exact
    return np.stack([np.ones(len(x)), np.abs(y - x), y - x, x, y, x * x, y * y, x * y], axis=1)


def _years_statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
    n, absolute, bias, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    covariance, spread = xy / n - x * y / n**2, xx / n - (x / n) ** 2 + yy / n - (y / n) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        ccc = 2 * covariance / (spread + (x / n - y / n) ** 2)
    return {"mae_years": absolute / n, "bias_years": bias / n, "ccc": ccc}
