"""Who is trained on and who is tested on: splits by speaker, as published, or official, and the proof that nothing leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

PARTS = {"train": 0.68, "validation": 0.12, "test": 0.20}  # the shares of the paper's own code
PROTOCOLS = ["speaker", "paper", "official"]


def assign_splits(
    table: pd.DataFrame, protocol: str, target: str, seed: int, parts: dict[str, float] | None = None
) -> pd.Series:
    """Give every window its part: a Series `window_id` -> "train" | "validation" | "test", in the table's order.

    Parameters
    ----------
    table: one row a window, with `window_id, speaker_id, recording_id`, the column `target`, and, where known,
        `corpus` and `official_split` (the latter is needed by the protocol "official").
    protocol: "speaker" (unseen speakers), "paper" (random windows, as published) or "official" (the corpus's own).
    target: column holding the class; a missing class is an error, because such a window cannot be trained on.
    seed: the same seed gives the same split.
    parts: share of each part; None = 68 / 12 / 20 %. The paper's protocol has its own fixed shares.

    Raises ValueError naming the class when it has too few speakers for every part to hold it.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {PROTOCOLS}")
    needed = ["window_id", "speaker_id", "recording_id", target]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ValueError(f"the table to split lacks {missing}; it has {list(table.columns)}")
    for name in needed:
        if table[name].isna().any():
            first = table.loc[table[name].isna(), "window_id"].iloc[0]
            raise ValueError(f"window {first} has no {name}; drop such windows before splitting")
    if not table["window_id"].is_unique:
        raise ValueError(f"window_id {table.loc[table['window_id'].duplicated(), 'window_id'].iloc[0]} occurs twice")
    if protocol == "paper":
        return split_paper(table, seed)
    split = split_official if protocol == "official" else split_speakers
    return split(table, target, seed, parts or PARTS)


def split_speakers(table: pd.DataFrame, target: str, seed: int, parts: dict[str, float] | None = None) -> pd.Series:
    """Split so that no speaker and no recording straddles two parts; every part holds every class.

    Speakers who share a recording (two voices in one video) stay together. Such groups are dealt out largest first
    within their class, each to the part whose shares of groups and windows it fits best; corpora are balanced as well.
    """
    parts = _checked_parts(parts or PARTS)
    linked = link_groups(table)
    assigned = _deal_groups(_describe_groups(table, target, linked, np.random.default_rng(seed)), parts)
    split = pd.Series(linked.map(assigned).to_numpy(), index=table["window_id"].to_numpy(), name="split", dtype="str")
    _require_classes(table, target, split, list(parts))
    return split


def split_folds(table: pd.DataFrame, target: str, seed: int, folds: int) -> list[pd.Series]:
    """Split `folds` times so that every speaker is tested exactly once; each like `split_speakers`, on other speakers.

    The test parts are equal shares; 15 % of the rest, by speaker, is validation. ValueError for fewer than 3 folds, and
    when a class has too few speakers for every fold.
    """
    if folds < 3:
        raise ValueError(f"folds = {folds}: take 3 or more, or 0 for one fixed split")
    names = [f"fold-{k}" for k in range(folds)]
    dealt = split_speakers(table, target, seed, dict.fromkeys(names, 1 / folds))
    splits = []
    for name in names:
        split = dealt.where(dealt != name, "test")
        rest = table[(split != "test").to_numpy()]
        split.update(split_speakers(rest, target, seed, {"train": 0.85, "validation": 0.15}))
        splits.append(split.rename("split"))
    return splits


def split_paper(table: pd.DataFrame, seed: int) -> pd.Series:
    """Split random windows 68 / 20 / 12 % (train / test / validation) as the paper's code does.

    20 % are cut off for the test, then 15 % of the rest for validation; windows of one clip, which overlap by a second,
    land on both sides. Only the seed is ours.
    """
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(table))
    rest, test = train_test_split(rows, test_size=0.20, random_state=seed)
    _, validation = train_test_split(rest, test_size=0.15, random_state=seed)
    split = np.full(len(table), "train", dtype=object)
    split[test], split[validation] = "test", "validation"
    return pd.Series(split, index=table["window_id"].to_numpy(), name="split", dtype="str")


def split_official(table: pd.DataFrame, target: str, seed: int, parts: dict[str, float] | None = None) -> pd.Series:
    """Keep the corpus's own train and test; carve a missing validation part out of train, by speaker."""
    parts = _checked_parts(parts or PARTS)
    if "official_split" not in table or table["official_split"].isna().any():
        count = int(table["official_split"].isna().sum()) if "official_split" in table else len(table)
        raise ValueError(
            f"{count} of {len(table)} windows have no official_split; use protocol 'speaker' for this corpus"
        )
    split = pd.Series(
        table["official_split"].to_numpy(), index=table["window_id"].to_numpy(), name="split", dtype="str"
    )
    if not (split == "validation").any() and "validation" in parts:
        of_train = table[(split == "train").to_numpy()]
        share = parts["validation"] / (parts["validation"] + parts["train"])
        split.update(split_speakers(of_train, target, seed, {"train": 1 - share, "validation": share}))
    _require_classes(table, target, split, list(parts))
    return split


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


def _checked_parts(parts: dict[str, float]) -> dict[str, float]:
    if not parts or min(parts.values()) <= 0 or abs(sum(parts.values()) - 1) > 1e-6:
        raise ValueError(f"shares of a split must be positive and add up to 1, not {parts}")
    return parts


