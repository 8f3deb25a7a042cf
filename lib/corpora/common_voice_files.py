"""Common Voice on disk: finding releases and locales by looking, and reading their tables line by line.

Layouts and headers: github.com/common-voice/cv-dataset (changelog) and common-voice/CorporaCreator, which writes the
tables without any quoting.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

BUCKETS = ["validated", "invalidated", "other"]  # they divide all clips of a release
SPLIT_FILES = ["train", "dev", "test"]  # a part of validated, one clip a sentence; delta releases have none
COLUMNS = ["client_id", "path", "age", "gender", "locale", "segment"]  # what is read, by name, of the 8 to 13 columns
BLOCK_BYTES = 64_000_000
PASSED_OVER = ("clips", ".", "synthetic-")  # folders not searched for tables; rendered corpora never pass for real ones


def find_locales(root: Path, languages: Sequence[str] | None = None) -> list[Path]:
    """Folders at or below `root` (four levels at most) that hold a clip table, the newest release first.

    Raises ValueError, saying what to do, when there is none; folders of other `languages` are passed over.
    """
    root = Path(root)
    advice = "unpack a Common Voice archive there: a folder with validated.tsv and clips/"
    if root.is_file():
        raise ValueError(f"{root}: this is a file; {advice} (lib.corpora.download.extract_common_voice does it)")
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
    folder = Path(folder)
    for part in [*reversed(folder.absolute().parts), *reversed(folder.resolve().parts)]:
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
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_file():
                    found[entry.name] = (f"{below}{entry.name}", entry.stat().st_size)
    return found
