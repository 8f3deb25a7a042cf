"""Videos by yt-dlp's real code from a server on this machine: politeness, resuming, every kind of failure."""

import io

import numpy as np
import pandas as pd
import pytest
import soundfile
import yt_dlp
from local_server import serve
from test_voxceleb import write_frames, write_meta
from yt_dlp.utils import ExtractorError, GeoRestrictedError

from lib.corpora.voxceleb import list_utterances, read_voxceleb
from lib.corpora.youtube import (
    ADVICE,
    PERMANENT,
    attrition,
    classify_failure,
    count_failures,
    download_videos,
    load_status,
)

ONE, TWO, THREE = "5r0dWxy17C8", "-J_dWxy17_0", "_aaaaaaaaa-"

MESSAGES = {
    "gone": [
        "ERROR: [youtube] x: Video unavailable",
        "Video unavailable. This video has been removed by the uploader",
        "This video is no longer available because the YouTube account associated with this video has been terminated.",
        "Video unavailable. This video contains content from X, who has blocked it on copyright grounds",
        "Unable to download webpage: HTTP Error 404: Not Found",
    ],
    "private": ["Private video. Sign in if you’ve been granted access to this video"],
    "login": [
        "Sign in to confirm your age. This video may be inappropriate for some users.",
        "Join this channel to get access to members-only content like this video",
    ],
    "geo": ["Video unavailable. The uploader has not made this video available in your country"],
    "bot check": ["Sign in to confirm you’re not a bot. Use --cookies-from-browser", "Sign in to confirm you're not a bot",
                  "Please solve the CAPTCHA"],
    "rate limit": ["Video unavailable. This content isn’t available, try again later.", "HTTP Error 429: Too Many Requests"],
    "format": ["Requested format is not available", "Only images are available for download", "HTTP Error 403: Forbidden",
               "No supported JavaScript runtime could be found", "ffmpeg exited with code 1"],
    "network": ["The read operation timed out", "Unable to download API page: [Errno -3] Temporary failure in name resolution",
                "Connection reset by peer", "HTTP Error 503: Service Unavailable"],
    "live": ["This live event will begin in a few moments."],
    "error": ["Something never seen"],
}  # fmt: skip


def sound(seconds=3.0) -> bytes:
    buffer = io.BytesIO()
    waveform = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * 16_000))
    soundfile.write(buffer, waveform, 16_000, format="WAV")
    return buffer.getvalue()


def fetch(site, folder, videos, **options):
    defaults = {"allowed": True, "pause_s": (0, 0), "url": site.url + "/{video}.wav"}
    return download_videos(videos, folder, **(defaults | options))


def states(status) -> dict[str, tuple[str, str]]:
    return {row.video: (row.state, row.kind) for row in status.itertuples()}


@pytest.fixture
def fails_with(monkeypatch):
    """Make yt-dlp's extractor fail as YouTube's does; everything around it is its real code."""

    def arrange(error: Exception):
        def fail(self, url):
            raise error

        monkeypatch.setattr(yt_dlp.extractor.generic.GenericIE, "_real_extract", fail)

    return arrange


def test_nothing_is_fetched_until_it_is_switched_on(tmp_path):
    with serve() as site, pytest.raises(ValueError, match=r"switched off\. Downloading may be against YouTube's terms"):
        fetch(site, tmp_path, [ONE], allowed=False)
    assert site.requests == []
    with pytest.raises(ValueError, match="11 characters"):
        download_videos(["../../etc"], tmp_path, allowed=True)


def test_each_video_is_fetched_once_and_kept_whole(tmp_path):
    files = {f"/{video}.wav": sound() for video in (ONE, TWO, THREE)}
    with serve(files=files) as site:
        status = fetch(site, tmp_path, [ONE, TWO, THREE, ONE])
        assert set(states(status).values()) == {("done", "")}
        asked = len(site.requests)
        fetch(site, tmp_path, [ONE, TWO, THREE])
        assert len(site.requests) == asked
    assert sorted(path.name for path in (tmp_path / "audio").iterdir() if path.is_file()) == sorted(
        f"{video}.wav" for video in (ONE, TWO, THREE)
    )
    assert (tmp_path / status.set_index("video").loc[TWO, "path"]).read_bytes() == sound()


def test_a_run_goes_on_where_the_last_one_ended(tmp_path):
    with serve(files={f"/{video}.wav": sound() for video in (ONE, TWO)}) as site:
        assert set(states(fetch(site, tmp_path, [ONE, TWO], max_videos=1))) == {ONE}
        with open(tmp_path / "youtube_status.jsonl", "a") as stream:
            stream.write('{"video": "cut o')
        assert set(states(fetch(site, tmp_path, [ONE, TWO]))) == {ONE, TWO}
        (tmp_path / "audio" / f"{ONE}.wav").unlink()
        fetch(site, tmp_path, [ONE, TWO])
    assert (tmp_path / "audio" / f"{ONE}.wav").is_file()
    assert load_status(tmp_path)["state"].tolist() == ["done", "done"]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in MESSAGES.items() for text in texts])
