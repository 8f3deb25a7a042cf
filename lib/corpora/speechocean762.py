"""speechocean762 (OpenSLR 101, CC BY 4.0): Mandarin speakers reading English, children and adults, with years of age.

Kaldi files: two columns divided by blanks or tabs; ids look like numbers but are text.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from lib.corpora.sieve import Sieve

CORPUS = "speechocean762"
HALVES = ["train", "test"]  # 125 speakers each, no speaker in both


def read_kaldi_table(path: Path) -> list[tuple[str, str]]:
    """Read (key, value) rows of a Kaldi text file; a missing file has none, a key without value gets ""."""
    if not Path(path).is_file():
        return []
    lines = Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    cells = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(row[0], row[1].strip() if len(row) > 1 else "") for row in cells]


def find_speechocean762(root: Path | str) -> Path:
    """Folder at or up to two levels below `root` with train/wav.scp or test/wav.scp. ValueError when there is none."""
    root = Path(root)
    if (root / "wav.scp").is_file() and root.absolute().name in HALVES:
        return root.absolute().parent
    for pattern in ("", "*/", "*/*/"):
        for half in HALVES:
            found = sorted(root.glob(f"{pattern}{half}/wav.scp"))
            if found:
                return found[0].parent.parent
    raise ValueError(
        f"{root}: no train/wav.scp or test/wav.scp; unpack speechocean762.tar.gz from https://www.openslr.org/101/ "
        "there (lib.corpora.download.download_speechocean762 does it)"
    )


def read_speechocean762(root: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the halves that are there into (clips, ledger); `official_split` is "train" or "test" as published.

    `clips.attrs` holds rows_in (rows of wav.scp), halves and warnings. Raises ValueError when there is neither half.
    """
    root = Path(root)
    folder = find_speechocean762(root)
    halves = [half for half in HALVES if (folder / half / "wav.scp").is_file()]
    sieve = Sieve(CORPUS, pd.concat([_read_half(folder, root, half) for half in halves], ignore_index=True))
    sieve.facts = {"halves": halves}
    for half in sorted(set(HALVES) - set(halves)):
        sieve.warn(f"the {half} half is not there")
    sieve.drop(sieve.rows["speaker"] == "", "no speaker", "not in utt2spk")
    sieve.drop(sieve.rows["size"] < 0, "no such file", sieve.rows["path"])
    sieve.drop(sieve.rows["size"] == 0, "empty file", sieve.rows["path"])
    sieve.drop(sieve.rows["item"].duplicated(), "listed twice", "in another row or half")
    return sieve.finish()


def _read_half(folder: Path, root: Path, half: str) -> pd.DataFrame:
    """One row per entry of the half's wav.scp; size in bytes, -1 = no such file."""
    speakers, genders, ages = (dict(read_kaldi_table(folder / half / n)) for n in ("utt2spk", "spk2gender", "spk2age"))
    for speaker, utterances in read_kaldi_table(folder / half / "spk2utt"):  # says the same the other way round
        speakers = dict.fromkeys(utterances.split(), speaker) | speakers
    rows = []
    for utterance, name in read_kaldi_table(folder / half / "wav.scp"):
        path = _find_audio(folder, name)
        speaker = speakers.get(utterance, "")
        clip_id = f"{CORPUS}:{utterance}"
        rows.append({
            "item": utterance, "speaker": speaker, "clip_id": clip_id, "recording_id": clip_id, "language": "en",
            "speaker_id": f"{CORPUS}:{speaker}", "path": _relative(path or folder / name, root),
            "size": path.stat().st_size if path else -1, "gender_raw": genders.get(speaker, ""),
            "age_raw": ages.get(speaker, ""), "official_split": half,
        })  # fmt: skip
    columns = ["item", "speaker", "clip_id", "recording_id", "language", "speaker_id", "path", "gender_raw", "age_raw"]
    frame = pd.DataFrame(rows, columns=[*columns, "size", "official_split"])
    return frame.astype(dict.fromkeys([*columns, "official_split"], "str") | {"size": "int64"})


def _find_audio(folder: Path, name: str) -> Path | None:
    """The file that wav.scp names, its suffix in either case."""
    path = folder / name
    for candidate in (path, path.with_suffix(path.suffix.lower()), path.with_suffix(path.suffix.upper())):
        if candidate.is_file():
            return candidate
    return None


def _relative(path: Path, root: Path) -> str:
    """`path` from `root` on, with forward slashes; "../WAVE/..." where `root` is one half's own folder."""
    return Path(os.path.relpath(path, root)).as_posix()
