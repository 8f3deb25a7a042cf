"""Every plot of the project, as notebooks import them: data in, axes or a figure out; nothing here is saved.

A function that draws one panel takes `ax=None` and returns the axes; one that needs several returns the figure.
Classes come in the order that the caller gives, and keep their colours everywhere. Here: corpora, embeddings, training;
plots of sound and of scores live in modules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib.display import show_figure, show_sound, show_table, show_together
from lib.records import metric_name
from lib.score_figures import (
    bin_confidence,
    plot_calibration,
    plot_confusion,
    plot_coverage,
    plot_f1,
    plot_intervals,
    plot_leak,
    plot_precision_recall,
    plot_reliability,
    plot_slices,
)
from lib.sound_figures import plot_frames, plot_layers, plot_spectrogram, plot_timeline, plot_waveforms
from lib.style import INK, MUTED, colours_for, new_axes, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "bin_confidence",
    "plot_calibration",
    "plot_confusion",
    "plot_coverage",
    "plot_distribution",
    "plot_f1",
    "plot_frames",
    "plot_history",
    "plot_intervals",
    "plot_label_counts",
    "plot_layer_scores",
    "plot_layers",
    "plot_leak",
    "plot_ledger",
    "plot_precision_recall",
    "plot_projection",
    "plot_reliability",
    "plot_slices",
    "plot_spectrogram",
    "plot_timeline",
    "plot_waveforms",
    "show_figure",
    "show_sound",
    "show_table",
    "show_together",
    "use_style",
]


def plot_label_counts(
    table: pd.DataFrame,
    label: str,
    classes: Sequence[str] | None = None,
    group: str | None = "corpus",
    ax: Axes | None = None,
    unit: str = "clips",
    title: str | None = None,
) -> Axes:
    """Bars of how many rows have each class of column `label`, split by column `group` (None = one colour).

    `classes` fixes the order; None = as the values sort. Rows without a label are counted as "not known".
    """
    ax = new_axes(ax)
    values = table[label].astype(object).where(table[label].notna(), "not known")
    order = list(classes) if classes is not None else sorted(set(values) - {"not known"}, key=str)
    order += ["not known"] * bool((values == "not known").any() and "not known" not in order)
    groups = sorted(table[group].unique()) if group else ["all"]
    colours, width = colours_for(groups), 0.8 / len(groups)
    for nth, name in enumerate(groups):
        counts = values[table[group] == name].value_counts() if group else values.value_counts()
        heights = [int(counts.get(value, 0)) for value in order]
        bars = ax.bar(np.arange(len(order)) + (nth - (len(groups) - 1) / 2) * width, heights, width * 0.94, label=name)
        for bar in bars:
            bar.set_color(colours[name])
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8.5, color=MUTED)
    ax.set_xticks(range(len(order)), [str(value) for value in order])
    ax.margins(y=0.12)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel=label.replace("_", " "), ylabel=f"number of {unit}")
    ax.set_title(title or f"How many {unit} of each {label.replace('_', ' ')}")
    if len(groups) > 1:
        ax.legend(title=group)
    return ax


def plot_ledger(ledger: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Bars of how many items were dropped, by reason and corpus; `ledger` is the ledger table."""
    counts = ledger.groupby(["reason", "corpus"]).size().unstack(fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values().index]
    ax = new_axes(ax, height=1.3 + 0.34 * max(len(counts), 1))
    colours, left = colours_for(counts.columns), np.zeros(len(counts))
    for corpus in counts.columns:
        ax.barh(counts.index, counts[corpus], left=left, color=colours[corpus], label=corpus, height=0.68)
        left += counts[corpus].to_numpy()
    for row, total in enumerate(left):
        ax.text(total, row, f" {int(total):,}", va="center", fontsize=8.5, color=MUTED)
    ax.margins(x=0.12)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="number of items", ylabel="reason", title="What was dropped, and why")
    if len(counts.columns) > 1:
        ax.legend(title="corpus", loc="lower right")
    if counts.empty:
        ax.text(0.5, 0.5, "nothing was dropped", ha="center", va="center", transform=ax.transAxes, color=MUTED)
        ax.set(xticks=[], yticks=[])
    return ax


