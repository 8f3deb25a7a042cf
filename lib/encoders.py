"""Encoders by name: from waveforms (B, samples) at 16 kHz to named stages, from bottom to top. Of a wav2vec2: `conv`, `layer:0` (the
transformer's input), `layer:1` ... and `emission`, which the paper used, each (B, T, D); see `lib.tiny.speaker_models` and `lib.hub`."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchaudio
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchaudio import pipelines

from lib import hub, paths
from lib.audio import RATE_HZ
from lib.corpora.fetch import download_file
from lib.stages import file_checksum
from lib.tiny import speaker_models

TINY = "wav2vec2-tiny"
UNTRAINED = "wav2vec2-tiny-untrained"
CAMPPLUS, RESEMBLYZER = "campplus", "resemblyzer"
WHEELS = {  # where a speaker model's weights are, and what loads them
    CAMPPLUS: (speaker_models.CAMPPLUS_WEIGHTS, speaker_models.load_campplus),
    RESEMBLYZER: (speaker_models.RESEMBLYZER_WEIGHTS, speaker_models.load_resemblyzer),
}
OURS = [TINY, UNTRAINED, *WHEELS]
NO_TRADE = ("VOXPOPULI", "MMS")  # bundles that torchaudio's documentation puts under CC BY-NC 4.0, the others under MIT


class Wav2Vec2Stages(nn.Module):
    """Every stage of a wav2vec2, from the one pass that makes its output: `torchaudio.models.Wav2Vec2Model.forward` spelled
    out, the same modules in the same order, so that the emission is `model(waveforms)` to the bit."""

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.log_softmax = getattr(model, "apply_log_softmax", False)
        self.normalize = normalize  # each window by itself; torchaudio's wrapper would take a batch as one
        while not hasattr(model, "feature_extractor"):  # torchaudio's bundles may wrap it to normalise its input
            model = model.model
        self.feature_extractor, self.feature_projection = model.feature_extractor, model.encoder.feature_projection
        self.transformer, self.aux = model.encoder.transformer, model.aux

    def prepare(self, waveforms: Tensor) -> Tensor:
        """What the model itself takes for (B, samples): some want each window with zero mean and unit variance."""
        return nn.functional.layer_norm(waveforms, [int(waveforms.shape[-1])]) if self.normalize else waveforms

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Stages, each (B, T, D), of (B, samples)."""
        conv, _ = self.feature_extractor(self.prepare(waveforms), None)
        x = self.transformer._preprocess(self.feature_projection(conv))
        stages, position_bias = {"conv": conv, "layer:0": x}, None  # the bias is WavLM's
        for number, layer in enumerate(self.transformer.layers, 1):
            x, position_bias = layer(x, None, position_bias=position_bias)
            stages[f"layer:{number}"] = x
        if not self.transformer.layer_norm_first:
            x = self.transformer.layer_norm(x)
        emission = x if self.aux is None else self.aux(x)
        stages["emission"] = torch.log_softmax(emission, dim=-1) if self.log_softmax else emission
        return stages


class Summary(nn.Module):
    """What a store keeps of an encoder: frames (B, T, D) of the stage `feature`, and time mean and deviation of every stage,
    (B, S); without `feature` these alone."""

    def __init__(self, stages: nn.Module, feature: str) -> None:
        super().__init__()
        self.stages, self.feature = stages, feature

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        stages = self.stages(waveforms)
        statistics = torch.cat([time_statistics(stage) for stage in stages.values()], dim=1)
        return (stages[self.feature], statistics) if self.feature else statistics


def time_statistics(stage: Tensor) -> Tensor:
    """Time mean and deviation (B, 2 D) of (B, T, D); a stage without time, (B, D), stays as it is."""
    return stage if stage.dim() == 2 else torch.cat([stage.mean(1), stage.std(1, unbiased=False)], dim=1)


