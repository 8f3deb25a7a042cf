"""One executed notebook as the body of a page: cells by nbconvert, pictures and sounds as files, contents, no private path."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from lib import paths
from lib.report.show import check_name, write_bytes

EMBEDDED = re.compile(r"data:(image/png|audio/mpeg);base64,([A-Za-z0-9+/=]+)")


@dataclass
class Page:
    """A notebook's page: `body` is HTML, `contents` its headings as {level, id, text}, `figures` what it shows."""

    name: str
    file: str
    title: str
    short: str
    summary: str
    body: str
    contents: list[dict[str, Any]]
    has_code: bool
    figures: list[dict[str, Any]] = field(default_factory=list)


def make_page(notebook: Path, figures_folder: Path, target: Path, private: dict[str, str]) -> Page:
    """Turn an executed notebook into a page and write its pictures and sounds into `target`.

    Parameters
    ----------
    notebook: executed, such as `03_embed.ipynb`.
    figures_folder: where `show_figure` wrote (or its folder named after the notebook); numbers, vector drawings and
        titles are taken from there.
    target: the report's folder; gets `figures/` and `audio/`.
    private: text that must not be shown -> what stands in its place.
    """
    from bs4 import BeautifulSoup

    cells = mask_notebook(nbformat.read(notebook, as_version=4), private)
    soup = BeautifulSoup(render_cells(cells), "html.parser")
    own = figures_folder / notebook.stem
    drawn = own if own.is_dir() else figures_folder
    figures = [place_figure(tag, drawn, target) for tag in soup.select("figure[data-figure]")]
    for tag in soup.select("figure[data-sound]"):
        place_sound(tag, target)
    box_tables(soup)
    list_facts(soup)
    contents = collect_headings(soup)
    title = next((entry["text"] for entry in contents if entry["level"] == 1), notebook.stem.replace("_", " "))
    for figure in figures:
        figure["page"] = f"{notebook.stem}.html"
    return Page(
        name=notebook.stem,
        file=f"{notebook.stem}.html",
        title=title,
        short=notebook.stem.replace("_", " "),
        summary=summarise(soup),
        body=str(soup),
        contents=[entry for entry in contents if entry["level"] in (2, 3)],
        has_code=soup.select_one("details.code") is not None,
        figures=figures,
    )


def render_cells(notebook: nbformat.NotebookNode) -> str:
    """HTML of a notebook's cells by the project's nbconvert template: code folded, standard error left out."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    order = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
    config = Config({"NbConvertBase": {"display_data_priority": order}})
    folders = [str(paths.TEMPLATES / "nbconvert")]
    exporter = HTMLExporter(config=config, template_name="report", extra_template_basedirs=folders)
    return exporter.from_notebook_node(notebook)[0]


# ---------------------------------------------------------------- nothing private


def private_texts(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Folders outside the project that a run was given (absolute, or upwards, or in a home) -> how pages call them."""
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    found = {}
    for value in given.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text) > 4 and re.match(r"(/|~|\.\.[/\\]|[A-Za-z]:\\)", text):
                shown = f"<{Path(text).name}>"
                found |= {text: shown, str((paths.ROOT / Path(text).expanduser()).resolve()): shown}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def mask_text(text: str, private: dict[str, str], escaped: bool = False) -> str:
    """Replace each private text; `escaped` when the text is HTML."""
    for secret, shown in private.items():
        text = text.replace(secret, html.escape(shown) if escaped else shown)
    return text


