"""What the parts of a split share: the gate of 04 that stops a run, and what its page says."""

from itertools import combinations

import pandas as pd

from lib.splits import PARTS, held_languages
from lib.tasks import Task

KINDS = {"speaker": "speaker_id", "recording": "recording_id", "clip": "clip_id", "identical audio": "content_hash"}
EXAMPLES = 5  # ids that a row of the audit names


def audit_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Count what two parts of a split share: speakers, recordings, clips, identical audio, languages.
    splits: one row a window of each task, protocol and fold, with `split` and the columns of `KINDS`, of which others than the
    speaker may be missing. A language of a corpus of `MANY` must not be shared under "language"; else it is only counted.
    Returns task, protocol, fold, kind, parts, hard (True = never allowed but under the paper's protocol), count, examples."""
    rows = []
    for (task, protocol, fold), table in splits.groupby(["task", "protocol", "fold"], sort=False):
        values = {kind: table[column] for kind, column in KINDS.items() if column in table}
        values["language"], part = held_languages(table).dropna(), table["split"]
        for one, other in combinations([name for name in PARTS if (part == name).any()], 2):
            for kind, ids in values.items():
                hard = kind in KINDS or (kind == "language" and protocol == "language")
                shared = sorted(set(ids[part == one]) & set(ids[part == other]))
                examples = ", ".join(map(str, shared[:EXAMPLES]))
                rows.append((task, protocol, fold, kind, f"{one}, {other}", hard, len(shared), examples))
    return pd.DataFrame(rows, columns=["task", "protocol", "fold", "kind", "parts", "hard", "count", "examples"])


def stop_on_leakage(audit: pd.DataFrame) -> None:
    """ValueError naming split and ids when parts of a split other than the paper's share what they must not."""
    shared, places = audit[audit["hard"] & (audit["count"] > 0) & (audit["protocol"] != "paper")], []
    for row in shared.itertuples():
        where = f"task {row.task}, protocol {row.protocol}, fold {row.fold}"
        places.append(f"{where}: {row.count} {row.kind}(s) in both {row.parts}: {row.examples}")
    if places:
        raise ValueError("the parts of this split share what they must not: " + "; ".join(places))


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


def tell_overlap(splits: pd.DataFrame) -> str:
    """How many of the tested speakers are heard in training too, by protocol, of the first task and fold."""
    task, sentences = splits["task"].iloc[0], []
    for protocol, rows in splits[(splits["task"] == task) & (splits["fold"] == 0)].groupby("protocol", sort=False):
        heard, tested = (set(rows.loc[rows["split"] == part, "speaker_id"]) for part in ("train", "test"))
        both = f"{len(heard & tested):,} of {len(tested):,} tested speakers"
        sentences.append(f"Under '{protocol}' {both} are heard in training too ({task}).")
    return " ".join(sentences)
