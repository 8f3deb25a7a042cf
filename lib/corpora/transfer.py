"""Fetching one file over https: resumed after a break, checked, and renamed only when it is whole."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from lib.corpora.archives import CHUNK_BYTES, check_disk, digest_of, find_fault
from lib.paths import load_json, save_json, write_whole

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # plain http is for tests on this machine only
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
REFUSALS = {
    401: "it asks for a password",
    403: "access is denied: have you agreed to its terms?",
    404: "no such file",
    410: "it has been removed",
}


class DownloadFailed(ValueError):
    """A file that could not be fetched whole; the message names it, why, and what to do."""


def check_url(url: str) -> str:
    """Return `url` if it is https (http on this very machine, for tests); ValueError otherwise."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS):
        return url
    raise ValueError(f"{url}: only https is fetched")


def download_file(
    url: str,
    target: Path | str,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    attempts: int = 5,
    pause_s: float = 1.0,
    progress: bool = True,
) -> Path:
    """Fetch `url` to `target`, going on where an earlier attempt stopped; return `target`.

    Bytes gather in `<target>.part` (its state in `<target>.part.json`) and are renamed to `target` only when size and
    checksums are right. A file that is there already and right is not fetched again.

    Parameters
    ----------
    sha256, md5, size: what the whole file must have (hex, hex, bytes); None = not known: the server's size decides.
    attempts: tries in a row that may bring nothing new; waits double from `pause_s` seconds.

    Raises ValueError for a URL that is not https and DownloadFailed (a ValueError) when the server refuses, the disk is
    too small, tries run out, or the file is not what was expected.
    """
    check_url(url)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = {"size": size, "sha256": sha256, "md5": md5}
    if target.exists() and not find_fault(target, **expected):
        return target
    part = target.with_name(target.name + ".part")
    _fetch_until_right(url, part, expected, attempts, pause_s, progress)
    os.replace(part, target)
    _forget(part)
    return target


def _fetch_until_right(
    url: str, part: Path, expected: dict[str, Any], attempts: int, pause_s: float, progress: bool
) -> None:
    """Try until `part` is the whole, right file; DownloadFailed after `attempts` tries that brought nothing new."""
    failures, restarted, is_checked = 0, False, bool(expected["sha256"] or expected["md5"])
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            total = _fetch_rest(url, part, expected["size"], is_checked, progress)
        except Interrupted as error:
            grew = part.exists() and part.stat().st_size > before
            failures = 1 if grew else failures + 1
            if failures >= attempts:
                raise DownloadFailed(f"{url}: {error} after {attempts} tries; run again later, it goes on") from error
            time.sleep(min(error.wait_s or pause_s * 2 ** (failures - 1), 60))
            continue
        fault = find_fault(part, expected["size"] or total, expected["sha256"], expected["md5"])
        if not fault:
            return
        resumed = before > 0
        _forget(part)
        if not resumed or restarted:
            raise DownloadFailed(f"{url}: {fault}; the file there is not the one expected, or was damaged on its way")
        restarted = True  # what was resumed may have been another version: once more from the start


class Interrupted(Exception):
    """A try that may succeed when repeated."""

    def __init__(self, text: str, wait_s: float | None = None):
        super().__init__(text)
        self.wait_s = wait_s


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _fetch_rest(url: str, part: Path, size: int | None, is_checked: bool, progress: bool) -> int | None:
    """One try: append what is missing to `part`; return the whole file's size, None when the server does not say."""
    import requests
    import urllib3

    have, headers = _resume_headers(url, part, is_checked)
    try:
        hooks = {"response": _check_redirect}
        with requests.get(url, headers=headers, stream=True, timeout=(15, 60), hooks=hooks) as response:
            if response.status_code == 416 and have and _whole_size(response, have) == have:
                return have
            _check_status(response, part)
            have = have if response.status_code == 206 and _range_start(response) == have else 0
            total = _whole_size(response, have)
            if size is not None and total is not None and total != size:
                raise DownloadFailed(f"{url}: the server has {total:,} bytes, expected {size:,}")
            if (size, total, is_checked) == (None, None, False) and not response.raw.chunked:
                raise DownloadFailed(f"{url}: neither its size nor a checksum is known, so a cut would go unnoticed")
            check_disk(part.parent, (total or size or 0) - have)
            validator = _strong_validator(response.headers)
            save_json(_state_file(part), {"url": url, "validator": validator})
            _append(response, part, have, total, progress)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        cause = str(error).rpartition("Caused by ")[2][:200]
        raise Interrupted(f"the connection broke ({type(error).__name__}: {cause})") from error
    if total is not None and part.stat().st_size < total:
        raise Interrupted(f"the connection ended at {part.stat().st_size:,} of {total:,} bytes")
    return total


