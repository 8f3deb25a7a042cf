"""The report site: `reports/<run>/` with its pages, figures and numbers, the list of runs, and runs side by side.

Pages are static: one stylesheet, one small script, nothing fetched from a network.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from lib import headlines, paths
from lib.report import compare, pages
from lib.report.show import format_value, table_html

TEXTS = {".html", ".json", ".csv", ".svg", ".css", ".js"}
# Names that a home folder has on the systems that people use; the reader's own are added by `find_private_paths`.
HOMES = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]+[^\s\"'<>)\]]*")
EMBEDDED = re.compile(r"data:[\w/+-]+;base64,[A-Za-z0-9+/=]+")


# ---------------------------------------------------------------- one run


def build_report(
    run: str,
    executed_folder: Path,
    figures_folder: Path,
    metrics: dict[str, Any],
    record: dict[str, Any],
    target: Path,
    private_roots: Iterable[str | Path] = (),
) -> Path:
    """Build the pages of a run beside `target` and swap them in whole; return `target`.

    Parameters
    ----------
    run: the run's name.
    executed_folder: holds the executed notebooks, `NN_verb.ipynb`, in reading order.
    figures_folder: where `show_figure` wrote this run's figures.
    metrics: scores and confusions, written as `metrics.json`.
    record: what the run was made with, written as `run.json`.
    target: `reports/<run>`; an older report there is replaced only when the new one is complete.
    private_roots: folders whose paths no page may show, besides homes and this repository.

    Raises ValueError naming page and path when a page or a JSON file holds a private path.
    """
    notebooks = sorted(Path(executed_folder).glob("[0-9]*_*.ipynb"))
    if not notebooks:
        raise ValueError(f"{executed_folder}: no executed notebook there (NN_verb.ipynb); run the notebooks first")
    private = gather_private(notebooks)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        made = [pages.make_page(path, Path(figures_folder), folder, private) for path in notebooks]
        refuse_repeated_figures(made)
        write_pages(folder, run, made, metrics, record)
        for name, content in (("metrics.json", metrics), ("run.json", record)):
            paths.save_json(folder / name, mask_values(content, private), indent=None if name == "metrics.json" else 2)
        refuse_private_paths(folder, run, private_roots)
        paths.replace_folder(folder, target)
    return target


def refuse_repeated_figures(made: list[pages.Page]) -> None:
    """Two figures of one name would overwrite each other: ValueError naming the figure and its notebooks."""
    shown = [(figure["name"], page.name) for page in made for figure in page.figures]
    for name in {name for name, _ in shown}:
        where = [page for figure, page in shown if figure == name]
        if len(where) > 1:
            raise ValueError(f"figure '{name}' is shown more than once, in {', '.join(where)}; give each its own name")


def gather_private(notebooks: Sequence[Path]) -> dict[str, str]:
    """What pages must not show of the folders that the notebooks were given."""
    import nbformat

    found: dict[str, str] = {}
    for path in notebooks:
        found |= pages.private_texts(nbformat.read(path, as_version=4))
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def write_pages(folder: Path, run: str, made: list[pages.Page], metrics: dict, record: dict) -> None:
    """Write the run's index, one page a notebook, the stylesheet and the script."""
    environment = make_environment()
    shown = shown_record(record, run)
    common = {"run": run, "record": shown, "pages": made, "up": "../"}
    index = environment.get_template("run.html.j2").render(**common, here="run", **run_content(metrics, record, made))
    write_text(folder / "index.html", index)
    for nth, page in enumerate(made):
        around = {"previous": made[nth - 1] if nth else None, "next": made[nth + 1] if nth + 1 < len(made) else None}
        text = environment.get_template("notebook.html.j2").render(**common, here=page.name, page=page, **around)
        write_text(folder / page.file, text)
    copy_assets(folder)


def run_content(metrics: dict, record: dict, made: list[pages.Page]) -> dict[str, Any]:
    """Everything that the run's index shows; a part that the run does not have is empty and left out."""
    heads = headlines.make_headlines(metrics, run_settings(record))
    leaks = headlines.make_leaks(metrics)
    published = pd.DataFrame([row for row in metrics.get("paper") or [] if isinstance(row, dict)])
    scores = pd.DataFrame(metrics.get("scores") or [])
    return {
        "headlines": heads,
        "tables": headlines.make_tables(metrics) if heads else [],
        "confusions": headlines.make_confusions(metrics),
        "leaks": leaks,
        "leak_words": headlines.leak_words(leaks),
        "slices": headlines.make_slices(metrics),
        "notes": metrics.get("notes") or [],
        "published": table_html(published, "Published numbers", limit=100) if len(published) else "",
        "other": table_html(scores, "All scores", limit=500) if len(scores) and not heads else "",
        "figures": [figure for page in made for figure in page.figures],
        "facts": list_facts(record),
        "stages": [shown_stage(stage) for stage in record.get("stages") or []],
        "parameters": flat_table(record.get("parameters") or {}, "parameter", "Parameters of this run"),
        "versions": flat_table(record.get("versions") or {}, "package", "Versions of what this run used"),
    }


