"""Encoders by name: the bundled wav2vec2-tiny, the same network untrained, and every bundle of torchaudio.

An encoder turns waveforms (B, samples) at 16 kHz into three things: the emission (B, T, D), which the paper used; the
hidden states of every layer (B, L, T, D'), layer 0 being the transformer's input; and the convolutional features
(B, T, C) below them.
"""

from __future__ import annotations

import hashlib
import json
import re
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
FRAME_SAMPLES = 320  # stride of every wav2vec2 front: 20 ms at 16 kHz


@dataclass(frozen=True)
class Encoder:
    """A frozen wav2vec2 with what a reader must know of it. `note` is shown on every page that its numbers are on."""

    name: str
    model: torch.nn.Module
    note: str
    weights_sha256: str
    normalize: bool  # bring each window to zero mean and unit variance first

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.model.parameters())

    def describe(self) -> pd.DataFrame:
        """What a reader should know, as a table of two columns."""
        layers = len(_inner(self.model).encoder.transformer.layers)
        facts = {
            "name": self.name,
            "what it is": self.note,
            "parameters": f"{self.parameters:,}",
            "transformer layers": str(layers),
            "SHA-256 of the weights": self.weights_sha256,
        }
        return pd.DataFrame({"fact": facts.keys(), "value": facts.values()})

    def encode(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode (B, samples) at 16 kHz; return emission (B, T, D), hidden (B, L, T, D') and conv (B, T, C).

        The emission is the very output of `model(waveforms)`; the rest is caught by hooks on the way.
        """
        wav2vec2 = _inner(self.model)
        caught: dict[str, list] = {"hidden": [], "conv": []}
        hooks = [wav2vec2.feature_extractor.register_forward_hook(lambda m, i, out: caught["conv"].append(out[0]))]
        layers = wav2vec2.encoder.transformer.layers
        hooks.append(layers[0].register_forward_pre_hook(lambda m, args: caught["hidden"].append(args[0])))
        for layer in layers:  # WavLM's layers return (hidden, position bias)
            hooks.append(layer.register_forward_hook(lambda m, i, out: caught["hidden"].append(_first(out))))
        try:
            with torch.inference_mode():
                emission = _first(self.model(_normalized(waveforms) if self.normalize else waveforms))
        finally:
            for hook in hooks:
                hook.remove()
        return {"emission": emission, "hidden": torch.stack(caught["hidden"], dim=1), "conv": caught["conv"][0]}


def _first(out):
    return out[0] if isinstance(out, tuple) else out


def _inner(model: torch.nn.Module) -> torch.nn.Module:
    """The Wav2Vec2Model itself; torchaudio's bundles may wrap it to normalise input or to drop unused labels."""
    while not hasattr(model, "feature_extractor"):
        model = model.model
    return model


def _normalized(waveforms: torch.Tensor) -> torch.Tensor:
    """Each window to zero mean and unit variance by itself; torchaudio's own wrapper takes the whole batch as one."""
    return torch.nn.functional.layer_norm(waveforms, waveforms.shape[-1:])


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
    """Names of torchaudio's wav2vec2, HuBERT and WavLM bundles that this project can load."""
    from torchaudio import pipelines

    return sorted(name for name in dir(pipelines) if re.match(r"(WAV2VEC2|HUBERT|WAVLM)_", name))


def _load_bundle(name: str) -> Encoder:
    from torchaudio import pipelines

    bundle = getattr(pipelines, name)
    weights = fetch_bundle_weights(name)
    digest = check_weights(weights)
    options = {"model_dir": str(weights.parent), "file_name": weights.name, "progress": False, "weights_only": True}
    try:
        model = bundle.get_model(dl_kwargs=options)
    except Exception as error:
        raise ValueError(
            f"encoder {name}: {weights} does not hold its weights ({error}); delete it and run again"
        ) from error
    if bundle.sample_rate != RATE_HZ:
        raise ValueError(f"encoder {name}: works at {bundle.sample_rate} Hz, this project at {RATE_HZ} Hz")
    note = f"torchaudio's {name}, as published"
    return Encoder(name, _inner(model).eval(), note, digest, bool(bundle._normalize_waveform))


def bundle_weights_path(name: str) -> Path:
    """Where a bundle's weights lie once downloaded: the cache that torch.hub and torchaudio use themselves."""
    from torchaudio import pipelines

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(getattr(pipelines, name)._path).name


def fetch_bundle_weights(name: str) -> Path:
    """Path of a bundle's weights in the cache, downloaded when missing. ValueError with advice when that fails."""
    from torchaudio import pipelines

    from lib.download import download_file

    target = bundle_weights_path(name)
    if not target.exists():
        url = f"https://download.pytorch.org/torchaudio/models/{getattr(pipelines, name)._path}"
        try:
            download_file(url, target)
        except Exception as error:
            advice = (
                f"fetch it where there is a network and put it at {target}, or use the encoder {TINY}, which ships here"
            )
            raise ValueError(f"encoder {name}: {url} could not be fetched ({error}); {advice}") from error
    return target


def check_weights(path: Path) -> str:
    """SHA-256 of a weights file; ValueError when it differs from the one noted beside it when it was first used."""
    digest = file_checksum(path)
    noted = path.with_name(path.name + ".sha256")
    if not noted.exists():
        with paths.write_whole(noted) as partial:
            partial.write_text(digest + "\n", encoding="utf-8")
    elif noted.read_text(encoding="utf-8").strip() != digest:
        raise ValueError(
            f"{path}: SHA-256 is {digest}, on first use it was {noted.read_text().strip()}; delete both files"
        )
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
    match = re.fullmatch(r"layer:(\d+)", feature)
    layers = encoded["hidden"].shape[1]
    if not match or int(match[1]) >= layers:
        raise ValueError(f"feature {feature!r}: must be 'emission', 'conv' or 'layer:0' to 'layer:{layers - 1}'")
    return encoded["hidden"][:, int(match[1])]
