"""The model card: a page of plain words beside the weights, from what `model.json` records (template card.md.j2)."""

from __future__ import annotations

from typing import Any

import jinja2
import pandas as pd

from lib import paths, results
from lib.trust.calibration import Years


def write_card(description: dict[str, Any]) -> str:
    """The model card, Markdown, from the content of a model folder's `model.json`."""
    scores = results.read_records(description["metrics"])
    whole = scores[(scores["subset"] == "all") & (scores["protocol"] != "paper")]
    f1 = whole["metric"].str.startswith("f1_") & (whole["task"] != "age_years")
    shown = whole[f1 | whole["metric"].isin(["mae_years", "accuracy", "uar", "macro_f1"])]
    slices = scores[(scores["subset"] != "all") & (scores["metric"] == "uar")]
    slices = slices[slices["model"] == description["name"]]
    views = whole.drop_duplicates(["task", "protocol", "level"])[["task", "protocol", "level"]].to_dict("records")
    headlines = [results.find_headline(scores, view | {"model": description["name"]}) for view in views]
    heads = [{"task": task, "classes": ", ".join(head["classes"])} | describe_head(head)
             for task, head in description["heads"].items()]  # fmt: skip
    files = [{"file": f"`{head['file']}`", "SHA-256": f"`{head['sha256']}`"} for head in description["heads"].values()]
    files.append({"file": "the encoder", "SHA-256": f"`{description['encoder']['weights_sha256']}`"})
    facts = [{"fact": name.replace("_", " "), "value": _text(value)} for name, value in description["about"].items()
             if name != "encoder" and value not in ("", None, [], {})]  # fmt: skip
    tables = {
        "head_table": pd.DataFrame(heads), "file_table": pd.DataFrame(files), "fact_table": pd.DataFrame(facts),
        "score_table": results.tabulate(shown, rows=["task", "model", "level"]),
        "slice_table": results.tabulate(slices, rows=["task", "subset"]),
    }  # fmt: skip
    texts = {name: results.to_markdown(table) if len(table) else "" for name, table in tables.items()}
    loader = jinja2.FileSystemLoader(paths.TEMPLATES)
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=False, **options)  # Markdown, not HTML
    texts["sentences"] = list(filter(None, map(results.tell_score, headlines)))
    return environment.get_template("card.md.j2").render(**description, **texts)


def describe_head(head: dict[str, Any]) -> dict[str, Any]:
    """A head of `model.json` in words: network, epoch, temperature, thresholds, and its interval where it tells years."""
    rare, years = head.get("rare"), head.get("years")
    return {
        "network": results.model_name(head["network"] + "_layers" * (head["tensor"] == "layers")),
        "normalisation": head["normalisation"],
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
