"""Every plot of the project: data in, a figure out; nothing here is computed or saved. Classes come in the caller's order and
keep their colours everywhere. At a report's width no text is under 11 pixels."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import paths
from lib.results import is_baseline, metric_name, model_name

# Okabe and Ito, "Color Universal Design" (2008): eight colours that stay apart under every common colour blindness.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#4D4D4D"]
COLOURS = {
    "male": "#0072B2", "female": "#D55E00", "child": "#56B4E9", "teen": "#009E73", "adult": "#CC79A7",
    "twenties": "#E69F00", "thirties": "#56B4E9", "fourties": "#8C6D1F", "common_voice": "#56B4E9", "voxceleb": "#E69F00",
    "speechocean762": "#009E73", "train": "#E69F00", "validation": "#0072B2", "test": "#D55E00", "not known": "#8A8A8A",
}  # fmt: skip
MUTED = "#5B636D"
WIDTH = 7.5  # inches, 720 pixels; as in the style sheet
FRAME_S = 0.02  # wav2vec 2.0 gives one frame each 20 ms (Baevski et al. 2020, section 2)


def use_style() -> None:
    """Set the one matplotlib style of this project; call it once in a notebook's set-up cell."""
    matplotlib.style.use(["seaborn-v0_8-ticks", paths.ASSETS / "report.mplstyle"])  # seaborn's as matplotlib ships it
    matplotlib.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=PALETTE)


