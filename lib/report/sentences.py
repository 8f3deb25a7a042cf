"""Sentences made from a run's own numbers, for notebooks and the page of a run; a score's own are in `lib.results`. Their words
are macros of `lib/templates/sentences.j2`; here the numbers are chosen, and "" says that there is nothing to tell."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib import paths, results
from lib.report import TEMPLATES
from lib.results import Record, first_record
from lib.scores import confusion_metrics
from lib.tasks import YEARS


def say(macro: str, *each: dict[str, Any]) -> str:
    """What a macro of the template says of each of these facts, on one line."""
    sentence = getattr(TEMPLATES.get_template("sentences.j2").module, macro)
    return " ".join(" ".join(sentence(**facts).split()) for facts in each)


def tell_leak(leaks: pd.DataFrame, macro: str = "leak") -> str:
    """For each record with an interval of `lib.evaluate.score_leaks`: what random windows ("channel": altered copies) claim, and if by more than chance."""
    known = leaks.dropna(subset=["value", "low"]).query("low < high").to_dict("records")
    return say(macro, *({"one": one, "heard": results.HEARD.get(one["protocol"], one["protocol"])} for one in known))


def tell_confusion(confusion: Record) -> str:
    """How many of each class are told right, and the most common error: from {task, level, classes, counts [C, C]}."""
    counts = pd.DataFrame(confusion["counts"], confusion["classes"], confusion["classes"])
    right = pd.Series(np.diag(counts), counts.index)
    errors = (counts - np.diag(right)).stack()
    truth, answer = errors.idxmax()
    shares = (100 * right / counts.sum(axis=1)).dropna().items()
    facts = {"task": confusion["task"], "level": confusion["level"], "times": errors.max()}
    return say("confusion", facts | {"shares": shares, "truth": truth, "answer": answer})


def tell_calibration(scores: pd.DataFrame) -> str:
    """How far stated probabilities lie from the share right, before and after temperature: of one model's records."""
    before, after = (first_record(scores, metric=metric) for metric in ("ece", "ece_tempered"))
    return say("calibration", {"before": before, "after": after}) if before and after else ""


def tell_slices(slices: pd.DataFrame) -> str:
    """The worst group of one model's slices, and how far it lies below the best."""
    known = slices.dropna(subset="value")
    if len(known) < 2:
        return ""
    return say("slices", {"worst": known.loc[known["value"].idxmin()], "best": known.loc[known["value"].idxmax()]})


def tell_layers(layers: pd.DataFrame) -> str:
    """For each task the stage of the encoder that a probe reads best; columns feature, task, uar, low, high."""
    facts = []
    for _, rows in layers.groupby("task", sort=False):
        stages = rows[rows["feature"].str.contains(" | ", regex=False)]
        best = stages.assign(value=stages["uar"], metric="uar", protocol="").loc[stages["uar"].idxmax()]
        facts.append({"best": best, "beside": rows.drop(stages.index).to_dict("records")})
    return say("layers", *facts)


def tell_ledger(used: int, ledger: pd.DataFrame, unit: str = "items") -> str:
    """How many items are used, how many were left out, and the most common reason (column `reason`)."""
    reason, count = next(iter(ledger["reason"].value_counts().items()), ("", 0))
    return say("ledger", {"used": used, "lost": len(ledger), "unit": unit, "reason": reason, "count": count})


def tell_training(history: pd.DataFrame) -> str:
    """What one training did, of its rows by epoch: epoch, chosen, validation_uar, train_loss, validation_loss."""
    epochs = history.sort_values("epoch").to_dict("records")
    chosen = next(epoch for epoch in epochs if epoch["chosen"])
    return say("training", {"before": epochs[0], "chosen": chosen, "last": epochs[-1]})


PUBLISHED, WINDOWS = (paths.load_json(paths.ASSETS / "paper.json")[name] for name in ("published", "windows"))


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
    heard = np.where(own["protocol"] == "paper", "random windows, other data", "unseen speakers, other data")
    return pd.concat([results.read_records(rows), own.assign(**{"what differs": heard})], ignore_index=True)


def tell_paper(task: str) -> str:
    """What the paper's accuracy has to be read beside: that of always answering its larger class."""
    sizes = WINDOWS[task]
    larger = max(sizes, key=sizes.get)
    guess = sizes[larger] / sum(sizes.values())
    return say("paper", {"task": task, "accuracy": PUBLISHED[task]["accuracy"], "larger": larger, "guess": guess})


def tell_flattery(records: pd.DataFrame) -> str:
    """What a majority guess scores in accuracy, weighted F1 and UAR, of records with all three."""
    metrics, facts = ("accuracy", "weighted_f1", "uar"), []
    for task in dict.fromkeys(records["task"]):
        facts.append({name: first_record(records, task=task, model="majority", metric=name) for name in metrics})
    return say("flattery", *(guess for guess in facts if all(guess.values())))


def tell_networks(table: pd.DataFrame) -> str:
    """Which network to take, of `lib.evaluate.tabulate_networks`: the best by UAR on validation, the smallest near it."""
    facts = []
    for _, rows in table[table["task"] != YEARS].groupby("task", sort=False):
        best = rows.loc[rows["validation UAR"].idxmax()]
        near = rows[rows["validation UAR"] >= best["validation UAR"] - 0.01]
        facts.append({"best": best, "small": near.loc[near["parameters"].idxmin()]})
    return say("networks", *facts)


def tell_few_shots(table: pd.DataFrame) -> str:
    """What eight speakers a class are worth beside all of them: task, feature, uar, spread, all_speakers."""
    best = table.groupby("task", sort=False)["uar"].idxmax()
    return say("few_shots", *({"best": table.loc[place]} for place in best))


def tell_neighbours(points: pd.DataFrame) -> str:
    """How often the nearest window of another speaker shares gender and corpus, beside chance."""
    facts = []
    for label in ("gender", "corpus"):
        shares, same = points[label].value_counts(normalize=True), (points[label] == points[f"near_{label}"]).mean()
        if len(shares) > 1:
            facts.append({"label": label, "same": same, "chance": (shares**2).sum()})
    return say("neighbours", *facts)
