"""From windows to trained networks: every task split under every protocol, every network trained."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import paths
from lib.compute import Compute
from lib.linear import PENALTIES, fit_linear
from lib.networks import build_network, split_name
from lib.splits import split_windows
from lib.stages import Stage, seed_everything
from lib.store import Features, Store
from lib.tasks import YEARS, Task, task_table
from lib.train import HISTORY, Recipe, fit_network

KEYS = ["task", "protocol", "network", "fold", "seed"]  # what tells one training from another
CHILD_YEARS = 16  # younger speakers are children where rows are balanced
SHARE = 0.25  # power of a class' groups where ages are told by steps: more for the few adults of the children's corpus
POWER = 0.5  # of classes of years: alike, ages are told too old; by number, the rare are lost: docs/experiments.md


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
                rows = table.merge(split.rename("split"), left_on="window_id", right_index=True)
                parts.append(rows.assign(task=task.name, protocol=protocol, fold=fold))
    return pd.concat(parts, ignore_index=True)


def place_networks(networks: list[str], store: Store) -> list[str]:
    """The networks with the store's own stages for "quarter:1" to "quarter:4", which lie so far up any encoder: of CAM++ its
    three blocks and its embedding; where there are fewer than four, one stands for several."""
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


def train_networks(
    stage: Stage, splits: pd.DataFrame, stores: list[Store], tasks: list[Task], networks: list[str], seeds: list[int],
    recipe: Recipe, compute: Compute,
) -> pd.DataFrame:  # fmt: skip
    """Train every network for every task, protocol, fold and seed: one row a training, `KEYS`, best_epoch, epochs, validation
    scores, minutes, folder (within the stage's). stores: the windows' own, then those of altered copies, for linear models."""
    fits, task_of = [], {task.name: task for task in tasks}
    asked = [entry.rpartition("=") for entry in networks]  # "task=network": for that task alone
    groups = splits.groupby(["task", "protocol", "fold"], sort=False)
    jobs = [(*key, rows, name) for key, rows in groups for task, _, name in asked if task in ("", key[0])]
    for task, protocol, fold, table, network in tqdm(jobs, desc="networks"):
        for seed in seeds if network == "paper" else seeds[:1]:  # the fit of all others does not depend on it
            begun = time.monotonic()
            folder = str(Path(task, protocol, folder_name(network), f"fold-{fold}", f"seed-{seed}"))
            seed_everything(seed)
            given = (stage.path(folder), table, stores, task_of[task])
            if network == "paper":
                history, best = _train_paper(*given, seed, recipe, compute)
            else:
                history, best = train_linear(*given, network, seed)
            chosen = history.set_index("epoch").loc[best]
            row = dict(zip(KEYS, (task, protocol, network, fold, seed)))
            row |= {"best_epoch": best, "epochs": int(history["epoch"].max())}
            row |= {name: chosen[name] for name in ("validation_uar", "validation_macro_f1")}
            fits.append(row | {"minutes": round((time.monotonic() - begun) / 60, 2), "folder": folder})
    return paths.save_frame(stage.path("fits.csv"), pd.DataFrame(fits))


def _train_paper(folder, table, stores, task, seed, recipe, compute) -> tuple[pd.DataFrame, int]:
    """The paper's network on the table's training part; `folder` gets history and checkpoints. The normalisation "paper" is
    the paper's own: the p-norm for gender, nothing for age."""
    features, targets = read_features(stores[0], "paper", table["window_id"]), table["target"].to_numpy()
    own = "p10" if task.name == "gender" else "none"
    normalisation = own if recipe.normalisation == "paper" else recipe.normalisation
    options = {"task": task.name, "width": recipe.width, "normalisation": normalisation, "seed": seed}
    model = build_network("paper", task.classes, features.shape[1:], **options)
    parts = [np.flatnonzero(table["split"] == part) for part in ("train", "validation")]
    first = bool((table["fold"] == 0).all()) and seed == 0
    return fit_network(model, features, targets, *parts, recipe, folder, seed=seed, compute=compute, every_epoch=first)


def read_features(store: Store, network: str, window_ids: pd.Series) -> Features:
    """What a network reads of these windows: frames (n, T, D) or parts of the statistics (n, S)."""
    if network == "paper":
        return store.frames(window_ids)
    return store.statistics(window_ids, [name for step in split_name(network)[1] for name in step])


class Stacked:
    """Several features of equal shape, one below the other, read by ascending rows."""

    def __init__(self, features: list[Features]) -> None:
        self.features = features

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        count = len(self.features[0])
        parts = np.split(rows, np.searchsorted(rows, np.arange(1, len(self.features)) * count))
        return np.concatenate([one[part - k * count] for k, (one, part) in enumerate(zip(self.features, parts))])


def balance_rows(table: pd.DataFrame, power: float = 0.0, share: float = 0.5) -> np.ndarray:
    """Weight of each window in a linear model's loss: classes by their speakers' number to `power`, 0: alike; in a class each corpus'
    children (under 16) and others by theirs to `share`; a speaker's windows together the square root of theirs. Outside of training: 0."""
    train = table[table["split"] == "train"]
    per_speaker = train.groupby("speaker_id")["window_id"].transform("size")
    weights = 1 / np.sqrt(per_speaker)
    groups = [train["target"], train["corpus"], train["age_years"].lt(CHILD_YEARS)]
    voices = train["speaker_id"].groupby(groups).transform("nunique")
    weights *= voices**share / weights.groupby(groups).transform("sum")
    weights /= weights.groupby(train["target"]).transform("sum")
    weights *= train["speaker_id"].groupby(train["target"]).transform("nunique") ** power
    return weights.reindex(table.index, fill_value=0.0).to_numpy(np.float64)


def train_linear(folder, table, stores, task, network, seed, penalties=PENALTIES) -> tuple[pd.DataFrame, int]:
    """A linear model on the training part, altered copies included (`lib.linear.fit_linear`); without validation judged by all."""
    features = [read_features(store, network, table["window_id"]) for store in stores]
    kind, parts = split_name(network)
    widths = [] if kind == "linear" else [stores[0].width(step) for step in parts]
    model = build_network(network, task.classes, features[0].shape[1:], task=task.name, widths=widths, seed=seed)
    rows, judged = (np.flatnonzero(table["split"] == part) for part in ("train", "validation"))
    judged = judged if len(judged) else rows
    rows = np.concatenate([rows + len(table) * number for number in range(len(stores))])
    weights = balance_rows(table, POWER if task.name == YEARS else 0.0, SHARE if kind == "steps" else 0.5)
    columns = (table["target"], weights, table["age_years"].lt(CHILD_YEARS), table["speaker_id"])
    targets, *facts = (np.tile(column, len(stores)) for column in columns)
    return fit_linear(model, Stacked(features), targets, rows, judged, folder, *facts, seed, penalties)


def folder_name(network: str) -> str:
    """A network's name as a folder: "linear:block:2+bank" -> "linear-block-2-bank"."""
    return network.replace(":", "-").replace("+", "-").replace("|", "_")


def load_history(stage: Stage, fits: pd.DataFrame) -> pd.DataFrame:
    """The histories of all trainings as one table, one row an epoch, with `KEYS` and whether the epoch was chosen."""
    parts = []
    for fit in fits.itertuples(index=False):
        history, facts = pd.read_csv(stage.path(fit.folder) / HISTORY), {key: getattr(fit, key) for key in KEYS}
        parts.append(history.assign(**facts, chosen=history["epoch"] == fit.best_epoch))
    return pd.concat(parts, ignore_index=True)
