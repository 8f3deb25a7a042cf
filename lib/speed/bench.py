"""How fast and how large: `python -m lib.speed.bench` measures everything on the same audio in one run.

The paper's loop (decode a window, one call of the model for it, float32) is 1.0; everything else is a ratio to it. Prints
tables and writes `reports/bench.json`, anew after every part. Without the published weights the full-size encoder's are drawn
at random: speed is the same, errors are those of random weights, and the tables say so.
"""

from __future__ import annotations

import argparse
import functools
import json
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
from lib.embed import Work
from lib.encoders import TINY, UNTRAINED, Encoder, load_encoder
from lib.speed.encoder_bench import (
    FAILURES,
    FULL_SIZE,
    best_of,
    first_line,
    load_full_size,
    measure_batches,
    measure_engines,
    measure_formats,
    measure_probes,
    run_bare,
    run_stage,
    waveforms_of,
)
from lib.speed.engines import (
    Choice,
    choose_engine,
    cores,
    load_engine,
    missing_package,
    processor_flags,
    processor_name,
    torch_threads,
)
from lib.stages import Stage, peak_memory_mb

SMALL_ENGINES = [("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "int8")]
GROWTH = [1_000, 5_000, 20_000]  # windows
FLAGS = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}


# -------------------------------------------------------------------------------------------------------------- inputs


def make_work(corpus: Path | None, folder: Path, count: int) -> tuple[Work, pd.DataFrame]:
    """`count` windows of real speech (speechocean762 in `corpus`) or of synthetic voices, as 02_segment cuts them."""
    from lib.windows import Windowing, cut_windows

    if corpus:
        from lib.corpora.speechocean762 import read_speechocean762

        clips, _ = read_speechocean762(corpus)
        roots = {"speechocean762": corpus}
    else:
        from lib.corpora.common_voice import read_common_voice
        from lib.corpora.demo.render import render_synthetic_corpora

        render_synthetic_corpora(folder / "corpora", seed=0, speakers=48, clips_per_speaker=3)
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


# ------------------------------------------------------------------------------------------------- small encoder, growth


def measure_gemm(size: int = 2048) -> dict[str, float]:
    """Multiply-adds of square matrices in torch, in 10^9 floating point operations a second on all cores."""
    rates = {}
    with torch_threads(cores()), torch.inference_mode():
        for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
            a = torch.randn(size, size).to(dtype)
            a @ a
            rates[name] = round(2 * size**3 / best_of(5, lambda a=a: a @ a) / 1e9, 1)
    return rates


def measure_training(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a training step of the paper's gender network, and ratios to a plain loop; see `lib.speed.training_bench`."""
    from lib.speed.training_bench import measure_speed

    with torch_threads(cores()):
        return measure_speed(rounds).round(3).to_dict("records")


def measure_small(work: Work, tries: int) -> list[dict[str, Any]]:
    """Speed of the small encoder's whole stage against real time, by engine and windows a call."""
    encoder, waveforms, rows = load_small(), waveforms_of(work), []
    for library, precision in SMALL_ENGINES:
        for batch in (4, 8, 16):
            rows.append({"encoder": encoder.name, "engine": library, "precision": precision, "batch": batch})
            if missing := missing_package(library, precision):
                rows[-1]["note"] = f"{missing} is not installed"
                continue
            choice = Choice(library, precision, "local", "bench")
            engine = load_engine(encoder, "emission", choice, batch=batch, calibration=work.calibration)
            run_stage(engine, Work(work.windows.iloc[: 4 * batch], work.clips, work.roots))
            bare_s = best_of(tries, lambda engine=engine: run_bare(engine, waveforms)) / len(waveforms)
            stage_s = best_of(tries, lambda engine=engine: run_stage(engine, work)) / len(waveforms)
            rows[-1] |= {"stage_s": stage_s, "times_real_time": round(3 / stage_s)}
            rows[-1] |= {"stage_over_bare": round(stage_s / bare_s, 3)}
    return rows


def measure_all_formats(encoder: Encoder, many: Work, few: Work, tries: int) -> list[dict[str, Any]]:
    """`measure_formats` of the small encoder with `many` windows, of the full-size one with `few`, by chosen engines."""
    rows = []
    for one, work, precisions in ((load_small(), many, ["auto"]), (encoder, few, ["bfloat16", "int8"])):
        choices = [choose_engine(one, precision=precision) for precision in precisions]
        engines = [load_engine(one, "emission", choice, calibration=work.calibration) for choice in choices]
        rows += measure_formats(engines, work, tries)
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
            "lib.speed.bench",
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
        small = load_small()
        engine = load_engine(small, "emission", choose_engine(small))
        run_stage(engine, Work(windows.iloc[:64], clips, work.roots))
        start = time.perf_counter()
        run_stage(engine, work)
        cost = {"seconds": round(time.perf_counter() - start, 2), "peak_mb": peak_memory_mb()}
        return {"engine": engine.choice.library, "precision": engine.choice.precision, "windows": count, **cost}


def measure_ray(work: Work) -> list[dict[str, Any]]:
    """Seconds of the stage on Ray with one and with two one-thread workers.

    Actors take seconds to start: `windows_a_second` counts from the first shard of each worker to the last.
    """
    from lib.speed.ray import fill_store_on_ray, ray_session

    encoder, rows = load_small(), []
    size = max(1, min(32, len(work.windows) // 8))
    with ray_session(), tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            start, target = time.perf_counter(), Path(folder) / str(workers)
            small = Work(work.windows, work.clips, work.roots, shard_windows=size)
            fill_store_on_ray(target, small, encoder, "emission", choose_engine(encoder, "ray"), workers)
            total = time.perf_counter() - start
            written = sorted(path.stat().st_mtime for path in target.glob("shard-*"))
            rate = size * (len(written) - workers) / (written[-1] - written[workers - 1])
            rows.append({"workers": workers, "windows": len(work.windows), "total_s": round(total, 1)})
            rows[-1]["windows_a_second"] = round(rate, 1)
    return rows


# -------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.speed.bench`: measure, print, write `reports/bench.json`."""
    corpora = os.environ.get("CORPORA")
    parser = argparse.ArgumentParser(prog="python -m lib.speed.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path(corpora) / "speechocean762" if corpora else None,
                        help="speechocean762's folder (default: that of CORPORA, else synthetic voices)")  # fmt: skip
    parser.add_argument("--windows", type=int, default=24, help="windows for the full-size encoder")
    parser.add_argument("--many", type=int, default=600, help="windows for the small encoder and for Ray")
    parser.add_argument("--probes", type=int, default=1000, help="windows for the full-size encoder's probes")
    parser.add_argument("--probes-small", type=int, default=2500, help="windows for the small encoder's probes")
    parser.add_argument("--growth", type=int, nargs="+", default=GROWTH, help="windows for time and memory by size")
    parser.add_argument("--tries", type=int, default=2, help="the fastest of so many tries counts")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=PARTS,
        help=f"of {', '.join(PARTS)}: these alone, in the file that is there; default: all",
    )
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=paths.REPORTS / "bench.json", help="where the numbers go")
    asked = parser.parse_args(arguments)
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # bars would be drawn into the tables
    if asked.grow:
        print(json.dumps(grow_once(asked.corpus, asked.grow)))
        return 0
    run_bench(asked)
    print(f"written to {asked.out}")
    return 0


PARTS = ["engines", "batches", "small", "formats", "training", "ray", "growth", "probes_small", "probes"]


def run_bench(asked: argparse.Namespace) -> dict[str, Any]:
    """All measurements in one record, printed and saved part by part; a part that fails has a note and the next begins."""
    encoder, random = load_full_size()
    found: dict[str, Any] = {"about": describe_machine(asked, random)}
    if asked.only and asked.out.exists():  # keep the other parts, and say which came later
        earlier = paths.load_json(asked.out)
        again = sorted({*earlier["about"].get("measured_again", []), *asked.only})
        found = earlier | {"about": earlier["about"] | {"measured_again": again}}
    print(json.dumps(found["about"], indent=2), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work_of = functools.cache(lambda count: make_work(asked.corpus, Path(folder) / str(count), count)[0])
        for name in asked.only or PARTS:
            start = time.perf_counter()
            try:
                found[name] = run_part(name, asked, encoder, work_of)
            except FAILURES as error:
                found[name] = [{"note": first_line(error)}]
            found["about"]["seconds"][name] = round(time.perf_counter() - start)
            paths.save_json(asked.out, found)
            print_part(name, found)
    return found


def run_part(name: str, asked: argparse.Namespace, encoder: Encoder, work_of: Callable[[int], Work]) -> Any:
    """What one of `PARTS` measures; `work_of` gives so many windows."""
    if name.startswith("probes") and not asked.corpus:
        raise ValueError("the synthetic voices have no ages in years; give --corpus")
    parts: dict[str, Callable[[], Any]] = {
        "engines": lambda: measure_engines(encoder, work_of(asked.windows), asked.tries),
        "batches": lambda: measure_batches(encoder, work_of(asked.windows), asked.tries),
        "small": lambda: measure_small(work_of(asked.many), asked.tries),
        "formats": lambda: measure_all_formats(encoder, work_of(asked.many), work_of(3 * asked.windows), asked.tries),
        "training": lambda: measure_training(2 * asked.tries + 1),
        "ray": lambda: measure_ray(work_of(asked.many)),
        "growth": lambda: measure_growth(asked.corpus, asked.growth),
        "probes_small": lambda: measure_probes(load_small(), work_of(asked.probes_small)),
        "probes": lambda: measure_probes(encoder, work_of(asked.probes)),
    }
    return parts[name]()


def describe_machine(asked: argparse.Namespace, random: bool) -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    about = {"processor": processor_name(), "cores": cores(), "load_before": round(os.getloadavg()[0], 2)}
    about |= {"instructions": sorted(processor_flags() & FLAGS), "gemm_gflops": measure_gemm()}
    about |= {"audio": "speechocean762" if asked.corpus else "synthetic voices", "windows": asked.windows}
    return about | {"full_size": FULL_SIZE, "random_weights": random, "tries": asked.tries, "seconds": {}}


TITLES = {
    "engines": "{full_size}, {weights}; the paper's loop = 1.0",
    "batches": "{full_size}: windows a call, all cores on one call",
    "small": "the small encoder",
    "formats": "the whole stage over the bare network, by the format of the audio; {full_size}: {weights}",
    "training": "a training step of the paper's gender network; the plain loop = 1.0",
    "ray": "Ray, one-thread workers",
    "growth": "time and memory by windows, the small encoder",
    "probes_small": "UAR by precision, the small encoder",
    "probes": "UAR by precision, {full_size}, {weights}",
}


def print_part(name: str, found: dict[str, Any]) -> None:
    """One part's table on the screen."""
    weights = "random weights" if found["about"]["random_weights"] else "the published weights"
    part = found[name]
    rows = pd.DataFrame(part["sizes"] if isinstance(part, dict) else part)
    title = TITLES[name].format(full_size=FULL_SIZE, weights=weights)
    if isinstance(part, dict):
        title += f": exponent {part['time_exponent']}, memory x {part['memory_ratio']}"
    print(f"\n{title} ({found['about']['seconds'][name]} s)")
    shown = rows.drop(columns=["uar_by_layer", "frames_max"], errors="ignore")
    print(shown.to_string(index=False, na_rep="", float_format="{:.4g}".format), flush=True)


if __name__ == "__main__":
    sys.exit(main())
