"""Plots of scores: confusion matrices, models beside baselines, slices, the leak, and whether a probability can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib.results import is_baseline, metric_name, model_name
from lib.style import INK, MUTED, colours_for, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_confusion(
    counts: np.ndarray,
    classes: Sequence[str],
    ax: Axes | None = None,
    title: str = "Confusion matrix",
    unit: str = "clips",
) -> Axes:
    """Draw a confusion matrix: each cell holds its count and its share of the row; colour is the share.

    `counts`: [C, C], rows are the truth, columns the prediction, both in the order of `classes`.
    """
    import seaborn

    counts = np.asarray(counts)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"confusion matrix of shape {counts.shape} does not fit the {len(classes)} classes {list(classes)}"
        )
    size = 2.4 + 0.75 * len(classes)
    ax = new_axes(ax, size, size * 0.86)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[f"{count:,}\n{100 * share:.1f} %" for count, share in zip(*rows)] for rows in zip(counts, shares)]
    totals = [f"{name}\n({total:,})" for name, total in zip(classes, counts.sum(axis=1))]
    seaborn.heatmap(
        shares, vmin=0, vmax=1, cmap="Blues", annot=np.array(texts), fmt="", annot_kws={"fontsize": 9.5}, cbar=False, ax=ax,
        xticklabels=classes, yticklabels=totals, linewidths=1,
    )  # fmt: skip
    ax.tick_params(length=0, rotation=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="told as", ylabel=f"truth (number of {unit})", title=title)
    return ax


def _draw_errors(ax: Axes, places: np.ndarray, rows: pd.DataFrame, vertical: bool, colour: str = INK) -> None:
    """Interval lines from `low` to `high`; a row without an interval gets none."""
    if not {"low", "high"} <= set(rows.columns):
        return
    draw = ax.vlines if vertical else ax.hlines
    draw(places, rows["low"].astype(float), rows["high"].astype(float), color=colour, linewidth=1.4)


def plot_intervals(scores: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw models beside baselines, each with its 95 % interval, best on top.

    `scores`: tidy score records of one task and one metric; a model that the project knows as a baseline is grey.
    """
    rows = scores.sort_values("value").reset_index(drop=True)
    ax = new_axes(ax, height=1.1 + 0.36 * len(rows))
    places = np.arange(len(rows))
    colours = ["#8A8A8A" if is_baseline(model) else "#0072B2" for model in rows["model"]]
    _draw_errors(ax, places, rows, vertical=False, colour=colours)
    ax.scatter(rows["value"], places, color=colours, s=34, zorder=3)
    for place, value in zip(places, rows["value"]):
        ax.annotate(f"{value:.3f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
    ax.set_yticks(places, [model_name(model) for model in rows["model"]])
    ax.set_ylim(-0.6, len(rows) - 0.3)
    ax.grid(axis="x")
    metric = metric_name(rows["metric"].iloc[0]) if "metric" in rows and len(rows) else "value"
    ax.set(xlabel=f"{metric}, 95 % interval over speakers", ylabel="model", title=title or "Models beside baselines")
    return ax


def plot_slices(
    slices: pd.DataFrame, overall: float | None = None, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Forest plot of one metric by subset, with intervals and sizes; the worst subset is marked.

    `slices`: tidy score records of one task, model and metric, one row a subset, without a value where a subset is too
    small to score; `overall`: the value for all.
    """
    rows = slices.iloc[::-1].reset_index(drop=True)
    scored = rows["value"].notna().any()
    ax = new_axes(ax, height=1.2 + 0.27 * len(rows))
    places, worst = np.arange(len(rows)), int(rows["value"].idxmin()) if scored else -1
    colours = ["#D55E00" if nth == worst else "#0072B2" for nth in places]
    _draw_errors(ax, places, rows, vertical=False, colour=colours)
    ax.scatter(rows["value"], places, color=colours, s=26, zorder=3)
    if overall is not None:
        ax.axvline(overall, color=MUTED, linewidth=1, linestyle=":")
        ax.annotate(f"all: {overall:.3f}", (overall, 1), (3, 2), xycoords=("data", "axes fraction"),
                    textcoords="offset points", fontsize=8.5, color=MUTED)  # fmt: skip
    sizes = [_size_text(row) for row in rows.to_dict("records")]
    for place, size in zip(places, sizes):
        ax.annotate(size, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=MUTED)
    names = [f"{name} (worst)" if nth == worst else str(name) for nth, name in enumerate(rows["subset"])]
    ax.set_yticks(places, names)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(axis="x")
    metric = metric_name(rows["metric"].iloc[0]) if "metric" in rows else "value"
    ax.set(
        xlabel=f"{metric}, 95 % interval over speakers", ylabel="subset", title=title or "Where it works and where not"
    )
    return ax


def _size_text(row: Mapping) -> str:
    speakers = f", {int(row['speakers']):,} speakers" if pd.notna(row.get("speakers")) else ""
    short = ": too few" if pd.isna(row["value"]) else ""
    return f"n = {int(row['n']):,}{speakers}{short}" if pd.notna(row.get("n")) else ""


# ---------------------------------------------------------------- can its probability be believed


def bin_confidence(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Mean confidence, accuracy and size of each of `bins` equal confidence ranges; empty ones are left out."""
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": correct})
    return table.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), n=("accuracy", "size")
    ).reset_index()  # fmt: skip


def plot_calibration(
    models: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bins: int = 10,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the reliability of several models in one picture, such as before and after temperature scaling.

    `models`: name to (confidence [n], correct [n]); a dot's area follows the number of cases behind it.
    """
    ax = new_axes(ax, 4.8, 4.2)
    colours = colours_for(models)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="exactly as stated")
    for name, (confidence, correct) in models.items():
        table = bin_confidence(confidence, correct, bins)
        gap = float((table["n"] * (table["confidence"] - table["accuracy"]).abs()).sum() / max(table["n"].sum(), 1))
        ax.plot(table["confidence"], table["accuracy"], color=colours[name], label=f"{name} (ECE {gap:.3f})")
        area = 18 + 160 * table["n"] / max(table["n"].max(), 1)
        ax.scatter(table["confidence"], table["accuracy"], s=area, color=colours[name], alpha=0.75, linewidths=0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="stated probability", ylabel="share that was right")
    ax.set_title(title or "Stated probability against truth")
    ax.legend(loc="lower right" if len(models) < 3 else "upper left", fontsize=8.5)
    return ax


def plot_precision_recall(
    targets: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw precision against recall for every class, with average precision and each class's share as a floor.

    `targets`: [n] class indices; `probabilities`: [n, C].
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    ax = new_axes(ax, 4.8, 4.2)
    targets, colours = np.asarray(targets), colours_for(classes)
    for nth, name in enumerate(classes):
        truth = targets == nth
        if not truth.any():
            ax.plot([], [], color=colours[name], label=f"{name} (none in this set)")
            continue
        precision, recall, _ = precision_recall_curve(truth, probabilities[:, nth])
        average = average_precision_score(truth, probabilities[:, nth])
        ax.plot(recall, precision, color=colours[name], label=f"{name} (average {average:.3f})", drawstyle="steps-post")
        ax.axhline(truth.mean(), color=colours[name], linewidth=0.9, linestyle=":")
    ax.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
    ax.set_title(title or "Precision and recall (dotted: a guess)")
    ax.legend(loc="lower left")
    return ax
