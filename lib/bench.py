"""How fast and how large: `python -m lib.bench` measures every engine on the same audio in one run.

The paper's loop (decode a window, one call of the model for it, float32) is 1.0; everything else is a ratio to it. Prints
tables and writes `reports/bench.json`. Without the published weights the full-size encoder's are drawn at random: speed is
the same, errors are those of random weights, and the tables say so.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib import paths
from lib.audio import RATE_HZ, read_waveform
from lib.embedding import Work, batch_sizes, fill_store, run_ahead, waveform_batches
from lib.encoders import TINY, UNTRAINED, Encoder, bundle_weights_path, load_encoder, state_checksum
from lib.engines import (
    Choice,
    Engine,
    choose_engine,
    cores,
    load_engine,
    missing_package,
    processor_flags,
    processor_name,
    torch_threads,
)
from lib.stages import Stage, peak_memory_mb
from lib.store import Store

FULL_SIZE = "WAV2VEC2_ASR_BASE_960H"  # the paper's encoder
SAMPLES = 3 * RATE_HZ
ENGINES = [  # library, precision, streams (0 = one a core), windows a call
    ("torch", "float32", 1, 1),
    ("torch", "float32", 1, 4),
    ("torch", "float32", 0, 4),
    ("torch", "bfloat16", 1, 4),
    ("torch", "bfloat16", 0, 4),
    ("onnxruntime", "float32", 0, 4),
    ("onnxruntime", "int8", 0, 4),
    ("openvino", "float32", 0, 4),
    ("openvino", "bfloat16", 1, 4),
    ("openvino", "bfloat16", 0, 4),
    ("openvino", "int8", 1, 4),
    ("openvino", "int8", 0, 4),
]
GROWTH = [1_000, 5_000, 20_000]  # windows


# -------------------------------------------------------------------------------------------------------------- inputs


def load_full_size() -> tuple[Encoder, bool]:
    """The paper's encoder, and whether its weights are random because the published ones are not in the cache."""
    if bundle_weights_path(FULL_SIZE).exists():
        return load_encoder(FULL_SIZE), False
    from torchaudio import models, pipelines

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.wav2vec2_model(**getattr(pipelines, FULL_SIZE)._params)
    return Encoder(FULL_SIZE, model, "random weights, seed 0", state_checksum(model), False), True


def make_work(corpus: Path | None, folder: Path, count: int) -> tuple[Work, pd.DataFrame]:
    """`count` windows of real speech (speechocean762 in `corpus`) or of synthetic voices, as 02_segment cuts them."""
    from lib.windows import Windowing, cut_windows

    if corpus:
        from lib.speechocean762 import read_speechocean762

        clips, _ = read_speechocean762(corpus)
        roots = {"speechocean762": corpus}
    else:
        from lib.common_voice import read_common_voice
        from lib.synthesis import render_synthetic_corpora

        render_synthetic_corpora(folder / "corpora", seed=0, speakers=24, clips_per_speaker=6)
        clips, _ = read_common_voice(folder / "corpora" / "common_voice")
        roots = {"common_voice": folder / "corpora" / "common_voice"}
    spread = clips.sort_values("clip_id").iloc[np.unique(np.linspace(0, len(clips) - 1, count).astype(int))]
    stage = Stage("02_segment", "bench", "x", folder / "segment", {}, False)
    stage.folder.mkdir(parents=True, exist_ok=True)
    cut_windows(stage, spread, roots, Windowing(short_clips="repeat"))
    windows = pd.read_parquet(stage.path("windows.parquet"))
    if len(windows) < count:  # the same audio again under other names
        windows, spread = repeat_work(windows, spread, count)
    return Work(windows.iloc[:count], spread, roots), spread


