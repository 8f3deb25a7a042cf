"""A small made-up corpus whose embeddings tell gender and age: clips, windows, a store of them, and their acoustics."""

from itertools import product

import numpy as np
import pandas as pd
from scipy.special import softmax

from lib import tables
from lib.baselines import ACOUSTICS
from lib.stages import Stage
from lib.store import Store, StoreWriter


def make_corpus(speakers=30, clips=3, seed=0, corpora=("a", "b")):
    """Clips and windows: two windows a clip; gender alternates, years run from 6 to 45."""
    rng = np.random.default_rng(seed)
    rows, cut = [], []
    for speaker in range(speakers):
        corpus, years = corpora[speaker % len(corpora)], float(6 + 39 * ((speaker * 7) % speakers) // speakers)
        for clip in range(clips):
            clip_id = f"{corpus}:{speaker:02d}-{clip}"
            rows.append({
                "clip_id": clip_id, "corpus": corpus, "speaker_id": f"{corpus}:{speaker:02d}", "recording_id": clip_id,
                "language": "en", "path": f"{clip_id[2:]}.wav", "start_s": 0.0, "end_s": np.nan,
                "gender": tables.GENDERS[(speaker // 2) % 2], "gender_raw": "", "age_years": years, "age_decade": None,
                "age_raw": "", "official_split": ["train", "train", "test"][speaker % 3],
            })  # fmt: skip
            for start in (0, 2000):
                window_id = f"{clip_id}@{start}"
                cut.append({
                    "window_id": window_id, "clip_id": clip_id, "speaker_id": f"{corpus}:{speaker:02d}",
                    "start_s": start / 1000, "duration_s": 3.0, "speech_ratio": rng.uniform(0.5, 1),
                    "level_db": rng.uniform(-40, -20), "content_hash": window_id,
                })  # fmt: skip
    clips_table = tables.validate_table(pd.DataFrame(rows).astype({"age_decade": "Int16"}), "clips")
    return clips_table, tables.validate_table(pd.DataFrame(cut), "windows")


PARTS = {"layer:0": [0, 8], "layer:1": [8, 16], "layer:2": [16, 24], "bank": [24, 28]}


def make_store(folder, windows, clips, seed=0, noise=0.5):
    """A store whose three layers of 8 numbers and whose `frames` (20, 16) carry gender and age; its `bank` tells nothing."""
    rng = np.random.default_rng(seed)
    joined = windows.merge(clips[["clip_id", "gender", "age_years"]], on="clip_id")
    gender = (joined["gender"] == "female").to_numpy(float)
    age = (joined["age_years"].to_numpy() - 25) / 10
    voice = rng.normal(size=(joined["speaker_id"].nunique(), 8))[pd.factorize(joined["speaker_id"])[0]]
    layers = rng.normal(size=(len(joined), 3, 8)) * noise + voice[:, None] * 0.5
    layers[:, :, 0] += 3 * gender[:, None]
    layers[:, :, 1] += 2 * age[:, None]
    statistics = np.concatenate([layers.reshape(len(joined), 24), rng.normal(size=(len(joined), 4))], axis=1)
    frames = rng.normal(size=(len(joined), 20, 16)) + 2 * gender[:, None, None]
    about = {"encoder": "made-up", "feature": "emission", "dtype": "float32", "parts": PARTS}
    about |= {"shapes": {"statistics": [28], "frames": [20, 16]}}
    writer = StoreWriter(folder, joined["window_id"].tolist(), about)
    for rows in writer.missing():
        writer.write(rows, {"statistics": statistics[rows], "frames": frames[rows]})
    writer.finish()
    return Store(folder)


def make_answers(rows, task, right, models=("linear",), seeds=(0, 1), sharp=4.0):
    """Predictions for `rows` of splits: right in a share `right` of them (one number, or one a row), and surer than that."""
    rng, parts, size = np.random.default_rng(1), [], len(task.classes)
    keys = ["window_id", "clip_id", "speaker_id", "task", "protocol", "fold", "split", "target"]
    for model, seed in product(models, seeds):
        others = (rows["target"] + rng.integers(1, size, len(rows))) % size
        answers = np.where(rng.random(len(rows)) < right, rows["target"], others)
        p = softmax(rng.normal(0, 1, (len(rows), size)) + sharp * np.eye(size)[answers], axis=1)
        columns = {f"p_{name}": p[:, number] for number, name in enumerate(task.classes)}
        parts.append(rows[keys].assign(model=model, seed=seed, epoch=1, **columns))
    return pd.concat(parts, ignore_index=True)


def make_acoustics(windows, clips, seed=0):
    """The table of acoustics: women speak 80 Hz higher, nothing else tells anything."""
    rng = np.random.default_rng(seed)
    genders = windows["clip_id"].map(clips.set_index("clip_id")["gender"])
    measures = rng.normal(size=(len(windows), len(ACOUSTICS)))
    measures[:, 0] = 120 + 80 * (genders == "female") + rng.normal(size=len(windows)) * 10
    return pd.DataFrame(measures, columns=ACOUSTICS).assign(window_id=windows["window_id"].to_numpy())


def make_stage(folder, name="04_train", run="made-up"):
    """A stage in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Stage(name, run, "0" * 16, folder, {}, False)