def colours_for(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its colour: the fixed one where the project knows the name, else the next unused one."""
    names = dict.fromkeys(names)
    free = itertools.cycle([colour for colour in PALETTE if colour not in map(COLOURS.get, names)] or PALETTE)
    return {name: COLOURS.get(name) or next(free) for name in names}


def plot_label_counts(table: pd.DataFrame, label: str, classes: Sequence[str], title: str) -> Figure:
    """Bars of how many rows have each class of column `label`, split by corpus, in the order of `classes`."""
    counts = {name: rows.value_counts().reindex(classes, fill_value=0) for name, rows in table.groupby("corpus")[label]}
    ax = pd.DataFrame(counts, classes).plot.bar(color=colours_for(counts), width=0.8, rot=0)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=9, color=MUTED)
    ax.margins(y=0.12)
    ax.set(xlabel=label.replace("_", " "), ylabel="number of clips", title=title)
    ax.legend(title="corpus")
    return ax.figure


def plot_ledger(ledger: pd.DataFrame, title: str = "What was left out, and why") -> Figure:
    """Bars of how many items were left out, by reason and corpus; `ledger` is the ledger table."""
    counts = ledger.groupby(["reason", "corpus"]).size().unstack(fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values().index]
    figure, ax = plt.subplots(figsize=(WIDTH, 1.3 + 0.34 * max(len(counts), 1)))
    if counts.empty:
        ax.set_axis_off()
        ax.set_title(f"{title}: nothing")
        return figure
    counts.plot.barh(ax=ax, stacked=True, color=colours_for(counts.columns), width=0.68)
    ax.bar_label(ax.containers[-1], [f" {total:,}" for total in counts.sum(axis=1)], fontsize=9, color=MUTED)
    ax.margins(x=0.12)
    ax.set(xlabel="number of items", ylabel="", title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(title="corpus", loc="lower right").set_visible(len(counts.columns) > 1)
    return figure


def plot_distribution(values: pd.Series, group: pd.Series, label: str, title: str) -> Figure:
    """Histogram of `values` (one a window), its axis named `label`; one outline a group, each summing to 1."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0))
    names = group[np.isfinite(values)].rename("corpus").sort_values()
    options = {"bins": 30, "stat": "probability", "common_norm": False, "element": "step", "alpha": 0.35}
    seaborn.histplot(x=values[names.index], hue=names, palette=colours_for(names), ax=ax, **options)
    ax.set(xlabel=label, ylabel="share of the windows", title=title)
    return figure


def draw_waveform(ax: Axes, waveform: np.ndarray, rate_hz: int, title: str) -> None:
    """Fill between the lowest and highest sample of each pixel-wide piece, so that no peak is lost."""
    edges = np.linspace(0, len(waveform), min(540, len(waveform)) + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)
    ax.fill_between(edges / rate_hz, low, high, color="#7C8794", linewidth=0, step="post", antialiased=False)
    peak = max(float(np.abs(waveform).max()), 1e-3)
    ax.set(ylim=(-1.1 * peak, 1.1 * peak), xlim=(0, len(waveform) / rate_hz), ylabel="amplitude", title=title)


def plot_cuts(
    waveform: np.ndarray, rate_hz: int, starts_s: Sequence[float], window_s: float, speech: np.ndarray, title: str
) -> Figure:
    """One clip as a wave, its windows as bars under it, and the detector's probability of speech (steps,) above them."""
    figure, (wave, cuts) = plt.subplots(2, 1, figsize=(WIDTH, 3.6), sharex=True, height_ratios=[3, 2])
    draw_waveform(wave, waveform, rate_hz, title)
    for number, start_s in enumerate(starts_s):
        cuts.broken_barh([(start_s, window_s)], (-(number % 3) - 0.8, 0.6), color=PALETTE[number % 2], alpha=0.6)
        cuts.text(start_s + 0.05, -(number % 3) - 0.5, f"window {number + 1}", va="center", fontsize=9)
    times_s = (np.arange(len(speech)) + 0.5) * len(waveform) / rate_hz / max(len(speech), 1)
    cuts.plot(times_s, speech, color="#B84F00", linewidth=1.4)
    cuts.set(xlabel="time (s)", ylabel="P(speech)", yticks=[0, 1], ylim=(-3, 1.1))
    return figure


def plot_window(waveform: np.ndarray, rate_hz: int) -> Figure:
    """A window's wave and, under it, its spectrogram (25-ms frames every 10 ms)."""
    figure, (wave, picture) = plt.subplots(2, 1, figsize=(WIDTH, 4.0), sharex=True, height_ratios=[2, 3])
    draw_waveform(wave, waveform, rate_hz, "One window: what the encoder hears")
    size, hop = round(0.025 * rate_hz), round(0.010 * rate_hz)
    picture.specgram(waveform + 1e-8, NFFT=size, noverlap=size - hop, Fs=rate_hz, cmap="cividis", vmin=-130)
    picture.set(xlabel="time (s)", ylabel="frequency (Hz)", ylim=(0, rate_hz / 2))
    return figure


def draw_frames(ax: Axes, frames: np.ndarray, **labels: Any) -> None:
    """Frames (T, D) as a picture: time to the right, feature upwards, value as colour (2nd to 98th %), at most 64 rows."""
    step, (count, width) = -(-frames.shape[1] // 64), frames.shape
    low, high = np.percentile(frames, [2, 98])
    ax.imshow(
        frames.T[::step], extent=(0, count * FRAME_S, -0.5, width - 0.5), vmin=low, vmax=high, aspect="auto",
        origin="lower", interpolation="nearest", cmap=matplotlib.colormaps["cividis"].resampled(20),
    )  # fmt: skip
    ax.set(**labels)


def plot_frames(frames: np.ndarray, title: str) -> Figure:
    """What a network of this project sees of one window: frames (T, D)."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.8))
    draw_frames(ax, frames, xlabel="time (s)", ylabel="feature", title=title)
    return figure


def plot_layers(layers: dict[str, np.ndarray]) -> Figure:
    """Hidden states (T, D) of every layer as small pictures, and the first three of them large, as the paper shows them."""
    heights = [1.45] * 3 + [1.25] * -(-len(layers) // 4)
    figure = plt.figure(figsize=(WIDTH, sum(heights) + 0.5))
    grid = figure.add_gridspec(len(heights), 4, height_ratios=heights)
    with plt.rc_context({"axes.titlesize": 9, "axes.titleweight": "normal", "axes.titlepad": 3}):
        for number, (name, frames) in enumerate(layers.items()):
            draw_frames(figure.add_subplot(grid[3 + number // 4, number % 4]), frames, title=name, xticks=[], yticks=[])
            if number < 3:
                xlabel = "time (s)" if number == min(3, len(layers)) - 1 else ""
                draw_frames(figure.add_subplot(grid[number, :]), frames, title=name, ylabel="feature", xlabel=xlabel)
    figure.suptitle(f"The first 3 layers, and all {len(layers)}", x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def plot_timeline(
    waveform: np.ndarray, rate_hz: int, windows: pd.DataFrame, classes: Sequence[str], speech: Sequence[tuple[float, float]]
) -> Figure:  # fmt: skip
    """The waveform with its speech, (start_s, end_s) pairs, shaded, and under it the probability of every class for each window.
    windows: columns start_s, duration_s and p_<class>."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 4.4), sharex=True, height_ratios=[2, 3])
    draw_waveform(top, waveform, rate_hz, "Waveform, speech shaded")
    for start_s, end_s in speech:
        top.axvspan(start_s, end_s, color="#009E73", alpha=0.16, linewidth=0)
    middles_s = windows["start_s"] + windows["duration_s"] / 2
    for name, colour in colours_for(classes).items():
        bottom.plot(middles_s, windows[f"p_{name}"], color=colour, marker="o", markersize=4, label=name)
    bottom.axhline(1 / len(classes), color=MUTED, linewidth=0.8, linestyle=":")
    bottom.set(ylim=(-0.03, 1.03), ylabel="probability", xlabel="time (s)")
    bottom.set_title("Probability of each class, window by window")
    bottom.legend(ncols=len(classes))
    return figure


def plot_projection(points: np.ndarray, labels: dict[str, pd.Series]) -> Figure:
    """Points (n, 2) of a projection, once for each entry of `labels`, coloured and shaped by its values."""
    figure, axes = plt.subplots(1, len(labels), figsize=(WIDTH, 3.9), squeeze=False)
    for ax, (title, values) in zip(axes[0], labels.items()):
        for number, (name, colour) in enumerate(colours_for(sorted(values.unique())).items()):
            rows = (values == name).to_numpy()
            style = {"marker": "osD^vP*X"[number % 8], "s": 11, "alpha": 0.65, "linewidths": 0, "color": colour}
            ax.scatter(points[rows, 0], points[rows, 1], label=f"{name} ({rows.sum():,})", **style)
        ax.set(xlabel="t-SNE axis 1 (no unit)", ylabel="t-SNE axis 2 (no unit)", title=title, xticks=[], yticks=[])
        ax.legend(markerscale=1.8)
    return figure


def plot_probes(scores: pd.DataFrame) -> Figure:
    """UAR of a linear probe by stage of the encoder, a panel a task, with 95 % bars; grey lines are baselines. scores: feature
    ("encoder | stage", or a baseline's name), task, uar, low, high."""
    tasks = list(dict.fromkeys(scores["task"])) or ["no task has two classes of two speakers"]
    figure, axes = plt.subplots(1, len(tasks), figsize=(WIDTH, 3.8), sharey=True, squeeze=False)
    for ax, task in zip(axes[0], tasks):
        rows = scores[scores["task"] == task]
        stages = rows[rows["feature"].str.contains(" | ", regex=False)]
        bars = np.abs(stages[["low", "high"]].to_numpy().T - stages["uar"].to_numpy())
        names = stages["feature"].str.split(" | ", regex=False).str[-1]
        ax.errorbar(names, stages["uar"], bars, marker="o", capsize=3, color=PALETTE[0], label="probe, 95 % interval")
        for number, row in enumerate(rows.drop(stages.index).itertuples()):
            style = {"color": "grey", "linestyle": (":", "--", "-.")[number % 3], "linewidth": 1.2}
            ax.axhline(row.uar, label=model_name(row.feature), **style)
        ax.set(title=task, xlabel="stage of the encoder", ylabel="UAR" if ax is axes[0, 0] else "")
        ax.tick_params(axis="x", rotation=45)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def plot_training(history: pd.DataFrame, title: str) -> Figure:
    """One training: the loss of both parts, and F1 of each class on validation, by epoch from 0, a line at the one that was
    chosen. history: epoch, chosen, train_loss, validation_loss, validation_f1_<class>."""
    figure, (loss, f1) = plt.subplots(1, 2, figsize=(WIDTH, 3.4))
    history, dots = history.set_index("epoch"), {"marker": "o", "markersize": 3.5}
    losses = history[["train_loss", "validation_loss"]].rename(columns=lambda name: name.removesuffix("_loss"))
    losses.plot(ax=loss, color=colours_for(losses), ylabel="loss (nats)", title="Loss", **dots)
    scores = history.filter(regex="^validation_f1_").rename(columns=lambda name: name.removeprefix("validation_f1_"))
    scores.plot(ax=f1, color=colours_for(scores), ylabel="F1 on validation", title="F1 of each class", **dots)
    f1.set(ylim=(0, 1.02))
    for ax in (loss, f1):
        mark_epochs(ax, history.index[history["chosen"]])
        ax.grid(axis="y")
    f1.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(textwrap.fill(title, 90), x=0.01, ha="left")
    return figure


def plot_distillation(history: pd.DataFrame) -> Figure:
    """Every loss of a distillation, and the student's cosine to its teacher, by step. history: step, cosine, and a column a loss."""
    figure, (loss, cosine) = plt.subplots(1, 2, figsize=(WIDTH, 3.4))
    history = history.set_index("step").drop(columns=["elapsed_s", "total"], errors="ignore")
    history.pop("cosine").plot(ax=cosine, color=PALETTE[0], ylim=(0, 1), ylabel="cosine", title="Student and teacher")
    history.plot(ax=loss, color=colours_for(history), ylabel="loss", title="Losses of the distillation")
    for ax in (loss, cosine):
        ax.grid(axis="y")
    return figure


def mark_epochs(ax: Axes, chosen: Iterable[int]) -> None:
    """Whole epochs along the axis, and a dotted line at each that was chosen."""
    for epoch in chosen:
        ax.axvline(epoch, color=MUTED, linewidth=1, linestyle=":", label=f"epoch {epoch}, chosen")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()


def plot_epochs(epochs: pd.DataFrame) -> Figure:
    """UAR of every epoch on validation (dashed) and on unseen recordings (line), the chosen epoch marked, a panel a task."""
    tasks = list(dict.fromkeys(epochs["task"]))
    figure, axes = plt.subplots(1, len(tasks), figsize=(WIDTH, 3.2), sharey=True, squeeze=False)
    for ax, task in zip(axes[0], tasks):
        rows = epochs[epochs["task"] == task].set_index("epoch")
        shown = rows[["unseen_uar", "validation_uar"]].set_axis(["unseen recordings", "validation"], axis=1)
        shown.plot(ax=ax, style=["o-", "--"], color=PALETTE[1::-1], markersize=4, ylabel="UAR", title=task)
        mark_epochs(ax, rows.index[rows["chosen"].astype(bool)])
    return figure


def plot_confusion(counts: np.ndarray, classes: Sequence[str], title: str, unit: str = "windows") -> Figure:
    """A confusion matrix (C, C): each cell holds its count and its share of the row; colour is the share."""
    counts, size = np.asarray(counts), 2.6 + 0.8 * len(classes)
    figure, ax = plt.subplots(figsize=(size, size * 0.86))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[f"{count:,}\n{100 * share:.0f} %" for count, share in zip(*rows)] for rows in zip(counts, shares)]
    totals = [f"{name}\n({total:,})" for name, total in zip(classes, counts.sum(axis=1))]
    seaborn.heatmap(
        shares, vmin=0, vmax=1, cmap="Blues", annot=np.array(texts), fmt="", annot_kws={"fontsize": 9.5}, cbar=False, ax=ax,
        xticklabels=classes, yticklabels=totals, linewidths=1,
    )  # fmt: skip
    ax.tick_params(length=0, rotation=0)
    ax.set(xlabel="answer", ylabel=f"truth (number of {unit})", title=title)
    return figure


def draw_intervals(ax: Axes, rows: pd.DataFrame, colours: list[str], linewidth: float, size: float) -> None:
    """A dot for each row's value on a line from low to high, the rows upwards; NaN is not drawn."""
    places = np.arange(len(rows))
    ax.hlines(places, rows["low"].astype(float), rows["high"].astype(float), color=colours, linewidth=linewidth)
    ax.scatter(rows["value"], places, color=colours, s=size, zorder=3)
    ax.grid(axis="x")


def plot_intervals(scores: pd.DataFrame, title: str) -> Figure:
    """Models beside baselines (grey), each with its 95 % interval, best on top: records of one task and one metric."""
    rows = scores.sort_values("value").reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.4 * len(rows)))
    draw_intervals(ax, rows, ["#8A8A8A" if is_baseline(model) else PALETTE[0] for model in rows["model"]], 1.6, 34)
    for place, value in rows["value"].items():
        ax.annotate(f"{value:.2f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=9)
    ax.set_yticks(range(len(rows)), [textwrap.fill(model_name(model), 32) for model in rows["model"]])
    label = f"{metric_name(rows['metric'].iloc[0])}, 95 % interval over speakers"
    ax.set(xlabel=label, ylim=(-0.6, len(rows) - 0.2), title=title)
    return figure


def plot_slices(slices: pd.DataFrame, title: str) -> Figure:
    """UAR by group, with intervals and sizes; the worst group is marked, one too small to score has no dot."""
    rows = slices.iloc[::-1].reset_index(drop=True)
    worst = rows.index == rows["value"].idxmin()
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.29 * len(rows)))
    draw_intervals(ax, rows, list(np.where(worst, PALETTE[1], PALETTE[0])), 1.4, 26)
    for row in rows.itertuples():
        size = f"{row.speakers:,} speakers" + (": too few" if pd.isna(row.value) else "")
        ax.annotate(size, (1.01, row.Index), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=MUTED)
    ax.set_yticks(rows.index, rows["subset"].where(~worst, rows["subset"] + " (worst)"))
    ax.set(xlabel="UAR, 95 % interval over speakers", ylim=(-0.7, len(rows) - 0.3), title=title)
    return figure


