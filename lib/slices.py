"""Where a model works and where it does not: one metric by group, the worst group by name, the errors one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from lib.bootstrap import DRAWS
from lib.scores import make_records, score_answers


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
    by: names of columns, or tuples of names for intersections.
    metric: of `confusion_metrics`; "uar" in a group of one class is the recall of that class.
    minimum, minimum_speakers: smaller groups keep their row and their n, but no value (NaN) and `enough` False.
    """
    records = []
    for names in by:
        names = [names] if isinstance(names, str) else list(names)
        known = table[(table[names].notna() & (table[names].astype(str) != "")).all(axis=1)]
        for key, rows in known.groupby(names, sort=True):
            voices = rows["speaker_id"].to_numpy()
            enough = len(rows) >= minimum and len(set(voices)) >= minimum_speakers
            fixed = (context or {}) | {"subset": ", ".join(f"{n}={k}" for n, k in zip(names, key)), "enough": enough}
            if enough:
                answers = rows[[f"p_{name}" for name in classes]].to_numpy().argmax(axis=1)
                arrays = (rows["target"].to_numpy(), answers, classes, voices)
                records.append(score_answers(*arrays, draws=draws, seed=seed, context=fixed, metrics=[metric]))
            else:
                records.append(make_records({metric: (np.nan,) * 3}, voices, fixed))
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
