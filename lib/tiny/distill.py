"""Train wav2vec2-tiny by distillation: `python -m lib.tiny.distill --speech FOLDER --out FOLDER`.

The student hears the very views that the teachers answered about (`lib/tiny/teacher.py`). Its frames learn to give, by one linear
map, CAM++'s dense blocks; the time statistics of its layers the statistics of those blocks and both teachers' embeddings.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lib.paths import load_json, save_json, write_whole
from lib.tiny.teacher import COMPONENTS, VIEWS

RECORD = 50  # steps between two rows of the loss curve
CHECKPOINT = 200  # steps between two checkpoints
KEPT = 128  # whitened components of the pooled statistics of a block
QUEUE = 4096  # teacher's embeddings that a view is compared with
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, next to the speech and the shards."""

    steps: int = 9600
    batch: int = 64
    shards: int = 600
    rate: float = 1.5e-3
    frames: float = 1.0  # weights of the losses, 0: left out
    pooled: float = 0.5
    embedding: float = 1.0
    queue: float = 0.5
    emission: float = 0.5
    ema: float = 0.998
    seed: int = 0


CONFIG = {
    "extractor_mode": "layer_norm",
    "extractor_conv_layer_config": [[512, 400, 160], [320, 2, 2]],
    "extractor_conv_bias": True,
    "encoder_embed_dim": 256,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 32,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 4,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 1024,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": True,
    "encoder_layer_drop": 0.0,
    "aux_num_out": 32,
}


def spectral_kernels(count: int, length: int) -> Tensor:
    """Windowed waves (count, length): count / 4 bands at mel spacing in four phases, so that a GELU leaves each band's strength."""
    bands = count // 4
    mel = np.linspace(1127 * np.log1p(60 / 700), 1127 * np.log1p(7600 / 700), bands)
    hz = 700 * np.expm1(mel / 1127)
    widths = np.maximum(np.gradient(hz), 40.0)  # Hz; at most what the window resolves
    time_s = (np.arange(length) - (length - 1) / 2) / 16_000
    phases = np.arange(4) * np.pi / 2
    waves = np.cos(2 * np.pi * hz[:, None, None] * time_s + phases[None, :, None])
    spread = np.minimum(0.6 / widths, length / 16_000 / 2.2)[:, None, None]  # seconds of half a window
    window = np.where(np.abs(time_s) < spread, np.cos(np.pi * time_s / (2 * spread)) ** 2, 0)
    kernels = waves * window
    kernels -= kernels.mean(-1, keepdims=True)
    kernels /= np.sqrt((kernels**2).sum(-1, keepdims=True))
    return torch.from_numpy(kernels.reshape(count, length)).float()


def build_student(seed: int, sample: Tensor) -> nn.Module:
    """A `torchaudio.models.wav2vec2_model` whose first convolution begins as a filter bank; `sample` (B, samples) sets its levels."""
    import torchaudio

    torch.manual_seed(seed)
    model = torchaudio.models.wav2vec2_model(**CONFIG)
    first = model.feature_extractor.conv_layers[0]
    with torch.no_grad():
        kernels = spectral_kernels(*[first.conv.weight.shape[k] for k in (0, 2)])
        first.conv.weight.copy_(kernels[:, None])
        first.conv.bias.zero_()
        level = first.conv(scale(sample)[:, None]).std((0, 2))
        first.conv.weight.mul_((1.0 / level.clamp(min=1e-3))[:, None, None])
    return model


def scale(waveforms: Tensor) -> Tensor:
    """Each waveform to zero mean and unit variance, as the encoder is used."""
    return F.layer_norm(waveforms, [waveforms.shape[-1]])


def statistics(frames: Tensor) -> Tensor:
    """Time mean and deviation of (B, T, D): (B, 2 D)."""
    frames = frames.float()
    return torch.cat([frames.mean(1), (frames.var(1) + 1e-5).sqrt()], dim=1)


class Heads(nn.Module):
    """Linear maps from the student to the teachers; they are thrown away."""

    def __init__(self, width: int, layers: int, emission: int):
        super().__init__()
        self.places = [layers - 2, layers - 1, layers]  # hidden states that follow the three blocks
        self.frames = nn.ModuleList(nn.Linear(width, kept) for kept in COMPONENTS)
        self.norms = nn.ModuleList(nn.BatchNorm1d(2 * width, affine=False, momentum=0.02) for _ in range(layers + 1))
        self.pooled = nn.ModuleList(nn.Linear(2 * width, KEPT) for _ in COMPONENTS)
        self.embedding, self.voice = nn.Linear(2 * width, 192), nn.Linear(2 * width, 256)
        self.emission_norm = nn.BatchNorm1d(2 * emission, affine=False, momentum=0.02)
        self.emission_embedding, self.emission_voice = nn.Linear(2 * emission, 192), nn.Linear(2 * emission, 256)


