"""Where a run's corpora come from: rendered on the spot, or a folder that the user has; and what the folder holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pandas as pd

from lib import paths
from lib.corpora import check_sources, corpus_root, read_corpora
from lib.labels import class_names


def resolve_root(root: str) -> Path:
    """A folder as a run file writes it: relative ones count from the repository, "~" is the home folder."""
    return (paths.ROOT / Path(root).expanduser()).resolve()


def obtain_corpora(
    names: list[str], root: str, synthetic: bool, seed: int, speakers: int, clips_per_speaker: int
) -> Path:
    """Folder that holds the corpora `names`, rendered first when the run is synthetic.

    Parameters
    ----------
    root: the user's folder; "" = `data/corpora`, or a folder of its own for the synthetic ones.
    speakers, clips_per_speaker: size of the synthetic corpora; not used otherwise.

    Raises ValueError with what to do first when a corpus is not there.
    """
    if synthetic:
        from lib.synthesis import render_synthetic_corpora

        name = f"synthetic-{speakers}x{clips_per_speaker}-seed{seed}"
        folder = resolve_root(root) if root else paths.DATA / "corpora" / name
        render_synthetic_corpora(folder, seed, speakers=speakers, clips_per_speaker=clips_per_speaker)
        return folder
    folder = resolve_root(root) if root else paths.DATA / "corpora"
    check_sources(names, folder)
    return folder


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
    names: list[str], folder: Path, *, bucket: str, max_clips_per_speaker: int, age_labels: str, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the corpora of a run into (clips, ledger), each reader given what concerns it.

    Parameters
    ----------
    bucket: of Common Voice. max_clips_per_speaker: of Common Voice, 0 = no cap.
    age_labels: a table of ages for VoxCeleb; "" = those lying in its folder.
    """
    options = {
        "common_voice": {"bucket": bucket, "max_clips_per_speaker": max_clips_per_speaker or None, "seed": seed},
        "voxceleb": {"ages": resolve_root(age_labels) if age_labels else None},
    }
    clips, ledger, _ = read_corpora(names, folder, **{name: options[name] for name in names if name in options})
    return clips, ledger


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
