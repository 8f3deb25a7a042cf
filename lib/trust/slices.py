"""Where a model works and where it does not: one metric by group, the worst group by name, the errors one by one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.audio import RATE_HZ
from lib.bootstrap import DRAWS
from lib.scores import make_records, score_trainings


def band_values(values: np.ndarray, edges: list[float], unit: str) -> np.ndarray:
    """Name the band of each value: edges [2, 4] and unit "s" give "under 2 s", "2 to 4 s", "4 s and over"; NaN gives ""."""
    names = [f"under {edges[0]:g} {unit}"]
    names += [f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges)] + [f"{edges[-1]:g} {unit} and over"]
    values = np.asarray(values, np.float64)
    return np.where(np.isnan(values), "", np.asarray(names)[np.searchsorted(edges, values, side="right")])


def score_slices(
    table: pd.DataFrame,
    classes: list[str],
    by: list[str | tuple[str, ...]],
    *,
    metric: str = "uar",
    minimum: int = 30,
    minimum_speakers: int = 5,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """One metric for every group that the columns `by` make: records with `subset` such as "gender=female, age=teen".

    Parameters
    ----------
    table: predictions of one model, with the columns of `by` joined to them; rows blank in one of them are left out.
        Of several training seeds (column `seed`) the mean is taken.
    by: names of columns, or tuples of names for intersections.
    metric: of `confusion_metrics`; "uar" in a group of one class is the recall of that class.
    minimum, minimum_speakers: smaller groups keep their row and their n, but no value (NaN) and `enough` False.
    """
    records, seeds = [], table["seed"].nunique() if "seed" in table else 1
    for names in by:
        names = [names] if isinstance(names, str) else list(names)
        known = table[(table[names].notna() & (table[names].astype(str) != "")).all(axis=1)]
        for key, rows in known.groupby(names, sort=True):
            voices = rows["speaker_id"].to_numpy()
            size = len(rows) // seeds
            enough = size >= minimum and len(set(voices)) >= minimum_speakers
            fixed = (context or {}) | {"subset": ", ".join(f"{n}={k}" for n, k in zip(names, key)), "enough": enough}
            if enough:
                records.append(score_trainings(rows, classes, draws=draws, seed=seed, context=fixed, metrics=[metric]))
            else:
                records.append(make_records({metric: (np.nan,) * 3}, voices, fixed).assign(n=size, seeds=seeds))
    if not records:
        raise ValueError(f"no row of the table has a value in {by}; join those columns first")
    return pd.concat(records, ignore_index=True)


def find_worst(slices: pd.DataFrame) -> dict[str, Any]:
    """The group with the lowest value and its distance from the best: {subset, value, low, high, n, speakers, gap}."""
    known = slices[slices["enough"]]
    if known.empty:
        raise ValueError("no group of these slices is large enough to be scored; lower the minimum")
    worst = known.loc[known["value"].idxmin()]
    names = ["subset", "metric", "value", "low", "high", "n", "speakers"]
    return {name: worst[name] for name in names} | {"gap": float(known["value"].max() - worst["value"])}


def list_errors(table: pd.DataFrame, classes: list[str], count: int = 20) -> pd.DataFrame:
    """The wrong answers of a predictions table, most confident first: its id columns, truth, told, confidence."""
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy()
    told = probabilities.argmax(axis=1)
    ids = [name for name in ("window_id", "clip_id", "speaker_id") if name in table]
    names = np.asarray(classes)
    errors = table[ids].assign(truth=names[table["target"]], told=names[told], confidence=probabilities.max(axis=1))
    return errors[told != table["target"]].sort_values("confidence", ascending=False, kind="stable").head(count)


# ----------------------------------------------------------------------------------------------------------------------
# The slices of a run

BANDS = {  # column of a page -> column of the windows, edges, unit
    "clip length": ("clip_s", [3.0, 5.0, 8.0], "s"),
    "loudness": ("level_db", [-35.0, -25.0], "dB"),
    "share of speech": ("speech_ratio", [0.6, 0.8], "of the window"),
}
SINGLE = ["gender", "age group", "corpus", "language", *BANDS]
PAIRS = [("gender", "age group"), ("gender", "corpus")]
LICENCES = {"speechocean762": "speechocean762 (OpenSLR 101), CC BY 4.0"}  # corpora whose voices a report may play


def describe_windows(table: pd.DataFrame, age: Any | None) -> pd.DataFrame:
    """window_id and the columns of `SINGLE` for one task's windows; "" where not known.

    `table`: rows of a run's splits. `age`: the task whose classes are the age groups, None = no groups. There is no
    clean reference to measure a signal-to-noise ratio against; loudness and share of speech stand in for it.
    """
    from lib.tasks import assign_targets

    table = table.drop_duplicates("window_id").reset_index(drop=True)
    ends = (table["start_s"] + table["duration_s"]).groupby(table["clip_id"]).transform("max")
    table = table.assign(clip_s=ends)
    found = table[["window_id", "gender", "corpus", "language"]].fillna("").copy()
    found["age group"] = ""
    if age is not None:
        names = dict(enumerate(age.classes))
        found["age group"] = assign_targets(table, age).map(names).fillna("").astype(str)
    for name, (column, edges, unit) in BANDS.items():
        found[name] = band_values(table[column].to_numpy(), edges, unit)
    return found


def slice_answers(
    answers: pd.DataFrame, described: pd.DataFrame, task: Any, by: list[Any] | None, draws: int, seed: int
) -> pd.DataFrame:
    """Slices of one model's window answers by the columns of `by` (None = all) that tell windows apart; [] gives none.

    Of a task that *is* a column, only the others are used: the recall of one class is not a slice.
    """
    table = answers.merge(described, on="window_id", validate="many_to_one")
    own = {"gender": "gender"}.get(task.name, "age group")
    told = {name for name in SINGLE if table.loc[table[name] != "", name].nunique() > 1}
    wanted = [name for name in (by or [*SINGLE, *PAIRS]) if set([name] if isinstance(name, str) else name) <= told]
    wanted = [name for name in wanted if own != name and not (isinstance(name, tuple) and own in name)]
    if not wanted:
        return pd.DataFrame()
    context = {name: answers[name].iloc[0] for name in ("task", "model", "protocol", "split")} | {"level": "window"}
    return score_slices(table, task.classes, wanted, draws=draws, seed=seed, context=context)


def slice_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Any], models: dict[str, str], protocol: str,
    draws: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Slices of every task: all of them for its main model, gender within age groups for every model."""
    from lib.evaluate import select_answers

    age, parts = next((task for task in tasks if task.name == "age"), None), []
    for task in tasks:
        rows = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol)]
        described = describe_windows(rows, age)
        known = predictions[(predictions["task"] == task.name) & (predictions["protocol"] == protocol)]
        for model in known["model"].unique():
            answers = select_answers(predictions, task, model, protocol, "test")
            main = model == models[task.name]
            if main or task.name == "gender":
                parts.append(slice_answers(answers, described, task, None if main else ["age group"], draws, seed))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def worst_slices(slices: pd.DataFrame, models: dict[str, str]) -> pd.DataFrame:
    """The worst group of each task's main model: one row a task, `gap` to the best group."""
    rows = []
    for task, model in models.items():
        here = slices[(slices["task"] == task) & (slices["model"] == model)] if len(slices) else slices
        if len(here) and here["enough"].any():
            rows.append({"task": task, "model": model, **find_worst(here)})
    return pd.DataFrame(rows)


