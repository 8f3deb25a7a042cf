"""Recordings that no stage has seen: where they come from, what is known of them, and how every epoch would have done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import paths
from lib.answers import has_speech
from lib.audio import UnreadableAudio
from lib.corpora.sources import resolve_root
from lib.model_folder import Bundle
from lib.predict import embed_stream, list_recordings
from lib.scores import confusion_counts, confusion_metrics
from lib.stages import Stage, file_checksum, fingerprint_of
from lib.streams import WindowStream, stream_waveform
from lib.style import MUTED, colours_for
from lib.tasks import YEARS, Task, assign_targets
from lib.train import checkpoint_path, list_checkpoints, load_model, predict_log_probabilities
from lib.trainings import main_protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RENDERED = "recordings of invented speakers of whom no stage before has heard, with a few bad files among them"
GIVEN = "the recordings given in `predict.unseen`; whether training has heard their speakers is for their owner to know"
TESTED = (
    "no recordings were given, so these are NOT new ones: they are clips of the test speakers, read again from their files. "
    "Training never heard them, but the test scores of 05 Evaluate have"
)
EPOCHS = ["task", "epoch", "validation_uar", "unseen_uar", "unseen_accuracy", "unseen_macro_f1", "recordings", "chosen"]


def obtain_recordings(
    unseen: str,
    synthetic: bool,
    seed: int,
    count: int,
    splits: pd.DataFrame,
    clips: pd.DataFrame,
    roots: dict[str, Path],
) -> tuple[pd.DataFrame, str]:
    """The recordings to ask about, as `list_recordings` gives them, and a sentence that says what they are.

    Parameters
    ----------
    unseen: a folder or a CSV list; "" = render `count` new ones when `synthetic`, else up to `count` test clips, drawn by
        `seed` from the main protocol's first fold.
    splits, clips, roots: what 04 Train and 01 Download left; used for the test clips alone.
    """
    if unseen:
        return list_recordings(resolve_root(unseen)), GIVEN
    if synthetic:
        from lib.corpora.demo.render import VERSION, render_unseen

        folder = paths.DATA / "corpora" / f"unseen{VERSION}-{count}-seed{seed}"
        render_unseen(folder, seed, count)
        return list_recordings(folder / "labels.csv"), RENDERED
    tested = tested_clips(splits)["clip_id"].unique()
    drawn = clips[clips["clip_id"].isin(tested)]
    drawn = drawn.sample(min(count, len(drawn)), random_state=seed).sort_values("clip_id", ignore_index=True)
    files = [roots[clip.corpus] / clip.path for clip in drawn.itertuples(index=False)]
    return drawn.assign(name=drawn["clip_id"], path=files, fault=""), TESTED


def tested_clips(splits: pd.DataFrame) -> pd.DataFrame:
    """Rows of the splits that a model folder's heads were tested on: the main protocol's first fold."""
    protocol = main_protocol(list(splits["protocol"].unique()))
    return splits[(splits["protocol"] == protocol) & (splits["fold"] == 0) & (splits["split"] == "test")]


def label_recordings(recordings: pd.DataFrame, tasks: list[Task], splits: pd.DataFrame | None = None) -> pd.DataFrame:
    """name and one column a task: its class number, or <NA> where the label is not known. A list without labels has none.

    `splits`: given where the recordings are a run's own clips; a clip that a task's head learned from gets no label for
    it, since every task has its own split.
    """
    targets = pd.DataFrame({"name": recordings["name"]})
    for task in tasks:
        if "gender" not in recordings:
            targets[task.name] = pd.array([pd.NA] * len(recordings), dtype="Int64")
        else:
            known = recordings.assign(age_decade=recordings["age_decade"].astype("Int16"))
            targets[task.name] = assign_targets(known, task)
        if splits is not None and "clip_id" in recordings:
            tested = tested_clips(splits[splits["task"] == task.name])["clip_id"]
            targets[task.name] = targets[task.name].where(recordings["clip_id"].isin(tested).to_numpy())
    return targets


def fingerprint_recordings(recordings: pd.DataFrame) -> str:
    """Changes when the list, a file's size or a label changes."""
    sizes = [0 if row.fault else Path(row.path).stat().st_size for row in recordings.itertuples(index=False)]
    labels = recordings.drop(columns=["path"]).astype(str).to_dict("split")["data"]
    return fingerprint_of(labels, sizes)


def save_answers(stage: Stage, answers: pd.DataFrame, epochs: pd.DataFrame) -> None:
    """Write `answers.csv` and `epochs.csv` into the stage's folder."""
    for name, table in {"answers": answers, "epochs": epochs}.items():
        with paths.write_whole(stage.path(f"{name}.csv")) as partial:
            table.to_csv(partial, index=False)


