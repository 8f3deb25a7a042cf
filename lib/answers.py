"""What a model says of a recording, and how it is told: as a row, as a timeline, as JSON.

A recording gets an honest state where there is no answer: "ok", "unsure", "no speech", "too short", "unreadable".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lib.audio import RATE_HZ
from lib.windows import VAD_CHUNK

STATES = ["ok", "unsure", "no speech", "too short", "unreadable"]


@dataclass(frozen=True)
class Answer:
    """What a model says for one task: `label` is None when it is unsure; probabilities by class add up to one."""

    task: str
    state: str  # "ok" or "unsure"
    label: str | None
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """What came of one recording.

    `windows`: start_s, duration_s, speech_ratio and p_<task>_<class> (NaN where a window held too little speech to be asked).
    `speech`: probability of speech for each 32 ms, NaN where no window reached. `reason`: why there is no answer;
    `warning`: what to mind about the one there is; "" = nothing.
    """

    name: str
    state: str
    reason: str = ""
    warning: str = ""
    duration_s: float = 0.0
    speech_ratio: float = float("nan")
    answers: dict[str, Answer] = field(default_factory=dict)
    windows: pd.DataFrame = field(default_factory=pd.DataFrame)
    speech: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def row(self) -> dict[str, Any]:
        """One flat row: name, state, then per task the label and p_<task>_<class>, then what explains it."""
        told = {}
        for task, answer in self.answers.items():
            told[task] = answer.label or "unsure"
            told |= {f"p_{task}_{name}": value for name, value in answer.probabilities.items()}
        size = {
            "duration_s": round(self.duration_s, 3),
            "speech_ratio": self.speech_ratio,
            "windows": len(self.windows),
        }
        return {"name": self.name, "state": self.state, **told, **size, "warning": self.warning, "reason": self.reason}

    def timeline(self, task: str) -> pd.DataFrame:
        """start_s, duration_s and p_<class> of each window that was asked, for `lib.figures.plot_timeline`."""
        prefix = f"p_{task}_"
        columns = {name: "p_" + name.removeprefix(prefix) for name in self.windows if name.startswith(prefix)}
        asked = self.windows[["start_s", "duration_s", *columns]].rename(columns=columns)
        return asked.dropna().reset_index(drop=True)

    def speech_regions(self, threshold: float = 0.5) -> list[tuple[float, float]]:
        """Stretches (start_s, end_s) that the detector takes for speech."""
        on = np.concatenate([[False], np.nan_to_num(self.speech) >= threshold, [False]])
        edges = np.flatnonzero(on[1:] != on[:-1]) * VAD_CHUNK / RATE_HZ
        return list(zip(edges[::2].tolist(), edges[1::2].tolist()))

    def as_json(self) -> dict[str, Any]:
        """Everything but the speech track, as JSON can hold it: what is not known is null."""
        windows = self.windows.astype(object).where(self.windows.notna(), None).to_dict("records")
        regions = [[round(start, 3), round(end, 3)] for start, end in self.speech_regions()]
        ratio = None if np.isnan(self.speech_ratio) else self.speech_ratio
        answers = {task: vars(answer) for task, answer in self.answers.items()}
        told = {"name": self.name, "state": self.state, "reason": self.reason, "warning": self.warning}
        size = {"duration_s": self.duration_s, "speech_ratio": ratio}
        return told | size | {"answers": answers, "speech": regions, "windows": windows}


def predictions_table(predictions: list[Prediction]) -> pd.DataFrame:
    """One row a recording; a column that some recording does not have is empty there."""
    return pd.DataFrame([prediction.row() for prediction in predictions])


def count_states(states: Iterable[str]) -> pd.DataFrame:
    """How many recordings ended in each state, all five of them; the counts add up to the recordings given."""
    counts = pd.Series(list(states), dtype="str").value_counts().reindex(STATES, fill_value=0)
    return counts.rename_axis("state").rename("recordings").reset_index()
