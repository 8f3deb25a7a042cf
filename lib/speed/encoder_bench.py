"""How fast a full-size encoder is computed: the paper's loop, its peers, every engine and every trick, on the same windows.

Each contestant is a row of facts and up to two jobs: `bare_s`, the network alone, and `stage_s`, from files to a store. The
rounds go through all of them in turn, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.audio import RATE_HZ, read_waveform
from lib.embed import Work, fill_store, run_ahead, waveform_batches
from lib.encoders import Encoder, bundle_weights_path, load_encoder, state_checksum
from lib.probes import make_embedders
from lib.speed.engines import Choice, Engine, Kept, cores, load_engine, missing_package, torch_threads
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
PEERS = ["eGeMAPS", "Resemblyzer"]  # what else one would reach for: one window a call
FORMATS = {"as the corpus has it": None, "WAV, 16 kHz": ("wav", 16_000), "MP3, 48 kHz": ("mp3", 48_000)}
BATCHES = [1, 2, 4, 8, 16]  # windows a call, to see which size the processor's cache holds
TRIED = [("torch", "float32"), ("torch", "bfloat16"), ("openvino", "bfloat16")]  # with each of them
PROBED = [("torch", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8")]
PROBED += [("onnxruntime", "int8")]
FAILURES = (ImportError, ValueError, RuntimeError, OSError)  # of an extra: the row says so, the others go on

Jobs = dict[str, Callable[[], Any]]


# ------------------------------------------------------------------------------------------------------------- running


def load_full_size() -> tuple[Encoder, bool]:
    """The paper's encoder, and whether its weights are random because the published ones are not in the cache."""
    if bundle_weights_path(FULL_SIZE).exists():
        return load_encoder(FULL_SIZE), False
    from torchaudio import models, pipelines

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.wav2vec2_model(**getattr(pipelines, FULL_SIZE)._params)
    return Encoder(FULL_SIZE, model, "random weights, seed 0", state_checksum(model), False), True


def load_by_name(name: str) -> Encoder:
    """`load_encoder`, but the paper's encoder with random weights where the published ones are not in the cache."""
    return load_full_size()[0] if name == FULL_SIZE else load_encoder(name)


