"""How much of a speaker can be read from a representation: linear and kernel probes on utterances, speakers kept apart.

Every representation, ours and what one would otherwise reach for, goes through the same probes on the same folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file as load_weights
from torch import nn
from tqdm import tqdm

from lib.encoders import Encoder
from lib.paths import load_json, write_whole
from lib.stages import file_checksum, fingerprint_of
from lib.store import Store
from lib.tasks import Task, assign_targets
from lib.units import RATE_HZ, RECEPTIVE, mfcc, track_pitch, with_deltas
from lib.views import read_speech, read_utterances

ADULT_YEARS = 16  # speechocean762 has nobody between 16 and 18
TASKS = ("gender of adults", "gender of children", "child or adult")
GENDERS = {"m": "male", "f": "female"}
CHOSEN = (
    "Each row is the best of its stages and probes, chosen on the very scores shown: 14 vectors and two probes for an encoder, "
    "one vector and two probes for the others. It is a comparison of representations, not of finished models."
)
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's colour-blind safe pair


def read_labelled(corpus: Path, split: str = "train") -> pd.DataFrame:
    """Utterances of speechocean762 with labels: utterance_id, speaker_id, path, gender, age_years."""
    table = read_utterances(corpus, split)
    for name, column in (("spk2gender", "gender"), ("spk2age", "age_years")):
        lines = (Path(corpus) / split / name).read_text(encoding="utf-8").split("\n")
        table[column] = table.speaker_id.map(dict(line.split() for line in lines if line.strip()))
        missing = table.speaker_id[table[column].isna()]
        if len(missing):
            raise ValueError(
                f"{corpus}/{split}/{name}: no line for speaker {missing.iloc[0]}; download the corpus again"
            )
    return table.assign(gender=table.gender.map(GENDERS), age_years=table.age_years.astype(int))


def task_labels(table: pd.DataFrame, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `table` that `task` (one of TASKS) concerns, and their 0/1 labels (female, adult = 1)."""
    adult = (table.age_years >= ADULT_YEARS).to_numpy()
    female = (table.gender == "female").to_numpy()
    choice = {TASKS[0]: (adult, female), TASKS[1]: (~adult, female), TASKS[2]: (np.ones_like(adult), adult)}
    if task not in choice:
        raise ValueError(f"task {task!r} is unknown; choose one of {TASKS}")
    rows = np.flatnonzero(choice[task][0])
    return rows, choice[task][1][rows].astype(int)


# ------------------------------------------------------------------------------------------- representations of an utterance


def embed_pitch(waveform: np.ndarray) -> np.ndarray:
    """Mean pitch in Hz over voiced frames, shape (1,); 0 when nothing is voiced."""
    pitch = track_pitch(waveform)
    return np.array([pitch[pitch > 0].mean() if (pitch > 0).any() else 0.0])


def embed_mfcc(waveform: np.ndarray) -> np.ndarray:
    """Mean and deviation of 13 MFCC and their first and second slopes, shape (78,)."""
    features = with_deltas(mfcc(torch.from_numpy(normalize(waveform))[None]))[0]
    return torch.cat([features.mean(0), features.std(0)]).numpy()


def egemaps_embedder() -> Callable[[np.ndarray], np.ndarray]:
    """Functionals of eGeMAPSv02 (Eyben et al. 2016, doi 10.1109/TAFFC.2015.2457417), shape (88,); needs `opensmile`."""
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    return lambda waveform: smile.process_signal(waveform, RATE_HZ).to_numpy()[0]


