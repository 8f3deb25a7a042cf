"""Does the model hear the speaker or the corpus? Where label and corpus go together, a score may measure the latter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.baselines import fit_probe, predict_probe
from lib.bootstrap import DRAWS
from lib.scores import make_records, score_classes

NO_SCORE = (np.nan, np.nan, np.nan)


def score_corpus_only(
    targets: np.ndarray,
    corpora: np.ndarray,
    split: np.ndarray,
    classes: list[str],
    speakers: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Score an oracle that knows the corpus of a recording and nothing else: what a shortcut alone would earn.

    Arrays are [n]; `split` holds parts. Learned on "train", scored on "test". A UAR at 1 / C means there is no shortcut.
    """
    codes, names = pd.factorize(np.asarray(corpora))
    targets, train, test = np.asarray(targets), np.asarray(split) == "train", np.asarray(split) == "test"
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (codes[train], targets[train]), 1)
    balanced = counts / np.maximum(counts.sum(axis=0), 1)  # what balanced class weights would learn
    # An even mix answers the first class; a corpus that was never trained on likewise.
    shares = (balanced + 1e-12) / (balanced + 1e-12).sum(axis=1, keepdims=True)
    fixed = {"model": "corpus only", "split": "test", "level": "window"} | (context or {})
    voices = np.asarray(speakers)[test]
    return score_classes(targets[test], shares[codes[test]], classes, voices, draws=draws, seed=seed, context=fixed)


def warn_confounded(corpus_only: pd.DataFrame, classes: list[str], margin: float = 0.05) -> str:
    """The loud line when the corpus alone beats chance by more than `margin` in UAR; "" when it does not."""
    row = corpus_only[corpus_only["metric"] == "uar"].iloc[0]
    chance = 1 / len(classes)
    if row["value"] <= chance + margin:
        return ""
    return (
        f"CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {row['value']:.3f} on this task "
        f"(chance {chance:.3f}). A score over all corpora may come from recognising the corpus; believe the scores within "
        "one corpus, and the rows of the train-on-one, test-on-other table."
    )


