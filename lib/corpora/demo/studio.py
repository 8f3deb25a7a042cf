"""Where invented speakers are recorded: sentences, sessions with espeak-ng, and many speakers at once, resumably."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.corpora.demo.espeak import Synthesizer, Voice, open_synthesizer
from lib.corpora.demo.recording import rms_of
from lib.corpora.demo.speakers import Speaker, vary_effort
from lib.paths import ASSETS, load_json, save_json

LOCALES = {"en": 0.4, "de": 0.2, "fr": 0.15, "es": 0.15, "it": 0.1}  # share of the speakers
SHARE_SPEAKING = 0.02  # of the peak: quieter than this at both ends is trimmed away


@dataclass(frozen=True)
class Sore:
    """Something that is wrong in real corpora, to be planted in small numbers."""

    times: int  # speakers who get it
    items: int  # rows, or frame files, that it makes each time
    reason: str  # under which a ledger counts them; "" = nothing is dropped for it


@dataclass(frozen=True)
class Task:
    """One speaker's recordings to make. `sores` are planted in extra recordings, by name."""

    folder: str
    corpus: str
    seed: int
    speaker: Speaker
    clips: int
    sores: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)  # raw values that replace the true labels

    @property
    def record_path(self) -> Path:
        """Where the speaker's finished rows are kept until the tables are written."""
        return Path(self.folder) / ".speakers" / f"{self.corpus}-{self.speaker.number:05d}.json"


@dataclass
class Session:
    """One speaker before the microphone, with a random generator of his or her own."""

    speaker: Speaker
    synthesizer: Synthesizer
    rng: np.random.Generator

    @property
    def rate_hz(self) -> int:
        """Rate of every waveform that `say` gives."""
        return self.synthesizer.rate_hz

    def say(self, text: str, voice: Voice | None = None) -> np.ndarray:
        """Dry speech [samples] of RMS 1 without silence at its ends; None = the speaker's voice on this occasion."""
        spoken = self.synthesizer.say(text, voice or vary_effort(self.speaker.voice, self.rng), self.speaker.language)
        loud = np.flatnonzero(np.abs(spoken) > SHARE_SPEAKING * np.abs(spoken).max())
        spoken = spoken[loud[0] : loud[-1] + 1]
        return spoken / (rms_of(spoken) + 1e-9)

    def write_sentence(self) -> str:
        """A new sentence in the speaker's language."""
        parts = load_sentences()[self.speaker.language]
        return " ".join(str(self.rng.choice(parts[part])) for part in ("who", "did", "when"))

    def pad(self, waveform: np.ndarray, low_s: float = 0.15, high_s: float = 0.7) -> np.ndarray:
        """Silence of low_s to high_s seconds before and after."""
        before, after = (np.zeros(int(self.rng.uniform(low_s, high_s) * self.rate_hz), np.float32) for _ in range(2))
        return np.concatenate([before, waveform, after])


@functools.cache
def load_sentences() -> dict[str, dict[str, list[str]]]:
    """Invented sentence parts by language: who, did, when, and single words."""
    return load_json(ASSETS / "sentences.json")


@contextlib.contextmanager
def open_session(task: Task) -> Iterator[Session]:
    """Open a session whose every draw and sample depends on the task alone."""
    number = task.speaker.number
    with open_synthesizer([task.speaker.language], seed=task.seed + number) as synthesizer:
        yield Session(task.speaker, synthesizer, np.random.default_rng([task.seed, 2, number]))


def count_planted(sores: dict[str, Sore], names: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """(items planted by sore, items that a ledger must count by reason) for the `names` that were planted."""
    planted: Counter[str] = Counter()
    ledger: Counter[str] = Counter()
    for name in names:
        planted[name] += sores[name].items
        if sores[name].reason:
            ledger[sores[name].reason] += sores[name].items
    return dict(sorted(planted.items())), dict(sorted(ledger.items()))


def render_all(
    tasks: list[Task], render: Callable[[Task], dict[str, Any]], workers: int | None, label: str
) -> list[dict[str, Any]]:
    """Render every task that has no record yet and return all records in the order of `tasks`.

    `render` is a module-level function; `workers` None = one process a core, at most four; 1 = in this process.
    """
    missing = [task for task in tasks if not task.record_path.exists()]
    workers = min(workers or min(os.cpu_count() or 1, 4), max(len(missing), 1))
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), desc=label, unit="speaker") as progress:
        if workers == 1:
            for task in missing:
                _render_one(render, task)
                progress.update()
        elif missing:
            from concurrent.futures import ProcessPoolExecutor, as_completed
            from multiprocessing import get_context

            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            try:
                for future in as_completed([pool.submit(_render_one, render, task) for task in missing]):
                    future.result()
                    progress.update()
            finally:
                pool.shutdown(cancel_futures=True)  # after an error the speakers still waiting are not begun
    return [load_json(task.record_path) for task in tasks]


def _render_one(render: Callable[[Task], dict[str, Any]], task: Task) -> None:
    save_json(task.record_path, render(task))
