"""Fetching: one file over https, resumed and checked; archives of which only the wanted plain files are unpacked."""

import contextlib
import hashlib
import lzma
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from lib.paths import load_json, replace_folder, save_json

CHUNK_BYTES = 1 << 16  # what a broken line may cost
SPARE_BYTES = 200_000_000  # left free on the disk
MOST_EXPANSION, SMALL_BYTES = 100, 10**9  # over so many times its size and so many bytes an archive is a bomb
REFUSALS = {  # answers that asking again does not change
    400: "a wrong address", 401: "it asks for a password", 403: "have you agreed to its terms?", 404: "no such file",
    410: "it has been removed",
}  # fmt: skip


def check_url(url: str) -> str:
    """Return `url` if it is https (http on this very machine, for tests); ValueError otherwise."""
    if re.match(r"https://|http://(127\.0\.0\.1|localhost)[:/]", url):
        return url
    raise ValueError(f"{url}: only https is fetched")


def download_file(url: str, target: Path, known_hash: str = "", attempts: int = 5, pause_s: float = 1.0) -> Path:
    """Fetch `url` to `target`, going on where an earlier attempt stopped; return `target`. Bytes gather in
    `<target>.part`, renamed only when size and hash are right. A file that is there (and has the hash) is not fetched
    again. `known_hash`: "sha256:..." or "md5:...", "" = the server's size decides; `attempts`: tries in a row that
    bring nothing new, waits double from `pause_s` seconds. ValueError when that gives no right file."""
    import requests

    shown, part, failures = _without_query(check_url(url)), target.with_name(target.name + ".part"), 0
    if target.exists() and _has_hash(target, known_hash):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, shown)
            break
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if status in REFUSALS or failures >= attempts:
                advice = REFUSALS.get(status, f"{attempts} tries; run again later, it goes on")
                said = f"{_without_query(str(error))[:300]}; {advice}. Or fetch it by hand to {target}"
                raise ValueError(f"{shown}: {said}") from error
            time.sleep(min(pause_s * 2 ** (failures - 1), 60))
    part.with_suffix(".json").unlink(missing_ok=True)
    if not _has_hash(part, known_hash):
        part.unlink()
        raise ValueError(f"{shown}: not the file expected ({known_hash}), or damaged on its way; run again")
    return part.replace(target)


def _without_query(text: str) -> str:
    """A message without the queries of its addresses, which may hold a signature that opens them."""
    return re.sub(r"\?[^\s'\")]+", "?...", text)


def _has_hash(path: Path, known_hash: str) -> bool:
    kind, _, value = known_hash.partition(":")
    with open(path, "rb") as stream:
        return not kind or hashlib.file_digest(stream, kind).hexdigest() == value.casefold()


def _fetch_rest(url: str, part: Path, shown: str) -> None:
    """One try: append what `part` lacks, if the server still has the version noted beside it, or begin anew."""
    import requests

    note, have, headers = part.with_suffix(".json"), 0, {"Accept-Encoding": "identity"}
    noted = load_json(note) if note.exists() and part.exists() else {}
    if noted.get("url") == shown and noted["validator"]:
        have = part.stat().st_size
        headers |= {"Range": f"bytes={have}-", "If-Range": noted["validator"]}
    with requests.get(url, headers=headers, stream=True, timeout=(15, 60)) as response:
        for hop in [*response.history, response]:
            check_url(hop.url)
        if response.status_code == 416:  # nothing is left to come, so `part` is whole, or of another file
            part.unlink()
        response.raise_for_status()
        have, length = have if response.status_code == 206 else 0, response.headers.get("Content-Length")
        if length is None:
            raise ValueError(f"{shown}: the server does not say its size, so a cut would go unnoticed")
        check_disk(part.parent, int(length))
        tag = response.headers.get("ETag", "W/")
        save_json(note, {"url": shown, "validator": response.headers.get("Last-Modified") if tag[:2] == "W/" else tag})
        bar = tqdm(total=have + int(length), initial=have, unit="B", unit_scale=True, desc=part.stem)
        with open(part, "ab" if have else "wb") as stream, bar:
            for chunk in response.iter_content(CHUNK_BYTES):
                bar.update(stream.write(chunk))


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise ValueError, naming both sizes, unless so many bytes fit on the folder's disk with some to spare."""
    free, needed = shutil.disk_usage(folder).free / 1e9, (needed_bytes + SPARE_BYTES) / 1e9
    if needed > free:
        raise ValueError(f"{folder}: {free:.1f} GB free, {needed:.1f} GB needed; make room, or choose another folder")


@contextlib.contextmanager
def unpacking(folder: Path) -> Iterator[Path]:
    """Yield a hidden neighbour to unpack into, which becomes `folder` in the end. Killed, the next call goes on."""
    partial = folder.with_name(f".{folder.name}-partial")
    try:
        yield partial
    except ValueError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, folder)


def extract_members(archive: Path, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> list[Path]:
    """Unpack the members of a tar (gz, bz2, xz) for which `wanted(name)` is true, return their paths; files that are there
    with the right size are left. ValueError for an archive that is missing, damaged, cut short or not to be trusted."""
    if not archive.is_file():
        raise ValueError(f"{archive}: no such archive")
    folder.mkdir(parents=True, exist_ok=True)
    left, paths = MOST_EXPANSION * archive.stat().st_size + SMALL_BYTES, []
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tqdm(tar, unit="file", desc=archive.name):
                if member.isdir() or not wanted(member.name):
                    continue
                path, told = (folder / member.name).resolve(), " is a link, a device or leads out of "
                if not member.isreg() or ".." in member.name.split("/") or not path.is_relative_to(folder.resolve()):
                    raise ValueError(f"{archive}: {member.name!r}{told}{folder}; do not trust it")
                left -= member.size
                if left < 0:
                    raise ValueError(f"{archive}: unpacks to over {MOST_EXPANSION} times its size; do not trust it")
                paths.append(path)
                if not (path.is_file() and path.stat().st_size == member.size):
                    check_disk(folder, member.size)
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of this machine's disk
            raise
        raise ValueError(f"{archive}: damaged or cut short ({error}); download it again") from error
    return paths
