"""VoxCeleb1 and 2: official cuts (`wav/`, `aac/`), or whole videos' audio cut by the official frame files (`txt/`).
Layout: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/. Ages: github.com/hechmik/voxceleb_enrichment_age_gender (MIT),
by video, a year off at best; github.com/nttcslab-sp/agevoxceleb, by utterance, not to be passed on; or a CSV."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from lib.corpora.fetch import download_file, unpacking
from lib.corpora.labels import ages_of, normalize_label, unknown_labels
from lib.corpora.sieve import AUDIO_SUFFIXES, Reading, Sieve, audio_stem, file_fault, printable, walk_files
from lib.tables import DECADES

CORPUS = "voxceleb"
FRAMES_PER_S = 25  # a frame's number is its time x 25, whatever the video's rate; a cut ends on its last frame
META_FILES = ["vox1_meta.csv", "vox2_meta.csv"]
HECHMIK = "final_dataframe_extended.csv"
AGE_FILES = ["utt2age.train", "utt2age.test", HECHMIK, "age-train.txt", "age-test.txt", "ages.csv"]  # ages.csv: by hand
SPEAKER_COLUMNS = ["voxceleb id", "voxceleb1 id", "voxceleb2 id", "speaker id", "speaker", "spk", "id"]
VIDEO_COLUMNS = ["video id", "video", "youtube id", "ytid", "reference"]
AGE_COLUMNS = ["speaker age", "age", "age years", "years", "year", "age decade", "decade", "age class", "age group"]
URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb"
# Of frame files, for which no password is asked: walkoncross/download_voxceleb_and_lrs_datasets.
MD5 = {"vox1_dev_txt": "md5:9c3b51e34038d1bdb2174dcc66543267", "vox1_test_txt": "md5:8e06592a5f604e23e8cd10f421b36cc3"}
AGE_TABLE_URL = "https://raw.githubusercontent.com/hechmik/voxceleb_enrichment_age_gender/main/dataset"


def download_voxceleb(folder: Path, url: str = URL, age_url: str = AGE_TABLE_URL) -> None:
    """Fetch VoxCeleb1's meta and frame files (CC BY 4.0) and an age table (MIT), where missing; else ValueError."""
    if not list(folder.glob("vox*_meta.csv")):
        for name in META_FILES:
            read_meta(download_file(f"{url}/meta/{name}", folder / name))
    for name, md5 in MD5.items() if not (folder / "txt").is_dir() else ():
        if not (folder / name).exists():
            archive = download_file(f"{url}/data/{name}.zip", folder / f"{name}.zip", md5)
            with unpacking(folder / name) as partial:
                zipfile.ZipFile(archive).extractall(partial)
    if not (folder / HECHMIK).exists():
        read_ages(download_file(f"{age_url}/{HECHMIK}", folder / HECHMIK))


def read_frame_file(path: Path) -> tuple[str, str, int, int]:
    """(speaker, video, first frame, last frame) of a frame file; ValueError names it when it tells no stretch."""
    text = Path(path).read_bytes().decode("utf-8-sig", errors="replace")
    head = dict(re.findall(r"^\s*(Identity|Reference)\s*:[^\S\n]*(.*?)\s*$", text, re.MULTILINE | re.IGNORECASE))
    head = {name.casefold(): value for name, value in head.items()}
    frames = [int(number) for number in re.findall(r"^\s*(\d+)(?=\s|$)", text, re.MULTILINE)]
    if not frames or frames[-1] <= frames[0]:
        told = f"from frame {frames[0]} to frame {frames[-1]} is no stretch of time" if frames else "no frame rows"
        raise ValueError(f"{path}: {told}")
    return head.get("identity", ""), head.get("reference", ""), frames[0], frames[-1]


