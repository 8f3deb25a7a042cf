"""Videos by yt-dlp's real code from a server on this machine: resuming, every kind of failure."""

import io
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import yt_dlp
from checks import refused
from local_server import serve
from test_voxceleb import write_frames
from yt_dlp.utils import ExtractorError, GeoRestrictedError

from lib.corpora import youtube
from lib.corpora.voxceleb import list_videos
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
