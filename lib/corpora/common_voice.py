"""Mozilla Common Voice (Scripted Speech), releases 1 to 25, as the archives unpack.

Layouts, headers and vocabularies: github.com/common-voice/cv-dataset (changelog and per-release statistics) and
common-voice/CorporaCreator, which writes the tables without any quoting.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lib.corpora.common_voice_files import (
    BUCKETS,
    SPLIT_FILES,
    clip_name,
    find_clips,
    find_locales,
    folder_locale,
    folder_release,
    list_clips,
    read_table,
)
from lib.corpora.labels import age_meanings, ages_of, gender_meanings, genders_of, normalize_label
from lib.corpora.sieve import SPLITS, Sieve

CORPUS = "common_voice"
BROKEN_GENDER = "6.0"  # this release left every "male" and "other" blank; 6.1 mended it


def read_common_voice(
    root: Path | str,
    bucket: str | Sequence[str] = "validated",
    max_clips_per_speaker: int | None = None,
    keep_benchmark: bool = False,
    languages: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read one or more locales of one or more releases into (clips, ledger).

    Parameters
    ----------
    root: an unpacked archive's top, its release or locale folder, or a folder of several. Paths are relative to it.
    bucket: "validated", "invalidated", "other", "train", "dev", "test", several of these, or "all" for the first three.
    max_clips_per_speaker: keep at most so many clips a `client_id`, chosen by `seed`; None keeps all.
    keep_benchmark: whether to keep the single words (digits, yes, no) of the segment "Benchmark".
    languages: locales to read, such as ["nl"]; None reads all that are there.

    `clips.attrs` holds rows_in, folders, tables (those whose rows count), filled (blank labels taken from the same
    client's other, agreeing rows of the release), conflicting_speakers, extra_files (on disk but in no table),
    unknown_labels and warnings.
    Raises ValueError when nothing is found, or when a table lacks `client_id` or `path`.
    """
    root = Path(root)
    sieve = _gather_rows(root, _check_buckets(bucket), languages, check_files=True)
    _drop_rows(sieve, keep_benchmark, max_clips_per_speaker, seed)
    return sieve.finish()


def list_wanted_clips(
    root: Path | str,
    bucket: str | Sequence[str] = "validated",
    max_clips_per_speaker: int | None = None,
    keep_benchmark: bool = False,
    languages: Sequence[str] | None = None,
    seed: int = 0,
) -> set[str]:
    """Paths below `root` of the clips that `read_common_voice` would take if every file were there.

    Only the tables need to be there: so just these clips need to leave the archive.
    """
    sieve = _gather_rows(Path(root), _check_buckets(bucket), languages, check_files=False)
    _drop_rows(sieve, keep_benchmark, max_clips_per_speaker, seed)
    return set(sieve.rows["path"])


def _gather_rows(root: Path, buckets: list[str], languages: Sequence[str] | None, check_files: bool) -> Sieve:
    """All rows asked for, their blanks filled, from every locale below `root`."""
    tables, facts = [], {"folders": [], "tables": [], "extra_files": 0, "columns": {}}
    notes, alarms = [], []
    for folder in find_locales(root, languages):
        rows, malformed, extra = _read_folder(folder, root, buckets, facts, alarms, check_files)
        tables.append(rows)
        notes += malformed
        facts["extra_files"] += extra
    if not facts["tables"]:
        raise ValueError(f"{root}: nothing to read in any folder. {'; '.join(alarms)}")
    rows, facts["filled"], facts["conflicting_speakers"] = _fill_blanks(pd.concat(tables, ignore_index=True))
    if languages is not None:
        rows = rows[rows["language"].isin(languages)]
    sieve = Sieve(CORPUS, rows[rows["chosen"]])
    sieve.note(notes)
    sieve.facts = facts
    for text in alarms:
        sieve.warn(text)
    return sieve


def _check_buckets(bucket: str | Sequence[str]) -> list[str]:
    names = BUCKETS if bucket == "all" else [bucket] if isinstance(bucket, str) else list(bucket)
    unknown = [name for name in names if name not in BUCKETS + SPLIT_FILES]
    if unknown or not names:
        raise ValueError(f"bucket {bucket!r}: choose from {BUCKETS + SPLIT_FILES} or 'all'")
    return names


