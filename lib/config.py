"""Run files: one YAML a run that says what differs from the notebooks' own values, checked before a kernel starts."""

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import nbformat
import yaml
from pydantic import ConfigDict, ValidationError, create_model

from lib import paths

NOTEBOOKS = ["01_download", "02_segment", "03_embed", "04_train", "05_evaluate", "06_predict"]
# parameters that several notebooks declare, and the section they live in
SHARED = dict.fromkeys(["seed", "synthetic", "age_classes", "age_bounds"], "run") | {"tasks": "train"}
SHARED |= dict.fromkeys(["engine", "device", "precision", "workers", "address"], "compute")
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
TYPES |= {f"list[{name}]": list[TYPES[name]] for name in ("str", "int", "float")}


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses a key written twice, where plain YAML lets the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise ValueError(f"line {node.start_mark.line + 1}: key written twice: {sorted(repeated)}; keep one")
        return super().construct_mapping(node, deep)


def notebook_path(notebook: str) -> Path:
    """Where a notebook lies: in `notebooks/`, or in `notebooks/extra/` when it is outside the chain."""
    extra = paths.NOTEBOOKS / "extra" / f"{notebook}.ipynb"
    return extra if extra.exists() else paths.NOTEBOOKS / f"{notebook}.ipynb"


def declared_parameters(path: Path) -> dict[str, tuple[type, Any]]:
    """Name → (type, default) of every line of the notebook's cell tagged `parameters`. ValueError when the cell is missing
    or a line is no typed assignment of a literal."""
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{path}: {len(tagged)} cells tagged 'parameters'; exactly one is needed")
    found = {}
    for statement in ast.parse(tagged[0].source).body:
        told = ast.unparse(statement)
        try:
            found[statement.target.id] = (TYPES[ast.unparse(statement.annotation)], ast.literal_eval(statement.value))
        except (AttributeError, KeyError, ValueError):
            raise ValueError(f"{path}: '{told}' must be name: type = literal, type one of {list(TYPES)}") from None
    return found


def load_run(path: Path, changes: list[str] = ()) -> dict[str, dict[str, Any]]:
    """A run file, checked: {section: {key: value}} with `changes` ("section.key=value") applied. One text may hold several, as
    `make reports SET="..."` hands them on; values may hold blanks. ValueError names file, key, value and what was expected."""
    if not path.exists():
        known = sorted(file.stem for file in paths.PARAMS.glob("*.yaml"))
        raise ValueError(f"{path}: no such run file; there are {', '.join(known)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a run file is a list of sections, found {type(content).__name__}")
    for change in itertools.chain(*(re.split(r"\s+(?=\w+\.\w+=)", text.strip()) for text in changes)):
        name, equals, text = change.partition("=")
        section, _, key = name.partition(".")
        if not (equals and section and key):
            raise ValueError(f"--set {change}: write section.key=value, such as train.epochs=20")
        try:
            value = yaml.load(text, _StrictLoader) if text else ""
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"--set {change}: {error}") from error
        if isinstance(content.setdefault(section, {}), dict):  # else it is refused below
            content[section][key] = value
    return _validate_run(content, path)


def _validate_run(content: dict, path: Path) -> dict[str, dict[str, Any]]:
    run = content.get("run")
    notebooks = (run.get("notebooks") if isinstance(run, dict) else None) or NOTEBOOKS
    # title and question, what the run answers, are shown on every page
    expected = {"run": {"title": (str, ...), "question": (str, ...), "notebooks": (list[str], NOTEBOOKS)}}
    for name in notebooks:
        for key, declared in declared_parameters(notebook_path(name)).items():
            if key != "run":  # a run's name is its file's name, never a key
                expected.setdefault(SHARED.get(key, name.lstrip("0123456789_")), {})[key] = declared  # 03_embed: embed
    strict = ConfigDict(extra="forbid", strict=True, validate_default=True)
    sections = {name: (create_model(name, __config__=strict, **keys), {}) for name, keys in expected.items()}
    try:
        return create_model("run file", __config__=strict, **sections).model_validate(content).model_dump()
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(map(_explain, error.errors()))) from error


def _explain(problem: dict) -> str:
    key, value = ".".join(map(str, problem["loc"])), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}" if "." in key else f"unknown section '{key}'"
    if problem["type"] == "missing":
        return f"missing key {key}"
    if problem["type"] == "model_type":
        return f"section '{key}' must hold keys, found {value!r}"
    hint = "; write it as 0.001 or 1.0e-3" if problem["type"] == "float_type" and isinstance(value, str) else ""
    return f"{key} = {value!r}: {problem['msg'].lower()}{hint}"


def parameters_for(notebook: str, run: str, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The parameters that papermill hands to one notebook: its own section and the shared keys that it declares."""
    shared = {key: sections[section][key] for key, section in SHARED.items() if key in sections.get(section, {})}
    values = {**shared, **sections["run"], **sections.get(notebook.lstrip("0123456789_"), {}), "run": run}
    return {key: values[key] for key in declared_parameters(notebook_path(notebook))}
