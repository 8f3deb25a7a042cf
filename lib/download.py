"""Fetching: files that resume and are checked, archives of which only the wanted members are unpacked.

What is fetched from where, and on whose terms, is in the functions named `download_<corpus>`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from lib.archives import CHUNK_BYTES, check_disk, digest_of, extract_members, find_fault
from lib.paths import load_json, save_json, write_whole

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # plain http is for tests on this machine only
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)

OPENSLR_MIRRORS = [  # https://www.openslr.org/101/ and the mirrors that it lists
    "https://www.openslr.org/resources/101/speechocean762.tar.gz",
    "https://openslr.trmal.net/resources/101/speechocean762.tar.gz",
    "https://openslr.elda.org/resources/101/speechocean762.tar.gz",
    "https://openslr.magicdatatech.com/resources/101/speechocean762.tar.gz",
]
SPEECHOCEAN_SHA256 = None  # OpenSLR publishes none; the one computed is kept beside the archive to compare with
SPEECHOCEAN_BYTES = (300_000_000, 900_000_000)  # about 520 MB
VOXCELEB_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb"
VOXCELEB_TXT_MD5 = {  # walkoncross/download_voxceleb_and_lrs_datasets; no password is asked for these
    "vox1_dev_txt.zip": "9c3b51e34038d1bdb2174dcc66543267",
    "vox1_test_txt.zip": "8e06592a5f604e23e8cd10f421b36cc3",
    "vox2_dev_txt.zip": "0e7a9f083c4efc27982f748f5f0b540a",
    "vox2_test_txt.zip": "f305b5347c9c45362b7c838b561cea7d",
}
VOXCELEB_AUDIO_MD5 = {  # of the joined parts; the user's own copy, behind the authors' form
    "vox1_dev_wav.zip": "ae63e55b951748cc486645f532ba230b",
    "vox1_test_wav.zip": "185fdc63c3c739954633d50379a3d102",
    "vox2_dev_aac.zip": "bbc063c46078a602ca71605645c2a402",
    "vox2_test_aac.zip": "0d2b3ea430a821c33263b5ea37ede312",
}
AGE_TABLE_URL = "https://raw.githubusercontent.com/hechmik/voxceleb_enrichment_age_gender/main/dataset"
AGE_TABLES = ["final_dataframe_extended.csv", "age-train.txt", "age-test.txt"]  # MIT, arXiv 2109.13510
MDC_ADVICE = (
    "Common Voice comes from Mozilla Data Collective: sign up at https://mozilladatacollective.com, open the page of "
    "the dataset and AGREE TO ITS TERMS there, make an API key under Profile > Credentials, and put it into the "
    "environment as MDC_API_KEY. Or unpack an archive that you already have with lib.download.extract_common_voice"
)


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
    sha256, md5, size: what the whole file must have (hex, hex, bytes); None = not known, then the server's size decides.
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
    failures, restarted = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            total = _fetch_rest(url, part, size, bool(sha256 or md5), progress)
        except _Interrupted as error:
            grew = part.exists() and part.stat().st_size > before
            failures = 1 if grew else failures + 1
            if failures >= attempts:
                raise DownloadFailed(f"{url}: {error} after {attempts} tries; run again later, it goes on") from error
            time.sleep(min(error.wait_s or pause_s * 2 ** (failures - 1), 60))
            continue
        fault = find_fault(part, size or total, sha256, md5)
        if not fault:
            break
        resumed = before > 0
        _forget(part)
        if not resumed or restarted:
            raise DownloadFailed(f"{url}: {fault}; the file there is not the one expected, or was damaged on its way")
        restarted = True  # what was resumed may have been another version: once more from the start
    os.replace(part, target)
    _forget(part)
    return target


class _Interrupted(Exception):
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
        with requests.get(url, headers=headers, stream=True, timeout=(15, 60)) as response:
            for step in [*response.history, response]:
                check_url(step.url)
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
        raise _Interrupted(f"the connection broke ({type(error).__name__}: {error})") from error
    if total is not None and part.stat().st_size < total:
        raise _Interrupted(f"the connection ended at {part.stat().st_size:,} of {total:,} bytes")
    return total


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
        raise _Interrupted("the server has fewer bytes than were already here; starting over")
    if status in RETRY_STATUS:
        wait = response.headers.get("Retry-After", "")
        raise _Interrupted(f"the server answered {status}", float(wait) if wait.isdigit() else None)
    advice = {401: "it asks for a password", 403: "access is denied: have you agreed to its terms?", 404: "no such file",
              410: "it has been removed"}.get(status, "try a mirror, or fetch it by hand")  # fmt: skip
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
    raise DownloadFailed("no mirror serves the file:\n" + "\n".join(problems))


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


def extract_common_voice(
    archive: Path | str,
    folder: Path | str,
    bucket: str | Sequence[str] = "validated",
    max_clips_per_speaker: int | None = None,
    keep_benchmark: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Unpack a Common Voice archive's tables, then only the clips that `read_common_voice` would take; return `folder`.

    The options are those of `read_common_voice`. Two passes over the archive, since its tables may come after its clips.
    """
    from lib.common_voice import list_wanted_clips

    folder = Path(folder)
    tables = extract_members(archive, folder, lambda name: name.endswith(".tsv") and "/clips/" not in name, progress)
    if not any(path.name == "validated.tsv" for path in tables):
        raise ValueError(f"{archive}: holds no validated.tsv; is it a Common Voice archive?")
    wanted = list_wanted_clips(folder, bucket, max_clips_per_speaker, keep_benchmark, seed=seed)
    extract_members(archive, folder, lambda name: name.removeprefix("./") in wanted, progress)
    return folder


