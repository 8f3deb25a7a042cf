"""Ask a model about any recording, as in training and evaluation: files, folders, lists, samples in memory; where there is no
answer, a recording's state says why. `python -m lib.predict recording.mp3`"""

import argparse
import contextlib
import functools
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.audio import RATE_HZ, Recording, UnreadableAudio
from lib.compute import cores, torch_threads
from lib.corpora.own_data import list_recordings
from lib.embed import encode_batch
from lib.encoders import check_encoder
from lib.model_folder import DESCRIPTION, READY, Head, ModelFolder, load_model_folder, tell_gain
from lib.networks import select_input
from lib.paths import ASSETS, load_json, printable, write_whole
from lib.speed.engines import load_engine
from lib.train import predict_log_probabilities
from lib.trust.calibration import answer_with_threshold, disagreement
from lib.windows import VAD_BATCH, VAD_CHUNK, as_heard, as_stored, slide_windows, speech_probabilities, speech_ratio

STATES = ["ok", "unsure", "several speakers", "no speech", "too short", "unreadable"]
SHORTEST_S = 1.0  # a recording below this is not answered
LEAST_SPEECH = 0.1  # a recording whose best window has a smaller share of speech holds none
Model = ModelFolder | Path | str | None  # loaded, a folder, the name of one that ships; None = the ready one
HINT = "A guess about how a voice sounds; it does not reveal who someone is."
ready_engine = functools.lru_cache(4)(load_engine)  # the exact one, torch in float32; made once for all recordings


@dataclass(frozen=True)
class Answer:
    """What a model says for one task."""

    task: str
    state: str  # "ok", "unsure", or "several speakers"
    label: str | None  # None when it says none
    probabilities: dict[str, float | None]  # by class; None for several speakers: each window has its own
    by_threshold: str | None = None  # the label when the rare class is told from its own threshold, if there is one
    years: float | None = None  # the age, with its interval; None where no years were learned
    low_years: float | None = None
    high_years: float | None = None
    threshold: float = 0.0  # least probability of a label or hint

    def row(self) -> dict[str, Any]:
        """Columns <task>, p_<task>_<class> and, where there are any, <task>_by_threshold, <task>_low, <task>_high."""
        row: dict[str, Any] = {self.task: self.label or self.state}
        if self.years is not None:
            row = {self.task: self.years, f"{self.task}_low": self.low_years, f"{self.task}_high": self.high_years}
        if self.by_threshold:
            row[f"{self.task}_by_threshold"] = self.by_threshold
        return row | {f"p_{self.task}_{name}": value for name, value in self.probabilities.items()}

    def hint(self, window: dict[str, Any]) -> str:
        """What one window sounds like, in words; `window`: a row of `Prediction.windows`, None where it was not asked."""
        shares = {name: window.get(f"p_{self.task}_{name}") for name in self.probabilities}
        if None in shares.values():
            return f"{self.task}: too little speech"
        if self.task in window:
            return f"{self.task}: sounds about {window[self.task]:.0f}"
        best = max(shares, key=shares.get)
        told = f"sounds {best} ({shares[best]:.0%})" if shares[best] >= self.threshold else "unsure"
        return f"{self.task}: {told}"