def plot_distribution(
    values: Sequence[float], label: str, title: str, group: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Histogram of `values` (one a window), its axis named `label`; with `group`, one outline a group, each summing to 1."""
    ax = new_axes(ax, height=3.0)
    frame = pd.DataFrame({"value": np.asarray(values, dtype=float), "group": "all" if group is None else list(group)})
    frame = frame[np.isfinite(frame["value"])]
    names = sorted(frame["group"].unique())
    edges = np.histogram_bin_edges(frame["value"], bins=30)
    for name, colour in colours_for(names).items():
        rows = frame.loc[frame["group"] == name, "value"]
        weights = np.full(len(rows), 1 / max(len(rows), 1))
        ax.hist(
            rows,
            edges,
            weights=weights,
            histtype="stepfilled",
            alpha=0.35,
            color=colour,
            label=f"{name} ({len(rows):,})",
        )
        ax.hist(rows, edges, weights=weights, histtype="step", color=colour)
    ax.set(xlabel=label, ylabel="share of the windows", title=title)
    if group is not None:
        ax.legend()
    return ax


def plot_projection(
    points: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str = "Embeddings on a plane",
    method: str = "t-SNE",
) -> Axes:
    """Scatter points [n, 2] of a projection, coloured and shaped by label (a class, a corpus, a split)."""
    ax = new_axes(ax, 4.6, 4.2)
    points, labels = np.asarray(points), np.asarray(labels, dtype=object)
    order = list(classes) if classes is not None else sorted(set(labels), key=str)
    colours = colours_for(order)
    for nth, name in enumerate(order):
        rows = labels == name
        style = {"marker": "osD^vP*X"[nth % 8], "s": 11, "alpha": 0.65, "linewidths": 0}
        ax.scatter(points[rows, 0], points[rows, 1], color=colours[name], label=f"{name} ({rows.sum():,})", **style)
    ax.set(xlabel=f"{method} axis 1 (no unit)", ylabel=f"{method} axis 2 (no unit)", title=title, xticks=[], yticks=[])
    ax.legend(loc="best", markerscale=1.8)
    return ax


def plot_layer_scores(scores: pd.DataFrame, ax: Axes | None = None, metric: str = "uar") -> Axes:
    """Draw how well each layer's average tells each task, with intervals.

    `scores`: columns task, layer (0 = the convolutional front end), value and, where known, low and high.
    """
    ax = new_axes(ax)
    colours = colours_for(scores["task"])
    for task, rows in scores.groupby("task", sort=False):
        rows = rows.sort_values("layer")
        ax.plot(rows["layer"], rows["value"], marker="o", markersize=4.5, color=colours[task], label=task)
        if {"low", "high"} <= set(rows.columns):
            ax.fill_between(rows["layer"], rows["low"], rows["high"], color=colours[task], alpha=0.15, linewidth=0)
        best = rows.loc[rows["value"].idxmax()]
        ax.annotate(f"layer {int(best['layer'])}", (best["layer"], best["value"]), (0, 9), textcoords="offset points",
                    ha="center", fontsize=8.5, color=colours[task])  # fmt: skip
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.margins(y=0.15)
    ax.grid(axis="y")
    ax.set(xlabel="layer (0 = before the first transformer layer)", ylabel=metric_name(metric))
    ax.set_title("What each layer knows")
    ax.legend(title="task")
    return ax


def plot_history(history: pd.DataFrame, chosen: int | None = None, title: str = "Training") -> Figure:
    """Draw losses (left) and validation scores (right) per epoch, the chosen epoch marked.

    `history`: column epoch; columns with "loss" in their name go left, those named after a metric (accuracy, uar,
    f1) go right; others are left out. `chosen`: an epoch, None = no mark.
    """
    import matplotlib.pyplot as plt

    columns = [name for name in history.columns if pd.api.types.is_numeric_dtype(history[name])]
    losses = [name for name in columns if "loss" in name]
    metrics = [name for name in columns if "loss" not in name and any(k in name for k in ("f1", "uar", "accuracy"))]
    fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.2))
    for ax, names, label in ((axes[0], losses, "loss (nats)"), (axes[1], metrics, "score (1 = all right)")):
        for nth, name in enumerate(names):
            style = "-" if "train" not in name else "--"
            ax.plot(history["epoch"], history[name], style, label=name.replace("_", " "), color=f"C{nth}")
        if chosen is not None:
            ax.axvline(chosen, color=INK, linewidth=1, linestyle=":", label=f"chosen: epoch {chosen}")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(axis="y")
        ax.set(xlabel="epoch", ylabel=label)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    axes[1].set_ylim(0, 1.02)
    fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return fig
