"""What a reader is told of score records: the headline in words, tables, confusion matrices, leaks and slices."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from lib.records import (
    HEARD,
    UNITS,
    classes_of,
    first_score,
    is_baseline,
    main_view,
    metric_name,
    model_name,
    read_scores,
    select_scores,
    task_name,
    tasks_of,
)
from lib.scores import LEVELS

WHOSE = {"speaker": " of unseen speakers", "official": " of unseen speakers", "paper": " of speakers heard in training"}
SHARES = ("accuracy", "uar", "macro_f1", "weighted_f1")  # shown for every task, where scored
ERRORS = ("mae_years", "mace", "ece", "brier")  # shown where scored


def make_headlines(metrics: dict[str, Any], settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """One entry a task: the number, its interval, what baselines score, and all of it in words.

    `settings`: the run file's section `run`, whose age bounds stand beside the classes; None = classes by name alone.
    """
    scores, found = read_scores(metrics), []
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        if view is None:
            continue
        metric = "uar" if first_score(scores, **view, metric="uar") else "accuracy"
        score = first_score(scores, **view, metric=metric)
        if score is not None:
            found.append(_headline(metrics, scores, view, metric, score, settings or {}))
    return found


def _headline(
    metrics: dict, scores: pd.DataFrame, view: dict, metric: str, score: dict, settings: dict
) -> dict[str, Any]:
    classes = classes_of(metrics, scores, view["task"])
    beside = _baselines(scores, view, metric)
    guess = beside.get("majority", {}).get("value") or (1 / len(classes) if metric == "uar" and classes else None)
    name = task_name(view["task"])
    label = "balanced accuracy (UAR)" if metric == "uar" else metric_name(metric)
    spread = f", interval {_percent(score['low'])} to {_percent(score['high'])}" if score["low"] is not None else ""
    head = {
        "task": view["task"], "name": name, "classes": describe_classes(classes, settings), "score": score, "guess": guess,
        "view": view, "kind": "share", "label": label, "short": "UAR" if metric == "uar" else metric_name(metric),
        "baselines": [{"name": model_name(model), **found} for model, found in beside.items()],
        "verdict": _verdict(score, guess, _differences(metrics, view, metric)),
        "words": _words(score, classes, metric, view), "basis": _basis(scores, view, score),
        "alt": f"{name}: {label} {_percent(score['value'])}{spread}" + (f"; a guess scores {_percent(guess)}" if guess else ""),
    }  # fmt: skip
    return head | _year_headline(metrics, scores, view)


def describe_classes(classes: list[str], settings: dict[str, Any]) -> list[str]:
    """Class names, those of age with their bounds in years where the run file (its section `run`) sets them."""
    bounds = [f"{bound:g}" for bound in settings.get("age_bounds") or []]
    if classes != settings.get("age_classes") or len(bounds) not in (len(classes) - 1, len(classes)) or not bounds:
        return classes
    spans = [f"under {bounds[0]}", *(f"{low} to under {high}" for low, high in itertools.pairwise(bounds))]
    spans += [f"{bounds[-1]} and over"] * (len(bounds) < len(classes))
    return [f"{name} ({span})" for name, span in zip(classes, spans)]


def _baselines(scores: pd.DataFrame, view: dict, metric: str) -> dict[str, dict[str, Any]]:
    """Each baseline's score in the same view, the majority guess first."""
    names = [model for model in dict.fromkeys(scores["model"]) if is_baseline(model)]
    found = {model: first_score(scores, **{**view, "model": model}, metric=metric) for model in names}
    return {model: score for model, score in found.items() if score}


def _differences(metrics: dict, view: dict, metric: str) -> dict[str, dict[str, Any]]:
    """What the main model scores more than each baseline on the same clips: baseline -> record with its interval."""
    wanted = {**view, "metric": f"{metric}_difference"}
    rows = [row for row in metrics.get("differences") or [] if all(row.get(key) == wanted[key] for key in wanted)]
    return {row["against"]: row for row in rows if is_baseline(row["against"]) and row.get("low") is not None}


def _basis(scores: pd.DataFrame, view: dict, score: dict) -> str:
    """Which model was scored on how much."""
    heard, unit = HEARD.get(view["protocol"], view["protocol"]), UNITS.get(view["level"], view["level"])
    size = f"{int(score['n']):,} {unit}" if score["n"] else "all " + unit
    speakers = f" of {int(score['speakers']):,} speakers" if score["speakers"] and view["level"] != "speaker" else ""
    return f"Model: {model_name(view['model'])}; scored on {size}{speakers}; {heard}." + _seeds(scores, view, score)


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