def mask_notebook(notebook: nbformat.NotebookNode, private: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with private texts replaced in its cells and in their outputs (pictures are left alone)."""
    for cell in notebook.cells:
        cell.source = mask_text(cell.source, private)
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = mask_text(output.text, private)
            if "traceback" in output:
                output.traceback = [mask_text(line, private) for line in output.traceback]
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(content, str):
                    output.data[kind] = mask_text(content, private, escaped=kind == "text/html")
    return notebook


# ---------------------------------------------------------------- pictures and sounds


def place_figure(tag: Any, figures_folder: Path, target: Path) -> dict[str, Any]:
    """Write the embedded picture of a `<figure>` to `figures/` and link it; return what the gallery needs."""
    from bs4 import BeautifulSoup
    from PIL import Image

    name, picture = check_name(tag["data-figure"]), tag.find("img")
    content = embedded_bytes(picture["src"])
    write_bytes(target / "figures" / f"{name}.png", content)
    shown = f"{name}.png"
    for suffix in ("svg", "csv"):
        if (source := figures_folder / f"{name}.{suffix}").exists():
            shutil.copyfile(source, target / "figures" / source.name)
            shown = source.name if suffix == "svg" else shown
    pixels = Image.open(io.BytesIO(content)).size
    width, height = (round(side / 1.5) for side in pixels)  # drawn at 144 dots an inch, shown at 96
    described = figures_folder / f"{name}.json"
    title = paths.load_json(described)["title"] if described.exists() else ""
    alt = picture["alt"]
    picture.attrs = {"src": f"figures/{shown}", "alt": alt, "width": width, "height": height, "loading": "lazy"}
    picture.wrap(BeautifulSoup().new_tag("a", href=f"figures/{shown}"))  # on a phone, one tap shows it large
    tag.attrs = {"class": "figure", "id": f"figure-{name}", "data-figure": name}
    add_downloads(tag, name, target)
    return {"name": name, "file": shown, "alt": alt, "title": title or alt, "width": width, "height": height}


def add_downloads(tag: Any, name: str, target: Path) -> None:
    """Name the figure's numbers under it."""
    from bs4 import BeautifulSoup

    if not (target / "figures" / f"{name}.csv").exists():
        return
    caption = tag.find("figcaption")
    if caption is None:
        tag.append(BeautifulSoup("<figcaption></figcaption>", "html.parser"))
        caption = tag.find("figcaption")
    link = f' <a href="figures/{name}.csv" download>The numbers (CSV)</a>'
    caption.append(BeautifulSoup(link, "html.parser"))


def place_sound(tag: Any, target: Path) -> None:
    """Write the embedded sound and its spectrogram to `audio/` and link both."""
    name = check_name(tag["data-sound"])
    for kind, suffix in (("img", "png"), ("audio", "mp3")):
        part = tag.find(kind)
        write_bytes(target / "audio" / f"{name}.{suffix}", embedded_bytes(part["src"]))
        part["src"] = f"audio/{name}.{suffix}"
        part.attrs.pop("style", None)


def embedded_bytes(source: str) -> bytes:
    """Bytes of a data URI; ValueError for anything else."""
    match = EMBEDDED.fullmatch(source)
    if match is None:
        raise ValueError(f"not an embedded picture or sound: {source[:60]!r}; make it with show_figure or show_sound")
    return base64.b64decode(match.group(2))


# ---------------------------------------------------------------- structure


def box_tables(soup: Any) -> None:
    """Put every table into a box that scrolls, make what scrolls focusable, drop inline styles: the stylesheet decides."""
    for tag in soup.select(".highlight pre"):
        tag["tabindex"] = "0"  # a long line scrolls by keyboard too
    for tag in soup.select(".together"):
        tag.attrs.pop("style", None)
    for style in soup.select("style"):
        style.decompose()
    for table in soup.select("table"):
        if table.find_parent(class_="highlighttable"):
            continue
        table.attrs = {"class": "table"}
        for cell in table.select("th, td"):
            cell.attrs.pop("style", None)
            if cell.name == "th" and not cell.get_text(strip=True):
                cell.name = "td"  # the corner above a frame's row numbers heads nothing
            elif cell.name == "th" and not cell.get("scope"):
                cell["scope"] = "col" if cell.find_parent("thead") else "row"
        if table.find_parent(class_="table-box") is None:
            box = soup.new_tag(
                "div", attrs={"class": "table-box", "role": "region", "tabindex": "0", "aria-label": "Table"}
            )
            table.wrap(box)


def collect_headings(soup: Any) -> list[dict[str, Any]]:
    """Give every heading an id of its own, drop nbconvert's anchor links, and list them as {level, id, text}."""
    entries, used = [], set()
    for heading in soup.select("h1, h2, h3, h4"):
        for anchor in heading.select("a.anchor-link"):
            anchor.decompose()
        text = heading.get_text(" ", strip=True)
        stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
        name, nth = stem, 2
        while name in used:
            name, nth = f"{stem}-{nth}", nth + 1
        used.add(name)
        heading["id"] = name
        entries.append({"level": int(heading.name[1]), "id": name, "text": text})
    return entries


def list_facts(soup: Any) -> None:
    """Turn the labelled lines of the first cell ("**Reads** ...", one paragraph) into a list of labels and texts."""
    from bs4 import BeautifulSoup

    first = soup.select_one(".prose")
    for paragraph in first.select("p") if first else []:
        parts = re.split(r"<strong>(Reads|Writes|Takes|Question)[^<]*</strong>:?", paragraph.decode_contents())
        if len(parts) < 5 or parts[0].strip():
            continue
        pairs = zip(parts[1::2], parts[2::2])
        rows = [f'<dt>{name}</dt><dd class="{name.lower()}">{text.strip()}</dd>' for name, text in pairs]
        paragraph.replace_with(BeautifulSoup(f'<dl class="about">{"".join(rows)}</dl>', "html.parser"))


def summarise(soup: Any) -> str:
    """The question that a notebook answers, as its first cell states it, else its first sentence."""
    first = soup.select_one(".prose")
    if first is None:
        return ""
    question = first.select_one("dd.question")
    text = (question or first.select_one("p") or first).get_text(" ", strip=True)
    sentence = re.match(r".+?[.?!](?=\s|$)", text, re.DOTALL)
    return text if question or sentence is None else sentence.group(0)
