"""Mozilla Common Voice (Scripted Speech), releases 1 to 25, as the archives unpack.

Layouts, headers and vocabularies: github.com/common-voice/cv-dataset (changelog and per-release statistics) and
common-voice/CorporaCreator, which writes the tables without any quoting.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lib.clips import SPLITS, Sieve
from lib.labels import age_meanings, ages_of, gender_meanings, genders_of, normalize_label

CORPUS = "common_voice"
BUCKETS = ["validated", "invalidated", "other"]  # they divide all clips of a release
SPLIT_FILES = ["train", "dev", "test"]  # a part of validated, one clip a sentence; delta releases have none
COLUMNS = ["client_id", "path", "age", "gender", "locale", "segment"]  # what is read, by name, of the 8 to 13 columns
BLOCK_BYTES = 64_000_000
PASSED_OVER = ("clips", ".", "synthetic-")  # folders not searched for tables; rendered corpora never pass for real ones
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

    `clips.attrs` holds rows_in, folders, filled (blank labels taken from the same client's other, agreeing rows of the
    release), conflicting_speakers, extra_files (on disk but in no table), unknown_labels and warnings.
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
    tables, facts = [], {"folders": [], "extra_files": 0, "columns": {}}
    notes, alarms = [], []
    for folder in find_locales(root, languages):
        rows, malformed, extra = _read_folder(folder, root, buckets, facts, alarms, check_files)
        tables.append(rows)
        notes += malformed
        facts["extra_files"] += extra
    rows, facts["filled"], facts["conflicting_speakers"] = _fill_blanks(pd.concat(tables, ignore_index=True))
    if languages is not None:
        rows = rows[rows["language"].isin(languages)]
    sieve = Sieve(CORPUS, rows[rows["chosen"]])
    sieve.note(notes)
    sieve.facts = facts
    for text in alarms:
        sieve.warn(text)
    return sieve


def find_locales(root: Path, languages: Sequence[str] | None = None) -> list[Path]:
    """Folders at or below `root` (four levels at most) that hold a clip table, the newest release first.

    Raises ValueError, saying what to do, when there is none; folders of other `languages` are passed over.
    """
    root = Path(root)
    advice = "unpack a Common Voice archive there: a folder with validated.tsv and clips/"
    if root.is_file():
        raise ValueError(f"{root}: this is a file; {advice} (lib.download.extract_common_voice does it)")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; {advice}")
    if root.name == "clips" and not _has_table(root):
        raise ValueError(f"{root}: give the folder above, which holds validated.tsv")
    found = list(_walk_locales(root, depth=4))
    if not found:
        raise ValueError(f"{root}: no validated.tsv within four levels; {advice}")
    if languages is not None:
        known = {folder: folder_locale(folder) for folder in found}
        found = [folder for folder in found if known[folder] in ("", *languages)]
        if not found:
            raise ValueError(
                f"{root}: none of the languages {list(languages)}; there are {sorted(set(known.values()))}"
            )
    return sorted(found, key=lambda folder: (-_release_number(folder), str(folder)))


def _has_table(folder: Path) -> bool:
    return any((folder / f"{name}.tsv").is_file() for name in BUCKETS + SPLIT_FILES)


def _walk_locales(folder: Path, depth: int) -> Iterator[Path]:
    if _has_table(folder):
        yield folder
        return
    if depth == 0:
        return
    with os.scandir(folder) as entries:
        below = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(PASSED_OVER))
    for name in below:
        yield from _walk_locales(folder / name, depth - 1)


def folder_release(folder: Path) -> str:
    """Release number that the folder's path names, such as "6.1" or "5-singleword"; "" when it names none."""
    for part in reversed(Path(folder).resolve().parts):
        match = re.match(r"cv-corpus-(\d+(?:\.\d+)?(?:-delta|-singleword)?)", part)
        if match:
            return match[1]
    return ""


def _release_number(folder: Path) -> float:
    match = re.match(r"\d+(\.\d+)?", folder_release(folder))
    return float(match[0]) if match else 0.0


