"""Figures: labelled, in class order, never saved by a plot function, written with their numbers by `show_figure`."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import figures, style
from lib.report import show

RATE_HZ = 16_000
CLASSES = ["male", "female"]


@pytest.fixture(autouse=True)
def _style():
    figures.use_style()
    yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def make_clips():
    genders = ["male"] * 6 + ["female"] * 3 + [None]
    return pd.DataFrame({"gender": genders, "corpus": ["common_voice", "voxceleb"] * 5})


def make_scores(protocols=("speaker",), models=("majority", "cnn"), metrics=("uar",), tasks=("gender", "age")):
    rows = [
        {"task": task, "model": model, "protocol": protocol, "metric": metric, "split": "test", "level": "clip",
         "subset": "all", "value": 0.5 + 0.1 * nth, "low": 0.4 + 0.1 * nth, "high": 0.6 + 0.1 * nth, "n": 90, "speakers": 9}
        for nth, protocol in enumerate(protocols) for model in models for metric in metrics for task in tasks
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_tone(seconds=3.0):
    times_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * 180 * times_s) * (1 + np.sin(5 * times_s)) / 2).astype(np.float32)


def draw_all(rng):
    """One drawing of every plot function, by name."""
    confidence = rng.uniform(0.5, 1, 300)
    correct = rng.random(300) < confidence
    targets = rng.integers(0, 2, 300)
    chances = np.clip(0.5 + 0.35 * (2 * targets - 1) + rng.normal(0, 0.25, 300), 0.01, 0.99)
    epochs = np.arange(12)
    history = pd.DataFrame({"task": "gender", "protocol": "speaker", "network": "paper", "fold": 0, "seed": 0, "epoch": epochs,
                            "chosen": epochs == 7, "train_loss": np.exp(-epochs / 4)})  # fmt: skip
    names = ["accuracy", "uar", "macro_f1", "weighted_f1", "f1_male", "f1_female"]
    history["validation_loss"] = np.exp(-epochs / 6)
    history = history.assign(
        **{f"{part}_{name}": 1 - np.exp(-epochs / 3) / 2 for part in ("train", "validation") for name in names}
    )
    ledger = pd.DataFrame({"corpus": ["common_voice", "voxceleb", "voxceleb"], "item": list("abc"), "detail": "",
                           "reason": ["no such file", "empty file", "no such file"]})  # fmt: skip
    windows = pd.DataFrame({"start_s": np.arange(0, 7, 2.0), "duration_s": 3.0, "p_male": [0.9, 0.8, 0.4, 0.7]})
    slices = make_scores(models=("cnn",), tasks=("age",)).iloc[[0] * 4].assign(
        subset=["voxceleb", "common_voice", "hi", "tw"], value=[0.8, 0.7, 0.6, 0.75])  # fmt: skip
    frames = rng.normal(size=(149, 32)).cumsum(axis=0)
    labels = rng.choice(CLASSES, 200)
    return {
        "label_counts": figures.plot_label_counts(make_clips(), "gender", CLASSES),
        "ledger": figures.plot_ledger(ledger),
        "waveforms": figures.plot_waveforms([make_tone(), make_tone()], RATE_HZ, [rng.random(90), rng.random(90)]),
        "distribution": figures.plot_distribution(rng.normal(-30, 6, 90), "level (dB)", "How loud", ["a", "b"] * 45),
        "timeline": figures.plot_timeline(
            make_tone(9), RATE_HZ, windows.assign(p_female=1 - windows["p_male"]), CLASSES, [(0.5, 3), (5, 8)]
        ),
        "frames": figures.plot_frames(frames),
        "layers": figures.plot_layers([frames, -frames, frames * 2]),
        "projection": figures.plot_projection(rng.normal(size=(200, 2)) + (labels == "male")[:, None], labels, CLASSES),
        "trainings": figures.plot_trainings(history, "gender", "speaker")[0],
        "confusion": figures.plot_confusion(np.array([[52, 8], [3, 27]]), CLASSES),
        "intervals": figures.plot_intervals(make_scores(tasks=("age",))),
        "slices": figures.plot_slices(slices, 0.72),
        "calibration": figures.plot_calibration({"raw": (confidence, correct), "tempered": (confidence**2, correct)}),
        "precision_recall": figures.plot_precision_recall(targets, np.c_[1 - chances, chances], CLASSES),
    }


def panels_of(drawing):
    fig = drawing if hasattr(drawing, "axes") and not hasattr(drawing, "plot") else drawing.figure
    return fig, [ax for ax in fig.axes if not ax.get_label().startswith("<")]


def test_every_plot_has_a_title_and_a_label_on_each_axis(rng):
    drawn = draw_all(rng)
    assert {name for name in dir(figures) if name.startswith("plot_")} == {f"plot_{name}" for name in drawn}
    for name, drawing in drawn.items():
        fig, panels = panels_of(drawing)
        assert fig.get_suptitle() or any(ax.get_title(loc=side) for ax in panels for side in ("left", "center")), name
        shared_y = fig.get_supylabel() != ""
        assert panels[-1].get_xlabel(), name
        assert shared_y or all(ax.get_ylabel() for ax in panels), name


def test_a_figure_at_page_width_weighs_at_most_sixty_kilobytes(rng):
    for name, drawing in draw_all(rng).items():
        fig, _ = panels_of(drawing)
        assert len(show.draw_png(fig)[0]) <= 60_000, name


def test_plot_functions_draw_on_the_axes_they_are_given():
    ax = plt.subplots()[1]
    assert figures.plot_confusion(np.eye(2, dtype=int), CLASSES, ax) is ax


def test_label_counts_keep_the_given_class_order_and_show_the_unknown():
    ax = figures.plot_label_counts(make_clips(), "gender", ["male", "female"], group=None)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["male", "female", "not known"]
    assert [bar.get_height() for bar in ax.patches] == [6, 3, 1]


def test_a_class_that_is_missing_from_the_data_keeps_its_place():
    ax = figures.plot_confusion(np.array([[4, 0, 1], [0, 0, 0], [0, 0, 9]]), ["teen", "twenties", "adult"])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["teen", "twenties", "adult"]
    assert "0\n0.0 %" in [text.get_text() for text in ax.texts]


def test_confusion_cells_show_count_and_row_share():
    ax = figures.plot_confusion(np.array([[3, 1], [0, 5]]), CLASSES)
    assert [text.get_text() for text in ax.texts] == ["3\n75.0 %", "1\n25.0 %", "0\n0.0 %", "5\n100.0 %"]


def test_a_confusion_matrix_that_does_not_fit_its_classes_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*male"):
        figures.plot_confusion(np.eye(3), CLASSES)


def test_the_worst_slice_is_marked():
    slices = (
        make_scores(models=("cnn",), tasks=("age",)).iloc[[0] * 3].assign(subset=list("abc"), value=[0.8, 0.3, 0.6])
    )
    names = [tick.get_text() for tick in figures.plot_slices(slices).get_yticklabels()]
    assert names == ["c", "b (worst)", "a"]


def test_classes_keep_their_colours_whatever_is_drawn_beside_them():
    first, second = style.colours_for(["female", "new"]), style.colours_for(["other", "male", "female"])
    assert first["female"] == second["female"] == "#D55E00"
    assert len(set(second.values())) == 3


def test_calibration_error_of_a_known_case_is_exact():
    confidence, correct = np.full(100, 0.9), np.arange(100) < 60
    text = figures.plot_calibration({"this model": (confidence, correct)}).get_legend().get_texts()[-1].get_text()
    assert text == "this model (ECE 0.300)"


def test_the_style_needs_no_screen():
    assert matplotlib.get_backend().lower() == "agg"
