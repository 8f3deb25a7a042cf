"""From a corpus' rows to clips and ledger: whatever a reader drops is named, reasoned and counted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from lib.corpora.labels import ages_of, genders_of, unknown_labels
from lib.tables import CLIPS, validate_table

DEFAULTS = {
    "language": "", "start_s": 0.0, "end_s": np.nan, "gender": None, "gender_raw": "", "age_years": np.nan,
    "age_decade": None, "age_raw": "", "official_split": None,
}  # fmt: skip
SPLITS = {"train": "train", "dev": "validation", "validation": "validation", "valid": "validation", "test": "test"}


class Sieve:
    """Rows of one corpus on their way to clips. `rows` needs a text column `item`, the row's name in the corpus."""

    def __init__(self, corpus: str, rows: pd.DataFrame):
        self.corpus = corpus
        self.rows = rows.reset_index(drop=True)
        self.rows_in = len(rows)
        self.dropped: list[pd.DataFrame] = []
        self.warnings: list[str] = []
        self.facts: dict[str, Any] = {}

    def drop(self, mask: pd.Series | np.ndarray, reason: str, detail: str | pd.Series = "") -> None:
        """Move the rows where `mask` is true to the ledger; `detail` is one text or one a row."""
        mask = np.asarray(mask, dtype=bool)
        if not mask.any():
            return
        lost = pd.DataFrame({"corpus": self.corpus, "item": self.rows.loc[mask, "item"], "reason": reason})
        lost["detail"] = detail[mask] if isinstance(detail, pd.Series) else detail
        self.dropped.append(lost)
        self.rows = self.rows[~mask].reset_index(drop=True)

    def note(self, items: list[tuple[str, str, str]]) -> None:
        """Add (item, reason, detail) of input that never became a row; it counts as rows in."""
        if items:
            lost = pd.DataFrame(items, columns=["item", "reason", "detail"])
            self.dropped.append(lost.assign(corpus=self.corpus)[["corpus", "item", "reason", "detail"]])
            self.rows_in += len(items)

    def warn(self, text: str) -> None:
        """Warn now, and keep the sentence in `clips.attrs["warnings"]`."""
        warnings.warn(f"{self.corpus}: {text}", stacklevel=3)
        self.warnings.append(text)

    def finish(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Validated clips and ledger; `clips.attrs` holds rows_in, warnings, unknown labels and the reader's facts.

        Genders and ages are read from the raw columns unless the reader gave its own.
        """
        rows = self.rows.assign(corpus=self.corpus)
        if "gender" not in rows and "gender_raw" in rows:
            rows["gender"] = genders_of(rows["gender_raw"])
        if "age_years" not in rows and "age_raw" in rows:
            rows[["age_years", "age_decade"]] = ages_of(rows["age_raw"])
        for column, value in DEFAULTS.items():
            if column not in rows:
                rows[column] = value
        clips = validate_table(rows[list(CLIPS.columns)], "clips", self.corpus)
        columns = ["corpus", "item", "reason", "detail"]
        ledger = pd.concat([pd.DataFrame({c: [] for c in columns}, dtype="str"), *self.dropped], ignore_index=True)
        ledger = validate_table(ledger, "ledger", self.corpus)
        if self.rows_in != len(clips) + len(ledger):
            raise RuntimeError(
                f"{self.corpus}: {self.rows_in} rows in, but {len(clips)} clips and {len(ledger)} dropped"
            )
        unknown = {kind: unknown_labels(clips[f"{kind}_raw"], kind) for kind in ("gender", "age")}
        clips.attrs = {"rows_in": self.rows_in, "warnings": self.warnings, "unknown_labels": unknown, **self.facts}
        return clips, ledger
