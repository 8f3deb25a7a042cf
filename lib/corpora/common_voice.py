"""Mozilla Common Voice (Scripted Speech), releases 1 to 25, as the archives unpack. Layouts, headers and words:
github.com/common-voice/cv-dataset; CorporaCreator there writes the tables unquoted."""

import itertools
import os
import re
from pathlib import Path

import pandas as pd

from lib.corpora.fetch import check_url, download_file, extract_members, unpacking
from lib.corpora.labels import AGE_MEANINGS, GENDER_MEANINGS, ages_of, genders_of, normalize_label
from lib.corpora.sieve import AUDIO_SUFFIXES, SYNTHETIC, Reading, Sieve, audio_stem, file_fault, printable

CORPUS = "common_voice"
# Of a release's clips; train, dev and test are a part of validated, one clip a sentence, drawn anew at each release.
TABLES = ["validated", "invalidated", "other", "train", "dev", "test"]
COLUMNS = ["client_id", "path", "age", "gender", "locale", "segment"]  # what is read, by name, of the 8 to 13 columns
BROKEN_GENDER = "6.0"  # this release left every "male" and "other" blank; 6.1 mended it
BLOCK_LINES = 100_000  # lines of a table that are held as Python objects at once
MDC_API = "https://mozilladatacollective.com/api"  # its REST interface; MDC_API_URL names another one
MDC_ADVICE = (
    "sign up at https://mozilladatacollective.com, open the dataset's page and agree to its terms there, make an API "
    "key (Profile, Credentials) and export MDC_API_KEY=...; or name an archive that you have in download.fetch"
)


def check_mdc_key() -> str:
    """The key in the environment variable MDC_API_KEY; ValueError with what to do when there is none."""
    if not os.environ.get("MDC_API_KEY", "").strip():
        raise ValueError(f"MDC_API_KEY is not set. {MDC_ADVICE}")
    return os.environ["MDC_API_KEY"].strip()


def download_common_voice(dataset_id: str, folder: Path) -> Path:
    """Fetch one locale of one release from Mozilla Data Collective and check it; return the archive's path. Its terms
    forbid passing the archive on; its id or short name stands on its page. ValueError with what to do."""
    import requests

    url = check_url(f"{os.environ.get('MDC_API_URL', MDC_API).rstrip('/')}/datasets/{dataset_id}/download")
    try:
        answer = requests.post(url, headers={"Authorization": f"Bearer {check_mdc_key()}"}, timeout=(15, 60))
        answer.raise_for_status()
    except requests.RequestException as error:
        status = getattr(error.response, "status_code", None)
        advice = MDC_ADVICE if status in (401, 403) else "is the id right and this machine on line? Run again later"
        raise ValueError(f"{url}: {status or type(error).__name__}; {advice}") from error
    facts = answer.json()
    name, checksum = str(facts.get("filename")), str(facts.get("checksum") or "")
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"Common Voice {dataset_id}: the file name {name!r} is no plain name")
    known_hash = f"sha256:{checksum}" if checksum and ":" not in checksum else checksum
    return download_file(facts["downloadUrl"], Path(folder) / name, known_hash)


def extract_common_voice(archive: Path, folder: Path, max_clips_per_speaker: int | None = None, seed: int = 0) -> None:
    """Unpack a Common Voice archive's tables, then only the clips that `read_common_voice` would take, to `folder`."""
    with unpacking(folder) as partial:
        tables = extract_members(archive, partial, lambda name: name.endswith(".tsv"))
        if not any(path.stem in TABLES for path in tables):
            raise ValueError(f"{archive}: holds no validated.tsv; is it a Common Voice archive?")
        sieve = _gather_rows(partial)
        _drop_rows(sieve, max_clips_per_speaker, seed)
        wanted = set(sieve.rows["stem"])
        extract_members(archive, partial, lambda name: audio_stem(name) in wanted and not name.endswith(".tsv"))


def read_common_voice(root: Path, max_clips_per_speaker: int | None = None, seed: int = 0) -> Reading:
    """Read the validated clips of every locale of every release at or below `root` into (clips, ledger). Without the
    single words of the segment "Benchmark"; train, dev and test where validated.tsv is not there. A `client_id` is one
    speaker in all of them, a clip of several releases is read once, and at most `max_clips_per_speaker` (None = all)
    are kept of each, chosen by `seed`. ValueError when there is no right table."""
    sieve = _gather_rows(Path(root))
    sieve.rows["fault"] = sieve.rows["path"].map(lambda path: file_fault(f"{root}/{path}")).astype("str")
    _drop_rows(sieve, max_clips_per_speaker, seed)
    sieve.drop(sieve.rows["fault"] != "", sieve.rows["fault"], sieve.rows["path"])
    return sieve.finish()


