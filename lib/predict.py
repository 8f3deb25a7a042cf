"""Ask a model about any recording: a file, a folder, a list, samples in memory. `python -m lib.predict MODEL FILE`

One path for evaluation and for inference: decode, cut the windows that were trained on, measure speech, encode in the
precision of the store, ask the heads, average over windows. A recording gets an honest state where there is no answer:
"ok", "unsure", "no speech", "too short", "unreadable".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.answers import Prediction, conclude, count_states, join_tracks, predictions_table
from lib.audio import RATE_HZ, UnreadableAudio
from lib.embed import BATCH, encode_batch
from lib.model_folder import Bundle, Head, load_bundle
from lib.paths import write_whole
from lib.scores import expected_years
from lib.speed.engines import SMALL, cores, torch_threads
from lib.streams import WindowStream, array_blocks, stream_waveform
from lib.train import predict_log_probabilities
from lib.trust.calibration import Calibration, apply_calibration
from lib.windows import VAD_BATCH, cut_window, speech_probabilities, speech_ratio

# ----------------------------------------------------------------------------------------------------- one recording


def predict(
    source: Path | str | np.ndarray,
    rate: int | None = None,
    *,
    model: Bundle | Path | str,
    start_s: float = 0.0,
    end_s: float | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Prediction:
    """Ask `model` about one recording.

    Parameters
    ----------
    source: path of any audio file, or samples of shape (samples,) or with the channels on the shorter axis.
    rate: of the samples, Hz; must be given for an array and for nothing else.
    model: a loaded bundle, or its folder.
    start_s, end_s: a cut of the file, seconds; None = to its end.
    name: what the prediction is called; None = the file's name, or "array".
    progress: show a bar over the seconds heard.

    Returns a `Prediction` for any file whatsoever: one that cannot be read has the state "unreadable" and its reason.
    Raises ValueError for wrong arguments and for a model folder that fails its checks.
    """
    bundle = model if isinstance(model, Bundle) else load_bundle(Path(model))
    is_path = isinstance(source, str | Path)
    if is_path == (rate is not None):
        raise ValueError(f"rate = {rate}: give it with an array of samples, and only then")
    if not is_path and (start_s, end_s) != (0.0, None):
        raise ValueError(
            f"start_s = {start_s}, end_s = {end_s}: cut a file with them; of an array pass the slice itself"
        )
    if not 0.0 <= start_s < float("inf") or (end_s is not None and end_s <= start_s):
        raise ValueError(f"start_s = {start_s}, end_s = {end_s}: not a stretch of time")
    name = name or (Path(source).name if is_path else "array")
    try:
        blocks = stream_waveform(Path(source), start_s, end_s) if is_path else array_blocks(source, rate)
        with tqdm(desc=name, unit="s", unit_scale=True, disable=not progress) as bar:
            return _answer(name, blocks, bundle, bar)
    except UnreadableAudio as error:
        return Prediction(name, "unreadable", reason=str(error))


def _answer(name: str, blocks: Iterable[np.ndarray], bundle: Bundle, bar: tqdm) -> Prediction:
    stream = WindowStream(blocks, bundle.windowing)
    rows, tracks = [], []
    for found, probabilities, tensors in embed_stream(stream, bundle):
        asked = [number for number, row in enumerate(found) if row.pop("asked")]
        for head in bundle.heads.values():
            told, years = ask_head(head, tensors) if asked else ([], [])
            for number, values in zip(asked, told):
                found[number] |= {f"p_{head.task}_{name}": value for name, value in zip(head.classes, values)}
            for number, value in zip(asked, years):
                found[number][head.task] = value
        rows += found
        tracks += [(row["start_s"], track) for row, track in zip(found, probabilities)]
        bar.update(stream.samples / RATE_HZ - bar.n)
    bar.update(stream.samples / RATE_HZ - bar.n)
    return conclude(name, stream.samples / RATE_HZ, rows, join_tracks(tracks), bundle)


def embed_stream(
    windows: Iterable[tuple[int, np.ndarray]], bundle: Bundle
) -> Iterator[tuple[list[dict[str, Any]], list[np.ndarray], dict[str, np.ndarray]]]:
    """Speech and embeddings of (first sample, waveform) pairs, a group at a time.

    Yields (rows, speech, tensors): a row a window (start_s, duration_s, speech_ratio, asked), its speech probability each
    32 ms, and the tensors [asked windows, ...] of those with enough speech, as the store would give them; {} for none.
    """
    waiting, before = iter(windows), None
    # One thread decodes and listens for speech, one a core encodes, with a group in hand; torch computes on one core in each
    with torch_threads(1), ThreadPoolExecutor(1) as ears, ThreadPoolExecutor(cores()) as encoders:
        coming = ears.submit(_hear_group, waiting, bundle)
        while found := coming.result():
            coming = ears.submit(_hear_group, waiting, bundle)
            rows, probabilities, heard = found
            now = (rows, probabilities, _encode_group(heard, bundle, encoders))
            if before:
                yield _join_group(*before)
            before = now
        if before:
            yield _join_group(*before)


def _encode_group(heard: list[np.ndarray], bundle: Bundle, encoders: ThreadPoolExecutor) -> list[Future]:
    """Begin to encode waveforms in batches of the encoder's size."""
    size = BATCH["small" if bundle.encoder.parameters < SMALL else "large"]
    batches = [np.stack(heard[first : first + size]) for first in range(0, len(heard), size)]
    return [encoders.submit(encode_batch, bundle.encoder, batch, bundle.feature, bundle.dtype) for batch in batches]


