"""VoxCeleb's videos from YouTube, one polite download each. Off by default: read `LEGAL_NOTE` first. Failure texts and
options: github.com/yt-dlp/yt-dlp (read at 2026.08.19)."""

import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lib.audio import RATE_HZ, Recording
from lib.paths import load_json, save_json

LEGAL_NOTE = (
    "Downloading may be against YouTube's terms of service and, where you live, against the law; the videos belong to "
    "their owners and show people who never agreed to be in a data set. VoxCeleb's own licence (CC BY 4.0) covers its "
    "metadata only. It is your decision: the download is off until you switch it on, and what it fetches is for your "
    "research alone, not to be passed on."
)
WATCH = "https://www.youtube.com/watch?v={video}"
MOST_TRIES = 3  # of a video that failed in a way that may pass
OPTIONS: dict[str, Any] = {  # of yt-dlp: the best audio as it is, quietly, slowly, with its own few retries
    "format": "bestaudio/best", "quiet": True, "no_warnings": True, "noprogress": True, "noplaylist": True,
    "retries": 3, "fragment_retries": 3, "extractor_retries": 2, "socket_timeout": 30, "sleep_interval_requests": 0.75,
    "sleep_interval": 5, "max_sleep_interval": 15, "ratelimit": 2_000_000, "cachedir": False,
    "logger": logging.getLogger("lib.corpora.youtube.yt_dlp"),
}  # fmt: skip
FAILURES = {  # kind: (words that tell it, what to do); the first with a matching text wins
    "bot check": (
        r"confirm you're not a bot|captcha",
        "YouTube takes this connection for a robot. Stop for today. What helps: a home network not a data centre or "
        "Colab; the newest yt-dlp (pip install -U 'yt-dlp[default]') with a JavaScript runtime (deno); as a last "
        "resort cookiesfrombrowser in OPTIONS of lib/corpora/youtube.py, which risks the account. The next run goes on"),
    "login": (r"confirm your age|age-restricted|members-only|join this channel|this channel's members",
              "nothing, or cookies of an account, at your own risk"),
    "private": (r"private video|video is private", "nothing: its owner made it private"),
    "geo": (r"in your country|georestricted|geo-?restriction|in your location", "nothing: not shown in this country"),
    "rate limit": (r"try again later|http error 429|too many requests|rate-limited",
                   "YouTube limits this connection. Wait an hour or more, then run again; it goes on from here"),
    "gone": (r"video unavailable|has been removed|terminated|no longer available|copyright|isn't available anymore|"
             r"http error 4(04|10)|video is not available", "nothing: the video is no longer there"),
    "format": (r"format is not available|only images are available|javascript runtime|http error 403|ffmpeg exited|"
               r"downloaded file", "update yt-dlp and install deno, then run again"),
    "network": (r"timed out|timeout|connection|name resolution|resolve host|unable to download|incompleteread|"
                r"bytes read|http error 5\d\d|transporterror|network", "run again"),
    "live": (r"live event|premieres in|is live", "nothing: a live event"),
    "error": ("", "read the detail"),
}  # fmt: skip
STOPPING = ["bot check", "rate limit"]  # these hold for the whole connection: going on makes it worse
PERMANENT = ["login", "private", "geo", "gone"]  # never asked for again


def classify_failure(text: str, error: BaseException | None = None) -> str:
    """The kind of a yt-dlp failure, one of `FAILURES`, from its message and the error that it wraps."""
    plain = f"{text} {type(error).__name__}".replace("\u2019", "'").replace("\u2018", "'").casefold()
    return next(kind for kind, (words, _) in FAILURES.items() if re.search(words, plain))


def load_status(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of every video: its kind ("done", or one of `FAILURES`), detail, tries, time (UTC) and path."""
    path = Path(folder) / "youtube_status.json"
    return load_json(path) if path.exists() else {}


def download_videos(videos: Sequence[str], folder: Path, allowed: bool = False) -> str:
    """Fetch the audio of each video once, to `folder`/audio/<video>.<suffix>; return why the run stopped early, or "".
    Videos (ids of 11 characters) that are there, that failed for good, or `MOST_TRIES` times are passed over. A failure
    is noted (`load_status`) and passed, but a bot check or a rate limit stops the run. ValueError unless `allowed`."""
    if not allowed:
        raise ValueError(f"downloading from YouTube is switched off. {LEGAL_NOTE} To switch it on, set allowed=True")
    if strange := [video for video in videos if not re.fullmatch(r"[A-Za-z0-9_-]{11}", video)]:
        raise ValueError(f"no YouTube ids: {strange[:5]}; give the 11 characters, such as 5r0dWxy17C8")
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    records = load_status(folder)
    waiting = [video for video in dict.fromkeys(videos) if _is_waiting(folder, **records.get(video, {}))]
    for number, video in enumerate(tqdm(waiting, unit="video"), 1):
        kind, detail, path = _fetch(video, folder)
        tries = records.get(video, {}).get("tries", 0) + 1
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        records[video] = {"kind": kind, "detail": detail, "tries": tries, "time": now, "path": path}
        save_json(folder / "youtube_status.json", records, indent=None)
        if kind in STOPPING:
            return f"stopped at video {number} of {len(waiting)}. {FAILURES[kind][1]}"
    return ""


def _is_waiting(folder: Path, kind: str = "network", tries: int = 0, path: str = "", **_: str) -> bool:
    """Whether a video is to be asked for: never tried, lost since, or failed in a way that may pass."""
    if kind == "done":
        return not (folder / path).is_file()
    return kind in STOPPING or (kind not in PERMANENT and tries < MOST_TRIES)


def _fetch(video: str, folder: Path) -> tuple[str, str, str]:
    """Let yt-dlp fetch one video; return its kind, detail and path. Its `.part` files are no audio to any reader."""
    import yt_dlp

    template = str((folder / "audio" / video).absolute()).replace("%", "%%") + ".%(ext)s"
    path, cause, text = None, None, "the downloaded file is not there"
    try:
        with yt_dlp.YoutubeDL(OPTIONS | {"outtmpl": {"default": template}}) as downloader:
            facts = downloader.extract_info(WATCH.format(video=video), download=True)
        files = [Path(some["filepath"]) for some in facts.get("requested_downloads", []) if "filepath" in some]
        if path := next((file for file in files if file.is_file()), None):
            length_s, stated_s = sum(map(len, Recording(path))) / RATE_HZ, float(facts.get("duration") or 0)
            if length_s >= 0.98 * stated_s - 1:
                return "done", "", path.relative_to(folder.absolute()).as_posix()
            text = f"connection: only {length_s:.1f} of {stated_s:.1f} s came"
    except yt_dlp.utils.DownloadError as error:
        text, cause = str(error), error.exc_info[1] if error.exc_info else None
    except OSError as error:
        text = f"connection: {error}"
    except ValueError as error:
        text = f"the downloaded file cannot be read: {error}"
    if path:
        path.unlink(missing_ok=True)
    return classify_failure(text, cause), re.sub(r"\x1b\[[0-9;]*m", "", text)[:500], ""


def count_downloads(folder: Path) -> pd.DataFrame:
    """Videos asked for by kind of failure ("done" = none), with what to do: columns kind, videos, to_do."""
    kinds = Counter(record["kind"] for record in load_status(folder).values())
    rows = [(kind, videos, FAILURES.get(kind, ("", ""))[1]) for kind, videos in kinds.most_common()]
    return pd.DataFrame(rows, columns=["kind", "videos", "to_do"])