def bank_statistics(waveforms: Tensor) -> Tensor:
    """Time mean and deviation (B, 160) of the log mel filter bank, the level taken off."""
    bands = speaker_models.filter_bank(waveforms)
    return time_statistics(bands - bands.mean((1, 2), keepdim=True))


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder with what a reader must know of it. `note` is shown on every page that its numbers are on."""

    name: str
    stages: nn.Module
    note: str
    weights_sha256: str
    licence: str = "not stated"
    wav2vec2: nn.Module | None = None  # torchaudio's own model, where it is one: the paper's call is `model(waveform)`

    def __post_init__(self) -> None:
        for module in self.stages.eval().modules():
            # weights of a positional convolution, computed once, while they can learn: else they would be no parameter
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        self.stages.requires_grad_(False)

    @property
    def parameters(self) -> int:
        """Number of weights; of an ONNX file what its size says."""
        return getattr(self.stages, "count", None) or sum(weight.numel() for weight in self.stages.parameters())

    def encode(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Every stage of waveforms (B, samples) at 16 kHz, from bottom to top."""
        with torch.inference_mode():
            return self.stages(waveforms)

    def summary(self, feature: str = "") -> Summary:
        """The module that engines compute; ValueError when there is no such stage, or it has no frames."""
        frames = [name for name, stage in self.encode(torch.zeros(1, RATE_HZ)).items() if stage.dim() == 3]
        if feature and feature not in frames:
            none = f"{self.name} gives vectors alone: set embed.feature to \"\" and train.networks to ['linear']"
            have = f"those of {self.name} are {', '.join(frames)}" if frames else none
            raise ValueError(f"feature {feature!r}: no stage with frames of this name, {have}")
        return Summary(self.stages, feature)

    def parts(self) -> dict[str, list[int]]:
        """First and last column (exclusive) of each stage in the statistics of a store, and of the filter bank after them."""
        stages = self.encode(torch.zeros(1, RATE_HZ))
        widths = [*(time_statistics(stage).shape[1] for stage in stages.values()), 2 * speaker_models.MELS]
        ends = np.cumsum(widths).tolist()
        return {name: [end - width, end] for name, end, width in zip([*stages, "bank"], ends, widths)}

    def describe(self) -> pd.DataFrame:
        """What a reader should know, as a table of two columns."""
        facts = {"name": self.name, "what it is": self.note, "licence": self.licence}
        facts |= {"parameters": f"{self.parameters:,}", "stages": ", ".join(self.parts())}
        stages = (self.encode(torch.zeros(1, seconds * RATE_HZ)).values() for seconds in (1, 2))
        short, long = (max((stage.shape[1] for stage in each if stage.dim() == 3), default=0) for each in stages)
        stride = f"one every {1000 / (long - short):g} ms" if long > short else "none: vectors alone"
        facts["frames"] = f"{stride}, of sound at {RATE_HZ:,} Hz"
        facts["SHA-256 of the weights"] = self.weights_sha256
        return pd.DataFrame({"fact": facts.keys(), "value": facts.values()})


def load_encoder(name: str) -> Encoder:
    """The encoder of this name, in evaluation mode. ValueError names the choices when there is none such."""
    if name in (TINY, UNTRAINED):
        card = paths.load_json(paths.ASSETS / f"{TINY}.json")
        model = build_wav2vec2(card["model"])
        note, digest = "an untrained wav2vec2-tiny: random weights, seed 0", state_checksum(model)
        if name == TINY:
            weights = paths.ASSETS / f"{TINY}.safetensors"
            note, digest = card["note"], file_checksum(weights)
            if digest != card["sha256"]:
                told = f"SHA-256 is {digest}, its card says {card['sha256']}; get the file again"
                raise ValueError(f"{weights.name}: {told}")
            model.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        return Encoder(name, Wav2Vec2Stages(model, card["normalize"]), note, digest, "MIT", model)
    if name in WHEELS:
        weights, load = WHEELS[name]
        digest = file_checksum(speaker_models.wheel_file(*weights))
        return Encoder(name, model := load(), model.note, digest, "Apache-2.0")
    if name.startswith(tuple(hub.PACKAGES)):
        return Encoder(*hub.load(name))
    check_encoder(name)
    return _load_bundle(name)


