"""Age labels for VoxCeleb, which ships none: published tables, or a hand-made one.

- Hechmann, Mackenroth et al. 2021 (arXiv 2109.13510), github.com/hechmik/voxceleb_enrichment_age_gender, MIT: years of
  age by speaker and video, recording year minus birth year, so one year off at best.
- AgeVoxCeleb, github.com/nttcslab-sp/agevoxceleb: by utterance. Its licence forbids passing it on: users fetch it.
- a CSV of one's own, speaker -> year or decade, as in the paper.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pandas as pd

from lib.corpora.labels import ages_of, is_known_age
from lib.tables import DECADES

# The names under which a reader finds them; "ages.csv" is a hand-made one.
AGE_FILES = [
    "utt2age.train", "utt2age.test", "final_dataframe_extended.csv", "age-train.txt", "age-test.txt", "ages.csv",
]  # fmt: skip
SPEAKER_COLUMNS = ["voxceleb_id", "voxceleb1 id", "voxceleb2 id", "speaker_id", "speaker", "spk", "id"]
VIDEO_COLUMNS = ["video_id", "video", "youtube_id", "ytid", "reference"]
AGE_COLUMNS = ["speaker_age", "age", "age_years", "years", "year", "age_decade", "decade", "age_class", "age_group"]
LEVELS = ["utterance", "video", "speaker"]  # the most exact label of a clip wins


def read_age_labels(path: Path | str, unit: str | None = None) -> pd.DataFrame:
    """Read a table of ages: one row a speaker, a speaker in a video, or an utterance.

    Columns: speaker, video, utterance (key `<speaker>/<video>/<n>`; "" = all of them), age_raw, age_years (float, NaN),
    age_decade (Int16, NA). Rows without a usable age are left out and counted in `attrs["rows_without_age"]`;
    `attrs["unknown"]` counts the words and numbers that are no age (blank and NaN are just missing).

    `unit` says what bare numbers are, "years" or "decade". None decides: by the column's name, else decades if every
    number in the table is one of 10, 20 ... 90, and years otherwise; `attrs["unit"]` tells.
    Raises ValueError when the file is missing or has no column for the speaker or the age.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such age table; lib.corpora.download.download_age_table fetches one")
    if unit not in (None, "years", "decade"):
        raise ValueError(f"unit {unit!r}: choose 'years', 'decade' or None")
    text = path.read_bytes().decode("utf-8-sig", errors="replace")  # ids are ASCII
    table, column = _read_utterances(text) if _is_utterance_list(text) else _read_columns(text, path)
    table = table.apply(lambda values: values.str.strip())
    table["age_raw"] = table["age_raw"].mask(table["age_raw"].str.casefold().isin(["nan", "none", "na"]), "")
    unit = unit or _guess_unit(table["age_raw"], column)
    table[["age_years", "age_decade"]] = ages_of(table["age_raw"], unit)
    usable = table["age_years"].notna() | table["age_decade"].notna()
    unknown = table.loc[~usable, "age_raw"].value_counts()
    labels = table[usable & (table["speaker"] != "")].reset_index(drop=True)
    strange = {str(raw): int(n) for raw, n in unknown.items() if not is_known_age(raw, unit)}
    labels.attrs = {
        "rows_in": len(table),
        "rows_without_age": len(table) - len(labels),
        "unit": unit,
        "unknown": strange,
    }
    return labels


def _is_utterance_list(text: str) -> bool:
    """Whether the first line is AgeVoxCeleb's: `id00042/34f5sBShxSo/00001 70`."""
    return re.match(r"\s*id\d+/\S+/\S+[ \t]+\S+", text.split("\n", 1)[0]) is not None


