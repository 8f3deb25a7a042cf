"""What the models answered, scored beside baselines: every network, every baseline, every protocol, three levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.baselines import BASELINES, fit_baseline, fit_constant_age
from lib.networks import count_parameters
from lib.results import first_record, format_interval
from lib.scores import (
    LEVELS,
    aggregate_predictions,
    bootstrap_sums,
    compare_models,
    compare_protocols,
    confusion_counts,
    expected_years,
    make_records,
    score_predictions,
    score_years,
    sum_by_speaker,
)
from lib.stages import Stage
from lib.store import Store
from lib.tasks import YEARS, Task
from lib.train import checkpoint_path, load_model
from lib.trainings import ask_checkpoint

VERSION = 7  # of the scores; raised by hand when the code's results change
PARTS = ["validation", "test"]  # parts that the models answer for
CONSTANT = "baseline: constant age"
SHIPPED = ["gender", "age", YEARS]  # tasks that go into a model folder; the finer classes of age are for study
COMPARED = ["accuracy_difference", "uar_difference", "macro_f1_difference"]


# ------------------------------------------------------------------------------------------------------------ answers


def predict_all(
    trained: Stage, fits: pd.DataFrame, splits: pd.DataFrame, store: Store, acoustics: pd.DataFrame, tasks: list[Task]
) -> pd.DataFrame:
    """Answers of every training's chosen epoch, and of the baselines, for the validation and test windows.

    acoustics: window_id and what the baselines listen to; empty where there is no sound: then the guess stands alone.
    """
    parts, task_of = [], {task.name: task for task in tasks}
    for (name, protocol, fold), table in splits.groupby(["task", "protocol", "fold"], sort=False):
        task = task_of[name]
        rows = table[table["split"].isin(PARTS)].reset_index(drop=True)
        train = table[table["split"] == "train"]
        for baseline in BASELINES:
            answers = fit_baseline(baseline, acoustics, train, rows, len(task.classes))
            if answers is not None:
                parts.append(_predictions(rows, answers, task, model=baseline, protocol=protocol, fold=fold))
        here = fits[(fits["task"] == name) & (fits["protocol"] == protocol) & (fits["fold"] == fold)]
        for fit in here.itertuples(index=False):
            path = checkpoint_path(trained.path(fit.folder), fit.best_epoch)
            answers = ask_checkpoint(path, store, rows["window_id"], fit.network)
            options = {"model": fit.network, "protocol": protocol, "seed": fit.seed, "epoch": fit.best_epoch}
            parts.append(_predictions(rows, answers, task, fold=fold, **options))
    return pd.concat(parts, ignore_index=True)


def _predictions(
    rows: pd.DataFrame, probabilities: np.ndarray, task: Task, *, seed=0, epoch=0, **context
) -> pd.DataFrame:
    table = rows[["window_id", "clip_id", "speaker_id", "split", "target"]]
    table = table.assign(task=task.name, seed=seed, epoch=epoch, **context)
    columns = {f"p_{name}": probabilities[:, number] for number, name in enumerate(task.classes)}
    return table.assign(**columns)


def choose_models(fits: pd.DataFrame, protocol: str) -> dict[str, str]:
    """The network that speaks for each task: the best on validation, mean over folds and seeds."""
    means = fits[fits["protocol"] == protocol].groupby(["task", "network"], sort=False)["validation_uar"].mean()
    return {task: str(means[task].idxmax()) for task in dict.fromkeys(fits["task"])}


def select_answers(
    predictions: pd.DataFrame, task: Task, model: str, protocol: str, split: str, first_seed: bool = False
) -> pd.DataFrame:
    """One model's answers, of all training seeds or the first alone. Columns of other tasks' classes are left out."""
    wanted = {"task": task.name, "model": model, "protocol": protocol, "split": split}
    rows = predictions[(predictions[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    rows = rows[rows["seed"] == rows["seed"].min()] if first_seed else rows
    others = [name for name in rows if name.startswith("p_") and name[2:] not in task.classes]
    return rows.drop(columns=others).reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------------- scores


def score_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], draws: int, seed: int
) -> pd.DataFrame:
    """Tidy score records of the test part: every task, model, protocol and level; folds are pooled, seeds averaged."""
    test, parts = predictions[predictions["split"] == "test"], []
    for task in tasks:
        rows = test[test["task"] == task.name]
        parts.append(score_predictions(rows, task.classes, draws=draws, seed=seed))
        if task.name == YEARS:
            parts.append(score_ages(answer_years(predictions, splits, task), draws, seed))
    return pd.concat(parts, ignore_index=True)


def compare_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """Paired differences, every network minus every baseline: accuracy, UAR and macro F1, and of ages the error in years."""
    test = predictions[(predictions["split"] == "test") & (predictions["protocol"] == protocol)]
    parts = []
    for task in tasks:
        rows = test[test["task"] == task.name]
        models = rows["model"].unique()
        for network in (name for name in models if name not in BASELINES):
            for other in (name for name in models if name in BASELINES):
                differences = compare_models(rows, task.classes, network, other, draws=draws, seed=seed)
                parts.append(differences[differences["metric"].isin(COMPARED)])
        if task.name == YEARS:
            parts.append(compare_ages(answer_years(predictions, splits, task), protocol, draws, seed))
    return pd.concat(parts, ignore_index=True)


def score_leaks(predictions: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int) -> pd.DataFrame:
    """`lib.scores.compare_protocols` for every task: what random windows claim over what `protocol` shows."""
    parts = []
    for task in tasks:
        rows = predictions[predictions["task"] == task.name]
        parts.append(compare_protocols(rows, task.classes, protocol, draws=draws, seed=seed))
    return pd.concat(parts, ignore_index=True)


def answer_years(predictions: pd.DataFrame, splits: pd.DataFrame, task: Task, split: str = "test") -> pd.DataFrame:
    """Every answer of the task in years, the constant's too: model, protocol, seed, fold, ids, years, predicted_years.

    A network tells the expected age over its classes, whose mean ages come from the training part of its own fold; the
    constant is that part's median.
    """
    rows = predictions[(predictions["task"] == task.name) & (predictions["split"] == split)]
    own = splits[splits["task"] == task.name]
    age_of = own.drop_duplicates("clip_id").set_index("clip_id")["age_years"]
    columns, parts = [f"p_{name}" for name in task.classes], []
    for (protocol, fold), part in rows.groupby(["protocol", "fold"], sort=False):
        train = own[(own["split"] == "train") & (own["protocol"] == protocol) & (own["fold"] == fold)]
        parts.append(part.assign(predicted_years=expected_years(part[columns].to_numpy(), year_centres(train, task))))
        constant = part.drop_duplicates("window_id").assign(model=CONSTANT, seed=0)
        parts.append(constant.assign(predicted_years=fit_constant_age(train["age_years"].to_numpy())))
    table = pd.concat(parts, ignore_index=True)
    table["years"] = table["clip_id"].map(age_of)
    return table[
        ["model", "protocol", "seed", "fold", "window_id", "clip_id", "speaker_id", "years", "predicted_years"]
    ]


def year_centres(train: pd.DataFrame, task: Task) -> list[float]:
    """Mean age (C,) of each class of years among these windows."""
    return train.groupby("target")["age_years"].mean().reindex(range(len(task.classes))).tolist()


def average_years(table: pd.DataFrame, level: str) -> pd.DataFrame:
    """Answers in years, averaged over the windows of a clip or of a speaker at one age."""
    if level == "window":
        return table
    keys = ["model", "protocol", "seed", "fold", "speaker_id", "years"] + ["clip_id"] * (level == "clip")
    return table.groupby(keys, sort=False)["predicted_years"].mean().reset_index()


def score_ages(table: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    """Records of mae_years, bias_years and ccc for every model of `answer_years`; seeds are averaged."""
    records = []
    for (protocol, model), rows in table.groupby(["protocol", "model"], sort=False):
        for level in LEVELS:
            here = average_years(rows, level)
            context = {"task": YEARS, "model": model, "protocol": protocol, "split": "test", "level": level}
            arrays = [here[name].to_numpy() for name in ("years", "predicted_years", "speaker_id", "seed")]
            scores = score_years(*arrays, draws=draws, seed=seed, context=context)
            errors = (here["predicted_years"] - here["years"]).abs().groupby(here["seed"]).mean()
            spread = np.where(scores["metric"] == "mae_years", np.std(errors), np.nan)
            records.append(scores.assign(seed_std=spread))
    return pd.concat(records, ignore_index=True)


def compare_ages(table: pd.DataFrame, protocol: str, draws: int, seed: int) -> pd.DataFrame:
    """Paired difference in mean absolute error, every model minus the constant: below 0 the model is nearer."""
    here, records = table[table["protocol"] == protocol], []
    for level in LEVELS:
        averaged = average_years(here, level)
        averaged = averaged.assign(error=(averaged["predicted_years"] - averaged["years"]).abs())
        keys = [name for name in ("window_id", "clip_id") if name in averaged] + ["speaker_id", "years"]
        wide = averaged.pivot_table(index=keys, columns="model", values="error")
        voices = wide.index.get_level_values("speaker_id").to_numpy()
        for model in wide.columns.drop(CONSTANT):
            values = np.stack([np.ones(len(wide)), wide[model] - wide[CONSTANT]], axis=1)
            sums = sum_by_speaker(values, voices).to_numpy()
            scores = bootstrap_sums(sums, _mean_difference, draws, seed)
            context = {"task": YEARS, "model": model, "protocol": protocol, "split": "test", "level": level}
            records.append(make_records(scores, len(wide), len(sums), context | {"against": CONSTANT}))
    return pd.concat(records, ignore_index=True)


def _mean_difference(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"mae_years_difference": sums[..., 1] / sums[..., 0]}


def count_confusions(predictions: pd.DataFrame, tasks: list[Task], level: str = "window") -> list[dict[str, Any]]:
    """Confusion counts of every model on the test part: task, model, protocol, seed, level, classes, counts."""
    confusions = []
    test = aggregate_predictions(predictions[predictions["split"] == "test"], level)
    for task in tasks:
        columns = [f"p_{name}" for name in task.classes]
        for (model, protocol, seed), rows in test[test["task"] == task.name].groupby(
            ["model", "protocol", "seed"], sort=False
        ):
            answers = rows[columns].to_numpy().argmax(axis=1)
            counts = confusion_counts(rows["target"].to_numpy(), answers, len(task.classes))
            facts = {"task": task.name, "model": model, "protocol": protocol, "seed": seed, "split": "test"}
            confusions.append(facts | {"level": level, "classes": task.classes, "counts": counts.tolist()})
    return confusions


def find_confusion(confusions: list[dict[str, Any]], task: str, model: str, protocol: str) -> dict[str, Any]:
    """The confusion counts of one model, of its first seed."""
    wanted = {"task": task, "model": model, "protocol": protocol}
    return next(one for one in confusions if wanted.items() <= one.items())


# -------------------------------------------------------------------------------------------------------------- files


def list_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-able records at full precision; what is no number becomes None."""
    columns = {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame}
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def describe_data(clips: pd.DataFrame, splits: pd.DataFrame, protocol: str) -> dict[str, Any]:
    """For the card of a model folder: how many clips and speakers, in which languages, and who trained and tested it."""
    here = splits[(splits["protocol"] == protocol) & (splits["fold"] == 0)]
    voices = here.groupby(["split", "task"], sort=False)["speaker_id"].nunique()
    parts = {f"{part}_speakers": voices[part].to_dict() for part in ("train", *PARTS) if part in voices}
    languages = clips.groupby(clips["language"].replace("", "not known"))["speaker_id"].nunique()
    facts = {"clips": len(clips), "speakers": int(clips["speaker_id"].nunique())}
    return facts | {"speakers_by_language": languages.sort_values(ascending=False).to_dict()} | parts