def find_locales(root: Path) -> list[Path]:
    """Folders up to four levels below `root` with a clip table (or in clips/), the newest first; ValueError if none."""
    root, advice = Path(root), "unpack a Common Voice archive there: a folder with validated.tsv and clips/"
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; {advice}, or name the archive in download.fetch")
    folders = []
    for name, below, _ in os.walk(root, followlinks=True):
        if _list_tables(Path(name)):
            folders.append(Path(name))
        is_end = Path(name) in folders or len(Path(name).relative_to(root).parts) == 4
        below[:] = [name for name in below if not is_end and not name.startswith((".", SYNTHETIC))]
    if not folders:
        raise ValueError(f"{root}: no validated.tsv within four levels; {advice}")
    return sorted(folders, key=lambda folder: (-float(folder_release(folder).partition("-")[0] or 0), str(folder)))


def _list_tables(folder: Path) -> dict[str, Path]:
    """The clip tables of a locale's folder by name, in the folder itself or inside its `clips/`."""
    places = [place / f"{name}.tsv" for name in TABLES for place in (folder / "clips", folder)]
    return {path.stem: path for path in places if path.is_file()}


def _list_clips(folder: Path) -> dict[str, str]:
    """Files with sound by stem: below `clips/` or `<locale>/clips/`, or beside; of several the best suffix."""
    by_suffix: dict[str, list[str]] = {suffix: [] for suffix in AUDIO_SUFFIXES[::-1]}
    for place in [folder / "clips", *sorted(folder.glob("*/clips")), folder]:
        for below, folders, names in os.walk(place):
            folders[:] = folders if place != folder else []
            prefix = f"{os.path.relpath(below, folder)}/".removeprefix("./")
            for name in names:
                by_suffix.get(os.path.splitext(name)[1].casefold(), []).append(printable(prefix + name))
    return {audio_stem(name): name for names in by_suffix.values() for name in names}


def folder_release(folder: Path) -> str:
    """Release number that the folder's path names, such as "6.1" or "5-singleword"; "" when it names none."""
    parts = "/".join(["", *Path(folder).absolute().parts[::-1], *Path(folder).resolve().parts[::-1]])
    return next(iter(re.findall(r"/cv-corpus-(\d+(?:\.\d+)?(?:-delta|-singleword)?)", parts)), "")


def folder_locale(folder: Path) -> str:
    """Locale that a folder's name tells: "en", "zh-CN", "cv-corpus-4-2019-12-10_en"; "" when it tells none."""
    kind_and_date = r"cv-corpus-\d[\d.]*(?:-delta|-singleword)?(?:-\d{4}-\d\d-\d\d)?[-_]"
    match = re.fullmatch(rf"(?:{kind_and_date})?([a-z]{{2,3}}(?:-[A-Za-z0-9]{{2,8}})*)", Path(folder).resolve().name)
    return match[1] if match else ""


