"""How fast and how large: `python -m lib.speed.bench` measures everything on the same audio in one run.

The paper's loop (decode a window, one call of the model for it, float32) is 1.0; every engine is a ratio to it. Without the
published weights the full-size encoder's are drawn at random: speed is the same, errors are not, and its name says so.
"""

import argparse
import multiprocessing
import os
import tempfile
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import nn

from lib import embed, encoders, paths
from lib.audio import RATE_HZ, read_waveform
from lib.compute import Compute, choose_compute, cores, torch_threads
from lib.encoders import Encoder, load_encoder
from lib.networks import build_network
from lib.speed.engines import PRECISIONS, Engine, EngineChoice, load_engine
from lib.stages import peak_memory_mb
from lib.store import Store
from lib.train import Recipe, fit_network, train_epoch

ENGINES = [(library, precision) for library, precisions in PRECISIONS.items() for precision in precisions]
FULL_SIZE = "WAV2VEC2_ASR_BASE_960H"  # the paper's encoder
LOOP = "the paper's loop"
SAMPLES, FRAMES, BATCH = 3 * RATE_HZ, (149, 32), 50  # of a window, its features, and a training step: as in the paper

Rows = list[dict[str, Any]]


def find_files(corpus: Path | None, folder: Path, count: int) -> list[Path]:
    """Sound files of a corpus, spread evenly over it; without one, noise that is written into `folder`."""
    if corpus:
        files = sorted(path for path in corpus.rglob("*") if path.suffix in (".wav", ".flac", ".mp3", ".opus"))
        if not files:
            raise ValueError(f"{corpus}: no sound files in this folder; give another, or none for noise")
        return [files[k] for k in np.linspace(0, len(files) - 1, count).astype(int)]
    soundfile.write(folder / "noise.wav", np.random.default_rng(0).normal(0, 0.1, SAMPLES), RATE_HZ)
    return [folder / "noise.wav"] * count


def load_full_size() -> Encoder:
    """The paper's encoder; its weights are random where the published ones are not in the cache."""
    from torchaudio import pipelines

    if encoders.locate_bundle(FULL_SIZE)[1].exists():
        return load_encoder(FULL_SIZE)
    model = encoders.build_wav2vec2(getattr(pipelines, FULL_SIZE)._params)
    stages = encoders.Wav2Vec2Stages(model, normalize=False)
    return Encoder(f"{FULL_SIZE}, random weights", stages, "", encoders.state_checksum(model))


