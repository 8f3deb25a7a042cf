"""Age labels for VoxCeleb: published tables and hand-made ones."""

import os
from pathlib import Path

import pandas as pd
import pytest

from lib.corpora.age_tables import join_ages, read_age_labels


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def pairs(labels: pd.DataFrame) -> list[tuple]:
    return [(r.speaker, r.video, r.age_years) for r in labels.itertuples()]


def test_extended_table_with_multi_line_cells_is_read_by_speaker_and_video(tmp_path):
    text = (
        "Name,gender_wiki,video_id,title,description,VoxCeleb_ID,gender,birth_year,recording_year,speaker_age,speaker_age_title_only\n"
        'A B,male,vid1,"An, interview","line one\nline ""two""\n\nid1,fake,row\u2028x",id10001,m,1970.0,2012.0,42.0,\n'
        "C D,female,vid2,t,,id10002,f,,,,\n"
        'E F,female,vid3,t,"unquoted\r\nend",id10002,f,1990.0,2012.0,nan,nan\n'
        "G H,female,vid4,t,,id10003,f,2012.0,2012.0,0.0,\n"
        "I J,female,vid5,t,,id10003,f,1890.0,2012.0,122.0,\n"
    )
    labels = read_age_labels(write(tmp_path / "final_dataframe_extended.csv", text))
    assert pairs(labels) == [("id10001", "vid1", 42.0)]
    assert labels.attrs["rows_in"] == 5
    assert labels.attrs["rows_without_age"] == 4
    assert labels.attrs["unknown"] == {"0.0": 1, "122.0": 1}


def test_split_lists_are_read_with_years(tmp_path):
    text = "speaker_age,birth_year,Name,VoxCeleb_ID,video_id\n44.0,1969.0,David,id02022,Ahk1sThoa0c\n20.0,1,Ié,id03530,-_V\n"
    labels = read_age_labels(write(tmp_path / "age-train.txt", text))
    assert pairs(labels) == [("id02022", "Ahk1sThoa0c", 44.0), ("id03530", "-_V", 20.0)]
    assert labels["age_decade"].isna().all()


def test_agevoxceleb_lists_are_read_by_utterance(tmp_path):
    labels = read_age_labels(write(tmp_path / "utt2age.test", "id00042/34f5sBShxSo/00001 70\nid00043/x/00002 5\n"))
    assert labels["utterance"].tolist() == ["id00042/34f5sBShxSo/00001", "id00043/x/00002"]
    assert labels["age_years"].tolist() == [70, 5]


@pytest.mark.parametrize(
    ("text", "unit", "years", "decades"),
    [
        ("id,age\nid1,34\nid2,20\n", "years", [34, 20], [0, 0]),
        ("id,age\nid1,30\nid2,20\n", "decade", [0, 0], [30, 20]),
        ("VoxCeleb1 ID\tage\nid1\tteens\nid2\tFourties\n", "years", [0, 0], [10, 40]),
        ("id1,20\nid2,34\n", "years", [20, 34], [0, 0]),
        ("id1,teens\nid2,30s\n", "years", [0, 0], [10, 30]),
        ("speaker;decade\nid1;90\nvoxceleb:id2;10\n", "decade", [0, 0], [90, 10]),
        ("\ufeffspeaker_id,age_years\r\nid1,30\r\nid2,40\r\n", "years", [30, 40], [0, 0]),
    ],
)
def test_hand_tables_give_years_or_decades(tmp_path, text, unit, years, decades):
    labels = read_age_labels(write(tmp_path / "hand.csv", text))
    assert labels.attrs["unit"] == unit
    assert labels["speaker"].tolist() == ["id1", "id2"]
    assert labels["age_years"].fillna(0).tolist() == years
    assert labels["age_decade"].fillna(0).tolist() == decades


def test_the_unit_can_be_said(tmp_path):
    labels = read_age_labels(write(tmp_path / "hand.csv", "id,age\nid1,30\n"), unit="years")
    assert labels["age_years"].tolist() == [30]


def test_tables_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such age table"):
        read_age_labels(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="needs a column for the speaker"):
        read_age_labels(write(tmp_path / "bad.csv", "name,age\nx,3\n"))
    with pytest.raises(ValueError, match="unit"):
        read_age_labels(write(tmp_path / "bad.csv", "id,age\nx,3\n"), unit="months")


def test_the_most_exact_label_wins_and_disagreement_gives_none(tmp_path):
    by_speaker = read_age_labels(write(tmp_path / "a.csv", "id,age\nid1,33\nid2,44\n"))
    by_video = read_age_labels(write(tmp_path / "b.csv", "id,video,age\nid1,v1,25\nid2,v1,30\nid2,v1,31\nid3,v1,50\n"))
    by_utterance = read_age_labels(write(tmp_path / "utt2age.train", "id1/v1/00002 26\n"))
    rows = pd.DataFrame(
        {"speaker": ["id1", "id1", "id1", "id2", "id3", "id4"], "video": ["v1", "v1", "v2", "v1", "v2", "v1"]}
    ).assign(
        item=lambda t: t["speaker"] + "/" + t["video"] + "/" + ["00001", "00002", "00003", "00004", "00005", "00006"]
    )
    ages, disagreeing = join_ages(rows, [by_speaker, by_video, by_utterance])
    assert ages["age_years"].fillna(0).tolist() == [25, 26, 33, 44, 0, 0]
    assert ages["age_raw"].tolist() == ["25", "26", "33", "44", "", ""]
    assert disagreeing == {"utterance": 0, "video": 1, "speaker": 0}


def test_no_tables_give_no_ages():
    rows = pd.DataFrame({"speaker": ["id1"], "video": ["v"], "item": ["id1/v/1"]})
    ages, disagreeing = join_ages(rows, [])
    assert ages["age_years"].isna().all()
    assert disagreeing == {}


@pytest.mark.corpora
def test_real_age_list_is_read_whole():
    root = Path(os.environ.get("CORPORA") or pytest.skip("set CORPORA to the folder of real samples")) / "voxceleb"
    labels = read_age_labels(root / "age-train.txt")
    assert len(labels) == labels["speaker"].nunique() == 1690
    assert labels["age_years"].between(12, 90).all()
