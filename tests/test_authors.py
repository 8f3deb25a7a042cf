"""The run `authors`: files of the published form go through import, training, evaluation and report."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from chain_runner import places_of

from lib import paths

SMALL = [
    "train.epochs=1",
    "train.head_epochs=25",
    "train.learning_rate=0.01",
    "train.head_learning_rate=0.01",
    "train.width=0.03",
    "evaluate.draws=100",
]


def write_pickles(folder, files=24, each=5):
    """Files as published: lists of sets {tensor[1, 149, 32], age word, gender word}; classes differ a little."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    for number in range(files):
        age, gender = ["teens", "twenties", "fifties"][number % 3], ["male", "female"][number % 2]
        offset = torch.zeros(32)
        offset[:16], offset[16:] = number % 2, float(number % 3 == 0)
        entries = [{torch.randn(1, 149, 32, generator=generator) + offset, age, gender} for _ in range(each)]
        (folder / f"batch_{number}.pkl").write_bytes(pickle.dumps(entries))
    return folder


def call(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=paths.ROOT, env=os.environ | places_of(folder), capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the finished run."""
    folder = tmp_path_factory.mktemp("authors")
    done = call(folder, "lib.corpora.authors", str(write_pickles(folder / "pickles")))
    assert (done.returncode, done.stdout) == (0, "24 files, 120 windows, 0 dropped\n"), done.stderr
    changes = [part for change in SMALL for part in ("--set", change)]
    done = call(folder, "lib.run", "params/authors.yaml", *changes)
    assert done.returncode == 0, done.stderr
    return folder


def test_imported_embeddings_are_trained_on_and_scored_beside_the_guess(folder):
    metrics = json.loads((folder / "reports/authors/metrics.json").read_text())
    models = {row["model"] for row in metrics["scores"] if row["protocol"] == "speaker"}
    assert {"paper", "attentive_layers", "linear_layers", "majority"} <= models
    assert not [name for name in models if name.startswith("baseline")]
    asked = {"model": "linear_layers", "metric": "uar", "protocol": "speaker", "level": "window", "subset": "all"}
    heard = {row["task"]: row["value"] for row in metrics["scores"] if asked.items() <= row.items()}
    assert heard["gender"] > 0.8
    assert heard["age"] > 0.8


def test_what_needs_sound_is_left_out_and_the_pages_say_so(folder):
    assert not (folder / "data/authors/models").exists()
    for page in ("index", "05_evaluate"):
        text = (folder / f"reports/authors/{page}.html").read_text()
        assert "imported without their sound" in text, page
        assert "as the paper" in text, page


def test_without_an_import_the_run_is_refused_with_the_command(tmp_path):
    done = call(tmp_path, "lib.run", "params/authors.yaml")
    assert done.returncode == 2
    assert "starts from imported pickles: python -m lib.corpora.authors FOLDER --run authors" in done.stderr