def download_common_voice(dataset_id: str, folder: Path | str, attempts: int = 5, pause_s: float = 2.0) -> Path:
    """Fetch one locale of one release from Mozilla Data Collective and check it; return the archive's path.

    Needs the environment variable MDC_API_KEY, and the dataset's terms agreed to in the browser. `dataset_id` is the id
    or short name on the dataset's page, or a path to an archive that is here already. Resumes; the terms forbid
    passing the archive on. Raises ValueError with what to do when key, consent, space or the archive is at fault.
    """
    if Path(dataset_id).is_file():
        return Path(dataset_id)
    if not os.environ.get("MDC_API_KEY"):
        raise ValueError(f"MDC_API_KEY is not set. {MDC_ADVICE}")
    import requests
    from datacollective import AuthenticationError, RateLimitError, download_dataset, get_dataset_details
    from datacollective.errors import DownloadError

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        try:
            details = get_dataset_details(dataset_id)
            if Path(details.filename or "").name != (details.filename or ""):
                raise ValueError(f"Common Voice {dataset_id}: the file name {details.filename!r} is no plain name")
            check_disk(folder, int(details.sizeBytes or 0))
            archive = Path(download_dataset(dataset_id, download_directory=str(folder)))
            return _check_delivery(archive, details)
        except (AuthenticationError, PermissionError, FileNotFoundError) as error:
            raise ValueError(f"Common Voice {dataset_id}: {error}. {MDC_ADVICE}") from error
        except (DownloadError, RateLimitError, _Interrupted, requests.RequestException) as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # datacollective wraps it
                raise KeyboardInterrupt from error
            failures += 1
            if failures >= attempts:
                raise DownloadFailed(f"Common Voice {dataset_id}: {error}; run again later, it goes on") from error
            time.sleep(min(pause_s * 2 ** (failures - 1), 60))


