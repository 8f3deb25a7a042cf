"""What the models answered, scored beside baselines: every network, every baseline, both protocols, three levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import paths
from lib.baselines import fit_baselines, fit_constant_age, fit_majority, predict_constant
from lib.bootstrap import bootstrap_speakers
from lib.results import is_baseline
from lib.scores import (
    LEVELS,
    aggregate_predictions,
    compare_models,
    compare_protocols,
    confusion_counts,
    expected_years,
    make_predictions,
    make_records,
    score_predictions,
    score_years,
)
from lib.stages import Stage
from lib.store import Store
from lib.tasks import YEARS, Task
from lib.train import checkpoint_path
from lib.trainings import KEYS, ask_checkpoint

ASKED = ["validation", "test"]  # parts that the models answer for
CONSTANT = "baseline: constant age"
TOLD = ["gender", "age", YEARS]  # tasks that go into a model folder; the finer classes of age are for study
COMPARED = ["accuracy_difference", "uar_difference", "macro_f1_difference"]


# ------------------------------------------------------------------------------------------------------------- asking


def predict_all(
    trained: Stage, fits: pd.DataFrame, splits: pd.DataFrame, store: Store, tasks: list[Task]
) -> pd.DataFrame:
    """Answers of every training's chosen epoch, and of the baselines, for the validation and test windows."""
    parts, known = [], {task.name: task for task in tasks}
    for key, table in splits.groupby(KEYS[:2] + ["fold"], sort=False):
        task, protocol, fold = known[key[0]], key[1], key[2]
        asked = table[table["split"].isin(ASKED)].reset_index(drop=True)
        for name, answers in _ask_baselines(table, store, task).items():
            named = {"model": name, "protocol": protocol, "seed": 0, "epoch": 0, "fold": fold}
            parts.append(_predictions(asked, answers, task, **named))
        here = fits[(fits["task"] == task.name) & (fits["protocol"] == protocol) & (fits["fold"] == fold)]
        for fit in here.itertuples(index=False):
            path = checkpoint_path(trained.path(fit.folder), fit.best_epoch)
            answers = ask_checkpoint(path, store, asked["window_id"], fit.network)
            named = {"model": fit.network, "protocol": protocol, "seed": fit.seed, "epoch": fit.best_epoch}
            parts.append(_predictions(asked, answers, task, fold=fold, **named))
    return pd.concat(parts, ignore_index=True)


def _ask_baselines(table: pd.DataFrame, store: Store, task: Task) -> dict[str, np.ndarray]:
    rows_train, rows = np.flatnonzero(table["split"] == "train"), np.flatnonzero(table["split"].isin(ASKED))
    if not has_sound(store):  # the guess alone
        shares = fit_majority(table["target"].to_numpy()[rows_train], len(task.classes))
        return {"majority": predict_constant(shares, len(rows))}
    acoustics = store.features("acoustics", table["window_id"]).all()
    return fit_baselines(acoustics, table["target"].to_numpy(), rows_train, rows, task.classes)


def has_sound(store: Store) -> bool:
    """Whether the windows were measured too: an imported store holds embeddings alone."""
    return "acoustics" in store.description["tensors"]


def list_left_out(store: Store) -> list[str]:
    """What a run without sound cannot show, for its pages."""
    left = "baselines that listen (pitch, level, MFCC), sounds of errors, model folders and 06_predict"
    return [] if has_sound(store) else [f"Its embeddings were imported without their sound; left out: {left}."]


def _predictions(asked: pd.DataFrame, answers: np.ndarray, task: Task, **named) -> pd.DataFrame:
    split, target = asked["split"].to_numpy(), asked["target"].to_numpy()
    return make_predictions(asked, target, answers, task.classes, task=task.name, split=split, **named)


def choose_models(fits: pd.DataFrame, protocol: str, model: str = "") -> dict[str, str]:
    """The network that speaks for each task: `model`, or if "" the best on validation (mean over folds and seeds).

    ValueError names the networks there are when `model` was not trained.
    """
    here = fits[fits["protocol"] == protocol]
    networks = list(dict.fromkeys(here["network"]))
    if model and model not in networks:
        raise ValueError(f"evaluate.model = {model!r} was not trained; choose one of {networks}, or leave it empty")
    means = here.groupby(["task", "network"], sort=False)["validation_uar"].mean()
    return {task: model or str(means[task].idxmax()) for task in dict.fromkeys(here["task"])}


