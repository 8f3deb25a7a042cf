"""The headline table of README, written from the committed reports: `python -m lib.readme` after a run."""

from __future__ import annotations

import json
from pathlib import Path

from lib import paths
from lib.records import main_view, model_name, read_scores, select_scores, tasks_of

START, END = "<!-- headline: written by `make readme` from reports/ -->", "<!-- end of headline -->"
RUNS = ["speechocean762", "demo"]  # real speech first
SHOWN = ["uar", "accuracy"]


def headline_markdown(reports: Path) -> str:
    """A Markdown table: one row a run, task and model (the networks and their baselines) of the test part."""
    lines = ["| run | task | model | UAR | accuracy | speakers |", "|---|---|---|---|---|---|"]
    for run in RUNS:
        folder = Path(reports) / run
        if (folder / "metrics.json").exists():
            metrics, record = (json.loads((folder / name).read_text("utf-8")) for name in ("metrics.json", "run.json"))
            lines += _rows(run + (" (synthetic speech)" if record["synthetic"] else ""), metrics)
    return "\n".join(lines)


def _rows(label: str, metrics: dict) -> list[str]:
    scores, rows = read_scores(metrics), []
    for task in tasks_of(scores):
        view = main_view(metrics, scores, task)
        if view is None:
            continue
        wanted = {key: view[key] for key in ("task", "protocol", "level")} | {"split": "test", "subset": "all"}
        here = select_scores(scores, **wanted)
        for model in [view["model"], *[name for name in here["model"].unique() if name != view["model"]]]:
            of_model = here[here["model"] == model].set_index("metric")
            cells = [_cell(of_model.loc[metric]) for metric in SHOWN if metric in of_model.index]
            if "mae_years" in of_model.index:
                row = of_model.loc["mae_years"]
                cells = [f"{row['value']:.1f} years off ({row['low']:.1f} to {row['high']:.1f})", "–"]
            if len(cells) == len(SHOWN):
                name = f"**{model_name(model)}**" if model == view["model"] else model_name(model)
                rows.append(
                    f"| {label} | {task} | {name} | {' | '.join(cells)} | {int(of_model['speakers'].iloc[0])} |"
                )
    return rows


def _cell(row) -> str:
    return f"{100 * row['value']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def update_readme(path: Path, reports: Path) -> bool:
    """Put the current table between the markers of README; True when that changed it. ValueError without markers."""
    text = Path(path).read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise ValueError(f"{path}: the markers '{START}' and '{END}' are missing; put them around the headline table")
    before, after = text.split(START)[0], text.split(END)[1]
    updated = f"{before}{START}\n{headline_markdown(reports)}\n{END}{after}"
    if updated != text:
        with paths.write_whole(Path(path)) as partial:
            partial.write_text(updated, encoding="utf-8")
    return updated != text


if __name__ == "__main__":
    changed = update_readme(paths.ROOT / "README.md", paths.REPORTS)
    print("README.md: headline table " + ("written anew" if changed else "is current"))
