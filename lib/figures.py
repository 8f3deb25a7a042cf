"""Every plot of the project: data in, axes or a figure out; nothing here is saved or shown.

A function that draws one panel takes `ax=None` and returns the axes; one that needs several returns the figure.
Classes come in the order that the caller gives, and keep their colours everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib.display import INK, MUTED, RULE, colours_for, show_figure, show_sound, show_table, show_together, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "show_figure",
    "show_sound",
    "show_table",
    "show_together",
    "use_style",
]  # so that a notebook needs this module only
FRAME_S = 0.02  # wav2vec 2.0 gives one frame each 20 ms (Baevski et al. 2020, section 2)
METRIC_NAMES = {
    "accuracy": "accuracy",
    "uar": "UAR (mean recall of the classes)",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mae_years": "mean absolute error (years)",
    "mace": "mean absolute class error (classes)",
    "ece": "expected calibration error",
    "brier": "Brier score",
}


def _axes(ax: Axes | None, width: float = 7.5, height: float = 3.6) -> Axes:
    import matplotlib.pyplot as plt

    return ax if ax is not None else plt.subplots(figsize=(width, height))[1]


def metric_name(metric: str) -> str:
    """A metric's name as it stands on an axis: "f1_teen" becomes "F1 of teen"."""
    return METRIC_NAMES.get(metric) or ("F1 of " + metric[3:] if metric.startswith("f1_") else metric)


# ---------------------------------------------------------------- what the corpora hold


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
    ax = _axes(ax)
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
    ax = _axes(ax, height=1.3 + 0.34 * max(len(counts), 1))
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


# ---------------------------------------------------------------- windows and sound


def plot_waveforms(
    waveforms: Sequence[np.ndarray],
    rate_hz: int,
    speech: Sequence[np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Draw windows one under the other, each with the detector's speech probability over it.

    `waveforms`: arrays [samples]; `speech`: one array [steps] of probabilities in [0, 1] a window, None = not drawn.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(waveforms), 1, figsize=(7.5, 0.5 + 1.15 * len(waveforms)), sharex=True, squeeze=False)
    for nth, (ax, waveform) in enumerate(zip(axes[:, 0], waveforms)):
        _draw_waveform(ax, waveform, rate_hz)
        if speech is not None:
            _draw_speech(ax, speech[nth], len(waveform) / rate_hz)
        if titles is not None:
            ax.set_title(titles[nth], fontsize=9, fontweight="normal", pad=4)
    fig.supylabel("amplitude (full scale = 1)", fontsize=9, color=MUTED)
    axes[-1, 0].set_xlabel("time in the window (s)")
    end = " and the probability of speech (line, 0 to 1)" if speech is not None else ""
    fig.suptitle(f"Waveform of each window{end}", x=0.01, ha="left", fontweight="bold", fontsize=11)
    return fig


def _draw_waveform(ax: Axes, waveform: np.ndarray, rate_hz: int, pieces: int = 540) -> None:
    """Fill between the lowest and highest sample of each pixel-wide piece, so that no peak is lost."""
    waveform = np.asarray(waveform, dtype=np.float32)
    edges = np.linspace(0, len(waveform), min(pieces, len(waveform)) + 1).astype(int)[:-1]
    times_s = edges / rate_hz
    low, high = np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)
    ax.fill_between(times_s, low, high, color="#7C8794", linewidth=0, step="post", antialiased=False)
    peak = max(float(np.abs(waveform).max()), 1e-3)
    ax.set(ylim=(-1.1 * peak, 1.1 * peak), xlim=(0, len(waveform) / rate_hz))


def _draw_speech(ax: Axes, probability: np.ndarray, duration_s: float) -> None:
    """The detector's probability over time, on an axis of its own at the right."""
    times_s = (np.arange(len(probability)) + 0.5) * duration_s / len(probability)
    twin = ax.twinx()
    twin.set_label("<speech probability>")
    twin.plot(times_s, probability, color="#D55E00", linewidth=1.4)
    twin.set(ylim=(-0.06, 1.06), yticks=[0, 1])
    twin.tick_params(axis="y", colors="#B84F00", length=0)