def select_answers(
    predictions: pd.DataFrame, task: Task, model: str, protocol: str, split: str, first_seed: bool = False
) -> pd.DataFrame:
    """One model's answers, of all training seeds or the first alone. Columns of other tasks' classes are left out."""
    asked = {"task": task.name, "model": model, "protocol": protocol, "split": split}
    rows = predictions[(predictions[list(asked)] == pd.Series(asked)).all(axis=1)]
    rows = rows[rows["seed"] == rows["seed"].min()] if first_seed else rows
    others = [name for name in rows if name.startswith("p_") and name[2:] not in task.classes]
    return rows.drop(columns=others).reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------------ scoring


def score_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], draws: int, seed: int
) -> pd.DataFrame:
    """Tidy score records of the test part: every task, model, protocol and level; folds are pooled, seeds averaged."""
    test = predictions[predictions["split"] == "test"]
    parts = [score_predictions(test[test["task"] == task.name], task.classes, draws=draws, seed=seed) for task in tasks]
    years = next((task for task in tasks if task.name == YEARS), None)
    if years is not None:
        parts.append(score_ages(answer_years(predictions, splits, years), draws, seed))
    return pd.concat(parts, ignore_index=True)


def compare_all(
    predictions: pd.DataFrame, tasks: list[Task], protocol: str, networks: list[str], draws: int, seed: int
) -> pd.DataFrame:
    """Paired differences, every network minus every baseline, of accuracy, UAR and macro F1, at the three levels."""
    test = predictions[(predictions["split"] == "test") & (predictions["protocol"] == protocol)]
    parts = []
    for task in tasks:
        rows = test[test["task"] == task.name]
        for network in networks:
            for other in filter(is_baseline, rows["model"].unique()):
                found = compare_models(rows, task.classes, network, other, draws=draws, seed=seed)
                parts.append(found[found["metric"].isin(COMPARED)])
    return pd.concat(parts, ignore_index=True)


def score_leaks(predictions: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int) -> pd.DataFrame:
    """`lib.scores.compare_protocols` for every task: what random windows claim over what `protocol` shows."""
    rows = {task.name: predictions[predictions["task"] == task.name] for task in tasks}
    parts = [compare_protocols(rows[t.name], t.classes, protocol, draws=draws, seed=seed) for t in tasks]
    return pd.concat(parts, ignore_index=True)


