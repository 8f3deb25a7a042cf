"""What the parts of a split share: the gate of 04 that stops a run, and what its page says."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from sklearn.preprocessing import normalize

from lib.splits import PARTS, held_languages
from lib.store import Store
from lib.tasks import Task

KINDS = {"speaker": "speaker_id", "recording": "recording_id", "clip": "clip_id", "identical audio": "content_hash"}
NEAR = 0.999  # cosine, mean vector taken away, from which windows of different speakers are near-duplicates
EXAMPLES = 5  # ids that a row of the audit names
BLOCK = 2048  # windows whose embeddings are compared at once


def audit_splits(splits: pd.DataFrame, store: Store) -> pd.DataFrame:
    """What the parts of every split share; see `audit_leakage`."""
    audits, hidden = [], [name for name in store.parts if name.startswith(("layer:", "block:"))]
    for (task, protocol, fold), table in splits.groupby(["task", "protocol", "fold"], sort=False):
        averages = store.statistics(table["window_id"], hidden)
        audit = audit_leakage(table, table.set_index("window_id")["split"], averages, protocol)
        audits.append(audit.assign(task=task, fold=fold))
    return pd.concat(audits, ignore_index=True)


def audit_leakage(table: pd.DataFrame, split: pd.Series, means: Any = None, protocol: str = "speaker") -> pd.DataFrame:
    """Count what two parts share: speakers, recordings, clips, identical audio, languages, near-duplicate embeddings.

    table: one row a window: `window_id, speaker_id, corpus, language` and, where known, the other columns of `KINDS`.
    split: `window_id` -> part. means: (n, ...), of each window's embeddings in the table's order, only ever indexed by rows,
    so that they may stay on disk; None = near-duplicates are not looked for. protocol: under "language" a language of a
    corpus of `MANY` must not be shared either; else it is only counted.

    Returns kind, parts, hard (True = never allowed but under the paper's protocol), count, examples, protocol.
    """
    part = split.reindex(table["window_id"]).set_axis(table.index)
    if part.isna().any():
        raise ValueError(f"window {table.loc[part.isna(), 'window_id'].iloc[0]} has no part in this split")
    values = {kind: table[column] for kind, column in KINDS.items() if column in table}
    values["language"] = held_languages(table).dropna()
    rows = []
    for one, other in combinations([name for name in PARTS if (part == name).any()], 2):
        shared = {kind: sorted(set(ids[part == one]) & set(ids[part == other])) for kind, ids in values.items()}
        if means is not None:
            places = (np.flatnonzero(part == name) for name in (one, other))
            shared["near-duplicate"] = _near_duplicates(table, means, *places)
        for kind, ids in shared.items():
            hard = kind in KINDS or (kind == "language" and protocol == "language")
            rows.append((kind, f"{one}, {other}", hard, len(ids), ", ".join(map(str, ids[:EXAMPLES]))))
    return pd.DataFrame(rows, columns=["kind", "parts", "hard", "count", "examples"]).assign(protocol=protocol)


def stop_on_leakage(audit: pd.DataFrame) -> None:
    """ValueError naming split and ids when parts of a split other than the paper's share what they must not."""
    shared, places = audit["hard"] & (audit["count"] > 0) & (audit["protocol"] != "paper"), []
    for row in audit[shared].to_dict("records"):
        where = ", ".join(f"{name} {row[name]}" for name in ("task", "protocol", "fold") if name in row)
        places.append(f"{where}: {row['count']} {row['kind']}(s) in both {row['parts']}: {row['examples']}")
    if places:
        raise ValueError("the parts of this split share what they must not: " + "; ".join(places))


def _near_duplicates(table: pd.DataFrame, embeddings: Any, one: np.ndarray, other: np.ndarray) -> list[str]:
    """Pairs "a ~ b" of window ids of different speakers whose centred cosine reaches `NEAR`; `BLOCK` x `BLOCK` at once."""
    ids, speakers = table["window_id"].to_numpy(), pd.factorize(table["speaker_id"])[0]
    blocks, here, there = (np.split(rows, range(BLOCK, len(rows), BLOCK)) for rows in (np.arange(len(ids)), one, other))
    sums = [embeddings[block].sum(axis=0, dtype=np.float64) for block in blocks]
    centre = (np.sum(sums, axis=0).ravel() / len(ids)).astype(np.float32)
    pairs = []
    for a in here:
        left = normalize(embeddings[a].reshape(len(a), -1) - centre)
        for b in there:
            right = normalize(embeddings[b].reshape(len(b), -1) - centre)
            near = (left @ right.T >= NEAR) & (speakers[a][:, None] != speakers[b])
            pairs += [f"{ids[a[i]]} ~ {ids[b[j]]}" for i, j in zip(*np.nonzero(near))]
    return pairs


def summarise_audit(audit: pd.DataFrame) -> pd.DataFrame:
    """The audit for a page: counts added up over folds and pairs of parts, one row a task, protocol and kind."""
    groups = audit.groupby(["protocol", "kind", "task"], sort=False)
    table = groups.agg(hard=("hard", "first"), shared=("count", "sum"), examples=("examples", "first")).reset_index()
    return table.assign(examples=[text.split(", ")[0] for text in table["examples"]])


def count_splits(splits: pd.DataFrame, tasks: list[Task]) -> pd.DataFrame:
    """Windows and speakers of each part by task, protocol and class; of a cross-validation the first fold."""
    splits, classes = splits[splits["fold"] == 0], {task.name: task.classes for task in tasks}
    names = [classes[task][target] for task, target in zip(splits["task"], splits["target"])]
    rows = splits.assign(**{"class": names}).groupby(["task", "protocol", "class", "split"], sort=False)
    counts = rows.agg(windows=("window_id", "size"), speakers=("speaker_id", "nunique")).unstack("split").fillna(0)
    counts = counts.reindex(columns=[(kind, part) for part in PARTS for kind in ("windows", "speakers")]).astype(int)
    return counts.set_axis([f"{part} {kind}" for kind, part in counts.columns], axis=1).reset_index()


def tell_overlap(splits: pd.DataFrame, protocols: list[str]) -> str:
    """How many of the tested speakers are heard in training too, by protocol, of the first task and fold."""
    task, sentences = splits["task"].iloc[0], []
    for protocol in protocols:
        rows = splits[(splits["task"] == task) & (splits["fold"] == 0) & (splits["protocol"] == protocol)]
        heard, tested = (set(rows.loc[rows["split"] == part, "speaker_id"]) for part in ("train", "test"))
        both = f"{len(heard & tested):,} of {len(tested):,} tested speakers"
        sentences.append(f"Under '{protocol}' {both} are heard in training too ({task}).")
    return " ".join(sentences)
