"""A synthetic VoxCeleb1: meta table, ages, frame files, and one long recording a speaker, with one of each usual fault.
Form of the files: robots.ox.ac.uk/~vgg/data/voxceleb. A cut runs from a frame file's first frame to its last."""

from pathlib import Path

import numpy as np
import pandas as pd

from lib.corpora.demo.recording import CLIPS, Session, write_audio, write_text
from lib.corpora.demo.speakers import Speaker

FRAMES_PER_S = 25
FIRST_ID = 19_001  # id1xxxx, beyond the real ones (id10001 to id11251)
ALPHABET = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
FORMATS = [("opus", 48_000), *[("ogg", 16_000), ("ogg", 24_000)] * 9]  # of the speakers in turn; Opus is slow to write
NATIONS = {"en": "USA", "de": "Germany", "fr": "France", "es": "Spain", "it": "Italy"}
LOST = {"no audio": None, "empty file": [], "cannot be decoded": ["not an audio file"] * 40}  # what is left of a video
EXTRAS = FAULTS = [*LOST, "shorter than a window", "unusable frame file"]  # in the ledgers' words, one frame file each
UNLABELLED = [{"age": ""}]  # a speaker whom nobody gave an age
LEAST_S = 3.96  # the shortest cut of VoxCeleb


def record_speaker(folder: Path, speaker: Speaker, seed: int, extra: str, labels: dict) -> list[dict]:
    """Record one speaker's video, cuts with noise between them, and write its frame files; return the tables' row."""
    session, name = Session(speaker, seed), f"id{FIRST_ID + speaker.number}"
    video, lost = ("".join(session.rng.choice(ALPHABET, 11)) for _ in range(2))
    frame = session.rate_hz // FRAMES_PER_S  # samples
    pieces, cuts = [], {}  # cuts: number -> first and last frame
    for number in range(1, CLIPS + 1 + (extra == "shorter than a window")):
        noise = 0.5 * session.make_noise(int(session.rng.integers(15, 40)) * frame)
        speech = session.read_aloud(session.write_sentence(), LEAST_S)
        frames = len(speech) // frame if number <= CLIPS else 2 * FRAMES_PER_S
        first = sum(map(len, pieces), len(noise)) // frame
        cuts[number] = (first, first + frames)
        pieces += [noise, speech[: frames * frame]]
    sound = session.record(np.concatenate(pieces))
    codec, rate_hz = FORMATS[speaker.number % len(FORMATS)]
    write_audio(folder / "audio" / f"{video}.{codec}", sound, session.rate_hz, rate_hz)
    if extra == "unusable frame file":
        cuts[99] = (1, 0)  # no frame at all
    for number, span in cuts.items():
        _write_frames(folder / "txt" / name / video / f"{number:05d}.txt", span, session.rng)
    if extra in LOST:
        _write_frames(folder / "txt" / name / lost / "00001.txt", (100, 230), session.rng)
    if LOST.get(extra) is not None:
        write_text(folder / "audio" / f"{lost}.ogg", LOST[extra])
    row = {"VoxCeleb1 ID": name, "VGGFace1 ID": "Synthetic_Speaker", "Gender": speaker.gender[0]}
    row |= {"Nationality": NATIONS[speaker.language], "Set": "dev", "cuts": CLIPS + bool(extra)}
    return [row | {"age": speaker.age_years // 10 * 10} | labels]


def _write_frames(path: Path, span: tuple[int, int], rng: np.random.Generator) -> None:
    """Write one frame file, byte for byte in the form of the real ones."""
    *_, name, video, _ = path.parts
    lines = [f"Identity  : \t{name}", f"Reference : \t{video}", f"Offset    : \t{rng.integers(-3, 3)}"]
    lines += [f"FV Conf   : \t{rng.uniform(11, 26):.3f}", f"ASD Conf  : \t{rng.uniform(4.2, 9.8):.3f}", ""]
    lines.append("FRAME \tX \tY \tW \tH ")
    x, y, w = (int(v) for v in rng.integers(60, 200, 3))
    lines += [f"{frame:06d} \t{x + frame % 3} \t{y} \t{w} \t{w} " for frame in range(span[0], span[1] + 1)]
    write_text(path, lines)


def write_tables(folder: Path, rows: list[dict]) -> int:
    """Write the meta table and the ages; return the number of frame files."""
    table = pd.DataFrame(rows)
    table[table.columns[:5]].to_csv(folder / "vox1_meta.csv", sep="\t", index=False)
    ages = {"speaker": table["VoxCeleb1 ID"], "age_decade": table["age"]}
    pd.DataFrame(ages)[table["age"] != ""].to_csv(folder / "ages.csv", index=False)
    return int(table["cuts"].sum())