def test_every_message_is_sorted_into_its_kind(kind, text):
    assert classify_failure(text) == kind
    assert kind in ADVICE


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind not in ("bot check", "rate limit")])
@pytest.mark.filterwarnings("error")
def test_failures_are_noted_and_passed(tmp_path, fails_with, kind):
    fails_with(ExtractorError(MESSAGES[kind][0], expected=True))
    with serve() as site:
        status = fetch(site, tmp_path, [ONE, TWO])
        assert states(status) == {ONE: ("failed", kind), TWO: ("failed", kind)}
        assert status.attrs["stopped"] == ""
        again = fetch(site, tmp_path, [ONE, TWO], max_tries=2)
    assert again["tries"].tolist() == ([1, 1] if kind in PERMANENT else [2, 2])
    assert count_failures(again)[["kind", "videos", "to_do"]].to_numpy().tolist() == [[kind, 2, ADVICE[kind]]]


@pytest.mark.parametrize("kind", ["bot check", "rate limit"])
def test_a_bot_check_or_rate_limit_stops_the_run_with_advice(tmp_path, fails_with, kind):
    fails_with(ExtractorError(MESSAGES[kind][0], expected=True))
    with serve() as site, pytest.warns(UserWarning, match="stopped at video 1 of 3"):
        status = fetch(site, tmp_path, [ONE, TWO, THREE])
    assert states(status) == {ONE: ("failed", kind)}
    assert ADVICE[kind] in status.attrs["stopped"]


def test_videos_shut_off_by_a_stop_are_asked_for_again(tmp_path, fails_with, monkeypatch):
    with serve(files={f"/{ONE}.wav": sound()}) as site:
        with monkeypatch.context() as patch:
            patch.setattr(yt_dlp.extractor.generic.GenericIE, "_real_extract", _robot)
            for _ in range(4):
                with pytest.warns(UserWarning, match="takes this connection for a robot"):
                    fetch(site, tmp_path, [ONE])
        assert states(fetch(site, tmp_path, [ONE])) == {ONE: ("done", "")}


def _robot(self, url):
    raise ExtractorError("Sign in to confirm you’re not a bot", expected=True)


def test_a_country_block_is_known_by_its_error_even_without_words(tmp_path, fails_with):
    fails_with(GeoRestrictedError("Nicht verfügbar", countries=["US"]))
    with serve() as site:
        assert states(fetch(site, tmp_path, [ONE])) == {ONE: ("failed", "geo")}


@pytest.mark.parametrize(("status", "kind"), [(404, "gone"), (410, "gone"), (403, "format"), (503, "network")])
def test_real_answers_of_a_server_are_sorted_too(tmp_path, status, kind):
    with serve(statuses=[status] * 50, files={f"/{ONE}.wav": sound()}) as site:
        assert states(fetch(site, tmp_path, [ONE])) == {ONE: ("failed", kind)}


def test_a_dropped_connection_is_made_good_within_the_run(tmp_path):
    with serve(files={f"/{ONE}.wav": sound(20)}, drop_after=[10**9, 100_000]) as site:
        assert states(fetch(site, tmp_path, [ONE])) == {ONE: ("done", "")}
    assert (tmp_path / "audio" / f"{ONE}.wav").read_bytes() == sound(20)


def test_what_is_no_audio_is_not_kept(tmp_path):
    with serve(files={f"/{ONE}.wav": b"RIFF but no more than that" * 100}) as site:
        status = fetch(site, tmp_path, [ONE])
    assert states(status) == {ONE: ("failed", "format")}
    assert list((tmp_path / "audio").glob("*.wav")) == []


def test_downloaded_videos_are_cut_by_the_reader_and_the_rest_is_counted(tmp_path):
    write_meta(tmp_path)
    for number, (speaker, video) in enumerate(
        [("id10270", ONE), ("id10270", ONE), ("id10001", TWO), ("id10001", THREE)]
    ):
        write_frames(tmp_path, number, speaker, video, first=10 * number, last=10 * number + 40)
    (tmp_path / "ages.csv").write_text("speaker,age_years\nid10270,17\nid10001,45\n")
    expected = list_utterances(tmp_path)
    with serve(files={f"/{ONE}.wav": sound(5), f"/{TWO}.wav": sound(1)}) as site:
        fetch(site, tmp_path, sorted(expected["video"].unique()))
    clips, ledger = read_voxceleb(tmp_path)
    assert ledger["reason"].value_counts().to_dict() == {"no audio": 1, "past the end of the video": 1}
    table = attrition(expected, clips, ["teen", "adult"], [20]).set_index(["target", "class"])
    assert table.loc[("all", "all"), ["segments_found", "segments_expected"]].tolist() == [2, 4]
    assert table.loc[("gender", "male"), "share"] == 0
    assert table.loc[("age", "teen"), ["segments_found", "videos_found", "speakers_found"]].tolist() == [2, 1, 1]
    assert table.loc[("age", "adult"), ["segments_found", "videos_expected"]].tolist() == [0, 2]


def test_attrition_refuses_clips_of_another_corpus():
    frame = pd.DataFrame({"clip_id": ["a"], "gender": ["male"], "speaker_id": ["s"], "recording_id": ["r"]})
    with pytest.raises(ValueError, match="were not expected"):
        attrition(frame, frame.assign(clip_id="b"))
