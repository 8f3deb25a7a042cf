"""Sentences made from a run's own numbers, for the cells of a notebook and the page of a run; a score's own are in `lib.results`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib import results
from lib.results import Record, first_record, format_score, metric_name, model_name, task_name
from lib.scores import confusion_metrics


def tell_leak(leaks: pd.DataFrame) -> str:
    """For each record of `lib.evaluate.score_leaks`: what random windows claim, and whether that is more than chance."""
    sentences = []
    for leak in leaks.dropna(subset="value").to_dict("records"):
        claimed, shown = (f"{100 * leak[name]:.0f} %" for name in ("claimed", "shown"))
        points, interval = results.format_number(leak, sign="+"), results.format_interval(leak, "+")
        chance = leak["low"] <= 0 <= leak["high"]
        sentences.append(
            f"{task_name(leak['task'])}: random windows claim a {metric_name(leak['metric'])} of {claimed} where "
            f"{results.HEARD.get(leak['protocol'], leak['protocol'])} show {shown}; the difference of {points} points "
            f"({interval}) {'may be chance.' if chance else 'is not skill: no new speaker gives it back.'}"
        )
    return " ".join(sentences)


def tell_confusion(confusion: Record) -> str:
    """How many of each class are told right, and the most common error: from {task, level, classes, counts [C, C]}."""
    counts, names = np.asarray(confusion["counts"]), confusion["classes"]
    sizes, right = counts.sum(axis=1), np.diag(counts)
    shares = [f"{100 * part / size:.0f} % of {name}" for name, part, size in zip(names, right, sizes) if size]
    text = f"{task_name(confusion['task'])}: {confusion['level']}s told right are {', '.join(shares)}"
    errors = counts - np.diag(right)
    if not errors.any():
        return f"{text}."
    truth, answer = np.unravel_index(errors.argmax(), errors.shape)
    return f"{text}; most often {names[truth]} is told as {names[answer]} ({errors[truth, answer]:,} times)."


def tell_calibration(scores: pd.DataFrame) -> str:
    """How far stated probabilities lie from the share right, before and after temperature: of one model's records."""
    before, after = (first_record(scores, metric=metric) for metric in ("ece", "ece_tempered"))
    if before is None or after is None:
        return ""
    helped = "which helps" if after["value"] < before["value"] else "which does not help these speakers"
    return (
        f"{task_name(before['task'])}: a stated probability is {100 * before['value']:.0f} points away from the share "
        f"that is right, on average, and {100 * after['value']:.0f} after temperature, {helped}."
    )


def tell_slices(slices: pd.DataFrame) -> str:
    """The worst group of one model's slices, and how far it lies below the best."""
    known = slices.dropna(subset="value")
    if len(known) < 2:
        return ""
    worst, best = (known.loc[place].to_dict() for place in (known["value"].idxmin(), known["value"].idxmax()))
    lowest, highest = (results.NAMED["subset"](one["subset"]) for one in (worst, best))
    gap = 100 * (best["value"] - worst["value"])
    score = f"{metric_name(worst['metric'])} {format_score(worst)} of {worst['speakers']:.0f} speakers"
    return f"{task_name(worst['task'])} is told worst for {lowest}: {score}, {gap:.0f} points below {highest}."


def tell_layers(layers: pd.DataFrame) -> str:
    """For each task the stage of the encoder that a probe reads best; columns feature, task, uar, low, high."""
    sentences = []
    for task, rows in layers.groupby("task", sort=False):
        stages = rows[rows["feature"].str.contains(" | ", regex=False)]
        best = stages.loc[stages["uar"].idxmax()].rename({"uar": "value"}).to_dict() | {"metric": "uar", "protocol": ""}
        text = f"{task_name(task)} is read best from {best['feature'].split(' | ')[-1]}, UAR {format_score(best)}"
        beside = [f"{model_name(row.feature)} {100 * row.uar:.0f} %" for row in rows.drop(stages.index).itertuples()]
        sentences.append(f"{text}; beside it {', '.join(beside)}." if beside else f"{text}.")
    return " ".join(sentences)


def tell_ledger(used: int, ledger: pd.DataFrame, unit: str = "items") -> str:
    """How many items are used, how many were left out, and the most common reason (column `reason`)."""
    if not len(ledger):
        return f"All {used:,} {unit} are used."
    total, reasons = used + len(ledger), ledger["reason"].value_counts()
    return (
        f"{used:,} of {total:,} {unit} are used ({100 * used / total:.0f} %); {len(ledger):,} are left out, most often "
        f"for: {reasons.index[0]} ({reasons.iloc[0]:,})."
    )


def tell_training(history: pd.DataFrame) -> str:
    """What one training did, of its rows by epoch: epoch, chosen, validation_uar, train_loss, validation_loss."""
    columns = ["validation_uar", "train_loss", "validation_loss", "chosen"]
    rows = history.set_index("epoch")[columns].astype(float).sort_index()
    chosen, last = rows["chosen"].idxmax(), rows.index[-1]
    first_uar, best_uar = (100 * rows.loc[epoch, "validation_uar"] for epoch in (rows.index[0], chosen))
    text = f"UAR on validation goes from {first_uar:.0f} % to {best_uar:.0f} % at epoch {chosen} of {last}, which was chosen"
    later = rows.loc[last] - rows.loc[chosen]
    by_heart = "; after it the training loss falls while the validation loss rises: speakers are learned by heart"
    return text + (by_heart if later["train_loss"] < 0 < later["validation_loss"] else "") + "."


