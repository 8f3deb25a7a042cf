"""Encoders that a researcher brings: `hf:<folder or repository>[@<revision>]` by transformers, `onnx:<file>` by onnxruntime.

`load` gives what `lib.encoders.Encoder` is made of; both packages are extras: `pip install -r requirements-hub.txt`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lib import paths
from lib.audio import RATE_HZ
from lib.stages import file_checksum

HF, ONNX = "hf:", "onnx:"
PACKAGES = {HF: "transformers", ONNX: "onnxruntime"}
FAMILIES = ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "whisper"]  # `model_type` of config.json
SETTINGS = ["config.json", "preprocessor_config.json", "processor_config.json"]
WEIGHTS = ["model.safetensors", "model-*.safetensors"]  # whole, or in several files
EPSILON = 1e-7  # of Wav2Vec2FeatureExtractor, beside the variance


def check(name: str) -> Path:
    """The model's folder or file; ValueError saying what to do when it, or the package, is not there or not usable."""
    prefix = HF if name.startswith(HF) else ONNX
    if importlib.util.find_spec(PACKAGES[prefix]) is None:
        raise ValueError(f"encoder {name} needs {PACKAGES[prefix]}: pip install -r requirements-hub.txt")
    if prefix == HF:
        return find_folder(name)[0]
    file = Path(name.removeprefix(ONNX)).expanduser()
    if not file.is_file():
        raise ValueError(f"encoder {name}: there is no such file; write onnx:<path of a model's .onnx file>")
    return file


def load(name: str) -> tuple[str, nn.Module, str, str]:
    """Name with the revision pinned, stages, note and SHA-256 of what decides every value. ValueError as by `check`."""
    place = check(name)
    try:
        return _load_hf(name) if name.startswith(HF) else _load_onnx(name, place)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # both packages raise whatever their parsers do
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"encoder {name}: {place} does not hold a model that can be read ({reason})") from error


# ----------------------------------------------------------------------------------------------------------- transformers


