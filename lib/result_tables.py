"""Tidy score records as tables that people read: one row a model, a number with its interval in each cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.records import HEARD, is_baseline, model_name

NAMES = {
    "accuracy": "accuracy",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mace": "error (classes)",
    "mae_years": "error (years)",
    "bias_years": "bias (years)",
    "ccc": "concordance",
    "ece": "ECE",
    "brier": "Brier",
}
SHOWN = ["accuracy", "uar", "macro_f1"]


def select_scores(scores: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Records of the test part, all subsets left out, whose columns have the wanted values."""
    for name, value in ({"split": "test", "subset": "all"} | wanted).items():
        scores = scores[scores[name] == value]
    return scores.reset_index(drop=True)


def with_interval(row: Any, digits: int = 3, sign: str = "") -> str:
    """A score and its interval as people read it: "0.913 (0.871 to 0.948)"; "" where nothing was scored; sign "+": always signed."""
    if pd.isna(row.value):
        return ""
    form = f"{sign}.{digits}f"
    return f"{row.value:{form}}" + (f" ({row.low:{form}} to {row.high:{form}})" if not pd.isna(row.low) else "")


def tabulate_scores(scores: pd.DataFrame, metrics: list[str], level: str, protocol: str, **wanted: str) -> pd.DataFrame:
    """One row a task and model, networks before baselines: the metrics with intervals, size, and spread over seeds."""
    here = select_scores(scores, level=level, protocol=protocol, **wanted)
    here = here[here["metric"].isin(metrics)]
    cells = here.assign(cell=[with_interval(row) for row in here.itertuples(index=False)])
    keys = ["task", "model"]
    wide = cells.pivot_table(index=keys, columns="metric", values="cell", aggfunc="first", sort=False)
    wide = wide.reindex(columns=[name for name in metrics if name in wide])
    first = here.drop_duplicates(keys).set_index(keys)
    sizes = first[["n", "speakers"]].rename(columns={"n": f"{level}s"} if level != "speaker" else {"n": "answers"})
    table = wide.join(sizes).reset_index()
    if "seeds" in here and (here["seeds"] > 1).any():
        spread = here[here["metric"] == metrics[0]].set_index(keys)
        table = table.join(
            spread[["seeds", "seed_std"]].rename(columns={"seed_std": f"{NAMES.get(metrics[0])} seed std"}), on=keys
        )
    order = table["task"].map({name: k for k, name in enumerate(dict.fromkeys(table["task"]))})
    table = table.assign(order=order, guess=table["model"].map(is_baseline)).sort_values(
        ["order", "guess"], kind="stable"
    )
    table = table.drop(columns=["order", "guess"]).fillna("")
    named = {name: NAMES.get(name, name.replace("f1_", "F1 ").replace("_", " ")) for name in wide.columns}
    return table.assign(model=table["model"].map(model_name)).rename(columns=named).reset_index(drop=True)


def keep_ordered(scores: pd.DataFrame) -> pd.DataFrame:
    """The records of tasks whose classes are in order and more than two, or that answer in years."""
    ordered = scores.loc[scores["metric"].isin(["mace", "mae_years"]), "task"].unique()
    return scores[scores["task"].isin(ordered)]


def tabulate_f1(scores: pd.DataFrame, classes: list[str], task: str, level: str, protocol: str) -> pd.DataFrame:
    """F1 of each class of one task, weighted and macro F1 and accuracy, one row a model."""
    metrics = [f"f1_{name}" for name in classes] + ["macro_f1", "weighted_f1", "accuracy"]
    return tabulate_scores(scores, metrics, level, protocol, task=task)


def tabulate_leak(leaks: pd.DataFrame, scores: pd.DataFrame, level: str, protocol: str) -> pd.DataFrame:
    """What random windows claimed beside what unseen speakers show: one row a task, model and metric.

    `leaks`: of `lib.scores.compare_protocols`; `leak` = claimed minus shown, with its interval over speakers.
    """
    heard = HEARD.get(protocol, protocol)
    rows = leaks[(leaks["level"] == level) & leaks["metric"].isin(["accuracy", "uar"])]
    here = select_scores(scores, level=level).itertuples(index=False)
    cells = {(row.task, row.model, row.metric, row.protocol): with_interval(row) for row in here}
    keys = list(zip(rows["task"], rows["model"], rows["metric"]))
    table = pd.DataFrame({
        "task": rows["task"], "model": rows["model"].map(model_name), "metric": rows["metric"].map(NAMES),
        "random windows claim": [cells[*key, "paper"] for key in keys], heard: [cells[*key, protocol] for key in keys],
        "leak": [with_interval(row, sign="+") for row in rows.itertuples(index=False)],
    })  # fmt: skip
    return table.reset_index(drop=True)


