"""From windows to scores: one table a task, every network of a run trained, every checkpoint asked, baselines beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lib import paths, tables
from lib.labels import assign_age_class
from lib.networks import build_network
from lib.splits import assign_splits, audit_leakage, require_no_leakage
from lib.stages import Stage
from lib.store import Store
from lib.training import Fit, fit_network, load_model, predict_log_probabilities


@dataclass(frozen=True)
class Task:
    """What is told apart: "gender", or "age" with the classes and bounds of the run file."""

    name: str
    classes: list[str]
    bounds: list[int] = field(default_factory=list)


def make_tasks(names: list[str], age_classes: list[str], age_bounds: list[int]) -> list[Task]:
    """The tasks of a run, in order. ValueError names the choices when one is not known."""
    known = {"gender": Task("gender", tables.GENDERS), "age": Task("age", age_classes, age_bounds)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"tasks: {unknown} not known; choose from {list(known)}")
    return [known[name] for name in names]


def task_table(windows: pd.DataFrame, clips: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row a window that has a class for this task: the window's columns, its clip's, and `target` (class number).

    Windows without a class are left out; `attrs["unlabelled"]` counts them.
    """
    if task.name == "gender":
        target = clips["gender"].map({name: number for number, name in enumerate(task.classes)}).astype("Int64")
    else:
        target = assign_age_class(clips, task.classes, task.bounds)["age_class"].astype("Int64")
    kept = ["clip_id", "corpus", "recording_id", "language", "gender", "age_years", "age_decade", "official_split"]
    joined = windows.merge(clips[kept].assign(target=target), on="clip_id", how="left", validate="many_to_one")
    table = joined[joined["target"].notna()].astype({"target": "int64"}).reset_index(drop=True)
    table.attrs["unlabelled"] = len(joined) - len(table)
    return table


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the values of `paper.yaml` are the paper's."""

    epochs: int
    learning_rate: float
    batch: int
    width: float
    patience: int
    normalisation: str
    class_weights: str
    precision: str = "fp32"
    selection: str = "uar"


def split_tasks(
    windows: pd.DataFrame, clips: pd.DataFrame, tasks: list[Task], protocols: list[str], seed: int
) -> pd.DataFrame:
    """Split every task's windows under every protocol: task, protocol, window_id, split, target and what audits need."""
    parts = []
    for task in tasks:
        table = task_table(windows, clips, task)
        for protocol in protocols:
            split = assign_splits(table, protocol, "target", seed)
            parts.append(table.assign(task=task.name, protocol=protocol, split=split.to_numpy()))
    return pd.concat(parts, ignore_index=True)


def audit_splits(splits: pd.DataFrame, store: Store) -> pd.DataFrame:
    """What the parts of every split share; see `lib.splits.audit_leakage`."""
    audits = []
    for (task, protocol), table in splits.groupby(["task", "protocol"], sort=False):
        averages = store.features("layers", table["window_id"]).all().reshape(len(table), -1)
        audit = audit_leakage(table, table.set_index("window_id")["split"], averages)
        audits.append(audit.assign(task=task, protocol=protocol))
    return pd.concat(audits, ignore_index=True)


def stop_on_leakage(audit: pd.DataFrame) -> None:
    """Raise ValueError naming the ids when parts of a split other than the paper's share what they must not."""
    for (task, protocol), rows in audit.groupby(["task", "protocol"]):
        if protocol != "paper":
            try:
                require_no_leakage(rows)
            except ValueError as error:
                raise ValueError(f"task {task}, protocol {protocol}: {error}") from error


def train_networks(
    stage: Stage,
    splits: pd.DataFrame,
    store: Store,
    tasks: list[Task],
    networks: list[str],
    seeds: list[int],
    recipe: Recipe,
) -> pd.DataFrame:
    """Train every network for every task, protocol and seed; a killed run goes on at the epoch after the last.

    Returns one row a training: task, protocol, network, seed, best_epoch, folder (within the stage's), and scores.
    """
    fits = []
    for task in tasks:
        for protocol, table in splits[splits["task"] == task.name].groupby("protocol", sort=False):
            for network in networks:
                for seed in seeds:
                    folder = Path(task.name, protocol, network, f"seed-{seed}")
                    fit = train_network(stage.path(str(folder)), table, store, task, network, seed, recipe)
                    chosen = fit.history.set_index("epoch").loc[fit.best_epoch]
                    facts = {"task": task.name, "protocol": protocol, "network": network, "seed": seed}
                    scores = {name: chosen[name] for name in ("validation_uar", "validation_macro_f1")}
                    fits.append(
                        {
                            **facts,
                            "best_epoch": fit.best_epoch,
                            "epochs": len(fit.history),
                            **scores,
                            "folder": str(folder),
                        }
                    )
    table = pd.DataFrame(fits)
    with paths.write_whole(stage.path("fits.csv")) as partial:
        table.to_csv(partial, index=False)
    return table


