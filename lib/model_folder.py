"""The model folder that travels: `model.json` (encoder and its hash, windowing, heads, thresholds, metrics, versions), weights of
each head, its normalisation included, in `<task>.safetensors`, and the card, `README.md`. Nothing in it is pickled; loading
compares every hash, that of model.json's own content included, before a weight is used."""

import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
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
SYNTHETIC = "trained on synthetic voices, invented by a program: a demonstration, not a model of people"
READY = ["ready", "tiny"]  # models that ship, the best first; the last needs nothing that is not here
BY_CORPUS = "UAR of windows by corpus"  # among what a description is about: {task: {corpus: UAR}}
VERSIONS = {"python": platform.python_version()}
VERSIONS |= {name: version(name) for name in ("torch", "torchaudio", "numpy", "soundfile", "silero-vad", "safetensors")}


@dataclass(frozen=True)
class Head:
    """One task's network with what turns its output into an answer."""

    task: str
    classes: list[str]
    model: Model
    calibration: Calibration  # chosen on validation; its default changes nothing
    threshold: float  # a recording whose best class stays below it is "unsure"; 0 = always answered
    rare: tuple[str, float] | None = None  # rare class, and the probability from which it is told by threshold
    years: Years | None = None  # how it tells an age in years; None = it tells classes alone
    disagreement: float | None = None  # bits between windows beyond which they are several voices; None = never
    spans: dict[str, list[float | None]] = field(default_factory=dict)  # `lib.tasks.Task.spans` of a class of age

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
        heads = self.description["heads"]
        return describe_heads(heads).assign(**{"SHA-256": [head["sha256"][:12] + "..." for head in heads.values()]})


