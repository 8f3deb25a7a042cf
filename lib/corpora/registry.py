"""The one table of corpora: name -> reader. A new corpus is one file with a `read_*` function and one line here.

`python -m lib.corpora.registry ROOT --corpus common_voice` prints rows in, clips, ledger by reason and counts by class.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lib.corpora.age_tables import read_age_labels
from lib.corpora.common_voice import read_common_voice
from lib.corpora.labels import SCHEMES, count_labels, find_confounds
from lib.corpora.own_data import read_own_data
from lib.corpora.speechocean762 import read_speechocean762
from lib.corpora.voxceleb import read_voxceleb
from lib.paths import ROOT
from lib.tables import empty_table, validate_table

__all__ = [
    "ADVICE", "CORPORA", "check_sources", "corpus_root", "read_age_labels", "read_common_voice", "read_corpora",
    "read_own_data", "read_speechocean762", "read_voxceleb", "summarize",
]  # fmt: skip

Reader = Callable[..., tuple[pd.DataFrame, pd.DataFrame]]
CORPORA: dict[str, Reader] = {
    "common_voice": read_common_voice,
    "voxceleb": read_voxceleb,
    "speechocean762": read_speechocean762,
    "own_data": read_own_data,
}
ADVICE = {  # what to do first, one step a line; the keys are those of a run file's section `download`
    "common_voice": [
        "sign up at https://mozilladatacollective.com, open the page of the Common Voice locale that you want, and "
        "agree to its terms there",
        "make an API key (Profile, Credentials) and set it: export MDC_API_KEY=...",
        "put the dataset's id (its page, Download, API) into download.datasets: the run fetches and unpacks it",
        "or, with an archive of your own, put its path into download.datasets, or unpack it so that {folder} holds "
        "validated.tsv and clips/ (in any subfolder), or name its folder in download.root",
    ],
    "voxceleb": [
        "there is no open download of the audio: unzip your own copy of the official archives (lib.corpora.download."
        "extract_voxceleb joins and checks them) so that {folder} holds wav/ (or aac/) and vox1_meta.csv",
        "or fetch it from YouTube: read LEGAL_NOTE in lib/corpora/youtube.py, then set download.youtube: true; the meta and "
        "frame files and an age table come along (download.download: true fetches those alone)",
        "ages are in neither: put labels of your own into {folder}/ages.csv (columns speaker and decade, or speaker "
        "and age), or name a table in download.age_labels",
    ],
    "speechocean762": [
        "set download.download: true (open, no account, about 520 MB), or unpack "
        "https://www.openslr.org/resources/101/speechocean762.tar.gz so that {folder} holds train/, test/ and WAVE/, "
        "or name its folder in download.root",
    ],
    "own_data": [
        "write {folder}/own_data.csv with a column path (and speaker, gender, age where you know them), paths relative "
        "to that folder; or name another folder in download.root. params/own_data.yaml shows an example",
    ],
}


def corpus_root(name: str, root: Path | str) -> Path:
    """Absolute folder of corpus `name`: `root/<name>` if that exists, else `root` itself (a CSV's folder for a CSV)."""
    if name not in CORPORA:
        raise ValueError(f"corpus {name!r}: choose from {sorted(CORPORA)}")
    root = Path(root).absolute()
    if root.is_file() and name == "own_data":
        return root.parent
    return root / name if (root / name).is_dir() else root


def read_corpora(
    names: Sequence[str], root: Path | str, **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Path]]:
    """Read several corpora into (clips, ledger, roots): all their clips, all that was dropped, and each one's folder.

    An option named after a corpus is a dict for its reader (`voxceleb={"ages": ...}`); any other option goes to every
    reader that takes it (`max_clips_per_speaker=50`). `clips.attrs` holds rows_in, warnings and `by_corpus`, the attrs
    of each reader. Raises ValueError for an unknown corpus or an option that no chosen reader takes.
    """
    roots = {name: corpus_root(name, root) for name in names}
    if not roots:
        raise ValueError(f"corpora: name at least one of {sorted(CORPORA)}")
    taken: set[str] = set()
    clips, ledgers, facts = [], [], {}
    for name, folder in roots.items():
        accepts = set(list(inspect.signature(CORPORA[name]).parameters)[1:])
        own = {key: value for key, value in options.items() if key in accepts and key not in CORPORA}
        taken |= set(own) | ({name} & set(options))
        strange = set(options.get(name) or {}) - accepts
        if strange:
            raise ValueError(f"{name}: unknown options {sorted(strange)}; choose from {sorted(accepts)}")
        source = Path(root) if Path(root).is_file() else folder
        found, ledger = CORPORA[name](source, **(own | dict(options.get(name) or {})))
        facts[name] = found.attrs
        found.attrs = {}
        clips.append(found)
        ledgers.append(ledger)
    unused = set(options) - taken
    if unused:
        raise ValueError(f"options {sorted(unused)}: none of {list(roots)} takes them")
    both = validate_table(pd.concat([empty_table("clips"), *clips], ignore_index=True), "clips", str(root))
    both.attrs = {"rows_in": sum(f["rows_in"] for f in facts.values()), "by_corpus": facts}
    both.attrs["warnings"] = [f"{name}: {text}" for name, fact in facts.items() for text in fact["warnings"]]
    ledger = validate_table(pd.concat([empty_table("ledger"), *ledgers], ignore_index=True), "ledger", str(root))
    return both, ledger, roots