class Targets:
    """Scales of the teachers' answers, found on the first shards: whitening of pooled statistics, means of the embeddings."""

    def __init__(self, folder: Path, shards: int = 8):
        parts = [load_file(folder / f"views-{k:05d}.safetensors") for k in range(shards)]
        pooled = torch.cat([part["pooled"] for part in parts]).float()
        self.blocks, start = [], 0
        for width in (1024, 2048, 2048):
            values = pooled[:, start : start + width].double()
            mean = values.mean(0)
            _, spread, vectors = torch.linalg.svd(values - mean, full_matrices=False)
            whiten = vectors[:KEPT].T / (spread[:KEPT] / math.sqrt(len(values)))
            self.blocks.append((slice(start, start + width), mean.float(), whiten.float()))
            start += width
        self.embedding = torch.cat([part["embedding"] for part in parts]).float().mean(0)
        self.voice = torch.cat([part["voice"] for part in parts]).float().mean(0)


def encode(model: nn.Module, waveforms: Tensor) -> tuple[list[Tensor], Tensor]:
    """Hidden states (layers + 1 of (B, T, D)) and emission (B, T, 32)."""
    conv, _ = model.feature_extractor(scale(waveforms), None)
    transformer = model.encoder.transformer
    x = transformer._preprocess(model.encoder.feature_projection(conv))
    hidden, bias = [x], None
    for layer in transformer.layers:
        x, bias = layer(x, None, position_bias=bias)
        hidden.append(x)
    if not transformer.layer_norm_first:
        x = transformer.layer_norm(x)
    return hidden, model.aux(x)


def student_losses(
    model: nn.Module, heads: Heads, batch: dict[str, Tensor], targets: Targets, queue: Tensor, recipe: Recipe
) -> dict[str, Tensor]:
    """Every loss of a batch by name, and `total`."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden, emission = encode(model, batch["waveforms"])
        told = [head(hidden[place]) for head, place in zip(heads.frames, heads.places)]
    frames = batch["frames"].float().split(COMPONENTS, dim=2)
    losses = {"frames": sum(F.mse_loss(a.float(), b.clamp(-6, 6)) for a, b in zip(told, frames)) / len(frames)}
    stats = [norm(statistics(h)) for norm, h in zip(heads.norms, hidden)]
    pooled = [
        F.smooth_l1_loss(head(stats[place]), ((batch["pooled"][:, part].float() - mean) @ whiten).clamp(-6, 6))
        for head, place, (part, mean, whiten) in zip(heads.pooled, heads.places, targets.blocks)
    ]
    losses["pooled"] = sum(pooled) / len(pooled)
    embedding = batch["embedding"].float() - targets.embedding
    voice = batch["voice"].float() - targets.voice
    student = heads.embedding(stats[-1])
    losses["embedding"] = distance(student, embedding) + 0.5 * distance(heads.voice(stats[-1]), voice)
    losses["queue"] = queue_loss(student, embedding, queue)
    scaled = heads.emission_norm(statistics(emission))
    losses["emission"] = distance(heads.emission_embedding(scaled), embedding) + 0.5 * distance(
        heads.emission_voice(scaled), voice
    )
    losses["cosine"] = F.cosine_similarity(student, embedding).mean().detach()
    total = sum(getattr(recipe, name) * losses[name] for name in ("frames", "pooled", "embedding", "queue", "emission"))
    return losses | {"total": total}


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the mean cosine."""
    return 1 - F.cosine_similarity(student, teacher).mean()