def _clip_names(paths: pd.Series) -> pd.Series:
    """`clip_name` of every path; nearly all are plain file names already."""
    plain = paths.str.contains(".", regex=False) & ~paths.str.contains(r"[/\\]", regex=True)
    return paths.where(plain, paths[~plain].map(clip_name)).astype("str")


def _read_folder(
    folder: Path, root: Path, buckets: list[str], facts: dict, alarms: list[str], check_files: bool
) -> tuple[pd.DataFrame, list[tuple[str, str, str]], int]:
    """All rows of one locale of a release (`chosen` marks those asked for), malformed lines, number of extra files."""
    where = folder.relative_to(root).as_posix()
    rows, malformed = _read_tables(folder, where, buckets, facts, alarms)
    clips = find_clips(folder)
    files = list_clips(clips) if check_files and clips.is_dir() else {}
    if check_files and not files:
        alarms.append(f"{where}: no audio in {where}/clips")
    facts["folders"].append(where)
    release = folder_release(folder)
    if release == BROKEN_GENDER:
        alarms.append(f"{where}: release 6.0 lost every 'male'; its gender is not used. Take release 6.1 or later")
    missing = -1 if check_files else 1
    found = [files.get(name) or (name, missing) for name in rows["name"].to_numpy(dtype=object)]
    prefix = f"{clips.relative_to(root).as_posix()}/"
    rows = rows.assign(
        item=rows["path"].where(rows["path"] != "", f"{where}: a row without path"), release=release,
        file=pd.Series([prefix + path for path, _ in found], dtype="str"), size=[size for _, size in found],
        language=_row_languages(rows, folder),
    )  # fmt: skip
    return rows, malformed, len(files.keys() - set(rows["name"].to_numpy(dtype=object)))


