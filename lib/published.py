"""The paper's published figures, and what differs between them and ours."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lib.records import model_name
from lib.scores import confusion_metrics

# Accuracy, weighted F1 and F1 a class as the paper's text and its code's output report them, with the windows of its sets.
FIGURES: list[dict[str, Any]] = [
    {"task": "gender", "accuracy": 0.8940, "weighted_f1": 0.89, "f1": {"male": 0.920, "female": 0.842},
     "windows": {"male": 101_094, "female": 54_272}, "epoch": 36},
    {"task": "age", "accuracy": 0.9104, "weighted_f1": 0.92, "f1": {"teen": 0.487, "adult": 0.950},
     "windows": {"teen": 3_118, "adult": 44_434}, "epoch": 11},
]  # fmt: skip
TOLD = "random windows: test speakers were heard in training; epoch and model chosen on the test part"


def majority_scores(windows: dict[str, int]) -> dict[str, float]:
    """Scores of always answering the larger class on a set of these sizes."""
    classes, sizes = list(windows), list(windows.values())
    counts = [[size * (k == sizes.index(max(sizes))) for k in range(len(sizes))] for size in sizes]
    return {name: float(value) for name, value in confusion_metrics(counts, classes).items()}


def compare_paper(scores: pd.DataFrame, models: dict[str, str], protocol: str) -> pd.DataFrame:
    """The paper, a majority guess on its own data, and this run's network "paper" and main model, by window.

    Columns: task, who, accuracy, low, high, UAR, weighted F1, F1 per class, windows, what differs.
    """
    rows = []
    for figure in FIGURES:
        if figure["task"] not in models:
            continue
        guess, total = majority_scores(figure["windows"]), sum(figure["windows"].values())
        rows.append(_row(figure["task"], "the paper", figure | {"n": total}, figure["f1"], TOLD))
        shares = {name: guess[f"f1_{name}"] for name in figure["windows"]}
        rows.append(
            _row(figure["task"], "a majority guess on the paper's data", guess | {"n": total}, shares, "hears nothing")
        )
        for split, told in (
            ("paper", "random windows as in the paper, other data"),
            (protocol, "speakers never heard, other data"),
        ):
            for model in dict.fromkeys(["paper", models[figure["task"]], "majority"]):
                rows += _own_row(scores, figure["task"], model, split, told)
    return pd.DataFrame(rows).drop_duplicates(["task", "who", "what differs"]).reset_index(drop=True)


def _own_row(scores: pd.DataFrame, task: str, model: str, protocol: str, told: str) -> list[dict[str, Any]]:
    asked = {"task": task, "model": model, "protocol": protocol, "level": "window", "subset": "all", "split": "test"}
    here = scores[(scores[list(asked)] == pd.Series(asked)).all(axis=1)].drop_duplicates("metric").set_index("metric")
    if "accuracy" not in here.index:
        return []
    values = here["value"].to_dict() | {"n": int(here["n"].iloc[0])}
    values |= {"low": here.loc["accuracy", "low"], "high": here.loc["accuracy", "high"]}
    shares = {name[3:]: value for name, value in here["value"].items() if name.startswith("f1_")}
    return [_row(task, f"this run, {model_name(model)}", values, shares, told)]


def _row(task: str, who: str, values: dict[str, Any], shares: dict[str, float], told: str) -> dict[str, Any]:
    numbers = {"accuracy": values["accuracy"], "low": values.get("low"), "high": values.get("high")}
    numbers |= {"UAR": values.get("uar"), "weighted F1": values["weighted_f1"]}
    each = ", ".join(f"{name} {value:.3f}" for name, value in shares.items())
    return {
        "task": task,
        "who": who,
        **numbers,
        "F1 per class": each,
        "windows": int(values["n"]),
        "what differs": told,
    }