def plot_spectrogram(waveform: np.ndarray, rate_hz: int, ax: Axes | None = None, title: str = "Spectrogram") -> Axes:
    """Draw the level in dB by time and frequency (25 ms windows, 12.5 ms apart), 70 dB deep."""
    from matplotlib import colormaps
    from scipy.signal import spectrogram

    ax = _axes(ax, height=2.8)
    length = min(int(0.025 * rate_hz), len(waveform))
    frequencies_hz, _, power = spectrogram(waveform, rate_hz, nperseg=length, noverlap=length // 2)
    level_db = 10 * np.log10(power + 1e-10)
    extent = (0, len(waveform) / rate_hz, 0, frequencies_hz[-1] / 1000)
    top, shades = float(level_db.max()), colormaps["magma"].resampled(24)  # 24 shades keep the file small
    picture = ax.imshow(level_db, aspect="auto", origin="lower", extent=extent, vmin=top - 70, vmax=top, cmap=shades)
    ax.figure.colorbar(picture, ax=ax, label="level (dB)", pad=0.015)
    ax.set(xlabel="time (s)", ylabel="frequency (kHz)", title=title)
    return ax


def plot_timeline(
    waveform: np.ndarray,
    rate_hz: int,
    windows: pd.DataFrame,
    classes: Sequence[str],
    speech: Sequence[tuple[float, float]] | None = None,
    title: str = "Probability of each class through the recording",
) -> Figure:
    """Draw the probability of every class per window over time, above the waveform with its speech regions.

    `windows`: columns start_s, duration_s and p_<class>; `speech`: (start_s, end_s) pairs, None = not drawn.
    """
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 3.9), sharex=True, height_ratios=[3, 2])
    colours = colours_for(classes)
    middles_s = windows["start_s"] + windows["duration_s"] / 2
    for name in classes:
        top.plot(middles_s, windows[f"p_{name}"], color=colours[name], marker="o", markersize=4, label=name)
    top.axhline(1 / len(classes), color=MUTED, linewidth=0.8, linestyle=":")
    top.set(ylim=(-0.03, 1.03), ylabel="probability", title=title)
    top.legend(ncols=len(classes), loc="upper right", bbox_to_anchor=(1, 1.16))
    _draw_waveform(bottom, waveform, rate_hz)
    for start_s, end_s in speech or []:
        bottom.axvspan(start_s, end_s, color="#009E73", alpha=0.16, linewidth=0)
    shade = "; speech is shaded" if speech else ""
    bottom.set(xlabel=f"time (s){shade}", ylabel="amplitude")
    return fig


# ---------------------------------------------------------------- embeddings


