"""A small made-up run for the tests of the report pages: every number in it is invented and says so."""

import functools
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib import figures
from lib.report import compare
from lib.report import site as site_module

CLASSES = {"gender": ["male", "female"], "age": ["teen", "adult"]}
NOTE = "Fixture: every number on these pages is invented for a test."
NOTEBOOKS = ["01_download", "02_segment", "03_embed", "04_train", "05_evaluate", "06_predict"]
RATE_HZ = 16_000


def make_record(run="fixture", synthetic=True, **changes):
    """What `run.json` holds."""
    encoder = {"name": "wav2vec2-tiny", "note": "untrained, random weights", "weights_sha256": "ab" * 32}
    stages = [
        {"stage": name, "seconds": 1.0, "peak_memory_mb": 300 + nth, "recomputed": [name] * (nth % 2),
         "counts": {"clips": 480, "windows": 1234}, "made_in_seconds": 3.21 * nth, "made_with_mb": 350}
        for nth, name in enumerate(NOTEBOOKS)
    ]  # fmt: skip
    record = {
        "run": run, "title": f"Fixture run {run}", "question": "How well does a made-up model tell made-up voices apart?",
        "synthetic": synthetic, "encoder": encoder, "seed": 7, "versions": {"python": "3.11.9", "torch": "2.14.1"},
        "parameters": {"run": {"title": "Fixture"}, "train": {"epochs": 12, "learning_rate": 0.0001, "tasks": ["gender", "age"]}},
        "git_commit": "0123456789ab", "data_checksum": "cd" * 32, "stages": stages, "made_at": "2026-11-22T16:00:00+00:00",
    }  # fmt: skip
    return record | changes


def make_scores(shift=0.0):
    """Tidy records of both tasks: three models, two protocols, two levels, and slices of the main model."""
    rng, rows = np.random.default_rng(3), []
    for task, classes in CLASSES.items():
        for protocol in ("speaker", "paper"):
            for model, base in (("majority", 0.5), ("baseline: mean F0", 0.66), ("cnn", 0.78 + shift)):
                for level in ("window", "clip"):
                    for metric in ("accuracy", "uar", "macro_f1", "weighted_f1", *(f"f1_{name}" for name in classes)):
                        gain = 0.09 * (protocol == "paper") * (model == "cnn")
                        rows.append(
                            make_row(task, model, protocol, level, metric, "all", base + gain + rng.normal(0, 0.01))
                        )
        for nth, subset in enumerate(["corpus: common_voice", "corpus: voxceleb", "language: en", "language: hi"]):
            rows.append(
                make_row(
                    task, "cnn", "speaker", "clip", "uar", subset, 0.83 - 0.05 * nth, 0.06 + 0.03 * nth, 300 - 60 * nth
                )
            )
    return rows