def main_slices(slices: pd.DataFrame, models: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The slices of each task's main model, for the tasks that have a scored one."""
    known = (
        {task: slices[(slices["task"] == task) & (slices["model"] == model)] for task, model in models.items()}
        if len(slices)
        else {}
    )
    return {task: rows for task, rows in known.items() if len(rows) and rows["enough"].any()}


def tabulate_groups(slices: pd.DataFrame, task: str, column: str) -> pd.DataFrame:
    """One row a model, one column a group of `column`: UAR with its interval, n and speakers."""
    prefix = f"{column}="
    rows = slices[(slices["task"] == task) & slices["subset"].str.startswith(prefix)] if len(slices) else slices
    rows = rows[~rows["subset"].str.contains(", ")] if len(rows) else rows
    if not len(rows):
        return pd.DataFrame(columns=["model"])
    text = [
        f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f}), n {row.n:,}, {row.speakers} speakers"
        if row.enough else f"too few: n {row.n:,}, {row.speakers} speakers" for row in rows.itertuples()
    ]  # fmt: skip
    wide = rows.assign(cell=text, group=rows["subset"].str.removeprefix(prefix))
    table = wide.pivot(index="model", columns="group", values="cell").reindex(wide["model"].unique())
    return table.rename_axis(columns=None).reset_index()


# ----------------------------------------------------------------------------------------------------------------------
# Errors that can be heard


def collect_errors(answers: dict[str, pd.DataFrame], tasks: list[Any], count: int) -> pd.DataFrame:
    """The most confident wrong windows of each task's (calibrated) answers: task, window_id, clip_id, truth, told, confidence."""
    parts = [list_errors(answers[task.name], task.classes, count).assign(task=task.name) for task in tasks]
    table = pd.concat(parts, ignore_index=True)
    return table[["task", "window_id", "clip_id", "truth", "told", "confidence"]]


def play_errors(
    errors: pd.DataFrame, clips: pd.DataFrame, windows: pd.DataFrame, roots: dict[str, Path],
    count: int = 12, synthetic: bool = False,
) -> None:  # fmt: skip
    """Show the first `count` errors as sounds, an equal number a task; one window each.

    Only invented voices and corpora of `LICENCES` are played: a voice is personal data, and a report is a publication.
    """
    from lib.audio import read_waveform
    from lib.report.show import show_sound, show_text

    each = count // max(1, errors["task"].nunique())
    chosen = errors.groupby("task", sort=False).head(each).merge(clips, on="clip_id", suffixes=("", "_clip"))
    cuts = windows.set_index("window_id")[["start_s", "duration_s"]]
    chosen = chosen[synthetic | chosen["corpus"].isin(list(LICENCES))]
    if chosen.empty:
        show_text("Not played: the voices are not ours to publish.")
    for row in chosen.itertuples(index=False):
        begin = row.start_s + cuts.loc[row.window_id, "start_s"]
        waveform = read_waveform(roots[row.corpus] / row.path, begin, begin + cuts.loc[row.window_id, "duration_s"])
        title = f"{row.task}: told {row.told}, is {row.truth} ({100 * row.confidence:.0f} % sure)"
        source = "synthetic voice" if synthetic else LICENCES[row.corpus]
        show_sound(waveform, RATE_HZ, title, f"{row.window_id}; {source}")
