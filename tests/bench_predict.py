"""Speed and memory of prediction: `python tests/bench_predict.py [MODEL] [--minutes 60] [--file FILE]`.

Repeats a few invented speakers to an hour of stereo FLAC at 44.1 kHz (or takes FILE), asks MODEL about it in a fresh process,
and prints one line of JSON: seconds, times real time, processor seconds, and peak memory with everything loaded.
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
import soundfile
import soxr

from lib import paths, stages
from lib.audio import RATE_HZ, read_waveform
from lib.corpora.demo.render import render_unseen
from lib.model_folder import load_model_folder
from lib.predict import predict


def make_recording(folder: Path, minutes: float, rate_hz: int = 44_100) -> Path:
    """Write `minutes` of repeated invented speakers as stereo FLAC."""
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


def measure(folder: Path, file: Path) -> dict[str, float | str]:
    """Ask about the file once; memory is this process's peak."""
    model, start, busy = load_model_folder(folder), time.perf_counter(), time.process_time()
    answer = predict(file, model=model)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    facts = {"model": model.name, "encoder": model.encoder.name, "state": answer.state, "windows": len(answer.windows)}
    facts |= {"minutes": answer.duration_s / 60, "times_real_time": round(answer.duration_s / seconds, 1)}
    return facts | {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": stages.peak_memory_mb()}


def main() -> None:
    """Make the recording and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=paths.DATA / "demo" / "models" / "best")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--file", type=Path, help="a recording of your own in place of the invented one")
    parser.add_argument("--measure", action="store_true", help="only ask about FILE, in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.model, options.file)))
        return
    with tempfile.TemporaryDirectory() as name:
        file = options.file or make_recording(Path(name), options.minutes)
        subprocess.run([sys.executable, __file__, str(options.model), "--measure", "--file", str(file)], check=True)


if __name__ == "__main__":
    main()
