"""Corpora: what ships where, how a run's are fetched and read, and what 01 tells of them.

A new corpus is one file with a `read_*` function and one entry in `CORPORA`.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib import paths
from lib.corpora import common_voice, own_data, speechocean762, voxceleb, youtube
from lib.corpora.demo.render import render_synthetic_corpora
from lib.stages import digest_files, fingerprint_of
from lib.tables import validate_table


class Corpus(NamedTuple):
    """How one corpus is read, found (ValueError where the files are not that `read` starts from) and got, step by step."""

    read: Callable[..., tuple[pd.DataFrame, pd.DataFrame]]
    find: Callable[[Path], Any]
    advice: list[str]  # with the keys of a run file's section `download`


CORPORA = {
    "common_voice": Corpus(common_voice.read_common_voice, common_voice.find_audio, [
        "sign up at https://mozilladatacollective.com, open the page of the Common Voice locale that you want, and "
        "agree to its terms there",
        "make an API key (Profile, Credentials) and set it: export MDC_API_KEY=...",
        "put the dataset's id (its page, Download, API) into download.datasets: the run fetches and unpacks it",
        "or, with an archive of your own, put its path into download.datasets, or unpack it so that {folder} holds "
        "validated.tsv and clips/ (in any subfolder), or name its folder in download.root",
    ]),
    "voxceleb": Corpus(voxceleb.read_voxceleb, voxceleb.find_utterances, [
        "there is no open download of the audio: join and unzip your own copy of the official archives (cat "
        "vox1_dev_wav_parta* > vox1_dev_wav.zip) so that {folder} holds wav/ (or aac/) and vox1_meta.csv",
        "or fetch it from YouTube: read LEGAL_NOTE in lib/corpora/youtube.py, then set download.youtube: true; the meta "
        "and frame files and an age table come along (download.download: true fetches those alone)",
        "ages are in neither: put labels of your own into {folder}/ages.csv (columns speaker and decade, or speaker "
        "and age), or name a table in download.age_labels",
    ]),
    "speechocean762": Corpus(speechocean762.read_speechocean762, speechocean762.find_speechocean762, [
        "set download.download: true (open, no account, about 520 MB), or unpack "
        "https://www.openslr.org/resources/101/speechocean762.tar.gz so that {folder} holds train/, test/ and WAVE/, "
        "or name its folder in download.root",
    ]),
    "own_data": Corpus(own_data.read_own_data, own_data.find_own_table, [
        "write {folder}/own_data.csv with a column path (and speaker, gender, age where you know them), paths relative "
        "to that folder; or name another folder in download.root. params/own_data.yaml shows an example",
    ]),
}  # fmt: skip


def resolve_root(root: str) -> Path:
    """A folder as a run file writes it: relative ones count from the repository, "~" is the home folder, "" = data/corpora."""
    return (paths.ROOT / Path(root).expanduser()).resolve() if root else paths.DATA / "corpora"


def _find_sources(corpora: Sequence[str], folder: Path) -> dict[str, Path]:
    """What each reader is given: its folder, or the CSV of one's own data that `folder` is."""
    sources = {}
    for entry in corpora:
        name, _, below = entry.partition(":")
        if name not in CORPORA or name in sources:
            raise ValueError(f"download.corpora: {entry!r}: choose from {sorted(CORPORA)}, each once")
        if Path(below).is_absolute() or ".." in Path(below).parts:
            raise ValueError(f"download.corpora: {entry!r}: name a folder below download.root")
        sources[name] = folder / (below or name) if below or (folder / name).is_dir() else folder
    if not sources:
        raise ValueError(f"download.corpora: name at least one of {sorted(CORPORA)}")
    return sources


def find_roots(corpora: Sequence[str], folder: Path) -> dict[str, Path]:
    """The folder of each corpus, from which the paths of its clips count.

    `corpora`: names of readers. A corpus lies in the folder of its name below `folder`, else `folder` is its own; an
    entry such as "common_voice:common_voice_many" names another folder below. ValueError for an unknown name.
    """
    return {name: path.parent if path.is_file() else path for name, path in _find_sources(corpora, folder).items()}


def check_sources(corpora: Sequence[str], folder: Path) -> None:
    """Raise ValueError with what the user must do first unless every corpus can be found below `folder`, by its files' names."""
    missing = []
    for name, source in _find_sources(corpora, folder).items():
        try:
            CORPORA[name].find(source)
        except ValueError as error:
            target = source if source.name == name else folder / name
            steps = "".join(f"\n  - {step.format(folder=target)}" for step in CORPORA[name].advice)
            missing.append(f"\n{name}: {error}\n  To do:{steps}")
    if missing:
        text = "the data of this run is not there yet." + "".join(missing)
        raise ValueError(text.replace(f"{paths.ROOT}{os.sep}", ""))


