import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
from checks import refused
from PIL import Image
from report_fixture import EVIL, draw, outputs_of

from lib.report import plots, show

plots.use_style()
RNG = np.random.default_rng(0)
WAVE = RNG.normal(0, 0.1, 48_000).astype(np.float32)
SCORES = pd.DataFrame({"model": ["paper", "majority", "baseline: mean F0"], "value": [0.8, 0.5, 0.7], "metric": "uar"})
SCORES = SCORES.assign(low=[0.7, 0.5, 0.6], high=[0.9, 0.5, 0.8], speakers=20)
HISTORY = pd.DataFrame({"epoch": [0, 1, 2], "chosen": [False, True, False], "train_loss": [np.nan, 0.6, 0.4]})
HISTORY = HISTORY.assign(validation_loss=0.7, validation_f1_male=[0.5, 0.7, 0.6], validation_f1_female=0.4)
CLIPS = pd.DataFrame({"corpus": ["a", "a", "b"], "age": ["teen", "adult", "adult"]})
LEDGER = pd.DataFrame({"corpus": ["a", "b"], "reason": ["no such file", "empty file"]})
EPOCHS = pd.DataFrame({"epoch": [1, 2], "validation_uar": 0.6, "unseen_uar": 0.5, "chosen": [False, True]})
PROBES = pd.DataFrame({"feature": ["tiny | layer:1", "majority"], "uar": 0.6, "low": 0.5, "high": 0.7})
WINDOWS = pd.DataFrame({"start_s": [0.0, 1.0], "duration_s": 3.0, "p_male": [0.2, 0.4], "p_female": [0.8, 0.6]})
CURVE = pd.DataFrame({"n": [10], "confidence": [0.55], "accuracy": [0.5]})
COVERAGE = pd.DataFrame({"coverage": [0.5, 1.0], "macro_f1": [0.9, 0.8], "accuracy": [0.9, 0.8]})
SLICES = SCORES.assign(subset=["gender=male", "gender=female", "corpus=a"], value=[0.8, 0.5, np.nan])
GENDERS, AGES, FRAMES = ["male", "female"], ["teen", "twenties", "adult"], RNG.normal(size=(149, 32))
LOSSES = pd.DataFrame({"step": [50, 100], "frames": [1.0, 0.5], "emission": [0.5, 0.3], "cosine": [0.2, 0.4]})
FIGURES = {
    "labels": lambda: plots.plot_label_counts(CLIPS, "age", ["teen", "adult"], "Clips by age"),
    "ledger": lambda: plots.plot_ledger(LEDGER),
    "empty ledger": lambda: plots.plot_ledger(LEDGER.head(0)),
    "distribution": lambda: plots.plot_distribution(pd.Series([0.1, 0.9]), pd.Series(["a", "b"]), "share", "Speech"),
    "cuts": lambda: plots.plot_cuts(WAVE, 16_000, [0.0, 1.0], 2.0, RNG.random(94), "One clip"),
    "window": lambda: plots.plot_window(WAVE, 16_000),
    "frames": lambda: plots.plot_frames(FRAMES, "emission"),
    "layers": lambda: plots.plot_layers({f"layer {k}": FRAMES for k in range(5)}),
    "timeline": lambda: plots.plot_timeline(WAVE, 16_000, WINDOWS, GENDERS, [(0.0, 1.0)]),
    "projection": lambda: plots.plot_projection(RNG.normal(size=(3, 2)), {"by corpus": CLIPS["corpus"]}),
    "probes": lambda: plots.plot_probes(PROBES.assign(task="gender")),
    "training": lambda: plots.plot_training(HISTORY, "gender"),
    "distillation": lambda: plots.plot_distillation(LOSSES),
    "epochs": lambda: plots.plot_epochs(EPOCHS.assign(task="gender")),
    "confusion": lambda: plots.plot_confusion([[8, 2], [1, 9]], GENDERS, "Gender"),
    "intervals": lambda: plots.plot_intervals(SCORES, "Gender"),
    "slices": lambda: plots.plot_slices(SLICES, "Gender by group"),
    "reliability": lambda: plots.plot_reliability({"as trained": CURVE}, "Does 80 % mean 80 %?"),
    "choices": lambda: plots.plot_choices(COVERAGE, 0.8, np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), GENDERS),
}


