"""The report site: `reports/<run>/` with a page for the run and one for each notebook, the list of runs, runs side by side;
static pages with one stylesheet and one small script that they read well without."""

import html
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from lib import paths, results
from lib.report import TEMPLATES, compare, sentences
from lib.report.show import table_html

TEXTS = {".html", ".json", ".csv", ".css", ".js"}
HOMES = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]+[^\s\"'<>)\]]*")  # of any system's people
EMBEDDED = re.compile(r"data:[\w/+-]+;base64,[A-Za-z0-9+/=]+")
NO_WORDS = {"", "No description has been provided for this image"}  # the latter is what nbconvert writes
TEMPLATES.filters["time"] = lambda text: datetime.fromisoformat(text).astimezone(UTC).strftime("%-d %B %Y, %H:%M UTC")


def build_report(
    run: str, executed: list[Path], metrics: dict[str, Any], record: dict[str, Any], target: Path,
    private_roots: Iterable[str | Path] = (),
) -> Path:  # fmt: skip
    """Build the pages of a run beside `target` (`reports/<run>`) and swap them in whole; return `target`. executed: notebooks in
    reading order; a page is called after its file. metrics, record: written beside them as `metrics.json` and `run.json`.
    private_roots: folders that no page may name, beside those among the record's parameters. ValueError naming notebook or page:
    a picture without words, two figures of one name, a private path."""
    private = find_private(record["parameters"], private_roots)
    metrics, record = mask_private(metrics, private), mask_private(record, private)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / target.name
        pages = [make_page(path, folder, private) for path in executed]
        common = {"run": run, "record": shown_record(record, run), "pages": pages, "up": "../"}
        write_page(folder / "index.html", "run.html.j2", here="run", **common, **tell_run(metrics, common["record"]))
        for number, page in enumerate(pages):
            around = {"previous": pages[:number][-1:], "next": pages[number + 1 :][:1]}
            write_page(folder / page["file"], "notebook.html.j2", here=page["name"], page=page, **common, **around)
        paths.save_json(folder / "metrics.json", metrics, indent=None)
        paths.save_json(folder / "run.json", record)
        refuse_private(folder, run, private)
        paths.replace_folder(folder, target)
    return target


def make_page(notebook: Path, folder: Path, private: dict[str, str]) -> dict[str, Any]:
    """Render an executed notebook, write its pictures and their numbers to `<folder>/figures`, and return name, file, title,
    question (of the first cell), body (HTML), contents (level, id and text of each heading)."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    content = nbformat.from_dict(mask_private(nbformat.read(notebook, as_version=4), private))
    first = content.cells[0]
    first.source = first.source.replace("\n**", "  \n**")  # the labelled lines stay lines
    config = Config(ExtractOutputPreprocessor={"enabled": True, "extract_output_types": {"image/png", "text/csv"}})
    config.NbConvertBase.display_data_priority = ["text/html", "text/markdown", "image/png", "text/plain"]
    templates = [str(paths.TEMPLATES / "nbconvert")]
    exporter = HTMLExporter(config=config, template_name="report", extra_template_basedirs=templates)
    body, resources = exporter.from_notebook_node(content, {"output_files_dir": "figures", "unique_key": notebook.stem})
    for tag in re.findall(r"<img\b[^>]*>", body):
        if "".join(re.findall(r'\balt="([^"]*)"', tag)).strip() in NO_WORDS:
            raise ValueError(f"{notebook.stem}: a picture without words ({tag[:80]}); show figures by show_figure")
    for name, picture in resources["outputs"].items():
        if (folder / name).exists():
            raise ValueError(f"{notebook.stem}: '{name}' is shown by a notebook before it too; name each figure once")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)
    headings = re.findall(r'<h([123]) id="([^"]*)">(.*?)<a class="anchor-link"', body)
    contents = [{"level": int(level), "id": name, "text": text} for level, name, text in headings]
    question = re.search(r"\*\*Question\*\*:?\s*(.+)", first.source)
    title = next((entry["text"] for entry in contents if entry["level"] == 1), notebook.stem)
    return {"name": notebook.stem, "file": f"{notebook.stem}.html", "title": title, "body": body,
            "question": question[1] if question else "", "contents": contents[1:]}  # fmt: skip


def tell_run(metrics: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """What the page of a run shows: answers, verdicts, how it was made. A part that the run does not have is empty."""
    answers, verdicts = compare.find_answers(metrics, record), []
    leaks, copies, scores = (results.read_records(metrics.get(part)) for part in ("leak", "copies", "scores"))
    for score in (answer["score"] for answer in answers):
        view = {name: score[name] for name in ("task", "model", "metric")}
        slices = scores[(scores[list(view)] == pd.Series(view)).all(axis=1) & (scores["subset"] != "all")]
        for table, macro in ((leaks, "leak"), (copies, "channel")):
            verdicts.append(sentences.tell_leak(results.select_scores(table, level=score["level"], **view), macro))
        verdicts.append(sentences.tell_slices(slices))
    parameters = pd.DataFrame(compare.flatten(record["parameters"]).items(), columns=["parameter", "value"])
    versions = pd.DataFrame(record["versions"].items(), columns=["package", "version"])
    tables = [table_html(parameters, "Parameters of this run", limit=500), table_html(versions, "Versions")]
    told = list(filter(None, verdicts))
    return {"answers": answers, "verdicts": told, "tables": tables, "notes": metrics.get("notes") or []}


def shown_record(record: dict[str, Any], run: str) -> dict[str, Any]:
    """The record with everything that a page's head needs, whatever the run left out."""
    encoder = {"name": "not stated", "note": "", "heard": ""} | (record.get("encoder") or {})
    encoder["note"] = encoder["note"].removeprefix(f"{encoder['name']}, ")
    card = paths.ASSETS / f"{encoder['name']}.json"
    real = card.exists() and not record["synthetic"]  # invented voices come in the layouts of real corpora
    if real and set(paths.load_json(card).get("heard", [])) & set(record.get("corpora") or []):
        heard = "Its training heard speakers of this corpus, the tested included, without labels; no classifier did."
        encoder["heard"] = heard
    lacking = {"title": run, "question": "", "seed": "", "git_commit": "", "data_checksum": "", "engine": {}}
    return lacking | {name: value for name, value in record.items() if value is not None} | {"encoder": encoder}


