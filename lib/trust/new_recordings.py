"""Recordings that no stage has seen: where they come from, what is known of them, and how every epoch would have done."""

from pathlib import Path

import numpy as np
import pandas as pd

from lib import paths
from lib.corpora import resolve_root
from lib.corpora.demo import render
from lib.corpora.own_data import list_recordings
from lib.model_folder import ModelFolder
from lib.networks import select_input
from lib.predict import Prediction
from lib.scores import confusion_counts, confusion_metrics
from lib.stages import Stage, file_checksum, fingerprint_of
from lib.tasks import YEARS, Task, assign_targets
from lib.train import list_checkpoints, load_model, predict_log_probabilities
from lib.trainings import main_protocol

EPOCHS = ["task", "epoch", "validation_uar", "unseen_uar", "unseen_accuracy", "unseen_macro_f1", "recordings", "chosen"]


def obtain_recordings(
    unseen: str, synthetic: bool, seed: int, count: int, splits: pd.DataFrame, clips: pd.DataFrame, roots: dict[str, Path]
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    """The recordings to ask about, as `list_recordings` gives them, and whose they are ("given", "rendered" ...).
    unseen: a folder or a CSV list; "" = render `count` new ones when `synthetic`, else up to `count` test clips, drawn by
    `seed` from the main protocol's first fold, or any clips where nobody was left to test on. splits: of `heard_splits`.
    clips, roots: what 01 Download left."""
    if unseen:
        return list_recordings(resolve_root(unseen)), "given"
    if synthetic:
        folder = paths.DATA / "corpora" / f"unseen-v{render.VERSION}-{count}-seed{seed}"
        render.render_unseen(folder, seed, count)
        return list_recordings(folder / "labels.csv"), "rendered"
    tested = tested_clips(splits)
    drawn = clips[clips["clip_id"].isin((tested if len(tested) else splits)["clip_id"])]
    drawn = drawn.sample(min(count, len(drawn)), random_state=seed).sort_values("clip_id", ignore_index=True)
    files = [roots[clip.corpus] / clip.path for clip in drawn.itertuples(index=False)]
    return drawn.assign(name=drawn["clip_id"], path=files, fault=""), "tested" if len(tested) else "learned"


def heard_splits(splits: pd.DataFrame, model: ModelFolder) -> pd.DataFrame:
    """The splits as the model's heads heard them: one that learned from everybody in the end has no test part."""
    return splits.assign(split="train") if model.description["about"].get("refit on everybody") else splits


def tested_clips(splits: pd.DataFrame) -> pd.DataFrame:
    """Rows of the splits that a model folder's heads were tested on: the main protocol's first fold."""
    protocol = main_protocol(list(splits["protocol"].unique()))
    return splits[(splits["protocol"] == protocol) & (splits["fold"] == 0) & (splits["split"] == "test")]


def label_recordings(recordings: pd.DataFrame, tasks: list[Task], splits: pd.DataFrame | None = None) -> pd.DataFrame:
    """name and one column a task: its class number, or <NA> where the label is not known. A list without labels has none.
    `splits`: given where the recordings are a run's own clips; a clip that a task's head learned from gets no label for
    it, since every task has its own split."""
    labels = dict.fromkeys([*recordings.columns, "gender", "age_years", "age_decade"])
    known = recordings.reindex(columns=list(labels)).astype({"age_decade": "Int16"})
    targets = recordings[["name"]].copy()
    for task in tasks:
        targets[task.name] = assign_targets(known, task)
        if splits is not None and "clip_id" in recordings:
            tested = tested_clips(splits[splits["task"] == task.name])["clip_id"]
            targets[task.name] = targets[task.name].where(recordings["clip_id"].isin(tested))
    return targets


def fingerprint_recordings(recordings: pd.DataFrame) -> str:
    """Changes when the list, a label or a byte of a file changes."""
    sound = [path for path in recordings.loc[recordings["fault"] == "", "path"].unique() if Path(path).is_file()]
    content = {str(path): file_checksum(path) for path in sound}
    return fingerprint_of(recordings.drop(columns="path").astype(str).to_dict("split")["data"], content)


def load_answers(stage: Stage) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`answers.csv` and `epochs.csv` of 06 Predict: what every recording was told, and what every saved epoch scored."""
    answers = pd.read_csv(stage.path("answers.csv"), dtype={"name": str, "reason": str, "warning": str})
    return answers.fillna({"reason": "", "warning": ""}), pd.read_csv(stage.path("epochs.csv"))


def longest_answered(answers: pd.DataFrame) -> str:
    """Name of the longest recording that got an answer. ValueError when none did, with the reasons of a few."""
    answered = answers[answers["state"] == "ok"]
    if not len(answered):
        few = "; ".join(f"{row.name}: {row.state} ({row.reason})" for row in answers[:3].itertuples(index=False))
        raise ValueError(f"none of {len(answers)} recordings got an answer, give others: {few}")
    return str(answered.loc[answered["duration_s"].idxmax(), "name"])


def tabulate_groups(answers: pd.DataFrame, targets: pd.DataFrame, tasks: list[Task]) -> dict[str, pd.DataFrame]:
    """By task how many of each labelled group, of all tasks together, were told what; no rows where nothing is labelled."""
    names = [task.name for task in tasks]
    told = answers[["name", *names]].fillna("no window")
    known = targets[["name", *names]].dropna().merge(told, on="name", suffixes=(" label", ""))
    for task in tasks:
        column = f"{task.name} label"
        known[column] = pd.Categorical.from_codes(known[column].astype(int), task.classes)
    groups, tables = known.groupby([f"{name} label" for name in names], observed=True), {}
    for task in tasks:
        counts = groups[task.name].value_counts().unstack(fill_value=0)
        columns = [*task.classes, "unsure", "several speakers", "no window"]
        tables[task.name] = counts.reindex(columns=columns, fill_value=0).rename_axis(columns=None).reset_index()
    return tables


def compare_answers(answers: pd.DataFrame, targets: pd.DataFrame, task: Task) -> np.ndarray:
    """Confusion counts (C, C) of recordings with a label and an answer, "unsure" left out; `answers`: of `Prediction.row`."""
    labels = answers.reindex(columns=["name", task.name]).set_index("name")[task.name]
    numbers = targets["name"].map(labels).map({name: number for number, name in enumerate(task.classes)})
    known = numbers.notna() & targets[task.name].notna()
    truth = targets.loc[known, task.name].to_numpy(np.int64)
    return confusion_counts(truth, numbers[known].to_numpy(np.int64), len(task.classes))


def score_recordings(answers: pd.DataFrame, targets: pd.DataFrame, tasks: list[Task]) -> pd.DataFrame:
    """One row a task: recordings labelled, answered, and of the answered ones right, accuracy, UAR and macro F1."""
    rows = []
    for task in tasks:
        counts = compare_answers(answers, targets, task)
        scores = [confusion_metrics(counts, task.classes)[name] for name in ("accuracy", "uar", "macro_f1")]
        rows.append([task.name, targets[task.name].notna().sum(), counts.sum(), np.trace(counts), *scores])
    columns = ["task", "labelled", "answered", "right", "accuracy", "UAR", "macro F1"]
    return pd.DataFrame(rows, columns=columns)


def score_ages(answers: pd.DataFrame, recordings: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """Ages in years against the truth, one row: recordings with both, mean absolute error, share inside the interval.
    recordings: with age_years where known; targets: of `label_recordings`, without a class for what the head learned from."""
    truth = recordings[["name"]].assign(truth=recordings.get(YEARS, np.nan))
    truth = truth[truth["name"].isin(targets.loc[targets[YEARS].notna(), "name"])]
    told = answers.filter(["name", YEARS, f"{YEARS}_low", f"{YEARS}_high"]).set_index("name").astype(float)
    both = told.join(truth.set_index("name"), how="inner").dropna()
    row = {"answered and known": len(both), "mean absolute error, years": (both[YEARS] - both["truth"]).abs().mean()}
    if f"{YEARS}_low" in both:
        row["inside the interval"] = both["truth"].between(both[f"{YEARS}_low"], both[f"{YEARS}_high"]).mean()
        row["mean width, years"] = (both[f"{YEARS}_high"] - both[f"{YEARS}_low"]).mean()
    return pd.DataFrame([row])


def join_tensors(predictions: list[Prediction]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of each window that was asked and kept the number of its recording, and the windows' tensors; {} where none was."""
    kept = {number: one.tensors for number, one in enumerate(predictions) if one.answers and one.tensors}
    owners = np.repeat(list(kept), [len(tensors["statistics"]) for tensors in kept.values()])
    names = next(iter(kept.values()), {})
    return owners, {name: np.concatenate([tensors[name] for tensors in kept.values()]) for name in names}


def score_epochs(told: list[Prediction], targets: pd.DataFrame, model: ModelFolder, trained: Stage) -> pd.DataFrame:
    """Score every saved epoch of the trainings behind a model folder on labelled recordings, one answer a recording.
    told: with the tensors of recordings that have a label; targets: of `label_recordings`. Returns `EPOCHS`, a row a
    task and epoch: validation_uar is what the epoch was chosen by, chosen: the head's own weights. No rows for tasks without
    two labelled classes, nor for a head that is none of the saved epochs, such as a refit one."""
    rows, (owners, tensors) = [], join_tensors(told)
    for task in [task for task in model.heads if tensors and task in targets and task != YEARS]:
        facts, labels = model.description["heads"][task], targets[task].reset_index(drop=True)
        folder, labelled = trained.path(facts["training"]), labels.notna().to_numpy()[owners]
        checkpoints = list_checkpoints(folder)
        chosen = [epoch for epoch, path in checkpoints.items() if file_checksum(path) == facts["sha256"]]
        if labels[np.unique(owners[labelled])].nunique() < 2 or not chosen:
            continue
        history = pd.read_csv(folder / "history.csv").set_index("epoch")
        features = select_input(facts["network"], tensors, model.parts)[labelled]
        for epoch, path in checkpoints.items():
            answers = np.exp(predict_log_probabilities(load_model(path)[0], features))
            answers = pd.DataFrame(answers).groupby(owners[labelled]).mean()
            truth, classes = labels[answers.index].to_numpy(np.int64), facts["classes"]
            counts = confusion_counts(truth, answers.to_numpy().argmax(axis=1), len(classes))
            scores = confusion_metrics(counts, classes)
            unseen = [float(scores[name]) for name in ("uar", "accuracy", "macro_f1")]
            rows.append([task, epoch, history.loc[epoch, "validation_uar"], *unseen, len(answers), epoch in chosen])
    return pd.DataFrame(rows, columns=EPOCHS)


def judge_choice(epochs: pd.DataFrame) -> pd.DataFrame:
    """Was the chosen epoch the right one? One row a task: both epochs, their UAR on unseen recordings, what was lost."""
    rows = []
    for task, scores in epochs.groupby("task", sort=False):
        chosen, best = scores[scores["chosen"]].iloc[0], scores.loc[scores["unseen_uar"].idxmax()]
        pair = [*chosen[["epoch", "unseen_uar"]], *best[["epoch", "unseen_uar"]]]
        rows.append([task, len(scores), *pair, best["unseen_uar"] - chosen["unseen_uar"], chosen["recordings"]])
    told = ["chosen on validation", "its UAR here", "best epoch here", "best UAR here", "lost by the choice"]
    return pd.DataFrame(rows, columns=["task", "epochs", *told, "recordings"])
