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

import jinja2
import pandas as pd

from lib import paths, results
from lib.encoders import Encoder, load_encoder
from lib.networks import Model
from lib.stages import file_checksum, fingerprint_of
from lib.tasks import YEARS
from lib.train import load_model
from lib.trust.calibration import Calibration, Years
from lib.windows import Windowing

FORMAT = 2  # raised when a folder of the old kind can no longer be read; 2: statistics of layers, networks by name
DESCRIPTION = "model.json"
CARD = "README.md"
KEYS = {"name", "encoder", "feature", "windowing", "heads", "metrics", "about", "versions"}
SYNTHETIC = "trained on synthetic voices, invented by a program: a demonstration, not a model of people"
BY_CORPUS = "UAR of windows by corpus"  # among what a description is about: {task: {corpus: UAR}}
RECORDED_VERSIONS = ["torch", "torchaudio", "numpy", "soundfile", "silero-vad", "safetensors"]


@dataclass(frozen=True)
class Head:
    """One task's network with what turns its output into an answer."""

    task: str
    classes: list[str]
    model: Model
    calibration: Calibration  # chosen on validation; its default changes nothing
    threshold: float  # a recording whose best class stays below it is "unsure"; 0 = always answered
    rare: tuple[str, float] | None = (
        None  # rare class and the probability from which it is told by threshold; None = none
    )
    years: Years | None = None  # how it tells an age in years; None = it tells classes alone
    disagreement: float | None = (
        None  # bits between its windows beyond which a recording holds several voices; None = never
    )

    @property
    def network(self) -> str:
        """Name of its network, which says what of a window it reads."""
        return self.model.settings["name"]


@dataclass(frozen=True)
class ModelFolder:
    """A loaded model folder. `description` is its `model.json`; `warnings` say what differs from where it was made."""

    name: str
    heads: dict[str, Head]
    encoder: Encoder
    windowing: Windowing
    feature: str  # stage whose frames a head reads; "" = none does
    description: dict[str, Any]
    warnings: list[str] = field(default_factory=list)  # what a user should know first

    @property
    def parts(self) -> dict[str, list[int]]:
        """Columns of each part of a window's statistics."""
        return self.description["encoder"]["parts"]

    @property
    def fingerprint(self) -> str:
        """Changes with anything that could change an answer."""
        return fingerprint_of({key: self.description[key] for key in ("encoder", "feature", "windowing", "heads")})

    def describe(self) -> pd.DataFrame:
        """One row a head: task, classes, network, epoch, temperature, thresholds, interval, hash."""
        rows = []
        for task, head in self.description["heads"].items():
            facts = {"task": task, "classes": ", ".join(head["classes"])} | describe_head(head)
            rows.append(facts | {"SHA-256": head["sha256"][:12] + "..."})
        return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------- writing


def save_model_folder(
    folder: Path,
    checkpoints: dict[str, Path],
    encoder: Encoder,
    windowing: Windowing,
    feature: str,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    years: dict[str, Years] | None = None,
    trainings: dict[str, str] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder, whole or not at all; an older one of this name is replaced.

    Parameters
    ----------
    checkpoints: {task: checkpoint written by `lib.train.save_model`}; classes and network are taken from the file itself.
    feature: of the embeddings that the heads were trained on; "" = their statistics alone.
    settings: by task a row of `lib.trust.confidence.fit_reliability`; None or a missing task = as trained, always answered.
    years: by task, how an age in years is told, and its interval.
    trainings: by task the folder of the training within its stage, for who wants its other epochs.
    metrics: tidy score records of the test part, shown in the card.
    about: for the card: run, title, synthetic, corpora, protocol, seed, speakers, languages, whatever JSON can hold.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        heads = {}
        for task, checkpoint in checkpoints.items():
            facts = (settings or {}).get(task, {})
            head = _copy_head(partial, task, Path(checkpoint)) | {"training": (trainings or {}).get(task)}
            head["calibration"] = vars(Calibration(facts.get("temperature", 1.0), facts.get("cap", 1.0)))
            head["years"] = asdict(years[task]) if task in (years or {}) else None
            classed = (
                {} if head["years"] else facts
            )  # an age in years has an interval instead: never silent, no class rare
            head["threshold"] = float(classed.get("silence", 0.0))
            threshold = classed.get("rare_clip_threshold")
            head["rare"] = None if threshold is None or threshold != threshold else [classed["rare"], threshold]
            disagreement = classed.get("disagreement", float("inf"))
            head["disagreement"] = disagreement if disagreement < float("inf") else None
            heads[task] = head
        about_encoder = {"name": encoder.name, "weights_sha256": encoder.weights_sha256, "note": encoder.note}
        description = {
            "format": FORMAT,
            "name": folder.name,
            "encoder": about_encoder | {"parts": encoder.parts()},
            "feature": feature,
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
    facts = {"file": target.name, "sha256": file_checksum(target), "classes": model.settings["classes"]}
    facts |= {"network": model.settings["name"], "normalisation": model.settings["normalisation"]}
    return facts | {"epoch": record.get("epoch")}


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in record.items()}


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS}
    return {"python": platform.python_version()} | versions