def _check_redirect(response: Any, **_: Any) -> None:
    """Refuse an address that is not https before it is asked."""
    if response.is_redirect:
        check_url(urljoin(response.url, response.headers["Location"]))


def _resume_headers(url: str, part: Path, is_checked: bool) -> tuple[int, dict[str, str]]:
    """(bytes that need not come again, request headers). Without a validator only a file with a checksum is resumed."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "voice-age-gender/0.1 (research; python-requests)"}
    state = load_json(_state_file(part)) if _state_file(part).exists() else {}
    have = part.stat().st_size if part.exists() else 0
    validator = state.get("validator") if state.get("url") == url else None
    if not have or not (validator or is_checked):
        return 0, headers
    headers["Range"] = f"bytes={have}-"
    if validator:
        headers["If-Range"] = validator
    return have, headers


def _strong_validator(headers: Any) -> str | None:
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _check_status(response: Any, part: Path) -> None:
    """Raise for every status but 200 and 206: to be tried again, or with advice for good."""
    status, url = response.status_code, response.url
    if status in (200, 206):
        return
    if status == 416:
        _forget(part)
        raise Interrupted("the server has fewer bytes than were already here; starting over")
    if status in RETRY_STATUS:
        wait = response.headers.get("Retry-After", "")
        raise Interrupted(f"the server answered {status}", float(wait) if wait.isdigit() else None)
    advice = REFUSALS.get(status, "try a mirror, or fetch it by hand")
    raise DownloadFailed(f"{url}: the server answered {status}; {advice}")


def _range_start(response: Any) -> int:
    text = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-", 1)[0]
    return int(text) if text.isdigit() else -1


def _whole_size(response: Any, have: int) -> int | None:
    whole = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status_code in (206, 416) and whole.isdigit():
        return int(whole)
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() and not response.headers.get("Content-Encoding") else None


def _append(response: Any, part: Path, have: int, total: int | None, progress: bool) -> None:
    name = part.name.removesuffix(".part")
    with (
        open(part, "ab" if have else "wb") as stream,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, disable=not progress) as bar,
    ):
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):  # keeps what came before a break
            stream.write(chunk)
            bar.update(len(chunk))


def download_first(urls: Sequence[str], target: Path, **options: Any) -> Path:
    """`download_file` from the first of several mirrors that serves it; DownloadFailed names them all."""
    problems = []
    for url in urls:
        try:
            return download_file(url, target, **options)
        except DownloadFailed as error:
            problems.append(str(error))
    advice = f"Is this machine on line? You may also fetch it by hand to {target}"
    raise DownloadFailed("no mirror serves the file:\n" + "\n".join([*problems, advice]))


def record_checksum(path: Path) -> str:
    """Write `<path>.sha256` beside a file whose checksum nobody publishes, or compare with the one of before.

    Returns the hex SHA-256. ValueError when the file is not the one of before.
    """
    note = path.with_name(path.name + ".sha256")
    found = digest_of(path, "sha256")
    if note.exists():
        kept = note.read_text(encoding="ascii").split()[0]
        if kept != found:
            raise ValueError(f"{path}: sha256 {found}, but {note.name} says {kept}; delete the one that is wrong")
        return found
    with write_whole(note) as partial:
        partial.write_text(f"{found}  {path.name}\n", encoding="ascii")
    return found
