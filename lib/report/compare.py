"""Runs side by side: scores of each run's main model, paired differences where the clips are the same, parameters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib import headlines
from lib.report.show import format_value


def compare_scores(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a task and fact or metric, each run by its main model: {task, metric, kind, by_run}; a run without the
    task is missing from `by_run`."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def put(run: dict[str, Any], task: str, key: str, metric: str, kind: str, value: Any) -> None:
        row = rows.setdefault((task, key), {"task": task, "metric": metric, "kind": kind, "by_run": {}})
        row["by_run"][run["name"]] = value

    for run in runs:
        heads = {head["name"]: head for head in run["headlines"]}
        for table in headlines.make_tables(run["metrics"]):
            main, head = next((row for row in table["rows"] if row["main"]), None), heads.get(table["name"])
            if main is None:
                continue
            put(run, table["name"], "model", "model", "text", main["model"])
            if head:
                put(run, table["name"], "classes", "classes", "text", " / ".join(head["classes"]))
                tested = (
                    f"{head['score']['n'] or 0:,.0f} {table['unit']} of {head['score']['speakers'] or 0:,.0f} speakers"
                )
                put(run, table["name"], "tested", "tested on", "text", tested)
            for column in sorted(table["columns"], key=lambda column: column["metric"] != "uar"):
                value = main["scores"][column["metric"]]
                put(run, table["name"], column["metric"], column["name"], column["kind"], value)
            for one in head["baselines"] if head else []:
                put(run, table["name"], one["name"], f"{head['short']} of {one['name']}", head["kind"], one)
    tasks = list(dict.fromkeys(task for task, _ in rows))
    return sorted(rows.values(), key=lambda row: tasks.index(row["task"]))


def compare_parameters(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a parameter on which any two runs disagree: {name, by_run}."""
    flat = {run["name"]: flatten(run["record"].get("parameters") or {}) | _encoder_setting(run) for run in runs}
    names = dict.fromkeys(itertools.chain.from_iterable(flat.values()))
    rows = [{"name": name, "by_run": {run: flat[run].get(name, "–") for run in flat}} for name in names]
    return [row for row in rows if len(set(row["by_run"].values())) > 1]


def _encoder_setting(run: dict[str, Any]) -> dict[str, str]:
    encoder = run["record"]["encoder"]
    return {"encoder used": ", ".join(filter(None, [encoder["name"], encoder["note"]]))}


def collect_answers(predictions: pd.DataFrame, level: str = "clip") -> list[dict[str, Any]]:
    """The network's test answers of every task on speakers never heard, as `metrics["answers"]` keeps them.

    `predictions`: the predictions table; of several networks the first is taken, of several seeds the smallest.
    """
    from lib.records import is_baseline
    from lib.scores import aggregate_predictions

    rows = predictions[(predictions["split"] == "test") & (predictions["protocol"] != "paper")]
    rows, found = rows[~rows["model"].map(is_baseline)], []
    for task, part in rows.groupby("task", sort=False):
        part = part[(part["model"] == part["model"].iloc[0]) & (part["protocol"] == part["protocol"].iloc[0])]
        part = part[part["seed"] == part["seed"].min()].dropna(axis="columns", how="all")
        table = aggregate_predictions(part, level)
        chances = table[[name for name in table.columns if name.startswith("p_")]].to_numpy()
        speakers = table["speaker_id"]
        if level == "speaker":
            speakers = table["speaker_id"] + "#" + table["target"].astype(str)  # one voice at two ages counts twice
        ids = {"window": "window_id", "clip": "clip_id"}
        names = table[ids[level]] if level in ids else speakers
        answers = summarise_answers(names, table["speaker_id"], table["target"].to_numpy(), chances.argmax(axis=1))
        found.append({"task": task, "level": level, **answers})
    return found


def summarise_answers(
    ids: Sequence[str], speaker_ids: Sequence[str], targets: np.ndarray, predicted: np.ndarray
) -> dict[str, Any]:
    """One model's answers to its test clips (or windows), small and without names, so that two runs can be paired.

    `ids_sha256` stands for the set of clips; `speakers` numbers the voices; `targets` and `predicted` are class digits,
    one a clip, in the order of the clips' ids. At most ten classes.
    """
    from lib.stages import fingerprint_of

    order = np.argsort(np.asarray(ids, dtype=str), kind="stable")
    sorted_ids = np.asarray(ids, dtype=str)[order].tolist()
    if len(set(sorted_ids)) != len(sorted_ids):
        raise ValueError("summarise_answers: an id occurs twice; give one answer for each clip or window")
    digits = [np.asarray(values, dtype=int)[order] for values in (targets, predicted)]
    if max(values.max(initial=0) for values in digits) > 9:
        raise ValueError("summarise_answers: at most ten classes (0 to 9)")
    speakers = pd.factorize(np.asarray(speaker_ids, dtype=str)[order])[0]
    texts = ["".join(map(str, values)) for values in digits]
    return {
        "ids_sha256": fingerprint_of(sorted_ids),
        "speakers": " ".join(map(str, speakers)),
        "targets": texts[0],
        "predicted": texts[1],
    }


def compare_pairs(runs: list[dict[str, Any]], draws: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Paired differences (first run minus second) of accuracy and UAR for every two runs that answered the same clips."""
    rows = []
    for first, second in itertools.combinations(runs, 2):
        for one in first["metrics"].get("answers") or []:
            for other in second["metrics"].get("answers") or []:
                keys = ("task", "level", "ids_sha256", "targets", "speakers")
                if all(one.get(key) == other.get(key) for key in keys):
                    rows += _pair_rows(first["name"], second["name"], one, other, draws, seed)
    return rows


def _pair_rows(first: str, second: str, one: dict, other: dict, draws: int, seed: int) -> list[dict[str, Any]]:
    from lib.scores import score_difference

    targets = np.array([int(digit) for digit in one["targets"]])
    chances = [np.eye(10)[[int(digit) for digit in entry["predicted"]]] for entry in (one, other)]
    size = 1 + max(int(max(entry)) for entry in (one["targets"], one["predicted"], other["predicted"]))
    names, speakers = [str(code) for code in range(size)], np.array(one["speakers"].split())
    found = score_difference(
        targets, chances[0][:, :size], chances[1][:, :size], names, speakers, draws=draws, seed=seed,
        metrics=["accuracy", "uar"],
    )  # fmt: skip
    shown = {"accuracy_difference": "accuracy", "uar_difference": "UAR"}
    kept = ("value", "low", "high", "n", "speakers")
    return [
        {"first": first, "second": second, "task": one["task"], "metric": shown[row["metric"]]}
        | {key: row[key] for key in kept}
        for row in found.to_dict("records")
    ]


def flatten(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """Nested settings as {"section.key": text}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = str(value) if isinstance(value, float) else format_setting(value)
    return flat


def format_setting(value: Any) -> str:
    """Text of a setting: whole numbers without separators, lists with commas."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else format_value(value)