def write_card(description: dict[str, Any]) -> str:
    """The model card, Markdown, from the content of a model folder's `model.json` and the template card.md.j2."""
    scores = results.read_records(description["metrics"])
    whole = scores[(scores["subset"] == "all") & (scores["protocol"] != "paper")]
    shown = whole[
        whole["metric"].isin(["mae_years", "accuracy", "uar", "macro_f1"]) | whole["metric"].str.startswith("f1_")
    ]
    slices = scores[(scores["subset"] != "all") & (scores["metric"] == "uar")]
    views = whole[["task", "protocol", "level"]].drop_duplicates().to_dict("records")
    headlines = [results.find_headline(scores, view | {"model": description["name"]}) for view in views]
    heads, files = [], [{"file": "the encoder", "SHA-256": f"`{description['encoder']['weights_sha256']}`"}]
    for task, head in description["heads"].items():
        heads.append({"task": task, "classes": ", ".join(head["classes"])} | describe_head(head))
        files.append({"file": f"`{head['file']}`", "SHA-256": f"`{head['sha256']}`"})
    facts = [
        {"fact": name.replace("_", " "), "value": _text(value)}
        for name, value in description["about"].items()
        if name != "encoder" and value not in ("", None, [], {})
    ]
    tables = {
        "head_table": pd.DataFrame(heads), "file_table": pd.DataFrame(files), "fact_table": pd.DataFrame(facts),
        "score_table": results.tabulate(shown, rows=["task", "model", "level"]),
        "slice_table": results.tabulate(slices[slices["model"] == description["name"]], rows=["task", "subset"]),
    }  # fmt: skip
    texts = {name: results.to_markdown(table) if len(table) else "" for name, table in tables.items()}
    texts["sentences"] = list(filter(None, map(results.tell_score, headlines)))
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(paths.TEMPLATES), autoescape=False, **options)
    return environment.get_template("card.md.j2").render(**description, **texts)


def describe_head(head: dict[str, Any]) -> dict[str, Any]:
    """A head of `model.json` in words: network, epoch, temperature, thresholds, and its interval where it tells years."""
    rare, years = head["rare"], head["years"]
    return {
        "network": results.model_name(head["network"]),
        "epoch": head["epoch"],
        "temperature": f"{head['calibration']['temperature']:.3f}",
        "unsure below": f"{head['threshold']:.3f}" if head["threshold"] else "always answers",
        "rare class": f"{rare[0]} from {rare[1]:.3f}" if rare else "",
        "years": Years(**years).describe() if years else "",
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(part)}" for key, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


# ------------------------------------------------------------------------------------------------------------- reading


