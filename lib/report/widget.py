"""The page in the notebook: upload a recording or speak, and see what a model makes of it, window by window.

The browser hands the sound to the kernel on the same machine in parts of 1 MB, so that files of any size pass; the kernel
keeps it in a temporary file until it is answered, and deletes it then. Without JupyterLab (papermill) a note stands instead.
"""

from __future__ import annotations

import functools
import html
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lib import paths
from lib.audio import RATE_HZ, read_waveform
from lib.model_folder import Bundle
from lib.predict import Answer, Prediction, predict

LONGEST_S = 120.0  # a recording by microphone stops by itself then
DRAWN_S = 600.0  # of a longer file, so much of its waveform is drawn
NOTE = (
    "<p><b>This is a page of a report.</b> Opened in JupyterLab (<code>make lab</code>), this cell lets you upload a "
    "recording or speak into the microphone, and draws the answer below it. Nothing leaves the machine that runs this notebook.</p>"
)


def show_page(bundle: Bundle) -> Any:
    """The page for `bundle` where someone can use it, else a note for the report's reader."""
    from IPython.display import HTML

    return AnswerPage(bundle).box if is_interactive() else HTML(NOTE)


def is_interactive() -> bool:
    """True in a kernel that a notebook server started for a notebook that is open; papermill starts its own."""
    return bool(os.environ.get("JPY_SESSION_NAME"))


@functools.cache
def recorder_class() -> type:
    """The widget with a file chooser and a record button; made once, when first needed."""
    import anywidget
    import traitlets

    class Recorder(anywidget.AnyWidget):
        """Sends {"kind": "part", number, name, first, last} with one buffer each; wants {"kind": "got", number} back."""

        _esm = paths.ASSETS / "recorder.js"
        _css = paths.ASSETS / "recorder.css"
        longest_s = traitlets.Float(LONGEST_S).tag(sync=True)

    return Recorder


class AnswerPage:
    """Recorder, answer, and timeline in one box. `predictions` keeps every answer given so far."""

    def __init__(self, bundle: Bundle):
        import ipywidgets

        from lib.figures import use_style

        use_style()
        self.bundle, self.predictions = bundle, []
        self.recorder = recorder_class()()
        self.told = ipywidgets.HTML()
        self.tasks = ipywidgets.ToggleButtons(options=list(bundle.heads))
        self.picture = ipywidgets.HTML()
        self.tasks.layout.display = "none"
        self.tasks.observe(lambda change: self._draw(), "value")
        self.recorder.on_msg(self._receive)
        self.box = ipywidgets.VBox([self.recorder, self.told, self.tasks, self.picture])
        self._file: Any = None
        self._waveform = np.zeros(0, np.float32)

    def _receive(self, widget: Any, message: dict[str, Any], buffers: list[Any]) -> None:
        """Take one part; after the last one, answer. Whatever goes wrong is said on the page."""
        if message.get("kind") != "part":
            return
        if message["first"]:
            self._forget()
            suffix = Path(message["name"]).suffix.lower()
            self._file = tempfile.NamedTemporaryFile(prefix="voice-", suffix=suffix)  # noqa: SIM115
        self._file.write(buffers[0])
        self.recorder.send({"kind": "got", "number": message["number"]})
        if message["last"]:
            try:
                self._file.flush()
                self.answer(Path(self._file.name), Path(message["name"]).name)
            except Exception as error:
                self.recorder.send({"kind": "say", "text": f"No answer: {error}"})
                raise
            finally:
                self._forget()

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()  # which deletes it
            self._file = None

    def answer(self, path: Path, name: str) -> Prediction:
        """Ask the model about a file, show what it says under `name`, and return it."""
        self.told.value = self.picture.value = ""
        found = predict(path, model=self.bundle, name=name)
        self._waveform = read_waveform(path, 0.0, DRAWN_S) if len(found.windows) else np.zeros(0, np.float32)
        self.predictions.append(found)
        self.tasks.layout.display = "" if found.answers and len(self.bundle.heads) > 1 else "none"
        self._draw()
        self.told.value = answer_html(found, self.bundle.warnings)
        self.recorder.send({"kind": "say", "text": f"{name}: {found.state}"})
        return found

    def _draw(self) -> None:
        import matplotlib.pyplot as plt

        from lib.figures import plot_timeline
        from lib.report.show import draw_png, figure_html

        found, task = self.predictions[-1], self.tasks.value
        if not found.answers:
            self.picture.value = ""
            return
        shown_s = len(self._waveform) / RATE_HZ
        windows = found.timeline(task).query("start_s < @shown_s")
        regions = [(start, min(end, shown_s)) for start, end in found.speech_regions() if start < shown_s]
        title = f"Probability of each class: {task}"
        figure = plot_timeline(self._waveform, RATE_HZ, windows, self.bundle.heads[task].classes, regions, title)
        alt = f"The waveform with its speech shaded, and under it the probability of each class of {task} for each window."
        cut = f"The first {DRAWN_S:.0f} s of {found.duration_s:.0f} s." if shown_s < found.duration_s - 0.1 else ""
        self.picture.value = figure_html("answer", alt, draw_png(figure), cut)
        plt.close(figure)


def _unheard(found: Prediction) -> str:
    """A sentence on the tail after the last whole window, which no model hears; "" when it is short."""
    if not len(found.windows):
        return ""
    rest_s = found.duration_s - float((found.windows["start_s"] + found.windows["duration_s"]).max())
    return f"The last {rest_s:.1f} s do not fill a window and were not heard." if rest_s >= 0.5 else ""


def _sentences(notes: list[str]) -> list[str]:
    return [f"This model was {note}." for note in notes]


def _aside(answer: Answer) -> str:
    """What is told beside a label: the interval of an age in years, another class by its own threshold; or nothing."""
    if answer.low_years is not None:
        return f", probably between {answer.low_years:.0f} and {answer.high_years:.0f}"
    if answer.by_threshold not in (None, answer.label):
        return f"; {html.escape(answer.by_threshold)} where that class is told from its own threshold"
    return ""


def answer_html(found: Prediction, notes: list[str] | None = None) -> str:
    """The answer in words: state, best class of each task with its share, and what to mind; `notes` on the model last."""
    lines = [f"<h3 style='margin:0.4em 0'>{html.escape(found.name)}: {found.state}</h3>"]
    for task, answer in found.answers.items():
        shares = ", ".join(
            f"{html.escape(name)} {100 * share:.0f} %"
            for name, share in answer.probabilities.items()
            if share is not None
        )
        said = f"sounds like <b>{html.escape(answer.label)}</b>" if answer.label else f"<b>{answer.state}</b>"
        said += _aside(answer) + (f" ({shares})" if shares else "")
        lines.append(f"<p style='margin:0.2em 0'>{html.escape(task)}: {said}</p>")
    if not np.isnan(found.speech_ratio):
        lines.append(f"<p style='margin:0.2em 0'>{found.duration_s:.1f} s, {100 * found.speech_ratio:.0f} % speech</p>")
    texts = [text for text in (_unheard(found), found.warning, found.reason) if text]
    lines += [f"<p style='margin:0.2em 0'>{html.escape(text)}</p>" for text in texts]
    if found.answers:
        minds = ["A guess about how a voice sounds; it does not reveal who someone is.", *_sentences(notes or [])]
        lines += [f"<p style='margin:0.2em 0'>{html.escape(text)}</p>" for text in minds]
    return f"<div style='max-width:760px;line-height:1.45'>{''.join(lines)}</div>"
