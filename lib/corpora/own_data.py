"""A folder of one's own: a CSV with `path, speaker, gender, age` (path is a must) beside the sound is a corpus too."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from lib.corpora.labels import ages_of, genders_of, normalize_label
from lib.corpora.sieve import Reading, Sieve, find_spelling, printable, walk_files

CORPUS = "own_data"
COLUMNS = {  # what a header may call each column: lower case, `_`, `-`, brackets and blanks alike
    "path": ["path", "file", "filename", "file name", "file path", "filepath", "audio", "audio file", "recording"],
    "speaker": ["speaker", "speaker id", "speakerid", "speaker name", "spk", "spk id", "client id", "person",
                "person id", "subject", "subject id", "participant", "participant id"],
    "gender_raw": ["gender", "sex"],
    "age_raw": ["age", "age years", "age in years", "years", "age decade", "decade", "age group"],
    "language": ["language", "locale", "lang"],
    "start": ["start s", "start", "start seconds", "begin"], "end": ["end s", "end", "end seconds"],
}  # fmt: skip


def read_own_data(root_or_csv: Path) -> Reading:
    """Read a CSV, or a folder's `own_data.csv` or only CSV, into (clips, ledger); paths count from the CSV's folder.
    Optional columns (`COLUMNS` has their other names): speaker, gender (any word of `lib.corpora.labels`), age (years,
    or a decade's word), language, start_s and end_s (seconds). A file without a speaker is its own speaker. ValueError
    when no such CSV tells paths, when none of its columns may name the speaker, or where its lines contradict."""
    path, usual = Path(root_or_csv), Path(root_or_csv, "own_data.csv")
    if not path.is_file():
        tables = [usual] if usual.is_file() else sorted(path.glob("*.csv"))
        if len(tables) != 1:
            raise ValueError(f"{path}: holds {len(tables)} CSV; write own_data.csv there: path, speaker, gender, age")
        path = tables[0]
    rows, malformed, strange = _read_csv(path)
    sieve = Sieve(CORPUS, rows)
    sieve.note(malformed)
    sieve.drop(sieve.rows["path"] == "", "no path")
    names = [find_spelling(path.parent, name, path.parent) for name in sieve.rows["path"]]
    sieve.rows["path"] = pd.Series(names, dtype="str")
    sieve.drop_faults(path.parent)
    texts = sieve.rows[["start", "end"]]
    start, end = (pd.to_numeric(texts[name].str.replace(",", "."), errors="coerce").astype(float) for name in texts)
    start = start.where(texts["start"] != "", 0.0)
    sieve.rows = sieve.rows.assign(start_s=start, end_s=end)
    broken = ~np.isfinite(start) | (start < 0) | (end <= start) | (end.isna() & (texts["end"] != ""))
    sieve.drop(broken, "no stretch of time", "start " + texts["start"] + ", end " + texts["end"])
    _name_rows(sieve, strange)
    _refuse_contradictions(path, sieve.rows)
    sieve.drop(sieve.rows["clip_id"].duplicated(), "listed twice", "the same file and start stand in an earlier row")
    return sieve.finish()


def _read_csv(path: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]], list[str]]:
    """Rows of `COLUMNS`, lines that are no row, headers not understood; an open quote costs its line only."""
    try:
        lines = re.sub(r"\r\n?", "\n", path.read_bytes().decode("utf-8-sig")).split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as 'CSV UTF-8'") from error
    excel = re.fullmatch(r"sep=(.)", lines[0].strip('" '))  # Excel's own first line
    first = next((number for number in range(bool(excel), len(lines)) if lines[number].strip()), 0)
    separator = excel[1] if excel else max(",;\t", key=lines[first].count)
    names = next(csv.reader([lines[first]], delimiter=separator), [])
    header = [normalize_label(re.sub(r"[()\[\]:.]", " ", name)) for name in names]
    known = {column: name for column, alike in COLUMNS.items() for name in alike[::-1] if name in header}
    places = {column: header.index(name) for column, name in known.items()}
    if twice := sorted({name for name in known.values() if header.count(name) > 1}):
        raise ValueError(f"{path}: several columns are named {twice}; leave one of each")
    if "path" not in places:
        raise ValueError(f"{path}: needs a column 'path', has {names}")
    strange = [name for at, name in enumerate(names) if name.strip() and at not in places.values()]
    if strange and "speaker" not in places:
        told = f"{path}: no column 'speaker', and these are not understood: {strange}. Rename the one that names it"
        raise ValueError(f"{told} (else people stand on both sides of a split), or add an empty column 'speaker'")
    rows, malformed = [], []
    for number, line in enumerate(lines[first + 1 :], first + 2):
        try:
            cells, reason = next(csv.reader([line], delimiter=separator, strict=True), []), "wrong number of columns"
        except csv.Error:
            cells, reason = [line], "a quote that does not close"
        if len(cells) == len(header) and any(cell.strip() for cell in cells):
            rows.append([f"line {number}", *(cells[at].strip() for at in places.values())])
        elif line.strip(f"{separator} "):
            malformed.append((f"{path.name} line {number}", reason, line[:80]))
    frame = pd.DataFrame(rows, columns=["line", *places], dtype="str")
    frame = frame.reindex(columns=["line", *COLUMNS], fill_value="").astype("str")
    frame["speaker"] = frame["speaker"].str.normalize("NFC")  # one name, however it is typed
    frame["item"] = frame["path"].where(frame["path"] != "", f"{path.name} " + frame["line"])
    ages = ages_of(frame["age_raw"], "decade" if "decade" in known.get("age_raw", "") else "years")
    return frame.assign(**ages), malformed, strange


def _name_rows(sieve: Sieve, strange: list[str]) -> None:
    """Give rows their ids, and warn of what is not understood; names that differ in case or blanks are one speaker's."""
    rows, spelled = sieve.rows, sieve.rows["speaker"]
    rows["speaker"] = spelled.groupby(spelled.str.split().str.join(" ").str.casefold()).transform("first")
    recording, alone = f"{CORPUS}:" + rows["path"], rows["speaker"] == ""
    stamp = "@" + (rows["start_s"] * 1000).round().astype("int64").astype("str")
    sieve.rows = rows.assign(
        recording_id=recording, clip_id=recording.where(rows["start"] == "", recording + stamp),
        speaker_id=(f"{CORPUS}:" + rows["speaker"]).where(~alone, f"{CORPUS}:file:" + rows["path"]),
    )  # fmt: skip
    if strange:
        sieve.warnings.append(f"columns that are not understood, and left out: {strange}")
    if (other := spelled != rows["speaker"]).any():
        pairs = sorted({f"{one} as {name}" for one, name in zip(spelled[other], rows.loc[other, "speaker"])})
        sieve.warnings.append(f"speakers read as one, as they differ in case or blanks alone: {', '.join(pairs[:5])}")
    sieve.facts["files that count as a speaker of their own"] = rows.loc[alone, "path"].nunique()
    if alone.any():
        told = f"rows without a speaker: {alone.sum()}; each file counts as its own: a split may divide a person"
        sieve.warnings.append(told)


def _refuse_contradictions(path: Path, rows: pd.DataFrame) -> None:
    """ValueError when one recording has two speakers, genders or ages, or one speaker two genders."""
    rows, conflicts = rows.assign(gender=genders_of(rows["gender_raw"])), []
    of_clip = [("clip_id", label) for label in ("speaker_id", "gender", "age_years", "age_decade")]
    for key, label in [*of_clip, ("speaker_id", "gender")]:
        known = rows.dropna(subset=label).drop_duplicates([key, label])
        for name, several in known[known[key].duplicated(keep=False)].groupby(key):
            values = ", ".join(f"{value} ({line})" for value, line in zip(several[label], several["line"]))
            conflicts.append(f"{label} of {name.removeprefix(f'{CORPUS}:')}: {values}")
    if conflicts:
        raise ValueError(f"{path}: {len(conflicts)} contradictions, correct them: {'; '.join(conflicts[:5])}")


def list_recordings(source: Path | str) -> pd.DataFrame:
    """Rows to ask about: name, path, start_s, end_s, fault ("" = none), and a list's labels. `source`: a file, a folder
    (through subfolders and links, hidden names left out), or a CSV as for `read_own_data`. ValueError for nothing."""
    if "://" in str(source) or str(source) == "-":
        raise ValueError(f"{source}: nothing is fetched and standard input is not read; save the sound as a file first")
    source = Path(source)
    if not os.path.lexists(source):
        raise ValueError(f"{source}: no such file or folder")
    if source.suffix.lower() == ".csv" and not source.is_dir():
        clips, ledger = read_own_data(source)
        names, paths = clips["clip_id"].str.removeprefix(f"{CORPUS}:"), [source.parent / path for path in clips["path"]]
        clips = clips.assign(name=names, path=paths, fault="")
        lost = pd.DataFrame({"name": ledger["item"], "fault": ledger["item"] + ": " + ledger["reason"], "start_s": 0.0})
        return pd.concat([clips, lost], ignore_index=True) if len(lost) else clips
    files, errors = [(source, "")], []
    if source.is_dir():
        files = [(path, "") for path in walk_files(source, (".",), errors.append)]
        files = sorted(files + [(Path(error.filename), f"cannot be read ({error.strerror})") for error in errors])
    if not files:
        raise ValueError(f"{source}: no files in this folder")
    names = [printable(path.relative_to(source if source.is_dir() else source.parent).as_posix()) for path, _ in files]
    return pd.DataFrame(files, columns=["path", "fault"]).assign(name=names, start_s=0.0, end_s=np.nan)
