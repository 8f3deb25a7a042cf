"""Archives: joining the parts in which they come, and unpacking only the wanted members, safely."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from lib.paths import write_whole

CHUNK_BYTES = 1 << 20
SPARE_BYTES = 200_000_000  # left free on the disk


def find_fault(path: Path, size: int | None = None, sha256: str | None = None, md5: str | None = None) -> str:
    """What is wrong with a file's size or checksum, or "" when nothing is; None is not checked."""
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes, not {size:,}"
    for name, value in (("sha256", sha256), ("md5", md5)):
        if value:
            found = digest_of(path, name)
            if found != value.casefold():
                return f"{name} {found}, not {value}"
    return ""


def digest_of(path: Path, name: str) -> str:
    """Hex digest of a file's bytes by the algorithm `name`, such as "sha256"."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise ValueError, naming both sizes, unless so many bytes fit on the folder's disk with some to spare."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise ValueError(
            f"{folder}: {free / 1e9:.1f} GB free, {(needed_bytes + SPARE_BYTES) / 1e9:.1f} GB needed; make room, or "
            "choose another folder"
        )


def join_parts(parts: Iterable[Path], target: Path, md5: str | None = None) -> Path:
    """Join an archive that comes in parts (`vox1_dev_wav_parta*`), in the order of their names, and check it."""
    parts = sorted(Path(part) for part in parts)
    if not parts:
        raise ValueError(f"{target}: no parts to join")
    check_disk(target.parent, sum(part.stat().st_size for part in parts))
    with write_whole(target) as partial:
        with open(partial, "wb") as out:
            for part in parts:
                with open(part, "rb") as stream:
                    shutil.copyfileobj(stream, out, CHUNK_BYTES)
        fault = find_fault(partial, md5=md5)
        if fault:
            raise ValueError(f"{target}: {fault}; one of {[part.name for part in parts]} is missing or damaged")
    return target


Member = tuple[str, int, bool, Callable[[], IO[bytes]]]  # name, bytes, is a plain file, open it


def extract_members(
    archive: Path | str, folder: Path | str, wanted: Callable[[str], bool] | None = None, progress: bool = True
) -> list[Path]:
    """Unpack the members of a tar (gz, bz2, xz) or zip for which `wanted(name)` is true; None = all. Return the files.

    The archive is read as a stream, once, and only wanted files are written, each whole or not at all; files that are
    there with the right size are left alone, so an interrupted run goes on. Raises ValueError when the archive is
    damaged or cut short, and for any wanted member that is a link or a device, or would land outside `folder`.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with _open_archive(archive, progress) as members:
        for name, size, is_plain, opener in members:
            if wanted is not None and not wanted(name):
                continue
            target = _safe_target(archive, folder, name, is_plain)
            files.append(target)
            if target.is_file() and target.stat().st_size == size:
                continue
            with write_whole(target) as partial, open(partial, "wb") as out:
                with opener() as stream:
                    shutil.copyfileobj(stream, out, CHUNK_BYTES)
                if out.tell() != size:
                    raise ValueError(f"{archive}: cut short in {name}; download it again")
    return files


def _safe_target(archive: Path, folder: Path, name: str, is_plain: bool) -> Path:
    """Where a member belongs, if that is a plain file below `folder`; ValueError otherwise."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    outside = not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name
    target = folder.joinpath(*parts) if not outside else folder
    if outside or not is_plain or not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{archive}: its member {name!r} is a link, a device or leads out of the folder; do not trust it"
        )
    return target


@contextlib.contextmanager
def _open_archive(archive: Path, progress: bool) -> Iterator[Iterator[Member]]:
    """Members of an archive in its own order, folders left out; every sign of damage becomes a ValueError."""
    try:
        with contextlib.ExitStack() as stack:
            if zipfile.is_zipfile(archive):
                yield _zip_members(stack.enter_context(zipfile.ZipFile(archive)), progress)
            else:
                stream = stack.enter_context(open(archive, "rb"))
                total = archive.stat().st_size
                bar = tqdm(total=total, unit="B", unit_scale=True, desc=archive.name, disable=not progress)
                stack.enter_context(bar)
                counted = _Counted(stream, bar)
                yield _tar_members(stack.enter_context(tarfile.open(fileobj=counted, mode="r|*")))
    except FileNotFoundError as error:
        if error.filename and Path(error.filename) == archive:
            raise ValueError(f"{archive}: no such archive") from error
        raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{archive}: damaged or cut short ({error}); download it again") from error


class _Counted:
    """A stream that moves a progress bar as it is read."""

    def __init__(self, stream: IO[bytes], bar: tqdm):
        self.stream, self.bar = stream, bar

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.bar.update(len(data))
        return data


def _tar_members(tar: tarfile.TarFile) -> Iterator[Member]:
    for member in tar:
        if not member.isdir():
            yield member.name, member.size, member.isreg(), lambda member=member: tar.extractfile(member)


def _zip_members(archive: zipfile.ZipFile, progress: bool) -> Iterator[Member]:
    for member in tqdm(archive.infolist(), unit="file", disable=not progress):
        if not member.is_dir():
            kind = stat.S_IFMT(member.external_attr >> 16)
            yield (
                member.filename,
                member.file_size,
                kind in (0, stat.S_IFREG),
                lambda member=member: archive.open(member),
            )