def best_of(times: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some tries: what the machine can do when nothing else disturbs it."""
    gc.collect()
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


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


def run_all(engine: Engine, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """What an engine gives for all waveforms, batch by batch."""
    parts = [engine.run(waveforms[k : k + engine.batch]) for k in range(0, len(waveforms), engine.batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def exact_values(encoder: Encoder, waveforms: np.ndarray) -> dict[str, np.ndarray]:
    """What the model itself gives in float32, a window a call: the measure of every error."""
    parts = [encoder.encode(torch.from_numpy(waveform)[None]) for waveform in waveforms]
    parts = [{"frames": part["emission"], "layers": part["hidden"].mean(dim=2)} for part in parts]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in ("frames", "layers")}


def waveforms_of(work: Work) -> np.ndarray:
    """All windows of some work, decoded: (n, samples)."""
    return next(waveform_batches(work.windows, work.clips, work.roots, work.samples, [len(work.windows)]))


# --------------------------------------------------------------------------------------------------------- contestants


def transformers_loop(waveforms: np.ndarray) -> Callable[[], None]:
    """The same loop with Hugging Face's wav2vec2 of the same size, random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32)).eval()

    def run() -> None:
        with torch.inference_mode():
            for waveform in waveforms:
                model(torch.from_numpy(waveform)[None])

    return run


def peer_loop(name: str, waveforms: np.ndarray) -> Callable[[], None]:
    """One of `PEERS`, one window a call; it embeds a window otherwise than wav2vec2 does."""
    embed = make_embedders([name])[name]

    def run() -> None:
        for waveform in waveforms:
            embed(waveform)

    return run


def compiled_loop(encoder: Encoder, waveforms: np.ndarray, batch: int) -> Callable[[], None]:
    """`torch.compile` of what the store keeps, compiled here and now for batches of one size."""
    kept = torch.compile(Kept(encoder.tap, "emission", encoder.layers, encoder.normalize).eval(), dynamic=False)
    return torch_loop(kept, waveforms, batch)


def plain_loop(encoder: Encoder, waveforms: np.ndarray, batch: int) -> Callable[[], None]:
    """torch's own products, which are MKL's, where the engine of float32 asks oneDNN."""
    return torch_loop(Kept(encoder.tap, "emission", encoder.layers, encoder.normalize).eval(), waveforms, batch)


def unfolded_loop(encoder: Encoder, waveforms: np.ndarray, batch: int) -> Callable[[], None]:
    """The positional convolution's weight norm computed in every pass, as torchaudio does; here it is folded once."""
    model = copy.deepcopy(encoder.tap)
    torch.nn.utils.parametrizations.weight_norm(model.transformer.pos_conv_embed.conv, dim=2)
    return torch_loop(Kept(model, "emission", encoder.layers, encoder.normalize).eval(), waveforms, batch)


def torch_loop(kept: torch.nn.Module, waveforms: np.ndarray, batch: int) -> Callable[[], None]:
    """A module on all cores in batches of one size; run once on the first."""
    whole = torch.from_numpy(np.resize(waveforms, (-(-len(waveforms) // batch) * batch, waveforms.shape[1])))

    def run(most: int | None = None) -> None:
        with torch.inference_mode():
            for first in range(0, most or len(whole), batch):
                kept(whole[first : first + batch])

    run(batch)
    return run


_own: dict[str, Engine] = {}  # of a process of `processes_loop`


def _begin_process(encoder: str, batch: int) -> None:
    torch.set_num_threads(1)
    _own["engine"] = load_engine(load_by_name(encoder), "emission", streams=1, threads=1, batch=batch)


def _run_share(waveforms: np.ndarray) -> int:
    run_bare(_own["engine"], waveforms)
    return os.getpid()


def processes_loop(
    encoder: Encoder, waveforms: np.ndarray, batch: int, stack: contextlib.ExitStack
) -> Callable[[], Any]:
    """One process a core with one thread each, every one with an encoder of its own; `stack` ends them."""
    count = cores()
    pool = multiprocessing.get_context("spawn").Pool(count, _begin_process, (encoder.name, batch))
    stack.callback(pool.terminate)
    pool.map(_run_share, [waveforms[:1]] * count, 1)
    return lambda: pool.map(_run_share, np.array_split(waveforms, count), 1)


def engine_jobs(
    encoder: Encoder, work: Work, waveforms: np.ndarray, row: dict[str, Any], exact: dict[str, np.ndarray]
) -> Jobs:
    """Both jobs of one of `ENGINES`; `row` gets its errors against the exact values of the first windows."""
    if missing := missing_package(row["engine"], row["precision"]):
        raise ImportError(f"{missing} is not installed")
    options = {"streams": row["streams"], "batch": row["batch"], "calibration": work.calibration}
    engine = load_engine(encoder, "emission", Choice(row["engine"], row["precision"], "local", "bench"), **options)
    row |= measure_errors(run_all(engine, waveforms[: len(exact["frames"])]), exact)
    return {"bare_s": lambda: run_bare(engine, waveforms), "stage_s": lambda: run_stage(engine, work)}


def list_contestants(
    encoder: Encoder, work: Work, waveforms: np.ndarray, stack: contextlib.ExitStack
) -> list[tuple[dict[str, Any], Callable[[], Jobs]]]:
    """Rows, each with what makes its jobs; the paper's loop comes first."""
    exact = exact_values(encoder, waveforms[:16])
    one = {"precision": "float32", "streams": 1, "batch": 1}
    four = {"precision": "float32", "streams": 1, "batch": 4}
    found = [({"engine": "the paper's loop", **one}, lambda: {"stage_s": lambda: paper_loop(encoder, work)})]
    row = {"engine": "transformers, one window a call", **one}
    found.append((row, lambda: {"bare_s": transformers_loop(waveforms)}))
    for name in PEERS:
        found.append(({"engine": name, **one}, lambda name=name: {"bare_s": peer_loop(name, waveforms)}))
    for library, precision, streams, batch in ENGINES:
        row = {"engine": library, "precision": precision, "streams": streams or cores(), "batch": batch}
        found.append((row, lambda row=row: engine_jobs(encoder, work, waveforms, row, exact)))
    tricks = {
        "torch without oneDNN": lambda: plain_loop(encoder, waveforms, 4),
        "torch, weight norm in every pass": lambda: unfolded_loop(encoder, waveforms, 4),
        "torch.compile": lambda: compiled_loop(encoder, waveforms, 4),
        "torch, one process a core": lambda: processes_loop(encoder, waveforms, 4, stack),
    }
    for name, make in tricks.items():
        row = {"engine": name, **four} | ({"streams": cores()} if "process" in name else {})
        found.append((row, lambda make=make: {"bare_s": make()}))
    return found


# ----------------------------------------------------------------------------------------------------------- measuring


def measure_engines(encoder: Encoder, work: Work, tries: int) -> list[dict[str, Any]]:
    """One row a contestant: seconds a window bare and for the whole stage, ratios to the paper's loop, errors.

    A contestant that cannot run here has a note instead.
    """
    waveforms, rows, jobs = waveforms_of(work), [], []
    with contextlib.ExitStack() as stack, torch_threads(cores()):
        for row, make in list_contestants(encoder, work, waveforms, stack):
            rows.append(row)
            try:
                jobs += [(row, name, job) for name, job in make().items()]
            except FAILURES as error:
                row["note"] = first_line(error)
        for turn in range(tries):
            for row, name, job in jobs:
                row[name] = min(row.get(name, math.inf), best_of(1, job) / len(waveforms))
            print(f"  round {turn + 1} of {tries}, load {os.getloadavg()[0]:.1f}", flush=True)
    for row in rows:
        for name in ("bare", "stage"):
            if f"{name}_s" in row:
                row[f"{name}_ratio"] = round(rows[0]["stage_s"] / row[f"{name}_s"], 2)
        if "bare_s" in row and "stage_s" in row:
            row["stage_over_bare"] = round(row["stage_s"] / row["bare_s"], 3)
    return rows


def first_line(error: Exception) -> str:
    """What went wrong, in one line for a table."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


def measure_batches(encoder: Encoder, work: Work, tries: int) -> list[dict[str, Any]]:
    """Seconds a window of the bare network by windows a call, all cores on one call: what the cache holds is fastest."""
    waveforms, rows = waveforms_of(work)[: BATCHES[-1]], []
    for library, precision in TRIED:
        for batch in BATCHES:
            rows.append({"engine": library, "precision": precision, "batch": batch})
            if missing := missing_package(library, precision):
                rows[-1]["note"] = f"{missing} is not installed"
                continue
            choice = Choice(library, precision, "local", "bench")
            engine = load_engine(encoder, "emission", choice, streams=1, threads=cores(), batch=batch)
            run_bare(engine, waveforms[:batch])
            rows[-1]["bare_s"] = best_of(tries, lambda engine=engine: run_bare(engine, waveforms)) / len(waveforms)
    return rows


def measure_formats(engines: list[Engine], work: Work, tries: int) -> list[dict[str, Any]]:
    """The whole stage against the bare network by the format of the audio: decoding shares the cores with the encoder."""
    rows, waveforms = [], waveforms_of(work)
    with tempfile.TemporaryDirectory() as folder:
        works = {name: in_format(work, Path(folder), *how) if how else work for name, how in FORMATS.items()}
        for engine in engines:
            batches = Work(work.windows.iloc[: 2 * engine.batch], work.clips, work.roots)
            run_stage(engine, batches)
            bare_s = best_of(tries, lambda engine=engine: run_bare(engine, waveforms)) / len(waveforms)
            for name, one in works.items():
                stage_s = best_of(tries, lambda engine=engine, one=one: run_stage(engine, one)) / len(waveforms)
                choice = {"engine": engine.choice.library, "precision": engine.choice.precision}
                rows.append({"encoder": engine.encoder, **choice, "audio": name, "bare_s": bare_s, "stage_s": stage_s})
                rows[-1] |= {"times_real_time": round(SAMPLES / RATE_HZ / stage_s)}
                rows[-1] |= {"stage_over_bare": round(stage_s / bare_s, 3)}
    return rows


def in_format(work: Work, folder: Path, codec: str, rate_hz: int) -> Work:
    """The same work on copies of its clips in another format, written into `folder`."""
    from lib.corpora.demo.recording import write_audio

    chosen, paths = work.clips[work.clips["clip_id"].isin(work.windows["clip_id"])], {}
    for clip in chosen.itertuples():
        source = work.roots[clip.corpus] / clip.path
        if source not in paths:
            paths[source] = f"{len(paths)}-{rate_hz}.{codec}"
            write_audio(folder / paths[source], read_waveform(source), RATE_HZ, rate_hz)
    copies = [paths[work.roots[clip.corpus] / clip.path] for clip in chosen.itertuples()]
    return replace(work, clips=chosen.assign(path=copies), roots=dict.fromkeys(work.roots, folder))


def measure_probes(encoder: Encoder, work: Work) -> list[dict[str, Any]]:
    """UAR of a linear probe on every layer for every task, for the embeddings of each engine and precision.

    Speakers are kept apart (five folds). `change_points`: of each layer's UAR against torch in float32.
    """
    from sklearn.metrics import balanced_accuracy_score

    from lib.probes import TASKS, predict_folds, task_labels

    clips = work.clips.set_index("clip_id").loc[work.windows["clip_id"]]
    speakers = work.windows["speaker_id"].to_numpy()
    rows, exact = [], {}
    for library, precision in PROBED:
        facts = {"encoder": encoder.name, "windows": len(clips), "engine": library, "precision": precision}
        if missing := missing_package(library, precision):
            rows.append(facts | {"note": f"{missing} is not installed"})
            continue
        layers = _embed_layers(encoder, work, Choice(library, precision, "local", "bench"))
        for task in TASKS:
            chosen, labels = task_labels(clips, task)
            told = [predict_folds(layer, labels, speakers[chosen], "logistic", strength=0.01)
                    for layer in layers[chosen].astype(np.float64).swapaxes(0, 1)]  # fmt: skip
            uars = [float(balanced_accuracy_score(labels, one)) for one in told]
            changes = 100 * np.subtract(uars, exact.setdefault(task, uars))
            rows.append(facts | {"task": task, "best_uar": round(max(uars), 4)})
            rows[-1] |= {"change_of_best_points": round(100 * (max(uars) - max(exact[task])), 2)}
            rows[-1] |= {"largest_change_points": round(float(np.abs(changes).max()), 2)}
            rows[-1] |= {"uar_by_layer": [round(uar, 4) for uar in uars]}
    return rows


def _embed_layers(encoder: Encoder, work: Work, choice: Choice) -> np.ndarray:
    engine = load_engine(encoder, "emission", choice, calibration=work.calibration)
    with tempfile.TemporaryDirectory() as folder:
        fill_store(Path(folder), work, engine)
        return Store(Path(folder)).features("layers", work.windows["window_id"]).all()