def train_network(
    folder: Path, table: pd.DataFrame, store: Store, task: Task, network: str, seed: int, recipe: Recipe
) -> Fit:
    """Train one network on the table's training part; `folder` gets its history and one checkpoint an epoch."""
    features = store.features(tensor_of(network), table["window_id"])
    model = build_network(
        network.removesuffix("_layers"),
        task.classes,
        *features.shape[1:],
        task=task.name,
        layers=network.endswith("_layers"),
        width=recipe.width,
        normalisation=normalisation_of(recipe.normalisation, task),
        seed=seed,
    )
    rows = {part: np.flatnonzero(table["split"] == part) for part in ("train", "validation")}
    options = {key: value for key, value in asdict(recipe).items() if key not in ("width", "normalisation", "patience")}
    return fit_network(
        model,
        features,
        table["target"].to_numpy(),
        rows["train"],
        rows["validation"],
        classes=task.classes,
        seed=seed,
        folder=folder,
        patience=recipe.patience or None,
        **options,
    )


def normalisation_of(name: str, task: Task) -> str:
    """The normalisation of a task: "paper" is the paper's own, p-norm for gender and nothing for age."""
    if name == "paper":
        return "p10" if task.name == "gender" else "none"
    return name


def tensor_of(network: str) -> str:
    """Which tensor of the store a network reads: "<name>_layers" the layers' averages, others the frames."""
    return "layers" if network.endswith("_layers") else "frames"


def load_history(stage: Stage, fits: pd.DataFrame) -> pd.DataFrame:
    """The histories of all trainings as one table, one row an epoch, with task, protocol, network and seed."""
    parts = []
    for fit in fits.itertuples(index=False):
        history = pd.read_csv(stage.path(fit.folder) / "history.csv")
        facts = {"task": fit.task, "protocol": fit.protocol, "network": fit.network, "seed": fit.seed}
        parts.append(history.assign(**facts))
    return pd.concat(parts, ignore_index=True)


def ask_checkpoint(path: Path, store: Store, window_ids: pd.Series, network: str) -> np.ndarray:
    """Probabilities [n, C] of one checkpoint for these windows; the one path that evaluation and prediction share."""
    model, _ = load_model(path)
    features = store.features(tensor_of(network), window_ids)
    return np.exp(predict_log_probabilities(model, features, np.arange(len(features))).astype(np.float64))


def count_splits(splits: pd.DataFrame, tasks: list[Task]) -> pd.DataFrame:
    """Windows and speakers of each part by task, protocol and class."""
    classes = {task.name: task.classes for task in tasks}
    names = [classes[task][target] for task, target in zip(splits["task"], splits["target"])]
    rows = splits.assign(**{"class": names}).groupby(["task", "protocol", "class", "split"], sort=False)
    counts = rows.agg(windows=("window_id", "size"), speakers=("speaker_id", "nunique")).unstack("split").fillna(0)
    ordered = [(kind, part) for part in ("train", "validation", "test") for kind in ("windows", "speakers")]
    counts = counts.reindex(columns=ordered).astype(int)
    counts.columns = [f"{part} {kind}" for kind, part in ordered]
    return counts.reset_index()


def save_splits(stage: Stage, splits: pd.DataFrame) -> None:
    """Keep the splits beside the trainings: task, protocol, ids, split and target of every window."""
    with paths.write_whole(stage.path("splits.parquet")) as partial:
        splits.drop(columns="content_hash").to_parquet(partial, index=False)


def load_splits(stage: Stage) -> pd.DataFrame:
    """The splits that `save_splits` wrote."""
    return pd.read_parquet(stage.path("splits.parquet"))


def load_fits(stage: Stage) -> pd.DataFrame:
    """The table of trainings that `train_networks` wrote."""
    return pd.read_csv(stage.path("fits.csv"))


def plot_first_history(history: pd.DataFrame, fits: pd.DataFrame, task: str) -> tuple:
    """The curves of the first network and seed of a task under its first protocol; returns (figure, numbers)."""
    from lib.figures import plot_history

    fit = fits[fits["task"] == task].iloc[0]
    keys = ["task", "protocol", "network", "seed"]
    rows = history[(history[keys] == fit[keys]).all(axis=1)]
    shown = ["epoch", "train_loss", "validation_loss", "validation_accuracy", "validation_uar", "validation_macro_f1"]
    title = f"Training the {fit['network']} network for {task}, protocol {fit['protocol']}"
    return plot_history(rows[shown], int(fit["best_epoch"]), title), rows
