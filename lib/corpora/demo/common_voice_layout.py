"""A synthetic Common Voice release: the 13 columns, names and habits of releases 17 and later, and their sores.

Layout and values: github.com/common-voice/cv-dataset and CorporaCreator's columns.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lib.corpora.demo.recording import record, resample, write_audio
from lib.corpora.demo.studio import Session, Sore, Task, count_planted, load_sentences, open_session
from lib.paths import write_whole

RELEASE = "cv-corpus-99.0-synthetic"
COLUMNS = [
    "client_id",
    "path",
    "sentence_id",
    "sentence",
    "sentence_domain",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "variant",
    "locale",
    "segment",
]
BUCKETS = ["validated", "invalidated", "other"]  # these three hold every clip between them
PARTS = ["train", "dev", "test"]  # of validated, one clip a sentence
AGE_WORDS = {10: "teens", 20: "twenties", 30: "thirties", 40: "fourties", 50: "fifties", 60: "sixties"}
AGE_WORDS |= {70: "seventies", 80: "eighties", 90: "nineties"}  # "fourties" is the corpus's own spelling
GENDER_WORDS = {"male": "male_masculine", "female": "female_feminine"}
SORES = {  # one extra row each, all in validated
    "no such file": Sore(2, 1, "no such file"),
    "empty file": Sore(1, 1, "empty file"),
    "garbage instead of mp3": Sore(1, 1, "cannot be decoded"),
    "shorter than 3 s": Sore(4, 1, "shorter than a window"),
    "single word": Sore(2, 1, "Benchmark segment"),
    "silent clip": Sore(1, 1, ""),
    "blank age in a row": Sore(1, 1, ""),
    "blank gender in a row": Sore(1, 1, ""),
    "odd sentence": Sore(2, 1, ""),
}
UNLABELLED = (  # speakers beside the labelled ones, two clips each: what replaces the true labels
    {"age": "", "gender": ""}, {"gender": "do_not_wish_to_say"}, {"gender": "non-binary"}, {"age": ""},
)  # fmt: skip
ODD_SENTENCES = ['"She waited," said the "old" baker', "null"]  # an odd quote, and what pandas would take for missing
GARBAGE = b"this is not an mp3 file\n" * 40


def render_common_voice_speaker(task: Task) -> dict[str, Any]:
    """Record one speaker's clips; return {"rows": [...], "planted": [...]}."""
    rows, planted = [], []
    with open_session(task) as session:
        kinds: list[str] = [""] * task.clips + list(task.sores)
        kinds += ["other"] * int(session.rng.random() < 0.3) + ["invalidated"] * int(session.rng.random() < 0.15)
        for index, kind in enumerate(kinds):
            rows.append(_record_clip(task, session, index, kind))
            if kind and kind not in BUCKETS:
                planted.append(kind)
    return {"rows": rows, "planted": planted}


def _record_clip(task: Task, session: Session, index: int, kind: str) -> dict[str, Any]:
    """Write one clip and return its row, with its bucket and its duration beside the columns."""
    rng, speaker = session.rng, task.speaker
    name = f"common_voice_{speaker.language}_{99_000_000 + speaker.number * 200 + index}.mp3"
    path = Path(task.folder) / "common_voice" / RELEASE / speaker.language / "clips" / name
    sentence, waveform = _speak(session, kind)
    if kind == "silent clip":
        sound = np.zeros(int(4.5 * session.rate_hz), np.float32)
    else:
        sound = record(waveform, session.rate_hz, speaker, rng)
    if kind == "empty file" or kind == "garbage instead of mp3":
        with write_whole(path) as partial:
            partial.write_bytes(b"" if kind == "empty file" else GARBAGE)
    elif kind != "no such file":
        rate_hz = 48_000 if speaker.number % 10 == 9 else 32_000  # old clips are 48 kHz
        write_audio(
            path, resample(sound, session.rate_hz, rate_hz), rate_hz, "mp3", [0.55, 0.75, 0.9][speaker.number % 3]
        )
    return _row_of(task, rng, name, sentence, kind) | {"duration": round(1000 * len(sound) / session.rate_hz)}


