"""What is told apart: gender, and age in four forms. A task gives every clip a class number, or none."""

from dataclasses import dataclass, field
from itertools import pairwise

import pandas as pd

from lib import paths, tables
from lib.corpora.labels import ALLOWED, SCHEMES, assign_age_class, name_ages, unknown_labels
from lib.stages import Stage

YEARS = "age_years"
FORMS = {"age_four": "four_decades", "age_decades": "nine_decades"}  # further: schemes of lib.corpora.labels
TASKS = ["gender", "age", *FORMS, YEARS]
YEAR_BOUNDS = [12, 20, 30, 40, 50]  # first years of the later classes of `age_years`; the answer is the expected age
LEAST_SPEAKERS = 3  # a class with fewer could not stand in train, validation and test
LEAST_OF_FORM = 5  # speakers of a class of a further form of age: of five folds each tests one


@dataclass(frozen=True)
class Task:
    """A name, the classes in their fixed order, and for ages the bounds in years (see `lib.corpora.labels.SCHEMES`). `scheme`:
    all classes that the bounds part, where some have too few speakers to be asked for; empty = `classes`."""

    name: str
    classes: list[str]
    bounds: list[float] = field(default_factory=list)
    scheme: list[str] = field(default_factory=list)

    @property
    def spans(self) -> dict[str, list[float | None]]:
        """First year of each class and first year beyond it, None = no end; {} for what is no age."""
        each = zip(self.scheme or self.classes, pairwise([0.0, *self.bounds, None]))
        return {name: list(span) for name, span in each if name in self.classes} if self.bounds else {}


def make_tasks(
    names: list[str], age_classes: list[str], age_bounds: list[float], clips: pd.DataFrame
) -> tuple[list[Task], list[str]]:
    """The tasks of a run, in order, and notes that name every class and every form of age that is left out, and why. age_classes,
    age_bounds: of the task "age". ValueError when a task is not known, and as by `require_speakers`."""
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(f"tasks: {unknown or names} not known; choose from {TASKS}")
    plain = {"gender": Task("gender", tables.GENDERS), "age": Task("age", list(age_classes), list(age_bounds))}
    made = [(plain[name], "") if name in plain else _make_form(name, clips) for name in names]
    tasks = [task for task, _ in made if task]
    require_speakers(tasks, clips)
    return tasks, [note for _, note in made if note]


def require_speakers(tasks: list[Task], clips: pd.DataFrame) -> None:
    """ValueError, with who there is and the words not understood, unless two classes of gender and of age have speakers
    enough in these clips, which are those that have windows."""
    for task in (task for task in tasks if task.name in ("gender", "age")):
        names = assign_targets(clips, task).map(dict(enumerate(task.classes)))
        speakers = {name: list(rows["speaker_id"].unique()) for name, rows in clips.groupby(names)}
        if len(speakers) > 1 and min(map(len, speakers.values())) >= LEAST_SPEAKERS:
            continue
        has = [f"{name}: {len(ids)} speakers ({', '.join(ids[:3])})" for name, ids in speakers.items()]
        unknown = unknown_labels(clips[f"{task.name}_raw"], task.name)
        raise ValueError(
            f"task {task.name}: it takes two of the classes {task.classes}, each with {LEAST_SPEAKERS} speakers or more; "
            f"the {len(clips):,} clips ({', '.join(clips['path'][:2])} ...) have {'; '.join(has) or 'none'}. "
            + (f"Not understood: {unknown}; write {ALLOWED[task.name]}. " if unknown else "")
            + f"Add recordings or labels (such as an age table), or take {task.name} out of train.tasks"
        )


def _make_form(name: str, clips: pd.DataFrame) -> tuple[Task | None, str]:
    """A further form of age, or None, and a note on what is left out."""
    if name == YEARS:
        bounds = usable_bounds(clips, LEAST_OF_FORM)
        if not bounds:
            return None, f"age_years: skipped, no age parts the speakers into classes of {LEAST_OF_FORM} and more"
        classes = [f"{first} to {last - 1}" for first, last in pairwise([0, *bounds])] + [f"{bounds[-1]} and over"]
        return Task(name, classes, [float(bound) for bound in bounds]), ""
    classes, bounds = SCHEMES[FORMS[name]]
    counts = clips.groupby(name_ages(clips, classes, bounds))["speaker_id"].nunique().reindex(classes, fill_value=0)
    kept = counts.index[counts >= LEAST_OF_FORM].tolist()
    left = ", ".join(f"{word} ({count})" for word, count in counts.items() if count < LEAST_OF_FORM)
    if len(kept) < 2:
        return None, f"{name}: skipped, fewer than two of its classes have {LEAST_OF_FORM} speakers ({left})"
    note = f"{name}: left out for having fewer than {LEAST_OF_FORM} speakers: {left}" if left else ""
    return Task(name, kept, list(bounds), classes), note


def assign_targets(clips: pd.DataFrame, task: Task) -> pd.Series:
    """Class number (Int64) of every clip for this task, <NA> = none; `clips` has gender, age_years and age_decade."""
    if task.name == "gender":
        return clips["gender"].map({name: number for number, name in enumerate(task.classes)}).astype("Int64")
    if task.name == YEARS:
        clips = clips.assign(age_years=known_years(clips))
    scheme = task.scheme or task.classes
    found = assign_age_class(clips, scheme, task.bounds)
    return found.map({scheme.index(name): number for number, name in enumerate(task.classes)}).astype("Int64")


def known_years(clips: pd.DataFrame) -> pd.Series:
    """Age in years, the middle of the decade where only that is known, NaN where neither is."""
    return clips["age_years"].fillna(clips["age_decade"].astype("Float64").astype("float64") + 5)


def usable_bounds(clips: pd.DataFrame, least: int) -> list[int]:
    """Those of `YEAR_BOUNDS` that leave at least so many speakers in every class of years."""
    ages, bounds = known_years(clips).groupby(clips["speaker_id"]).median().dropna(), []
    for bound in YEAR_BOUNDS:
        below = ages.lt(bound) & ages.ge(bounds[-1] if bounds else 0)
        if below.sum() >= least and ages.ge(bound).sum() >= least:
            bounds.append(bound)
    return bounds


def save_tasks(stage: Stage, tasks: list[Task], notes: list[str]) -> None:
    """Keep a run's tasks beside its clips, with what was left out and why."""
    paths.save_json(stage.path("tasks.json"), {"tasks": [vars(task) for task in tasks], "notes": notes})


def load_tasks(stage: Stage) -> list[Task]:
    """The tasks that 01_download settled."""
    return [Task(**task) for task in paths.load_json(stage.path("tasks.json"))["tasks"]]


def task_table(windows: pd.DataFrame, clips: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row a window that has a class for this task: its columns, its clip's, and `target` (class number)."""
    columns = ["clip_id", "corpus", "recording_id", "language", "gender", "age_years", "age_decade"]
    known = clips[columns].assign(target=assign_targets(clips, task))
    if task.name == YEARS:
        known["age_years"] = known_years(clips)
    known = known.dropna(subset="target").astype({"target": "int64"})
    return windows.merge(known, on="clip_id", validate="many_to_one")
