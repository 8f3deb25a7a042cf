"""What the models answered, scored beside baselines: every network, every baseline, every protocol, three levels."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from lib import scores
from lib.baselines import BASELINES, fit_baseline
from lib.networks import count_parameters
from lib.results import CONSTANT, first_record, format_interval
from lib.stages import Stage
from lib.store import Store
from lib.tasks import YEARS, Task
from lib.train import checkpoint_path, load_model, predict_log_probabilities
from lib.trainings import read_features

VERSION = 11  # of the scores; raised by hand when the code's results change
PARTS = ["validation", "test"]  # parts that the models answer for
SHIPPED = ["gender", "age", YEARS]  # tasks that go into a model folder; the finer classes of age are for study
COMPARED = [f"{metric}_difference" for metric in ("accuracy", "uar", "macro_f1", "mae_years")]


def predict_all(
    trained: Stage, fits: pd.DataFrame, splits: pd.DataFrame, store: Store, acoustics: pd.DataFrame, tasks: list[Task]
) -> pd.DataFrame:
    """Answers of every training's chosen epoch, and of the baselines, for the validation and test windows. acoustics: what
    the baselines listen to; empty where there is no sound: then the guess stands alone."""
    parts, task_of = [], {task.name: task for task in tasks}
    for (name, protocol, fold), table in splits.groupby(["task", "protocol", "fold"], sort=False):
        classes, train = task_of[name].classes, table[table["split"] == "train"]
        rows = table[table["split"].isin(PARTS)].reset_index(drop=True)
        answers = {(model, 0, 0): fit_baseline(model, acoustics, train, rows, len(classes)) for model in BASELINES}
        here = fits[(fits["task"] == name) & (fits["protocol"] == protocol) & (fits["fold"] == fold)]
        for fit in here.itertuples(index=False):
            model, _ = load_model(checkpoint_path(trained.path(fit.folder), fit.best_epoch))
            told = predict_log_probabilities(model, read_features(store, fit.network, rows["window_id"]))
            answers[fit.network, fit.seed, fit.best_epoch] = np.exp(told.astype(np.float64))
        ids = rows[["window_id", "clip_id", "speaker_id", "split", "target"]].assign(task=name)
        for (model, seed, epoch), values in answers.items():
            if values is not None:
                facts = {"seed": seed, "epoch": epoch, "model": model, "protocol": protocol, "fold": fold}
                shares = {f"p_{one}": values[:, number] for number, one in enumerate(classes)}
                parts.append(ids.assign(**facts, **shares))
    return pd.concat(parts, ignore_index=True)


def choose_models(
    fits: pd.DataFrame, predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str
) -> pd.DataFrame:
    """One row a task: the network that speaks for it, the best on validation by its mean over folds and seeds, and the next best.
    Classes are judged by UAR, ages in years by their mean error, since that is how each is scored."""
    own, rows = fits[fits["protocol"] == protocol], []
    columns = ["task", "chosen by", "network", "on validation", "next best", "its value"]
    for task in tasks:
        measure, ranks = "UAR", own[own["task"] == task.name].groupby("network", sort=False)["validation_uar"].mean()
        if task.name == YEARS:
            told = answer_years(predictions, splits, task, "validation").query("protocol == @protocol")
            errors = (told["predicted_years"] - told["years"]).abs().groupby(told["model"]).mean()
            measure, ranks = "error in years", errors[ranks.index]
        ranks = ranks.sort_values(ascending=measure != "UAR", kind="stable").head(2)
        rows.append(dict(zip(columns, [task.name, measure, *itertools.chain(*ranks.items())])))
    return pd.DataFrame(rows)


def select_answers(
    predictions: pd.DataFrame, task: Task, model: str, protocol: str, split: str, first_seed: bool = False
) -> pd.DataFrame:
    """One model's answers, of all training seeds or the first alone. Columns of other tasks' classes are left out."""
    wanted = {"task": task.name, "model": model, "protocol": protocol, "split": split}
    rows = predictions[(predictions[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    rows = rows[rows["seed"] == rows["seed"].min()] if first_seed else rows
    others = [name for name in rows if name.startswith("p_") and name[2:] not in task.classes]
    return rows.drop(columns=others).reset_index(drop=True)


def list_tables(predictions: pd.DataFrame, splits: pd.DataFrame, task: Task) -> list[tuple]:
    """A task's answers for the test part with the classes to score them by; those in years once more, as years (None)."""
    test = predictions[(predictions["task"] == task.name) & (predictions["split"] == "test")]
    years = [(answer_years(predictions, splits, task), None)] if task.name == YEARS else []
    return [(test, task.classes), *years]


def score_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], draws: int, seed: int
) -> pd.DataFrame:
    """Tidy score records of the test part: every task, model, protocol and level; folds are pooled, seeds averaged."""
    parts = []
    for task in tasks:
        for table, classes in list_tables(predictions, splits, task):
            for (model, protocol), rows in table.groupby(["model", "protocol"], sort=False):
                context = {"task": task.name, "model": model, "protocol": protocol, "split": "test"}
                parts.append(scores.score_levels(rows, classes, draws=draws, seed=seed, **context))
    return pd.concat(parts, ignore_index=True)