def _speak(session: Session, kind: str) -> tuple[str, np.ndarray]:
    """What is read, and the dry waveform of it with silence at both ends."""
    rng = session.rng
    words = load_sentences()[session.speaker.language]["words"]
    if kind == "single word":
        sentence = str(rng.choice(words))
    elif kind == "shorter than 3 s":
        sentence = ", ".join(rng.permutation(words)[:2])
    elif kind == "odd sentence":
        sentence = ODD_SENTENCES[session.speaker.number % 2]
    else:
        sentence = session.write_sentence()
        if rng.random() < 0.06:
            sentence = f'"{sentence}"'
    waveform = session.pad(session.say(sentence))
    if kind in ("single word", "shorter than 3 s"):
        return sentence, waveform[: int(2.7 * session.rate_hz)]
    while len(waveform) < 3.4 * session.rate_hz:
        waveform = np.concatenate([waveform, session.pad(session.say(session.write_sentence()), 0.05, 0.3)])
    return sentence, waveform


def _row_of(task: Task, rng: np.random.Generator, name: str, sentence: str, kind: str) -> dict[str, Any]:
    bucket = kind if kind in BUCKETS else "validated"
    up, down = {"validated": (2, 0), "invalidated": (0, 2), "other": (1, 0)}[bucket]
    speaker = task.speaker
    labels = {"age": AGE_WORDS[speaker.age_years // 10 * 10], "gender": GENDER_WORDS[speaker.gender], **task.labels}
    labels["age"] = "" if kind == "blank age in a row" else labels["age"]
    labels["gender"] = "" if kind == "blank gender in a row" else labels["gender"]
    return {
        "client_id": hashlib.sha512(f"{task.seed}/{speaker.number}".encode()).hexdigest(),
        "path": name,
        "sentence_id": hashlib.sha256(sentence.encode()).hexdigest(),
        "sentence": sentence,
        "sentence_domain": ["", "general", "general,finance"][speaker.number % 3],
        "up_votes": up + int(rng.integers(2)),
        "down_votes": down,
        **labels,
        "accents": ["", "Synthetic accent ", "Synthetic accent,Second accent"][speaker.number % 3],
        "variant": "",
        "locale": speaker.language,
        "segment": "Benchmark" if kind == "single word" else "",
        "bucket": bucket,
    }


def write_common_voice(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write every locale's tables from the speakers' records; return counts for the manifest."""
    rows = [row for found in records for row in found["rows"]]
    planted, ledger = count_planted(SORES, [kind for found in records for kind in found["planted"]])
    for locale in sorted({row["locale"] for row in rows}):
        _write_locale(folder / "common_voice" / RELEASE / locale, [row for row in rows if row["locale"] == locale])
    stray = folder / "common_voice" / RELEASE / rows[0]["locale"] / "clips"
    with write_whole(stray / f"common_voice_{rows[0]['locale']}_98999999.mp3") as partial:
        partial.write_bytes((stray / rows[0]["path"]).read_bytes())
    planted["clip that no table names"] = 1
    validated = [row for row in rows if row["bucket"] == "validated"]
    planted["blank age"] = sum(not row["age"] for row in validated)
    planted["blank gender"] = sum(not row["gender"] for row in validated)
    for word in ("do_not_wish_to_say", "non-binary"):
        planted[word] = sum(row["gender"] == word for row in validated)
    return {
        "rows": {bucket: sum(row["bucket"] == bucket for row in rows) for bucket in BUCKETS},
        "speakers": len({row["client_id"] for row in rows}),
        "locales": sorted({row["locale"] for row in rows}),
        "planted": dict(sorted(planted.items())),
        "ledger": ledger,
    }


def _write_locale(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the six clip tables and the durations of one locale."""
    tables = {bucket: [row for row in rows if row["bucket"] == bucket] for bucket in BUCKETS}
    clients = sorted({row["client_id"] for row in tables["validated"]})
    part_of = {client: PARTS[0 if k % 4 < 2 else k % 4 - 1] for k, client in enumerate(clients)}
    seen: set[str] = set()
    tables |= {part: [] for part in PARTS}
    for row in tables["validated"]:
        if row["sentence"] not in seen:
            seen.add(row["sentence"])
            tables[part_of[row["client_id"]]].append(row)
    for name, content in tables.items():
        lines = ["\t".join(COLUMNS), *("\t".join(str(row[column]) for column in COLUMNS) for row in content)]
        _write_lines(folder / f"{name}.tsv", lines)
    _write_lines(
        folder / "clip_durations.tsv", ["clip\tduration[ms]", *(f"{r['path']}\t{r['duration']}" for r in rows)]
    )


def _write_lines(path: Path, lines: list[str]) -> None:
    with write_whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