def _read_utterances(text: str) -> tuple[pd.DataFrame, str]:
    rows = [line.split() for line in text.split("\n") if line.strip()]
    keys = [row[0].removesuffix(".wav").removesuffix(".m4a") for row in rows]
    parts = [(key.split("/") + ["", ""])[:2] for key in keys]
    frame = {"speaker": [p[0] for p in parts], "video": [p[1] for p in parts], "utterance": keys}
    return pd.DataFrame(frame | {"age_raw": [row[1] if len(row) > 1 else "" for row in rows]}, dtype="str"), "age_years"


def _read_columns(text: str, path: Path) -> tuple[pd.DataFrame, str]:
    """A table with a header; commas, semicolons or tabs; cells may be quoted and hold line feeds."""
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    csv.field_size_limit(10_000_000)
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row] or [[]]
    if len(header) == 2 and re.fullmatch(r"id\d+", header[0].strip()):  # a hand table without a header
        header, rows = ["speaker", "age"], [header, *rows]
    header = [name.strip().casefold() for name in header]
    places = [next((header.index(n) for n in names if n in header), None) for names in _columns()]
    if places[0] is None or places[2] is None:
        raise ValueError(
            f"{path}: needs a column for the speaker ({', '.join(SPEAKER_COLUMNS)}) and one for the age "
            f"({', '.join(AGE_COLUMNS)}), has {header}"
        )
    cells = [[row[at] if at is not None and at < len(row) else "" for at in places] for row in rows]
    frame = pd.DataFrame(cells, columns=["speaker", "video", "age_raw"], dtype="str")
    frame["speaker"] = frame["speaker"].str.strip().str.removeprefix("voxceleb:")
    return frame.assign(utterance="")[["speaker", "video", "utterance", "age_raw"]], header[places[2]]


def _columns() -> list[list[str]]:
    return [SPEAKER_COLUMNS, VIDEO_COLUMNS, AGE_COLUMNS]


def _guess_unit(raw: pd.Series, column: str) -> str:
    if column in ("age_decade", "decade"):
        return "decade"
    if column not in ("age", "age_class", "age_group"):
        return "years"
    numbers = {float(value) for value in raw.unique() if re.fullmatch(r"\d+(\.\d+)?", value)}
    return "decade" if numbers and numbers <= set(map(float, DECADES)) else "years"


def join_ages(rows: pd.DataFrame, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Ages for rows with columns speaker, video and item (the utterance key), joined on speaker AND video.

    Returns (frame of age_years, age_decade, age_raw on the rows' index, number of keys a level whose labels disagree).
    A video can hold several speakers, so a label by video counts for its own speaker only. Where labels of one level
    disagree there is no age from that level.
    """
    ages = pd.DataFrame({"age_years": float("nan"), "age_decade": float("nan"), "age_raw": ""}, index=rows.index)
    disagreeing = {}
    labels = pd.concat(tables, ignore_index=True) if tables else None
    for level in LEVELS if labels is not None else []:
        of_utterance, of_video = labels["utterance"] != "", labels["video"] != ""
        mask = {"utterance": of_utterance, "video": of_video & ~of_utterance, "speaker": ~of_video & ~of_utterance}[
            level
        ]
        known = labels[mask].drop_duplicates(["speaker", "video", "utterance", "age_years", "age_decade"])
        twice = known.duplicated(["speaker", "video", "utterance"], keep=False)
        disagreeing[level] = int(known.loc[twice, ["speaker", "video", "utterance"]].drop_duplicates().shape[0])
        known = known[~twice]
        known = known.set_index(_key(known.rename(columns={"utterance": "item"}), level))
        missing = ages["age_years"].isna() & ages["age_decade"].isna()
        found = (
            known[list(ages.columns)].astype({"age_decade": "float64"}).reindex(_key(rows, level)).set_axis(rows.index)
        )
        ages = ages.where(~missing, found)
    return ages.fillna({"age_raw": ""}).astype({"age_decade": "Int16", "age_raw": "str"}), disagreeing


def _key(rows: pd.DataFrame, level: str) -> pd.Series:
    return {"utterance": rows["item"], "video": rows["speaker"] + "/" + rows["video"], "speaker": rows["speaker"]}[
        level
    ]