def describe_models(fits: pd.DataFrame, models: dict[str, str], protocol: str) -> pd.DataFrame:
    """One row a task: the network that speaks for it, its validation UAR, and that of the best other."""
    means = fits[fits["protocol"] == protocol].groupby(["task", "network"], sort=False)["validation_uar"].mean()
    rows = []
    for task, network in models.items():
        others = means[task].drop(network)
        best = {"next best": others.idxmax(), "its validation UAR": others.max()} if len(others) else {}
        rows.append({"task": task, "network": network, "validation UAR": means[task][network]} | best)
    return pd.DataFrame(rows)


def tabulate_networks(
    fits: pd.DataFrame, scores: pd.DataFrame, trained: Stage, protocol: str, level: str
) -> pd.DataFrame:
    """One row a task and network: UAR on validation and on test with its interval, parameters, minutes of training."""
    rows = []
    for (task, network), group in fits[fits["protocol"] == protocol].groupby(["task", "network"], sort=False):
        test = first_record(scores, task=task, model=network, protocol=protocol, level=level, metric="uar")
        fit = group.iloc[0]
        model, _ = load_model(checkpoint_path(trained.path(fit["folder"]), fit["best_epoch"]))
        row = {"task": task, "network": network, "validation UAR": group["validation_uar"].mean()}
        row |= {"test UAR": test["value"], "test interval": f"{format_interval(test)} %"}
        rows.append(row | {"parameters": count_parameters(model), "minutes": group["minutes"].sum()})
    return pd.DataFrame(rows)