def check_encoder(name: str) -> None:
    """ValueError saying what to do when there is no encoder of this name, before a notebook runs; weights are not read, but
    files of a repository are fetched."""
    if name.startswith(tuple(hub.PACKAGES)):
        hub.find(name)
    elif name in WHEELS:
        speaker_models.wheel_file(*WHEELS[name][0])
    elif name not in [*OURS, *bundle_names()]:
        choices = [*OURS, "hf:<folder or repository of transformers>", "onnx:<file>", hub.EGEMAPS, *bundle_names()]
        raise ValueError(f"encoder {name!r} is not known; choose one of {', '.join(choices)}")


def build_wav2vec2(config: dict) -> nn.Module:
    """A `torchaudio.models.wav2vec2_model` with random weights of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchaudio.models.wav2vec2_model(**config)


def bundle_names() -> list[str]:
    """Names of torchaudio's wav2vec2, HuBERT and WavLM bundles, all of which this project can load."""
    return sorted(name for name in dir(pipelines) if isinstance(getattr(pipelines, name), pipelines.Wav2Vec2Bundle))


def _load_bundle(name: str) -> Encoder:
    bundle, (url, weights) = getattr(pipelines, name), locate_bundle(name)
    try:
        if not weights.exists():
            download_file(url, weights, attempts=3)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"encoder {name}: {url} could not be fetched ({error}); fetch it where there is a network and put it at "
            f"{weights}, or use the encoder {TINY}, which ships here"
        ) from error
    options = {"progress": False, "weights_only": True, "model_dir": str(weights.parent), "file_name": weights.name}
    more = {"with_star": False} if isinstance(bundle, pipelines.Wav2Vec2FABundle) else {}
    try:
        model = bundle.get_model(dl_kwargs=options, **more)
    except Exception as error:
        reason = f"{weights} does not hold its weights ({' '.join(str(error).split())[:200]})"
        raise ValueError(f"encoder {name}: {reason}; delete it and run again") from error
    if bundle._normalize_waveform:
        model.normalize_waveform = False  # done by `stages`
    stages = Wav2Vec2Stages(model, bool(bundle._normalize_waveform))
    licence = "CC BY-NC 4.0" if name.startswith(NO_TRADE) else "MIT"
    return Encoder(name, stages, f"torchaudio's {name}, as published", check_weights(weights), licence, model)


def locate_bundle(name: str) -> tuple[str, Path]:
    """Where torchaudio publishes a bundle's weights, and where they lie once downloaded: in its own cache, torch.hub's."""
    url = getattr(pipelines, name)._path
    url = url if url.startswith("https") else f"https://download.pytorch.org/torchaudio/models/{url}"
    file_name = url.rsplit("/", 1)[1]
    return url, Path(torch.hub.get_dir()) / "checkpoints" / (f"{name}.pt" if file_name == "model.pt" else file_name)


def check_weights(path: Path) -> str:
    """SHA-256 of a weights file, noted beside it on first use, since torchaudio publishes none; ValueError when the note says
    another, a warning where it cannot be written."""
    digest, note = file_checksum(path), path.with_name(path.name + ".sha256")
    if note.exists():
        first = note.read_text(encoding="utf-8").strip()
        if first != digest:
            again = "; delete both files and run again, or put the old file back"
            raise ValueError(f"{path}: SHA-256 is {digest}, on first use it was {first}{again}")
        return digest
    try:
        with paths.write_whole(note) as partial:
            partial.write_text(digest + "\n", encoding="utf-8")
    except OSError as error:
        warnings.warn(f"{note} cannot be written ({error}); later changes of the weights go unnoticed", stacklevel=2)
    return digest


def state_checksum(model: nn.Module) -> str:
    """SHA-256 over a model's parameters, as safetensors would write them."""
    return hashlib.sha256(save(model.state_dict())).hexdigest()