def load_answers(stage: Stage) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables that `save_answers` wrote."""
    words = {"name": str, "reason": str, "warning": str}
    answers = pd.read_csv(stage.path("answers.csv"), dtype=words)
    return answers.fillna({"reason": "", "warning": ""}), pd.read_csv(stage.path("epochs.csv"))


def compare_answers(answers: pd.DataFrame, targets: pd.DataFrame, task: Task) -> np.ndarray:
    """Confusion counts [C, C] of the recordings that have both a label and an answer.

    `answers`: the table of `predictions_table`; "unsure" and no answer are left out. Rows join on `name`.
    """
    told = targets["name"].map(answers.set_index("name")[task.name]) if task.name in answers else pd.Series(dtype=str)
    numbers = told.map({name: number for number, name in enumerate(task.classes)})
    known = numbers.notna() & targets[task.name].notna()
    truth = targets.loc[known, task.name].to_numpy(np.int64)
    return confusion_counts(truth, numbers[known].to_numpy(np.int64), len(task.classes))


def score_answers(answers: pd.DataFrame, targets: pd.DataFrame, tasks: list[Task]) -> pd.DataFrame:
    """One row a task: recordings labelled, answered, and of the answered ones right, accuracy, UAR and macro F1."""
    rows = []
    for task in tasks:
        counts = compare_answers(answers, targets, task)
        row = {"task": task.name, "labelled": int(targets[task.name].notna().sum()), "answered": int(counts.sum())}
        if row["answered"]:
            scores = confusion_metrics(counts, task.classes)
            row |= {"right": int(np.trace(counts)), **{name: float(scores[name]) for name in ("accuracy", "uar")}}
            row |= {"macro F1": float(scores["macro_f1"])}
        rows.append(row)
    return pd.DataFrame(rows).rename(columns={"uar": "UAR"})


def score_years(answers: pd.DataFrame, recordings: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """Ages in years against the truth, one row: recordings with both, mean absolute error, share inside the interval.

    `answers`: of `predictions_table`, with age_years, age_years_low and age_years_high; `recordings`: with age_years where
    they are known; `targets`: of `label_recordings`, which has no class of years for what the head learned from.
    """
    columns = ["name", *(name for name in (YEARS, f"{YEARS}_low", f"{YEARS}_high") if name in answers)]
    truth = recordings[["name"]].assign(truth=recordings.get(YEARS, np.nan))
    truth = truth[truth["name"].isin(targets.loc[targets[YEARS].notna(), "name"])]
    both = answers[columns].merge(truth, on="name").dropna()
    row: dict[str, float] = {"answered and known": len(both)}
    if len(both):
        row["mean absolute error, years"] = float((both[YEARS] - both["truth"]).abs().mean())
    if len(both) and f"{YEARS}_low" in both:
        row["inside the interval"] = float(both["truth"].between(both[f"{YEARS}_low"], both[f"{YEARS}_high"]).mean())
        row["mean width, years"] = float((both[f"{YEARS}_high"] - both[f"{YEARS}_low"]).mean())
    return pd.DataFrame([row])


def pick_longest(answers: pd.DataFrame) -> str:
    """Name of the longest recording with an answer, sure or not. ValueError when there is none."""
    answered = answers[answers["state"].isin(["ok", "unsure"])]
    if answered.empty:
        raise ValueError(
            f"none of {len(answers)} recordings could be answered: {answers['state'].value_counts().to_dict()}"
        )
    return answered.loc[answered["duration_s"].idxmax(), "name"]


# ------------------------------------------------------------------------------------------------------ every epoch


def fits_of(bundle: Bundle, fits: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The trainings behind a bundle's heads, one row a task: those whose chosen checkpoint has the head's very hash.

    `fits`: task, best_epoch, folder (within `folder`). ValueError when a head comes from none of them.
    """
    hashes = {task: head["sha256"] for task, head in bundle.description["heads"].items()}
    fits = fits[fits["task"].isin(list(hashes))]
    made = [file_checksum(checkpoint_path(folder / fit.folder, fit.best_epoch)) for fit in fits.itertuples()]
    found = fits[[digest == hashes[task] for digest, task in zip(made, fits["task"])]].drop_duplicates("task")
    if len(found) != len(hashes):
        raise ValueError(
            f"model {bundle.name}: heads {sorted(set(hashes) - set(found['task']))} were trained elsewhere; run 05_evaluate again"
        )
    return found.reset_index(drop=True)


