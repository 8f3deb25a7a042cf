"""The tables that stages hand to one another: checked on every write and read, stored as Parquet, joined on ids alone."""

from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrors

from lib.paths import save_frame

GENDERS = ["male", "female"]
PARTS = ["train", "validation", "test"]
MEASURES = "f0_hz|voiced_share|duration_s|level_db|mfcc_.+"  # columns of `lib.baselines.ACOUSTICS`
DECADES = [10, 20, 30, 40, 50, 60, 70, 80, 90]  # years; 10 stands for "teens", 90 for 90 and over


def _schema(checks: pa.Check | None = None, ordered: bool = True, **columns: pa.Column) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, checks=checks, coerce=True, strict=True, ordered=ordered)


CLIPS = _schema(
    clip_id=pa.Column(str, unique=True),  # <corpus>:<the corpus's own name of the clip>
    corpus=pa.Column(str),
    speaker_id=pa.Column(str),  # <corpus>:<speaker>; a split never divides one
    recording_id=pa.Column(str),  # a YouTube video, or the clip itself; a split never divides one
    language=pa.Column(str),  # BCP 47, "" = not known
    path=pa.Column(str),  # relative to the corpus root, with forward slashes
    start_s=pa.Column(float, pa.Check.ge(0)),
    end_s=pa.Column(float, nullable=True),  # NaN = to the end of the file
    gender=pa.Column(str, pa.Check.isin(GENDERS), nullable=True),  # None = the speaker did not say, or said neither
    gender_raw=pa.Column(str),  # as the corpus has it, "" = blank
    age_years=pa.Column(float, pa.Check.in_range(0, 120), nullable=True),
    age_decade=pa.Column("Int16", pa.Check.isin(DECADES), nullable=True),
    age_raw=pa.Column(str),
    official_split=pa.Column(str, pa.Check.isin(PARTS), nullable=True),
    checks=pa.Check(lambda t: t["end_s"].isna() | (t["end_s"] > t["start_s"]), error="end_s must lie after start_s"),
)

LEDGER = _schema(
    corpus=pa.Column(str),
    item=pa.Column(str),  # the row, file or segment that was dropped, as the corpus names it
    reason=pa.Column(str),  # a short fixed kind, e.g. "no such file", "empty file"
    detail=pa.Column(str),
)

WINDOWS = _schema(
    window_id=pa.Column(str, unique=True),  # <clip_id>@<start in milliseconds of the clip>
    clip_id=pa.Column(str),
    speaker_id=pa.Column(str),
    start_s=pa.Column(float, pa.Check.ge(0)),  # from the start of the clip
    duration_s=pa.Column(float, pa.Check.gt(0)),  # shorter than the window where a clip is short
    speech_ratio=pa.Column(float, pa.Check.in_range(0, 1), nullable=True),
    level_db=pa.Column(float, nullable=True),  # RMS, dB below full scale
    content_hash=pa.Column(str),  # of the decoded 16 kHz samples
    row=pa.Column("int64", pa.Check.ge(0), required=False),  # of windows.npy; none without sound
)

SCHEMAS = {
    "clips": CLIPS,
    "ledger": LEDGER,
    "windows": WINDOWS,
    "index": _schema(window_id=pa.Column(str, unique=True), row=pa.Column("int64", pa.Check.ge(0))),
    "acoustics": _schema(  # none of the measures without sound
        window_id=pa.Column(str, unique=True),
        **{MEASURES: pa.Column(float, nullable=True, regex=True, required=False)},
        ordered=False,
    ),
    "predictions": _schema(  # p_<class> is NaN for a class of another task
        **dict.fromkeys(["window_id", "clip_id", "speaker_id", "task", "model"], pa.Column(str)),
        protocol=pa.Column(str, pa.Check.isin(["speaker", "language", "paper"])),
        split=pa.Column(str, pa.Check.isin(PARTS)),
        **dict.fromkeys(["seed", "epoch", "target"], pa.Column("int64")),  # target: index into the task's classes
        fold=pa.Column("int64", pa.Check.ge(0), required=False),  # of a cross-validation; else 0
        **{"p_.+": pa.Column(float, pa.Check.in_range(-1e-6, 1 + 1e-6), nullable=True, regex=True)},
        ordered=False,
    ),
}


def validate_table(table: pd.DataFrame, kind: str, origin: str = "memory") -> pd.DataFrame:
    """The table with the types of the schema `kind`; ValueError names origin, column, check and first bad value."""
    try:
        return SCHEMAS[kind].validate(table.reset_index(drop=True))
    except (SchemaError, SchemaErrors) as error:
        raise ValueError(f"{origin}: not a {kind} table: {' '.join(str(error).split())[:500]}") from error


def save_table(path: Path, table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Validate `table` and write it as Parquet, whole or not at all. Return the validated frame."""
    return save_frame(path, validate_table(table, kind, str(path)))


def load_table(path: Path, kind: str) -> pd.DataFrame:
    """Read a Parquet table and validate it; a missing or broken file is a ValueError that names it."""
    if not Path(path).exists():
        raise ValueError(f"{path}: no such table; run the notebook that writes it first")
    try:
        table = pd.read_parquet(path)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); delete it and run its stage again") from error
    return validate_table(table, kind, str(path))


def empty_table(kind: str) -> pd.DataFrame:
    """An empty frame with the columns and types of the schema named `kind`."""
    columns = [name for name, column in SCHEMAS[kind].columns.items() if not column.regex]
    return validate_table(pd.DataFrame({name: [] for name in columns}), kind)
