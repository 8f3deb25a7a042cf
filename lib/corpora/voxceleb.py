"""VoxCeleb1 and 2: official cuts (`wav/`, `aac/`), or whole videos' audio cut by the official frame files (`txt/`).

Layout and meta files: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/. An utterance's key is `<speaker>/<video>/<n>`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from lib.corpora.age_tables import AGE_FILES, join_ages, read_age_labels
from lib.corpora.labels import genders_of
from lib.corpora.sieve import Sieve
from lib.corpora.voxceleb_files import media_seconds, read_frame_file, read_voxceleb_meta

CORPUS = "voxceleb"
AUDIO_SUFFIXES = [  # best first
    ".wav", ".flac", ".m4a", ".ogg", ".opus", ".mp3", ".aac", ".mp4", ".webm", ".mka", ".mkv",
]  # fmt: skip
META_FILES = ["vox1_meta.csv", "vox2_meta.csv"]
SYNTHETIC = "synthetic-"  # folders of rendered corpora, never taken for real ones below a folder of the user's
SLACK_S = 0.1  # a video's audio may end this much before its last frame


def read_voxceleb(
    root: Path | str, ages: Path | str | Sequence[Path | str] | None = None, meta: Sequence[Path | str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read every utterance at or below `root` into (clips, ledger).

    An utterance is a cut, `.../<speaker>/<video>/<n>.wav` (m4a, flac ...), or a frame file of the same name (txt) with
    the whole video's audio anywhere below `root` as `<video>.<suffix>`, such as `audio/<video>.m4a`; the clip then
    carries start_s and end_s from the frame file. A frame file without audio goes to the ledger.

    Parameters
    ----------
    ages: one or more tables that `lib.corpora.age_tables` reads; None takes those lying in `root`, [] none.
    meta: meta files; None looks for vox1_meta.csv and vox2_meta.csv around `root`.

    `clips.attrs` holds rows_in (utterances), meta and ages (names of files), speakers_without_meta, videos_without_segments and warnings.
    Raises ValueError when `root` is no folder, or holds neither cuts nor frame files.
    """
    sieve = _gather_utterances(Path(root), ages, meta)
    for reason in sieve.rows["reason"].unique():
        if reason:
            sieve.drop(sieve.rows["reason"] == reason, reason, sieve.rows["detail"])
    return sieve.finish()


def list_utterances(
    root: Path | str, ages: Path | str | Sequence[Path | str] | None = None, meta: Sequence[Path | str] | None = None
) -> pd.DataFrame:
    """Every utterance at or below `root`, with or without its audio: what `lib.corpora.youtube.attrition` compares with.

    Columns: clip_id, speaker_id, recording_id, video, gender, age_years, age_decade, reason ("" = can be read).
    """
    rows = _gather_utterances(Path(root), ages, meta).rows
    columns = ["clip_id", "speaker_id", "recording_id", "video", "gender", "age_years", "age_decade", "reason"]
    return rows.assign(gender=genders_of(rows["gender_raw"]))[columns]