def check_sources(names: Sequence[str], root: Path | str, tables_come: bool = False) -> None:
    """Return if every corpus can be found below `root`; else raise ValueError with what the user must do first.

    Cheap: it looks for the files that each reader starts from and reads no audio. `tables_come`: VoxCeleb's meta files
    need not be there, since they will be fetched.
    """
    missing = []
    for name in names:
        folder = corpus_root(name, root)
        target = folder if folder.name == name else folder / name
        place = Path(root) if Path(root).is_file() else folder if folder.is_dir() else target
        problem = _find_problem(name, place, tables_come)
        if problem:
            steps = "".join(f"\n  - {step.format(folder=target)}" for step in ADVICE[name])
            missing.append(f"{name}: {problem}\n  To do:{steps}")
    if missing:
        text = "the data of this run is not there yet.\n" + "\n".join(missing)
        raise ValueError(text.replace(f"{ROOT}{os.sep}", ""))


def _find_problem(name: str, folder: Path, tables_come: bool = False) -> str:
    """What keeps the reader from starting, or ""."""
    from lib.corpora.common_voice_files import find_audio
    from lib.corpora.own_data import find_own_table
    from lib.corpora.speechocean762 import find_speechocean762
    from lib.corpora.voxceleb import find_utterance

    finders = {
        "common_voice": find_audio,
        "voxceleb": lambda root: find_utterance(root, needs_meta=not tables_come),
        "speechocean762": find_speechocean762,
        "own_data": find_own_table,
    }
    try:
        finders[name](folder)
    except ValueError as error:
        return str(error)
    return ""


def summarize(clips: pd.DataFrame, ledger: pd.DataFrame, scheme: str = "teen_adult") -> str:
    """Plain-text account of a reading: rows in = clips + ledger, drops by reason, counts by class, confounds."""
    classes, bounds, _ = SCHEMES[scheme]
    total = count_labels(clips, classes, bounds).query("corpus == 'all'").drop(columns=["corpus", "language"])
    lines = [f"rows in {clips.attrs['rows_in']:,} = clips {len(clips):,} + ledger {len(ledger):,}"]
    lines.append(f"speakers {clips['speaker_id'].nunique():,}, recordings {clips['recording_id'].nunique():,}")
    lines += [f"  dropped {count:,}: {reason}" for reason, count in ledger["reason"].value_counts().items()]
    lines.append(total.to_string(index=False))
    for target in ("gender", "age"):
        lines += find_confounds(clips, target, classes, bounds)
    lines += [f"warning: {text}" for text in clips.attrs["warnings"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line: read corpora and print the account."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("root", type=Path, help="folder of the corpus, or of several named as in --corpus")
    parser.add_argument("--corpus", nargs="+", choices=sorted(CORPORA), required=True)
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default="teen_adult", help="classes of age to count")
    options = parser.parse_args(arguments)
    clips, ledger, _ = read_corpora(options.corpus, options.root)
    print(summarize(clips, ledger, options.scheme))


if __name__ == "__main__":
    main()
