"""What a run's probabilities are worth: temperatures, thresholds and silence, chosen on validation, scored on test.

Every training has its own temperature and thresholds, from the validation part of its own fold; scores are means over seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.evaluate import answer_years, average_years, select_answers, year_centres
from lib.scores import aggregate_predictions, score_trainings
from lib.tasks import YEARS, Task
from lib.trust.calibration import (
    Calibration,
    Years,
    answer_with_threshold,
    apply_calibration,
    choose_coverage,
    choose_threshold,
    conformal_margin,
    coverage_table,
    fit_temperature,
    precision_recall_table,
    score_calibration,
)

LEAST_COVERAGE = 0.8  # a model that may stay silent must still answer for this share of the validation clips
YEARS_SHARE = 0.8  # of the recordings of new speakers that an interval of years is to hold


def fit_reliability(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, networks: list[str]
) -> pd.DataFrame:
    """Temperature and thresholds of every network, from validation alone: one row a task, model, fold and seed.

    `silence`: the confidence of a clip from which to answer (0 = always). `rare`: the class with the fewest training
    windows, `rare_threshold`: the calibrated probability of it from which a window is told as such, `rare_clip_threshold`
    from which a clip is; NaN where validation has none of it.
    """
    rows = []
    for task in tasks:
        here = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol) & (splits["split"] == "train")]
        rare = int(here["target"].value_counts().reindex(range(len(task.classes)), fill_value=0).idxmin())
        columns = [f"p_{name}" for name in task.classes]
        for network in networks:
            answers = select_answers(predictions, task, network, protocol, "validation")
            for (fold, seed), part in answers.groupby(["fold", "seed"]):
                calibration = fit_temperature(part[columns].to_numpy(), part["target"].to_numpy())
                told = part.assign(**_columns(apply_calibration(part[columns].to_numpy(), calibration), columns))
                clips = aggregate_predictions(told, "clip")
                silence = choose_coverage(
                    clips["target"].to_numpy(), clips[columns].to_numpy(), task.classes, LEAST_COVERAGE
                )
                facts = {"task": task.name, "model": network, "protocol": protocol}
                facts |= {"fold": int(fold), "seed": int(seed)}
                facts |= {"temperature": calibration.temperature, "silence": silence, "rare": task.classes[rare]}
                for name, table in (("rare_threshold", told), ("rare_clip_threshold", clips)):
                    facts[name] = _threshold_of(table, columns, rare)
                rows.append(facts)
    return pd.DataFrame(rows)


def _threshold_of(table: pd.DataFrame, columns: list[str], rare: int) -> float:
    targets = table["target"].to_numpy()
    return choose_threshold(targets, table[columns].to_numpy(), rare) if (targets == rare).any() else float("nan")


def _columns(values: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    return {name: values[:, k] for k, name in enumerate(names)}


def find_settings(settings: pd.DataFrame, models: dict[str, str], fold: int = 0) -> dict[str, dict[str, Any]]:
    """What `save_bundle` takes of one fold, its first seed: calibrations, thresholds of silence, thresholds of rare classes.

    An age in years has an interval in their place: it is never silent, and no class of it is rare.
    """
    here = settings[settings["fold"] == fold].sort_values("seed").drop_duplicates(["task", "model"])
    here = here.set_index(["task", "model"])
    rows = {task: here.loc[(task, model)] for task, model in models.items()}
    classed = {task: row for task, row in rows.items() if task != YEARS}
    return {
        "calibrations": {task: Calibration(float(row["temperature"])) for task, row in rows.items()},
        "thresholds": {task: float(row["silence"]) for task, row in classed.items()},
        "rare": {
            task: (row["rare"], float(row["rare_clip_threshold"]))
            for task, row in classed.items()
            if pd.notna(row["rare_clip_threshold"])
        },
    }


def fit_years(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], models: dict[str, str], protocol: str
) -> dict[str, Years]:
    """{"age_years": how it tells an age}, where `models` have that task: of the first fold and the first seed.

    The margin is the conformal quantile of the validation clips' absolute errors (`conformal_margin`); the coverages say
    what became of it, on validation, where it was chosen, and on test.
    """
    task = next((task for task in tasks if task.name == YEARS and YEARS in models), None)
    if task is None:
        return {}
    parts = {}
    for split in ("validation", "test"):
        told = average_years(answer_years(predictions, splits, task, split), "clip")
        told = told[(told["model"] == models[YEARS]) & (told["protocol"] == protocol) & (told["fold"] == 0)]
        told = told[told["seed"] == told["seed"].min()]
        parts[split] = told.assign(error=(told["told_years"] - told["years"]).abs())
    margin = conformal_margin(parts["validation"]["error"], parts["validation"]["speaker_id"], YEARS_SHARE)
    heard = splits[(splits["task"] == YEARS) & (splits["protocol"] == protocol) & (splits["fold"] == 0)]
    voices = {split: int(part["speaker_id"].nunique()) for split, part in parts.items()}
    held = {} if margin is None else {f"{split}_coverage": _coverage(part, margin) for split, part in parts.items()}
    centres = year_centres(heard[heard["split"] == "train"], task)
    return {YEARS: Years(centres, margin, YEARS_SHARE, voices["validation"], test_speakers=voices["test"], **held)}


def _coverage(told: pd.DataFrame, margin: float) -> float:
    """Share of the clips within `margin`, averaged over speakers."""
    return float((told["error"] <= margin + 1e-9).groupby(told["speaker_id"]).mean().mean())


def calibrate_answers(answers: pd.DataFrame, settings: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One model's answers with calibrated probabilities and each training's `silence`, `rare_threshold` beside them."""
    columns, parts = [f"p_{name}" for name in task.classes], []
    known = settings[settings["task"] == task.name].set_index(["model", "fold", "seed"])
    for key, part in answers.groupby(["model", "fold", "seed"], sort=False):
        row = known.loc[key]
        values = apply_calibration(part[columns].to_numpy(), Calibration(float(row["temperature"])))
        kept = {"silence": row["silence"], "rare_threshold": row["rare_threshold"]}
        parts.append(part.assign(**_columns(values, columns), **kept))
    return pd.concat(parts, ignore_index=True)