def plot_frames(
    frames: np.ndarray, ax: Axes | None = None, frame_s: float = FRAME_S, title: str = "One window's embedding"
) -> Axes:
    """Draw an embedding [T, D] as a picture: time to the right, feature upwards, value as colour (2nd to 98th %).

    Of more than 64 features every second, third ... is drawn, and the axis says so: a page cannot show more lines.
    """
    from matplotlib import colormaps

    ax = _axes(ax, height=2.6)
    frames = np.asarray(frames, dtype=np.float32)
    step, features = -(-frames.shape[1] // 64), frames.shape[1]
    low, high = np.percentile(frames, [2, 98])
    extent = (0, frames.shape[0] * frame_s, -0.5, features - 0.5)
    shades = colormaps["cividis"].resampled(20)  # few shades keep the file small
    style = {"aspect": "auto", "origin": "lower", "interpolation": "nearest", "cmap": shades}
    picture = ax.imshow(frames.T[::step], extent=extent, vmin=low, vmax=high, **style)
    ax.figure.colorbar(picture, ax=ax, label="value", pad=0.015)
    ax.set(xlabel="time (s)", ylabel="feature" if step == 1 else f"feature (1 in {step})", title=title)
    return ax


def plot_layers(
    layers: Sequence[np.ndarray], names: Sequence[str] | None = None, frame_s: float = FRAME_S, title: str | None = None
) -> Figure:
    """Draw the features of several layers one under the other, as the paper does for the first three.

    `layers`: arrays [T, D]; `names`: one title each, None = "layer 1" and so on.
    """
    import matplotlib.pyplot as plt

    names = names or [f"layer {nth}" for nth in range(1, len(layers) + 1)]
    fig, axes = plt.subplots(len(layers), 1, figsize=(7.5, 0.7 + 1.55 * len(layers)), sharex=True, squeeze=False)
    for ax, layer, name in zip(axes[:, 0], layers, names):
        plot_frames(layer, ax, frame_s, title="")
        ax.set_title(f"Feature from {name}", fontsize=9.5, fontweight="normal", pad=4)
        ax.set_xlabel("")
    axes[-1, 0].set_xlabel("time (s)")
    title = title or f"What the first {len(layers)} layers make of one window"
    fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return fig


def plot_projection(
    points: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str = "Embeddings on a plane",
    method: str = "t-SNE",
) -> Axes:
    """Scatter points [n, 2] of a projection, coloured and shaped by label (a class, a corpus, a split)."""
    ax = _axes(ax, 4.6, 4.2)
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
    ax = _axes(ax)
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


# ---------------------------------------------------------------- training


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


# ---------------------------------------------------------------- how good, and where not


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
    ax = _axes(ax, size, size * 0.86)
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


def plot_f1(
    scores: pd.DataFrame, classes: Sequence[str], ax: Axes | None = None, title: str = "F1 of each class"
) -> Axes:
    """Bars of F1 per class, one group a class, one bar a model, with intervals.

    `scores`: tidy score records of one task, protocol, split, level and subset.
    """
    ax = _axes(ax)
    models = list(dict.fromkeys(scores["model"]))
    colours, width = colours_for(models), 0.8 / len(models)
    for nth, model in enumerate(models):
        rows = scores[scores["model"] == model].set_index("metric").reindex([f"f1_{name}" for name in classes])
        places = np.arange(len(classes)) + (nth - (len(models) - 1) / 2) * width
        bars = ax.bar(places, rows["value"], width * 0.92, color=colours[model], label=model)
        ax.bar_label(bars, fmt="{:.2f}", label_type="center", fontsize=8.5, color="white")
        _draw_errors(ax, places, rows, vertical=True)
    ax.set_xticks(range(len(classes)), classes)
    ax.set(ylim=(0, 1.02), xlabel="class", ylabel="F1 (1 = all right)", title=title)
    ax.legend(title="model", loc="upper left", bbox_to_anchor=(1, 1))
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
    ax = _axes(ax, height=1.1 + 0.36 * len(rows))
    places = np.arange(len(rows))
    colours = ["#8A8A8A" if is_baseline(model) else "#0072B2" for model in rows["model"]]
    _draw_errors(ax, places, rows, vertical=False, colour=colours)
    ax.scatter(rows["value"], places, color=colours, s=34, zorder=3)
    for place, value in zip(places, rows["value"]):
        ax.annotate(f"{value:.3f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
    ax.set_yticks(places, rows["model"])
    ax.set_ylim(-0.6, len(rows) - 0.3)
    ax.grid(axis="x")
    metric = metric_name(rows["metric"].iloc[0]) if "metric" in rows and len(rows) else "value"
    ax.set(xlabel=f"{metric}, 95 % interval over speakers", ylabel="model", title=title or "Models beside baselines")
    return ax


def is_baseline(model: str) -> bool:
    """True for models that ignore the recording: they show what a guess scores."""
    return model.lower().startswith(("majority", "chance", "stratified", "random", "baseline"))


def plot_slices(
    slices: pd.DataFrame, overall: float | None = None, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Forest plot of one metric by subset, with intervals and sizes; the worst subset is marked.

    `slices`: tidy score records of one task, model and metric, one row a subset, without a value where a subset is too
    small to score; `overall`: the value for all.
    """
    rows = slices.iloc[::-1].reset_index(drop=True)
    scored = rows["value"].notna().any()
    ax = _axes(ax, height=1.2 + 0.27 * len(rows))
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


def plot_leak(scores: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw one metric for each task under both protocols: what a split by window gains over one by speaker.

    `scores`: tidy score records of one model and one metric, protocols "speaker" and "paper"; seeds are averaged.
    """
    wide = scores.pivot_table(index="task", columns="protocol", values="value", sort=False)
    ax = _axes(ax, height=1.5 + 0.62 * len(wide))
    colours, places = colours_for(["speaker", "paper"]), np.arange(len(wide))[::-1]
    names = {"speaker": "speakers never heard in training", "paper": "random windows, as in the paper"}
    ax.hlines(places, wide["speaker"], wide["paper"], color=RULE, linewidth=5, zorder=1)
    for protocol, name in names.items():
        ax.scatter(wide[protocol], places, color=colours[protocol], s=54, zorder=3, label=name)
    for place, speaker, paper in zip(places, wide["speaker"], wide["paper"]):
        text = f"{100 * (paper - speaker):+.1f} points"
        ax.annotate(text, ((speaker + paper) / 2, place), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    ax.set_yticks(places, wide.index)
    ax.margins(x=0.15)
    ax.set_ylim(-0.6, len(wide) - 0.2)
    ax.grid(axis="x")
    metric = metric_name(scores["metric"].iloc[0]) if "metric" in scores else "value"
    ax.set(xlabel=metric, ylabel="task", title=title or "What leakage between train and test buys")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32 if len(wide) > 1 else -0.42), ncols=2)
    return ax


# ---------------------------------------------------------------- can its probability be believed


def bin_confidence(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Mean confidence, accuracy and size of each of `bins` equal confidence ranges; empty ones are left out."""
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": correct})
    return table.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), n=("accuracy", "size")
    ).reset_index()  # fmt: skip


def plot_reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 10, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw accuracy against the stated probability, with the gap's average (ECE; Guo et al. 2017) in the legend.

    `confidence`: [n] probability of the told class; `correct`: [n] whether it was right.
    """
    return plot_calibration({"this model": (confidence, correct)}, bins, ax, title or "Does 80 % mean 80 %?")


def plot_calibration(
    models: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bins: int = 10,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the reliability of several models in one picture, such as before and after temperature scaling.

    `models`: name to (confidence [n], correct [n]); a dot's area follows the number of cases behind it.
    """
    ax = _axes(ax, 4.8, 4.2)
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


def plot_coverage(
    confidence: np.ndarray, correct: np.ndarray, ax: Axes | None = None, title: str = "If it may stay silent"
) -> Axes:
    """Draw the accuracy on the most confident part against the size of that part."""
    ax = _axes(ax)
    order = np.argsort(-np.asarray(confidence, dtype=float), kind="stable")
    right = np.asarray(correct, dtype=float)[order].cumsum() / np.arange(1, len(order) + 1)
    share = np.arange(1, len(order) + 1) / len(order)
    shown = np.unique(np.linspace(0, len(order) - 1, min(400, len(order))).astype(int))
    ax.plot(100 * share[shown], 100 * right[shown], color="#0072B2")
    ax.axhline(100 * right[-1], color=MUTED, linewidth=1, linestyle=":")
    ax.annotate(f"answering always: {100 * right[-1]:.1f} %", (0, 100 * right[-1]), (4, 4), ha="left",
                textcoords="offset points", fontsize=8.5, color=MUTED)  # fmt: skip
    ax.grid(axis="y")
    ax.set(xlim=(0, 101), xlabel="answered: the most confident part (%)", ylabel="right among them (%)", title=title)
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

    ax = _axes(ax, 4.8, 4.2)
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


def plot_distribution(
    values: Sequence[float], label: str, title: str, group: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Histogram of `values` (one a window), its axis named `label`; with `group`, one outline a group, each summing to 1."""
    ax = _axes(ax, height=3.0)
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
