"""A small made-up run for the tests of the report pages: every number in it is invented and says so."""

import base64
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
from checks import write_file
from IPython.display import HTML
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.config import NOTEBOOKS
from lib.report import show
from lib.report import site as site_module

CLASSES = {"gender": ["male", "female"], "age": ["teen", "adult"]}
AGES = [("teen", 0.8), ("adult", 0.9)]  # of gender
NOTE = "Fixture: every number on these pages is invented for a test."
EVIL = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"  # as a speaker, a file or a label


def make_record(run="fixture", synthetic=True, **changes):
    """What `run.json` holds."""
    stage = {"stage": "05_evaluate", "recomputed": [], "counts": {"windows": 1234}}
    return {
        "run": run, "title": f"Fixture run {run}", "question": "How well does a made-up model tell made-up voices apart?",
        "synthetic": synthetic, "encoder": {"name": "wav2vec2-tiny", "note": "untrained, random weights"}, "seed": 7,
        "versions": {"python": "3.11.9"}, "machine": {"system": "Linux", "cores": 2}, "git_commit": "0123456789ab",
        "parameters": {"download": {"root": "../somewhere/corpus"}, "train": {"epochs": 12, "tasks": [*CLASSES]}, "run": {"age_classes": ["teen", "adult"]}},
        "made_at": "2026-11-22T16:00:00+00:00", "stages": [{**stage, "made_in_seconds": 16.05, "made_with_mb": 350}],
    } | changes  # fmt: skip


