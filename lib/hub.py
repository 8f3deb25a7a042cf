"""Encoders that a researcher brings, `hf:<folder or repository>[@<revision>]` of transformers, `onnx:<file>` and `egemaps`, for
`lib.encoders`. Their packages are extras: `pip install -r requirements-hub.txt`."""

import hashlib
import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import paths
from lib.audio import RATE_HZ
from lib.stages import file_checksum

HF, ONNX, EGEMAPS = "hf:", "onnx:", "egemaps"
PACKAGES = {HF: "transformers", ONNX: "onnxruntime", EGEMAPS: "opensmile"}
FAMILIES = ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "whisper"]  # `model_type` of config.json
CONFIG, EXTRACTOR = "config.json", "p*processor_config.json"
FILES = [CONFIG, EXTRACTOR, "model.safetensors*", "model-*.safetensors"]  # what decides every value
OPEN = [("tensor(float)", [False, False])]  # type of an ONNX file's one input, and which of its sizes are fixed


def find(name: str) -> tuple[Path, str, str]:
    """Folder or file of a model, fetched if need be, its revision ("" = not noted) and pinned name, or what to do instead."""
    kind, colon, place = name.partition(":")
    package = PACKAGES[kind + colon]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"encoder {name} needs {package}: pip install -r requirements-hub.txt")
    if name == EGEMAPS:
        import opensmile

        return Path(opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02).config_path), "", name
    path, revision = Path(place).expanduser(), ""
    if name.startswith(ONNX):
        if not path.is_file():
            raise ValueError(f"encoder {name}: there is no such file; write onnx:<path of an .onnx file>")
        return path, "", name
    if "@" in place and not path.is_dir():
        place, _, revision = place.rpartition("@")
        path = Path(place).expanduser()
    if path.is_dir():
        noted = path / ".cache" / "huggingface" / "download" / f"{CONFIG}.metadata"  # left by `hf download`
        here = noted.read_text(encoding="utf-8").split()[0] if noted.is_file() else ""
        if revision not in ("", here):
            raise ValueError(f"encoder {name}: {path} holds revision {here or 'unknown'}; bring that one, or name none")
        found = path, here, name
    else:
        try:
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(place, revision=revision or None, allow_patterns=[*FILES, "README.md"]))
        except Exception as error:  # no network, no such model, no permission
            repository = place if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", place) else "<repository>"
            command = f"hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir <folder>"
            advice = f"on a machine with a network run `{command}`, bring the folder, then encoder: hf:<folder>"
            reason = " ".join(str(error).split())[:200] if repository == place else "there is no such folder"
            raise ValueError(f"encoder {name}: not here, and not to be fetched ({reason}); {advice}") from error
        found = path, path.name, f"{HF}{place}@{path.name}"  # a snapshot's folder is called after its commit
    family = paths.load_json(path / CONFIG).get("model_type") if (path / CONFIG).is_file() else None
    if family not in FAMILIES:
        raise ValueError(f"encoder {name}: a model of type {family!r} in {path}; must be of {', '.join(FAMILIES)}")
    if not any(path.glob(EXTRACTOR)):
        raise ValueError(f"encoder {name}: {path} lacks preprocessor_config.json, which says how sound is prepared")
    if not any(path.glob("model*.safetensors")):
        command = f"from transformers import AutoModel as A; A.from_pretrained('{path}').save_pretrained('{path}')"
        why = "a pickle (pytorch_model.bin) can run any program and is never read; convert it where you trust it"
        raise ValueError(f'encoder {name}: {path} holds no model.safetensors, and {why}: python -c "{command}"')
    return found


