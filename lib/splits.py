"""Who is trained on and who is tested on: unseen speakers, unseen languages, random windows as published; and the proof that nothing leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

PARTS = {"train": 0.68, "validation": 0.12, "test": 0.20}  # the shares of the paper's own code
PROTOCOLS = ["speaker", "language", "paper"]
MANY = 3  # languages that a corpus must have for "language" to hold some of them out; of others it splits the speakers
KINDS = {"speaker": "speaker_id", "recording": "recording_id", "clip": "clip_id", "identical audio": "content_hash"}


def split_windows(table: pd.DataFrame, protocol: str, target: str, seed: int, folds: int = 0) -> list[pd.Series]:
    """Give every window its part: `window_id` -> "train" | "validation" | "test", one Series a fold.

    Parameters
    ----------
    table: one row a window, with `window_id, speaker_id, recording_id, corpus, language` and the column `target`.
    protocol: "speaker" (unseen speakers), "language" (unseen languages, and unseen speakers) or "paper" (random windows).
    target: column holding the class; a missing class is an error, because such a window cannot be trained on.
    seed: the same seed gives the same split.
    folds: 0 = one split, 68 / 12 / 20 %; 3 or more = so many, in which everyone is tested exactly once and 15 % of the rest
        are validation. "paper" is always split once.

    Under "language" a window of somebody who also speaks a language of another part has no part: it is left out of the Series.
    Raises ValueError naming the class when it has too few speakers for every part to hold it.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {PROTOCOLS}")
    if folds in (1, 2) or folds < 0:
        raise ValueError(f"folds = {folds}: take 3 or more, or 0 for one fixed split")
    for name in ("window_id", "speaker_id", "recording_id", target):
        if table[name].isna().any():
            first = table.loc[table[name].isna(), "window_id"].iloc[0]
            raise ValueError(f"window {first} has no {name}; drop such windows before splitting")
    if not table["window_id"].is_unique:
        raise ValueError(f"window_id {table.loc[table['window_id'].duplicated(), 'window_id'].iloc[0]} occurs twice")
    if protocol == "paper":
        return [split_paper(table, seed)]
    group = link_groups(table) if protocol == "speaker" else language_groups(table)
    if not folds:
        return [_without_guests(table, protocol, _deal(table, target, group, seed, PARTS), target)]
    names = [f"fold-{number}" for number in range(folds)]
    dealt = _deal(table, target, group, seed, dict.fromkeys(names, 1 / folds))
    splits = []
    for name in names:
        split = dealt.where(dealt != name, "test")
        rest = (split != "test").to_numpy()
        split.update(_deal(table[rest], target, group[rest], seed, {"train": 0.85, "validation": 0.15}))
        splits.append(_without_guests(table, protocol, split, target))
    return splits


def split_paper(table: pd.DataFrame, seed: int) -> pd.Series:
    """Split random windows 68 / 20 / 12 % (train / test / validation) as the paper's code does.

    20 % are cut off for the test, then 15 % of the rest for validation; windows of one clip, which overlap by a second,
    land on both sides. Only the seed is ours.
    """
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(len(table)), test_size=0.20, random_state=seed)
    _, validation = train_test_split(rest, test_size=0.15, random_state=seed)
    split = np.full(len(table), "train", dtype=object)
    split[test], split[validation] = "test", "validation"
    return pd.Series(split, index=table["window_id"].to_numpy(), name="split", dtype="str")


