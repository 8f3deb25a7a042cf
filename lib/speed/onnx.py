"""A model folder as one ONNX file: waveform windows in, calibrated probabilities out, no torch needed to run it.
`python -m lib.speed.onnx MODEL OUT` writes `model.onnx`, `model.onnx.json` (the folder's `model.json` and what the file needs
beside it) and an example of ten lines. It needs `pip install onnx onnxscript onnxruntime`."""

import argparse
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import paths
from lib.encoders import bank_statistics
from lib.hub import OnnxStages
from lib.model_folder import ModelFolder, load_model_folder
from lib.networks import select_input
from lib.stages import file_checksum

LARGEST_GAP = 1e-3  # between torch and onnxruntime, of a probability or of a year


class Chain(nn.Module):
    """Encoder, heads and calibration of a model folder as one module, from waveforms (B, samples) at 16 kHz.
    Gives what `names` names: calibrated probabilities (B, C) for "<task>", then the expected age (B, 1), over the
    probabilities as trained, for "<task>:years" of each task in years."""

    def __init__(self, model: ModelFolder) -> None:
        super().__init__()
        self.summary, self.model = model.encoder.summary(model.feature), model
        self.networks = nn.ModuleDict({task: head.model for task, head in model.heads.items()})
        self.names = [*model.heads, *(f"{task}:years" for task, head in model.heads.items() if head.years)]

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        frames, statistics = self.summary(waveforms) if self.model.feature else (None, self.summary(waveforms))
        statistics = torch.cat([statistics, bank_statistics(waveforms)], dim=1)
        probabilities, years = [], []
        for task, head in self.model.heads.items():
            features = select_input(head.network, {"frames": frames, "statistics": statistics}, self.model.parts)
            log_probabilities = self.networks[task](features)
            even = (1 - head.calibration.cap) / (len(head.classes) - 1)  # as in `Calibration.apply`
            values = (log_probabilities / head.calibration.temperature).softmax(dim=-1)
            probabilities.append((1 - even * len(head.classes)) * values + even)
            if head.years:
                years.append(log_probabilities.exp() @ torch.tensor(head.years.centres)[:, None])
        return (*probabilities, *years)


def export_onnx(model: ModelFolder, folder: Path) -> float:
    """Write `model.onnx`, its description and the example into `folder`; return the largest difference from torch on noise.
    The description is the model folder's own, with `input`, `outputs`, the file's hash and that difference. ValueError when
    a package is missing, or when the difference exceeds LARGEST_GAP."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX export needs: pip install onnx onnxscript onnxruntime ({error})") from error
    if isinstance(model.encoder.stages, OnnxStages):
        raise ValueError(f"model {model.name}: its encoder is an ONNX file already, that goes in no other")
    chain, samples, target = Chain(model).eval(), model.windowing.samples, folder / "model.onnx"
    waveforms = np.random.default_rng(0).normal(0, 0.1, (5, samples)).astype(np.float32)
    options = {"dynamo": True, "external_data": False, "verbose": False, "output_names": chain.names}
    options |= {"input_names": ["waveforms"], "dynamic_shapes": {"waveforms": {0: torch.export.Dim("batch")}}}
    with paths.write_whole(target) as partial:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = chain(torch.from_numpy(waveforms))  # first: what it caches must not be tracing's stand-ins
            torch.onnx.export(chain, (torch.from_numpy(waveforms),), str(partial), **options)
        answers = onnxruntime.InferenceSession(str(partial)).run(chain.names, {"waveforms": waveforms})
        gap = max(float(np.abs(one - other.numpy()).max()) for one, other in zip(answers, expected))
        if gap > LARGEST_GAP:
            raise ValueError(f"model {model.name}: onnxruntime is {gap:.2g} off torch, more than {LARGEST_GAP:g}")
    facts = {"fingerprint": model.fingerprint, "sha256": file_checksum(target), "outputs": chain.names}
    facts |= {"input": {"name": "waveforms", "shape": ["batch", samples], "rate_hz": 16_000}, "largest_difference": gap}
    paths.save_json(folder / "model.onnx.json", model.description | facts)
    shutil.copyfile(paths.ASSETS / "onnx_example.py", folder / "example.py")
    return gap


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code: 0, or 2 when the folder or the export was refused."""
    parser = argparse.ArgumentParser(prog="python -m lib.speed.onnx", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder, such as data/demo/models/paper")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for model.onnx")
    options = parser.parse_args(arguments)
    try:
        gap = export_onnx(load_model_folder(options.model), options.out)
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / 'model.onnx'}: differs from torch by at most {gap:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