def tabulate_levels(scores: pd.DataFrame, models: dict[str, str], protocol: str) -> pd.DataFrame:
    """UAR of each task's main model by window, by clip and by speaker."""
    here = select_scores(scores, protocol=protocol, metric="uar")
    here = here[here["model"] == here["task"].map(models)]
    cells = here.assign(cell=[f"{with_interval(row)}, n {row.n:,}" for row in here.itertuples(index=False)])
    wide = cells.pivot_table(index=["task", "model"], columns="level", values="cell", aggfunc="first", sort=False)
    table = wide.reindex(columns=["window", "clip", "speaker"]).reset_index().rename_axis(columns=None)
    return table.assign(model=table["model"].map(model_name))


def tabulate_differences(differences: pd.DataFrame, metric: str, level: str, digits: int = 3) -> pd.DataFrame:
    """Paired differences of one metric: one row a task and network, one column a baseline; * = the interval leaves out 0."""
    here = differences[(differences["metric"] == f"{metric}_difference") & (differences["level"] == level)]
    text = [
        with_interval(row, digits, "+") + "*" * (row.low > 0 or row.high < 0) for row in here.itertuples(index=False)
    ]
    wide = here.assign(cell=text).pivot_table(
        index=["task", "model"], columns="against", values="cell", aggfunc="first", sort=False
    )
    table = wide.reset_index().rename_axis(columns=None).fillna("")
    named = {name: f"minus {name.removeprefix('baseline: ')}" for name in table.columns[2:]}
    return table.assign(model=table["model"].map(model_name)).rename(columns=named)


def tabulate_reliability(scores: pd.DataFrame, level: str, protocol: str) -> pd.DataFrame:
    """ECE, Brier score and negative log-likelihood before and after temperature: one row a task and network."""
    rows = []
    for (task, model), group in select_scores(scores, level=level, protocol=protocol).groupby(
        ["task", "model"], sort=False
    ):
        by = group.set_index("metric")
        if "ece" in by.index:
            cells = {"ECE": by.loc["ece"], "ECE after": by.loc["ece_tempered"]}
            cells |= {"Brier": by.loc["brier"], "Brier after": by.loc["brier_tempered"]}
            texts = {name: with_interval(row) for name, row in cells.items()}
            rows.append({"task": task, "model": model_name(model), **texts, "n": int(by.loc["ece", "n"])})
    return pd.DataFrame(rows)


def tabulate_choices(choices: pd.DataFrame) -> pd.DataFrame:
    """What thresholds from validation do on the test part: one row a task and rule."""
    kept = choices[choices["metric"].isin(["accuracy", "uar", "macro_f1"]) | choices["metric"].str.startswith("f1_")]
    rows = []
    for (task, rule), group in kept.groupby(["task", "rule"], sort=False):
        by = group.set_index("metric")
        shares = [
            f"{name[3:]} {value:.3f}"
            for name, value in by["value"].items()
            if name.startswith("f1_") and value == value
        ]
        cells = {NAMES[name]: with_interval(by.loc[name]) for name in SHOWN}
        facts = {"task": task, "rule": rule, "by": by["level"].iloc[0], "answered": float(by["coverage"].iloc[0])}
        rows.append(facts | cells | {"F1 per class": ", ".join(shares), "n": int(by["n"].iloc[0])})
    return pd.DataFrame(rows)


def tabulate_slices(slices: pd.DataFrame, task: str, model: str) -> pd.DataFrame:
    """Every slice of one task's model: UAR, interval, n, speakers, and whether it is large enough to be scored."""
    if not len(slices):
        return pd.DataFrame(columns=["slice", "UAR"])
    rows = slices[(slices["task"] == task) & (slices["model"] == model)]
    return pd.DataFrame({
        "slice": rows["subset"], "UAR": rows["value"], "low": rows["low"], "high": rows["high"], "windows": rows["n"],
        "speakers": rows["speakers"], "scored": np.where(rows["enough"], "yes", "too few"),
    }).reset_index(drop=True)  # fmt: skip


def confusion_frame(confusion: dict[str, Any]) -> pd.DataFrame:
    """A confusion matrix as a long table: truth, told as, count, share of the row."""
    counts = np.asarray(confusion["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = confusion["classes"]
    rows = [(names[i], names[j], int(counts[i, j]), float(shares[i, j])) for i, j in np.ndindex(*counts.shape)]
    return pd.DataFrame(rows, columns=["truth", "told as", "count", "share of the truth"])