@dataclass(frozen=True)
class Prediction:
    """What came of one recording.
    `windows`: start_s, duration_s, speech_ratio, p_<task>_<class>, and <task> where that is in years (NaN where a window
    held too little speech to be asked). `speech`: probability of speech for each 32 ms, NaN where no window reached.
    `tensors`: what heads read of the windows that were asked, some 20 kB each; {} unless it was to be kept."""

    name: str
    state: str
    reason: str = ""  # why there is no answer
    warning: str = ""  # what to mind about the one there is
    duration_s: float = 0.0
    speech_ratio: float = float("nan")
    answers: dict[str, Answer] = field(default_factory=dict)
    windows: pd.DataFrame = field(default_factory=pd.DataFrame)
    speech: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """One flat row: name, state, then per task the label and p_<task>_<class>, then what explains it."""
        row = {"name": self.name, "state": self.state}
        for answer in self.answers.values():
            row |= answer.row()
        row |= {"duration_s": round(self.duration_s, 3), "speech_ratio": self.speech_ratio}
        return row | {"windows": len(self.windows), "warning": self.warning, "reason": self.reason}

    def timeline(self, task: str) -> pd.DataFrame:
        """start_s, duration_s and p_<class> of each window that was asked, for the plot of a timeline."""
        classes = self.answers[task].probabilities if task in self.answers else {}
        columns = {f"p_{task}_{name}": f"p_{name}" for name in classes}
        return self.windows[["start_s", "duration_s", *columns]].rename(columns=columns).dropna().reset_index(drop=True)

    def speech_regions(self, threshold: float = 0.5) -> list[tuple[float, float]]:
        """Stretches (start_s, end_s) that the detector takes for speech."""
        on = np.concatenate([[False], np.nan_to_num(self.speech) >= threshold, [False]])
        edges = np.flatnonzero(on[1:] != on[:-1]) * VAD_CHUNK / RATE_HZ
        return list(zip(edges[::2].tolist(), edges[1::2].tolist()))

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON can hold it: the speech as stretches, each window with a hint in words; unknown is null."""
        windows = self.windows.astype(object).where(self.windows.notna(), None).to_dict("records")
        for window in windows:
            window["hint"] = "; ".join(answer.hint(window) for answer in self.answers.values())
        facts = {name: getattr(self, name) for name in ("name", "state", "reason", "warning", "duration_s")}
        facts["speech_ratio"] = None if np.isnan(self.speech_ratio) else self.speech_ratio
        facts["answers"] = {task: vars(answer) for task, answer in self.answers.items()}
        facts["speech"] = [[round(end_s, 3) for end_s in region] for region in self.speech_regions()]
        return facts | {"windows": windows}


def find_model(model: Path | str | None) -> Path:
    """Folder of a model: a path, or the name of one that ships; None = the first of `READY` whose encoder is installed, with
    a warning when it is not the very first. ValueError when there is none."""
    shipped, lacking = sorted(path.parent.name for path in ASSETS.glob(f"*/{DESCRIPTION}")), {}
    for name in (name for name in READY if model is None and name in shipped):
        try:
            check_encoder(load_json(ASSETS / name / DESCRIPTION)["encoder"]["name"])
        except ValueError as error:
            lacking = {name: error}
            continue
        for better, error in lacking.items():
            gain = f"by their own scores it would bring {tell_gain(ASSETS / better, ASSETS / name)}"
            text = f"the model '{better}' cannot answer here, '{name}' does: {error}. {gain}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return ASSETS / name
    folder = Path(model or READY[0])
    if folder.exists():
        return folder
    if str(folder) in shipped:
        return ASSETS / folder
    raise ValueError(f"{folder}: no such model; name a folder such as data/demo/models/best, or of {shipped}")


def predict(
    source: Path | str | np.ndarray, rate: int | None = None, *, model: Model = None,
    start_s: float = 0.0, end_s: float | None = None, name: str | None = None, progress: bool = False, keep: bool = False,
) -> Prediction:  # fmt: skip
    """Ask `model` about one recording: a `Prediction` for any file whatsoever.
    source, rate, start_s, end_s: as `lib.audio.Recording` takes them; `rate` in Hz goes with samples, and only with them.
    name: what the prediction is called, None = the file's name or "array". progress: show a bar. keep: `tensors` as well.
    ValueError for wrong arguments or a model folder that fails its checks."""
    model = model if isinstance(model, ModelFolder) else load_model_folder(find_model(model))
    is_path = isinstance(source, str | Path)
    if is_path == (rate is not None):
        raise ValueError(f"rate = {rate}: give it with an array of samples, and only then")
    if not 0.0 <= start_s < float("inf") or (end_s is not None and end_s <= start_s):
        raise ValueError(f"start_s = {start_s}, end_s = {end_s}: not a stretch of time")
    name = name or (printable(Path(source).name) if is_path else "array")
    recording, tables, kept = Recording(source, rate, start_s, end_s), [pd.DataFrame()], []
    try:
        with tqdm(desc=name, unit="s", unit_scale=True, disable=not progress) as bar:
            for windows, tensors in embed_recording(recording, model):
                tables.append(pd.concat([windows, *_ask_heads(windows, tensors, model)], axis=1))
                kept += [tensors] if keep and tensors else []
                bar.update(recording.samples / RATE_HZ - bar.n)
    except UnreadableAudio as error:
        return Prediction(name, "unreadable", reason=str(error))
    tensors = {part: np.concatenate([one[part] for one in kept]) for part in (kept or [{}])[0]}
    return replace(_conclude(name, recording, pd.concat(tables, ignore_index=True), model), tensors=tensors)


def embed_recording(recording: Recording, model: ModelFolder) -> Iterator[tuple[pd.DataFrame, dict[str, np.ndarray]]]:
    """Windows of a recording, some at a time; one second or more gives at least one. Yields a table of start_s, duration_s,
    speech_ratio, track (probability of speech each 32 ms), asked (whether that is enough for the heads), and tensors [asked
    windows, ...], which the heads see, as the store would give them, {} for none."""
    pieces = slide_windows(recording, replace(model.windowing, short_clips="repeat", min_clip_s=SHORTEST_S))
    engine = ready_engine(model.encoder, model.feature, samples=model.windowing.samples)

    def hear() -> pd.DataFrame:
        stored = [(start / RATE_HZ, as_stored(piece)) for start, piece in islice(pieces, VAD_BATCH)]
        tracks = speech_probabilities([as_heard(piece, len(piece)) for _, piece in stored])
        rows = [(*piece, len(piece[1]) / RATE_HZ, speech_ratio(track), track) for piece, track in zip(stored, tracks)]
        table = pd.DataFrame(rows, columns=["start_s", "stored", "duration_s", "speech_ratio", "track"])
        return table.assign(asked=table["speech_ratio"] >= model.windowing.min_speech_ratio)

    def encode(batch: list[np.ndarray]) -> dict[str, np.ndarray]:
        return encode_batch(engine, np.stack([as_heard(stored, model.windowing.samples) for stored in batch]))

    # one thread decodes what comes next and listens for speech, one a core encodes; torch computes on one core in each
    with torch_threads(1), ThreadPoolExecutor(1) as ears, ThreadPoolExecutor(cores()) as encoders:
        windows = hear()
        while len(windows):
            coming = ears.submit(hear)
            asked = windows.pop("stored")[windows["asked"]].tolist()
            batches = [asked[first : first + engine.batch] for first in range(0, len(asked), engine.batch)]
            parts = list(encoders.map(encode, batches))
            yield windows, {name: np.concatenate([part[name] for part in parts]) for name in (parts or [{}])[0]}
            windows = coming.result()


def _ask_heads(windows: pd.DataFrame, tensors: dict[str, np.ndarray], model: ModelFolder) -> Iterator[pd.DataFrame]:
    """What every head says of windows that are asked: p_<task>_<class>, calibrated, and <task> where it is in years, which are
    expected over the probabilities as trained, as 05 Evaluate scores them."""
    index = windows.index[windows["asked"]]
    for head in model.heads.values() if tensors else []:
        features = select_input(head.network, tensors, model.parts)
        raw = np.exp(predict_log_probabilities(head.model, features).astype(np.float64))
        yield pd.DataFrame(head.calibration.apply(raw), index, [f"p_{head.task}_{name}" for name in head.classes])
        if head.years:
            yield pd.DataFrame({head.task: raw @ head.years.centres}, index)


def _conclude(name: str, recording: Recording, windows: pd.DataFrame, model: ModelFolder) -> Prediction:
    duration_s, window_s, notes = recording.samples / RATE_HZ, model.windowing.window_s, list(recording.warnings)
    if duration_s < SHORTEST_S:
        reason = f"{duration_s:.3f} s of sound; at least {SHORTEST_S:g} s are needed"
        return Prediction(name, "too short", reason, "; ".join(notes), duration_s)
    if duration_s < window_s:
        notes.append(f"only {duration_s:.1f} s of sound, repeated to fill a window of {window_s:g} s: less reliable")
    speech = np.full(-(-recording.samples // VAD_CHUNK), np.nan, np.float32)
    for start_s, track in zip(windows["start_s"], windows["track"]):  # where windows overlap, the later one counts
        place = round(start_s * RATE_HZ / VAD_CHUNK)
        speech[place : place + len(track)] = track[: len(speech) - place]
    share, windows = float(np.mean(speech[~np.isnan(speech)] >= 0.5)), windows.drop(columns=["track", "asked"])
    prediction = Prediction(name, "no speech", "", "; ".join(notes), duration_s, share, {}, windows, speech)
    best = windows["speech_ratio"].max()
    if best < max(model.windowing.min_speech_ratio, LEAST_SPEECH):
        return replace(prediction, reason=f"the best of {len(windows)} windows holds {100 * best:.0f} % of speech")
    pairs = _settle_ages([_join_windows(head, windows) for head in model.heads.values()], model.heads)
    state = max((answer.state for answer, _ in pairs), key=STATES.index)
    reason = "; ".join(f"{answer.task}: {why}" for answer, why in pairs if why)
    return replace(prediction, state=state, reason=reason, answers={answer.task: answer for answer, _ in pairs})


def _join_windows(head: Head, windows: pd.DataFrame) -> tuple[Answer, str]:
    """The mean over the windows that were asked, and ""; or an answer without a label, and why."""
    each = windows[[f"p_{head.task}_{name}" for name in head.classes]].dropna().to_numpy()
    mean, most_bits = each.mean(axis=0), head.disagreement
    answer = Answer(head.task, "ok", None, dict(zip(head.classes, mean.tolist())), threshold=head.threshold)
    bits = disagreement(each)
    if most_bits is not None and bits > most_bits:  # of windows of one validation speaker
        counts = Counter(head.classes[place] for place in each.argmax(axis=1))
        told = ", ".join(f"{count} sound {name}" for name, count in counts.items())
        why = f"windows differ more than one voice's do ({bits:.3f} of at most {most_bits:.3f} bits): {told}"
        return replace(answer, state="several speakers", probabilities=dict.fromkeys(head.classes)), why
    if head.years is not None:
        years, margin = float(windows[head.task].mean()), head.years.margin
        low, high = (None, None) if margin is None else (max(0.0, years - margin), years + margin)
        return replace(answer, label=f"{years:.0f} years", years=years, low_years=low, high_years=high), ""
    if mean.max() < head.threshold:
        why = f"best class at {100 * mean.max():.0f} %, answered from {100 * head.threshold:.0f} %"
        return replace(answer, state="unsure"), why
    if head.rare is not None:
        rare, threshold = head.classes.index(head.rare[0]), head.rare[1]
        answer = replace(answer, by_threshold=head.classes[answer_with_threshold(mean[None], rare, threshold)[0]])
    return replace(answer, label=head.classes[int(mean.argmax())]), ""


def _settle_ages(pairs: list[tuple[Answer, str]], heads: dict[str, Head]) -> list[tuple[Answer, str]]:
    """The same, but no class of age outside of the interval in years: few of either are right (docs/experiments.md)."""
    age = next((answer for answer, _ in pairs if answer.low_years is not None), None)
    for place, (answer, _) in enumerate(pairs if age else []):
        low, high = heads[answer.task].spans.get(answer.label, (0.0, None))
        if age.high_years < low or age.low_years >= (high or float("inf")):
            why = f"sounds {answer.label}, yet {age.label} old ({age.low_years:.0f} to {age.high_years:.0f}): believe neither"
            pairs[place] = replace(answer, state="unsure", label=None, by_threshold=None), why
    return pairs


def predict_listed(
    recordings: pd.DataFrame, model: Model = None, progress: bool = True, keep: Iterable[bool] = ()
) -> list[Prediction]:
    """Ask about every row of `list_recordings`: as many predictions, in their order, whatever the files hold. keep: for each row
    whether its `tensors` are kept; () = none are."""
    model = model if isinstance(model, ModelFolder) else load_model_folder(find_model(model))
    predictions, alone = [], progress and len(recordings) == 1  # one file has a bar of its own
    rows = list(zip_longest(recordings.itertuples(), keep, fillvalue=False))
    for row, kept in tqdm(rows, "predicting", unit="file", disable=not progress or alone):
        options = {"name": row.name, "start_s": row.start_s, "end_s": row.end_s, "progress": alone, "keep": kept}
        lost = Prediction(row.name, "unreadable", reason=row.fault)
        predictions.append(lost if row.fault else predict(row.path, model=model, **options))
    return predictions


def count_states(states: Iterable[str]) -> pd.DataFrame:
    """How many recordings ended in each state, all six of them; the counts add up to the recordings given."""
    counts = pd.Series(pd.Categorical(states, STATES)).value_counts(sort=False)
    return counts.rename_axis("state").reset_index(name="recordings")


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code: 0, 1 when no recording could be read, 2 when the call was refused."""
    warnings.simplefilter("ignore")  # of libraries, which no one here can mend
    warnings.filterwarnings("default", message="the model '")
    parser = argparse.ArgumentParser(prog="python -m lib.predict", description="Ask a model about recordings.")
    parser.add_argument("sources", nargs="*", metavar="FILE|FOLDER|list.csv", help="what to ask about")
    parser.add_argument("--model", help="a model folder, or the name of one that ships; else the ready one")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", nargs="?", const="-", metavar="OUT.json", help="everything, windows included, as JSON")
    form.add_argument("--csv", nargs="?", const="-", metavar="OUT.csv", help="one line a recording")
    # a file whose name begins with a dash is no option
    words = sys.argv[1:] if arguments is None else arguments
    words = [f"./{word}" if word[:1] == "-" and os.path.lexists(word) else word for word in words]
    options, unknown = parser.parse_known_args(words)
    try:
        if word := next(iter(unknown), ""):
            raise ValueError(f"{word}: neither an option (see --help) nor a file that is there; write ./{word}")
        if options.sources and not options.model and (Path(options.sources[0]) / DESCRIPTION).is_file():
            options.model = options.sources.pop(0)  # as in `python -m lib.predict MODEL FILE`
        target = options.json or options.csv or "-"
        if target != "-" and not target.lower().endswith((".json", ".csv")):
            raise ValueError(f"{target}: answers go to a name in .json or .csv; put recordings before --json and --csv")
        if not options.sources or "" in options.sources:  # an empty name would be the current folder
            raise ValueError("give a recording, a folder of them, or a list")
        with contextlib.nullcontext() if target == "-" else write_whole(Path(target)) as partial:  # before any work
            model = load_model_folder(find_model(options.model))
            recordings = pd.concat([list_recordings(source) for source in options.sources], ignore_index=True)
            predictions = predict_listed(recordings, model)
            text = _as_text(predictions, model, options)
            sys.stdout.write(text) if partial is None else partial.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    counts = Counter(prediction.state for prediction in predictions)
    notes = [*(f"note: {warning}" for warning in model.warnings), "; ".join(f"{k}: {n}" for k, n in counts.items())]
    print(*notes, sep="\n", file=sys.stderr)
    return int(set(counts) == {"unreadable"})


def _as_text(predictions: list[Prediction], model: ModelFolder, options: argparse.Namespace) -> str:
    table = pd.DataFrame([prediction.row() for prediction in predictions])
    if options.csv:
        return table.to_csv(index=False)
    if options.json:
        about = {"model": model.name, "hint": HINT, "notes": model.warnings}
        about["heads"] = model.describe().to_dict("records")
        about["predictions"] = [prediction.as_json() for prediction in predictions]
        return json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if len(table) == 1:
        return table.T.dropna().to_string(header=False, float_format="{:.3f}".format) + f"\n{HINT}\n"
    table["note"] = table.pop("reason").where(lambda reason: reason != "", table.pop("warning"))
    return table.drop(columns="windows").fillna("").to_string(index=False, float_format="{:.3f}".format) + f"\n{HINT}\n"


if __name__ == "__main__":
    sys.exit(main())
