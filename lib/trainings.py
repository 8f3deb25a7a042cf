"""From windows to trained networks: every task split under every protocol, every network trained."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import paths
from lib.compute import Compute
from lib.linear import PENALTIES, fit_linear
from lib.networks import Model, build_network, parts_read, split_name
from lib.splits import split_windows
from lib.stages import Stage, seed_everything
from lib.store import Features, Store
from lib.tasks import Task, task_table
from lib.train import HISTORY, Fit, Recipe, balanced_weights, fit_network, load_model, predict_log_probabilities

KEYS = ["task", "protocol", "network", "fold", "seed"]  # what tells one training from another
CONVEX = ("linear", "steps", "experts")  # kinds whose fit does not depend on a seed
CHILD_YEARS = 16  # younger speakers are children where rows are balanced


def split_tasks(
    windows: pd.DataFrame, clips: pd.DataFrame, tasks: list[Task], protocols: list[str], seed: int, folds: int = 0
) -> pd.DataFrame:
    """Every task's windows under every protocol and fold (see `lib.splits.split_windows`): task, protocol, fold,
    window_id, split, target and the columns of the window and its clip."""
    parts = []
    for task in tasks:
        table = task_table(windows, clips, task)
        named = table.assign(**{task.name: [task.classes[target] for target in table["target"]]})
        for protocol in protocols:
            for fold, split in enumerate(split_windows(named, protocol, task.name, seed, folds)):
                rows = table[table["window_id"].isin(split.index)]
                facts = {"task": task.name, "protocol": protocol, "fold": fold}
                parts.append(rows.assign(**facts, split=split.loc[rows["window_id"]].to_numpy()))
    return pd.concat(parts, ignore_index=True)


def place_networks(networks: list[str], store: Store) -> list[str]:
    """The networks with the store's own stages for "quarter:1" to "quarter:4", which lie so far up any encoder.

    Of CAM++ they are its three blocks and its embedding; where there are fewer than four, one stands for several.
    """
    stages, placed = [name for name in store.parts if name != "bank"], []
    quarters = {f"quarter:{k}": stages[-(-k * len(stages) // 4) - 1] for k in range(1, 5)}
    for entry in networks:
        task, equals, network = entry.rpartition("=")
        kind, lists = split_name(network)
        parts = ["+".join(dict.fromkeys(quarters.get(part, part) for part in one)) for one in lists]
        placed.append(task + equals + ":".join([kind, *filter(None, ["|".join(parts)])]))
    return placed


def main_protocol(protocols: list[str]) -> str:
    """The protocol that headlines stand on: the first that keeps speakers apart, "paper" only where there is no other."""
    return next((name for name in protocols if name != "paper"), protocols[0])


def save_splits(stage: Stage, splits: pd.DataFrame) -> None:
    """Keep the splits beside the trainings: task, protocol, fold, ids, split and target of every window."""
    with paths.write_whole(stage.path("splits.parquet")) as partial:
        splits.drop(columns="content_hash").to_parquet(partial, index=False)


def load_splits(stage: Stage) -> pd.DataFrame:
    """The splits that `save_splits` wrote."""
    return pd.read_parquet(stage.path("splits.parquet"))


def train_networks(
    stage: Stage,
    splits: pd.DataFrame,
    stores: list[Store],
    tasks: list[Task],
    networks: list[str],
    seeds: list[int],
    recipe: Recipe,
    compute: Compute,
) -> pd.DataFrame:
    """Train every network for every task, protocol, fold and seed; a killed run goes on at the epoch after the last.

    stores: the windows' own embeddings, and after them those of altered copies, which linear models learn from as well.
    Returns one row a training: `KEYS`, best_epoch, epochs, its validation scores, minutes, folder (within the stage's).
    """
    fits, task_of = [], {task.name: task for task in tasks}
    asked = [entry.rpartition("=") for entry in networks]  # "task=network": for that task alone
    groups = splits.groupby(["task", "protocol", "fold"], sort=False)
    jobs = [(*key, rows, name) for key, rows in groups for task, _, name in asked if task in ("", key[0])]
    for task, protocol, fold, table, network in tqdm(jobs, desc="networks"):
        for seed in seeds if split_name(network)[0] not in CONVEX else seeds[:1]:
            begun = time.monotonic()
            folder = str(Path(task, protocol, folder_name(network), f"fold-{fold}", f"seed-{seed}"))
            fit = _train_network(stage.path(folder), table, stores, task_of[task], network, seed, recipe, compute)
            chosen = fit.history.set_index("epoch").loc[fit.best_epoch]
            row = dict(zip(KEYS, (task, protocol, network, fold, seed)))
            row |= {"best_epoch": fit.best_epoch, "epochs": int(fit.history["epoch"].max())}
            row |= {name: chosen[name] for name in ("validation_uar", "validation_macro_f1")}
            fits.append(row | {"minutes": round((time.monotonic() - begun) / 60, 2), "folder": folder})
    table = pd.DataFrame(fits)
    with paths.write_whole(stage.path("fits.csv")) as partial:
        table.to_csv(partial, index=False)
    return table


def _train_network(folder, table, stores, task, network, seed, recipe, compute) -> Fit:
    """Train one network on the table's training part; `folder` gets its history and its checkpoints."""
    seed_everything(seed)
    rows_train, rows_validation = (np.flatnonzero(table["split"] == part) for part in ("train", "validation"))
    if split_name(network)[0] in CONVEX:
        return _fit_linear(folder, table, stores, task, network, seed, rows_validation)
    features, targets = read_features(stores[0], network, table["window_id"]), table["target"].to_numpy()
    model = make_model(network, task, stores[0], features.shape[1:], recipe, seed)
    parts, first = (rows_train, rows_validation), bool((table["fold"] == 0).all()) and seed == 0
    return fit_network(model, features, targets, *parts, recipe, folder, seed=seed, compute=compute, every_epoch=first)


def make_model(network: str, task: Task, store: Store, shape: tuple[int, ...], recipe: Recipe, seed: int) -> Model:
    """An untrained model for this task and the shape of one window's input.

    The normalisation "paper" is the paper's own: the p-norm for gender, nothing for age.
    """
    kind, parts = split_name(network)
    normalisation = recipe.normalisation if kind == "paper" else "standard"
    if normalisation == "paper":
        normalisation = "p10" if task.name == "gender" else "none"
    options = {"task": task.name, "width": recipe.width, "normalisation": normalisation, "seed": seed}
    widths = [store.width(step) for step in parts] if kind in ("steps", "experts") else []
    return build_network(network, task.classes, shape, widths=widths, **options)


def read_features(store: Store, network: str, window_ids: pd.Series) -> Features:
    """What a network reads of these windows: frames (n, T, D) or parts of the statistics (n, S)."""
    return store.frames(window_ids) if network == "paper" else store.statistics(window_ids, parts_read(network) or None)


class Stacked:
    """Several features of equal shape, one below the other, read by ascending rows."""

    def __init__(self, features: list[Features]) -> None:
        self.features = features

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        count = len(self.features[0])
        parts = np.split(rows, np.searchsorted(rows, np.arange(1, len(self.features)) * count))
        return np.concatenate([one[part - k * count] for k, (one, part) in enumerate(zip(self.features, parts))])


def balance_rows(table: pd.DataFrame) -> np.ndarray:
    """Weight of each window in a linear model's loss: classes alike, small groups and rare speakers more than their share.

    A speaker's windows weigh the square root of their number together; within a class so do the groups of corpus and of
    children (under 16 years) against others. Computed over the training part; other rows weigh nothing.
    """
    train = table[table["split"] == "train"]
    per_speaker = train.groupby("speaker_id")["window_id"].transform("size")
    weights = 1 / np.sqrt(per_speaker)
    groups = [train["target"], train["corpus"], train["age_years"].lt(CHILD_YEARS)]
    voices = train["speaker_id"].groupby(groups).transform("nunique")
    weights *= np.sqrt(voices) / weights.groupby(groups).transform("sum")
    weights /= weights.groupby(train["target"]).transform("sum")
    return weights.reindex(table.index, fill_value=0.0).to_numpy(np.float64)


def refit_linear(
    folder: Path, table: pd.DataFrame, stores: list[Store], task: Task, network: str, penalties: list[float], seed: int
) -> Path:
    """Checkpoint of a linear model that learns from every row, at one penalty for all regressions or one for each."""
    everyone = table.assign(split="train")
    return _fit_linear(folder, everyone, stores, task, network, seed, np.arange(len(table)), [penalties]).checkpoint


def _fit_linear(folder, table, stores, task, network, seed, rows_validation, penalties=PENALTIES) -> Fit:
    """Fit on the table's training part, altered copies included."""
    features = [read_features(store, network, table["window_id"]) for store in stores]
    model = make_model(network, task, stores[0], features[0].shape[1:], Recipe(), seed)
    rows = np.flatnonzero(table["split"] == "train")
    rows = np.concatenate([rows + len(table) * number for number in range(len(stores))])
    columns = (table["target"], balance_rows(table), table["age_years"].lt(CHILD_YEARS), table["speaker_id"])
    targets, *facts = (np.tile(column, len(stores)) for column in columns)
    return fit_linear(model, Stacked(features), targets, rows, rows_validation, folder, *facts, seed, penalties)


def folder_name(network: str) -> str:
    """A network's name as a folder: "linear:block:2+bank" -> "linear-block-2-bank"."""
    return network.replace(":", "-").replace("+", "-").replace("|", "_")


def load_fits(stage: Stage) -> pd.DataFrame:
    """The table of trainings that `train_networks` wrote."""
    return pd.read_csv(stage.path("fits.csv"))


def load_history(stage: Stage, fits: pd.DataFrame) -> pd.DataFrame:
    """The histories of all trainings as one table, one row an epoch, with `KEYS` and whether the epoch was chosen."""
    parts = []
    for fit in fits.itertuples(index=False):
        history = pd.read_csv(stage.path(fit.folder) / HISTORY)
        facts = {key: getattr(fit, key) for key in KEYS}
        parts.append(history.assign(**facts, chosen=history["epoch"] == fit.best_epoch))
    return pd.concat(parts, ignore_index=True)


def summarise_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """One row a task, protocol and network: trainings, median chosen epoch, validation scores and their spread, minutes."""
    groups = fits.groupby(["task", "protocol", "network"], sort=False)
    table = groups.agg(
        trainings=("seed", "size"),
        chosen_epoch=("best_epoch", "median"),
        validation_uar=("validation_uar", "mean"),
        spread=("validation_uar", lambda values: float(np.std(values))),
        validation_macro_f1=("validation_macro_f1", "mean"),
        minutes=("minutes", "sum"),
    )
    return table.reset_index()


def ask_checkpoint(path: Path, store: Store, window_ids: pd.Series, network: str) -> np.ndarray:
    """Probabilities (n, C) of one checkpoint for these windows."""
    model, _ = load_model(path)
    return np.exp(predict_log_probabilities(model, read_features(store, network, window_ids)).astype(np.float64))


def frame_shape(store: Store) -> list[int]:
    """Frames (T, D) of one window in this store; the paper's, (149, 32), where it keeps none."""
    return store.description["shapes"].get("frames", [149, 32])


def tabulate_weights(splits: pd.DataFrame, tasks: list[Task], protocol: str) -> pd.DataFrame:
    """task, class, training windows and weight in the loss, of the first fold of a protocol."""
    rows = splits[(splits["protocol"] == protocol) & (splits["fold"] == 0) & (splits["split"] == "train")]
    parts = []
    for task in tasks:
        targets = rows.loc[rows["task"] == task.name, "target"].to_numpy()
        table = pd.DataFrame({"task": task.name, "class": task.classes})
        table["training windows"] = np.bincount(targets, minlength=len(task.classes))
        parts.append(table.assign(weight=balanced_weights(targets, task.classes).numpy()))
    return pd.concat(parts, ignore_index=True)


def first_training(history: pd.DataFrame, task: str, protocol: str) -> pd.DataFrame:
    """The history of a task's first network, fold and seed: the paper's network where it was trained."""
    rows = history[(history["task"] == task) & (history["protocol"] == protocol) & (history["fold"] == 0)]
    networks = list(dict.fromkeys(rows["network"]))
    rows = rows[rows["network"] == ("paper" if "paper" in networks else networks[0])]
    return rows[rows["seed"] == rows["seed"].min()].dropna(axis="columns", how="all").reset_index(drop=True)
