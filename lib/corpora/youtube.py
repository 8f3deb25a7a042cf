"""VoxCeleb's videos from YouTube, one polite download each. Off by default: read `LEGAL_NOTE` first.

Whole audio is kept as `audio/<video>.<suffix>`; `lib.corpora.voxceleb` cuts its utterances by the official frame files.
Failure texts and options: github.com/yt-dlp/yt-dlp (read at 2026.08.19).
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lib.corpora.labels import class_names
from lib.corpora.voxceleb_files import media_seconds

LEGAL_NOTE = (
    "Downloading may be against YouTube's terms of service and, where you live, against the law; the videos belong to "
    "their owners and show people who never agreed to be in a data set. VoxCeleb's own licence (CC BY 4.0) covers its "
    "metadata only. It is your decision: the download is off until you switch it on, and what it fetches is for your "
    "research alone, not to be passed on."
)
WATCH_URL = "https://www.youtube.com/watch?v={video}"
STATUS_FILE = "youtube_status.jsonl"
PERMANENT = ["gone", "private", "login", "geo"]  # never asked for again
STOPPING = {  # these hold for the whole connection: going on makes it worse
    "bot check": "YouTube takes this connection for a robot. Stop for today. What helps: a home network instead of a "
    "data centre or Colab; the newest yt-dlp (pip install -U 'yt-dlp[default]') with a JavaScript runtime (deno); as a last "
    "resort `cookies_from_browser`, which risks the account. The next run goes on where this one stopped",
    "rate limit": "YouTube limits this connection. Wait an hour or more, then run again with longer pauses; it goes on "
    "where this one stopped",
}
ADVICE = {
    "gone": "nothing: the video is no longer there",
    "private": "nothing: its owner made it private",
    "login": "nothing, or cookies of an account, at your own risk",
    "geo": "nothing: not shown in this country",
    "format": "update yt-dlp and install deno, then run again",
    "network": "run again",
    "live": "nothing: a live event",
    "error": "read the detail",
    **STOPPING,
}
# The first kind with a matching text wins; texts are lower case with plain apostrophes.
FAILURES: list[tuple[str, str]] = [
    ("bot check", r"confirm you're not a bot|captcha"),
    ("login", r"confirm your age|age-restricted|members-only|join this channel|available to this channel's members"),
    ("private", r"private video|video is private"),
    ("geo", r"available in your country|in your country|georestricted|geo-?restriction|in your location"),
    ("rate limit", r"try again later|http error 429|too many requests|rate-limited"),
    ("gone", r"video unavailable|has been removed|terminated|no longer available|copyright|isn't available anymore"),
    ("gone", r"http error 4(04|10)|video is not available"),
    ("format", r"requested format is not available|only images are available|javascript runtime|http error 403"),
    ("format", r"ffmpeg exited|downloaded file is empty|cannot be read"),
    (
        "network",
        r"timed out|timeout|connection|name resolution|resolve host|unable to download|incompleteread|bytes read",
    ),
    ("network", r"http error 5\d\d|transporterror|network"),
    ("live", r"live event|premieres in|is live"),
]


def classify_failure(text: str, error: BaseException | None = None) -> str:
    """The kind of a yt-dlp failure, one of `ADVICE`, from its message and the error that it wraps."""
    if type(error).__name__ == "GeoRestrictedError":
        return "geo"
    plain = text.replace("\u2019", "'").replace("\u2018", "'").casefold()
    return next((kind for kind, pattern in FAILURES if re.search(pattern, plain)), "error")


def load_status(folder: Path | str) -> pd.DataFrame:
    """The last known state of every video asked for: columns video, state, kind, detail, tries, time, path.

    state is "done" or "failed"; kind is "" or one of `ADVICE`; time is UTC. A line that was cut off by a crash is left
    out; an empty frame when nothing was asked for yet.
    """
    columns = ["video", "state", "kind", "detail", "tries", "time", "path"]
    path = Path(folder) / STATUS_FILE
    records: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            record = json.loads(line) if line else None
        except json.JSONDecodeError:
            logging.getLogger(__name__).warning("%s: a broken line is left out: %s", path, line[:80])
            continue
        if record:
            records[record["video"]] = record
    return pd.DataFrame(list(records.values()), columns=columns)


def download_videos(
    videos: Sequence[str],
    folder: Path | str,
    allowed: bool = False,
    pause_s: tuple[float, float] = (5.0, 15.0),
    max_videos: int | None = None,
    max_tries: int = 3,
    rate_bytes_per_s: int = 2_000_000,
    cookies_from_browser: str | None = None,
    url: str = WATCH_URL,
    seed: int = 0,
) -> pd.DataFrame:
    """Fetch the audio of each video once, to `folder`/audio/<video>.<suffix>; return `load_status(folder)`.

    Resumes: videos that are there, that failed for good, or that failed `max_tries` times are passed over. A failure
    is noted and passed, but a bot check or a rate limit stops the run: a warning and `attrs["stopped"]` say what to do.

    Parameters
    ----------
    videos: YouTube ids (11 characters).
    allowed: must be True, or nothing is fetched and a ValueError gives the legal note.
    pause_s: shortest and longest pause between two videos, in seconds.
    max_videos: at most so many requests in this run; None = all.
    cookies_from_browser: such as "firefox"; None, the default, sends no cookies.
    url: pattern of the address, with "{video}".
    """
    if not allowed:
        raise ValueError(f"downloading from YouTube is switched off. {LEGAL_NOTE} To switch it on, set allowed=True")
    strange = [video for video in videos if not re.fullmatch(r"[A-Za-z0-9_-]{11}", video)]
    if strange:
        raise ValueError(f"no YouTube ids: {strange[:5]}; give the 11 characters, such as 5r0dWxy17C8")
    folder = Path(folder)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    known = load_status(folder).set_index("video").to_dict("index")
    waiting = [video for video in dict.fromkeys(videos) if _is_waiting(folder, known.get(video), max_tries)][
        :max_videos
    ]
    options = _options(rate_bytes_per_s, cookies_from_browser)
    stopped = _fetch_waiting(waiting, folder, known, options, pause_s, url, seed)
    status = load_status(folder)
    status.attrs["stopped"] = stopped
    return status


def _fetch_waiting(
    waiting: list[str],
    folder: Path,
    known: dict,
    options: dict[str, Any],
    pause_s: tuple[float, float],
    url: str,
    seed: int,
) -> str:
    """Fetch one video after the other and note each outcome; return why it stopped early, or ""."""
    rng = random.Random(seed)
    for number, video in enumerate(tqdm(waiting, unit="video")):
        if number:
            time.sleep(rng.uniform(*pause_s))
        tries = known.get(video, {}).get("tries", 0) + 1
        record = _fetch_video(video, folder, url.format(video=video), options, pause_s[0])
        _note(
            folder,
            {"video": video, **record, "tries": tries, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        )
        if record["kind"] in STOPPING:
            stopped = f"stopped at video {number + 1} of {len(waiting)}. {STOPPING[record['kind']]}"
            warnings.warn(stopped, stacklevel=3)
            return stopped
    return ""


def _is_waiting(folder: Path, record: dict[str, Any] | None, max_tries: int) -> bool:
    """Whether a video is to be asked for: never tried, lost since, or failed in a way that may pass."""
    if record is None:
        return True
    if record["state"] == "done":
        return not (folder / record["path"]).is_file()
    return record["kind"] not in PERMANENT and (record["kind"] in STOPPING or record["tries"] < max_tries)


def _options(rate_bytes_per_s: int, cookies_from_browser: str | None) -> dict[str, Any]:
    """Options of yt-dlp: the best audio as it is, quietly, slowly, with its own few retries."""
    from imageio_ffmpeg import get_ffmpeg_exe as ffmpeg_command

    options: dict[str, Any] = {
        "format": "bestaudio/best", "quiet": True, "no_warnings": True, "noprogress": True, "noplaylist": True,
        "retries": 3, "fragment_retries": 3, "socket_timeout": 30, "sleep_interval_requests": 0.75,
        "ratelimit": rate_bytes_per_s, "cachedir": False, "logger": logging.getLogger("lib.corpora.youtube.yt_dlp"),
        "overwrites": True, "continuedl": True,
    }  # fmt: skip
    if ffmpeg_command():
        options["ffmpeg_location"] = ffmpeg_command()
    if cookies_from_browser:
        options["cookiesfrombrowser"] = (cookies_from_browser,)
    return options


def _fetch_video(video: str, folder: Path, url: str, options: dict[str, Any], pause_s: float) -> dict[str, str]:
    """Fetch one video, network trouble and missing formats retried; return its state, kind, detail and path."""
    again = {"network": 2, "format": 1}  # further tries within this run
    for number in range(3):
        try:
            path = _fetch_once(video, folder, url, options)
            return {"state": "done", "kind": "", "detail": "", "path": path.relative_to(folder).as_posix()}
        except _Failed as error:
            record = {"state": "failed", "kind": error.kind, "detail": str(error)[:500], "path": ""}
            if number >= again.get(error.kind, 0):
                break
            time.sleep(pause_s * 2**number)
    return record


class _Failed(Exception):
    def __init__(self, text: str, error: BaseException | None = None):
        super().__init__(re.sub(r"\x1b\[[0-9;]*m", "", text))
        self.kind = classify_failure(str(self), error)


def _fetch_once(video: str, folder: Path, url: str, options: dict[str, Any]) -> Path:
    """Let yt-dlp write into a hidden folder, and move the file out of it only when it is whole and can be read."""
    import yt_dlp

    workshop = folder / "audio" / ".partial" / video
    workshop.mkdir(parents=True, exist_ok=True)
    template = str((workshop / video).absolute()).replace("%", "%%") + ".%(ext)s"
    try:
        with yt_dlp.YoutubeDL(options | {"outtmpl": {"default": template}}) as downloader:
            told = downloader.extract_info(url, download=True)
    except yt_dlp.utils.DownloadError as error:
        raise _Failed(str(error), error.exc_info[1] if error.exc_info else None) from error
    except OSError as error:
        raise _Failed(f"connection: {error}", error) from error
    names = [Path(d["filepath"]) for d in (told or {}).get("requested_downloads") or [] if d.get("filepath")]
    path = next((name for name in names if name.is_file() and name.stat().st_size), None)
    if path is None:
        raise _Failed("the downloaded file is empty")
    try:
        length_s = media_seconds(path)
    except ValueError as error:
        path.unlink()
        raise _Failed(f"the downloaded file cannot be read: {error}") from error
    promised_s = (told or {}).get("duration")
    if promised_s and length_s < 0.98 * float(promised_s) - 1:
        path.unlink()
        raise _Failed(f"connection: only {length_s:.1f} of {promised_s} s came")
    target = folder / "audio" / f"{video}{path.suffix}"
    path.replace(target)
    shutil.rmtree(workshop, ignore_errors=True)
    return target


def _note(folder: Path, record: dict[str, Any]) -> None:
    """Append one line to the status file; a line that a crash cut off before does not spoil it."""
    path = folder / STATUS_FILE
    with open(path, "a+b") as stream:
        if stream.seek(0, 2):
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")


def count_failures(status: pd.DataFrame) -> pd.DataFrame:
    """Videos by state and kind of failure, with what to do: columns state, kind, videos, to_do."""
    counts = status.groupby(["state", "kind"]).size().rename("videos").reset_index()
    return counts.assign(to_do=counts["kind"].map(ADVICE).fillna("")).sort_values(
        "videos", ascending=False, ignore_index=True
    )


def attrition(
    expected: pd.DataFrame, found: pd.DataFrame, classes: Sequence[str] = (), bounds: Sequence[float] = ()
) -> pd.DataFrame:
    """How many of the expected utterances were recovered, by gender and by age, so that what is missing is seen.

    Parameters
    ----------
    expected: utterances with clip_id, speaker_id, recording_id, gender, age_years, age_decade, such as
        `lib.corpora.voxceleb.list_utterances` gives (labels may be missing).
    found: clips that can be used, with clip_id.
    classes, bounds: classes of age; empty = no rows by age.

    Returns
    -------
    Columns target ("all", "gender", "age"), class, segments_expected, segments_found, share, videos_expected,
    videos_found, speakers_expected, speakers_found. Utterances without a label count as "(none)".
    Raises ValueError when something was found that was not expected.
    """
    unexpected = set(found["clip_id"]) - set(expected["clip_id"])
    if unexpected:
        raise ValueError(
            f"{len(unexpected)} clips were not expected, such as {min(unexpected)}; compare within one corpus"
        )
    rows = expected.assign(here=expected["clip_id"].isin(found["clip_id"]))
    groups = {"all": pd.Series("all", index=rows.index), "gender": rows["gender"].fillna("(none)")}
    if classes:
        groups["age"] = class_names(rows, "age", classes, bounds).fillna("(none)")
    tables = []
    for target, names in groups.items():
        for name, part in rows.groupby(names):
            counts = {"target": target, "class": name}
            for stage, some in (("expected", part), ("found", part[part["here"]])):
                counts[f"segments_{stage}"] = len(some)
                counts[f"videos_{stage}"] = some["recording_id"].nunique()
                counts[f"speakers_{stage}"] = some["speaker_id"].nunique()
            tables.append(counts | {"share": counts["segments_found"] / counts["segments_expected"]})
    stages = [f"{what}_{stage}" for what in ("segments", "videos", "speakers") for stage in ("expected", "found")]
    return pd.DataFrame(tables, columns=["target", "class", *stages[:2], "share", *stages[2:]])
