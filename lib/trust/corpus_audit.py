"""Does the model hear the speaker or the corpus? Where label and corpus go together, a score may measure the latter."""

from typing import Any

import numpy as np
import pandas as pd

from lib.baselines import fit_probe, predict_probe
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

    Records carry `check`: "corpus only", "across corpora" or "corpus probe"; with a single corpus there are none.
    """
    records, lines, options = [], [], {"draws": draws, "seed": seed}
    for task in tasks:
        table = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol) & (splits["fold"] == 0)]
        table, corpora = table.reset_index(drop=True), sorted(table["corpus"].unique())
        if len(corpora) < 2:
            lines.append(f"{task.name}: all its labels come from {corpora[0]}, so no shortcut through it is possible.")
            continue
        context = {"task": task.name, "protocol": protocol, "split": "test", "level": "window"}
        only = score_corpus_only(table, task.classes, context | {"check": "corpus only"}, **options)
        lines.append(f"{task.name}: {tell_shortcut(only['value'].iloc[0], 1 / len(task.classes))}")
        vectors = store.statistics(table["window_id"])
        across = score_across_corpora(table, vectors, task.classes, context | {"check": "across corpora"}, **options)
        named = table.assign(target=table["corpus"].map(corpora.index))
        context |= {"task": "corpus", "check": "corpus probe", "labels_of": task.name}
        probe = score_probe(named, vectors, named["split"] == "train", corpora, context, **options)
        records += [only, *across, probe]
    return (pd.concat(records, ignore_index=True) if records else pd.DataFrame()), lines


def score_corpus_only(table: pd.DataFrame, classes: list[str], context: dict[str, Any], **options: int) -> pd.DataFrame:
    """UAR of an oracle that knows the corpus and nothing else, learned on "train", scored on "test": what a shortcut earns."""
    train, test = (table[table["split"] == part] for part in ("train", "test"))
    counts = pd.crosstab(train["corpus"], train["target"]).reindex(columns=range(len(classes)), fill_value=0)
    balanced = counts / counts.sum().clip(lower=1)  # what balanced class weights would learn
    shares = balanced.reindex(test["corpus"], fill_value=0).to_numpy()  # an even mix answers the first class
    return score_uar(test, shares, classes, context={"model": "corpus only"} | context, **options)


def tell_shortcut(uar: float, chance: float) -> str:
    """What the corpus alone scores, loud where it beats chance by more than `MARGIN` in UAR."""
    if uar <= chance + MARGIN:
        return "knowing the corpus alone scores no better than chance."
    return (
        f"CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {uar:.3f} on this task (chance "
        f"{chance:.3f}). A score over all corpora may come from recognising the corpus; believe the scores within one corpus, "
        "and the rows of the train-on-one, test-on-other table."
    )


def score_across_corpora(
    table: pd.DataFrame, vectors: Any, classes: list[str], context: dict[str, Any], **options: int
) -> list[pd.DataFrame]:
    """Train a probe on one corpus ("all": on every), test it on each: records with `train_corpus`, `test_corpus`, `reason`.

    vectors: `vectors[rows] -> (len(rows), S)`, rows as in `table`. A pair that lacks a class keeps its row, with NaN and why.
    """
    names, records = sorted(table["corpus"].unique()), []
    for train_corpus in [*names, "all"]:
        train = (table["split"] == "train") & ((table["corpus"] == train_corpus) | (train_corpus == "all"))
        for test_corpus in names:
            test = (table["split"] == "test") & (table["corpus"] == test_corpus)
            pair = context | {"train_corpus": train_corpus, "test_corpus": test_corpus, "reason": ""}
            for side, rows in (("train", train), ("test", test)):
                lacking = sorted(set(range(len(classes))) - set(table.loc[rows, "target"]))
                pair["reason"] = pair["reason"] or (f"no '{classes[lacking[0]]}' to {side} on" if lacking else "")
            if pair["reason"]:
                voices = table.loc[test, "speaker_id"].nunique()
                records.append(make_records({"uar": (np.nan,) * 3}, int(test.sum()), voices, pair))
            else:
                rows = table[train | test]
                records.append(score_probe(rows, vectors, train[rows.index], classes, pair, **options))
    return records


def score_probe(
    table: pd.DataFrame, vectors: Any, train: pd.Series, classes: list[str], context: dict[str, Any], **options: int
) -> pd.DataFrame:
    """UAR on the test rows of a linear probe that learned from the rows of `train`; the table's index is the vectors' row."""
    rows, test = table.index[train].to_numpy(), table[table["split"] == "test"]
    if len(rows) > LIMIT:
        rows = np.sort(np.random.default_rng(options["seed"]).choice(rows, LIMIT, replace=False))
    probe = fit_probe(vectors[rows], table.loc[rows, "target"].to_numpy(), PENALTY)
    probabilities = predict_probe(probe, vectors[test.index.to_numpy()], len(classes))
    return score_uar(test, probabilities, classes, context={"model": "linear probe"} | context, **options)


def tabulate_audit(records: pd.DataFrame) -> pd.DataFrame:
    """The audit for a page: UAR of each check, with what was learned from and tested on."""
    if records.empty:
        return pd.DataFrame(columns=list(SHOWN.values()))
    unsaid = {"labels_of": records["task"], "train_corpus": "all", "test_corpus": "all", "reason": ""}
    return records.fillna(unsaid)[list(SHOWN)].rename(columns=SHOWN)
