"""What a notebook shows: figures, tables and sounds that a report page can take over.

`show_*` return HTML that reads well in JupyterLab. Where a folder is given they also write the picture, its numbers
and its description there; `lib.report.site` then replaces the embedded picture by a link to that file.
"""

from __future__ import annotations

import base64
import html
import io
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lib.paths import save_json, write_whole
from lib.records import model_name

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

DPI = 144  # 7.5 inches make 1080 pixels: sharp at the page's width of about 720
SVG_LIMIT_BYTES = 12_000  # a drawing whose SVG is larger is kept as PNG alone


def check_name(name: str) -> str:
    """Return `name` if it can name a file and be part of a link; ValueError otherwise."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"figure or sound name {name!r}: use lower-case letters, digits, '_' and '-' only")
    return name


def draw_png(fig: Figure) -> bytes:
    """Draw `fig` as a PNG of at most 128 colours (a third of the bytes, and no visible loss in a chart)."""
    from PIL import Image

    raw = io.BytesIO()
    fig.savefig(raw, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    small = io.BytesIO()
    picture = Image.open(raw).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(small, format="PNG", optimize=True)
    return small.getvalue()


def draw_svg(fig: Figure) -> bytes:
    """Draw `fig` as SVG without a date, so that the same figure gives the same bytes."""
    raw = io.BytesIO()
    fig.savefig(raw, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return raw.getvalue()


def title_of(fig: Figure) -> str:
    """The figure's own title: the one above all axes, else that of the first axes that has one."""
    above = fig.get_suptitle()
    titles = [ax.get_title(loc=place) for ax in fig.axes for place in ("left", "center")]
    return above or next((title for title in titles if title), "")


