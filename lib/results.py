"""What the scores of a run say: one table and one sentence about a score, for notebooks, pages, model cards and README, made
from the very records (rows as `lib.scores` writes them) that a reader is shown."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lib.scores import RECORD

Record = dict[str, Any]

HEARD = {"speaker": "speakers never heard in training", "language": "languages never heard in training",
         "paper": "speakers who were heard in training"}  # fmt: skip
COLUMNS = HEARD | {"paper": "random windows claim", "leak": "difference", "altered": "altered"}
METRICS = {
    "accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
    "mae_years": "error (years)", "bias_years": "bias (years)", "ccc": "concordance", "mace": "error (classes)",
    "ece": "ECE", "ece_tempered": "ECE after temperature", "brier": "Brier", "brier_tempered": "Brier after temperature",
}  # fmt: skip
MODELS = {
    "paper": "the paper's network", "linear": "linear model", "steps": "step by step", "mean F0": "mean pitch",
    "experts": "experts for children and others", "MFCC": "MFCC statistics",
    "majority": "a guess (majority)", "constant age": "always the median age",
}  # fmt: skip
ERRORS = {"mae_years": "years", "mace": "classes"}  # metrics of which less is better, and their unit
CONSTANT = "baseline: constant age"  # hears nothing, as the majority does, and tells years


def model_name(model: str) -> str:
    """A model's name as people read it: "linear:block:2+bank" becomes "linear model on block 2 and filter bank"."""
    kind, _, parts = model.removeprefix("baseline: ").partition(":")
    steps = re.sub(r"\bbank\b", "filter bank", parts).replace(":", " ").replace("+", " and ").replace("|", ", then ")
    return MODELS.get(kind, kind) + (f" on {steps}" if parts else "")


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
    """Records whose columns have the wanted value, or one of the wanted values, in their order; of the test part and of all its
    subsets together, unless `split` or `subset` say otherwise."""
    for name, value in ({"split": "test", "subset": "all"} | wanted).items():
        values = [value] if isinstance(value, str) else list(value)
        scores = scores[scores[name].isin(values)]
        if len(values) > 1:
            scores = scores.sort_values(name, key=lambda column, order=values: column.map(order.index), kind="stable")
    return scores.reset_index(drop=True)


def first_record(scores: pd.DataFrame, **wanted: Any) -> Record | None:
    """The first scored record with the wanted values, unknown numbers None; None where there is none."""
    rows = select_scores(scores, **wanted).dropna(subset="value")
    found = rows.head(1).to_dict("records")
    return {name: None if pd.isna(value) else value for name, value in found[0].items()} if found else None


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
    """Score records as a table for people: a line for every combination of `rows`, a column for every value of `columns`, both in
    the order in which they occur, baselines last in their task; a cell holds a score with its interval. Sizes follow where all
    cells of a line share them, and the spread between seeds where there are several. ValueError: two records share a cell."""
    if records.empty:
        return pd.DataFrame(columns=list(rows))
    rows = list(rows)
    cells = records.assign(cell=[format_score(record) for record in records.to_dict("records")])
    table = cells.set_index([*rows, columns])["cell"].unstack(sort=False)
    table = table.reindex(columns=records[columns].unique()).fillna("").rename(columns=NAMED.get(columns, str))
    lines = records.groupby(rows, sort=False)
    unit = f"{records['level'].iloc[0]}s" if records["level"].nunique() == 1 else "n"
    if lines["n"].nunique().max() == 1:
        table[unit] = lines["n"].first().astype("Int64")
        table["speakers"] = lines["speakers"].first().astype("Int64")
    if "seeds" in records and records["seeds"].max() > 1:
        spread = zip(lines["seeds"].first(), lines["seed_std"].first() * lines["metric"].first().map(unit_of))
        table["seeds"] = [f"{seeds:.0f}, ± {std:.2g}" if seeds > 1 else "" for seeds, std in spread]
    table = table.rename_axis(columns=None).reset_index()
    if {"task", "model"} <= set(rows):
        order = {"key": lambda names: pd.factorize(names)[0] + len(names) * names.map(is_baseline)}  # baselines last
        table = table.sort_values(["task", "model"], **order)
    return table.assign(**{name: table[name].map(NAMED[name]) for name in rows if name in NAMED}).reset_index(drop=True)


def to_markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    lines = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    safe = [[str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in safe)


def find_headline(scores: pd.DataFrame, view: Record, differences: pd.DataFrame | None = None) -> Record | None:
    """The score that speaks for a task and all that it is read beside; None where it was not scored. view: {task, model,
    protocol, level}. differences: of `lib.evaluate.compare_all`; None = no pair was compared.
    Keys: `metric` (the error where ages are told in years, else UAR), `score`, `guess` (the record of what hears nothing, or
    None), `simple` (records of the other baselines, the best first), `classes`. A baseline's `gain` is the interval of what the
    model gains over it, better is positive; None = not compared pair by pair."""
    of_view = select_scores(scores, **view).dropna(subset="value")
    metric = next((name for name in ("mae_years", "uar", "accuracy") if name in set(of_view["metric"])), None)
    if metric is None:
        return None
    score, better = first_record(of_view, metric=metric), -1 if metric in ERRORS else 1
    compared, baselines = differences is not None and len(differences) > 0, []
    for model in filter(is_baseline, scores["model"].unique()):
        other = first_record(scores, **(view | {"model": model}), metric=metric)
        if other:
            wanted = view | {"metric": f"{metric}_difference", "against": model}
            pair = first_record(differences, **wanted) if compared else None
            gain = sorted([better * pair["low"], better * pair["high"]]) if pair and pair["low"] is not None else None
            baselines.append(other | {"gain": gain, "ahead": better * (score["value"] - other["value"]) <= 0})
    baselines.sort(key=lambda one: -better * one["value"])
    deaf = CONSTANT if metric == "mae_years" else "majority"
    guess = next((one for one in baselines if one["model"] == deaf), None)
    simple = [one for one in baselines if one["model"] not in (CONSTANT, "majority")]
    classes = [name[3:] for name in of_view["metric"] if name.startswith("f1_")]
    return {"metric": metric, "score": score, "guess": guess, "simple": simple, "classes": classes}


def tell_score(headline: Record | None) -> str:
    """A score of `find_headline` in plain words: so many of a hundred, the interval, what simpler answers reach, the verdict."""
    if headline is None:
        return ""
    score, guess, simple, classes = (headline[key] for key in ("score", "guess", "simple", "classes"))
    heard = f"{score['level']}s of {HEARD.get(score['protocol'], score['protocol'])}"
    heard = heard.replace("speakers of speakers", "speakers")
    tested = f"{score['speakers']:.0f} speakers" if score["speakers"] else ""
    aside, unit = ", ".join(filter(None, [format_interval(score), tested])), ERRORS.get(score["metric"])
    if unit:
        text = f"answers for {heard} are {format_number(score)} {unit} off on average"
    else:
        alike = f", as many {', '.join(classes[:-1])} as {classes[-1]}," if classes else ""
        text = f"of 100 {heard}{alike if score['metric'] == 'uar' else ''} {format_number(score)} are told right"
    text += f" ({aside})" if aside else ""
    if guess:
        text += f"; {'always the median age' if unit else 'a guess'} reaches {format_number(guess)}"
    if simple:
        text += f", the best simple baseline, {model_name(simple[0]['model'])}, {format_number(simple[0])}"
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