def _join_group(rows: list, probabilities: list, parts: list[Future]) -> tuple[list, list, dict[str, np.ndarray]]:
    done = [part.result() for part in parts]
    return rows, probabilities, {name: np.concatenate([part[name] for part in done]) for name in (done or [{}])[0]}


def _hear_group(waiting: Iterator[tuple[int, np.ndarray]], bundle: Bundle) -> tuple[list, list, list] | None:
    """Rows, speech tracks and, of those to be asked, waveforms of the next windows; None when there are no more."""
    group = list(islice(waiting, VAD_BATCH))
    if not group:
        return None
    probabilities = speech_probabilities([piece for _, piece in group])
    ratios = [speech_ratio(track, 0, len(piece)) for track, (_, piece) in zip(probabilities, group)]
    rows = [
        {"start_s": start / RATE_HZ, "duration_s": len(piece) / RATE_HZ, "speech_ratio": ratio}
        | {"asked": ratio >= bundle.windowing.min_speech_ratio}
        for (start, piece), ratio in zip(group, ratios)
    ]
    size = bundle.windowing.samples
    return rows, probabilities, [cut_window(piece, 0, size) for (_, piece), row in zip(group, rows) if row["asked"]]


def ask_head(head: Head, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, C] of one head for windows' tensors, calibrated as its bundle says, and ages in years.

    Ages [n] are the expected ones over the classes' probabilities as trained, as 05 Evaluate scores them; [0] for a head
    that was not trained on years.
    """
    features = tensors[head.tensor]
    told = np.exp(predict_log_probabilities(head.model, features, np.arange(len(features))).astype(np.float64))
    years = expected_years(told, head.years.centres) if head.years else np.zeros(0)
    return (told if head.calibration == Calibration() else apply_calibration(told, head.calibration)), years


# --------------------------------------------------------------------------------------------------- many recordings


def list_recordings(source: Path | str) -> pd.DataFrame:
    """What to ask about: name, path, start_s, end_s, fault, and labels where a list gives them.

    `source`: one file; a folder, of which every file counts but hidden ones, broken links and subfolders included; or a CSV as
    `lib.corpora.own_data` describes it (`path`, and optionally speaker, gender, age, start_s, end_s). A line of the CSV that cannot
    be used stays as a row with its `fault`. ValueError when there is nothing of that name, or nothing in it.
    """
    source = Path(source)
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if not path.is_dir() and not _is_hidden(path, source))
        if not files:
            raise ValueError(f"{source}: no files in this folder")
        names = [path.relative_to(source).as_posix() for path in files]
    elif source.suffix.lower() == ".csv":
        return _list_of_csv(source)
    elif source.is_file():
        names, files = [source.name], [source]
    else:
        raise ValueError(f"{source}: no such file or folder")
    return pd.DataFrame({"name": names, "path": files, "start_s": 0.0, "end_s": np.nan, "fault": ""})


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _list_of_csv(source: Path) -> pd.DataFrame:
    from lib.corpora.own_data import CORPUS, read_own_data

    if not source.is_file():
        raise ValueError(f"{source}: no such list")
    clips, ledger = read_own_data(source, for_training=False)
    names = clips["clip_id"].str.removeprefix(f"{CORPUS}:")
    listed = clips.assign(name=names, path=[source.parent / path for path in clips["path"]], fault="")
    lost = pd.DataFrame({"name": ledger["item"], "fault": ledger["item"] + ": " + ledger["reason"], "start_s": 0.0})
    kept = ["name", "path", "start_s", "end_s", "fault", "clip_id", "speaker_id", "gender", "age_years", "age_decade"]
    both = pd.concat([listed, lost], ignore_index=True) if len(lost) else listed
    return both[kept].assign(fault=both["fault"].fillna(""))


def predict_listed(recordings: pd.DataFrame, model: Bundle | Path | str, progress: bool = True) -> list[Prediction]:
    """Ask about every row of `list_recordings`; as many predictions as rows, in their order, whatever the files hold."""
    bundle = model if isinstance(model, Bundle) else load_bundle(Path(model))
    found = []
    for row in tqdm(list(recordings.itertuples(index=False)), desc="predicting", unit="file", disable=not progress):
        if row.fault:
            found.append(Prediction(row.name, "unreadable", reason=row.fault))
        else:
            found.append(predict(row.path, model=bundle, start_s=row.start_s, end_s=row.end_s, name=row.name))
    return found


def predict_folder(folder: Path | str, model: Bundle | Path | str, progress: bool = True) -> list[Prediction]:
    """Ask about every file of a folder (or of a CSV list); a bad file becomes a prediction that says so."""
    return predict_listed(list_recordings(folder), model, progress)


# ----------------------------------------------------------------------------------------------------- command line


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m lib.predict`."""
    parser = argparse.ArgumentParser(prog="python -m lib.predict", description="Ask a model about recordings.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder, such as data/demo/models/paper")
    parser.add_argument("source", type=Path, metavar="FILE|FOLDER|list.csv", help="what to ask about")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", nargs="?", const="-", metavar="OUT", help="everything, windows included, as JSON")
    form.add_argument("--csv", nargs="?", const="-", metavar="OUT", help="one line a recording")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code: 0, 1 when no recording could be read, 2 when the call was refused."""
    asked = parse_arguments(arguments)
    try:
        bundle = load_bundle(asked.model)
        recordings = list_recordings(asked.source)
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    for warning in bundle.warnings:
        print(f"note: {warning}", file=sys.stderr)
    if len(recordings) == 1 and not recordings["fault"].iloc[0]:
        row = recordings.iloc[0]
        span = {"start_s": row["start_s"], "end_s": row["end_s"]}
        found = [predict(row["path"], model=bundle, name=row["name"], progress=True, **span)]
    else:
        found = predict_listed(recordings, bundle)
    _write(found, bundle, asked)
    counts = count_states(prediction.state for prediction in found).query("recordings > 0")
    print("; ".join(f"{row.state}: {row.recordings}" for row in counts.itertuples()), file=sys.stderr)
    return int(all(prediction.state == "unreadable" for prediction in found))


def _write(found: list[Prediction], bundle: Bundle, asked: argparse.Namespace) -> None:
    table = predictions_table(found)
    if asked.json:
        about = {"model": bundle.name, "notes": bundle.warnings, "heads": bundle.describe().to_dict("records")}
        content = about | {"predictions": [prediction.as_json() for prediction in found]}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    else:
        text = table.to_csv(index=False) if asked.csv else _readable(table, len(found))
    target = asked.json or asked.csv or "-"
    if target == "-":
        sys.stdout.write(text)
        return
    with write_whole(Path(target)) as partial:
        partial.write_text(text, encoding="utf-8")


def _readable(table: pd.DataFrame, count: int) -> str:
    if count == 1:
        return table.T.dropna().to_string(header=False, float_format="{:.3f}".format) + "\n"
    shown = table.assign(note=[reason or warning for reason, warning in zip(table["reason"], table["warning"])])
    shown = shown.drop(columns=["reason", "warning", "windows"]).fillna("")
    return shown.to_string(index=False, float_format="{:.3f}".format) + "\n"


if __name__ == "__main__":
    sys.exit(main())