def _is_there(name: str, folder: Path) -> bool:
    try:
        check_sources([name], folder)
    except ValueError:
        return False
    return True


def check_run(download: dict[str, Any], synthetic: bool) -> None:
    """Raise ValueError with what the user must do first when the corpora of a run are not there and cannot be fetched.

    `download` is the run file's section of that name. Nothing is read but names of files.
    """
    if synthetic:
        return
    folder, ages = resolve_root(download["root"]), download["age_labels"]
    coming = {"speechocean762", "voxceleb"} if download["download"] else set()
    coming |= {"voxceleb"} if download["youtube"] else set()
    coming |= {"common_voice"} if download["datasets"] else set()
    names = _find_sources(download["corpora"], folder)
    for dataset in download["datasets"] if "common_voice" in names and not _is_there("common_voice", folder) else ():
        if not resolve_root(dataset).is_file():
            if "/" in dataset or dataset.endswith((".tar", ".gz", ".tgz", ".zip", ".bz2", ".xz")):
                raise ValueError(f"download.datasets: {dataset}: no such archive; paths count from the repository")
            common_voice.check_mdc_key()
    left = [entry for entry in download["corpora"] if entry.partition(":")[0] not in coming]
    if left:
        check_sources(left, folder)
    if "voxceleb" in names and ages and not resolve_root(ages).is_file():
        raise ValueError(f"download.age_labels: {ages}: no such file; relative paths count from the repository")


def obtain_corpora(
    corpora: Sequence[str],
    root: str,
    synthetic: bool,
    seed: int,
    *,
    speakers: int = 0,
    clips_per_speaker: int = 0,
    download: bool = False,
    datasets: Sequence[str] = (),
    from_youtube: bool = False,
    max_clips_per_speaker: int = 0,
) -> Path:
    """Folder that holds the corpora; rendered first in a synthetic run, fetched first where the run says so.

    Parameters
    ----------
    root: the user's folder; "" = `data/corpora`, or a folder of its own for the synthetic ones.
    speakers, clips_per_speaker: size of the synthetic corpora.
    download: fetch what is open and missing: speechocean762, VoxCeleb's meta and frame files and its age table.
    datasets: Common Voice: ids at Mozilla Data Collective (needs MDC_API_KEY), or archives that are here already.
    from_youtube: VoxCeleb's audio too; see `lib.corpora.youtube.LEGAL_NOTE`.

    Raises ValueError with what to do first when a corpus is not there.
    """
    folder, stopped = resolve_root(root), ""
    if synthetic:
        folder = folder if root else folder / f"synthetic-{speakers}x{clips_per_speaker}-seed{seed}"
        render_synthetic_corpora(folder, seed, speakers=speakers, clips_per_speaker=clips_per_speaker)
        return folder
    names = _find_sources(corpora, folder)
    for dataset in datasets if "common_voice" in names else ():
        _fetch_common_voice(folder / "common_voice", dataset, max_clips_per_speaker or None, seed)
    if "speechocean762" in names and download and not _is_there("speechocean762", folder):
        speechocean762.download_speechocean762(folder)
    if "voxceleb" in names and (download or from_youtube):
        place = names["voxceleb"] if root else folder / "voxceleb"
        voxceleb.download_voxceleb(place)
        if from_youtube:
            stopped = youtube.download_videos(voxceleb.list_videos(place), place, allowed=True)
    try:
        check_sources(corpora, folder)
    except ValueError as error:
        raise ValueError(f"{error}\nYouTube: {stopped}" if stopped else str(error)) from error
    return folder


def _fetch_common_voice(folder: Path, dataset: str, cap: int | None, seed: int) -> None:
    """Fetch a dataset and unpack its tables and the wanted clips, into a folder of its own; once."""
    done, archive = folder / f".{fingerprint_of(dataset, cap, seed)}.completed", resolve_root(dataset)
    if not done.exists():
        archive = archive if archive.is_file() else common_voice.download_common_voice(dataset, folder / "archives")
        name = re.sub(r"(\.tar)?\.\w+$", "", archive.name)
        common_voice.extract_common_voice(archive, folder / name, cap, seed)
        paths.save_json(done, {"archive": archive.name})