def compare_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """Paired differences, seeds averaged: every network minus every baseline (`against`) in accuracy, UAR and macro F1, and of
    ages in years every other model minus the constant in the mean error."""
    parts = []
    for task in tasks:
        for table, classes in list_tables(predictions, splits, task):
            answers = dict(list(table[table["protocol"] == protocol].groupby("model", sort=False)))
            simple = BASELINES if classes else [CONSTANT]
            for model, other in itertools.product(answers, answers):
                if model in simple or other not in simple:
                    continue
                context = {"task": task.name, "protocol": protocol, "split": "test", "model": model, "against": other}
                pair = scores.score_levels(answers[model], classes, answers[other], draws=draws, seed=seed, **context)
                parts.append(pair[pair["metric"].isin(COMPARED)])
    return pd.concat(parts, ignore_index=True)


def score_leaks(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int,
    other: str = "paper",
) -> pd.DataFrame:  # fmt: skip
    """The leak: every model's scores on random windows (or under another protocol), `claimed`, minus those under `protocol`,
    `shown`, of the test part at three levels; equal speakers are drawn for both. Empty when one of the two was not run."""
    parts, asked = [], [(task.name, *one) for task in tasks for one in list_tables(predictions, splits, task)]
    for task, table, classes in asked:
        for model, rows in table.groupby("model", sort=False):
            pair = [rows[rows["protocol"] == name] for name in (other, protocol)]
            if all(map(len, pair)) and protocol != other:
                context = {"task": task, "model": model, "protocol": protocol, "split": "test"}
                leak = scores.score_levels(pair[0], classes, pair[1], draws=draws, seed=seed, **context)
                claimed, shown = (scores.score_levels(one, classes, draws=0, seed=seed)["value"] for one in pair)
                names = leak["metric"].str.removesuffix("_difference")
                parts.append(leak.assign(metric=names, claimed=claimed, shown=shown).drop(columns="seed_std"))
    return pd.concat(parts or [pd.DataFrame(columns=[*scores.RECORD, "claimed", "shown"])], ignore_index=True)


def answer_years(predictions: pd.DataFrame, splits: pd.DataFrame, task: Task, split: str = "test") -> pd.DataFrame:
    """Every answer of the task in years, the constant's too: model, protocol, seed, fold, ids, years, predicted_years. A network
    tells the expected age over its classes ("deep expectation", Rothe et al. 2018), whose mean ages are of its own training
    part; so is the median, of all constants the one with the smallest mean absolute error."""
    rows = predictions[(predictions["task"] == task.name) & (predictions["split"] == split)]
    own = splits[splits["task"] == task.name]
    age_of = own.drop_duplicates("clip_id").set_index("clip_id")["age_years"]
    columns, parts = [f"p_{name}" for name in task.classes], []
    for (protocol, fold), part in rows.groupby(["protocol", "fold"], sort=False):
        train = own[(own["split"] == "train") & (own["protocol"] == protocol) & (own["fold"] == fold)]
        parts.append(part.assign(predicted_years=part[columns].to_numpy() @ year_centres(train, task)))
        constant = part.drop_duplicates("window_id").assign(model=CONSTANT, seed=0)
        parts.append(constant.assign(predicted_years=np.median(train["age_years"])))
    table = pd.concat(parts, ignore_index=True)
    kept = ["model", "protocol", "seed", "fold", "window_id", "clip_id", "speaker_id", "predicted_years"]
    return table[kept].assign(years=table["clip_id"].map(age_of))


def year_centres(train: pd.DataFrame, task: Task) -> list[float]:
    """Mean age (C,) of each class of years among these windows."""
    return train.groupby("target")["age_years"].mean().reindex(range(len(task.classes))).tolist()


def list_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-able records at full precision; what is no number becomes None."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def tabulate_networks(
    fits: pd.DataFrame, records: pd.DataFrame, trained: Stage, protocol: str, level: str
) -> pd.DataFrame:
    """One row a task and network: UAR on validation and on test with its interval, parameters, minutes of training."""
    rows = []
    for (task, network), group in fits[fits["protocol"] == protocol].groupby(["task", "network"], sort=False):
        test = first_record(records, task=task, model=network, protocol=protocol, level=level, metric="uar")
        fit = group.iloc[0]
        model, _ = load_model(checkpoint_path(trained.path(fit["folder"]), fit["best_epoch"]))
        row = {"task": task, "network": network, "validation UAR": group["validation_uar"].mean()}
        row |= {"test UAR": test["value"], "test interval": f"{format_interval(test)} %"}
        rows.append(row | {"parameters": count_parameters(model), "minutes": group["minutes"].sum()})
    return pd.DataFrame(rows)