def embed_recordings(recordings: pd.DataFrame, bundle: Bundle) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embed every recording that can be answered: row number of `recordings` for each window, and the windows' tensors.

    Everything is kept in memory: about 10 kB a window with 32 features, so a thousand minutes are 300 MB.
    """
    owners, parts = [], []
    for number, row in enumerate(tqdm(list(recordings.itertuples(index=False)), desc="embedding", unit="file")):
        if row.fault:
            continue
        try:
            stream = WindowStream(stream_waveform(row.path, row.start_s, row.end_s), bundle.windowing)
            found = list(embed_stream(stream, bundle))
        except UnreadableAudio:
            continue
        if has_speech([window["speech_ratio"] for rows, _, _ in found for window in rows], bundle):
            kept = [tensors for _, _, tensors in found if tensors]
            parts += kept
            owners += [number] * sum(len(tensors["frames"]) for tensors in kept)
    if not parts:
        raise ValueError(f"none of {len(recordings)} recordings holds speech that could be embedded")
    return np.array(owners), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_epochs(
    recordings: pd.DataFrame, targets: pd.DataFrame, bundle: Bundle, fits: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """Score every saved epoch of the bundle's trainings on labelled recordings, one answer a recording.

    Parameters
    ----------
    recordings, targets: of `list_recordings` and `label_recordings`.
    fits: rows of the table of trainings, one a task: task, best_epoch, folder (within `folder`).

    Returns one row a task and epoch: validation_uar (by which the epoch was chosen), unseen_uar, unseen_accuracy,
    unseen_macro_f1, recordings, chosen. Tasks without two labelled classes give no rows.
    """
    rows = []
    known = targets[fits["task"].tolist()].notna().any(axis=1).to_numpy()
    if not known.any():
        return pd.DataFrame(columns=EPOCHS)
    owners, tensors = embed_recordings(recordings[known].reset_index(drop=True), bundle)
    for fit in fits.itertuples(index=False):
        head = bundle.heads[fit.task]
        wanted = targets.loc[known, fit.task].reset_index(drop=True)
        kept = wanted.notna().to_numpy()[owners]
        if wanted[np.unique(owners[kept])].nunique() < 2:
            continue
        history = pd.read_csv(folder / fit.folder / "history.csv").set_index("epoch")
        features = tensors[head.tensor][kept]
        for epoch, path in list_checkpoints(folder / fit.folder).items():
            scores = _score_checkpoint(path, features, owners[kept], wanted, head.classes)
            chosen = {"validation_uar": history.loc[epoch, "validation_uar"], "chosen": epoch == fit.best_epoch}
            rows.append({"task": fit.task, "epoch": epoch, **scores, **chosen})
    return pd.DataFrame(rows, columns=EPOCHS)


def _score_checkpoint(
    path: Path, features: np.ndarray, owners: np.ndarray, wanted: pd.Series, classes: list[str]
) -> dict[str, float]:
    model, _ = load_model(path)
    told = np.exp(predict_log_probabilities(model, features, np.arange(len(features))).astype(np.float64))
    answers = pd.DataFrame(told).groupby(owners).mean()  # one row a recording
    counts = confusion_counts(wanted[answers.index].to_numpy(np.int64), answers.to_numpy().argmax(axis=1), len(classes))
    scores = confusion_metrics(counts, classes)
    told = {f"unseen_{name}": float(scores[name]) for name in ("uar", "accuracy", "macro_f1")}
    return {**told, "recordings": len(answers)}


def judge_choice(epochs: pd.DataFrame) -> pd.DataFrame:
    """Was the chosen epoch the right one? One row a task: both epochs, their UAR on unseen recordings, what was lost."""
    rows = []
    for task, scores in epochs.groupby("task", sort=False):
        chosen, best = scores[scores["chosen"]].iloc[0], scores.loc[scores["unseen_uar"].idxmax()]
        better = int((scores["unseen_uar"] > chosen["unseen_uar"]).sum())
        rows.append(
            {
                "task": task,
                "epochs": len(scores),
                "chosen on validation": int(chosen["epoch"]),
                "its UAR here": chosen["unseen_uar"],
                "best epoch here": int(best["epoch"]),
                "best UAR here": best["unseen_uar"],
                "lost by the choice": best["unseen_uar"] - chosen["unseen_uar"],
                "epochs that did better": better,
                "recordings": int(chosen["recordings"]),
            }
        )
    return pd.DataFrame(rows)


def plot_epochs(epochs: pd.DataFrame) -> Figure:
    """UAR of every epoch on validation (dashed) and on unseen recordings (line), the chosen epoch marked."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(epochs["task"]))
    fig, axes = plt.subplots(1, max(1, len(tasks)), figsize=(7.5, 3.2), sharey=True, squeeze=False)
    for ax, task in zip(axes[0], tasks):
        scores, colour = epochs[epochs["task"] == task], colours_for(tasks)[task]
        ax.plot(
            scores["epoch"], scores["unseen_uar"], color=colour, marker="o", markersize=4, label="unseen recordings"
        )
        ax.plot(scores["epoch"], scores["validation_uar"], color=colour, linestyle="--")
        chosen = scores.loc[scores["chosen"], "epoch"].iloc[0]
        ax.axvline(chosen, color=MUTED, linewidth=0.9, linestyle=":")
        ax.set(title=f"{task}: epoch {chosen} was chosen", xlabel="epoch", ylabel="UAR" if ax is axes[0, 0] else "")
        ax.xaxis.get_major_locator().set_params(integer=True)
    styles = {"unseen recordings": {"marker": "o", "markersize": 4}, "validation": {"linestyle": "--"}}
    handles = [plt.Line2D([], [], color=MUTED, label=name, **style) for name, style in styles.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig
