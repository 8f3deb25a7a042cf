"""Train wav2vec2-tiny by distillation, on the shards of `lib.tiny.teacher`: its frames learn to give, by one linear map, CAM++'s
dense blocks; the time statistics of its last layer and of its emission both teachers' embeddings."""

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lib.audio import RATE_HZ
from lib.compute import Compute
from lib.encoders import TINY, Wav2Vec2Stages
from lib.paths import ASSETS, load_json, save_frame, save_json, write_whole
from lib.tiny.teacher import COMPONENTS, SCALE, VIEWS, shard_path

Tensors = dict[str, Tensor]  # by name
CARD = load_json(ASSETS / f"{TINY}.json")
CONFIG = CARD["model"]  # of `torchaudio.models.wav2vec2_model`
RECORD = 50  # steps between two rows of the loss curve
CHECKPOINT = 200  # steps between two checkpoints
FIRST = 8  # shards that the means of the teachers' embeddings are found on


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, next to the speech and the shards."""

    steps: int = 9600
    batch: int = 64
    shards: int = 600
    rate: float = 1.5e-3
    frames: float = 1.0  # weights of the losses
    embedding: float = 1.0
    emission: float = 0.5
    ema: float = 0.998
    seed: int = 0


def spectral_kernels(count: int, length: int) -> np.ndarray:
    """Windowed waves (count, length): count / 4 bands at mel spacing in four phases, so that a GELU leaves each band's strength."""
    mel = np.linspace(1127 * np.log1p(60 / 700), 1127 * np.log1p(7600 / 700), count // 4)
    hz = 700 * np.expm1(mel / 1127)
    time_s = (np.arange(length) - (length - 1) / 2) / RATE_HZ
    waves = np.cos(2 * np.pi * hz[:, None, None] * time_s + (np.arange(4) * np.pi / 2)[:, None])
    widths = np.maximum(np.gradient(hz), 40.0)  # Hz; at most what the window resolves
    spread = np.minimum(0.6 / widths, length / RATE_HZ / 2.2)[:, None, None]  # seconds of half a window
    kernels = waves * np.where(np.abs(time_s) < spread, np.cos(np.pi * time_s / (2 * spread)) ** 2, 0)
    kernels -= kernels.mean(-1, keepdims=True)
    kernels /= np.sqrt((kernels**2).sum(-1, keepdims=True))
    return kernels.reshape(count, length)


def build_student(seed: int, sample: Tensor) -> nn.Module:
    """A `torchaudio.models.wav2vec2_model` whose first convolution begins as a filter bank; `sample` (B, samples) sets its levels."""
    import torchaudio

    torch.manual_seed(seed)
    model = torchaudio.models.wav2vec2_model(**CONFIG)
    first = model.feature_extractor.conv_layers[0].conv
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(spectral_kernels(len(first.weight), first.kernel_size[0]))[:, None])
        first.bias.zero_()
        level = first(F.layer_norm(sample, sample.shape[-1:])[:, None]).std((0, 2))
        first.weight.mul_((1.0 / level.clamp(min=1e-3))[:, None, None])
    return model


def statistics(frames: Tensor) -> Tensor:
    """Time mean and deviation of (B, T, D): (B, 2 D)."""
    frames = frames.float()
    return torch.cat([frames.mean(1), (frames.var(1) + 1e-5).sqrt()], dim=1)


class Heads(nn.Module):
    """Linear maps from the student to the teachers; they are thrown away."""

    def __init__(self):
        super().__init__()
        width, emission = CONFIG["encoder_embed_dim"], CONFIG["aux_num_out"]
        self.frames = nn.ModuleList(nn.Linear(width, kept) for kept in COMPONENTS)
        self.norm = nn.BatchNorm1d(2 * width, affine=False, momentum=0.02)
        self.embedding, self.voice = nn.Linear(2 * width, 192), nn.Linear(2 * width, 256)
        self.emission_norm = nn.BatchNorm1d(2 * emission, affine=False, momentum=0.02)
        self.emission_embedding, self.emission_voice = nn.Linear(2 * emission, 192), nn.Linear(2 * emission, 256)


def find_centres(folder: Path, device: str) -> Tensors:
    """Means, `embedding` (192,) and `voice` (256,), of the teachers' embeddings on the first shards: cosines are taken about them."""
    shards = [load_file(shard_path(folder, number), device) for number in range(FIRST)]
    return {name: torch.cat([shard[name] for shard in shards]).float().mean(0) for name in ("embedding", "voice")}


