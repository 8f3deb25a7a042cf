"""Tables and files: checked on every write and read, written whole or not at all."""

import pandas as pd
import pytest

from lib import paths, tables

CLIP = {
    "clip_id": "c:1", "corpus": "c", "speaker_id": "c:s", "recording_id": "c:1", "language": "en", "path": "a.wav",
    "start_s": 0.0, "end_s": None, "gender": None, "gender_raw": "", "age_years": None, "age_decade": None,
    "age_raw": "", "official_split": None,
}  # fmt: skip


def test_clips_survive_writing_and_reading(tmp_path):
    written = tables.save_table(tmp_path / "clips.parquet", pd.DataFrame([CLIP]), "clips")
    pd.testing.assert_frame_equal(tables.load_table(tmp_path / "clips.parquet", "clips"), written)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"gender": "other"}, "gender"), ({"age_decade": 15}, "age_decade"), ({"start_s": 4.0, "end_s": 3.0}, "end_s"),
     ({"age_years": 300.0}, "age_years"), ({"official_split": "dev"}, "official_split")],
)  # fmt: skip
def test_bad_value_is_refused_and_named(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        tables.save_table(tmp_path / "clips.parquet", pd.DataFrame([CLIP | change]), "clips")
    assert not list(tmp_path.iterdir())


def test_missing_and_unknown_columns_and_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="clip_id"):
        tables.validate_table(pd.DataFrame([CLIP, CLIP]), "clips")
    with pytest.raises(ValueError, match="path"):
        tables.validate_table(pd.DataFrame([CLIP]).drop(columns="path"), "clips")
    with pytest.raises(ValueError, match="accent"):
        tables.validate_table(pd.DataFrame([CLIP | {"accent": "x"}]), "clips")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"clips\.parquet: no such table"):
        tables.load_table(tmp_path / "clips.parquet", "clips")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        paths.load_json(tmp_path / "a.json")
    (tmp_path / "windows.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"windows\.parquet: cannot be read as Parquet"):
        tables.load_table(tmp_path / "windows.parquet", "windows")


@pytest.mark.parametrize("kind", ["clips", "ledger", "windows", "acoustics", "index"])
def test_empty_tables_are_valid(kind, tmp_path):
    tables.save_table(tmp_path / "t.parquet", tables.empty_table(kind), kind)
    assert len(tables.load_table(tmp_path / "t.parquet", kind)) == 0


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    paths.save_json(target, {"good": 1})

    def write_half():
        with paths.write_whole(target) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert paths.load_json(target) == {"good": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    for name in ["old", "new"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    paths.replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new.txt"]
