"""A look at embeddings before anything is trained on them: linear probes by stage, with few examples, and a map of windows.
Probes read the time statistics of a clip, speakers never on both sides. What they show chooses nothing."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lib import paths
from lib.baselines import ask_probe, make_probe
from lib.scores import score_answers
from lib.stages import Stage
from lib.store import Store
from lib.tasks import Task, task_table

FOLDS = 5
LIMIT = 1_000  # clips a task, drawn at random: a look, in seconds
MAPPED = 1_000  # windows on the map
PENALTY = 0.003  # scikit-learn's C: statistics have more numbers than there are speakers
SHOTS, DRAWN = 8, 10  # speakers a class, and how often they are drawn
DRAWS = 500  # of the bootstrap
TABLES = {
    "layers": ["feature", "task", "uar", "low", "high", "clips", "speakers"],
    "few": ["task", "feature", "uar", "spread", "all_speakers"],
}


def study_layers(
    stage: Stage, store: Store, windows: pd.DataFrame, clips: pd.DataFrame, acoustics: pd.DataFrame, tasks: list[Task],
    name: str, seed: int,
) -> list[pd.DataFrame]:  # fmt: skip
    """UAR of linear probes on the parts of a store, `TABLES`: of all speakers, and of few. Kept in the stage's folder.
    layers: five folds, every speaker tested once, of each part as "<name> | <part>", "majority" and "baseline: mean F0"; tasks
    with a class of fewer speakers than folds are left out. few: mean and spread on all other speakers of probes that learned
    from `SHOTS` speakers a class, one clip each, drawn `DRAWN` times; of the last stage and of the one that is read best."""
    kept = {table: stage.path(f"{table}.csv") for table in TABLES}
    if all(path.exists() for path in kept.values()):
        return [pd.read_csv(path) for path in kept.values()]
    folds, rows = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0), {table: [] for table in TABLES}
    pitch = windows[["window_id", "clip_id"]].merge(acoustics[["window_id", "f0_hz"]], on="window_id")
    pitch = pitch.groupby("clip_id")["f0_hz"].mean()
    for task in tasks:
        if (table := probe_table(windows, clips, task, seed)).empty:
            continue
        stages = {f"{name} | {part}": average_by_clip(store, windows, table, part) for part in store.parts}
        pitches = pitch.reindex(table["clip_id"]).to_numpy()[:, None]
        features, uar = stages | {"majority": np.zeros((len(table), 1)), "baseline: mean F0": pitches}, {}
        for feature, vectors in features.items():
            asked = (make_probe(PENALTY), vectors.astype(np.float64), table["target"])
            with threadpool_limits(1):
                values = cross_val_predict(*asked, groups=table["speaker_id"], cv=folds, method="predict_proba")
            scores = score_uar(table, values, task.classes, draws=DRAWS, seed=seed).iloc[0]
            rows["layers"].append([feature, task.name, *scores[["value", "low", "high", "n", "speakers"]]])
            uar[feature] = scores["value"]
        last = [feature for feature in stages if not feature.endswith("| bank")][-1]
        for feature in dict.fromkeys([last, max(stages, key=uar.get)]):
            rows["few"].append([task.name, feature, *score_few(stages[feature], table, task, seed), uar[feature]])
    return [paths.save_frame(kept[table], pd.DataFrame(rows[table], columns=TABLES[table])) for table in TABLES]


def probe_table(windows: pd.DataFrame, clips: pd.DataFrame, task: Task, seed: int) -> pd.DataFrame:
    """Clips with a class of this task, at most `LIMIT`: clip_id, speaker_id, target; empty where `FOLDS` folds cannot be made."""
    table = task_table(windows, clips, task).drop_duplicates("clip_id")[["clip_id", "speaker_id", "target"]]
    table = table.sample(min(LIMIT, len(table)), random_state=seed).reset_index(drop=True)
    voices = table.groupby("target")["speaker_id"].nunique()
    return table if len(voices) == len(task.classes) and voices.min() >= FOLDS else table.head(0)


def average_by_clip(store: Store, windows: pd.DataFrame, table: pd.DataFrame, part: str) -> np.ndarray:
    """Mean over the windows of each clip of `table` of one part's statistics: (len(table), S)."""
    own = windows[windows["clip_id"].isin(table["clip_id"])]
    values = pd.DataFrame(store.statistics(own["window_id"], [part])[np.arange(len(own))])
    return values.groupby(own["clip_id"].to_numpy()).mean().loc[table["clip_id"]].to_numpy()


def score_uar(table: pd.DataFrame, values: np.ndarray, classes: list[str], **options: Any) -> pd.DataFrame:
    """The record of UAR, one row, for rows with target and speaker_id and their probabilities (n, C)."""
    answers = table[["target", "speaker_id"]].assign(**dict(zip([f"p_{name}" for name in classes], values.T)))
    records = score_answers(answers, classes, **options)
    return records[records["metric"] == "uar"]


def score_few(
    vectors: np.ndarray, table: pd.DataFrame, task: Task, seed: int, tested: pd.DataFrame | None = None
) -> tuple[float, float]:
    """Mean and spread of the UAR, on `tested` (None = everybody else in `table`), of probes that learned from `SHOTS` speakers
    a class, one row each, drawn `DRAWN` times. The tables' index is the row of vectors (n, S)."""
    scores = []
    for draw in range(DRAWN):
        voices = table.sample(frac=1, random_state=np.random.default_rng([seed, draw])).drop_duplicates("speaker_id")
        shown = voices.groupby("target").head(min(SHOTS, voices["target"].value_counts().min() - 1))
        rest = table[~table["speaker_id"].isin(shown["speaker_id"])] if tested is None else tested
        learned = vectors[shown.index], shown["target"].to_numpy()
        values = ask_probe(*learned, vectors[rest.index], len(task.classes), PENALTY)
        scores.append(score_uar(rest, values, task.classes, draws=0)["value"].iloc[0])
    return float(np.mean(scores)), float(np.std(scores))


def project_windows(stage: Stage, store: Store, windows: pd.DataFrame, clips: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Up to `MAPPED` windows on a plane (t-SNE of 30 principal components of all statistics): x, y, gender, corpus.
    `near_gender`, `near_corpus`: those of the nearest window of another speaker, in the components. Kept in the stage's folder."""
    kept = stage.path("projection.parquet")
    if kept.exists():
        return pd.read_parquet(kept)
    drawn = windows.sample(min(MAPPED, len(windows)), random_state=seed)
    known = drawn.merge(clips[["clip_id", "corpus", "gender"]], on="clip_id")
    known["gender"] = known["gender"].fillna("not known")
    values = StandardScaler().fit_transform(store.statistics(known["window_id"])[np.arange(len(known))])
    components = PCA(min(30, *values.shape), random_state=seed).fit_transform(values)
    with threadpool_limits(1):
        plane = TSNE(perplexity=min(30, (len(known) - 1) // 3), random_state=seed).fit_transform(components)
    points = known[["window_id", "speaker_id", "gender", "corpus"]].assign(x=plane[:, 0], y=plane[:, 1])
    voices = points["speaker_id"].to_numpy()
    near = NearestNeighbors(n_neighbors=min(60, len(points) - 1)).fit(components).kneighbors(return_distance=False)
    other = voices[near] != voices[:, None]
    nearest = near[np.arange(len(near)), other.argmax(axis=1)]
    points[["near_gender", "near_corpus"]] = points[["gender", "corpus"]].to_numpy()[nearest]
    return paths.save_frame(kept, points)
