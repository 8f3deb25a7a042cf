"""What a notebook shows: figures with words for those who do not see them, tables, sentences, sounds. Each `show_*` displays at
once, so that a cell can show several in a loop; `lib.report.site` makes files of them by nbconvert's own extraction."""

import base64
import hashlib
import html
import io
import numbers
import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from IPython.display import HTML, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from lib.results import model_name

NAMED = ["model", "network", "next best"]  # columns of a table whose names are made for readers

DPI, SHOWN_DPI = 144, 96  # dots an inch as drawn, sharp on every screen, and CSS pixels an inch as shown


def draw_png(fig: Figure) -> tuple[bytes, dict[str, int]]:
    """Draw `fig` as a PNG of at most 128 colours (a third of the bytes, no visible loss); its bytes and size in CSS pixels."""
    raw, small = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    picture = Image.open(raw).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(small, format="PNG", optimize=True)
    return small.getvalue(), {"width": picture.width * SHOWN_DPI // DPI, "height": picture.height * SHOWN_DPI // DPI}


def show_figure(fig: Figure, name: str, alt: str, data: pd.DataFrame | None = None, caption: str = "") -> None:
    """Show a figure and close it. name: of its files in the report, `figures/<name>.png` and, with `data`, the numbers behind it,
    `<name>.csv`. alt: what the figure shows, for someone who does not see it; caption: the line under it. ValueError for a name
    that cannot name a file, and without an alternative text."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"figure name {name!r}: use lower-case letters, digits, '_' and '-' only")
    if not alt.strip():
        raise ValueError(f"figure {name!r}: give an alt text that says what the figure shows")
    picture, size = draw_png(fig)
    plt.close(fig)
    content = {"image/png": base64.b64encode(picture).decode("ascii"), "text/plain": alt}
    if data is not None:
        content["text/csv"] = data.to_csv(index=False, float_format="%.6g")
    display(content, metadata={"image/png": {"alt": alt, **size}, "filename": name, "caption": caption}, raw=True)


def show_table(frame: pd.DataFrame, caption: str, digits: int = 3, limit: int = 200) -> None:
    """Show a frame without its index; columns of `NAMED` get names that a reader knows. digits: decimals of floats.
    limit: rows shown; the caption of a longer table says how many it has."""
    named = {name: frame[name].map(model_name, na_action="ignore") for name in NAMED if name in frame}
    display(HTML(table_html(frame.assign(**named), caption, digits, limit)))


def table_html(frame: pd.DataFrame, caption: str, digits: int = 3, limit: int = 200) -> str:
    """HTML of `show_table`: everything escaped, numbers to the right, a number not parted from its unit or its interval."""
    more = f" (the first {limit:,} of {len(frame):,} rows)" if len(frame) > limit else ""
    more = " (nothing to list)" if frame.empty else more
    numeric = [kind.kind in "iuf" for kind in frame.dtypes]
    shown = frame.head(limit).reset_index(drop=True).astype(object).map(lambda value: format_value(value, digits))
    shown = shown.replace(r"(?<=\d) (?=%|to )|(?<=to) (?=[-+\d])", "\xa0", regex=True)
    shown.columns = [str(name).replace("_", " ") for name in frame.columns]  # so that a head can wrap
    name = hashlib.sha256(repr((caption, shown.to_dict("split"))).encode()).hexdigest()[:8]
    styler = Styler(shown, uuid=name, caption=html.escape(caption) + more, cell_ids=False)
    styler.hide(axis="index").format(escape="html").format_index(escape="html", axis="columns")
    styler.set_table_styles([{"selector": f".col{k}", "props": "text-align: right"} for k in np.flatnonzero(numeric)])
    return styler.to_html(table_attributes='class="table"')


def format_value(value: Any, digits: int = 3) -> str:
    """Text of one value: "–" where nothing is known, thousands apart."""
    if isinstance(value, list | tuple | set | np.ndarray):
        return ", ".join(map(str, value))
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    decimals = f".{digits}f" if not isinstance(value, numbers.Integral) else ""
    return f"{value:,{decimals}}" if isinstance(value, numbers.Real) else str(value)


def show_text(*sentences: str) -> None:
    """Show sentences, one paragraph each, as plain text whatever is in them; empty ones are left out."""
    if paragraphs := [f"<p>{html.escape(sentence)}</p>" for sentence in sentences if sentence]:
        display(HTML(f'<div class="said">{"".join(paragraphs)}</div>'))


def show_sound(waveform: np.ndarray, rate_hz: int, title: str, caption: str = "") -> None:
    """Show a player: `waveform` [samples] in [-1, 1], at most 15 s, is taken along as a small MP3; `title` says what is heard."""
    waveform = np.clip(np.asarray(waveform, dtype=np.float32), -1, 1)
    if waveform.ndim != 1 or not 0 < len(waveform) <= 15 * rate_hz:
        raise ValueError(f"sound {title!r}: give one channel of up to 15 s, not shape {waveform.shape} at {rate_hz} Hz")
    raw = io.BytesIO()
    soundfile.write(raw, waveform, rate_hz, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.85)
    source = f"data:audio/mpeg;base64,{base64.b64encode(raw.getvalue()).decode('ascii')}"
    label = html.escape(title)
    display(HTML(
        f'<figure class="sound"><figcaption><b>{label}</b> {html.escape(caption)}</figcaption>'
        f'<audio controls preload="metadata" aria-label="{label}" src="{source}"></audio></figure>'
    ))  # fmt: skip