def compare_everything(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, networks: list[str], draws: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """`compare_all`, and where ages in years are asked for `compare_ages` too."""
    parts = [compare_all(predictions, tasks, protocol, networks, draws, seed)]
    years = next((task for task in tasks if task.name == YEARS), None)
    if years is not None:
        parts.append(compare_ages(answer_years(predictions, splits, years), protocol, draws, seed))
    return pd.concat(parts, ignore_index=True)


def answer_years(predictions: pd.DataFrame, splits: pd.DataFrame, task: Task, split: str = "test") -> pd.DataFrame:
    """Every answer of the task in years, the constant's too: model, protocol, seed, fold, ids, years, told_years.

    A network tells the expected age over its classes, whose mean ages come from the training part of its own fold; the
    constant is that part's median.
    """
    rows = predictions[(predictions["task"] == task.name) & (predictions["split"] == split)]
    train = splits[(splits["task"] == task.name) & (splits["split"] == "train")]
    of_clip = splits[splits["task"] == task.name].drop_duplicates("clip_id").set_index("clip_id")["age_years"]
    columns, parts = [f"p_{name}" for name in task.classes], []
    for (protocol, fold), part in rows.groupby(["protocol", "fold"], sort=False):
        heard = train[(train["protocol"] == protocol) & (train["fold"] == fold)]
        told = expected_years(part[columns].to_numpy(), year_centres(heard, task))
        once = part.drop_duplicates("window_id").assign(model=CONSTANT, seed=0)
        parts += [part.assign(told_years=told), once.assign(told_years=fit_constant_age(heard["age_years"].to_numpy()))]
    table = pd.concat(parts, ignore_index=True)
    kept = ["model", "protocol", "seed", "fold", "window_id", "clip_id", "speaker_id", "years", "told_years"]
    return table.assign(years=table["clip_id"].map(of_clip))[kept]


def year_centres(heard: pd.DataFrame, task: Task) -> list[float]:
    """Mean age [C] of each class of years among the training windows `heard`."""
    return heard.groupby("target")["age_years"].mean().reindex(range(len(task.classes))).tolist()


def average_years(table: pd.DataFrame, level: str) -> pd.DataFrame:
    """Answers in years, averaged over the windows of a clip or of a speaker at one age."""
    if level == "window":
        return table
    keys = ["model", "protocol", "seed", "fold", "speaker_id", "years"] + ["clip_id"] * (level == "clip")
    return table.groupby(keys, sort=False)["told_years"].mean().reset_index()


def score_ages(table: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    """Records of mae_years, bias_years and ccc for every model of `answer_years`; seeds are averaged."""
    records = []
    for (protocol, model), rows in table.groupby(["protocol", "model"], sort=False):
        for level in LEVELS:
            here, seeds = average_years(rows, level), rows["seed"].nunique()
            context = {"task": YEARS, "model": model, "protocol": protocol, "split": "test", "level": level}
            arrays = (here["years"].to_numpy(), here["told_years"].to_numpy(), here["speaker_id"].to_numpy())
            found = score_years(*arrays, draws=draws, seed=seed, context=context)
            apart = [float((part["told_years"] - part["years"]).abs().mean()) for _, part in here.groupby("seed")]
            spread = np.where(found["metric"] == "mae_years", np.std(apart), np.nan)
            records.append(found.assign(n=len(here) // seeds, seeds=seeds, seed_std=spread))
    return pd.concat(records, ignore_index=True)


def compare_ages(table: pd.DataFrame, protocol: str, draws: int, seed: int) -> pd.DataFrame:
    """Paired difference in mean absolute error, every model minus the constant: below 0 the model is nearer."""
    here, records = table[table["protocol"] == protocol], []
    for level in LEVELS:
        averaged = average_years(here, level)
        averaged = averaged.assign(error=(averaged["told_years"] - averaged["years"]).abs())
        keys = [name for name in ("window_id", "clip_id") if name in averaged] + ["speaker_id", "years"]
        wide = averaged.pivot_table(index=keys, columns="model", values="error")
        for model in wide.columns.drop(CONSTANT):
            values = np.stack([np.ones(len(wide)), wide[model] - wide[CONSTANT]], axis=1)
            voices = wide.index.get_level_values("speaker_id").to_numpy()
            found = bootstrap_speakers(values, voices, _mean_difference, draws, seed)
            context = {"task": YEARS, "model": model, "protocol": protocol, "split": "test", "level": level}
            records.append(make_records(found, voices, context | {"against": CONSTANT}))
    return pd.concat(records, ignore_index=True)


def _mean_difference(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"mae_years_difference": sums[..., 1] / sums[..., 0]}


# ------------------------------------------------------------------------------------------------- confusion, checkpoints


def confusion_tables(predictions: pd.DataFrame, tasks: list[Task], level: str) -> list[dict[str, Any]]:
    """Confusion counts of every model on the test part: task, model, protocol, seed, level, classes, counts."""
    found = []
    test = aggregate_predictions(predictions[predictions["split"] == "test"], level)
    for task in tasks:
        columns = [f"p_{name}" for name in task.classes]
        for keys, rows in test[test["task"] == task.name].groupby(["model", "protocol", "seed"], sort=False):
            answers = rows[columns].to_numpy().argmax(axis=1)
            counts = confusion_counts(rows["target"].to_numpy(), answers, len(task.classes))
            facts = {
                "task": task.name,
                **dict(zip(["model", "protocol", "seed"], keys)),
                "split": "test",
                "level": level,
            }
            found.append(facts | {"classes": task.classes, "counts": counts.tolist()})
    return found


def find_confusion(confusions: list[dict[str, Any]], task: str, model: str, protocol: str) -> dict[str, Any]:
    """The confusion counts of one model, of its first seed."""
    wanted = {"task": task, "model": model, "protocol": protocol}
    return next(one for one in confusions if wanted.items() <= one.items())


def main_checkpoints(
    trained: Stage, fits: pd.DataFrame, tasks: list[str], models: dict[str, str], protocol: str
) -> dict[str, Path]:
    """The chosen checkpoint of every task's network in `models`: of the first fold and the first seed."""
    found = {}
    for task in tasks:
        asked = {"task": task, "network": models[task], "protocol": protocol, "fold": 0}
        fit = fits[(fits[list(asked)] == pd.Series(asked)).all(axis=1)].sort_values("seed").iloc[0]
        found[task] = checkpoint_path(trained.path(fit["folder"]), fit["best_epoch"])
    return found


# -------------------------------------------------------------------------------------------------------------- files


def save_frames(stage: Stage, **frames: pd.DataFrame) -> None:
    """Write tables as `<name>.parquet` into the stage's folder."""
    for name, frame in frames.items():
        with paths.write_whole(stage.path(f"{name}.parquet")) as partial:
            frame.to_parquet(partial, index=False)


def load_frames(stage: Stage, *names: str) -> list[pd.DataFrame]:
    """The tables that `save_frames` wrote, in this order."""
    return [pd.read_parquet(stage.path(f"{name}.parquet")) for name in names]


def list_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-able records at full precision; what is no number becomes None."""
    columns = {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame}
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def save_metrics(run: str, scores: pd.DataFrame, confusions: list[dict[str, Any]], **more: Any) -> Path:
    """Write `metrics.json` of the run: every number that its pages show, with its interval and n.

    `more`: further parts; a table becomes a list of records.
    """
    parts = {name: list_records(part) if isinstance(part, pd.DataFrame) else part for name, part in more.items()}
    content = {"run": run, "scores": list_records(scores), "confusions": confusions, **parts}
    return paths.save_json(paths.DATA / run / "metrics.json", content)


def join_records(scores: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """Scores and slices as one table of records."""
    return pd.concat([scores, parts.drop(columns="enough")], ignore_index=True) if len(parts) else scores


def main_answers(predictions: pd.DataFrame, models: dict[str, str], protocol: str) -> pd.DataFrame:
    """The answers of every task's main model under the main protocol."""
    here = predictions[predictions["protocol"] == protocol]
    return here[here["model"] == here["task"].map(models)]


def describe_data(clips: pd.DataFrame, splits: pd.DataFrame, protocol: str) -> dict[str, Any]:
    """For the card of a model folder: how many clips and speakers, in which languages, and who trained and tested it."""
    here = splits[(splits["protocol"] == protocol) & (splits["fold"] == 0)]
    voices = here.groupby(["split", "task"], sort=False)["speaker_id"].nunique()
    parts = {f"{part}_speakers": voices[part].to_dict() for part in ("train", "validation", "test") if part in voices}
    languages = (
        clips.groupby(clips["language"].replace("", "not known"))["speaker_id"].nunique().sort_values(ascending=False)
    )
    return {"clips": len(clips), "speakers": int(clips["speaker_id"].nunique()),
            "speakers_by_language": languages.to_dict()} | parts  # fmt: skip


def own_scores(
    scores: pd.DataFrame, parts: pd.DataFrame, name: str, models: dict[str, str], protocol: str, level: str
) -> list[dict[str, Any]]:
    """Records for the card of a model folder `name`, whose heads are `models`, and of what guesses score."""
    rows = join_records(scores, parts)
    rows = rows[(rows["protocol"] == protocol) & (rows["level"] == level) & rows["task"].isin(models)]
    own = rows[rows["model"] == rows["task"].map(models)].assign(model=name)
    return list_records(pd.concat([own, rows[rows["model"].isin(["majority", CONSTANT])]], ignore_index=True))
