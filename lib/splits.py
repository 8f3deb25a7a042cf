"""Who is trained on and who is tested on: unseen speakers, unseen languages, random windows as published."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split

PARTS = {"train": 0.68, "validation": 0.12, "test": 0.20}  # the shares of the paper's own code
PROTOCOLS = ["speaker", "language", "paper"]
MANY = 3  # languages that a corpus must have for "language" to hold some of them out; of others it splits the speakers


def split_windows(table: pd.DataFrame, protocol: str, target: str, seed: int, folds: int = 0) -> list[pd.Series]:
    """Give every window its part: `window_id` -> "train" | "validation" | "test", one Series a fold.
    table: one row a window, with `window_id, speaker_id, recording_id, corpus, language` and `target`, its class. protocol:
    "speaker" (unseen speakers), "language" (unseen languages and speakers; windows of who also speaks a language of another part,
    where most of theirs lie, are left out) or "paper" (random windows, always split once). folds: 0 = one split, 68 / 12 / 20 %;
    3 or more = so many, in which everyone is tested exactly once and 15 % of the rest are validation. ValueError names a class
    that has too few speakers for every part to hold it."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {PROTOCOLS}")
    if folds in (1, 2) or folds < 0:
        raise ValueError(f"folds = {folds}: take 3 or more, or 0 for one fixed split")
    if protocol == "paper":
        return [split_paper(table, seed)]
    links = link_groups(table)
    group, held = links.astype(str), held_languages(table)
    if protocol == "language" and held.isna().all():
        raise ValueError(f"no corpus has {MANY} languages, so none can be held out; take 'language' out of protocols")
    if protocol == "language":
        group = held.fillna(group)
    if folds:
        names, splits = [f"fold-{number}" for number in range(folds)], []
        fold = _deal(table, target, group, seed, dict.fromkeys(names, 1 / folds))
        for name in names:
            split, rest = fold.where(fold != name, "test"), (fold != name).to_numpy()
            split.update(_deal(table[rest], target, group[rest], seed, {"train": 0.85, "validation": 0.15}))
            splits.append(split)
    else:
        splits = [_deal(table, target, group, seed, PARTS)]
    for number, split in enumerate(splits):  # guests of a part leave it: a group stays where most of its windows lie
        home = pd.crosstab(links.to_numpy(), split.to_numpy()).idxmax(axis=1)
        splits[number] = split[split.to_numpy() == home.loc[links].to_numpy()]
        _require_classes(table, target, splits[number])
    return splits


def split_paper(table: pd.DataFrame, seed: int) -> pd.Series:
    """Random windows as the paper's code splits them, 20 % for the test, 15 % of the rest for validation: windows of one clip,
    which overlap by a second, land on both sides. Only the seed is ours."""
    rest, test = train_test_split(np.arange(len(table)), test_size=0.20, random_state=seed)
    _, validation = train_test_split(rest, test_size=0.15, random_state=seed)
    split = np.full(len(table), "train", dtype=object)
    split[test], split[validation] = "test", "validation"
    return pd.Series(split, index=table["window_id"].to_numpy(), name="split", dtype="str")


def link_groups(table: pd.DataFrame) -> pd.Series:
    """Number the connected components of speakers and recordings; rows of one number must stay together."""
    speaker, speakers = pd.factorize(table["speaker_id"])
    recording, recordings = pd.factorize(table["recording_id"])
    size = len(speakers) + len(recordings)
    edges = coo_matrix((np.ones(len(table), np.int8), (speaker, len(speakers) + recording)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return pd.Series(component[speaker], index=table.index, name="group")


def held_languages(table: pd.DataFrame) -> pd.Series:
    """Corpus and language of each window, NaN in corpora of fewer than `MANY` languages."""
    languages = table["corpus"].astype(str) + ": " + table["language"].astype(str)
    return languages.where(table.groupby("corpus")["language"].transform("nunique") >= MANY)


def _deal(table: pd.DataFrame, target: str, group: pd.Series, seed: int, parts: dict[str, float]) -> pd.Series:
    """Deal groups of windows out to parts, those with the rarest class first, each to where it does least harm, in chi-square
    distance, to the shares of windows of a class, of its speakers, and of these in a corpus; the last where a class is missing."""
    rows = pd.DataFrame({"group": group, "speaker": table["speaker_id"], "class": table[target].astype(str)})
    rows["class in corpus"] = rows["class"] + " in " + table["corpus"].astype(str)
    speakers = rows.drop_duplicates(["group", "speaker", "class in corpus"])
    windows, voices = (pd.crosstab(one["group"], one["class"]) for one in (rows, speakers))
    sizes = [windows, voices, pd.crosstab(speakers["group"], speakers["class in corpus"])]
    sizes = pd.concat(sizes, axis=1).to_numpy(np.float64)  # (groups, K): what each group brings along
    sizes /= sizes.sum(axis=0)
    holds = voices.to_numpy() > 0  # (groups, C)
    rarest = np.where(holds, holds.sum(axis=0), np.inf).min(axis=1)
    scale = np.log2(windows.sum(axis=1)).astype(int)  # powers of two, so that another seed deals in another order
    order = np.lexsort([np.random.default_rng(seed).permutation(len(holds)), -scale, rarest])

    shares, part_of = np.array(list(parts.values()))[:, None], np.zeros(len(holds), int)
    surplus = np.zeros((len(parts), sizes.shape[1]))  # what a part holds beyond its share of all that was dealt
    missing, left = np.ones((len(parts), holds.shape[1]), bool), holds.sum(axis=0)
    for number in order:
        surplus -= shares * sizes[number]
        harm = ((2 * surplus + sizes[number]) * sizes[number] / shares).sum(axis=1)
        due = holds[number] & (left <= missing.sum(axis=0))
        if due.any():
            harm = np.where(missing[:, due].any(axis=1), harm, np.inf)
        part_of[number] = part = harm.argmin()
        surplus[part] += sizes[number]
        missing[part] &= ~holds[number]
        left = left - holds[number]
    split = group.map(pd.Series(np.array(list(parts))[part_of], windows.index))
    return pd.Series(split.to_numpy(), index=table["window_id"].to_numpy(), name="split", dtype="str")


def _require_classes(table: pd.DataFrame, target: str, split: pd.Series) -> None:
    rows = table.set_index("window_id").loc[split.index]
    present = pd.crosstab(rows[target].astype(str), split).reindex(columns=list(PARTS), fill_value=0)
    for label, counts in present[(present == 0).any(axis=1)].iterrows():
        has = rows.loc[rows[target].astype(str) == label, "speaker_id"].nunique()
        none = f"(none in: {', '.join(counts.index[counts == 0])}); add speakers of this class or leave the class out"
        raise ValueError(f"class {label!r} of {target} has {has} speakers, not enough for every part to hold it {none}")
