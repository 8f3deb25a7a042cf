"""Where a run's corpora come from: rendered on the spot, or a folder that the user has; and what the folder holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pandas as pd

from lib import paths
from lib.corpora import check_sources


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
