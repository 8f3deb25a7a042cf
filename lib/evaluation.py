"""What the models answered, scored beside baselines, and the tables that pages show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import paths
from lib.baselines import fit_baselines
from lib.calibration import Calibration, calibrate_predictions, choose_coverage, fit_temperature
from lib.experiments import Task, ask_checkpoint
from lib.figures import is_baseline
from lib.scores import aggregate_predictions, confusion_counts, make_predictions, score_predictions
from lib.stages import Stage
from lib.store import Store
from lib.training import checkpoint_path

ASKED = ["validation", "test"]  # parts that the models answer for


def predict_all(
    trained: Stage, fits: pd.DataFrame, splits: pd.DataFrame, store: Store, tasks: list[Task]
) -> pd.DataFrame:
    """Answers of every training's chosen epoch, and of the baselines, for the validation and test windows."""
    parts = []
    for task in tasks:
        of_task = splits[(splits["task"] == task.name)]
        for protocol, table in of_task.groupby("protocol", sort=False):
            asked = table[table["split"].isin(ASKED)].reset_index(drop=True)
            facts = {"task": task.name, "protocol": protocol}
            for name, answers in _ask_baselines(table, store, task).items():
                parts.append(_predictions(asked, answers, task, model=name, protocol=protocol, seed=0, epoch=0))
            for fit in fits[(fits[list(facts)] == pd.Series(facts)).all(axis=1)].itertuples(index=False):
                path = checkpoint_path(trained.path(fit.folder), fit.best_epoch)
                answers = ask_checkpoint(path, store, asked["window_id"], fit.network)
                named = {"model": fit.network, "protocol": protocol, "seed": fit.seed, "epoch": fit.best_epoch}
                parts.append(_predictions(asked, answers, task, **named))
    return pd.concat(parts, ignore_index=True)


def _ask_baselines(table: pd.DataFrame, store: Store, task: Task) -> dict[str, np.ndarray]:
    acoustics = store.features("acoustics", table["window_id"]).all()
    rows_train, rows = np.flatnonzero(table["split"] == "train"), np.flatnonzero(table["split"].isin(ASKED))
    return fit_baselines(acoustics, table["target"].to_numpy(), rows_train, rows, task.classes)


def _predictions(asked: pd.DataFrame, answers: np.ndarray, task: Task, **named) -> pd.DataFrame:
    split = asked["split"].to_numpy()
    return make_predictions(
        asked, asked["target"].to_numpy(), answers, task.classes, task=task.name, split=split, **named
    )


def score_all(predictions: pd.DataFrame, tasks: list[Task], draws: int, seed: int) -> pd.DataFrame:
    """Tidy score records of the test part: every task, model, protocol, seed and level."""
    test = predictions[predictions["split"] == "test"]
    parts = [score_predictions(test[test["task"] == task.name], task.classes, draws=draws, seed=seed) for task in tasks]
    return pd.concat(parts, ignore_index=True)


def save_scores(stage: Stage, scores: pd.DataFrame) -> None:
    """Write the score records as Parquet into the stage's folder."""
    with paths.write_whole(stage.path("scores.parquet")) as partial:
        scores.to_parquet(partial, index=False)


def load_scores(stage: Stage) -> pd.DataFrame:
    """The score records that `save_scores` wrote."""
    return pd.read_parquet(stage.path("scores.parquet"))


def select_scores(scores: pd.DataFrame, task: str, metric: str, level: str, protocol: str = "speaker") -> pd.DataFrame:
    """Records of one task, metric, level and protocol on the test part, all subsets left out."""
    asked = {"task": task, "metric": metric, "level": level, "protocol": protocol, "split": "test", "subset": "all"}
    return scores[(scores[list(asked)] == pd.Series(asked)).all(axis=1)].reset_index(drop=True)


def with_interval(row: Any) -> str:
    """A score and its interval as people read it: "0.913 (0.871 to 0.948)"."""
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"


def headline_table(scores: pd.DataFrame, level: str, protocol: str = "speaker") -> pd.DataFrame:
    """One row a task and model: accuracy, UAR and macro F1 with intervals, windows and speakers."""
    rows = []
    for task in scores["task"].unique():
        chosen = {
            metric: select_scores(scores, task, metric, level, protocol) for metric in ("accuracy", "uar", "macro_f1")
        }
        for position, row in enumerate(chosen["uar"].itertuples(index=False)):
            cells = {name: with_interval(table.iloc[position]) for name, table in chosen.items()}
            rows.append(
                {
                    "task": task,
                    "model": row.model,
                    **cells,
                    f"{level}s": row.n,
                    "speakers": row.speakers,
                }
            )
    return pd.DataFrame(rows).rename(columns={"uar": "UAR", "macro_f1": "macro F1"})