def _describe_groups(table: pd.DataFrame, target: str, group: pd.Series, rng: np.random.Generator) -> pd.DataFrame:
    """One row a group: its windows, its class (the rarest it holds) and its corpus, in the order of dealing."""
    rows = pd.DataFrame({"group": group, "label": table[target].astype(str)})
    rows["corpus"] = table["corpus"].astype(str) if "corpus" in table else ""
    holders = rows.drop_duplicates(["group", "label"])["label"].value_counts()
    rows["rarity"] = rows["label"].map(holders)
    first = rows.sort_values(["rarity", "label"], kind="stable").drop_duplicates("group").set_index("group")
    groups = first[["label", "corpus", "rarity"]].assign(windows=rows["group"].value_counts())
    groups = groups.sort_index().iloc[rng.permutation(len(groups))]
    # Sizes are compared by their power of two only, so that another seed deals out another order.
    groups["scale"] = -np.log2(groups["windows"]).astype(int)
    return groups.sort_values(["rarity", "label", "scale"], kind="stable").reset_index()


def _deal_groups(groups: pd.DataFrame, parts: dict[str, float]) -> dict[int, str]:
    """Give each group to the part where it does least harm to the shares.

    Shares are kept at three levels at once, in chi-square distance: groups of its class, groups of its class in its
    corpus, and windows of its class. The last groups of a class go where the class is still missing.
    """
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
    return assigned


def _require_classes(table: pd.DataFrame, target: str, split: pd.Series, parts: list[str]) -> None:
    labels = table[target].astype(str).to_numpy()
    present = pd.crosstab(labels, split.to_numpy()).reindex(columns=parts, fill_value=0)
    for label, counts in present.iterrows():
        if (counts == 0).any():
            speakers = table.loc[labels == label, "speaker_id"].nunique()
            where = ", ".join(counts.index[counts == 0])
            raise ValueError(
                f"class {label!r} of {target} has {speakers} speakers, not enough for every part to hold it "
                f"(none in: {where}); add speakers of this class or leave the class out"
            )


# ----------------------------------------------------------------------------------------------------------------------
# The leakage gate


def audit_leakage(
    table: pd.DataFrame,
    split: pd.Series,
    embeddings: Any = None,
    threshold: float = 0.999,
    examples: int = 5,
) -> pd.DataFrame:
    """Count what two parts share: speakers, recordings, clips, identical audio, and near-duplicate embeddings.

    Parameters
    ----------
    table: one row a window: `window_id, clip_id, speaker_id, recording_id` and, for identical audio, `content_hash`.
    split: `window_id` -> part.
    embeddings: [n, ...], a vector a window in the table's order, only ever indexed by rows, so that it may stay on disk;
        None = near-duplicates are not looked for.
    threshold: cosine, after the mean vector is taken away, from which windows of *different* speakers are near-duplicates.
    examples: how many ids to name a row.

    Returns kind, parts, hard (True = never allowed under the speaker protocol), count, examples.
    """
    part = split.reindex(table["window_id"].to_numpy()).to_numpy()
    if pd.isna(part).any():
        raise ValueError(f"window {table['window_id'].to_numpy()[pd.isna(part)][0]} has no part in this split")
    kinds = {"speaker": "speaker_id", "recording": "recording_id", "clip": "clip_id", "identical audio": "content_hash"}
    names = [name for name in PARTS if (part == name).any()]
    rows = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            for kind, column in kinds.items():
                if column in table:
                    values = table[column].to_numpy()
                    shared = sorted(set(values[part == one]) & set(values[part == other]))
                    rows.append((kind, f"{one}, {other}", True, len(shared), ", ".join(map(str, shared[:examples]))))
            if embeddings is not None:
                pairs = _near_duplicates(table, embeddings, part == one, part == other, threshold)
                named = ", ".join(f"{a} ~ {b}" for a, b in pairs[:examples])
                rows.append(("near-duplicate", f"{one}, {other}", False, len(pairs), named))
    return pd.DataFrame(rows, columns=["kind", "parts", "hard", "count", "examples"])


def require_no_leakage(audit: pd.DataFrame) -> pd.DataFrame:
    """Return the audit, or raise ValueError naming the shared ids when a hard kind of overlap is not zero."""
    found = audit[audit["hard"] & (audit["count"] > 0)]
    if len(found):
        lines = [
            f"{row.count_} {row.kind}(s) in both {row.parts}: {row.examples}"
            for row in found.rename(columns={"count": "count_"}).itertuples()
        ]
        raise ValueError("the parts of this split share what they must not: " + "; ".join(lines))
    return audit


def _near_duplicates(
    table: pd.DataFrame, embeddings: Any, one: np.ndarray, other: np.ndarray, threshold: float, block: int = 2048
) -> list[tuple[str, str]]:
    """Pairs of window ids, different speakers, whose centred cosine reaches `threshold`; at most block x block at once."""
    ids, speakers = table["window_id"].to_numpy(), pd.factorize(table["speaker_id"])[0]
    centre = _mean_vector(embeddings, block)
    rows, columns = np.flatnonzero(one), np.flatnonzero(other)
    pairs = []
    for start in range(0, len(rows), block):
        a = rows[start : start + block]
        left = _unit(embeddings[a], centre)
        for begin in range(0, len(columns), block):
            b = columns[begin : begin + block]
            near = (left @ _unit(embeddings[b], centre).T >= threshold) & (speakers[a][:, None] != speakers[b][None])
            pairs += [(ids[a[i]], ids[b[j]]) for i, j in zip(*np.nonzero(near))]
    return pairs


def _mean_vector(embeddings: Any, block: int) -> np.ndarray:
    total = sum(
        np.asarray(embeddings[np.arange(start, min(start + block, len(embeddings)))]).sum(axis=0, dtype=np.float64)
        for start in range(0, len(embeddings), block)
    )
    return total.ravel() / len(embeddings)


def _unit(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32).reshape(len(vectors), -1) - centre.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