def resemblyzer_embedder() -> Callable[[np.ndarray], np.ndarray]:
    """Speaker embedding of Resemblyzer (GE2E, Wan et al. 2018, arXiv 1710.10467), shape (256,); needs `resemblyzer`."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)

    def embed(waveform: np.ndarray) -> np.ndarray:
        trimmed = preprocess_wav(waveform, source_sr=RATE_HZ)
        return encoder.embed_utterance(trimmed if len(trimmed) > RATE_HZ // 4 else waveform)

    return embed


EMBEDDERS = {  # name -> a function that makes the embedder, so that a peer is imported only when it is asked for
    "mean F0": lambda: embed_pitch,
    "MFCC statistics": lambda: embed_mfcc,
    "eGeMAPS": egemaps_embedder,
    "Resemblyzer": resemblyzer_embedder,
}


def make_embedders(names: Iterable[str]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Embedders by name, each a function from a waveform at 16 kHz to (D,). ValueError for unknown or missing ones."""
    made = {}
    for name in names:
        if name not in EMBEDDERS:
            raise ValueError(f"representation {name!r} is unknown; choose from {', '.join(EMBEDDERS)}")
        try:
            made[name] = EMBEDDERS[name]()
        except ModuleNotFoundError as error:
            advice = "pip install --no-deps -r requirements-peers.txt, or leave it out of `peers`"
            raise ValueError(f"representation {name!r} needs the package {error.name}: {advice}") from error
    return made


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole utterance."""
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)).astype(np.float32)


def embed_layers(model: nn.Module, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """Time averages (and, after them, deviations) of every stage of the encoder: conv, layer 1 ... L, emission -> (2 D,)."""
    with torch.inference_mode():
        features, _ = model.feature_extractor(torch.from_numpy(normalize(waveform))[None], None)
        layers = model.encoder.extract_features(features)
        stages = [features, *layers, model.aux(layers[-1])]
    names = ["conv", *(f"layer {place + 1}" for place in range(len(layers))), "emission"]
    return {name: torch.cat([x[0].mean(0), x[0].std(0)]).numpy() for name, x in zip(names, stages, strict=True)}


def embed_all(
    paths: Sequence[str], embedders: dict[str, Callable[[np.ndarray], np.ndarray]], models: dict[str, nn.Module]
) -> dict[str, np.ndarray]:
    """Read every file once and embed it in every way: name -> (n, D); a model gives "name | stage" and "... mean+std"."""
    rows: dict[str, list[np.ndarray]] = {}
    for path in tqdm(list(paths), desc=f"embed by {', '.join([*embedders, *models])}"):
        waveform = read_speech(path)
        waveform = np.pad(waveform, (0, max(0, 4 * RECEPTIVE - len(waveform))))
        for name, embed in embedders.items():
            rows.setdefault(name, []).append(embed(waveform))
        for name, model in models.items():
            for stage, value in embed_layers(model, waveform).items():
                rows.setdefault(f"{name} | {stage}", []).append(value[: len(value) // 2])
                rows.setdefault(f"{name} | {stage} mean+std", []).append(value)
    return {name: np.nan_to_num(np.stack(values)).astype(np.float32) for name, values in rows.items()}


def represent(
    folder: Path, table: pd.DataFrame, peers: Iterable[str], encoders: dict[str, Encoder]
) -> dict[str, np.ndarray]:
    """Every utterance of `table` (column path) by every peer and encoder, as `embed_all`; in the table's order.

    Each source has a file of its own in `folder`, named after it, its weights and the files embedded, so that a killed run
    goes on after the last and another encoder costs nothing but itself.
    """
    from safetensors.numpy import load_file, save_file

    known = [[Path(path).name, Path(path).stat().st_size] for path in table.path]
    found: dict[str, np.ndarray] = {}
    for name in [*peers, *encoders]:
        weights = encoders[name].weights_sha256 if name in encoders else ""
        kept = folder / f"{name.replace(' ', '-')}-{fingerprint_of(name, weights, known)}.safetensors"
        if not kept.exists():
            model = {name: encoders[name].model} if name in encoders else {}
            values = embed_all(table.path, make_embedders([] if model else [name]), model)
            with write_whole(kept) as partial:
                save_file({key: np.ascontiguousarray(value) for key, value in values.items()}, partial)
        made = load_file(kept)
        found |= {key: made[key] for key in sorted(made, key=stage_order)}
    return found


def stage_order(feature: str) -> tuple[int, str]:
    """Sorts "name | conv", "name | layer 1" ..., "name | emission" from bottom to top."""
    return ("| emission" in feature, "| conv" not in feature), feature


def held_out(recipe_folder: Path) -> tuple[list[str], Encoder]:
    """Speakers that a training with `--hold-out` never heard, and the encoder that it made. ValueError when it heard all.

    `recipe_folder` is the `--out` of `python -m lib.pretraining`.
    """
    from lib.pretraining import CONFIG, Recipe, build_model, draw_held_out

    recipe = Recipe(**load_json(recipe_folder / "recipe.json"))
    if not recipe.hold_out:
        raise ValueError(f"{recipe_folder}: that training heard every speaker; train one with --hold-out 62")
    config = load_json(recipe_folder / CONFIG.name)
    weights = recipe_folder / config["weights"]
    model = build_model(config).eval()
    model.load_state_dict({key: value.float() for key, value in load_weights(weights).items()})
    note = f"the recipe of wav2vec2-tiny, trained without {recipe.hold_out} of the speakers"
    encoder = Encoder("the recipe, these speakers unheard", model, note, file_checksum(weights), True)
    speakers = pd.read_parquet(recipe_folder / "speech-rows.parquet").speaker_id.unique()
    return draw_held_out(speakers, recipe), encoder


def known_adults(clips: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Clips of adults of known gender, from a reader of `lib.corpora`: speaker_id, gender, path (absolute)."""
    adult = (clips.age_years >= ADULT_YEARS) | (clips.age_decade >= 20)
    chosen = clips[clips.gender.isin(list(GENDERS.values())) & adult.fillna(False)]
    paths = [str(Path(root) / path) for path in chosen.path]
    return pd.DataFrame({"speaker_id": chosen.speaker_id, "gender": chosen.gender, "path": paths}).reset_index(
        drop=True
    )


