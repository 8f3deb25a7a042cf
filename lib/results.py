"""What the scores of a run say: one table and one sentence about a score, for notebooks, pages, model cards and README.

A record is a row as `lib.scores` writes it. Tables and sentences are made from the very records that a reader is shown;
every `tell_*` returns one plain sentence or two, and "" where there is nothing to tell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib.scores import RECORD, confusion_metrics

Record = dict[str, Any]

HEARD = {"speaker": "speakers never heard in training", "language": "languages never heard in training",
         "paper": "speakers who were heard in training"}  # fmt: skip
COLUMNS = HEARD | {"paper": "random windows claim", "leak": "leak (points)"}  # heads of a table by protocol
METRICS = {
    "accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
    "mae_years": "error (years)", "bias_years": "bias (years)", "ccc": "concordance", "mace": "error (classes)",
    "ece": "ECE", "ece_tempered": "ECE after temperature", "brier": "Brier", "brier_tempered": "Brier after temperature",
}  # fmt: skip
MODELS = {
    "paper": "the paper's network", "linear": "linear model", "attentive_layers": "learned mix of all layers",
    "layer_mix": "learned mix of all layers", "majority": "a guess (majority)", "constant age": "always the median age",
    "mean F0": "mean pitch", "MFCC": "MFCC statistics",
}  # fmt: skip
ERRORS = {"mae_years": "years", "mace": "classes"}  # metrics of which less is better, and their unit
CONSTANT = "baseline: constant age"  # hears nothing, as the majority does, and tells years


def model_name(model: str) -> str:
    """A model's name as people read it; "<name>_layers" reads the time statistics of all layers."""
    model = model.removeprefix("baseline: ")
    stem = model.removesuffix("_layers")
    return MODELS.get(model) or MODELS.get(stem, stem) + (" on all layers" if stem != model else "")


def task_name(task: str) -> str:
    """A task's name as people read it: "age_four" becomes "Age four"."""
    return "Age in years" if task == "age_years" else task.replace("_", " ").capitalize()


def metric_name(metric: str) -> str:
    """A metric's name as it heads a column or an axis: "f1_teen" becomes "F1 of teen"."""
    metric = metric.removesuffix("_difference")
    return METRICS.get(metric) or metric.replace("f1_", "F1 of ").replace("_", " ")


def is_baseline(model: str) -> bool:
    """True for models without an encoder: they show what a guess, or one simple measure, scores."""
    return model.startswith(("majority", "baseline"))