def link_groups(table: pd.DataFrame) -> pd.Series:
    """Number the connected components of speakers and recordings; rows of one number must stay together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    speaker, speakers = pd.factorize(table["speaker_id"])
    recording, recordings = pd.factorize(table["recording_id"])
    size = len(speakers) + len(recordings)
    edges = coo_matrix((np.ones(len(table), np.int8), (speaker, len(speakers) + recording)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return pd.Series(component[speaker], index=table.index, name="group")


def language_groups(table: pd.DataFrame) -> pd.Series:
    """The language of each window in corpora of `MANY` languages and more, the speaker in others."""
    languages = table.groupby("corpus")["language"].transform("nunique")
    return table["speaker_id"].where(languages < MANY, table["corpus"] + ":" + table["language"]).rename("group")


def _without_guests(table: pd.DataFrame, protocol: str, split: pd.Series, target: str) -> pd.Series:
    """Leave out windows of speakers who occur in several parts, as those of several languages do; check what remains."""
    if protocol == "language":
        parts = split.to_numpy()
        home = table.assign(part=parts).groupby(["speaker_id", "part"]).size().reset_index(name="windows")
        home = home.sort_values("windows").drop_duplicates("speaker_id", keep="last").set_index("speaker_id")["part"]
        split = split[parts == table["speaker_id"].map(home).to_numpy()]
    _require_classes(table.set_index("window_id").loc[split.index], target, split)
    return split.rename("split")


def _deal(table: pd.DataFrame, target: str, group: pd.Series, seed: int, parts: dict[str, float]) -> pd.Series:
    """Deal groups of windows out to parts, those of the rarest class first, each to where it does least harm to the shares.

    Shares are kept at three levels at once, in chi-square distance: groups of a class, groups of a class in a corpus, and
    windows of a class. The last groups of a class go where the class is still missing.
    """
    groups = _describe_groups(table, target, group, np.random.default_rng(seed))
    names, shares = list(parts), np.array(list(parts.values()))
    held: dict[Any, np.ndarray] = {}
    totals: dict[Any, float] = groups["label"].value_counts().to_dict()
    totals |= groups.groupby(["label", "corpus"]).size().to_dict()
    totals |= {("windows", label, "all"): n for label, n in groups.groupby("label")["windows"].sum().items()}
    left = groups["label"].value_counts().to_dict()
    assigned = {}
    for row in groups.itertuples(index=False):
        added = {row.label: 1, (row.label, row.corpus): 1, ("windows", row.label, "all"): row.windows}
        harm = np.zeros(len(names))
        for level, amount in added.items():
            after = held.setdefault(level, np.zeros(len(names))) + amount * np.eye(len(names))  # one row a choice
            harm += ((after - shares * after[0].sum()) ** 2 / shares).sum(axis=1) / totals[level] ** 2
        empty = held[row.label] == 0
        if left[row.label] <= empty.sum():
            harm = np.where(empty, harm, np.inf)
        part = int(np.argmin(harm))
        assigned[row.group] = names[part]
        left[row.label] -= 1
        for level, amount in added.items():
            held[level][part] += amount
    return pd.Series(group.map(assigned).to_numpy(), index=table["window_id"].to_numpy(), name="split", dtype="str")


def _describe_groups(table: pd.DataFrame, target: str, group: pd.Series, rng: np.random.Generator) -> pd.DataFrame:
    """One row a group: its windows, its class (the rarest it holds) and its corpus, in the order of dealing."""
    rows = pd.DataFrame({"group": group, "label": table[target].astype(str), "corpus": table["corpus"].astype(str)})
    rows["rarity"] = rows["label"].map(rows.drop_duplicates(["group", "label"])["label"].value_counts())
    first = rows.sort_values(["rarity", "label"], kind="stable").drop_duplicates("group").set_index("group")
    groups = first[["label", "corpus", "rarity"]].assign(windows=rows["group"].value_counts())
    groups = groups.sort_index().iloc[rng.permutation(len(groups))]
    groups["scale"] = -np.log2(groups["windows"]).astype(int)  # powers of two, so that another seed deals another order
    return groups.sort_values(["rarity", "label", "scale"], kind="stable").reset_index()


def _require_classes(table: pd.DataFrame, target: str, split: pd.Series) -> None:
    labels = table[target].astype(str).to_numpy()
    present = pd.crosstab(labels, split.to_numpy()).reindex(columns=list(PARTS), fill_value=0)
    for label, counts in present.iterrows():
        if (counts == 0).any():
            speakers = table.loc[labels == label, "speaker_id"].nunique()
            where = ", ".join(counts.index[counts == 0])
            raise ValueError(
                f"class {label!r} of {target} has {speakers} speakers, not enough for every part to hold it "
                f"(none in: {where}); add speakers of this class or leave the class out"
            )


# ------------------------------------------------------------------------------------------------------ the leakage gate


def audit_leakage(
    table: pd.DataFrame, split: pd.Series, embeddings: Any = None, threshold: float = 0.999, examples: int = 5
) -> pd.DataFrame:
    """Count what two parts share: speakers, recordings, clips, identical audio, and near-duplicate embeddings.

    Parameters
    ----------
    table: one row a window: `window_id` and the columns of `KINDS` that are known.
    split: `window_id` -> part.
    embeddings: (n, ...), a vector a window in the table's order, only ever indexed by rows, so that it may stay on disk;
        None = near-duplicates are not looked for.
    threshold: cosine, after the mean vector is taken away, from which windows of *different* speakers are near-duplicates.

    Returns kind, parts, hard (True = never allowed but under the paper's protocol), count, examples.
    """
    part = split.reindex(table["window_id"].to_numpy()).to_numpy()
    if pd.isna(part).any():
        raise ValueError(f"window {table['window_id'].to_numpy()[pd.isna(part)][0]} has no part in this split")
    names = [name for name in PARTS if (part == name).any()]
    rows = []
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            for kind, column in KINDS.items():
                if column in table:
                    values = table[column].to_numpy()
                    shared = sorted(set(values[part == one]) & set(values[part == other]))
                    rows.append((kind, f"{one}, {other}", True, len(shared), ", ".join(map(str, shared[:examples]))))
            if embeddings is not None:
                pairs = _near_duplicates(table, embeddings, part == one, part == other, threshold)
                ids = ", ".join(f"{a} ~ {b}" for a, b in pairs[:examples])
                rows.append(("near-duplicate", f"{one}, {other}", False, len(pairs), ids))
    return pd.DataFrame(rows, columns=["kind", "parts", "hard", "count", "examples"])


def require_no_leakage(audit: pd.DataFrame) -> pd.DataFrame:
    """Return the audit, or raise ValueError naming the shared ids when a hard kind of overlap is not zero."""
    shared = audit[audit["hard"] & (audit["count"] > 0)]
    if len(shared):
        rows = shared.to_dict("records")
        lines = [f"{row['count']} {row['kind']}(s) in both {row['parts']}: {row['examples']}" for row in rows]
        raise ValueError("the parts of this split share what they must not: " + "; ".join(lines))
    return audit


def _near_duplicates(
    table: pd.DataFrame, embeddings: Any, one: np.ndarray, other: np.ndarray, threshold: float, block: int = 2048
) -> list[tuple[str, str]]:
    """Pairs of window ids, different speakers, whose centred cosine reaches `threshold`; at most block x block at once."""
    ids, speakers = table["window_id"].to_numpy(), pd.factorize(table["speaker_id"])[0]
    starts = range(0, len(embeddings), block)
    sums = [embeddings[np.arange(s, min(s + block, len(embeddings)))].sum(axis=0, dtype=np.float64) for s in starts]
    centre = np.sum(sums, axis=0).ravel() / len(embeddings)
    rows, columns, pairs = np.flatnonzero(one), np.flatnonzero(other), []
    for start in range(0, len(rows), block):
        a = rows[start : start + block]
        left = _unit(embeddings[a], centre)
        for begin in range(0, len(columns), block):
            b = columns[begin : begin + block]
            near = (left @ _unit(embeddings[b], centre).T >= threshold) & (speakers[a][:, None] != speakers[b][None])
            pairs += [(ids[a[i]], ids[b[j]]) for i, j in zip(*np.nonzero(near))]
    return pairs


def _unit(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32).reshape(len(vectors), -1) - centre.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
