"""VoxCeleb as it ships: meta files, frame files, cuts, whole videos; and the tables of ages that others made for it."""

import io
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import soundfile
import yt_dlp
from checks import refused, write_file
from local_server import serve
from test_common_voice import check_sum
from yt_dlp.utils import ExtractorError, GeoRestrictedError

from lib.corpora import youtube
from lib.corpora.voxceleb import join_ages, list_videos, read_ages, read_frame_file, read_meta, read_voxceleb
from lib.corpora.youtube import download_videos, load_status

ONE, TWO, THREE = "5r0dWxy17C8", "-J_dWxy17_0", "_aaaaaaaaa-"
MESSAGES = {
    "gone": ["Video unavailable. This video has been removed by the uploader", "HTTP Error 404: Not Found",
             "Video unavailable. This video contains content from X, who has blocked it on copyright grounds"],
    "private": ["Private video. Sign in if you’ve been granted access to this video"],
    "login": ["Sign in to confirm your age. This video may be inappropriate for some users."],
    "geo": ["Video unavailable. The uploader has not made this video available in your country"],
    "bot check": ["Sign in to confirm you’re not a bot. Use --cookies-from-browser"],
    "rate limit": ["Video unavailable. This content isn’t available, try again later.", "HTTP Error 429: Too Many"],
    "format": ["Requested format is not available", "HTTP Error 403: Forbidden", "ffmpeg exited with code 1"],
    "network": ["Unable to download API page: Temporary failure in name resolution", "HTTP Error 503: Unavailable"],
    "error": ["Something never seen"],
}  # fmt: skip
VIDEO, OTHER = "5r0dWxy17C8", "-J_dWxy17_0"


def write_frames(root, number=1, speaker="id10270", video=VIDEO, text=None, reference="", first=50, last=150, end="\n"):
    lines = [f"Identity  : \t{speaker}", f"Reference : \t{reference or video}", "FV Conf   : \t22.978\t(1)", ""]
    lines += ["FRAME \tX \tY \tW \tH ", *(f"{n:06d} \t0.392 \t105 \t91 \t91 " for n in range(first, last + 1)), ""]
    path = root / "txt" / speaker / video / f"{number:05d}.txt"
    return write_file(path, end.join(lines) if text is None else text)


def write_meta(root: Path, name="vox1_meta.csv") -> Path:
    rows = "id10270\tSomeone\tf\tUK\ttest\nid10001\tElse\tm\tIreland\tdev\nid19999\tN\tm\tX\tdev"
    return write_file(root / name, f"VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n{rows}")


def test_every_real_form_of_the_meta_file_gives_the_same_rows_and_a_broken_one_is_refused(tmp_path):
    for text in [
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid00012\tA\tm\tUSA\tdev\nid00017\tRod\tf\tUSA\ttest\n",
        "Name \tVoxCeleb2 ID \tVGGFace2 ID \tGender \tSet \nA \tid00012 \tn1 \tm \tdev \nR \tid00017 \tn17 \tf \ttest \n",
        "\ufeffVoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \r\nid00012 ,n12 ,m ,dev \r\nid00017 ,n17 ,f ,test ",
    ]:
        meta = read_meta(write_file(tmp_path / "meta.csv", text))[["gender_raw", "official_split"]]
        assert list(meta.itertuples(name=None)) == [("id00012", "m", "train"), ("id00017", "f", "test")]
    twice = "VoxCeleb1 ID\tGender\tSet\nid1\tm\tdev\nid1\tf\tdev\n"
    for text, words in [("speaker\tsex\na\tm\n", "needs columns"), ("", "no table"), (twice, "id1 stands there twice")]:
        refused(rf"m\.csv: .*{words}", read_meta, write_file(tmp_path / "m.csv", text))


@pytest.mark.parametrize("place", ["wav", "vox1_dev_wav/wav", "dev/aac", "VoxCeleb1/wav", ""])
def test_cuts_are_found_in_every_layout(tmp_path, place):
    write_meta(tmp_path)
    for speaker, video in (("id10270", VIDEO), ("id10001", OTHER)):
        write_file(tmp_path / place / speaker / video / "00001.wav")
    clips, _ = check_sum(read_voxceleb(tmp_path), 2)
    assert clips[["clip_id", "recording_id", "gender", "official_split"]].to_numpy().tolist() == [
        [f"voxceleb:id10001/{OTHER}/00001", f"voxceleb:{OTHER}", "male", "train"],
        [f"voxceleb:id10270/{VIDEO}/00001", f"voxceleb:{VIDEO}", "female", "test"]]  # fmt: skip
    assert clips["end_s"].isna().all()
    assert all((tmp_path / path).is_file() for path in clips["path"])
    below, _ = read_voxceleb(tmp_path / place)  # the meta file lies above
    assert below["gender"].tolist() == ["male", "female"]