def _verdict(score: dict, guess: float | None, differences: dict[str, dict]) -> str:
    """Whether the intervals show it better than a guess and, pair by pair, than the other baselines."""
    if guess is None or score["low"] is None:
        return ""
    if score["high"] < guess:
        return "Worse than a guess."
    if score["low"] <= guess:
        return "Not shown to be better than a guess."
    others = {model: row for model, row in differences.items() if model != "majority"}
    level = [model_name(model).removeprefix("baseline: ") for model, row in others.items() if row["low"] <= 0]
    ahead = [model_name(model).removeprefix("baseline: ") for model, row in others.items() if row["value"] < 0]
    if not others:
        return "Better than a guess."
    if not level:
        return "Better than a guess and than every simpler baseline."
    more = f" ({' and '.join(ahead)} scored higher)" if ahead else ""
    return f"Better than a guess, not shown to be better than the simpler baseline {' or '.join(level)}{more}."


def _year_headline(metrics: dict, scores: pd.DataFrame, view: dict) -> dict[str, Any]:
    """What differs where ages are told in years: the mean error beside always telling the median; {} for other tasks."""
    own = first_score(scores, **view, metric="mae_years")
    others = scores["model"].str.contains("constant age")
    constant = first_score(scores[others], **{key: view[key] for key in view if key != "model"}, metric="mae_years")
    if not own or not constant:
        return {}
    text = f"Its ages are {own['value']:.1f} years off on average"
    text += f" ({own['low']:.1f} to {own['high']:.1f})" if own["low"] is not None else ""
    text += f"; always telling the median age is {constant['value']:.1f} years off"
    row = _differences(metrics, view, "mae_years").get(constant["model"])
    shown = row is not None and (row["low"] > 0 or row["high"] < 0)
    nearer = "Nearer" if own["value"] < constant["value"] else "Farther off"
    beside = _baselines(scores, view, "mae_years")
    simpler = {model_name(model): one for model, one in beside.items() if model not in ("majority", constant["model"])}
    as_near = [name.removeprefix("baseline: ") for name, one in simpler.items() if one["value"] <= own["value"]]
    verdicts = [f"{nearer} than always telling the median age."] * shown
    verdicts += [f"No nearer than the simpler baseline {' or '.join(as_near)}."] * bool(as_near)
    return {
        "score": own, "kind": "years", "label": "mean error", "short": "mean error", "guess": None, "classes": ["mean error"],
        "baselines": [{"name": name, **one} for name, one in ({model_name(constant["model"]): constant} | simpler).items()],
        "words": text + ("." if row is None or shown else ", and the difference may be chance."),
        "verdict": " ".join(verdicts),
    }  # fmt: skip


def _words(score: dict, classes: list[str], metric: str, view: dict) -> str:
    """The number as a reader would say it: so many of 100."""
    unit, whose = UNITS.get(view["level"], view["level"]), WHOSE.get(view["protocol"], "")
    what = "unseen speakers" if view["level"] == "speaker" and whose else f"{unit}{whose}"
    equally = f", as many {', '.join(classes[:-1])} as {classes[-1]}," if metric == "uar" and len(classes) > 1 else ""
    text = f"Of 100 {what}{equally} about {100 * score['value']:.0f} are told right"
    if score["low"] is not None:
        tested = f"with {int(score['speakers']):,} speakers tested " if score["speakers"] else ""
        text += f"; {tested}anything from {100 * score['low']:.0f} to {100 * score['high']:.0f} is plausible"
    return text + "."


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
        errors = [{"metric": m, "name": _column_name(m), "kind": "decimal"} for m in ERRORS if m in held]
        columns = errors + columns if "mae_years" in held else columns + errors  # years are read by their error
        models = sorted(dict.fromkeys(rows["model"]), key=lambda name: (name != view["model"], is_baseline(name)))
        caption = f"Test part, by {view['level']}: {HEARD.get(view['protocol'], view['protocol'])}"
        entries = [row for model in models for row in _table_rows(rows[rows["model"] == model], columns, view)]
        tables.append(
            {
                "name": task_name(task),
                "columns": columns,
                "rows": entries,
                "caption": caption,
                "unit": UNITS.get(view["level"], view["level"]),
            }
        )
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
    scores, found, seeds, keys = read_scores(metrics), {}, {}, ("model", "protocol", "level")
    views = {task: main_view(metrics, scores, task) for task in tasks_of(scores)}
    for entry in metrics.get("confusions") or []:
        task, view = entry.get("task", ""), views.get(entry.get("task")) or {}
        fits = all(entry.get(key, view.get(key)) == view.get(key) for key in ("model", "protocol", "split"))
        rank = (not fits, entry.get("level") != view.get("level"))
        seeds.setdefault((task, *map(entry.get, keys)), set()).add(entry.get("seed"))
        if task not in found or rank < found[task][0]:
            found[task] = (rank, entry)
    return [_confusion(one, len(seeds[task, *map(one.get, keys)])) for task, (_, one) in found.items()]


