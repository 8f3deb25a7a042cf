"""Corpora: how those of a run are fetched and read. A new one is a file with a reader and an entry in `CORPORA`."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lib import paths
from lib.corpora import common_voice, own_data, speechocean762, voxceleb, youtube
from lib.corpora.demo.render import CLIPS, VERSION, render_synthetic_corpora
from lib.corpora.sieve import Reading
from lib.stages import digest_files, fingerprint_of
from lib.tables import validate_table

OPEN, YOUTUBE = "open", "youtube"  # of `download.fetch`; other entries are of Common Voice
CORPORA = {  # reader, and what to do to have the corpus, step by step, with the keys of a run file's section `download`
    "common_voice": (common_voice.read_common_voice, [
        common_voice.MDC_ADVICE,
        "put the dataset's id (its page, Download, API) into download.fetch: the run fetches and unpacks it",
        "or unpack an archive so that {folder} holds validated.tsv and clips/, or name its folder in download.root",
    ]),
    "voxceleb": (voxceleb.read_voxceleb, [
        "join (cat vox1_dev_wav_parta* > vox1_dev_wav.zip) and unzip your own copy of the official archives, so that "
        "{folder} holds wav/ (or aac/) and vox1_meta.csv",
        "or fetch it from YouTube: read LEGAL_NOTE in lib/corpora/youtube.py, then set download.fetch: [\"youtube\"]; "
        "meta and frame files and an age table come along ([\"open\"] fetches those alone)",
        "for ages write {folder}/ages.csv (columns speaker and age, or decade), or name a table in download.age_labels",
    ]),
    "speechocean762": (speechocean762.read_speechocean762, [
        "set download.fetch: [\"open\"] (open, no account, about 520 MB), or unpack https://www.openslr.org/101/ so "
        "that {folder} holds train/, test/ and WAVE/, or name its folder in download.root",
    ]),
    "own_data": (own_data.read_own_data, [
        "write {folder}/own_data.csv with a column path (and speaker, gender, age where you know them), paths relative "
        "to that folder; or name another folder in download.root. params/own_data.yaml shows an example",
    ]),
}  # fmt: skip


def resolve_root(root: str) -> Path:
    """A folder as a run file writes it: relative ones count from the repository, "~" is home, "" is data/corpora."""
    return (paths.ROOT / Path(root).expanduser()).resolve() if root else paths.DATA / "corpora"


def find_folder(root: str, synthetic: bool, seed: int, speakers: int) -> Path:
    """Where the corpora of a run lie, or will; see `obtain_corpora`."""
    name = f"synthetic-v{VERSION}-{speakers}x{CLIPS}-seed{seed}" if synthetic and not root else ""
    return resolve_root(root) / name


def _find_sources(corpora: Sequence[str], folder: Path) -> dict[str, Path]:
    """What each reader is given: its folder, or the CSV of one's own data that `folder` is."""
    entries = [entry.partition(":")[::2] for entry in corpora]
    leads_out = any({"..", "/"} & set(Path(below).parts) for _, below in entries)
    if leads_out or not dict(entries).keys() <= CORPORA.keys() or not 0 < len(entries) == len(dict(entries)):
        told = f"download.corpora: {list(corpora)}: choose from {sorted(CORPORA)}, each once, in folders below download.root"
        raise ValueError(told)
    return {name: folder / (below or name) if below or (folder / name).is_dir() else folder for name, below in entries}


def find_roots(corpora: Sequence[str], folder: Path) -> dict[str, Path]:
    """The folder of each corpus, from which the paths of its clips count: that of its name below `folder`, of its entry
    such as "common_voice:common_voice_many", else `folder` itself. ValueError for a name that no reader has."""
    return {name: path.parent if path.is_file() else path for name, path in _find_sources(corpora, folder).items()}