def best_of(tries: int, jobs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each job's fastest try; the jobs take turns, so that what else the machine does falls on all alike."""
    seconds = [[timeit.timeit(job, number=1) for job in jobs.values()] for _ in range(tries)]
    return dict(zip(jobs, np.min(seconds, axis=0)))


def measure_engines(encoder: Encoder, files: list[Path], tries: int) -> Rows:
    """A row an engine: seconds a window, their ratio to the paper's loop, and errors (rms) against torch in float32."""
    waveforms = np.stack([np.resize(read_waveform(path), SAMPLES) for path in files])
    rows, jobs, exact = [{"engine": LOOP}], {LOOP: partial(paper_loop, encoder, files)}, {}
    for library, precision in ENGINES:
        row = {"engine": f"{library} {precision}"}
        rows.append(row)
        try:
            options = {"calibration": lambda: waveforms[:: len(waveforms) // embed.CALIBRATION + 1]}
            engine = load_engine(encoder, "emission", EngineChoice(library, precision), **options)
        except (ImportError, ValueError, RuntimeError, OSError) as error:  # of an extra: the others go on
            row["note"] = f"{type(error).__name__}: {error}"[:160]
            continue
        jobs[row["engine"]] = partial(run_all, engine, waveforms)
        for name, values in run_all(engine, waveforms).items():
            right = exact.setdefault(name, values)  # of the first: torch in float32
            row[f"{name}_rms_error"] = float(np.sqrt(np.mean((values - right) ** 2) / np.mean(right**2)))
    seconds = best_of(tries, jobs)
    for row in rows:
        if taken := seconds.get(row["engine"]):
            row |= {"seconds": taken / len(files), "ratio": seconds[LOOP] / taken}
    return [{"encoder": encoder.name} | row for row in rows]


def paper_loop(encoder: Encoder, files: list[Path]) -> list[torch.Tensor]:
    """What the paper does: decode one window, one call of the model in float32 on all cores, keep its emission."""
    with torch_threads(cores()):
        waveforms = [torch.from_numpy(np.resize(read_waveform(path), SAMPLES))[None] for path in files]
        return [encoder.encode(waveform)["emission"] for waveform in waveforms]


def run_all(engine: Engine, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """The engine alone, all its streams at once."""
    batches = [waveforms[first : first + engine.batch] for first in range(0, len(waveforms), engine.batch)]
    with torch_threads(1), ThreadPoolExecutor(engine.streams) as pool:
        parts = list(pool.map(engine.run, batches))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_training(tries: int, width: float) -> Rows:
    """Seconds of a step of the paper's gender network: a plain loop, and the project's in either arithmetic."""
    forms = {"a plain loop": ("float32", torch.contiguous_format)}
    forms |= {arithmetic: (arithmetic, Compute.memory_format) for arithmetic in ("float32", "bfloat16")}
    batches, jobs = [(torch.randn(BATCH, *FRAMES), torch.arange(BATCH) % 2)], {}
    for name, (arithmetic, layout) in forms.items():
        model = build_network("paper", ["male", "female"], FRAMES, width=width).to(memory_format=layout)
        optimizer, compute = torch.optim.Adam(model.parameters(), lr=1e-4), Compute("cpu", arithmetic, "")
        jobs[name] = partial(train_epoch, model, batches, nn.NLLLoss(), optimizer, compute)
    with torch_threads(cores()):
        seconds = best_of(tries + 1, jobs)  # the first is never the fastest
    return [{"form": name, "seconds": s, "ratio": seconds["a plain loop"] / s} for name, s in seconds.items()]


def measure_memory(count: int) -> dict[str, float]:
    """Peak memory of this process after embedding `count` silent windows with the small encoder, and after training on them."""
    with tempfile.TemporaryDirectory() as folder:
        windows = np.lib.format.open_memmap(Path(folder, "windows.npy"), "w+", np.int16, (count, SAMPLES))
        ids, target = [str(row) for row in range(count)], Path(folder, "store")
        embed.embed_windows(target, windows, ids, load_encoder(encoders.TINY), EngineChoice())
        row = {"windows": count, "embedding_mb": peak_memory_mb()}
        features, half = Store(target).frames(ids), np.arange(count // 2)
        model = build_network("paper", ["male", "female"], FRAMES, width=0.1)
        arguments = features, np.arange(count) % 2, half, half + len(half), Recipe(epochs=1), Path(folder, "training")
        fit_network(model, *arguments, seed=0, compute=choose_compute())
        return row | {"training_mb": peak_memory_mb()}


def measure_growth(sizes: list[int]) -> Rows:
    """`measure_memory` of each size in a process of its own: a peak counts all that the process did before."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(measure_memory, sizes, chunksize=1)


def main(arguments: list[str] | None = None) -> None:
    """`python -m lib.speed.bench`: measure, print, write `reports/bench.json`."""
    parser = argparse.ArgumentParser(prog="python -m lib.speed.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=os.environ.get("CORPORA"), help="speech; default: noise")
    parser.add_argument("--windows", type=int, default=24, help="files heard, three seconds of each")
    parser.add_argument("--tries", type=int, default=3, help="the fastest of so many counts")
    parser.add_argument("--width", type=float, default=1.0, help="of the paper's network in the training step")
    parser.add_argument("--memory", type=int, nargs="+", default=[500, 2000], help="windows of the memory part")
    parser.add_argument("--out", type=Path, default=paths.REPORTS / "bench.json", help="where the numbers go")
    options = parser.parse_args(arguments)
    record = {"about": choose_compute().record() | {"load_before": os.getloadavg()[0], "speech": bool(options.corpus)}}
    with tempfile.TemporaryDirectory() as folder:
        files = find_files(options.corpus, Path(folder), options.windows)
        parts = {
            "full-size encoder": lambda: measure_engines(load_full_size(), files, options.tries),
            "small encoder": lambda: measure_engines(load_encoder(encoders.TINY), files, options.tries),
            "training step": lambda: measure_training(options.tries, options.width),
            "memory": lambda: measure_growth(options.memory),
        }
        for name, measure in parts.items():
            record[name] = measure()
            paths.save_json(options.out, record)
            table = pd.DataFrame(record[name]).to_string(index=False, na_rep="", float_format="{:.3g}".format)
            print(f"\n{name}\n{table}", flush=True)


if __name__ == "__main__":
    main()
