"""Every plot of the project, as notebooks import them: data in, axes or a figure out; nothing here is saved.

A function that draws one panel takes `ax=None` and returns the axes; one that needs several returns the figure.
Classes come in the order that the caller gives, and keep their colours everywhere. Here: corpora, embeddings, training;
plots of sound and of scores live in modules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lib.results import model_name
from lib.score_figures import (
    bin_confidence,
    plot_calibration,
    plot_confusion,
    plot_intervals,
    plot_precision_recall,
    plot_slices,
)
from lib.sound_figures import plot_frames, plot_layers, plot_timeline, plot_waveforms
from lib.style import MUTED, colours_for, new_axes, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "bin_confidence",
    "plot_calibration",
    "plot_confusion",
    "plot_distribution",
    "plot_frames",
    "plot_intervals",
    "plot_label_counts",
    "plot_layers",
    "plot_ledger",
    "plot_precision_recall",
    "plot_projection",
    "plot_slices",
    "plot_timeline",
    "plot_trainings",
    "plot_waveforms",
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


def plot_trainings(history: pd.DataFrame, task: str, protocol: str) -> tuple[Any, pd.DataFrame]:
    """Loss, accuracy, UAR and every F1 of every network at each epoch; returns (figure, every number of the history).

    Validation whole, training dashed: means over the trainings (folds and seeds) that were still going on, in a band from
    the least to the greatest; a dot is an epoch that was chosen. Of more than four classes, the F1 of each stands in the
    numbers alone. Of more than five trainings of a network the numbers are the means; 04's stage holds them all.
    """
    import matplotlib.pyplot as plt

    rows = history[(history["task"] == task) & (history["protocol"] == protocol)].dropna(axis=1, how="all")
    shown = {
        "loss": "loss (nats)",
        "accuracy": "accuracy",
        "uar": "UAR",
        "macro_f1": "macro F1",
        "weighted_f1": "weighted F1",
    }
    classes = [name.removeprefix("validation_") for name in rows if name.startswith("validation_f1_")]
    shown |= {name: f"F1 of {name[3:]}" for name in classes if len(classes) <= 4}
    lines = -(-len(shown) // 3)
    figure, axes = plt.subplots(lines, 3, figsize=(7.5, 2.1 * lines + 0.4), squeeze=False)
    panels = [(ax, metric, label) for ax, (metric, label) in zip(axes.flat, shown.items())]
    names = list(dict.fromkeys(rows["network"]))
    for name, colour in zip(names, colours_for([f"network {name}" for name in names]).values()):
        of_network = rows[rows["network"] == name]
        dots = of_network[of_network["chosen"]]
        for ax, metric, _ in panels:
            spread = of_network.groupby("epoch")[f"validation_{metric}"].agg(["min", "max"])
            ax.fill_between(spread.index, spread["min"], spread["max"], color=colour, alpha=0.15, linewidth=0)
            for part, style, label in (("train", "--", None), ("validation", "-", model_name(name))):
                if f"{part}_{metric}" not in of_network:
                    continue
                mean = of_network.groupby("epoch")[f"{part}_{metric}"].mean()
                ax.plot(mean.index, mean, style, linewidth=1.6, color=colour, label=label)
            ax.scatter(dots["epoch"], dots[f"validation_{metric}"], color=colour, s=16, zorder=3)
    for ax, _, label in panels:
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(axis="y")
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    handles, told = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, told, loc="outside lower center", ncols=len(told))
    figure.suptitle(f"Training for {task}, protocol {protocol}", x=0.01, ha="left", fontweight="bold", fontsize=11)
    numbers = rows.dropna(axis="columns", how="all").drop(columns=["task", "protocol"])
    first = ["network", "fold", "seed", "epoch", "chosen"]
    trainings = numbers.groupby(["network", "epoch"])
    if trainings.size().max() > 5:
        means = trainings.mean(numeric_only=True).drop(columns=["fold", "seed", "chosen"], errors="ignore")
        return figure, means.assign(trainings=trainings.size()).reset_index()
    return figure, numbers[[*first, *numbers.columns.drop(first)]]