def score_reliability(
    predictions: pd.DataFrame, settings: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """Records of ece, brier and nll as trained, and of ece_tempered, brier_tempered, nll_tempered; window and clip."""
    records = []
    for task in tasks:
        columns = [f"p_{name}" for name in task.classes]
        for network in settings.loc[settings["task"] == task.name, "model"].unique():
            raw = select_answers(predictions, task, network, protocol, "test")
            for suffix, answers in (("", raw), ("_tempered", calibrate_answers(raw, settings, task))):
                for level in ("window", "clip"):
                    table = aggregate_predictions(answers, level)
                    context = {
                        "task": task.name,
                        "model": network,
                        "protocol": protocol,
                        "split": "test",
                        "level": level,
                    }
                    arrays = (table["target"].to_numpy(), table[columns].to_numpy(), table["speaker_id"].to_numpy())
                    options = {"draws": draws, "seed": seed, "context": context}
                    found = score_calibration(*arrays, trainings=table["seed"].to_numpy(), **options)
                    records.append(found.assign(metric=found["metric"] + suffix))
    return pd.concat(records, ignore_index=True)


def score_choices(
    predictions: pd.DataFrame, settings: pd.DataFrame, tasks: list[Task], models: dict[str, str], protocol: str,
    draws: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """What the two thresholds from validation do on the test part, for each task's main model: records with `rule`.

    rule "most probable class" and "threshold for <class>" are by window, "may stay silent" and "always answers" by clip;
    `coverage` is the share answered. UAR and macro F1 are NaN where a class is never answered for.
    """
    records = []
    for task in tasks:
        columns, model = [f"p_{name}" for name in task.classes], models[task.name]
        raw = select_answers(predictions, task, model, protocol, "test")
        windows = calibrate_answers(raw, settings, task)
        clips = aggregate_predictions(windows, "clip")
        rare = task.classes.index(settings.loc[settings["task"] == task.name, "rare"].iloc[0])
        best = {"window": windows[columns].to_numpy().argmax(axis=1), "clip": clips[columns].to_numpy().argmax(axis=1)}
        rules = [("most probable class", "window", windows, best["window"], np.ones(len(windows), bool))]
        if task.name != YEARS:
            told = answer_with_threshold(
                windows[columns].to_numpy(), rare, windows["rare_threshold"].fillna(2).to_numpy()
            )
            rules.append((f"threshold for {task.classes[rare]}", "window", windows, told, np.ones(len(windows), bool)))
        sure = _is_sure(clips, settings, columns)
        rules.append(("always answers", "clip", clips, best["clip"], np.ones(len(clips), bool)))
        rules.append(("may stay silent", "clip", clips, best["clip"], sure))
        for rule, level, table, answers, kept in rules:
            if kept.any():
                context = {"task": task.name, "model": model, "protocol": protocol, "split": "test", "level": level}
                context |= {"rule": rule, "coverage": float(kept.mean())}
                arrays = (table[kept], task.classes, answers[kept])
                found = score_trainings(*arrays, draws=draws, seed=seed, context=context)
                classes = [part.groupby("seed")["target"].nunique() for part in (table, table[kept])]
                if not classes[1].reindex(classes[0].index).equals(classes[0]):  # a class is never answered for
                    found.loc[found["metric"].isin(["uar", "macro_f1"]), ["value", "low", "high", "seed_std"]] = np.nan
                records.append(found)
    return pd.concat(records, ignore_index=True)


def _is_sure(clips: pd.DataFrame, settings: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Whether each calibrated answer reaches the threshold of silence of its own training."""
    silence = settings.set_index(["task", "model", "fold", "seed"])["silence"]
    keys = pd.MultiIndex.from_frame(clips[["task", "model", "fold", "seed"]])
    return clips[columns].to_numpy().max(axis=1) >= silence.loc[keys].to_numpy()


def plot_reliability_of(
    predictions: pd.DataFrame, settings: pd.DataFrame, task: Task, model: str, protocol: str
) -> tuple[Any, pd.DataFrame]:
    """Stated probability against truth on the test windows, as trained and after temperature; all seeds pooled: (figure, numbers)."""
    from lib.figures import plot_calibration
    from lib.trust.calibration import reliability_table

    columns = [f"p_{name}" for name in task.classes]
    raw = select_answers(predictions, task, model, protocol, "test")
    named = {"as trained": raw, "after temperature": calibrate_answers(raw, settings, task)}
    pairs, tables = {}, []
    for name, answers in named.items():
        values, target = answers[columns].to_numpy(), answers["target"].to_numpy()
        pairs[name] = (values.max(axis=1), values.argmax(axis=1) == target)
        tables.append(reliability_table(target, values, 15).assign(probabilities=name))
    ax = plot_calibration(pairs, 15, title=f"{task.name}: does 80 % mean 80 %?")
    return ax.figure, pd.concat(tables, ignore_index=True)


def plot_choices(
    predictions: pd.DataFrame, settings: pd.DataFrame, task: Task, model: str, protocol: str
) -> tuple[Any, pd.DataFrame]:
    """Macro F1 against the share of clips answered (left), precision and recall of each class (right), all seeds pooled.

    Returns (figure, numbers): the points of both curves, told apart by `curve`.
    """
    import matplotlib.pyplot as plt

    from lib.figures import plot_precision_recall
    from lib.style import MUTED

    columns = [f"p_{name}" for name in task.classes]
    windows = calibrate_answers(select_answers(predictions, task, model, protocol, "test"), settings, task)
    clips = aggregate_predictions(windows, "clip")
    curve = coverage_table(clips["target"].to_numpy(), clips[columns].to_numpy(), task.classes)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.5))
    left.plot(100 * curve["coverage"], curve["macro_f1"], color="#0072B2", label="macro F1")
    left.plot(100 * curve["coverage"], curve["accuracy"], color="#E69F00", linestyle="--", label="accuracy")
    answered = _is_sure(clips, settings, columns).mean()
    left.axvline(100 * answered, color=MUTED, linewidth=1, linestyle=":", label="threshold from validation")
    left.set(xlabel="clips answered (%)", ylabel="score of the answered", title=f"{task.name}: if it may stay silent")
    left.set_ylim(0, 1.02)
    left.legend(loc="lower left", fontsize=8)
    plot_precision_recall(windows["target"].to_numpy(), windows[columns].to_numpy(), task.classes, ax=right)
    tables = [curve.assign(curve="coverage")]
    for k in np.flatnonzero(np.bincount(windows["target"], minlength=len(columns))):
        table = precision_recall_table(windows["target"].to_numpy(), windows[columns].to_numpy(), k)
        thinned = table.iloc[:: max(1, len(table) // 50)]
        tables.append(thinned.assign(curve=f"precision, recall of {task.classes[k]}"))
    return figure, pd.concat(tables, ignore_index=True)
