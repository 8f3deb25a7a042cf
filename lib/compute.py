"""Which device computes, and in which arithmetic: "auto" is the GPU where there is one, and bfloat16 only where it is computed, not
emulated. `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2` let any x86-64 machine play a plain one."""

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from joblib import cpu_count as cores  # that this process may use

DEVICES = ["auto", "cpu", "cuda", "mps"]
ARITHMETICS = ["auto", "float32", "bfloat16"]
BFLOAT16 = ["avx512_bf16", "amx_bf16"]  # instruction sets that multiply in it
# Values of oneDNN's and of torch's own limits under which neither instruction set is used.
ONEDNN_PLAIN = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
ATEN_PLAIN = {"default", "avx2"}
# A training step of the paper's network on a processor that has neither, against float32: 2.9 to 5 times at widths 0.125, 0.25.
EMULATED = "emulates it: a training step takes three to five times that of float32, for nothing; set it to 'auto'"


@dataclass(frozen=True)
class Compute:
    """Where something is computed ("cpu", "cuda" or "mps"), in "float32" or "bfloat16", and why; from `choose_compute`."""

    device: str
    arithmetic: str
    note: str
    memory_format = torch.channels_last  # of 2-D convolutions: 1.1 to 1.4 times as fast, in either arithmetic

    def autocast(self) -> torch.autocast:
        """Context of a pass in this arithmetic; weights, gradients and optimiser stay float32."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.arithmetic == "bfloat16")

    def record(self) -> dict[str, Any]:
        """The choice and the machine, small enough for `run.json` and the report."""
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
        return asdict(self) | {"processor": str(name), "cores": cores(), "bfloat16": bfloat16_instructions()}


def choose_compute(device: str = "auto", arithmetic: str = "auto") -> Compute:
    """Choose by what the machine has. ValueError for what is unknown or not there, a warning where bfloat16 is emulated.
    device: "auto" (CUDA where torch finds it, else the processor), "cpu", "cuda", or "mps" (Apple's, by name alone).
    arithmetic: "auto" (bfloat16 where the device computes it, else float32), "float32" or "bfloat16"."""
    if device not in DEVICES or arithmetic not in ARITHMETICS:
        raise ValueError(f"device {device!r}, arithmetic {arithmetic!r}: must be of {DEVICES} and of {ARITHMETICS}")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = "cuda" if present["cuda"] else "cpu"
    if not present[device]:
        raise ValueError(f"device {device!r}: torch finds none on this machine; set it to 'auto' or 'cpu'")
    computed = device == "cpu" and bool(bfloat16_instructions())  # nobody measured MPS: counts as one that does not
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # else its convolutions in float32 would round to 10 bits
        computed = torch.cuda.is_bf16_supported(including_emulation=False)
    note = f"{device} {'computes' if computed else 'does not compute'} bfloat16"
    if arithmetic == "auto":
        return Compute(device, "bfloat16" if computed else "float32", note)
    if arithmetic == "bfloat16" and not computed:
        note = f"this machine's {device} does not compute bfloat16 but {EMULATED}"
        warnings.warn(f"arithmetic 'bfloat16': {note}", RuntimeWarning, stacklevel=2)
    return Compute(device, arithmetic, f"{arithmetic} by request; {note}")


def bfloat16_instructions() -> list[str]:
    """Those of `BFLOAT16` that the processor has and that the environment lets oneDNN and torch use; [] = none."""
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if onednn in ONEDNN_PLAIN or os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ATEN_PLAIN:
        return []
    return [name for name in BFLOAT16 if torch.cpu.get_capabilities().get(name)]


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` cores in this thread and in those begun within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
