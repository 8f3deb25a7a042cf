"""Encoders by name: the bundled wav2vec2-tiny, the same network untrained, and every bundle of torchaudio.

An encoder turns waveforms (B, samples) at 16 kHz into three things: the emission (B, T, D), which the paper used; the
hidden states of every layer (B, L, T, D'), layer 0 being the transformer's input; and the convolutional features
(B, T, C) below them.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import paths
from lib.audio import RATE_HZ
from lib.stages import file_checksum

TINY = "wav2vec2-tiny"
UNTRAINED = "wav2vec2-tiny-untrained"


class Tap(torch.nn.Module):
    """A wav2vec2 that also gives what lies below its output, from the one pass that makes the output.

    `forward` takes waveforms (B, samples) and returns the model's own output, the hidden states before the first and
    after every transformer layer, L tensors (B, T, D'), and the convolutional features (B, T, C). It spells out
    `torchaudio.models.Wav2Vec2Model.forward`, the same modules in the same order, and gives the same bits.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        wav2vec2 = inner_model(model)
        self.feature_extractor = wav2vec2.feature_extractor
        self.feature_projection = wav2vec2.encoder.feature_projection
        self.transformer = wav2vec2.encoder.transformer
        self.aux = wav2vec2.aux
        self.log_softmax = getattr(model, "apply_log_softmax", False)

    def forward(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Emission (B, T, D), hidden states L x (B, T, D'), convolutional features (B, T, C) of (B, samples)."""
        conv, _ = self.feature_extractor(waveforms, None)
        x = self.transformer._preprocess(self.feature_projection(conv))
        hidden, position_bias = [x], None  # the bias is WavLM's
        for layer in self.transformer.layers:
            x, position_bias = layer(x, None, position_bias=position_bias)
            hidden.append(x)
        if not self.transformer.layer_norm_first:
            x = self.transformer.layer_norm(x)
        emission = x if self.aux is None else self.aux(x)
        return torch.log_softmax(emission, dim=-1) if self.log_softmax else emission, hidden, conv


@dataclass(frozen=True)
class Encoder:
    """A frozen wav2vec2 with what a reader must know of it. `note` is shown on every page that its numbers are on."""

    name: str
    model: torch.nn.Module
    note: str
    weights_sha256: str
    normalize: bool  # bring each window to zero mean and unit variance first

    def __post_init__(self) -> None:
        fold_weight_norm(self.model)
        object.__setattr__(self, "tap", Tap(self.model.eval()))

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def layers(self) -> int:
        """Number of transformer layers; the hidden states are one more."""
        return len(inner_model(self.model).encoder.transformer.layers)

    def describe(self) -> pd.DataFrame:
        """What a reader should know, as a table of two columns."""
        facts = {
            "name": self.name,
            "what it is": self.note,
            "parameters": f"{self.parameters:,}",
            "transformer layers": str(self.layers),
            "SHA-256 of the weights": self.weights_sha256,
        }
        return pd.DataFrame({"fact": facts.keys(), "value": facts.values()})

    def encode(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode (B, samples) at 16 kHz; return emission (B, T, D), hidden (B, L, T, D') and conv (B, T, C).

        The emission is the very output of `model(waveforms)`, bit for bit.
        """
        with torch.inference_mode():
            emission, hidden, conv = self.tap(normalize_windows(waveforms) if self.normalize else waveforms)
            return {"emission": emission, "hidden": torch.stack(hidden, dim=1), "conv": conv}


def inner_model(model: torch.nn.Module) -> torch.nn.Module:
    """The Wav2Vec2Model itself; torchaudio's bundles may wrap it to normalise its input."""
    while not hasattr(model, "feature_extractor"):
        model = model.model
    return model


def fold_weight_norm(model: torch.nn.Module) -> None:
    """Compute once what torchaudio computes in every pass: the normalised weights of the positional convolution."""
    convolution = inner_model(model).encoder.transformer.pos_conv_embed.conv
    if torch.nn.utils.parametrize.is_parametrized(convolution, "weight"):
        torch.nn.utils.parametrize.remove_parametrizations(convolution, "weight")


def normalize_windows(waveforms: torch.Tensor) -> torch.Tensor:
    """Each window (B, samples) to zero mean and unit variance by itself; torchaudio's wrapper takes a batch as one."""
    return torch.nn.functional.layer_norm(waveforms, [int(waveforms.shape[-1])])


def load_encoder(name: str) -> Encoder:
    """The encoder of this name, in evaluation mode. ValueError names the choices when there is none such."""
    if name in (TINY, UNTRAINED):
        return _load_tiny(name)
    bundles = bundle_names()
    if name not in bundles:
        raise ValueError(f"encoder {name!r} is not known; choose one of {', '.join([TINY, UNTRAINED, *bundles])}")
    return _load_bundle(name)


def _load_tiny(name: str) -> Encoder:
    import torchaudio
    from safetensors.torch import load_file

    card = json.loads((paths.ASSETS / f"{TINY}.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchaudio.models.wav2vec2_model(**card["model"])
    if name == UNTRAINED:
        digest = state_checksum(model)
        note = "an untrained wav2vec2-tiny: random weights, seed 0"
        return Encoder(name, model.eval(), note, digest, bool(card.get("normalize")))
    weights = paths.ASSETS / f"{TINY}.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != card["sha256"]:
        raise ValueError(f"{weights.name}: SHA-256 is {digest}, its card says {card['sha256']}; get the file again")
    model.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    return Encoder(name, model.eval(), card["note"], digest, bool(card.get("normalize")))


def bundle_names() -> list[str]:
    """Names of torchaudio's wav2vec2, HuBERT and WavLM bundles, all of which this project can load."""
    from torchaudio import pipelines

    return sorted(name for name in dir(pipelines) if isinstance(getattr(pipelines, name), pipelines.Wav2Vec2Bundle))


def _load_bundle(name: str) -> Encoder:
    from torchaudio import pipelines

    bundle = getattr(pipelines, name)
    if bundle.sample_rate != RATE_HZ:
        raise ValueError(f"encoder {name}: works at {bundle.sample_rate} Hz, this project at {RATE_HZ} Hz")
    weights = fetch_bundle_weights(name)
    digest = check_weights(weights)
    options = {"model_dir": str(weights.parent), "file_name": weights.name, "progress": False, "weights_only": True}
    wanted = {"with_star": False} if isinstance(bundle, pipelines.Wav2Vec2FABundle) else {}
    try:
        model = bundle.get_model(dl_kwargs=options, **wanted)
    except Exception as error:
        weights.with_name(weights.name + ".sha256").unlink(missing_ok=True)  # else the right file would be refused next
        raise ValueError(
            f"encoder {name}: {weights} does not hold its weights ({' '.join(str(error).split())[:200]}); delete it and "
            "run again"
        ) from error
    if bundle._normalize_waveform:
        model.normalize_waveform = (
            False  # the wrapper would take a whole batch as one; `encode` does it a window at a time
        )
    return Encoder(name, model, f"torchaudio's {name}, as published", digest, bool(bundle._normalize_waveform))


def bundle_url(name: str) -> str:
    """Where torchaudio publishes a bundle's weights."""
    from torchaudio import pipelines

    path = getattr(pipelines, name)._path
    return path if path.startswith("https") else f"https://download.pytorch.org/torchaudio/models/{path}"


def bundle_weights_path(name: str) -> Path:
    """Where a bundle's weights lie once downloaded: the cache that torch.hub and torchaudio use themselves."""
    file_name = bundle_url(name).rsplit("/", 1)[1]
    return Path(torch.hub.get_dir()) / "checkpoints" / (f"{name}.pt" if file_name == "model.pt" else file_name)


def fetch_bundle_weights(name: str) -> Path:
    """Path of a bundle's weights in the cache, downloaded when missing. ValueError with advice when that fails."""
    from lib.corpora.fetch import download_file

    target = bundle_weights_path(name)
    if not target.exists():
        url = bundle_url(name)
        try:
            download_file(url, target, attempts=3)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"encoder {name}: {url} could not be fetched ({error}); fetch it where there is a network and put it at "
                f"{target}, or use the encoder {TINY}, which ships here"
            ) from error
    return target


def check_weights(path: Path) -> str:
    """SHA-256 of a weights file, noted beside it when it is first used; ValueError when the note says another.

    torchaudio publishes no checksums: this is trust on first use. A cache that cannot be written to goes with a warning.
    """
    digest = file_checksum(path)
    noted = path.with_name(path.name + ".sha256")
    if noted.exists():
        first = noted.read_text(encoding="utf-8").strip()
        if first != digest:
            raise ValueError(
                f"{path}: SHA-256 is {digest}, on first use it was {first}; delete both files and run again, or put the "
                "old file back"
            )
        return digest
    try:
        with paths.write_whole(noted) as partial:
            partial.write_text(digest + "\n", encoding="utf-8")
    except OSError as error:
        warnings.warn(f"{noted} cannot be written ({error}); later changes of the weights go unnoticed", stacklevel=2)
    return digest


def state_checksum(model: torch.nn.Module) -> str:
    """SHA-256 over a model's parameters, in the order of their names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()


def frames_of(encoded: dict[str, torch.Tensor], feature: str) -> torch.Tensor:
    """The frames (B, T, D) that `feature` names: "emission", "conv" or "layer:<k>" with k = 0 the transformer's input."""
    if feature in ("emission", "conv"):
        return encoded[feature]
    return encoded["hidden"][:, layer_number(feature, encoded["hidden"].shape[1])]


def layer_number(feature: str, layers: int) -> int:
    """The k of a feature "layer:<k>" of `layers` hidden states; ValueError names the choices."""
    match = re.fullmatch(r"layer:(\d+)", feature)
    if not match or int(match[1]) >= layers:
        raise ValueError(f"feature {feature!r}: must be 'emission', 'conv' or 'layer:0' to 'layer:{layers - 1}'")
    return int(match[1])
