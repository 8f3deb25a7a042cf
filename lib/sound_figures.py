"""Plots of sound through time: windows, spectrograms, a recording's answers, and what an encoder makes of a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib.style import MUTED, colours_for, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FRAME_S = 0.02  # wav2vec 2.0 gives one frame each 20 ms (Baevski et al. 2020, section 2)


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


def plot_timeline(
    waveform: np.ndarray,
    rate_hz: int,
    windows: pd.DataFrame,
    classes: Sequence[str],
    speech: Sequence[tuple[float, float]] | None = None,
    title: str = "Probability of each class through the recording",
) -> Figure:
    """Draw the waveform with its speech regions, and under it the probability of every class per window over time.

    `windows`: columns start_s, duration_s and p_<class>; `speech`: (start_s, end_s) pairs, None = not drawn.
    """
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 4.4), sharex=True, height_ratios=[2, 3])
    _draw_waveform(top, waveform, rate_hz)
    for start_s, end_s in speech or []:
        top.axvspan(start_s, end_s, color="#009E73", alpha=0.16, linewidth=0)
    top.set(ylabel="amplitude", title="Waveform, speech shaded" if speech else "Waveform")
    colours = colours_for(classes)
    middles_s = windows["start_s"] + windows["duration_s"] / 2
    for name in classes:
        bottom.plot(middles_s, windows[f"p_{name}"], color=colours[name], marker="o", markersize=4, label=name)
    bottom.axhline(1 / len(classes), color=MUTED, linewidth=0.8, linestyle=":")
    bottom.set(ylim=(-0.03, 1.03), ylabel="probability", xlabel="time (s)", title=title)
    fig.legend(loc="outside upper right", ncols=min(len(classes), 6))
    return fig


def plot_frames(
    frames: np.ndarray, ax: Axes | None = None, frame_s: float = FRAME_S, title: str = "One window's embedding"
) -> Axes:
    """Draw an embedding [T, D] as a picture: time to the right, feature upwards, value as colour (2nd to 98th %).

    Of more than 64 features every second, third ... is drawn, and the axis says so: a page cannot show more lines.
    """
    from matplotlib import colormaps

    ax = new_axes(ax, height=2.6)
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