def shown_record(record: dict[str, Any], run: str) -> dict[str, Any]:
    """The record with everything that a page's head needs, whatever the run left out."""
    encoder = record.get("encoder") or "not stated"
    encoder = {"name": encoder} if isinstance(encoder, str) else encoder
    return {
        **record,
        "title": record.get("title") or run,
        "question": record.get("question") or "",
        "synthetic": bool(record.get("synthetic")),
        "encoder": shown_encoder(encoder, record.get("corpora") or []),
        "made": shown_time(record.get("made_at", "")),
        "git_commit": record.get("git_commit") or "",
    }


def shown_encoder(encoder: dict[str, Any], corpora: Sequence[str]) -> dict[str, str]:
    """Name and note of the encoder, the name once; `heard` says when its unlabelled training had the run's own speakers."""
    name = encoder.get("name", "not stated")
    note = encoder.get("note", "").removeprefix(f"{name}, ")
    card = paths.ASSETS / f"{name}.json"
    known = paths.load_json(card).get("heard", []) if card.exists() else []
    heard = (
        "It heard the audio of this run's speakers, test speakers included, without their labels; no classifier did."
    )
    return {"name": name, "note": note, "heard": heard if set(known) & set(corpora) else ""}


def run_settings(record: dict[str, Any]) -> dict[str, Any]:
    """Section `run` of the run file; empty where the record has none."""
    return (record.get("parameters") or {}).get("run") or {}


