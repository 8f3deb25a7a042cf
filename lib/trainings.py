"""From windows to trained networks: every task split under every protocol, checked for leaks, every network trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lib import paths
from lib.splits import assign_splits, audit_leakage, require_no_leakage, split_folds
from lib.stages import Stage, seed_everything
from lib.store import Store
from lib.tasks import Task, make_tasks, task_table  # noqa: F401 (notebooks take tasks from here)

if TYPE_CHECKING:  # torch takes seconds to load, and a notebook whose trainings are all there needs none
    from lib.train import Fit

KEYS = ["task", "protocol", "network", "fold", "seed"]  # what tells one training from another
IN_MEMORY = 100_000_000  # numbers of the layers' averages up to which the audit holds them all at once
CURVES = ["train_loss", "validation_loss", "validation_accuracy", "validation_uar", "validation_macro_f1"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the values of `paper.yaml` are the paper's.

    `epochs` and `width` are the paper's networks'; the heads, which cost next to nothing, get `head_epochs` and their
    full width. `arithmetic`: "fp32", or "bf16" for the paper's networks (faster where the processor has it).
    """

    epochs: int
    head_epochs: int
    learning_rate: float  # of the paper's networks
    head_learning_rate: float  # of all others
    batch: int
    width: float
    patience: int
    normalisation: str
    class_weights: str
    arithmetic: str = "fp32"
    selection: str = "uar"


# ------------------------------------------------------------------------------------------------------------- splits


def split_tasks(
    windows: pd.DataFrame, clips: pd.DataFrame, tasks: list[Task], protocols: list[str], seed: int, folds: int = 0
) -> pd.DataFrame:
    """Split every task's windows under every protocol: task, protocol, fold, window_id, split, target and more.

    `folds`: 0 = one split a protocol; else "speaker" is split so many times, and every speaker is tested once.
    """
    parts = []
    for task in tasks:
        table = task_table(windows, clips, task)
        for protocol in protocols:
            for fold, split in enumerate(_split(table, protocol, seed, folds)):
                facts = {"task": task.name, "protocol": protocol, "fold": fold}
                parts.append(table.assign(**facts, split=split.to_numpy()))
    return pd.concat(parts, ignore_index=True)


def _split(table: pd.DataFrame, protocol: str, seed: int, folds: int) -> list[pd.Series]:
    if protocol == "speaker" and folds:
        return split_folds(table, "target", seed, folds)
    return [assign_splits(table, protocol, "target", seed)]


def main_protocol(protocols: list[str]) -> str:
    """The protocol that headlines stand on: the first that keeps speakers apart, "paper" only where there is no other."""
    return next((name for name in protocols if name != "paper"), protocols[0])


def audit_splits(splits: pd.DataFrame, store: Store) -> pd.DataFrame:
    """What the parts of every split share; see `lib.splits.audit_leakage`."""
    audits = []
    for (task, protocol, fold), table in splits.groupby(["task", "protocol", "fold"], sort=False):
        averages = store.features("layers", table["window_id"])
        if math.prod(averages.shape) < IN_MEMORY:
            averages = averages.all()
        audit = audit_leakage(table, table.set_index("window_id")["split"], averages)
        audits.append(audit.assign(task=task, protocol=protocol, fold=fold))
    return pd.concat(audits, ignore_index=True)


def stop_on_leakage(audit: pd.DataFrame) -> None:
    """Raise ValueError naming the ids when parts of a split other than the paper's share what they must not."""
    for (task, protocol, fold), rows in audit.groupby(["task", "protocol", "fold"]):
        if protocol != "paper":
            try:
                require_no_leakage(rows)
            except ValueError as error:
                raise ValueError(f"task {task}, protocol {protocol}, fold {fold}: {error}") from error


def summarise_audit(audit: pd.DataFrame) -> pd.DataFrame:
    """The audit for a page: counts added up over folds and pairs of parts, one row a task, protocol and kind."""
    groups = audit.groupby(["protocol", "kind", "task"], sort=False)
    table = groups.agg(hard=("hard", "first"), shared=("count", "sum"), examples=("examples", "first")).reset_index()
    return table.assign(examples=[text.split(", ")[0] for text in table["examples"]])


def count_splits(splits: pd.DataFrame, tasks: list[Task]) -> pd.DataFrame:
    """Windows and speakers of each part by task, protocol and class; of a cross-validation the first fold."""
    splits = splits[splits["fold"] == 0]
    classes = {task.name: task.classes for task in tasks}
    names = [classes[task][target] for task, target in zip(splits["task"], splits["target"])]
    rows = splits.assign(**{"class": names}).groupby(["task", "protocol", "class", "split"], sort=False)
    counts = rows.agg(windows=("window_id", "size"), speakers=("speaker_id", "nunique")).unstack("split").fillna(0)
    ordered = [(kind, part) for part in ("train", "validation", "test") for kind in ("windows", "speakers")]
    counts = counts.reindex(columns=ordered).astype(int)
    counts.columns = [f"{part} {kind}" for kind, part in ordered]
    return counts.reset_index()


def save_splits(stage: Stage, splits: pd.DataFrame) -> None:
    """Keep the splits beside the trainings: task, protocol, fold, ids, split and target of every window."""
    with paths.write_whole(stage.path("splits.parquet")) as partial:
        splits.drop(columns="content_hash").to_parquet(partial, index=False)