def folder_locale(folder: Path) -> str:
    """Locale that a folder's name tells: "en", "zh-CN", "cv-corpus-4-2019-12-10_en"; "" when it tells none."""
    name = Path(folder).resolve().name
    locale = r"([a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)"
    if not name.startswith("cv-corpus-"):
        match = re.fullmatch(locale, name)
    else:
        kind_and_date = r"cv-corpus-\d[\d.]*(?:-delta|-singleword)?(?:-\d{4}-\d\d-\d\d)?"
        match = re.fullmatch(rf"{kind_and_date}[-_]{locale}", name)
    return match[1] if match else ""


def _check_buckets(bucket: str | Sequence[str]) -> list[str]:
    names = BUCKETS if bucket == "all" else [bucket] if isinstance(bucket, str) else list(bucket)
    unknown = [name for name in names if name not in BUCKETS + SPLIT_FILES]
    if unknown or not names:
        raise ValueError(f"bucket {bucket!r}: choose from {BUCKETS + SPLIT_FILES} or 'all'")
    return names


def read_table(path: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]], int]:
    """Read one clip table: (rows, malformed lines as (item, reason, detail), number of columns in its header).

    Rows end at line feeds only, and nothing is quoted: a sentence may hold quotes, carriage returns and every Unicode
    line separator. `rows` has the text columns of `COLUMNS` (missing ones are blank). A line whose number of columns is
    not the header's is malformed. Raises ValueError when the header lacks client_id or path.
    """
    with open(path, "rb") as stream:
        header = stream.readline().decode("utf-8-sig", errors="replace").strip("\r\n").split("\t")
        names = [name.strip().casefold() for name in header]
        lacking = {"client_id", "path"} - set(names)
        if lacking:
            raise ValueError(f"{path}: no column {' or '.join(sorted(lacking))} in its header {names}; unpack it again")
        parts, malformed, line = [], [], 2
        for block in _blocks(stream):
            block, bad, lines = _split_bad_lines(block, len(names), line, path.name)
            malformed += bad
            line += lines
            parts.append(_parse_block(block, names))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({name: [] for name in COLUMNS}, dtype="str")
    return rows, malformed, len(names)


def _blocks(stream: io.BufferedReader) -> Iterator[bytes]:
    """Blocks of whole lines, each ending in a line feed."""
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        block = rest + block
        cut = block.rfind(b"\n") + 1
        rest = block[cut:]
        if cut:
            yield block[:cut]
    if rest:
        yield rest + b"\n"


