"""What a model says of a recording: windows put together to an answer, and how it is told as a row, a timeline, JSON.

A recording gets an honest state where there is no answer: "ok", "unsure", "no speech", "too short", "unreadable".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lib.audio import RATE_HZ
from lib.model_folder import Bundle, Head
from lib.streams import SHORTEST_S
from lib.trust.calibration import answer_with_threshold
from lib.windows import VAD_CHUNK

STATES = ["ok", "unsure", "no speech", "too short", "unreadable"]
LEAST_SPEECH = 0.1  # a recording whose best window has a smaller share of speech holds none


@dataclass(frozen=True)
class Answer:
    """What a model says for one task: `label` is None when it is unsure; probabilities by class add up to one.

    `by_threshold`: the label when the rare class is told from its own threshold; None = unsure, or no such threshold.
    `years`, `low_years`, `high_years`: the age and its interval, None where the model was not trained on years.
    """

    task: str
    state: str  # "ok" or "unsure"
    label: str | None
    probabilities: dict[str, float]
    by_threshold: str | None = None
    years: float | None = None
    low_years: float | None = None
    high_years: float | None = None

    def row(self) -> dict[str, Any]:
        """Columns <task>, p_<task>_<class> and, where there are any, <task>_by_threshold, <task>_low, <task>_high."""
        told: dict[str, Any] = {self.task: self.label or "unsure"}
        if self.years is not None:
            told = {self.task: self.years, f"{self.task}_low": self.low_years, f"{self.task}_high": self.high_years}
        if self.by_threshold:
            told[f"{self.task}_by_threshold"] = self.by_threshold
        return told | {f"p_{self.task}_{name}": value for name, value in self.probabilities.items()}


@dataclass(frozen=True)
class Prediction:
    """What came of one recording.

    `windows`: start_s, duration_s, speech_ratio, p_<task>_<class>, and <task> where that is in years (NaN where a window
    held too little speech to be asked).
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
        for answer in self.answers.values():
            told |= answer.row()
        size = {
            "duration_s": round(self.duration_s, 3),
            "speech_ratio": self.speech_ratio,
            "windows": len(self.windows),
        }
        return {"name": self.name, "state": self.state, **told, **size, "warning": self.warning, "reason": self.reason}

    def timeline(self, task: str) -> pd.DataFrame:
        """start_s, duration_s and p_<class> of each window that was asked, for `lib.figures.plot_timeline`."""
        classes = self.answers[task].probabilities if task in self.answers else {}
        columns = {f"p_{task}_{name}": f"p_{name}" for name in classes}
        asked = self.windows[["start_s", "duration_s", *columns]].rename(columns=columns)
        return asked.dropna().reset_index(drop=True)

    def speech_regions(self, threshold: float = 0.5) -> list[tuple[float, float]]:
        """Stretches (start_s, end_s) that the detector takes for speech."""
        on = np.concatenate([[False], np.nan_to_num(self.speech) >= threshold, [False]])
        edges = np.flatnonzero(on[1:] != on[:-1]) * VAD_CHUNK / RATE_HZ
        return list(zip(edges[::2].tolist(), edges[1::2].tolist()))

    def as_json(self) -> dict[str, Any]:
        """Everything, the speech track as stretches, as JSON can hold it: what is not known is null."""
        windows = self.windows.astype(object).where(self.windows.notna(), None).to_dict("records")
        regions = [[round(start, 3), round(end, 3)] for start, end in self.speech_regions()]
        ratio = None if np.isnan(self.speech_ratio) else self.speech_ratio
        answers = {task: vars(answer) for task, answer in self.answers.items()}
        told = {"name": self.name, "state": self.state, "reason": self.reason, "warning": self.warning}
        size = {"duration_s": self.duration_s, "speech_ratio": ratio}
        return told | size | {"answers": answers, "speech": regions, "windows": windows}


# ------------------------------------------------------------------------------------------------ from windows to an answer


