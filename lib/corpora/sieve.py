"""From a corpus' rows to clips and ledger: whatever a reader drops is named, reasoned and counted."""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.corpora.labels import ALLOWED, ages_of, genders_of, unknown_labels
from lib.paths import printable
from lib.tables import CLIPS, empty_table, validate_table

SYNTHETIC = "synthetic-"  # folders of rendered corpora, never taken for real ones below a folder of the user's
AUDIO_SUFFIXES = [  # of two files of one name the first is read
    ".wav", ".flac", ".m4a", ".ogg", ".opus", ".mp3", ".aac", ".mp4", ".webm", ".mka", ".mkv", ".oga", ".aiff", ".aif",
    ".au", ".caf", ".w64", ".sph", ".amr", ".wma", ".3gp",
]  # fmt: skip
ENDINGS = re.compile(rf"(?:{'|'.join(map(re.escape, AUDIO_SUFFIXES))})+$", re.IGNORECASE)
DEFAULTS = dict(language="", start_s=0.0, end_s=np.nan, gender_raw="", age_raw="", official_split=None)


def walk_files(
    root: Path, hidden: tuple[str, ...] = (".", SYNTHETIC), onerror: Callable[[OSError], Any] | None = None
) -> Iterator[Path]:
    """Every file below `root`, sorted, through links but in no circle; not what is hidden or in folders `hidden`."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=onerror):
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if not name.startswith(hidden))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def audio_stem(path: str) -> str:
    """What a file is called without folders and audio suffixes: "a/x.mp3", "x.m4a.wav" and "x" are all "x"."""
    return ENDINGS.sub("", path.replace("\\", "/").rsplit("/", 1)[-1])


def find_spelling(folder: Path, name: str, root: Path) -> str:
    """`folder`/`name` from `root` on as spelled on disk: Windows' slashes, NFC or NFD, the suffix in either case."""
    plain = name.replace("\\", "/")
    forms = [plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)]
    parts = map(os.path.splitext, forms)
    cases = [stem + cased for stem, suffix in parts for cased in (suffix.lower(), suffix.upper())]
    there = next((spelling for spelling in [name, *forms, *cases] if os.path.exists(folder / spelling)), plain)
    return Path(os.path.relpath(folder / there, root)).as_posix()


def file_fault(path: Path | str) -> str:
    """Why a file cannot hold sound, as a reason of the ledger; "" when it may. Links are followed."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return "a folder, not a file" if stat.S_ISDIR(state.st_mode) else "no plain file"
        if state.st_size < 200 and Path(path).read_bytes().startswith(b"version https://git-lfs"):
            return "Git LFS pointer (run: git lfs pull)"
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError):  # too long a name, a link to itself, no permission, a zero byte in the name
        return "cannot be read"
    return "" if state.st_size else "empty file"


Reading = tuple[pd.DataFrame, pd.DataFrame]  # what a reader gives: clips and ledger


class Sieve:
    """Rows of one corpus on their way to clips. `rows` needs a text column `item`, the row's name in the corpus.
    `facts` are what the reader noticed, in words -> a count, names, or counts by name; `warnings` are sentences."""

    def __init__(self, corpus: str, rows: pd.DataFrame):
        self.corpus, self.rows, self.rows_in = corpus, rows.reset_index(drop=True), len(rows)
        self.dropped = [empty_table("ledger")]
        self.warnings: list[str] = []
        self.facts: dict[str, Any] = {}

    def drop(self, mask: pd.Series | np.ndarray, reason: str | pd.Series, detail: str | pd.Series = "") -> None:
        """Move the rows where `mask` is true to the ledger; reason and detail are one text or one a row."""
        mask = np.asarray(mask, dtype=bool)
        lost = self.rows[["item"]].assign(corpus=self.corpus, reason=reason, detail=detail)
        self.dropped.append(lost.loc[mask, ["corpus", "item", "reason", "detail"]])
        self.rows = self.rows[~mask].reset_index(drop=True)

    def drop_faults(self, folder: Path) -> None:
        """Move the rows to the ledger whose `path`, below `folder`, cannot hold sound."""
        faults = {path: file_fault(folder / path) for path in self.rows["path"].unique()}
        reasons = self.rows["path"].map(faults).astype("str")
        self.drop(reasons != "", reasons, self.rows["path"])

    def note(self, items: list[tuple[str, str, str]]) -> None:
        """Add (item, reason, detail) of input that never became a row; it counts as rows in."""
        rows = [[self.corpus, *map(printable, item)] for item in items]
        self.dropped.append(pd.DataFrame(rows, columns=["corpus", "item", "reason", "detail"], dtype="str"))
        self.rows_in += len(items)

    def finish(self) -> Reading:
        """Validated clips (attrs: rows_in, warnings, facts) and ledger; labels come from raw columns unless given."""
        rows = self.rows.assign(**{name: value for name, value in DEFAULTS.items() if name not in self.rows})
        if "gender" not in rows:
            rows["gender"] = genders_of(rows["gender_raw"])
        if "age_years" not in rows:
            rows[["age_years", "age_decade"]] = ages_of(rows["age_raw"])
        clips = validate_table(rows.assign(corpus=self.corpus)[list(CLIPS.columns)], "clips", self.corpus)
        ledger = validate_table(pd.concat(self.dropped, ignore_index=True), "ledger", self.corpus)
        if self.rows_in != len(clips) + len(ledger):
            raise RuntimeError(f"{self.corpus}: {self.rows_in} rows in, {len(clips)} clips, {len(ledger)} dropped")
        for kind in ("gender", "age"):
            if unknown := unknown_labels(clips[f"{kind}_raw"], kind):
                self.warnings.append(f"{kind} values that give no label: {unknown}; write {ALLOWED[kind]}")
        clips.attrs = {"rows_in": self.rows_in, "warnings": self.warnings, "facts": self.facts}
        return clips, ledger