def load_splits(stage: Stage) -> pd.DataFrame:
    """The splits that `save_splits` wrote."""
    return pd.read_parquet(stage.path("splits.parquet"))


# ----------------------------------------------------------------------------------------------------------- trainings


def train_networks(
    stage: Stage,
    splits: pd.DataFrame,
    store: Store,
    tasks: list[Task],
    networks: list[str],
    seeds: list[int],
    recipe: Recipe,
) -> pd.DataFrame:
    """Train every network for every task, protocol, fold and seed; a killed run goes on at the epoch after the last.

    Returns one row a training: `KEYS`, best_epoch, epochs, its validation scores, folder (within the stage's).
    """
    fits = []
    known = {task.name: task for task in tasks}
    for (task, protocol, fold), table in splits.groupby(["task", "protocol", "fold"], sort=False):
        for network in networks:
            for seed in seeds:
                folder = Path(task, protocol, network, f"fold-{fold}", f"seed-{seed}")
                fit = train_network(stage.path(str(folder)), table, store, known[task], network, seed, recipe)
                chosen = fit.history.set_index("epoch").loc[fit.best_epoch]
                row = dict(zip(KEYS, (task, protocol, network, fold, seed)))
                row |= {"best_epoch": fit.best_epoch, "epochs": len(fit.history)}
                row |= {name: chosen[name] for name in ("validation_uar", "validation_macro_f1")}
                fits.append(row | {"folder": str(folder)})
    table = pd.DataFrame(fits)
    with paths.write_whole(stage.path("fits.csv")) as partial:
        table.to_csv(partial, index=False)
    return table


def train_network(
    folder: Path, table: pd.DataFrame, store: Store, task: Task, network: str, seed: int, recipe: Recipe
) -> Fit:
    """Train one network on the table's training part; `folder` gets its history and one checkpoint an epoch."""
    features = store.features(tensor_of(network), table["window_id"])
    from lib.networks import build_network
    from lib.train import fit_network

    seed_everything(seed)  # torch too, which may just have been loaded
    name, published = network.removesuffix("_layers"), network == "paper"
    model = build_network(
        name,
        task.classes,
        *features.shape[1:],
        task=task.name,
        layers=network.endswith("_layers"),
        width=recipe.width if published else 1.0,
        normalisation=normalisation_of(recipe.normalisation, task) if published else "standard",
        seed=seed,
    )
    rows = {part: np.flatnonzero(table["split"] == part) for part in ("train", "validation")}
    short = published and recipe.arithmetic == "bf16"
    return fit_network(
        model,
        features,
        table["target"].to_numpy(),
        rows["train"],
        rows["validation"],
        classes=task.classes,
        seed=seed,
        folder=folder,
        epochs=recipe.epochs if published else recipe.head_epochs,
        patience=recipe.patience or None,
        class_weights=None if recipe.class_weights == "none" else recipe.class_weights,
        learning_rate=recipe.learning_rate if published else recipe.head_learning_rate,
        batch=recipe.batch,
        selection=recipe.selection,
        precision="bf16" if short else "fp32",
        channels_last=short,
        progress=False,
    )


def normalisation_of(name: str, task: Task) -> str:
    """The normalisation of a task: "paper" is the paper's own, p-norm for gender and nothing for age."""
    if name == "paper":
        return "p10" if task.name == "gender" else "none"
    return name


def tensor_of(network: str) -> str:
    """Which tensor of the store a network reads: "<name>_layers" the layers' averages, others the frames."""
    return "layers" if network.endswith("_layers") else "frames"


def load_fits(stage: Stage) -> pd.DataFrame:
    """The table of trainings that `train_networks` wrote."""
    return pd.read_csv(stage.path("fits.csv"))


def load_history(stage: Stage, fits: pd.DataFrame) -> pd.DataFrame:
    """The histories of all trainings as one table, one row an epoch, with `KEYS` and whether the epoch was chosen."""
    parts = []
    for fit in fits.itertuples(index=False):
        history = pd.read_csv(stage.path(fit.folder) / "history.csv")
        facts = {key: getattr(fit, key) for key in KEYS}
        parts.append(history.assign(**facts, chosen=history["epoch"] == fit.best_epoch))
    return pd.concat(parts, ignore_index=True)


def summarise_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """One row a task, protocol and network: trainings, median chosen epoch, validation scores and their spread."""
    groups = fits.groupby(["task", "protocol", "network"], sort=False)
    table = groups.agg(
        trainings=("seed", "size"),
        seeds=("seed", "nunique"),
        chosen_epoch=("best_epoch", "median"),
        validation_uar=("validation_uar", "mean"),
        spread=("validation_uar", lambda values: float(np.std(values))),
        validation_macro_f1=("validation_macro_f1", "mean"),
    )
    return table.reset_index()


def ask_checkpoint(path: Path, store: Store, window_ids: pd.Series, network: str) -> np.ndarray:
    """Probabilities [n, C] of one checkpoint for these windows; the one path that evaluation and prediction share."""
    from lib.train import load_model, predict_log_probabilities

    model, _ = load_model(path)
    features = store.features(tensor_of(network), window_ids)
    return np.exp(predict_log_probabilities(model, features, np.arange(len(features))).astype(np.float64))
