"""speechocean762 (OpenSLR 101, CC BY 4.0): Mandarin speakers reading English, children and adults, with ages."""

from pathlib import Path

import pandas as pd

from lib.corpora.fetch import download_file, extract_members, unpacking
from lib.corpora.sieve import Reading, Sieve, find_spelling

CORPUS = "speechocean762"
HALVES = ["train", "test"]  # 125 speakers each, no speaker in both
URL = "https://www.openslr.org/resources/101/speechocean762.tar.gz"  # its page, /101/, lists mirrors


def download_speechocean762(folder: Path, url: str = URL) -> Path:
    """Fetch the archive (about 520 MB, no account, no published checksum) and unpack it to `folder`/speechocean762."""
    archive = download_file(url, folder / "speechocean762.tar.gz")
    with unpacking(folder / CORPUS) as partial:
        extract_members(archive, partial)
        find_speechocean762(partial)
    return folder / CORPUS


def read_kaldi(path: Path) -> dict[str, str]:
    """A Kaldi text file as key -> value ("" = none); a missing file is empty. ValueError when a key has two values."""
    values: dict[str, str] = {}
    text = path.read_bytes().decode("utf-8-sig", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        key, value = [*line.split(maxsplit=1), "", ""][:2]
        value = value.strip()
        if key and values.setdefault(key, value) != value:
            raise ValueError(f"{path}: {key} stands there twice, as {values[key]!r} and as {value!r}; keep one line")
    return values


def find_speechocean762(root: Path) -> Path:
    """Folder at or up to two levels below `root` with train/wav.scp or test/wav.scp. ValueError when there is none."""
    places = [root.absolute().parent] if root.absolute().name in HALVES else []
    for folder in [*places, root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]:
        if any((folder / half / "wav.scp").is_file() for half in HALVES):
            return folder
    raise ValueError(f"{root}: no train/wav.scp or test/wav.scp; unpack https://www.openslr.org/101/ there")


def read_speechocean762(root: Path) -> Reading:
    """Read the halves that are there into (clips, ledger). ValueError for neither, or where tables contradict."""
    folder = find_speechocean762(root)
    halves = [half for half in HALVES if (folder / half / "wav.scp").is_file()]
    sieve = Sieve(CORPUS, pd.concat([_read_half(folder, root, half) for half in halves], ignore_index=True))
    sieve.facts = {"halves that were read": halves}
    sieve.warnings += [f"the {half} half is not there" for half in HALVES if half not in halves]
    sieve.drop(sieve.rows["speaker"] == "", "no speaker", "not in utt2spk")
    sieve.drop_faults(root)
    sieve.drop(sieve.rows["item"].duplicated(), "listed twice", "in another row or half")
    return sieve.finish()


def _read_half(folder: Path, root: Path, half: str) -> pd.DataFrame:
    """One row per entry of the half's wav.scp."""
    tables = ("wav.scp", "utt2spk", "spk2utt", "spk2gender", "spk2age")
    names, speakers, utterances, genders, ages = (read_kaldi(folder / half / name) for name in tables)
    for speaker, spoken in utterances.items():  # says the same as utt2spk the other way round
        speakers = dict.fromkeys(spoken.split(), speaker) | speakers
    rows = pd.DataFrame({"item": list(names)}, dtype="str")
    clip_id = f"{CORPUS}:" + rows["item"]
    speaker = rows["item"].map(speakers).fillna("").astype("str")
    return rows.assign(
        path=pd.Series([find_spelling(folder, name, root) for name in names.values()], dtype="str"), clip_id=clip_id,
        recording_id=clip_id, speaker=speaker, speaker_id=f"{CORPUS}:" + speaker, language="en", official_split=half,
        gender_raw=speaker.map(genders).fillna("").astype("str"), age_raw=speaker.map(ages).fillna("").astype("str"),
    )  # fmt: skip
