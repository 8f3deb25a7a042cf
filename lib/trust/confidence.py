"""What a run's probabilities are worth: temperatures, thresholds and silence, chosen on validation, scored on test.

Every training has its own temperature and thresholds, from the validation part of its own fold; scores are means over seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.evaluate import answer_years, average_years, select_answers, year_centres
from lib.results import format_score
from lib.scores import aggregate_predictions, bootstrap_trainings, make_records, score_answers
from lib.tasks import YEARS, Task
from lib.trust.calibration import (
    BINS,
    FLOOR,
    YEARS_SHARE,
    Calibration,
    Years,
    answer_with_threshold,
    choose_coverage,
    choose_threshold,
    confidence_bins,
    conformal_margin,
    coverage_table,
    fit_temperature,
    most_disagreement,
    reliability_table,
)

KEYS = ["task", "model", "fold", "seed"]


def fit_settings(windows: pd.DataFrame, task: Task, rare: int) -> dict[str, Any]:
    """What one training's answers on validation windows choose: temperature, cap, `silence`, thresholds, `disagreement`.

    `silence`: the confidence of a clip from which to answer (0 = always). `rare_threshold`: the calibrated probability of
    class `rare` from which a window is called so, `rare_clip_threshold` from which a clip is; NaN: validation has none of it.
    """
    columns = [f"p_{name}" for name in task.classes]
    calibration = fit_temperature(windows[columns].to_numpy(), windows["target"], windows["speaker_id"])
    windows = windows.assign(**dict(zip(columns, calibration.apply(windows[columns].to_numpy()).T)))
    clips = aggregate_predictions(windows, "clip")
    targets, values = clips["target"].to_numpy(), clips[columns].to_numpy()
    return {
        "temperature": calibration.temperature,
        "cap": calibration.cap,
        "silence": choose_coverage(targets, values, task.classes),
        "rare": task.classes[rare],
        "rare_threshold": choose_threshold(windows["target"].to_numpy(), windows[columns].to_numpy(), rare),
        "rare_clip_threshold": choose_threshold(targets, values, rare),
        "disagreement": most_disagreement(windows, columns),
        "validation_speakers": int(windows["speaker_id"].nunique()),
    }


def fit_reliability(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, networks: list[str]
) -> pd.DataFrame:
    """`fit_settings` of every training, from validation alone: one row a task, model, fold and seed.

    A row with fold -1 and seed -1 pools the validation parts of all folds: for a model that learns from everyone in the end.
    """
    rows = []
    for task in tasks:
        train = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol) & (splits["split"] == "train")]
        rare = int(train["target"].value_counts().reindex(range(len(task.classes)), fill_value=0).idxmin())
        for network in networks:
            answers = select_answers(predictions, task, network, protocol, "validation")
            parts = [(key, part) for key, part in answers.groupby(["fold", "seed"])]
            if len(answers):
                parts.append(((-1, -1), answers[answers["seed"] == answers["seed"].min()]))
            for (fold, seed), part in parts:
                facts = {"task": task.name, "model": network, "protocol": protocol, "fold": fold, "seed": seed}
                rows.append(facts | fit_settings(part, task, rare))
    return pd.DataFrame(rows)


def fit_years(
    predictions: pd.DataFrame, splits: pd.DataFrame, task: Task, model: str, protocol: str, fold: int = 0
) -> Years:
    """How `model` tells an age: the margin from the validation clips (`conformal_margin`), its coverage there and on test.

    fold: whose training; -1 = all folds pooled, their first seeds, and the centres of everybody.
    """
    parts = {}
    for split in ("validation", "test"):
        clips = average_years(answer_years(predictions, splits, task, split), "clip")
        clips = clips[
            (clips["model"] == model) & (clips["protocol"] == protocol) & ((clips["fold"] == fold) | (fold < 0))
        ]
        clips = clips[clips["seed"] == clips["seed"].min()]
        parts[split] = clips.assign(error=(clips["predicted_years"] - clips["years"]).abs())
    margin = conformal_margin(parts["validation"]["error"], parts["validation"]["speaker_id"], YEARS_SHARE)
    train = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol)]
    train = (
        train.drop_duplicates("window_id") if fold < 0 else train[(train["fold"] == fold) & (train["split"] == "train")]
    )
    voices = {split: int(part["speaker_id"].nunique()) for split, part in parts.items()}
    coverages = {}
    if margin is not None:
        for split, part in parts.items():
            inside = (part["error"] <= margin + 1e-9).groupby(part["speaker_id"]).mean()
            coverages[f"{split}_coverage"] = float(inside.mean())
    return Years(
        year_centres(train, task), margin, YEARS_SHARE, voices["validation"], test_speakers=voices["test"], **coverages
    )


def calibrate_answers(answers: pd.DataFrame, settings: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One model's answers with calibrated probabilities and each training's `silence`, `rare_threshold` beside them."""
    columns, parts = [f"p_{name}" for name in task.classes], []
    known = settings[settings["task"] == task.name].set_index(["model", "fold", "seed"])
    for key, part in answers.groupby(["model", "fold", "seed"], sort=False):
        row = known.loc[key]
        values = Calibration(float(row["temperature"]), float(row["cap"])).apply(part[columns].to_numpy())
        thresholds = {"silence": row["silence"], "rare_threshold": row["rare_threshold"]}
        parts.append(part.assign(**dict(zip(columns, values.T)), **thresholds))
    return pd.concat(parts, ignore_index=True)