def load_model_folder(folder: Path, encoder: Encoder | None = None) -> ModelFolder:
    """Load a model folder and check it: its format, the hash of every file, the encoder's weights.

    `encoder`: one that is loaded already, None = load the one it names. Raises ValueError saying what differs and what to
    do; a library of another version, or voices that were invented, is no error but a warning in `ModelFolder.warnings`.
    """
    folder = Path(folder)
    description = _read_description(folder)
    heads = {task: _load_head(folder, task, head) for task, head in description["heads"].items()}
    wanted = description["encoder"]
    try:
        encoder = encoder or load_encoder(wanted["name"])
    except ValueError as error:
        which = f"{wanted['name']} with weights {wanted['weights_sha256'][:12]}..."
        raise ValueError(f"{folder}: answers through {which}, load it or hand it over as `encoder`: {error}") from error
    if encoder.weights_sha256 != wanted["weights_sha256"]:
        raise ValueError(
            f"{folder}: was trained on encoder {wanted['name']} with weights {wanted['weights_sha256'][:12]}..., "
            f"here are {encoder.name} with {encoder.weights_sha256[:12]}...; its answers would mean nothing. Get the encoder "
            "of that version, or train again"
        )
    here, warnings = _versions(), []
    other = [
        f"{name} {version} there, {here.get(name, 'none')} here"
        for name, version in description["versions"].items()
        if here.get(name) != version
    ]
    if description["about"].get("synthetic"):
        warnings.append(SYNTHETIC)
    if other:
        warnings.append(f"made with other versions: {', '.join(other)}")
    engine = description["about"].get("engine") or {"precision": "float32"}
    if engine["precision"] != "float32":
        made = f"{engine['library']} in {engine['precision']}"
        warnings.append(f"trained on embeddings by {made}; answers here come from the exact ones, by torch in float32")
    windowing = Windowing(**description["windowing"])
    return ModelFolder(folder.resolve().name, heads, encoder, windowing, description["feature"], description, warnings)


def tell_gain(folder: Path, other: Path) -> str:
    """What a model folder is better at than another by their own scores, and in which corpus: for who lacks its encoder."""
    ours, theirs = (_read_description(Path(one)) for one in (folder, other))
    told = []
    for row in ours["metrics"]:
        same = {key: row[key] for key in ("task", "metric", "level", "subset")}
        if row["metric"] not in ("uar", "mae_years") or row["subset"] != "all" or row["model"] != ours["name"]:
            continue
        match = [one for one in theirs["metrics"] if one["model"] == theirs["name"] and same.items() <= one.items()]
        if match and (row["metric"] == "mae_years") == (row["task"] == YEARS):
            corpora = [one["about"].get(BY_CORPUS, {}).get(row["task"], {}) for one in (ours, theirs)]
            places = [
                f"{name} {corpora[0][name]:.3f}, {corpora[1][name]:.3f}" for name in corpora[0] if name in corpora[1]
            ]
            where = f" ({'; '.join(places)})" if places and row["metric"] == "uar" else ""
            metric = results.METRICS[row["metric"]]
            told.append(f"{row['task']} {metric} {row['value']:.3f} instead of {match[0]['value']:.3f}{where}")
    return "; ".join(told)


def _read_description(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"{folder}: no model folder ({DESCRIPTION} is missing); notebooks/05_evaluate.ipynb writes one"
        )
    description = paths.load_json(folder / DESCRIPTION)
    if not isinstance(description, dict):
        raise ValueError(f"{folder}: {DESCRIPTION} describes no model; copy the whole folder again")
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: written in format {description.get('format')}, this version reads {FORMAT}; run its notebooks again"
        )
    missing = KEYS - description.keys()
    if missing:
        raise ValueError(f"{folder}: {DESCRIPTION} lacks {sorted(missing)}; copy the whole folder again")
    if description.pop("checksum", None) != fingerprint_of(description):
        raise ValueError(
            f"{folder}: {DESCRIPTION} was changed after it was written, thresholds and temperatures are in it; copy the whole "
            "folder again"
        )
    return description


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
    years = Years(**head["years"]) if head["years"] else None
    rare = tuple(head["rare"]) if head["rare"] else None
    calibration = Calibration(**head["calibration"])
    return Head(task, head["classes"], model, calibration, head["threshold"], rare, years, head["disagreement"])