def _split_bad_lines(block: bytes, columns: int, line: int, name: str) -> tuple[bytes, list[tuple[str, str, str]], int]:
    """(the block's good lines, its malformed ones, number of lines); blank lines are no rows and simply go."""
    codes = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(codes == ord("\n"))
    tabs = np.diff(np.searchsorted(np.flatnonzero(codes == ord("\t")), ends), prepend=0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    wrong = np.flatnonzero(tabs != columns - 1)
    if not len(wrong):
        return block, [], len(ends)
    bad = []
    for index in wrong:
        text = block[starts[index] : ends[index]].decode("utf-8", errors="replace").strip("\r")
        if text:
            detail = f"{tabs[index] + 1} columns, not {columns}: {text[:80]!r}"
            bad.append((f"{name}:{line + index}", "wrong number of columns", detail))
    keep = np.ones(len(ends), dtype=bool)
    keep[wrong] = False
    mask = np.repeat(keep, ends - starts + 1)
    return codes[mask].tobytes(), bad, len(ends)


def _parse_block(block: bytes, names: list[str]) -> pd.DataFrame:
    present = [name for name in COLUMNS if name in names]
    if not block:
        return pd.DataFrame({name: [] for name in COLUMNS}, dtype="str")
    frame = pd.read_csv(
        io.BytesIO(block), sep="\t", quoting=3, header=None, usecols=[names.index(name) for name in present],
        dtype=str, na_filter=False, lineterminator="\n", encoding="utf-8", encoding_errors="replace",
        skip_blank_lines=False, engine="c",
    )  # fmt: skip
    frame = frame.rename(columns={names.index(name): name for name in present})
    frame = frame.assign(**{name: frame[name].str.strip() for name in present})
    return frame.assign(**{name: "" for name in COLUMNS if name not in present})[COLUMNS].astype("str")


def clip_name(path: str) -> str:
    """File name of a clip from any spelling of `path`: "nl/clips/x.mp3", "x.mp3" and "x" are all "x.mp3"."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name if not name or "." in name else f"{name}.mp3"


def _clip_names(paths: pd.Series) -> pd.Series:
    """`clip_name` of every path; nearly all are plain file names already."""
    plain = paths.str.contains(".", regex=False) & ~paths.str.contains(r"[/\\]", regex=True)
    return paths.where(plain, paths[~plain].map(clip_name)).astype("str")


def find_clips(folder: Path) -> Path:
    """Folder of a table's clips: `clips` beside it, or below a locale's folder beside it (`nl/clips`)."""
    return next(
        (path for path in [folder / "clips", *sorted(folder.glob("*/clips"))] if path.is_dir()), folder / "clips"
    )


def find_audio(root: Path | str) -> Path:
    """The first folder of clips of `find_locales`. ValueError when none of its tables has one."""
    folders = find_locales(root)
    found = next((find_clips(folder) for folder in folders if find_clips(folder).is_dir()), None)
    if found is None:
        raise ValueError(f"{root}: tables but no clips/ beside them; unpack the archive's clips too")
    return found


def list_clips(folder: Path) -> dict[str, tuple[str, int]]:
    """File name -> (path below `folder`, size in bytes) of every file in `folder`, subfolders included."""
    found: dict[str, tuple[str, int]] = {}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_file():
                    found[entry.name] = (f"{below}{entry.name}", entry.stat().st_size)
    return found


def _read_folder(
    folder: Path, root: Path, buckets: list[str], facts: dict, alarms: list[str], check_files: bool
) -> tuple[pd.DataFrame, list[tuple[str, str, str]], int]:
    """All rows of one locale of one release (`chosen` marks those asked for), malformed lines, number of extra files."""
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
    """Rows of every clip table of a folder with `name` (of the file), `chosen` and `official_split`; malformed lines."""
    present = [name for name in BUCKETS + SPLIT_FILES if (folder / f"{name}.tsv").is_file()]
    chosen = [name for name in buckets if name in present]
    if not chosen and buckets == ["validated"]:
        chosen = [name for name in present if name in SPLIT_FILES]
        alarms.append(f"{where}: no validated.tsv; its part in {', '.join(chosen)} is read instead")
    if not chosen:
        raise ValueError(f"{folder}: no {' or '.join(buckets)} table; there are {present}")
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
        sieve.drop(sieve.rows["segment"].str.casefold() == "benchmark", "Benchmark segment", "a single word")
    _name_rows(sieve)
    absent = (sieve.rows["size"] <= 0).astype(int)
    first = sieve.rows["clip_id"].iloc[absent.argsort(kind="stable")].duplicated().sort_index()
    sieve.drop(first, "listed twice", "in another row, bucket or release")
    if cap is not None:  # clips that are there come first, so that absent ones do not use up the cap
        order = pd.util.hash_array(sieve.rows["clip_id"].to_numpy(dtype=object), hash_key=f"{seed % 10**16:016d}")
        ranked = sieve.rows[["speaker_id"]].assign(absent=sieve.rows["size"] <= 0, order=order)
        rank = ranked.sort_values(["absent", "order"], kind="stable").groupby("speaker_id").cumcount().sort_index()
        sieve.drop(rank >= cap, "over the cap of clips a speaker", f"more than {cap}")
    sieve.drop(sieve.rows["size"] < 0, "no such file", sieve.rows["path"])
    sieve.drop(sieve.rows["size"] == 0, "empty file", sieve.rows["path"])


def _name_rows(sieve: Sieve) -> None:
    """Give rows their ids: the file's own name, behind its locale where it is not of the form common_voice_<locale>_<n>."""
    rows = sieve.rows
    stems = rows["name"].str.replace(r"\.\w+$", "", regex=True)
    own = pd.Series(False, index=rows.index)
    for language in rows["language"].unique():
        own |= (rows["language"] == language) & stems.str.startswith(f"common_voice_{language}_")
    ids = f"{CORPUS}:" + stems.where(own, rows["language"] + "/" + stems)
    speakers = f"{CORPUS}:" + rows["client_id"]
    sieve.rows = rows.assign(clip_id=ids, recording_id=ids, speaker_id=speakers, path=rows["file"])