def _read_cells(path: Path, **options: Any) -> pd.DataFrame:
    """A table of stripped text with normalised headers; commas, semicolons or tabs. ValueError names the file."""
    text = Path(path).read_bytes().decode("utf-8-sig", errors="replace")  # ids are ASCII
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False, engine="python", **options)
    except ValueError as error:  # pandas' own: no columns, a row too long, a quote that does not close
        raise ValueError(f"{path}: no table that can be read ({error}); fetch it again, or mend that line") from error
    return table.rename(columns=normalize_label).apply(lambda cells: cells.fillna("").str.strip())


def _pick_column(table: pd.DataFrame, names: list[str]) -> str | None:
    return next((name for name in names if name in table.columns), None)


def read_meta(path: Path) -> pd.DataFrame:
    """Read `vox1_meta.csv` or `vox2_meta.csv` in any of its real forms (tabs or commas, byte-order mark, stray blanks).
    Index: speaker; columns gender_raw, official_split ("train", "test"). ValueError when it cannot serve."""
    table = _read_cells(path, quoting=3)
    speaker = _pick_column(table, ["voxceleb1 id", "voxceleb2 id", "voxceleb id"])
    if speaker is None or "gender" not in table:
        raise ValueError(f"{path}: needs columns 'VoxCeleb1 ID' (or 2) and 'Gender', has {list(table.columns)}")
    table = table.reindex(columns=[speaker, "gender", "set"], fill_value="").drop_duplicates()
    twice = table.loc[table[speaker].duplicated(), speaker]
    if len(twice):
        raise ValueError(f"{path}: speaker {twice.iloc[0]} stands there twice with different entries; keep one")
    splits = table["set"].str.casefold().map({"dev": "train", "test": "test"})
    return pd.DataFrame({"gender_raw": table["gender"], "official_split": splits}).set_index(table[speaker])


def read_ages(path: Path) -> pd.DataFrame:
    """Read a table of ages: one row a speaker, a speaker in a video, or an utterance. Columns: key
    ("<speaker>[/<video>[/<n>]]"), age_raw, age_years (float, NaN), age_decade (Int16, NA). Bare numbers are decades
    where the column says so, or is called "age" and holds only 10, 20 ... 90. `attrs` counts what is no age; ValueError without any."""
    if not path.is_file():
        raise ValueError(f"{path}: no such age table; relative paths count from the repository")
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    if re.match(r"\s*id\d+/\S+/\S+[ \t]+\S+", text):  # AgeVoxCeleb: "id00042/34f5sBShxSo/00001 70"
        rows = [line.split()[:2] for line in text.split("\n") if len(line.split()) > 1]
        cells = pd.DataFrame(rows, columns=["speaker", "age years"], dtype="str")
    else:
        is_bare = re.match(r"\s*id\d+\s*[,;\t]", text)  # a hand table without a header
        cells = _read_cells(path, **({"header": None, "names": ["speaker", "age"]} if is_bare else {}))
    speaker, video, column = (_pick_column(cells, names) for names in (SPEAKER_COLUMNS, VIDEO_COLUMNS, AGE_COLUMNS))
    if speaker is None or column is None:
        needed = f"for the speaker, of {SPEAKER_COLUMNS}, and one for the age, of {AGE_COLUMNS}"
        raise ValueError(f"{path}: needs a column {needed}; has {list(cells.columns)}")
    key = cells[speaker].str.removeprefix(f"{CORPUS}:").str.replace(r"\.\w+$", "", regex=True)
    key = key.where(cells[video] == "", key + "/" + cells[video]) if video else key
    raw = cells[column].mask(cells[column].str.casefold().isin(["nan", "none", "na"]), "").astype("str")
    numbers = {float(value) for value in raw.unique() if re.fullmatch(r"\d+(\.\d+)?", value)}
    only_tens = bool(numbers) and numbers <= set(map(float, DECADES))
    unit = "decade" if "decade" in column or (column in ("age", "age class", "age group") and only_tens) else "years"
    ages = pd.DataFrame({"key": key, "age_raw": raw}).assign(**ages_of(raw, unit))
    ages = ages[(ages["age_years"].notna() | ages["age_decade"].notna()) & ~ages["key"].str.match("$|/")]
    if ages.empty:
        raise ValueError(f"{path}: holds no ages; delete it, or fetch it again")
    ages.attrs = {path.name: unknown_labels(raw, "age", unit)}
    return ages.reset_index(drop=True)


