"""One training loop for every network; it knows arrays and a folder for its checkpoints, and nothing of corpora.

An epoch is reproducible by itself: its order and its dropout come from (seed, epoch). A training killed half-way goes on
after its last whole epoch and ends with the same numbers as one that ran through.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib import convolutions
from lib.networks import Model, Normaliser, build_network
from lib.paths import write_whole
from lib.scores import confusion_counts, confusion_metrics

HISTORY = "history.csv"
STATE = "state.safetensors"  # weights, optimizer and history after the last whole epoch
SELECTIONS = {"uar": 1, "macro_f1": 1, "weighted_f1": 1, "accuracy": 1, "loss": -1}  # name -> +1 more is better


@dataclass
class Fit:
    """What a training left behind. `history` has one row an epoch; epochs count from 1."""

    history: pd.DataFrame
    best_epoch: int
    folder: Path

    def checkpoint(self, epoch: int | None = None) -> Path:
        """Path of an epoch's checkpoint; None = the epoch chosen on validation."""
        return checkpoint_path(self.folder, self.best_epoch if epoch is None else epoch)


def fit_network(
    model: Model,
    features: Any,
    targets: np.ndarray,
    rows_train: np.ndarray,
    rows_validation: np.ndarray,
    *,
    classes: list[str],
    epochs: int,
    learning_rate: float,
    batch: int,
    seed: int,
    folder: Path,
    class_weights: str | list[float] | None = "balanced",
    sampler: str = "shuffled",
    sample_weights: np.ndarray | None = None,
    weight_decay: float = 0.0,
    patience: int | None = None,
    selection: str = "uar",
    precision: str = "fp32",
    channels_last: bool = False,
    progress: bool = True,
    steps: int | None = None,
) -> Fit:
    """Train with Adam and weighted negative log-likelihood; choose the epoch on validation; go on where a kill left off.

    Parameters
    ----------
    model: changed in place; ends with the last epoch's weights (load `Fit.checkpoint()` for the chosen ones).
    features: `features[rows] -> float32 [B, T, D]`, read batch by batch; a memory map stays on disk.
    targets: [len(features)] class numbers; only those of the two parts are looked at.
    rows_train, rows_validation: row numbers of the parts.
    class_weights: "balanced" (n / (C * count), from the training part only), a list of C, or None.
    sampler: "shuffled" (every row once an epoch) or "balanced" (as many draws, every class equally likely).
    sample_weights: [len(features)] factors on the loss of each row, or None.
    patience: stop after this many epochs without a better `selection` on validation; None = never.
    selection: "uar", "macro_f1", "weighted_f1", "accuracy" or "loss", of the validation part.
    precision: "fp32", or "bf16" for autocast. channels_last: another memory layout, the same numbers but for rounding;
        with "bf16" the paper's networks also take `lib.convolutions.run_fast`, where the processor can.
    steps: at most so many steps an epoch (for measuring); None = all.

    Raises ValueError for empty parts, classes missing from the training part, and a folder that holds another training.
    """
    targets = np.asarray(targets, np.int64)
    rows_train, rows_validation = np.asarray(rows_train), np.asarray(rows_validation)
    weights = compute_class_weights(targets[rows_train], len(classes), class_weights)
    if sampler not in ("shuffled", "balanced") or selection not in SELECTIONS or precision not in ("fp32", "bf16"):
        raise ValueError(f"unknown sampler {sampler!r}, selection {selection!r} or precision {precision!r}")
    if not len(rows_validation):
        raise ValueError("the validation part is empty; the epoch cannot be chosen")
    settings = {
        "model": model.settings, "classes": classes, "learning_rate": learning_rate, "batch": batch, "seed": seed,
        "class_weights": weights.tolist(), "sampler": sampler, "weight_decay": weight_decay, "selection": selection,
        "precision": precision, "channels_last": channels_last, "steps": steps,
        "rows": [int(rows_train.sum()), len(rows_train), int(rows_validation.sum()), len(rows_validation)],
    }  # fmt: skip
    loop = _Loop(model, features, targets, sample_weights, torch.from_numpy(weights), settings, Path(folder))
    history = loop.resume()
    if not history:
        fit_normaliser(model.normaliser, features, rows_train)
    with tqdm(total=epochs, initial=len(history), desc=f"training, seed {seed}", disable=not progress) as bar:
        while len(history) < epochs and not _is_stale(history, selection, patience):
            history.append(loop.run_epoch(len(history) + 1, rows_train, rows_validation))
            loop.save(history)
            bar.update()
            bar.set_postfix({"validation UAR": f"{history[-1]['validation_uar']:.3f}"})
    loop.set_fast(False)
    table = pd.DataFrame(history)
    return Fit(table, _best_epoch(history, selection), Path(folder))


