"""Figures: titled, labelled, classes in their fixed order and colours, nothing lost that was handed in."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.report import plots

RNG = np.random.default_rng(0)
WAVE = RNG.normal(0, 0.1, 48_000).astype(np.float32)
SCORES = pd.DataFrame({
    "task": "gender", "model": ["paper", "majority", "baseline: mean F0"], "metric": "uar", "protocol": "speaker",
    "level": "window", "split": "test", "subset": "all", "value": [0.8, 0.5, 0.7], "low": [0.7, 0.5, 0.6],
    "high": [0.9, 0.5, 0.8], "n": 100, "speakers": 20,
})  # fmt: skip
HISTORY = pd.DataFrame({
    "epoch": [0, 1, 2], "chosen": [False, True, False], "train_loss": [np.nan, 0.6, 0.4],
    "validation_loss": [0.7, 0.6, 0.65], "validation_f1_male": [0.5, 0.7, 0.6], "validation_f1_female": [0.4, 0.6, 0.6],
})  # fmt: skip
CLIPS = pd.DataFrame({"corpus": ["a", "a", "b"], "age": ["teen", "adult", "adult"]})
LEDGER = pd.DataFrame(
    {"corpus": ["a", "b"], "item": ["1", "2"], "reason": ["no such file", "empty file"], "detail": ""}
)
EPOCHS = pd.DataFrame({
    "task": "gender", "epoch": [1, 2], "validation_uar": [0.6, 0.7], "unseen_uar": [0.5, 0.65], "chosen": [False, True],
    "recordings": 40,
})  # fmt: skip
PROBES = pd.DataFrame({
    "feature": ["tiny | layer:1", "tiny | emission", "majority"], "task": "gender", "uar": [0.8, 0.7, 0.5],
    "low": [0.7, 0.6, 0.5], "high": [0.9, 0.8, 0.5],
})  # fmt: skip
WINDOWS = pd.DataFrame({"start_s": [0.0, 1.0], "duration_s": 3.0, "p_male": [0.2, 0.4], "p_female": [0.8, 0.6]})
CURVE = pd.DataFrame({"low": [0.5], "high": [0.6], "n": [10], "confidence": [0.55], "accuracy": [0.5]})
COVERAGE = pd.DataFrame({"coverage": [0.5, 1.0], "macro_f1": [0.9, 0.8], "accuracy": [0.9, 0.8]})
SLICES = SCORES.assign(subset=["gender=male", "gender=female", "corpus=a"], enough=[True, True, True])
FRAMES = RNG.normal(size=(149, 32))
FIGURES = {
    "labels": lambda: plots.plot_label_counts(CLIPS, "age", ["teen", "adult"], "Clips by age"),
    "ledger": lambda: plots.plot_ledger(LEDGER),
    "empty ledger": lambda: plots.plot_ledger(LEDGER.head(0)),
    "distribution": lambda: plots.plot_distribution(pd.Series([0.1, 0.9]), pd.Series(["a", "b"]), "share", "Speech"),
    "cuts": lambda: plots.plot_cuts(WAVE, 16_000, [0.0, 1.0], 2.0, RNG.random(94), "One clip"),
    "window": lambda: plots.plot_window(WAVE, 16_000),
    "frames": lambda: plots.plot_frames(FRAMES, "emission"),
    "layers": lambda: plots.plot_layers({f"layer {k}": FRAMES for k in range(5)}),
    "timeline": lambda: plots.plot_timeline(WAVE, 16_000, WINDOWS, ["male", "female"], [(0.0, 1.0)]),
    "projection": lambda: plots.plot_projection(RNG.normal(size=(3, 2)), {"by corpus": CLIPS["corpus"]}),
    "probes": lambda: plots.plot_probes(PROBES),
    "training": lambda: plots.plot_training(HISTORY, "gender"),
    "epochs": lambda: plots.plot_epochs(EPOCHS),
    "confusion": lambda: plots.plot_confusion([[8, 2], [1, 9]], ["male", "female"], "Gender"),
    "intervals": lambda: plots.plot_intervals(SCORES, "Gender"),
    "slices": lambda: plots.plot_slices(SLICES, "Gender by group"),
    "reliability": lambda: plots.plot_reliability({"as trained": CURVE}, "Does 80 % mean 80 %?"),
    "choices": lambda: plots.plot_choices(
        COVERAGE, 0.8, np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), ["male", "female"]
    ),
}


@pytest.fixture(autouse=True)
def style():
    plots.use_style()
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_title_labels_and_text_of_at_least_8_points(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    axes = [ax for ax in figure.axes if ax.get_visible() and ax.has_data()]
    titles = [ax.get_title() or ax.get_title("left") for ax in figure.axes] + [figure.get_suptitle()]
    assert any(titles)
    assert all(ax.get_xlabel() or ax.get_ylabel() or ax.get_title() or ax.get_title("left") for ax in axes)
    texts = [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 8
    assert figure.get_size_inches()[0] <= plots.WIDTH + 0.01


def test_classes_keep_their_order_and_their_colours():
    figure = plots.plot_label_counts(CLIPS, "age", ["teen", "adult"], "Clips")
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == ["teen", "adult"] or [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["teen", "adult"]
    assert plots.colours_for(["male", "female"]) == {
        k: plots.colours_for(["female", "male"])[k] for k in ("male", "female")
    }
    assert len(set(plots.colours_for(["x", "y", "male"]).values())) == 3


def test_a_confusion_matrix_shows_its_counts_truth_downwards():
    figure = plots.plot_confusion([[8, 2], [1, 9]], ["male", "female"], "Gender")
    ax = figure.axes[0]
    cells = [text.get_text() for text in ax.texts]
    assert [sum(char == digit for cell in cells for char in cell[:1]) > 0 for digit in "8219"] == [True] * 4
    assert "truth" in (ax.get_ylabel() + ax.get_xlabel()).lower() or "true" in ax.get_ylabel().lower()