class TransformersStages(nn.Module):
    """`conv`, `layer:0` ... `layer:n` and `emission` of a Wav2Vec2, HuBERT, WavLM or Data2VecAudio, each (B, T, D).

    The layers are transformers' own hidden states; `emission` is the last hidden state, or a CTC head's logits.
    """

    def __init__(self, model: nn.Module, normalize: bool, head: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.model, self.head, self.normalize = model.feature_extractor, model, head, normalize
        model.feature_extractor = nn.Identity()  # so that its output, made here, can be a stage

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Stages of (B, samples), each window brought to zero mean and unit variance where the model wants it."""
        if self.normalize:
            waveforms = nn.functional.layer_norm(waveforms, waveforms.shape[-1:], eps=EPSILON)
        conv = self.conv(waveforms)
        outputs = self.model(conv, output_hidden_states=True)
        layers = {f"layer:{number}": state for number, state in enumerate(outputs.hidden_states)}
        last = outputs.last_hidden_state
        return {"conv": conv.transpose(1, 2)} | layers | {"emission": last if self.head is None else self.head(last)}


class WhisperStages(nn.Module):
    """`layer:0` ... `layer:n` of a Whisper encoder, (B, T, D), without the padding's frames; `emission` is the last of them."""

    def __init__(self, encoder: nn.Module, extractor: Any) -> None:
        super().__init__()
        self.encoder, self.hop, self.size = encoder, extractor.hop_length, extractor.n_fft
        self.samples, self.padding = extractor.n_samples, extractor.padding_value
        self.filters = torch.from_numpy(extractor.mel_filters).float().T  # no buffer: always float32

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Stages of (B, samples): 50 frames a second. ValueError when a window is longer than the model can hear."""
        samples = waveforms.shape[1]
        if samples > self.samples:
            raise ValueError(f"windows of {samples / RATE_HZ:g} s: Whisper hears {self.samples / RATE_HZ:g} s at most")
        padded = nn.functional.pad(waveforms.float(), (0, self.samples - samples), value=self.padding)
        taper = torch.hann_window(self.size, device=padded.device)
        spectra = torch.stft(padded, self.size, self.hop, window=taper, return_complex=True)[..., :-1]
        bands = (self.filters.to(padded.device) @ spectra.abs().square()).clamp(min=1e-10).log10()
        bands = (torch.maximum(bands, bands.amax((1, 2), keepdim=True) - 8) + 4) / 4
        states = self.encoder(bands.to(waveforms.dtype), output_hidden_states=True).hidden_states
        frames = -(-samples // (2 * self.hop))
        layers = {f"layer:{number}": state[:, :frames] for number, state in enumerate(states)}
        return layers | {"emission": states[-1][:, :frames]}


def find_folder(name: str) -> tuple[Path, str, str]:
    """Folder of an `hf:` encoder, fetched when it names a repository; its revision ("" = none noted), and its pinned name."""
    place, revision = name.removeprefix(HF), ""
    if "@" in place and not Path(place).expanduser().is_dir():
        place, _, revision = place.rpartition("@")
    folder, pinned = Path(place).expanduser(), name
    if folder.is_dir():
        noted = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"  # left by `hf download`
        here = noted.read_text(encoding="utf-8").split()[0] if noted.is_file() else ""
        if revision not in ("", here):
            raise ValueError(f"encoder {name}: the revision of {folder} is {here or 'not noted there'}")
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", place):
        folder = _fetch(name, place, revision)
        here = folder.name  # the commit
        pinned = f"{HF}{place}@{here}"
    else:
        raise ValueError(f"encoder {name}: there is no such folder; one comes by {_download('<repository>')}")
    _check_files(name, folder)
    return folder, here, pinned


def _download(repository: str, revision: str = "") -> str:
    return f"`hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir <folder>`"


def _fetch(name: str, repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*SETTINGS, *WEIGHTS, "model.safetensors.index.json", "README.md"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # no network, no such model, no permission
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"encoder {name}: neither here nor to be fetched ({reason}); on a machine with a network run "
            f"{_download(repository, revision)}, bring the folder here, then encoder: hf:<folder>"
        ) from error


def _check_files(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"encoder {name}: {folder} is no model of transformers, config.json is missing")
    family = paths.load_json(folder / "config.json").get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"encoder {name}: a model of type {family!r}; must be one of {', '.join(FAMILIES)}")
    if not any(folder.glob(SETTINGS[1])) and not any(folder.glob(SETTINGS[2])):
        raise ValueError(f"encoder {name}: {folder} lacks preprocessor_config.json, which says how sound is prepared")
    if not _weights(folder):
        raise ValueError(
            f"encoder {name}: {folder} holds no model.safetensors; weights in a pickle (pytorch_model.bin) can run any "
            'program and are not read. Convert them where you trust the file: python -c "from transformers import '
            f"AutoModel; AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )


def _weights(folder: Path) -> list[Path]:
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))


def _load_hf(name: str) -> tuple[str, nn.Module, str, str]:
    import transformers

    folder, revision, pinned = find_folder(name)
    config = paths.load_json(folder / "config.json")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if extractor.sampling_rate != RATE_HZ:
        raise ValueError(f"encoder {name}: works at {extractor.sampling_rate} Hz, this project at {RATE_HZ} Hz")
    spells = any(architecture.endswith("ForCTC") for architecture in config.get("architectures") or [])
    kind = transformers.AutoModelForCTC if spells else transformers.AutoModel
    options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False, "dtype": torch.float32}
    model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    absent = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))  # of training alone
    if absent:
        raise ValueError(f"encoder {name}: the weights lack {', '.join(absent[:3])}; it would be random there")
    if config["model_type"] == "whisper":
        stages: nn.Module = WhisperStages(model.get_encoder(), extractor)
    else:
        head = model.lm_head if spells else None
        stages = TransformersStages(model.base_model, bool(extractor.do_normalize), head)
    weights = _weights(folder)
    settings = [folder / file for file in SETTINGS if (folder / file).is_file()]
    known = f"revision {revision}" if revision else "revision not stated"
    note = f"{config['model_type']} of transformers, {known}, {_licence(folder / 'README.md')}"
    return pinned, stages, note, _digest([*weights, *settings])


def _digest(files: list[Path]) -> str:
    """SHA-256 of what `sha256sum` prints of the files: weights alone would not tell of a setting that was changed."""
    lines = [f"{file_checksum(file)}  {file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _licence(card: Path) -> str:
    """The licence that a model card's front matter names."""
    parts = re.split(r"^---\s*$", card.read_text(encoding="utf-8"), maxsplit=2, flags=re.M) if card.is_file() else []
    try:
        facts = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except yaml.YAMLError:
        facts = {}
    stated = facts.get("license") if isinstance(facts, dict) else None
    return f"licence {str(stated)[:60]}" if stated else "licence not stated"


# ----------------------------------------------------------------------------------------------------------------- ONNX


class OnnxStages(nn.Module):
    """The outputs of an ONNX file, by their names and in their order; computed by onnxruntime, in float32 on a processor."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # engines run one batch a core
        content = file.read_bytes()  # not the path: weights in a second file would go without a hash
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.file, self.session, self.weights = file, session, len(content) // 4
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
            found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise ValueError(f"{file}: must take waveforms (B, samples) alone, float32; it takes {found}")
        if any(isinstance(size, int) for size in inputs[0].shape):
            raise ValueError(f"{file}: takes {inputs[0].shape} alone; export it with batch and samples left open")
        self.names = [output.name for output in session.get_outputs()]
        for stage, values in self(torch.zeros(2, RATE_HZ)).items():
            if values.dim() not in (2, 3) or len(values) != 2:
                raise ValueError(f"{file}: output {stage} is {tuple(values.shape)}, must be (B, T, D) or (B, D)")

    def __reduce__(self) -> tuple:
        return OnnxStages, (self.file,)  # a copy reads the file again: a session cannot be copied

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Stages of (B, samples), as float32 on the processor wherever the waveforms are."""
        signal = {self.session.get_inputs()[0].name: waveforms.detach().float().cpu().numpy()}
        return {
            name: torch.from_numpy(array).float() for name, array in zip(self.names, self.session.run(None, signal))
        }


def _load_onnx(name: str, file: Path) -> tuple[str, nn.Module, str, str]:
    return name, OnnxStages(file), f"the ONNX file {file.name}, licence as the file's owner says", file_checksum(file)
