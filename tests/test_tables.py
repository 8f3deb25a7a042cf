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


def test_repeated_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match="clip_id"):
        tables.save_table(tmp_path / "clips.parquet", pd.DataFrame([CLIP, CLIP]), "clips")


def test_missing_and_unknown_columns_are_refused():
    with pytest.raises(ValueError, match="path"):
        tables.validate_table(pd.DataFrame([CLIP]).drop(columns="path"), "clips")
    with pytest.raises(ValueError, match="accent"):
        tables.validate_table(pd.DataFrame([CLIP | {"accent": "x"}]), "clips")


def test_broken_parquet_names_the_file(tmp_path):
    (tmp_path / "windows.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"windows\.parquet: cannot be read as Parquet"):
        tables.load_table(tmp_path / "windows.parquet", "windows")


def test_missing_table_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="no such table"):
        tables.load_table(tmp_path / "clips.parquet", "clips")


def test_probabilities_and_measures_have_columns_by_pattern():
    row = {"window_id": "w", "clip_id": "c", "speaker_id": "s", "task": "gender", "model": "m", "protocol": "paper",
           "seed": 0, "split": "test", "target": 1, "epoch": 2, "p_male": 0.25, "p_teen": None}  # fmt: skip
    assert tables.validate_table(pd.DataFrame([row]), "predictions")["p_teen"].isna().all()
    for change, told in [({"p_male": 1.5}, "p_male"), ({"split": "dev"}, "split"), ({"protocol": "x"}, "protocol")]:
        with pytest.raises(ValueError, match=told):
            tables.validate_table(pd.DataFrame([row | change]), "predictions", "here")
    with pytest.raises(ValueError, match=r"here: not a acoustics table.*loudness"):
        tables.validate_table(pd.DataFrame([{"window_id": "w", "f0_hz": 120, "loudness": 3}]), "acoustics", "here")


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


def test_json_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        paths.save_json(tmp_path / "a.json", {"value": float("nan")})


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        paths.load_json(tmp_path / "a.json")


def test_folder_is_replaced_as_a_whole(tmp_path):
    for name in ["old", "new"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    paths.replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new.txt"]
