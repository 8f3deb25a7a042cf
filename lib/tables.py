"""The tables that stages hand to one another: pandas frames, checked on every write and read, stored as Parquet.

Rows join on ids, never on position.
"""

from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrors

from lib.paths import save_frame

GENDERS = ["male", "female"]
PARTS = ["train", "validation", "test"]
DECADES = [10, 20, 30, 40, 50, 60, 70, 80, 90]  # years; 10 stands for "teens", 90 for 90 and over


def _schema(checks: pa.Check | None = None, ordered: bool = True, **columns: pa.Column) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, checks=checks, coerce=True, strict=True, ordered=ordered)


def _text(*checks: pa.Check, **options) -> pa.Column:
    return pa.Column(str, list(checks), **options)


def _number(*checks: pa.Check, kind: type | str = float, **options) -> pa.Column:
    return pa.Column(kind, list(checks), **options)


CLIPS = _schema(
    clip_id=_text(unique=True),  # <corpus>:<the corpus's own name of the clip>
    corpus=_text(),
    speaker_id=_text(),  # <corpus>:<speaker>; a split never divides one
    recording_id=_text(),  # a YouTube video, or the clip itself; a split never divides one
    language=_text(),  # BCP 47, "" = not known
    path=_text(),  # relative to the corpus root, with forward slashes
    start_s=_number(pa.Check.ge(0)),
    end_s=_number(nullable=True),  # NaN = to the end of the file
    gender=_text(pa.Check.isin(GENDERS), nullable=True),  # None = the speaker did not say, or said neither
    gender_raw=_text(),  # as the corpus has it, "" = blank
    age_years=_number(pa.Check.in_range(0, 120), nullable=True),
    age_decade=_number(pa.Check.isin(DECADES), kind="Int16", nullable=True),
    age_raw=_text(),
    official_split=_text(pa.Check.isin(PARTS), nullable=True),
    checks=pa.Check(lambda t: t["end_s"].isna() | (t["end_s"] > t["start_s"]), error="end_s must lie after start_s"),
)

LEDGER = _schema(
    corpus=_text(),
    item=_text(),  # the row, file or segment that was dropped, as the corpus names it
    reason=_text(),  # a short fixed kind, e.g. "no such file", "empty file"
    detail=_text(),
)

WINDOWS = _schema(
    window_id=_text(unique=True),  # <clip_id>@<start in milliseconds of the clip>
    clip_id=_text(),
    speaker_id=_text(),
    start_s=_number(pa.Check.ge(0)),  # from the start of the clip
    duration_s=_number(pa.Check.gt(0)),  # shorter than the window where a clip is short
    speech_ratio=_number(pa.Check.in_range(0, 1), nullable=True),
    level_db=_number(nullable=True),  # RMS, dB below full scale
    content_hash=_text(),  # of the decoded 16 kHz samples
    row=_number(pa.Check.ge(0), kind="int64", required=False),  # of windows.npy; none without sound
)

MEASURES = "f0_hz|voiced_share|duration_s|level_db|mfcc_.+"  # columns of `lib.baselines.ACOUSTICS`; none without sound
ACOUSTICS = _schema(
    window_id=_text(unique=True), ordered=False, **{MEASURES: _number(nullable=True, regex=True, required=False)}
)

INDEX = _schema(window_id=_text(unique=True), row=_number(pa.Check.ge(0), kind="int64"))

PREDICTIONS = _schema(
    window_id=_text(),
    clip_id=_text(),
    speaker_id=_text(),
    task=_text(),
    model=_text(),
    protocol=_text(pa.Check.isin(["speaker", "language", "paper"])),
    seed=_number(kind="int64"),
    split=_text(pa.Check.isin(PARTS)),
    target=_number(kind="int64"),  # index into the task's classes
    epoch=_number(kind="int64"),
    fold=_number(pa.Check.ge(0), kind="int64", required=False),  # of a cross-validation; else 0
    **{r"p_.+": _number(pa.Check.in_range(-1e-6, 1 + 1e-6), nullable=True, regex=True)},  # NaN: another task
    ordered=False,
)

SCHEMAS = {"clips": CLIPS, "ledger": LEDGER, "windows": WINDOWS, "acoustics": ACOUSTICS}
SCHEMAS |= {"index": INDEX, "predictions": PREDICTIONS}


def validate_table(table: pd.DataFrame, kind: str, origin: str = "") -> pd.DataFrame:
    """The table with the types of the schema `kind`; ValueError names origin, column, check and first bad value."""
    try:
        return SCHEMAS[kind].validate(table.reset_index(drop=True))
    except (SchemaError, SchemaErrors) as error:
        cases = error.failure_cases
        first = cases.iloc[0].to_dict() if isinstance(cases, pd.DataFrame) and len(cases) else {}
        where = f"{origin}: " if origin else ""
        raise ValueError(f"{where}not a {kind} table: {str(error).splitlines()[0]} {first or ''}".strip()) from error


def save_table(path: Path, table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Validate `table` and write it as Parquet, whole or not at all. Return the validated frame."""
    return save_frame(path, validate_table(table, kind, str(path)))


def load_table(path: Path, kind: str) -> pd.DataFrame:
    """Read a Parquet table and validate it; a missing or broken file is a ValueError that names it."""
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such table; run the notebook that writes it first") from error
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); delete it and run its stage again") from error
    return validate_table(table, kind, str(path))


def empty_table(kind: str) -> pd.DataFrame:
    """An empty frame with the columns and types of the schema named `kind`."""
    columns = [name for name, column in SCHEMAS[kind].columns.items() if not column.regex]
    return validate_table(pd.DataFrame({name: [] for name in columns}), kind)