def score_calibration(
    table: pd.DataFrame, classes: list[str], *, draws: int, seed: int, context: dict[str, Any] | None = None
) -> pd.DataFrame:
    """Records of ece, brier and nll with their intervals over speakers, means over training seeds.

    table: target, speaker_id, p_<class> and, for more than one training, seed. ece: expected calibration error over `BINS`
    equal ranges of the answer's probability. brier: sum over classes of the squared distance from the truth (0 to 2). nll:
    mean negative log-likelihood in nats. Few rows bias ece upwards, in the bootstrap once more.
    """
    probabilities, targets = table[[f"p_{name}" for name in classes]].to_numpy(), table["target"].to_numpy()
    place, confidence, correct = confidence_bins(targets, probabilities)
    rows = np.arange(len(targets))
    values = np.zeros((len(targets), BINS + 3))  # signed gap of each bin, then n, brier and nll
    values[rows, place] = confidence - correct
    values[:, BINS] = 1
    values[:, BINS + 1] = np.square(probabilities - np.eye(len(classes))[targets]).sum(axis=1)
    values[:, BINS + 2] = -np.log(np.clip(probabilities[rows, targets], FLOOR, 1))

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        n, gaps = sums[..., BINS], np.abs(sums[..., :BINS]).sum(axis=-1)
        return {"ece": gaps / n, "brier": sums[..., BINS + 1] / n, "nll": sums[..., BINS + 2] / n}

    seeds = table["seed"].to_numpy() if "seed" in table else np.zeros(len(table))
    speakers, trainings = table["speaker_id"].to_numpy(), len(np.unique(seeds))
    scores = bootstrap_trainings(values, speakers, seeds, statistic, draws, seed)
    return make_records(scores, len(table) // trainings, len(np.unique(speakers)), context).assign(seeds=trainings)


def score_reliability(
    predictions: pd.DataFrame, settings: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """Records of ece, brier and nll as trained, and of ece_tempered, brier_tempered, nll_tempered; window and clip."""
    records = []
    for task in tasks:
        for network in settings.loc[settings["task"] == task.name, "model"].unique():
            raw = select_answers(predictions, task, network, protocol, "test")
            for suffix, answers in (("", raw), ("_tempered", calibrate_answers(raw, settings, task))):
                for level in ("window", "clip"):
                    context = {
                        "task": task.name,
                        "model": network,
                        "protocol": protocol,
                        "split": "test",
                        "level": level,
                    }
                    table = aggregate_predictions(answers, level)
                    scores = score_calibration(table, task.classes, draws=draws, seed=seed, context=context)
                    records.append(scores.assign(metric=scores["metric"] + suffix))
    return pd.concat(records, ignore_index=True)


def score_choices(
    predictions: pd.DataFrame, settings: pd.DataFrame, task: Task, model: str, protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """What the two thresholds from validation do on the test part, for one task's main model: records with `rule`.

    rule "most probable class" and "threshold for <class>" are by window, "may stay silent" and "always answers" by clip;
    `coverage` is the share answered. UAR and macro F1 are NaN where a class is never answered for.
    """
    columns = [f"p_{name}" for name in task.classes]
    windows = calibrate_answers(select_answers(predictions, task, model, protocol, "test"), settings, task)
    clips = aggregate_predictions(windows, "clip")
    rare = task.classes.index(settings.loc[settings["task"] == task.name, "rare"].iloc[0])
    values, everyone = windows[columns].to_numpy(), np.ones(len(clips), bool)
    rules = [("most probable class", "window", windows, values.argmax(axis=1), np.ones(len(windows), bool))]
    if task.name != YEARS:
        answers = answer_with_threshold(values, rare, windows["rare_threshold"].fillna(2).to_numpy())
        rules.append((f"threshold for {task.classes[rare]}", "window", windows, answers, np.ones(len(windows), bool)))
    answers = clips[columns].to_numpy().argmax(axis=1)
    rules += [("always answers", "clip", clips, answers, everyone)]
    rules += [("may stay silent", "clip", clips, answers, is_sure(clips, settings, columns))]
    records = []
    for rule, level, table, answers, answered in rules:
        if not answered.any():
            continue
        context = {"task": task.name, "model": model, "protocol": protocol, "split": "test", "level": level}
        context |= {"rule": rule, "coverage": float(answered.mean())}
        scores = score_answers(
            table[answered], task.classes, answers[answered], draws=draws, seed=seed, context=context
        )
        classes = [part.groupby("seed")["target"].nunique() for part in (table, table[answered])]
        if not classes[1].reindex(classes[0].index).equals(classes[0]):  # a class is never answered for
            scores.loc[scores["metric"].isin(["uar", "macro_f1"]), ["value", "low", "high", "seed_std"]] = np.nan
        records.append(scores)
    return pd.concat(records, ignore_index=True)


def is_sure(clips: pd.DataFrame, settings: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Whether each calibrated answer reaches the threshold of silence of its own training."""
    silence = settings.set_index(KEYS)["silence"]
    keys = pd.MultiIndex.from_frame(clips[KEYS])
    return clips[columns].to_numpy().max(axis=1) >= silence.loc[keys].to_numpy()


# ------------------------------------------------------------------------------------------------------------ for a page


def tabulate_reliability(answers: dict[str, pd.DataFrame], task: Task) -> dict[str, pd.DataFrame]:
    """`reliability_table` by clip of each of several answer tables, by name."""
    tables, columns = {}, [f"p_{name}" for name in task.classes]
    for name, table in answers.items():
        clips = aggregate_predictions(table, "clip")
        tables[name] = reliability_table(clips["target"].to_numpy(), clips[columns].to_numpy())
    return tables


def list_choices(answers: pd.DataFrame, settings: pd.DataFrame, task: Task) -> dict[str, Any]:
    """What `lib.report.plots.plot_choices` draws of calibrated answers: coverage, answered, targets, probabilities; by clip."""
    clips, columns = aggregate_predictions(answers, "clip"), [f"p_{name}" for name in task.classes]
    targets, probabilities = clips["target"].to_numpy(), clips[columns].to_numpy()
    coverage = coverage_table(targets, probabilities, task.classes)
    answered = float(is_sure(clips, settings, columns).mean())
    return {"coverage": coverage, "answered": answered, "targets": targets, "probabilities": probabilities}


def tabulate_choices(choices: pd.DataFrame) -> pd.DataFrame:
    """One row a task and rule: level, share answered, accuracy, UAR and macro F1 of what is answered."""
    rows = choices[choices["metric"].isin(["accuracy", "uar", "macro_f1"])].copy()
    rows["text"] = [format_score(row) for row in rows.to_dict("records")]
    keys = ["task", "rule", "level", "coverage"]
    table = rows.pivot_table(index=keys, columns="metric", values="text", aggfunc="first", sort=False).reset_index()
    table["coverage"] = [f"{100 * share:.0f} %" for share in table["coverage"]]
    return table.rename(columns={"coverage": "answered", "uar": "UAR", "macro_f1": "macro F1"})