def make_loop(
    model: Model,
    *,
    classes: list[str],
    learning_rate: float,
    batch: int,
    seed: int,
    precision: str = "fp32",
    channels_last: bool = False,
) -> _Loop:
    """A loop without data or folder, whose `train_step` can be measured by itself; options as in `fit_network`."""
    settings = {
        "classes": classes, "learning_rate": learning_rate, "batch": batch, "seed": seed, "weight_decay": 0.0,
        "precision": precision, "channels_last": channels_last,
    }  # fmt: skip
    return _Loop(model, None, None, None, torch.ones(len(classes)), settings, None)


class _Loop:
    """The state of one training between epochs: model, optimizer, data."""

    def __init__(self, model, features, targets, sample_weights, class_weights, settings, folder) -> None:
        self.model, self.features, self.targets, self.folder, self.settings = model, features, targets, folder, settings
        self.sample_weights, self.class_weights = sample_weights, class_weights.float()
        if settings["channels_last"]:
            model.to(memory_format=torch.channels_last)
        self.set_fast(settings["channels_last"] and settings["precision"] == "bf16" and convolutions.is_supported())
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True
        )

    def set_fast(self, fast: bool) -> None:
        """Switch the fast form of a network that has one."""
        if hasattr(self.model.network, "fast"):
            self.model.network.fast = fast

    def run_epoch(self, epoch: int, rows_train: np.ndarray, rows_validation: np.ndarray) -> dict[str, Any]:
        """Train one epoch and score both parts; the training part with dropout on, as it went by."""
        row: dict[str, Any] = {"epoch": epoch}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings["seed"] * 100_003 + epoch)
            order = self.draw_order(epoch, rows_train)
            row |= self.run_part("train", order, self.train_step)
        with torch.inference_mode():
            self.model.eval()
            row |= self.run_part("validation", np.sort(rows_validation), self.forward)
        return row

    def draw_order(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """The rows of this epoch, in the order of training."""
        rng = np.random.default_rng([self.settings["seed"], epoch])
        if self.settings["sampler"] == "balanced":
            counts = np.bincount(self.targets[rows])
            chance = 1 / counts[self.targets[rows]]
            order = rng.choice(rows, size=len(rows), p=chance / chance.sum())
        else:
            order = rng.permutation(rows)
        steps = self.settings["steps"]
        return order if steps is None else order[: steps * self.settings["batch"]]

    def run_part(self, part: str, rows: np.ndarray, step) -> dict[str, float]:
        """Run `step` over batches of rows and return the part's loss and scores under names like train_uar."""
        classes = self.settings["classes"]
        counts, loss_sum, weight_sum = np.zeros((len(classes), len(classes)), np.int64), 0.0, 0.0
        for chunk, batch in read_batches(self.features, rows, self.settings["batch"]):
            target = torch.from_numpy(self.targets[chunk])
            weight = self.class_weights[target]
            if self.sample_weights is not None:
                weight = weight * torch.as_tensor(self.sample_weights[chunk], dtype=torch.float32)
            log_probabilities, loss = step(batch, target, weight)
            total = float(weight.sum())
            loss_sum, weight_sum = loss_sum + float(loss) * total, weight_sum + total
            counts += confusion_counts(self.targets[chunk], log_probabilities.argmax(dim=1).numpy(), len(classes))
        scores = confusion_metrics(counts, classes)
        return {f"{part}_loss": loss_sum / weight_sum} | {f"{part}_{name}": float(v) for name, v in scores.items()}

    def forward(self, batch: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, C] and the weighted mean loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings["precision"] == "bf16"):
            log_probabilities = self.model(batch)
        log_probabilities = log_probabilities.float()
        losses = nn.functional.nll_loss(log_probabilities, target, reduction="none")
        return log_probabilities, (losses * weight).sum() / weight.sum()

    def train_step(self, batch: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """One step of Adam."""
        self.model.train()
        log_probabilities, loss = self.forward(batch, target, weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return log_probabilities.detach(), loss.detach()

    def save(self, history: list[dict[str, Any]]) -> None:
        """Write the epoch's checkpoint, the history table, and last the state to go on from."""
        epoch = history[-1]["epoch"]
        save_model(checkpoint_path(self.folder, epoch), self.model, {"epoch": epoch, "scores": history[-1]})
        with write_whole(self.folder / HISTORY) as partial:
            pd.DataFrame(history).to_csv(partial, index=False)
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        record = {"settings": self.settings, "history": history}
        _save_tensors(self.folder / STATE, tensors, record)

    def resume(self) -> list[dict[str, Any]]:
        """Load the state after the last whole epoch and return its history; [] when there is none."""
        if not (self.folder / STATE).exists():
            return []
        tensors, record = _load_tensors(self.folder / STATE)
        if record["settings"] != json.loads(json.dumps(self.settings)):
            raise ValueError(f"{self.folder} holds a training with other settings or rows; delete it or choose another")
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        return record["history"]


def compute_class_weights(targets: np.ndarray, classes: int, kind: str | list[float] | None) -> np.ndarray:
    """Weights [C] of the loss from the targets of the training part: "balanced" = n / (C * count); None = ones."""
    counts = np.bincount(targets, minlength=classes)
    if len(counts) > classes or (counts == 0).any():
        raise ValueError(f"the training part must hold each of {classes} classes; its counts are {counts.tolist()}")
    if kind is None:
        return np.ones(classes)
    if isinstance(kind, str):
        if kind != "balanced":
            raise ValueError(f"class_weights is 'balanced', a list or None, not {kind!r}")
        return len(targets) / (classes * counts)
    if len(kind) != classes or min(kind) <= 0:
        raise ValueError(f"class_weights {kind} must be {classes} numbers above 0")
    return np.asarray(kind, np.float64)


def fit_normaliser(normaliser: Normaliser, features: Any, rows: np.ndarray, batch: int = 128) -> Normaliser:
    """Fit a "standard" normaliser on the training rows, in one pass in float64; the other kinds have nothing to fit."""
    if normaliser.kind != "standard":
        return normaliser
    by_row = normaliser.mean.shape[0] > 1  # layers have statistics of their own, frames share them
    shape = (-1, normaliser.mean.numel())
    total, squares, count = np.zeros(shape[1]), np.zeros(shape[1]), 0
    for _, batch_values in read_batches(features, np.sort(rows), batch):
        values = batch_values.numpy().reshape(shape if by_row else (-1, batch_values.shape[-1]))
        total += values.sum(axis=0, dtype=np.float64)
        squares += np.einsum("nd,nd->d", values, values, dtype=np.float64)  # no copy in float64
        count += len(values)
    mean = torch.from_numpy(total / count)
    deviation = (torch.from_numpy(squares / count) - mean.square()).clamp_min(0).sqrt()
    normaliser.mean.copy_(mean.reshape(normaliser.mean.shape))
    normaliser.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0).reshape(normaliser.scale.shape))
    return normaliser


