"""The comparison of encoders runs through on a small corpus, with and without a test on speakers never heard."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import soundfile
from chain_runner import places_of
from test_speechocean762 import make_half

from lib import paths
from lib.pretraining import CONFIG, Recipe, build_model, export_weights
from lib.units import RATE_HZ

SPEAKERS = {f"{k:04d}": ("mf"[k % 2], "8" if k < 12 else "30") for k in range(24)}


def make_corpus(root):
    """24 speakers of two utterances: noise, louder low down for one gender."""
    rng = np.random.default_rng(0)
    make_half(root, "train", SPEAKERS, ".wav")
    for path in sorted((root / "WAVE").rglob("*.wav")):
        noise = rng.normal(0, 0.1, RATE_HZ)
        soundfile.write(
            path, np.convolve(noise, np.ones(8) / 8, "same") if int(path.parent.name[-1]) % 2 else noise, RATE_HZ
        )


def make_held_out(folder):
    """What a training with --hold-out leaves behind, with weights as they were drawn."""
    folder.mkdir()
    paths.save_json(folder / "recipe.json", asdict(Recipe(hold_out=16)))
    pd.DataFrame({"speaker_id": list(SPEAKERS)}).to_parquet(folder / "speech-rows.parquet")
    config = json.loads(CONFIG.read_text())
    export_weights(folder, config, build_model(config))


def test_the_comparison_runs_and_its_metrics_name_both_tests(tmp_path):
    make_corpus(tmp_path / "corpus")
    make_held_out(tmp_path / "held")
    values = {
        "root": tmp_path / "corpus",
        "peers": '["mean F0"]',
        "probes_used": '["logistic"]',
        "folds": 2,
        "held_out": tmp_path / "held",
    }
    changes = [part for key, value in values.items() for part in ("--set", f"encoders.{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "lib.run", "params/encoders.yaml", *changes],
        cwd=paths.ROOT, env=os.environ | places_of(tmp_path), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "reports" / "encoders"
    scores = pd.DataFrame(json.loads((folder / "metrics.json").read_text())["scores"])
    families = scores.groupby("protocol").model.agg(set)
    same = {"majority", "mean F0", "wav2vec2-tiny-untrained"}
    assert families["five folds over speakers whose unlabelled audio trained the tiny"] == same | {"wav2vec2-tiny"}
    unheard = "five folds over speakers that no encoder here was trained on"
    assert families[unheard] == same | {"the recipe, these speakers unheard"}
    assert scores[scores.protocol == unheard].speakers.max() == 16
    assert unheard in (folder / "index.html").read_text()
    shown = [page.read_text() for page in [*folder.rglob("*.html"), folder / "run.json"]]
    assert not any(str(tmp_path) in text for text in shown)