def score_across_corpora(
    embeddings: Any,
    targets: np.ndarray,
    corpora: np.ndarray,
    split: np.ndarray,
    classes: list[str],
    speakers: np.ndarray,
    *,
    limit: int = 20_000,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train a probe on one corpus, test it on every other: records with `train_corpus`, `test_corpus` and `reason`.

    Parameters
    ----------
    embeddings: `embeddings[rows] -> [len(rows), D]`. The other arrays are [n].
    limit: rows of the training part that a probe learns from at most, drawn by `seed`.

    Always of the "train" part and on the "test" part. "all" as a training corpus is the pooled probe. A pair that cannot
    be scored (a class missing on one side) keeps its row, with NaN and the reason.
    """
    targets, corpora, split = np.asarray(targets), np.asarray(corpora), np.asarray(split)
    names, rng, records = sorted(set(corpora)), np.random.default_rng(seed), []
    fixed = {"model": "linear probe", "split": "test", "level": "window"} | (context or {})
    for trained in [*names, "all"]:
        rows = np.flatnonzero((split == "train") & ((corpora == trained) | (trained == "all")))
        rows = np.sort(rng.choice(rows, limit, replace=False)) if len(rows) > limit else rows
        lacking = [name for k, name in enumerate(classes) if not (targets[rows] == k).any()]
        probe = None if lacking else fit_probe(_vectors(embeddings, rows), targets[rows])
        for tested in names:
            here = np.flatnonzero((split == "test") & (corpora == tested))
            pair = fixed | {"train_corpus": trained, "test_corpus": tested, "reason": ""}
            absent = [name for k, name in enumerate(classes) if not (targets[here] == k).any()]
            if lacking or absent:
                side = f"no '{lacking[0]}' to train on" if lacking else f"no '{absent[0]}' to test on"
                records.append(make_records({"uar": NO_SCORE}, np.asarray(speakers)[here], pair | {"reason": side}))
                continue
            probabilities = predict_probe(probe, _vectors(embeddings, here), len(classes))
            arrays = (targets[here], probabilities, classes, np.asarray(speakers)[here])
            records.append(score_classes(*arrays, draws=draws, seed=seed, context=pair, metrics=["uar"]))
    return pd.concat(records, ignore_index=True)


def score_corpus_probe(
    embeddings: Any,
    corpora: np.ndarray,
    split: np.ndarray,
    speakers: np.ndarray,
    *,
    limit: int = 20_000,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Score a probe that tells the *corpus* from the embedding of unseen speakers (task "corpus").

    A UAR near 1 says that the shortcut is open to any model on this embedding. ValueError for a single corpus.
    """
    names = sorted(set(corpora))
    if len(names) < 2:
        raise ValueError(f"there is one corpus only ({names}); nothing to tell apart")
    labels = np.searchsorted(names, np.asarray(corpora))
    train, test = (np.flatnonzero(np.asarray(split) == part) for part in ("train", "test"))
    rng = np.random.default_rng(seed)
    train = np.sort(rng.choice(train, limit, replace=False)) if len(train) > limit else train
    probe = fit_probe(_vectors(embeddings, train), labels[train])
    probabilities = predict_probe(probe, _vectors(embeddings, test), len(names))
    fixed = {"task": "corpus", "model": "linear probe", "split": "test", "level": "window"} | (context or {})
    voices = np.asarray(speakers)[test]
    return score_classes(labels[test], probabilities, names, voices, draws=draws, seed=seed, context=fixed)


def _vectors(embeddings: Any, rows: np.ndarray) -> np.ndarray:
    """[n, D]; embeddings of more axes are averaged over the second (frames or layers)."""
    values = np.asarray(embeddings[rows], np.float32)
    return values.mean(axis=1) if values.ndim == 3 else values


# ----------------------------------------------------------------------------------------------------------------------
# The audit of a run


def audit_corpora(
    splits: pd.DataFrame, store: Any, tasks: list[Any], protocol: str, draws: int, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """Every check of this module on a run's splits (of its first fold): records, and the lines a reader must not miss.

    Parameters
    ----------
    splits: task, protocol, fold, window_id, corpus, target, split, speaker_id. store: a `lib.store.Store`.

    Records carry `check`: "corpus only", "across corpora" or "corpus probe". With a single corpus there are none, and
    the line says so.
    """
    records, notes = [], []
    for task in tasks:
        rows = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol) & (splits["fold"] == 0)]
        corpora, split, target = (rows[name].to_numpy() for name in ("corpus", "split", "target"))
        voices, context = rows["speaker_id"].to_numpy(), {"task": task.name, "protocol": protocol}
        if len(set(corpora)) < 2:
            notes.append(
                f"{task.name}: all its labels come from {corpora[0]}, so no shortcut through the corpus is possible."
            )
            continue
        options = {"draws": draws, "seed": seed, "context": context}
        only = score_corpus_only(target, corpora, split, task.classes, voices, **options)
        line = warn_confounded(only, task.classes)
        notes.append(
            f"{task.name}: {line}" if line else f"{task.name}: knowing the corpus alone scores no better than chance."
        )
        layers = store.features("layers", rows["window_id"])
        across = score_across_corpora(layers, target, corpora, split, task.classes, voices, **options)
        probe = score_corpus_probe(layers, corpora, split, voices, **(options | {"context": {"protocol": protocol}}))
        named = {"corpus only": only, "across corpora": across, "corpus probe": probe.assign(labels_of=task.name)}
        records += [found.assign(check=check) for check, found in named.items()]
    return (pd.concat(records, ignore_index=True) if records else pd.DataFrame()), notes


def tabulate_audit(records: pd.DataFrame) -> pd.DataFrame:
    """The audit for a page: UAR of each check, with what was learned from and tested on."""
    columns = [
        "check",
        "labels of",
        "learned from",
        "tested on",
        "UAR",
        "low",
        "high",
        "windows",
        "speakers",
        "why not",
    ]
    if records.empty:
        return pd.DataFrame(columns=columns)
    rows = records[records["metric"] == "uar"]
    blank = pd.Series("", index=rows.index)
    told = rows["labels_of"].fillna("").where(rows["task"] == "corpus", rows["task"])
    table = pd.DataFrame({
        "check": rows["check"], "labels of": told, "learned from": rows.get("train_corpus", blank),
        "tested on": rows.get("test_corpus", blank), "UAR": rows["value"], "low": rows["low"], "high": rows["high"],
        "windows": rows["n"], "speakers": rows["speakers"], "why not": rows.get("reason", blank),
    })  # fmt: skip
    return table.fillna({"learned from": "all", "tested on": "all", "why not": ""}).reset_index(drop=True)