def join_ages(rows: pd.DataFrame, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    """Ages for rows with columns speaker, video, item: of the utterance, else speaker in this video, else speaker.
    Returns (age_raw, age_years, age_decade on the rows' index, number of keys whose labels disagree, so give none)."""
    labels = pd.concat([pd.DataFrame(columns=["key", "age_raw", "age_years", "age_decade"]), *tables])
    labels = labels.drop_duplicates(["key", "age_years", "age_decade"])
    several = labels["key"].duplicated(keep=False)
    known = labels[~several].set_index("key").astype("object")
    ages = known.reindex(rows["item"]).set_axis(rows.index)
    for key in (rows["speaker"] + "/" + rows["video"], rows["speaker"]):
        ages = ages.where(ages["age_raw"].notna(), known.reindex(key).set_axis(rows.index))
    ages = ages.fillna({"age_raw": ""}).astype({"age_raw": "str", "age_years": "float64", "age_decade": "Int16"})
    return ages, labels.loc[several, "key"].nunique()


def read_voxceleb(root: Path, ages: Path | None = None) -> Reading:
    """Read every utterance at or below `root` into (clips, ledger): a cut, `.../<speaker>/<video>/<n>.wav` (m4a), or
    a frame file of that name (txt) with the whole video's audio anywhere below, as `<video>.m4a` or as yt-dlp names it
    (`Title [<video>].webm`). Meta and age tables are those at or below `root` or up to two folders above, or the one
    table `ages`. ValueError when there are neither cuts nor frame files with audio, or no meta file is near."""
    cuts, frame_files, videos, tables, strange = _list_files(root)
    if not cuts and not (frame_files and videos):
        lacking = "frame files but no audio" if frame_files else "no <speaker>/<video>/<n>.wav (m4a, txt)"
        raise ValueError(f"{root}: {lacking} below it; unzip VoxCeleb's archives there")
    if not (metas := [name for name in META_FILES if name in tables]):
        text = ': no vox1_meta.csv or vox2_meta.csv, so no genders; download.fetch: ["open"] fetches them'
        raise ValueError(f"{root}{text}")
    keys = sorted(cuts.keys() | frame_files.keys())
    sieve = Sieve(CORPUS, pd.DataFrame([_describe(root, key, cuts, frame_files, videos) for key in keys]))
    wanted = {key.split("/")[1] for key in frame_files.keys() - cuts.keys()}
    several = [*cuts.values(), *frame_files.values(), *(files for video, files in videos.items() if video in wanted)]
    sieve.note([(path, "listed twice", f"{files[0]} is read") for files in several for path in files[1:]])
    sieve.note([(path, "name is not UTF-8", "rename the file") for path in strange])
    meta = pd.concat([read_meta(tables[name]) for name in metas])
    meta = meta[~meta.index.duplicated()].reindex(sieve.rows["speaker"])  # it lists more speakers than have audio
    age_tables = [read_ages(path) for path in ([ages] if ages else [tables[n] for n in AGE_FILES if n in tables])]
    joined, disagreeing = join_ages(sieve.rows, age_tables)
    sieve.rows = sieve.rows.assign(
        **joined, gender_raw=meta["gender_raw"].fillna("").to_numpy(), official_split=meta["official_split"].to_numpy()
    )
    words = {name: words for table in age_tables for name, words in table.attrs.items()}
    sieve.facts = {
        "meta files that were read": metas,
        "age tables that were read": list(words),
        "words in them that are no age": words,
        "ages left out because their tables disagree": disagreeing,
        "speakers in no meta file": meta.index[meta["gender_raw"].isna()].nunique(),
        "long recordings without a frame file": len(videos.keys() - {key.split("/")[1] for key in frame_files}),
    }
    sieve.drop(sieve.rows["reason"] != "", sieve.rows["reason"], sieve.rows["detail"])
    return sieve.finish()


def list_videos(root: Path) -> list[str]:
    """The YouTube ids of every video that a cut or a frame file below `root` is of."""
    cuts, frame_files, *_ = _list_files(root)
    return sorted({key.split("/")[1] for key in (*cuts, *frame_files)})


Files = dict[str, list[str]]  # a key, and paths below the root, the best first


def _list_files(root: Path) -> tuple[Files, Files, Files, dict[str, Path], list[str]]:
    """(cuts by key, frame files by key, long audio by video, tables by name, names that are not UTF-8)."""
    cuts, frame_files, media, videos, strange = {}, {}, [], {}, []
    beside = [folder / name for folder in root.absolute().parents[1::-1] for name in META_FILES + AGE_FILES]
    tables, below = {path.name: path for path in beside if path.is_file()}, {}
    for path in walk_files(root):
        suffix, relative = path.suffix.casefold(), path.relative_to(root).as_posix()
        speaker, video = path.absolute().parts[-3:-1]
        is_utterance = re.fullmatch(r"id\d+", speaker) is not None
        if path.name in META_FILES + AGE_FILES:
            below.setdefault(path.name, path)
        elif suffix not in AUDIO_SUFFIXES and not (suffix == ".txt" and is_utterance):
            continue
        elif printable(relative) != relative:
            strange.append(relative)
        elif is_utterance:
            files, stem = (frame_files, path.stem) if suffix == ".txt" else (cuts, audio_stem(path.name))
            files.setdefault(f"{speaker}/{video}/{stem}", []).append(relative)
        else:
            media.append(relative)
    wanted = {key.split("/")[1] for key in frame_files}
    for relative in media:
        stem = audio_stem(relative)  # a video's id, or one is in it, as in yt-dlp's "Title [<id>].f251-drc.webm"
        names = [stem, *(stem[place : place + 11] for place in range(len(stem) - 11, -1, -1))]
        videos.setdefault(next((name for name in names if name in wanted), stem), []).append(relative)
    for files in (files for files in (*cuts.values(), *videos.values()) if len(files) > 1):  # the first is read
        files.sort(key=lambda path: (AUDIO_SUFFIXES.index(Path(path).suffix.casefold()), path))
        files.sort(key=lambda path: file_fault(root / path) != "")
    return cuts, frame_files, videos, tables | below, strange


def _describe(root: Path, key: str, cuts: Files, frame_files: Files, videos: Files) -> dict[str, Any]:
    """One utterance as a row; `reason` says why it cannot be used, or is blank."""
    speaker, video, _ = key.split("/")
    row = {"item": key, "speaker": speaker, "video": video, "clip_id": f"{CORPUS}:{key}", "path": "", "start_s": 0.0,
           "end_s": float("nan"), "reason": "", "detail": "", "speaker_id": f"{CORPUS}:{speaker}",
           "recording_id": f"{CORPUS}:{video}"}  # fmt: skip
    path, *_ = cuts.get(key) or videos.get(video) or [""]
    if not path:
        return row | {"reason": "no audio", "detail": "a frame file without its cut or its video"}
    row |= {"path": path, "detail": path, "reason": file_fault(root / path)}
    if key in cuts or row["reason"]:
        return row
    frame_file = frame_files[key][0]
    try:
        *names, first, last = read_frame_file(root / frame_file)
        if [name or own for name, own in zip(names, (speaker, video))] != [speaker, video]:
            raise ValueError(f"{frame_file} names {'/'.join(names)}")
    except (ValueError, OSError) as error:
        return row | {"reason": "unusable frame file", "detail": str(error).replace(f"{root}/", "")}
    return row | {"start_s": first / FRAMES_PER_S, "end_s": last / FRAMES_PER_S}
