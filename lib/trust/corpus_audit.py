"""Does the model hear the speaker or the corpus? Where label and corpus go together, a score may measure the latter."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from lib.baselines import ask_probe
from lib.scores import make_records
from lib.store import Store
from lib.tasks import Task
from lib.trust.probes import score_uar

PENALTY = 0.01  # C of scikit-learn: a store has thousands of numbers a window
LIMIT = 20_000  # rows that a probe learns from at most, drawn by the seed
MARGIN = 0.05  # of UAR over chance, from which knowing the corpus alone is worth a warning
SHOWN = {
    "check": "check", "labels_of": "labels of", "train_corpus": "learned from", "test_corpus": "tested on", "value": "UAR",
    "low": "low", "high": "high", "n": "windows", "speakers": "speakers", "reason": "why not",
}  # fmt: skip


def audit_corpora(
    splits: pd.DataFrame, store: Store, tasks: list[Task], protocol: str, draws: int, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """Every check of this module on a run's splits (of the first fold): records, and the lines a reader must not miss.
    Records carry `check`: "corpus only", "across corpora" or "corpus probe"; with a single corpus there are none. A line is
    loud where the corpus alone beats chance by more than `MARGIN` in UAR."""
    records, lines, options = [], [], {"draws": draws, "seed": seed}
    for task in tasks:
        table = splits.query("task == @task.name and protocol == @protocol and fold == 0").reset_index(drop=True)
        corpora, chance = sorted(table["corpus"].unique()), 1 / len(task.classes)
        if len(corpora) < 2:
            lines.append(f"{task.name}: all its labels come from {corpora[0]}, so no shortcut through it is possible.")
            continue
        context = {"task": task.name, "protocol": protocol, "split": "test", "level": "window"}
        only = score_corpus_only(table, task.classes, context | {"check": "corpus only"}, **options)
        told = "knowing the corpus alone scores no better than chance."
        if (uar := only["value"].iloc[0]) > chance + MARGIN:
            told = (
                f"CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {uar:.3f} on this task (chance "
                f"{chance:.3f}). A score over all corpora may come from recognising the corpus; believe the scores within "
                "one corpus, and the rows of the train-on-one, test-on-other table."
            )
        lines.append(f"{task.name}: {told}")
        vectors = store.statistics(table["window_id"])
        across = score_across_corpora(table, vectors, task.classes, context | {"check": "across corpora"}, **options)
        context |= {"task": "corpus", "check": "corpus probe", "labels_of": task.name}
        named = table.assign(target=table["corpus"].map(corpora.index))
        probe = score_probe(named, vectors, corpora, context, **options)
        records += [only, *across, probe]
    return (pd.concat(records, ignore_index=True) if records else pd.DataFrame()), lines


def score_corpus_only(table: pd.DataFrame, classes: list[str], context: dict[str, Any], **options: int) -> pd.DataFrame:
    """UAR of an oracle that knows the corpus and nothing else, learned on "train", scored on "test": what a shortcut earns."""
    train, test = (table[table["split"] == part] for part in ("train", "test"))
    counts = pd.crosstab(train["corpus"], train["target"]).reindex(columns=range(len(classes)), fill_value=0)
    balanced = counts / counts.sum().clip(lower=1)  # what balanced class weights would learn
    shares = balanced.reindex(test["corpus"], fill_value=0).to_numpy()  # an even mix answers the first class
    return score_uar(test, shares, classes, context={"model": "corpus only"} | context, **options)


def score_across_corpora(
    table: pd.DataFrame, vectors: Any, classes: list[str], context: dict[str, Any], **options: int
) -> list[pd.DataFrame]:
    """Train a probe on one corpus ("all": on every), test it on each: records with `train_corpus`, `test_corpus`, `reason`.
    vectors: `vectors[rows] -> (len(rows), S)`, rows as in `table`. A pair that lacks a class keeps its row, with NaN and why."""
    corpora, records = sorted(table["corpus"].unique()), []
    for learned, tested in product([*corpora, "all"], corpora):
        train = (table["split"] == "train") & ((table["corpus"] == learned) | (learned == "all"))
        test, lacking = (table["split"] == "test") & (table["corpus"] == tested), []
        for side, rows in (("train", train), ("test", test)):
            there = set(table.loc[rows, "target"])
            lacking += [f"no '{name}' to {side} on" for number, name in enumerate(classes) if number not in there]
        pair = context | {"train_corpus": learned, "test_corpus": tested, "reason": next(iter(lacking), "")}
        if lacking:
            voices = table.loc[test, "speaker_id"].nunique()
            records.append(make_records({"uar": (np.nan,) * 3}, int(test.sum()), voices, pair))
        else:
            records.append(score_probe(table[train | test], vectors, classes, pair, **options))
    return records


def score_probe(
    table: pd.DataFrame, vectors: Any, classes: list[str], context: dict[str, Any], **options: int
) -> pd.DataFrame:
    """UAR on "test" of a linear probe that learned on "train"; the table's index is the vectors' row."""
    train, test = (table.index[table["split"] == part].to_numpy() for part in ("train", "test"))
    if len(train) > LIMIT:
        train = np.sort(np.random.default_rng(options["seed"]).choice(train, LIMIT, replace=False))
    learned = vectors[train], table.loc[train, "target"].to_numpy()
    probabilities = ask_probe(*learned, vectors[test], len(classes), PENALTY)
    return score_uar(table.loc[test], probabilities, classes, context={"model": "linear probe"} | context, **options)


def tabulate_audit(records: pd.DataFrame) -> pd.DataFrame:
    """The audit for a page: UAR of each check, with what was learned from and tested on."""
    records = records.reindex(columns=["task", *SHOWN])
    unsaid = {"labels_of": records["task"], "train_corpus": "all", "test_corpus": "all", "reason": ""}
    return records.fillna(unsaid)[list(SHOWN)].rename(columns=SHOWN)