def describe_classes(classes: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Class names, those of age with their bounds in years where `settings`, a run file's section `run`, holds them."""
    bounds = [f"{bound:g}" for bound in settings.get("age_bounds") or []]
    if not bounds or list(classes) != settings.get("age_classes"):
        return list(classes)
    spans = [f"under {bounds[0]}", *(f"{low} to under {high}" for low, high in itertools.pairwise(bounds))]
    return [f"{name} ({span})" for name, span in zip(classes, [*spans, f"{bounds[-1]} and over"])]


NAMED = {"task": task_name, "model": model_name, "against": lambda model: f"minus {model_name(model)}",
         "metric": metric_name, "protocol": lambda name: COLUMNS.get(name, name),
         "subset": lambda name: name.replace("=", ": ")}  # fmt: skip


def read_records(records: list[Record] | pd.DataFrame | None) -> pd.DataFrame:
    """Records, such as a part of `metrics.json`, with every column of `lib.scores.RECORD`; unknown numbers are NaN."""
    frame = pd.DataFrame(records if records is not None else [])
    frame = frame.reindex(columns=list(dict.fromkeys([*RECORD, *frame.columns])))
    numbers = ["value", "low", "high", "n", "speakers"]
    return frame.astype(dict.fromkeys(RECORD[:7], "str")).assign(**frame[numbers].apply(pd.to_numeric))


def select_scores(scores: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Records whose columns have the wanted value, or one of the wanted values, in the order in which those are given.

    Of the test part and of all its subsets together, unless `split` or `subset` say otherwise.
    """
    for name, value in ({"split": "test", "subset": "all"} | wanted).items():
        values = [value] if isinstance(value, str) else list(value)
        scores = scores[scores[name].isin(values)]
        if len(values) > 1:
            scores = scores.sort_values(name, key=lambda column, order=values: column.map(order.index), kind="stable")
    return scores.reset_index(drop=True)


def first_record(scores: pd.DataFrame, **wanted: Any) -> Record | None:
    """The first scored record with the wanted values, unknown numbers None; None where there is none."""
    rows = select_scores(scores, **wanted).dropna(subset="value")
    if rows.empty:
        return None
    return {name: None if pd.isna(value) else value for name, value in rows.iloc[0].to_dict().items()}


def join_leaks(scores: pd.DataFrame, leaks: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Scores of both protocols, and the records of `lib.scores.compare_protocols` as a third protocol "leak".

    For `tabulate(..., rows=["task", "model", "metric"], columns="protocol")`.
    """
    return pd.concat([select_scores(scores, protocol=["paper", protocol]), leaks.assign(protocol="leak")])


def unit_of(metric: str) -> int:
    """100 for metrics between 0 and 1 that people read as so many of a hundred, 1 for all others."""
    name = metric.removesuffix("_difference")
    return 100 if name in ("accuracy", "uar") or name.startswith(("f1_", "recall_", "macro_f1", "weighted_f1")) else 1


def format_number(record: Record, key: str = "value", sign: str = "") -> str:
    """A number of a record with the digits that its interval deserves: the last one is at most a fifth of its width."""
    unit = unit_of(record["metric"])
    width = unit * (record["high"] - record["low"]) if pd.notna(record["low"]) else 0.0
    if width <= 0:
        return f"{unit * record[key]:{sign}.3g}"
    digits = min(3, max(0, math.ceil(-math.log10(width / 5))))
    return f"{round(unit * record[key], digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0"


def format_interval(record: Record, sign: str = "") -> str:
    """The 95 % interval as "71 to 83"; "" for a constant and where there is none."""
    if pd.isna(record["low"]) or record["low"] == record["high"]:
        return ""
    return f"{format_number(record, 'low', sign)} to {format_number(record, 'high', sign)}"


def format_score(record: Record) -> str:
    """A score with its interval: "77 % (71 to 83)". A difference is signed, and starred when its interval leaves out 0."""
    if pd.isna(record["value"]):
        return "–"
    differs = record["metric"].endswith("_difference") or record["protocol"] == "leak"
    sign, percent = ("+", "") if differs else ("", " %" if unit_of(record["metric"]) == 100 else "")
    interval = format_interval(record, sign)
    star = "*" if differs and interval and (record["low"] > 0 or record["high"] < 0) else ""
    return format_number(record, sign=sign) + percent + (f" ({interval}){star}" if interval else "")


def tabulate(records: pd.DataFrame, rows: Sequence[str] = ("task", "model"), columns: str = "metric") -> pd.DataFrame:
    """Score records as a table for people: a line for every combination of `rows`, a column for every value of `columns`.

    Both in the order in which they occur, baselines last in their task; a cell holds a score with its interval. Sizes
    follow where all cells of a line share them, and the spread between training seeds where there are several.
    Filter the records first: ValueError when two would share a cell.
    """
    rows = list(rows)
    if records.empty:
        return pd.DataFrame(columns=rows)
    twice = records.loc[records.duplicated([*rows, columns]), [*rows, columns]].to_dict("records")
    if twice:
        raise ValueError(f"two records for {twice[0]}: filter by level, protocol or subset first")
    cells = records.assign(cell=[format_score(record) for record in records.to_dict("records")])
    table = cells.set_index([*rows, columns])["cell"].unstack(sort=False)
    table = table.reindex(columns=records[columns].unique()).fillna("").rename(columns=NAMED.get(columns, str))
    lines = records.groupby(rows, sort=False)
    unit = f"{records['level'].iloc[0]}s" if records["level"].nunique() == 1 else "n"
    if lines["n"].nunique().max() == 1:
        table[unit] = lines["n"].first().astype("Int64")
        table["speakers"] = lines["speakers"].first().astype("Int64")
    if "seeds" in records and records["seeds"].max() > 1:
        spread = zip(lines["seeds"].first(), lines["seed_std"].first() * unit_of(records["metric"].iloc[0]))
        table["seeds"] = [f"{seeds:.0f}, ± {std:.2g}" if seeds > 1 else "" for seeds, std in spread]
    table = table.rename_axis(columns=None).reset_index()
    if {"task", "model"} <= set(rows):
        places = {name: table[name].map(list(table[name].unique()).index) for name in ("task", "model")}
        order = pd.DataFrame(places).assign(baseline=table["model"].map(is_baseline))
        table = table.loc[order.sort_values(["task", "baseline", "model"], kind="stable").index]
    return table.assign(**{name: table[name].map(NAMED[name]) for name in rows if name in NAMED}).reset_index(drop=True)


def to_markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    lines = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    safe = [[str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in safe)


def find_headline(scores: pd.DataFrame, view: Record, differences: pd.DataFrame | None = None) -> Record | None:
    """The score that speaks for a task and all that it is read beside; None where it was not scored.

    Parameters
    ----------
    view: {task, model, protocol, level}. differences: of `lib.scores.compare_models`; None = no pair was compared.

    Keys: `metric` (the error where ages are told in years, else UAR), `score`, `guess` (the record of what hears nothing,
    or None), `simple` (records of the other baselines, the best first), `classes`. A baseline's `gain` is the interval of
    what the model gains over it, better is positive; None = not compared pair by pair.
    """
    of_view = select_scores(scores, **view).dropna(subset="value")
    metric = next((name for name in ("mae_years", "uar", "accuracy") if name in set(of_view["metric"])), None)
    if metric is None:
        return None
    score, better = first_record(of_view, metric=metric), -1 if metric in ERRORS else 1
    baselines = []
    for model in filter(is_baseline, scores["model"].unique()):
        other = first_record(scores, **(view | {"model": model}), metric=metric)
        if other is None:
            continue
        pair = None
        if differences is not None and len(differences):
            pair = first_record(differences, **view, metric=f"{metric}_difference", against=model)
        gain = sorted([better * pair["low"], better * pair["high"]]) if pair and pair["low"] is not None else None
        baselines.append(other | {"gain": gain, "ahead": better * (score["value"] - other["value"]) <= 0})
    baselines.sort(key=lambda one: -better * one["value"])
    hears_nothing = CONSTANT if metric == "mae_years" else "majority"
    return {
        "metric": metric, "score": score,
        "guess": next((one for one in baselines if one["model"] == hears_nothing), None),
        "simple": [one for one in baselines if one["model"] not in (CONSTANT, "majority")],
        "classes": [name[3:] for name in of_view["metric"] if name.startswith("f1_")],
    }  # fmt: skip


def tell_score(headline: Record | None) -> str:
    """A score of `find_headline` in plain words: so many of a hundred, the interval, what simpler answers reach, the verdict."""
    if headline is None:
        return ""
    score, guess, simple, classes = (headline[key] for key in ("score", "guess", "simple", "classes"))
    heard = f"{score['level']}s of {HEARD.get(score['protocol'], score['protocol'])}"
    heard = heard.removeprefix("speakers of ") if score["protocol"] == "speaker" else heard
    tested = f"{score['speakers']:.0f} speakers" if score["speakers"] else ""
    aside = ", ".join(filter(None, [format_interval(score), tested]))
    aside = f" ({aside})" if aside else ""
    if score["metric"] in ERRORS:
        text = f"answers for {heard} are {format_number(score)} {ERRORS[score['metric']]} off on average{aside}"
    else:
        equally = ""
        if score["metric"] == "uar" and classes:
            equally = f", as many {', '.join(classes[:-1])} as {classes[-1]},"
        text = f"of 100 {heard}{equally} {format_number(score)} are told right{aside}"
    if guess:
        name = "always the median age" if score["metric"] in ERRORS else "a guess"
        text += f"; {name} reaches {format_number(guess)}"
    if simple:
        best = simple[0]
        text += f", the best simple baseline, {model_name(best['model'])}, {format_number(best)}"
    return f"{task_name(score['task'])}: {text}. {judge(headline)}".rstrip()


def judge(headline: Record) -> str:
    """The verdict alone: whether a score is shown to be better than a guess and, pair by pair, than each simple baseline."""
    score, guess, simple = headline["score"], headline["guess"], headline["simple"]
    if guess is None or score["low"] is None:
        return ""
    better = -1 if score["metric"] in ERRORS else 1
    low, high = guess["gain"] or sorted(better * (score[end] - guess["value"]) for end in ("low", "high"))
    if low <= 0:
        return "Worse than a guess." if high < 0 else "Not shown to be better than a guess."
    ahead = [model_name(one["model"]) for one in simple if one["ahead"]]
    level = [model_name(one["model"]) for one in simple if one["gain"] and one["gain"][0] <= 0]
    if ahead:
        return f"Better than a guess, but {' or '.join(ahead)} alone does no worse: the model adds nothing here."
    if level:
        return f"Better than a guess, not shown to be better than {' or '.join(level)} alone."
    every = " and than every simple baseline" if simple and all(one["gain"] for one in simple) else ""
    return f"Better than a guess{every}."


def tell_leak(leaks: pd.DataFrame) -> str:
    """For each record of `lib.scores.compare_protocols`: what random windows claim, and whether that is more than chance."""
    sentences = []
    for leak in leaks.dropna(subset="value").to_dict("records"):
        claimed, shown = (f"{100 * leak[name]:.0f}" for name in ("claimed", "shown"))
        chance = leak["low"] <= 0 <= leak["high"]
        sentences.append(
            f"{task_name(leak['task'])}: random windows claim a {metric_name(leak['metric'])} of {claimed} % where "
            f"{HEARD.get(leak['protocol'], leak['protocol'])} show {shown} %; the difference of "
            f"{format_number(leak, sign='+')} points ({format_interval(leak, '+')}) "
            + ("may be chance." if chance else "is not skill: no new speaker gives it back.")
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
    text = (
        f"{task_name(before['task'])}: a stated probability is {100 * before['value']:.0f} points away from the share "
    )
    return text + f"that is right, on average, and {100 * after['value']:.0f} after temperature, {helped}."


def tell_slices(slices: pd.DataFrame) -> str:
    """The worst group of one model's slices, and how far it lies below the best."""
    known = slices.dropna(subset="value")
    if len(known) < 2:
        return ""
    worst, best = (known.loc[place].to_dict() for place in (known["value"].idxmin(), known["value"].idxmax()))
    gap, groups = 100 * (best["value"] - worst["value"]), [NAMED["subset"](one["subset"]) for one in (worst, best)]
    score = f"{metric_name(worst['metric'])} {format_score(worst)} of {worst['speakers']:.0f} speakers"
    return f"{task_name(worst['task'])} is told worst for {groups[0]}: {score}, {gap:.0f} points below {groups[1]}."


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
    text = (
        f"{used:,} of {total:,} {unit} are used ({100 * used / total:.0f} %); {len(ledger):,} are left out, most often "
    )
    return text + f"for: {reasons.index[0]} ({reasons.iloc[0]:,})."


def tell_training(history: pd.DataFrame) -> str:
    """What one training did, of its rows by epoch: epoch, chosen, validation_uar, train_loss, validation_loss."""
    columns = ["chosen", "validation_uar", "train_loss", "validation_loss"]
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
        return read_records([])
    sizes = np.array(list(WINDOWS[task].values()))
    guess = confusion_metrics(np.outer(sizes, sizes == sizes.max()), list(WINDOWS[task]))
    published = {"the paper": (PUBLISHED[task], "its data, random windows; epoch chosen on the test part"),
                 "a majority guess": (guess, "the paper's data; hears nothing")}  # fmt: skip
    rows = [
        {"task": task, "model": model, "level": "window", "metric": metric, "value": float(values[metric]), "n": sizes.sum(), "what differs": differs}
        for model, (values, differs) in published.items() for metric in PUBLISHED[task]
    ]  # fmt: skip
    metrics = list(PUBLISHED[task])
    own = select_scores(scores, task=task, level="window", protocol=["paper", protocol], model=models, metric=metrics)
    own["what differs"] = np.where(
        own["protocol"] == "paper", "random windows, other data", "unseen speakers, other data"
    )
    return pd.concat([read_records(rows), own], ignore_index=True)


def tell_paper(task: str) -> str:
    """What the paper's accuracy has to be read beside: that of always answering its larger class."""
    sizes = WINDOWS[task]
    guess = max(sizes.values()) / sum(sizes.values())
    published = PUBLISHED[task]["accuracy"]
    return (
        f"{task_name(task)}: the paper reports {100 * published:.1f} % accuracy; always answering {max(sizes, key=sizes.get)} "
        f"scores {100 * guess:.1f} % on its data{', so accuracy shows nothing there' if guess > published else ''}."
    )


def tell_flattery(records: pd.DataFrame) -> str:
    """What a majority guess scores in accuracy, weighted F1 and UAR, of records with all three."""
    sentences = []
    for task in dict.fromkeys(records["task"]):
        guess = {name: first_record(records, task=task, model="majority", metric=name) for name in METRICS}
        if guess["accuracy"] is None or guess["weighted_f1"] is None or guess["uar"] is None:
            continue
        accuracy, weighted, uar = (f"{100 * guess[name]['value']:.0f}" for name in ("accuracy", "weighted_f1", "uar"))
        text = (
            f"{task_name(task)}: who always answers with the larger class has an accuracy of {accuracy} %, a weighted "
        )
        sentences.append(text + f"F1 of {weighted} %, and a UAR of {uar} %.")
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
        sentences.append(text + f"; on test it has a UAR of {100 * best['test UAR']:.0f} %.")
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
        shares = points[label].value_counts(normalize=True)
        same, chance = (points[label] == points[f"near_{label}"]).mean(), (shares**2).sum()
        if len(shares) > 1:
            sentences.append(
                f"The nearest window of another speaker has the same {label} in {100 * same:.0f} of 100 cases, by chance "
                f"{100 * chance:.0f}."
            )
    return " ".join(sentences)
