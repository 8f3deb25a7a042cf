"""Score records as reports read them: standard columns, one record by its view, the model that speaks for a task."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lib.scores import RECORD

UNITS = {"window": "windows", "clip": "clips", "speaker": "speakers"}
HEARD = {
    "speaker": "speakers never heard in training",
    "official": "the corpus's own test part",
    "paper": "random windows, speakers shared with training",
}
METRIC_NAMES = {
    "accuracy": "accuracy",
    "uar": "UAR (mean recall of the classes)",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mae_years": "mean absolute error (years)",
    "mace": "mean absolute class error (classes)",
    "ece": "expected calibration error",
    "brier": "Brier score",
}
MODEL_NAMES = {"paper": "the paper's network", "attentive": "attentive network", "linear": "linear model",
               "majority": "majority (a guess)"}  # fmt: skip


def model_name(model: str) -> str:
    """A model's name as pages show it; "<name>_layers" reads the time averages of all layers."""
    if model == "attentive_layers":  # layers come averaged over time: there are no frames to attend to
        return "learned mix of all layers"
    stem = model.removesuffix("_layers")
    return MODEL_NAMES.get(stem, stem) + (" on all layers" if stem != model else "")


def task_name(task: str) -> str:
    """A task's name as pages show it: "age_four" becomes "Age four"."""
    return "Age in years" if task == "age_years" else task.replace("_", " ").capitalize()


def metric_name(metric: str) -> str:
    """A metric's name as it stands on an axis: "f1_teen" becomes "F1 of teen"."""
    return METRIC_NAMES.get(metric) or ("F1 of " + metric[3:] if metric.startswith("f1_") else metric)


def is_baseline(model: str) -> bool:
    """True for models that ignore the recording: they show what a guess scores."""
    return model.lower().startswith(("majority", "chance", "stratified", "random", "baseline"))


def read_scores(metrics: dict[str, Any]) -> pd.DataFrame:
    """The records of `metrics["scores"]` with every standard column; what a record leaves out takes its usual value."""
    usual = {"protocol": "speaker", "split": "test", "level": "clip", "subset": "all", "task": "", "model": ""}
    scores = pd.DataFrame(metrics.get("scores") or [], columns=None)
    for name in RECORD:
        if name not in scores:
            scores[name] = usual.get(name)
    for name in ("value", "low", "high", "n", "speakers"):
        scores[name] = pd.to_numeric(scores[name])
    return scores.fillna({name: value for name, value in usual.items() if name not in ("task", "model")})


def select_scores(scores: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Rows whose columns have the wanted values."""
    for name, value in wanted.items():
        scores = scores[scores[name] == value]
    return scores


def first_score(scores: pd.DataFrame, **wanted: str) -> dict[str, Any] | None:
    """The first record that has the wanted values, None where nothing was scored; unknown numbers are None."""
    rows = select_scores(scores, **wanted)
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return None
    return {name: None if pd.isna(value) else value for name, value in rows.iloc[0].to_dict().items()}


def main_view(metrics: dict[str, Any], scores: pd.DataFrame, task: str) -> dict[str, str] | None:
    """Which model, protocol and level speak for a task: those that `metrics["headline"][task]` names, else the first
    model that is no baseline, on speakers never heard, at the level of the confusion matrices (else by clip). None when
    the task has no test score."""
    rows = select_scores(scores, task=task, split="test", subset="all")
    if rows.empty:
        return None
    chosen = dict((metrics.get("headline") or {}).get(task) or {})
    protocols = [name for name in ("speaker", "official", "paper") if name in set(rows["protocol"])]
    chosen.setdefault("protocol", protocols[0] if protocols else rows["protocol"].iloc[0])
    rows = select_scores(rows, protocol=chosen["protocol"])
    models = list(dict.fromkeys(rows["model"]))
    chosen.setdefault("model", next((name for name in models if not is_baseline(name)), models[0] if models else ""))
    counted = [entry.get("level") for entry in metrics.get("confusions") or [] if entry.get("task") == task]
    levels = [name for name in (*counted[:1], "clip", "window", "speaker") if name in set(rows["level"])]
    chosen.setdefault("level", levels[0] if levels else "clip")
    return {"task": task, "split": "test", "subset": "all", **chosen}


def classes_of(metrics: dict[str, Any], scores: pd.DataFrame, task: str) -> list[str]:
    """The task's classes in their fixed order, as its confusion matrices or its F1 records name them."""
    for confusion in metrics.get("confusions") or []:
        if confusion.get("task") == task:
            return list(confusion["classes"])
    names = select_scores(scores, task=task)["metric"]
    return list(dict.fromkeys(name[3:] for name in names if name.startswith("f1_")))


def tasks_of(scores: pd.DataFrame) -> list[str]:
    """Tasks in the order of their first record."""
    return [task for task in dict.fromkeys(scores["task"]) if task]
