"""Any folder of one's own: a CSV with `path, speaker, gender, age` beside the audio is a corpus too.

Only `path` is obligatory. Example:

    path,speaker,gender,age,language
    interviews/anna-1.wav,anna,female,34,en
    interviews/bela-1.flac,bela,male,fifties,hu
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pandas as pd

from lib.corpora.labels import unknown_labels
from lib.corpora.sieve import SPLITS, Sieve

CORPUS = "own_data"
FILE_NAME = "own_data.csv"
COLUMNS = {
    "path": ["path", "file", "filename", "file_name"], "speaker": ["speaker", "speaker_id", "client_id"],
    "gender_raw": ["gender", "sex"], "age_raw": ["age", "age_years", "age_decade"], "language": ["language", "locale"],
    "start": ["start_s", "start"], "end": ["end_s", "end"], "split": ["split", "official_split"],
}  # fmt: skip


def find_own_table(root: Path | str) -> Path:
    """The CSV itself, or `own_data.csv` in the folder, or its only CSV; ValueError when that does not say which."""
    root = Path(root)
    if root.is_file():
        return root
    if (root / FILE_NAME).is_file():
        return root / FILE_NAME
    tables = sorted(root.glob("*.csv"))
    if len(tables) != 1:
        raise ValueError(
            f"{root}: write {FILE_NAME} there with columns path, speaker, gender, age (found {len(tables)} CSV)"
        )
    return tables[0]


def read_own_data(root_or_csv: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a folder's CSV into (clips, ledger). Paths are relative to the CSV's folder.

    Optional columns: speaker, gender (any word of `lib.corpora.labels`), age (years, or a decade's word), language, start_s and
    end_s (seconds), split (train, validation, test). A file without a speaker is its own speaker. Labels that the
    contract does not know stay in the raw columns and are counted in `clips.attrs["unknown_labels"]`, with
    `files_without_speaker` and `warnings`. Raises ValueError when the CSV or its column `path` is missing.
    """
    path = find_own_table(root_or_csv)
    rows, malformed = _read_csv(path)
    sieve = Sieve(CORPUS, rows)
    sieve.note(malformed)
    sieve.drop(sieve.rows["path"] == "", "no path")
    sizes = [_size(path.parent / name) for name in sieve.rows["path"]]
    sieve.rows = sieve.rows.assign(size=pd.Series(sizes, dtype="int64"))
    sieve.drop(sieve.rows["size"] < 0, "no such file", sieve.rows["path"])
    sieve.drop(sieve.rows["size"] == 0, "empty file", sieve.rows["path"])
    start = pd.to_numeric(sieve.rows["start"].where(sieve.rows["start"] != "", "0"), errors="coerce")
    end = pd.to_numeric(sieve.rows["end"], errors="coerce")
    sieve.rows = sieve.rows.assign(start_s=start.astype(float), end_s=end.astype(float))
    broken = start.isna() | (start < 0) | (end <= start) | (end.isna() & (sieve.rows["end"] != ""))
    sieve.drop(broken, "no stretch of time", "start " + sieve.rows["start"] + ", end " + sieve.rows["end"])
    _name_rows(sieve)
    sieve.drop(sieve.rows["clip_id"].duplicated(), "listed twice", "the same file and start stand in an earlier row")
    return sieve.finish()


def _read_csv(path: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Rows with every column of `COLUMNS` ("" where not given), and the lines that have too many or too few cells."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as 'CSV UTF-8'") from error
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(map(str.strip, row))]
    header = [name.strip().casefold() for name in lines[0]] if lines else []
    places = {key: next((header.index(n) for n in names if n in header), None) for key, names in COLUMNS.items()}
    if places["path"] is None:
        raise ValueError(f"{path}: needs a column 'path', has {header}")
    good = [row for row in lines[1:] if len(row) == len(header)]
    bad = [
        (f"{path.name} row {number}", "wrong number of columns", f"{len(row)} columns, not {len(header)}")
        for number, row in enumerate(lines[1:], 1)
        if len(row) != len(header)
    ]
    cells = {key: [row[at].strip() if at is not None else "" for row in good] for key, at in places.items()}
    rows = pd.DataFrame(cells, dtype="str")
    rows["path"] = [_posix(name, path.parent) for name in rows["path"]]
    rows["path"] = rows["path"].astype("str")
    return rows.assign(item=rows["path"].where(rows["path"] != "", "a row without path")), bad


def _posix(name: str, folder: Path) -> str:
    """`name` relative to `folder` with forward slashes."""
    if not name:
        return ""
    if "\\" in name and not (folder / name).exists():
        name = name.replace("\\", "/")
    return Path(os.path.relpath(name, folder.absolute())).as_posix() if os.path.isabs(name) else Path(name).as_posix()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _name_rows(sieve: Sieve) -> None:
    rows = sieve.rows
    recording = f"{CORPUS}:" + rows["path"]
    stamp = "@" + (rows["start_s"] * 1000).round().astype("int64").astype("str")
    alone = rows["speaker"] == ""
    splits = rows["split"].str.casefold()
    sieve.rows = rows.assign(
        recording_id=recording, clip_id=recording.where(rows["start"] == "", recording + stamp),
        speaker_id=(f"{CORPUS}:" + rows["speaker"]).where(~alone, f"{CORPUS}:file:" + rows["path"]),
        official_split=splits.map(SPLITS),
    )  # fmt: skip
    sieve.facts["files_without_speaker"] = int(rows.loc[alone, "path"].nunique())
    if alone.any():
        sieve.warn(
            f"rows without a speaker: {alone.sum()}; each file counts as its own, so a split may divide a person"
        )
    for kind in ("gender", "age"):
        unknown = unknown_labels(rows[f"{kind}_raw"], kind)
        if unknown:
            sieve.warn(f"unknown {kind} values give no label: {unknown}")
    strange = sorted(set(splits) - set(SPLITS) - {""})
    if strange:
        sieve.warn(f"unknown split values are left out: {strange}")