def read_clips(
    corpora: Sequence[str], folder: Path, *, max_clips_per_speaker: int = 0, age_labels: str = "", seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Read the corpora of a run into (clips, ledger, checksum of both tables and of every byte of the clips' sound).

    Parameters
    ----------
    max_clips_per_speaker: of Common Voice, drawn by `seed`; 0 = no cap.
    age_labels: a table of ages for VoxCeleb; "" = those lying in its folder.

    `clips.attrs` holds what each reader left there, by corpus, for `describe_reading`. A sound that stands there for two
    speakers is dropped. Raises ValueError when a corpus holds nothing that can be used, with the reasons counted, and
    when the user's own table gives one sound to two speakers.
    """
    options = {
        "common_voice": {"max_clips_per_speaker": max_clips_per_speaker or None, "seed": seed},
        "voxceleb": {"ages": resolve_root(age_labels) if age_labels else None},
    }
    noticed, tables = {}, []
    for name, source in _find_sources(corpora, folder).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # `describe_reading` shows them
            clips, ledger = CORPORA[name].read(source, **options.get(name, {}))
        folder_read = {"folder that was read": ["/".join(source.parts[-2:])]}
        noticed[name], clips.attrs = clips.attrs | {"facts": folder_read | clips.attrs["facts"]}, {}
        if clips.empty:
            raise ValueError(_nothing_left(name, source, ledger, noticed[name]["warnings"]))
        digests = digest_files(source.parent if source.is_file() else source, clips["path"].unique())
        tables.append((clips, ledger, clips["path"].map(digests)))
    clips, ledger, sounds = (pd.concat(parts, ignore_index=True) for parts in zip(*tables))
    keys = sounds + clips["start_s"].map("@{:g}".format)
    shared = clips["speaker_id"].groupby(keys).transform("nunique") > 1
    if shared.any():  # the very same bytes: nobody knows whose voice it is
        names = clips["clip_id"].groupby(keys).transform(", ".join)
        if (shared & (clips["corpus"] == own_data.CORPUS)).any():
            first = names[shared].iloc[0]
            raise ValueError(f"own_data: the same sound is listed for several speakers ({first}); say whose it is")
        lost = clips[["corpus"]].assign(item=clips["clip_id"], reason="the same sound for two speakers", detail=names)
        clips, ledger = clips[~shared], pd.concat([ledger, lost[shared]], ignore_index=True)
    checksum = hashlib.sha256()
    for table in (clips.assign(sound=sounds), ledger):
        checksum.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    clips, ledger = validate_table(clips, "clips", str(folder)), validate_table(ledger, "ledger", str(folder))
    clips.attrs = noticed
    return clips, ledger, checksum.hexdigest()


def _nothing_left(name: str, source: Path, ledger: pd.DataFrame, noticed: Sequence[str]) -> str:
    """The message when a corpus holds nothing that can be used: counts by reason, and the first names of each."""
    reasons = [
        f"{len(items):,} {reason} ({', '.join(items[:3])}{' ...' if len(items) > 3 else ''})"
        for reason, items in ledger.groupby("reason", sort=False)["item"].agg(list).items()
    ]
    text = f"{name}: 0 of {len(ledger):,} rows of {source} can be used: {'; '.join([*reasons, *noticed]) or 'it has no rows'}"
    return f"{text}. Paths count from that folder: name another in download.root, or mend these files"


def describe_reading(clips: pd.DataFrame) -> list[dict[str, str]]:
    """What the readers noticed, one record (corpus, noticed, what) each; takes the clips as `read_clips` returns them."""
    records = []
    for corpus, attrs in clips.attrs.items():
        facts = attrs["facts"] | {"words that the label contract does not know": attrs["unknown_labels"]}
        noticed = [(words, _in_words(fact)) for words, fact in facts.items()]
        noticed += [("WARNING", text) for text in attrs["warnings"]]
        records += [{"corpus": corpus, "noticed": words, "what": what} for words, what in noticed if what]
    return records


def _in_words(fact: Any) -> str:
    """A count, a list of names or counts by name as text; "" when there is nothing to tell."""
    if isinstance(fact, dict):
        parts = {name: _in_words(value) for name, value in fact.items()}
        return ", ".join(f"{name}: {value}" for name, value in parts.items() if value)
    if isinstance(fact, list):
        return ", ".join(fact[:12]) + (f" and {len(fact) - 12} more" if len(fact) > 12 else "")
    return f"{fact:,}" if fact else ""
