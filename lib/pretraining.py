"""Train wav2vec2-tiny on unlabelled speech: `python -m lib.pretraining --corpus PATH --out FOLDER`.

Masked prediction of k-means units (HuBERT, Hsu et al. 2021, arXiv 2106.07447) from soiled views, as WavLM does (Chen et al. 2022,
arXiv 2110.13900), with pitch and cepstra as further targets; and, on time averages, the warp between two views of an utterance.
No label of gender, age or speaker is read.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from lib.paths import ASSETS, load_json, save_json, write_whole
from lib.units import RATE_HZ, assign_units, fit_units, mfcc, with_deltas
from lib.views import Speech, Views, draw_views, iterate_rows, prepare_speech, read_utterances

CONFIG = ASSETS / "wav2vec2-tiny.json"
CHECKPOINT_RECORDS = 10  # records of the loss between two checkpoints
CEPSTRA = 12  # continuous spectral targets: cepstra 1 to 12
SUMMARY = 3 + CEPSTRA + 26  # what `summarise` returns
HEARD = SUMMARY + 13  # and `summarise_heard`
WEIGHTS = {
    "unit": 1.0,
    "pitch": 1.0,
    "voicing": 0.5,
    "cepstra": 0.5,
    "warp": 1.0,
    "summary": 0.5,
    "heard": 1.0,
    "contrast": 0.2,
}
WARM_UP = 150  # steps
INVARIANT = 3  # stages at the top whose averages content, channel and noise should not move; those below are free
DECAY_SHARE = 0.3  # of the steps, at the end


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, next to the corpus."""

    steps: int = 3400
    batch: int = 8  # utterances a step, three views each
    view_s: float = 2.0
    units: int = 128
    copies: int = 5  # of each utterance, with different formants
    rate: float = 1.0e-3  # learning rate: a warm-up, then constant, then to zero
    mask_share: float = 0.4  # of the frames of a masked view; every other view is masked
    mask_frames: int = 10
    turn: int = 1000  # first step of the second phase, see PHASES
    settle: int = 2000  # and of the third
    hold_out: int = 0  # speakers kept out of the training, for a test of the recipe
    seed: int = 0


@dataclass(frozen=True)
class Phase:
    """What views are like: at first altered so much that only the voice stays, later more and more as they will be used."""

    plain: tuple[float, float, float]  # share of first, second, third views without another room, channel or noise
    still: float  # share of utterances whose first two views keep their pitch and formants
    still_third: float  # and of third views
    heard: (
        str  # scale in which lower stages tell the voice as heard: that of "soiled" or of "plain" views; "": not asked
    )
    spread: float = 0.2  # weight of that loss


PHASES = (
    Phase((0.25, 0.25, 0.25), 0.25, 0.25, ""),
    Phase((0.5, 0.5, 0.5), 0.25, 0.25, "soiled"),
    Phase((0.9, 0.2, 0.5), 0.5, 0.0, "plain", spread=0.6),
)


def phase_at(step: int, recipe: Recipe) -> Phase:
    """The phase that a step belongs to."""
    return PHASES[(step >= recipe.turn) + (step >= recipe.settle)]


@dataclass(frozen=True)
class Targets:
    """Fixed statistics that turn clean audio into targets."""

    centroids: Tensor  # (units, 39), in standardised MFCC
    mean: Tensor  # (39,)
    scale: Tensor  # (39,)
    pitch: Tensor  # (2,): mean and deviation of the log pitch
    summary: Tensor  # (2, SUMMARY): mean and deviation of what `summarise` returns
    heard: dict[str, Tensor]  # (2, HEARD): and of `summarise_heard`, over "soiled" and over "plain" views

    def features_of(self, waveform: Tensor) -> Tensor:
        """Standardised MFCC and slopes: (B, samples) -> (B, T, 39)."""
        return (with_deltas(mfcc(waveform)) - self.mean) / self.scale


def build_model(config: dict) -> nn.Module:
    """A `torchaudio.models.wav2vec2_model` from the `model` section of the JSON beside the weights."""
    import torchaudio

    return torchaudio.models.wav2vec2_model(**config["model"])


