"""Scores with intervals: every number is a function of sums that speakers contribute, so one bootstrap serves all.

A tidy record is {task, model, protocol, split, level, subset, metric, value, low, high, n, speakers}; `low` and `high`
are the 95 % interval from a bootstrap over speakers, never over windows: windows of one voice are not independent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.bootstrap import DRAWS, Statistic, bootstrap_speakers, bootstrap_sums

LEVELS = ["window", "clip", "speaker"]
RECORD = ["task", "model", "protocol", "split", "level", "subset", "metric", "value", "low", "high", "n", "speakers"]


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
# Scores of answers, with intervals


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
    answers = probabilities.argmax(axis=1)
    return score_answers(targets, answers, classes, speakers, draws=draws, seed=seed, context=context, metrics=metrics)


def score_answers(
    targets: np.ndarray,
    answers: np.ndarray,
    classes: list[str],
    speakers: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
    metrics: list[str] | None = None,
) -> pd.DataFrame:
    """The same records for answers [n] (class numbers) that are not simply the most probable class."""
    cells = _one_hot_cells(targets, answers, len(classes))
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
    fold: int = 0,
) -> pd.DataFrame:
    """A predictions table (`lib.tables.PREDICTIONS`) for `windows`, whose rows the other arrays follow.

    Parameters
    ----------
    windows: `window_id, clip_id, speaker_id`. probabilities: [n, C] in the order of `classes`.
    split: one part for all rows, or [n]. epoch: of the checkpoint; 0 for a baseline.
    fold: of a cross-validation; 0 for a fixed split.
    """
    targets, probabilities = _checked(targets, probabilities, classes)
    table = windows[["window_id", "clip_id", "speaker_id"]].reset_index(drop=True)
    table = table.assign(
        task=task, model=model, protocol=protocol, seed=seed, split=split, target=targets, epoch=epoch, fold=fold
    )
    for k, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, k].astype(np.float64)
    return table


def aggregate_predictions(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Average the probabilities of windows up to "clip" or "speaker" ("window" changes nothing).

    Rows are kept apart by task, model, protocol, seed, split, fold, epoch and target, so a speaker recorded at two ages counts
    once for each. `windows` tells how many were averaged.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; choose one of {LEVELS}")
    if level == "window":
        return predictions.assign(windows=1)
    keys = ["task", "model", "protocol", "seed", "split", "epoch", "target", "speaker_id"]
    keys = keys + ["fold"] * ("fold" in predictions) + ["clip_id"] * (level == "clip")
    columns = probability_columns(predictions)
    grouped = predictions.groupby(keys, sort=False)
    return grouped[columns].mean().assign(windows=grouped.size()).reset_index()


def score_predictions(
    predictions: pd.DataFrame, classes: list[str], *, draws: int = DRAWS, seed: int = 0, levels: list[str] | None = None
) -> pd.DataFrame:
    """Score a predictions table at window, clip and speaker level, each task, model, protocol and split by itself.

    Several training seeds of one model give one record: the mean over seeds, its interval over speakers, and in two
    further columns `seeds` (how many) and `seed_std` (standard deviation of the value between them, 0 for one).
    """
    records = []
    names = ["task", "model", "protocol", "split"]
    for key, rows in predictions.groupby(names, sort=False):
        for level in levels or LEVELS:
            cells = _cells_by_seed(aggregate_predictions(rows, level), classes)
            context = dict(zip(names, key)) | {"level": level}
            records.append(_score_cells(cells, classes, context, draws, seed))
    return pd.concat(records, ignore_index=True)


def score_trainings(
    table: pd.DataFrame,
    classes: list[str],
    answers: np.ndarray | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
    metrics: list[str] | None = None,
) -> pd.DataFrame:
    """Records of one model's answers, averaged over its training seeds as in `score_predictions`.

    Parameters
    ----------
    table: `target, speaker_id, p_<class>` and, for more than one training, `seed`; folds are pooled.
    answers: [n] class numbers that are not simply the most probable; None = the most probable.
    metrics: None = all of `confusion_metrics`.
    """
    found = _score_cells(_cells_by_seed(table, classes, answers), classes, context or {}, draws, seed)
    return found if metrics is None else found[found["metric"].isin(metrics)].reset_index(drop=True)


def compare_protocols(
    predictions: pd.DataFrame, classes: list[str], protocol: str, *, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """The leak: every model's scores on random windows minus those of the same model under `protocol`, test part.

    Records at the three levels with the columns `claimed` and `shown`; equal speakers are drawn for both, and seeds are
    averaged. Empty when only one of the two protocols was run.
    """
    records = []
    here = predictions[(predictions["split"] == "test") & predictions["protocol"].isin(["paper", protocol])]
    for (task, model), rows in here.groupby(["task", "model"], sort=False):
        if protocol == "paper" or rows["protocol"].nunique() < 2:
            continue
        for level in LEVELS:
            table = aggregate_predictions(rows, level)
            cells = [_cells_by_seed(table[table["protocol"] == name], classes) for name in ("paper", protocol)]
            context = {"task": task, "model": model, "protocol": protocol, "split": "test", "level": level}
            found = _score_cells(cells[0], classes, context, draws, seed, minus=cells[1])
            apart = [_score_cells(one, classes, context, 0, seed)["value"].to_numpy() for one in cells]
            names = found["metric"].str.removesuffix("_difference")
            records.append(found.assign(metric=names, claimed=apart[0], shown=apart[1]).drop(columns="seed_std"))
    return pd.concat(records, ignore_index=True) if records else pd.DataFrame(columns=[*RECORD, "claimed", "shown"])


def compare_models(
    predictions: pd.DataFrame,
    classes: list[str],
    model: str,
    other: str,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    levels: list[str] | None = None,
) -> pd.DataFrame:
    """Paired differences `model` minus `other` of every metric: records with a further column `against`.

    Both are averaged over their seeds. ValueError when they did not answer for the same windows.
    """
    records = []
    names = ["task", "protocol", "split"]
    for key, rows in predictions.groupby(names, sort=False):
        pair = [rows[rows["model"] == name] for name in (model, other)]
        if set(pair[0]["window_id"]) != set(pair[1]["window_id"]):
            raise ValueError(f"{model!r} and {other!r} answered for different windows of {key}; predict both again")
        for level in levels or LEVELS:
            cells = [_cells_by_seed(aggregate_predictions(table, level), classes) for table in pair]
            context = dict(zip(names, key)) | {"model": model, "against": other, "level": level}
            records.append(_score_cells(cells[0], classes, context, draws, seed, minus=cells[1]))
    return pd.concat(records, ignore_index=True)


def _cells_by_seed(table: pd.DataFrame, classes: list[str], answers: np.ndarray | None = None) -> list[pd.DataFrame]:
    """For each training seed the confusion cells by speaker: a frame [S, C * C] indexed by speaker."""
    columns = [f"p_{name}" for name in classes]
    targets, probabilities = _checked(table["target"].to_numpy(), table[columns].to_numpy(), classes)
    told = probabilities.argmax(axis=1) if answers is None else np.asarray(answers)
    cells = pd.DataFrame(_one_hot_cells(targets, told, len(classes)))
    seeds = table["seed"].to_numpy() if "seed" in table else np.zeros(len(table), np.int64)
    voices = table["speaker_id"].to_numpy()
    return [cells[seeds == one].groupby(voices[seeds == one]).sum() for one in np.unique(seeds)]


def _score_cells(
    cells: list[pd.DataFrame],
    classes: list[str],
    context: dict[str, Any],
    draws: int,
    seed: int,
    minus: list[pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Mean over seeds of every metric (less that of `minus`), the same speakers drawn for all of them."""
    tables = cells + (minus or [])
    voices = sorted(set().union(*(table.index for table in tables)))
    sums = np.concatenate([table.reindex(voices, fill_value=0).to_numpy(np.float64) for table in tables], axis=1)
    single, size = _confusion_statistic(classes), len(classes) ** 2

    def each(sums: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [single(sums[..., k * size : (k + 1) * size]) for k in range(len(tables))]

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        found = each(sums)
        mean = {name: np.mean([metrics[name] for metrics in found[: len(cells)]], axis=0) for name in found[0]}
        if minus is None:
            return mean
        less = {name: np.mean([metrics[name] for metrics in found[len(cells) :]], axis=0) for name in found[0]}
        return {f"{name}_difference": mean[name] - less[name] for name in mean}

    rows = round(sum(table.to_numpy().sum() for table in cells) / len(cells))
    records = make_records(bootstrap_sums(sums, statistic, draws, seed), np.asarray(voices), context).assign(n=rows)
    apart = each(sums.sum(axis=0))[: len(cells)]
    spread = [np.std([metrics[name.removesuffix("_difference")] for metrics in apart]) for name in records["metric"]]
    return records.assign(seeds=len(cells), seed_std=spread)


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


# ----------------------------------------------------------------------------------------------------------------------
# Ages in years


def make_year_bins(years: np.ndarray, bins: int) -> tuple[np.ndarray, list[float], list[str]]:
    """Cut ages of the training part into classes of about equal size, so that a classifier can be trained on years.

    Returns the inner bounds (class k holds bounds[k-1] <= age < bounds[k]), each class's mean age in years, and names
    such as "12 to 15". The expected age over the classes (`expected_years`) is the answer in years: "deep expectation",
    Rothe et al. 2018, doi 10.1007/s11263-016-0940-3.
    """
    years = np.asarray(years, np.float64)
    bounds = np.unique(np.ceil(np.quantile(years, np.linspace(0, 1, bins + 1)[1:-1])))
    bounds = bounds[(bounds > years.min()) & (bounds <= years.max())]
    places = np.searchsorted(bounds, years, side="right")
    kept = [years[places == k] for k in range(len(bounds) + 1)]
    if len(kept) < 2 or not all(map(len, kept)):
        raise ValueError(f"{len(np.unique(years))} different ages cannot be cut into {bins} classes; ask for fewer")
    names = [
        f"{part.min():.0f} to {part.max():.0f}" if part.min() < part.max() else f"{part.min():.0f}" for part in kept
    ]
    return bounds, [float(part.mean()) for part in kept], names


def expected_years(probabilities: np.ndarray, centres: list[float]) -> np.ndarray:
    """Expected age [n] in years from probabilities [n, C] and the classes' mean ages."""
    return np.asarray(probabilities, np.float64) @ np.asarray(centres, np.float64)


def score_years(
    years: np.ndarray,
    predicted: np.ndarray,
    speakers: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Records of mae_years, bias_years (predicted minus true) and ccc (Lin's concordance; 0 for a constant)."""
    years, predicted = np.asarray(years, np.float64), np.asarray(predicted, np.float64)
    if not len(years) or not (np.isfinite(years) & np.isfinite(predicted)).all():
        raise ValueError("ages to score must be finite and at least one; leave out windows of unknown age")
    x, y = years - years.mean(), predicted - years.mean()  # near 0, so that differences of squares stay exact
    values = np.stack([np.ones(len(x)), np.abs(y - x), y - x, x, y, x * x, y * y, x * y], axis=1)
    found = bootstrap_speakers(values, speakers, _years_statistic, draws, seed)
    return make_records(found, speakers, context)


def _years_statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
    n, absolute, bias, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    covariance, spread = xy / n - x * y / n**2, xx / n - (x / n) ** 2 + yy / n - (y / n) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        ccc = 2 * covariance / (spread + (x / n - y / n) ** 2)
    return {"mae_years": absolute / n, "bias_years": bias / n, "ccc": ccc}