def save_model_folder(
    folder: Path, checkpoints: dict[str, Path], encoder: Encoder, windowing: Windowing, feature: str, *,
    settings: dict[str, dict[str, Any]] | None = None, years: dict[str, Years] | None = None,
    trainings: dict[str, str] | None = None, metrics: list[dict[str, Any]] = (), about: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a model folder, whole or not at all; an older one of this name is replaced.
    checkpoints: by task, written by `lib.train.save_model`; classes and network are taken from the file itself.
    feature: of the embeddings that the heads were trained on; "" = their statistics alone.
    settings: by task a row of `lib.trust.confidence.fit_reliability` with `Task.spans`; None, or no such task = as trained.
    years: by task, how an age in years is told, and its interval.
    trainings: by task the folder of the training within its stage, for who wants its other epochs.
    metrics: records of `lib.evaluate.list_records`, of the test part, shown in the card.
    about: for the card: run, title, synthetic, corpora, protocol, seed, speakers, languages, whatever JSON can hold."""
    folder, settings, years, trainings = Path(folder), settings or {}, years or {}, trainings or {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        (partial := Path(scratch, folder.name)).mkdir()
        heads = {}
        for task, checkpoint in checkpoints.items():
            weights = Path(shutil.copyfile(checkpoint, partial / f"{task}.safetensors"))
            heads[task] = _describe_head(weights, settings.get(task, {}), years.get(task), trainings.get(task))
        facts = {"name": encoder.name, "weights_sha256": encoder.weights_sha256, "note": encoder.note}
        description = {"format": FORMAT, "name": folder.name, "encoder": facts | {"parts": encoder.parts()}}
        description |= {"feature": feature, "windowing": vars(windowing), "heads": heads, "metrics": list(metrics)}
        description |= {"about": about or {}, "versions": VERSIONS}
        paths.save_json(partial / DESCRIPTION, description | {"checksum": fingerprint_of(description)})
        (partial / "README.md").write_text(write_card(description), encoding="utf-8")
        paths.replace_folder(partial, folder)
    return folder


def _describe_head(weights: Path, chosen: dict[str, Any], years: Years | None, training: str | None) -> dict[str, Any]:
    """What `model.json` says of a head; `chosen`: its row of settings."""
    model, record = load_model(weights)
    classed = {} if years else chosen  # an age in years has an interval instead: never silent, no class rare
    threshold, bits = classed.get("rare_clip_threshold", np.nan), classed.get("disagreement", np.inf)
    calibration = Calibration(chosen.get("temperature", 1.0), chosen.get("cap", 1.0))
    facts = {"file": weights.name, "sha256": file_checksum(weights), "training": training, "epoch": record.get("epoch")}
    facts |= {"network": model.settings["name"]} | {key: model.settings[key] for key in ("classes", "normalisation")}
    facts |= {"calibration": vars(calibration), "years": asdict(years) if years else None}
    facts |= {"threshold": float(classed.get("silence", 0.0)), "disagreement": bits if bits < np.inf else None}
    rare = None if np.isnan(threshold) else [classed["rare"], threshold]
    return facts | {"rare": rare, "spans": classed.get("spans", {})}


def write_card(description: dict[str, Any]) -> str:
    """The model card, Markdown, from the content of a model folder's `model.json` and the template card.md.j2."""
    scores, name = results.read_records(description["metrics"]), description["name"]
    whole = scores[(scores["subset"] == "all") & (scores["protocol"] != "paper")]
    told = whole["metric"].isin(["mae_years", "accuracy", "uar", "macro_f1"]) | whole["metric"].str.startswith("f1_")
    slices = scores[(scores["subset"] != "all") & (scores["metric"] == "uar") & (scores["model"] == name)]
    views = whole[["task", "protocol", "level"]].drop_duplicates().to_dict("records")
    headlines = [results.find_headline(scores, view | {"model": name}) for view in views]
    told_of = {key: value for key, value in description["about"].items() if value not in ("", None, [], {})}
    facts = [{"fact": key.replace("_", " "), "value": _text(told_of[key])} for key in told_of if key != "encoder"]
    tables = {"head_table": describe_heads(description["heads"]), "fact_table": pd.DataFrame(facts)}
    tables |= {"score_table": results.tabulate(whole[told], ["task", "model", "level"])}
    tables |= {"slice_table": results.tabulate(slices, ["task", "subset"])}
    texts = {name: results.to_markdown(table) if len(table) else "" for name, table in tables.items()}
    texts["sentences"] = list(filter(None, map(results.tell_score, headlines)))
    template = (paths.TEMPLATES / "card.md.j2").read_text(encoding="utf-8")
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Template(template, **options).render(**description, **texts)


def describe_heads(heads: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The heads of `model.json` in words, one row each; the interval where one tells years."""
    rows = []
    for task, head in heads.items():
        rare, years = head["rare"], head["years"]
        row = {"task": task, "classes": ", ".join(head["classes"]), "network": results.model_name(head["network"])}
        row |= {"epoch": head["epoch"], "temperature": f"{head['calibration']['temperature']:.3f}"}
        row |= {"unsure below": f"{head['threshold']:.3f}" if head["threshold"] else "always answers"}
        row |= {"rare class": f"{rare[0]} from {rare[1]:.3f}" if rare else ""}
        rows.append(row | {"years": Years(**years).describe() if years else ""})
    return pd.DataFrame(rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(part)}" for key, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def load_model_folder(folder: Path, encoder: Encoder | None = None) -> ModelFolder:
    """Load a model folder and check its format, the hash of every file, the encoder's weights; ValueError says what differs
    and what to do. Other versions of libraries and invented voices are a warning in `ModelFolder.warnings`. `encoder`: one that
    is loaded already, None = load the one it names."""
    folder = Path(folder)
    description = _read_description(folder)
    heads = {task: _load_head(folder, task, head) for task, head in description["heads"].items()}
    wanted, about = description["encoder"], description["about"]
    which = f"{wanted['name']} with weights {wanted['weights_sha256'][:12]}..."
    try:
        encoder = encoder or load_encoder(wanted["name"])
    except ValueError as error:
        shipped = READY[-1]
        refused = f"{folder}: answers through {which}, load it or hand it over as `encoder`: {error}"
        if gain := tell_gain(folder, paths.ASSETS / shipped):
            refused += f". What it would bring, by its own test (instead of '{shipped}', which ships): {gain}"
        raise ValueError(refused) from error
    if encoder.weights_sha256 != wanted["weights_sha256"]:
        raise ValueError(
            f"{folder}: was trained on encoder {which}, here are {encoder.name} with {encoder.weights_sha256[:12]}...; "
            "its answers would mean nothing. Get the encoder of that version, or train again"
        )
    warnings, made = [SYNTHETIC] if about.get("synthetic") else [], description["versions"].items() - VERSIONS.items()
    other = [f"{name} {there} there, {VERSIONS.get(name, 'none')} here" for name, there in sorted(made)]
    warnings += [f"made with other versions: {', '.join(other)}"] if other else []
    engine = about.get("engine") or {"precision": "float32"}
    if engine["precision"] != "float32":
        by = f"{engine['library']} in {engine['precision']}"
        warnings.append(f"trained on embeddings by {by}; answers here come from the exact ones, by torch in float32")
    windowing = Windowing(**description["windowing"])
    return ModelFolder(folder.resolve().name, heads, encoder, windowing, description["feature"], description, warnings)


def tell_gain(folder: Path, other: Path) -> str:
    """What a model folder scored by its own test, by task and corpus; beside it another's scores where that was asked the same."""
    ours, theirs = (_own_scores(_read_description(Path(one))) for one in (folder, other))
    told = []
    for task, (asked, values) in ours.items():
        beside, there = theirs.get(task, (None, {}))
        instead = {what: f" instead of {value:.3f}" for what, value in there.items()} if beside == asked else {}
        words = [f"{what} {value:.3f}{instead.get(what, '')}" for what, value in values.items()]
        told.append(f"{task}: {', '.join(words)}")
    return "; ".join(told)


def _own_scores(description: dict[str, Any]) -> dict[str, tuple[tuple, dict[str, float]]]:
    """By task what makes two scores comparable, and the scores in words."""
    about, scores = description["about"], {}
    for row in description["metrics"]:
        task, metric = row["task"], "mae_years" if row["task"] == YEARS else "uar"
        if (row["metric"], row["subset"], row["model"]) == (metric, "all", description["name"]):
            places = about.get(BY_CORPUS, {}).get(task, {}) if metric == "uar" else {}
            values = {results.METRICS[metric]: row["value"]}
            values |= {f"of windows in {corpus}": value for corpus, value in places.items()}
            asked = (about.get("data_checksum"), description["heads"][task]["classes"], row["protocol"], row["level"])
            scores[task] = asked, values
    return scores


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ValueError(f"{folder}: no model folder ({path.name} is missing); notebooks/05_evaluate.ipynb writes one")
    description = paths.load_json(path)
    if not isinstance(description, dict):
        raise ValueError(f"{folder}: {DESCRIPTION} describes no model; copy the whole folder again")
    if (made := description.get("format")) != FORMAT:
        raise ValueError(f"{folder}: written in format {made}, this version reads {FORMAT}; run its notebooks again")
    if description.pop("checksum", None) != fingerprint_of(description):
        told = " was changed after it was written, thresholds and temperatures are in it; copy the whole folder again"
        raise ValueError(f"{folder}: {DESCRIPTION}{told}")
    return description


def _load_head(folder: Path, task: str, head: dict[str, Any]) -> Head:
    path, wanted = folder / head["file"], head["sha256"]
    if not path.is_file():
        raise ValueError(f"{folder}: {head['file']} is missing; copy the whole folder again")
    if (digest := file_checksum(path)) != wanted:
        told = f": SHA-256 is {digest[:12]}..., {DESCRIPTION} says {wanted[:12]}...; copy the whole folder again"
        raise ValueError(f"{path}{told}")
    years = Years(**head["years"]) if head["years"] else None
    rare = tuple(head["rare"]) if head["rare"] else None
    calibration, (model, _) = Calibration(**head["calibration"]), load_model(path)
    bits, spans = head["disagreement"], head.get("spans", {})
    return Head(task, head["classes"], model, calibration, head["threshold"], rare, years, bits, spans)
