"""A synthetic Common Voice in the form of releases from 17 on, with one row of each usual fault; all validated."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from lib.corpora.demo.recording import CLIPS, Session, write_audio, write_text
from lib.corpora.demo.speakers import Speaker
from lib.corpora.labels import DECADE_WORDS

RELEASE = "cv-corpus-99.0-synthetic"
GENDER_WORDS = {"male": "male_masculine", "female": "female_feminine"}
# In the ledgers' words.
FAULTS = ["no such file", "empty file", "cannot be decoded", "shorter than a window", "Benchmark segment"]
EXTRAS = [*FAULTS, "silent"]  # each planted as one more clip of some speaker
UNLABELLED = [{"age": "", "gender": ""}, {"gender": "do_not_wish_to_say"}, {"gender": "non-binary"}, {"age": ""}]
LEAST_S = 3.4  # of a clip, so that a window of 3 s is left whatever a codec adds or takes


def record_speaker(folder: Path, speaker: Speaker, seed: int, extra: str, labels: dict) -> list[dict]:
    """Record one speaker's clips, and one more for `extra`; return the tables' rows. `labels` replace the true ones."""
    session, extras = Session(speaker, seed), [""] * CLIPS + [extra] * bool(extra)
    return [_record_clip(folder, session, number, one) | labels for number, one in enumerate(extras)]


def _record_clip(folder: Path, session: Session, index: int, extra: str) -> dict:
    speaker, sentence, least_s = session.speaker, session.write_sentence(), LEAST_S
    if extra in ("Benchmark segment", "shorter than a window"):
        sentence, least_s = str(session.rng.choice(session.words["words"])), 0.0
    name = f"common_voice_{speaker.language}_{99_000_000 + 100 * speaker.number + index}.mp3"
    path = folder / RELEASE / speaker.language / "clips" / name
    sound = session.record(session.read_aloud(sentence, least_s))
    if extra in ("empty file", "cannot be decoded"):
        write_text(path, [] if extra == "empty file" else ["this is not an mp3 file"] * 40)
    elif extra != "no such file":
        rate_hz = 48_000 if speaker.number % 10 == 9 else 32_000  # old clips: 48 kHz
        write_audio(path, np.zeros_like(sound) if extra == "silent" else sound, session.rate_hz, rate_hz)
    row = {"client_id": hashlib.sha512(str(speaker.number).encode()).hexdigest(), "path": name}
    row |= {"sentence_id": hashlib.sha256(sentence.encode()).hexdigest(), "sentence": sentence}
    row |= {"sentence_domain": ["", "general", "general,finance"][speaker.number % 3], "up_votes": 2, "down_votes": 0}
    row |= {"age": DECADE_WORDS[speaker.age_years // 10 - 1], "gender": GENDER_WORDS[speaker.gender]}
    row |= {"accents": ["", "Synthetic accent", "Synthetic accent,Second accent"][speaker.number % 3], "variant": ""}
    return row | {"locale": speaker.language, "segment": "Benchmark" if extra == "Benchmark segment" else ""}


def write_tables(folder: Path, rows: list[dict]) -> int:
    """Write every locale's table of validated clips, unquoted as the real ones; return the number of its rows."""
    for locale, part in pd.DataFrame(rows).groupby("locale"):
        part.to_csv(folder / RELEASE / locale / "validated.tsv", sep="\t", index=False, quoting=csv.QUOTE_NONE)
    return len(rows)
