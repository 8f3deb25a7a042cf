"""A small made-up corpus whose embeddings tell gender and age: clips, windows, a store of them, and their acoustics."""

from itertools import product

import numpy as np
import pandas as pd
from scipy.special import softmax

from lib import tables
from lib.baselines import ACOUSTICS
from lib.stages import Stage
from lib.store import Store, StoreWriter

PARTS = {"layer:0": [0, 8], "layer:1": [8, 16], "layer:2": [16, 24], "bank": [24, 28]}


def make_corpus(speakers=30, clips=3):
    """Clips and windows of two corpora: two windows a clip; gender alternates, years run from 6 to 45."""
    n, split = np.repeat(np.arange(speakers), clips), np.array(["train", "train", "test"])
    table = pd.DataFrame({"corpus": np.array(["a", "b"])[n % 2], "gender": np.array(tables.GENDERS)[n // 2 % 2]})
    table = table.assign(language="en", start_s=0.0, end_s=np.nan, gender_raw="", age_raw="")
    table = table.assign(official_split=split[n % 3], age_years=6.0 + 39 * (n * 7 % speakers) // speakers)
    table["speaker_id"] = [f"{corpus}:{speaker:02d}" for corpus, speaker in zip(table["corpus"], n)]
    ids = table["speaker_id"] + "-" + pd.Series(np.arange(len(n)) % clips).astype("str")
    table = table.assign(clip_id=ids, recording_id=ids, path=ids.str[2:] + ".wav", age_decade=pd.Series(dtype="Int16"))
    windows = table.loc[table.index.repeat(2), ["clip_id", "speaker_id"]].reset_index(drop=True)
    start, drawn = np.tile([0, 2], len(n)), np.random.default_rng(0).uniform([0.5, -40], [1, -20], (2 * len(n), 2))
    ids = windows["clip_id"] + "@" + pd.Series(1000 * start).astype("str")
    windows = windows.assign(window_id=ids, start_s=start / 1, duration_s=3.0, content_hash=ids)
    windows = windows.assign(speech_ratio=drawn[:, 0], level_db=drawn[:, 1])
    windows = windows[[name for name in tables.WINDOWS.columns if name in windows]]
    return tables.validate_table(table[[*tables.CLIPS.columns]], "clips"), tables.validate_table(windows, "windows")


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
    folder.mkdir(parents=True, exist_ok=True)
    return Stage(name, run, "0" * 16, folder, {}, False)
