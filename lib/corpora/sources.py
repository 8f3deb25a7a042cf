"""Where a run's corpora come from: rendered on the spot, or a folder that the user has; and what the folder holds."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from lib import paths
from lib.corpora.labels import class_names
from lib.corpora.registry import check_sources, corpus_root, read_corpora
from lib.stages import fingerprint_of

ARCHIVE_SUFFIXES = (".tar", ".gz", ".tgz", ".zip", ".bz2", ".xz")


def resolve_root(root: str) -> Path:
    """A folder as a run file writes it: relative ones count from the repository, "~" is the home folder."""
    return (paths.ROOT / Path(root).expanduser()).resolve()


def corpora_folder(root: str) -> Path:
    """The folder that holds a run's corpora: the user's `root`, or `data/corpora` when that is empty."""
    return resolve_root(root) if root else paths.DATA / "corpora"


def check_run(download: dict[str, Any], synthetic: bool) -> None:
    """Raise ValueError with what the user must do first when the corpora of a run are not there and cannot be fetched.

    `download` is the run file's section of that name. Cheap: nothing is read but names of files.
    """
    if synthetic:
        return
    folder = corpora_folder(download["root"])
    names = set(download["corpora"])
    fetched = names & ({"speechocean762"} if download["download"] else set())
    fetched |= names & ({"voxceleb"} if download["youtube"] else set())
    if "common_voice" in names and download["datasets"]:
        fetched |= {"common_voice"}
        if not _is_there("common_voice", folder):
            _check_datasets(download["datasets"])
    left = [name for name in download["corpora"] if name not in fetched]
    check_sources(left, folder, tables_come=download["download"])
    age_labels = download["age_labels"]
    if "voxceleb" in names and age_labels and not resolve_root(age_labels).is_file():
        raise ValueError(f"download.age_labels: {age_labels}: no such file; relative paths count from the repository")


def _check_datasets(datasets: list[str]) -> None:
    """Raise ValueError unless each is an archive that is here, or an id for which there is a key."""
    from lib.corpora.download import check_mdc_key

    for dataset in datasets:
        if resolve_root(dataset).is_file():
            continue
        if "/" in dataset or dataset.endswith(ARCHIVE_SUFFIXES):
            raise ValueError(f"download.datasets: {dataset}: no such archive; relative paths count from the repository")
        check_mdc_key()


def obtain_corpora(
    names: list[str],
    root: str,
    synthetic: bool,
    seed: int,
    *,
    speakers: int = 0,
    clips_per_speaker: int = 0,
    download: bool = False,
    datasets: list[str] = (),
    youtube: bool = False,
    bucket: str = "validated",
    max_clips_per_speaker: int = 0,
    keep_benchmark: bool = False,
) -> Path:
    """Folder that holds the corpora `names`; rendered first in a synthetic run, fetched first where the run says so.

    Parameters
    ----------
    root: the user's folder; "" = `data/corpora`, or a folder of its own for the synthetic ones.
    speakers, clips_per_speaker: size of the synthetic corpora.
    download: fetch what is open and missing: speechocean762, VoxCeleb's meta and frame files and its age table.
    datasets: Common Voice: ids at Mozilla Data Collective (needs MDC_API_KEY), or archives that are here already.
    youtube: VoxCeleb's audio from YouTube; see `lib.corpora.youtube.LEGAL_NOTE`.

    Raises ValueError with what to do first when a corpus is not there.
    """
    if synthetic:
        from lib.corpora.demo.render import VERSION, render_synthetic_corpora

        name = f"synthetic{VERSION}-{speakers}x{clips_per_speaker}-seed{seed}"
        folder = resolve_root(root) if root else paths.DATA / "corpora" / name
        render_synthetic_corpora(folder, seed, speakers=speakers, clips_per_speaker=clips_per_speaker)
        return folder
    folder = corpora_folder(root)
    if "common_voice" in names and datasets:
        _fetch_common_voice(folder / "common_voice", datasets, bucket, max_clips_per_speaker, keep_benchmark, seed)
    if "speechocean762" in names and download and not _is_there("speechocean762", folder):
        from lib.corpora.download import download_speechocean762

        download_speechocean762(folder)
    stopped = ""
    if "voxceleb" in names and (download or youtube):
        stopped = _fetch_voxceleb(corpus_root("voxceleb", folder) if root else folder / "voxceleb", youtube)
    try:
        check_sources(names, folder)
    except ValueError as error:
        raise ValueError(f"{error}\nYouTube: {stopped}" if stopped else str(error)) from error
    return folder


def _is_there(name: str, folder: Path) -> bool:
    try:
        check_sources([name], folder)
    except ValueError:
        return False
    return True


def _fetch_common_voice(
    folder: Path, datasets: list[str], bucket: str, most: int, keep_benchmark: bool, seed: int
) -> None:
    """Fetch each dataset and unpack its tables and the wanted clips; one that was unpacked before is left alone.

    Each goes into a folder of its own: the archives of the first releases have no folder inside.
    """
    from lib.corpora.download import download_common_voice, extract_common_voice

    for dataset in datasets:
        done = folder / f".{fingerprint_of(dataset, bucket, most, keep_benchmark, seed)}.completed"
        if not done.exists():
            local = resolve_root(dataset)
            archive = download_common_voice(str(local) if local.is_file() else dataset, folder / "archives")
            name = re.sub(r"(\.tar)?\.\w+$", "", Path(archive).name)
            extract_common_voice(archive, folder / name, bucket, most or None, keep_benchmark, seed)
            paths.save_json(done, {"archive": Path(archive).name})


def _fetch_voxceleb(folder: Path, youtube: bool) -> str:
    """Fetch VoxCeleb1's meta, frame files and age table where missing; with `youtube` the audio of its videos too.

    Returns why YouTube stopped the run, with advice, or "".
    """
    from lib.corpora import download

    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("vox*_meta.csv")):
        download.download_voxceleb_meta(folder)
    unpacked = folder / ".txt.completed"  # an interrupted unpacking goes on; frame files of the user's are left alone
    if not unpacked.exists() and (
        list(folder.glob("vox1_*_txt.zip*")) or not [*folder.glob("txt"), *folder.glob("*/txt")]
    ):
        download.download_voxceleb_txt(folder)
        paths.save_json(unpacked, {"folder": "txt"})
    if not (folder / download.AGE_TABLES[0]).exists():
        download.download_age_table(folder)
    if youtube:
        from lib.corpora.voxceleb import list_utterances
        from lib.corpora.youtube import download_videos

        status = download_videos(sorted(list_utterances(folder)["video"].unique()), folder, allowed=True)
        return status.attrs["stopped"]
    return ""


def data_checksum(roots: dict[str, Path]) -> str:
    """SHA-256 over the relative name and the size of every file of every corpus: tells whether the data are the same."""
    digest = hashlib.sha256()
    for corpus, root in sorted(roots.items()):
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                path = Path(folder) / name
                digest.update(f"{corpus}\t{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def describe_roots(roots: dict[str, Path]) -> pd.DataFrame:
    """One row a corpus: the last two names of its folder, files, and megabytes."""
    rows = []
    for corpus, root in roots.items():
        sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
        folder = "/".join(root.parts[-2:])
        rows.append({"corpus": corpus, "folder": folder, "files": len(sizes), "megabytes": round(sum(sizes) / 1e6, 1)})
    return pd.DataFrame(rows)


def find_roots(names: list[str], folder: Path) -> dict[str, Path]:
    """The folder of each corpus below `folder`."""
    return {name: corpus_root(name, folder) for name in names}


def read_clips(
    names: list[str],
    folder: Path,
    *,
    bucket: str,
    keep_benchmark: bool,
    max_clips_per_speaker: int,
    age_labels: str,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the corpora of a run into (clips, ledger), each reader given what concerns it.

    Parameters
    ----------
    bucket, keep_benchmark, max_clips_per_speaker (0 = no cap): of Common Voice.
    age_labels: a table of ages for VoxCeleb; "" = those lying in its folder.
    """
    options = {
        "common_voice": {
            "bucket": bucket,
            "keep_benchmark": keep_benchmark,
            "max_clips_per_speaker": max_clips_per_speaker or None,
            "seed": seed,
        },
        "voxceleb": {"ages": resolve_root(age_labels) if age_labels else None},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `describe_reading` shows them
        clips, ledger, _ = read_corpora(names, folder, **{name: options[name] for name in names if name in options})
    return clips, ledger


NOTICED = {  # what readers leave in `clips.attrs`, in words
    "tables": "tables whose rows were read",
    "halves": "halves that were read",
    "meta": "meta files that were read",
    "ages": "age tables that were read",
    "filled": "blank labels filled from the same speaker's other, agreeing rows",
    "conflicting_speakers": "speakers whose own rows disagree (their blanks stay blank)",
    "unknown_labels": "words that the label contract does not know",
    "extra_files": "files on disk that no table names",
    "speakers_without_meta": "speakers in no meta file",
    "videos_without_segments": "long recordings without a frame file",
    "ages_disagreeing": "ages left out because their tables disagree",
    "files_without_speaker": "files that count as a speaker of their own",
}


def describe_reading(clips: pd.DataFrame) -> list[dict[str, str]]:
    """What the readers noticed, one record (corpus, noticed, what) each; takes the clips as `read_clips` returns them."""
    records = []
    for corpus, facts in clips.attrs["by_corpus"].items():
        told = {words: _in_words(facts[key]) for key, words in NOTICED.items() if key in facts}
        records += [{"corpus": corpus, "noticed": words, "what": what} for words, what in told.items() if what]
        records += [{"corpus": corpus, "noticed": "WARNING", "what": text} for text in facts["warnings"]]
    return records


def _in_words(fact: Any) -> str:
    """A count, a list of names or counts by name as text; "" when there is nothing to tell."""
    if isinstance(fact, dict):
        parts = {name: _in_words(value) for name, value in fact.items()}
        return ", ".join(f"{name}: {value}" for name, value in parts.items() if value)
    if isinstance(fact, list):
        return ", ".join(fact[:12]) + (f" and {len(fact) - 12} more" if len(fact) > 12 else "")
    return f"{fact:,}" if fact else ""


def count_ledger(clips: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Items by corpus and what became of them: kept as clips, or left out for a reason; with a total a corpus."""
    kept = clips.groupby("corpus").size().rename("items").reset_index().assign(outcome="kept as a clip")
    dropped = ledger.groupby(["corpus", "reason"]).size().rename("items").reset_index()
    dropped = dropped.rename(columns={"reason": "outcome"}).assign(outcome=lambda t: "left out: " + t["outcome"])
    both = pd.concat([kept, dropped], ignore_index=True)
    total = both.groupby("corpus")["items"].sum().reset_index().assign(outcome="rows in")
    return pd.concat([total, both], ignore_index=True).sort_values("corpus", kind="stable")[
        ["corpus", "outcome", "items"]
    ]


def count_speakers(clips: pd.DataFrame, classes: list[str], bounds: list[int]) -> pd.DataFrame:
    """Speakers, clips, and clips a speaker (median, most) by corpus, gender and age class."""
    named = clips.assign(
        gender=clips["gender"].fillna("not known"),
        age=class_names(clips, "age", classes, bounds).fillna("not known"),
    )
    keys = ["corpus", "gender", "age"]
    each = named.groupby([*keys, "speaker_id"]).size().rename("clips").reset_index()
    table = each.groupby(keys)["clips"].agg(speakers="size", clips="sum", median="median", most="max")
    return table.rename(columns={"median": "clips a speaker (median)", "most": "clips a speaker (most)"}).reset_index()


def count_recovered(roots: dict[str, Path], clips: pd.DataFrame, classes: list[str], bounds: list[int]) -> pd.DataFrame:
    """VoxCeleb's segments: how many of those that its files name can be used, by gender and age; empty without VoxCeleb.

    Videos vanish from YouTube; what is missing is not missing at random.
    """
    if "voxceleb" not in roots:
        return pd.DataFrame({"note": ["VoxCeleb is not part of this run"]})
    from lib.corpora.voxceleb import list_utterances
    from lib.corpora.youtube import attrition

    return attrition(list_utterances(roots["voxceleb"]), clips[clips["corpus"] == "voxceleb"], classes, bounds)


def count_downloads(roots: dict[str, Path]) -> pd.DataFrame:
    """Videos asked for at YouTube, by state and kind of failure, with what to do; one line when none was."""
    from lib.corpora.youtube import count_failures, load_status

    status = load_status(roots["voxceleb"]) if "voxceleb" in roots else pd.DataFrame()
    return count_failures(status) if len(status) else pd.DataFrame({"note": ["no video was asked for in this run"]})
