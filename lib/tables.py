"""The tables that stages hand to one another: clips, ledger, windows, index, predictions.

Every table is a pandas frame, checked against its schema on every write and every read, and stored as Parquet.
Rows join on ids, never on position.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrors

from lib.paths import write_whole

GENDERS = ["male", "female"]
DECADES = [10, 20, 30, 40, 50, 60, 70, 80, 90]  # years; 10 stands for "teens", 90 for 90 and over


def _text(nullable: bool = False, **options) -> pa.Column:
    return pa.Column(str, nullable=nullable, coerce=True, **options)


CLIPS = pa.DataFrameSchema(
    {
        "clip_id": _text(unique=True),  # <corpus>:<the corpus's own name of the clip>
        "corpus": _text(),
        "speaker_id": _text(),  # <corpus>:<speaker>; a split never divides one
        "recording_id": _text(),  # a YouTube video, or the clip itself; a split never divides one
        "language": _text(),  # BCP 47, "" = not known
        "path": _text(),  # relative to the corpus root, with forward slashes
        "start_s": pa.Column(float, pa.Check.ge(0), coerce=True),
        "end_s": pa.Column(float, nullable=True, coerce=True),  # NaN = to the end of the file
        "gender": _text(
            nullable=True, checks=pa.Check.isin(GENDERS)
        ),  # None = the speaker did not say, or said neither
        "gender_raw": _text(),  # as the corpus has it, "" = blank
        "age_years": pa.Column(float, pa.Check.in_range(0, 120), nullable=True, coerce=True),
        "age_decade": pa.Column("Int16", pa.Check.isin(DECADES), nullable=True, coerce=True),
        "age_raw": _text(),
        "official_split": _text(nullable=True, checks=pa.Check.isin(["train", "validation", "test"])),
    },
    checks=pa.Check(lambda t: t["end_s"].isna() | (t["end_s"] > t["start_s"]), error="end_s must lie after start_s"),
    strict=True,
    ordered=True,
)

LEDGER = pa.DataFrameSchema(
    {
        "corpus": _text(),
        "item": _text(),  # the row, file or segment that was dropped, as the corpus names it
        "reason": _text(),  # a short fixed kind, e.g. "no such file", "empty file"
        "detail": _text(),
    },
    strict=True,
    ordered=True,
)

WINDOWS = pa.DataFrameSchema(
    {
        "window_id": _text(unique=True),  # <clip_id>@<start in milliseconds of the clip>
        "clip_id": _text(),
        "speaker_id": _text(),
        "start_s": pa.Column(float, pa.Check.ge(0), coerce=True),  # from the start of the clip
        "duration_s": pa.Column(float, pa.Check.gt(0), coerce=True),  # shorter than the window where a clip is short
        "speech_ratio": pa.Column(float, pa.Check.in_range(0, 1), nullable=True, coerce=True),
        "level_db": pa.Column(float, nullable=True, coerce=True),  # RMS, dB below full scale
        "content_hash": _text(),  # of the decoded 16 kHz samples
        "row": pa.Column("int64", pa.Check.ge(0), coerce=True, required=False),  # of windows.npy; none without sound
    },
    strict=True,
    ordered=True,
)

ACOUSTICS = pa.DataFrameSchema(  # columns of `lib.baselines.ACOUSTICS`, of each window
    {
        "window_id": _text(unique=True),
        "f0_hz|voiced_share|duration_s|level_db|mfcc_.+": pa.Column(
            float, nullable=True, regex=True, coerce=True, required=False
        ),  # without sound there are none
    },
    strict=True,
)

INDEX = pa.DataFrameSchema(
    {
        "window_id": _text(unique=True),
        "row": pa.Column("int64", pa.Check.ge(0), coerce=True),
    },
    strict=True,
    ordered=True,
)

PREDICTIONS = pa.DataFrameSchema(
    {
        "window_id": _text(),
        "clip_id": _text(),
        "speaker_id": _text(),
        "task": _text(),
        "model": _text(),
        "protocol": _text(checks=pa.Check.isin(["speaker", "language", "paper"])),
        "seed": pa.Column("int64", coerce=True),
        "split": _text(checks=pa.Check.isin(["train", "validation", "test"])),
        "target": pa.Column("int64", coerce=True),  # index into the task's classes
        "epoch": pa.Column("int64", coerce=True),
        "fold": pa.Column("int64", pa.Check.ge(0), coerce=True, required=False),  # of a cross-validation; else 0
        r"p_.+": pa.Column(
            float, pa.Check.in_range(-1e-6, 1 + 1e-6), nullable=True, regex=True, coerce=True
        ),  # NaN: another task
    },
    strict=True,
)

SCHEMAS = {
    "clips": CLIPS,
    "ledger": LEDGER,
    "windows": WINDOWS,
    "acoustics": ACOUSTICS,
    "index": INDEX,
    "predictions": PREDICTIONS,
}


def validate_table(table: pd.DataFrame, kind: str, origin: str = "") -> pd.DataFrame:
    """Check `table` against the schema named `kind` and return it with the schema's types.

    Raises ValueError naming the origin, the column, the check and the first offending value.
    """
    schema = SCHEMAS[kind]
    try:
        return schema.validate(table.reset_index(drop=True), lazy=False)
    except (SchemaError, SchemaErrors) as error:
        cases = getattr(error, "failure_cases", None)
        first = cases.iloc[0].to_dict() if isinstance(cases, pd.DataFrame) and len(cases) else {}
        where = f"{origin}: " if origin else ""
        raise ValueError(f"{where}not a {kind} table: {str(error).splitlines()[0]} {first or ''}".strip()) from error


def save_table(path: Path, table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Validate `table` and write it as Parquet, whole or not at all. Return the validated frame."""
    table = validate_table(table, kind, str(path))
    with write_whole(Path(path)) as partial:
        table.to_parquet(partial, index=False)
    return table


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
