"""The model folder that travels: everything that an answer needs, in files that anyone can check.

    model.json           names, classes, encoder and its hash, feature, windowing, calibration, thresholds, interval of
                         years, metrics, versions
    <task>.safetensors   weights of a head, its normalisation included
    README.md            the model card

Nothing in it is pickled; loading compares every hash, that of model.json's own content included, before a weight is used.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lib import paths
from lib.cards import describe_head, write_card
from lib.embed import DTYPES
from lib.encoders import Encoder, load_encoder
from lib.networks import Model
from lib.stages import file_checksum, fingerprint_of
from lib.train import load_model
from lib.trust.calibration import Calibration, Years
from lib.windows import Windowing

FORMAT = 1  # raised when a folder of the old kind can no longer be read
DESCRIPTION = "model.json"
CARD = "README.md"
KEYS = {"name", "encoder", "feature", "dtype", "windowing", "heads", "metrics", "about", "versions"}
SYNTHETIC = "trained on synthetic voices, invented by a program: a demonstration, not a model of people"
RECORDED_VERSIONS = ["torch", "torchaudio", "numpy", "soundfile", "silero-vad", "safetensors"]


@dataclass(frozen=True)
class Head:
    """One task's network with what turns its output into an answer."""

    task: str
    classes: list[str]
    model: Model
    tensor: str  # what it reads of a window: "frames" or "layers"
    calibration: Calibration  # chosen on validation; its default changes nothing
    threshold: float  # a recording whose best class stays below it is "unsure"; 0 = always answered
    rare: tuple[str, float] | None = (
        None  # rare class and the probability from which it is told by threshold; None = none
    )
    years: Years | None = None  # how it tells an age in years; None = it tells classes alone


@dataclass(frozen=True)
class Bundle:
    """A loaded model folder. `description` is its `model.json`; `warnings` say what differs from where it was made."""

    name: str
    heads: dict[str, Head]
    encoder: Encoder
    windowing: Windowing
    feature: str
    dtype: str  # the precision in which embeddings were stored when the heads were trained
    description: dict[str, Any]
    warnings: list[str] = field(default_factory=list)  # what a user should know first

    @property
    def fingerprint(self) -> str:
        """Changes with anything that could change an answer."""
        made = {key: self.description[key] for key in ("encoder", "feature", "dtype", "windowing", "heads")}
        return fingerprint_of(made)

    def describe(self) -> pd.DataFrame:
        """One row a head: task, classes, network, normalisation, epoch, temperature, thresholds, interval, hash."""
        rows = []
        for task, head in self.description["heads"].items():
            named = {"task": task, "classes": ", ".join(head["classes"])}
            rows.append(named | describe_head(head) | {"SHA-256": head["sha256"][:12] + "..."})
        return pd.DataFrame(rows)


def save_bundle(
    folder: Path,
    checkpoints: dict[str, Path],
    encoder: Encoder,
    windowing: Windowing,
    feature: str,
    dtype: str,
    *,
    calibrations: dict[str, Calibration] | None = None,
    thresholds: dict[str, float] | None = None,
    rare: dict[str, tuple[str, float]] | None = None,
    years: dict[str, Years] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder, whole or not at all; an older one of this name is replaced.

    Parameters
    ----------
    checkpoints: {task: checkpoint written by `save_model`}; classes and normalisation are taken from the file itself.
    feature, dtype: of the embeddings that the heads were trained on.
    calibrations, thresholds: by task, chosen on validation; None or a missing task = as trained, always answered.
    rare: by task, the rare class and the clip's probability from which it is told by threshold, chosen on validation.
    years: by task, how an age in years is told, and its interval.
    metrics: tidy score records of the test part, shown in the card.
    about: for the card: run, title, synthetic, corpora, protocol, seed, speakers, languages, whatever JSON can hold.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        heads = {task: _copy_head(partial, task, Path(path)) for task, path in checkpoints.items()}
        for task, head in heads.items():
            head["calibration"] = (calibrations or {}).get(task, Calibration()).as_json()
            head["threshold"] = float((thresholds or {}).get(task, 0.0))
            head["rare"] = list(rare[task]) if rare and task in rare else None
            head["years"] = asdict(years[task]) if years and task in years else None
        description = {
            "format": FORMAT,
            "name": folder.name,
            "encoder": {"name": encoder.name, "weights_sha256": encoder.weights_sha256, "note": encoder.note},
            "feature": feature,
            "dtype": dtype,
            "windowing": vars(windowing),
            "heads": heads,
            "metrics": [_without_nan(record) for record in metrics or []],
            "about": about or {},
            "versions": _versions(),
        }
        paths.save_json(partial / DESCRIPTION, description | {"checksum": fingerprint_of(description)})
        (partial / CARD).write_text(write_card(description), encoding="utf-8")
        partial.chmod(0o755)
        paths.replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _copy_head(folder: Path, task: str, checkpoint: Path) -> dict[str, Any]:
    model, record = load_model(checkpoint)
    target = folder / f"{task}.safetensors"
    shutil.copyfile(checkpoint, target)
    return {
        "file": target.name,
        "sha256": file_checksum(target),
        "classes": model.settings["classes"],
        "network": model.settings["name"],
        "tensor": "layers" if model.settings["layers"] else "frames",
        "normalisation": model.settings["normalisation"],
        "epoch": record.get("epoch"),
    }


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in record.items()}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in RECORDED_VERSIONS
    }