@pytest.mark.parametrize("name", [
    "{}.m4a", "{}.f140.m4a", "Title [{}].webm", "A - title-{}.opus", "{}.webm.wav", "{}.MKV", "{}.f251-drc.webm",
    "Tïtle_[x]_[{}].temp.m4a", "Title [{}] (1).mp3",
])  # fmt: skip
@pytest.mark.parametrize("video", [VIDEO, OTHER])
def test_whole_videos_are_cut_by_their_frame_files_under_every_name_that_downloaders_give(tmp_path, name, video):
    write_meta(tmp_path)
    write_frames(tmp_path, 1, video=video, first=50, last=150)
    write_frames(tmp_path, 2, video=video, first=160, last=200, end="\r\n")
    path = write_file(tmp_path / "audio" / name.format(video))
    write_file(tmp_path / "audio" / "Another [aaaaaaaaaaa].webm")
    clips, _ = check_sum(read_voxceleb(tmp_path), 2)
    assert clips["path"].tolist() == [f"audio/{path.name}"] * 2
    assert clips[["start_s", "end_s"]].to_numpy().tolist() == [[2.0, 6.0], [6.4, 8.0]]
    assert clips["recording_id"].unique().tolist() == [f"voxceleb:{video}"]
    assert clips.attrs["facts"]["long recordings without a frame file"] == 1


def test_what_cannot_be_cut_is_named_in_the_ledger(tmp_path):
    write_meta(tmp_path)
    write_file(tmp_path / "audio" / f"{VIDEO}.wav")
    write_frames(tmp_path, 1)
    write_frames(tmp_path, 2, text="FRAME \n")
    write_frames(tmp_path, 3, reference="someoneelse")
    write_frames(tmp_path, 4, video="BBBBBBBBBBB")
    folder = write_frames(tmp_path, 7, first=9, last=9).parent
    (folder / "00005.txt").mkdir()
    (folder / "00006.txt").symlink_to("00006.txt")
    write_file(tmp_path / "wav" / "id10270" / VIDEO / "00009.wav", b"")
    (tmp_path / os.fsdecode(b"audio/\xe9.wav")).touch()
    reasons = {"unusable frame file": 4, "no audio": 1, "empty file": 1, "name is not UTF-8": 1}
    _, ledger = check_sum(read_voxceleb(tmp_path), 8, reasons)
    details = dict(zip(ledger["item"].str[-5:], ledger["detail"].str.replace(f"txt/id10270/{VIDEO}/", "")))
    assert details.keys() == {"00002", "00003", "00004", "00006", "00007", "00009", "9.wav"}
    assert details.items() >= {
        "00002": "00002.txt: no frame rows", "00003": "00003.txt names id10270/someoneelse",
        "00007": "00007.txt: from frame 9 to frame 9 is no stretch of time"}.items()  # fmt: skip
    assert str(tmp_path) not in str(details)


def test_two_files_of_one_utterance_or_video_count_once_and_keep_its_age(tmp_path):
    write_meta(tmp_path)
    write_file(tmp_path / "utt2age.train", f"id10270/{VIDEO}/00001 30\n")
    whole = [f"audio/Title - 001 Chapter [{OTHER}].webm", f"audio/{OTHER}.m4a"]  # of a video that no frame file needs
    for name in ("wav/{}.m4a", "wav/{}.m4a.wav", "flac/{}.flac", *whole):
        write_file(tmp_path / name.format(f"id10270/{VIDEO}/00001"))
    for name in "ab":
        write_frames(tmp_path / name)
    clips, _ = check_sum(read_voxceleb(tmp_path), 4, {"listed twice": 3})
    assert clips[["path", "age_years"]].to_numpy().tolist() == [[f"wav/id10270/{VIDEO}/00001.m4a.wav", 30.0]]
    write_frames(tmp_path, video=OTHER)
    clips, ledger = check_sum(read_voxceleb(tmp_path), 6, {"listed twice": 4})
    assert clips["path"][0] == whole[1]
    assert f"{whole[1]} is read" in set(ledger["detail"])


def test_roots_without_utterances_are_told_what_to_do(tmp_path):
    write_file(tmp_path / "synthetic-3" / "wav" / "id10270" / VIDEO / "00001.wav")  # rendered ones never pass for real
    refused("below it; unzip VoxCeleb", read_voxceleb, tmp_path)
    write_frames(tmp_path)
    refused("frame files but no audio", read_voxceleb, tmp_path)
    write_file(tmp_path / "audio" / f"{VIDEO}.wav")
    refused("so no genders", read_voxceleb, tmp_path)
    write_meta(tmp_path / "meta")
    write_file(tmp_path / "wav" / "id10999" / VIDEO / "00001.wav")
    clips, _ = check_sum(read_voxceleb(tmp_path), 2)
    assert (clips["speaker_id"].nunique(), clips["recording_id"].nunique()) == (2, 1)
    assert clips.attrs["facts"]["speakers in no meta file"] == 1