def read_table(path: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Read one clip table: (rows with the text columns of `COLUMNS`, malformed lines as (item, reason, detail)). Rows
    end at line feeds only and nothing is quoted, since a sentence may hold quotes and every other line separator. A
    column that is not there is blank. ValueError when the header lacks client_id or path; an empty file has no rows."""
    with open(path, "rb") as stream:
        names = [name.strip().casefold() for name in stream.readline().decode("utf-8-sig", "replace").split("\t")]
        if names != [""] and not {"client_id", "path"} <= set(names):
            raise ValueError(f"{path}: no column client_id or path in its header {names}; unpack the archive again")
        places = {column: names.index(column) for column in COLUMNS if column in names}
        blocks, malformed, number = [pd.DataFrame({column: [] for column in COLUMNS}, dtype="str")], [], 1
        while lines := list(itertools.islice(stream, BLOCK_LINES)):
            rows = []
            for number, line in enumerate(lines, number + 1):  # noqa: B020 - counts on from block to block
                cells = line.rstrip(b"\r\n").split(b"\t")
                if len(cells) == len(names):
                    rows.append([cells[at].strip().decode("utf-8", "replace") for at in places.values()])
                elif cells != [b""]:
                    detail = f"{len(cells)} columns, not {len(names)}: {line[:80].decode('utf-8', 'replace')!r}"
                    malformed.append((f"{path.name}:{number}", "wrong number of columns", detail))
            blocks.append(pd.DataFrame(rows, columns=list(places), dtype="str"))
    return pd.concat(blocks, ignore_index=True).fillna(""), malformed


def _gather_rows(root: Path) -> Sieve:
    """All rows asked for from every locale below `root`, their blanks filled; column `fault` is blank."""
    frames, notes, alarms, asked, extra = [], [], [], [], 0
    for folder in find_locales(root):
        where, release, tables = folder.relative_to(root).as_posix(), folder_release(folder), _list_tables(folder)
        chosen = ["validated"] if "validated" in tables else [name for name in TABLES[3:] if name in tables]
        if chosen != ["validated"]:
            alarms.append(f"{where}: no validated.tsv; {', '.join(chosen) or 'nothing'} is read instead")
        if release == BROKEN_GENDER:
            alarms.append(f"{where}: release 6.0 lost every 'male'; its gender is not used. Take release 6.1 or later")
        asked += [f"{where}/{name}.tsv" for name in chosen]
        parts = []
        for name in dict.fromkeys(chosen + [name for name in TABLES[:3] if name in tables]):
            rows, malformed = read_table(tables[name])
            parts.append(rows.assign(chosen=name in chosen))  # the others' rows tell of their speakers
            notes += [(f"{where}/{item}", *why) for item, *why in malformed if name in chosen]
        rows = pd.concat(parts, ignore_index=True)
        rows["stem"] = rows["path"].map(audio_stem).astype("str")
        if not (files := _list_clips(folder)):
            alarms.append(f"{where}: no audio in {where}/clips")
        extra += len(files.keys() - set(rows["stem"]))
        named = "clips/" + rows["path"].str.replace(r"^.*/", "", regex=True)
        rows["item"] = rows["path"].where(rows["path"] != "", f"{where}: a row without path")
        rows["path"] = f"{where}/".removeprefix("./") + rows["stem"].map(files).fillna(named)
        told = rows["stem"].str.extract(r"^common_voice_([A-Za-z]+(?:-[A-Za-z0-9]+)*)_\d", expand=False)
        language = rows["locale"].where(rows["locale"] != "", told.fillna(folder_locale(folder)))
        frames.append(rows.assign(release=release, language=language.astype("str")))
    rows, filled, conflicting = _fill_blanks(pd.concat(frames, ignore_index=True))
    sieve = Sieve(CORPUS, rows[rows["chosen"]].assign(fault=""))
    sieve.note(notes)
    sieve.warnings += alarms
    sieve.facts = {
        "tables that were read": asked,
        "blank labels filled from the same speaker's other, agreeing rows": filled,
        "speakers whose own rows disagree (their blanks stay blank)": conflicting,
        "files on disk that no table names": extra,
    }
    return sieve


def _fill_blanks(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """Add `gender`, `age_years` and `age_decade`; a blank takes the value on which the client's other rows agree.
    Returns the rows, the number of chosen rows filled, and the number of clients whose own rows disagree."""
    filled, conflicts, values = {}, {}, {}
    speakers = rows["release"] + "/" + rows["client_id"]
    for column, known in (("gender", GENDER_MEANINGS), ("age", AGE_MEANINGS)):
        raw = rows[column].where((rows["release"] != BROKEN_GENDER) | (column == "age"), "")
        words = {value: normalize_label(value) for value in raw.unique()}
        meant = raw.map({value: str(known.get(word) or word) for value, word in words.items()}).astype("str")
        given = pd.DataFrame({"speaker": speakers, "meant": meant, "raw": raw})
        given = given[(meant != "") & (rows["client_id"] != "")].drop_duplicates(["speaker", "meant"])
        several = given["speaker"].duplicated(keep=False)
        agreed = speakers.map(given[~several].set_index("speaker")["raw"])
        values[column] = raw.where(meant != "", agreed).fillna("").astype("str")
        filled[column] = int(((meant == "") & (values[column] != "") & rows["chosen"]).sum())
        conflicts[column] = int(given.loc[several, "speaker"].nunique())
    rows = rows.rename(columns={"gender": "gender_raw", "age": "age_raw"})
    return rows.assign(gender=genders_of(values["gender"]), **ages_of(values["age"])), filled, conflicts


def _drop_rows(sieve: Sieve, cap: int | None, seed: int) -> None:
    """Give rows their ids, and send to the ledger what is no clip, stands there twice or is over the cap."""
    if cap is not None and cap < 1:
        raise ValueError(f"max_clips_per_speaker {cap}: give 1 or more, or null for no cap")
    sieve.drop(sieve.rows["stem"] == "", "no path")
    sieve.drop(sieve.rows["client_id"] == "", "no speaker", "client_id is blank")
    sieve.drop(sieve.rows["segment"].str.casefold() == "benchmark", "Benchmark segment", "a single word")
    stems, languages = sieve.rows["stem"], sieve.rows["language"]
    own = [stem.startswith(f"common_voice_{language}_") for stem, language in zip(stems, languages)]
    ids = f"{CORPUS}:" + stems.where(own, languages + "/" + stems)
    sieve.rows = sieve.rows.assign(clip_id=ids, recording_id=ids, speaker_id=f"{CORPUS}:" + sieve.rows["client_id"])
    present_first = (sieve.rows["fault"] != "").argsort(kind="stable")
    again = sieve.rows["clip_id"].iloc[present_first].duplicated().sort_index()
    sieve.drop(again, "listed twice", "in another row, bucket or release")
    if cap is not None:  # clips that are there come first; where these are fewer, what lacks is no matter of the cap
        order = pd.util.hash_array(sieve.rows["clip_id"].to_numpy(dtype=object), hash_key=f"{seed % 10**16:016d}")
        ranked = sieve.rows[["speaker_id"]].assign(absent=sieve.rows["fault"] != "", order=order)
        voices = ranked.sort_values(["absent", "order"], kind="stable").groupby("speaker_id")
        over = (voices.cumcount() >= cap) & ((~ranked["absent"]).groupby(ranked["speaker_id"]).transform("sum") >= cap)
        sieve.drop(over.sort_index(), "over the cap of clips a speaker", f"more than {cap}")
