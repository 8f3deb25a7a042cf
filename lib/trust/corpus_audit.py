"""Does the model hear the speaker or the corpus? Where label and corpus go together, a score may measure the latter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.baselines import fit_probe, predict_probe
from lib.scores import make_records, score_answers
from lib.tasks import Task

PENALTY = 0.01  # C of scikit-learn: a store has thousands of numbers a window
LIMIT = 20_000  # rows that a probe learns from at most, drawn by the seed
MARGIN = 0.05  # of UAR over chance, from which knowing the corpus alone is worth a warning
COLUMNS = ["check", "labels of", "learned from", "tested on", "UAR", "low", "high", "windows", "speakers", "why not"]


def audit_corpora(
    splits: pd.DataFrame, store: Any, tasks: list[Task], protocol: str, draws: int, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """Every check of this module on a run's splits (of the first fold): records, and the lines a reader must not miss.

    store: a `lib.store.Store`. Records carry `check`: "corpus only", "across corpora" or "corpus probe". With a single
    corpus there are none, and the line says so.
    """
    records, lines = [], []
    for task in tasks:
        table = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol) & (splits["fold"] == 0)]
        table, corpora = table.reset_index(drop=True), sorted(table["corpus"].unique())
        if len(corpora) < 2:
            lines.append(f"{task.name}: all its labels come from {corpora[0]}, so no shortcut through it is possible.")
            continue
        context = {"task": task.name, "protocol": protocol, "split": "test", "level": "window"}
        options = {"draws": draws, "seed": seed}
        only = score_corpus_only(table, task.classes, context | {"check": "corpus only"}, **options)
        line = warn_confounded(only, task.classes) or "knowing the corpus alone scores no better than chance."
        lines.append(f"{task.name}: {line}")
        embeddings = store.statistics(table["window_id"])
        across = score_across_corpora(table, embeddings, task.classes, context | {"check": "across corpora"}, **options)
        named = table.assign(target=table["corpus"].map(corpora.index))
        of_corpus = context | {"task": "corpus", "check": "corpus probe", "labels_of": task.name}
        probe = score_probe(named, embeddings, named["split"] == "train", corpora, of_corpus, **options)
        records += [only, across, probe]
    return (pd.concat(records, ignore_index=True) if records else pd.DataFrame()), lines


def score_corpus_only(
    table: pd.DataFrame, classes: list[str], context: dict[str, Any], *, draws: int, seed: int
) -> pd.DataFrame:
    """Score an oracle that knows the corpus of a recording and nothing else: what a shortcut alone would earn.

    table: corpus, split, target, speaker_id. Learned on "train", scored on "test"; a UAR at 1 / C means there is no shortcut.
    """
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    counts = pd.crosstab(train["corpus"], train["target"]).reindex(columns=range(len(classes)), fill_value=0)
    balanced = counts / counts.sum().clip(lower=1)  # what balanced class weights would learn
    shares = balanced.reindex(test["corpus"], fill_value=0).to_numpy() + 1e-12  # an even mix answers the first class
    return _score(
        test, shares / shares.sum(axis=1, keepdims=True), classes, {"model": "corpus only"} | context, draws, seed
    )


def warn_confounded(corpus_only: pd.DataFrame, classes: list[str]) -> str:
    """The loud line when the corpus alone beats chance by more than `MARGIN` in UAR; "" when it does not."""
    uar = corpus_only.loc[corpus_only["metric"] == "uar", "value"].iloc[0]
    chance = 1 / len(classes)
    if uar <= chance + MARGIN:
        return ""
    return (
        f"CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {uar:.3f} on this task (chance "
        f"{chance:.3f}). A score over all corpora may come from recognising the corpus; believe the scores within one corpus, "
        "and the rows of the train-on-one, test-on-other table."
    )


def score_across_corpora(
    table: pd.DataFrame, embeddings: Any, classes: list[str], context: dict[str, Any], *, draws: int, seed: int
) -> pd.DataFrame:
    """Train a probe on one corpus, test it on every other: records with `train_corpus`, `test_corpus` and `reason`.

    embeddings: `embeddings[rows] -> (len(rows), S)`, rows as in `table`. "all" as a training corpus is the pooled probe. A
    pair that cannot be scored (a class missing on one side) keeps its row, with NaN and the reason.
    """
    names, records = sorted(table["corpus"].unique()), []
    for train_corpus in [*names, "all"]:
        train = (table["split"] == "train") & ((table["corpus"] == train_corpus) | (train_corpus == "all"))
        lacking = set(range(len(classes))) - set(table.loc[train, "target"])
        for test_corpus in names:
            test = (table["split"] == "test") & (table["corpus"] == test_corpus)
            absent = set(range(len(classes))) - set(table.loc[test, "target"])
            pair = context | {"train_corpus": train_corpus, "test_corpus": test_corpus, "reason": ""}
            if lacking or absent:
                side = "to train on" if lacking else "to test on"
                reason = f"no '{classes[min(lacking or absent)]}' {side}"
                voices = table.loc[test, "speaker_id"].nunique()
                records.append(make_records({"uar": (np.nan,) * 3}, int(test.sum()), voices, pair | {"reason": reason}))
                continue
            rows = table[train | test]
            records.append(score_probe(rows, embeddings, train[rows.index], classes, pair, draws=draws, seed=seed))
    return pd.concat(records, ignore_index=True)


def score_probe(
    table: pd.DataFrame,
    embeddings: Any,
    train: pd.Series,
    classes: list[str],
    context: dict[str, Any],
    *,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """UAR on the test rows of a linear probe that learned from the rows of `train`; the table's index is the embeddings' row."""
    rows = table.index[train].to_numpy()
    if len(rows) > LIMIT:
        rows = np.sort(np.random.default_rng(seed).choice(rows, LIMIT, replace=False))
    probe, test = (
        fit_probe(embeddings[rows], table.loc[rows, "target"].to_numpy(), PENALTY),
        table[table["split"] == "test"],
    )
    probabilities = predict_probe(probe, embeddings[test.index.to_numpy()], len(classes))
    return _score(test, probabilities, classes, {"model": "linear probe"} | context, draws, seed)


def _score(test, probabilities, classes, context, draws, seed) -> pd.DataFrame:
    columns = {f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)}
    table = test[["target", "speaker_id"]].assign(**columns)
    records = score_answers(table, classes, draws=draws, seed=seed, context=context)
    return records[records["metric"] == "uar"]


def tabulate_audit(records: pd.DataFrame) -> pd.DataFrame:
    """The audit for a page: UAR of each check, with what was learned from and tested on."""
    if records.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = records.reindex(columns=[*records.columns, *{"labels_of", "reason"} - set(records.columns)])
    table = rows.assign(labels_of=rows["labels_of"].fillna(rows["task"]), reason=rows["reason"].fillna(""))
    table = table.fillna({"train_corpus": "all", "test_corpus": "all"})
    columns = ["check", "labels_of", "train_corpus", "test_corpus", "value", "low", "high", "n", "speakers", "reason"]
    return table[columns].set_axis(COLUMNS, axis=1).reset_index(drop=True)