# Accuracy, weighted F1 and F1 a class as the paper's text and its code's output report them, with the windows of its sets.
PUBLISHED = {
    "gender": {"accuracy": 0.8940, "weighted_f1": 0.89, "f1_male": 0.920, "f1_female": 0.842},
    "age": {"accuracy": 0.9104, "weighted_f1": 0.92, "f1_teen": 0.487, "f1_adult": 0.950},
}
WINDOWS = {"gender": {"male": 101_094, "female": 54_272}, "age": {"teen": 3_118, "adult": 44_434}}


def paper_records(scores: pd.DataFrame, task: str, models: Sequence[str], protocol: str) -> pd.DataFrame:
    """The paper's figures, a majority guess on its data, and this run's `models`, by window: for
    `tabulate(..., rows=["model", "what differs"])`. Empty for tasks that the paper does not have."""
    if task not in PUBLISHED:
        return results.read_records([])
    sizes, metrics, rows = np.array(list(WINDOWS[task].values())), list(PUBLISHED[task]), []
    guess = confusion_metrics(np.outer(sizes, sizes == sizes.max()), list(WINDOWS[task]))
    for model, values, differs in (
        ("the paper", PUBLISHED[task], "its data, random windows; epoch chosen on the test part"),
        ("a majority guess", guess, "the paper's data; hears nothing"),
    ):
        fixed = {"task": task, "model": model, "level": "window", "n": sizes.sum(), "what differs": differs}
        rows += [fixed | {"metric": metric, "value": float(values[metric])} for metric in metrics]
    wanted = {"level": "window", "protocol": ["paper", protocol], "model": models, "metric": metrics}
    own = results.select_scores(scores, task=task, **wanted)
    heard = own["protocol"].eq("paper").map({True: "random windows", False: "unseen speakers"})
    own["what differs"] = heard + ", other data"
    return pd.concat([results.read_records(rows), own], ignore_index=True)


def tell_paper(task: str) -> str:
    """What the paper's accuracy has to be read beside: that of always answering its larger class."""
    sizes, published = WINDOWS[task], PUBLISHED[task]["accuracy"]
    guess = max(sizes.values()) / sum(sizes.values())
    return (
        f"{task_name(task)}: the paper reports {100 * published:.1f} % accuracy; always answering {max(sizes, key=sizes.get)} "
        f"scores {100 * guess:.1f} % on its data{', so accuracy shows nothing there' if guess > published else ''}."
    )


def tell_flattery(records: pd.DataFrame) -> str:
    """What a majority guess scores in accuracy, weighted F1 and UAR, of records with all three."""
    sentences = []
    for task in dict.fromkeys(records["task"]):
        metrics = ("accuracy", "weighted_f1", "uar")
        guess = [first_record(records, task=task, model="majority", metric=metric) for metric in metrics]
        if all(guess):
            accuracy, weighted, uar = (f"{100 * one['value']:.0f} %" for one in guess)
            sentences.append(
                f"{task_name(task)}: who always answers with the larger class has an accuracy of {accuracy}, a weighted "
                f"F1 of {weighted}, and a UAR of {uar}."
            )
    return " ".join(sentences)


def tell_networks(table: pd.DataFrame) -> str:
    """Which network to take, of `lib.evaluate.tabulate_networks`: the best on validation, and the smallest near it."""
    sentences = []
    for task, rows in table.groupby("task", sort=False):
        best = rows.loc[rows["validation UAR"].idxmax()]
        near = rows[rows["validation UAR"] >= best["validation UAR"] - 0.01]
        small = near.loc[near["parameters"].idxmin()]
        text = (
            f"{task_name(task)}: validation prefers {model_name(best['network'])} ({best['parameters']:,} parameters)"
        )
        if small["network"] != best["network"]:
            text += f"; {model_name(small['network'])} is within a point of it with {small['parameters']:,}"
        sentences.append(text + f"; on test the former has a UAR of {100 * best['test UAR']:.0f} %.")
    return " ".join(sentences)


def tell_few_shots(table: pd.DataFrame) -> str:
    """What eight speakers a class are worth beside all of them: task, feature, uar, spread, all_speakers."""
    sentences = []
    for task, rows in table.groupby("task", sort=False):
        best = rows.loc[rows["uar"].idxmax()]
        sentences.append(
            f"{task_name(task)}: eight speakers a class give a UAR of {100 * best['uar']:.0f} % from "
            f"{best['feature'].split(' | ')[-1]} (spread {100 * best['spread']:.0f} points), all of them "
            f"{100 * best['all_speakers']:.0f} %."
        )
    return " ".join(sentences)


def tell_neighbours(points: pd.DataFrame) -> str:
    """How often the nearest window of another speaker shares gender and corpus, beside chance."""
    sentences = []
    for label in ("gender", "corpus"):
        shares, same = points[label].value_counts(normalize=True), (points[label] == points[f"near_{label}"]).mean()
        if len(shares) > 1:
            sentences.append(
                f"The nearest window of another speaker has the same {label} in {100 * same:.0f} of 100 cases, by chance "
                f"{100 * (shares**2).sum():.0f}."
            )
    return " ".join(sentences)
