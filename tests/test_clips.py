"""Nothing a reader drops goes missing."""

import pandas as pd
import pytest

from lib.corpora.sieve import Sieve


def rows(count=4) -> pd.DataFrame:
    names = [f"x:{n}" for n in range(count)]
    return pd.DataFrame(
        {"item": names, "clip_id": names, "speaker_id": names, "recording_id": names, "path": names}
    ).assign(gender_raw=["male", "f", "other", ""][:count], age_raw=["teens", "30", "", "old"][:count])


def test_dropped_rows_and_noted_items_add_up_with_reason_and_detail():
    sieve = Sieve("x", rows())
    sieve.drop([True, False, False, False], "first", "because")
    sieve.drop(pd.Series([False, True, False]), "second", pd.Series(["a", "b", "c"]))
    sieve.drop([False, False], "never")
    sieve.note([("line 9", "third", "broken")])
    clips, ledger = sieve.finish()
    assert clips["clip_id"].tolist() == ["x:1", "x:3"]
    assert ledger.to_numpy().tolist() == [
        ["x", "x:0", "first", "because"], ["x", "x:2", "second", "b"], ["x", "line 9", "third", "broken"],
    ]  # fmt: skip
    assert clips.attrs["rows_in"] == 5


def test_labels_are_read_from_the_raw_columns_and_unknown_words_counted():
    clips, ledger = Sieve("x", rows()).finish()
    assert clips["gender"].fillna("-").tolist() == ["male", "female", "-", "-"]
    assert clips["age_decade"].fillna(0).tolist() == [10, 0, 0, 0]
    assert clips["age_years"].fillna(0).tolist() == [0, 30, 0, 0]
    assert clips.attrs["unknown_labels"] == {"gender": {}, "age": {"old": 1}}
    assert len(ledger) == 0


def test_a_row_that_vanished_without_a_reason_is_an_error():
    sieve = Sieve("x", rows())
    sieve.rows = sieve.rows.iloc[:-1]
    with pytest.raises(RuntimeError, match="4 rows in, but 3 clips and 0 dropped"):
        sieve.finish()