def _read_corpora(corpora: Sequence[str], folder: Path, options: dict[str, dict[str, Any]]) -> dict[str, Reading]:
    """(clips, ledger) of each corpus. ValueError with what the user must do first where one gives no clip."""
    tables, problems = {}, []
    for name, source in _find_sources(corpora, folder).items():
        try:
            clips, ledger = CORPORA[name][0](source, **options.get(name, {}))
            if clips.empty:  # say why: counts by reason, and the first names of each
                by_reason = ledger.groupby("reason", sort=False)["item"].agg(list).items()
                told = [f"{len(few):,} {why} ({', '.join(few[:3])}{' ...' * (len(few) > 3)})" for why, few in by_reason]
                told = "; ".join(told + clips.attrs["warnings"]) or "it has no rows"
                told = f"0 of {len(ledger):,} rows of {source} can be used: {told}. Paths count from that folder"
                raise ValueError(told)
            clips.attrs["facts"] = {"folder that was read": ["/".join(source.parts[-2:])], **clips.attrs["facts"]}
            tables[name] = clips, ledger
        except ValueError as error:
            target = source if source.name == name else folder / name
            steps = [f"\n  - {step.format(folder=target)}" for step in CORPORA[name][1]]
            problems.append(f"\n{name}: {error}\n  To do:{''.join(steps)}")
    if problems:
        text = "the data of this run is not there yet, or cannot be used." + "".join(problems)
        raise ValueError(text.replace(f"{paths.ROOT}{os.sep}", ""))
    return tables


def _is_there(name: str, folder: Path) -> bool:
    try:
        return bool(_read_corpora([name], folder, {}))
    except ValueError:
        return False


def check_run(download: dict[str, Any]) -> None:
    """ValueError with what to do first when corpora of a run (`download`) are not there and not to be fetched."""
    folder, ages, fetch = resolve_root(download["root"]), download["age_labels"], {*download["fetch"]}
    names, datasets = _find_sources(download["corpora"], folder), fetch - {OPEN, YOUTUBE}
    if datasets and "common_voice" in names and not _is_there("common_voice", folder):
        for dataset in (dataset for dataset in datasets if not resolve_root(dataset).is_file()):
            if "/" in dataset or dataset.endswith((".tar", ".gz", ".tgz", ".bz2", ".xz")):
                raise ValueError(f"download.fetch: {dataset}: no such archive; paths count from the repository")
            common_voice.check_mdc_key()
    if "voxceleb" in names and ages and not resolve_root(ages).is_file():
        raise ValueError(f"download.age_labels: {ages}: no such file; relative paths count from the repository")
    coming = {"common_voice": datasets, "speechocean762": OPEN in fetch, "voxceleb": {OPEN, YOUTUBE} & fetch}
    if left := [entry for entry in download["corpora"] if not coming.get(entry.partition(":")[0])]:
        _read_corpora(left, folder, {})


def obtain_corpora(
    corpora: Sequence[str], root: str, synthetic: bool, seed: int, *, speakers: int = 0, fetch: Sequence[str] = (),
    max_clips_per_speaker: int = 0,
) -> Path:  # fmt: skip
    """Folder that holds the corpora; rendered first in a synthetic run, fetched first where the run says so. `root` "":
    `data/corpora`, and there a folder of its own for each size and seed of the synthetic ones. `fetch`: `OPEN` for what
    is open and missing, speechocean762, VoxCeleb's meta, frame files and an age table; `YOUTUBE` for VoxCeleb's audio
    too, see `lib.corpora.youtube.LEGAL_NOTE`; anything else is Common Voice, an id at Mozilla Data Collective (needs
    MDC_API_KEY) or an archive that is here already. ValueError when that cannot be had."""
    folder = find_folder(root, synthetic, seed, speakers)
    if synthetic:
        render_synthetic_corpora(folder, seed, speakers)
        return folder
    names = _find_sources(corpora, folder)
    for dataset in sorted({*fetch} - {OPEN, YOUTUBE}) if "common_voice" in names else ():
        _fetch_common_voice(folder / "common_voice", dataset, max_clips_per_speaker or None, seed)
    if OPEN in fetch and "speechocean762" in names and not _is_there("speechocean762", folder):
        speechocean762.download_speechocean762(folder)
    if "voxceleb" in names and {OPEN, YOUTUBE} & {*fetch}:
        place = names["voxceleb"] if root else folder / "voxceleb"
        voxceleb.download_voxceleb(place)
        stopped = YOUTUBE in fetch and youtube.download_videos(voxceleb.list_videos(place), place, allowed=True)
        if stopped and not _is_there("voxceleb", folder):
            raise ValueError(f"VoxCeleb has no audio yet. YouTube: {stopped}")
    return folder