def queue_loss(student: Tensor, teacher: Tensor, queue: Tensor) -> Tensor:
    """How differently student and teacher find earlier views alike: KL between softmaxes over the queue."""
    if not len(queue):
        return torch.zeros(())
    like = F.normalize(student, dim=1) @ queue.T / TEMPERATURE
    wanted = F.normalize(teacher, dim=1) @ queue.T / TEMPERATURE
    return F.kl_div(F.log_softmax(like, 1), F.log_softmax(wanted, 1), reduction="batchmean", log_target=True)


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step: 5 % warm-up, then a cosine to nothing."""
    warm = max(1, round(0.05 * recipe.steps))
    if step < warm:
        return recipe.rate * (step + 1) / warm
    return recipe.rate * (1e-3 + 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm))))


def shard_at(visit: int, recipe: Recipe) -> int:
    """Which shard the batches of a visit come from: early ones from the first shards, so that these can still be in the making."""
    visits = recipe.steps * recipe.batch // VIEWS
    seen = min(recipe.shards, 12 + round(recipe.shards * 1.3 * visit / max(1, visits)))
    return int(np.random.default_rng([recipe.seed, 3, visit]).integers(seen))


def load_batch(folder: Path, step: int, recipe: Recipe, cache: dict) -> dict[str, Tensor]:
    """The batch of a step; the shard of a visit is read once and kept in `cache`."""
    parts = VIEWS // recipe.batch
    visit, part = divmod(step, parts)
    if cache.get("visit") != visit:
        number = shard_at(visit, recipe)
        path = folder / f"views-{number:05d}.safetensors"
        while not path.exists():
            time.sleep(5)
        cache.clear()
        cache |= {"visit": visit, "shard": load_file(path)}
        cache["order"] = torch.from_numpy(np.random.default_rng([recipe.seed, 4, visit]).permutation(VIEWS))
    chosen = cache["order"][part * recipe.batch : (part + 1) * recipe.batch]
    batch = {key: value[chosen] for key, value in cache["shard"].items()}
    batch["waveforms"] = batch["waveforms"].float() / 32767
    return batch


def save_state(
    folder: Path, step: int, modules: dict[str, dict], optimizer: torch.optim.Optimizer, queue: Tensor
) -> None:
    """Write everything that the next step needs as one safetensors file, whole or not at all."""
    tensors = {f"{name}.{key}": value for name, state in modules.items() for key, value in state.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
    with write_whole(folder / "checkpoint.safetensors") as partial:
        save_file({k: v.contiguous() for k, v in (tensors | {"queue": queue}).items()}, partial, {"step": str(step)})


def load_state(folder: Path, modules: dict[str, nn.Module], ema: dict[str, Tensor], optimizer) -> tuple[int, Tensor]:
    """Restore what `save_state` wrote; the step to go on with and the queue."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0, torch.zeros(0, 192)
    tensors = load_file(path)
    for name, module in modules.items():
        module.load_state_dict({k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")})
    for key in ema:
        ema[key] = tensors[f"ema.{key}"]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"]), tensors["queue"]


def distill(views: Path, folder: Path, recipe: Recipe, stop: int = 0) -> None:
    """Train, or go on from the last checkpoint in `folder`. stop: step to end at for now, 0 = the recipe's last."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "recipe.json").exists() and load_json(folder / "recipe.json") != asdict(recipe):
        raise ValueError(f"{folder} holds a training of another recipe; choose another folder or delete it")
    save_json(folder / "recipe.json", asdict(recipe))
    targets, cache = Targets(views), {}
    sample = load_file(views / "views-00000.safetensors")["waveforms"][:64].float() / 32767
    model = build_student(recipe.seed, sample)
    heads = Heads(CONFIG["encoder_embed_dim"], CONFIG["encoder_num_layers"], CONFIG["aux_num_out"])
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.05)
    ema = {key: value.detach().clone() for key, value in model.state_dict().items()}
    done, queue = load_state(folder, {"model": model, "heads": heads}, ema, optimizer)
    history = pd.read_csv(folder / "history.csv").query("step <= @done").to_dict("records") if done else []
    begun, before_s, sums = time.monotonic(), history[-1]["elapsed_s"] if history else 0.0, {}
    last = min(stop or recipe.steps, recipe.steps)
    for step in tqdm(range(done, last), initial=done, total=last, desc="distill", mininterval=10):
        batch = load_batch(views, step, recipe, cache)
        losses = student_losses(model, heads, batch, targets, queue, recipe)
        optimizer.param_groups[0]["lr"] = rate_at(step, recipe)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(recipe.ema, (step + 1) / (step + 10))
            for key, value in model.state_dict().items():
                ema[key].lerp_(value, 1 - decay)
        teacher = F.normalize(batch["embedding"].float() - targets.embedding, dim=1)
        queue = torch.cat([queue, teacher])[-QUEUE:]
        sums = {key: sums.get(key, 0.0) + float(value) for key, value in losses.items()}
        if (step + 1) % RECORD == 0:
            row = {"step": step + 1, "elapsed_s": round(before_s + time.monotonic() - begun, 1)}
            history.append(row | {key: round(value / RECORD, 4) for key, value in sums.items()})
            sums = {}
            with write_whole(folder / "history.csv") as partial:
                pd.DataFrame(history).to_csv(partial, index=False)
        if (step + 1) % CHECKPOINT == 0 or step + 1 == last:
            states = {"model": model.state_dict(), "heads": heads.state_dict(), "ema": ema}
            save_state(folder, step + 1, states, optimizer, queue)