class TransformersStages(nn.Module):
    """`conv`, `layer:0` ... `layer:n` (hidden states) and `emission` (the last, or a CTC head's logits), each (B, T, D)."""

    def __init__(self, model: nn.Module, normalize: bool, head: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.model, self.normalize = model.feature_extractor, model, normalize
        self.head = head or nn.Identity()
        model.feature_extractor = nn.Identity()  # so that its output, made here, can be a stage

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        if self.normalize:  # each window by itself, as Wav2Vec2FeatureExtractor does
            waveforms = nn.functional.layer_norm(waveforms, waveforms.shape[-1:], eps=1e-7)
        conv = self.conv(waveforms)
        outputs = self.model(conv, output_hidden_states=True)
        layers = {f"layer:{number}": state for number, state in enumerate(outputs.hidden_states)}
        return {"conv": conv.transpose(1, 2)} | layers | {"emission": self.head(outputs.last_hidden_state)}


class WhisperStages(nn.Module):
    """`layer:0` ... `layer:n` of a Whisper encoder, (B, T, D), without the padding's frames; `emission` is the last of them."""

    def __init__(self, encoder: nn.Module, extractor) -> None:
        super().__init__()
        self.encoder, self.extractor = encoder, extractor
        self.filters = torch.from_numpy(extractor.mel_filters).float().T  # no buffer: always float32

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        samples, most, hop = waveforms.shape[1], self.extractor.n_samples, self.extractor.hop_length
        if samples > most:
            raise ValueError(f"windows of {samples / RATE_HZ:g} s: this Whisper hears {most / RATE_HZ:g} s at most")
        padded = nn.functional.pad(waveforms.float(), (0, most - samples), value=self.extractor.padding_value)
        taper = torch.hann_window(self.extractor.n_fft, device=padded.device)
        spectra = torch.stft(padded, self.extractor.n_fft, hop, window=taper, return_complex=True)[..., :-1]
        bands = (self.filters.to(padded.device) @ spectra.abs().square()).clamp(min=1e-10).log10()
        bands = (torch.maximum(bands, bands.amax((1, 2), keepdim=True) - 8) + 4) / 4
        outputs = self.encoder(bands.to(waveforms.dtype), output_hidden_states=True)
        states = [state[:, : -(-samples // (2 * hop))] for state in outputs.hidden_states]
        return {f"layer:{number}": state for number, state in enumerate(states)} | {"emission": states[-1]}


class OnnxStages(nn.Module):
    """The outputs of an ONNX file, by their names and in their order; always float32 on the processor, by onnxruntime."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        content = file.read_bytes()  # not the path: weights in a second file would go without a hash
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # engines run one batch a core
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.file, self.count = file, len(content) // 4  # weights, roughly
        inputs = [(each.type, each.shape) for each in self.session.get_inputs()]
        if [(kind, [isinstance(size, int) for size in shape]) for kind, shape in inputs] != OPEN:
            raise ValueError(f"{file}: takes {inputs}; must take float32 (B, samples) alone, both sizes left open")
        for stage, values in self(torch.zeros(2, RATE_HZ)).items():
            if values.dim() not in (2, 3) or len(values) != 2:
                raise ValueError(f"{file}: output {stage} is {tuple(values.shape)}; must be (B, T, D) or (B, D)")

    def __reduce__(self) -> tuple:
        return OnnxStages, (self.file,)  # a copy reads the file again: a session cannot be copied

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        signal = {self.session.get_inputs()[0].name: waveforms.detach().float().cpu().numpy()}
        values = zip(self.session.get_outputs(), self.session.run(None, signal))
        return {output.name: torch.from_numpy(array).float() for output, array in values}


class FunctionalStages(nn.Module):
    """`functionals`, (B, 88): eGeMAPS v02 (Eyben et al. 2016, 10.1109/TAFFC.2015.2457417) by openSMILE, on the processor."""

    def __init__(self) -> None:
        import opensmile

        super().__init__()
        self.smile, self.count = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02), 0

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        rows = [self.smile.process_signal(one, RATE_HZ) for one in waveforms.detach().float().cpu().numpy()]
        return {"functionals": torch.from_numpy(np.concatenate(rows)).float().nan_to_num()}


def load(name: str) -> tuple[str, nn.Module, str, str, str]:
    """Pinned name, stages, note, hash and licence of an Encoder. ValueError as by `find`, or when the model is damaged or not whole."""
    path, revision, pinned = find(name)
    if name == EGEMAPS:
        note = f"eGeMAPS: 88 measures of pitch, formants, spectrum and level, by openSMILE {version('opensmile')}"
        return name, FunctionalStages(), note, file_checksum(path), "audEERING's research licence"
    try:
        stages = OnnxStages(path) if name.startswith(ONNX) else _load_transformers(path)
    except Exception as error:  # both packages raise whatever their parsers do
        raise ValueError(f"encoder {name}: {path} is not usable: {' '.join(str(error).split())[:300]}") from error
    if name.startswith(ONNX):
        return name, stages, f"the ONNX file {path.name}", file_checksum(path), "as its owner says"
    card = "".join(file.read_text(encoding="utf-8") for file in path.glob("README.md"))
    stated = re.match(r"---\n(?:(?!---).*\n)*?license: *(\S.*)\n", card)
    note = f"{paths.load_json(path / CONFIG)['model_type']} of transformers, revision {revision or 'not stated'}"
    lines = [f"{file_checksum(file)}  {file.name}\n" for pattern in FILES for file in sorted(path.glob(pattern))]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return pinned, stages, note, digest, stated[1] if stated else "not stated"


def _load_transformers(folder: Path) -> nn.Module:
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if extractor.sampling_rate != RATE_HZ:
        raise ValueError(f"it works at {extractor.sampling_rate} Hz, this project at {RATE_HZ} Hz")
    loader = transformers.AutoModelForCTC if "ForCTC" in (folder / CONFIG).read_text() else transformers.AutoModel
    options = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32, "output_loading_info": True}
    model, report = loader.from_pretrained(folder, **options)
    absent = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))  # of training alone
    if absent:
        raise ValueError(f"its weights lack {', '.join(absent[:3])}, which would be random numbers")
    if model.config.model_type == "whisper":
        return WhisperStages(model.get_encoder(), extractor)
    return TransformersStages(model.base_model, bool(extractor.do_normalize), getattr(model, "lm_head", None))
