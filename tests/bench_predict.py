"""`python tests/bench_predict.py [MODEL] [MINUTES]`, the demo's best and 60 if not told: asks MODEL, in a fresh
process, about so long a FLAC of invented speakers; prints speed and peak memory, with everything loaded, as JSON."""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

from lib import paths, stages
from lib.audio import RATE_HZ, read_waveform
from lib.corpora.demo.render import render_unseen
from lib.model_folder import load_model_folder
from lib.predict import predict


def make_recording(folder: Path, minutes: float, rate_hz: int = 44_100) -> Path:
    render_unseen(folder, seed=0, count=12)
    speech = np.concatenate([read_waveform(path) for path in sorted((folder / "recordings").glob("2*"))])
    speech = soxr.resample(speech, RATE_HZ, rate_hz)[:, None] * [1, 0.7]
    with soundfile.SoundFile(folder / "long.flac", "w", rate_hz, 2) as file:
        for left in range(round(minutes * 60 * rate_hz), 0, -len(speech)):
            file.write(speech[:left])
    return folder / "long.flac"


def measure(folder: str, file: Path) -> None:
    model, start, busy = load_model_folder(folder), time.perf_counter(), time.process_time()
    answer = predict(file, model=model)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    facts = {"model": model.name, "encoder": model.encoder.name, "state": answer.state, "windows": len(answer.windows)}
    facts |= {"minutes": answer.duration_s / 60, "times_real_time": round(answer.duration_s / seconds, 1)}
    facts |= {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": stages.peak_memory_mb()}
    print(json.dumps(facts))


if __name__ == "__main__":
    told = dict(enumerate(sys.argv))
    folder, minutes = told.get(1, paths.DATA / "demo/models/best"), float(told.get(2, 60))
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(measure, (folder, make_recording(Path(name), minutes)))