def read_batches(
    features: Any, rows: np.ndarray, batch: int, release_every: int = 64
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (rows, float32 tensor [B, T, D]) in the order of `rows`; each batch is read in ascending order of rows.

    A features object that has `release()` is asked every `release_every` batches to let go of pages it has read.
    """
    release = getattr(features, "release", None)
    for number, start in enumerate(range(0, len(rows), batch), 1):
        chunk = rows[start : start + batch]
        order = np.argsort(chunk, kind="stable")
        values = np.empty_like(read := np.asarray(features[chunk[order]], np.float32))
        values[order] = read
        yield chunk, torch.from_numpy(values)
        if release and number % release_every == 0:
            release()


def predict_log_probabilities(model: nn.Module, features: Any, rows: np.ndarray, batch: int = 64) -> np.ndarray:
    """Log-probabilities [len(rows), C], float32, of the model in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        return np.concatenate([model(values).float().numpy() for _, values in read_batches(features, rows, batch)])


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Path of the checkpoint of this epoch (from 1)."""
    return Path(folder) / f"epoch-{epoch:03d}.safetensors"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Every saved epoch of a training: {epoch: path}, ascending."""
    return {int(path.stem.split("-")[1]): path for path in sorted(Path(folder).glob("epoch-*.safetensors"))}


def save_model(path: Path, model: Model, record: dict[str, Any] | None = None) -> Path:
    """Write weights, normaliser and settings as one safetensors file; `record` (JSON-able) travels with them."""
    _save_tensors(Path(path), model.state_dict(), {"settings": model.settings, "record": record or {}})
    return Path(path)


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """Rebuild the model that `save_model` wrote, in evaluation mode, and its record."""
    tensors, content = _load_tensors(Path(path))
    model = build_network(**content["settings"])
    model.load_state_dict(tensors)
    return model.eval(), content["record"]


def _save_tensors(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    metadata = {"content": json.dumps(content)}
    with write_whole(path) as partial:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial, metadata)


def _load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            content = json.loads(stream.metadata()["content"])
            return {name: stream.get_tensor(name) for name in stream.keys()}, content  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such checkpoint") from error
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({error})") from error


# ----------------------------------------------------------------------------------------------------------------------
# Choice of epoch


def _best_epoch(history: list[dict[str, Any]], selection: str) -> int:
    """The earliest epoch with the best validation score."""
    values = [SELECTIONS[selection] * row[f"validation_{selection}"] for row in history]
    return history[int(np.argmax(values))]["epoch"]


def _is_stale(history: list[dict[str, Any]], selection: str, patience: int | None) -> bool:
    return bool(history) and patience is not None and history[-1]["epoch"] - _best_epoch(history, selection) >= patience
