"""A model folder as one ONNX file: waveform windows in, calibrated probabilities out, no torch needed to run it.

`python -m lib.speed.onnx MODEL OUT` writes `model.onnx`, `model.onnx.json` and an example of ten lines. Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib import paths
from lib.embed import encode_batch, seeded_noise
from lib.encoders import Encoder, frames_of
from lib.model_folder import Bundle, load_bundle
from lib.predict import ask_head
from lib.stages import file_checksum
from lib.trust.calibration import Calibration

EXAMPLE = paths.ASSETS / "onnx_example.py"
CENTURY = 100.0  # years, so that the gap of an age is measured on the scale of a probability
LARGEST_GAP = 1e-3  # between torch and onnxruntime: half-precision frames round either way at their last digit


class Chain(nn.Module):
    """Encoder, precision of the store, heads and calibration as one module: (B, samples) -> one (B, C) a task.

    A task in years has one output more, (B, 1): the expected age over its probabilities as trained.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.encoder: Encoder = bundle.encoder
        self.network = bundle.encoder.model  # registered, so that its weights are exported
        self.heads = nn.ModuleDict({task: head.model for task, head in bundle.heads.items()})
        self.tensors = {task: head.tensor for task, head in bundle.heads.items()}
        self.calibrations = {task: head.calibration for task, head in bundle.heads.items()}
        self.centres = {task: head.years.centres for task, head in bundle.heads.items() if head.years}
        self.feature, self.half = bundle.feature, bundle.dtype == "float16"

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        """Waveforms (B, samples) at 16 kHz -> what `output_names` says: probabilities (B, C), ages in years (B, 1)."""
        encoded = self.encoder.encode(waveforms)
        seen = {"frames": frames_of(encoded, self.feature), "layers": encoded["hidden"].mean(dim=2)}
        if self.half:
            seen = {name: tensor.half().float() for name, tensor in seen.items()}
        answers = {task: head(seen[self.tensors[task]]) for task, head in self.heads.items()}
        told = [calibrate_tensor(answer, self.calibrations[task]) for task, answer in answers.items()]
        years = [answers[task].exp() @ torch.tensor(centres)[:, None] for task, centres in self.centres.items()]
        return (*told, *years)


def output_names(bundle: Bundle) -> list[str]:
    """Names of the outputs: the tasks, then "<task>:years" for a task in years."""
    return [*bundle.heads, *(f"{task}:years" for task, head in bundle.heads.items() if head.years)]


def calibrate_tensor(log_probabilities: Tensor, calibration: Calibration) -> Tensor:
    """Calibrated probabilities (B, C) from log-probabilities (B, C), as `lib.trust.calibration.apply_calibration` does."""
    scaled = log_probabilities / calibration.temperature
    return (scaled if calibration.bias is None else scaled + torch.tensor(calibration.bias)).softmax(dim=-1)


def export_onnx(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Write `model.onnx`, its description and the example into `folder`; return the description.

    The description holds classes, samples of a window, thresholds, intervals, hashes, and `largest_difference` between
    onnxruntime and `lib.predict` on seeded noise (of ages, as a share of a century). ValueError when onnx is not installed, or when the two differ by more than LARGEST_GAP.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target, size = folder / "model.onnx", bundle.windowing.samples
    with paths.write_whole(target) as partial:
        _trace(bundle, size, partial)
        gap = measure_gap(bundle, partial)
    if gap > LARGEST_GAP:
        target.unlink()
        raise ValueError(f"model {bundle.name}: onnxruntime differs by {gap:.2g} from torch, more than {LARGEST_GAP:g}")
    description = {
        "model": bundle.name,
        "fingerprint": bundle.fingerprint,
        "sha256": file_checksum(target),
        "input": {"name": "waveforms", "shape": ["batch", size], "rate_hz": 16_000},
        "outputs": {task: head.classes for task, head in bundle.heads.items()},
        "thresholds": {task: head.threshold for task, head in bundle.heads.items()},
        "rare": {task: head.rare for task, head in bundle.heads.items() if head.rare},
        "years": {task: asdict(head.years) for task, head in bundle.heads.items() if head.years},
        "windowing": vars(bundle.windowing),
        "largest_difference": gap,
    }
    paths.save_json(folder / "model.onnx.json", description)
    shutil.copyfile(EXAMPLE, folder / "example.py")
    return description


def _trace(bundle: Bundle, size: int, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'ONNX export needs "pip install -e .[onnx]" ({error})') from error
    chain = Chain(bundle).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            chain,
            (torch.from_numpy(np.concatenate([seeded_noise(size, seed) for seed in (0, 1)])),),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=["waveforms"],
            output_names=output_names(bundle),
            dynamic_shapes={"waveforms": {0: torch.export.Dim("batch")}},
            verbose=False,
        )


def measure_gap(bundle: Bundle, path: Path, count: int = 5) -> float:
    """Largest difference of any probability between the ONNX file and `lib.predict`, on `count` windows of noise."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    waveforms = np.concatenate([seeded_noise(bundle.windowing.samples, seed) for seed in range(count)])
    tensors = encode_batch(bundle.encoder, waveforms, bundle.feature, bundle.dtype)
    asked = [ask_head(head, tensors) for head in bundle.heads.values()]
    expected = [told for told, _ in asked] + [years[:, None] / CENTURY for _, years in asked if len(years)]
    found = session.run(output_names(bundle), {"waveforms": waveforms})
    found = [values / CENTURY if ":" in name else values for name, values in zip(output_names(bundle), found)]
    return max(float(np.abs(one - two).max()) for one, two in zip(found, expected))


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code: 0, or 2 when the folder or the export was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.speed.onnx", description="Write a model folder as one ONNX file."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder, such as data/demo/models/paper")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for model.onnx")
    asked = parser.parse_args(arguments)
    try:
        made = export_onnx(load_bundle(asked.model), asked.out)
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(f"{asked.out / 'model.onnx'}: differs from torch by at most {made['largest_difference']:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