def test_extended_table_is_read_by_speaker_and_video_and_tables_that_cannot_serve_are_refused(tmp_path):
    text = 'VoxCeleb_ID,video_id,description,speaker_age\nid10001,vid1,"one\n""two""\n\nid1,fake,row\u2028x",42.0\n'
    text += 'id10002,vid2,,\nid10002,vid3,"end\r\n",nan\nid10003,vid4,,0.0\nid10003,vid5,,122.0\n'
    ages = read_ages(write_file(tmp_path / "final_dataframe_extended.csv", text))
    assert ages[["key", "age_years"]].to_numpy().tolist() == [["id10001/vid1", 42.0]]
    assert ages.attrs == {"final_dataframe_extended.csv": {"0.0": 1, "122.0": 1}}
    refused("no such age table", read_ages, tmp_path / "no.csv")
    refused("one for the age", read_ages, write_file(tmp_path / "a.csv", "speaker,height\nid1,3\n"))
    refused("holds no ages", read_ages, write_file(tmp_path / "a.csv", "id,age\nid1,old\n"))
    refused("a.csv: no table", read_ages, write_file(tmp_path / "a.csv", 'id,age\nid1,"30\nid2,40\n'))


@pytest.mark.parametrize(("text", "years", "decades"), [
    ("speaker_age,birth_year,Name,VoxCeleb_ID,video_id\n44.0,1969.0,D,id1,v\n20.0,1,Ié,id2,-_V\n", [44, 20], [0, 0]),
    ("id1/34f5sBShxSo/00001 70\nid2/x/00002.wav 5\n\n", [70, 5], [0, 0]), ("id1,20\nid2,34\n", [20, 34], [0, 0]),
    ("id,age\nid1,34\nid2,20\n", [34, 20], [0, 0]), ("id,age\nid1,30\nid2,20\n", [0, 0], [30, 20]),
    ("VoxCeleb1 ID\tage\nid1\tteens\nid2\tFourties\n", [0, 0], [10, 40]), ("id1,teens\nid2,30s\n", [0, 0], [10, 30]),
    ("speaker;decade\nid1;90\nvoxceleb:id2;10\n", [0, 0], [90, 10]),
    ("\ufeffspeaker_id,age_years\r\nid1,30\r\nid2,40\r\n", [30, 40], [0, 0]),
])  # fmt: skip
def test_every_form_of_an_age_table_gives_years_or_decades(tmp_path, text, years, decades):
    ages = read_ages(write_file(tmp_path / "ages", text))
    assert [key.split(".")[0][:3] for key in ages["key"]] == ["id1", "id2"]
    assert ages[["age_years", "age_decade"]].fillna(0).to_numpy().T.tolist() == [years, decades]


def test_the_most_exact_label_wins_and_disagreeing_ones_give_none(tmp_path):
    rows = pd.DataFrame({"speaker": ["id1", "id1", "id1", "id2", "id3"], "video": ["v", "v", "w", "v", "v"]})
    rows["item"] = rows["speaker"] + "/" + rows["video"] + ["/1", "/2", "/1", "/1", "/1"]
    texts = {"utt2age.test": "id1/v/1.wav 70\n", "c.csv": "id,age\nid2,50\nid3,33\n"}
    texts |= {"b.csv": "speaker,video,age\nid1,v,60\nid2,x,9\n", "d.csv": "id,age\nid1,21\nid2,51\nid3,33\n"}
    ages, disagreeing = join_ages(rows, [read_ages(write_file(tmp_path / name, texts[name])) for name in texts])
    assert (ages["age_raw"].tolist(), disagreeing) == (["70", "60", "21", "", "33"], 1)
    assert join_ages(rows, [])[0]["age_years"].isna().all()


@pytest.mark.corpora
def test_real_cuts_follow_the_cut_rule_sample_for_sample():
    root = Path(os.environ.get("CORPORA") or pytest.skip("set CORPORA to the folder of real samples")) / "voxceleb"
    frame_files = {"/".join(path.parts[-3:])[:-4]: path for path in root.rglob("txt/*/*/*.txt")}
    clips, _ = check_sum(read_voxceleb(root), len(frame_files))
    assert len(clips) >= 10
    for clip in clips.itertuples():
        *_, first, last = read_frame_file(frame_files[clip.clip_id.removeprefix("voxceleb:")])
        assert soundfile.info(root / clip.path).frames == (last - first) * 640 + 1
    assert read_meta(root / "vox2_meta.csv")["gender_raw"].value_counts().to_dict() == {"m": 3763, "f": 2351}