def _confusion(entry: dict[str, Any], seeds: int) -> dict[str, Any]:
    rows = []
    for name, counts in zip(entry["classes"], entry["counts"]):
        total = sum(counts)
        cells = [{"count": count, "share": count / total if total else 0.0} for count in counts]
        rows.append({"name": name, "total": total, "cells": cells})
    title = f"{task_name(entry.get('task', ''))}, {model_name(entry.get('model', ''))}".strip(", ")
    title += f" (first of {seeds} seeds)" * (seeds > 1)
    unit = UNITS.get(entry.get("level"), "cases")
    return {"title": title, "classes": entry["classes"], "rows": rows, "unit": unit}


def make_leaks(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the leak table: one score of the main model on speakers kept apart (by the main protocol) and on random windows.

    `difference` is a record, with its interval where `metrics["leak"]` knows one.
    """
    scores, rows = read_scores(metrics), []
    known = [row for row in metrics.get("leak") or [] if {"level", "value", "low", "high"} <= set(row)]
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        if view is None or view["protocol"] == "paper":
            continue
        table = select_scores(scores, task=task, split="test", subset="all", model=view["model"])
        for metric in ("accuracy", "uar", "macro_f1"):
            names = (view["protocol"], "paper")
            pairs = {
                level: [first_score(table, metric=metric, level=level, protocol=name) for name in names]
                for level in ("window", *LEVELS)
            }
            level, (apart, paper) = next(((k, v) for k, v in pairs.items() if all(v)), ("", (None, None)))
            if apart and paper:
                asked = {"task": task, "model": view["model"], "metric": metric, "level": level}
                usual = {"value": paper["value"] - apart["value"], "low": None, "high": None}
                difference = next((row for row in known if asked.items() <= row.items()), usual)
                rows.append({"task": task, "metric": _column_name(metric), "level": level, "apart": apart, "paper": paper,
                             "heard": HEARD.get(view["protocol"], view["protocol"]), "difference": difference})  # fmt: skip
    return rows


def leak_words(rows: list[dict[str, Any]]) -> str:
    """The leak table in a sentence, by UAR: what the random split shows more, and whether that could be chance."""
    parts = []
    for row in rows:
        if row["metric"] == "UAR":
            leak, apart = row["difference"], row["apart"]
            which = "more" if leak["value"] >= 0 else "fewer"
            if leak["low"] is not None:
                doubt = ", which may be chance" if leak["low"] <= 0 <= leak["high"] else ", which is more than chance"
            else:
                inside = apart["low"] is not None and apart["low"] <= row["paper"]["value"] <= apart["high"]
                doubt = ", within the interval of the score on unheard speakers" if inside else ""
            parts.append(f"for {row['task']}, random windows show {100 * abs(leak['value']):.1f} points {which}{doubt}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


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
            "name": task_name(task), "metric": _column_name(metric), "unit": UNITS[levels[0]],
            "rows": [{**row, "subset": row["subset"].replace("=", ": "), "worst": row is worst and len(rows) > 1} for row in rows],
            "overall": overall["value"] if overall else None,
            "caption": f"Model: {model_name(view['model'])}, by {levels[0]}; the thin line is the value for all" + _too_small(parts),
        })  # fmt: skip
    return [entry for entry in found if entry["rows"]]


def _too_small(parts: pd.DataFrame) -> str:
    """Name the subsets that hold too few cases or speakers to be scored; "" when all are scored."""
    names = parts.loc[parts["value"].isna(), "subset"].unique()
    return f". Too few to score: {'; '.join(names).replace('=', ': ')}" if len(names) else ""