def _gather_utterances(
    root: Path, ages: Path | str | Sequence[Path | str] | None, meta: Sequence[Path | str] | None
) -> Sieve:
    """A row for every utterance with its speaker's labels; `reason` says why it cannot be used, or is blank."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; unzip VoxCeleb's wav, aac or txt archives there")
    found, frame_files, videos, tables = _list_files(root)
    keys = sorted(set(found) | set(frame_files))
    if not keys:
        raise ValueError(f"{root}: no <speaker>/<video>/<n>.wav (m4a, txt) below it; unzip VoxCeleb's archives there")
    sieve = Sieve(CORPUS, pd.DataFrame([_describe(root, key, found, frame_files, videos) for key in keys]))
    sieve.note(
        [(path, "listed twice", "another file of the same utterance") for v in found.values() for path, _ in v[1:]]
    )
    sieve.facts = {"videos_without_segments": len(set(videos) - {key.split("/")[1] for key in frame_files})}
    _join_meta(sieve, [Path(path) for path in meta] if meta is not None else _find_beside(root, tables, META_FILES))
    if ages is None:
        ages = _find_beside(root, tables, AGE_FILES)
    ages = [ages] if isinstance(ages, (str, Path)) else list(ages)
    _join_ages(sieve, [read_age_labels(path) for path in ages])
    sieve.facts["ages"] = [Path(path).name for path in ages]
    return sieve


Found = dict[str, list[tuple[str, int]]]


def _list_files(root: Path) -> tuple[Found, dict[str, str], Found, list[Path]]:
    """(cuts by key, frame files by key, long audio by video, tables): paths relative to `root`, best file first."""
    cuts, frame_files, videos, tables = {}, {}, {}, []
    for path, size in _walk(root):
        suffix, stem = path.suffix.casefold(), path.stem
        relative = path.relative_to(root).as_posix()
        speaker, video = path.absolute().parts[-3:-1]
        is_utterance = re.fullmatch(r"id\d+", speaker) is not None
        if suffix in AUDIO_SUFFIXES and is_utterance:
            cuts.setdefault(f"{speaker}/{video}/{stem}", []).append((relative, size))
        elif suffix == ".txt" and is_utterance:
            frame_files[f"{speaker}/{video}/{stem}"] = relative
        elif suffix in AUDIO_SUFFIXES:
            videos.setdefault(stem, []).append((relative, size))
        elif path.name in META_FILES + AGE_FILES:
            tables.append(path)
    for files in [*cuts.values(), *videos.values()]:
        files.sort(key=lambda file: (file[1] == 0, AUDIO_SUFFIXES.index(Path(file[0]).suffix.casefold()), file[0]))
    return cuts, frame_files, videos, tables


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """(path, size in bytes) of every file below `folder` that is not hidden."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
                continue  # a link to a folder above it would lead round in circles
            if entry.is_dir() and not entry.name.startswith(SYNTHETIC):
                yield from _walk(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path), entry.stat().st_size


def _describe(root: Path, key: str, cuts: Found, frame_files: dict[str, str], videos: Found) -> dict:
    """One utterance as a row; `reason` says why it cannot be used, or is blank."""
    speaker, video, _ = key.split("/")
    row = {"item": key, "speaker": speaker, "video": video, "clip_id": f"{CORPUS}:{key}", "path": "", "start_s": 0.0,
           "end_s": float("nan"), "reason": "", "detail": "", "speaker_id": f"{CORPUS}:{speaker}",
           "recording_id": f"{CORPUS}:{video}"}  # fmt: skip
    if key in cuts:
        path, size = cuts[key][0]
        return row | {"path": path} | ({} if size else {"reason": "empty file", "detail": path})
    if video not in videos:
        return row | {"reason": "no audio", "detail": "a frame file without its cut or its video"}
    long, size = videos[video][0]
    if not size:
        return row | {"reason": "empty file", "detail": long}
    try:
        segment = read_frame_file(root / frame_files[key])
    except ValueError as error:
        return row | {"reason": "unusable frame file", "detail": _without_root(error, root, frame_files[key])}
    if (segment.speaker or speaker, segment.video or video) != (speaker, video):
        detail = f"{frame_files[key]} names {segment.speaker}/{segment.video}"
        return row | {"reason": "unusable frame file", "detail": detail}
    try:
        length_s = _remembered_seconds(root / long)
    except ValueError as error:
        return row | {"reason": "unreadable video", "detail": _without_root(error, root, long)}
    if segment.end_s > length_s + SLACK_S:
        detail = f"ends at {segment.end_s:.2f} s, {long} at {length_s:.2f} s"
        return row | {"reason": "past the end of the video", "detail": detail}
    return row | {"path": long, "start_s": segment.start_s, "end_s": min(segment.end_s, length_s)}


def _without_root(error: ValueError, root: Path, name: str) -> str:
    """What an error says of a file, naming it from `root` on: a ledger is no place for this machine's folders."""
    return str(error).replace(str(root / name), name)


_SECONDS: dict[tuple[str, int, int], float] = {}


def _remembered_seconds(path: Path) -> float:
    """`media_seconds`, asked once per file and state of it: one video holds many utterances."""
    state = path.stat()
    key = (str(path.absolute()), state.st_size, state.st_mtime_ns)
    if key not in _SECONDS:
        _SECONDS[key] = media_seconds(path)
    return _SECONDS[key]