def make_row(task, model, protocol, level, metric, subset, value, half=0.06, n=480):
    value = float(min(value, 0.99))
    return {"task": task, "model": model, "protocol": protocol, "split": "test", "level": level, "subset": subset,
            "metric": metric, "value": value, "low": max(value - half, 0.0), "high": min(value + half, 1.0), "n": n,
            "speakers": n // 12}  # fmt: skip


def make_metrics(run="fixture", shift=0.0, seed=5):
    """What `metrics.json` holds, with answers for paired comparisons."""
    rng = np.random.default_rng(seed)
    confusions, answers = [], []
    clips = [f"clip-{nth:03d}" for nth in range(120)]
    speakers = [f"voice-{nth // 8}" for nth in range(120)]
    for task, classes in CLASSES.items():
        counts = [[183, 37], [21, 239]]
        confusions.append({"task": task, "model": "cnn", "protocol": "speaker", "level": "clip", "split": "test",
                           "classes": classes, "counts": counts})  # fmt: skip
        targets = np.arange(120) % 2
        predicted = np.where(rng.random(120) < 0.8 + shift, targets, 1 - targets)
        answers.append(
            {"task": task, "level": "clip", **compare.summarise_answers(clips, speakers, targets, predicted)}
        )
    paper = [{"task": "gender", "accuracy": 0.894, "weighted F1": 0.89, "data": "155,366 windows, random split"},
             {"task": "age", "accuracy": 0.910, "weighted F1": 0.92, "data": "47,552 windows, random split"}]  # fmt: skip
    return {
        "run": run,
        "scores": make_scores(shift),
        "confusions": confusions,
        "answers": answers,
        "notes": [NOTE],
        "paper": paper,
    }


def make_pictures(folder):
    """Notebook → outputs with the figures and sounds that it shows, written below `folder` as a real notebook would."""
    rng = np.random.default_rng(1)
    figures.use_style()
    clips = pd.DataFrame(
        {
            "gender": rng.choice(["male", "female"], 300, p=[0.7, 0.3]),
            "corpus": rng.choice(["common_voice", "voxceleb"], 300),
        }
    )
    frames = rng.normal(size=(149, 32)).cumsum(axis=0)
    epochs = np.arange(12)
    told = {f"{part}_{name}": 1 - np.exp(-epochs / 3) / 2 for part in ("train", "validation")
            for name in ("accuracy", "uar", "macro_f1", "weighted_f1")}  # fmt: skip
    told |= {"train_loss": np.exp(-epochs / 4), "validation_loss": np.exp(-epochs / 6) + 0.1}
    history = pd.DataFrame({"task": "gender", "protocol": "speaker", "network": "cnn", "fold": 0, "seed": 0, "epoch": epochs,
                            "chosen": epochs == 7, **told})  # fmt: skip
    times_s = np.arange(3 * RATE_HZ) / RATE_HZ
    waveform = (0.4 * np.sin(2 * np.pi * 170 * times_s) * np.abs(np.sin(4 * times_s))).astype(np.float32)
    scores = pd.DataFrame(make_scores())
    slices = scores[(scores["subset"] != "all") & (scores["task"] == "age")]

    def show(drawn, name, alt, data=None):
        return figures.show_figure(getattr(drawn, "figure", None) or drawn, name, alt, data, folder, "Fixture: " + alt)

    return {
        "01_download": [show(figures.plot_label_counts(clips, "gender", CLASSES["gender"]), "labels", "More male clips than female ones.", clips.value_counts().reset_index())],
        "02_segment": [
            show(figures.plot_waveforms([waveform, -waveform], RATE_HZ, [rng.random(90), rng.random(90)]), "waveforms", "Two windows."),
            figures.show_together([
                figures.show_sound(waveform, RATE_HZ, "tone", "A tone of 170 Hz that swells", folder),
                figures.show_sound(waveform[::-2], RATE_HZ, "high-tone", "A tone of 340 Hz", folder, "said to be higher"),
            ]),
        ],
        "03_embed": [show(figures.plot_layers([frames, -frames, frames * 2]), "layers", "Three layers of one window.")],
        "04_train": [show(figures.plot_trainings(history, "gender", "speaker")[0], "history", "The loss falls.", history)],
        "05_evaluate": [
            show(figures.plot_confusion(np.array([[183, 37], [21, 239]]), CLASSES["gender"]), "confusion_gender", "Most are right."),
            show(figures.plot_slices(slices, 0.8), "slices_age", "Hindi is the worst.", slices),
        ],
        "06_predict": [],
    }  # fmt: skip


def make_notebook(name, pictures, root="../somewhere/corpus"):
    """One executed notebook: prose, parameters, code with every kind of output, and the pictures."""
    verb = name.split("_")[1].capitalize()
    frame = pd.DataFrame({"speaker": [f"voice-{nth}" for nth in range(6)], "clips": [12, 9, 100, 7, 33, 1],
                          "share": [0.125, 0.5, 0.25, 0.0625, 0.99, None]})  # fmt: skip
    cells = [
        new_markdown_cell(f"# {name[:2]} {verb}\n\n**Reads** nothing.\n**Writes** nothing.\n**Takes** no time.\n**Question** What does a page called {verb.lower()} look like?\n\n{NOTE}"),
        new_code_cell("root: str = ''  # folder of the corpus", metadata={"tags": ["parameters"]}),
        new_code_cell(f'# Parameters\nroot = "{root}"', metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell("## What is there\n\nThe table holds six voices, and `clips` how often each is heard:"),
        new_code_cell("figures.show_table(frame, 'Voices')", outputs=[html_output(figures.show_table(frame, "Invented voices", percent=["share"]).data)]),
        new_markdown_cell("A line that is printed, and a bar that goes to standard error:"),
        new_code_cell(
            "for item in tqdm(items):  # each is read once\n    total += len(item)\nprint('wrote', 1234, 'rows')",
            outputs=[new_output("stream", name="stderr", text="100%|####| 9/9 [00:01<00:00]"), new_output("stream", name="stdout", text="wrote 1234 rows\n")],
        ),
        new_markdown_cell("### A finer point\n\nA frame shown by itself:"),
        new_code_cell("frame.head()  # " + "a long line " * 12, outputs=[new_output("execute_result", {"text/html": frame.head(2).to_html(), "text/plain": "frame"})]),
        new_markdown_cell("## What is seen\n\nThe pictures that follow are drawn from invented numbers:"),
    ]  # fmt: skip
    for picture in pictures:
        cells += [new_code_cell("figures.show_figure(fig, ...)", outputs=[html_output(picture.data)])]
        cells += [new_markdown_cell("It shows what was put in; anything else would be surprising.")]
    notebook = new_notebook(cells=cells)
    notebook.metadata["papermill"] = {"parameters": {"root": root, "seed": 7}}
    return notebook


def html_output(text):
    return new_output("execute_result", {"text/html": text, "text/plain": "<HTML object>"})


def make_inputs(folder, root="../somewhere/corpus"):
    """Write executed notebooks and figures under `folder`; return both folders."""
    executed, drawn = Path(folder) / "executed", Path(folder) / "figures"
    executed.mkdir(parents=True, exist_ok=True)
    for name, pictures in make_pictures(drawn).items():
        nbformat.write(make_notebook(name, pictures, root), executed / f"{name}.ipynb")
    return executed, drawn


@functools.cache
def shared_site(base):
    """The site of `make_site`, made once for all test modules that only read it."""
    return make_site(base / "site")


def make_site(folder):
    """A site of two fixture runs, one synthetic and one not; return its folder."""
    executed, drawn = make_inputs(Path(folder) / "inputs")
    site = Path(folder) / "reports"
    other = make_record("second", synthetic=False)
    other["parameters"] = {**other["parameters"], "train": {"epochs": 30, "learning_rate": 0.0001}}
    site_module.build_report("fixture", executed, drawn, make_metrics(), make_record(), site / "fixture")
    site_module.build_report("second", executed, drawn, make_metrics("second", 0.04, seed=6), other, site / "second")
    site_module.build_index(site)
    return site
