"""Encoders in one ranking: the same windows, probes and speakers for each of them, on people whom wav2vec2-tiny has not heard.
Probes learn from the train part; what they read is chosen by cross-validation within it; the test part is scored once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from lib import paths, tables
from lib.baselines import ask_probe
from lib.encoders import TINY
from lib.scores import score_answers, score_years
from lib.store import Store
from lib.tasks import YEARS, Task, assign_targets, make_tasks
from lib.tiny.recipe import is_left_out
from lib.trust.probes import PENALTY, score_few

LEFT_OUT = paths.load_json(paths.ASSETS / f"{TINY}.json")["left_out"]  # languages and speakers
VERSION = 1  # of windows and answers; raised by hand when the code's results change
FOLDS = 3  # within the train part, to choose what a probe reads
LEAST = 5  # speakers a class in either part, or there is no column
LEARNED = 0.6  # share of the speakers that probes learn from, in a corpus of which wav2vec2-tiny left nobody out
GROWN = 16  # years
CHILD, TEEN = Task("child or adult", ["child", "adult"], [GROWN]), Task("teen or adult", ["teen", "adult"], [20])
ALONE = {CHILD.name: "speechocean762", TEEN.name: "common_voice"}  # else the corpus would tell the class
GUESS = "baseline: a guess"  # one class for all; of ages the median of the column's train part
Answers = dict[str, np.ndarray]  # "<part>|<task>" -> probabilities (n, C), one row a window, NaN where none is asked


class Column(NamedTuple):
    """A column of the ranking: rows (n,) of the train part choose what is read, those of the test part are scored."""

    title: str
    task: Task
    rows: np.ndarray


def part_speakers(clips: pd.DataFrame, seed: int) -> pd.Series:
    """ "test" for whom wav2vec2-tiny has not heard, "train" for the rest; by lot in a corpus where it left nobody out."""
    apart = is_left_out(clips, LEFT_OUT)
    for _, rows in clips.groupby("corpus"):
        if not apart[rows.index].any():
            voices = np.random.default_rng(seed).permutation(np.sort(rows["speaker_id"].unique()))
            apart[rows.index] = rows["speaker_id"].isin(voices[round(LEARNED * len(voices)) :])
    return apart.map({True: "test", False: "train"})


def assign_classes(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Task]]:
    """The table with one column a task, the class of each window (-1 = none), and the tasks; age in years is the last."""
    table, (ages, _) = table.copy(), make_tasks([YEARS], [], [], table[table["part"] == "train"])
    tasks = [Task("gender", tables.GENDERS), CHILD, TEEN, *ages]
    for task in tasks:
        targets = assign_targets(table, task).fillna(-1).astype("int64")
        table[f"class of {task.name}"] = targets.where(table["corpus"] == ALONE.get(task.name, table["corpus"]), -1)
    return table, tasks


def list_columns(table: pd.DataFrame, tasks: list[Task]) -> list[Column]:
    """The columns for which train and test part have `LEAST` speakers of each class (of ages: in all)."""
    train, language, grown = table["part"] == "train", table["language"], table["years"] >= GROWN
    apart = {"languages left out": language.isin(LEFT_OUT["languages"]), "English": language == "en"}
    columns, by_name = [], {task.name: task for task in tasks}
    for corpus in table["corpus"].unique():
        here = table["corpus"] == corpus
        is_apart = corpus == "common_voice" and (here & ~train & apart["languages left out"]).any()
        for name, rows in (apart if is_apart else {corpus: here}).items():
            columns.append((f"gender of adults: {name}", "gender", here & grown & (train | rows)))
        if corpus == ALONE[CHILD.name]:
            columns.append(("gender of children", "gender", here & (table["years"] < GROWN)))
        columns += [(name, name, here) for name, place in ALONE.items() if place == corpus]
        columns.append((f"age: {corpus}", YEARS, here))
    columns = [Column(title, by_name[name], who.to_numpy()) for title, name, who in columns if name in by_name]
    return [column for column in columns if count_speakers(table, column).to_numpy().min() >= LEAST]


def count_speakers(table: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Speakers of each class in the train and the test part of a column; of ages in all."""
    targets = table[f"class of {column.task.name}"]
    rows = table[column.rows & (targets >= 0)]
    names = {} if column.task.name == YEARS else dict(enumerate(column.task.classes))
    kinds = targets[rows.index].map(names).fillna("speakers")
    counts = rows.groupby([rows["part"], kinds])["speaker_id"].nunique().unstack(fill_value=0)
    return counts.reindex(index=["train", "test"], columns=names.values() or ["speakers"], fill_value=0)


def read_part(store: Store, table: pd.DataFrame, part: str) -> np.ndarray:
    """Statistics (n, S) of one part of a store; "all": all of them but the filter bank."""
    parts = [name for name in store.parts if name != "bank"] if part == "all" else [part]
    return store.statistics(table["window_id"], parts)[np.arange(len(table))]