class Heads(nn.Module):
    """Linear readers, thrown away after training: they force the emission and the layers to carry what they read."""

    def __init__(self, conv_width: int, width: int, layers: int, emission_width: int, units: int):
        super().__init__()
        self.mask = nn.Parameter(torch.randn(width) * 0.1)  # takes the place of a hidden frame
        frame_widths = {"middle": width, "emission": emission_width}
        self.unit = nn.ModuleDict({key: nn.Linear(size, units) for key, size in frame_widths.items()})
        self.frame = nn.ModuleDict({key: nn.Linear(size, 2 + CEPSTRA) for key, size in frame_widths.items()})
        pooled = [conv_width] + [width] * layers + [emission_width]
        self.warp = nn.ModuleList(nn.Linear(size, 2, bias=False) for size in pooled)
        self.summary = nn.ModuleList(nn.Linear(size, SUMMARY) for size in pooled)
        self.contrast = nn.ModuleList(nn.Linear(size, 64, bias=False) for size in pooled[-INVARIANT:])
        self.heard = nn.ModuleList(nn.Linear(size, HEARD) for size in pooled[:-INVARIANT])


def encode_masked(
    model: nn.Module, waveform: Tensor, mask: Tensor, token: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Run the encoder with the frames in `mask` (B, T) hidden: features (B, T, C), layers L x (B, T, D), emission (B, T, 32)."""
    features, _ = model.feature_extractor(waveform, None)
    hidden = model.encoder.feature_projection(features)
    hidden = torch.where(mask[..., None], token.to(hidden.dtype), hidden)
    layers = model.encoder.transformer.get_intermediate_outputs(hidden)
    return features.float(), [layer.float() for layer in layers], model.aux(layers[-1]).float()


def draw_mask(views: int, frames: int, share: float, span: int, rng: np.random.Generator) -> Tensor:
    """Hide spans of frames in every other view, (views, frames) bool, until about `share` of them is hidden.

    Views come in thirds; of two views of an utterance with one warp, one is hidden in part and the other whole.
    """
    starts = rng.random((views, frames)) < -math.log(1 - share) / span
    place, third = np.arange(views) % (views // 3), np.arange(views) // (views // 3)
    starts[(place + third) % 2 == 0] = False
    mask = starts.copy()
    for shift in range(1, span):
        mask[:, shift:] |= starts[:, :-shift]
    return torch.from_numpy(mask)


def summarise(features: Tensor, pitch: Tensor) -> Tensor:
    """Summary of a clean view: features (B, T, 39) in standardised MFCC and slopes, pitch (B, T) Hz -> (B, 2 + 1 + 12 + 26).

    Mean and deviation of the log pitch, share of voice, mean cepstra over voiced frames; deviation of cepstra and slopes.
    """
    voiced = (pitch > 0).float()
    count = voiced.sum(1, keepdim=True).clamp(min=1)
    octave = torch.log(pitch.clamp(min=1))
    mean = (octave * voiced).sum(1, keepdim=True) / count
    spread = (((octave - mean).square() * voiced).sum(1, keepdim=True) / count).sqrt()
    colour = (features[..., 1 : 1 + CEPSTRA] * voiced[..., None]).sum(1) / count
    return torch.cat([mean, spread, voiced.mean(1, keepdim=True), colour, features[..., :26].std(1)], dim=1)


def summarise_heard(features: Tensor, pitch: Tensor) -> Tensor:
    """Summary of a view as it is heard, with room, microphone and noise: as `summarise`, and the cepstra of its quiet fifth."""
    loudness = features[..., :1]
    quiet = (loudness <= loudness.quantile(0.2, dim=1, keepdim=True)).float()
    floor = (features[..., :13] * quiet).sum(1) / quiet.sum(1)
    return torch.cat([summarise(features, pitch), floor], dim=1)


def fit_targets(speech: Speech, recipe: Recipe, batches: int = 60) -> Targets:
    """Units and scales from some batches of views of the first phase."""
    first = PHASES[0]
    stream, samples = iterate_rows(len(speech.rows), recipe.batch, recipe.seed + 1), round(recipe.view_s * RATE_HZ)
    drawn = [
        draw_views(speech, *next(stream), samples, first.plain, first.still, first.still_third)
        for _ in tqdm(range(batches), desc="draw views for units")
    ]
    frames = torch.cat([with_deltas(mfcc(views.clean)) for views in drawn])  # (n, T, 39)
    soiled = torch.cat([with_deltas(mfcc(views.noisy)) for views in drawn])
    pitch = torch.cat([views.pitch for views in drawn])
    mean, scale = frames.mean((0, 1)), frames.std((0, 1))
    frames, octave = (frames - mean) / scale, torch.log(pitch[pitch > 0])
    centroids = torch.from_numpy(fit_units(frames.flatten(0, 1).numpy(), recipe.units, recipe.seed))
    told = summarise(frames, pitch)[is_told(pitch)]
    soiled = (soiled - mean) / scale
    heard = {
        key: moments(summarise_heard(x, pitch)[is_told(pitch)]) for key, x in (("soiled", soiled), ("plain", frames))
    }
    return Targets(
        centroids,
        mean,
        scale,
        moments(octave),
        moments(told),
        heard,
    )


def moments(values: Tensor) -> Tensor:
    """Mean and deviation over the first dimension: (n, ...) -> (2, ...)."""
    return torch.stack([values.mean(0), values.std(0).clamp(min=1e-3)])


def is_told(pitch: Tensor) -> Tensor:
    """Views (B,) with voice enough, a tenth of the frames (B, T), for a summary to mean something."""
    return (pitch > 0).float().mean(1) > 0.1


def frame_losses(
    heads: Heads, sources: dict[str, Tensor], views: Views, features: Tensor, mask: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """Units, pitch, voicing and cepstra of every frame, read from each source (B, T, D); hidden frames count most for units."""
    units = assign_units(features, targets.centroids)
    voiced = (views.pitch > 0).float()
    octave = (torch.log(views.pitch.clamp(min=1)) - targets.pitch[0]) / targets.pitch[1] * voiced
    weight = torch.where(mask, 1.0, 0.3)
    losses = {"unit": [], "pitch": [], "voicing": [], "cepstra": []}
    for key, hidden in sources.items():
        logits, values = heads.unit[key](hidden), heads.frame[key](hidden)
        unit = functional.cross_entropy(logits.transpose(1, 2), units, reduction="none")
        losses["unit"].append((unit * weight).sum() / weight.sum())
        losses["pitch"].append(
            (functional.smooth_l1_loss(values[..., 0], octave, reduction="none") * voiced).sum() / voiced.sum()
        )
        losses["voicing"].append(functional.binary_cross_entropy_with_logits(values[..., 1], voiced))
        losses["cepstra"].append(functional.smooth_l1_loss(values[..., 2:], features[..., 1 : 1 + CEPSTRA]))
    return {key: torch.stack(values).mean() for key, values in losses.items()}


def pooled_losses(
    heads: Heads, pooled: list[Tensor], views: Views, features: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """What the time averages (3 U, D) of every source must tell: the warp between views, pitch and tract, and which utterance.

    Views come in thirds: the first two share a warp, the last has another. `spread` is the share of the variance of a dimension
    that content, channel and noise explain.
    """
    count = len(views.warp) // 3
    summary = (summarise(features, views.pitch) - targets.summary[0]) / targets.summary[1]
    enough = is_told(views.pitch)[:, None].float()
    first, second = (
        torch.arange(count).repeat(2),
        torch.cat([torch.arange(count, 2 * count), torch.arange(2 * count, 3 * count)]),
    )
    change = (views.warp[second] - views.warp[first]) / 0.2
    itself = torch.eye(3 * count, dtype=torch.bool)[: 2 * count]
    partner = torch.cat([torch.arange(count, 2 * count), torch.arange(count)])
    losses = {"warp": [], "summary": [], "contrast": [], "spread": []}
    for place, average in enumerate(pooled):
        scaled = functional.batch_norm(average, None, None, training=True)
        warp, told = heads.warp[place](scaled), heads.summary[place](scaled)
        losses["warp"].append(functional.smooth_l1_loss(warp[second] - warp[first], change))
        losses["summary"].append((functional.smooth_l1_loss(told, summary, reduction="none") * enough).mean())
        free = len(pooled) - INVARIANT
        if place < free:
            continue
        point = functional.normalize(heads.contrast[place - free](scaled), dim=1)
        likeness = (point[: 2 * count] @ point.T / 0.1).masked_fill(itself, -1e4)
        losses["contrast"].append(functional.cross_entropy(likeness, partner))
        losses["spread"].append((scaled[:count] - scaled[count : 2 * count]).square().mean() / 2)
    return {key: torch.stack(values).mean() for key, values in losses.items()}


def train_step(
    model: nn.Module,
    heads: Heads,
    views: Views,
    targets: Targets,
    recipe: Recipe,
    rng: np.random.Generator,
    phase: Phase = PHASES[-1],
) -> dict[str, Tensor]:
    """Every loss of one batch, by name, and `total`."""
    frames = views.pitch.shape[1]
    mask = draw_mask(len(views.noisy), frames, recipe.mask_share, recipe.mask_frames, rng)
    # plain attention: a fifth faster here, forward and backward, than the flash kernel for the CPU
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        conv, layers, emission = encode_masked(model, views.noisy, mask, heads.mask)
    features = targets.features_of(views.clean)
    sources = {"middle": layers[len(layers) // 2], "emission": emission}
    losses = frame_losses(heads, sources, views, features, mask, targets)
    averages = [source.mean(1) for source in (conv, *layers, emission)]
    losses |= pooled_losses(heads, averages, views, features, targets)
    lower = averages[:-INVARIANT]
    scale = targets.heard.get(phase.heard)
    losses["heard"] = torch.zeros(()) if scale is None else heard_loss(heads, lower, views, targets, scale)
    weights = WEIGHTS | {"spread": phase.spread}
    return losses | {"total": sum(weights[key] * value for key, value in losses.items())}


def heard_loss(heads: Heads, pooled: list[Tensor], views: Views, targets: Targets, scale: Tensor) -> Tensor:
    """How badly the time averages (B, D) of the lower stages tell `summarise_heard` of the very view that was encoded."""
    heard = summarise_heard(targets.features_of(views.noisy), views.pitch)
    heard = ((heard - scale[0]) / scale[1]).clamp(-5, 5)
    enough, losses = is_told(views.pitch)[:, None].float(), []
    for head, average in zip(heads.heard, pooled, strict=True):
        told = head(functional.batch_norm(average, None, None, training=True))
        losses.append((functional.smooth_l1_loss(told, heard, reduction="none") * enough).mean())
    return torch.stack(losses).mean()


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step: linear warm-up, constant, and a cosine to zero over the last steps.

    While it is constant it does not depend on `recipe.steps`, so a run can still be made longer or shorter.
    """
    begin = decay_start(recipe)
    left = 0.5 * (1 + math.cos(math.pi * max(0, step - begin) / max(1, recipe.steps - begin)))
    return recipe.rate * min(1.0, (step + 1) / WARM_UP) * left


def decay_start(recipe: Recipe) -> int:
    """First step whose learning rate depends on `recipe.steps`."""
    return round(recipe.steps * (1 - DECAY_SHARE))


def save_checkpoint(folder: Path, step: int, model: nn.Module, heads: Heads, optimizer: torch.optim.Optimizer) -> None:
    """Write model, heads and optimiser as one safetensors file, whole or not at all; the step is in its metadata."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"heads.{key}": value for key, value in heads.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    with write_whole(folder / "checkpoint.safetensors") as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, {"step": str(step)})


def load_checkpoint(folder: Path, model: nn.Module, heads: Heads, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote and return its step; 0 when there is none."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    for name, module in (("model.", model), ("heads.", heads)):
        module.load_state_dict(
            {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write the loss curve as CSV, one row per record."""
    with write_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows(history)


def read_history(path: Path) -> list[dict[str, float]]:
    """Read the loss curve that `write_history` wrote; an empty list when there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def export_weights(folder: Path, config: dict, model: nn.Module) -> Path:
    """Write the encoder alone as half-precision safetensors, with its JSON (architecture, hash); the weights' path."""
    path = folder / config["weights"]
    with write_whole(path) as partial:
        save_file({key: value.half().contiguous() for key, value in model.state_dict().items()}, partial)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    save_json(folder / CONFIG.name, config | {"sha256": digest})
    return path


def pretrain(corpus: Path, folder: Path, recipe: Recipe, split: str = "train", record: int = 50) -> Path:
    """Train, or go on from the last checkpoint in `folder`; return the path of the exported weights.

    Raises ValueError when `folder` holds a run of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_recipe(folder, recipe)
    save_json(folder / "recipe.json", asdict(recipe))
    speech = keep_speakers(prepare_speech(read_utterances(corpus, split), folder, recipe.copies, recipe.seed), recipe)
    targets = fit_targets(speech, recipe)
    torch.manual_seed(recipe.seed)
    config = load_json(CONFIG)
    model = build_model(config)
    shape = config["model"]
    heads = Heads(shape["extractor_conv_layer_config"][-1][0], shape["encoder_embed_dim"], shape["encoder_num_layers"],
                  shape["aux_num_out"], recipe.units)  # fmt: skip
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *heads.parameters()], lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    done = load_checkpoint(folder, model, heads, optimizer)
    history = [row for row in read_history(folder / "history.csv") if row["step"] <= done]
    run_steps(model, heads, optimizer, speech, targets, recipe, folder, done, history, record)
    return export_weights(folder, config, model)


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to go on with another recipe; another number of steps is fine until either would have begun to slow down."""
    path = folder / "recipe.json"
    if not path.exists():
        return
    before, done = load_json(path), max([row["step"] for row in read_history(folder / "history.csv")], default=0)
    constant = done <= min(decay_start(Recipe(**before)), decay_start(recipe))
    if before | {"steps": 0} != asdict(recipe) | {"steps": 0} or (before["steps"] != recipe.steps and not constant):
        raise ValueError(f"{folder}: holds a run of another recipe ({path}); choose a new --out or delete it")


def draw_held_out(speakers: Iterable[str], recipe: Recipe) -> list[str]:
    """The `recipe.hold_out` speakers that a training leaves out, drawn by the seed."""
    return list(np.random.default_rng(recipe.seed).permutation(sorted(speakers))[: recipe.hold_out])


def keep_speakers(speech: Speech, recipe: Recipe) -> Speech:
    """The speech without the held-out speakers."""
    out = draw_held_out(speech.rows.speaker_id.unique(), recipe)
    kept = speech.rows[~speech.rows.speaker_id.isin(out)].reset_index(drop=True)
    return Speech(speech.audio, speech.pitch, kept)


def run_steps(model, heads, optimizer, speech, targets, recipe, folder, done, history, record) -> None:
    """The loop from step `done` on; a record of the mean losses every `record` steps, now and then a checkpoint."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    elapsed_s, begun, sums = (history[-1]["elapsed_s"] if history else 0.0), time.monotonic(), {}
    stream = iterate_rows(len(speech.rows), recipe.batch, recipe.seed, done)
    bar = tqdm(range(done, recipe.steps), initial=done, total=recipe.steps, desc="train", mininterval=5)
    for step in bar:
        rows, rng = next(stream)
        phase = phase_at(step, recipe)
        samples = round(recipe.view_s * RATE_HZ)
        views = draw_views(speech, rows, rng, samples, phase.plain, phase.still, phase.still_third)
        losses = train_step(model, heads, views, targets, recipe, rng, phase)
        optimizer.param_groups[0]["lr"] = rate_at(step, recipe)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        sums = {key: sums.get(key, 0.0) + value.item() for key, value in losses.items()}
        if (step + 1) % record == 0 or step + 1 == recipe.steps:
            count = (step % record) + 1
            heard_h = (step + 1) * recipe.batch * 3 * recipe.view_s / 3600
            row = {
                "step": step + 1,
                "elapsed_s": round(elapsed_s + time.monotonic() - begun, 1),
                "heard_h": round(heard_h, 3),
            }
            history.append(row | {key: round(value / count, 4) for key, value in sums.items()})
            if not math.isfinite(history[-1]["total"]):
                raise ValueError(f"step {step + 1}: the loss is {history[-1]['total']}; lower --rate")
            bar.set_postfix(total=history[-1]["total"])
            write_history(folder / "history.csv", history)
            sums = {}
            if (step + 1) % (CHECKPOINT_RECORDS * record) == 0 or step + 1 == recipe.steps:
                save_checkpoint(folder, step + 1, model, heads, optimizer)
                export_weights(folder, load_json(CONFIG), model)


def main() -> None:
    """Command line: one option for each field of `Recipe`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of speechocean762 (holds train/wav.scp)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the checkpoint, the loss curve and the weights"
    )
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    corpus, out, threads = (options.pop(key) for key in ("corpus", "out", "threads"))
    torch.set_num_threads(threads)
    print(pretrain(corpus, out, Recipe(**options)))


if __name__ == "__main__":
    main()
