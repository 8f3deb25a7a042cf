"""VoxCeleb as it ships: meta files, frame files, cuts, whole videos."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lib.corpora.voxceleb import compare_cuts, find_utterance, read_voxceleb
from lib.corpora.voxceleb_files import Segment, read_frame_file, read_voxceleb_meta
from lib.tables import validate_table

VIDEO, OTHER = "5r0dWxy17C8", "-J_dWxy17_0"
RATE = 16_000


def frame_text(speaker="id10270", video=VIDEO, first=50, last=150, end="\n", extra="") -> str:
    head = [f"Identity  : \t{speaker}", f"Reference : \t{video}", "Offset    : \t-2", f"FV Conf   : \t22.978{extra}",
            "ASD Conf  : \t7.056", "", "FRAME \tX \tY \tW \tH "]  # fmt: skip
    return end.join([*head, *(f"{n:06d} \t154 \t105 \t91 \t91 " for n in range(first, last + 1)), ""])


def write_frames(root: Path, number=1, speaker="id10270", video=VIDEO, text=None, **values) -> Path:
    path = root / "txt" / speaker / video / f"{number:05d}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((text if text is not None else frame_text(speaker, video, **values)).encode())
    return path


def write_audio(path: Path, samples: int = RATE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype("float32")
    soundfile.write(path, waveform, RATE)
    return soundfile.read(path, dtype="float32")[0]


def write_meta(root: Path, name="vox1_meta.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = [
        ("id10270", "Someone", "f", "UK", "test"),
        ("id10001", "Else", "m", "Ireland", "dev"),
        ("id19999", "N", "m", "X", "dev"),
    ]
    lines = ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet", *("\t".join(row) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n")
    return root / name


def check_sum(clips, ledger, rows_in):
    validate_table(clips, "clips")
    validate_table(ledger, "ledger")
    assert len(clips) + len(ledger) == clips.attrs["rows_in"] == rows_in


META_FORMS = {
    "vox1": "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid00012\tAaron\tm\tUSA\tdev\nid00017\tRod\tf\tUSA\ttest\n",
    "vox2 tabs": "Name \tVoxCeleb2 ID \tVGGFace2 ID \tGender \tSet \nAaron \tid00012 \tn12 \tm \tdev \nR \tid00017 \tn17 \tf \ttest \n",
    "vox2 commas": "\ufeffVoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \r\nid00012 ,n12 ,m ,dev \r\nid00017 ,n17 ,f ,test ",
}


@pytest.mark.parametrize("form", META_FORMS)
def test_every_real_form_of_the_meta_file_gives_the_same_rows(tmp_path, form):
    (tmp_path / "meta.csv").write_bytes(META_FORMS[form].encode())
    meta = read_voxceleb_meta(tmp_path / "meta.csv")
    assert meta[["speaker", "gender_raw", "official_split"]].to_numpy().tolist() == [
        ["id00012", "m", "train"], ["id00017", "f", "test"],
    ]  # fmt: skip


def test_meta_without_its_columns_or_with_two_answers_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("speaker\tsex\na\tm\n")
    with pytest.raises(ValueError, match="needs columns"):
        read_voxceleb_meta(path)
    path.write_text("VoxCeleb1 ID\tGender\tSet\nid1\tm\tdev\nid1\tf\tdev\n")
    with pytest.raises(ValueError, match="id1 stands there twice"):
        read_voxceleb_meta(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"m\.csv: needs columns"):
        read_voxceleb_meta(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("extra", ["", "\t(1)"])
def test_frame_file_gives_the_cut_rule(tmp_path, end, extra):
    segment = read_frame_file(write_frames(tmp_path, first=594, last=803, end=end, extra=extra))
    assert segment == Segment("id10270", VIDEO, 594, 803, -2.0, 22.978, 7.056)
    assert (segment.start_s, segment.end_s) == (23.76, 32.12)
    assert segment.samples == (803 - 594) * 640 + 1


def test_blank_lines_and_fractions_in_a_frame_file_do_no_harm(tmp_path):
    text = frame_text(first=3, last=7).replace("154", "0.392").replace("\n0000", "\n\n0000") + "\n\n"
    segment = read_frame_file(write_frames(tmp_path, text=text))
    assert (segment.first_frame, segment.last_frame) == (3, 7)


@pytest.mark.parametrize("text", ["", "Identity : \tid1\n\nFRAME \n", frame_text(first=9, last=9)])
def test_frame_file_without_a_stretch_of_time_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"00001\.txt"):
        read_frame_file(write_frames(tmp_path, text=text))


@pytest.mark.parametrize("place", ["wav", "vox1_dev_wav/wav", "dev/aac", "VoxCeleb1/wav", ""])
def test_cuts_are_found_in_every_layout(tmp_path, place):
    write_meta(tmp_path)
    for speaker, video in (("id10270", VIDEO), ("id10001", OTHER)):
        write_audio(tmp_path / place / speaker / video / "00001.wav")
    clips, ledger = read_voxceleb(tmp_path)
    check_sum(clips, ledger, 2)
    assert clips["clip_id"].tolist() == [f"voxceleb:id10001/{OTHER}/00001", f"voxceleb:id10270/{VIDEO}/00001"]
    assert clips["recording_id"].tolist() == [f"voxceleb:{OTHER}", f"voxceleb:{VIDEO}"]
    assert clips["gender"].tolist() == ["male", "female"]
    assert clips["official_split"].tolist() == ["train", "test"]
    assert clips["start_s"].tolist() == [0, 0]
    assert clips["end_s"].isna().all()
    assert all((tmp_path / path).is_file() for path in clips["path"])


def test_a_single_speakers_folder_is_a_root_too(tmp_path):
    write_meta(tmp_path)
    write_audio(tmp_path / "wav" / "id10270" / VIDEO / "00001.wav")
    clips, _ = read_voxceleb(tmp_path / "wav" / "id10270")
    assert clips["path"].tolist() == [f"{VIDEO}/00001.wav"]
    assert clips["gender"].tolist() == ["female"]


def test_whole_videos_are_cut_by_their_frame_files(tmp_path):
    write_meta(tmp_path)
    write_frames(tmp_path, 1, first=50, last=150)
    write_frames(tmp_path, 2, first=160, last=200)
    long = write_audio(tmp_path / "audio" / f"{VIDEO}.wav", 10 * RATE)
    clips, ledger = read_voxceleb(tmp_path)
    check_sum(clips, ledger, 2)
    assert clips["path"].tolist() == [f"audio/{VIDEO}.wav"] * 2
    assert clips[["start_s", "end_s"]].to_numpy().tolist() == [[2.0, 6.0], [6.4, 8.0]]
    assert clips["recording_id"].nunique() == 1
    cut = long[int(2.0 * RATE) : int(6.0 * RATE) + 1]
    assert len(cut) == read_frame_file(tmp_path / "txt" / "id10270" / VIDEO / "00001.txt").samples


def test_official_cuts_equal_cuts_of_the_long_audio_sample_for_sample(tmp_path):
    path = write_frames(tmp_path, first=25, last=75)
    long = write_audio(tmp_path / "audio" / f"{VIDEO}.wav", 5 * RATE)
    segment = read_frame_file(path)
    official = long[round(segment.start_s * RATE) :][: segment.samples]
    soundfile.write(tmp_path / "cut.wav", official, RATE)
    (tmp_path / "wav" / "id10270" / VIDEO).mkdir(parents=True)
    (tmp_path / "cut.wav").rename(tmp_path / "wav" / "id10270" / VIDEO / "00001.wav")
    compared = compare_cuts(tmp_path)
    assert compared[["key", "difference"]].to_numpy().tolist() == [[f"id10270/{VIDEO}/00001", 0]]
    clips, ledger = read_voxceleb(tmp_path, meta=[write_meta(tmp_path)])
    check_sum(clips, ledger, 1)
    assert clips["path"].tolist() == [f"wav/id10270/{VIDEO}/00001.wav"]


def test_what_cannot_be_cut_is_named_in_the_ledger(tmp_path):
    write_meta(tmp_path)
    write_audio(tmp_path / "audio" / f"{VIDEO}.wav", 5 * RATE)
    (tmp_path / "audio" / "AAAAAAAAAAA.m4a").write_bytes(b"not audio at all")
    write_frames(tmp_path, 1, first=100, last=130)
    write_frames(tmp_path, 2, text="FRAME \n")
    write_frames(tmp_path, 3, text=frame_text(video="someoneelse"))
    write_frames(tmp_path, 4, video="BBBBBBBBBBB")
    write_frames(tmp_path, 5, video="AAAAAAAAAAA")
    (tmp_path / "wav" / "id10270" / VIDEO).mkdir(parents=True)
    (tmp_path / "wav" / "id10270" / VIDEO / "00009.wav").write_bytes(b"")
    write_frames(tmp_path, 6, first=0, last=126)
    clips, ledger = read_voxceleb(tmp_path)
    check_sum(clips, ledger, 7)
    assert dict(zip(ledger["item"].str[-5:], ledger["reason"])) == {
        "00001": "past the end of the video", "00002": "unusable frame file", "00003": "unusable frame file",
        "00004": "no audio", "00005": "unreadable video", "00009": "empty file",
    }  # fmt: skip
    assert clips["end_s"].tolist() == [5.0]
    details = dict(zip(ledger["item"].str[-5:], ledger["detail"]))
    assert details["00002"] == f"txt/id10270/{VIDEO}/00002.txt: no frame rows"
    assert details["00005"].startswith("audio/AAAAAAAAAAA.m4a: neither")
    assert not ledger["detail"].str.contains(str(tmp_path), regex=False).any()


def test_speakers_of_one_video_stay_apart_but_share_the_recording(tmp_path):
    write_meta(tmp_path)
    for speaker in ("id10270", "id10001"):
        write_audio(tmp_path / "wav" / speaker / VIDEO / "00001.wav")
    (tmp_path / "ages.csv").write_text(f"VoxCeleb_ID,video_id,speaker_age\nid10001,{VIDEO},34.0\n")
    clips, _ = read_voxceleb(tmp_path, ages=tmp_path / "ages.csv")
    assert clips["speaker_id"].nunique() == 2
    assert clips["recording_id"].nunique() == 1
    assert clips["age_years"].fillna(0).tolist() == [34.0, 0]


def test_two_files_of_one_utterance_count_once(tmp_path):
    write_meta(tmp_path)
    write_audio(tmp_path / "wav" / "id10270" / VIDEO / "00001.wav")
    write_audio(tmp_path / "flac" / "id10270" / VIDEO / "00001.flac")
    clips, ledger = read_voxceleb(tmp_path)
    check_sum(clips, ledger, 2)
    assert ledger["item"].tolist() == [f"flac/id10270/{VIDEO}/00001.flac"]


def test_missing_meta_is_a_warning_and_unlisted_speakers_are_counted(tmp_path):
    write_audio(tmp_path / "deep" / "er" / "wav" / "id10999" / VIDEO / "00001.wav")
    with pytest.warns(UserWarning, match="no vox1_meta"):
        clips, _ = read_voxceleb(tmp_path / "deep" / "er")
    assert clips["gender"].isna().all()
    clips, _ = read_voxceleb(tmp_path, meta=[write_meta(tmp_path)])
    assert clips.attrs["speakers_without_meta"] == 1


def test_roots_without_utterances_are_told_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_voxceleb(tmp_path / "no")
    with pytest.raises(ValueError, match="unzip VoxCeleb"):
        read_voxceleb(tmp_path)
    write_frames(tmp_path)
    with pytest.raises(ValueError, match="frame files but no audio"):
        find_utterance(tmp_path)
    write_audio(tmp_path / "audio" / f"{VIDEO}.wav")
    with pytest.raises(ValueError, match="so no genders"):
        find_utterance(tmp_path)
    write_meta(tmp_path / "meta")
    assert find_utterance(tmp_path).suffix == ".txt"


def test_rendered_corpora_are_not_taken_for_real_ones(tmp_path):
    write_meta(tmp_path)
    (tmp_path / "round").symlink_to(tmp_path)
    write_audio(tmp_path / "synthetic-3x3" / "wav" / "id10270" / VIDEO / "00001.wav")
    with pytest.raises(ValueError, match="below it"):
        read_voxceleb(tmp_path)
    assert len(read_voxceleb(tmp_path / "synthetic-3x3")[0]) == 1


@pytest.mark.corpora
def test_real_cuts_follow_the_cut_rule_sample_for_sample():
    root = Path(os.environ.get("CORPORA") or pytest.skip("set CORPORA to the folder of real samples")) / "voxceleb"
    compared = compare_cuts(root)
    assert len(compared) >= 10
    assert compared["difference"].abs().max() == 0
    clips, ledger = read_voxceleb(root)
    check_sum(clips, ledger, clips.attrs["rows_in"])
    assert clips.attrs["rows_in"] == len(list(root.rglob("txt/*/*/*.txt")))
    assert clips["gender"].notna().all()
    for path in root.rglob("txt/*/*/*.txt"):
        segment = read_frame_file(path)
        assert (segment.speaker, segment.video) == path.parts[-3:-1]
    assert len(read_voxceleb_meta(root / "vox1_meta.csv")) == 1251
    assert read_voxceleb_meta(root / "vox2_meta.csv")["gender_raw"].value_counts().to_dict() == {"m": 3763, "f": 2351}