def texts_of(artists):
    return [artist.get_text() for artist in artists]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_title_labels_and_text_of_at_least_8_points(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    assert figure.get_suptitle() or any(ax.get_title("left") for ax in figure.axes)
    assert all(ax.get_xlabel() or ax.get_ylabel() or ax.get_title("left") for ax in figure.axes if ax.has_data())
    texts = [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 8
    assert figure.get_size_inches()[0] <= plots.WIDTH + 0.01
    plt.close("all")


def test_every_plot_is_drawn_here_classes_keep_order_and_colours_truth_is_in_rows_and_the_worst_group_marked():
    drawn = {name for draw in FIGURES.values() for name in draw.__code__.co_names if name.startswith("plot_")}
    assert drawn == {name for name in dir(plots) if name.startswith("plot_")}
    ax = plots.plot_label_counts(CLIPS, "age", AGES, "Clips").axes[0]
    assert texts_of(ax.get_xticklabels()) == AGES
    assert [[bar.get_height() for bar in bars] for bars in ax.containers] == [[1, 0, 1], [0, 0, 1]]
    assert texts_of(ax.get_legend().get_texts()) == ["a", "b"]
    ax = plots.plot_ledger(pd.concat([LEDGER, LEDGER.assign(corpus="b")])).axes[0]
    assert texts_of(ax.texts) == [" 2", " 2"]
    first, second = plots.colours_for(["female", "new"]), plots.colours_for(["other", "male", "female"])
    assert first["female"] == second["female"] == plots.COLOURS["female"]
    assert len(set(second.values())) == 3
    ax = plots.plot_confusion([[3, 1, 0], [0, 0, 0], [0, 0, 1000]], AGES, "Age").axes[0]
    assert texts_of(ax.texts) == ["3\n75 %", "1\n25 %", *["0\n0 %"] * 6, "1,000\n100 %"]
    assert texts_of(ax.get_xticklabels()) == AGES
    assert texts_of(ax.get_yticklabels()) == ["teen\n(4)", "twenties\n(0)", "adult\n(1,000)"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("answer", "truth (number of windows)")
    ax = plots.plot_intervals(SCORES, "Gender").axes[0]
    assert [[x for x, _ in line] for line in ax.collections[0].get_segments()] == [[0.5, 0.5], [0.6, 0.8], [0.7, 0.9]]
    assert len({tuple(colour) for colour in ax.collections[1].get_facecolors()[:2]}) == 1
    assert ax.get_yticklabels()[2].get_text() == "the paper's network"
    ax = plots.plot_slices(SLICES, "Gender by group").axes[0]
    assert texts_of(ax.get_yticklabels()) == ["corpus=a", "gender=female (worst)", "gender=male"]
    assert texts_of(ax.texts) == ["20 speakers: too few", "20 speakers", "20 speakers"]
    assert np.isfinite(np.ma.filled(ax.collections[1].get_offsets(), np.nan)).all(axis=1).sum() == 2


def html_of(show_something, *arguments, **options):
    (output,) = outputs_of(show_something, *arguments, **options)
    return output.data["text/html"]


def test_a_figure_takes_picture_numbers_and_words_along_and_is_refused_without_words_or_by_a_name_that_is_a_path():
    before = plt.get_fignums()  # of other tests
    (output,) = draw("labels", 'Six "male"', data=pd.DataFrame({"class": ["male"], "share": [1 / 3]}), caption="Clips")
    assert Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).width == 1080
    assert output.data["text/csv"] == "class,share\nmale,0.333333\n"
    assert output.metadata["image/png"] == {"alt": 'Six "male"', "width": 720, "height": 288}
    assert (output.metadata["filename"], output.metadata["caption"], plt.get_fignums()) == ("labels", "Clips", before)
    assert draw("labels")[0].data["image/png"] == draw("labels")[0].data["image/png"]
    refused("alt text", show.show_figure, plt.figure(), "empty", " ")
    refused(r"\.\./escape", show.show_figure, plt.figure(), "../escape", "Something.")
    plt.close("all")


def test_a_table_is_escaped_names_models_keeps_a_number_whole_and_says_how_many_rows_it_has():
    frame = pd.DataFrame({EVIL: [[EVIL], None], "model": ["linear", None], "UAR": ["77 % (71 to 83)", np.nan],
                          "n": [12345, 7], "share": [0.12345, np.nan], "right": [True, False]})  # fmt: skip
    table = html_of(show.show_table, frame, EVIL)
    for cell in ("linear model", "77\xa0% (71\xa0to\xa083)", "12,345", "0.123", "yes", "no"):
        assert f">{cell}</td>" in table
    assert [table.count(text) for text in ("&lt;script&gt;", "–", "text-align: right", EVIL)] == [3, 4, 2, 0]
    table = html_of(show.show_table, pd.DataFrame({"x": range(5000)}), "Numbers", limit=10)
    assert table.count("<td") == 10
    assert "<caption>Numbers (the first 10 of 5,000 rows)</caption>" in table
    assert "Empty (nothing to list)" in html_of(show.show_table, pd.DataFrame(columns=["model"]), "Empty")
    assert html_of(show.show_text, "a < b", "", "c") == '<div class="said"><p>a &lt; b</p><p>c</p></div>'
    assert outputs_of(show.show_text, "") == []


def test_a_sound_is_a_small_mp3_under_its_title_and_a_long_or_empty_or_two_channel_one_is_refused():
    shown = html_of(show.show_sound, 0.3 * np.sin(0.07 * np.arange(48_000)), 16_000, EVIL, "a tone")
    content = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    decoded, rate_hz = soundfile.read(io.BytesIO(content))
    assert abs(len(decoded) / rate_hz - 3) < 0.2
    assert (len(content) < 30_000, "<script>" in shown) == (True, False)
    for waveform in (np.zeros(16 * 16_000), np.zeros((2, 5)), np.zeros(0)):
        refused(r"'Silence': give one channel of up to 15 s", show.show_sound, waveform, 16_000, "Silence")
