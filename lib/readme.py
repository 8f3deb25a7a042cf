"""The headline table of README, written from the committed reports: `python -m lib.readme` after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib import paths
from lib.headlines import make_headlines
from lib.paths import load_json
from lib.records import model_name

START, END = "<!-- headline: written by `make readme` from reports/ -->", "<!-- end of headline -->"
RUNS = ["speechocean762", "demo"]  # real speech first
BESIDE = {"majority (a guess)": "a guess", "baseline: mean F0": "mean pitch", "baseline: MFCC": "MFCC statistics"}


def headline_markdown(reports: Path) -> str:
    """A Markdown table, one row a run and task: the model chosen on validation beside its baselines; then words."""
    columns = ["speech", "task", "**this project** (UAR)", *BESIDE.values(), "test speakers"]
    lines, words = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"], []
    for run in RUNS:
        folder = Path(reports) / run
        if not (folder / "metrics.json").exists():
            continue
        metrics, record = (load_json(folder / name) for name in ("metrics.json", "run.json"))
        heads = make_headlines(metrics, record["parameters"]["run"])
        label = f"[{run}](reports/{run}/index.html)" + (" (synthetic)" if record["synthetic"] else "")
        lines += [_row(label, head) for head in heads]
        if not record["synthetic"]:
            words += [f"- **{head['name']}**: {head['words']} {head['verdict']}".rstrip() for head in heads]
    return "\n".join([*lines, "", *words])


def _row(label: str, head: dict[str, Any]) -> str:
    """Cells of one task; a score that has no such baseline shows "–", a mean error in years its own baseline first."""
    beside = {one["name"]: one for one in head["baselines"]}
    others = [beside.get(name) for name in BESIDE]
    if head["kind"] == "years":
        others[0] = head["baselines"][0]  # always telling the median age
    cells = [f"**{_cell(head['score'], head['kind'])}** {model_name(head['view']['model'])}"]
    cells += [_cell(one, head["kind"]) for one in others]
    return f"| {label} | {head['name']}: {' / '.join(head['classes'])} | {' | '.join(cells)} | {head['score']['speakers']:.0f} |"


def _cell(score: dict[str, Any] | None, kind: str) -> str:
    """A score with its interval; without one where it is a constant's."""
    if score is None:
        return "–"
    scale, unit = (1, " years") if kind == "years" else (100, " %")
    text = f"{scale * score['value']:.1f}{unit}"
    if score["low"] is None or score["low"] == score["high"]:
        return text
    digits = 1 if kind == "years" else 0
    return f"{text} ({scale * score['low']:.{digits}f} to {scale * score['high']:.{digits}f})"


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