def build_index(reports: Path) -> Path:
    """Write `index.html`, the runs with their answers (recorded speech first), and `compare.html`; return the former."""
    runs = []
    for path in reports.glob("[!.]*/run.json"):
        record = shown_record(paths.load_json(path), path.parent.name)
        answers = compare.find_answers(paths.load_json(path.with_name("metrics.json")), record)
        runs.append({"name": path.parent.name, "record": record, "answers": answers})
    runs.sort(key=lambda run: (run["record"]["synthetic"], run["name"]))
    write_page(reports / "index.html", "index.html.j2", runs=runs, here="index", up="")
    content = {"tables": compare.tabulate_runs(runs), "parameters": compare.tabulate_parameters(runs)}
    write_page(reports / "compare.html", "compare.html.j2", runs=runs, here="compare", up="", **content)
    return reports / "index.html"


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a page by its template, write it whole, and put the stylesheet and the script beside it."""
    text = TEMPLATES.get_template(template).render(**content)
    with paths.write_whole(path) as partial:
        partial.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    (path.parent / "assets").mkdir(exist_ok=True)
    for name in ("style.css", "report.js"):
        shutil.copyfile(paths.TEMPLATES / name, path.parent / "assets" / name)


def find_private(parameters: Any, roots: Iterable[str | Path] = ()) -> dict[str, str]:
    """Folders that no page may name -> what it shows in their place: the project's, the home, `roots`, and every text of
    `parameters` that leads out of the project."""
    leads_out = re.findall(r'"(?:hf:|onnx:)?((?:/|~/|\.\./|[A-Za-z]:\\)(?:[^"\\]|\\.)*)"', json.dumps(parameters))
    leads_out = [json.loads(f'"{text}"') for text in leads_out]
    private = {str(Path.home()): "~"}
    for folder in (paths.ROOT, paths.DATA, tempfile.gettempdir(), *leads_out, *filter(None, roots)):
        text, whole = str(folder).rstrip("/"), (paths.ROOT / Path(folder).expanduser()).resolve()
        private |= dict.fromkeys([text, str(whole), html.escape(text)], f"…/{whole.name}")
    return {text: private[text] for text in sorted(private, key=len, reverse=True) if len(text) > 1}


def private_pattern(private: dict[str, str]) -> re.Pattern:
    """Matches every private folder, the longest first, but neither inside a longer path nor inside a picture's bytes."""
    return re.compile(rf"(?:(?<![\w./+=-])|(?<=file://))(?:{'|'.join(map(re.escape, private))})(?![\w-])")


def mask_private(content: Any, private: dict[str, str]) -> Any:
    """The same JSON content, an executed notebook for example, with what it shows in place of private folders."""
    pattern = private_pattern(private)

    def mask(part: Any) -> Any:
        if isinstance(part, dict | list):
            return {name: mask(value) for name, value in part.items()} if isinstance(part, dict) else [*map(mask, part)]
        return pattern.sub(lambda match: private[match[0]], part) if isinstance(part, str) else part

    return mask(content)


def refuse_private(folder: Path, run: str, private: dict[str, str]) -> None:
    """The last guard: ValueError naming pages and paths when a text file shows a private folder or anyone's home."""
    found = []
    for path in (path for path in sorted(folder.rglob("*")) if path.suffix in TEXTS):
        text = EMBEDDED.sub("", path.read_text(encoding="utf-8"))
        hits = [match[0] for pattern in (private_pattern(private), HOMES) for match in pattern.finditer(text)]
        found += [f"{path.relative_to(folder).as_posix()}: {hit}" for hit in dict.fromkeys(hits)]
    if found:
        listed = "; ".join(found[:5])
        raise ValueError(f"report of run '{run}' would show private paths: {listed}. Print names or relative paths")