def sound(seconds=3) -> bytes:
    soundfile.write(buffer := io.BytesIO(), np.sin(np.arange(16_000 * seconds)), 16_000, format="WAV")
    return buffer.getvalue()


def fetch(site, folder, videos):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sleep_interval", "max_sleep_interval", "sleep_interval_requests"):
            patch.setitem(youtube.OPTIONS, name, 0)
        patch.setattr(youtube, "WATCH", site.url + "/{video}.wav")
        return download_videos(videos, folder, allowed=True)


def kinds(folder):
    return {video: record["kind"] for video, record in load_status(folder).items()}


def fail_with(patch, error: Exception) -> None:
    """Make yt-dlp's extractor fail as YouTube's does; everything around it is its real code."""
    for extractor in (yt_dlp.extractor.generic.GenericIE, yt_dlp.extractor.youtube.YoutubeIE):
        patch.setattr(extractor, "_real_extract", Mock(side_effect=error))


def test_nothing_is_fetched_until_it_is_switched_on_then_each_video_once_and_again_only_when_it_is_lost(tmp_path):
    refused(r"switched off\. Downloading may be against YouTube's terms", download_videos, [ONE], tmp_path)
    refused("11 characters", download_videos, ["../../etc"], tmp_path, allowed=True)
    files = {f"/{ONE}.wav": sound(), f"/{TWO}.wav": sound(20), f"/{THREE}.wav": sound()}
    with serve(files=files, drop_after=[10**9, 10**9, 10**9, 100_000]) as site:  # the second breaks off, and goes on
        assert fetch(site, tmp_path, [ONE, TWO, THREE, ONE]) == ""
        assert kinds(tmp_path) == dict.fromkeys((ONE, TWO, THREE), "done")
        site.requests.clear()
        fetch(site, tmp_path, [ONE, TWO, THREE])
        assert site.requests == []
        (tmp_path / "audio" / f"{ONE}.wav").unlink()
        fetch(site, tmp_path, [ONE, TWO])
    assert {path.name for path in (tmp_path / "audio").iterdir()} == {f"{video}.wav" for video in (ONE, TWO, THREE)}
    assert (tmp_path / load_status(tmp_path)[TWO]["path"]).read_bytes() == sound(20)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind not in youtube.STOPPING])
def test_failures_are_sorted_by_their_message_noted_with_advice_and_passed(tmp_path, monkeypatch, kind):
    for known, texts in MESSAGES.items():
        assert [(text, youtube.classify_failure(text)) for text in texts] == [(text, known) for text in texts]
    assert youtube.classify_failure("Nicht verfügbar", GeoRestrictedError("", countries=["US"])) == "geo"
    fail_with(monkeypatch, ExtractorError(MESSAGES[kind][0], expected=True))
    with serve() as site:
        assert [fetch(site, tmp_path, [ONE, TWO]) for _ in range(4)] == [""] * 4
    assert kinds(tmp_path) == {ONE: kind, TWO: kind}
    assert load_status(tmp_path)[ONE]["tries"] == (1 if kind in youtube.PERMANENT else 3)
    assert youtube.count_downloads(tmp_path).to_numpy().tolist() == [[kind, 2, youtube.FAILURES[kind][1]]]


@pytest.mark.parametrize("kind", youtube.STOPPING)
def test_a_bot_check_or_rate_limit_stops_the_run_with_advice_and_is_tried_again(tmp_path, kind, monkeypatch):
    with serve(files={f"/{ONE}.wav": sound()}) as site:
        with monkeypatch.context() as patch:
            fail_with(patch, ExtractorError(MESSAGES[kind][0], expected=True))
            for _ in range(4):
                stopped = fetch(site, tmp_path, [ONE, TWO, THREE])
                assert stopped == f"stopped at video 1 of 3. {youtube.FAILURES[kind][1]}"
        assert kinds(tmp_path) == {ONE: kind}
        fetch(site, tmp_path, [ONE])
    assert kinds(tmp_path) == {ONE: "done"}


def test_every_video_of_a_frame_file_is_asked_for_and_what_is_no_audio_is_not_kept(tmp_path):
    for video in (ONE, TWO, THREE):
        write_frames(tmp_path, video=video)
    with serve(files={f"/{ONE}.wav": sound(5), f"/{TWO}.wav": b"RIFF but no more than that" * 100}) as site:
        fetch(site, tmp_path, list_videos(tmp_path))
    assert kinds(tmp_path) == {ONE: "done", TWO: "format", THREE: "gone"}
    assert str(tmp_path) not in load_status(tmp_path)[TWO]["detail"]
    assert [path.name for path in (tmp_path / "audio").iterdir()] == [f"{ONE}.wav"]
