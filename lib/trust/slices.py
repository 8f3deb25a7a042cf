"""Where a model works and where it does not: UAR by group, the worst group by name, the errors one by one."""

import numpy as np
import pandas as pd

from lib.embed import read_waveforms
from lib.evaluate import select_answers
from lib.scores import aggregate_predictions, score_answers
from lib.tasks import Task, assign_targets

BANDS = {  # column of a page -> column of the windows, bounds, and the names of what they part
    "clip length": ("clip_s", [3, 5, 8], ["under 3 s", "3 to 5 s", "5 to 8 s", "8 s and over"]),
    "loudness": ("level_db", [-35, -25], ["under -35 dB", "-35 to -25 dB", "-25 dB and over"]),
    "share of speech": ("speech_ratio", [0.6, 0.8],
                        ["under 0.6 of the window", "0.6 to 0.8 of the window", "0.8 of the window and over"]),
}  # fmt: skip
SINGLE = ["gender", "age group", "corpus", "language", *BANDS]
PAIRS = [["gender", "age group"], ["gender", "corpus"], ["age group", "corpus"]]
LEAST, LEAST_SPEAKERS = 30, 5  # windows and speakers; smaller groups are not scored
LISTED = 20  # errors of a task


def slice_all(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], models: dict[str, str], protocol: str,
    draws: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Slices of every task: all of them for its main model, gender within age groups for every model."""
    age, parts = next((task for task in tasks if task.name == "age"), None), []
    for task in tasks:
        described = describe_windows(splits[(splits["task"] == task.name) & (splits["protocol"] == protocol)], age)
        known = predictions[(predictions["task"] == task.name) & (predictions["protocol"] == protocol)]
        for model in known["model"].unique():
            if (main := model == models[task.name]) or task.name == "gender":
                table = select_answers(predictions, task, model, protocol, "test")
                table = table.merge(described, on="window_id", validate="many_to_one")
                groups = [[name] for name in SINGLE] + PAIRS if main else [["age group"]]
                parts += score_groups(table, task, groups, draws, seed)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def describe_windows(table: pd.DataFrame, age: Task | None) -> pd.DataFrame:
    """window_id and the columns of `SINGLE` for one task's windows; "" where not known.
    `table`: rows of a run's splits. `age`: the task whose classes are the age groups, None = no groups. There is no
    clean reference to measure a signal-to-noise ratio against; loudness and share of speech stand in for it."""
    table = table.drop_duplicates("window_id").reset_index(drop=True)
    table["clip_s"] = (table["start_s"] + table["duration_s"]).groupby(table["clip_id"]).transform("max")
    described = table[["window_id", "gender", "corpus", "language"]].fillna("")
    described["age group"] = ""
    if age is not None:
        described["age group"] = assign_targets(table, age).map(dict(enumerate(age.classes))).fillna("").astype(str)
    for name, (column, bounds, names) in BANDS.items():
        bands = pd.cut(table[column], [-np.inf, *bounds, np.inf], right=False, labels=names)
        described[name] = bands.astype(object).fillna("")
    return described


def score_groups(table: pd.DataFrame, task: Task, groups: list[list[str]], draws: int, seed: int) -> list[pd.DataFrame]:
    """UAR of one model for every group that these columns make: records with `subset` such as "gender=female, age=teen".
    table: predictions of one model, with the columns joined to them. Left out are blanks, and columns that tell no windows
    apart or that the task itself asks for: the recall of one class is not a slice. Groups below `LEAST` windows or
    `LEAST_SPEAKERS` keep their row and their n, but no value (NaN) and `enough` False."""
    own = "gender" if task.name == "gender" else "age group"
    telling = {name for name in SINGLE if name != own and table.loc[table[name] != "", name].nunique() > 1}
    context = {name: table[name].iloc[0] for name in ("task", "model", "protocol", "split")} | {"level": "window"}
    records, seeds = [], table["seed"].nunique()
    for names in (names for names in groups if telling.issuperset(names)):
        for key, rows in table[(table[names] != "").all(axis=1)].groupby(names, sort=True):
            enough = len(rows) // seeds >= LEAST and rows["speaker_id"].nunique() >= LEAST_SPEAKERS
            subset = ", ".join(f"{name}={value}" for name, value in zip(names, key))
            options = {"draws": draws if enough else 0, "context": context | {"subset": subset, "enough": enough}}
            scores = score_answers(rows, task.classes, seed=seed, **options).query("metric == 'uar'")
            unscored = {} if enough else dict.fromkeys(["value", "low", "high", "seed_std"], np.nan)
            records.append(scores.assign(**unscored))
    return records


def tabulate_told(answers: pd.DataFrame, splits: pd.DataFrame, task: Task) -> pd.DataFrame:
    """What the clips of each corpus and label were told: corpus, label, % by class, clips; answers: of `select_answers`."""
    clips = aggregate_predictions(answers, "clip")
    told = clips[[f"p_{name}" for name in task.classes]].set_axis(task.classes, axis=1).idxmax(axis=1)
    corpus = clips["clip_id"].map(splits.drop_duplicates("clip_id").set_index("clip_id")["corpus"]).rename("corpus")
    label = pd.Series(pd.Categorical.from_codes(clips["target"], task.classes), clips.index, name="label")
    counts = pd.crosstab([corpus, label], told).reindex(columns=task.classes, fill_value=0).rename_axis(columns=None)
    size = counts.sum(axis=1)
    return (100 * counts.div(size, axis=0)).assign(clips=size).reset_index()


def main_slices(slices: pd.DataFrame, models: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The slices of each task's main model, for the tasks that have a scored one."""
    if slices.empty:
        return {}
    own = {task: slices[(slices["task"] == task) & (slices["model"] == model)] for task, model in models.items()}
    return {task: rows for task, rows in own.items() if rows["enough"].any()}


def list_errors(answers: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The `LISTED` most confident wrong answers, calibrated: task, window_id, clip_id, truth, answer, confidence."""
    probabilities, names = answers[[f"p_{name}" for name in task.classes]].to_numpy(), np.asarray(task.classes)
    chosen, targets = probabilities.argmax(axis=1), answers["target"].to_numpy()
    told = {"truth": names[targets], "answer": names[chosen], "confidence": probabilities.max(axis=1)}
    errors = pd.DataFrame({"task": task.name, **answers[["window_id", "clip_id"]], **told})[chosen != targets]
    return errors.sort_values("confidence", ascending=False, kind="stable").head(LISTED)


def read_error(error: pd.Series, windows: pd.DataFrame, waveforms: np.ndarray) -> tuple[np.ndarray, str]:
    """The sound of a row of `list_errors`, float32 (samples,) at 16 kHz, and a title; windows, waveforms: of 02_segment."""
    row = int(windows.set_index("window_id").loc[error["window_id"], "row"])
    title = f"{error['task']}: {error['answer']}, is {error['truth']} ({100 * error['confidence']:.0f} % sure)"
    return read_waveforms(waveforms, [row])[0], title
