"""Model folders of random weights on top of the untrained encoder: small, quick, and whole."""

from functools import cache
from pathlib import Path

import numpy as np

from lib.encoders import UNTRAINED, load_encoder
from lib.model_folder import load_model_folder, save_model_folder
from lib.networks import build_network, split_name
from lib.train import fit_normaliser, save_model
from lib.windows import Windowing

CLASSES = {"gender": ["male", "female"], "age": ["teen", "adult"]}
YEAR_CLASSES = {"age_years": ["6 to 12", "13 to 30", "31 to 60"]}
CENTRES = [9.0, 21.0, 44.0]
WINDOWING = Windowing(3.0, 2.0, "drop", 1.0, 0.1)
untrained = cache(lambda: load_encoder(UNTRAINED))


def make_checkpoint(path, task="gender", network="linear", seed=0):
    """A model of random weights whose normaliser knows what the untrained encoder gives."""
    kind, steps = split_name(network)
    parts = untrained().parts()
    names = [name for step in steps for name in step] or list(parts)
    width = sum(last - first for first, last in (parts[name] for name in names))
    shape = (149, 32) if kind == "paper" else (width,)
    model = build_network(network, (CLASSES | YEAR_CLASSES)[task], shape, task=task, width=0.125, seed=seed)
    features = np.random.default_rng(seed).normal(0, 0.5, (8, *shape)).astype(np.float32)
    fit_normaliser(model.normaliser, features, np.arange(8))
    save_model(Path(path), model, {"epoch": 3})
    return Path(path)


def make_model_folder(folder, networks=None, tasks=tuple(CLASSES), feature="emission", seed=0, **options):
    """Write and load a model folder with one head a task; networks: {task: name}; `options` go to `save_model_folder`."""
    folder = Path(folder)
    checkpoints = {}
    for task in tasks:
        path = folder.with_name(f"{folder.name}-{task}.safetensors")
        checkpoints[task] = make_checkpoint(path, task, (networks or {}).get(task, "linear"), seed)
    save_model_folder(folder, checkpoints, untrained(), WINDOWING, feature, **options)
    return load_model_folder(folder, untrained())
