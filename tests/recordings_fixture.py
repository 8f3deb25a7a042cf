"""A small world to predict in: a few spoken recordings, a model of random weights on top of an untrained encoder."""

from pathlib import Path

import numpy as np
import pytest

from lib.encoders import UNTRAINED, load_encoder
from lib.model_folder import load_bundle, save_bundle
from lib.networks import build_network
from lib.train import fit_normaliser, save_model
from lib.windows import Windowing

CLASSES = {"gender": ["male", "female"], "age": ["teen", "adult"]}
YEAR_CLASSES = {"age_years": ["6 to 12", "13 to 30", "31 to 60"]}
CENTRES = [9.0, 21.0, 44.0]
WINDOWING = Windowing(3.0, 2.0, "drop", 1.0, 0.1)


def make_checkpoint(path, task="gender", network="attentive", layers=False, seed=0):
    """A model of random weights whose normaliser knows what the untrained encoder gives."""
    shape = (6, 192) if layers else (149, 32)
    options = {"task": task, "layers": layers, "width": 0.125, "seed": seed}
    model = build_network(network, (CLASSES | YEAR_CLASSES)[task], *shape, **options)
    features = np.random.default_rng(seed).normal(0, 0.5, (8, *shape)).astype(np.float32)
    fit_normaliser(model.normaliser, features, np.arange(8))
    return save_model(Path(path), model, {"epoch": 3})


def make_bundle(folder, networks=None, tasks=tuple(CLASSES), **options):
    """Write and load a model folder with one head a task; `options` go to `save_bundle`."""
    folder = Path(folder)
    checkpoints = {
        task: make_checkpoint(
            folder.with_name(f"{folder.name}-{task}.safetensors"), task, *(networks or {}).get(task, [])
        )
        for task in tasks
    }
    options = {"feature": "emission", "dtype": "float16"} | options
    save_bundle(folder, checkpoints, load_encoder(UNTRAINED), WINDOWING, **options)
    return load_bundle(folder)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Folder with `labels.csv` and `recordings/`: eight invented speakers in five formats, and six bad files."""
    from lib.corpora.demo.render import render_unseen

    folder = tmp_path_factory.mktemp("spoken")
    render_unseen(folder, seed=3, count=8)
    return folder