def f1_table(scores: pd.DataFrame, level: str, protocol: str = "speaker") -> pd.DataFrame:
    """One row a task and model: F1 of each class, weighted and macro F1, accuracy, each with its interval."""
    here = scores[(scores["level"] == level) & (scores["protocol"] == protocol) & (scores["subset"] == "all")]
    here = here[here["metric"].str.contains("f1") | (here["metric"] == "accuracy")]
    cells = here.assign(cell=[with_interval(row) for row in here.itertuples(index=False)])
    wide = cells.pivot_table(index=["task", "model"], columns="metric", values="cell", aggfunc="first", sort=False)
    return wide.fillna("").reset_index()


def leak_table(scores: pd.DataFrame, level: str) -> pd.DataFrame:
    """UAR and accuracy of each network under both protocols, and the difference that leakage buys."""
    rows = []
    here = scores[(scores["level"] == level) & (scores["subset"] == "all") & (~scores["model"].map(is_baseline))]
    for (task, model, metric), group in here[here["metric"].isin(["uar", "accuracy"])].groupby(
        ["task", "model", "metric"], sort=False
    ):
        values = group.set_index("protocol")
        if {"paper", "speaker"} <= set(values.index):
            claimed, shown = values.loc["paper"], values.loc["speaker"]
            cells = {"random windows": with_interval(claimed), "unseen speakers": with_interval(shown)}
            gap = float(claimed["value"] - shown["value"])
            rows.append({"task": task, "model": model, "metric": metric, **cells, "difference": gap})
    return pd.DataFrame(rows)


def confusion_tables(predictions: pd.DataFrame, tasks: list[Task], level: str) -> list[dict[str, Any]]:
    """Confusion counts of every model on the test part: task, model, protocol, seed, level, classes, counts."""
    found = []
    test = aggregate_predictions(predictions[predictions["split"] == "test"], level)
    for task in tasks:
        columns = [f"p_{name}" for name in task.classes]
        for keys, rows in test[test["task"] == task.name].groupby(["model", "protocol", "seed"], sort=False):
            answers = rows[columns].to_numpy().argmax(axis=1)
            counts = confusion_counts(rows["target"].to_numpy(), answers, len(task.classes))
            facts = dict(zip(["model", "protocol", "seed"], keys))
            found.append(
                {
                    "task": task.name,
                    **facts,
                    "split": "test",
                    "level": level,
                    "classes": task.classes,
                    "counts": counts.tolist(),
                }
            )
    return found


def main_confusion(confusions: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """The confusion of the first network (not a baseline) of a task under the speaker protocol."""
    return next(
        one
        for one in confusions
        if one["task"] == task and one["protocol"] != "paper" and not is_baseline(one["model"])
    )


def confusion_frame(confusion: dict[str, Any]) -> pd.DataFrame:
    """A confusion matrix as a long table: truth, told as, count, share of the row."""
    counts = np.asarray(confusion["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = confusion["classes"]
    rows = [(names[i], names[j], int(counts[i, j]), float(shares[i, j])) for i, j in np.ndindex(*counts.shape)]
    return pd.DataFrame(rows, columns=["truth", "told as", "count", "share of the truth"])


def save_metrics(run: str, scores: pd.DataFrame, confusions: list[dict[str, Any]], **more: Any) -> None:
    """Write `metrics.json` of the run, at full precision: every number that its pages show."""
    records = scores.astype(object).where(scores.notna(), None).to_dict("records")
    paths.save_json(
        paths.DATA / run / "metrics.json", {"run": run, "scores": records, "confusions": confusions, **more}
    )


def calibrate_all(
    predictions: pd.DataFrame, tasks: list[Task], model: str, seed: int, protocol: str = "speaker"
) -> tuple[dict[str, Calibration], dict[str, float]]:
    """Temperature and the confidence from which to answer, by task, both chosen on the validation part alone.

    The temperature is fitted to windows; the threshold to clips, since a recording is what gets an answer.
    """
    asked = {"model": model, "seed": seed, "protocol": protocol, "split": "validation"}
    here = predictions[(predictions[list(asked)] == pd.Series(asked)).all(axis=1)]
    calibrations, thresholds = {}, {}
    for task in tasks:
        columns = [f"p_{name}" for name in task.classes]
        rows = here[here["task"] == task.name]
        calibrations[task.name] = fit_temperature(rows[columns].to_numpy(), rows["target"].to_numpy())
        clips = aggregate_predictions(calibrate_predictions(rows, task.classes, calibrations[task.name]), "clip")
        thresholds[task.name] = choose_coverage(clips["target"].to_numpy(), clips[columns].to_numpy(), task.classes)
    return calibrations, thresholds


def main_checkpoints(trained: Stage, fits: pd.DataFrame, tasks: list[Task], model: str, seed: int) -> dict[str, Path]:
    """The chosen checkpoint of network `model` for every task, under the protocol that keeps speakers apart."""
    here = fits[(fits["network"] == model) & (fits["seed"] == seed) & (fits["protocol"] != "paper")]
    chosen = here.drop_duplicates("task").set_index("task")
    names = [task.name for task in tasks]
    return {
        name: checkpoint_path(trained.path(chosen.loc[name, "folder"]), chosen.loc[name, "best_epoch"])
        for name in names
    }
