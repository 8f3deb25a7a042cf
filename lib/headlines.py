"""From tidy score records to what a reader is told: the main model, its numbers in words, tables, leaks and slices."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lib.figures import is_baseline, metric_name
from lib.scores import LEVELS, RECORD

UNITS = {"window": "windows", "clip": "clips", "speaker": "speakers"}
HEARD = {
    "speaker": "speakers never heard in training",
    "official": "the corpus's own test part",
    "paper": "random windows, speakers shared with training",
}
SHARES = ("accuracy", "uar", "macro_f1", "weighted_f1")  # shown for every task, where scored
ERRORS = ("mae_years", "mace", "ece", "brier")  # shown where scored

MODEL_NAMES = {"paper": "the paper's network", "attentive": "attentive network", "linear": "linear model",
               "majority": "majority (a guess)"}  # fmt: skip


def model_name(model: str) -> str:
    """A model's name as pages show it; "<name>_layers" reads the time averages of all layers."""
    stem = model.removesuffix("_layers")
    return MODEL_NAMES.get(stem, stem) + (" on all layers" if stem != model else "")


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


def make_headlines(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a task: the number, its interval, what a guess scores, and all of it in words."""
    scores, found = read_scores(metrics), []
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        if view is None:
            continue
        metric = "uar" if first_score(scores, **view, metric="uar") else "accuracy"
        score = first_score(scores, **view, metric=metric)
        if score is not None:
            found.append(_headline(metrics, scores, view, metric, score))
    return found


def _headline(metrics: dict, scores: pd.DataFrame, view: dict, metric: str, score: dict) -> dict[str, Any]:
    classes = classes_of(metrics, scores, view["task"])
    majority = first_score(scores[scores["model"].map(is_baseline)], **{**view, "model": "majority"}, metric=metric)
    guess = majority["value"] if majority else (1 / len(classes) if metric == "uar" and classes else None)
    short = "UAR" if metric == "uar" else metric_name(metric)
    label = "balanced accuracy (UAR)" if metric == "uar" else metric_name(metric)
    name = view["task"].replace("_", " ").capitalize()
    heard = HEARD.get(view["protocol"], view["protocol"])
    size = (
        f"{int(score['n']):,} {UNITS.get(view['level'], view['level'])}" if score["n"] else "all " + view["level"] + "s"
    )
    speakers = f" of {int(score['speakers']):,} speakers" if score["speakers"] and view["level"] != "speaker" else ""
    spread = f", interval {_percent(score['low'])} to {_percent(score['high'])}" if score["low"] is not None else ""
    return {
        "task": view["task"], "name": name, "classes": classes, "score": score, "guess": guess, "view": view,
        "label": label, "short": short, "verdict": _verdict(score, guess),
        "words": _words(score, guess, classes, metric, UNITS.get(view["level"], view["level"])),
        "basis": f"Model: {model_name(view['model'])}; scored on {size}{speakers}; {heard}." + _seeds(scores, view, score),
        "alt": f"{name}: {label} {_percent(score['value'])}{spread}" + (f"; a guess scores {_percent(guess)}" if guess else ""),
    }  # fmt: skip


def _seeds(scores: pd.DataFrame, view: dict, score: dict) -> str:
    """How far trainings from other seeds lie apart: averaged in one record, or one record each; "" for a single seed."""
    if (score.get("seeds") or 1) > 1:
        deviation = (
            f", with a standard deviation of {100 * score['seed_std']:.1f} points" if score.get("seed_std") else ""
        )
        return f" Mean of {int(score['seeds'])} seeds{deviation}."
    values = select_scores(scores, **view, metric=score["metric"])["value"]
    if len(values) < 2:
        return ""
    return f" This is the first of {len(values)} seeds, which ran from {_percent(values.min())} to {_percent(values.max())}."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(score: dict, guess: float | None) -> str:
    if guess is None or score["low"] is None:
        return ""
    if score["low"] > guess:
        return "Better than a guess."
    if score["high"] < guess:
        return "Worse than a guess."
    return "Not shown to be better than a guess."


def _words(score: dict, guess: float | None, classes: list[str], metric: str, unit: str) -> str:
    """The number as a reader would say it: so many of 100."""
    of_hundred = f"{100 * score['value']:.0f} of 100 {unit}"
    if metric == "uar" and classes:
        names = " and ".join([", ".join(classes[:-1]), classes[-1]]) if len(classes) > 1 else classes[0]
        text = f"If {names} were equally common, about {of_hundred} would be told right"
    else:
        text = f"About {of_hundred} are told right"
    if score["low"] is not None:
        text += f"; with this many speakers anything from {100 * score['low']:.0f} to {100 * score['high']:.0f} is plausible"
    return text + (f". Always giving the most frequent answer gets {100 * guess:.0f}." if guess is not None else ".")


def make_tables(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One table a task: every model of the main protocol and level, the main one first, baselines last."""
    scores, tables = read_scores(metrics), []
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        if view is None:
            continue
        rows = select_scores(scores, **{name: view[name] for name in ("task", "split", "subset", "protocol", "level")})
        held = set(rows["metric"])
        names = [m for m in SHARES if m in held] + [
            f"f1_{c}" for c in classes_of(metrics, scores, task) if f"f1_{c}" in held
        ]
        columns = [{"metric": m, "name": _column_name(m), "kind": "share"} for m in names]
        columns += [{"metric": m, "name": _column_name(m), "kind": "decimal"} for m in ERRORS if m in held]
        models = sorted(dict.fromkeys(rows["model"]), key=lambda name: (name != view["model"], is_baseline(name)))
        caption = f"Test part, by {view['level']}: {HEARD.get(view['protocol'], view['protocol'])}"
        entries = [row for model in models for row in _table_rows(rows[rows["model"] == model], columns, view)]
        tables.append({"name": task.capitalize(), "columns": columns, "rows": entries, "caption": caption})
    return tables


def _table_rows(rows: pd.DataFrame, columns: list[dict], view: dict) -> list[dict[str, Any]]:
    """One row for each seed of a model; only the first seed of the main model is marked as the main row."""
    seeds = list(dict.fromkeys(rows["seed"])) if "seed" in rows else [None]
    entries = []
    for nth, seed in enumerate(seeds):
        part = rows if seed is None else rows[rows["seed"] == seed]
        found = {column["metric"]: first_score(part, metric=column["metric"]) for column in columns}
        model = rows["model"].iloc[0]
        entries.append({
            "model": model_name(model) + ("" if len(seeds) == 1 else f", seed {seed}"),
            "scores": found,
            "speakers": next((score["speakers"] for score in found.values() if score), None),
            "main": model == view["model"] and nth == 0,
            "baseline": is_baseline(model),
        })  # fmt: skip
    return entries


def _column_name(metric: str) -> str:
    short = {"uar": "UAR", "mae_years": "error (years)", "mace": "error (classes)", "ece": "ECE", "brier": "Brier"}
    return short.get(metric) or metric_name(metric)


def make_confusions(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The confusion matrix of each task's main view, at the nearest level that was counted; the first of several seeds."""
    scores, found = read_scores(metrics), {}
    views = {task: main_view(metrics, scores, task) for task in tasks_of(scores)}
    for entry in metrics.get("confusions") or []:
        task, view = entry.get("task", ""), views.get(entry.get("task")) or {}
        fits = all(entry.get(key, view.get(key)) == view.get(key) for key in ("model", "protocol", "split"))
        rank = (not fits, entry.get("level") != view.get("level"))
        if task not in found or rank < found[task][0]:
            found[task] = (rank, entry)
    return [_confusion(entry) for _, entry in found.values()]


def _confusion(entry: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for name, counts in zip(entry["classes"], entry["counts"]):
        total = sum(counts)
        cells = [{"count": count, "share": count / total if total else 0.0} for count in counts]
        rows.append({"name": name, "total": total, "cells": cells})
    title = f"{entry.get('task', '').capitalize()}, {model_name(entry.get('model', ''))}".strip(", ")
    unit = UNITS.get(entry.get("level"), "cases")
    return {"title": title, "classes": entry["classes"], "rows": rows, "unit": unit}


def make_leaks(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the leak table: one score of the main model, split by speaker and split by window as in the paper."""
    scores, rows = read_scores(metrics), []
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        if view is None:
            continue
        table = select_scores(scores, task=task, split="test", subset="all", model=view["model"])
        for metric in ("accuracy", "uar", "macro_f1"):
            pairs = {
                level: [first_score(table, metric=metric, level=level, protocol=name) for name in ("speaker", "paper")]
                for level in ("window", *LEVELS)
            }
            level, (speaker, paper) = next(((k, v) for k, v in pairs.items() if all(v)), ("", (None, None)))
            if speaker and paper:
                rows.append({"task": task, "metric": _column_name(metric), "level": level, "speaker": speaker, "paper": paper,
                             "difference": paper["value"] - speaker["value"]})  # fmt: skip
    return rows


def make_slices(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a task: the main model's UAR (else accuracy) for every subset, the worst one marked."""
    scores, found = read_scores(metrics), []
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        parts = scores[scores["subset"] != "all"]
        if view is None or parts.empty:
            continue
        parts = select_scores(parts, **{name: view[name] for name in ("task", "split", "protocol", "model")})
        levels = [level for level in (view["level"], *LEVELS) if level in set(parts["level"])]
        metric = next((name for name in ("uar", "accuracy") if name in set(parts["metric"])), None)
        if not levels or metric is None:
            continue
        parts = select_scores(parts, metric=metric, level=levels[0])
        names = dict.fromkeys(parts["subset"])
        rows = [row for name in names if (row := first_score(parts, subset=name))]
        worst = min(rows, key=lambda row: row["value"], default=None)
        overall = first_score(scores, **{**view, "level": levels[0]}, metric=metric)
        found.append({
            "name": task.capitalize(), "metric": _column_name(metric), "unit": UNITS[levels[0]],
            "rows": [{**row, "worst": row is worst and len(rows) > 1} for row in rows],
            "overall": overall["value"] if overall else None,
            "caption": f"Model: {model_name(view['model'])}, by {levels[0]}; the thin line is the value for all" + _too_small(parts),
        })  # fmt: skip
    return [entry for entry in found if entry["rows"]]


def _too_small(parts: pd.DataFrame) -> str:
    """Name the subsets that hold too few cases or speakers to be scored; "" when all are scored."""
    names = parts.loc[parts["value"].isna(), "subset"].unique()
    return f". Too few to score: {'; '.join(names)}" if len(names) else ""
