"""A small made-up corpus whose embeddings tell gender and age: clips, windows, and a store of them."""

import numpy as np
import pandas as pd

from lib import tables
from lib.baselines import ACOUSTICS
from lib.stages import Stage
from lib.store import Store, finish_store, save_shard


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


def make_store(folder, windows, clips, seed=0):
    """A store whose `layers` [3, 8] and `frames` [20, 16] carry gender and age, with noise, and whose voices differ."""
    rng = np.random.default_rng(seed)
    joined = windows.merge(clips[["clip_id", "gender", "age_years"]], on="clip_id")
    gender = (joined["gender"] == "female").to_numpy(float)
    age = (joined["age_years"].to_numpy() - 25) / 10
    voice = rng.normal(size=(joined["speaker_id"].nunique(), 8))[pd.factorize(joined["speaker_id"])[0]]
    layers = rng.normal(size=(len(joined), 3, 8)) * 0.5 + voice[:, None] * 0.5
    layers[:, :, 0] += 3 * gender[:, None]
    layers[:, :, 1] += 2 * age[:, None]
    frames = rng.normal(size=(len(joined), 20, 16)) + 2 * gender[:, None, None]
    acoustics = rng.normal(size=(len(joined), len(ACOUSTICS)))
    acoustics[:, 0] = 120 + 80 * gender + rng.normal(size=len(joined)) * 10
    tensors = {"frames": frames, "layers": layers, "acoustics": acoustics}
    ids = joined["window_id"].tolist()
    save_shard(folder, 0, ids, {name: values.astype(np.float32) for name, values in tensors.items()})
    finish_store(folder, 1)
    return Store(folder)


def make_stage(folder, name="04_train", run="made-up"):
    """A stage in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Stage(name, run, "0" * 16, folder, {}, False)
