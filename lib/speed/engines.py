"""Engines: the same encoder computed by torch, which is the reference, or by OpenVINO in float32, bfloat16 or int8 (an extra)."""

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib import paths
from lib.compute import Compute, bfloat16_instructions, choose_compute, cores, torch_threads
from lib.encoders import WHEELS, Encoder, Summary
from lib.hub import FunctionalStages, OnnxStages
from lib.stages import fingerprint_of

ENGINES = ["local", "ray", "torch", "openvino"]  # "local" and "ray" say where; the library is chosen here
PRECISIONS = {"torch": ["float32", "bfloat16"], "openvino": ["float32", "bfloat16", "int8"]}
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names
RAY_ADVICE = "the engine 'ray' needs Ray: pip install -r requirements-ray.txt, or set compute.engine to local"
OWN = {OnnxStages: "an ONNX file is computed by onnxruntime", FunctionalStages: "eGeMAPS are computed by openSMILE"}
TENSORS = ["statistics", "frames"]  # what a summary gives, the last first; frames where a feature was named
SMALL = 10_000_000  # weights: an encoder below this is quick enough to stay exact
CONVERSION = 6  # raised when models are converted in another way

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class EngineChoice:
    """What computes, and why; made by `choose_engine`."""

    library: str = "torch"
    precision: str = "float32"
    place: str = "local"  # or "ray"
    device: str = "cpu"  # or "cuda", "mps"
    note: str = "as the run file says"


@dataclass(frozen=True)
class Engine:
    """An encoder made ready: `run` takes waveforms (B, samples), float32, and gives float32 `statistics` (B, S) and, where a
    feature was named, `frames` (B, T, D)."""

    encoder: str
    identity: list[str]  # whatever changes a value beyond rounding
    streams: int  # threads that may call `run` at once; each computes on one core
    batch: int  # windows a call, at most
    run: Run


