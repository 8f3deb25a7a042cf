"""Model folders of random weights on top of the untrained encoder: small, quick, and whole."""

from functools import cache
from pathlib import Path

import numpy as np

from lib.encoders import UNTRAINED, load_encoder
from lib.model_folder import load_model_folder, save_model_folder
from lib.networks import build_network, select_input
from lib.paths import load_json, save_json
from lib.stages import fingerprint_of
from lib.train import fit_normaliser, save_model
from lib.windows import Windowing

CLASSES = {"gender": ["male", "female"], "age": ["teen", "adult"]}
YEAR_CLASSES = {"age_years": ["6 to 12", "13 to 30", "31 to 60"]}
CENTRES = [9.0, 21.0, 44.0]
WINDOWING = Windowing(3.0, 2.0, "drop", 1.0, 0.1)
untrained = cache(lambda: load_encoder(UNTRAINED))


def make_checkpoint(path, task="gender", network="linear", seed=0):
    """A model of random weights whose normaliser knows what the untrained encoder gives."""
    parts, classes, rng = untrained().parts(), (CLASSES | YEAR_CLASSES)[task], np.random.default_rng(seed)
    shapes = {"frames": (8, 149, 32), "statistics": (8, parts["bank"][1])}
    tensors = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    features = select_input(network, tensors, parts)
    model = build_network(network, classes, features.shape[1:], task=task, width=0.125, seed=seed)
    fit_normaliser(model.normaliser, features, np.arange(8))
    save_model(Path(path), model, {"epoch": 3})
    return Path(path)


def make_model_folder(folder, networks=None, tasks=tuple(CLASSES), feature="emission", seed=0, **options):
    """Write and load a model folder with one head a task; networks: {task: name}; `options` go to `save_model_folder`."""
    networks = dict.fromkeys(tasks, "linear") | (networks or {})
    made = {task: make_checkpoint(f"{folder}-{task}.safetensors", task, name, seed) for task, name in networks.items()}
    save_model_folder(folder, made, untrained(), WINDOWING, feature, **options)
    return load_model_folder(folder, untrained())


def change(folder, **values):
    """Change model.json as someone who also corrects its checksum would."""
    content = load_json(folder / "model.json") | values
    content.pop("checksum")
    save_json(folder / "model.json", content | {"checksum": fingerprint_of(content)})