def shown_time(text: str) -> str:
    """ "2026-11-22T16:00:00+00:00" as "22 November 2026, 16:00 UTC"; "" stays empty."""
    if not text:
        return ""
    moment = datetime.fromisoformat(text)
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def list_facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the "how it was made" list; what is not known is left out."""
    encoder = record.get("encoder") if isinstance(record.get("encoder"), dict) else {}
    shown = shown_encoder(encoder, record.get("corpora") or [])
    engine = record.get("engine") or {}
    machine = record.get("machine") or {}
    sized = f"{machine['system']} {machine['processor']}, {machine['cores']} cores" if len(machine) >= 3 else ""
    facts = {
        "Made": shown_time(record.get("made_at", "")),
        "Seed": record.get("seed"),
        "Code": record.get("git_commit"),
        "Encoder": ". ".join(filter(None, [", ".join(filter(None, [shown["name"], shown["note"]])), shown["heard"]])),
        "Encoder's weights (SHA-256)": (encoder.get("weights_sha256") or "")[:16],
        "Engine": f"{engine['library']}, {engine['precision']} ({engine['why']})" if engine else "",
        "Data (checksum)": str(record.get("data_checksum") or "")[:16],
        "Machine": sized,
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def shown_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """One row of the table of stages: what the work cost when it was done, and whether it was done this time."""
    recomputed = stage.get("recomputed") or []
    sizes = ", ".join(
        f"{key.replace('_', ' ')} {format_value(value)}" for key, value in (stage.get("counts") or {}).items()
    )
    return {
        "stage": stage.get("stage", ""),
        "seconds": stage.get("made_in_seconds", stage.get("seconds", 0)),
        "memory": stage.get("made_with_mb", stage.get("peak_memory_mb")),
        "did": "computed: " + ", ".join(recomputed) if recomputed else "loaded",
        "sizes": sizes,
    }


def flat_table(values: dict[str, Any], name: str, caption: str) -> str:
    """Two-column table of nested settings."""
    return table_html(pd.DataFrame(list(compare.flatten(values).items()), columns=[name, "value"]), caption, limit=500)


# ---------------------------------------------------------------- all runs


def read_runs(reports_folder: Path) -> list[dict[str, Any]]:
    """Every finished report of the folder, sorted by name: {name, record, metrics, headlines}; "demo" comes first."""
    runs = []
    for page in sorted(Path(reports_folder).glob("[!.]*/index.html"), key=lambda path: path.parent.name):
        folder = page.parent
        if not (folder / "run.json").exists() or not (folder / "metrics.json").exists():
            continue
        metrics = paths.load_json(folder / "metrics.json")
        record = shown_record(paths.load_json(folder / "run.json"), folder.name)
        heads = headlines.make_headlines(metrics, run_settings(record))
        runs.append({"name": folder.name, "record": record, "metrics": metrics, "headlines": heads})
    return sorted(runs, key=lambda run: (run["record"]["synthetic"], run["name"]))


def build_index(reports_folder: Path) -> Path:
    """Write `index.html`, the list of runs with their headline numbers, and `compare.html`; return the former."""
    reports_folder = Path(reports_folder)
    runs = read_runs(reports_folder)
    text = make_environment().get_template("index.html.j2").render(runs=runs, here="index", up="")
    copy_assets(reports_folder)
    write_text(reports_folder / "index.html", text)
    build_comparison(reports_folder)
    return reports_folder / "index.html"


def build_comparison(reports_folder: Path) -> Path:
    """Write `compare.html`: scores, paired differences where the clips are the same, and parameters of all runs."""
    runs = read_runs(reports_folder)
    content = {
        "scores": compare.compare_scores(runs),
        "pairs": compare.compare_pairs(runs),
        "parameters": compare.compare_parameters(runs),
    }
    text = make_environment().get_template("compare.html.j2").render(runs=runs, here="compare", up="", **content)
    copy_assets(Path(reports_folder))
    return write_text(Path(reports_folder) / "compare.html", text)


# ---------------------------------------------------------------- pieces


def make_environment() -> Any:
    """Jinja with escaping on, an error for every unknown name, and the number format of the pages."""
    import jinja2

    loader = jinja2.FileSystemLoader(paths.TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["amount"] = format_amount
    return environment


def format_amount(value: float | None, kind: str = "share", bare: bool = False) -> str:
    """A number as pages write it. Kinds: share (0.5 -> "50.0 %"), years, decimal, points, count, seconds. `bare` drops the unit."""
    if value is None or pd.isna(value):
        return "–"
    if kind == "share":
        return f"{100 * value:.1f}" + ("" if bare else " %")
    if kind == "years":
        return f"{value:.1f}" + ("" if bare else " years")
    if kind == "points":
        return f"{100 * value:+.1f}".replace("-", "−")
    if kind == "seconds":
        return f"{value:,.1f}"
    return f"{int(value):,}" if kind == "count" else f"{value:.3f}"


def mask_values(content: Any, private: dict[str, str]) -> Any:
    """The same JSON content with private texts replaced."""
    if isinstance(content, dict):
        return {key: mask_values(value, private) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [mask_values(value, private) for value in content]
    return pages.mask_text(content, private) if isinstance(content, str) else content


def find_private_paths(folder: Path, roots: Iterable[str | Path] = ()) -> list[tuple[str, str]]:
    """Every (page, path) where a text file of `folder` shows a home folder, this repository, or one of `roots`."""
    own = [Path.home(), paths.ROOT, paths.DATA, Path(tempfile.gettempdir()), *map(Path, roots)]
    known = sorted({str(path.absolute()) for path in own if len(path.absolute().parts) > 1}, key=len, reverse=True)
    pattern = re.compile(r"(?<![\w./-])(?:" + "|".join(map(re.escape, known)) + r")(?![\w-])[^\s\"'<>)\]]*")
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in TEXTS and path.is_file():
            text = EMBEDDED.sub("", path.read_text(encoding="utf-8"))
            hits = dict.fromkeys(match.group(0) for one in (pattern, HOMES) for match in one.finditer(text))
            found += [(path.relative_to(folder).as_posix(), hit) for hit in hits]
    return found


def refuse_private_paths(folder: Path, run: str, roots: Iterable[str | Path]) -> None:
    """ValueError naming pages and paths when the report would show any."""
    found = find_private_paths(folder, roots)
    if found:
        listed = "; ".join(f"{page}: {path}" for page, path in found[:5])
        raise ValueError(f"report of run '{run}' would show private paths: {listed}. Print names or relative paths")


def copy_assets(folder: Path) -> None:
    """Put the stylesheet and the script beside the pages."""
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    for name in ("style.css", "report.js"):
        shutil.copyfile(paths.TEMPLATES / name, folder / "assets" / name)


def write_text(path: Path, text: str) -> Path:
    """Write a page whole or not at all, without trailing blanks."""
    with paths.write_whole(path) as partial:
        partial.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    return path