def check_engine(engine: str, precision: str, device: str = "auto") -> Compute:
    """The device, and its arithmetic; ValueError for names that are none and for what is not there, before a notebook runs."""
    precisions = ["auto", *PRECISIONS["openvino"]]
    if engine not in ENGINES or precision not in precisions:
        raise ValueError(f"engine {engine!r}, precision {precision!r}: must be of {ENGINES} and of {precisions}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError(RAY_ADVICE)
    if engine in ("ray", "openvino") or precision == "int8":
        if device not in ("auto", "cpu"):
            raise ValueError(f"device {device!r}: ray, openvino and int8 compute on the processor; set it to 'cpu'")
        device = "cpu"
    return choose_compute(device, "auto" if precision == "int8" else precision)


def choose_engine(
    encoder: Encoder, engine: str = "local", precision: str = "auto", device: str = "auto"
) -> EngineChoice:
    """Choose library, precision and device by the encoder's size and by what machine and environment have.
    engine: "torch", "openvino", or where: "local" and "ray" leave the library to this function.
    precision: "float32" (exact), "bfloat16", "int8" (only by request), or "auto": bfloat16 for a full-size encoder where
        the device computes it, else float32.
    device: as in `lib.compute.choose_compute`.
    What is not installed, or lacks the precision, is replaced by torch, as the note says. ValueError: `check_engine`."""
    compute, library, notes = check_engine(engine, precision, device), engine, []
    place, is_speaker = "ray" if engine == "ray" else "local", encoder.name in WHEELS
    if type(encoder.stages) in OWN:
        return EngineChoice(place=place, note=f"{OWN[type(encoder.stages)]}, in float32 on the processor")
    if precision == "auto":
        small = encoder.parameters < SMALL
        precision = "float32" if small else compute.arithmetic
        notes.append(f"{precision} because {'the encoder is small' if small else compute.note}")
    if engine not in PRECISIONS:
        library = "openvino" if compute.device == "cpu" else "torch"
        notes.append("OpenVINO is the fastest here" if library == "openvino" else "torch because there is a GPU")
    packages = [library, "nncf"] if precision == "int8" else [library]
    missing = " and ".join(name for name in packages if importlib.util.find_spec(name) is None)
    reasons = {
        "OpenVINO does not convert speaker models": library == "openvino" and is_speaker,
        "a speaker model's filter bank is not computed in less": is_speaker and precision != "float32",
        f"{library} has no {precision}": precision not in PRECISIONS[library],
        f"{missing} is not installed (pip install -r requirements-speed.txt)": missing,
    }
    if why := next((reason for reason, holds in reasons.items() if holds), ""):
        library, precision = "torch", compute.arithmetic if precision == "int8" else precision
        precision = "float32" if is_speaker else precision
        notes.append(f"{why}: torch in {precision} instead")
    return EngineChoice(library, precision, place, compute.device, "; ".join(notes) or EngineChoice.note)


def load_engine(
    encoder: Encoder, feature: str, choice: EngineChoice | None = None, *, samples: int = 48_000, streams: int = 0,
    calibration: Callable[[], np.ndarray] | None = None, model: Path | None = None,
) -> Engine:  # fmt: skip
    """Make an engine for this encoder and feature.
    choice: from `choose_engine`; None = torch in float32, on the GPU where there is one.
    samples: of every window; OpenVINO is compiled for this length.
    streams: batches computed at once, one core each; 0 = one a core, which is the fastest.
    calibration: gives waveforms (n, samples) of real speech, on which int8 is calibrated; asked only when needed.
    model: the folder of a converted model, from `converted_model`; None = converted now, or found in the cache."""
    choice = choice or EngineChoice(device=choose_compute().device, note="the reference")
    in_cache = 8 if encoder.parameters < SMALL else 4  # of a processor
    batch = in_cache if choice.device == "cpu" else 32  # a guess
    identity = [encoder.weights_sha256, feature, choice.library, choice.precision]
    if choice.library == "torch":
        run = _torch_runner(encoder.summary(feature), choice)
    else:
        model = model or converted_model(encoder, feature, choice.precision, samples, calibration)
        left = "bfloat16" if bfloat16_instructions() else "float32"  # what int8 does not quantise
        identity += [model.name, HINTS.get(choice.precision, HINTS[left])]
        run = _openvino_runner(model, identity[-1], (batch, samples), streams or cores())
    return Engine(encoder.name, identity, streams or cores(), batch, run)


def _torch_runner(summary: Summary, choice: EngineChoice) -> Run:
    dtype = getattr(torch, choice.precision)
    if (choice.device, choice.precision) != ("cpu", "float32"):
        summary = copy.deepcopy(summary).to(choice.device, dtype)  # the encoder itself stays as it is

    @torch.inference_mode()
    def run(waveforms: np.ndarray) -> dict[str, np.ndarray]:
        tensors = summary(torch.from_numpy(waveforms).to(choice.device, dtype))
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else reversed(tensors)
        return {name: tensor.float().cpu().numpy() for name, tensor in zip(TENSORS, tensors)}

    return run


def _openvino_runner(model: Path, hint: str, shape: tuple[int, int], streams: int) -> Run:
    """Compile for exactly this shape (B, samples): a smaller batch is filled up and cut again."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model / "model.xml")
    network.reshape(shape)
    options = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(network, "CPU", options | {"INFERENCE_PRECISION_HINT": hint})

    def run(waveforms: np.ndarray) -> dict[str, np.ndarray]:
        arrays = compiled.create_infer_request().infer([np.resize(waveforms, shape)]).values()
        return {name: array[: len(waveforms)] for name, array in zip(TENSORS, reversed(list(arrays)))}

    return run


def converted_model(
    encoder: Encoder, feature: str, precision: str, samples: int, calibration: Callable[[], np.ndarray] | None
) -> Path:
    """Folder of the encoder in OpenVINO's own format, made when the cache has none; its name tells all that made it.
    int8 is NNCF's post-training quantisation with its transformer preset (SmoothQuant, Xiao et al. 2023, arXiv
    2211.10438; fast bias correction), calibrated by what `calibration` gives, of all but the convolutions: with those
    quantised too, layers were off by 17 to 62 % (rms) instead of 2 % at most."""
    import openvino

    kind, speech = "exact", np.zeros((0, samples), np.float32)  # OpenVINO turns float32 to bfloat16 when it compiles
    if precision == "int8":
        kind, speech = precision, calibration().astype(np.float32)
    made_of = [encoder.weights_sha256, feature, openvino.__version__, samples, speech.tobytes().hex(), CONVERSION]
    target = paths.cache_folder() / "engines" / f"openvino-{kind}-{fingerprint_of(*made_of)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, torch_threads(1):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tracing: all windows have one length
                model = openvino.convert_model(encoder.summary(feature), example_input=torch.zeros(2, samples))
            model.reshape([1, samples])
            if precision == "int8":
                model = _quantise(model, speech, Path(scratch, "exact.xml"))
            openvino.save_model(model, Path(scratch, "whole", "model.xml"), compress_to_fp16=False)
            paths.replace_folder(Path(scratch, "whole"), target)
    return target


def _quantise(model: Any, speech: np.ndarray, file: Path) -> Any:
    import nncf
    import openvino

    # a model just converted shares memory, which torch takes back: quantised from it, it would learn from rubbish
    openvino.save_model(model, file, compress_to_fp16=False)
    nncf.set_log_level(logging.WARNING)  # else a line a layer
    options = {"subset_size": len(speech), "model_type": nncf.ModelType.TRANSFORMER}
    options |= {"ignored_scope": nncf.IgnoredScope(types=["Convolution"], validate=False)}
    windows = nncf.Dataset([window[None] for window in speech])
    return nncf.quantize(openvino.Core().read_model(file), windows, **options)