def load_bundle(folder: Path, encoder: Encoder | None = None) -> Bundle:
    """Load a model folder and check it: its format, the hash of every file, the encoder's weights.

    `encoder`: one that is loaded already, None = load the one it names. Raises ValueError saying what differs and what to
    do; a library of another version, or voices that were invented, is no error but a warning in `Bundle.warnings`.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"{folder}: no model folder ({DESCRIPTION} is missing); notebooks/05_evaluate.ipynb writes one"
        )
    found = paths.load_json(folder / DESCRIPTION)
    if not isinstance(found, dict):
        raise ValueError(f"{folder}: {DESCRIPTION} describes no model; copy the whole folder again")
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: written in format {found.get('format')}, this version reads {FORMAT}; run its notebooks again"
        )
    missing = KEYS - found.keys()
    if missing:
        raise ValueError(f"{folder}: {DESCRIPTION} lacks {sorted(missing)}; copy the whole folder again")
    sealed = found.pop("checksum", None)  # folders of older versions have none
    if sealed and sealed != fingerprint_of(found):
        raise ValueError(
            f"{folder}: {DESCRIPTION} was changed after it was written, thresholds and temperatures are in it; copy the whole "
            'folder again, or take its "checksum" out if the change is your own'
        )
    if found["dtype"] not in DTYPES:
        raise ValueError(f"{folder}: dtype {found['dtype']!r} must be one of {list(DTYPES)}")
    heads = {task: _load_head(folder, task, head) for task, head in found["heads"].items()}
    wanted = found["encoder"]
    encoder = encoder or load_encoder(wanted["name"])
    if encoder.weights_sha256 != wanted["weights_sha256"]:
        raise ValueError(
            f"{folder}: was trained on encoder {wanted['name']} with weights {wanted['weights_sha256'][:12]}..., "
            f"here are {encoder.name} with {encoder.weights_sha256[:12]}...; its answers would mean nothing. Get the encoder "
            "of that version, or train again"
        )
    windowing = Windowing(**found["windowing"])
    here = _versions()
    other = [
        f"{name} {made} there, {here[name]} here" for name, made in found["versions"].items() if here[name] != made
    ]
    warnings = [f"made with other versions: {', '.join(other)}"] if other else []
    engine = found["about"].get("engine") or {"precision": "float32"}
    if engine["precision"] != "float32":
        made = f"{engine['library']} in {engine['precision']}"
        warnings.append(f"trained on embeddings by {made}; answers here come from the exact ones, by torch in float32")
    if found["about"].get("synthetic"):
        warnings.insert(0, SYNTHETIC)
    return Bundle(found["name"], heads, encoder, windowing, found["feature"], found["dtype"], found, warnings)


def _load_head(folder: Path, task: str, head: dict[str, Any]) -> Head:
    path = folder / head["file"]
    if not path.is_file():
        raise ValueError(f"{folder}: {head['file']} is missing; copy the whole folder again")
    digest = file_checksum(path)
    if digest != head["sha256"]:
        raise ValueError(
            f"{path}: SHA-256 is {digest[:12]}..., {DESCRIPTION} says {head['sha256'][:12]}...; copy the whole folder again"
        )
    model, _ = load_model(path)
    if model.settings["classes"] != head["classes"]:
        raise ValueError(f"{path}: its classes are {model.settings['classes']}, {DESCRIPTION} says {head['classes']}")
    years = Years(**head["years"]) if head.get("years") else None
    rare = tuple(head["rare"]) if head.get("rare") else None
    calibration = Calibration(**head["calibration"])
    return Head(task, head["classes"], model, head["tensor"], calibration, head["threshold"], rare, years)