def _find_beside(root: Path, below: list[Path], names: list[str]) -> list[Path]:
    """Tables of these names below `root`, or else up to two folders above it; one of each name."""
    found: dict[str, Path] = {}
    above = [folder / name for folder in root.absolute().parents[:2] for name in names]
    for path in [*sorted(below, key=lambda path: len(path.parts)), *(path for path in above if path.is_file())]:
        if path.name in names:
            found.setdefault(path.name, path)
    return [found[name] for name in names if name in found]


def _join_meta(sieve: Sieve, paths: list[Path]) -> None:
    """Give every row its speaker's gender and official split; meta lists more speakers than have audio."""
    if not paths:
        sieve.warn(
            "no vox1_meta.csv or vox2_meta.csv: no genders; lib.corpora.download.download_voxceleb_meta fetches them"
        )
    tables = [read_voxceleb_meta(path).set_index("speaker") for path in paths]
    meta = pd.concat(tables) if tables else pd.DataFrame({"gender_raw": [], "official_split": []}, dtype="str")
    meta = meta[~meta.index.duplicated()]
    speakers = sieve.rows["speaker"]
    sieve.rows["gender_raw"] = speakers.map(meta["gender_raw"]).fillna("").astype("str")
    sieve.rows["official_split"] = speakers.map(meta["official_split"])
    sieve.facts["meta"] = [path.name for path in paths]
    sieve.facts["speakers_without_meta"] = int(speakers[~speakers.isin(meta.index)].nunique())


def _join_ages(sieve: Sieve, tables: list[pd.DataFrame]) -> None:
    """Give every row the age of its utterance, else of its speaker in its video, else of its speaker."""
    ages, disagreeing = join_ages(sieve.rows[["speaker", "video", "item"]], tables)
    sieve.rows[["age_years", "age_decade", "age_raw"]] = ages
    sieve.facts["ages_disagreeing"] = disagreeing


def compare_cuts(root: Path | str) -> pd.DataFrame:
    """Compare official cuts with the cut rule, wherever a cut lies beside its frame file below `root`.

    Columns: key, samples (of the cut), expected ((last - first) * 640 + 1), difference. Cuts must be 16 kHz files that
    libsndfile reads.
    """
    import soundfile

    root = Path(root)
    cuts, frame_files, _, _ = _list_files(root)
    rows = []
    for key in sorted(set(cuts) & set(frame_files)):
        samples = soundfile.info(str(root / cuts[key][0][0])).frames
        expected = read_frame_file(root / frame_files[key]).samples
        rows.append({"key": key, "samples": samples, "expected": expected, "difference": samples - expected})
    return pd.DataFrame(rows, columns=["key", "samples", "expected", "difference"])


def find_utterance(root: Path | str, needs_meta: bool = True) -> Path:
    """The first cut below `root`, or the first frame file if whole videos' audio is there too. ValueError otherwise.

    `needs_meta`: whether a meta file must be near, too.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    frames, media = None, None
    for path, _ in _walk(root):
        is_utterance = re.fullmatch(r"id\d+", path.absolute().parts[-3]) is not None
        if path.suffix.casefold() in AUDIO_SUFFIXES and is_utterance:
            return _with_meta(root, path) if needs_meta else path
        frames = frames or (path if is_utterance and path.suffix == ".txt" else None)
        media = media or (path if path.suffix.casefold() in AUDIO_SUFFIXES else None)
        if frames and media:
            return _with_meta(root, frames) if needs_meta else frames
    raise ValueError(f"{root}: {'frame files but no audio' if frames else 'no cuts and no frame files'} below it")


def _with_meta(root: Path, path: Path) -> Path:
    """`path`, if a meta file lies at, above or up to two folders below `root`; ValueError otherwise."""
    near = [found for name in META_FILES for pattern in ("", "*/", "*/*/") for found in root.glob(pattern + name)]
    if not _find_beside(root, near, META_FILES):
        raise ValueError(f"{root}: no vox1_meta.csv or vox2_meta.csv, so no genders")
    return path
