"""How fast and how large: `make bench` measures everything on the same audio in one run, speech where `CORPORA` names a folder.
The paper's loop (decode a window, one call of the model for it, float32) is 1.0; every engine is a ratio to it. Without the
published weights the full-size encoder's are drawn at random: speed is the same, errors are not, and its name says so."""

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
SAMPLES, FRAMES, BATCH = 3 * RATE_HZ, (149, 32), 50  # of a window, its features, and a training step: as in the paper
HEARD, TRIES = 24, 4  # files, three seconds of each, and how often each job runs: the fastest counts
GROWTH = [500, 2000]  # windows of the memory part

Rows = list[dict[str, Any]]


def find_files(corpus: str, folder: Path) -> list[Path]:
    """`HEARD` sound files of a corpus, spread evenly over it; "" = noise, written into `folder`."""
    if not corpus:
        soundfile.write(folder / "noise.wav", np.random.default_rng(0).normal(0, 0.1, SAMPLES), RATE_HZ)
    sounds = (".wav", ".flac", ".mp3", ".opus")
    files = sorted(path for path in Path(corpus or folder).rglob("*") if path.suffix in sounds)
    if not files:
        raise ValueError(f"CORPORA={corpus}: no sound files in this folder; name another, or none for noise")
    return [files[k] for k in np.linspace(0, len(files) - 1, HEARD).astype(int)]


def load_full_size() -> Encoder:
    """The paper's encoder; its weights are random where the published ones are not in the cache."""
    from torchaudio import pipelines

    if encoders.locate_bundle(FULL_SIZE)[1].exists():
        return load_encoder(FULL_SIZE)
    model = encoders.build_wav2vec2(getattr(pipelines, FULL_SIZE)._params)
    stages = encoders.Wav2Vec2Stages(model, normalize=False)
    return Encoder(f"{FULL_SIZE}, random weights", stages, "", encoders.state_checksum(model))


def time_jobs(jobs: dict[str, Callable[[], Any]], each: int = 1) -> dict[str, dict[str, float]]:
    """By job the seconds of its fastest try, divided by `each`, and their ratio to the first job's. The jobs take turns, so that
    what else the machine does falls on all alike."""
    tries = [[timeit.timeit(job, number=1) for job in jobs.values()] for _ in range(TRIES)]
    best = np.min(tries, axis=0)
    return {name: {"seconds": taken / each, "ratio": best[0] / taken} for name, taken in zip(jobs, best)}


def measure_engines(encoder: Encoder, files: list[Path]) -> Rows:
    """A row an engine: seconds a window, their ratio to the paper's loop, and errors (rms) against torch in float32."""
    waveforms = np.stack([np.resize(read_waveform(path), SAMPLES) for path in files])
    rows, jobs, exact = {}, {"the paper's loop": partial(paper_loop, encoder, files)}, {}
    for library, precision in ENGINES:
        row = rows[f"{library} {precision}"] = {}
        try:
            options = {"calibration": lambda: waveforms[:: len(waveforms) // embed.CALIBRATION + 1]}
            engine = load_engine(encoder, "emission", EngineChoice(library, precision), **options)
        except (ImportError, ValueError, RuntimeError, OSError) as error:  # of an extra: the others go on
            row["note"] = f"{type(error).__name__}: {error}"[:160]
            continue
        jobs[f"{library} {precision}"] = partial(run_all, engine, waveforms)
        for name, values in run_all(engine, waveforms).items():
            right = exact.setdefault(name, values)  # of the first: torch in float32
            row[f"{name}_rms_error"] = float(np.sqrt(np.mean((values - right) ** 2) / np.mean(right**2)))
    times = time_jobs(jobs, len(files))
    names = dict.fromkeys([*jobs, *rows])
    return [{"encoder": encoder.name, "engine": name} | rows.get(name, {}) | times.get(name, {}) for name in names]


def paper_loop(encoder: Encoder, files: list[Path]) -> list[torch.Tensor]:
    """What the paper does: decode one window, one call of the model in float32 on all cores, keep its emission."""
    with torch_threads(cores()):
        waveforms = [torch.from_numpy(np.resize(read_waveform(path), SAMPLES))[None] for path in files]
        return [encoder.encode(waveform)["emission"] for waveform in waveforms]


def run_all(engine: Engine, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """The engine alone, all its streams at once."""
    with torch_threads(1), ThreadPoolExecutor(engine.streams) as pool:
        parts = list(pool.map(engine.run, np.split(waveforms, range(engine.batch, len(waveforms), engine.batch))))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_training() -> Rows:
    """Seconds of a step of the paper's gender network: a plain loop, and the project's in either arithmetic."""
    forms = {"a plain loop": ("float32", torch.contiguous_format)}
    forms |= {arithmetic: (arithmetic, Compute.memory_format) for arithmetic in ("float32", "bfloat16")}
    batches, jobs = [(torch.randn(BATCH, *FRAMES), torch.arange(BATCH) % 2)], {}
    for name, (arithmetic, layout) in forms.items():
        model = build_network("paper", ["male", "female"], FRAMES).to(memory_format=layout)
        optimizer, compute = torch.optim.Adam(model.parameters(), lr=1e-4), Compute("cpu", arithmetic, "")
        jobs[name] = partial(train_epoch, model, batches, nn.NLLLoss(), optimizer, compute)
    with torch_threads(cores()):
        return [{"form": name} | times for name, times in time_jobs(jobs).items()]


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


def main() -> None:
    """Measure, print, write `reports/bench.json`."""
    corpus = os.environ.get("CORPORA", "")
    record = {"about": choose_compute().record() | {"load_before": os.getloadavg()[0], "speech": bool(corpus)}}
    alone = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)  # a peak counts all that came before
    with tempfile.TemporaryDirectory() as folder, alone:
        files = find_files(corpus, Path(folder))
        parts = {
            "full-size encoder": lambda: measure_engines(load_full_size(), files),
            "small encoder": lambda: measure_engines(load_encoder(encoders.TINY), files),
            "training step": measure_training,
            "memory": lambda: alone.map(measure_memory, GROWTH, chunksize=1),
        }
        for name, measure in parts.items():
            record[name] = measure()
            paths.save_json(paths.REPORTS / "bench.json", record)
            table = pd.DataFrame(record[name]).to_string(index=False, na_rep="", float_format="{:.3g}".format)
            print(f"\n{name}\n{table}", flush=True)


if __name__ == "__main__":
    main()
