"""Engines: the same encoder computed by torch, OpenVINO or ONNX Runtime, in float32, bfloat16 or int8.

Every engine gives what the store keeps of a window and nothing more: the frames that `feature` names, every layer's
average over time, and the average of the convolutional features. torch is always there and is the reference; OpenVINO
(with NNCF for int8) and ONNX Runtime are extras: `pip install -r requirements-speed.txt`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import logging
import os
import platform
import queue
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib import paths
from lib.encoders import Encoder, Tap, layer_number, normalize_windows
from lib.stages import fingerprint_of

PLACES = ["local", "ray"]  # where the work is done: `engine: local` leaves the choice of a library to this module
LIBRARIES = {"torch": ["float32", "bfloat16"], "openvino": ["float32", "bfloat16", "int8"]}
LIBRARIES["onnxruntime"] = ["float32", "int8"]
PRECISIONS = ["auto", "float32", "bfloat16", "int8"]
PACKAGES = {"openvino": ["openvino"], "onnxruntime": ["onnxruntime", "onnx", "onnxscript"]}
RAY_ADVICE = "the engine 'ray' needs Ray: pip install -r requirements-ray.txt, or set compute.engine to local"
EXTRAS = "pip install -r requirements-speed.txt"
SMALL = 10_000_000  # weights: an encoder below this gains nothing from bfloat16 in OpenVINO
BATCH = {"small": 8, "large": 4}  # windows a call, by what stays in the processor's cache; measured by `make bench`
VARIANCE_FLOOR = 2.0**-12  # in bfloat16; on 60 windows 2^-8, 2^-10 and 2^-14 gave two to five times its error
CONVERSION = 5  # raised when models are converted in another way
CALIBRATION = 32  # windows that int8 is calibrated on
# What int8 leaves in `left_precision`. With the seven convolutions quantised too, the layers of wav2vec2-tiny were off by 17 to
# 62 % (rms) instead of 0.6 to 1.8 %, for a quarter of the time less.
LEFT_OUT = r".*(statistics|feature_extractor\.conv_layers\.\d+\.conv/).*"


@dataclass(frozen=True)
class Choice:
    """Which library computes in which precision, where, and why; made by `choose_engine`."""

    library: str
    precision: str
    place: str  # "local" or "ray"
    note: str

    def describe(self) -> pd.DataFrame:
        """What a reader should know, as a table of two columns."""
        facts = {"engine": self.library, "precision": self.precision, "where": self.place, "why": self.note}
        return pd.DataFrame({"fact": facts.keys(), "value": facts.values()})


@dataclass(frozen=True)
class Engine:
    """An encoder made ready to run. `run` takes waveforms (B, samples), at most `batch` of them, float32.

    `run` gives {"frames": (B, T, D), "layers": (B, L, D'), "conv": (B, C)}, float32, and may be called from `streams`
    threads at once, each of which computes on `threads` cores.
    """

    encoder: str
    feature: str
    choice: Choice
    identity: list[str]  # whatever changes a value beyond rounding
    streams: int
    threads: int
    batch: int
    run: Callable[[np.ndarray], dict[str, np.ndarray]]

    def describe(self) -> dict[str, Any]:
        """For the store's description and the report."""
        about = {"encoder": self.encoder, "weights_sha256": self.identity[0], "feature": self.feature}
        return {**about, "engine": self.choice.library, "precision": self.choice.precision, "note": self.choice.note}


# ------------------------------------------------------------------------------------------------------------ choosing


def check_engine(engine: str, precision: str) -> None:
    """Raise ValueError for names that are none, and for Ray where it is not installed, before a notebook has begun."""
    if _parse_engine(engine, precision)[0] == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError(RAY_ADVICE)


def _parse_engine(engine: str, precision: str) -> tuple[str, str]:
    """(place, library) of a run file's `engine`; "" for a library that is still to be chosen."""
    place, _, library = (
        engine.partition(":") if engine in PLACES or engine.startswith("ray:") else ("local", "", engine)
    )
    if (library not in LIBRARIES and engine not in PLACES) or precision not in PRECISIONS:
        raise ValueError(
            f"engine {engine!r}, precision {precision!r}: engine must be one of {[*PLACES, *LIBRARIES]} or 'ray:torch' and "
            f"so on, precision one of {PRECISIONS}"
        )
    return place, library


def choose_engine(encoder: Encoder, engine: str = "local", precision: str = "auto") -> Choice:
    """Choose library and precision by the encoder's size and by what the processor and this environment have.

    Parameters
    ----------
    engine: "local" or "ray" (the library chosen here), "torch", "openvino", "onnxruntime", or "ray:" and one of these.
    precision: "float32" (exact), "bfloat16", "int8", or "auto": bfloat16 for a full-size encoder where the processor
        multiplies in it, else float32; int8 only by request.

    A library that is not installed, or that lacks the precision, is replaced by torch, and the note says so. ValueError
    for a name that is none of these.
    """
    place, library = _parse_engine(engine, precision)
    notes, small = [], encoder.parameters < SMALL
    has_bfloat16 = processor_flags() & {"avx512_bf16", "amx_bf16"}
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16 and not small else "float32"
        why = "the encoder is small" if small else f"the processor {'has' if has_bfloat16 else 'lacks'} bfloat16"
        notes.append(f"{precision} because {why}")
    if not library:
        if torch.cuda.is_available() and precision != "int8":
            library, why = "torch", "torch because there is a GPU"
        elif small and precision == "bfloat16":
            library, why = "torch", "torch because the encoder is small"
        else:
            library, why = "openvino", "OpenVINO is the fastest here"
        notes.append(why)
    missing = missing_package(library, precision)
    if missing or precision not in LIBRARIES[library]:
        why = f"{missing} is not installed ({EXTRAS})" if missing else f"{library} has no {precision}"
        if precision == "int8":  # which torch lacks
            precision = "bfloat16" if has_bfloat16 else "float32"
            why += f", torch has no int8 and computes in {precision}"
        notes.append(f"{why}: torch instead")
        library = "torch"
    return Choice(library, precision, place, "; ".join(notes) or "as the run file says")


@functools.cache
def missing_package(library: str, precision: str) -> str | None:
    """Name of the first package that is not there or cannot be imported; None when nothing is missing."""
    wanted = PACKAGES.get(library, []) + (["nncf"] if (library, precision) == ("openvino", "int8") else [])
    for name in wanted:
        try:
            importlib.import_module(name)
        except ImportError:
            return name
    return None


@functools.cache
def processor_flags() -> set[str]:
    """Instruction sets of the processor as Linux lists them; elsewhere what torch knows of."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))]
        return set(lines[0].split(":", 1)[1].split()) if lines else set()
    known = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {flag for flag, name in known.items() if getattr(torch.cpu, name, bool)()}


def processor_name() -> str:
    """The processor's name, for reports."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line] if (
        cpuinfo.exists()
    ) else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ------------------------------------------------------------------------------------------------------------- loading


class Kept(torch.nn.Module):
    """An encoder that gives only what the store keeps; `forward` takes waveforms (B, samples)."""

    def __init__(self, tap: Tap, feature: str, layers: int, normalize: bool):
        super().__init__()
        self.tap, self.feature, self.normalize = tap, feature, normalize
        self.number = None if feature in ("emission", "conv") else layer_number(feature, layers + 1)

    def forward(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames (B, T, D), layers (B, L, D') and conv (B, C)."""
        emission, hidden, conv = self.tap(normalize_windows(waveforms) if self.normalize else waveforms)
        frames = conv if self.feature == "conv" else emission if self.number is None else hidden[self.number]
        averages = torch.stack([layer.float().mean(dim=1) for layer in hidden], dim=1)
        return frames.float(), averages, conv.float().mean(dim=1)


class FirstConvolution(torch.nn.Module):
    """The first convolution of a wav2vec2 with its group norm and GELU, the norm's statistics taken from the input.

    One group a channel: mean and variance over time of a linear function of ten neighbouring samples follow from the mean
    and covariance of those samples, so that 9,599 x 512 values need not be read twice nor be laid out anew.
    """

    def __init__(self, layer: torch.nn.Module, floor: float = 0.0):
        super().__init__()
        self.conv, self.norm = layer.conv, layer.layer_norm
        self.statistics = Statistics(layer.conv.weight.detach()[:, 0], layer.conv.stride[0], floor)

    @staticmethod
    def fits(layer: torch.nn.Module) -> bool:
        """Whether a layer is one that this can stand for: no bias, a group a channel, a kernel of two strides."""
        conv, norm = layer.conv, layer.layer_norm
        grouped = isinstance(norm, torch.nn.GroupNorm) and norm.num_groups == norm.num_channels
        return grouped and conv.bias is None and conv.in_channels == 1 and conv.kernel_size[0] == 2 * conv.stride[0]

    def forward(self, x: torch.Tensor, length: None) -> tuple[torch.Tensor, None]:
        """(B, 1, samples) to (B, C, T); lengths are not used here."""
        mean, variance = self.statistics(x[:, 0])
        scale = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        shift = self.norm.bias - mean * scale
        return torch.nn.functional.gelu(self.conv(x) * scale[:, :, None] + shift[:, :, None]), length


class Statistics(torch.nn.Module):
    """Mean and variance over time [B, C] of what a convolution (weights [C, 2 s], stride s) makes of x [B, samples].

    In few digits the terms of a variance may cancel to less than nothing. `floor` times their sizes is the least that is
    told; 0 where the arithmetic is exact.
    """

    def __init__(self, weight: torch.Tensor, stride: int, floor: float = 0.0):
        super().__init__()
        self.stride, self.floor = stride, floor
        self.register_buffer("weight", weight.clone())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        steps = int(x.shape[1]) // self.stride
        halves = x[:, : steps * self.stride].reshape(-1, steps, self.stride)
        frames = torch.cat([halves[:, :-1], halves[:, 1:]], dim=2)  # (B, T, 2 s)
        mean = frames.mean(dim=1, keepdim=True)
        frames = frames - mean
        covariance = frames.transpose(1, 2) @ frames / (steps - 1)
        variance = ((self.weight @ covariance) * self.weight).sum(dim=2)
        if self.floor:
            sizes = ((self.weight.abs() @ covariance.abs()) * self.weight.abs()).sum(dim=2)
            variance = torch.maximum(variance, self.floor * sizes)
        return (self.weight * mean).sum(dim=2), variance


TENSORS = ["frames", "layers", "conv"]  # in the order in which `Kept` gives them


def load_engine(
    encoder: Encoder,
    feature: str,
    choice: Choice | None = None,
    *,
    samples: int = 48_000,
    streams: int = 0,
    threads: int = 0,
    batch: int = 0,
    calibration: Callable[[], np.ndarray] | None = None,
    model: Path | None = None,
) -> Engine:
    """Make an engine for this encoder and feature.

    Parameters
    ----------
    choice: from `choose_engine`; None = torch in float32, here.
    samples: of every window; OpenVINO and ONNX Runtime are compiled for this length.
    streams: batches computed at once; 0 = one a core, which is the fastest.
    threads: cores that each stream computes on; 0 = its share of them.
    batch: windows a call; 0 = by the encoder's size.
    calibration: gives waveforms (n, samples) of real speech, on which int8 is calibrated; asked only when needed.
    model: the folder of a converted model, from `converted_model`; None = converted now, or found in the cache.
    """
    choice = choice or Choice("torch", "float32", "local", "the reference")
    streams = streams or cores()
    threads = threads or max(1, cores() // streams)
    batch = batch or BATCH["small" if encoder.parameters < SMALL else "large"]
    kept = Kept(encoder.tap, feature, encoder.layers, encoder.normalize).eval()
    identity = [encoder.weights_sha256, feature, choice.library, choice.precision]
    if choice.library == "torch":
        run = _torch_runner(kept, choice.precision)
    else:
        model = model or converted_model(encoder, feature, choice, samples, calibration)
        identity.append(model.name)
        if choice.precision == "int8":  # ONNX Runtime scales the values of a whole batch alike
            identity.append(left_precision() if choice.library == "openvino" else f"{batch} windows a call")
        load = {"openvino": _openvino_runner, "onnxruntime": _onnxruntime_runner}[choice.library]
        run = load(model, choice.precision, samples, batch, streams, threads)
    return Engine(encoder.name, feature, choice, identity, streams, threads, batch, run)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` cores in this thread and in those begun within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch_runner(kept: Kept, precision: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if (device, precision) != ("cpu", "float32"):
        kept = copy.deepcopy(kept).to(device, dtype)
    elif torch.backends.mkldnn.is_available():
        kept = _with_onednn(kept)

    def run(waveforms: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = kept(torch.from_numpy(waveforms).to(device, dtype))
        return {name: tensor.cpu().numpy() for name, tensor in zip(TENSORS, found)}

    return run


def _with_onednn(module: torch.nn.Module) -> Any:
    """A copy whose linear layers and convolutions oneDNN computes; everything else is shared.

    torch leaves products in float32 to MKL, which on processors of other makers than Intel takes twice oneDNN's time.
    The copy has weights of its own, in oneDNN's order.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its modules are written in TorchScript
        from torch.utils.mkldnn import MkldnnConv1d, MkldnnLinear

        return _with_kinds(module, {torch.nn.Linear: MkldnnLinear, torch.nn.Conv1d: MkldnnConv1d})


def _with_kinds(module: torch.nn.Module, kinds: dict[type, Callable]) -> Any:
    """A copy in which every part of just these types is made anew; a subclass of one may be read by others."""
    for name, part in module.named_children():
        kind = kinds.get(type(part))
        module = _with_part(module, name, kind(part, torch.float32) if kind else _with_kinds(part, kinds))
    return module


# ------------------------------------------------------------------------------------------------- OpenVINO, ONNX Runtime


def converted_model(
    encoder: Encoder,
    feature: str,
    choice: Choice,
    samples: int,
    calibration: Callable[[], np.ndarray] | None = None,
) -> Path:
    """Folder of the encoder in the library's own format, converted when the cache has none; its name tells all that made it.

    int8 is calibrated by what `calibration` gives: NNCF post-training quantisation with its transformer preset for
    OpenVINO (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438; fast bias correction) of all but what `LEFT_OUT` names,
    dynamic quantisation of the matrix products for ONNX Runtime, which needs no calibration. ValueError when int8 lacks
    its speech.
    """
    heard, what = None, ""
    if (choice.library, choice.precision) == ("openvino", "int8"):
        if calibration is None:
            raise ValueError(
                "int8 is calibrated on real speech: give `calibration`, or set compute.precision to bfloat16"
            )
        heard = calibration()
        what = fingerprint_of(heard.astype("<f4").tobytes().hex())
    kind = choice.precision  # OpenVINO itself turns float32 to bfloat16 when it compiles
    version = importlib.import_module(choice.library).__version__
    ours = [CONVERSION, VARIANCE_FLOOR, LEFT_OUT]
    name = fingerprint_of(encoder.weights_sha256, feature, choice.library, version, kind, samples, what, ours)
    target = paths.cache_folder() / "engines" / f"{choice.library}-{kind}-{name}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            new = Path(folder) / "model"
            new.mkdir()
            exact = kind == "float32" or choice.library == "onnxruntime"  # which keeps the statistics in float32
            kept = Kept(encoder.tap, feature, encoder.layers, encoder.normalize).eval()
            kept = _streamlined(kept, 0.0 if exact else VARIANCE_FLOOR)
            save = {"openvino": _save_openvino, "onnxruntime": _save_onnx}[choice.library]
            with torch_threads(1):
                save(new, kept, kind, samples, heard)
            paths.replace_folder(new, target)
    return target


def _streamlined(kept: Kept, floor: float) -> Kept:
    """A copy that shares all weights, its first convolution replaced by one that is faster outside torch."""
    extractor = kept.tap.feature_extractor
    if not FirstConvolution.fits(extractor.conv_layers[0]):
        return kept
    layers = [FirstConvolution(extractor.conv_layers[0], floor), *list(extractor.conv_layers)[1:]]
    extractor = _with_part(extractor, "conv_layers", torch.nn.ModuleList(layers))
    return _with_part(kept, "tap", _with_part(kept.tap, "feature_extractor", extractor)).eval()


def _with_part(module: torch.nn.Module, name: str, part: torch.nn.Module) -> Any:
    """A copy of a module that shares all of its parts but one."""
    other = copy.copy(module)
    other._modules = {**module._modules, name: part}
    return other


def _save_openvino(folder: Path, kept: Kept, kind: str, samples: int, heard: np.ndarray | None) -> None:
    import openvino

    with torch.no_grad():
        model = openvino.convert_model(kept, example_input=torch.zeros(2, samples))
    model.reshape([1, samples])
    if kind == "int8":
        import nncf

        nncf.set_log_level(logging.WARNING)  # else a line a layer
        # a model just converted shares memory that torch takes back: quantised from it, it would learn from rubbish
        openvino.save_model(model, folder / "float.xml", compress_to_fp16=False)
        model = openvino.Core().read_model(folder / "float.xml")
        dataset = nncf.Dataset([window[None] for window in heard])
        ignored = nncf.IgnoredScope(patterns=[LEFT_OUT])  # it fails when nothing has such a name
        options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(heard), "ignored_scope": ignored}
        model = nncf.quantize(model, dataset, **options)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    for left in folder.glob("float.*"):
        left.unlink()


def left_precision() -> str:
    """OpenVINO's name of the precision in which it computes what int8 leaves out, by the processor."""
    return "bf16" if "avx512_bf16" in processor_flags() else "f32"


def _openvino_runner(model: Path, precision: str, samples: int, batch: int, streams: int, threads: int) -> Callable:
    """Compile for batches of exactly `batch` windows: a smaller one is filled up."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model / "model.xml")
    network.reshape([batch, samples])
    options = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * threads, "ENABLE_CPU_PINNING": False}
    options["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16", "int8": left_precision()}[precision]
    compiled = core.compile_model(network, "CPU", options)
    requests: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(streams):
        requests.put(compiled.create_infer_request())

    def run(waveforms: np.ndarray) -> dict[str, np.ndarray]:
        count, request = len(waveforms), requests.get()
        try:
            request.infer([np.resize(waveforms, (batch, samples))])
            return {name: request.get_output_tensor(k).data[:count].copy() for k, name in enumerate(TENSORS)}
        finally:
            requests.put(request)

    return run


def _save_onnx(folder: Path, kept: Kept, kind: str, samples: int, heard: np.ndarray | None) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = folder / ("float.onnx" if kind == "int8" else "model.onnx")
    names = {"input_names": ["waveforms"], "output_names": TENSORS}
    axes = {"waveforms": {0: "windows"}}
    with torch.no_grad():
        torch.onnx.export(kept, (torch.zeros(2, samples),), plain, dynamo=False, dynamic_axes=axes, **names)
    if kind == "int8":
        quantize_dynamic(plain, folder / "model.onnx", weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
        plain.unlink()


def _onnxruntime_runner(model: Path, precision: str, samples: int, batch: int, streams: int, threads: int) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(waveforms: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(TENSORS, session.run(TENSORS, {"waveforms": waveforms})))

    return run
