"""Speed, memory and parity of prediction: `python tests/bench_predict.py [MODEL] [--minutes 60] [--file FILE]`.

Repeats a few invented speakers to an hour of stereo FLAC at 44.1 kHz (or takes FILE), asks MODEL about it in a fresh
process, and prints one line of JSON: seconds, times real time, processor seconds, peak memory with everything loaded, and
how far the answers are from those of the same sound held in memory. With the run's tables at hand it also predicts every
test clip from its file and prints the largest difference from 05 Evaluate's own row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr

from lib import evaluate, paths, stages, tables
from lib.audio import RATE_HZ, read_waveform
from lib.model_folder import ModelFolder, load_model_folder
from lib.predict import predict
from lib.scores import aggregate_predictions
from lib.tasks import load_tasks
from lib.trust import confidence, summary

CHECKED_S = 300.0  # of the file are asked again from memory


def make_recording(folder: Path, minutes: float, rate_hz: int = 44_100) -> Path:
    """Write `minutes` of repeated invented speakers as stereo FLAC, ten minutes at a time."""
    from lib.corpora.demo.render import render_unseen

    render_unseen(folder, seed=0, count=12)
    sounds = [read_waveform(path) for path in sorted((folder / "recordings").glob("2*"))]
    speech = soxr.resample(np.concatenate(sounds), RATE_HZ, rate_hz)
    speech = np.stack([speech, 0.7 * speech], axis=1)
    target, left = folder / "long.flac", round(minutes * 60 * rate_hz)
    with soundfile.SoundFile(target, "w", rate_hz, 2) as file:
        while left > 0:
            file.write(speech[:left])
            left -= len(speech)
    return target


def measure(model: ModelFolder, file: Path) -> dict[str, float | str]:
    """Ask about the file once; memory is this process's peak."""
    start, busy = time.perf_counter(), time.process_time()
    answer = predict(file, model=model)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    peak_mb = stages.peak_memory_mb()
    whole = read_waveform(file, 0.0, CHECKED_S)
    again = predict(whole, RATE_HZ, model=model).windows
    columns = [name for name in again if name not in ("start_s", "duration_s")]
    gap = float((answer.windows[columns].iloc[: len(again)] - again[columns]).abs().max(axis=None))
    return {"model": model.name, "encoder": model.encoder.name, "state": answer.state, "minutes": answer.duration_s / 60,
            "windows": len(answer.windows), "seconds": round(seconds, 1), "times_real_time": round(answer.duration_s / seconds, 1),
            "cpu_seconds": round(cpu, 1), "peak_mb": peak_mb, "gap_from_memory": gap}  # fmt: skip


def measure_parity(model: ModelFolder) -> dict[str, float | int]:
    """Predict the files of all test clips of the model's run; largest difference from the rows of 05 Evaluate.

    The store of a run holds float16 by default, and its engine may not be the exact one: both are part of the difference.
    """
    run, protocol = (model.description["about"][name] for name in ("run", "protocol"))
    downloaded, evaluated = stages.find_stage("01_download", run), stages.find_stage("05_evaluate", run)
    clips = tables.load_table(downloaded.path("clips.parquet"), "clips").set_index("clip_id")
    predictions = tables.load_table(evaluated.path("predictions.parquet"), "predictions")
    settings, expected = summary.load_scores(evaluated)["settings"], {}
    for task in load_tasks(downloaded):
        if task.name in model.heads:
            asked = (predictions, task, model.heads[task.name].network, protocol, "test")
            rows = evaluate.select_answers(*asked, first_seed=True).query("fold == 0")
            rows = confidence.calibrate_answers(rows, settings, task).drop(columns=["silence", "rare_threshold"])
            told = aggregate_predictions(rows, "clip").set_index("clip_id")
            expected[task.name] = told[[f"p_{name}" for name in task.classes]]
    return _compare(expected, clips, stages.load_roots(downloaded), model)


def _compare(
    expected: dict[str, pd.DataFrame], clips: pd.DataFrame, roots: dict[str, Path], model: ModelFolder
) -> dict:
    gaps = []
    asked = sorted(set().union(*(rows.index for rows in expected.values())))
    for clip_id in asked:
        clip = clips.loc[clip_id]
        stretch = {"start_s": clip["start_s"], "end_s": clip["end_s"]}
        answers = predict(roots[clip["corpus"]] / clip["path"], model=model, **stretch).answers
        for task, rows in expected.items():
            told = list(answers[task].probabilities.values())
            if clip_id in rows.index and None not in told:  # which a recording of several voices has
                gaps.append(np.abs(rows.loc[clip_id].to_numpy() - told).max())
    return {"test_clips": len(asked), "parity_error": float(np.max(gaps))}


def main() -> None:
    """Make the recording and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=paths.DATA / "demo" / "models" / "best")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--file", type=Path, help="a recording of your own in place of the invented one")
    parser.add_argument("--measure", action="store_true", help="only ask about FILE, in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(load_model_folder(options.model), options.file)))
        return
    with tempfile.TemporaryDirectory() as name:
        file = options.file or make_recording(Path(name), options.minutes)
        call = [sys.executable, __file__, str(options.model), "--measure", "--file", str(file)]
        print(subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), flush=True)
    model = load_model_folder(options.model)
    if model.description["about"].get("run"):
        print(json.dumps(measure_parity(model)), flush=True)


if __name__ == "__main__":
    main()
