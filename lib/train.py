"""The training loop of the paper's networks; it knows arrays and a folder, nothing of corpora. An epoch's order and dropout come
from (seed, epoch): a training killed half-way goes on after its last whole epoch and ends with the same numbers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from tqdm import tqdm

from lib.compute import Compute, torch_threads
from lib.networks import Model, Normaliser, build_network, count_parameters
from lib.paths import save_frame, write_whole
from lib.scores import confusion_counts, confusion_metrics

VERSION = 9  # of a training's result; raised by hand when the code's results change
HISTORY = "history.csv"
STATE = "state.safetensors"  # weights, optimizer and history after the last whole epoch
SMALL = 100_000  # weights: a smaller network computes on one core, since handing work to a second takes longer than the work


@dataclass(frozen=True)
class Recipe:
    """How the networks are trained; the defaults are the paper's (its batch, and Adam at 1e-4)."""

    epochs: int = 15
    learning_rate: float = 1e-4
    width: float = 1.0  # of the paper's networks
    normalisation: str = "none"
    batch: int = 50


def train_epoch(model, batches, criterion, optimizer, compute: Compute) -> tuple[float, np.ndarray]:
    """Train one epoch, dropout on: the mean loss of its batches, and targets and answers (windows, 2)."""
    model.train()
    losses, answers = [], []
    for features, targets in batches:
        features, targets = features.to(compute.device), targets.to(compute.device)
        with compute.autocast():
            log_probabilities = model(features).float()
        loss = criterion(log_probabilities, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        answers.append(torch.stack([targets, log_probabilities.argmax(dim=1)], dim=1).cpu())
    return float(np.mean(losses)), torch.cat(answers).numpy()


def validate(
    model: nn.Module, features: Any, targets: np.ndarray, rows: np.ndarray, criterion: nn.NLLLoss
) -> tuple[float, np.ndarray]:
    """Loss of the model as it stands on these rows, and targets and answers (rows, 2)."""
    log_probabilities, truth = torch.from_numpy(predict_log_probabilities(model, features, rows)), targets[rows]
    loss = nn.functional.nll_loss(log_probabilities, torch.from_numpy(truth), criterion.weight.cpu())
    return float(loss), np.stack([truth, log_probabilities.argmax(dim=1).numpy()], axis=1)


def balanced_weights(targets: np.ndarray, classes: list[str]) -> Tensor:
    """Weights (C,) of the loss, n / (C * count), from the targets of the training part: scikit-learn's "balanced". ValueError
    when a class has no training window."""
    counts = np.bincount(targets, minlength=len(classes))
    if (counts == 0).any():
        have = ", ".join(f"{count} {name}" for name, count in zip(classes, counts))
        raise ValueError(f"the training part must hold every class, it has {have}; fewer classes, or more speakers")
    weights = compute_class_weight("balanced", classes=np.arange(len(classes)), y=targets)
    return torch.tensor(weights, dtype=torch.float32)


def fit_network(
    model: Model, features: Any, targets: np.ndarray, rows_train: np.ndarray, rows_validation: np.ndarray, recipe: Recipe,
    folder: Path, *, seed: int, compute: Compute, every_epoch: bool = True,
) -> tuple[pd.DataFrame, int]:  # fmt: skip
    """Train with Adam and weighted negative log-likelihood; choose the epoch by UAR on validation; go on where a kill left off.
    model: ends with the last epoch's weights (those of the chosen one are at `checkpoint_path`). features: `features[rows] ->
    float32 (B, ...)`, read batch by batch. targets: (len(features),) class numbers. every_epoch: False keeps the best
    checkpoint alone. Returns the history, one row an epoch from 0 (before training), and the chosen epoch. ValueError for an
    empty validation part, classes missing from training, and a folder that holds another training."""
    folder, classes = Path(folder), model.settings["classes"]
    if not len(rows_validation):
        raise ValueError("the validation part is empty; the epoch cannot be chosen")
    criterion = nn.NLLLoss(weight=balanced_weights(targets[rows_train], classes)).to(compute.device)
    rows = [int(rows_train.sum()), len(rows_train), int(rows_validation.sum()), len(rows_validation)]
    settings = {"model": model.settings, "recipe": asdict(recipe) | {"epochs": 0}, "seed": seed, "rows": rows}
    history, optimizer_state = resume(folder, model, settings)
    if not history:
        fit_normaliser(model.normaliser, features, rows_train)
    model.to(compute.device, memory_format=compute.memory_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    if optimizer_state:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": optimizer_state})
    part = (features, targets, np.sort(rows_validation), criterion)
    threads = 1 if count_parameters(model) < SMALL else torch.get_num_threads()
    if not history:
        history.append({"epoch": 0} | scores_of("validation", *validate(model, *part), classes))
    while len(history) <= recipe.epochs:
        epoch = len(history)
        order = np.random.default_rng([seed, epoch]).permutation(rows_train)
        chunks = np.split(order, range(recipe.batch, len(order), recipe.batch))
        batches = ((torch.from_numpy(features[chunk]), torch.from_numpy(targets[chunk])) for chunk in chunks)
        with torch.random.fork_rng(devices=[]), torch_threads(threads):
            torch.manual_seed(seed * 100_003 + epoch)
            trained = train_epoch(model, batches, criterion, optimizer, compute)
        row = {"epoch": epoch} | scores_of("train", *trained, classes)
        history.append(row | scores_of("validation", *validate(model, *part), classes))
        save_epoch(folder, model, optimizer, settings, history, every_epoch)
    return pd.DataFrame(history), best_epoch(history)


def scores_of(part: str, loss: float, answers: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Loss, accuracy, UAR and F1 of one part under names like validation_uar and validation_f1_female."""
    counts = confusion_counts(answers[:, 0], answers[:, 1], len(classes))
    scores = {"loss": loss} | confusion_metrics(counts, classes)
    return {f"{part}_{name}": float(value) for name, value in scores.items()}


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The earliest trained epoch with the best validation UAR."""
    return int(np.argmax([row["validation_uar"] for row in history[1:]])) + 1


def fit_normaliser(normaliser: Normaliser, features: Any, rows: np.ndarray, batch: int = 256) -> None:
    """Fit a "standard" normaliser on the training rows, in one pass in float64; the other kinds have nothing to fit."""
    if normaliser.kind != "standard":
        return
    shape = normaliser.mean.shape
    total, squares, count = np.zeros(shape), np.zeros(shape), 0
    chunks = np.split(np.sort(rows), range(batch, len(rows), batch))
    for chunk in tqdm(chunks, desc="normaliser", disable=len(rows) < 20_000):
        values = features[chunk].astype(np.float64).reshape(-1, *shape)  # frames: (B * T, D)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
        count += len(values)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    normaliser.mean.copy_(torch.from_numpy(mean))
    normaliser.scale.copy_(torch.from_numpy(np.where(deviation > 1e-6, deviation, 1.0)))


def predict_log_probabilities(model: nn.Module, features: Any, rows: np.ndarray | None = None) -> np.ndarray:
    """Log-probabilities (len(rows), C), float32, of the model in evaluation mode; rows: None = all."""
    rows = np.arange(len(features)) if rows is None else rows
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        chunks = (torch.from_numpy(features[chunk]) for chunk in np.split(rows, range(64, len(rows), 64)))
        return np.concatenate([model(chunk.to(device)).float().cpu().numpy() for chunk in chunks])


def save_epoch(folder: Path, model: Model, optimizer, settings: dict, history: list[dict], every_epoch: bool) -> None:
    """Write the epoch's checkpoint, the history table, and last the state to go on from."""
    epoch, best = history[-1]["epoch"], best_epoch(history)
    if every_epoch or best == epoch:
        save_model(checkpoint_path(folder, epoch), model, {"epoch": epoch, "scores": history[-1]})
    save_frame(folder / HISTORY, pd.DataFrame(history))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    save_tensors(folder / STATE, tensors, {"settings": settings, "history": history})
    for number, path in list_checkpoints(folder).items():
        if number != best and not every_epoch:
            path.unlink()


def resume(folder: Path, model: Model, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[int, dict]]:
    """Load the weights after the last whole epoch; its history and Adam's state, both empty when there is none."""
    if not (folder / STATE).exists():
        return [], {}
    tensors, record = load_tensors(folder / STATE)
    if record["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{folder} holds a training with other settings or rows; delete it or choose another")
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    adam = {}
    for _, number, name in (key.split(".") for key in tensors if key.startswith("adam.")):
        adam.setdefault(int(number), {})[name] = tensors[f"adam.{number}.{name}"]
    return record["history"], adam


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Path of the checkpoint of this epoch (from 1)."""
    return Path(folder) / f"epoch-{epoch:03d}.safetensors"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Every saved epoch of a training: {epoch: path}, ascending."""
    return {int(path.stem.split("-")[1]): path for path in sorted(Path(folder).glob("epoch-*.safetensors"))}


def save_model(path: Path, model: Model, record: dict[str, Any]) -> None:
    """Write weights, normaliser and settings as one safetensors file; `record` (JSON-able) travels with them."""
    save_tensors(path, model.state_dict(), {"settings": model.settings, "record": record})


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """Rebuild the model that `save_model` wrote, in evaluation mode, on the CPU, and its record."""
    tensors, content = load_tensors(path)
    model = build_network(**content["settings"])
    model.load_state_dict(tensors)
    return model.eval(), content["record"]


def save_tensors(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors of any device with JSON-able content in the header, whole or not at all."""
    with write_whole(path) as partial:
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, partial, {"content": json.dumps(content)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote; ValueError naming a file that is none."""
    try:
        with safe_open(path, "pt") as stream:
            content = json.loads(stream.metadata()["content"])
            return {name: stream.get_tensor(name) for name in stream.keys()}, content  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such checkpoint") from error
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({error})") from error
