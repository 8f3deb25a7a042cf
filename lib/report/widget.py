"""The page in the notebook: upload a recording or speak, and see what a model makes of it, window by window. The browser hands the
sound to the kernel on the same machine in parts of 1 MB, so that files of any size pass; it lies in a temporary file until answered."""

import base64
import html
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import traitlets
from IPython.display import HTML

from lib import paths
from lib.audio import RATE_HZ, read_waveform
from lib.model_folder import ModelFolder
from lib.predict import HINT, Prediction, predict
from lib.report import TEMPLATES
from lib.report.plots import plot_timeline, use_style
from lib.report.show import draw_png

LONGEST_S = 120.0  # a recording by microphone stops by itself then
DRAWN_S = 600.0  # of a longer file, so much of its waveform is drawn


def show_page(model: ModelFolder) -> Any:
    """The page for `model` where a notebook server started this kernel; else a note (papermill starts its own kernels)."""
    note = TEMPLATES.get_template("recorder.html.j2")
    return AnswerPage(model).box if os.environ.get("JPY_SESSION_NAME") else HTML(note.render())


class Recorder(anywidget.AnyWidget):
    """A file chooser and a record button: sends {"kind": "part", number, name, first, last}, a buffer each, wants {"kind": "got", number}."""

    _esm, _css = (paths.ASSETS / f"recorder.{kind}" for kind in ("js", "css"))
    longest_s = traitlets.Float(LONGEST_S).tag(sync=True)


class AnswerPage:
    """Recorder, answer, and timeline in one box. `predictions` keeps every answer given so far."""

    def __init__(self, model: ModelFolder):
        use_style()
        self.model, self.predictions = model, []
        self.recorder, self.answer, self.picture = Recorder(), ipywidgets.HTML(), ipywidgets.HTML()
        self.tasks = ipywidgets.ToggleButtons(options=list(model.heads))
        self.tasks.layout.display = "none"
        self.tasks.observe(lambda change: self._draw(), "value")
        self.recorder.on_msg(self.receive)
        self.box = ipywidgets.VBox([self.recorder, self.answer, self.tasks, self.picture])
        self._file: Any = io.BytesIO()
        self._waveform = np.zeros(0, np.float32)

    def receive(self, widget: Any, message: dict[str, Any], buffers: list[Any]) -> None:
        """Take one part from the browser; after the last one, answer. Whatever goes wrong is said on the page."""
        if message["first"]:
            self._file.close()  # which deletes it
            suffix = Path(message["name"]).suffix.lower()
            self._file = tempfile.NamedTemporaryFile(prefix="voice-", suffix=suffix)  # noqa: SIM115
        self._file.write(buffers[0])
        self.recorder.send({"kind": "got", "number": message["number"]})
        if message["last"]:
            try:
                self._file.flush()
                self.ask(Path(self._file.name), Path(message["name"]).name)
            except Exception as error:
                self.recorder.send({"kind": "say", "text": f"No answer: {error}"})
                raise
            finally:
                self._file.close()

    def ask(self, path: Path, name: str) -> None:
        """Ask the model about a file and show what it says under `name`."""
        self.answer.value = self.picture.value = ""
        prediction = predict(path, model=self.model, name=name)
        self._waveform = read_waveform(path, 0.0, DRAWN_S) if len(prediction.windows) else np.zeros(0, np.float32)
        self.predictions.append(prediction)
        self.tasks.layout.display = "" if prediction.answers and len(self.model.heads) > 1 else "none"
        self._draw()
        self.answer.value = answer_html(prediction, self.model.warnings)
        self.recorder.send({"kind": "say", "text": f"{name}: {prediction.state}"})

    def _draw(self) -> None:
        """The timeline of the latest prediction for the chosen task, as far as the waveform is drawn."""
        prediction, task, self.picture.value = self.predictions[-1], self.tasks.value, ""
        if not prediction.answers:
            return
        shown_s = len(self._waveform) / RATE_HZ
        windows = prediction.timeline(task).query("start_s < @shown_s")
        regions = [(start, min(end, shown_s)) for start, end in prediction.speech_regions() if start < shown_s]
        figure = plot_timeline(self._waveform, RATE_HZ, windows, self.model.heads[task].classes, regions)
        picture, size = draw_png(figure)
        plt.close(figure)
        alt = f"The waveform, its speech shaded, and under it the probability of each class of {task} for each window."
        source = f'src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}" width="{size["width"]}"'
        self.picture.value = f'<img {source} alt="{html.escape(alt)}" style="max-width:100%">'


def answer_html(prediction: Prediction, warnings: list[str]) -> str:
    """The answer in words: state, best class of each task with its share, what to mind; `warnings` on the model last."""
    ends_s = [*(prediction.windows["start_s"] + prediction.windows["duration_s"])] if len(prediction.windows) else []
    rest_s = prediction.duration_s - max(ends_s, default=prediction.duration_s)
    facts = {"prediction": prediction, "rest_s": rest_s, "warnings": warnings, "hint": HINT}
    return TEMPLATES.get_template("answer.html.j2").render(facts)
