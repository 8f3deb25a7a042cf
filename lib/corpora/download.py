"""Fetching: files that resume and are checked, archives of which only the wanted members are unpacked.

What is fetched from where, and on whose terms, is in the functions named `download_<corpus>`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib.corpora.archives import check_disk, extract_members, find_fault, join_parts
from lib.corpora.transfer import DownloadFailed, Interrupted, download_file, download_first, record_checksum
from lib.paths import save_json

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
    "environment as MDC_API_KEY. Or unpack an archive that you already have with lib.corpora.download.extract_common_voice"
)


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

    The options are those of `read_common_voice`. Two passes over the archive: its tables may come after its clips.
    """
    from lib.corpora.common_voice import list_wanted_clips

    folder = Path(folder)
    tables = extract_members(archive, folder, lambda name: name.endswith(".tsv") and "/clips/" not in name, progress)
    if not any(path.name == "validated.tsv" for path in tables):
        raise ValueError(f"{archive}: holds no validated.tsv; is it a Common Voice archive?")
    wanted = list_wanted_clips(folder, bucket, max_clips_per_speaker, keep_benchmark, seed=seed)
    extract_members(archive, folder, lambda name: name.removeprefix("./") in wanted, progress)
    return folder


def check_mdc_key() -> None:
    """Raise ValueError with what to do unless MDC_API_KEY is in the environment, or in a file `.env`."""
    import datacollective  # noqa: F401  (reads `.env`)

    if not os.environ.get("MDC_API_KEY"):
        raise ValueError(f"MDC_API_KEY is not set. {MDC_ADVICE}")


def download_common_voice(dataset_id: str, folder: Path | str, attempts: int = 5, pause_s: float = 2.0) -> Path:
    """Fetch one locale of one release from Mozilla Data Collective and check it; return the archive's path.

    Needs the environment variable MDC_API_KEY, and the dataset's terms agreed to in the browser. `dataset_id` is the id
    or short name on the dataset's page, or a path to an archive that is here already. Resumes; the terms forbid
    passing the archive on. Raises ValueError with what to do when key, consent, space or the archive is at fault.
    """
    if Path(dataset_id).is_file():
        return Path(dataset_id)
    check_mdc_key()
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
        except (DownloadError, RateLimitError, Interrupted, requests.RequestException) as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # datacollective wraps it
                raise KeyboardInterrupt from error
            failures += 1
            if failures >= attempts:
                raise DownloadFailed(f"Common Voice {dataset_id}: {error}; run again later, it goes on") from error
            time.sleep(min(pause_s * 2 ** (failures - 1), 60))


def _check_delivery(archive: Path, details: Any) -> Path:
    """Compare an archive with what the platform says of it; remove a wrong one, so that the next try starts afresh."""
    kind, _, value = (details.checksum or "").rpartition(":")
    sums = {kind or "sha256": value} if value and (kind or "sha256") in ("sha256", "md5") else {}
    fault = find_fault(archive, size=int(details.sizeBytes) if details.sizeBytes else None, **sums)
    if fault:
        archive.unlink()
        raise Interrupted(f"{archive.name}: {fault}")
    return archive


def download_speechocean762(folder: Path | str, urls: Sequence[str] = OPENSLR_MIRRORS, progress: bool = True) -> Path:
    """Fetch speechocean762 (OpenSLR 101, CC BY 4.0, no account) and unpack it below `folder`; return its folder.

    About 520 MB. OpenSLR publishes no checksum: the one computed is written to `speechocean762.tar.gz.sha256` and
    compared from then on; size and completeness are checked. A corpus that is there already is left alone.
    """
    from lib.corpora.speechocean762 import HALVES, find_speechocean762

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
    from lib.corpora.voxceleb import META_FILES
    from lib.corpora.voxceleb_files import read_voxceleb_meta

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


def extract_voxceleb(
    archives: Path | str,
    folder: Path | str,
    wanted: Callable[[str], bool] | None = None,
    check: bool = True,
    progress: bool = True,
) -> list[str]:
    """Unpack your own copies of the official archives, joined from their parts where needed; return their names.

    Parameters
    ----------
    archives: folder with vox1_dev_wav.zip, or vox1_dev_wav_parta*, and so on for the names in `VOXCELEB_AUDIO_MD5`.
    wanted: takes a member's name such as "wav/id10270/5r0dWxy17C8/00001.wav"; None = all.
    check: compare each archive's md5 with the authors' first (minutes for the large ones).

    Raises ValueError when there is none of them, or when one is damaged.
    """
    archives, done = Path(archives), []
    for name, md5 in VOXCELEB_AUDIO_MD5.items():
        archive = archives / name
        parts = sorted(archives.glob(f"{archive.stem}_part*"))
        if parts and not archive.exists():
            join_parts(parts, archive, md5=md5)
        elif archive.exists() and check:
            fault = find_fault(archive, md5=md5)
            if fault:
                raise ValueError(f"{archive}: {fault}; it is cut short or not the official archive")
        if archive.exists():
            target = Path(folder) / archive.stem
            extract_members(archive, target, wanted, progress)
            done.append(name)
    if not done:
        raise ValueError(f"{archives}: none of {list(VOXCELEB_AUDIO_MD5)} nor their parts; put your own copies there")
    return done


def download_age_table(
    folder: Path | str,
    name: str = AGE_TABLES[0],
    url: str = AGE_TABLE_URL,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetch one of hechmik's age tables for VoxCeleb (MIT); return its path.

    Its authors publish no checksum: without `sha256` the one computed is kept beside the file and compared later.
    """
    from lib.corpora.age_tables import read_age_labels

    if name not in AGE_TABLES:
        raise ValueError(f"{name!r}: choose from {AGE_TABLES}")
    path = download_file(f"{url}/{name}", Path(folder) / name, sha256=sha256, progress=progress)
    if not len(read_age_labels(path)):
        raise DownloadFailed(f"{path}: holds no ages; delete it and fetch it again")
    record_checksum(path)
    return path