@threadpool_limits.wrap(limits=1)  # more threads cost more than they bring on matrices of this size
def answer_all(
    path: Path, table: pd.DataFrame, columns: list[Column], parts: list[str], read: Callable[[str], np.ndarray]
) -> Answers:
    """Answers from each part, kept in `path`: of the train part by the other folds' speakers, of the test part by all of train."""
    if path.exists():
        return dict(np.load(path))
    answers, train, voices = {}, (table["part"] == "train").to_numpy(), table["speaker_id"].to_numpy()
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for part in tqdm(parts, desc="probes", unit="part"):
        vectors = read(part)
        for task in {column.task.name: column.task for column in columns}.values():
            targets = table[f"class of {task.name}"].to_numpy()
            values = np.full((len(table), len(task.classes)), np.nan)
            own, test = np.flatnonzero((targets >= 0) & train), np.flatnonzero((targets >= 0) & ~train)
            inside = [(own[a], own[b]) for a, b in folds.split(own, targets[own], voices[own])]
            for learn, held in [*inside, (own, test)]:
                values[held] = ask_probe(vectors[learn], targets[learn], vectors[held], len(task.classes), PENALTY)
            answers[f"{part}|{task.name}"] = values
    with paths.write_whole(path) as partial:
        np.savez(partial, **answers)
    return answers


def take_rows(table: pd.DataFrame, column: Column, values: np.ndarray, part: str = "test") -> pd.DataFrame:
    """speaker_id, years, target and p_<class> of one part of a column; `predicted_years` with the balance of classes undone."""
    targets = table[f"class of {column.task.name}"]
    chosen = (column.rows & (targets >= 0) & (table["part"] == part)).to_numpy()
    rows = table.loc[chosen, ["speaker_id", "years"]].assign(target=targets[chosen])
    if column.task.name == YEARS:
        by_class = table["years"][(targets >= 0) & (table["part"] == "train")].groupby(targets)
        weighted = values[chosen] * by_class.size().to_numpy()
        return rows.assign(predicted_years=weighted @ by_class.mean().to_numpy() / weighted.sum(axis=1))
    return rows.assign(**{f"p_{word}": values[chosen, number] for number, word in enumerate(column.task.classes)})


def score_rows(rows: pd.DataFrame, column: Column, minus: pd.DataFrame | None = None, **options: Any) -> pd.DataFrame:
    """One record, UAR or mean error in years; with `minus` the paired difference to another encoder's rows."""
    if column.task.name == YEARS:
        records = score_years(rows, minus=minus, **options)
    else:
        records = score_answers(rows, column.task.classes, minus=minus, **options)
    fixed = {"task": column.task.name, "protocol": "speaker", "split": "test", "level": "clip", "subset": column.title}
    return records[records["metric"].str.match("(uar|mae_years)(_difference)?$")].assign(**fixed)


def rank(table: pd.DataFrame, columns: list[Column], answers: dict[str, Answers], **options: Any) -> pd.DataFrame:
    """Records of every model, part and column; `chosen`: the part that the train part's own answers say. A guess comes last."""
    records = []
    for column in columns:
        best = np.argmin if column.task.name == YEARS else np.argmax
        for model, of_model in answers.items():
            inside = []
            for part in dict.fromkeys(key.partition("|")[0] for key in of_model):
                values = of_model[f"{part}|{column.task.name}"]
                inside.append(score_rows(take_rows(table, column, values, "train"), column, draws=0)["value"].iloc[0])
                record = score_rows(take_rows(table, column, values), column, **options)
                records.append(record.assign(model=model, part=part, chosen=False))
            records[int(best(inside)) - len(inside)]["chosen"] = True
        guess = take_rows(table, column, values)
        guess["predicted_years"] = np.median(take_rows(table, column, values, "train")["years"].dropna())
        guess[[f"p_{word}" for word in column.task.classes]] = np.eye(len(column.task.classes))[0]
        records.append(score_rows(guess, column, **options).assign(model=GUESS, part="", chosen=True))
    return pd.concat(records, ignore_index=True)


def compare(
    table: pd.DataFrame, columns: list[Column], answers: dict[str, Answers], scores: pd.DataFrame, first: str, **options: Any
) -> pd.DataFrame:  # fmt: skip
    """Paired differences of every model's chosen part to that of `first`; "" = to the best model of each column."""
    records = []
    for column in columns:
        own = scores[scores["chosen"] & scores["model"].isin(answers) & (scores["subset"] == column.title)]
        own, rows = own.sort_values("value", ascending=column.task.name == YEARS), {}
        for model, part in zip(own["model"], own["part"]):
            rows[model] = take_rows(table, column, answers[model][f"{part}|{column.task.name}"])
        against = first or next(iter(rows))
        for model in (name for name in rows if name != against):
            difference = score_rows(rows[model], column, rows[against], **options)
            records.append(difference.assign(model=model, against=against))
    return pd.concat(records, ignore_index=True) if records else scores.head(0).assign(against="")


def score_few_shots(table: pd.DataFrame, column: Column, vectors: np.ndarray, seed: int) -> tuple[float, float]:
    """`score_few` of a column: learned from speakers of its train part, scored on all of its test part."""
    rows = table.assign(target=table[f"class of {column.task.name}"])[column.rows].query("target >= 0")
    train, test = (rows[rows["part"] == part] for part in ("train", "test"))
    return score_few(vectors, train, column.task, seed, test)