def plot_reliability(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """Stated probability against the share that was right, for tables of `reliability_table` by name; area follows size."""
    figure, ax = plt.subplots(figsize=(5.2, 4.4))
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="exactly as stated")
    for (name, table), colour in zip(tables.items(), PALETTE):
        ax.plot(table["confidence"], table["accuracy"], color=colour, label=name)
        style = {"s": 18 + 160 * table["n"] / max(table["n"].max(), 1), "alpha": 0.75, "linewidths": 0}
        ax.scatter(table["confidence"], table["accuracy"], color=colour, **style)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="stated probability", ylabel="share right", title=title)
    ax.legend(loc="upper left")
    return figure


def plot_choices(
    coverage: pd.DataFrame, answered: float, targets: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Score against the share of clips answered (left, a table of `coverage_table`), precision and recall by class (right)."""
    from sklearn.metrics import PrecisionRecallDisplay

    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.7))
    left.plot(100 * coverage["coverage"], coverage["macro_f1"], color=PALETTE[0], label="macro F1")
    left.plot(100 * coverage["coverage"], coverage["accuracy"], color=PALETTE[4], linestyle="--", label="accuracy")
    left.axvline(100 * answered, color=MUTED, linewidth=1, linestyle=":", label="threshold from validation")
    left.set(xlabel="clips answered (%)", ylabel="score of the answered", title="If it may stay silent", ylim=(0, 1.02))
    left.legend(loc="lower left")
    for number, (name, colour) in enumerate(colours_for(classes).items()):
        truth = targets == number
        if truth.any():
            options = {"ax": right, "name": name, "curve_kwargs": {"color": colour}}
            PrecisionRecallDisplay.from_predictions(truth, probabilities[:, number], **options)
            right.axhline(truth.mean(), color=colour, linewidth=0.9, linestyle=":")
    right.set(xlabel="recall", ylabel="precision", title="Dotted: a guess", xlim=(0, 1.01), ylim=(0, 1.03))
    right.legend(loc="lower left")
    return figure