# -------------------------------------------------------------------------------------------------------------------- probes


def make_probe(kind: str, seed: int = 0, strength: float = 1.0):
    """StandardScaler and a balanced "logistic" or "svm" (RBF) classifier, or "majority"; scikit-learn's defaults otherwise.

    `strength` is the inverse of the penalty (scikit-learn's C).
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind == "majority":
        return DummyClassifier(strategy="most_frequent")
    kinds = {"logistic": LogisticRegression(C=strength, class_weight="balanced", max_iter=2000, random_state=seed),
             "svm": SVC(C=strength, class_weight="balanced", random_state=seed)}  # fmt: skip
    if kind not in kinds:
        raise ValueError(f"probe {kind!r} is unknown; choose one of {(*kinds, 'majority')}")
    return make_pipeline(StandardScaler(), kinds[kind])


def predict_folds(
    features: np.ndarray,
    labels: np.ndarray,
    speakers: np.ndarray,
    kind: str,
    folds: int = 5,
    seed: int = 0,
    strength: float = 1.0,
) -> np.ndarray:
    """Out-of-fold predictions (n,), no speaker on both sides of a fold; `strength` as of `make_probe`."""
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    apart = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(make_probe(kind, seed, strength), features, labels, groups=speakers, cv=apart)


def score_uar(
    labels: np.ndarray, predicted: np.ndarray, speakers: np.ndarray, draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Unweighted average recall of labels 0 to C - 1 with a 95 % interval from a bootstrap over speakers: uar, low, high, n, speakers."""
    names, places = np.unique(speakers, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1, 2))  # speaker, class, (all, right)
    np.add.at(counts, (places, labels, 0), 1)
    np.add.at(counts, (places, labels, 1), labels == predicted)

    def recall(total: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (total[..., 1] / total[..., 0]).mean(-1)

    picked = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    spread = recall(counts[picked].sum(1))
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return {
        "uar": float(recall(counts.sum(0))),
        "low": float(low),
        "high": float(high),
        "n": len(labels),
        "speakers": len(names),
    }


def score_representations(
    table: pd.DataFrame,
    representations: dict[str, np.ndarray],
    tasks: Iterable[str] = TASKS,
    kinds: Iterable[str] = ("logistic", "svm"),
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Probe every representation (n, D) for every task: feature, task, probe, uar, low, high, n, speakers."""
    scores, speakers = [], table.speaker_id.to_numpy()
    for task in tasks:
        rows, labels = task_labels(table, task)
        runs = [("majority", np.zeros((len(table), 1)), "majority")]
        runs += [(name, values, kind) for name, values in representations.items() for kind in kinds]
        for name, values, kind in tqdm(runs, desc=task):
            predicted = predict_folds(values[rows], labels, speakers[rows], kind, folds, seed)
            scores.append(
                {
                    "feature": name,
                    "task": task,
                    "probe": kind,
                    **score_uar(labels, predicted, speakers[rows], seed=seed),
                }
            )
    return pd.DataFrame(scores)


def score_kept(
    kept: Path, table: pd.DataFrame, representations: dict[str, np.ndarray], kinds: list[str], folds: int, seed: int
) -> pd.DataFrame:
    """`score_representations`, read from `kept` when it was computed before."""
    if not kept.exists():
        scores = score_representations(table, representations, kinds=kinds, folds=folds, seed=seed)
        with write_whole(kept) as partial:
            scores.to_parquet(partial)
    return pd.read_parquet(kept)


def score_transfer(
    table: pd.DataFrame,
    representations: dict[str, np.ndarray],
    other: pd.DataFrame,
    other_representations: dict[str, np.ndarray],
    kinds: Iterable[str] = ("logistic", "svm"),
    seed: int = 0,
) -> pd.DataFrame:
    """Gender of adults with probes fitted on `table` alone and scored on `other` (speaker_id, gender): another corpus."""
    rows, labels = task_labels(table, TASKS[0])
    truth, scores = (other.gender == "female").to_numpy().astype(int), []
    for name, values in representations.items():
        for kind in kinds:
            predicted = make_probe(kind, seed).fit(values[rows], labels).predict(other_representations[name])
            score = score_uar(truth, predicted, other.speaker_id.to_numpy(), seed=seed)
            scores.append({"feature": name, "task": "gender of adults, other corpus", "probe": kind, **score})
    return pd.DataFrame(scores)


def best_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One row for each representation and task: its best stage and probe. Chosen on the score itself, so a little too good."""
    family = scores.feature.str.split(" | ", regex=False).str[0]
    best = (
        scores.assign(family=family).sort_values("uar", ascending=False).groupby(["family", "task"], sort=False).head(1)
    )
    return best.sort_values(["task", "uar"], ascending=[True, False], ignore_index=True)


def tell_comparison(tests: dict[str, pd.DataFrame], ours: Sequence[str]) -> dict[str, Any]:
    """`scores` and `headline` of a run's metrics from the tables of `best_scores`, by what was tested; the first test that
    has a task speaks for it, and of its families the first of `ours`."""
    records, headline = [], {}
    for protocol, best in tests.items():
        records.append(best.rename(columns={"family": "model", "uar": "value"}).assign(protocol=protocol, metric="uar"))
        for task, rows in best.groupby("task", sort=False):
            model = next((name for name in ours if name in set(rows.family)), rows.family.iloc[0])
            headline.setdefault(task, {"model": model, "protocol": protocol, "level": "clip"})
    return {"scores": pd.concat(records).assign(split="test", level="clip", subset="all"), "headline": headline}


# --------------------------------------------------------------------------------------------------------- layers of a store


def study_layers(
    store: Store,
    windows: pd.DataFrame,
    clips: pd.DataFrame,
    tasks: list[Task],
    encoder: str,
    seed: int,
    most: int = 1500,
) -> pd.DataFrame:
    """UAR of the logistic probe on a store's clips, by task and stage ("conv", "layer 0" ...), speakers kept apart in folds.

    A clip is the mean of its windows; of each task at most `most` clips are drawn; a class of one speaker is left out, and a
    task without two classes. Mean pitch stands beside the stages, and
    the majority, which says the same of everyone. Columns as of `score_representations`; kept beside the store's shards.
    """
    kept = (
        Path(store.folder) / f"layers-{fingerprint_of(encoder, seed, most, [asdict(task) for task in tasks])}.parquet"
    )
    if kept.exists():
        return pd.read_parquet(kept)
    scores = []
    for task in tasks:
        targets = assign_targets(clips, task)
        drawn = clips.assign(target=targets)[targets.notna() & clips.clip_id.isin(windows.clip_id)]
        drawn = drawn.sample(min(most, len(drawn)), random_state=seed)
        enough = drawn.groupby("target").speaker_id.nunique().loc[lambda count: count > 1]
        if len(enough) < 2:
            continue
        drawn = drawn[drawn.target.isin(enough.index)]
        labels, speakers = enough.index.get_indexer(drawn.target), drawn.speaker_id.to_numpy()
        folds = int(min(5, enough.min()))
        stages = {"majority": np.zeros((len(drawn), 1))} | average_stages(store, windows, drawn.clip_id, encoder)
        for name, values in tqdm(stages.items(), desc=f"layers, {task.name}"):
            kind = name if name == "majority" else "logistic"
            predicted = predict_folds(values, labels, speakers, kind, folds, seed)
            score = score_uar(labels, predicted, speakers, seed=seed)
            scores.append({"feature": name, "task": task.name, "probe": kind, **score})
    table = pd.DataFrame(scores, columns=["feature", "task", "probe", "uar", "low", "high", "n", "speakers"])
    with write_whole(kept) as partial:
        table.to_parquet(partial, index=False)
    return table


def average_stages(store: Store, windows: pd.DataFrame, clip_ids: pd.Series, encoder: str) -> dict[str, np.ndarray]:
    """Time averages of every stage that a store holds, one row a clip: "mean F0" (n, 1), "encoder | layer 0" (n, D) ..."""
    rows = windows[windows.clip_id.isin(clip_ids)]
    place = pd.Index(clip_ids).get_indexer(rows.clip_id)
    counts = np.bincount(place, minlength=len(clip_ids))

    def by_clip(tensor: str) -> np.ndarray:
        values = np.nan_to_num(store.features(tensor, rows.window_id).all())
        sums = np.zeros((len(clip_ids), *values.shape[1:]))
        np.add.at(sums, place, values)
        return sums / counts.reshape(-1, *[1] * (values.ndim - 1))

    found = {"mean F0": by_clip("acoustics")[:, :1]} if "acoustics" in store.description["tensors"] else {}
    if "conv" in store.description["tensors"]:
        found[f"{encoder} | conv"] = by_clip("conv")
    layers = by_clip("layers")
    return found | {f"{encoder} | layer {k}": layers[:, k] for k in range(layers.shape[1])}


# ------------------------------------------------------------------------------------------------------------------- figures


def plot_layers(scores: pd.DataFrame, task: str, ax=None):
    """UAR of `task` by stage for every encoder in `scores` (features named "encoder | stage"), 95 % bars; returns the axes."""
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6, 3.5))[1]
    known = scores[scores.task == task]
    chosen = known[known.feature.str.contains(" | ", regex=False) & ~known.feature.str.endswith("mean+std")]
    others = known[~known.feature.str.contains(" | ", regex=False)].groupby("feature", sort=False).uar.max()
    parts = chosen.feature.str.split(" | ", regex=False, expand=True)
    chosen = chosen.assign(encoder=parts[0], stage=parts[1])
    chosen = chosen.loc[chosen.groupby(["encoder", "stage"], sort=False).uar.idxmax()]
    for colour, (name, rows) in zip((BLUE, ORANGE, "#009E73", "#CC79A7"), chosen.groupby("encoder", sort=False)):
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows.uar.to_numpy())
        ax.errorbar(rows.stage, rows.uar, bars, marker="o", capsize=3, color=colour, label=name)
    for (name, uar), style in zip(others.items(), (":", "--", "-.", (0, (5, 1)), (0, (1, 3)), (0, (3, 5)))):
        ax.axhline(uar, color="grey", linestyle=style, linewidth=1.2, label=name)
    ax.set(
        title=f"{task}, by stage", xlabel="stage of the encoder", ylabel="UAR", ylim=(min(0.4, others.min() - 0.1), 1.0)
    )
    ax.tick_params(axis="x", rotation=30)
    ax.legend(frameon=False)
    return ax


def plot_all_layers(scores: pd.DataFrame):
    """`plot_layers` of every task in `scores` side by side; returns the figure."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(scores.task))
    figure, axes = plt.subplots(
        1, len(tasks) or 1, figsize=(3.9 * (len(tasks) or 1), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    if not tasks:
        axes[0, 0].set(title="No task has two classes of two speakers")
    for ax, task in zip(axes[0], tasks):
        handles, names = plot_layers(scores, task, ax).get_legend_handles_labels()
        ax.get_legend().remove()
    if tasks:
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_history(history: pd.DataFrame, losses: Iterable[str] = ("total", "unit", "warp", "contrast"), ax=None):
    """Loss curve of a pretraining run against hours of speech heard; returns the axes."""
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6, 3.5))[1]
    for name in losses:
        ax.plot(
            history.heard_h, history[name] / history[name].iloc[0], label=f"{name} (first: {history[name].iloc[0]:.2f})"
        )
    ax.set(
        title="Pretraining",
        xlabel="speech heard (h, views counted)",
        ylabel="loss, share of its first value",
        ylim=(0, None),
    )
    ax.legend(frameon=False)
    return ax