def _fetch_common_voice(folder: Path, dataset: str, cap: int | None, seed: int) -> None:
    """Fetch a dataset and unpack its tables and the wanted clips, into a folder of its own; once."""
    archive = resolve_root(dataset)
    state = [archive.stat().st_size, archive.stat().st_mtime_ns] if archive.is_file() else []  # another of this name?
    done = folder / f".{fingerprint_of(dataset, cap, seed, *state)}.completed"
    if not done.exists():
        archive = archive if archive.is_file() else common_voice.download_common_voice(dataset, folder / "archives")
        name = re.sub(r"(\.tar)?\.\w+$", "", archive.name)
        common_voice.extract_common_voice(archive, folder / name, cap, seed)
        paths.save_json(done, {"archive": archive.name})


def read_clips(
    corpora: Sequence[str], folder: Path, *, max_clips_per_speaker: int = 0, age_labels: str = "", seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Read the corpora of a run into (clips, ledger, checksum of both tables and of every byte of the clips' sound).
    `max_clips_per_speaker` is of Common Voice, drawn by `seed`, 0 = no cap; `age_labels` a table of ages for VoxCeleb,
    "" = those in its folder. `clips.attrs` holds what each reader noticed, by corpus. The very same sound of two
    speakers is dropped. ValueError, with what to do, when nothing is left of a corpus, or one's own table does so."""
    drawn = {"max_clips_per_speaker": max_clips_per_speaker or None, "seed": seed}
    options = {"common_voice": drawn, "voxceleb": {"ages": resolve_root(age_labels) if age_labels else None}}
    roots, noticed, frames, read = find_roots(corpora, folder), {}, [], _read_corpora(corpora, folder, options)
    for name, (clips, _) in read.items():
        noticed[name], clips.attrs = clips.attrs, {}
        frames.append(clips.assign(sound=clips["path"].map(digest_files(roots[name], clips["path"].unique()))))
    clips = pd.concat(frames, ignore_index=True)
    ledger = pd.concat([ledger for _, ledger in read.values()], ignore_index=True)
    keys = clips["corpus"] + clips["sound"] + clips["start_s"].map("@{:g}".format)
    shared = clips["speaker_id"].groupby(keys).transform("nunique") > 1
    if shared.any():  # the very same bytes: nobody knows whose voice it is
        lost = clips.loc[shared, ["corpus"]].assign(item=clips["clip_id"], reason="the same sound for two speakers")
        lost["detail"] = lost["item"].groupby(keys).transform(lambda items: ", ".join(items[:5]))
        if len(own := lost.loc[lost["corpus"] == own_data.CORPUS, "detail"]):
            raise ValueError(f"own_data: one sound is listed for several speakers ({own.iloc[0]}); say whose it is")
        clips, ledger = clips[~shared], pd.concat([ledger, lost], ignore_index=True)
    for name in {*noticed} - {*clips["corpus"]}:
        raise ValueError(f"{name}: every sound is another speaker's too, byte for byte; fetch or unpack it again")
    checksum = hashlib.sha256()
    for table in (clips, ledger):
        checksum.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    clips = validate_table(clips.drop(columns="sound"), "clips")
    clips.attrs = noticed
    return clips, validate_table(ledger, "ledger"), checksum.hexdigest()


def describe_reading(clips: pd.DataFrame) -> list[dict[str, str]]:
    """What the readers noticed, one record (corpus, noticed, what) each, of the clips as `read_clips` returns them."""
    records = []
    for corpus, attrs in clips.attrs.items():
        for noticed, fact in [*attrs["facts"].items(), *(("WARNING", text) for text in attrs["warnings"])]:
            what = fact if isinstance(fact, str) else re.sub(r"[][{}']", "", str(fact))  # "gender: 5, age: 0"
            if fact and (not isinstance(fact, dict) or any(fact.values())):
                records.append({"corpus": corpus, "noticed": noticed, "what": what[:400]})
    return records