def student_losses(
    stages: nn.Module, heads: Heads, batch: Tensors, centres: Tensors, recipe: Recipe, compute: Compute
) -> Tensors:
    """Every loss of a batch by name, and `total`. The last three hidden states follow CAM++'s three blocks."""
    with compute.autocast():
        told, last = stages(batch["waveforms"]), CONFIG["encoder_num_layers"]
        hidden = [told[f"layer:{k}"] for k in range(last - 2, last + 1)]
        frames = [head(state) for head, state in zip(heads.frames, hidden)]
    wanted = batch["frames"].float().split(COMPONENTS, dim=2)
    losses = {"frames": sum(F.mse_loss(a.float(), b.clamp(-6, 6)) for a, b in zip(frames, wanted)) / len(wanted)}
    embedding, voice = (batch[name].float() - centre for name, centre in sorted(centres.items()))
    pooled, emission = heads.norm(statistics(hidden[-1])), heads.emission_norm(statistics(told["emission"]))
    student = heads.embedding(pooled)
    losses["embedding"] = distance(student, embedding) + 0.5 * distance(heads.voice(pooled), voice)
    losses["emission"] = distance(heads.emission_embedding(emission), embedding)
    losses["emission"] = losses["emission"] + 0.5 * distance(heads.emission_voice(emission), voice)
    total = sum(getattr(recipe, name) * loss for name, loss in losses.items())
    cosine = F.cosine_similarity(student, embedding).mean()
    return losses | {"cosine": cosine, "total": total}


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the mean cosine."""
    return 1 - F.cosine_similarity(student, teacher).mean()


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step: 5 % warm-up, then a cosine to nothing."""
    warm = max(1, round(0.05 * recipe.steps))
    if step < warm:
        return recipe.rate * (step + 1) / warm
    return recipe.rate * (1e-3 + 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm))))


def read_batches(folder: Path, made: Iterator, step: int, recipe: Recipe, device: str) -> Iterator[Tensors]:
    """The batches of this step and of those after it; a visit reads one shard, early ones one of the first, and gives all its
    views, shuffled. `made` gives one item for each further shard that is written."""
    first, part = divmod(step, VIEWS // recipe.batch)
    visits, seen = max(1, recipe.steps * recipe.batch // VIEWS), FIRST
    for visit in itertools.count(first):
        before, seen = seen, min(recipe.shards, FIRST + 4 + round(recipe.shards * 1.3 * visit / visits))
        deque(itertools.islice(made, seen - before), maxlen=0)  # waits for them
        number = int(np.random.default_rng([recipe.seed, 3, visit]).integers(seen))
        shard = load_file(shard_path(folder, number), device)
        order = torch.from_numpy(np.random.default_rng([recipe.seed, 4, visit]).permutation(VIEWS)).to(device)
        for chosen in order.split(recipe.batch)[part:]:
            batch = {key: value[chosen] for key, value in shard.items()}
            yield batch | {"waveforms": batch["waveforms"].float() / SCALE}
        part = 0


def load_state(folder: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `distill` wrote, if anything; the step to go on with."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    modules.load_state_dict({key: tensors[key] for key in modules.state_dict()})
    names, count = ("step", "exp_avg", "exp_avg_sq"), len(optimizer.param_groups[0]["params"])
    state = {index: {name: tensors[f"adam.{index}.{name}"] for name in names} for index in range(count)}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(tensors["adam.0.step"])


def distill(views: Path, made: Iterator, folder: Path, recipe: Recipe, compute: Compute) -> None:
    """Train, or go on from the last checkpoint in `folder`; `made` gives an item for each shard in `views`, once it is written."""
    if (folder / "recipe.json").exists() and load_json(folder / "recipe.json") != asdict(recipe):
        raise ValueError(f"{folder} holds a training of another recipe; choose another folder or delete it")
    save_json(folder / "recipe.json", asdict(recipe))
    deque(itertools.islice(made, FIRST), maxlen=0)
    centres = find_centres(views, compute.device)
    model = build_student(recipe.seed, load_file(shard_path(views, 0))["waveforms"][:64].float() / SCALE)
    stages, heads, averaged = Wav2Vec2Stages(model, normalize=True), Heads(), deepcopy(model)
    modules = nn.ModuleDict({"model": model, "heads": heads, "ema": averaged}).to(compute.device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.05)
    done = load_state(folder, modules, optimizer)
    history = pd.read_csv(folder / "history.csv").query("step <= @done").to_dict("records") if done else []
    begun, before_s, sums = time.monotonic(), history[-1]["elapsed_s"] if history else 0.0, Counter()
    steps = tqdm(range(done, recipe.steps), initial=done, total=recipe.steps, desc="distill", mininterval=10)
    pairs = list(zip(averaged.state_dict().values(), model.state_dict().values()))
    for step, batch in zip(steps, read_batches(views, made, done, recipe, compute.device)):
        losses = student_losses(stages, heads, batch, centres, recipe, compute)
        optimizer.param_groups[0]["lr"] = rate_at(step, recipe)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(recipe.ema, (step + 1) / (step + 10))
        for mean, value in pairs:
            mean.lerp_(value, 1 - decay)
        sums.update({key: value.detach() for key, value in losses.items()})
        if (step + 1) % RECORD == 0 or step + 1 == recipe.steps:
            row = {"step": step + 1, "elapsed_s": round(before_s + time.monotonic() - begun, 1)}
            history.append(row | {key: round(float(value) / (step % RECORD + 1), 4) for key, value in sums.items()})
            sums.clear()
            save_frame(folder / "history.csv", pd.DataFrame(history))
        if (step + 1) % CHECKPOINT == 0 or step + 1 == recipe.steps:
            tensors = modules.state_dict()
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
            with write_whole(folder / "checkpoint.safetensors") as partial:  # everything that the next step needs
                save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