def _read_tables(
    folder: Path, where: str, buckets: list[str], facts: dict, alarms: list[str]
) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Rows of every table of a folder with `name` (of the file), `chosen` and `official_split`; malformed lines."""
    present = [name for name in BUCKETS + SPLIT_FILES if (folder / f"{name}.tsv").is_file()]
    chosen = [name for name in buckets if name in present]
    if not chosen and buckets == ["validated"]:
        chosen = [name for name in present if name in SPLIT_FILES]
        alarms.append(f"{where}: no validated.tsv; its part in {', '.join(chosen)} is read instead")
    if not chosen:
        alarms.append(f"{where}: no {' or '.join(buckets)} table; there are {present}")
    facts["tables"] += [f"{where}/{name}.tsv" for name in chosen]
    tables, malformed, splits = [], [], {}
    for name in present:
        if not (folder / f"{name}.tsv").stat().st_size:
            if name in chosen:
                raise ValueError(f"{folder / name}.tsv: an empty file without a header; unpack the archive again")
            alarms.append(f"{where}/{name}.tsv is an empty file")
            continue
        rows, bad, facts["columns"][f"{where}/{name}.tsv"] = read_table(folder / f"{name}.tsv")
        names = _clip_names(rows["path"])
        if name in SPLIT_FILES:
            splits |= dict.fromkeys(names.to_numpy(dtype=object), SPLITS[name])
        if name in chosen:
            malformed += [(f"{where}/{item}", reason, detail) for item, reason, detail in bad]
        tables.append(rows.assign(name=names, chosen=name in chosen))
    rows = pd.concat(tables, ignore_index=True)
    return rows.assign(official_split=rows["name"].map(splits)), malformed


def _row_languages(rows: pd.DataFrame, folder: Path) -> pd.Series:
    """Locale of every row: its own column, else the clip's file name, else the folder's name, else blank."""
    blank = rows["locale"] == ""
    named = rows.loc[blank, "name"].str.extract(r"^common_voice_([A-Za-z]+(?:-[A-Za-z0-9]+)*)_\d", expand=False)
    return rows["locale"].where(~blank, named.fillna(folder_locale(folder))).astype("str")


def _fill_blanks(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """Add `gender`, `age_years` and `age_decade`; a blank takes the value on which the client's other rows agree.

    Returns the rows, the number of chosen rows filled, and the number of clients whose own rows disagree.
    """
    filled, conflicts, meanings = {}, {}, {}
    speakers = rows["release"] + "/" + rows["client_id"]
    for column, known in (("gender", gender_meanings()), ("age", age_meanings())):
        raw = rows[column].where((rows["release"] != BROKEN_GENDER) | (column == "age"), "")
        words = {value: normalize_label(value) for value in raw.unique()}
        meant = raw.map({value: str(known.get(word) or word) for value, word in words.items()}).astype("str")
        told = pd.DataFrame({"speaker": speakers, "meant": meant, "raw": raw})[
            (meant != "") & (rows["client_id"] != "")
        ]
        told = told.drop_duplicates(["speaker", "meant"])
        several = told["speaker"].duplicated(keep=False)
        agreed = told[~several].set_index("speaker")["raw"]
        blank = meant == ""
        value = raw.where(~blank, speakers[blank].map(agreed)).fillna("").astype("str")
        filled[column] = int((blank & (value != "") & rows["chosen"]).sum())
        conflicts[column] = int(told.loc[several, "speaker"].nunique())
        meanings[column] = value
    rows = rows.rename(columns={"gender": "gender_raw", "age": "age_raw"})
    rows["gender"] = genders_of(meanings["gender"])
    rows[["age_years", "age_decade"]] = ages_of(meanings["age"])
    return rows, filled, conflicts


def _drop_rows(sieve: Sieve, keep_benchmark: bool, cap: int | None, seed: int) -> None:
    """Send to the ledger what cannot or shall not be used, then give the rest their ids."""
    if cap is not None and cap < 1:
        raise ValueError(f"max_clips_per_speaker {cap}: give 1 or more, or null for no cap")
    sieve.drop(sieve.rows["name"] == "", "no path")
    sieve.drop(sieve.rows["client_id"] == "", "no speaker", "client_id is blank")
    if not keep_benchmark:
        words = sieve.rows["segment"].str.casefold() == "benchmark"
        if len(words) and words.all():
            sieve.warn("every row is a single word of the Benchmark segment; keep them with keep_benchmark=True")
        sieve.drop(words, "Benchmark segment", "a single word")
    _name_rows(sieve)
    absent = (sieve.rows["size"] <= 0).astype(int)
    first = sieve.rows["clip_id"].iloc[absent.argsort(kind="stable")].duplicated().sort_index()
    sieve.drop(first, "listed twice", "in another row, bucket or release")
    if cap is not None:  # clips that are there come first, so that absent ones do not use up the cap
        order = pd.util.hash_array(sieve.rows["clip_id"].to_numpy(dtype=object), hash_key=f"{seed % 10**16:016d}")
        ranked = sieve.rows[["speaker_id"]].assign(absent=sieve.rows["size"] <= 0, order=order)
        rank = ranked.sort_values(["absent", "order"], kind="stable").groupby("speaker_id").cumcount().sort_index()
        on_disk = (sieve.rows["size"] >= 0).groupby(sieve.rows["speaker_id"]).transform("sum")
        over = (rank >= cap) & (on_disk >= cap)  # with fewer on disk, what lacks is no matter of the cap
        sieve.drop(over, "over the cap of clips a speaker", f"more than {cap}")
    sieve.drop(sieve.rows["size"] < 0, "no such file", sieve.rows["path"])
    sieve.drop(sieve.rows["size"] == 0, "empty file", sieve.rows["path"])


def _name_rows(sieve: Sieve) -> None:
    """Give rows their ids: the file's name, behind its locale unless it is of the form common_voice_<locale>_<n>."""
    rows = sieve.rows
    stems = rows["name"].str.replace(r"\.\w+$", "", regex=True)
    own = pd.Series(False, index=rows.index)
    for language in rows["language"].unique():
        own |= (rows["language"] == language) & stems.str.startswith(f"common_voice_{language}_")
    ids = f"{CORPUS}:" + stems.where(own, rows["language"] + "/" + stems)
    speakers = f"{CORPUS}:" + rows["client_id"]
    sieve.rows = rows.assign(clip_id=ids, recording_id=ids, speaker_id=speakers, path=rows["file"])