def join_tracks(tracks: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """One track of speech probability each 32 ms from (start_s, track) of overlapping windows; the later one counts."""
    places = [round(start_s * RATE_HZ / VAD_CHUNK) for start_s, _ in tracks]
    length = max((place + len(track) for place, (_, track) in zip(places, tracks)), default=0)
    joined = np.full(length, np.nan, np.float32)
    for place, (_, track) in zip(places, tracks):
        joined[place : place + len(track)] = track
    return joined


def conclude(name: str, duration_s: float, rows: list[dict], speech: np.ndarray, bundle: Bundle) -> Prediction:
    """The prediction from all windows: `rows` of `lib.predict`, and the joined track of speech."""
    if duration_s < SHORTEST_S:
        reason = f"{duration_s:.3f} s of sound; at least {SHORTEST_S:g} s are needed"
        return Prediction(name, "too short", reason, duration_s=duration_s)
    windows = pd.DataFrame(rows)
    share = float(np.mean(speech[~np.isnan(speech)] >= 0.5))
    heard = {"duration_s": duration_s, "speech_ratio": share, "windows": windows, "speech": speech}
    if not has_speech(windows["speech_ratio"], bundle):
        best = f"the best of {len(windows)} windows holds {100 * windows['speech_ratio'].max():.0f} % of speech"
        return Prediction(name, "no speech", best, **heard)
    answers = {task: _aggregate(head, windows) for task, head in bundle.heads.items()}
    sure = all(answer.state == "ok" for answer in answers.values())
    return Prediction(
        name, "ok" if sure else "unsure", _doubt(answers, bundle), _warn(duration_s, bundle), answers=answers, **heard
    )


def has_speech(ratios: Iterable[float], bundle: Bundle) -> bool:
    """Whether any window holds enough speech to answer from; `ratios`: the share of speech of each window."""
    return max(ratios, default=0.0) >= max(bundle.windowing.min_speech_ratio, LEAST_SPEECH)


def _aggregate(head: Head, windows: pd.DataFrame) -> Answer:
    """The mean over the windows that were asked."""
    told = windows[[f"p_{head.task}_{name}" for name in head.classes]].mean().to_numpy()
    probabilities = dict(zip(head.classes, told.tolist()))
    if head.years is not None:
        years, margin = float(windows[head.task].mean()), head.years.margin
        ends = (None, None) if margin is None else (max(0.0, years - margin), years + margin)
        return Answer(head.task, "ok", f"{years:.0f} years", probabilities, None, years, *ends)
    best = int(told.argmax())
    if told[best] < head.threshold:
        return Answer(head.task, "unsure", None, probabilities)
    by_threshold = None
    if head.rare is not None:
        rare, threshold = head.classes.index(head.rare[0]), head.rare[1]
        by_threshold = head.classes[int(answer_with_threshold(told[None], rare, threshold)[0])]
    return Answer(head.task, "ok", head.classes[best], probabilities, by_threshold)


def _doubt(answers: dict[str, Answer], bundle: Bundle) -> str:
    doubts = [
        f"{task}: best class at {100 * max(answer.probabilities.values()):.0f} %, answered from "
        f"{100 * bundle.heads[task].threshold:.0f} %"
        for task, answer in answers.items()
        if answer.state == "unsure"
    ]
    return "; ".join(doubts)


def _warn(duration_s: float, bundle: Bundle) -> str:
    window_s = bundle.windowing.window_s
    if duration_s >= window_s:
        return ""
    return f"only {duration_s:.1f} s of sound, repeated to fill a window of {window_s:g} s: less reliable"


# ------------------------------------------------------------------------------------------------------- many recordings


def predictions_table(predictions: list[Prediction]) -> pd.DataFrame:
    """One row a recording; a column that some recording does not have is empty there."""
    return pd.DataFrame([prediction.row() for prediction in predictions])


def count_states(states: Iterable[str]) -> pd.DataFrame:
    """How many recordings ended in each state, all five of them; the counts add up to the recordings given."""
    counts = pd.Series(list(states), dtype="str").value_counts().reindex(STATES, fill_value=0)
    return counts.rename_axis("state").rename("recordings").reset_index()