def repeat_work(windows: pd.DataFrame, clips: pd.DataFrame, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """At least `count` windows: the same clips again and again, each time under other ids."""
    copies = [
        (windows.assign(**{key: windows[key] + f"#{k}" for key in ("window_id", "clip_id")}),
         clips.assign(clip_id=clips["clip_id"] + f"#{k}"))
        for k in range(-(-count // len(windows)))
    ]  # fmt: skip
    return tuple(pd.concat(tables, ignore_index=True) for tables in zip(*copies))


# ------------------------------------------------------------------------------------------------------------ measuring


def best_of(times: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some tries: what the machine can do when nothing else disturbs it."""
    gc.collect()
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def measure_gemm(size: int = 2048) -> dict[str, float]:
    """Multiply-adds of square matrices in torch, in 10^9 floating point operations a second on all cores."""
    rates = {}
    with torch_threads(cores()), torch.inference_mode():
        for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
            a = torch.randn(size, size).to(dtype)
            a @ a
            rates[name] = round(2 * size**3 / best_of(5, lambda a=a: a @ a) / 1e9, 1)
    return rates


def paper_loop(encoder: Encoder, work: Work) -> list[np.ndarray]:
    """What the paper does: decode one window, one call of the model in float32, keep its emission."""
    by_id = work.clips.set_index("clip_id", drop=False)
    kept = []
    for window in work.windows.itertuples():
        clip = by_id.loc[window.clip_id]
        end_s = window.start_s + SAMPLES / RATE_HZ
        waveform = read_waveform(work.roots[clip.corpus] / clip.path, window.start_s, end_s)
        with torch.inference_mode():
            emission, _ = encoder.model(torch.from_numpy(np.resize(waveform, SAMPLES))[None])
        kept.append(emission[0].numpy())
    return kept


def transformers_loop(waveforms: np.ndarray) -> Callable[[], None] | None:
    """The same loop with Hugging Face's wav2vec2 of the same size, random weights; None when it is not installed."""
    try:
        from transformers import Wav2Vec2Config, Wav2Vec2ForCTC
    except ImportError:
        return None
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32)).eval()

    def run() -> None:
        with torch.inference_mode():
            for waveform in waveforms:
                model(torch.from_numpy(waveform)[None])

    return run


def run_bare(engine: Engine, waveforms: np.ndarray) -> None:
    """The engine alone: waveforms in memory, all streams at once, results dropped."""
    batches = [waveforms[first : first + engine.batch] for first in range(0, len(waveforms), engine.batch)]
    with torch_threads(engine.threads):
        for _ in run_ahead(engine.run, batches, engine.streams, 2 * engine.streams):
            pass


def run_stage(engine: Engine, work: Work) -> None:
    """The whole stage: decode, resample, encode, measure acoustics, write shards and index."""
    with tempfile.TemporaryDirectory() as folder:
        fill_store(Path(folder), work, engine)


def measure_errors(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference from torch in float32, and the root mean square of it over that of the values."""
    errors = {}
    for name in ("frames", "layers"):
        errors[f"{name}_max"] = float(np.abs(found[name] - exact[name]).max())
        errors[f"{name}_rms"] = float(np.sqrt(np.mean((found[name] - exact[name]) ** 2) / np.mean(exact[name] ** 2)))
    return errors


def measure_engines(encoder: Encoder, work: Work, tries: int) -> list[dict[str, Any]]:
    """One record an engine: seconds a window bare and for the whole stage, ratios to the paper's loop, errors.

    The rounds go through all of them in turn, so that what else the machine does falls on all alike.
    """
    waveforms = np.concatenate(
        list(waveform_batches(work.windows, work.clips, work.roots, SAMPLES, [len(work.windows)]))
    )
    rows, jobs = [], []  # a job: its row, what it measures, and the work
    loop: dict[str, Any] = {"engine": "the paper's loop", "precision": "float32", "streams": 1, "batch": 1}
    rows.append(loop)
    jobs.append((loop, "stage_s", lambda: paper_loop(encoder, work)))
    if peer := transformers_loop(waveforms):
        rows.append({**loop, "engine": "transformers, one window a call"})
        jobs.append((rows[-1], "bare_s", peer))
    few = waveforms[: min(16, len(waveforms))]
    exact = run_all(load_engine(encoder, "emission", streams=1, batch=1), few)
    for library, precision, streams, batch in ENGINES:
        row = {"engine": library, "precision": precision, "streams": streams or cores(), "batch": batch}
        rows.append(row)
        if missing := missing_package(library, precision):
            row["note"] = f"{missing} is not installed"
            continue
        options = {"streams": streams, "batch": batch, "calibration": work.calibration}
        engine = load_engine(encoder, "emission", Choice(library, precision, "local", "bench"), **options)
        row |= measure_errors(run_all(engine, few), exact)
        jobs.append((row, "bare_s", lambda engine=engine: run_bare(engine, waveforms)))
        jobs.append((row, "stage_s", lambda engine=engine: run_stage(engine, work)))
    for turn in range(tries):
        for row, name, job in jobs:
            with torch_threads(cores()):
                row[name] = min(row.get(name, math.inf), best_of(1, job) / len(waveforms))
        print(f"  round {turn + 1} of {tries}, load {os.getloadavg()[0]:.1f}", flush=True)
    for row in rows:
        row |= {
            f"{name}_ratio": round(loop["stage_s"] / row[f"{name}_s"], 2)
            for name in ("bare", "stage")
            if f"{name}_s" in row
        }
        if "bare_s" in row and "stage_s" in row:
            row["stage_over_bare"] = round(row["stage_s"] / row["bare_s"], 3)
    return rows


def run_all(engine: Engine, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """What an engine gives for all waveforms, batch by batch."""
    parts = [engine.run(waveforms[k : k + engine.batch]) for k in range(0, len(waveforms), engine.batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_probes(encoder: Encoder, work: Work) -> list[dict[str, Any]]:
    """UAR of a linear probe on every task, layer by layer the best, for the embeddings of each precision.

    Speakers are kept apart (five folds). Empty where the audio has no labels or OpenVINO is missing.
    """
    wanted = [(library, precision) for library, precision in [("torch", "float32"), ("openvino", "float32"),
              ("openvino", "bfloat16"), ("openvino", "int8")] if not missing_package(library, precision)]  # fmt: skip
    clips = work.clips.set_index("clip_id").loc[work.windows["clip_id"]]
    adult = (clips["age_years"] >= 16).to_numpy()
    female = (clips["gender"] == "female").to_numpy()
    everyone = np.ones(len(adult), bool)
    tasks = {
        "gender of adults": (adult, female),
        "gender of children": (~adult, female),
        "child or adult": (everyone, adult),
    }
    rows = []
    for library, precision in wanted:
        choice = Choice(library, precision, "local", "bench")
        engine = load_engine(encoder, "emission", choice, calibration=work.calibration)
        with tempfile.TemporaryDirectory() as folder:
            fill_store(Path(folder), work, engine)
            layers = Store(Path(folder)).features("layers", work.windows["window_id"]).all()
        for task, (who, target) in tasks.items():
            speakers = work.windows["speaker_id"].to_numpy()[who]
            uars = [probe_uar(layers[who, layer], target[who], speakers) for layer in range(layers.shape[1])]
            rows.append(
                {"engine": library, "precision": precision, "task": task, "uar_by_layer": [round(u, 4) for u in uars]}
            )
    for row in rows:
        exact = next(other["uar_by_layer"] for other in rows if other["task"] == row["task"])
        row["mean_change_points"] = round(100 * float(np.mean(np.subtract(row["uar_by_layer"], exact))), 2)
        row["largest_change_points"] = round(100 * float(np.abs(np.subtract(row["uar_by_layer"], exact)).max()), 2)
    return rows


def probe_uar(vectors: np.ndarray, target: np.ndarray, speakers: np.ndarray) -> float:
    """Unweighted average recall of a balanced logistic regression, five folds with speakers kept apart."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    from lib.baselines import fit_probe

    told = np.zeros(len(target), bool)
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(vectors, target, speakers):
        told[test] = fit_probe(vectors[train], target[train], strength=0.01).predict(vectors[test].astype(np.float64))
    return float(balanced_accuracy_score(target, told))


# ------------------------------------------------------------------------------------------------- small encoder, growth


def measure_small(work: Work, tries: int) -> list[dict[str, Any]]:
    """Speed of the small encoder's whole stage against real time, by windows a call."""
    encoder = load_small()
    rows = []
    for batch in (4, 8, 16, 32):
        engine = load_engine(encoder, "emission", batch=batch)
        run_stage(engine, Work(work.windows.iloc[: 4 * batch], work.clips, work.roots))
        waveforms = np.concatenate(
            list(waveform_batches(work.windows, work.clips, work.roots, SAMPLES, [len(work.windows)]))
        )
        bare_s = best_of(tries, lambda engine=engine, waves=waveforms: run_bare(engine, waves)) / len(waveforms)
        stage_s = best_of(tries, lambda engine=engine: run_stage(engine, work)) / len(work.windows)
        times_real = {"times_real_time": round(3 / stage_s), "stage_over_bare": round(stage_s / bare_s, 3)}
        rows.append(
            {"encoder": encoder.name, "streams": engine.streams, "batch": batch, "stage_s": stage_s, **times_real}
        )
    return rows


def load_small() -> Encoder:
    """The small encoder that ships here, or the same network untrained while there are no weights."""
    return load_encoder(TINY if (paths.ASSETS / f"{TINY}.safetensors").exists() else UNTRAINED)


def measure_growth(corpus: Path | None, sizes: list[int]) -> dict[str, Any]:
    """Time and peak memory of the stage with the small encoder, each size in a process of its own."""
    rows = []
    for windows in sizes:
        call = [
            sys.executable,
            "-m",
            "lib.bench",
            "--grow",
            str(windows),
            *(["--corpus", str(corpus)] if corpus else []),
        ]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the bench with {windows} windows failed: {done.stderr.strip().splitlines()[-1:]}")
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"  {rows[-1]}", flush=True)
    x, y = np.log([row["windows"] for row in rows]), np.log([row["seconds"] for row in rows])
    memory = max(row["peak_mb"] for row in rows) / rows[0]["peak_mb"]
    return {"sizes": rows, "time_exponent": round(float(np.polyfit(x, y, 1)[0]), 3), "memory_ratio": round(memory, 3)}


def grow_once(corpus: Path | None, count: int) -> dict[str, Any]:
    """Embed `count` windows with the small encoder in this process; seconds and peak memory of the stage alone."""
    with tempfile.TemporaryDirectory() as folder:
        work, _ = make_work(corpus, Path(folder), 500)
        windows, clips = repeat_work(work.windows, work.clips, count)
        work = Work(windows.iloc[:count], clips, work.roots)
        engine = load_engine(load_small(), "emission")
        run_stage(engine, Work(windows.iloc[:64], clips, work.roots))
        start = time.perf_counter()
        run_stage(engine, work)
        return {"windows": count, "seconds": round(time.perf_counter() - start, 2), "peak_mb": peak_memory_mb()}


def measure_ray(work: Work) -> list[dict[str, Any]]:
    """Seconds of the stage on Ray with one and with two one-thread workers; [] when Ray is not installed.

    Actors take seconds to start: `busy_s` is the time from the first shard written to the last.
    """
    try:
        from lib.ray_engine import fill_store_on_ray, ray_session
    except ImportError:
        return []
    try:
        with ray_session(), tempfile.TemporaryDirectory() as folder:
            encoder, rows = load_small(), []
            for workers in (1, 2):
                start, target = time.perf_counter(), Path(folder) / str(workers)
                small = Work(work.windows, work.clips, work.roots, shard_windows=32)
                fill_store_on_ray(target, small, encoder, "emission", choose_engine(encoder, "ray"), workers)
                total = time.perf_counter() - start
                written = sorted(path.stat().st_mtime for path in target.glob("shard-*"))
                rate = 32 * (len(written) - workers) / (written[-1] - written[workers - 1])
                rows.append({"workers": workers, "windows": len(work.windows), "total_s": round(total, 1)})
                rows[-1]["windows_a_second"] = round(rate, 1)
    except ValueError as error:
        print(f"  {error}")
        return []
    return rows


# -------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.bench`: measure, print, write `reports/bench.json`."""
    corpora = os.environ.get("CORPORA")
    parser = argparse.ArgumentParser(prog="python -m lib.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path(corpora) / "speechocean762" if corpora else None,
                        help="speechocean762's folder (default: that of CORPORA, else synthetic voices)")  # fmt: skip
    parser.add_argument("--windows", type=int, default=48, help="windows for the full-size encoder")
    parser.add_argument("--probes", type=int, default=600, help="windows for the probes' UAR by precision; 0 = none")
    parser.add_argument("--tries", type=int, default=3, help="the fastest of so many tries counts")
    parser.add_argument("--quick", action="store_true", help="no growth, no probes, no Ray")
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=paths.REPORTS / "bench.json", help="where the numbers go")
    asked = parser.parse_args(arguments)
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # bars would be drawn into the tables
    if asked.grow:
        print(json.dumps(grow_once(asked.corpus, asked.grow)))
        return 0
    found = run_bench(asked)
    paths.save_json(asked.out, found)
    print_bench(found)
    print(f"written to {asked.out}")
    return 0


def run_bench(asked: argparse.Namespace) -> dict[str, Any]:
    """All measurements, in one record."""
    encoder, random = load_full_size()
    about = {"processor": processor_name(), "cores": cores(), "load_before": round(os.getloadavg()[0], 2)}
    about["instructions"] = sorted(
        processor_flags() & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}
    )
    about |= {"audio": "speechocean762" if asked.corpus else "synthetic voices", "windows": asked.windows}
    about |= {"full_size": FULL_SIZE, "random_weights": random, "gemm_gflops": measure_gemm()}
    print(json.dumps(about, indent=2), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work, _ = make_work(asked.corpus, Path(folder) / "few", asked.windows)
        assert sum(batch_sizes(len(work.windows), 4)) == asked.windows
        found = {"about": about, "full_size": measure_engines(encoder, work, asked.tries)}
        many, _ = make_work(asked.corpus, Path(folder) / "many", 1000)
        paths.save_json(asked.out, found)  # what a later part cannot lose
        found["small"] = measure_small(many, asked.tries)
        if not asked.quick:
            found["ray"] = measure_ray(many)
            found["growth"] = measure_growth(asked.corpus, GROWTH)
            paths.save_json(asked.out, found)
            if asked.probes and asked.corpus:
                found["probes"] = measure_probes(
                    encoder, make_work(asked.corpus, Path(folder) / "probes", asked.probes)[0]
                )
    return found


def print_bench(found: dict[str, Any]) -> None:
    """The tables on the screen."""
    weights = "random weights" if found["about"]["random_weights"] else "the published weights"
    columns = ["engine", "precision", "streams", "batch", "bare_ratio", "stage_ratio", "stage_over_bare", "frames_max"]
    columns += ["frames_rms", "layers_rms", "note"]
    table = pd.DataFrame(found["full_size"])
    print(f"\n{FULL_SIZE}, {weights}; the paper's loop = 1.0 ({1000 * table['stage_s'][0]:.0f} ms a window)")
    print(table.reindex(columns=[name for name in columns if name in table]).to_string(index=False, na_rep=""))
    for name in ("small", "ray", "probes"):
        if found.get(name):
            print(
                f"\n{name}\n{pd.DataFrame(found[name]).drop(columns='uar_by_layer', errors='ignore').to_string(index=False)}"
            )
    if "growth" in found:
        print(f"\ngrowth: time exponent {found['growth']['time_exponent']}, memory x {found['growth']['memory_ratio']}")
        print(pd.DataFrame(found["growth"]["sizes"]).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
