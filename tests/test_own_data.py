"""A CSV of one's own is a corpus too."""

import pytest

from lib.corpora.own_data import read_own_data
from lib.tables import validate_table


def make(folder, text: str, files=("a.wav", "b.wav", "sub/c.flac")):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"RIFF")
    (folder / "own_data.csv").write_bytes(text.encode())
    return folder


def check_sum(clips, ledger, rows_in):
    validate_table(clips, "clips")
    validate_table(ledger, "ledger")
    assert len(clips) + len(ledger) == clips.attrs["rows_in"] == rows_in


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_full_table_is_read_with_any_separator(tmp_path, separator, end):
    lines = [
        "path,speaker,gender,age,language,split",
        "a.wav,anna,female,34,en,train",
        "sub/c.flac,bela,M,fifties,hu,dev",
    ]
    clips, ledger = read_own_data(make(tmp_path, "\ufeff" + end.join(line.replace(",", separator) for line in lines)))
    check_sum(clips, ledger, 2)
    assert clips["clip_id"].tolist() == ["own_data:a.wav", "own_data:sub/c.flac"]
    assert clips["speaker_id"].tolist() == ["own_data:anna", "own_data:bela"]
    assert clips["gender"].tolist() == ["female", "male"]
    assert clips["age_years"].fillna(0).tolist() == [34, 0]
    assert clips["age_decade"].fillna(0).tolist() == [0, 50]
    assert clips["official_split"].tolist() == ["train", "validation"]


def test_path_alone_is_enough_and_each_file_is_its_own_speaker(tmp_path):
    with pytest.warns(UserWarning, match="without a speaker: 2"):
        clips, ledger = read_own_data(make(tmp_path, "path\na.wav\nb.wav\n") / "own_data.csv")
    check_sum(clips, ledger, 2)
    assert clips["speaker_id"].nunique() == 2
    assert clips.attrs["files_without_speaker"] == 2
    assert clips["gender"].isna().all()


def test_lost_and_odd_rows_are_named(tmp_path):
    text = 'path,speaker,gender\na.wav,x,robot\nno.wav,x,f\n,x,f\n"b.wav",x\na.wav,x,f\nzero.wav,x,f\n\n'
    folder = make(tmp_path, text)
    (folder / "zero.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match="robot"):
        clips, ledger = read_own_data(folder)
    check_sum(clips, ledger, 6)
    assert sorted(ledger["reason"]) == [
        "empty file",
        "listed twice",
        "no path",
        "no such file",
        "wrong number of columns",
    ]
    assert clips.attrs["unknown_labels"]["gender"] == {"robot": 1}
    assert clips["gender_raw"].tolist() == ["robot"]


def test_stretches_of_one_file_are_clips_of_one_recording(tmp_path):
    text = "path,speaker,start_s,end_s\na.wav,x,0,2.5\na.wav,x,2.5,\na.wav,x,5,4\na.wav,x,soon,\n"
    clips, ledger = read_own_data(make(tmp_path, text))
    check_sum(clips, ledger, 4)
    assert clips["clip_id"].tolist() == ["own_data:a.wav@0", "own_data:a.wav@2500"]
    assert clips["recording_id"].nunique() == 1
    assert ledger["reason"].tolist() == ["no stretch of time"] * 2


def test_absolute_paths_become_relative(tmp_path):
    clips, _ = read_own_data(make(tmp_path, f"path,speaker\n{tmp_path}/a.wav,x\nsub\\c.flac,y\n"))
    assert clips["path"].tolist() == ["a.wav", "sub/c.flac"]


def test_folders_without_a_clear_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"write own_data\.csv"):
        read_own_data(tmp_path)
    (tmp_path / "own_data.csv").write_bytes("path\nZoë.wav".encode("latin-1"))
    with pytest.raises(ValueError, match="CSV UTF-8"):
        read_own_data(tmp_path)
    (tmp_path / "own_data.csv").write_text("file name,who\n")
    with pytest.raises(ValueError, match="needs a column 'path'"):
        read_own_data(tmp_path)