def _check_delivery(archive: Path, details: Any) -> Path:
    """Compare an archive with what the platform says of it; a wrong one is removed, so that the next try starts afresh."""
    kind, _, value = (details.checksum or "").rpartition(":")
    sums = {kind or "sha256": value} if value and (kind or "sha256") in ("sha256", "md5") else {}
    fault = find_fault(archive, size=int(details.sizeBytes) if details.sizeBytes else None, **sums)
    if fault:
        archive.unlink()
        raise _Interrupted(f"{archive.name}: {fault}")
    return archive


def download_speechocean762(folder: Path | str, urls: Sequence[str] = OPENSLR_MIRRORS, progress: bool = True) -> Path:
    """Fetch speechocean762 (OpenSLR 101, CC BY 4.0, no account) and unpack it below `folder`; return its folder.

    About 520 MB. OpenSLR publishes no checksum: the one computed is written to `speechocean762.tar.gz.sha256` and
    compared from then on; size and completeness are checked. A corpus that is there already is left alone.
    """
    from lib.speechocean762 import HALVES, find_speechocean762

    folder = Path(folder)
    done = folder / "speechocean762" / ".completed"
    if not done.exists():
        archive = download_first(urls, folder / "speechocean762.tar.gz", sha256=SPEECHOCEAN_SHA256, progress=progress)
        low, high = SPEECHOCEAN_BYTES
        if not low < archive.stat().st_size < high:
            raise DownloadFailed(f"{archive}: {archive.stat().st_size:,} bytes; about 520 MB were expected. Delete it")
        record_checksum(archive)
        extract_members(archive, folder, progress=progress)
        corpus = find_speechocean762(folder)
        missing = [half for half in HALVES if not (corpus / half / "wav.scp").is_file()]
        if missing:
            raise DownloadFailed(f"{archive}: no {' and '.join(missing)} half in it; delete it and fetch it again")
        save_json(corpus / ".completed", {"archive": archive.name})
    return find_speechocean762(folder)


def download_voxceleb_meta(folder: Path | str, progress: bool = True) -> list[Path]:
    """Fetch vox1_meta.csv and vox2_meta.csv (speakers' genders, CC BY 4.0, no password); return their paths."""
    from lib.voxceleb import META_FILES, read_voxceleb_meta

    paths = []
    for name in META_FILES:
        paths.append(download_file(f"{VOXCELEB_URL}/meta/{name}", Path(folder) / name, progress=progress))
        read_voxceleb_meta(paths[-1])
        record_checksum(paths[-1])
    return paths


def download_voxceleb_txt(
    folder: Path | str, parts: Sequence[str] = ("vox1_dev", "vox1_test"), progress: bool = True
) -> Path:
    """Fetch and unpack the frame files (CC BY 4.0, no password) of `parts`, checked by md5; return `folder`/txt."""
    folder = Path(folder)
    for part in parts:
        name = f"{part}_txt.zip"
        if name not in VOXCELEB_TXT_MD5:
            raise ValueError(f"{part!r}: choose from {[key.removesuffix('_txt.zip') for key in VOXCELEB_TXT_MD5]}")
        archive = download_file(
            f"{VOXCELEB_URL}/data/{name}", folder / name, md5=VOXCELEB_TXT_MD5[name], progress=progress
        )
        extract_members(archive, folder, lambda name: name.endswith(".txt"), progress)
    return folder / "txt"


def download_age_table(
    folder: Path | str,
    name: str = AGE_TABLES[0],
    url: str = AGE_TABLE_URL,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetch one of hechmik's age tables for VoxCeleb (MIT); return its path.

    Its authors publish no checksum: without `sha256` the one computed is kept beside the file and compared from then on.
    """
    from lib.age_tables import read_age_labels

    if name not in AGE_TABLES:
        raise ValueError(f"{name!r}: choose from {AGE_TABLES}")
    path = download_file(f"{url}/{name}", Path(folder) / name, sha256=sha256, progress=progress)
    if not len(read_age_labels(path)):
        raise DownloadFailed(f"{path}: holds no ages; delete it and fetch it again")
    record_checksum(path)
    return path