def make_row(task, model, metric, value, half=0.06, protocol="speaker", level="clip", subset="all", n=480, **more):
    low, high = (None, None) if half is None else (max(value - half, 0.0), min(value + half, 1.0))
    return {"task": task, "model": model, "protocol": protocol, "split": "test", "level": level, "subset": subset,
            "metric": metric, "value": value, "low": low, "high": high, "n": n, "speakers": n // 12, **more}  # fmt: skip


def make_metrics(run="fixture", value=0.78):
    """What `metrics.json` holds: both tasks, a network, a guess and a simple baseline, slices, the leak."""
    scores, leaks, differences = [], [], []
    for task, classes in CLASSES.items():
        for metric in ("accuracy", "uar", *(f"f1_{name}" for name in classes)):
            scores += [make_row(task, "majority", metric, 0.5, 0.0), make_row(task, "baseline: mean F0", metric, 0.66)]
            scores += [make_row(task, "paper", metric, value), make_row(task, "paper", metric, 0.87, protocol="paper")]
            leaks.append(make_row(task, "paper", metric, 0.87 - value, 0.05, claimed=0.87, shown=value))
        pair = make_row(task, "paper", "uar_difference", value - 0.66, 0.3, against="baseline: mean F0")
        differences.append(pair | {"low": -0.1})
        for nth, subset in enumerate(["corpus=common_voice", "corpus=voxceleb", "language=en", f"language={EVIL}"]):
            scores.append(make_row(task, "paper", "uar", 0.83 - 0.05 * nth, 0.06, subset=subset, n=300 - 60 * nth))
    scores += [
        make_row("gender", "paper", "uar", value, level="window", subset=f"age group={age}") for age, value in AGES
    ]
    headline = {task: {"model": "paper", "protocol": "speaker", "level": "clip"} for task in CLASSES}
    return {"run": run, "scores": scores, "leak": leaks, "copies": leaks, "differences": differences, "headline": headline,
            "notes": [NOTE]}  # fmt: skip


def outputs_of(show_something, *arguments, **options):
    """What a cell that calls a `show_*` function holds when it was executed."""
    outputs = []

    def display(content, metadata=None, raw=False):
        data = {"text/html": content.data} if isinstance(content, HTML) else content
        outputs.append(new_output("display_data", data, metadata=metadata or {}))

    with mock.patch.object(show, "display", display):
        show_something(*arguments, **options)
    return outputs


def draw(name, alt="A line falls.", width=7.5, data=None, caption=""):
    figure, ax = plt.subplots(figsize=(width, 3))
    ax.plot([3, 2, 1])
    return outputs_of(show.show_figure, figure, name, alt, data, caption)


def picture(alt):
    """The output of a figure that a notebook shows without `show_figure`."""
    content = base64.b64encode(show.draw_png(plt.figure())[0]).decode()
    plt.close()
    return new_output("display_data", {"image/png": content}, metadata={"image/png": {"alt": alt}} if alt else {})


def make_outputs(name):
    """What each notebook shows besides what all of them show."""
    if name == "01_download":
        return draw("labels", data=pd.DataFrame({"class": ["male"], "clips": [6]}), caption="Clips < all")
    if name == "02_segment":
        return outputs_of(show.show_sound, 0.3 * np.sin(0.07 * np.arange(48_000)), 16_000, "A tone", "of 170 Hz")
    wide = pd.DataFrame({f"a rather long heading {nth}": ["77 % (71 to 83)", "random words"] for nth in range(12)})
    return [] if name != "05_evaluate" else [
        *draw("narrow-one", width=3.6), *draw("narrow-two", width=3.6), *draw("wide", alt=f"Wide {EVIL}"),
        *outputs_of(show.show_table, wide.assign(**{EVIL: EVIL, "of": [[EVIL]] * 2}), EVIL),
        *outputs_of(show.show_text, f"Speaker {EVIL} is told wrong.", "Most are right."),
        *outputs_of(show.show_sound, np.zeros(999), 16_000, EVIL, EVIL), new_output("stream", name="stdout", text=EVIL),
    ]  # fmt: skip


def make_notebook(name, root="../somewhere/corpus"):
    """One executed notebook: prose, parameters, code with every kind of output."""
    frame = pd.DataFrame({"speaker": [f"voice-{nth}" for nth in range(6)], "clips": [12, 9, 1100, 7, 33, 1],
                          "UAR": ["80 % (71 to 83)", "9 % (1 to 2)", None, "100 %", "50 %", "65 %"]})  # fmt: skip
    lines = f"**Reads** nothing.\n**Writes** nothing.\n**Question** What does the page {name} look like?"
    bar = new_output("stream", name="stderr", text="100%|####| 9/9 [00:01<00:00]")
    printed = new_output("stream", name="stdout", text="wrote 1234 rows\n")
    return new_notebook(cells=[
        new_markdown_cell(f"# {name[:2]} {name[3:].capitalize()}\n\n{lines}\n\n{NOTE}"),
        new_code_cell(f'# Parameters\nroot = "{root}"', metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell("## What is there\n\nThe table holds six voices:"),
        new_code_cell("show_table(frame, 'Voices')", outputs=outputs_of(show.show_table, frame, "Invented voices")),
        new_code_cell("print('wrote', 1234, 'rows')  # " + "a long line " * 12, outputs=[bar, printed]),
        new_markdown_cell("### A finer point\n\nA frame shown by itself:"),
        new_code_cell("frame", outputs=[new_output("execute_result", {"text/html": frame.to_html(), "text/plain": "frame"})]),
        new_code_cell("show(...)", outputs=make_outputs(name)),
    ])  # fmt: skip


def make_site(folder):
    """A site of two fixture runs, one synthetic and one not; returns its folder."""
    site, names = folder / "reports", {folder / f"{name}.ipynb": name for name in NOTEBOOKS}
    executed = [write_file(path, nbformat.writes(make_notebook(name))) for path, name in names.items()]
    parameters = make_record()["parameters"] | {"train": {"epochs": 30}}
    other = make_record("second", synthetic=False, title=EVIL, parameters=parameters)
    site_module.build_report("fixture", executed, make_metrics(), make_record(), site / "fixture")
    site_module.build_report("second", executed, make_metrics("second", 0.82), other, site / "second")
    site_module.build_index(site)
    return site