def show_figure(
    fig: Figure,
    name: str,
    alt: str,
    data: pd.DataFrame | None = None,
    folder: Path | None = None,
    caption: str = "",
    notebook: str = "",
) -> HTML:
    """Show a figure, and write it with its numbers and its description where a folder is given.

    Parameters
    ----------
    fig: the drawn figure; it is closed afterwards.
    name: of the files, such as "confusion_gender".
    alt: one or two sentences that tell what the figure shows to someone who does not see it.
    data: the numbers behind it, written as `<name>.csv`; None = no such file.
    folder: where `<name>.png`, `.svg` (where small), `.csv` and `.json` go; None = nothing is written.
    caption: the line under the figure.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML

    check_name(name)
    if not alt.strip():
        raise ValueError(f"figure {name!r}: give an alt text that says what the figure shows")
    picture = draw_png(fig)
    if folder is not None:
        described = {"title": title_of(fig), "alt": alt, "caption": caption, "notebook": notebook}
        save_figure(fig, Path(folder) / name, picture, described, data)
    plt.close(fig)
    return HTML(figure_html(name, alt, picture, caption))


def save_figure(fig: Figure, stem: Path, picture: bytes, described: dict[str, str], data: pd.DataFrame | None) -> None:
    """Write `<stem>.png`, `.svg` where it is small, `.csv` where there are numbers, and `.json`."""
    write_bytes(stem.with_suffix(".png"), picture)
    fig.set_layout_engine("none")  # it is laid out: doing so again costs as much as the drawing
    vector = draw_svg(fig)
    if len(vector) <= SVG_LIMIT_BYTES:
        write_bytes(stem.with_suffix(".svg"), vector)
    else:
        stem.with_suffix(".svg").unlink(missing_ok=True)
    if data is not None:
        write_bytes(stem.with_suffix(".csv"), data.to_csv(index=False, float_format="%.6g").encode("utf-8"))
    save_json(stem.with_suffix(".json"), described)


def figure_html(name: str, alt: str, picture: bytes, caption: str = "") -> str:
    """A `<figure>` with the picture inside it; `data-figure` is the name by which a report finds the file."""
    source = f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
    under = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="figure" data-figure="{name}" style="margin:1em 0;max-width:760px">'
        f'<img alt="{html.escape(alt)}" src="{source}" style="width:100%;height:auto">{under}</figure>'
    )


def show_sound(
    waveform: np.ndarray, rate_hz: int, name: str, title: str, folder: Path | None = None, caption: str = ""
) -> HTML:
    """Show a playable sound beside its spectrogram, both small.

    Parameters
    ----------
    waveform: mono samples in [-1, 1], at most 15 s.
    name: of the files `<folder>/audio/<name>.mp3` and `<name>.png`; None as folder = nothing is written.
    title: what is heard, also the label for screen readers.
    """
    from IPython.display import HTML

    check_name(name)
    waveform = np.clip(np.asarray(waveform, dtype=np.float32), -1, 1)
    if waveform.ndim != 1 or not 0 < len(waveform) <= 15 * rate_hz:
        raise ValueError(f"sound {name!r}: give one channel of up to 15 s, not shape {waveform.shape} at {rate_hz} Hz")
    sound, picture = encode_mp3(waveform, rate_hz), draw_spectrogram(waveform, rate_hz)
    if folder is not None:
        write_bytes(Path(folder) / "audio" / f"{name}.mp3", sound)
        write_bytes(Path(folder) / "audio" / f"{name}.png", picture)
    embedded = [base64.b64encode(part).decode("ascii") for part in (picture, sound)]
    label = html.escape(title)
    return HTML(
        f'<figure class="sound" data-sound="{name}"><figcaption><b>{label}</b> {html.escape(caption)}</figcaption>'
        f'<img alt="Spectrogram of: {label}" src="data:image/png;base64,{embedded[0]}" style="max-width:100%">'
        f'<audio controls preload="metadata" aria-label="{label}" src="data:audio/mpeg;base64,{embedded[1]}"></audio>'
        "</figure>"
    )


def show_together(shown: Sequence[HTML]) -> HTML:
    """Show several sounds, figures or tables in a row that wraps, as one result of a cell."""
    from IPython.display import HTML

    parts = "".join(one.data for one in shown)
    return HTML(f'<div class="together" style="display:flex;flex-wrap:wrap;gap:0 1.5em">{parts}</div>')


def encode_mp3(waveform: np.ndarray, rate_hz: int) -> bytes:
    """Encode mono samples in [-1, 1] as a small MP3, which every browser plays."""
    import soundfile

    raw = io.BytesIO()
    soundfile.write(raw, waveform, rate_hz, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.85)
    return raw.getvalue()


def draw_spectrogram(waveform: np.ndarray, rate_hz: int) -> bytes:
    """A bare log spectrogram (time to the right, 0 Hz to half the rate upwards) as a PNG of 360 x 96 pixels."""
    from matplotlib import colormaps
    from PIL import Image
    from scipy.signal import spectrogram

    length = min(512, len(waveform))
    _, _, power = spectrogram(waveform, rate_hz, nperseg=length, noverlap=length * 3 // 4)
    level_db = 10 * np.log10(power[::-1] + 1e-10)  # high frequencies on top
    top = float(level_db.max())
    shade = np.clip((level_db - (top - 70)) / 70, 0, 1)
    picture = Image.fromarray((colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)).resize((360, 96))
    small = io.BytesIO()
    picture.quantize(48).save(small, format="PNG", optimize=True)
    return small.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with write_whole(path) as partial:
        partial.write_bytes(content)


def show_table(
    frame: pd.DataFrame, caption: str, digits: int = 3, percent: Sequence[str] = (), limit: int = 200
) -> HTML:
    """Show a frame as a table that a report page can sort; columns "model" and "network" get names that a reader knows.

    Parameters
    ----------
    frame: shown without its index; call `reset_index` first when the index says something.
    caption: what the table holds, in one line.
    digits: decimals of floats.
    percent: columns whose shares (0 to 1) are shown as percentages with one decimal.
    limit: rows shown; a longer table says how many rows it has.
    """
    from IPython.display import HTML

    named = {name: frame[name].map(model_name, na_action="ignore") for name in ("model", "network") if name in frame}
    return HTML(table_html(frame.assign(**named), caption, digits, percent, limit))


def table_html(
    frame: pd.DataFrame, caption: str = "", digits: int = 3, percent: Sequence[str] = (), limit: int = 200
) -> str:
    """HTML of `show_table`: escaped, numbers to the right, full precision for sorting in `data-value`."""
    right = {name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])}
    right -= {name for name in frame.columns if pd.api.types.is_bool_dtype(frame[name])}
    heads = "".join(
        f'<th scope="col"{_number_class(name in right)}>{html.escape(str(name))}</th>' for name in frame.columns
    )
    rows = []
    for values in frame.head(limit).itertuples(index=False, name=None):
        cells = [_cell(value, name in right, digits, name in percent) for name, value in zip(frame.columns, values)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        rows = [f'<tr><td colspan="{len(frame.columns)}">nothing to list</td></tr>']
    more = f" (the first {limit:,} of {len(frame):,} rows)" if len(frame) > limit else ""
    text = html.escape(caption) + more
    return (
        f'<div class="table-box" role="region" tabindex="0" aria-label="{html.escape(caption) or "Table"}">'
        f'<table class="table"><caption>{text}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number_class(numeric: bool) -> str:
    return ' class="number" style="text-align:right"' if numeric else ' style="text-align:left"'


def _cell(value: Any, numeric: bool, digits: int, percent: bool) -> str:
    shown, exact = format_value(value, digits, percent), ""
    if numeric and not pd.isna(value):
        exact = f' data-value="{float(value)!r}"'
    kind = (
        _number_class(True) if numeric else f' class="{"long" if len(shown) > 28 else "plain"}" style="text-align:left"'
    )
    return f"<td{kind}{exact}>{html.escape(shown)}</td>"


def format_value(value: Any, digits: int = 3, percent: bool = False) -> str:
    """Text of one value: "–" where nothing is known, thousands apart, shares as percentages when asked."""
    if value is None or value is pd.NA or (np.isscalar(value) and pd.isna(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    if isinstance(value, numbers.Real):
        return f"{100 * value:.1f} %" if percent else f"{value:,.{digits}f}"
    if isinstance(value, list | tuple | set | np.ndarray):
        return ", ".join(map(str, value))
    return str(value)
